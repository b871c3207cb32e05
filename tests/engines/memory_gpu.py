"""A simulated GPU in the host's memory, for tests of code that drives one: CUDA's driver, and pycuda on top of it.

It is stricter than a real one. Work is done as late as possible, so that a buffer that is reused too early is noticed; calls
without a current context fail; memory that is not allocated may not be touched; a context whose work is in a graph may not
change. Violations are listed in `Driver.violations`.
"""

import collections
import ctypes
import enum
import itertools
import random
import threading
import types
import weakref

import numpy as np

CROP_BYTES = 256 * 256 * 3

DTYPES = {"UINT8": np.uint8, "FLOAT": np.float32, "HALF": np.float16, "INT64": np.int64}


class Code(enum.IntEnum):
    CUDA_SUCCESS = 0
    CUDA_ERROR_INVALID_VALUE = 1
    CUDA_ERROR_OUT_OF_MEMORY = 2
    CUDA_ERROR_NO_DEVICE = 100
    CUDA_ERROR_INVALID_CONTEXT = 201
    CUDA_ERROR_INVALID_HANDLE = 400
    CUDA_ERROR_NOT_READY = 600
    CUDA_ERROR_STREAM_CAPTURE_UNSUPPORTED = 900


class _FailedError(Exception):
    """An error code that a call returns instead of a value."""


def _needs_context(method):
    def call(self, *arguments):
        if not self.contexts:
            return (Code.CUDA_ERROR_INVALID_CONTEXT, None)
        try:
            with self._lock:
                found = method(self, *arguments)
        except _FailedError as failure:
            return (failure.args[0], None)
        return (Code.CUDA_SUCCESS, *([] if found is None else found if isinstance(found, tuple) else [found]))

    return call


class Driver:
    """Replaces `cuda.bindings.driver` for `CudaDevice`.

    Attributes:
        memory: bytes on the GPU.
        live: numbers of blocks, pinned blocks, streams, events and graphs that are not freed.
        engines: the engines that are still referenced.
        violations: what would have failed on a real GPU.
    """

    class CUdevice_attribute:  # noqa: N801 - CUDA's name
        CU_DEVICE_ATTRIBUTE_COMPUTE_CAPABILITY_MAJOR, CU_DEVICE_ATTRIBUTE_COMPUTE_CAPABILITY_MINOR = 75, 76
        CU_DEVICE_ATTRIBUTE_MULTIPROCESSOR_COUNT, CU_DEVICE_ATTRIBUTE_CLOCK_RATE = 16, 13
        CU_DEVICE_ATTRIBUTE_MEMORY_CLOCK_RATE, CU_DEVICE_ATTRIBUTE_GLOBAL_MEMORY_BUS_WIDTH = 36, 37
        CU_DEVICE_ATTRIBUTE_L2_CACHE_SIZE = 38

    class CUstream_flags:  # noqa: N801
        CU_STREAM_NON_BLOCKING = 1

    class CUstreamCaptureMode:
        CU_STREAM_CAPTURE_MODE_THREAD_LOCAL = 1

    def __init__(self, memory=1 << 30, *, devices=1, seed=0):
        self.memory, self.devices = memory, devices
        self.random = random.Random(seed)
        self.violations = []
        self.captures = self.launches = self.copies = self.allocations = 0
        self._local, self._lock = threading.local(), threading.RLock()
        self._names = itertools.count(1000)
        self._blocks, self._pinned, self._queues, self._events, self._graphs = {}, {}, {1: []}, {}, {}
        self._recording = {}
        self.engines = weakref.WeakSet()
        self._graves = collections.deque(maxlen=64)
        self._clock = 0.0

    @property
    def contexts(self):
        """The calling thread's stack of contexts."""
        if not hasattr(self._local, "contexts"):
            self._local.contexts = []
        return self._local.contexts

    @property
    def live(self):
        return len(self._blocks) + len(self._pinned) + len(self._queues) - 1 + len(self._events) + len(self._graphs)

    # Calls that need no context.

    def cuInit(self, flags):  # noqa: N802
        return (Code.CUDA_SUCCESS if self.devices else Code.CUDA_ERROR_NO_DEVICE,)

    def cuDeviceGetCount(self):  # noqa: N802
        return Code.CUDA_SUCCESS, self.devices

    def cuDeviceGet(self, ordinal):  # noqa: N802
        return Code.CUDA_SUCCESS, ordinal

    def cuDeviceGetAttribute(self, attribute, device):  # noqa: N802
        return Code.CUDA_SUCCESS, {75: 8, 76: 9, 16: 128, 13: 2_520_000, 36: 10_501_000, 37: 384, 38: 72 << 20}[attribute]

    def cuDeviceGetName(self, length, device):  # noqa: N802
        return Code.CUDA_SUCCESS, b"GPU in memory" + bytes(length - 13)

    def cuDriverGetVersion(self):  # noqa: N802
        return Code.CUDA_SUCCESS, 13010

    def cuDevicePrimaryCtxRetain(self, device):  # noqa: N802
        return Code.CUDA_SUCCESS, "primary"

    def cuCtxPushCurrent(self, context):  # noqa: N802
        self.contexts.append(context)
        return (Code.CUDA_SUCCESS,)

    def cuCtxPopCurrent(self):  # noqa: N802
        return Code.CUDA_SUCCESS, self.contexts.pop()

    # Memory.

    @_needs_context
    def cuMemGetInfo(self):  # noqa: N802
        return self._free(), self.memory

    @_needs_context
    def cuMemAlloc(self, size):  # noqa: N802
        if size > self._free():
            raise _FailedError(Code.CUDA_ERROR_OUT_OF_MEMORY)
        return self._new_block(self._blocks, size)

    @_needs_context
    def cuMemFree(self, address):  # noqa: N802
        self._drop_block(self._blocks, address)

    @_needs_context
    def cuMemHostAlloc(self, size, flags):  # noqa: N802
        return self._new_block(self._pinned, size)

    @_needs_context
    def cuMemFreeHost(self, address):  # noqa: N802
        self._drop_block(self._pinned, address)

    @_needs_context
    def cuMemcpyHtoDAsync(self, target, source, size, stream):  # noqa: N802
        self._copy(self._blocks, target, self._pinned, source, size, stream)

    @_needs_context
    def cuMemcpyDtoHAsync(self, target, source, size, stream):  # noqa: N802
        self._copy(self._pinned, target, self._blocks, source, size, stream)

    @_needs_context
    def cuMemcpyDtoDAsync(self, target, source, size, stream):  # noqa: N802
        self.copies += 1
        self._copy(self._blocks, target, self._blocks, source, size, stream)

    # Streams and events.

    @_needs_context
    def cuCtxSynchronize(self):  # noqa: N802
        for stream in self._queues:
            while self._queues[stream]:
                self._advance(stream)

    @_needs_context
    def cuStreamCreate(self, flags):  # noqa: N802
        name = next(self._names)
        self._queues[name] = []
        return name

    @_needs_context
    def cuStreamDestroy(self, stream):  # noqa: N802
        while self._queues.get(stream):  # its work continues without it
            self._advance(stream)
        self._drop(self._queues, stream)

    @_needs_context
    def cuStreamSynchronize(self, stream):  # noqa: N802
        for other in self._queues:  # some of the other streams' work may be done by now, or none
            for _ in range(self.random.randrange(3)):
                self._advance(other)
        while self._queues[stream]:
            self._advance(stream)

    @_needs_context
    def cuStreamWaitEvent(self, stream, event, flags):  # noqa: N802
        passed = self._events[event]
        if passed["stream"] is not None:
            waited = passed["stream"]

            def wait():
                while self._queues[waited]:
                    self._advance(waited)

            self.give(stream, wait)

    @_needs_context
    def cuEventCreate(self, flags):  # noqa: N802
        name = next(self._names)
        self._events[name] = {"time": None, "stream": None}
        return name

    @_needs_context
    def cuEventDestroy(self, event):  # noqa: N802
        self._drop(self._events, event)

    @_needs_context
    def cuEventRecord(self, event, stream):  # noqa: N802
        record = self._events[event]
        record.update(time=None, stream=stream)

        def pass_by():
            self._clock += 0.25
            record["time"] = self._clock

        self.give(stream, pass_by)

    @_needs_context
    def cuEventElapsedTime(self, first, second):  # noqa: N802
        times = [self._events[event]["time"] for event in (first, second)]
        if None in times:
            raise _FailedError(Code.CUDA_ERROR_NOT_READY)
        return times[1] - times[0]

    # Graphs.

    @_needs_context
    def cuStreamBeginCapture(self, stream, mode):  # noqa: N802
        self._recording[stream] = []

    @_needs_context
    def cuStreamEndCapture(self, stream):  # noqa: N802
        name = next(self._names)
        self._graphs[name] = self._recording.pop(stream)
        self.captures += 1
        return name

    @_needs_context
    def cuGraphInstantiate(self, graph, flags):  # noqa: N802
        name = next(self._names)
        self._graphs[name] = list(self._graphs[graph])
        return name

    @_needs_context
    def cuGraphLaunch(self, graph, stream):  # noqa: N802
        work = self._graphs[graph]
        self.launches += 1
        self.give(stream, lambda: [step() for step in work])

    @_needs_context
    def cuGraphDestroy(self, graph):  # noqa: N802
        self._drop(self._graphs, graph)

    @_needs_context
    def cuGraphExecDestroy(self, graph):  # noqa: N802
        self._drop(self._graphs, graph)

    # For the TensorRT below, and for tests.

    def give(self, stream, work):
        """Queue work on a stream, or add it to its capture."""
        self._recording.get(stream, self._queues[stream]).append(work)

    def records(self, stream):
        return stream in self._recording

    def read(self, address, size):
        self._inside(self._blocks, address, size)
        return ctypes.string_at(address, size)

    def write(self, address, data):
        self._inside(self._blocks, address, len(data))
        ctypes.memmove(address, data, len(data))

    def _advance(self, stream):
        if self._queues[stream]:
            self._queues[stream].pop(0)()

    def _free(self):
        return self.memory - sum(size for _, size in self._blocks.values())

    def _new_block(self, blocks, size):
        self.allocations += 1
        buffer = ctypes.create_string_buffer(size + 256)
        address = -(-ctypes.addressof(buffer) // 256) * 256
        ctypes.memset(address, 0xA5, size)  # new memory is not cleared
        blocks[address] = buffer, size
        return address

    def _drop_block(self, blocks, address):
        if address in blocks:
            self._graves.append(blocks[address])  # work that still uses it must not find another block there
        self._drop(blocks, address)

    def _drop(self, owned, key):
        if key not in owned:
            self.violations.append("something was given back twice")
            raise _FailedError(Code.CUDA_ERROR_INVALID_HANDLE)
        del owned[key]

    def _copy(self, targets, target, sources, source, size, stream):
        def copy():
            self._inside(targets, target, size)
            self._inside(sources, source, size)
            ctypes.memmove(target, source, size)

        self.give(stream, copy)

    def _inside(self, blocks, address, size):
        if not any(begin <= address and address + size <= begin + length for begin, (_, length) in blocks.items()):
            self.violations.append("memory was touched that is not allocated")


def pycuda_driver(driver):
    """Replaces `pycuda.driver` for `PycudaDevice`, with the same GPU."""
    module = types.ModuleType("pycuda.driver")

    class Error(Exception):
        pass

    class MemoryError(Error):
        pass

    def do(name, *arguments):
        code, *values = getattr(driver, name)(*arguments)
        if code == Code.CUDA_ERROR_NO_DEVICE:
            raise Error(f"{name} failed: no CUDA-capable device is detected")
        if code:
            raise (MemoryError if code == Code.CUDA_ERROR_OUT_OF_MEMORY else Error)(f"{name} failed: {code.name}")
        return values[0] if len(values) == 1 else tuple(values)

    class Context:
        def push(self):
            do("cuCtxPushCurrent", "primary")

        @staticmethod
        def pop():
            do("cuCtxPopCurrent")

        @staticmethod
        def synchronize():
            for stream in list(driver._queues):
                do("cuStreamSynchronize", stream)

    class Device:
        def __init__(self, ordinal):
            self.ordinal = do("cuDeviceGet", ordinal)

        @staticmethod
        def count():
            return do("cuDeviceGetCount")

        def name(self):
            return do("cuDeviceGetName", 256, self.ordinal).split(b"\0")[0].decode()

        def compute_capability(self):
            return do("cuDeviceGetAttribute", 75, self.ordinal), do("cuDeviceGetAttribute", 76, self.ordinal)

        def get_attribute(self, attribute):
            return do("cuDeviceGetAttribute", attribute, self.ordinal)

        def retain_primary_context(self):
            return Context()

    class Allocation:
        def __init__(self, size):
            self.address = do("cuMemAlloc", size)

        def __int__(self):
            return self.address

        def free(self):
            do("cuMemFree", self.address)

    class HostAllocation:
        def __init__(self, size):
            self.address = do("cuMemHostAlloc", size, 0)
            self.__array_interface__ = {"shape": (size,), "typestr": "|u1", "data": (self.address, False), "version": 3}

        def free(self):
            do("cuMemFreeHost", self.address)

    class Stream:
        def __init__(self, flags=0):
            self.handle = do("cuStreamCreate", flags)

        def synchronize(self):
            do("cuStreamSynchronize", self.handle)

        def wait_for_event(self, event):
            do("cuStreamWaitEvent", self.handle, event.raw, 0)

        def __del__(self):
            do("cuStreamDestroy", self.handle)

    class Event:
        def __init__(self, flags=0):
            self.raw = do("cuEventCreate", flags)

        def record(self, stream=None):
            do("cuEventRecord", self.raw, stream.handle if stream else 1)
            return self

        def time_since(self, earlier):
            return do("cuEventElapsedTime", earlier.raw, self.raw)

        def __del__(self):
            do("cuEventDestroy", self.raw)

    module.device_attribute = types.SimpleNamespace(
        MULTIPROCESSOR_COUNT=16, CLOCK_RATE=13, MEMORY_CLOCK_RATE=36, GLOBAL_MEMORY_BUS_WIDTH=37, L2_CACHE_SIZE=38
    )
    module.Error, module.MemoryError, module.Context, module.Device = Error, MemoryError, Context, Device
    module.Stream, module.Event, module.mem_alloc = Stream, Event, Allocation
    module.init = lambda: do("cuInit", 0) and None
    module.get_driver_version = lambda: do("cuDriverGetVersion")
    module.mem_get_info = lambda: do("cuMemGetInfo")
    module.pagelocked_empty = lambda size, dtype: np.asarray(HostAllocation(size))
    module.memcpy_htod_async = lambda target, host, stream: do(
        "cuMemcpyHtoDAsync", target, host.ctypes.data, host.nbytes, stream.handle
    )
    module.memcpy_dtoh_async = lambda host, source, stream: do(
        "cuMemcpyDtoHAsync", host.ctypes.data, source, host.nbytes, stream.handle
    )
    module.memcpy_dtod_async = lambda target, source, size, stream: do("cuMemcpyDtoDAsync", target, source, size, stream.handle)
    return module
