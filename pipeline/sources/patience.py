"""How long a live source waits, and when it tries again."""

from __future__ import annotations

import random
from dataclasses import dataclass


@dataclass(frozen=True)
class Patience:
    """How long a live source waits for what.

    Attributes:
        open_s: for a camera to be opened, s.
        read_s: for data of an open camera, s; then the connection is given up.
        stalled_s: for a picture of an open camera, s; then its state says so.
        first_wait_s: before the second try to come back, s; the first follows at once. Each wait is twice the one before.
        longest_wait_s: before a try at most, s.
        jitter: by which fraction the waits vary, so that many cameras of one recorder do not come back at one moment.
    """

    open_s: float = 10.0
    read_s: float = 10.0
    stalled_s: float = 2.0
    first_wait_s: float = 1.0
    longest_wait_s: float = 30.0
    jitter: float = 0.2

    def __post_init__(self) -> None:
        """Check that every time is one."""
        times = (self.open_s, self.read_s, self.stalled_s, self.first_wait_s, self.longest_wait_s)
        if not all(value > 0 for value in times) or not 0 <= self.jitter < 1:
            raise ValueError(f"expected times above 0 s and a jitter in 0..1, received {self}")


PATIENCE = Patience()
"""The usual one."""


class Backoff:
    """The waits between tries to come back: none, then longer and longer ones, until a connection proves itself."""

    def __init__(self, patience: Patience) -> None:
        self._patience = patience
        self._wait_s: float | None = None

    def after(self, lived_s: float) -> float:
        """The wait after a connection that gave pictures for `lived_s` seconds (0: it could not be made), s.

        A connection proves itself by living longer than the wait before it: a camera that breaks again and again after a
        moment is not tried without a pause.
        """
        last = self._wait_s
        if last is None or lived_s > max(last, self._patience.first_wait_s):
            self._wait_s = 0.0
            return 0.0
        self._wait_s = min(max(2 * last, self._patience.first_wait_s), self._patience.longest_wait_s)
        varied = self._wait_s * random.uniform(1 - self._patience.jitter, 1 + self._patience.jitter)
        return min(varied, self._patience.longest_wait_s)
