"""People in real pictures: labels made by hand or by another network, and which people are held out from training.

The pictures are not in this repository; README.md describes their folder. This module does not import torch, because
evaluation also reads the held-out people with it.
"""

from __future__ import annotations

import csv
import hashlib
import json
import re
from collections import defaultdict
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from convnextpose.crop import Box
from convnextpose.skeleton import HUMAN36M
from training.files import described

HELD_OUT_EVERY = 3
"""One in this many pictures with hand-marked key points is held out."""

_LIMBS = tuple(f"{side}_{part}" for part in ("Shoulder", "Elbow", "Wrist", "Hip", "Knee", "Ankle") for side in "LR")
LIMBS = tuple(HUMAN36M.joints.index(name) for name in _LIMBS)
"""The 12 joints that all labellers place alike, in the order of COCO and MediaPipe; only these are scored."""

_NOSE = HUMAN36M.joints.index("Nose")
COCO = {0: _NOSE} | dict(zip(range(5, 17), LIMBS, strict=True))
"""Joints by index of COCO's key points. Its eyes and ears are not among our joints."""
MEDIAPIPE = {0: _NOSE} | dict(zip((11, 12, 13, 14, 15, 16, 23, 24, 25, 26, 27, 28), LIMBS, strict=True))
"""Joints by index of MediaPipe's landmarks."""

_MIDDLES = tuple(
    (HUMAN36M.joints.index(middle), HUMAN36M.joints.index(f"L_{ends}"), HUMAN36M.joints.index(f"R_{ends}"))
    for middle, ends in (("Pelvis", "Hip"), ("Thorax", "Shoulder"))
)
"""Joints that are the midpoint of two others, as in the rendered people."""

MIN_MARKED = 5
"""Smallest number of marked key points, among those with a joint, for a hand-marked person to be used."""
MIN_GUESSED = 8
"""Smallest number of visible joints, of 13, for a guessed pose to be used."""
MIN_IOU = 0.5
"""A guessed pose must overlap its person's box by at least this much; otherwise it often belongs to a neighbour."""
MIN_VISIBILITY = 0.5
SAME_IOU = 0.6
"""A guess whose box overlaps a marked person's by more than this is of the same person."""
NEAR = 0.08
"""A guess agrees with a mark if a joint is at most this far from it, in longer sides of the box."""
DEPTH_WEIGHT = 0.2
"""Weight of a guessed depth, compared with 1 for a position in the picture: the order of joints is more reliable than the
mm."""

CROWDED = ("oid__",)
"""Prefixes of the names of frames in `real/more` that show unmarked people."""
PEOPLED = ("000000060623.jpg", "000000204805.jpg", "000000522418.jpg")
"""Name endings of pictures that do show people although they are listed as without."""
MARGINS = (0.036, 0.094, 0.040, 0.028)
"""How far a person's outline extends beyond MediaPipe's landmarks on the left, above, on the right and below, as shares of the
landmarks' height: the median over 90 people marked in COCO, with all landmarks visible."""

Array = NDArray[np.float32]


@dataclass(frozen=True)
class RealPerson:
    """A person in a real picture.

    Attributes:
        picture: the file.
        subject: who it is; the same in all frames of one person.
        box: the person's box, px of the picture.
        joints: [18, 3] in Human3.6M's order: px, px of the picture (pixel centres at whole numbers), mm from the pelvis.
        weights: [18, 3] how far each coordinate can be trusted, 0..1; 0 if it is unknown and `joints` has no true value.
        by_hand: whether the positions in the picture were marked by hand.
    """

    picture: Path
    subject: str
    box: Box
    joints: Array
    weights: Array
    by_hand: bool

    @property
    def torso_px(self) -> float:
        """From the middle of the shoulders to the middle of the hips, px; NaN if one of the four is unknown."""
        (pelvis, *_), (thorax, *_) = _MIDDLES
        if not self.weights[[pelvis, thorax], 0].all():
            return float("nan")
        return float(np.linalg.norm(self.joints[thorax, :2] - self.joints[pelvis, :2]))

    @property
    def scorable(self) -> bool:
        """Whether errors in torso lengths are meaningful for this person.

        The torso joints and at least eight limb joints are marked, the box is at least 80 px high, and the torso is not
        foreshortened too much: it is at least 5 % of the box's longer side.
        """
        enough = int((self.weights[list(LIMBS), 0] > 0).sum()) >= 8 and self.box.height >= 80
        return enough and self.torso_px >= 0.05 * max(self.box.width, self.box.height)


def is_held_out(name: str) -> bool:
    """Whether the picture of this name, if it has hand-marked people, is held out from training.

    The SHA-256 of the name decides, so that new pictures do not change which existing ones are held out.
    """
    return int(hashlib.sha256(name.encode()).hexdigest(), 16) % HELD_OUT_EVERY == 0


@dataclass(frozen=True)
class RealPicture:
    """A picture in which everybody is marked, to train a detector on.

    Attributes:
        picture: the file.
        subject: who is in it; the same in all frames of one person.
        boxes: [K, 4] x, y, width, height, px of the picture (pixel centres at whole numbers); K may be 0.
        crowds: [K] whether a box holds many people who are not all marked one by one.
    """

    picture: Path
    subject: str
    boxes: Array
    crowds: NDArray[np.bool_]


def read_pictures(folder: Path) -> tuple[list[RealPicture], list[RealPicture]]:
    """The pictures that a detector trains on, and the held-out ones.

    One in three of the pictures with boxes, and of those without people, is held out, by its name. COCO's boxes of crowds are
    recognised by their whole numbers, because they come from coarser outlines.

    Args:
        folder: the data folder; the pictures are in its `real/`.

    Raises:
        SourceError: a file of it is missing or is not what README.md describes.
    """
    real, more = folder / "real", folder / "real" / "more"
    path = real / "person_boxes.json"
    pictures = []
    with described(path):
        for name, marked in json.loads(path.read_text(encoding="utf-8")).items():
            boxes = np.array(marked, np.float32).reshape(-1, 4)
            crowds = (boxes == boxes.round()).all(-1)
            boxes[:, :2] -= 0.5  # COCO's coordinates begin at the edge of the first pixel
            pictures.append(RealPicture(_picture(real / "pictures", name), name, boxes, crowds))
    pictures += [
        RealPicture(path, path.name, np.zeros((0, 4), np.float32), np.zeros(0, np.bool_)) for path in read_backgrounds(more)
    ]
    held_out = [picture for picture in pictures if is_held_out(picture.picture.name)]
    train = [picture for picture in pictures if not is_held_out(picture.picture.name)]
    if more.is_dir():
        train += [_alone(person) for person in _guessed(more, more) if not person.picture.name.startswith(CROWDED)]
    return train, held_out


def read_backgrounds(more: Path) -> list[Path]:
    """The pictures without people that the manifest of `real/more` lists; none if there is no manifest.

    Raises:
        SourceError: the manifest is not what README.md describes.
    """
    path = more / "manifest.csv"
    if not path.exists():
        return []
    with described(path), path.open(encoding="utf-8", newline="") as file:
        names = [row["file"] for row in csv.DictReader(file) if row["people_good"] == "0"]
        return [_picture(more, name) for name in names if not name.endswith(PEOPLED)]


def _alone(person: RealPerson) -> RealPicture:
    """The frame of a person who is alone in it, with a box of the outline, estimated from the guessed pose's box."""
    left, top, right, bottom = (margin * person.box.height for margin in MARGINS)
    x, y, width, height = person.box.x, person.box.y, person.box.width, person.box.height
    box = np.array([[x - left, y - top, width + left + right, height + top + bottom]], np.float32)
    return RealPicture(person.picture, person.subject, box, np.zeros(1, np.bool_))


def read_people(folder: Path) -> tuple[list[RealPerson], list[RealPerson]]:
    """The people to train on, and the held-out ones, which are all marked by hand.

    Nobody in a held-out picture is among the first, not even with a guessed pose. If the same body was marked by hand and by a
    network, the hand-marked positions are used, with the network's depth at the joints where both agree.

    Args:
        folder: the data folder; the pictures are in its `real/`.

    Raises:
        SourceError: a file of it is missing or is not what README.md describes.
    """
    real = folder / "real"
    marked = _marked(real)
    held_out_names = {person.picture.name for person in marked if is_held_out(person.picture.name)}
    guesses = [p for p in _guessed(real, real / "pictures") if p.picture.name not in held_out_names]
    train, held_out = [], []
    for person in marked:
        if person.picture.name in held_out_names:
            held_out.append(person)
        elif (person.weights[list(COCO.values()), 0] > 0).sum() >= MIN_MARKED:
            same = [g for g in guesses if g.picture == person.picture and g.box.iou(person.box) > SAME_IOU]
            guesses = [g for g in guesses if all(g is not s for s in same)]
            train.append(_with_depth(person, same[0]) if same else person)
    more = _guessed(real / "more", real / "more") if (real / "more").is_dir() else []
    return train + guesses + more, held_out


def _marked(real: Path) -> list[RealPerson]:
    path = real / "keypoints.json"
    people = []
    with described(path):
        for entry in json.loads(path.read_text(encoding="utf-8")):
            points = np.array(entry["keypoints"], np.float32).reshape(17, 3)
            joints, weights = np.zeros((len(HUMAN36M), 3), np.float32), np.zeros((len(HUMAN36M), 3), np.float32)
            for number, joint in COCO.items():
                joints[joint, :2], weights[joint, :2] = points[number, :2], points[number, 2] > 0
            _add_middles(joints, weights)
            picture = _picture(real / "pictures", entry["file"])
            people.append(
                RealPerson(picture, f"{picture.name} {len(people)} by hand", Box(*entry["bbox"]), joints, weights, True)
            )
    return people


def _guessed(folder: Path, pictures: Path) -> list[RealPerson]:
    path = folder / "mediapipe_heavy_pseudo.npz"
    people = []
    with described(path):
        with np.load(path, allow_pickle=False) as data:
            names, boxes, landmarks, world, iou = (data[name] for name in ("picture", "box", "landmarks_px", "world_m", "iou"))
        for name, box, points, metres, overlap in zip(names.tolist(), boxes, landmarks, world, iou, strict=True):
            joints, weights = np.zeros((len(HUMAN36M), 3), np.float32), np.zeros((len(HUMAN36M), 3), np.float32)
            for number, joint in MEDIAPIPE.items():
                joints[joint] = *points[number, :2], 1000 * metres[number, 2]
                weights[joint] = (points[number, 3] > MIN_VISIBILITY) * np.array([1, 1, DEPTH_WEIGHT], np.float32)
            if overlap <= MIN_IOU or (weights[:, 0] > 0).sum() < MIN_GUESSED:
                continue
            _add_middles(joints, weights)
            person = Box(*(float(value) for value in box))
            people.append(RealPerson(_picture(pictures, name), _subject(name, len(people)), person, joints, weights, False))
    return people


def _picture(folder: Path, name: str) -> Path:
    if not (folder / name).is_file():
        raise FileNotFoundError(f"there is no picture {folder / name}")
    return folder / name


def _subject(name: str, number: int) -> str:
    """The person in a frame, by its name `SOURCE__...Subject_N...`; all photographs of COCO and Open Images show different
    people."""
    source, found = name.split("__")[0], re.search(r"Subject_\d+", name)
    return f"{name} {number}" if source in (name, "oid") else f"{source} {found[0] if found else ''}".strip()


def _add_middles(joints: Array, weights: Array) -> None:
    for middle, left, right in _MIDDLES:
        joints[middle] = (joints[left] + joints[right]) / 2
        weights[middle] = np.minimum(weights[left], weights[right])


def _with_depth(person: RealPerson, guess: RealPerson) -> RealPerson:
    """A person marked by hand with the guess's depth where both agree."""
    apart = np.linalg.norm(person.joints[:, :2] - guess.joints[:, :2], axis=-1)
    agree = (apart < NEAR * max(person.box.width, person.box.height)) & (person.weights[:, 0] > 0)
    joints, weights = person.joints.copy(), person.weights.copy()
    joints[:, 2], weights[:, 2] = guess.joints[:, 2], guess.weights[:, 2] * agree
    return RealPerson(person.picture, person.subject, person.box, joints, weights, True)


def shares(people: list[RealPerson], by_hand: float, frames: float) -> NDArray[np.float64]:
    """[N] probabilities of the people, summing to 1: many frames of one person do not count as many people.

    Args:
        people: N people.
        by_hand: weight of a hand-marked person; a person with a guessed pose has 1.
        frames: the number of people that the frames of one subject count for at most.
    """
    counts: defaultdict[str, int] = defaultdict(int)
    for person in people:
        counts[person.subject] += not person.by_hand
    odds = np.array([by_hand if p.by_hand else min(1.0, frames / counts[p.subject]) for p in people])
    return odds / odds.sum()
