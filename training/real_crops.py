"""Crops of people in real pictures: augmented differently each time for training, and as the package makes them for
evaluation.

A person is kept as a square cut out of the picture, larger than the crop, so that all people are in one array and OpenCV makes
a crop in two milliseconds. The trainer mirrors, rotates and recolours them like the rendered ones.
"""

from __future__ import annotations

import hashlib
import os
import signal
import threading
from collections import defaultdict
from concurrent.futures import Executor, Future, ProcessPoolExecutor, ThreadPoolExecutor
from dataclasses import dataclass
from multiprocessing import get_context
from pathlib import Path
from typing import Protocol

import cv2
import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from convnextpose import metrics
from convnextpose.crop import Box, apply_affine, crop_from_image, crop_region
from convnextpose.errors import SourceError
from convnextpose.skeleton import HUMAN36M
from convnextpose.variants import INPUT_SIZE
from training.files import decoded, described
from training.real import LIMBS, RealPerson, read_people, shares

CUT_OUT_PX = 544
REACH = 1.9
"""Side of a cut-out, in sides of the crop that the package makes: 288 px of it are then that crop."""

FRAMES_KEPT = 48
"""Frames kept of one person; more of them would not add people."""
FRAMES_COUNT = 4.0
"""The number of people that the frames of one person count for."""
BY_HAND = 1.5
"""Weight of a hand-marked person when people are drawn; a person with a guessed pose has 1."""

ZOOM, ZOOMS = 0.2, (0.6, 1.4)
"""Standard deviation of the logarithm of the zoom, and its limits: boxes from tracking are too large or too small."""
SHIFT, SHIFTS = 0.07, 0.2
"""Standard deviation of the shift of the crop's middle, and its limit, in sides of the crop."""
COVERS = (0.4, 0.3, 0.2, 0.1)
"""Shares of the crops with 0, 1, 2 and 3 objects in front of the person."""
HIDDEN_WEIGHT = 0.5
"""Weight of a joint behind such an object: its position can only be guessed."""
BLURRED, COARSE, COMPRESSED, NOISY, EXCHANGED = 0.15, 0.25, 0.2, 0.25, 0.08
"""Shares of the crops that are out of focus, in few pixels, JPEG of a low quality, noisy, with colour channels exchanged."""
REAL_WEIGHT = 2.0
"""Weight of a coordinate compared with that of a rendered person. At most two in three coordinates of a real person are known,
so both kinds have about the same weight."""


PACKED = "people.npz"
"""The file of a packed data folder that replaces its pictures; `training.pack` writes it."""


@dataclass(frozen=True)
class CutOuts:
    """M people, cut out of their pictures.

    Attributes:
        pixels: [M, Q, Q, 3] uint8, BGR, Q = CUT_OUT_PX; black beyond the picture.
        joints: [M, 18, 3] float32: px, px of the cut-out, mm from the pelvis.
        weights: [M, 18, 3] float32: how far each coordinate can be trusted, 0..1.
        odds: [M] probability of each, summing to 1.
    """

    pixels: NDArray[np.uint8]
    joints: NDArray[np.float32]
    weights: NDArray[np.float32]
    odds: NDArray[np.float64]

    @classmethod
    def of(cls, people: list[RealPerson]) -> CutOuts:
        """Cut people out of their pictures.

        Raises:
            SourceError: nobody is given, or a picture cannot be read.
        """
        if not people:
            raise SourceError("expected people to train on in the data folder, found none: see training/README.md")
        people = _fewer_frames(people)
        pixels, joints = [], []
        for person in people:
            image, region = _read(person)
            matrix = crop_from_image(region.square(REACH), CUT_OUT_PX)
            pixels.append(cv2.warpAffine(image, matrix, (CUT_OUT_PX, CUT_OUT_PX), flags=cv2.INTER_LINEAR))
            joints.append(apply_affine(matrix, person.joints))
        weights = np.stack([person.weights for person in people])
        odds = shares(people, BY_HAND, FRAMES_COUNT)
        return cls(np.stack(pixels).astype(np.uint8), np.stack(joints).astype(np.float32), weights, odds)

    @property
    def fingerprint(self) -> str:
        """Shows whether two runs learn from the same people."""
        return hashlib.sha256(self.joints.tobytes() + self.weights.tobytes() + self.odds.tobytes()).hexdigest()[:16]

    def crop(self, size: int, *seeds: int) -> tuple[NDArray[np.uint8], NDArray[np.float32]]:
        """A crop of `size` px of one person, as used in training; the seeds (0 or above) determine everything.

        Returns:
            The image [S, S, 3], BGR, and labels [18, 6]: joints (px, px, mm) and the weight of each coordinate.
        """
        rng = np.random.default_rng(seeds)
        index = rng.choice(len(self.odds), p=self.odds)
        side = CUT_OUT_PX / REACH
        middle = CUT_OUT_PX / 2 + np.clip(rng.normal(0, SHIFT, 2), -SHIFTS, SHIFTS) * side
        side /= np.clip(np.exp(rng.normal(0, ZOOM)), *ZOOMS)
        matrix = crop_from_image(Box(*(middle - side / 2), side, side), size)
        image = cv2.warpAffine(self.pixels[index], matrix, (size, size), flags=cv2.INTER_LINEAR)
        joints, weights = apply_affine(matrix, self.joints[index]), REAL_WEIGHT * self.weights[index]
        for _ in range(rng.choice(len(COVERS), p=COVERS)):
            weights[_at(self._cover(image, rng), joints)] *= HIDDEN_WEIGHT
        return damaged(image, rng), np.concatenate([joints, weights], 1, dtype=np.float32)

    def _cover(self, image: NDArray[np.uint8], rng: np.random.Generator) -> NDArray[np.uint8]:
        """Put an object in front of the person, into the picture itself; returns its mask, [S, S]."""
        size = len(image)
        center, half, angle = rng.uniform(0, size, 2), np.exp(rng.uniform(*np.log((0.03, 0.2)), 2)) * size, rng.uniform(0, 180)
        mask = np.zeros((size, size), np.uint8)
        if rng.random() < 0.4:
            cv2.ellipse(mask, (tuple(center), tuple(2 * half), angle), 1, -1)
        else:
            angle *= rng.random() < 0.5
            cv2.fillConvexPoly(mask, cv2.boxPoints((tuple(center), tuple(2 * half), angle)).astype(np.int32), 1)
        if rng.random() < 0.6:  # a piece of another picture
            left, top = rng.integers(0, CUT_OUT_PX - size + 1, 2)
            thing = self.pixels[rng.integers(len(self.pixels)), top : top + size, left : left + size]
        else:
            thing = np.full_like(image, rng.integers(0, 256, 3))
        cv2.copyTo(thing, mask, image)
        return mask


def damaged(image: NDArray[np.uint8], rng: np.random.Generator, coarsest: float = 0.22) -> NDArray[np.uint8]:
    """A square picture, randomly out of focus, in few pixels, compressed, noisy or in other tones.

    Args:
        image: [S, S, 3], BGR.
        rng: determines the damage.
        coarsest: the smallest share of its pixels, along a side, to which it is reduced.
    """
    size = len(image)
    if rng.random() < BLURRED:
        image = cv2.GaussianBlur(image, (0, 0), rng.uniform(0.5, 2) * size / 256)
    if rng.random() < COARSE:
        small = round(size * rng.uniform(coarsest, 0.7))
        image = cv2.resize(image, (small, small), interpolation=cv2.INTER_AREA)
        image = cv2.resize(image, (size, size), interpolation=cv2.INTER_LINEAR)
    if rng.random() < COMPRESSED:
        _, coded = cv2.imencode(".jpg", image, [cv2.IMWRITE_JPEG_QUALITY, int(rng.integers(15, 60))])
        image = cv2.imdecode(coded, cv2.IMREAD_COLOR)
    if rng.random() < NOISY:
        noise = rng.standard_normal(image.shape, np.float32) * np.float32(rng.uniform(2, 15))
        image = (image + noise).clip(0, 255).astype(np.uint8)
    mean, contrast, light = image.mean(), rng.uniform(0.6, 1.25), rng.normal(0, 10) + rng.normal(0, 5, 3)
    tones = (np.arange(256)[:, None] - mean) * contrast + mean + light
    image = cv2.LUT(image, tones.clip(0, 255).round().astype(np.uint8)[None])
    if rng.random() < EXCHANGED:
        image = np.ascontiguousarray(image[..., rng.permutation(3)])
    return np.asarray(image, np.uint8)


class RealPictures(Protocol):
    """A source of training pictures."""

    @property
    def fingerprint(self) -> str:
        """Shows whether two runs learn from the same pictures."""
        ...

    def crop(self, size: int, *seeds: int) -> tuple[NDArray[np.uint8], NDArray[np.float32]]:
        """A picture [S, S, 3], BGR, as used in training, and its labels; the seeds (0 or above) determine everything."""
        ...


class RealCrops:
    """The real pictures for each step of a run, made ahead by threads or, for a GPU, by processes: Python code in threads would
    delay the one that keeps the GPU busy."""

    def __init__(self, source: RealPictures, count: int, size: int, seed: int, processes: int = 0) -> None:
        """`count` pictures of `size` px a step; step and seed determine everything."""
        self.source, self._plan = source, (count, size, seed)
        self._workers = processes or min(4, os.cpu_count() or 1)
        self._pool: Executor
        if processes:  # not forked, which could inherit a lock of OpenCV's, so each has a copy of the pictures
            self._pool = ProcessPoolExecutor(processes, get_context("spawn"), _start_process, (source,))
        else:
            self._pool = ThreadPoolExecutor(self._workers, initializer=_start_worker, initargs=(source,))
        self._ahead: dict[int, Future[tuple[NDArray[np.uint8], NDArray[np.float32]]]] = {}

    def batch(self, step: int) -> tuple[Tensor, Tensor]:
        """Images [N, S, S, 3] uint8, BGR, and labels [N, ...] of a step, on the CPU."""
        wanted = range(step, step + 1 + 2 * self._workers)
        self._ahead = {k: self._ahead.get(k) or self._pool.submit(_crops, *self._plan, k) for k in wanted}
        images, labels = self._ahead.pop(step).result()
        return torch.from_numpy(images), torch.from_numpy(labels)


_worker = threading.local()
"""In a thread or process of `RealCrops`: its source of pictures."""


def _start_worker(source: RealPictures) -> None:
    _worker.source = source


def _start_process(source: RealPictures) -> None:
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # the parent handles Ctrl-C
    cv2.setNumThreads(1)
    _start_worker(source)


def _crops(count: int, size: int, seed: int, step: int) -> tuple[NDArray[np.uint8], NDArray[np.float32]]:
    """The images [N, S, S, 3] and labels [N, ...] of a step."""
    images, labels = zip(*(_worker.source.crop(size, seed, step, k) for k in range(count)), strict=True)
    return np.stack(images), np.stack(labels)


def _fewer_frames(people: list[RealPerson]) -> list[RealPerson]:
    """The people, but only some frames of a person who is in many, spread evenly over them."""
    groups: defaultdict[str, list[RealPerson]] = defaultdict(list)
    for person in people:
        groups[person.subject].append(person)
    kept = [group[:: -(-len(group) // FRAMES_KEPT)] for group in groups.values()]
    return [person for group in kept for person in group]


def _read(person: RealPerson) -> tuple[NDArray[np.uint8], Box]:
    """The person's picture, and its region that the package cuts out."""
    image = cv2.imread(str(person.picture), cv2.IMREAD_COLOR)
    if image is None:
        raise SourceError(f"expected a picture in {person.picture}, which cannot be decoded: get it again")
    return np.asarray(image, np.uint8), crop_region(person.box, image.shape[1], image.shape[0])


def _at(mask: NDArray[np.uint8], joints: NDArray[np.float64]) -> NDArray[np.bool_]:
    """[J] whether a mask [S, S] covers joints [J, 2 or more] (px); false outside the mask."""
    cell = joints[:, :2].round().astype(int)
    inside = ((cell >= 0) & (cell < len(mask))).all(-1)
    column, row = cell.clip(0, len(mask) - 1).T
    return inside & (mask[row, column] > 0)


@dataclass(frozen=True)
class HeldOutPeople:
    """N hand-marked people, in crops as the package makes them.

    Attributes:
        images: [N, S, S, 3] uint8, BGR, on the CPU.
        joints_px: [N, 18, 2] in the crop.
        seen: [N, 18] which limb joints are marked.
        torso_px: [N] distance from the middle of the shoulders to that of the hips, px of the crop.
    """

    images: Tensor
    joints_px: NDArray[np.float64]
    seen: NDArray[np.bool_]
    torso_px: NDArray[np.float64]

    @classmethod
    def of(cls, people: list[RealPerson], size: int = INPUT_SIZE) -> HeldOutPeople:
        """Crops of `size` px of the scorable people.

        Raises:
            SourceError: nobody is scorable, or a picture cannot be read.
        """
        people = [person for person in people if person.scorable]
        if not people:
            raise SourceError("expected held-out people in the data folder, found none: see training/README.md")
        images, joints, torsos = [], [], []
        for person in people:
            image, region = _read(person)
            matrix = crop_from_image(region, size)
            images.append(cv2.warpAffine(image, matrix, (size, size), flags=cv2.INTER_LINEAR))
            joints.append(apply_affine(matrix, person.joints)[:, :2])
            torsos.append(person.torso_px * size / region.width)
        seen = np.stack([person.weights[:, 0] > 0 for person in people])
        seen &= np.isin(np.arange(len(HUMAN36M)), LIMBS)
        return cls(torch.from_numpy(np.stack(images)), np.stack(joints), seen, np.array(torsos))

    def of_size(self, size: int) -> HeldOutPeople:
        """The same crops in another size."""
        small = [cv2.resize(image, (size, size), interpolation=cv2.INTER_AREA) for image in self.images.numpy()]
        share = size / self.images.shape[2]
        return HeldOutPeople(torch.from_numpy(np.stack(small)), self.joints_px * share, self.seen, self.torso_px * share)


def write_packed(path: Path, cut_outs: CutOuts, held_out: HeldOutPeople) -> None:
    """Write both to one file, the pictures as JPEG."""
    codes = [cv2.imencode(".jpg", image, [cv2.IMWRITE_JPEG_QUALITY, 70])[1] for image in cut_outs.pixels]
    codes += [cv2.imencode(".jpg", image, [cv2.IMWRITE_JPEG_QUALITY, 97])[1] for image in held_out.images.numpy()]
    np.savez(
        path,
        codes=np.concatenate(codes),
        lengths=np.array([len(code) for code in codes]),
        **{name: getattr(cut_outs, name) for name in ("joints", "weights", "odds")},
        **{name: getattr(held_out, name) for name in ("joints_px", "seen", "torso_px")},
    )


def read_crops(folder: Path, size: int) -> tuple[CutOuts, HeldOutPeople]:
    """The people to train on, and the held-out people in crops of `size` px, from a data folder or a packed one.

    Raises:
        SourceError: a file of it is missing or is not what README.md describes.
    """
    path = folder / PACKED
    if not path.exists():
        people, held_out = read_people(folder)
        return CutOuts.of(people), HeldOutPeople.of(held_out, size)
    with described(path), np.load(path, allow_pickle=False) as data:
        codes = np.split(data["codes"], np.cumsum(data["lengths"])[:-1])
        images = [decoded(code) for code in codes]
        count = len(data["odds"])
        cut_outs = CutOuts(np.stack(images[:count]), *(data[name] for name in ("joints", "weights", "odds")))
        crops = torch.from_numpy(np.stack(images[count:]))
        kept = HeldOutPeople(crops, *(data[name] for name in ("joints_px", "seen", "torso_px")))
    return cut_outs, kept if crops.shape[2] == size else kept.of_size(size)


@dataclass(frozen=True)
class LimbScore:
    """Distances of predicted limb joints from those marked by hand.

    Attributes:
        right: share within 0.2 torso lengths, 0..1.
        median: median distance, torso lengths.
        swaps: share of left-right pairs that fit better exchanged, 0..1; pairs nearer than 0.2 torso lengths do not count.
    """

    right: float
    median: float
    swaps: float


def limb_score(predicted: Tensor, people: HeldOutPeople) -> LimbScore:
    """Compare joints [N, 18, 3] (px, px of the crops, mm) with the marks."""
    places = predicted[..., :2].double().cpu().numpy()
    distances = np.linalg.norm(places - people.joints_px, axis=-1) / people.torso_px[:, None]
    return LimbScore(
        right=float((distances[people.seen] <= 0.2).mean()),
        median=float(np.median(distances[people.seen])),
        swaps=metrics.picture_swap_rate(places, people.joints_px, HUMAN36M, 0.2 * people.torso_px, people.seen),
    )
