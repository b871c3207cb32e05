"""Recordings of live sources in segments: a folder for each period of time, with complete files as in the results of a run."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from datetime import datetime, timezone
from pathlib import Path

from convnextpose.errors import SinkError
from pipeline.formats.base import PoseRecorder, WrittenFile
from pipeline.formats.files import make_folder
from pipeline.types import PosedFrame, RunHeader


@dataclass(frozen=True)
class Segments:
    """How a recording is divided.

    Segments begin at multiples of their length since 1970 in UTC, except for the first, which begins with the run. Folders are
    named after their beginning, so the folders of several cameras and formats have the same names without any coordination.

    Attributes:
        length_s: length of a segment, s.
        begin_ns: when the run begins, ns since 1970.
    """

    length_s: float
    begin_ns: int

    def __post_init__(self) -> None:
        """Check the length: folders are named to the second."""
        if not self.length_s >= 1:
            raise ValueError(f"expected segments of at least 1 s, received {self.length_s:g} s")

    def number(self, unix_ns: int) -> int:
        """The number of the segment that contains a moment."""
        return max(unix_ns, self.begin_ns) // round(self.length_s * 1e9)

    def folder(self, number: int) -> str:
        """The name of a segment's folder: its beginning in UTC, valid in every file system; it sorts by time."""
        begin_ns = max(number * round(self.length_s * 1e9), self.begin_ns)
        return datetime.fromtimestamp(begin_ns // 10**9, timezone.utc).strftime("%Y-%m-%dT%H-%M-%SZ")


class SegmentedRecorder:
    """Writes a file of one format into each segment's folder; see `pipeline.formats.base.Recorder`.

    After an error, as on a full disk, recording is tried again with the next segment.

    Args:
        path: the files' name, and the folder in which the segments' folders are made.
        recorder: makes the recorder of a segment.
        header: the run's header; each segment completes it from its own first frame.
        segments: how the recording is divided.
        overwrite: whether existing files may be replaced.
        needs_picture: whether the recorders want the drawn picture.
    """

    def __init__(
        self,
        path: Path,
        recorder: Callable[..., PoseRecorder],
        header: RunHeader,
        segments: Segments,
        *,
        overwrite: bool = False,
        needs_picture: bool = False,
    ) -> None:
        self.path = path
        self.begun = False
        self.needs_picture = needs_picture
        self._recorder = recorder
        self._header = header
        self._segments = segments
        self._overwrite = overwrite
        self._number = segments.number(segments.begin_ns)
        self._current: PoseRecorder | None = None
        self._files: list[WrittenFile] = []

    @property
    def written(self) -> int:
        """Frames that the files contain now."""
        return sum(file.frames for file in self._files) + (self._current.written if self._current else 0)

    @property
    def files(self) -> list[WrittenFile]:
        """The segments' files."""
        return self._files + (self._current.files if self._current else [])

    def write(self, posed: PosedFrame, /) -> None:
        """Take one frame; the first frame of a segment ends the previous segment.

        Raises:
            SinkError: it cannot be written.
        """
        taken_ns = posed.frame.captured_ns
        if taken_ns is None:
            raise SinkError("expected frames of a live source for segments, received one without the time when it was taken")
        number = max(self._number, self._segments.number(taken_ns))
        if number > self._number:
            self.close()
            self._number = number
        if self._current is None:
            folder = self.path.parent / self._segments.folder(number)
            make_folder(folder, "a segment")
            self._current = self._recorder(folder / self.path.name, self._header, overwrite=self._overwrite)
        self.begun = True
        self._current.write(posed)

    def close(self) -> None:
        """Finish the segment.

        Raises:
            SinkError: it cannot be finished.
        """
        current, self._current = self._current, None
        if current is not None:
            try:
                current.close()
            finally:
                self._files += current.files
