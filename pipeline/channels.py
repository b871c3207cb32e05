"""Bounded channels between the stages' threads."""

from __future__ import annotations

import threading
from collections import deque
from enum import Enum
from typing import Generic, TypeVar

T = TypeVar("T")


class DropPolicy(Enum):
    """What a full channel does with the next frame."""

    BLOCK = "block"
    """The sender waits: nothing is ever dropped. For files."""
    LATEST = "latest"
    """The channel gives up its oldest frame, so that what comes out is recent. For live sources."""


class Closed(Exception):  # noqa: N818  # a signal, like StopIteration, not an error
    """The channel is closed and, for a receiver, empty."""


class Channel(Generic[T]):
    """A first-in first-out queue of bounded length that can be closed from either end.

    Args:
        capacity: how many items it holds, at least 1.
        policy: what `put` does when it is full.
    """

    def __init__(self, capacity: int, policy: DropPolicy = DropPolicy.BLOCK) -> None:
        if capacity < 1:
            raise ValueError(f"expected a capacity of at least 1, received {capacity}")
        self._capacity = capacity
        self._policy = policy
        self._items: deque[T] = deque()
        self._changed = threading.Condition()
        self._closed = False

    def put(self, item: T) -> T | None:
        """Add an item; returns the item that had to go for it, if one had.

        Raises:
            Closed: the channel is closed.
        """
        with self._changed:
            dropped = None
            if self._policy is DropPolicy.LATEST and len(self._items) >= self._capacity and not self._closed:
                dropped = self._items.popleft()
            while len(self._items) >= self._capacity and not self._closed:
                self._changed.wait()
            if self._closed:
                raise Closed
            self._items.append(item)
            self._changed.notify_all()
            return dropped

    def get(self) -> T:
        """Take the oldest item, waiting for one.

        Raises:
            Closed: the channel is closed and holds nothing more.
        """
        with self._changed:
            while not self._items:
                if self._closed:
                    raise Closed
                self._changed.wait()
            item = self._items.popleft()
            self._changed.notify_all()
            return item

    def close(self) -> None:
        """No more items will come: senders stop, receivers get what is left. Calling it again does nothing."""
        with self._changed:
            self._closed = True
            self._changed.notify_all()

    def abort(self) -> None:
        """Close, and throw away what is left."""
        with self._changed:
            self._items.clear()
            self._closed = True
            self._changed.notify_all()
