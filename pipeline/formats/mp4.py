"""The drawn pictures as H.264 in MP4."""

from __future__ import annotations

import math
from fractions import Fraction
from pathlib import Path
from typing import TYPE_CHECKING, ClassVar

import av
import cv2
import numpy as np
from numpy.typing import NDArray

from convnextpose.errors import SinkError
from pipeline.formats.base import PoseRecorder
from pipeline.formats.files import GrowingFile
from pipeline.types import PosedFrame, RunHeader

if TYPE_CHECKING:
    from _typeshed import ReadableBuffer

TIME_BASE = Fraction(1, 90_000)
"""Resolution of the video's time stamps, s: MPEG's own, which all common frame rates divide."""

PRESET = "ultrafast"
"""x264's preset: half the processor time of the next slower one, for files 1.5 times as large."""

CRF = 23
"""x264's constant quality, its default."""

MAX_SIDE = 8192
"""Longest side of the video, px: the limit of H.264's highest level. Larger pictures are scaled down."""

MAX_KEY_FRAME_DISTANCE = 60
"""Largest number of frames between key frames, if a second has more: a player must read this many to seek."""

CAMERA_RATE = 30
"""Assumed frame rate of a camera, frames a second: only the distance between key frames depends on it."""

MAX_GAP_S = 23_860
"""Longest time between two frames, s: MP4 counts a frame's duration in 31 bits of TIME_BASE; FFmpeg would change the times."""

MOVFLAGS = "hybrid_fragmented+frag_every_frame"
"""FFmpeg's flags: every frame is a fragment of its own, about 110 bytes each; closing adds one index of all of them."""

_SMPTE170M = 6
_LIMITED_RANGE = 1
"""FFmpeg's numbers for BT.601's matrix and for luma in 16..235."""


class Mp4Recorder(PoseRecorder):
    """Writes `poses.mp4`: the drawn pictures at their frames' times.

    The video begins at its first frame: its time stamps are time_s minus the first frame's. It has the size of the first
    picture, with odd sides made one px longer; pictures of another size are fitted into it with black borders.

    While it grows it is a fragmented MP4: a killed run or a full disk leaves a video that plays, but lacks the last frame,
    because a fragment is complete only when the next one begins. Closing makes it an ordinary MP4.
    """

    needs_picture: ClassVar[bool] = True

    def __init__(self, path: Path, header: RunHeader, *, overwrite: bool = False, threads: int = 1) -> None:
        """As for every recorder; `threads` encode: more finish sooner, with the same CPU time."""
        super().__init__(path, header, overwrite=overwrite)
        self._threads = threads
        self._time_s = -math.inf
        self._pts = -1
        self._packets = 0

    def _check(self, item: PosedFrame) -> None:
        super()._check(item)
        _picture(item)
        time_s, last_s = item.frame.time_s, self._time_s
        if not time_s > last_s:
            raise SinkError(f"expected time stamps that increase, received {time_s} s after {last_s} s for {self.path}")
        if self._pts >= 0 and time_s - last_s > MAX_GAP_S:
            raise SinkError(
                f"expected at most {MAX_GAP_S} s between frames, received {time_s} s after {last_s} s for {self.path}"
            )

    def _begin(self, item: PosedFrame) -> None:
        height, width = _picture(item).shape[:2]
        scale = min(1.0, MAX_SIDE / max(width, height))
        width, height = max(1, round(width * scale)), max(1, round(height * scale))
        self._size = (width + width % 2, height + height % 2)
        self._first_time_s = item.frame.time_s
        self._muxed = _Muxed()
        self._container = av.open(self._muxed, "w", format="mp4", options={"movflags": MOVFLAGS})
        # Pictures without a frame rate come once a second; a camera's rate is unknown until it has run for a while.
        assumed = 1 if item.frame.captured_ns is None else CAMERA_RATE
        rate = Fraction(self._header.frame_rate or assumed).limit_denominator(1001)
        options = {
            "preset": PRESET,
            "tune": "zerolatency",  # no frame is delayed
            "crf": str(CRF),
            "g": str(min(max(1, round(rate)), MAX_KEY_FRAME_DISTANCE)),
            "bf": "0",  # B-frames need times before the first frame, which a fragmented file cannot express
        }
        self._stream = self._container.add_stream("libx264", rate=rate, options=options)
        encoder = self._stream.codec_context
        encoder.width, encoder.height = self._size
        encoder.pix_fmt = "yuv420p"
        encoder.time_base = TIME_BASE
        encoder.thread_count = self._threads
        # As made by cvtColor. Without it, players would assume BT.709 for high definition.
        encoder.colorspace = _SMPTE170M
        encoder.color_range = _LIMITED_RANGE
        self._file = GrowingFile.make(self.path, overwrite=self._overwrite)

    def _add(self, item: PosedFrame) -> None:
        self._time_s = item.frame.time_s
        self._pts = max(round((self._time_s - self._first_time_s) / TIME_BASE), self._pts + 1)
        planes = np.asarray(cv2.cvtColor(_fit(_picture(item), *self._size), cv2.COLOR_BGR2YUV_I420), np.uint8)
        picture = _video_frame(planes, *self._size)
        picture.pts, picture.time_base = self._pts, TIME_BASE
        self._encode(picture)

    def _finish(self) -> None:
        try:
            try:
                if not self._failed:
                    self._encode(None)
            finally:
                self._container.close()  # writes its index to memory; after an error it is discarded
            if not self._failed:
                self._store()
                self.written = self._packets
        finally:
            self._file.close(keep=self.written > 0)

    def _encode(self, picture: av.VideoFrame | None) -> None:
        packets = self._stream.encode(picture)
        self._container.mux(packets)
        self._packets += len(packets)
        if self._store():
            self.written = self._packets - 1  # each packet completes the fragment of the one before it

    def _store(self) -> bool:
        """Store on the disk what FFmpeg has written; returns whether the file grew.

        Until everything is stored, the first box is named `free`: readers skip a truncated `free` box, but many refuse a file
        with a truncated `moof` at its end.
        """
        boxes, changes = self._muxed.take()
        if boxes:
            begin = self._file.size
            self._file.append(boxes[:4] + b"free" + boxes[8:])
            self._file.change(begin + 4, boxes[4:8])
        for offset, data in changes:
            self._file.change(offset, data)
        return bool(boxes)


class _Muxed:
    """FFmpeg's output, in memory. On a disk, an error in the middle of a box would make FFmpeg crash when it closes."""

    def __init__(self) -> None:
        self._position = 0
        self._taken = 0
        self._boxes = bytearray()
        self._changes: list[tuple[int, bytes]] = []

    def write(self, data: ReadableBuffer, /) -> int:
        """Write where the last `seek` or `write` ended."""
        data = bytes(data)
        taken = max(0, self._taken - self._position)  # bytes of it that replace bytes taken earlier
        known, new = data[:taken], data[taken:]
        if known:
            self._changes.append((self._position, known))
        if new:
            begin = self._position + len(known) - self._taken
            self._boxes[begin : begin + len(new)] = new
        self._position += len(data)
        return len(data)

    def seek(self, offset: int, whence: int = 0, /) -> int:
        """As for a file."""
        self._position = offset + (0, self._position, self._taken + len(self._boxes))[whence]
        return self._position

    def tell(self) -> int:
        """As for a file."""
        return self._position

    def take(self) -> tuple[bytes, list[tuple[int, bytes]]]:
        """What was written since the last call: new bytes at the end, and changes to earlier ones as (offset, bytes)."""
        taken = bytes(self._boxes), self._changes
        self._taken += len(self._boxes)
        self._boxes, self._changes = bytearray(), []
        return taken


def _picture(frame: PosedFrame) -> NDArray[np.uint8]:
    if frame.picture is None:
        raise SinkError("expected drawn pictures for the video, received none: draw the poses, or write no video")
    return frame.picture


def _video_frame(planes: NDArray[np.uint8], width: int, height: int) -> av.VideoFrame:
    """A frame from the planes [H * 3 / 2, W] that cvtColor makes of a picture: Y, then U and V of half its size.

    PyAV's own `from_ndarray` copies it twice and takes more than twice as long; its `from_numpy_buffer` mistakes a height that
    is no multiple of four for another one.
    """
    frame, samples, begin = av.VideoFrame(width, height, "yuv420p"), planes.ravel(), 0
    for plane in frame.planes:
        rows = np.frombuffer(memoryview(plane), np.uint8).reshape(plane.height, plane.line_size)[:, : plane.width]
        rows[:] = samples[begin : begin + rows.size].reshape(rows.shape)
        begin += rows.size
    return frame


def _fit(picture: NDArray[np.uint8], width: int, height: int) -> NDArray[np.uint8]:
    """A picture in the video's size: one missing row or column is repeated, other sizes are scaled and centred on black."""
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
