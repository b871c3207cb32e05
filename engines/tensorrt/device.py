"""The GPU as the runtime sees it: memory, streams, events and graphs behind one Protocol, with one implementation per binding.

A device works in CUDA's primary context, the one that torch and CuPy share, retained once for the life of the process: any
thread that wants something of the device makes it current first, with `current()`. So crops of those libraries are at home
here, and no thread of ours has to exist for the GPU's sake. Which GPU it is, CUDA_VISIBLE_DEVICES decides: the first one.
"""

from __future__ import annotations

import importlib.util
from collections.abc import Callable
from contextlib import AbstractContextManager
from importlib import metadata
from pathlib import Path
from typing import Any, Protocol

import numpy as np
from numpy.typing import NDArray

from convnextpose.errors import RuntimeUnavailableError
from engines.tensorrt.module import Gpu

BINDINGS = ("cuda-python", "pycuda")
"""The bindings to CUDA, the one that is tried first first: wheels, and graphs, are on its side."""

_MODULES = {"cuda-python": "cuda.bindings", "pycuda": "pycuda"}
_PACKAGES = {"cuda-python": "cuda-bindings", "pycuda": "pycuda"}

NO_DRIVER = (
    "no NVIDIA driver was found (libcuda is missing): install the driver of this machine's GPU, or run on a machine with one"
)
NO_GPU = "the NVIDIA driver finds no GPU: look at `nvidia-smi` and at CUDA_VISIBLE_DEVICES"

LEGACY_STREAM = 1
"""What `__cuda_array_interface__` calls CUDA's default stream, that torch and pycuda work on if nobody says otherwise."""


BOARD = Path("/proc/device-tree/model")
"""Where a Jetson tells which board it is."""


def board_name(gpu: str) -> str:
    """A GPU's name with the board's, where there is one: the driver calls every Orin the same, an engine fits but one."""
    try:
        board = BOARD.read_text(encoding="utf-8").strip("\0 \n")
    except (OSError, UnicodeDecodeError):
        return gpu
    return f"{gpu} ({board})" if board else gpu


class DeviceError(RuntimeUnavailableError):
    """CUDA refused or failed at something. What fails within the GPU leaves it unusable for this process."""


class DeviceMemoryError(DeviceError, MemoryError):
    """The GPU's memory, or memory of the host that it can read, does not suffice."""


class DeviceMemory(Protocol):
    """A block of the GPU's memory.

    Attributes:
        address: where it begins; a multiple of 256 bytes.
        size: bytes.
    """

    address: int
    size: int

    def free(self) -> None:
        """Give it back; calling it again does nothing."""
        ...


class PinnedMemory(Protocol):
    """A block of the host's memory that the GPU copies from and to by itself.

    Attributes:
        array: it, as uint8 [size].
    """

    array: NDArray[np.uint8]

    def free(self) -> None:
        """Give it back; calling it again does nothing. The array must not be used any more."""
        ...


class Stream(Protocol):
    """Work for the GPU that is done in order.

    Attributes:
        handle: what TensorRT calls it by.
    """

    handle: int

    def synchronize(self) -> None:
        """Wait until all its work is done.

        Raises:
            DeviceError: some of it failed.
        """
        ...

    def wait_for(self, handle: int) -> None:
        """Let its next work begin after what another library's stream has been given so far."""
        ...

    def free(self) -> None:
        """Give it back; calling it again does nothing."""
        ...


class Event(Protocol):
    """A point in a stream's work."""

    def record(self, stream: Any) -> None:  # noqa: ANN401 - a stream of the same binding
        """Put it after what the stream has been given so far."""
        ...

    def milliseconds_since(self, earlier: Any) -> float:  # noqa: ANN401 - an event of the same binding
        """The GPU's time between two events that have both passed."""
        ...

    def free(self) -> None:
        """Give it back; calling it again does nothing."""
        ...


class Graph(Protocol):
    """Work that was recorded once and is launched as a whole."""

    def launch(self, stream: Any) -> None:  # noqa: ANN401 - a stream of the same binding
        """Give it to a stream."""
        ...

    def free(self) -> None:
        """Give it back; calling it again does nothing."""
        ...


class Device(Protocol):
    """A GPU. Everything but its attributes is to be used, and freed, within `current()`.

    Attributes:
        gpu: which one it is.
        binding: what it is driven with, and its version.
        has_graphs: whether the binding can record graphs.
    """

    gpu: Gpu
    binding: str
    has_graphs: bool

    def current(self) -> AbstractContextManager[None]:
        """Make it the calling thread's; what was so before, is so again after it."""
        ...

    def free_bytes(self) -> int:
        """How much of its memory nobody has."""
        ...

    def allocate(self, size: int) -> DeviceMemory:
        """Memory of the GPU, `size` bytes.

        Raises:
            DeviceMemoryError: there is not so much.
        """
        ...

    def pin(self, size: int) -> PinnedMemory:
        """Memory of the host, `size` bytes.

        Raises:
            DeviceMemoryError: there is not so much.
        """
        ...

    def stream(self) -> Any:  # noqa: ANN401 - a Stream
        """A new stream."""
        ...

    def event(self) -> Any:  # noqa: ANN401 - an Event
        """A new event that takes the time."""
        ...

    def copy_in(self, address: int, host: NDArray[np.uint8], stream: Any) -> None:  # noqa: ANN401
        """Let a stream copy pinned memory to the GPU."""
        ...

    def copy_out(self, host: NDArray[np.uint8], address: int, stream: Any) -> None:  # noqa: ANN401
        """Let a stream copy memory of the GPU to pinned memory, as much as that holds."""
        ...

    def copy_within(self, address: int, source: int, size: int, stream: Any) -> None:  # noqa: ANN401
        """Let a stream copy `size` bytes within the GPU's memory."""
        ...

    def capture(self, stream: Any, work: Callable[[], None]) -> Graph:  # noqa: ANN401
        """Record what a function gives to a stream; nothing of it is done yet.

        Raises:
            DeviceError: some of it cannot be recorded, or the binding has no graphs.
            Exception: whatever the function raised; the stream is as before.
        """
        ...


def binding_installed(name: str) -> bool:
    """Whether a binding is installed; it has not been loaded."""
    try:
        return importlib.util.find_spec(_MODULES[name]) is not None
    except ImportError:
        return False


def binding_version(name: str) -> str | None:
    """A binding's version, None where its package does not tell; it has not been loaded."""
    try:
        return metadata.version(_PACKAGES[name])
    except metadata.PackageNotFoundError:
        return None


def open_device(binding: str = "auto") -> Device:
    """The first GPU. It stays open for the life of the process and is the same for everybody who asks.

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
            from engines.tensorrt.device_cuda import open_cuda_device

            return open_cuda_device()
        from engines.tensorrt.device_pycuda import open_pycuda_device

        return open_pycuda_device()
    missing = " nor ".join(BINDINGS) if binding == "auto" else binding
    raise RuntimeUnavailableError(
        f"the GPU is driven through a Python binding to CUDA, and {'neither ' if binding == 'auto' else ''}{missing} is "
        f"installed; pip install {BINDINGS[0] if binding == 'auto' else binding}"
    )
