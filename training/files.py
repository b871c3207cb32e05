"""Reading files of the data folder: whatever is wrong with one is reported in one sentence."""

from __future__ import annotations

import zlib
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from zipfile import BadZipFile

import cv2
import numpy as np
from numpy.typing import NDArray

from convnextpose.errors import SourceError

_DAMAGE = (OSError, EOFError, BadZipFile, zlib.error, KeyError, TypeError, ValueError, IndexError)
"""Exceptions raised for missing, truncated, damaged and foreign files."""


@contextmanager
def described(path: Path) -> Iterator[None]:
    """Read a file that README.md describes.

    Raises:
        SourceError: the file is missing or something else.
    """
    try:
        yield
    except _DAMAGE as error:
        raise SourceError(f"expected {path} as training/README.md describes it: {type(error).__name__}: {error}") from error


def decoded(code: NDArray[np.uint8]) -> NDArray[np.uint8]:
    """The picture [H, W, 3], BGR, in the bytes of a JPEG file.

    Raises:
        ValueError: there is none.
    """
    image = cv2.imdecode(code, cv2.IMREAD_COLOR) if code.size else None
    if image is None:
        raise ValueError("a picture in it cannot be decoded")
    return np.asarray(image, np.uint8)
