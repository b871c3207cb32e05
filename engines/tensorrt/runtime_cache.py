"""The kernels that TensorRT for RTX compiled for this GPU, stored beside the engine so that the next process opens it faster.

The library checks that they are for this GPU, driver and version; a hash at the file's beginning shows that it is complete.
Like an engine, the file is a program.
"""

from __future__ import annotations

import hashlib
import warnings
from pathlib import Path

from convnextpose.errors import EngineError, SinkError
from convnextpose.files import read_file, write_file
from engines.tensorrt.engine import Engine

MAX_BYTES = 256 * 1024**2
"""The largest cache that is read."""

_HEADER = b"convnextpose.runtime-cache 1\n"


def path_of(engine: Path) -> Path:
    """Path of an engine's kernels: that of the engine with `.kernels` appended."""
    return engine.with_name(f"{engine.name}.kernels")


def read(path: Path, engine: Engine) -> bytes | None:
    """Load the saved kernels of an engine and return them; None if there are no usable ones.

    A file that is damaged, or of another GPU or version, is not used, with a RuntimeWarning; `write` replaces it.
    """
    if not path.exists():
        return None
    try:
        kept = read_file(path, MAX_BYTES, EngineError, "kernels that TensorRT for RTX compiled")
    except EngineError as error:
        _tell(f"{error}; they are compiled again")
        return None
    digest, payload = kept[len(_HEADER) : len(_HEADER) + 32], kept[len(_HEADER) + 32 :]
    if not kept.startswith(_HEADER) or hashlib.sha256(payload).digest() != digest:
        _tell(f"{path} is damaged or something else: discarded, the engine's kernels are compiled again")
        return None
    if not engine.take_compiled(payload):
        _tell(f"{path} is of another GPU, driver or version: discarded, the engine's kernels are compiled again")
        return None
    return payload


def write(path: Path, engine: Engine, kept: bytes | None) -> None:
    """Save the kernels that an engine has compiled, if they are more than the saved ones. If this fails, a warning says so."""
    compiled = engine.compiled()
    if not compiled or compiled == kept:
        return
    try:
        write_file(path, _HEADER + hashlib.sha256(compiled).digest() + compiled, overwrite=True)
    except SinkError as error:
        _tell(f"{error}: the engine's kernels are not saved, and will be compiled again whenever it is opened")


def _tell(text: str) -> None:
    warnings.warn(text, RuntimeWarning, stacklevel=6)
