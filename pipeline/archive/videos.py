"""Finds the videos in some folders, and hashes the contents of a file."""

from __future__ import annotations

import hashlib
import os
from collections import Counter
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path

from convnextpose.errors import SourceError
from pipeline.sources.files import natural_key

VIDEO_SUFFIXES = (
    ".3g2", ".3gp", ".asf", ".avi", ".divx", ".dv", ".f4v", ".flv", ".m2ts", ".m2v", ".m4v", ".mkv", ".mov", ".mp4", ".mpeg",
    ".mpg", ".mts", ".mxf", ".ogv", ".qt", ".ts", ".vob", ".webm", ".wmv", ".y4m",
)  # fmt: skip
"""Suffixes of files that count as videos; their contents are checked when they are processed."""

_BLOCK = 1 << 22


@dataclass(frozen=True)
class Video:
    """A file that counts as a video.

    Attributes:
        path: where it is, absolute.
        place: the preferred folder of its results, relative to that of all results: the name of the searched folder and the
            path from there to the file.
        size_bytes: its size.
        mtime_ns: its modification time, ns since 1970.
    """

    path: Path
    place: str
    size_bytes: int
    mtime_ns: int


@dataclass(frozen=True)
class FoundVideos:
    """The contents of some folders.

    Attributes:
        videos: in natural order, each once, even if one folder contains another.
        skipped: how many files were skipped, by suffix.
        unreadable: folders that could not be read, each with the reason.
    """

    videos: tuple[Video, ...]
    skipped: Counter[str]
    unreadable: tuple[str, ...]


def find_videos(folders: Sequence[Path], exclude: Path | None = None) -> FoundVideos:
    """Find the videos in some folders. Hidden files and folders are skipped; links to folders are not followed.

    Args:
        folders: the folders; a file among them counts as a video, whatever its name.
        exclude: a folder to skip: that of the results, which also contain videos.

    Raises:
        SourceError: a folder does not exist.
    """
    videos: dict[Path, Video] = {}
    skipped: Counter[str] = Counter()
    unreadable: list[str] = []
    roots: dict[str, Path] = {}
    left_out = None if exclude is None else exclude.resolve()

    def look_at(path: Path, place: str) -> None:
        try:
            state = path.stat()
            real = path.resolve()
        except OSError as error:  # a dangling link, or a file that has just been removed
            unreadable.append(f"{path}: {error.strerror}")
            return
        videos.setdefault(real, Video(real, place, state.st_size, state.st_mtime_ns))

    def on_error(error: OSError) -> None:
        unreadable.append(f"{error.filename}: {error.strerror}")

    for folder in folders:
        root = folder.resolve()
        if root in roots.values():
            continue
        name, number = root.name or "root", 2
        while name in roots:
            name, number = f"{root.name}-{number}", number + 1
        roots[name] = root
        if root.is_file():
            look_at(root, name)
            continue
        if not root.is_dir():
            raise SourceError(f"expected a folder with videos in it, but there is no {folder}")
        for inside, names, files in os.walk(root, onerror=on_error):
            here = Path(inside)
            names[:] = sorted(n for n in names if not n.startswith(".") and (here / n).resolve() != left_out)
            for file in sorted((here / f for f in files if not f.startswith(".")), key=natural_key):
                if file.suffix.lower() in VIDEO_SUFFIXES:
                    look_at(file, (Path(name) / file.relative_to(root)).as_posix())
                else:
                    skipped[file.suffix.lower() or file.name] += 1
    return FoundVideos(tuple(videos.values()), skipped, tuple(unreadable))


def content_hash(path: Path, stopped: Callable[[], bool] = lambda: False) -> str:
    """SHA-256 of a file's content, hexadecimal; only of its first part if `stopped()` becomes true.

    Raises:
        OSError: it cannot be read.
    """
    digest = hashlib.sha256()
    with path.open("rb", buffering=0) as file:
        while (block := file.read(_BLOCK)) and not stopped():
            digest.update(block)
    return digest.hexdigest()
