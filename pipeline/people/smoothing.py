"""Poses smoothed over time: steady where people stand still, quick where they move."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass, fields
from typing import Any, Generic, TypeVar

import numpy as np
from numpy.typing import NDArray

from pipeline.types import Pose

Array = NDArray[np.float64]


@dataclass(frozen=True)
class OneEuro:
    """The parameters of a One-Euro filter: a low-pass whose cutoff rises with the speed.

    Source: Casiez, Roussel and Vogel, "1€ Filter" (CHI 2012). The speed is that of the point in space, so that the axes do not
    matter, and the time steps are those of the frames.

    Attributes:
        cutoff_hz: cutoff of a point at rest, Hz.
        per_speed: increase of the cutoff, Hz for each mm/s.
        speed_cutoff_hz: cutoff of the filter for the speed, Hz.
    """

    cutoff_hz: float
    per_speed: float
    speed_cutoff_hz: float = 1.0


BODY = OneEuro(cutoff_hz=1.5, per_speed=0.006)
"""For the joints from the pelvis: chosen by measurement, docs/people.md."""

ACROSS = OneEuro(cutoff_hz=1.5, per_speed=0.012)
"""For the position of the pelvis across the line of sight, which is visible in the picture: fast, so that the pose does not lag
behind the person."""

DEPTH = OneEuro(cutoff_hz=0.5, per_speed=0.003)
"""For the depth of the pelvis, the least certain number of a pose."""

FORGET_S = 1.0
"""After a longer absence a person's filter starts again, s."""


@dataclass(frozen=True)
class _Settings:
    """The settings of several points that are filtered together, as columns [N, 1]."""

    cutoff_hz: Array
    per_speed: Array
    speed_cutoff_hz: Array

    @classmethod
    def of(cls, each: Sequence[OneEuro]) -> _Settings:
        return cls(*(np.array([[getattr(one, f.name)] for one in each]) for f in fields(OneEuro)))


Value = TypeVar("Value", float, Array)


class _Filter(Generic[Value]):
    """A One-Euro filter of a number, or of points [N, 3]; mm.

    Args:
        settings: those of the number, or of each point.
        length: computes the length of a speed.
        value: the first value.
    """

    def __init__(self, settings: OneEuro | _Settings, length: Callable[[Value], Value], value: Value) -> None:
        self._settings = settings
        self._length: Callable[[Value], Value] = length
        self._raw: Value = value
        self.smoothed: Value = value
        self._speed: Value = value * 0.0

    def step(self, elapsed_s: float, value: Value) -> Value:
        """The smoothed value; the time since the last one must be above 0."""
        settings, radians = self._settings, 2 * math.pi * elapsed_s
        rate: Any = radians * settings.speed_cutoff_hz  # a number, or a column of one for each point
        self._speed = self._speed + rate / (rate + 1) * ((value - self._raw) / elapsed_s - self._speed)
        rate = radians * (settings.cutoff_hz + settings.per_speed * self._length(self._speed))
        self.smoothed = self.smoothed + rate / (rate + 1) * (value - self.smoothed)
        self._raw = value
        return self.smoothed


def _lengths(points: Array) -> Array:
    """[N, 1] lengths of vectors [N, 3]."""
    return np.sqrt(np.einsum("nk,nk->n", points, points))[:, None]


class _TrackFilter:
    """The filters of one track: for the pelvis's depth, and for the body with the pelvis's position across the line of sight.

    The picture shows the pelvis's position precisely, but not its depth. If its position were smoothed as a whole, the
    uncertain depth would make the drawn pose lag behind a walking person.

    Args:
        settings: those of the joints and, last, of the position across the line of sight.
        time_s: the time.
        joints: [J, 3] in camera space, mm.
        root: the pelvis.
    """

    def __init__(self, settings: _Settings, time_s: float, joints: Array, root: int) -> None:
        self.time_s = time_s
        self._root = root
        self._depth = _Filter(DEPTH, abs, float(joints[root, 2]))
        self._points = _Filter(settings, _lengths, self._parts(joints, 1.0))

    def _parts(self, joints: Array, farther: float) -> Array:
        """[J + 1, 3]: the joints relative to the pelvis, and its position across the line of sight, `farther` times as far
        away."""
        parts = np.empty((len(joints) + 1, 3))
        np.subtract(joints, joints[self._root], out=parts[:-1])
        np.multiply(joints[self._root], farther, out=parts[-1])
        parts[-1, 2] = 0.0
        return parts

    def step(self, time_s: float, joints: Array) -> Array:
        """The joints in camera space [J, 3], mm, smoothed."""
        elapsed_s, self.time_s = time_s - self.time_s, time_s
        if elapsed_s > 0:
            raw = float(joints[self._root, 2])
            depth = self._depth.step(elapsed_s, raw)
            self._points.step(elapsed_s, self._parts(joints, depth / raw))  # on the raw line of sight, at the smoothed depth
        smoothed = self._points.smoothed[:-1] + self._points.smoothed[-1]
        smoothed[:, 2] += self._depth.smoothed
        return smoothed


class PoseSmoother:
    """Smooths the poses of one source, each track by itself.

    Args:
        root: the pelvis.
    """

    def __init__(self, root: int) -> None:
        self._root = root
        self._settings: _Settings | None = None
        self._tracks: dict[int, _TrackFilter] = {}

    def step(self, time_s: float, poses: Sequence[Pose]) -> list[Array]:
        """The `smoothed_mm` [J, 3] of each of a frame's poses."""
        self._tracks = {i: t for i, t in self._tracks.items() if 0 <= time_s - t.time_s <= FORGET_S}
        result = []
        for pose in poses:
            track = self._tracks.get(pose.track_id)
            if track is None:
                if self._settings is None:
                    self._settings = _Settings.of([BODY] * len(pose.joints_mm) + [ACROSS])
                track = self._tracks[pose.track_id] = _TrackFilter(self._settings, time_s, pose.joints_mm, self._root)
            result.append(track.step(time_s, pose.joints_mm))
        return result
