"""Where results go: an H.264 video, lines of JSON, and NumPy arrays.

A sink touches its file with the first frame that it is given, not before: a run that cannot start leaves no file, and leaves
old results as they were. Nothing that is there already is replaced without being told to. From then on the old file is gone:
the video and the lines grow in place and can be read when the run is killed, the arrays appear whole at the end.
"""

from __future__ import annotations

import io
import json
import math
import os
import threading
from abc import abstractmethod
from collections.abc import Iterator
from contextlib import contextmanager
from fractions import Fraction
from pathlib import Path
from types import TracebackType
from typing import TYPE_CHECKING, Any, Protocol

import av
import cv2
import numpy as np
from numpy.typing import NDArray

from convnextpose.crop import Box
from convnextpose.errors import OutputExistsError, SinkError
from pipeline.records import frame_record, header_record, to_line
from pipeline.types import PosedFrame, RunHeader

if TYPE_CHECKING:
    from _typeshed import ReadableBuffer

RESULT_NAMES = ("poses.mp4", "poses.ndjson", "poses.npz")
"""What a run writes into its folder."""

TIME_BASE = Fraction(1, 90_000)
"""Resolution of the video's time stamps, s: MPEG's own, which every usual frame rate divides."""

PRESET = "ultrafast"
"""x264's: half the processor time of the next, for files half as large again."""

CRF = 23
"""x264's constant quality, its default."""

MAX_SIDE = 8192
"""Longest side of the video, px: larger pictures are made smaller in it, as H.264's highest level ends there."""

MAX_KEY_FRAME_DISTANCE = 60
"""Frames between key frames where a second has more: how much of the video a killed run may lose."""

_SMPTE170M = 6
_LIMITED_RANGE = 1
"""BT.601's matrix and luma in 16..235, by FFmpeg's numbers for them."""


class Sink(Protocol):
    """Something that takes posed frames, in order; a context manager.

    Attributes:
        path: the file that it writes.
        begun: whether it has begun to write it.
    """

    path: Path
    begun: bool

    def write(self, frame: PosedFrame) -> None:
        """Take one frame.

        Raises:
            SinkError: it cannot be written.
            OutputExistsError: the file is there already and may not be replaced.
        """
        ...

    def close(self) -> None:
        """Finish the file; calling it again does nothing.

        Raises:
            SinkError: it cannot be finished.
        """
        ...

    def __enter__(self) -> Sink:
        """The sink itself."""
        ...

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None) -> None:
        """Close it."""
        ...


def open_sinks(out: Path, header: RunHeader, *, overwrite: bool = False) -> list[Sink]:
    """The sinks of a folder, which is made: `poses.mp4`, `poses.ndjson` and `poses.npz`. Other files in it stay.

    Raises:
        OutputExistsError: one of the files is there already and may not be replaced; nothing was touched.
        SinkError: the folder cannot be made or written to.
    """
    video, lines, arrays = (out / name for name in RESULT_NAMES)
    sinks: list[Sink] = [
        VideoSink(video, header, overwrite=overwrite),
        NdjsonSink(lines, header, overwrite=overwrite),
        NpzSink(arrays, header, overwrite=overwrite),
    ]
    try:
        out.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise SinkError(f"expected a folder for the results, but {out} cannot be one: {error.strerror}") from error
    if not os.access(out, os.W_OK | os.X_OK):
        raise SinkError(f"expected a folder for the results, but nothing may be written to {out}")
    return sinks


class _FileSink(Sink):
    """What the sinks share: when a file is touched, one thread at a time, and one kind of error."""

    def __init__(self, path: Path, header: RunHeader, *, overwrite: bool = False) -> None:
        """Look whether the file may be written; it is not touched yet.

        Raises:
            OutputExistsError: it is there already and may not be replaced.
        """
        self.path = path
        self._header = header
        self._overwrite = overwrite
        self._lock = threading.Lock()
        self.begun = False
        self._closed = False
        self._make_way()

    @abstractmethod
    def _begin(self, frame: PosedFrame) -> None:
        """Make the file, for its first frame."""

    @abstractmethod
    def _add(self, frame: PosedFrame) -> None:
        """Write one frame."""

    @abstractmethod
    def _finish(self) -> None:
        """Finish the file that was begun."""

    def _make_way(self, *, begin: bool = False) -> None:
        if self._overwrite:
            if begin:
                self.path.unlink(missing_ok=True)
        elif os.path.lexists(self.path):
            raise OutputExistsError(f"{self.path} is there already: choose another folder, or allow it with --overwrite")

    def _open(self) -> _WholeWrites:
        """A new file. An old one is unlinked, not emptied: whoever is reading it, perhaps this very run, keeps it."""
        self._make_way(begin=True)
        return _WholeWrites(self.path, "xb")

    def write(self, frame: PosedFrame) -> None:
        with self._lock, _as_sink_error(self.path):
            if self._closed:
                raise SinkError(f"expected no more frames for {self.path}, which is closed")
            if not self.begun:
                self._begin(frame)
                self.begun = True
            self._add(frame)

    def close(self) -> None:
        with self._lock, _as_sink_error(self.path):
            if self.begun and not self._closed:
                self._closed = True
                self._finish()
            self._closed = True

    def __enter__(self) -> Sink:
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None) -> None:
        self.close()


class VideoSink(_FileSink):
    """The drawn pictures as H.264 in MP4, at their frames' times.

    The video begins at its first frame: its time stamps are time_s less the first frame's. It has the size of the first
    picture, an odd side one px longer; pictures of another size are fitted into it with black borders. While it grows it is
    a fragmented MP4, which plays up to the last whole second when the run is killed; closing makes it an ordinary one.
    """

    def __init__(self, path: Path, header: RunHeader, *, overwrite: bool = False, threads: int = 1) -> None:
        """As for every sink, and how many threads encode: more are sooner done, for the same processor time."""
        super().__init__(path, header, overwrite=overwrite)
        self._threads = threads

    def _begin(self, frame: PosedFrame) -> None:
        height, width = _picture(frame).shape[:2]
        scale = min(1.0, MAX_SIDE / max(width, height))
        width, height = max(1, round(width * scale)), max(1, round(height * scale))
        self._size = (width + width % 2, height + height % 2)
        self._first_time_s = frame.frame.time_s
        self._time_s = -math.inf
        self._pts = -1
        self._file = self._open()
        self._container = av.open(self._file, "w", format="mp4", options={"movflags": "hybrid_fragmented"})
        # Pictures without a frame rate come at one a second.
        rate = Fraction(self._header.frame_rate or 1).limit_denominator(1001)
        options = {
            "preset": PRESET,
            "crf": str(CRF),
            "g": str(min(max(1, round(rate)), MAX_KEY_FRAME_DISTANCE)),
            "bf": "0",  # a fragmented file cannot say that it begins before the first frame, as it would have to
        }
        self._stream = self._container.add_stream("libx264", rate=rate, options=options)
        encoder = self._stream.codec_context
        encoder.width, encoder.height = self._size
        encoder.pix_fmt = "yuv420p"
        encoder.time_base = TIME_BASE
        encoder.thread_count = self._threads
        # What cvtColor makes: players take high definition for BT.709 unless they are told.
        encoder.colorspace = _SMPTE170M
        encoder.color_range = _LIMITED_RANGE

    def _add(self, frame: PosedFrame) -> None:
        time_s = frame.frame.time_s
        if not time_s > self._time_s:
            raise SinkError(f"expected time stamps that grow, received {time_s} s after {self._time_s} s for {self.path}")
        self._time_s = time_s
        self._pts = max(round((time_s - self._first_time_s) / TIME_BASE), self._pts + 1)
        planes = np.asarray(cv2.cvtColor(_fit(_picture(frame), *self._size), cv2.COLOR_BGR2YUV_I420), np.uint8)
        picture = av.VideoFrame.from_ndarray(planes, format="yuv420p")
        picture.pts, picture.time_base = self._pts, TIME_BASE
        self._container.mux(self._stream.encode(picture))

    def _finish(self) -> None:
        try:
            self._container.mux(self._stream.encode(None))
        finally:
            try:
                self._container.close()
            finally:
                self._file.close()


class NdjsonSink(_FileSink):
    """Poses as lines of JSON: a header, then one line a frame. Each is one write, so a killed run leaves whole lines."""

    def _begin(self, frame: PosedFrame) -> None:
        line = to_line(header_record(self._header))
        self._file = self._open()
        self._file.write(line)

    def _add(self, frame: PosedFrame) -> None:
        self._file.write(to_line(frame_record(frame, self._header)))

    def _finish(self) -> None:
        self._file.close()


class NpzSink(_FileSink):
    """Poses as NumPy arrays, kept in memory (under a kilobyte a pose) and written whole when closed.

    For F frames and P poses of J joints: `frame_index` [F], `time_s` [F] s, `camera` [F, 4] (fx, fy, cx, cy) px; `pose_frame`
    [P] (the row of its frame), `track_id` [P], `box` [P, 4] (x, y, width, height) px, `joints_px` [P, J, 2], `joints_mm`
    [P, J, 3], `scores` [P, J], `root_depth_mm` [P], `root_depth_source` [P]; `header`, the run's header as JSON text; and
    `random_weights`, whether the poses mean nothing.
    """

    def _begin(self, frame: PosedFrame) -> None:
        self._make_way(begin=True)  # a killed run leaves no old poses beside its own video
        self._frames: list[tuple[int, float]] = []
        self._cameras: list[tuple[float, float, float, float]] = []
        self._pose_frames: list[int] = []
        self._poses: list[tuple[int, Box, float, str]] = []
        self._joints: list[NDArray[np.float32]] = []

    def _add(self, frame: PosedFrame) -> None:
        for pose in frame.poses:
            self._pose_frames.append(len(self._frames))
            self._poses.append((pose.track_id, pose.box, pose.root_depth_mm, pose.root_depth_source.value))
            self._joints.append(np.column_stack([pose.joints_px, pose.joints_mm, pose.scores]).astype(np.float32))
        camera = frame.camera
        self._cameras.append((camera.fx, camera.fy, camera.cx, camera.cy))
        self._frames.append((frame.frame.index, frame.frame.time_s))

    def _finish(self) -> None:
        joints = np.array(self._joints, np.float32).reshape(len(self._poses), len(self._header.joint_set), 6)
        arrays: dict[str, Any] = {
            "frame_index": np.array([index for index, _ in self._frames], np.int64),
            "time_s": np.array([time_s for _, time_s in self._frames], np.float64),
            "camera": np.array(self._cameras, np.float64),
            "pose_frame": np.array(self._pose_frames, np.int64),
            "track_id": np.array([track for track, *_ in self._poses], np.int64),
            "box": np.array([(b.x, b.y, b.width, b.height) for _, b, *_ in self._poses], np.float64).reshape(-1, 4),
            "joints_px": joints[..., :2],
            "joints_mm": joints[..., 2:5],
            "scores": joints[..., 5],
            "root_depth_mm": np.array([depth for *_, depth, _ in self._poses], np.float64),
            "root_depth_source": np.array([source for *_, source in self._poses], np.str_),
            "header": np.array(json.dumps(header_record(self._header))),
            "random_weights": np.array(self._header.model.random),
        }
        part = self.path.with_name(f".{self.path.name}.part")
        try:
            with part.open("wb") as file:
                np.savez(file, **arrays)
            self._make_way()
            part.replace(self.path)
        finally:
            part.unlink(missing_ok=True)


class _WholeWrites(io.FileIO):
    """A file whose writes reach the system at once and whole, or raise."""

    def write(self, data: ReadableBuffer, /) -> int:
        left = memoryview(data)
        size = len(left)
        while left:
            left = left[super().write(left) :]
        return size


@contextmanager
def _as_sink_error(path: Path) -> Iterator[None]:
    try:
        yield
    except SinkError:
        raise
    except (OSError, ValueError, av.FFmpegError, cv2.error) as error:
        reason = getattr(error, "strerror", None) or str(error)
        raise SinkError(f"{path} cannot be written: {reason}") from error


def _picture(frame: PosedFrame) -> NDArray[np.uint8]:
    if frame.picture is None:
        raise SinkError("expected drawn pictures for the video, received none: draw the poses, or write no video")
    return frame.picture


def _fit(picture: NDArray[np.uint8], width: int, height: int) -> NDArray[np.uint8]:
    """A picture in the video's size: a missing last row or column repeated, anything else scaled and centred on black."""
    h, w = picture.shape[:2]
    if (w, h) == (width, height):
        return picture
    if (w + w % 2, h + h % 2) == (width, height):
        return np.asarray(cv2.copyMakeBorder(picture, 0, height - h, 0, width - w, cv2.BORDER_REPLICATE), np.uint8)
    scale = min(width / w, height / h)
    w, h = max(1, round(w * scale)), max(1, round(h * scale))
    x, y = (width - w) // 2, (height - h) // 2
    fitted = np.zeros((height, width, 3), np.uint8)
    fitted[y : y + h, x : x + w] = cv2.resize(picture, (w, h), interpolation=cv2.INTER_AREA if scale < 1 else cv2.INTER_LINEAR)
    return fitted
