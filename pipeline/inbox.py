"""Inboxes between threads, a board with the newest frames, and the limit of frames in flight from a source."""

from __future__ import annotations

import threading
from collections import deque
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Generic, TypeVar

T = TypeVar("T")

MAX_FRAMES_IN_FLIGHT = 12
"""Frames of one recorded source that are on their way at most: enough to level out uneven stages."""

MAX_BYTES_IN_FLIGHT = 384 * 2**20
"""Bytes of pictures of one recorded source that are on their way at most, unless a single frame is larger."""


class Closed(Exception):  # noqa: N818  # a signal, like StopIteration, not an error
    """The inbox is closed and, for a receiver, empty."""


class Inbox(Generic[T]):
    """A first-in first-out queue between two threads. It never blocks the sender.

    Args:
        capacity: how many items wait at most; one more pushes the oldest out. None: any number, for items whose sender is
            bounded in another way.
    """

    def __init__(self, capacity: int | None = None) -> None:
        if capacity is not None and capacity < 1:
            raise ValueError(f"expected a capacity of at least 1, received {capacity}")
        self._capacity = capacity
        self._items: deque[T] = deque()
        self._changed = threading.Condition()
        self._closed = False

    def put(self, item: T) -> T | None:
        """Add an item; returns the item that it pushed out, if there is one.

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
            Closed: the inbox is closed and holds nothing more.
        """
        with self._changed:
            while not self._items:
                if self._closed:
                    raise Closed
                self._changed.wait()
            return self._items.popleft()

    def close(self) -> None:
        """No more items will come: receivers get what is left. Calling it again does nothing."""
        with self._changed:
            self._closed = True
            self._changed.notify_all()

    def abort(self) -> None:
        """Close, and throw away what is left."""
        with self._changed:
            self._items.clear()
            self._closed = True
            self._changed.notify_all()


@dataclass(frozen=True)
class Posting(Generic[T]):
    """An item on a board.

    Attributes:
        number: how many its sender had posted with it, from 1: what a reader skipped shows in it.
        item: what was posted.
    """

    number: int
    item: T


class Board(Generic[T]):
    """The newest item of each sender, for any number of readers at their own pace. Nobody waits for a reader."""

    def __init__(self) -> None:
        self._newest: dict[str, Posting[T]] = {}
        self._changed = threading.Condition()
        self._closed = False

    def post(self, sender: str, item: T) -> None:
        """Put up an item in the place of the sender's last one. On a closed board this does nothing."""
        with self._changed:
            if not self._closed:
                last = self._newest.get(sender)
                self._newest[sender] = Posting(last.number + 1 if last else 1, item)
                self._changed.notify_all()

    def read(self, seen: Mapping[str, int], timeout_s: float | None = None) -> dict[str, Posting[T]]:
        """The newest item of each sender that is not the one seen, waiting for one; empty if none came in time.

        Args:
            seen: the number that was read last of each sender.
            timeout_s: how long to wait at most, s; None for any time.

        Raises:
            Closed: the board is closed and holds nothing unseen.
        """
        with self._changed:
            self._changed.wait_for(lambda: self._closed or self._unseen(seen), timeout_s)
            unseen = self._unseen(seen)
            if self._closed and not unseen:
                raise Closed
            return unseen

    def close(self) -> None:
        """Nothing more will be posted: readers get what they have not seen. Calling it again does nothing."""
        with self._changed:
            self._closed = True
            self._changed.notify_all()

    def abort(self) -> None:
        """Close, and take everything down."""
        with self._changed:
            self._newest.clear()
            self._closed = True
            self._changed.notify_all()

    def _unseen(self, seen: Mapping[str, int]) -> dict[str, Posting[T]]:
        return {sender: posting for sender, posting in self._newest.items() if posting.number != seen.get(sender)}


class InFlight:
    """How many frames and bytes of one source are on their way. Its bounds hold before a frame is taken from the source.

    Args:
        max_frames, max_bytes: the bounds. One frame is always let through, however large it is.
    """

    def __init__(self, max_frames: int = MAX_FRAMES_IN_FLIGHT, max_bytes: int = MAX_BYTES_IN_FLIGHT) -> None:
        self._max_frames, self._max_bytes = max_frames, max_bytes
        self._frames = self._bytes = 0
        self._changed = threading.Condition()

    def wait_for_room(self, size: int, stopped: Callable[[], bool]) -> bool:
        """Wait until a frame of about `size` bytes has room; False if `stopped()` came true instead (`wake` looks again)."""
        with self._changed:
            while not stopped():
                if not self._frames or (self._frames < self._max_frames and self._bytes + size <= self._max_bytes):
                    return True
                self._changed.wait()
            return False

    def enter(self, size: int) -> None:
        """A frame of `size` bytes is on its way."""
        with self._changed:
            self._frames += 1
            self._bytes += size

    def leave(self, size: int) -> None:
        """A frame of `size` bytes has reached its end."""
        with self._changed:
            self._frames -= 1
            self._bytes -= size
            self._changed.notify_all()

    def wake(self) -> None:
        """Let waiting threads look at `stopped` again."""
        with self._changed:
            self._changed.notify_all()
