"""One person, found by the people detector and then followed from the last pose."""

from __future__ import annotations

import logging
from collections.abc import Sequence

import numpy as np
from numpy.typing import NDArray

from convnextpose.crop import Box
from convnextpose.errors import GeometryError
from engines.people import PeopleDetector
from engines.pose import PoseModel
from pipeline.people import MIN_SCORE
from pipeline.people.cuts import CutDetector
from pipeline.people.detection import detect
from pipeline.stages import RelativePose, TrackedBox, predict
from pipeline.timeline import Stopwatch
from pipeline.types import Frame

_log = logging.getLogger("convnextpose.people")

KEEP_FRACTION = 2 / 3
"""A followed person is let go when the mean score falls under this fraction of MIN_SCORE."""

PROMISING = 0.5
"""The fraction of the score to be found from which a detected person's pose is worth a closer look."""

CANDIDATES = 3
"""How many of the best poses in detected boxes are looked at again, closer."""

REFINEMENTS = 2
"""How often such a candidate's box is taken from its own pose again."""

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


class SinglePerson:
    """One person, found by the people detector and then followed from the last pose.

    While nobody is followed, the detector reads every DETECTION_INTERVAL-th frame. The poses in its best boxes decide: the
    best of them that lies about where its box was counts as a person from `min_score` on. A detector alone takes some things
    for people, and so does the pose network alone, but mostly not the same things. Whoever is found after a loss, a hard cut
    or a jump in time gets a new track id, since nothing shows that it is the same person.

    Args:
        model: reads the poses.
        detector: proposes boxes.
        min_score: mean score from which a person counts as found; followed down to KEEP_FRACTION of it.
        follows: whether the frames follow each other in time. If not, as with pictures of a folder, each is searched anew.
    """

    def __init__(
        self, model: PoseModel, detector: PeopleDetector, min_score: float = MIN_SCORE, *, follows: bool = True
    ) -> None:
        self.min_score = min_score * KEEP_FRACTION
        self._model = model
        self._detector = detector
        self._found_score = min_score
        self._follows = follows
        self._cuts = CutDetector()
        self._box: Box | None = None
        self._track_id = -1
        self._frames_since_detection = DETECTION_INTERVAL

    def find(self, frame: Frame, stopwatch: Stopwatch) -> tuple[TrackedBox, ...]:
        """The followed person's box; where nobody is followed and it is this frame's turn, that of the person detected."""
        self._frames_since_detection += 1
        if not self._follows or self._cuts.begins_take(frame):
            if self._follows and self._box is not None:
                _log.info("%s: a new take begins at %.3f s, track %d ends", frame.source_id, frame.time_s, self._track_id)
            self._box, self._frames_since_detection = None, DETECTION_INTERVAL + 1
        if self._box is None:
            if self._frames_since_detection <= DETECTION_INTERVAL:
                return ()
            self._frames_since_detection = 0
            best = self.best(frame, stopwatch)
            if best is None or best.score < self._found_score:
                return ()
            self._box = box_from_joints(best.joints)
            self._track_id += 1
            _log.info("%s: track %d begins at %.3f s", frame.source_id, self._track_id, frame.time_s)
        try:
            self._box = self._box.clip(frame.width, frame.height)
        except GeometryError:  # it walked out of the picture
            self._box = None
            return ()
        return (TrackedBox(self._track_id, self._box),)

    def observe(self, poses: tuple[RelativePose, ...]) -> None:
        """Move the box to the pose, or let the person go."""
        if self._box is None:
            return
        last, keep, self._box = self._box, BOX_SMOOTHING, None
        if not poses:
            return
        try:
            seen = box_from_joints(poses[0].joints)
        except GeometryError:  # its joints enclose nothing: no person looks like that
            return
        self._box = Box(
            keep * last.x + (1 - keep) * seen.x,
            keep * last.y + (1 - keep) * seen.y,
            keep * last.width + (1 - keep) * seen.width,
            keep * last.height + (1 - keep) * seen.height,
        )

    def best(self, frame: Frame, stopwatch: Stopwatch | None = None) -> RelativePose | None:
        """The best pose in the detector's boxes, whether it counts as a person or not; None if it proposes nobody."""
        stopwatch = stopwatch or Stopwatch()
        with stopwatch.span("detect"):
            detections = detect(self._detector, frame.image, DETECTION_SCORE)[:DETECTION_CANDIDATES]
        candidates = predict(self._model, frame.image, [TrackedBox(-1, d.box) for d in detections], stopwatch)
        promising = sorted(candidates, key=lambda pose: -pose.score)[:CANDIDATES]
        promising = [pose for pose in promising if pose.score >= PROMISING * self._found_score]
        return max(self._agreeing(frame, promising, stopwatch), key=lambda pose: pose.score, default=None)

    def _agreeing(self, frame: Frame, poses: Sequence[RelativePose], stopwatch: Stopwatch) -> list[RelativePose]:
        """For each pose, the best of it and of closer ones that lies where the detector saw the person."""
        agreeing = []
        for pose in poses:
            detected, best = pose.box, None
            try:
                for left in reversed(range(REFINEMENTS + 1)):
                    box = box_from_joints(pose.joints).clip(frame.width, frame.height)
                    if box.iou(detected) >= DETECTION_AGREEMENT and (best is None or pose.score > best.score):
                        best = pose
                    if left:
                        (pose,) = predict(self._model, frame.image, [TrackedBox(-1, box)], stopwatch)
            except GeometryError:  # its joints enclose nothing, or lie outside the picture: no person
                pass
            if best is not None:
                agreeing.append(best)
        return agreeing
