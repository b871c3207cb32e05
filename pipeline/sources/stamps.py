"""When each picture of a video is shown, from time stamps that may be missing, doubled, restarted or in the wrong order."""

from __future__ import annotations

import bisect
from fractions import Fraction

_REORDERED = 20
"""Largest jump back of stamps, in frame intervals, if pictures are only reordered: H.264 and HEVC reorder up to 16 pictures."""


class PresentationClock:
    """Gives each picture its time: its own stamp if that is plausible, otherwise a time before the next plausible stamp.

    Times always grow. The stamps of packets are announced when they are read, ahead of the pictures, so that an interpolated
    time is never after an announced stamp. Three kinds of wrong stamps are handled:

    - Stamps in decoding order, although pictures are shown in another order (H.264 in AVI, MP4 without composition offsets).
      This is detected if a bidirectional picture overtakes smaller stamps while the packets' stamps only grew. As a set the
      stamps are right: each picture takes the smallest remaining one.
    - Stamps that start again (concatenated recordings): they continue from the end of the previous part.
    - No stamp, or one that does not grow: one nominal interval after the previous picture, or half way to the next stamp.

    All times are in ticks of the stream's time base.

    Args:
        step: nominal time between two pictures.
        second: ticks in one second.
    """

    def __init__(self, step: Fraction, second: Fraction) -> None:
        self._step = step
        self._jump = max(second, _REORDERED * step)
        self._offsets = [Fraction(0)]  # the offset added to the stamps of each part
        self._known: list[Fraction] = []  # announced stamps after the previous picture, with the offset, sorted
        self._announced: tuple[Fraction, Fraction] | None = None  # the largest stamp of this part: without and with the offset
        self._shown: Fraction | None = None  # the largest stamp of a picture of its part, without the offset
        self._part = 0  # that part
        self._last: Fraction | None = None  # time of the previous picture
        self._grew = True  # whether packets' stamps have only ever grown
        self._decoding_order = False

    def announce(self, stamp: int) -> None:
        """Announce a packet's stamp, in the order of the file."""
        raw = Fraction(stamp)
        if self._announced is not None and raw < self._announced[0]:
            largest, moved = self._announced
            if raw < largest - self._jump:
                self._offsets.append(moved + self._step - raw)
                self._announced = None
            else:
                self._grew = False
        moved = raw + self._offsets[-1]
        if self._announced is None or raw > self._announced[0]:
            self._announced = (raw, moved)
        if self._last is None or moved > self._last:
            bisect.insort(self._known, moved)

    def show(self, stamp: int | None, *, key: bool = False, bidirectional: bool = False) -> Fraction:
        """The time of the next picture in display order.

        Args:
            stamp: its own, or None.
            key: whether it is decoded without others.
            bidirectional: whether it may be shown before one that is decoded earlier (a B picture).
        """
        time = self._true_time(stamp, key, bidirectional)
        if time is None or (self._last is not None and time <= self._last):
            time = self._invented_time()
        del self._known[: bisect.bisect_right(self._known, time)]
        self._last = time
        return time

    def _true_time(self, stamp: int | None, key: bool, bidirectional: bool) -> Fraction | None:
        if stamp is None:
            return None
        raw = Fraction(stamp)
        if self._shown is not None and raw < self._shown - self._jump and self._part + 1 < len(self._offsets):
            self._part += 1
            self._shown = None
        self._shown = raw if self._shown is None else max(self._shown, raw)
        time = raw + self._offsets[self._part]
        if self._grew and bidirectional and self._known and self._known[0] < time:
            self._decoding_order = True
        if not (self._decoding_order and self._grew):
            return time
        if key:  # all earlier pictures have been shown: stamps that are left belong to pictures that never came
            del self._known[: bisect.bisect_left(self._known, time)]
        return self._known[0] if self._known else time

    def _invented_time(self) -> Fraction:
        """A time after the previous picture and before the next known stamp."""
        following = self._known[0] if self._known else None
        if self._last is None:
            return Fraction(0) if following is None else following - self._step
        time = self._last + self._step
        return time if following is None or time < following else (self._last + following) / 2
