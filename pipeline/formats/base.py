"""The base class of recorders: when they touch their files, what they refuse, and which error they raise.

A recorder touches its file only when it gets the first frame. So a run that cannot start leaves no file, and leaves old results
unchanged. An existing file, or one that appears during the run, is replaced only with permission. The first frame removes the
old file. A file without a single complete frame is removed.
"""

from __future__ import annotations

import threading
from abc import ABC, abstractmethod
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any, ClassVar, Generic, Protocol, TypeVar

import av
import cv2
import numpy as np

from convnextpose.errors import SinkError
from convnextpose.files import check_free
from pipeline.types import PosedFrame, RunHeader

T = TypeVar("T")

MAX_TRACK_ID = 2**63 - 1
"""The largest id in files: programs read ids as 64-bit integers."""


@dataclass(frozen=True)
class WrittenFile:
    """A file that was written.

    Attributes:
        path: its path.
        frames: complete frames in it.
        size_bytes: its size.
    """

    path: Path
    frames: int
    size_bytes: int


class Recorder(Protocol):
    """Writes posed frames, in order, into one file, or into one file after another.

    Attributes:
        path: the file; for several files, their common name.
        begun: whether it has received its first frame.
    """

    path: Path
    begun: bool

    @property
    def needs_picture(self) -> bool:
        """Whether it wants the drawn picture."""
        ...

    @property
    def written(self) -> int:
        """Frames that are on the disk now, and stay there after any failure."""
        ...

    @property
    def files(self) -> list[WrittenFile]:
        """The files that contain them."""
        ...

    def write(self, posed: PosedFrame, /) -> None:
        """Take one frame.

        Raises:
            SinkError: it cannot be written.
            OutputExistsError: the file exists already and may not be replaced.
        """
        ...

    def close(self) -> None:
        """Finish the file; calling it again does nothing.

        Raises:
            SinkError: it cannot be finished.
            OutputExistsError: the file exists already and may not be replaced.
        """
        ...


class FileRecorder(ABC, Generic[T]):
    """The steps of every recorder: check, begin, add, finish; one thread at a time; all errors are SinkErrors.

    `T` is the type of its items: posed frames, or timelines. An item that a check refuses leaves the file unchanged, and the
    next item can be written. After any other error the file keeps its complete items, and no more are written.
    """

    needs_picture: ClassVar[bool] = False

    def __init__(self, path: Path, *, overwrite: bool = False) -> None:
        """Check whether the file may be written; it is not touched yet.

        Raises:
            OutputExistsError: it exists already and may not be replaced.
            SinkError: there is something else with this path, not a file.
        """
        self.path = path
        self.begun = False
        self.written = 0
        self._overwrite = overwrite
        self._lock = threading.Lock()
        self._failed = False
        self._closed = False
        with as_sink_error(path):
            check_free(path, overwrite=overwrite)

    @property
    def files(self) -> list[WrittenFile]:
        """The file, if it contains anything and exists."""
        if not (self.written and self.path.is_file()):
            return []
        return [WrittenFile(self.path, self.written, self.path.stat().st_size)]

    def write(self, item: T, /) -> None:
        """Write one item.

        Raises:
            SinkError: it cannot be written.
            OutputExistsError: the file exists already and may not be replaced.
        """
        with self._lock, as_sink_error(self.path):
            if self._closed or self._failed:
                state = "is closed" if self._closed else "could not be written before"
                raise SinkError(f"expected no more frames for {self.path}, which {state}")
            self._check(item)
            self._failed = True  # unless all of the following succeeds
            if not self.begun:
                self._begin(item)
                self.begun = True
            self._add(item)
            self._failed = False

    def close(self) -> None:
        """Finish the file; calling it again does nothing.

        Raises:
            SinkError: it cannot be finished.
            OutputExistsError: the file exists already and may not be replaced.
        """
        with self._lock, as_sink_error(self.path):
            if not self._closed:
                self._closed = True
                if self.begun:
                    self._finish()

    def _check(self, item: T) -> None:
        """Raise SinkError for an item that the file cannot hold, before anything is touched."""

    @abstractmethod
    def _begin(self, item: T) -> None:
        """Make the file for its first item. This comes last, so that nothing has to be undone."""

    @abstractmethod
    def _add(self, item: T) -> None:
        """Write one item."""

    @abstractmethod
    def _finish(self) -> None:
        """Finish the file that was begun, or if `_failed` only close it."""


class PoseRecorder(FileRecorder[PosedFrame]):
    """A recorder of posed frames.

    All formats refuse the same poses: those that one of them cannot represent. So the files of a run agree.
    """

    def __init__(self, path: Path, header: RunHeader, *, overwrite: bool = False) -> None:
        """As for every recorder."""
        super().__init__(path, overwrite=overwrite)
        self._header = header

    def write(self, item: PosedFrame, /) -> None:
        """Take one frame; the first one completes the header.

        Raises:
            SinkError: it cannot be written.
            OutputExistsError: the file exists already and may not be replaced.
        """
        if not self.begun:
            self._header = self._header.completed(item)
        super().write(item)

    def _check(self, item: PosedFrame) -> None:
        count = len(self._header.joint_set)
        for pose in item.poses:
            if len(pose.scores) != count:
                raise SinkError(f"expected poses of {count} joints for {self.path}, received one of {len(pose.scores)}")
            if not -MAX_TRACK_ID <= pose.track_id <= MAX_TRACK_ID:
                raise SinkError(f"expected track ids below 2^63 for {self.path}, received {pose.track_id}")
            numbers = np.concatenate([pose.joints_mm.ravel(), pose.joints_px.ravel(), pose.scores, [pose.root_depth_mm]])
            if not np.abs(numbers).max() <= np.finfo(np.float32).max:
                raise SinkError(f"expected poses of finite 32-bit numbers for {self.path}, received NaN, infinity or larger")
        if not np.isfinite(item.frame.time_s):
            raise SinkError(f"expected a finite time stamp for {self.path}, received {item.frame.time_s}")


def written_files(recorders: Iterable[Recorder | FileRecorder[Any]]) -> list[WrittenFile]:
    """The files that recorders have written and that exist."""
    return [file for recorder in recorders for file in recorder.files]


@contextmanager
def as_sink_error(path: Path) -> Iterator[None]:
    """Convert any error that a library may raise while writing a file to a SinkError of one line."""
    try:
        yield
    except SinkError:
        raise
    except (OSError, ValueError, ArithmeticError, MemoryError, av.FFmpegError, cv2.error) as error:
        reason = getattr(error, "strerror", None) or " ".join(str(error).split()) or type(error).__name__
        raise SinkError(f"{path} cannot be written: {reason}") from error
