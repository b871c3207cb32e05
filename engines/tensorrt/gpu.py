"""The local GPU, through the first binding to CUDA that is installed."""

from __future__ import annotations

import importlib.util
from importlib import metadata

from convnextpose.errors import RuntimeUnavailableError
from engines.tensorrt.device import Device, Gpu
from engines.tensorrt.device_cuda import open_cuda_device
from engines.tensorrt.device_pycuda import open_pycuda_device

BINDINGS = ("cuda-python", "pycuda")
"""The bindings to CUDA, in the order in which they are tried: the first one has wheels and graphs."""

_MODULES = {"cuda-python": "cuda.bindings", "pycuda": "pycuda"}
_PACKAGES = {"cuda-python": "cuda-bindings", "pycuda": "pycuda"}


def binding_installed(name: str) -> bool:
    """Whether a binding is installed; does not load it."""
    try:
        return importlib.util.find_spec(_MODULES[name]) is not None
    except ImportError:
        return False


def binding_version(name: str) -> str | None:
    """A binding's version, None if its package does not report it; does not load it."""
    try:
        return metadata.version(_PACKAGES[name])
    except metadata.PackageNotFoundError:
        return None


def open_device(binding: str = "auto") -> Device:
    """The first GPU. It stays open for the life of the process, and every call returns the same object.

    Args:
        binding: `cuda-python`, `pycuda`, or `auto`: the first of these that is installed.

    Raises:
        RuntimeUnavailableError: there is no such binding, no driver or no GPU; says which and what to do.
    """
    if binding not in ("auto", *BINDINGS):
        raise RuntimeUnavailableError(f"expected binding auto, {', '.join(BINDINGS)}, received {binding!r}")
    for name in BINDINGS if binding == "auto" else (binding,):
        if not binding_installed(name):
            continue
        if name == "cuda-python":
            return open_cuda_device()
        return open_pycuda_device()
    missing = " nor ".join(BINDINGS) if binding == "auto" else binding
    raise RuntimeUnavailableError(
        f"the GPU is driven through a Python binding to CUDA, and {'neither ' if binding == 'auto' else ''}{missing} is "
        f"installed; pip install {BINDINGS[0] if binding == 'auto' else binding}"
    )


def find_gpu() -> Gpu | None:
    """The local GPU, None if there is none; `open_device` says what is missing."""
    try:
        return open_device().gpu
    except RuntimeUnavailableError:
        return None
