"""Files that contain only complete parts at any moment, and that replace nothing without permission."""

from __future__ import annotations

import os
import tempfile
from contextlib import suppress
from pathlib import Path
from typing import IO

from convnextpose.errors import SinkError
from convnextpose.files import already_there


def make_folder(folder: Path, purpose: str) -> None:
    """Make a folder and its parents; an existing folder stays unchanged.

    Raises:
        SinkError: it cannot be made or written to.
    """
    try:
        folder.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise SinkError(f"expected a folder for {purpose}, but {folder} cannot be one: {error.strerror}") from error
    if not os.access(folder, os.W_OK | os.X_OK):
        raise SinkError(f"expected a folder for {purpose}, but nothing may be written to {folder}")


class GrowingFile:
    """A file to which complete parts are appended, without buffering. A part that cannot be written completely is cut off.

    Attributes:
        size: total size of its parts, bytes.
    """

    def __init__(self, file: IO[bytes], path: Path | None = None) -> None:
        """Take an empty file, opened for writing without a buffer, and its name if it has one."""
        self.size = 0
        self._file = file
        self._path = path

    @classmethod
    def make(cls, path: Path, *, overwrite: bool) -> GrowingFile:
        """A new file. An old one is unlinked, not emptied: a program that is reading it, perhaps this run, can go on reading.

        Raises:
            OutputExistsError: it exists already and may not be replaced.
            OSError: it cannot be made.
        """
        if overwrite:
            path.unlink(missing_ok=True)
        try:
            return cls(path.open("xb", buffering=0), path)
        except FileExistsError as error:
            raise already_there(path) from error

    @classmethod
    def unnamed(cls, folder: Path) -> GrowingFile:
        """A file on a folder's disk that disappears when it is closed, or when the process is killed.

        Raises:
            OSError: it cannot be made.
        """
        return cls(tempfile.TemporaryFile(buffering=0, dir=folder))  # lives until `close`

    def append(self, part: bytes) -> None:
        """Write one part at the end.

        Raises:
            OSError: it cannot be written; the file ends where it ended before.
        """
        try:
            self._write(self.size, part)
        except BaseException:
            with suppress(OSError):
                self._file.truncate(self.size)  # takes no space, so a full disk allows it
            raise
        self.size += len(part)

    def change(self, offset: int, data: bytes) -> None:
        """Replace some of the appended bytes.

        Raises:
            OSError: they cannot be written.
        """
        self._write(offset, data)

    def close(self, *, keep: bool = True) -> None:
        """Close it; with keep=False it is removed, unless its name now belongs to another file."""
        stale = None
        if self._path is not None and not keep:
            with suppress(OSError):  # its name no longer exists
                stale = self._path if os.path.samestat(os.fstat(self.fileno()), self._path.lstat()) else None
        self._file.close()
        if stale is not None:
            stale.unlink(missing_ok=True)

    def fileno(self) -> int:
        """The file descriptor."""
        return self._file.fileno()

    def _write(self, offset: int, data: bytes) -> None:
        self._file.seek(offset)
        left = memoryview(data)
        while left:
            left = left[self._file.write(left) :]
