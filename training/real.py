"""People in real pictures: what a person or another network marked of them, and which are never trained on.

The pictures are not in this repository; README.md describes the folder that holds them. Here is no torch: whoever judges
weights reads the held-out people with this, too.
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
"""One in so many pictures with key points marked by hand is held out."""

_LIMBS = tuple(f"{side}_{part}" for part in ("Shoulder", "Elbow", "Wrist", "Hip", "Knee", "Ankle") for side in "LR")
LIMBS = tuple(HUMAN36M.joints.index(name) for name in _LIMBS)
"""The 12 joints that all labellers place alike, in the order of COCO and MediaPipe: these are scored."""

_NOSE = HUMAN36M.joints.index("Nose")
COCO = {0: _NOSE} | dict(zip(range(5, 17), LIMBS, strict=True))
"""Joints by the number of COCO's key point. Its eyes and ears are none of ours."""
MEDIAPIPE = {0: _NOSE} | dict(zip((11, 12, 13, 14, 15, 16, 23, 24, 25, 26, 27, 28), LIMBS, strict=True))
"""Joints by the number of MediaPipe's landmark."""

_MIDDLES = tuple(
    (HUMAN36M.joints.index(middle), HUMAN36M.joints.index(f"L_{ends}"), HUMAN36M.joints.index(f"R_{ends}"))
    for middle, ends in (("Pelvis", "Hip"), ("Thorax", "Shoulder"))
)
"""Joints that are the middle of two others, as in the rendered people."""

MIN_MARKED = 5
"""Key points, of those with a joint, from which on a person marked by hand is of use."""
MIN_GUESSED = 8
"""Joints in sight, of 13, from which on a guessed pose is of use."""
MIN_IOU = 0.5
"""A guessed pose must cover its person's box by this much: else it is often the neighbour's."""
MIN_VISIBILITY = 0.5
SAME_IOU = 0.6
"""A guess in a box that overlaps a marked person's by more is of the same person."""
NEAR = 0.08
"""A guess is right about a joint when it is this near to the mark, in longer sides of the box."""
DEPTH_WEIGHT = 0.2
"""What a guessed depth counts, beside 1 for a place in the picture: it is right about the order of joints more than in mm."""

CROWDED = ("oid__",)
"""Names of the frames of `real/more` that show people whom nobody marked begin so."""
PEOPLED = ("000000060623.jpg", "000000204805.jpg", "000000522418.jpg")
"""Names of the pictures among those without people in which there are some, end so."""
MARGINS = (0.036, 0.094, 0.040, 0.028)
"""What a person's outline has to the left, above, to the right and below the extent of MediaPipe's landmarks, as shares of that
extent's height: the median over 90 people whom COCO marked, with all landmarks in sight."""

Array = NDArray[np.float32]


@dataclass(frozen=True)
class RealPerson:
    """A person in a real picture.

    Attributes:
        picture: the file.
        subject: who it is; frames of one person have the same.
        box: the person's box, px of the picture.
        joints: [18, 3] in Human3.6M's order: px, px of the picture (pixel centres at whole numbers), mm from the pelvis.
        weights: [18, 3] how far each coordinate can be trusted, 0..1; 0 where nothing is known, and then `joints` holds no
            truth.
        by_hand: whether a person marked the places in the picture.
    """

    picture: Path
    subject: str
    box: Box
    joints: Array
    weights: Array
    by_hand: bool

    @property
    def torso_px(self) -> float:
        """From the middle of the shoulders to the middle of the hips, px; NaN where one of the four is not known."""
        (pelvis, *_), (thorax, *_) = _MIDDLES
        if not self.weights[[pelvis, thorax], 0].all():
            return float("nan")
        return float(np.linalg.norm(self.joints[thorax, :2] - self.joints[pelvis, :2]))

    @property
    def scorable(self) -> bool:
        """Whether errors of this person in torso lengths mean something.

        All of the torso and eight limb joints or more are marked, the box is 80 px high or more, and the torso is not seen
        from its end: it is at least 5 % of the box's longer side.
        """
        enough = int((self.weights[list(LIMBS), 0] > 0).sum()) >= 8 and self.box.height >= 80
        return enough and self.torso_px >= 0.05 * max(self.box.width, self.box.height)


def is_held_out(name: str) -> bool:
    """Whether the picture of this name, if people in it are marked by hand, is never trained on.

    The SHA-256 of the name decides, so that pictures that come later change nothing for those that are there.
    """
    return int(hashlib.sha256(name.encode()).hexdigest(), 16) % HELD_OUT_EVERY == 0


@dataclass(frozen=True)
class RealPicture:
    """A picture in which everybody is marked, for a detector.

    Attributes:
        picture: the file.
        subject: who is in it; frames of one person have the same.
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
    told by their whole numbers: they are made from coarser outlines.

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
            boxes[:, :2] -= 0.5  # COCO's picture begins at its first pixel's edge
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
    """The pictures without people that the manifest of `real/more` names; none where it is not there.

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
    """The frame of somebody who is alone in it, with the box of the outline around the guessed pose's."""
    left, top, right, bottom = (margin * person.box.height for margin in MARGINS)
    x, y, width, height = person.box.x, person.box.y, person.box.width, person.box.height
    box = np.array([[x - left, y - top, width + left + right, height + top + bottom]], np.float32)
    return RealPicture(person.picture, person.subject, box, np.zeros(1, np.bool_))


def read_people(folder: Path) -> tuple[list[RealPerson], list[RealPerson]]:
    """The people to train on, and the held-out ones, all of these marked by hand.

    Nobody in a held-out picture is among the first, not with a guessed pose either. Where a person and a network marked
    the same body, the person's places count, and the network's depth at the joints where both agree.

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
    """Who is in a frame, by its name `SOURCE__...Subject_N...`; photographs of COCO and Open Images show different people."""
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
    """[N] how often each is drawn, summing to 1: many frames of one person are no more people.

    Args:
        people: N of them.
        by_hand: how often one marked by hand is drawn, where one with a guessed pose is drawn once.
        frames: for how many people the frames of one subject count at most.
    """
    counts: defaultdict[str, int] = defaultdict(int)
    for person in people:
        counts[person.subject] += not person.by_hand
    odds = np.array([by_hand if p.by_hand else min(1.0, frames / counts[p.subject]) for p in people])
    return odds / odds.sum()
