"""Real pictures of people as frames for the detector: augmented differently each time for training, and in the package's
layout for evaluation.

A training frame is a whole picture, a part of one, or four of these side by side, each for a share of the frames. The trainer
mirrors and recolours them like the rendered ones.
"""

from __future__ import annotations

import hashlib
from collections import Counter
from dataclasses import dataclass
from pathlib import Path

import cv2
import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from convnextpose.errors import SourceError
from training.files import decoded, described
from training.frames import MAX_PEOPLE
from training.real import RealPicture, read_pictures
from training.real_crops import damaged

NOBODY, UNCLEAR, WANTED, CROWD = -1.0, 0.0, 1.0, 2.0
"""Fifth value of a label, the class of its box: no box; a person who is ignored, neither wanted nor wrong; a wanted person; a
crowd, in which no box is wrong."""

SHOWN = 0.2
"""People with a smaller visible share are ignored."""

SMALLEST_PX, SHORTEST_PX = 6.0, 12.0
"""Also ignored are people whose box in the frame has a side under the first limit and, if they are real, those whose longer
side is under the second."""

WHOLE, NEAR = 0.35, 0.4
"""Shares of the pictures that are used whole, and of those cut out around a person; the others are cut out anywhere."""

NEAREST, FARTHEST = 0.8, 6.0
"""Side of the area cut out around a person, in longer sides of the person's box."""

FOURS = 0.25
"""Share of the frames that show four pictures side by side: many small people."""

STRETCH = 0.08
"""Standard deviation of the logarithm of a picture's stretch."""

COARSEST = 0.45
"""Smallest share of a frame's pixels, along a side, that damage leaves."""

FRAMES_KEPT, FRAMES_COUNT = 48, 4.0
"""Frames kept of one person who is in many, and the number of pictures that they count for."""

PACKED, PACKED_KEPT, PACKED_PX = "frames.npz", 8, 512
"""The file of a packed data folder that replaces its pictures, which `training.pack` writes; the frames that it has of one
person, and the longest side of a picture in it."""

Pixels = NDArray[np.uint8]
Labels = NDArray[np.float32]


def letterbox(image: Pixels, boxes: Labels, width: int, height: int) -> tuple[Pixels, Labels]:
    """Scale a picture to fit `width` x `height` px, with its boxes [K, 4]."""
    scale = min(width / image.shape[1], height / image.shape[0])
    size = (max(1, round(image.shape[1] * scale)), max(1, round(image.shape[0] * scale)))
    small = cv2.resize(image, size, interpolation=cv2.INTER_AREA if scale < 1 else cv2.INTER_LINEAR)
    share = np.array(size, np.float32) / np.array(image.shape[1::-1], np.float32)
    return np.asarray(small, np.uint8), np.concatenate([(boxes[:, :2] + 0.5) * share - 0.5, boxes[:, 2:] * share], 1)


def labelled(boxes: Labels, crowds: NDArray[np.bool_], width: int, height: int) -> Labels:
    """Labels [K, 5] of people in a picture of `width` x `height` px: boxes [K, 4] clipped to it, and their class."""
    low = boxes[:, :2].clip(-0.5)
    size = (np.minimum(boxes[:, :2] + boxes[:, 2:], np.array([width, height]) - 0.5) - low).clip(0)
    seen = size.prod(-1) >= SHOWN * boxes[:, 2:].prod(-1)
    large = (size.min(-1, initial=np.inf) >= SMALLEST_PX) & (size.max(-1, initial=0) >= SHORTEST_PX)
    kind = np.where(crowds, CROWD, np.where(seen & large, WANTED, UNCLEAR))
    kind[size.min(-1, initial=np.inf) <= 0] = NOBODY
    return np.concatenate([low, size, kind[:, None]], 1, dtype=np.float32)


def padded(labels: Labels, count: int) -> Labels:
    """Labels [K, 5] padded with empty ones to [count, 5]."""
    return np.concatenate([labels, np.tile(np.float32([0, 0, 0, 0, NOBODY]), (count - len(labels), 1))])


@dataclass(frozen=True)
class RealFrames:
    """M pictures to train on.

    Attributes:
        images: the pictures [H, W, 3], BGR.
        pictures: what is marked in each.
        odds: [M] probability of each, summing to 1.
    """

    images: list[Pixels]
    pictures: list[RealPicture]
    odds: NDArray[np.float64]

    @classmethod
    def of(cls, pictures: list[RealPicture], kept_of_one: int = FRAMES_KEPT) -> RealFrames:
        """Read pictures; of a person who is in many frames only some, spread evenly over them.

        Raises:
            SourceError: none is given, or one cannot be read.
        """
        count, seen = Counter(picture.subject for picture in pictures), Counter[str]()
        kept = []
        for picture in pictures:
            if seen[picture.subject] % -(-count[picture.subject] // kept_of_one) == 0:
                kept.append(picture)
            seen[picture.subject] += 1
        if not any(len(picture.boxes) for picture in kept):
            raise SourceError("expected marked people to train on in the data folder, found none: see training/README.md")
        count = Counter(picture.subject for picture in kept)
        odds = np.array([min(1.0, FRAMES_COUNT / count[picture.subject]) for picture in kept])
        return cls([read(picture.picture) for picture in kept], kept, odds / odds.sum())

    @property
    def fingerprint(self) -> str:
        """Shows whether two runs learn from the same pictures."""
        parts = [part for p in self.pictures for part in (p.picture.name.encode(), p.boxes.tobytes(), p.crowds.tobytes())]
        return hashlib.sha256(b"".join(parts)).hexdigest()[:16]

    @property
    def most(self) -> int:
        """The number of labels of a frame."""
        return max(MAX_PEOPLE, 4 * max(len(picture.boxes) for picture in self.pictures))

    def crop(self, size: int, *seeds: int) -> tuple[Pixels, Labels]:
        """A frame of `size` px, as used in training; the seeds (0 or above) determine everything.

        Returns:
            The image [S, S, 3], BGR, black outside the picture, and labels [most, 5].
        """
        rng = np.random.default_rng(seeds)
        frame, covered, every = np.zeros((size, size, 3), np.uint8), np.zeros((size, size, 1), np.uint8), []
        side = size // 2 if rng.random() < FOURS else size
        for y in range(0, size, side):
            for x in range(0, size, side):
                image, labels = self._view(side, rng)
                height, width = image.shape[:2]
                frame[y : y + height, x : x + width], covered[y : y + height, x : x + width] = image, 1
                labels[:, :2] += (x, y)
                every.append(labels)
        return damaged(frame, rng, COARSEST) * covered, padded(np.concatenate(every), self.most)

    def _view(self, side: int, rng: np.random.Generator) -> tuple[Pixels, Labels]:
        """A picture or a part of one that fits `side` px, and its labels [K, 5]."""
        index = rng.choice(len(self.odds), p=self.odds)
        image, picture = self.images[index], self.pictures[index]
        whole, kind = np.array(image.shape[1::-1], np.float64), rng.random()
        part, middle = whole, whole / 2
        people = picture.boxes[~picture.crowds]
        if kind < WHOLE:
            pass
        elif kind < WHOLE + NEAR and len(people):
            box = people[rng.integers(len(people))].astype(np.float64)
            part = box[2:].max() * np.exp(rng.uniform(*np.log((NEAREST, FARTHEST)))) * np.exp(rng.normal(0, 0.2, 2))
            middle = box[:2] + box[2:] / 2 + rng.uniform(-0.4, 0.4, 2) * part
        else:
            part = whole * np.exp(rng.uniform(np.log(0.3), 0) + rng.normal(0, 0.15, 2))
            middle = rng.uniform(0, 1, 2) * whole
        part = np.minimum(part.clip(32), whole).round().astype(int)
        x, y = (middle - part / 2).round().astype(int).clip(0, whole.astype(int) - part)
        view, boxes = image[y : y + part[1], x : x + part[0]], picture.boxes - np.float32([x, y, 0, 0])
        stretch = float(np.exp(rng.normal(0, STRETCH)))
        view = cv2.resize(view, (max(1, round(part[0] * stretch)), int(part[1])), interpolation=cv2.INTER_LINEAR)
        boxes[:, [0, 2]] *= view.shape[1] / part[0]
        view, boxes = letterbox(np.asarray(view, np.uint8), boxes, side, side)
        return view, labelled(boxes, picture.crowds, view.shape[1], view.shape[0])


@dataclass(frozen=True)
class HeldOutFrames:
    """N held-out pictures in the package's layout.

    Attributes:
        images: [N, S, S, 3] uint8, BGR: the picture in the top left, black beyond it.
        areas: [N, 2] width and height of the picture in the frame, px.
        labels: [N, P, 5] as from `labelled`.
    """

    images: Tensor
    areas: Tensor
    labels: Tensor

    @classmethod
    def of(cls, pictures: list[RealPicture], size: int) -> HeldOutFrames:
        """Pictures in frames of `size` px.

        Raises:
            SourceError: no picture shows people, or one cannot be read.
        """
        most = max((len(picture.boxes) for picture in pictures), default=0)
        if not most:
            raise SourceError("expected held-out pictures with people in the data folder, found none: see training/README.md")
        images, areas, labels = np.zeros((len(pictures), size, size, 3), np.uint8), [], []
        for frame, picture in zip(images, pictures, strict=True):
            image, boxes = letterbox(read(picture.picture), picture.boxes, size, size)
            frame[: image.shape[0], : image.shape[1]] = image
            areas.append(image.shape[1::-1])
            labels.append(padded(labelled(boxes, picture.crowds, image.shape[1], image.shape[0]), most))
        return cls(torch.from_numpy(images), torch.tensor(areas), torch.from_numpy(np.stack(labels)))


def read(path: Path) -> Pixels:
    """The picture [H, W, 3], BGR, of a file.

    Raises:
        SourceError: it cannot be decoded.
    """
    image = cv2.imread(str(path), cv2.IMREAD_COLOR)
    if image is None:
        raise SourceError(f"expected a picture in {path}, which cannot be decoded: get it again")
    return np.asarray(image, np.uint8)


def write_packed(path: Path, frames: RealFrames) -> None:
    """Write the pictures to one file, scaled down to PACKED_PX and as JPEG."""
    codes, boxes = [], []
    for image, picture in zip(frames.images, frames.pictures, strict=True):
        side = min(PACKED_PX, max(image.shape[:2]))
        small, scaled = letterbox(image, picture.boxes, side, side)
        codes.append(cv2.imencode(".jpg", small, [cv2.IMWRITE_JPEG_QUALITY, 75])[1])
        boxes.append(scaled)
    np.savez(
        path,
        codes=np.concatenate(codes),
        lengths=np.array([len(code) for code in codes]),
        boxes=np.concatenate(boxes),
        crowds=np.concatenate([picture.crowds for picture in frames.pictures]),
        counts=np.array([len(picture.boxes) for picture in frames.pictures]),
        names=np.array([picture.picture.name for picture in frames.pictures]),
        subjects=np.array([picture.subject for picture in frames.pictures]),
        odds=frames.odds,
    )


def _read_packed(path: Path) -> RealFrames:
    with described(path), np.load(path, allow_pickle=False) as data:
        images = [decoded(code) for code in np.split(data["codes"], np.cumsum(data["lengths"])[:-1])]
        parts = (np.split(data[name], np.cumsum(data["counts"])[:-1]) for name in ("boxes", "crowds"))
        named = zip(data["names"].tolist(), data["subjects"].tolist(), *parts, strict=True)
        return RealFrames(images, [RealPicture(Path(name), *rest) for name, *rest in named], data["odds"])


def read_frames(folder: Path, size: int) -> tuple[RealFrames, HeldOutFrames | None]:
    """The pictures to train on, and the held-out ones in frames of `size` px, from a data folder; a packed one has none that
    are held out.

    Raises:
        SourceError: a file of it is missing or is not what README.md describes.
    """
    if (folder / PACKED).exists():
        return _read_packed(folder / PACKED), None
    train, held_out = read_pictures(folder)
    return RealFrames.of(train), HeldOutFrames.of(held_out, size)
