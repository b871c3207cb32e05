"""Whether a video file was cut short, and how much of it is complete, from the declared sizes of its outermost parts.

Sources: ISO/IEC 14496-12 (the boxes of MP4 and its relatives), RFC 8794 (EBML: Matroska, WebM), Microsoft's description of RIFF
(AVI). Other formats don't state their size.
"""

from __future__ import annotations

import io
import os
from collections.abc import Iterator
from pathlib import Path
from typing import IO

_ISO_KINDS = (b"ftyp", b"styp", b"moov", b"mdat", b"free", b"skip", b"wide")
"""Types of the first box of an MP4 file or a relative."""


def is_cut_short(path: Path) -> bool:
    """Whether the file's outermost parts declare more bytes than it has."""
    try:
        size = path.stat().st_size
        with path.open("rb") as file:
            head = file.read(64)
            if head[:4] == b"RIFF":
                return 8 + int.from_bytes(head[4:8], "little") > size
            if head[:4] == b"\x1a\x45\xdf\xa3":
                header_size, at = _ebml_size(head, 4)
                segment = head[at + header_size :]
                segment_size, start = _ebml_size(segment, 4)
                unknown = segment_size == (1 << 7 * (start - 4)) - 1
                return segment[:4] == b"\x18\x53\x80\x67" and not unknown and at + header_size + start + segment_size > size
            return any(end > size for end in _box_ends(file, size))
    except OSError:
        return False


def whole_length(path: Path) -> int:
    """Total size of the complete boxes at the beginning of an MP4 file or a relative, bytes; 0 for other files."""
    try:
        size = path.stat().st_size
        with path.open("rb") as file:
            return max((end for end in _box_ends(file, size) if end <= size), default=0)
    except OSError:
        return 0


class FilePart(io.RawIOBase):
    """The first `length` bytes of a file, as a separate file."""

    def __init__(self, path: Path, length: int) -> None:
        """Open the file.

        Raises:
            OSError: it cannot be read.
        """
        self._file = path.open("rb")
        self._length = length

    def read(self, size: int = -1) -> bytes:
        """Read at most `size` bytes, or all that remain."""
        left = max(0, self._length - self._file.tell())
        return self._file.read(left if size < 0 else min(size, left))

    def seek(self, offset: int, whence: int = os.SEEK_SET) -> int:
        """Set the position; returns it."""
        if whence == os.SEEK_END:
            return self._file.seek(max(0, self._length + offset))
        return self._file.seek(offset, whence)

    def tell(self) -> int:
        """The current position."""
        return self._file.tell()

    def readable(self) -> bool:
        """Always true."""
        return True

    def seekable(self) -> bool:
        """Always true."""
        return True

    def close(self) -> None:
        """Close the file."""
        self._file.close()
        super().close()


def _box_ends(file: IO[bytes], size: int) -> Iterator[int]:
    """The declared ends of the outermost boxes of an ISO file; the last may be beyond the end of the file."""
    file.seek(4)
    if file.read(4) not in _ISO_KINDS:
        return
    at = 0
    while at < size:
        file.seek(at)
        box = file.read(16)
        if len(box) < 8:  # cut inside a box's header
            yield size + 1
            return
        box_size = int.from_bytes(box[:4], "big")
        if box_size == 1:
            box_size = int.from_bytes(box[8:16], "big")
        if box_size < 8:  # 0: the last box, which extends to the end of the file
            return
        at += box_size
        yield at


def _ebml_size(data: bytes, at: int) -> tuple[int, int]:
    """The size stored at `at`, and the position after it; all ones, which mean unknown, are not treated separately."""
    first = data[at] if at < len(data) else 0
    length = 9 - first.bit_length()
    return int.from_bytes(data[at : at + length], "big") & ((1 << 7 * length) - 1), at + length
