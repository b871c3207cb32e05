"""Where frames come from: a video file, a picture, or a folder of pictures.

Pictures arrive upright: a phone video's display matrix and a photograph's EXIF orientation are applied. Pixels that are not
square stay as they are stored. What cannot be read is refused with one sentence, when it is opened where that can be known;
a stream that breaks half way gives every frame before the break and then raises, saying at which frame it broke.
"""

from __future__ import annotations

import re
import struct
import threading
from abc import abstractmethod
from collections import deque
from collections.abc import Generator, Iterator
from dataclasses import dataclass
from pathlib import Path
from types import TracebackType
from typing import Any, Protocol

import av
import cv2
import numpy as np
from av.container import InputContainer
from av.sidedata.sidedata import Type as SideDataType
from av.stream import Disposition
from av.video.frame import VideoFrame
from av.video.stream import VideoStream
from numpy.typing import NDArray

from convnextpose.errors import SourceError
from pipeline.truncation import FilePart, is_cut_short, whole_length
from pipeline.types import Frame

PICTURE_SUFFIXES = (
    ".avif", ".bmp", ".dib", ".jp2", ".jpe", ".jpeg", ".jpg", ".pbm", ".pgm", ".png", ".pnm", ".ppm", ".tif", ".tiff", ".webp",
)  # fmt: skip
"""Files that are read as one picture (of an animated one, the first). Everything else, GIF included, is read as a video."""

_TEXT_CODECS = frozenset({"ansi", "bintext", "idf", "xbin"})
"""FFmpeg draws text files as videos of a terminal: nobody means that."""

_BEGIN_ANYWHERE = frozenset({"mpegts", "mpeg", "h264", "hevc"})
"""Formats of recordings that may begin between key frames: what comes before their first whole picture is no break."""

_INVALID_DATA = av.error.tag_to_code(b"INDA")
_DAMAGED = "its data is damaged"
_CUT_SHORT = "the file is cut short, its end is missing"

_ASSUMED_FRAME_RATE = 25.0
"""Spacing of frames without time stamps in a stream that doesn't state its frame rate."""


class Source(Protocol):
    """Something that gives frames, in order and once; a context manager. Iterating again continues.

    May be iterated in another thread than the one that opened it, and closed from any.

    Attributes:
        name: the file's or folder's name.
        width, height: size of its first picture, upright, px.
        frame_rate: nominal frames a second, or None where it has none (pictures).
        frame_count: frames that it says it has, or None where it doesn't say. A video's container may count more than it gives.
    """

    name: str
    width: int
    height: int
    frame_rate: float | None
    frame_count: int | None

    def __iter__(self) -> Iterator[Frame]:
        """The frames.

        Raises:
            SourceError: the source broke; the frames before it came.
        """
        ...

    def close(self) -> None:
        """Give back the file; the frames end. Calling it again does nothing."""
        ...

    def __enter__(self) -> Source:
        """The source itself."""
        ...

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None) -> None:
        """Close it."""
        ...


def open_source(path: str | Path) -> Source:
    """Open a video file, a picture or a folder of pictures.

    A folder gives its pictures in natural order (`img2` before `img10`); files of other kinds, hidden files and folders inside
    are left out. Pictures have no time of their own: time_s is their index.

    Raises:
        SourceError: it isn't there, or there is nothing in it that can be read.
    """
    path = Path(path)
    name = path.name or path.resolve().name
    try:
        if path.is_dir():
            pictures = sorted((file for file in path.iterdir() if _is_picture(file)), key=_natural_key)
            if not pictures:
                raise SourceError(f"expected pictures in the folder {path}, found none of {' '.join(PICTURE_SUFFIXES)}")
            return PictureSource(name, tuple(pictures))
        if not path.exists():
            raise SourceError(f"expected a video, a picture or a folder of pictures, but there is no {path}")
        if not path.is_file():
            raise SourceError(f"expected a video, a picture or a folder of pictures, but {path} is a device or a pipe")
        with path.open("rb") as file:
            if not file.read(1):
                raise SourceError(f"expected a video or a picture, but {path} is empty")
    except OSError as error:
        if isinstance(error, SourceError):
            raise
        raise SourceError(f"{path} cannot be read: {error.strerror}") from error
    if _is_picture(path):
        return PictureSource(name, (path,))
    return VideoSource(path)


class _Reader(Source):
    """What the sources share: frames from a generator that one thread at a time runs, and a close that waits for it."""

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._frames = self._read()

    @abstractmethod
    def _read(self) -> Generator[Frame, None, None]:
        """The frames, one after another."""

    def __iter__(self) -> Iterator[Frame]:
        return self

    def __next__(self) -> Frame:
        with self._lock:
            return next(self._frames)

    def close(self) -> None:
        with self._lock:
            self._frames.close()

    def __enter__(self) -> Source:
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None) -> None:
        self.close()


class PictureSource(_Reader):
    """Pictures in files, one frame each; they may differ in size. They have no time of their own: time_s is the index."""

    def __init__(self, name: str, paths: tuple[Path, ...]) -> None:
        """Read the first picture.

        Raises:
            SourceError: it cannot be read.
        """
        self.name = name
        self._paths = paths
        self._first = _read_picture(paths[0])
        self.height, self.width = self._first.shape[:2]
        self.frame_rate = None
        self.frame_count = len(paths)
        super().__init__()

    def _read(self) -> Generator[Frame, None, None]:
        for index, path in enumerate(self._paths):
            try:
                image = _read_picture(path) if index else self._first
            except SourceError as error:
                raise SourceError(f"{self.name} broke at frame {index} of {self.frame_count}: {error}") from error
            yield Frame(image, self.name, index, float(index))


class VideoSource(_Reader):
    """A video file's first video stream.

    time_s is the stream's own time since its first frame, so variable frame rates stay what they are. A frame without a time
    stamp, or with one that does not grow, comes one nominal frame after the one before it.
    """

    def __init__(self, path: Path) -> None:
        """Open the file and decode its first frame.

        Raises:
            SourceError: it is not a video, or no frame of it can be decoded.
        """
        self.name = path.name
        self._path = path
        self._container = _open_container(path)
        try:
            self._stream = _video_stream(self._container, path)
            self._decoded = self._decode()
            first = next(self._decoded, None)
            if first is None:
                raise SourceError(f"expected a video, but no frame of {path} can be decoded")
            self._orientation = _Orientation.of(first)
            self._first = self._image(first, 0)
        except BaseException:
            self._container.close()
            raise
        self._origin = first.pts
        self.height, self.width = self._first.shape[:2]
        rate = self._stream.average_rate or self._stream.guessed_rate
        self.frame_rate = float(rate) if rate else None
        self.frame_count = self._stream.frames or None
        super().__init__()

    def close(self) -> None:
        """Give back the file; the frames end. Calling it again does nothing."""
        super().close()
        with self._lock:
            self._container.close()

    def _read(self) -> Generator[Frame, None, None]:
        yield Frame(self._first, self.name, 0, 0.0)
        step = 1 / (self.frame_rate or _ASSUMED_FRAME_RATE)
        time_s = 0.0
        for index, picture in enumerate(self._decoded, 1):
            stamp_s = self._stamp_s(picture)
            time_s = stamp_s if stamp_s is not None and stamp_s > time_s else time_s + step
            yield Frame(self._image(picture, index), self.name, index, time_s)

    def _decode(self) -> Generator[VideoFrame, None, None]:
        """The stream's pictures; SourceError where it breaks."""
        packets = self._packets()
        count = 0
        seen = 0
        error: av.FFmpegError | None = None
        while error is None:
            try:
                packet = next(packets, None)
                if packet is None:
                    break
                if packet.dts is not None:
                    seen = packet.dts + 1
                pictures = packet.decode()
            except av.FFmpegError as failure:
                if count == 0 and self._container.format.name in _BEGIN_ANYWHERE and isinstance(failure, av.InvalidDataError):
                    continue
                error = failure
                pictures = self._held_back()
            for picture in pictures:
                if picture.is_corrupt:  # a decoder conceals damage by guessing: guessed pictures are no data
                    raise self._broken(count, _DAMAGED)
                yield picture
                count += 1
        if error is not None:
            raise self._broken(count, _reason(error)) from error
        # In AVI, which is searched for the next whole picture behind damage, pictures go missing without a word. Its time
        # stamps number what is there, empty chunks that repeat the picture before them included.
        if self._container.format.name == "avi" and seen < self._stream.frames:
            raise self._broken(count, _DAMAGED)
        if is_cut_short(self._path) and count < (self._stream.frames or count + 1):
            raise self._broken(count, _CUT_SHORT)

    def _packets(self) -> Generator[Any, None, None]:
        """The stream's packets, the last one empty; InvalidDataError in place of one that came incomplete.

        In transport streams the mark may stand on the packet before. Where a key frame follows, it is the seam of streams that
        were put together, and no damage. MPEG program streams mark whole pictures beside a broken one: there the decoder tells.
        """
        trusted = self._container.format.name != "mpeg"
        ahead: deque[Any] = deque()

        def torn() -> bool:
            first, *following = ahead
            return trusted and first.is_corrupt and not any(packet.is_keyframe for packet in following)

        error: av.FFmpegError | None = None
        try:
            for packet in self._container.demux(self._stream):
                ahead.append(packet)
                if len(ahead) < 3:
                    continue
                if torn():
                    break
                yield ahead.popleft()
        except av.FFmpegError as failure:
            error = failure
        while ahead and not torn():
            yield ahead.popleft()
        if ahead:
            raise av.InvalidDataError(_INVALID_DATA, _DAMAGED)
        if error is not None:
            raise error

    def _held_back(self) -> list[VideoFrame]:
        """The pictures before a break that the decoder still holds, waiting to put them in order."""
        try:
            return self._stream.codec_context.decode(None)
        except av.FFmpegError:
            return []

    def _broken(self, count: int, reason: str) -> SourceError:
        if is_cut_short(self._path):
            reason = _CUT_SHORT
        promised = f" of {self._stream.frames}" if self._stream.frames > count else ""
        return SourceError(f"{self.name} broke at frame {count}{promised}: {reason}")

    def _stamp_s(self, picture: VideoFrame) -> float | None:
        if picture.pts is None or self._origin is None or self._stream.time_base is None:
            return None
        return float((picture.pts - self._origin) * self._stream.time_base)

    def _image(self, picture: VideoFrame, index: int) -> NDArray[np.uint8]:
        try:
            # One thread: starting more costs more than it saves. Rows of an odd width come padded.
            image = np.ascontiguousarray(picture.to_ndarray(format="bgr24", threads=1), np.uint8)
        except av.FFmpegError as error:
            raise self._broken(index, _reason(error)) from error
        return self._orientation.apply(image)


@dataclass(frozen=True)
class _Orientation:
    """How a stored picture is turned to stand upright: transposed first, then flipped.

    Attributes:
        transpose: whether rows become columns.
        flip: OpenCV's flip code: 0 upside down, 1 left to right, -1 both; None for neither.
    """

    transpose: bool = False
    flip: int | None = None

    @classmethod
    def of(cls, picture: VideoFrame) -> _Orientation:
        """From the stream's display matrix: x' = a x + c y and y' = b x + d y, in multiples of 90 degrees.

        Source: the ISO base media file format (ISO/IEC 14496-12), the track header's matrix.
        """
        side_data: Any = picture.side_data  # a mapping, which PyAV's stubs describe in as many ways as it has versions
        matrix = side_data.get(SideDataType.DISPLAYMATRIX)
        if matrix is None:
            return cls()
        a, b, _, c, d = struct.unpack("=5i", bytes(matrix)[:20])
        transpose = abs(b) > abs(a)
        right_to_left, upside_down = (c < 0, b < 0) if transpose else (a < 0, d < 0)
        return cls(transpose, {(True, True): -1, (True, False): 1, (False, True): 0}.get((right_to_left, upside_down)))

    def apply(self, image: NDArray[np.uint8]) -> NDArray[np.uint8]:
        turned = cv2.transpose(image) if self.transpose else image
        return np.asarray(turned if self.flip is None else cv2.flip(turned, self.flip), np.uint8)


def _open_container(path: Path) -> InputContainer:
    address = f"file:{path}"  # with its protocol, as a colon in a name would else begin one
    try:
        try:
            return av.open(address)
        except UnicodeDecodeError:  # titles in an old encoding, which PyAV before 19 doesn't let pass on its own
            lenient: dict[str, Any] = {"metadata_errors": "replace"}
            return av.open(address, "r", **lenient)
    except av.FFmpegError as error:
        # A fragmented MP4 that ends inside a fragment's index is refused, though the fragments before it are whole.
        if length := whole_length(path):
            whole = FilePart(path, length)
            try:
                return av.open(whole, "r", format="mp4")
            except av.FFmpegError:
                whole.close()
        reason = _CUT_SHORT if is_cut_short(path) else _reason(error)
        raise SourceError(f"expected a video or a picture, but {path} cannot be read as one: {reason}") from error


def _video_stream(container: InputContainer, path: Path) -> VideoStream:
    """The first stream of moving pictures, set to decode in the calling thread; the cover picture of a song is none."""
    for stream in container.streams.video:
        if stream.disposition & Disposition.attached_pic:
            continue
        decoder = stream.codec_context
        if not isinstance(decoder, av.VideoCodecContext):
            raise SourceError(f"expected a video, but the codec of {path} is unknown: convert it, for example to H.264 in MP4")
        if decoder.name in _TEXT_CODECS:
            raise SourceError(f"expected a video or a picture, but {path} holds text")
        # More threads cost more processor time for the same frames, and the other stages have work for every core.
        decoder.thread_type = "NONE"
        decoder.thread_count = 1
        return stream
    if container.streams.audio:
        raise SourceError(f"expected a video, but {path} holds only sound")
    raise SourceError(f"expected a video, but {path} holds none" + (f": {_CUT_SHORT}" if is_cut_short(path) else ""))


def _reason(error: av.FFmpegError) -> str:
    text = error.strerror or str(error)
    return text[:1].lower() + text[1:]


def _read_picture(path: Path) -> NDArray[np.uint8]:
    """BGR uint8 [H, W, 3], upright."""
    try:
        data = np.frombuffer(path.read_bytes(), np.uint8)
    except OSError as error:
        raise SourceError(f"the picture {path} cannot be read: {error.strerror}") from error
    if not len(data):
        raise SourceError(f"expected a picture, but {path} is empty")
    try:
        image = cv2.imdecode(data, cv2.IMREAD_COLOR)
    except cv2.error:  # a picture too large to hold
        image = None
    if image is None:
        raise SourceError(f"expected a picture, but {path} cannot be read as one: it is damaged, or of another format")
    return np.asarray(image, np.uint8)


def _is_picture(path: Path) -> bool:
    return path.suffix.lower() in PICTURE_SUFFIXES and not path.name.startswith(".") and path.is_file()


def _natural_key(path: Path) -> list[tuple[int, str]]:
    """Order by name, with the numbers in it as numbers."""
    return [(int(part), "") if part.isdecimal() else (0, part) for part in re.split(r"(\d+)", path.name.lower())]
