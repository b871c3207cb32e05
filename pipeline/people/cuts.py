"""The end of a take: a hard cut, or a jump in time. Tracks do not continue across it."""

from __future__ import annotations

import math

import cv2
import numpy as np
from numpy.typing import NDArray

from pipeline.types import Frame

JUMP_S = 2.0
"""Longest time between two frames of a take, s: after a longer gap positions cannot identify people."""

_GRID = (32, 18)
_CHANGE = 14.0
"""Smallest mean change of the thumbnail at a cut, grey levels."""

_EDGE = 8.0
"""Smallest difference of neighbouring cells that counts as structure of the picture, grey levels."""

_LIKENESS = 0.7
"""Largest share of such neighbours that keep their order at a cut: about half by chance, and nearly all within a take, even
when a light is switched on."""


class CutDetector:
    """Decides for each frame whether a new take begins. The first frame does not begin one."""

    def __init__(self) -> None:
        self._thumbnail: NDArray[np.float32] | None = None
        self._time_s = -math.inf

    def begins_take(self, frame: Frame) -> str | None:
        """Why a new take begins with this frame: a hard cut or a jump in time; None if the take continues."""
        step = max(1, min(frame.height // (4 * _GRID[1]), frame.width // (4 * _GRID[0])))
        across, down = frame.width // step, frame.height // step  # nearest: every `step`th pixel of every `step`th row
        whole = frame.image[: down * step, : across * step]
        small = cv2.resize(whole, (across, down), interpolation=cv2.INTER_NEAREST)
        thumbnail = cv2.resize(small, _GRID, interpolation=cv2.INTER_AREA).astype(np.float32)
        before, elapsed_s = self._thumbnail, frame.time_s - self._time_s
        self._thumbnail, self._time_s = thumbnail, frame.time_s
        if before is None:
            return None
        if elapsed_s < 0:
            return f"time goes back by {-elapsed_s:.2f} s"
        if elapsed_s > JUMP_S:
            return f"{elapsed_s:.2f} s without a frame"
        if float(np.abs(thumbnail - before).mean()) < _CHANGE:
            return None
        return "a hard cut" if _likeness(before, thumbnail) < _LIKENESS else None


def _likeness(first: NDArray[np.float32], second: NDArray[np.float32]) -> float:
    """Of the pairs of neighbouring cells that differ in either thumbnail, the share with the same cell brighter in both."""
    same = different = 0
    for axis in (0, 1):
        a, b = np.diff(first, axis=axis), np.diff(second, axis=axis)
        shown = np.maximum(np.abs(a), np.abs(b)) > _EDGE
        agree = a * b > 0
        same += int((shown & agree).sum())
        different += int((shown & ~agree).sum())
    return same / max(1, same + different)
