"""A GPU in the host's memory, for tests of what drives one: CUDA's driver, pycuda above it, and a TensorRT that runs on it.

It is stricter than a real one. Work is done as late as may be, so that a buffer that is used again too early shows; whatever
is called without a current context fails; memory that is not allocated may not be touched; a context whose work is in a graph
may not change. What it breaks on is in `Driver.violations`.
"""

import collections
import ctypes
import enum
import hashlib
import itertools
import json
import random
import sys
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
    """A code that a call gives in place of a value."""


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
    """What `cuda.bindings.driver` is to `CudaDevice`.

    Attributes:
        memory: bytes on the GPU.
        live: how many blocks, pinned blocks, streams, events and graphs are not given back.
        engines: the engines that somebody still has.
        violations: what a real GPU would not have forgiven.
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

    # What needs no context.

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
        while self._queues.get(stream):  # its work goes on without it
            self._advance(stream)
        self._drop(self._queues, stream)

    @_needs_context
    def cuStreamSynchronize(self, stream):  # noqa: N802
        for other in self._queues:  # some of the others' work may be done by now, or none
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
        """Put work into a stream, or into what it records."""
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
        ctypes.memset(address, 0xA5, size)  # nobody cleared it
        blocks[address] = buffer, size
        return address

    def _drop_block(self, blocks, address):
        if address in blocks:
            self._graves.append(blocks[address])  # work that still wants it shall not find another block there
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
    """What `pycuda.driver` is to `PycudaDevice`, above the same GPU."""
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


class _Kind(enum.Enum):
    INPUT, OUTPUT, UINT8, FLOAT, HALF, INT64 = range(6)


FAMILIES = ("8", "10", "rtx")
"""TensorRT 8.6, 10 and RTX 1: what they have and lack, as far as running an engine goes."""


def predict(crops, joint_count=18):
    """What the engines below compute: every value of a crop counts, and every joint and axis differs."""
    weights = np.arange(1, 65, dtype=np.int64)
    sums = (crops.reshape(len(crops), -1, 64).sum(1, dtype=np.int64) * weights).sum(1) % 997
    joints = sums[:, None, None] * np.arange(1, joint_count + 1)[None, :, None] + np.array([0.25, 0.5, 0.75])
    scores = (sums[:, None] + np.arange(joint_count)) / (997 + joint_count)
    return joints.astype(np.float32), scores.astype(np.float32)


def engine_bytes(
    *,
    fewest=1,
    most=8,
    joint_count=18,
    activations=1000,
    crops_type="UINT8",
    profiles=(),
    padding=0,
    network=None,
    logits=None,
    inputs=None,
    outputs=None,
    fixed=None,
):
    """An engine file for the TensorRT below; it needs `activations` bytes for each crop, thrice that for an odd number.

    Its optimisation profiles are those given, as (fewest, most), or one from `fewest` to `most`; none with a `fixed` batch.
    It computes `predict`, or a network of the module's by its name. With a shape of logits it gives FP16 logits in place of
    joints and scores. Other inputs and outputs are given by name, as (type, shape of one item).
    """
    spec = dict(joint_count=joint_count, activations=activations, network=network, fixed=fixed)
    spec["profiles"] = [(fixed, fixed)] if fixed else profiles or [(fewest, most)]
    spec["inputs"] = inputs or {"crops": (crops_type, (256, 256, 3))}
    spec["outputs"] = outputs or {"joints": ("FLOAT", (joint_count, 3)), "scores": ("FLOAT", (joint_count,))}
    if logits is not None:
        spec["outputs"] = {"logits": ("HALF", logits)}
    return json.dumps({**spec, "padding": "x" * padding}).encode()


def tensorrt_module(driver, family="10", *, refusals=0, networks=None):
    """A TensorRT module of a family on a GPU in memory.

    Args:
        driver: the GPU.
        family: one of FAMILIES.
        refusals: how many times its engines' work cannot be recorded in graphs, before it can.
        networks: what engines may compute, by name: the inputs, in their order, to the outputs by name.

    Attributes:
        refusals: how many are left.
        failures: how many of the next inferences fail.
        compilations: RTX: for how many shapes kernels were compiled.
    """
    module = types.ModuleType("tensorrt_rtx" if family == "rtx" else "tensorrt")
    module.__version__ = {"8": "8.6.2", "10": "10.3.0", "rtx": "1.7.1.116"}[family]
    contexts = weakref.WeakSet()
    module.refusals, module.failures, module.compilations = refusals, 0, 0

    class ILogger:
        def __init__(self):
            pass

    class Logger(ILogger):
        INTERNAL_ERROR, ERROR, WARNING, INFO, VERBOSE = range(5)

        def __init__(self, min_severity=WARNING):
            assert min_severity == self.WARNING

        def log(self, severity, message):
            print(f"[TRT] [{severity.name[0]}] {message}", file=sys.stderr)

    def complain(logger, message):
        logger.log(types.SimpleNamespace(name="ERROR"), message)

    class Context:
        def __init__(self, engine):
            self.engine, self.version, self.runs = engine, 0, 0
            self.batch = self.memory = None
            self.active_optimization_profile = -1 if any(other.engine is engine for other in contexts) else 0
            self.addresses = {}
            contexts.add(self)

        def _change(self):
            self.version += 1

        def set_input_shape(self, name, shape):
            profiles = self.engine.spec["profiles"]
            fewest, most = profiles[self.active_optimization_profile] if self.active_optimization_profile >= 0 else (0, -1)
            item = self.engine.spec["inputs"].get(name, ("", None))[1]
            if tuple(shape[1:]) != tuple(item or ()) or not fewest <= shape[0] <= most:
                complain(self.engine.logger, f"shape {shape} is not in the profile")
                return False
            self._change()
            self.batch, self.runs = shape[0], 0
            return True

        def set_optimization_profile_async(self, index, stream):
            def switch():
                self.active_optimization_profile = index

            self._change()
            self.batch = None
            self.active_optimization_profile = index
            driver.give(stream, switch)
            return 0 <= index < len(self.engine.spec["profiles"])

        def set_tensor_address(self, name, address):
            if address % 256:
                driver.violations.append("an address is not a multiple of 256")
            self._change()
            self.addresses[name] = address
            return True

        def execute_async_v3(self, stream):
            needed = self.engine.needed(self.batch if family != "8" else self.engine.most)
            if self.memory is None or self.memory[1] < needed:
                driver.violations.append("activations have too little memory")
            if driver.records(stream):
                if self.runs < 2:
                    driver.violations.append("work was recorded that had not run twice")
                if module.refusals:
                    module.refusals -= 1
                    complain(self.engine.logger, "operation not permitted when stream is capturing")
                    return False
            if module.failures:
                module.failures -= 1
                complain(self.engine.logger, "1: [defaultAllocator.cpp] Error Code 1: Cuda Runtime (invalid resource handle)")
                return False
            self.runs += 1
            if family == "rtx" and self.batch not in self.engine.compiled.shapes:
                module.compilations += 1
                self.engine.compiled.shapes.add(self.batch)
            batch, places, memory, version = self.batch, dict(self.addresses), self.memory, self.version
            recorded, itself, spec = driver.records(stream), weakref.ref(self), self.engine.spec

            def work():
                if recorded and (itself() is None or itself().version != version):
                    driver.violations.append("a context changed while its work was in a graph")
                driver.write(memory[0], bytes([driver.random.randrange(256)]) * memory[1])
                given = []
                for name, (kind, shape) in spec["inputs"].items():
                    room = np.empty((batch, *shape), DTYPES[kind])
                    given.append(np.frombuffer(driver.read(places[name], room.nbytes), room.dtype).reshape(room.shape))
                if spec["network"] is None:
                    results = dict(zip(("joints", "scores"), predict(*given, spec["joint_count"]), strict=True))
                else:
                    results = networks[spec["network"]](*given)
                for name, array in results.items():
                    driver.write(places[name], array.tobytes())

            driver.give(stream, work)
            return True

    def take_memory(self, address, size):
        self._change()
        self.memory = address, size

    if family == "8":
        Context.device_memory = property(fset=lambda self, address: take_memory(self, address, driver._blocks[address][1]))
    else:
        Context.set_device_memory = take_memory
        Context.update_device_memory_size_for_shapes = lambda self: self.engine.needed(self.batch)

    class Engine:
        def __init__(self, spec, logger):
            self.spec, self.logger = spec, logger
            self.names = (*spec["inputs"], *spec["outputs"])
            self.num_io_tensors = len(self.names)
            self.num_optimization_profiles = len(spec["profiles"])
            self.compiled = None

        @property
        def most(self):
            return max(most for _, most in self.spec["profiles"])

        def needed(self, batch):
            return self.spec["activations"] * batch * (3 if batch % 2 else 1)

        def get_tensor_name(self, index):
            return self.names[index]

        def get_tensor_mode(self, name):
            return _Kind.INPUT if name in self.spec["inputs"] else _Kind.OUTPUT

        def get_tensor_dtype(self, name):
            return _Kind[{**self.spec["inputs"], **self.spec["outputs"]}[name][0]]

        def get_tensor_shape(self, name):
            return (self.spec["fixed"] or -1, *{**self.spec["inputs"], **self.spec["outputs"]}[name][1])

        def get_tensor_profile_shape(self, name, profile):
            if self.spec["fixed"]:
                driver.violations.append("an engine with a fixed batch was asked for its profile")
            fewest, most = self.spec["profiles"][profile]
            return [(count, *self.spec["inputs"][name][1]) for count in (fewest, most, most)]

        def create_engine_inspector(self):
            tensors = {"Inputs": [{"Format/Datatype": "Half"}], "Outputs": [{"Datatype": "Float"}]}
            layers = [{"Name": "stem", "LayerType": "Convolution", **tensors}, "tail"]
            return types.SimpleNamespace(get_engine_information=lambda form: json.dumps({"Layers": layers}))

    size_name = "device_memory_size" if family == "8" else "device_memory_size_v2"
    setattr(Engine, size_name, property(lambda self: self.needed(self.most)))

    def new_context(self, wanted=None):
        if family == "8" and any(other.engine is self for other in contexts):
            complain(self.logger, "Profile 0 has been chosen by another IExecutionContext")
            return None
        if family == "10" and wanted is not Strategy.USER_MANAGED:
            driver.violations.append("a context has memory of its own")
        if family == "rtx":
            if wanted.strategy is not Strategy.USER_MANAGED:
                driver.violations.append("a context has memory of its own")
            self.compiled = wanted.cache
        return Context(self)

    class Strategy(enum.Enum):
        STATIC, ON_PROFILE_CHANGE, USER_MANAGED = range(3)

    class Specialization(enum.Enum):
        LAZY, EAGER, NONE = range(3)

    class Config:
        strategy = Strategy.STATIC
        dynamic_shapes_kernel_specialization_strategy = Specialization.LAZY

        def set_execution_context_allocation_strategy(self, strategy):
            self.strategy = strategy

        def create_runtime_cache(self):
            return RuntimeCache()

        def set_runtime_cache(self, cache):
            self.cache = cache
            return True

    class RuntimeCache:
        def __init__(self):
            self.shapes = set()

        def serialize(self):
            return json.dumps({"version": module.__version__, "shapes": sorted(self.shapes)}).encode()

        def deserialize(self, blob):
            found = json.loads(blob)
            if found["version"] != module.__version__:
                return False
            self.shapes |= set(found["shapes"])
            return True

    if family == "8":
        Engine.create_execution_context_without_device_memory = new_context
    else:
        module.ExecutionContextAllocationStrategy = Strategy
        Engine.create_execution_context = new_context
    if family == "rtx":
        module.DynamicShapesKernelSpecializationStrategy = Specialization
        Engine.create_runtime_config = lambda self: Config()

    class Runtime:
        def __init__(self, logger):
            if not isinstance(logger, Logger):
                driver.violations.append("a logger in Python at run time")
            self.logger = logger

        def deserialize_cuda_engine(self, data):
            try:
                engine = Engine(json.loads(data), self.logger)
            except ValueError:
                complain(self.logger, "Magic tag does not match")
                return None
            module.engine = weakref.ref(engine)
            driver.engines.add(engine)
            return engine

    module.ILogger, module.Logger, module.Runtime = ILogger, Logger, Runtime
    module.LayerInformationFormat = enum.Enum("LayerInformationFormat", ["ONELINE", "JSON"])
    return module


def sha256(data):
    return hashlib.sha256(data).hexdigest()
