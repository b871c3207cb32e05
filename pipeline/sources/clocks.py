"""Clocks of live sources: the time of each picture in its source, and when it was taken."""

from __future__ import annotations

import time

JUMP_S = 5.0
"""If a stream's clock differs from ours by this much between two pictures, it was set to another time, s."""

LEAST_STEP_S = 0.001
"""Assumed time between two pictures whose time stamps do not grow, s."""

OLDEST_S, NEWEST_S = 10.0, -0.5
"""Smallest and largest plausible age of a picture, s; otherwise the sender's clock is not set."""


class LiveClock:
    """`time_s` of a live source: by the stream's own clock, from the first picture; it continues after a reconnection.

    The camera's clock may have been reset in the meantime, so the time in between is measured by our own clock.
    """

    def __init__(self) -> None:
        self._first: float | None = None  # arrival of the first picture
        self._offset: float | None = None  # from the stream's clock to `time_s`
        self._last = -1.0  # `time_s` of the previous picture
        self._arrived = 0.0  # when it arrived
        self._stream: float | None = None  # its time on the stream's clock

    def connect(self) -> None:
        """A new connection: the stream's clock may have been reset."""
        self._offset = self._stream = None

    def time_s(self, stream_s: float | None, arrived_s: float) -> float:
        """The time of the next picture.

        Args:
            stream_s: by the stream's clock, s; None without one.
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
    """A time stamp of the kernel's CLOCK_MONOTONIC as ns since 1970, or None if it is not plausible."""
    age_s = time.monotonic() - stamp_s
    return time.time_ns() - round(age_s * 1e9) if NEWEST_S <= age_s <= OLDEST_S else None


def of_sender(wall_us: int) -> int | None:
    """A sender's time, us since 1970, as ns, or None if its clock is not set."""
    age_s = time.time() - wall_us / 1e6
    return wall_us * 1000 if NEWEST_S <= age_s <= OLDEST_S else None
