"""Clocks of live sources: the time of each picture in its source, and when it was taken."""

from __future__ import annotations

import time

JUMP_S = 5.0
"""A stream's clock that moves by so much more or less than ours between two pictures was set anew, s."""

LEAST_STEP_S = 0.001
"""Time between two pictures whose stamps do not grow, s."""

OLDEST_S, NEWEST_S = 10.0, -0.5
"""Ages that a picture can have; stamps that say another are by a clock that is not set, s."""


class LiveClock:
    """`time_s` of a live source: by the stream's own clock, from the first picture on, growing over every reconnection.

    While it is away the camera's clock may have begun anew: there our own clock tells how much time has passed.
    """

    def __init__(self) -> None:
        self._first: float | None = None  # arrival of the first picture
        self._offset: float | None = None  # from the stream's clock to `time_s`
        self._last = -1.0  # time_s of the picture before
        self._arrived = 0.0  # when it arrived
        self._stream: float | None = None  # its time by the stream's clock

    def connect(self) -> None:
        """What follows is by a clock that may have begun anew."""
        self._offset = self._stream = None

    def time_s(self, stream_s: float | None, arrived_s: float) -> float:
        """The time of the next picture.

        Args:
            stream_s: by the stream's clock, s; None where it has none.
            arrived_s: by our monotonic clock, s.
        """
        if self._first is None:
            self._first = arrived_s
        elapsed = arrived_s - self._first
        if stream_s is None:
            time_s = elapsed
        else:
            if self._stream is not None and abs((stream_s - self._stream) - (arrived_s - self._arrived)) > JUMP_S:
                self._offset = None
            if self._offset is None:
                self._offset = max(elapsed, self._last + LEAST_STEP_S) - stream_s
            time_s = stream_s + self._offset
        self._stream, self._arrived = stream_s, arrived_s
        self._last = max(time_s, self._last + LEAST_STEP_S)
        return self._last


def of_monotonic(stamp_s: float) -> int | None:
    """A stamp of the kernel's CLOCK_MONOTONIC as ns since 1970, or None if it cannot be one."""
    age_s = time.monotonic() - stamp_s
    return time.time_ns() - round(age_s * 1e9) if NEWEST_S <= age_s <= OLDEST_S else None


def of_sender(wall_us: int) -> int | None:
    """A sender's time, us since 1970, as ns, or None if it is not set right."""
    age_s = time.time() - wall_us / 1e6
    return wall_us * 1000 if NEWEST_S <= age_s <= OLDEST_S else None
