"""The frame ledger of one source: every received frame ends exactly once, as posed, dropped or failed."""

from __future__ import annotations

import threading
from collections import Counter
from collections.abc import Iterable
from dataclasses import dataclass

KEPT_REASONS = 50
"""Number of different reasons that are counted separately; the rest are counted together, so that memory stays bounded."""

OTHER_REASONS = "other reasons"

Reasons = tuple[tuple[str, int], ...]
"""Reasons and their counts, most frequent first."""


@dataclass(frozen=True)
class LedgerCounts:
    """The counts of a source's frames so far.

    Attributes:
        received: frames from the source.
        posed: frames that have reached all recorders that must have them.
        with_person: posed frames with at least one pose.
        dropped: frames that were replaced by newer ones.
        failed: frames that could not be read or processed, or that a stopped run left unfinished.
        drop_reasons: the reasons for dropped frames, with their counts.
        failures: the reasons for failed frames, with their counts.
        problems: the reasons why people in posed frames have no pose, with their counts.
    """

    received: int
    posed: int
    with_person: int
    dropped: int
    failed: int
    drop_reasons: Reasons = ()
    failures: Reasons = ()
    problems: Reasons = ()

    @property
    def in_flight(self) -> int:
        """Frames that are still in flight; 0 once the source has ended."""
        return self.received - self.posed - self.dropped - self.failed

    def __str__(self) -> str:
        """The counts in one line."""
        text = f"received {self.received} = posed {self.posed} + dropped {self.dropped} + failed {self.failed}"
        return text + (f" (+ {self.in_flight} in flight)" if self.in_flight else "")


class FrameLedger:
    """Counts the frames of one source, from any thread. Ending a frame that was not received is a bug and raises."""

    def __init__(self, source_id: str = "") -> None:
        self.source_id = source_id
        self._lock = threading.Lock()
        self._received = 0
        self._open: set[int] = set()
        self._posed = 0
        self._with_person = 0
        self._drops: Counter[str] = Counter()
        self._failures: Counter[str] = Counter()
        self._problems: Counter[str] = Counter()

    def receive(self, index: int) -> None:
        """Count a received frame."""
        with self._lock:
            if index in self._open:
                raise ValueError(f"frame {index} of {self.source_id} was received twice")
            self._open.add(index)
            self._received += 1

    def pose(self, index: int, *, with_person: bool = False, problems: Iterable[str] = ()) -> None:
        """Count a posed frame, which every recorder has; `problems` say why people in it have no pose."""
        with self._lock:
            self._end(index)
            self._posed += 1
            self._with_person += with_person
            for problem in problems:
                _count(self._problems, problem)

    def drop(self, index: int, reason: str) -> None:
        """Count a frame that was replaced by a newer one."""
        with self._lock:
            self._end(index)
            _count(self._drops, reason)

    def fail(self, index: int, reason: str) -> None:
        """Count a frame that could not be read or processed."""
        with self._lock:
            self._end(index)
            _count(self._failures, reason)

    def fail_rest(self, reason: str) -> None:
        """Count every frame in flight as failed for `reason`, because the run stopped."""
        with self._lock:
            if self._open:
                _count(self._failures, reason, len(self._open))
                self._open.clear()

    def counts(self) -> LedgerCounts:
        """The present counts."""
        with self._lock:
            return LedgerCounts(
                received=self._received,
                posed=self._posed,
                with_person=self._with_person,
                dropped=self._drops.total(),
                failed=self._failures.total(),
                drop_reasons=tuple(self._drops.most_common()),
                failures=tuple(self._failures.most_common()),
                problems=tuple(self._problems.most_common()),
            )

    def _end(self, index: int) -> None:
        if index not in self._open:
            raise ValueError(f"frame {index} of {self.source_id} was ended twice, or never received")
        self._open.discard(index)


def _count(reasons: Counter[str], reason: str, times: int = 1) -> None:
    known = reason in reasons or len(reasons) < KEPT_REASONS
    reasons[reason if known else OTHER_REASONS] += times
