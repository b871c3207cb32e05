"""The GPU as the runtime sees it: memory, streams, events and graphs behind one Protocol, with one implementation per binding.

A device uses CUDA's primary context, which torch and CuPy use as well. It is retained once for the life of the process, and any
thread makes it current with `current()` before it uses the device. So arrays of those libraries can be used directly, and the
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
"""CUDA's default stream, as DLPack and `__cuda_array_interface__` call it."""


BOARDS = (Path("/proc/device-tree/model"), Path("/tmp/nv_jetson_model"))
"""Where a Jetson tells which board it is. Containers do not see the first; who starts them mounts it to the second."""


def board_name(gpu: str) -> str:
    """A GPU's name with the board's, where there is one: the driver calls every Orin the same, an engine fits but one."""
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
        name: as the driver gives it.
        compute_capability: such as `8.9`.
        driver: the CUDA version that the driver is of, such as `CUDA 13.0`.
    """

    name: str
    compute_capability: str
    driver: str


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

    def synchronize(self) -> None:
        """Wait until the GPU has done all that it was given, by any library.

        Raises:
            DeviceError: some of it failed.
        """
        ...

    def figures(self) -> GpuFigures:
        """How many multiprocessors it has, and how fast it and its memory are."""
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
