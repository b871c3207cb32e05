"""The frames that are lost where a video's data is damaged or missing: gaps, each with its reason and, if known, its length."""

from __future__ import annotations

from dataclasses import dataclass
from fractions import Fraction

CUT_SHORT = "the file is cut short, its end is missing"

_UNEVEN_STEPS, _MISSING_STEPS = 0.25, 1.5
"""Steps by which the time between pictures may be uneven in a stream that is regular, and from which a picture is missing."""

_MOST_LOST = 10_000
"""Lost frames that are told one by one at most, as a time stamp may claim any number."""


@dataclass(frozen=True)
class Loss:
    """A stretch of lost frames: why, and how many where that is known."""

    reason: str
    count: int | None

    def reasons(self) -> list[str]:
        """The reason for each frame, or once for the whole stretch."""
        if self.count is None:
            return [f"{self.reason}: an unknown number of frames is lost"]
        if self.count > _MOST_LOST:
            return [f"{self.reason}: about {self.count} frames are lost"]
        return [self.reason] * self.count


class Gap:
    """The stretch that is being lost, if one is, and how frames are counted that nobody saw.

    In a stream whose pictures come one step after another, the time that is missing tells how many: from the first damage on,
    as more may be missing behind it without a mark. In other streams the packets that gave no picture are counted, where the
    format keeps them.

    Attributes:
        reason: why, or None where nothing is being lost.
        packets: those of it that gave no picture.
        awaits_key_packet: whether packets are passed over until one that can be decoded without others.
        awaits_key_picture: whether pictures are passed over in the same way.
        regular: whether pictures have come one step after another so far.
    """

    def __init__(self, step: Fraction, *, packets_count: bool) -> None:
        self.reason: str | None = None
        self.packets = 0
        self.awaits_key_packet = self.awaits_key_picture = False
        self.regular = True
        self._step = step
        self._packets_count = packets_count  # whether every lost frame has left a packet
        self._last: Fraction | None = None
        self._damaged: str | None = None  # the latest reason
        self._told = 0  # frames of this stretch that are counted already

    def open(self, reason: str) -> None:
        """Something was lost."""
        self.reason = self._damaged = self.reason or reason

    def misses(self, time: Fraction) -> bool:
        """Whether frames are missing, though nothing marked them, between the picture before and one of this time."""
        if self._damaged is None or not self.regular or self._last is None or self.reason is not None:
            return False
        return time - self._last >= _MISSING_STEPS * self._step

    def before(self, time: Fraction, *, held_back: bool) -> Loss | None:
        """What was lost before the picture of this time; one that was held back doesn't end the stretch."""
        missing = 0
        if self._last is not None:
            passed = (time - self._last) / self._step
            if self._damaged is None or passed < _MISSING_STEPS:
                self.regular = self.regular and abs(passed - 1) < _UNEVEN_STEPS
            elif self.regular:
                missing = round(passed) - 1
        self._last = time
        self._told += missing
        loss = Loss(self._damaged, missing) if missing and self._damaged else None
        if self.reason is not None and not held_back:
            loss = loss or (None if self._told else self._counted(self.reason))
            self._close()
        return loss

    def at_end(self, reason: str) -> Loss:
        """What was lost when the stream has ended and does not say how many frames it has."""
        return Loss(reason, None) if reason == CUT_SHORT else self._counted(reason)

    def _counted(self, reason: str) -> Loss:
        return Loss(reason, max(1, self.packets) if self._packets_count else None)

    def _close(self) -> None:
        self.reason, self.packets, self._told, self.awaits_key_picture = None, 0, 0, False
