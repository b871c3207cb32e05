"""The base classes of sources."""

from __future__ import annotations

import threading
from abc import abstractmethod
from collections.abc import Generator, Iterator
from dataclasses import dataclass
from enum import Enum
from types import TracebackType
from typing import Protocol

from pipeline.sources.decoding import Decode
from pipeline.sources.timeouts import DEFAULT_TIMEOUTS, Timeouts
from pipeline.types import Frame, SourceInfo, State, UnreadableFrame


class OnDamage(str, Enum):
    """The behaviour of a video at damaged or missing data."""

    STOP = "stop"
    """It ends with a SourceError, after the frames before the damage."""

    SKIP = "skip"
    """It continues with the next complete picture; each lost frame is an UnreadableFrame."""


@dataclass(frozen=True)
class OpenOptions:
    """The options for opening a source.

    Attributes:
        stream: which of a file's video streams, from 0, or None for the one that players show.
        on_damage: whether a video ends at damage or continues after it.
        live: whether a file plays as a camera.
        loop: whether such a file plays in a loop.
        timeouts: the timeouts of a live source.
        options: options of a camera, as in its address: pairs of a name and a value.
        decode: what decodes video: the CPU or a GPU.
    """

    stream: int | None = None
    on_damage: OnDamage = OnDamage.STOP
    live: bool = False
    loop: bool = False
    timeouts: Timeouts = DEFAULT_TIMEOUTS
    options: tuple[tuple[str, str], ...] = ()
    decode: Decode = Decode.CPU


class Source(Protocol):
    """Gives each frame once, in order; a context manager. Iterating again continues where it stopped.

    It may be iterated in a thread other than the one that opened it, and closed from any thread.

    Attributes:
        info: its description.
    """

    info: SourceInfo

    def __iter__(self) -> Iterator[Frame | UnreadableFrame | State]:
        """The frames, numbered without gaps; an UnreadableFrame takes the place of one that cannot be read.

        A live source also gives its states, each when it begins. It never raises when it is lost: it reconnects.

        Raises:
            SourceError: the source broke; the frames before that have been given.
        """
        ...

    def close(self) -> None:
        """Release its resources; the frames end, also for a thread that waits for one. Calling it again does nothing."""
        ...

    def __enter__(self) -> Source:
        """The source itself."""
        ...

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None) -> None:
        """Close it."""
        ...


class FileSource(Source):
    """The base class for files: frames from a generator, which one thread at a time runs, and a `close` that waits for it.

    A subclass calls `super().__init__()` last.
    """

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._closing = threading.Event()
        self._frames = self._read()

    @abstractmethod
    def _read(self) -> Generator[Frame | UnreadableFrame, None, None]:
        """The frames, one after another."""

    def __iter__(self) -> Iterator[Frame | UnreadableFrame]:
        """The source itself."""
        return self

    def __next__(self) -> Frame | UnreadableFrame:
        """The next frame."""
        with self._lock:
            return next(self._frames)

    def close(self) -> None:
        """End the frames. A read in progress ends at its next packet or picture."""
        self._closing.set()
        with self._lock:
            self._frames.close()

    def __enter__(self) -> Source:
        """The source itself."""
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None) -> None:
        """Close it."""
        self.close()
