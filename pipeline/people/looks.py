"""Which frames the people detector runs on, and which of its boxes the pose network reads: docs/decisions/0014."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

from convnextpose.crop import Box
from pipeline.people.detection import Detection

BORN_AFTER_S = 0.08
"""Time between the first observation of somebody and the one that makes it sure, at least, s."""

NEWCOMER_S = 0.5
"""Within what time a newcomer has a pose, s, where frames are 0.2 s apart or less."""

BUSY_INTERVAL_S = 0.2
"""Between two looks at least, s; while somebody is out of sight or not yet sure, no longer than needed."""

FULL_INTERVAL_S = 0.8
"""Between two looks while as many people as are wanted are followed and seen, s: only somebody who is nearer can be new."""

NOBODY = 0.2
"""Score of a pose under which its box clearly shows nobody: those of people whom the network reads badly are higher."""

REFUSED_S = 1.0
"""How long a box that clearly showed nobody is not read again, s."""

SAME_PLACE = 0.7
"""Intersection over union from which a detected box is one that was refused."""

SURER = 0.15
"""By how much the detector must be surer of a refused box than before to have it read again."""


@dataclass
class _Refusal:
    box: Box
    score: float
    time_s: float


class Looks:
    """Decides about the detector's looks at the frames of one source. Times are those of the stream, s."""

    def __init__(self) -> None:
        self._looked_s = self._frame_s = -math.inf
        self._refused: list[_Refusal] = []

    def begin(self) -> None:
        """A new take: the next frame is looked at, and nothing is known of it."""
        self._looked_s, self._refused = -math.inf, []

    @property
    def none_yet(self) -> bool:
        """Whether the detector has not looked at a frame of this take."""
        return self._looked_s == -math.inf

    def due(self, time_s: float, *, busy: bool, full: bool) -> bool:
        """Whether the detector is to look at a frame; if so, it counts as looked at.

        Args:
            time_s: the frame's time.
            busy: whether somebody is out of sight or not yet sure.
            full: whether everybody who may be followed is followed.
        """
        gap_s, elapsed_s = time_s - self._frame_s, time_s - self._looked_s
        self._frame_s = time_s
        if busy:
            interval_s = BUSY_INTERVAL_S
        elif full:
            interval_s = FULL_INTERVAL_S
        else:  # as late as whoever comes right after a look is still known in time: with this frame skipped, two more pass
            interval_s = max(BUSY_INTERVAL_S, NEWCOMER_S - BORN_AFTER_S - 2 * gap_s)
        if elapsed_s < interval_s - 1e-6:
            return False
        self._looked_s = time_s
        return True

    def worth_reading(self, new: Sequence[Detection], time_s: float) -> list[Detection]:
        """Those of a look's detections of nobody who is followed in whose boxes a pose should be read."""
        self._refused = [refusal for refusal in self._refused if time_s - refusal.time_s < REFUSED_S - 1e-6]
        kept = []
        for detection in new:
            known = next((r for r in self._refused if r.box.iou(detection.box) >= SAME_PLACE), None)
            if known is None or detection.score > known.score + SURER:
                kept.append(detection)
            else:
                known.box = detection.box  # where the camera moves, so does the place
        return kept

    def read(self, detection: Detection, score: float, time_s: float) -> None:
        """What a pose in a detected box scored."""
        if score < NOBODY:
            self._refused.append(_Refusal(detection.box, detection.score, time_s))
