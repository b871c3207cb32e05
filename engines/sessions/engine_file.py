"""Opens engine files as sessions, after checking that file and manifest are complete and fit this machine."""

from __future__ import annotations

from pathlib import Path

from convnextpose.errors import RuntimeUnavailableError
from engines import manifest as manifests
from engines.manifest import EngineManifest, EngineModel
from engines.sessions.tensorrt import TensorRTSession
from engines.tensorrt import runtime_cache
from engines.tensorrt.gpu import open_device
from engines.tensorrt.module import LIBRARIES, Library, load_library


def open_engine(
    path: Path, name: str | None = None, *, binding: str = "auto", kind: type[EngineModel] | None = None
) -> TensorRTSession:
    """Open an engine file with its manifest beside it, after checking that both are complete and fit this machine.

    Args:
        path: the engine.
        name: what error messages call the network; None for the manifest's name of the model.
        binding: as for `engines.tensorrt.gpu.open_device`.
        kind: the required kind of model; None for any.

    Raises:
        EngineError: engine or manifest are damaged, or do not fit each other or this machine; says which, and what rebuilds it.
            Or it is of another kind of model.
        RuntimeUnavailableError: the library, the binding to CUDA, the driver or the GPU is missing; says which.
    """
    found, data = manifests.load_with_bytes(path)
    if kind is not None:
        found.model_of(kind)
    cache = runtime_cache.path_of(path)
    return TensorRTSession(data, found, _library_for(found), open_device(binding), name=name, cache=cache)


def open_engine_session(
    path: Path, name: str, *, threads: int | None = None, precision: str = "auto", kind: type[EngineModel] | None = None
) -> TensorRTSession:
    """The same, as the registry opens sessions.

    Raises:
        EngineError, RuntimeUnavailableError: as for `open_engine`; or a number of threads or a precision is given.
    """
    if threads is not None:
        raise RuntimeUnavailableError(
            f"expected no number of threads for an engine, which computes on the GPU, received {threads}"
        )
    if precision != "auto":
        raise RuntimeUnavailableError(f"expected no precision for an engine, which has its own, received {precision!r}")
    return open_engine(path, name, kind=kind)


def _library_for(found: EngineManifest) -> Library:
    """The engine's own library if it is installed, or else the other one, which the manifest then refuses by name."""
    try:
        return load_library(found.library)
    except RuntimeUnavailableError as missing:
        for name in LIBRARIES:
            try:
                return load_library(name)
            except RuntimeUnavailableError:
                continue
        raise missing
