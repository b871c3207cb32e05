"""The timeouts of live sources, and the waits between their attempts to reconnect."""

from __future__ import annotations

import random
from dataclasses import dataclass


@dataclass(frozen=True)
class Timeouts:
    """The timeouts of a live source, and its waits between attempts to reconnect.

    Attributes:
        open_s: time to open a camera, s.
        read_s: time without data from an open camera, s; then the connection is closed.
        stalled_s: time without a picture from an open camera, s; then its state is `stalled`.
        first_wait_s: wait before the second attempt to reconnect, s; the first is made at once. Each wait doubles the last.
        longest_wait_s: longest wait before an attempt, s.
        jitter: random variation of the waits (a fraction), so that the cameras of one recorder do not reconnect at the same
            moment.
    """

    open_s: float = 10.0
    read_s: float = 10.0
    stalled_s: float = 2.0
    first_wait_s: float = 1.0
    longest_wait_s: float = 30.0
    jitter: float = 0.2

    def __post_init__(self) -> None:
        """Check the values."""
        times = (self.open_s, self.read_s, self.stalled_s, self.first_wait_s, self.longest_wait_s)
        if not all(value > 0 for value in times) or not 0 <= self.jitter < 1:
            raise ValueError(f"expected times above 0 s and a jitter in 0..1, received {self}")


DEFAULT_TIMEOUTS = Timeouts()
"""The default timeouts."""


class Backoff:
    """The waits between attempts to reconnect: none at first, then ever longer ones, until a connection is stable."""

    def __init__(self, timeouts: Timeouts) -> None:
        self._timeouts = timeouts
        self._wait_s: float | None = None

    def after(self, lived_s: float) -> float:
        """The wait after a connection that gave pictures for `lived_s` seconds (0: it could not be made), s.

        A connection counts as stable if it lasts longer than the wait before it. Otherwise a camera that always fails after a
        moment would be tried without a pause.
        """
        last = self._wait_s
        if last is None or lived_s > max(last, self._timeouts.first_wait_s):
            self._wait_s = 0.0
            return 0.0
        self._wait_s = min(max(2 * last, self._timeouts.first_wait_s), self._timeouts.longest_wait_s)
        varied = self._wait_s * random.uniform(1 - self._timeouts.jitter, 1 + self._timeouts.jitter)
        return min(varied, self._timeouts.longest_wait_s)
