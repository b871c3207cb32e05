"""The frame ledger: every captured frame ends exactly once as processed, dropped or failed."""

from __future__ import annotations

import threading
from collections import Counter
from collections.abc import Iterable
from dataclasses import dataclass


@dataclass(frozen=True)
class LedgerCounts:
    """What became of the frames so far.

    Attributes:
        captured: frames that the source gave.
        processed: frames that went through every stage.
        with_person: those of them that show at least one pose.
        dropped: frames that the drop policy gave up.
        failed: frames that a stage could not work on, or that a stopped run left unfinished.
        reasons: how often each reason for failing was given.
        problems: how often each reason was given why a person in a processed frame has no pose.
    """

    captured: int
    processed: int
    with_person: int
    dropped: int
    failed: int
    reasons: tuple[tuple[str, int], ...]
    problems: tuple[tuple[str, int], ...]

    @property
    def in_flight(self) -> int:
        """Frames that are still on their way; 0 once the pipeline has ended."""
        return self.captured - self.processed - self.dropped - self.failed

    def __str__(self) -> str:
        """The account in one line."""
        text = f"captured {self.captured} = processed {self.processed} + dropped {self.dropped} + failed {self.failed}"
        return text + (f" (+ {self.in_flight} on their way)" if self.in_flight else "")


class FrameLedger:
    """Counts frames; safe to use from every thread. An end that has no captured frame to end is a bug and raises."""

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._captured = 0
        self._open: set[int] = set()
        self._processed = 0
        self._with_person = 0
        self._dropped = 0
        self._reasons: Counter[str] = Counter()
        self._problems: Counter[str] = Counter()

    def capture(self, index: int) -> None:
        """A frame came in."""
        with self._lock:
            if index in self._open:
                raise ValueError(f"frame {index} was captured twice")
            self._open.add(index)
            self._captured += 1

    def process(self, index: int, *, with_person: bool = False, problems: Iterable[str] = ()) -> None:
        """A frame went through every stage; `problems` say why people in it have no pose."""
        with self._lock:
            self._end(index)
            self._processed += 1
            self._with_person += with_person
            self._problems.update(problems)

    def drop(self, index: int) -> None:
        """The drop policy gave a frame up."""
        with self._lock:
            self._end(index)
            self._dropped += 1

    def fail(self, index: int, reason: str) -> None:
        """A stage could not work on a frame."""
        with self._lock:
            self._end(index)
            self._reasons[reason] += 1

    def fail_rest(self, reason: str) -> None:
        """The run stopped: every frame still on its way fails for `reason`."""
        with self._lock:
            if self._open:
                self._reasons[reason] += len(self._open)
                self._open.clear()

    def counts(self) -> LedgerCounts:
        """The account as it stands."""
        with self._lock:
            reasons = tuple(self._reasons.most_common())
            failed = sum(count for _, count in reasons)
            problems = tuple(self._problems.most_common())
            return LedgerCounts(self._captured, self._processed, self._with_person, self._dropped, failed, reasons, problems)

    def _end(self, index: int) -> None:
        if index not in self._open:
            raise ValueError(f"frame {index} was ended twice, or never captured")
        self._open.discard(index)
