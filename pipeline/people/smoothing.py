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

ACROSS = OneEuro(cutoff_hz=1.5, per_speed=0.012)
"""For the place of the pelvis across the line of sight, which the picture shows: quick, so that nobody walks ahead
of the pose."""

DEPTH = OneEuro(cutoff_hz=0.5, per_speed=0.003)
"""For the depth of the pelvis, the least certain number of a pose."""

_ALONG, _ACROSS = np.array([0.0, 0.0, 1.0]), np.array([1.0, 1.0, 0.0])
"""What of a place is along the camera's axis, and across it."""

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


class _TrackFilter:
    """One track's filters: of the body, of the pelvis's depth, and of its place across the line of sight.

    The picture shows well where the pelvis is, but not how far away. Were its place smoothed as a whole, the unsure depth would
    make the drawn pose trail behind whoever walks.
    """

    def __init__(self, time_s: float, body: Array, place: Array) -> None:
        self._body = _Filter(BODY, time_s, body)
        self._depth = _Filter(DEPTH, time_s, place * _ALONG)
        self._across = _Filter(ACROSS, time_s, place * _ACROSS)

    def step(self, time_s: float, body: Array, place: Array) -> Array:
        """The joints in camera space, smoothed, from those about the pelvis [J, 3] and its place [1, 3], mm."""
        depth = self._depth.step(time_s, place * _ALONG)
        sight = place * (depth[0, 2] / place[0, 2])  # on the raw line of sight, at the smoothed depth
        return self._body.step(time_s, body) + depth + self._across.step(time_s, sight * _ACROSS)


class PoseSmoother:
    """Smooths the poses of one source, each track by itself.

    Args:
        root: the pelvis.
    """

    def __init__(self, root: int) -> None:
        self._root = root
        self._filters: dict[int, tuple[float, _TrackFilter]] = {}

    def step(self, time_s: float, poses: Sequence[Pose]) -> tuple[Pose, ...]:
        """A frame's poses with `smoothed_mm`."""
        known = {i: f for i, f in self._filters.items() if 0 <= time_s - f[0] <= FORGET_S}
        result = []
        for pose in poses:
            place = pose.joints_mm[self._root : self._root + 1]
            body = pose.joints_mm - place
            track = known[pose.track_id][1] if pose.track_id in known else _TrackFilter(time_s, body, place)
            known[pose.track_id] = (time_s, track)
            result.append(replace(pose, smoothed_mm=track.step(time_s, body, place)))
        self._filters = known
        return tuple(result)
