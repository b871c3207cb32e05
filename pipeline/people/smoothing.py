"""Poses smoothed over time: steady where people stand still, quick where they move."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass, replace

import numpy as np
from numpy.typing import NDArray

from pipeline.types import Pose

Array = NDArray[np.float64]


@dataclass(frozen=True)
class OneEuro:
    """What a One-Euro filter lets through: a low-pass whose cutoff rises with the speed.

    Source: Casiez, Roussel and Vogel, "1€ Filter" (CHI 2012). Speed is that of the point in space, so that the axes do not
    matter, and time steps are the real ones.

    Attributes:
        cutoff_hz: of a point at rest.
        per_speed: how much it rises, Hz for each mm/s.
        speed_cutoff_hz: of the speed itself.
    """

    cutoff_hz: float
    per_speed: float
    speed_cutoff_hz: float = 1.0


BODY = OneEuro(cutoff_hz=1.5, per_speed=0.006)
"""For the joints from the pelvis: chosen by measurement, docs/people.md."""

PLACE = OneEuro(cutoff_hz=0.5, per_speed=0.003)
"""For the pelvis in camera space, whose depth is the least certain number of a pose."""

FORGET_S = 1.0
"""Who was not seen for longer begins anew, s."""


@dataclass
class _State:
    time_s: float
    raw: Array
    smoothed: Array
    speed: Array


def _share(cutoff_hz: Array | float, elapsed_s: float) -> Array:
    """How much of the way to a new value a low-pass goes in a time."""
    rate = 2 * math.pi * np.asarray(cutoff_hz, np.float64) * elapsed_s
    return np.asarray(rate / (rate + 1))


class _Filter:
    """A One-Euro filter of points [N, 3] mm."""

    def __init__(self, settings: OneEuro, time_s: float, points: Array) -> None:
        self._settings = settings
        self._state = _State(time_s, points, points, np.zeros_like(points))

    def step(self, time_s: float, points: Array) -> Array:
        """The points, smoothed."""
        before, elapsed_s = self._state, time_s - self._state.time_s
        if elapsed_s <= 0:
            return before.smoothed
        speed = before.speed + _share(self._settings.speed_cutoff_hz, elapsed_s) * (
            (points - before.raw) / elapsed_s - before.speed
        )
        cutoff_hz = self._settings.cutoff_hz + self._settings.per_speed * np.linalg.norm(speed, axis=-1, keepdims=True)
        smoothed = before.smoothed + _share(cutoff_hz, elapsed_s) * (points - before.smoothed)
        self._state = _State(time_s, points, smoothed, speed)
        return smoothed


class PoseSmoother:
    """Smooths the poses of one source, each track by itself: the body and its place apart, since they are not equally sure.

    Args:
        root: the pelvis.
    """

    def __init__(self, root: int) -> None:
        self._root = root
        self._filters: dict[int, tuple[float, _Filter, _Filter]] = {}

    def step(self, time_s: float, poses: Sequence[Pose]) -> tuple[Pose, ...]:
        """A frame's poses with `smoothed_mm`."""
        known = {i: f for i, f in self._filters.items() if 0 <= time_s - f[0] <= FORGET_S}
        result = []
        for pose in poses:
            place = pose.joints_mm[self._root : self._root + 1]
            body = pose.joints_mm - place
            if pose.track_id in known:
                _, of_body, of_place = known[pose.track_id]
            else:
                of_body, of_place = _Filter(BODY, time_s, body), _Filter(PLACE, time_s, place)
            known[pose.track_id] = (time_s, of_body, of_place)
            result.append(replace(pose, smoothed_mm=of_body.step(time_s, body) + of_place.step(time_s, place)))
        self._filters = known
        return tuple(result)
