"""Who is where: given boxes, or one person found in the whole picture and followed from the last pose.

A `PeopleFinder` is the seam for detectors and trackers: it names the boxes of a frame before the network reads them, and
learns afterwards what the network made of them.
"""

from __future__ import annotations

import csv
import math
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Protocol

import cv2
import numpy as np
from numpy.typing import NDArray

from convnextpose import weights
from convnextpose.crop import ENLARGEMENT, Box, apply_affine, crop_from_image, crop_region, invert_affine
from convnextpose.errors import GeometryError, SourceError
from convnextpose.variants import INPUT_SIZE
from engines.detector import DETECTOR_RUNTIMES, FRAME_SIZE, PeopleDetector, open_detector, without_duplicates
from engines.runtime import Runtime
from pipeline.records import read_poses
from pipeline.types import Frame

MIN_SCORE = 0.51
"""Mean joint score from which a person counts as found: the lowest hundredth from which the default weights take something else
for a person in at most one in a hundred pictures without people (1 of 143): docs/people.md."""

KEEP_FRACTION = 2 / 3
"""A followed person is let go when the mean score falls under this fraction of MIN_SCORE."""

SEARCH_SCALES = (0.9, 0.7, 0.5, 0.38, 0.27)
"""Sides of the search windows, as fractions of the enlarged shorter side of the picture."""

SEARCH_LONGEST = 10
"""A search window's side is at least the picture's longer side over this."""

SEARCH_STEP = 0.36
"""Distance between neighbouring search windows, as a fraction of their side."""

SEARCH_CANDIDATES = 3
"""How many of the best windows of a size are looked at again, closer."""

SEARCH_PROMISING = 0.5
"""The fraction of the score to be found from which a window is worth a closer look."""

SEARCH_REFINEMENTS = 2
"""How often such a candidate's box is taken from its own pose again."""

SEARCH_BATCH = 8
"""Windows given to the network at once: bounds memory."""

SEARCH_INTERVAL = 25
"""Frames between two searches of the whole picture at least: a search costs as much as about 130 poses."""

DETECTION_SCORE = 0.3
"""Score of the people detector from which the pose in a box is read. It is low, since the pose has the last word; in boxes of
lower scores are things that the pose network, too, takes for people (docs/people.md)."""

DETECTION_CANDIDATES = 8
"""How many of a frame's best boxes are read, in one batch."""

DETECTION_AGREEMENT = 0.4
"""Intersection over union that a detected box and that of the pose in it have at least, if somebody is there."""

DETECTION_INTERVAL = 5
"""Frames between two detections at least: with the poses that it asks for, one costs as much as about 16 poses."""

BOX_SMOOTHING = 0.5
"""Weight of the last box in the next one: damps the jitter of joints."""

MARGIN_SIDE, MARGIN_TOP, MARGIN_BOTTOM = 0.04, 0.02, 0.095
"""What a person's outline has beyond the joints, as fractions of the joints' height: measured on the demo clip's truth."""


@dataclass(frozen=True)
class Person:
    """One person to be read from a frame.

    Attributes:
        track_id: the same number for the same person.
        box: where, px.
    """

    track_id: int
    box: Box


@dataclass(frozen=True)
class Sighting:
    """What the network saw of a person.

    Attributes:
        person: who was looked for, and where.
        joints: [J, 3]: x px and y px in the picture, z mm from the pelvis.
        scores: [J] in 0..1.
        region: the square of the picture that the network read, px.
    """

    person: Person
    joints: NDArray[np.float64]
    scores: NDArray[np.float64]
    region: Box

    @property
    def score(self) -> float:
        """Mean score of the joints, 0..1."""
        return float(self.scores.mean())


@dataclass(frozen=True)
class Detection:
    """A person whom the detector sees.

    Attributes:
        box: where, clipped to the picture, px.
        score: how sure the detector is, 0..1; not comparable with a pose's score.
    """

    box: Box
    score: float


class PeopleFinder(Protocol):
    """Names the people of each frame. Frames come in order, from one thread."""

    follows: bool
    """Whether `find` needs `observe` of the frame before: then the pipeline waits for it."""

    min_score: float
    """Sightings with a lower mean score are nobody: they make no pose."""

    def find(self, frame: Frame) -> tuple[Person, ...]:
        """The people of a frame, none where nobody is."""
        ...

    def observe(self, sightings: tuple[Sighting, ...]) -> None:
        """What became of the people that the last `find` named; those below `min_score` are left out."""
        ...


def warp_crop(image: NDArray[np.uint8], region: Box) -> NDArray[np.uint8]:
    """Cut a square region out of a BGR picture [H, W, 3] uint8 as a crop [256, 256, 3] uint8 (bilinear, black outside)."""
    matrix = crop_from_image(region)
    crop = cv2.warpAffine(image, matrix, (INPUT_SIZE, INPUT_SIZE), flags=cv2.INTER_LINEAR, borderMode=cv2.BORDER_CONSTANT)
    return np.asarray(crop, np.uint8)


def see(runtime: Runtime, image: NDArray[np.uint8], people: tuple[Person, ...]) -> list[Sighting]:
    """Read people from a picture by their boxes.

    Raises:
        GeometryError: a box lies outside the picture.
    """
    height, width = image.shape[:2]
    return see_regions(runtime, image, [(p, crop_region(p.box, width, height)) for p in people])


def see_regions(runtime: Runtime, image: NDArray[np.uint8], regions: list[tuple[Person, Box]]) -> list[Sighting]:
    """Read people from the square regions of a picture, SEARCH_BATCH at a time."""
    sightings = []
    for begin in range(0, len(regions), SEARCH_BATCH):
        batch = regions[begin : begin + SEARCH_BATCH]
        predictions = runtime.run(np.stack([warp_crop(image, region) for _, region in batch]))
        for (person, region), joints, scores in zip(batch, predictions.joints, predictions.scores, strict=True):
            in_image = apply_affine(invert_affine(crop_from_image(region)), joints)
            sightings.append(Sighting(person, in_image, scores.astype(np.float64), region))
    return sightings


def detect(detector: PeopleDetector, image: NDArray[np.uint8], min_score: float) -> list[Detection]:
    """The people whom the detector sees in a BGR picture [H, W, 3] uint8, the surest first, without duplicates."""
    height, width = image.shape[:2]
    scale = FRAME_SIZE / max(width, height)
    size = max(1, round(width * scale)), max(1, round(height * scale))
    frame = np.zeros((1, FRAME_SIZE, FRAME_SIZE, 3), np.uint8)
    frame[0, : size[1], : size[0]] = cv2.resize(image, size, interpolation=cv2.INTER_AREA if scale < 1 else cv2.INTER_LINEAR)
    boxes, scores = (values[0] for values in detector.run(frame))
    detections = []
    for index in without_duplicates(boxes, scores, min_score):
        x, y, w, h = (boxes[index].astype(np.float64) / scale).tolist()
        shift = 0.5 / scale - 0.5  # pixel centres are at whole numbers in both
        try:
            box = Box(x + shift, y + shift, w, h).clip(width, height)
        except GeometryError:  # it lies in the frame's black part
            continue
        detections.append(Detection(box, float(scores[index])))
    return detections


def box_from_joints(joints: NDArray[np.floating]) -> Box:
    """The box of a person from the joints [J, 2 or more] (px): their box and the margins that an outline has beyond them.

    Raises:
        GeometryError: the joints enclose nothing.
    """
    box = Box.around(joints)
    extent = max(box.height, box.width)
    return Box(
        box.x - MARGIN_SIDE * extent,
        box.y - MARGIN_TOP * box.height,
        box.width + 2 * MARGIN_SIDE * extent,
        box.height * (1 + MARGIN_TOP + MARGIN_BOTTOM),
    )


def search_windows(width: int, height: int) -> list[list[Box]]:
    """The square regions of a `width` x `height` px picture in which a search looks for a person, by size, largest first."""
    windows = []
    for scale in SEARCH_SCALES:
        # In a picture that is far longer than wide, a window of a fraction of the shorter side would make thousands.
        side = max(scale * ENLARGEMENT * min(width, height), max(width, height) / SEARCH_LONGEST)
        centers = [(x, y) for y in _centers(height, side) for x in _centers(width, side)]
        windows.append([Box(x - side / 2, y - side / 2, side, side) for x, y in centers])
    return windows


def _centers(length: int, side: float) -> list[float]:
    if length <= side:
        return [length / 2]
    count = math.ceil((length - side) / (side * SEARCH_STEP)) + 1
    return [float(c) for c in np.linspace(side / 2, length - side / 2, count)]


class SinglePerson:
    """One person, found from the whole picture with the pose network itself and then followed from the last pose.

    A search reads windows all over the picture, the largest first, and looks closer at the best of each size until somebody
    is found. While nobody is found, the place where the person was last seen is looked at in every frame, and the whole
    picture if the last such search is SEARCH_INTERVAL frames ago. Whoever is found after a loss gets a new track id, since
    nothing shows that it is the same person.

    Args:
        runtime: reads the windows.
        min_score: mean score from which a person counts as found; followed down to KEEP_FRACTION of it.
        follows: whether the frames follow each other in time. If not, as with pictures of a folder, each is searched anew.
    """

    def __init__(self, runtime: Runtime, min_score: float = MIN_SCORE, *, follows: bool = True) -> None:
        self.follows = follows
        self._runtime = runtime
        self._found_score = min_score
        self.min_score = min_score * KEEP_FRACTION
        self._box: Box | None = None
        self._last_seen: Box | None = None
        self._track_id = -1
        self._frames_since_search = SEARCH_INTERVAL

    def find(self, frame: Frame) -> tuple[Person, ...]:
        """The followed person's box, or a search."""
        self._frames_since_search += 1
        if not self.follows:
            self._box, self._frames_since_search = None, SEARCH_INTERVAL + 1
        if self._box is None:
            self._box = self._find_box(frame)
            if self._box is None:
                return ()
            self._track_id += 1
        try:
            self._box = self._box.clip(frame.width, frame.height)
        except GeometryError:  # it walked out of the picture, or the next picture of a folder is smaller
            self._box = None
            return ()
        return (Person(self._track_id, self._box),)

    def observe(self, sightings: tuple[Sighting, ...]) -> None:
        """Move the box to the pose, or let the person go."""
        if self._box is None:
            return
        if not sightings:
            self._last_seen, self._box = self._box, None
            return
        last, keep = self._box, BOX_SMOOTHING
        try:
            seen = box_from_joints(sightings[0].joints)
        except GeometryError:  # its joints enclose nothing: no person looks like that
            self._last_seen, self._box = last, None
            return
        self._box = Box(
            keep * last.x + (1 - keep) * seen.x,
            keep * last.y + (1 - keep) * seen.y,
            keep * last.width + (1 - keep) * seen.width,
            keep * last.height + (1 - keep) * seen.height,
        )

    def search(self, frame: Frame) -> Sighting | None:
        """The best sighting in the whole picture, whether it counts as a person or not; None if nothing is like one."""
        return self._search(frame, search_windows(frame.width, frame.height))

    def _find_box(self, frame: Frame) -> Box | None:
        """The box of a person who is looked for, where it is this frame's turn to look and one is found."""
        if self._frames_since_search > SEARCH_INTERVAL:
            self._frames_since_search = 0
            best = self.search(frame)
        elif self._last_seen is not None:
            around = [self._last_seen.square(enlargement) for enlargement in (ENLARGEMENT, 1.4 * ENLARGEMENT)]
            best = self._search(frame, [around])
        else:
            return None
        if best is None or best.score < self._found_score:
            return None
        self._last_seen = None
        return box_from_joints(best.joints)

    def _search(self, frame: Frame, sizes: list[list[Box]]) -> Sighting | None:
        best: Sighting | None = None
        for regions in sizes:
            seen = self._best(frame, regions)
            if seen is not None and (best is None or seen.score > best.score):
                best = seen
            if best is not None and best.score >= self._found_score:
                break  # a person in a larger window is nearer: no need to look for smaller ones
        return best

    def _best(self, frame: Frame, regions: list[Box]) -> Sighting | None:
        nobody = Person(-1, regions[0])
        sightings = see_regions(self._runtime, frame.image, [(nobody, region) for region in regions])
        candidates = sorted(sightings, key=lambda s: -s.score)[:SEARCH_CANDIDATES]
        promising = [c for c in candidates if c.score >= SEARCH_PROMISING * self._found_score]
        closer = [c for c in (self._look_closer(frame, candidate) for candidate in promising) if c is not None]
        return max(closer, key=lambda s: s.score, default=None)

    def _look_closer(self, frame: Frame, sighting: Sighting) -> Sighting | None:
        try:
            for _ in range(SEARCH_REFINEMENTS):
                person = Person(-1, box_from_joints(sighting.joints))
                (sighting,) = see(self._runtime, frame.image, (person,))
            box_from_joints(sighting.joints)
        except GeometryError:  # its joints enclose nothing, or lie outside the picture: no person
            return None
        return sighting


class DetectedPerson(SinglePerson):
    """One person, found by the people detector and then followed from the last pose.

    While nobody is followed, the detector reads every DETECTION_INTERVAL-th frame. The poses in its best boxes decide: the
    best of them that lies about where its box was counts as a person from the same score as in a search: a detector alone
    takes some things for people, and so does the pose network alone, but mostly not the same things.

    Args:
        runtime: reads the poses.
        detector: proposes boxes.
        min_score, follows: as for `SinglePerson`.
    """

    def __init__(
        self, runtime: Runtime, detector: PeopleDetector, min_score: float = MIN_SCORE, *, follows: bool = True
    ) -> None:
        super().__init__(runtime, min_score, follows=follows)
        self._detector = detector

    def search(self, frame: Frame) -> Sighting | None:
        """The best sighting in the detector's boxes, whether it counts as a person or not; None if it proposes nobody."""
        detections = detect(self._detector, frame.image, DETECTION_SCORE)[:DETECTION_CANDIDATES]
        people = tuple(Person(-1, detection.box) for detection in detections)
        sightings = sorted(see(self._runtime, frame.image, people), key=lambda s: -s.score)
        promising = [s for s in sightings[:SEARCH_CANDIDATES] if s.score >= SEARCH_PROMISING * self._found_score]
        agreeing = [a for a in (self._agreeing(frame, sighting) for sighting in promising) if a is not None]
        return max(agreeing, key=lambda s: s.score, default=None)

    def _find_box(self, frame: Frame) -> Box | None:
        if self._frames_since_search <= DETECTION_INTERVAL:
            return None
        self._frames_since_search = 0
        best = self.search(frame)
        return None if best is None or best.score < self._found_score else box_from_joints(best.joints)

    def _agreeing(self, frame: Frame, sighting: Sighting) -> Sighting | None:
        """The best of a sighting and closer ones that lies where the detector saw the person, None if none does."""
        detected, best = sighting.person.box, None
        try:
            for left in reversed(range(SEARCH_REFINEMENTS + 1)):
                box = box_from_joints(sighting.joints).clip(frame.width, frame.height)
                if box.iou(detected) >= DETECTION_AGREEMENT and (best is None or sighting.score > best.score):
                    best = sighting
                if left:
                    (sighting,) = see(self._runtime, frame.image, (Person(-1, box),))
        except GeometryError:  # its joints enclose nothing, or lie outside the picture: no person
            pass
        return best


def one_person(
    runtime: Runtime, min_score: float = MIN_SCORE, *, follows: bool, where: str = "auto", threads: int | None = None
) -> SinglePerson:
    """One person, found by the people detector where the package holds one, otherwise with the pose network alone.

    Args:
        runtime: reads the poses.
        min_score, follows: as for `SinglePerson`.
        where: the runtime that was asked for; the detector runs there, too, if it can.
        threads: threads of the detector, or None for its runtime's own choice.

    Raises:
        CheckpointError, ModelError, RuntimeUnavailableError: there is a detector and it cannot be opened.
    """
    exported = weights.detector()
    if exported is None:
        return SinglePerson(runtime, min_score, follows=follows)
    detector = open_detector(exported, where if where in DETECTOR_RUNTIMES else "auto", threads=threads)
    return DetectedPerson(runtime, detector, min_score, follows=follows)


class WholePicture:
    """One person who fills every picture: for benchmarks with random weights, which find nobody."""

    follows = False
    min_score = 0.0

    def find(self, frame: Frame) -> tuple[Person, ...]:
        """The whole picture's box."""
        return (Person(0, Box(0, 0, frame.width, frame.height)),)

    def observe(self, sightings: tuple[Sighting, ...]) -> None:
        """Nothing to learn: nobody is followed."""


class GivenBoxes:
    """People whose boxes are given for each frame; a frame without boxes has nobody.

    Args:
        boxes: frame number to its people.
    """

    follows = False
    min_score = 0.0

    def __init__(self, boxes: Mapping[int, tuple[Person, ...]]) -> None:
        self._boxes = boxes

    def find(self, frame: Frame) -> tuple[Person, ...]:
        """The boxes given for this frame."""
        return self._boxes.get(frame.index, ())

    def observe(self, sightings: tuple[Sighting, ...]) -> None:
        """Nothing to learn: the boxes are given."""

    @classmethod
    def read(cls, path: Path) -> GivenBoxes:
        """Read boxes from a file: a CSV table, or the `poses.ndjson` of an earlier run.

        The CSV's first line names its columns: `frame,x,y,width,height` and, if people are known again from frame to frame,
        `track_id`; without it those of each frame are numbered from 0. Frames count from 0, the rest is px.

        Raises:
            SourceError: the file cannot be read as either; names the line.
        """
        people: dict[int, list[Person]] = {}
        line = 0
        try:
            with path.open(encoding="utf-8-sig", newline="") as file:
                if file.read(1) == "{":
                    frames = read_poses(path).frames
                    return cls({f.index: tuple(Person(p.track_id, p.box) for p in f.poses) for f in frames})
                file.seek(0)
                for line, frame, person in _csv_boxes(file):  # noqa: B007  # `line` is told where reading breaks off
                    people.setdefault(frame, []).append(person)
        except SourceError:
            raise
        except OSError as error:
            raise SourceError(f"expected a file of boxes, {path} cannot be read: {error.strerror}") from error
        except (ValueError, KeyError, TypeError, UnicodeDecodeError) as error:
            what = f"the column {error}" if isinstance(error, KeyError) else str(error)
            raise SourceError(
                f"expected boxes as CSV with the columns frame,x,y,width,height[,track_id] or a poses.ndjson, "
                f"{path} breaks off after line {line}: {what}"
            ) from error
        return cls({frame: tuple(persons) for frame, persons in people.items()})


def _csv_boxes(file: Iterator[str]) -> Iterator[tuple[int, int, Person]]:
    reader = csv.DictReader(file, skipinitialspace=True)
    if reader.fieldnames is None:
        raise ValueError("it is empty")
    ids: dict[int, set[int]] = {}
    for row in reader:
        columns = {name: row[name] for name in ("frame", "x", "y", "width", "height")}
        if missing := [name for name, text in columns.items() if not text]:
            raise ValueError(f"line {reader.line_num} has no {missing[0]}")
        frame = int(columns["frame"])
        taken = ids.setdefault(frame, set())
        track_id = int(row.get("track_id") or len(taken))
        if track_id in taken:
            raise ValueError(f"line {reader.line_num} names person {track_id} of frame {frame} again")
        taken.add(track_id)
        box = Box(*(float(columns[name]) for name in ("x", "y", "width", "height")))
        yield reader.line_num, frame, Person(track_id, box)
