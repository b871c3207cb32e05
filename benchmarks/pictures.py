"""Real pictures with hand-labelled joints: the labels, and how close a network's joints are to them.

The pictures are not in this repository: `benchmarks/labels/people.json` names each file, its SHA-256, its licence and where to
get it. Left and right are the labelled person's own.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from pathlib import Path

import cv2
import numpy as np
from numpy.typing import NDArray

from convnextpose.crop import Box, apply_affine, crop_from_image
from convnextpose.errors import SourceError
from convnextpose.metrics import picture_swap_rate
from convnextpose.skeleton import HUMAN36M
from pipeline.sources import open_source
from pipeline.strokes import LEFT_BGR, MIDDLE_BGR, OUTLINE_BGR, RIGHT_BGR
from pipeline.types import Frame

LABELS = Path(__file__).parent / "labels" / "people.json"

FOLDERS = (Path(__file__).parent / "pictures", Path("/usr/share/doc/opencv-doc/examples/data"))
"""Where pictures are searched for, besides the folders named on the command line."""

LIMBS = tuple(f"{side}_{part}" for side in "LR" for part in ("Shoulder", "Elbow", "Wrist", "Hip", "Knee", "Ankle"))

LIMB_JOINTS = [HUMAN36M.joints.index(name) for name in LIMBS]
"""Their indices in Human3.6M's order."""

RIGHT_TORSO = 0.2
"""A joint is right if it is within this distance of its label, torso lengths."""

MIN_TORSO = 0.1
"""Smallest torso length as a fraction of the box's longer side, for torsos seen end-on."""

OUTLINE = tuple(
    (HUMAN36M.joints.index(a), HUMAN36M.joints.index(b))
    for a, b in (
        *((f"{s}_{a}", f"{s}_{b}") for s in "LR" for a, b in (("Shoulder", "Elbow"), ("Elbow", "Wrist"), ("Shoulder", "Hip"))),
        *((f"{s}_{a}", f"{s}_{b}") for s in "LR" for a, b in (("Hip", "Knee"), ("Knee", "Ankle"))),
        *(("L_Shoulder", "R_Shoulder"), ("L_Hip", "R_Hip"), ("Nose", "Head")),
    )
)
"""Pairs of joints that overlays connect with a line."""

_COLOURS = {"left": LEFT_BGR, "right": RIGHT_BGR, "middle": MIDDLE_BGR}

FOUND_IOU = 0.5
"""Smallest intersection over union at which a found box is that of a labelled person."""

Array = NDArray[np.float64]


@dataclass(frozen=True)
class LabelledPerson:
    """A person in a picture.

    Attributes:
        file: the picture's or video's name.
        frame: number of the frame, from 0.
        box: the visible part of the person, px.
        full_body: whether all limbs are inside the picture.
        joints_px: [18, 2] in Human3.6M's order, px (pixel centres at whole numbers); NaN for joints without a label.
        seen: [18] whether a joint is visible, covered by clothes at most; labels of others are guesses and are not scored.
    """

    file: str
    frame: int
    box: Box
    full_body: bool
    joints_px: Array
    seen: NDArray[np.bool_]

    @property
    def torso_px(self) -> float:
        """Distance from the middle of the shoulders to the middle of the hips, px."""
        left_shoulder, right_shoulder, left_hip, right_hip = (
            self.joints_px[HUMAN36M.joints.index(name)] for name in ("L_Shoulder", "R_Shoulder", "L_Hip", "R_Hip")
        )
        length = np.linalg.norm(left_shoulder + right_shoulder - left_hip - right_hip) / 2
        return max(float(length), MIN_TORSO * max(self.box.width, self.box.height))


@dataclass(frozen=True)
class PictureScore:
    """The scores of predicted joints against labels.

    Attributes:
        people: number of compared people.
        pck: fraction of the visible limb joints within 0.2 torso lengths, 0..1.
        median: median distance of the visible limb joints, torso lengths.
        swaps: fraction of left-right pairs that fit better exchanged, 0..1; pairs closer than 0.2 torso lengths do not count.
        joints: the same fraction as `pck` for each labelled joint, by name.
    """

    people: int
    pck: float
    median: float
    swaps: float
    joints: dict[str, float]


def read_labels(path: Path = LABELS) -> tuple[dict[str, dict[str, str]], list[LabelledPerson]]:
    """The files (with their `get`, `licence` and `sha256`) and the people in them."""
    record = json.loads(path.read_text(encoding="utf-8"))
    people = []
    for person in record["people"]:
        joints, seen = np.full((len(HUMAN36M), 2), np.nan), np.zeros(len(HUMAN36M), bool)
        for name, (x, y, visible) in person["joints"].items():
            joints[HUMAN36M.joints.index(name)], seen[HUMAN36M.joints.index(name)] = (x, y), bool(visible)
        people.append(LabelledPerson(person["file"], person["frame"], Box(*person["box"]), person["full_body"], joints, seen))
    return record["files"], people


def find_files(files: dict[str, dict[str, str]], folders: Iterable[Path]) -> dict[str, Path]:
    """The available files, by name; the hash of each shows that it is the one that was labelled."""
    found: dict[str, Path] = {}
    for folder in [*folders, *FOLDERS]:
        for name in files.keys() - found.keys():
            for path in sorted(folder.rglob(name)) if folder.is_dir() else []:
                if hashlib.sha256(path.read_bytes()).hexdigest() == files[name]["sha256"]:
                    found[name] = path
    return found


def labelled_frames(people: list[LabelledPerson], found: dict[str, Path]) -> list[tuple[Frame, list[LabelledPerson]]]:
    """The frames with labelled people, and those people.

    Raises:
        SourceError: a file cannot be read, or ends before a labelled frame.
    """
    result = []
    for name, path in sorted(found.items()):
        wanted: dict[int, list[LabelledPerson]] = {}
        for person in people:
            if person.file == name:
                wanted.setdefault(person.frame, []).append(person)
        with open_source(path) as source:
            for frame in source:
                if frame.index in wanted:
                    result.append((frame, wanted.pop(frame.index)))
                if not wanted:
                    break
        if wanted:
            raise SourceError(f"expected the labelled frame {min(wanted)} in {path}, which ends before it")
    return result


def labelled_people(folder: Path, *, held_out_only: bool) -> tuple[dict[str, Path], list[LabelledPerson]]:
    """The pictures, by name, and the hand-labelled people in the training data's folder.

    People count if both shoulders, both hips and at least eight limb joints are labelled, if they are at least 80 px tall, and
    if the torso has at least 5 % of the box's longer side (`training.real.RealPerson.scorable`).

    Args:
        folder: the data folder, which training/README.md describes.
        held_out_only: leave out people that this project's training may read.

    Raises:
        SourceError: the folder is not as described there, or nobody in it counts.
    """
    from training.real import COCO, read_people

    trained_on, held_out = read_people(folder)
    people = [p for p in ([] if held_out_only else trained_on) + held_out if p.by_hand and p.scorable]
    if not people:
        which = "labelled people who are held out" if held_out_only else "labelled people"
        raise SourceError(f"expected {which} in {folder}, found none: name a folder with more pictures")
    labelled, by_hand = [], np.isin(np.arange(len(HUMAN36M)), list(COCO.values()))  # the others are midpoints of these
    for person in people:
        marked = by_hand & (person.weights[:, 0] > 0)
        joints = np.where(marked[:, None], person.joints[:, :2].astype(np.float64), np.nan)
        labelled.append(LabelledPerson(person.picture.name, 0, person.box, bool(marked[LIMB_JOINTS].all()), joints, marked))
    return {person.picture.name: person.picture for person in people}, labelled


def score_pictures(people: list[LabelledPerson], predicted: list[Array]) -> PictureScore:
    """Compare predicted joints [18, 2 or 3] (px in the picture) of each person with the labels.

    A joint of NaN was not found: it counts as missed, unless it was found in nobody.
    """
    truth, seen = np.stack([p.joints_px for p in people]), np.stack([p.seen for p in people])
    torso = np.array([p.torso_px for p in people])
    places = np.stack(predicted)[..., :2]
    found: NDArray[np.bool_] = ~np.isnan(places).any(axis=-1)
    distances = _distances(people, predicted)
    of_limbs = distances[:, LIMB_JOINTS][seen[:, LIMB_JOINTS]]
    compared = [j for j in range(len(HUMAN36M)) if seen[:, j].any() and found[:, j].any()]
    return PictureScore(
        people=len(people),
        pck=float((of_limbs <= RIGHT_TORSO).mean()),
        median=float(np.median(of_limbs)),
        swaps=picture_swap_rate(np.nan_to_num(places), np.nan_to_num(truth), HUMAN36M, RIGHT_TORSO * torso, seen & found),
        joints={HUMAN36M.joints[j]: float((distances[seen[:, j], j] <= RIGHT_TORSO).mean()) for j in compared},
    )


def pck_interval(people: list[LabelledPerson], predicted: list[Array], draws: int = 10_000) -> tuple[float, float]:
    """The 95 % interval of `score_pictures`' pck, 0..1, for other pictures of the same kind.

    People in one picture are similar, so whole pictures are resampled with replacement (percentile bootstrap, Efron 1979).
    """
    pictures = {name: number for number, name in enumerate(sorted({person.file for person in people}))}
    seen = np.stack([person.seen for person in people])[:, LIMB_JOINTS]
    right = (_distances(people, predicted)[:, LIMB_JOINTS] <= RIGHT_TORSO) & seen
    counts = np.zeros((len(pictures), 2))
    np.add.at(counts, [pictures[person.file] for person in people], np.stack([right.sum(1), seen.sum(1)], 1))
    drawn = counts[np.random.default_rng(0).integers(len(pictures), size=(draws, len(pictures)))].sum(1)
    low, high = np.percentile(drawn[:, 0] / drawn[:, 1], (2.5, 97.5))
    return float(low), float(high)


def _distances(people: list[LabelledPerson], predicted: list[Array]) -> Array:
    """Each joint's distance [N, 18] from its label, torso lengths; infinite if it was not found, NaN without a label."""
    truth, torso = np.stack([p.joints_px for p in people]), np.array([p.torso_px for p in people])
    places = np.stack(predicted)[..., :2]
    distances = np.linalg.norm(places - truth, axis=-1) / torso[:, None]
    return np.where(np.isnan(places).any(axis=-1), np.inf, distances)


def average_pose(people: list[LabelledPerson]) -> list[Array]:
    """The same pose for everybody: the labels' mean position of each joint in the box. A network must do better."""
    corners = [(np.array([p.box.x, p.box.y]), np.array([p.box.width, p.box.height])) for p in people]
    shares = np.stack([(p.joints_px - corner) / size for p, (corner, size) in zip(people, corners, strict=True)])
    marked = ~np.isnan(shares)
    mean = np.where(marked, shares, 0).sum(0) / np.maximum(marked.sum(0), 1)
    return [corner + size * mean for corner, size in corners]


def count_found(frames: list[tuple[Frame, list[LabelledPerson]]], find: Callable[[Frame], list[Box]]) -> tuple[int, int]:
    """Number of labelled people with a found box, and number of frames with at least one of them."""
    hits = []
    for frame, people in frames:
        boxes = find(frame)
        hits.append([any(person.box.iou(box) >= FOUND_IOU for box in boxes) for person in people])
    return sum(map(sum, hits)), sum(map(any, hits))


def draw_overlays(
    frames: list[tuple[Frame, list[LabelledPerson]]], predicted: list[Array], folder: Path, side_px: int = 256
) -> None:
    """Write sheets of pictures: each person twice, with the labels and with the prediction."""
    folder.mkdir(parents=True, exist_ok=True)
    pairs = []
    everybody = [(frame, person) for frame, people in frames for person in people]
    for (frame, person), joints in zip(everybody, predicted, strict=True):
        matrix = crop_from_image(person.box.square(1.2), side_px)
        crop = np.asarray(cv2.warpAffine(frame.image, matrix, (side_px, side_px), flags=cv2.INTER_CUBIC), np.uint8)
        label, prediction = crop, crop.copy()
        _draw(label, apply_affine(matrix, person.joints_px))
        _draw(prediction, apply_affine(matrix, joints[:, :2]))
        words = f"{person.file} {person.frame}"
        cv2.putText(label, words, (4, 12), cv2.FONT_HERSHEY_SIMPLEX, 0.4, MIDDLE_BGR, 1, cv2.LINE_AA)
        pairs.append(np.hstack([label, prediction]))
    for sheet, begin in enumerate(range(0, len(pairs), 6)):
        tiles = [*pairs[begin : begin + 6], *[np.zeros_like(pairs[0])] * 5][:6]
        cv2.imwrite(str(folder / f"people-{sheet:02d}.jpg"), np.vstack([np.hstack(tiles[:3]), np.hstack(tiles[3:])]))


def _draw(picture: NDArray[np.uint8], joints: Array) -> None:
    """Draw the lines of OUTLINE whose ends are known (not NaN). Labels have no Neck and no Pelvis, so it has none either."""
    for a, b in OUTLINE:
        if np.isnan(joints[[a, b]]).any():
            continue
        sides = {HUMAN36M.side(a), HUMAN36M.side(b)}
        colour = _COLOURS[sides.pop() if len(sides) == 1 else "middle"]
        start, end = ((round(float(x)), round(float(y))) for x, y in joints[[a, b]])
        cv2.line(picture, start, end, OUTLINE_BGR, 4, cv2.LINE_AA)
        cv2.line(picture, start, end, colour, 2, cv2.LINE_AA)
