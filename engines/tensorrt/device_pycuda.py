"""The GPU through pycuda, which many Jetsons have; it compiles only with the driver and nvcc installed. Up to 2026.1 it has no
graphs.

Written from pycuda's documentation and source. It has never run: pycuda builds only on a machine with a driver.
"""

from __future__ import annotations

import importlib
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from functools import cache
from typing import Any

import numpy as np
from numpy.typing import NDArray

from convnextpose.errors import DeviceError, DeviceMemoryError, RuntimeUnavailableError
from engines.roofline import GpuFigures
from engines.tensorrt.device import LEGACY_STREAM, NO_DRIVER, NO_GPU, Gpu, Graph, board_name

_NON_BLOCKING = 1
"""CUDA's CU_STREAM_NON_BLOCKING, for which pycuda has no name."""


@cache
def open_pycuda_device() -> PycudaDevice:
    """The first GPU.

    Raises:
        RuntimeUnavailableError: pycuda is missing or does not load, or there is no driver or no GPU.
    """
    try:
        driver = importlib.import_module("pycuda.driver")
        version = importlib.import_module("pycuda").VERSION_TEXT
    except ImportError as error:
        if "libcuda" in str(error):
            raise RuntimeUnavailableError(NO_DRIVER) from error
        raise RuntimeUnavailableError(f"pycuda is missing or does not load: {error}; pip install pycuda") from error
    return PycudaDevice(driver, f"pycuda {version}")


class PycudaDevice:
    """A `Device` on pycuda: the module `pycuda.driver` or a compatible object."""

    has_graphs = False

    def __init__(self, driver: Any, binding: str) -> None:  # noqa: ANN401 - the module
        self._driver = driver
        self.binding = binding
        try:
            driver.init()
            if driver.Device.count() == 0:
                raise RuntimeUnavailableError(NO_GPU)
            device = driver.Device(0)
        except driver.Error as error:
            # Without a GPU `init` fails with CUDA's message for it.
            reason = NO_GPU if "no CUDA-capable device" in str(error) else f"pycuda could not start CUDA: {error}"
            raise RuntimeUnavailableError(reason) from error
        major, minor = device.compute_capability()
        version = driver.get_driver_version()
        self.gpu = Gpu(board_name(device.name()), f"{major}.{minor}", f"CUDA {version // 1000}.{version % 1000 // 10}")
        self._ordinal = device
        with self.errors("open the GPU's context"):
            self._context = device.retain_primary_context()

    @contextmanager
    def current(self) -> Iterator[None]:
        """Make it current in the calling thread; afterwards the previous context is current again."""
        # pycuda frees nothing unless its own records say that the context is this thread's: hence its push and pop.
        with self.errors("make the GPU's context current"):
            self._context.push()
        try:
            yield
        finally:
            with self.errors("leave the GPU's context"):
                self._driver.Context.pop()

    def synchronize(self) -> None:
        """Wait until the GPU has finished all work, of any library."""
        with self.errors("finish the queued work"):
            self._driver.Context.synchronize()

    def figures(self) -> GpuFigures:
        """Its number of multiprocessors, and the speed of GPU and memory."""
        kinds = self._driver.device_attribute
        names = ("MULTIPROCESSOR_COUNT", "CLOCK_RATE", "MEMORY_CLOCK_RATE", "GLOBAL_MEMORY_BUS_WIDTH", "L2_CACHE_SIZE")
        return GpuFigures.of(*(int(self._ordinal.get_attribute(getattr(kinds, name))) for name in names))

    def free_bytes(self) -> int:
        """Free memory of the GPU, bytes."""
        free, _ = self._driver.mem_get_info()
        return int(free)

    def allocate(self, size: int) -> _Memory:
        """Allocate `size` bytes of the GPU's memory.

        Raises:
            DeviceMemoryError: not enough is free.
        """
        with self.errors(f"allocate {size:,} bytes on the GPU"):
            return _Memory(self._driver, self._driver.mem_alloc(max(size, 1)), size)

    def pin(self, size: int) -> _Pinned:
        """Allocate `size` bytes of pinned host memory.

        Raises:
            DeviceMemoryError: not enough is free.
        """
        with self.errors(f"pin {size:,} bytes"):
            return _Pinned(self._driver, self._driver.pagelocked_empty(size, np.uint8))

    def stream(self) -> _Stream:
        """A new stream, which waits for no other stream, not even for CUDA's default one."""
        with self.errors("create a stream"):
            return _Stream(self, self._driver, self._driver.Stream(_NON_BLOCKING))

    def event(self) -> _Event:
        """A new event that records the time."""
        with self.errors("create an event"):
            return _Event(self, self._driver.Event())

    def copy_in(self, address: int, host: NDArray[np.uint8], stream: _Stream) -> None:
        """Queue a copy of pinned memory to the GPU on a stream."""
        with self.errors("copy to the GPU"):
            self._driver.memcpy_htod_async(address, host, stream.raw)

    def copy_out(self, host: NDArray[np.uint8], address: int, stream: _Stream) -> None:
        """Queue a copy from the GPU on a stream that fills a block of pinned memory."""
        with self.errors("copy from the GPU"):
            self._driver.memcpy_dtoh_async(host, address, stream.raw)

    def copy_within(self, address: int, source: int, size: int, stream: _Stream) -> None:
        """Queue a copy of `size` bytes within the GPU's memory on a stream."""
        with self.errors("copy within the GPU"):
            self._driver.memcpy_dtod_async(address, source, size, stream.raw)

    def capture(self, stream: _Stream, work: Callable[[], None]) -> Graph:
        """Always fails: pycuda has no graphs.

        Raises:
            DeviceError: always.
        """
        raise DeviceError(f"{self.binding} has no CUDA graphs; pip install cuda-python")

    @contextmanager
    def errors(self, purpose: str) -> Iterator[None]:
        """Convert pycuda's errors to those of the project.

        Raises:
            DeviceMemoryError: there is not enough memory.
            DeviceError: it failed otherwise.
        """
        try:
            yield
        except self._driver.MemoryError as error:
            raise DeviceMemoryError(f"CUDA could not {purpose}: {error}") from error
        except self._driver.Error as error:
            raise DeviceError(f"CUDA could not {purpose}: {error}") from error


class _Owned:
    """An object of pycuda that is freed once."""

    def __init__(self, driver: Any, raw: Any) -> None:  # noqa: ANN401
        self._driver, self._raw = driver, raw

    def free(self) -> None:
        raw, self._raw = self._raw, None
        if raw is not None:
            with suppress(self._driver.Error):  # freeing fails after an earlier failure, which the caller learns of
                raw.free()


class _Memory(_Owned):
    def __init__(self, driver: Any, raw: Any, size: int) -> None:  # noqa: ANN401
        super().__init__(driver, raw)
        self.address, self.size = int(raw), size


class _Pinned(_Owned):
    def __init__(self, driver: Any, array: NDArray[np.uint8]) -> None:  # noqa: ANN401
        super().__init__(driver, array.base)  # pycuda's PagelockedHostAllocation
        self.array = array


class _Stream:
    def __init__(self, device: PycudaDevice, driver: Any, raw: Any) -> None:  # noqa: ANN401
        self._device, self._driver = device, driver
        self.raw = raw
        self.handle = int(raw.handle)

    def synchronize(self) -> None:
        with self._device.errors("finish the queued work"):
            self.raw.synchronize()

    def wait_for(self, handle: int) -> None:
        with self._device.errors("wait for another stream"):
            if handle == LEGACY_STREAM:
                self.raw.wait_for_event(self._driver.Event().record())
            else:  # pycuda cannot wait for other libraries' streams: wait for all work of the GPU
                self._driver.Context.synchronize()

    def free(self) -> None:
        self.raw = None  # pycuda frees it with the last reference


class _Event:
    def __init__(self, device: PycudaDevice, raw: Any) -> None:  # noqa: ANN401
        self._device = device
        self.raw = raw

    def record(self, stream: _Stream) -> None:
        with self._device.errors("measure the time"):
            self.raw.record(stream.raw)

    def milliseconds_since(self, earlier: _Event) -> float:
        with self._device.errors("measure the time"):
            return float(self.raw.time_since(earlier.raw))

    def free(self) -> None:
        self.raw = None
