"""Untrusted ZIP archives and NumPy's .npz files: every declared size is compared with a limit before it is unpacked."""

from __future__ import annotations

import io
import math
import zipfile
from collections.abc import Mapping
from typing import Any

import numpy as np
from numpy.typing import NDArray

from convnextpose.files import LimitError, show, size_text

MAX_MEMBERS = 10_000
"""Largest number of files in an archive or a folder. A checkpoint with Adam's state has about 800."""

MAX_RATIO, ALWAYS_ALLOWED = 20, 64 * 1024**2
"""An archive may unpack to MAX_RATIO times its size, and to ALWAYS_ALLOWED bytes in any case. Compression makes weights a tenth
smaller and halves pictures: data that shrink far more were made to exhaust the memory."""

_COMPRESSIONS = (zipfile.ZIP_STORED, zipfile.ZIP_DEFLATED)
"""The compressions that Python unpacks piece by piece; with others a block of some kB may become gigabytes at once."""

_MAX_NPY_HEADER, _CHUNK = 10_000, 1024**2


def unpacked_limit(packed: int) -> int:
    """Largest unpacked size of an archive of `packed` bytes, bytes."""
    return max(ALWAYS_ALLOWED, MAX_RATIO * packed)


def open_zip(data: bytes, limit: int) -> zipfile.ZipFile:
    """Open a ZIP archive in memory after checking its directory.

    Args:
        data: its bytes.
        limit: largest total size of its members, bytes.

    Raises:
        ValueError, zipfile.BadZipFile: it is damaged.
        LimitError: it is too large, has too many members, a password or a rare compression.
    """
    # The signature of every directory entry, counted before Python makes an object for each.
    if data.count(b"PK\x01\x02") > MAX_MEMBERS:
        raise LimitError(f"expected an archive of a few files, received more than {MAX_MEMBERS:,} files")
    archive = zipfile.ZipFile(io.BytesIO(data))
    total = sum(info.file_size for info in archive.infolist())
    if total > limit:
        raise LimitError(
            f"expected at most {size_text(limit)} unpacked, received an archive of {size_text(len(data))} that unpacks to "
            f"{size_text(total)}"
        )
    for info in archive.infolist():
        if not info.filename:
            raise LimitError("expected a name for every file of an archive, received a file without one: pack it again")
        if info.flag_bits & 0x1:
            raise LimitError("expected an archive without a password, received an encrypted one: unpack it first")
        if info.compress_type not in _COMPRESSIONS:
            raise LimitError(
                f"expected a ZIP with deflate compression or none, received another method for {show(info.filename)}: pack it "
                "again"
            )
    return archive


def read_npz(data: bytes, limits: Mapping[str, int]) -> dict[str, NDArray[Any]]:
    """The arrays of an .npz file, by name; other arrays in it are ignored.

    Args:
        data: its bytes.
        limits: the names of the wanted arrays, and the largest size of each, bytes.

    Raises:
        ValueError, KeyError, zipfile.BadZipFile: it is damaged, or an array is missing or one of Python objects.
        LimitError: an array is too large.
    """
    try:
        # Other members are never unpacked, so their size does no harm.
        archive = open_zip(data, 2**62)
        return {name: _read_npy(archive, f"{name}.npy", limit) for name, limit in limits.items()}
    except (ValueError, KeyError, zipfile.BadZipFile):
        raise
    except Exception as error:  # from zlib, and from the Python parsers that NumPy reads a header with
        raise ValueError(f"it is damaged ({type(error).__name__}: {error})") from error


def _read_npy(archive: zipfile.ZipFile, name: str, limit: int) -> NDArray[Any]:
    size = archive.getinfo(name).file_size
    if size > limit + _MAX_NPY_HEADER:
        raise LimitError(f"expected {name} of at most {size_text(limit)}, received {size_text(size)}")
    with archive.open(name) as file:
        version = np.lib.format.read_magic(file)
        if version not in ((1, 0), (2, 0)):
            raise ValueError(f"{name} in an unknown version of NumPy's format")
        read = np.lib.format.read_array_header_1_0 if version == (1, 0) else np.lib.format.read_array_header_2_0
        shape, by_columns, dtype = read(file, max_header_size=_MAX_NPY_HEADER)
        if dtype.hasobject:
            raise ValueError(f"{name} of Python objects")
        left = size - file.tell()
        if math.prod(shape) * dtype.itemsize != left:
            raise ValueError(f"{name} that should have {math.prod(shape) * dtype.itemsize} bytes and has {left}")
        array, filled = np.empty(left, np.uint8), 0
        while part := file.read(_CHUNK):
            array[filled : filled + len(part)] = np.frombuffer(part, np.uint8)
            filled += len(part)
        if filled != left:
            raise ValueError(f"{name} cut short")
    return array.view(dtype).reshape(shape, order="F" if by_columns else "C")
