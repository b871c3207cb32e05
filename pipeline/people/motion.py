"""Where a person who was followed will be: constant velocity, as sure as the time since the last look allows."""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

Point = NDArray[np.float64]

MEASURED = 0.05
"""How far the middle of a pose's joints strays from the person's true path (gait, jitter), in the person's sizes."""

FIRST_SPEED = 1.5
"""Speed of people whom nobody has followed yet, sizes a second (one standard deviation): a size is about a metre."""

CHANGE = 1.0
"""How much the velocity changes in a second, sizes a second (one standard deviation)."""


class Motion:
    """A Kalman filter of one person's path in the picture, in continuous time: how often it is told does not matter.

    Source: the white-noise acceleration model of Bar-Shalom, Li and Kirubarajan, "Estimation with Applications to Tracking and
    Navigation" (2001), 6.2.2. Both axes have one covariance, since they are seen alike.

    Args:
        time_s: time of the first look.
        place: [2] px.
        size_px: the person's size: the square root of the box's area.
    """

    def __init__(self, time_s: float, place: Point, size_px: float) -> None:
        self._time_s = time_s
        self._place, self._velocity = place.copy(), np.zeros(2)
        self._covariance = np.diag([(MEASURED * size_px) ** 2, (FIRST_SPEED * size_px) ** 2])

    @property
    def velocity(self) -> Point:
        """[2] px a second."""
        return self._velocity

    def _ahead(self, time_s: float, size_px: float) -> tuple[Point, NDArray[np.float64]]:
        elapsed_s = max(0.0, time_s - self._time_s)
        step = np.array([[1.0, elapsed_s], [0.0, 1.0]])
        noise = (CHANGE * size_px) ** 2 * np.array([[elapsed_s**3 / 3, elapsed_s**2 / 2], [elapsed_s**2 / 2, elapsed_s]])
        return self._place + elapsed_s * self._velocity, step @ self._covariance @ step.T + noise

    def predict(self, time_s: float, size_px: float) -> tuple[Point, float]:
        """Where the person is at a time [2] px, and the standard deviation of that on each axis when looked at, px."""
        place, covariance = self._ahead(time_s, size_px)
        return place, float(np.sqrt(covariance[0, 0] + (MEASURED * size_px) ** 2))

    def update(self, time_s: float, place: Point, size_px: float) -> None:
        """The person was seen at a place [2] px."""
        predicted, covariance = self._ahead(time_s, size_px)
        gain = covariance[:, 0] / (covariance[0, 0] + (MEASURED * size_px) ** 2)
        surprise = place - predicted
        self._place = predicted + gain[0] * surprise
        self._velocity = self._velocity + gain[1] * surprise
        self._covariance = covariance - np.outer(gain, covariance[0])
        self._time_s = time_s
