"""Pictures in files: one, a folder of them, or an animated WebP."""

from __future__ import annotations

from collections.abc import Generator
from pathlib import Path

import av
import cv2
import numpy as np
from numpy.typing import NDArray

import pipeline.sources.heif as heif
import pipeline.sources.webp as webp
from convnextpose.errors import SourceError
from pipeline.sources.formats import MALFORMED, format_of, tiff_tags
from pipeline.sources.limits import FILE_LIMIT, check_size
from pipeline.sources.orientation import Orientation
from pipeline.sources.source import FileSource, OnDamage
from pipeline.types import Frame, SourceInfo, UnreadableFrame


class PictureSource(FileSource):
    """Pictures in files, one frame each; they may differ in size. They have no time of their own: time_s is the index.

    A picture that cannot be read becomes an UnreadableFrame, and the others follow.
    """

    def __init__(self, name: str, paths: tuple[Path, ...], notes: tuple[str, ...] = ()) -> None:
        """Read the first picture that can be read.

        Raises:
            SourceError: none can be read.
        """
        self._paths = paths
        self._unreadable: list[str] = []
        for path in paths:
            try:
                self._first = read_picture(path)
                break
            except SourceError as error:
                self._unreadable.append(str(error))
        else:
            more = f" (nor can the {len(paths) - 1} others of the folder)" if len(paths) > 1 else ""
            raise SourceError(self._unreadable[0] + more)
        height, width = self._first.shape[:2]
        self.info = SourceInfo(name, False, width, height, frame_rate=None, frame_count=len(paths), notes=notes)
        super().__init__()

    def _read(self) -> Generator[Frame | UnreadableFrame, None, None]:
        name, begun = self.info.id, len(self._unreadable)
        for index, path in enumerate(self._paths):
            if index < begun:
                yield UnreadableFrame(name, index, self._unreadable[index])
                continue
            try:
                image = read_picture(path) if index > begun else self._first
            except SourceError as error:
                yield UnreadableFrame(name, index, str(error))
            else:
                yield Frame(image, name, index, float(index))


class AnimatedWebpSource(FileSource):
    """The frames of an animated WebP, each at its time; transparent areas are black."""

    def __init__(self, path: Path, on_damage: OnDamage) -> None:
        """Read the first frame.

        Raises:
            SourceError: it cannot be read, or is too large.
        """
        self._path = path
        self._skips = on_damage is OnDamage.SKIP
        self._data = read_file(path)
        width, height = size_of(self._data, path)
        self._canvas = np.zeros((height, width, 4), np.uint8)
        count, total_ms = 0, 0
        try:
            for frame in webp.frames(self._data):
                count, total_ms = count + 1, total_ms + frame.duration_ms
        except ValueError:
            pass  # reported when it is reached
        rate = 1000 * count / total_ms if total_ms else None
        self.info = SourceInfo(path.name, False, width, height, frame_rate=rate, frame_count=count)
        super().__init__()
        if not count:
            raise SourceError(f"expected a picture, but {path} has no frame that can be read")

    def _read(self) -> Generator[Frame | UnreadableFrame, None, None]:
        name, time_ms, index = self.info.id, 0, 0
        try:
            for frame in webp.frames(self._data):
                webp.put_on(self._canvas, frame)
                yield Frame(np.ascontiguousarray(self._canvas[..., :3]), name, index, time_ms / 1000)
                if frame.clears:
                    webp.clear(self._canvas, frame)
                time_ms += max(1, frame.duration_ms)
                index += 1
        except ValueError as error:
            if not self._skips:
                raise SourceError(f"{name} broke at frame {index} of {self.info.frame_count}: {error}") from error
            yield UnreadableFrame(name, index, str(error))


def read_file(path: Path) -> bytes:
    """All bytes of a picture's file.

    Raises:
        SourceError: it cannot be read, is empty or is larger than a picture can be.
    """
    try:
        size = path.stat().st_size
        if size > FILE_LIMIT:
            raise SourceError(f"expected a picture, but {path} is too large to be read: it has {size / 1e9:.1f} GB")
        data = path.read_bytes()
    except OSError as error:
        if isinstance(error, SourceError):
            raise
        raise SourceError(f"the picture {path} cannot be read: {error.strerror}") from error
    if not data:
        raise SourceError(f"expected a picture, but {path} is empty")
    return data


def size_of(data: bytes, path: Path) -> tuple[int, int]:
    """The stored width and height that a picture's file declares, px.

    Raises:
        SourceError: it doesn't say, or is too large.
    """
    known = format_of(data[:32])
    try:
        if known is None:
            raise ValueError("it is damaged, or of another format")
        width, height = known.size(data)
    except MALFORMED as error:
        # Only our own ValueErrors contain a reason; others describe how Python failed.
        reason = str(error) if type(error) is ValueError else "it is damaged"
        raise SourceError(f"expected a picture, but {path} cannot be read as one: {reason}") from error
    check_size(width, height, path)
    return width, height


def read_picture(path: Path) -> NDArray[np.uint8]:
    """BGR uint8 [H, W, 3], upright.

    Raises:
        SourceError: it cannot be read, or is too large.
    """
    data = read_file(path)
    size_of(data, path)
    try:
        if heif.begins(data):
            return _read_heif(data)
        image = cv2.imdecode(np.frombuffer(data, np.uint8), cv2.IMREAD_COLOR)
        if image is None:
            raise ValueError("it is damaged, or of another format")
    except (*MALFORMED, av.FFmpegError, cv2.error) as error:
        reason = str(error) if type(error) is ValueError else "it is damaged"
        raise SourceError(f"expected a picture, but {path} cannot be read as one: {reason}") from error
    return np.asarray(image, np.uint8)


def _read_heif(data: bytes) -> NDArray[np.uint8]:
    picture = heif.read(data)
    image = heif.decode(picture)
    for orientation in _heif_orientations(picture):
        image = orientation.apply(image)
    return image


def _heif_orientations(picture: heif.HeifPicture) -> list[Orientation]:
    """The rotations and flips to apply, in order: from the file or, if it has none, from its EXIF data."""
    if picture.turns:
        return [Orientation.turned(n) if kind == "turn" else Orientation(flip=n) for kind, n in picture.turns]
    try:
        tags = tiff_tags(picture.exif) if picture.exif else {}
    except MALFORMED:  # not needed, so it must not fail
        tags = {}
    return [Orientation.of_exif(tags.get(0x0112, 1))]
