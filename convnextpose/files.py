"""Files that are whole or not there."""

from __future__ import annotations

import os
from pathlib import Path

from convnextpose.errors import SinkError


def put_in_place(data: bytes, out: Path) -> None:
    """Write the file beside its place, then move it there in one step; nothing is left behind on failure.

    Raises:
        SinkError: it cannot be written.
    """
    partial = out.with_name(f".{out.name}.{os.getpid()}.part")
    try:
        try:
            partial.write_bytes(data)
            partial.replace(out)
        finally:
            partial.unlink(missing_ok=True)
    except OSError as error:
        raise SinkError(f"cannot write {out}: {error.strerror}") from error
