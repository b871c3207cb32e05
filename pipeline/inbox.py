"""Inboxes between threads, the newest frame of each source, and the limit on the frames in flight from a source."""

from __future__ import annotations

import threading
from collections import deque
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Generic, TypeVar

T = TypeVar("T")

MAX_FRAMES_IN_FLIGHT = 12
"""Largest number of frames of one recording in flight: enough to even out stages of varying speed."""

MAX_BYTES_IN_FLIGHT = 384 * 2**20
"""Largest size of one recording's pictures in flight, bytes, unless a single frame is larger."""


class Closed(Exception):  # noqa: N818  # a signal, like StopIteration, not an error
    """The inbox is closed and, for a receiver, empty."""


class Inbox(Generic[T]):
    """A first-in first-out queue between two threads. It never blocks the sender.

    Args:
        capacity: how many items can wait; one more removes the oldest. None: any number, if the sender is limited in another
            way.
    """

    def __init__(self, capacity: int | None = None) -> None:
        if capacity is not None and capacity < 1:
            raise ValueError(f"expected a capacity of at least 1, received {capacity}")
        self._capacity = capacity
        self._items: deque[T] = deque()
        self._changed = threading.Condition()
        self._closed = False

    def put(self, item: T) -> T | None:
        """Add an item; returns the item that it removed, if any.

        Raises:
            Closed: the inbox is closed.
        """
        with self._changed:
            if self._closed:
                raise Closed
            full = self._capacity is not None and len(self._items) >= self._capacity
            pushed_out = self._items.popleft() if full else None
            self._items.append(item)
            self._changed.notify()
            return pushed_out

    def get(self) -> T:
        """Take the oldest item, waiting for one.

        Raises:
            Closed: the inbox is closed and empty.
        """
        with self._changed:
            while not self._items:
                if self._closed:
                    raise Closed
                self._changed.wait()
            return self._items.popleft()

    def close(self) -> None:
        """Accept no more items; receivers get the remaining ones. Calling it again does nothing."""
        with self._changed:
            self._closed = True
            self._changed.notify_all()

    def abort(self) -> None:
        """Close, and discard the remaining items."""
        with self._changed:
            self._items.clear()
            self._closed = True
            self._changed.notify_all()


@dataclass(frozen=True)
class NumberedItem(Generic[T]):
    """An item of `LatestItems`.

    Attributes:
        number: its number among the sender's items, from 1: gaps show a reader how many it skipped.
        item: the item.
    """

    number: int
    item: T


class LatestItems(Generic[T]):
    """The newest item of each sender, for any number of readers at their own pace. No sender waits for a reader."""

    def __init__(self) -> None:
        self._newest: dict[str, NumberedItem[T]] = {}
        self._changed = threading.Condition()
        self._closed = False

    def put(self, sender: str, item: T) -> None:
        """Add an item, which replaces the sender's last one. After `close` this does nothing."""
        with self._changed:
            if not self._closed:
                last = self._newest.get(sender)
                self._newest[sender] = NumberedItem(last.number + 1 if last else 1, item)
                self._changed.notify_all()

    def read(self, seen: Mapping[str, int], timeout_s: float | None = None) -> dict[str, NumberedItem[T]]:
        """The newest unseen item of each sender, waiting for one; empty if none arrived in time.

        Args:
            seen: for each sender the number that was read last.
            timeout_s: the longest time to wait, s; None for no limit.

        Raises:
            Closed: it is closed and holds nothing unseen.
        """
        with self._changed:
            self._changed.wait_for(lambda: self._closed or self._unseen(seen), timeout_s)
            unseen = self._unseen(seen)
            if self._closed and not unseen:
                raise Closed
            return unseen

    def close(self) -> None:
        """Accept no more items; readers get those that they have not seen. Calling it again does nothing."""
        with self._changed:
            self._closed = True
            self._changed.notify_all()

    def abort(self) -> None:
        """Close, and remove all items."""
        with self._changed:
            self._newest.clear()
            self._closed = True
            self._changed.notify_all()

    def _unseen(self, seen: Mapping[str, int]) -> dict[str, NumberedItem[T]]:
        return {sender: numbered for sender, numbered in self._newest.items() if numbered.number != seen.get(sender)}


class InFlight:
    """Limits the frames and bytes of one source in flight. Room is checked before a frame is read from the source.

    Args:
        max_frames, max_bytes: the limits. A single frame is always allowed, however large it is.
    """

    def __init__(self, max_frames: int = MAX_FRAMES_IN_FLIGHT, max_bytes: int = MAX_BYTES_IN_FLIGHT) -> None:
        self._max_frames, self._max_bytes = max_frames, max_bytes
        self._frames = self._bytes = 0
        self._changed = threading.Condition()

    def wait_for_room(self, size: int, stopped: Callable[[], bool]) -> bool:
        """Wait until there is room for a frame of about `size` bytes; False if `stopped()` is true (`wake` checks it again)."""
        with self._changed:
            while not stopped():
                if not self._frames or (self._frames < self._max_frames and self._bytes + size <= self._max_bytes):
                    return True
                self._changed.wait()
            return False

    def enter(self, size: int) -> None:
        """Record that a frame of `size` bytes is in flight."""
        with self._changed:
            self._frames += 1
            self._bytes += size

    def leave(self, size: int) -> None:
        """Record that a frame of `size` bytes is finished."""
        with self._changed:
            self._frames -= 1
            self._bytes -= size
            self._changed.notify_all()

    def wake(self) -> None:
        """Let waiting threads check `stopped` again."""
        with self._changed:
            self._changed.notify_all()
