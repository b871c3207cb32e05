"""Which frames the people detector runs on, and which of its boxes the pose network reads: docs/decisions/0014."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

from convnextpose.crop import Box
from pipeline.people.detection import Detection

BORN_AFTER_S = 0.08
"""Shortest time between the first observation of a person and the one that confirms it, s."""

NEWCOMER_DELAY_S = 0.5
"""Time within which a newcomer has a pose, s, if frames are 0.2 s apart or less."""

BUSY_INTERVAL_S = 0.2
"""Time between two runs of the detector while a person is out of sight or not yet confirmed, s."""

FULL_INTERVAL_S = 0.8
"""Time between two runs of the detector while the largest number of people is tracked and visible, s: then only nearer people
can be added."""

NOBODY_SCORE = 0.2
"""If the score of a pose is below this, its box clearly shows nobody: even poorly read people have higher scores."""

REJECTED_S = 1.0
"""How long a box that clearly showed nobody is not read again, s."""

SAME_BOX_IOU = 0.7
"""Smallest intersection over union at which a detected box counts as one that was rejected before."""

MIN_SCORE_RISE = 0.15
"""By how much the detector's score of a rejected box must rise before the box is read again."""


@dataclass
class _Rejection:
    box: Box
    score: float
    time_s: float


class DetectionSchedule:
    """Decides which frames of one source the detector runs on. Times are those of the stream, s."""

    def __init__(self) -> None:
        self._last_run_s = self._frame_s = -math.inf
        self._rejected: list[_Rejection] = []

    def reset(self) -> None:
        """Begin a new take: the detector runs on its first frame, and earlier rejections are forgotten."""
        self._last_run_s, self._rejected = -math.inf, []

    @property
    def has_run(self) -> bool:
        """Whether the detector has run on a frame of this take."""
        return self._last_run_s > -math.inf

    def due(self, time_s: float, *, busy: bool, full: bool) -> bool:
        """Whether the detector should run on a frame; if so, the run is recorded.

        Args:
            time_s: the frame's time, s.
            busy: whether a person is out of sight or not yet confirmed.
            full: whether the largest number of people is tracked.
        """
        gap_s, elapsed_s = time_s - self._frame_s, time_s - self._last_run_s
        self._frame_s = time_s
        # A newcomer who appears right after a run is still in time if this frame is skipped, the next one is the first
        # observation, and a later one confirms it.
        confirmed_s = gap_s if gap_s >= BORN_AFTER_S else BORN_AFTER_S + gap_s
        interval_s = NEWCOMER_DELAY_S - gap_s - confirmed_s
        if busy:
            interval_s = min(interval_s, BUSY_INTERVAL_S)
        elif full:
            interval_s = FULL_INTERVAL_S
        if elapsed_s < interval_s - 1e-6:
            return False
        self._last_run_s = time_s
        return True

    def without_rejected(self, new: Sequence[Detection], time_s: float) -> list[Detection]:
        """The detections, all of people who are not tracked, whose boxes the pose network should read."""
        self._rejected = [rejection for rejection in self._rejected if time_s - rejection.time_s < REJECTED_S - 1e-6]
        kept = []
        for detection in new:
            known = next((r for r in self._rejected if r.box.iou(detection.box) >= SAME_BOX_IOU), None)
            if known is None or detection.score > known.score + MIN_SCORE_RISE:
                kept.append(detection)
            else:
                known.box = detection.box  # if the camera moves, the box moves too
        return kept

    def record_score(self, detection: Detection, score: float, time_s: float) -> None:
        """Record the score of the pose in a detected box."""
        if score < NOBODY_SCORE:
            self._rejected.append(_Rejection(detection.box, detection.score, time_s))
