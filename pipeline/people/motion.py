"""Predicts a tracked person's position: a Kalman filter with constant velocity, less certain with time."""

from __future__ import annotations

import math

import numpy as np
from numpy.typing import NDArray

Point = NDArray[np.float64]

MEASURED = 0.05
"""Standard deviation of the centre of a pose's joints from the person's path (gait, jitter), in units of the person's size."""

FIRST_SPEED = 1.5
"""Speed of people who are not tracked yet, sizes a second (one standard deviation): a size is about a metre."""

CHANGE = 1.0
"""Change of the velocity in a second, sizes a second (one standard deviation)."""


class Motion:
    """A Kalman filter of one person's path in the picture, in continuous time: the frame rate does not matter.

    Source: the white-noise acceleration model of Bar-Shalom, Li and Kirubarajan, "Estimation with Applications to Tracking and
    Navigation" (2001), 6.2.2. Both axes share one covariance, because they are measured in the same way.

    Args:
        time_s: time of the first observation.
        place: [2] px.
        size_px: the person's size: the square root of the box's area.
    """

    def __init__(self, time_s: float, place: Point, size_px: float) -> None:
        self._time_s = time_s
        self._place, self._velocity = place.copy(), np.zeros(2)
        # Variance of the position, its covariance with the velocity, and variance of the velocity. Plain numbers are faster
        # than 2x2 matrices, which would be multiplied for every person in every frame.
        self._covariance = (MEASURED * size_px) ** 2, 0.0, (FIRST_SPEED * size_px) ** 2

    @property
    def velocity(self) -> Point:
        """[2] px a second."""
        return self._velocity

    def _ahead(self, time_s: float, size_px: float) -> tuple[Point, tuple[float, float, float]]:
        t = max(0.0, time_s - self._time_s)
        noise = (CHANGE * size_px) ** 2
        of_place, both, of_velocity = self._covariance
        return self._place + t * self._velocity, (
            of_place + 2 * t * both + t**2 * of_velocity + noise * t**3 / 3,
            both + t * of_velocity + noise * t**2 / 2,
            of_velocity + noise * t,
        )

    def predict(self, time_s: float, size_px: float) -> tuple[Point, float]:
        """The person's predicted position at a time, [2] px, and the standard deviation of an observation on each axis, px."""
        place, (of_place, _, _) = self._ahead(time_s, size_px)
        return place, math.sqrt(of_place + (MEASURED * size_px) ** 2)

    def update(self, time_s: float, place: Point, size_px: float) -> None:
        """Update the path with an observed position [2] px."""
        predicted, (of_place, both, of_velocity) = self._ahead(time_s, size_px)
        measured = of_place + (MEASURED * size_px) ** 2
        gain, gain_of_velocity = of_place / measured, both / measured
        surprise = place - predicted
        self._place = predicted + gain * surprise
        self._velocity = self._velocity + gain_of_velocity * surprise
        self._covariance = (1 - gain) * of_place, (1 - gain) * both, of_velocity - gain_of_velocity * both
        self._time_s = time_s
