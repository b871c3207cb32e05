"""The GPU through cuda-python: wheels for x86-64 and aarch64, no compiler, with graphs."""

from __future__ import annotations

import ctypes
import importlib
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from functools import cache
from typing import Any

import numpy as np
from numpy.typing import NDArray

from convnextpose.errors import DeviceError, DeviceMemoryError, RuntimeUnavailableError
from engines.roofline import GpuFigures
from engines.tensorrt.device import NO_DRIVER, NO_GPU, Gpu, board_name


@cache
def open_cuda_device() -> CudaDevice:
    """The first GPU.

    Raises:
        RuntimeUnavailableError: cuda-python is missing or too old, or there is no driver or no GPU.
    """
    try:
        driver = importlib.import_module("cuda.bindings.driver")
        version = importlib.import_module("cuda.bindings").__version__
    except ImportError as error:
        raise RuntimeUnavailableError(
            f"cuda-python is missing, too old or does not load: {error}; pip install --upgrade 'cuda-python>=12'"
        ) from error
    return CudaDevice(driver, f"cuda-python {version}")


class CudaDevice:
    """A `Device` on CUDA's driver interface: the module `cuda.bindings.driver` or a compatible object."""

    has_graphs = True

    def __init__(self, driver: Any, binding: str) -> None:  # noqa: ANN401 - the module
        self._driver = driver
        self.binding = binding
        try:
            code = driver.cuInit(0)[0]
        except RuntimeError as error:  # DynamicLibNotFoundError: the binding loads libcuda at the first call
            raise RuntimeUnavailableError(NO_DRIVER) from error
        if code.name in ("CUDA_ERROR_NO_DEVICE", "CUDA_ERROR_INVALID_DEVICE"):
            raise RuntimeUnavailableError(NO_GPU)
        self._check((code,), "start")
        if self._check(driver.cuDeviceGetCount(), "count the GPUs") == 0:
            raise RuntimeUnavailableError(NO_GPU)
        device = self._check(driver.cuDeviceGet(0), "find the GPU")
        kinds = driver.CUdevice_attribute
        major, minor = (
            self._check(driver.cuDeviceGetAttribute(kind, device), "read the GPU's attributes")
            for kind in (
                kinds.CU_DEVICE_ATTRIBUTE_COMPUTE_CAPABILITY_MAJOR,
                kinds.CU_DEVICE_ATTRIBUTE_COMPUTE_CAPABILITY_MINOR,
            )
        )
        name = self._check(driver.cuDeviceGetName(256, device), "read the GPU's name")
        version = self._check(driver.cuDriverGetVersion(), "read the driver's version")
        self.gpu = Gpu(
            board_name(name.split(b"\0")[0].decode()), f"{major}.{minor}", f"CUDA {version // 1000}.{version % 1000 // 10}"
        )
        self._ordinal = device
        self._context = self._check(driver.cuDevicePrimaryCtxRetain(device), "open the GPU's context")

    @contextmanager
    def current(self) -> Iterator[None]:
        """Make it current in the calling thread; afterwards the previous context is current again."""
        self._check(self._driver.cuCtxPushCurrent(self._context), "make the GPU's context current")
        try:
            yield
        finally:
            self._check(self._driver.cuCtxPopCurrent(), "leave the GPU's context")

    def synchronize(self) -> None:
        """Wait until the GPU has finished all work, of any library."""
        self.call("cuCtxSynchronize", "finish the queued work")

    def figures(self) -> GpuFigures:
        """Its number of multiprocessors, and the speed of GPU and memory."""
        kinds = self._driver.CUdevice_attribute
        names = ("MULTIPROCESSOR_COUNT", "CLOCK_RATE", "MEMORY_CLOCK_RATE", "GLOBAL_MEMORY_BUS_WIDTH", "L2_CACHE_SIZE")
        asked = [getattr(kinds, f"CU_DEVICE_ATTRIBUTE_{name}") for name in names]
        told = (self.call("cuDeviceGetAttribute", "read the GPU's attributes", kind, self._ordinal) for kind in asked)
        return GpuFigures.of(*map(int, told))

    def free_bytes(self) -> int:
        """Free memory of the GPU, bytes."""
        free, _ = self._check(self._driver.cuMemGetInfo(), "read the free memory")
        return int(free)

    def allocate(self, size: int) -> _Memory:
        """Allocate `size` bytes of the GPU's memory.

        Raises:
            DeviceMemoryError: not enough is free.
        """
        pointer = self._check(self._driver.cuMemAlloc(max(size, 1)), f"allocate {size:,} bytes on the GPU")
        return _Memory(self, int(pointer), size)

    def pin(self, size: int) -> _Pinned:
        """Allocate `size` bytes of pinned host memory.

        Raises:
            DeviceMemoryError: not enough is free.
        """
        return _Pinned(self, int(self._check(self._driver.cuMemHostAlloc(max(size, 1), 0), f"pin {size:,} bytes")), size)

    def stream(self) -> _Stream:
        """A new stream, which waits for no other stream, not even for CUDA's default one."""
        # If it waited for the default stream, recording a graph would fail for anybody who uses that stream meanwhile.
        flag = int(self._driver.CUstream_flags.CU_STREAM_NON_BLOCKING)
        return _Stream(self, self._check(self._driver.cuStreamCreate(flag), "create a stream"))

    def event(self) -> _Event:
        """A new event that records the time."""
        return _Event(self, self._check(self._driver.cuEventCreate(0), "create an event"))

    def copy_in(self, address: int, host: NDArray[np.uint8], stream: _Stream) -> None:
        """Queue a copy of pinned memory to the GPU on a stream."""
        self.call("cuMemcpyHtoDAsync", "copy to the GPU", address, host.ctypes.data, host.nbytes, stream.raw)

    def copy_out(self, host: NDArray[np.uint8], address: int, stream: _Stream) -> None:
        """Queue a copy from the GPU on a stream that fills a block of pinned memory."""
        self.call("cuMemcpyDtoHAsync", "copy from the GPU", host.ctypes.data, address, host.nbytes, stream.raw)

    def copy_within(self, address: int, source: int, size: int, stream: _Stream) -> None:
        """Queue a copy of `size` bytes within the GPU's memory on a stream."""
        self.call("cuMemcpyDtoDAsync", "copy within the GPU", address, source, size, stream.raw)

    def capture(self, stream: _Stream, work: Callable[[], None]) -> _Graph:
        """Record the work that a function queues on a stream, without running it.

        Raises:
            DeviceError: some of it cannot be recorded.
            Exception: whatever the function raised; the stream is unchanged.
        """
        # Other threads may allocate and synchronise meanwhile: this is not part of the recording.
        mode = self._driver.CUstreamCaptureMode.CU_STREAM_CAPTURE_MODE_THREAD_LOCAL
        self.call("cuStreamBeginCapture", "begin to capture a graph", stream.raw, mode)
        try:
            work()
        except BaseException:
            code, graph = self._driver.cuStreamEndCapture(stream.raw)
            if int(code) == 0:
                self._driver.cuGraphDestroy(graph)
            raise
        graph = self.call("cuStreamEndCapture", "capture a graph", stream.raw)
        try:
            return _Graph(self, self.call("cuGraphInstantiate", "instantiate a graph", graph, 0))
        finally:
            self.call("cuGraphDestroy", "free a captured graph", graph)

    def call(self, function: str, purpose: str, *arguments: Any) -> Any:  # noqa: ANN401
        """The result of a function of the driver.

        Raises:
            DeviceMemoryError: there is not enough memory.
            DeviceError: it failed otherwise.
        """
        return self._check(getattr(self._driver, function)(*arguments), purpose)

    def _check(self, result: tuple[Any, ...], purpose: str) -> Any:  # noqa: ANN401
        code, *values = result
        if int(code) != 0:
            kind = DeviceMemoryError if code.name == "CUDA_ERROR_OUT_OF_MEMORY" else DeviceError
            raise kind(f"CUDA could not {purpose}: {code.name}")
        return values[0] if len(values) == 1 else tuple(values)


class _Owned:
    """An object of the driver that is freed once, by the function that its class names."""

    _FREE = ""

    def __init__(self, device: CudaDevice, raw: Any) -> None:  # noqa: ANN401
        self._device = device
        self.raw = raw

    def free(self) -> None:
        """Free it; calling it again does nothing."""
        raw, self.raw = self.raw, None
        if raw is not None:
            # Freeing fails after an earlier failure, which the caller learns of: not checked.
            getattr(self._device._driver, self._FREE)(raw)


class _Memory(_Owned):
    _FREE = "cuMemFree"

    def __init__(self, device: CudaDevice, address: int, size: int) -> None:
        super().__init__(device, address)
        self.address, self.size = address, size


class _Pinned(_Owned):
    _FREE = "cuMemFreeHost"

    def __init__(self, device: CudaDevice, address: int, size: int) -> None:
        super().__init__(device, address)
        self.array: NDArray[np.uint8] = np.ctypeslib.as_array((ctypes.c_uint8 * size).from_address(address))


class _Stream(_Owned):
    _FREE = "cuStreamDestroy"

    def __init__(self, device: CudaDevice, raw: Any) -> None:  # noqa: ANN401
        super().__init__(device, raw)
        self.handle = int(raw)

    def synchronize(self) -> None:
        self._device.call("cuStreamSynchronize", "finish the queued work", self.raw)

    def wait_for(self, handle: int) -> None:
        passed = self._device.event()
        try:
            # The driver's functions accept a plain number as any handle.
            self._device.call("cuEventRecord", "record an event on another stream", passed.raw, handle)
            self._device.call("cuStreamWaitEvent", "wait for another stream", self.raw, passed.raw, 0)
        finally:
            passed.free()  # the driver keeps it until nothing waits for it


class _Event(_Owned):
    _FREE = "cuEventDestroy"

    def record(self, stream: _Stream) -> None:
        self._device.call("cuEventRecord", "measure the time", self.raw, stream.raw)

    def milliseconds_since(self, earlier: _Event) -> float:
        return float(self._device.call("cuEventElapsedTime", "measure the time", earlier.raw, self.raw))


class _Graph(_Owned):
    _FREE = "cuGraphExecDestroy"

    def launch(self, stream: _Stream) -> None:
        self._device.call("cuGraphLaunch", "launch a graph", self.raw, stream.raw)
