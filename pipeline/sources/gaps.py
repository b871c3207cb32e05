"""The frames that are lost where a video's data is damaged or missing: gaps, each with its reason and, if known, its length."""

from __future__ import annotations

from dataclasses import dataclass
from fractions import Fraction

CUT_SHORT = "the file is cut short: its end is missing"

_UNEVEN_STEPS, _MISSING_STEPS = 0.25, 1.5
"""In frame intervals: the largest jitter of a regular stream, and the smallest distance at which a picture is missing."""

_MOST_LOST = 10_000
"""Largest number of lost frames that are reported one by one, because a time stamp may claim any number."""


@dataclass(frozen=True)
class Loss:
    """A gap of lost frames: the reason, and the number if known."""

    reason: str
    count: int | None

    def reasons(self) -> list[str]:
        """The reason for each frame, or once for the whole gap."""
        if self.count is None:
            return [f"{self.reason}: an unknown number of frames is lost"]
        if self.count > _MOST_LOST:
            return [f"{self.reason}: about {self.count} frames are lost"]
        return [self.reason] * self.count


class Gap:
    """The current gap of lost frames, if any, and the count of frames that could not be seen.

    In a regular stream the missing time gives the number of lost frames, counted from the first damage, because more frames may
    be missing after it without a sign. In other streams the packets without a picture are counted, if the format keeps them.

    Attributes:
        reason: the reason of the current gap, or None.
        packets: packets of the gap that gave no picture.
        awaits_key_packet: whether packets are skipped until one that can be decoded without others.
        awaits_key_picture: whether pictures are skipped in the same way.
        regular: whether pictures have come at regular intervals so far.
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
        self._told = 0  # frames of this gap that have already been counted

    def open(self, reason: str) -> None:
        """Begin a gap, or continue the current one."""
        self.reason = self._damaged = self.reason or reason

    def misses(self, time: Fraction) -> bool:
        """Whether frames are missing, without any sign of damage, between the previous picture and one of this time."""
        if self._damaged is None or not self.regular or self._last is None or self.reason is not None:
            return False
        return time - self._last >= _MISSING_STEPS * self._step

    def before(self, time: Fraction, *, held_back: bool) -> Loss | None:
        """The loss before the picture of this time; a picture that was held back does not end the gap."""
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
        """The loss at the end of a stream that does not declare its number of frames."""
        return Loss(reason, None) if reason == CUT_SHORT else self._counted(reason)

    def _counted(self, reason: str) -> Loss:
        return Loss(reason, max(1, self.packets) if self._packets_count else None)

    def _close(self) -> None:
        self.reason, self.packets, self._told, self.awaits_key_picture = None, 0, 0, False
