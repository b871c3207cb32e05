"""The GPU as the runtime sees it: memory, streams, events and graphs behind one Protocol, with one implementation per binding.

A device uses CUDA's primary context, which torch and CuPy use as well, so that arrays of these libraries can be used directly.
It is retained once for the life of the process. Any thread can use the device after making it current with `current()`, so the
GPU needs no thread of its own. The GPU is the first one of CUDA_VISIBLE_DEVICES.
"""

from __future__ import annotations

from collections.abc import Callable
from contextlib import AbstractContextManager
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Protocol

import numpy as np
from numpy.typing import NDArray

from engines.roofline import GpuFigures

NO_DRIVER = (
    "no NVIDIA driver was found (libcuda is missing): install the driver of this machine's GPU, or run on a machine with one"
)
NO_GPU = "the NVIDIA driver finds no GPU: look at `nvidia-smi` and at CUDA_VISIBLE_DEVICES"

LEGACY_STREAM = 1
"""CUDA's default stream, as numbered in DLPack and `__cuda_array_interface__`."""


BOARDS = (Path("/proc/device-tree/model"), Path("/tmp/nv_jetson_model"))
"""Files in which a Jetson names its board. Containers do not see the first; the user mounts it as the second."""


def board_name(gpu: str) -> str:
    """A GPU's name with that of its board, if there is one: the driver calls every Orin the same, but an engine fits only
    one."""
    for path in BOARDS:
        try:
            board = path.read_text(encoding="utf-8").strip("\0 \n")
        except (OSError, UnicodeDecodeError):
            continue
        if board:
            return f"{gpu} ({board})"
    return gpu


@dataclass(frozen=True)
class Gpu:
    """The local GPU.

    Attributes:
        name: the driver's name for it.
        compute_capability: such as `8.9`.
        driver: the driver's CUDA version, such as `CUDA 13.0`.
    """

    name: str
    compute_capability: str
    driver: str


class DeviceMemory(Protocol):
    """A block of the GPU's memory.

    Attributes:
        address: its start; a multiple of 256 bytes.
        size: bytes.
    """

    address: int
    size: int

    def free(self) -> None:
        """Free it; calling it again does nothing."""
        ...


class PinnedMemory(Protocol):
    """A block of host memory that the GPU reads and writes directly.

    Attributes:
        array: the memory, as uint8 [size].
    """

    array: NDArray[np.uint8]

    def free(self) -> None:
        """Free it; calling it again does nothing. The array must not be used any more."""
        ...


class Stream(Protocol):
    """A queue of work that the GPU does in order.

    Attributes:
        handle: its handle for TensorRT.
    """

    handle: int

    def synchronize(self) -> None:
        """Wait until all its work is done.

        Raises:
            DeviceError: some of it failed.
        """
        ...

    def wait_for(self, handle: int) -> None:
        """Let its next work wait for all work that is now queued on another library's stream."""
        ...

    def free(self) -> None:
        """Free it; calling it again does nothing."""
        ...


class Event(Protocol):
    """A point in a stream's work."""

    def record(self, stream: Any) -> None:  # noqa: ANN401 - a stream of the same binding
        """Put it after all work that is now queued on the stream."""
        ...

    def milliseconds_since(self, earlier: Any) -> float:  # noqa: ANN401 - an event of the same binding
        """The GPU's time between two events that have both passed, ms."""
        ...

    def free(self) -> None:
        """Free it; calling it again does nothing."""
        ...


class Graph(Protocol):
    """Work that was recorded once and is launched as a whole."""

    def launch(self, stream: Any) -> None:  # noqa: ANN401 - a stream of the same binding
        """Queue it on a stream."""
        ...

    def free(self) -> None:
        """Free it; calling it again does nothing."""
        ...


class Device(Protocol):
    """A GPU. Everything except its attributes must be used, and freed, within `current()`.

    Attributes:
        gpu: which one it is.
        binding: the binding to CUDA, and its version.
        has_graphs: whether the binding can record graphs.
    """

    gpu: Gpu
    binding: str
    has_graphs: bool

    def current(self) -> AbstractContextManager[None]:
        """Make it current in the calling thread; afterwards the previous context is current again."""
        ...

    def synchronize(self) -> None:
        """Wait until the GPU has finished all work, of any library.

        Raises:
            DeviceError: some of it failed.
        """
        ...

    def figures(self) -> GpuFigures:
        """Its number of multiprocessors, and the speed of GPU and memory."""
        ...

    def free_bytes(self) -> int:
        """Free memory of the GPU, bytes."""
        ...

    def allocate(self, size: int) -> DeviceMemory:
        """Allocate `size` bytes of the GPU's memory.

        Raises:
            DeviceMemoryError: not enough is free.
        """
        ...

    def pin(self, size: int) -> PinnedMemory:
        """Allocate `size` bytes of pinned host memory.

        Raises:
            DeviceMemoryError: not enough is free.
        """
        ...

    def stream(self) -> Any:  # noqa: ANN401 - a Stream
        """A new stream."""
        ...

    def event(self) -> Any:  # noqa: ANN401 - an Event
        """A new event that records the time."""
        ...

    def copy_in(self, address: int, host: NDArray[np.uint8], stream: Any) -> None:  # noqa: ANN401
        """Queue a copy of pinned memory to the GPU on a stream."""
        ...

    def copy_out(self, host: NDArray[np.uint8], address: int, stream: Any) -> None:  # noqa: ANN401
        """Queue a copy from the GPU on a stream that fills a block of pinned memory."""
        ...

    def copy_within(self, address: int, source: int, size: int, stream: Any) -> None:  # noqa: ANN401
        """Queue a copy of `size` bytes within the GPU's memory on a stream."""
        ...

    def capture(self, stream: Any, work: Callable[[], None]) -> Graph:  # noqa: ANN401
        """Record the work that a function queues on a stream, without running it.

        Raises:
            DeviceError: some of it cannot be recorded, or the binding has no graphs.
            Exception: whatever the function raised; the stream is unchanged.
        """
        ...
