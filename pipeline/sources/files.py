"""Finds out what kind of file a path is, by its content."""

from __future__ import annotations

import re
from collections import Counter
from pathlib import Path
from urllib.parse import unquote

from convnextpose.errors import SourceError
from pipeline.sources.decoding import Decode
from pipeline.sources.formats import format_of, is_animated
from pipeline.sources.pictures import AnimatedWebpSource, PictureSource, read_file, size_of
from pipeline.sources.source import OnDamage, OpenOptions, Source
from pipeline.sources.uri import without_password
from pipeline.sources.video import VideoSource

PICTURE_SUFFIXES = (
    ".avif", ".bmp", ".dib", ".heic", ".heif", ".hif", ".jfif", ".jif", ".jp2", ".jpe", ".jpeg", ".jpg", ".pbm", ".pgm",
    ".pjpeg", ".png", ".pnm", ".ppm", ".tif", ".tiff", ".webp",
)  # fmt: skip
"""Suffixes of a folder's files that are read as pictures, one frame each. For a single file the content decides."""


def open_file(path: Path, stream: int | None, on_damage: OnDamage, decode: Decode = Decode.CPU) -> Source:
    """Open a video file, a picture or a folder of pictures; as `open_source`."""
    name = path.name or path.resolve().name
    try:
        if path.is_dir():
            _refuse_stream(stream, path)
            return _open_folder(path, name)
        if not path.exists():
            shown = without_password(str(path))  # it may have been meant as a URI
            raise SourceError(f"expected a video, a picture or a folder of pictures, but there is no {shown}")
        if not path.is_file():
            raise SourceError(
                f"expected a video, a picture or a folder of pictures, but {path} is a device or a pipe; a camera is named v4l2://{path}"
            )
        with path.open("rb") as file:
            head = file.read(512)
    except OSError as error:
        if isinstance(error, SourceError):
            raise
        raise SourceError(f"{path} cannot be read: {error.strerror}") from error
    if not head:
        raise SourceError(f"expected a video or a picture, but {path} is empty")
    known = format_of(head)
    if known is None and not _is_picture(path):
        return VideoSource(path, stream, on_damage, decode)
    if known is not None and is_animated(data := read_file(path)):
        size_of(data, path)
        if known.name != "WebP":
            return VideoSource(path, stream, on_damage)
        _refuse_stream(stream, path)
        return AnimatedWebpSource(path, on_damage)
    _refuse_stream(stream, path)
    return PictureSource(name, (path,))


def open_file_uri(uri: str, open_options: OpenOptions) -> Source:
    """Open `file:///path`, as RFC 8089 writes it.

    Raises:
        SourceError: it names another machine, or as `open_file`.
    """
    host, slash, path = uri.split("://", 1)[1].partition("/")
    if host not in ("", "localhost"):
        raise SourceError("expected a file of this machine, such as file:///path, received a URI that names another machine")
    return open_file(Path(unquote(slash + path)), open_options.stream, open_options.on_damage, open_options.decode)


def _refuse_stream(stream: int | None, path: Path) -> None:
    if stream not in (None, 0):
        raise SourceError(f"expected a video to read stream {stream} of, but {path} is a picture or a folder of pictures")


def _open_folder(path: Path, name: str) -> Source:
    files = [file for file in path.iterdir() if not file.name.startswith(".") and file.is_file()]
    pictures = sorted((file for file in files if _is_picture(file)), key=natural_key)
    if not pictures:
        raise SourceError(f"expected pictures in the folder {path}, found none of {' '.join(PICTURE_SUFFIXES)}")
    left_out = Counter(file.suffix or file.name for file in files if not _is_picture(file))
    notes: tuple[str, ...] = ()
    if left_out:
        kinds = ", ".join(f"{count} {kind}" for kind, count in sorted(left_out.items())[:8])
        more = ", ..." if len(left_out) > 8 else ""
        notes = (f"files in the folder that are not pictures of a supported kind are left out: {kinds}{more}",)
    return PictureSource(name, tuple(pictures), notes)


def _is_picture(path: Path) -> bool:
    return path.suffix.lower() in PICTURE_SUFFIXES


def natural_key(path: Path) -> tuple[list[tuple[int, str]], str]:
    """Sort key: by name, with numbers in numerical order; names that differ only in case are sorted by character codes."""
    words = [(int(part), "") if part.isdecimal() else (0, part) for part in re.split(r"(\d+)", path.name.lower())]
    return words, path.name
