"""TensorRT, the full one or for RTX: from pinned memory, with two batches in flight and a graph for what recurs.

Each of two buffer sets has a stream, its buffers, and an execution context for each batch size that it has run. A run of more
items than the engine takes at once alternates between the sets, so that one's copies overlap the other's inference; a smaller
run needs one set. TensorRT forbids to change a context whose work is in a CUDA graph: hence a context for each batch size. The
contexts of a set share one block of memory for activations, as they never run at the same time.
"""

from __future__ import annotations

import json
import math
import time
import warnings
from collections import OrderedDict, deque
from collections.abc import Mapping
from contextlib import ExitStack, suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from convnextpose.errors import DeviceError, DeviceMemoryError, EngineError, RuntimeUnavailableError
from engines import manifest as manifests
from engines.manifest import EngineManifest, Machine
from engines.session import Arrays, ArraySpec, SessionDescription
from engines.sessions.base import LockedSession
from engines.tensorrt.device import Device
from engines.tensorrt.gpu import open_device
from engines.tensorrt.module import LIBRARIES, Library, load_library
from engines.timing import RunTimes

CONTEXTS = 8
"""Execution contexts, and so graphs, of a buffer set: the batch size that was not run for the longest gives way."""

_TYPES = {
    "FLOAT": "float32", "HALF": "float16", "INT8": "int8", "UINT8": "uint8", "INT32": "int32", "INT64": "int64", "BOOL": "bool",
}  # fmt: skip
"""Its names for types, and numpy's."""


@dataclass(frozen=True)
class LayerInfo:
    """A layer of an engine, as TensorRT's inspector tells of it.

    Attributes:
        name: TensorRT's name for it.
        kind: TensorRT's name for its kind, empty where it does not tell.
        inputs, outputs: types (and formats) of its tensors, in TensorRT's words.
    """

    name: str
    kind: str
    inputs: tuple[str, ...]
    outputs: tuple[str, ...]


@dataclass(frozen=True)
class MemoryUse:
    """Memory around an engine, bytes.

    Attributes:
        activations: what its layers need for the largest batch, once for each buffer set in use.
        held: what this session has on the GPU for inputs, results and activations; the weights are not in it.
        free: what nobody has on the GPU.
    """

    activations: int
    held: int
    free: int


def open_engine(path: Path, name: str | None = None, *, binding: str = "auto") -> TensorRTSession:
    """Open an engine file that has its manifest beside it, after both were found to be whole and to fit this machine.

    Args:
        path: the engine.
        name: what error messages call the network; None for the manifest's name of the model.
        binding: as for `engines.tensorrt.gpu.open_device`.

    Raises:
        EngineError: engine or manifest are damaged or do not fit each other or this machine; says which and what rebuilds it.
        RuntimeUnavailableError: the library, the binding to CUDA, the driver or the GPU is missing; says which.
    """
    found, data = manifests.load_with_bytes(path)
    return TensorRTSession(data, found, _library_for(found), open_device(binding), name=name)


def open_engine_session(path: Path, name: str, *, threads: int | None = None, precision: str = "auto") -> TensorRTSession:
    """The same, as the registry opens sessions.

    Raises:
        EngineError, RuntimeUnavailableError: as `open_engine`; or it is told a number of threads or a precision.
    """
    if threads is not None:
        raise RuntimeUnavailableError(f"an engine computes on the GPU and takes no number of threads, received {threads}")
    if precision != "auto":
        raise RuntimeUnavailableError(f"an engine has its own precision and takes no other, received {precision!r}")
    return open_engine(path, name)


def _library_for(found: EngineManifest) -> Library:
    """The engine's own library, or else the other one, that the manifest then refuses by name."""
    try:
        return load_library(found.library)
    except RuntimeUnavailableError as missing:
        for name in LIBRARIES:
            try:
                return load_library(name)
            except RuntimeUnavailableError:
                continue
        raise missing


class TensorRTSession(LockedSession):
    """Runs an engine. Any thread may call it: it works in CUDA's primary context and makes that current for each call.

    A batch that the GPU's memory does not suffice for is halved until it does; that is warned of once and remembered.

    Args:
        engine: the engine.
        manifest: what is known of it.
        library: the TensorRT module that runs it.
        device: the GPU that runs it.
        name: what error messages call the network; None for the manifest's name of the model.

    Attributes:
        manifest: what is known of the engine.

    Raises:
        EngineError: it does not fit the machine or its manifest, or TensorRT does not take it.
    """

    def __init__(
        self, engine: bytes, manifest: EngineManifest, library: Library, device: Device, *, name: str | None = None
    ) -> None:
        manifest.check_bytes(engine)
        gpu = device.gpu
        manifest.check(Machine(library.name, library.version, gpu.compute_capability, gpu.name, gpu.driver))
        self.manifest = manifest
        self._device = device
        self._sets: list[_BufferSet] = []
        self._times = RunTimes(0.0, 0.0, 0.0, 0.0, 0, 0)
        with device.current():
            opened = _Engine(engine, manifest, library)
        self._engine: _Engine | None = opened
        self._limit, self._buffer_sets = opened.max_batch, opened.buffer_sets
        super().__init__(
            name or f"model {manifest.model.name}",
            tuple(tensor.spec for tensor in opened.inputs),
            tuple(tensor.spec for tensor in opened.outputs),
            SessionDescription(library.name, library.version, gpu.name, manifest.model.precision, 1),
        )

    @property
    def limit(self) -> int:
        """The most items that it gives the GPU at once: what the engine takes, or less once memory did not suffice."""
        return self._limit

    @property
    def binding(self) -> str:
        """What drives the GPU, and its version."""
        return self._device.binding

    @property
    def has_graphs(self) -> bool:
        """Whether what recurs is run as CUDA graphs: not every binding has them."""
        return self._device.has_graphs

    @property
    def times(self) -> RunTimes:
        """How long the latest run took; after runs of several threads, one of theirs."""
        return self._times

    def layers(self) -> tuple[LayerInfo, ...]:
        """The engine's layers, as TensorRT tells of them."""
        with self._lock, self._device.current():
            return self._opened().layers()

    def memory(self) -> MemoryUse:
        """What memory it takes now, and what is left."""
        with self._lock, self._device.current():
            held = sum(buffers.held_bytes for buffers in self._sets)
            return MemoryUse(self._opened().activation_bytes, held, self._device.free_bytes())

    def _infer(self, arrays: Arrays, count: int) -> Arrays:
        """Give all items to the GPU, batch by batch, the two buffer sets in turn."""
        begun, limit = time.perf_counter_ns(), self._limit
        results = {tensor.name: np.empty((count, *tensor.item_shape), tensor.dtype) for tensor in self._opened().outputs}
        finished: list[_BatchTimes] = []
        with self._device.current():
            try:
                turn = begin = 0
                while begin < count:
                    size = min(self._limit, count - begin)
                    try:
                        buffers = self._buffers(turn)
                        finished += buffers.finish(results)
                        buffers.start(arrays, begin, size)
                    except DeviceMemoryError as error:
                        finished += self._finish_all(results)
                        self._shrink(size, error)
                        turn = 0
                        continue
                    begin, turn = begin + size, (turn + 1) % self._buffer_sets
                finished += self._finish_all(results)
            except BaseException:
                for buffers in self._sets:
                    buffers.abandon()
                raise
        if self._limit < limit:
            warnings.warn(
                f"the GPU's memory does not suffice for {limit} items at once: going on with {self._limit}",
                RuntimeWarning,
                stacklevel=4,
            )
        self._times = RunTimes(
            (time.perf_counter_ns() - begun) / 1e6,
            sum(batch.copy_in_ms for batch in finished),
            sum(batch.inference_ms for batch in finished),
            sum(batch.copy_out_ms for batch in finished),
            len(finished),
            sum(batch.replayed for batch in finished),
        )
        return results

    def _buffers(self, turn: int) -> _BufferSet:
        while len(self._sets) <= turn:
            self._sets.append(_BufferSet(self._device, self._opened()))
        return self._sets[turn]

    def _finish_all(self, results: Arrays) -> list[_BatchTimes]:
        return [times for buffers in self._sets for times in buffers.finish(results)]

    def _shrink(self, count: int, error: DeviceMemoryError) -> None:
        """Give all buffers back and go on with one buffer set from now on, or, where there was one, half as many items.

        Raises:
            RuntimeUnavailableError: neither can be.
        """
        two_sets = len(self._sets) > 1
        self._free_sets()
        fewer = max(count // 2, self._opened().min_batch)
        if two_sets and self._buffer_sets > 1:
            self._buffer_sets = 1  # the first set had what it needs: it goes on alone
        elif fewer < count:
            self._limit = fewer
        else:
            raise RuntimeUnavailableError(
                f"the GPU's memory does not suffice for a batch of {count}: {error}; end what else uses it, or take a smaller "
                "model"
            ) from error

    def _opened(self) -> _Engine:
        self._check_open()
        assert self._engine is not None
        return self._engine

    def _free_sets(self) -> None:
        while self._sets:
            self._sets.pop().free()

    def _release(self) -> None:
        with self._device.current():
            self._free_sets()
            # TensorRT's objects give memory back, too: while the GPU is current.
            self._engine = None


@dataclass(frozen=True)
class _Tensor:
    """An input or an output of an engine.

    Attributes:
        name: its name.
        dtype: numpy's name for its type.
        item_shape: its shape without the axis of the batch.
    """

    name: str
    dtype: str
    item_shape: tuple[int, ...]

    @property
    def spec(self) -> ArraySpec:
        """What a session calls it. Any number of items may come: they are split into batches, and padded."""
        return ArraySpec(self.name, self.dtype, (None, *self.item_shape))

    @property
    def item_bytes(self) -> int:
        """The size of one item."""
        return math.prod(self.item_shape) * np.dtype(self.dtype).itemsize


class _Engine:
    """TensorRT's engine; asked for what it has, as its families differ.

    Attributes:
        inputs, outputs: its tensors.
        min_batch, max_batch: how many items it takes at once.
        contexts: how many execution contexts a buffer set may have.
        buffer_sets: how many buffer sets there may be. TensorRT before 10 allows one context in all.
        activation_bytes: what its layers need for the largest batch.
    """

    def __init__(self, data: bytes, manifest: EngineManifest, library: Library) -> None:
        self._module = library.module
        self._called = f"{library.name} {library.version}"
        errors: deque[str] = deque(maxlen=3)

        def hear(severity: str, message: str) -> None:
            if severity in ("error", "internal_error"):
                errors.append(" ".join(message.split()))

        self._errors = errors
        # A logger that knew this object would keep the engine's memory until Python looks for circles.
        self._logger = library.logger(hear)
        try:
            self._runtime = self._module.Runtime(self._logger)
        except TypeError as error:  # its constructor gave nothing: no driver, or one that is too old
            raise RuntimeUnavailableError(f"{self._called} does not start: {self._said() or error}") from error
        if manifest.options.get(manifests.VERSION_COMPATIBLE):
            # Any engine is native code: the manifest shows that the file is whole, not whose it is (docs/tensorrt.md).
            self._runtime.engine_host_code_allowed = True
        if (core := manifest.options.get("dla_core")) is not None:
            self._runtime.DLA_core = core
        self._engine = self._runtime.deserialize_cuda_engine(data)
        if self._engine is None:
            raise EngineError(
                f"{self._called} cannot load the engine: {self._said()}; build it again with `{manifest.command}`"
            )
        self._compiled: Any = None
        self.inputs, self.outputs = self._tensors("INPUT"), self._tensors("OUTPUT")
        fewest, _, most = (tuple(shape) for shape in self._engine.get_tensor_profile_shape(self.inputs[0].name, 0))
        self.min_batch, self.max_batch = int(fewest[0]), int(most[0])
        shares = hasattr(self._module, "ExecutionContextAllocationStrategy")
        self.contexts, self.buffer_sets = (CONTEXTS, 2) if shares else (1, 1)
        size = getattr(self._engine, "device_memory_size_v2", None)
        self.activation_bytes = int(self._engine.device_memory_size if size is None else size)

    def new_context(self) -> Any:  # noqa: ANN401
        """An execution context without memory for activations.

        Raises:
            DeviceMemoryError: memory does not suffice.
            EngineError: TensorRT makes none.
        """
        module, engine = self._module, self._engine
        if self.contexts == 1:
            context = engine.create_execution_context_without_device_memory()
        elif hasattr(module, "DynamicShapesKernelSpecializationStrategy"):
            config = engine.create_runtime_config()
            config.set_execution_context_allocation_strategy(module.ExecutionContextAllocationStrategy.USER_MANAGED)
            # RTX would first run makeshift kernels for a new shape, and a graph would keep those for good.
            config.dynamic_shapes_kernel_specialization_strategy = module.DynamicShapesKernelSpecializationStrategy.EAGER
            if self._compiled is None:
                self._compiled = config.create_runtime_cache()
            config.set_runtime_cache(self._compiled)  # what one context compiled, the next need not
            context = engine.create_execution_context(config)
        else:
            context = engine.create_execution_context(module.ExecutionContextAllocationStrategy.USER_MANAGED)
        if context is None:
            raise self.failed("makes no execution context")
        return context

    def give_memory(self, context: Any, address: int, size: int) -> None:  # noqa: ANN401
        """Let a context use a block for activations."""
        if hasattr(context, "set_device_memory"):
            context.set_device_memory(address, size)
        else:
            context.device_memory = address

    def activations_of(self, context: Any) -> int:  # noqa: ANN401
        """What a context needs for activations with the shape that it was given, bytes."""
        if hasattr(context, "update_device_memory_size_for_shapes"):
            needed = int(context.update_device_memory_size_for_shapes())
            if needed == 0 and self.activation_bytes:  # its way of saying that something failed
                raise self.failed("does not tell what memory it needs")
            return needed
        return self.activation_bytes

    def layers(self) -> tuple[LayerInfo, ...]:
        """Its layers."""
        text = self._engine.create_engine_inspector().get_engine_information(self._module.LayerInformationFormat.JSON)
        return read_layers(text)

    def failed(self, what: str) -> Exception:
        """The error for something that TensorRT did not do, with what it said."""
        said = self._said()
        if "out of memory" in said.lower() or "outofmemory" in said.lower():
            return DeviceMemoryError(f"{self._called} {what}: {said}")
        return EngineError(f"{self._called} {what}: {said}")

    def _tensors(self, mode: str) -> tuple[_Tensor, ...]:
        """Its inputs or outputs, by TensorRT's name for which.

        Raises:
            EngineError: one has a type that numpy has not, or more than the batch is free in its shape; or there is none.
        """
        engine, found = self._engine, []
        for name in map(engine.get_tensor_name, range(engine.num_io_tensors)):
            if engine.get_tensor_mode(name).name != mode:
                continue
            kind, shape = engine.get_tensor_dtype(name).name, tuple(engine.get_tensor_shape(name))
            if kind not in _TYPES or not shape or min(shape[1:], default=1) < 1:
                raise EngineError(
                    f"expected tensors of types {', '.join(_TYPES)} in which the batch alone is free, received {name} {kind} "
                    f"{list(shape)}; build the engine again"
                )
            found.append(_Tensor(name, _TYPES[kind], shape[1:]))
        if not found:
            raise EngineError(f"expected an engine with an {mode.lower()}, received one without; build it again")
        return tuple(found)

    def _said(self) -> str:
        """Its latest errors, in one line; they are told once."""
        said = "; ".join(self._errors) or "it did not say why"
        self._errors.clear()
        return said


@dataclass(frozen=True)
class _BatchTimes:
    copy_in_ms: float
    inference_ms: float
    copy_out_ms: float
    replayed: bool


@dataclass
class _Ready:
    """A context that has its shape and its addresses, and the graph of its work once that recurs."""

    context: Any
    graph: Any = None
    runs: int = 0
    recordable: bool = True

    def forget_graph(self) -> None:
        if self.graph is not None:
            self.graph.free()
        self.graph, self.runs = None, 0


@dataclass(frozen=True)
class _Places:
    """Where a tensor's items are: a block on the GPU and one of the host's pinned memory."""

    device: Any
    pinned: Any


class _BufferSet:
    """What one batch in flight needs. All its methods are called within the device's `current()`."""

    def __init__(self, device: Device, engine: _Engine) -> None:
        self._device, self._engine = device, engine
        self._blocks: list[Any] = []
        self._activations: Any = None
        self._places: Mapping[str, _Places] = {}
        self._ready: OrderedDict[int, _Ready] = OrderedDict()
        self._capacity = 0
        self._pending: tuple[int, int, bool] | None = None
        with ExitStack() as made:
            self._stream = device.stream()
            made.callback(self._stream.free)
            self._events = []
            for _ in range(4):
                self._events.append(device.event())
                made.callback(self._events[-1].free)
            made.pop_all()

    @property
    def held_bytes(self) -> int:
        """What it has of the GPU's memory."""
        return sum(places.device.size for places in self._places.values()) + (
            self._activations.size if self._activations else 0
        )

    def start(self, arrays: Arrays, begin: int, count: int) -> None:
        """Give the GPU `count` items, from `begin` on; returns before they are done.

        Raises:
            DeviceMemoryError: memory does not suffice; nothing has been started.
            EngineError, DeviceError: TensorRT or CUDA failed.
        """
        size = max(count, self._engine.min_batch)
        self._reserve(size)
        ready = self._prepare(size)
        stream, events = self._stream, self._events
        filled = []
        for tensor in self._engine.inputs:
            places = self._places[tensor.name]
            pinned = places.pinned.array[: count * tensor.item_bytes]
            pinned[:] = arrays[tensor.name][begin : begin + count].reshape(-1).view(np.uint8)
            filled.append((places.device.address, pinned))
        events[0].record(stream)
        for address, pinned in filled:
            self._device.copy_in(address, pinned, stream)
        events[1].record(stream)
        replayed = self._execute(ready)
        events[2].record(stream)
        for tensor in self._engine.outputs:
            places = self._places[tensor.name]
            self._device.copy_out(places.pinned.array[: count * tensor.item_bytes], places.device.address, stream)
        events[3].record(stream)
        self._pending = (begin, count, replayed)

    def finish(self, results: Arrays) -> list[_BatchTimes]:
        """Wait for the batch in flight and put its results where they belong; nothing where there is none.

        Raises:
            DeviceError: the GPU failed at it.
        """
        if self._pending is None:
            return []
        begin, count, replayed = self._pending
        self._stream.synchronize()
        self._pending = None
        for tensor in self._engine.outputs:
            found = self._places[tensor.name].pinned.array[: count * tensor.item_bytes].view(tensor.dtype)
            results[tensor.name][begin : begin + count] = found.reshape(count, *tensor.item_shape)
        first, second, third, fourth = self._events
        times = second.milliseconds_since(first), third.milliseconds_since(second), fourth.milliseconds_since(third)
        return [_BatchTimes(*times, replayed)]

    def abandon(self) -> None:
        """Wait for what a run that failed has left in flight, so that the next one finds its buffers unused."""
        self._pending = None
        with suppress(DeviceError):  # the run that failed tells of it
            self._stream.synchronize()

    def free(self) -> None:
        """Give everything back."""
        self.abandon()
        self._free_buffers()
        for owned in (*self._events, self._stream):
            owned.free()

    def _reserve(self, size: int) -> None:
        """Have buffers for `size` items."""
        if size <= self._capacity:
            return
        self._free_buffers()
        blocks = self._blocks
        tensors = (*self._engine.inputs, *self._engine.outputs)
        for allocate in (self._device.allocate, self._device.pin):
            for tensor in tensors:
                blocks.append(allocate(size * tensor.item_bytes))
        self._places = {
            tensor.name: _Places(device, pinned)
            for tensor, device, pinned in zip(tensors, blocks[: len(tensors)], blocks[len(tensors) :], strict=True)
        }
        self._capacity = size

    def _prepare(self, size: int) -> _Ready:
        """A context for `size` items, made if there is none; the one that was not used for the longest goes."""
        if size in self._ready:
            self._ready.move_to_end(size)
            return self._ready[size]
        if len(self._ready) == self._engine.contexts:
            _, ready = self._ready.popitem(last=False)
            ready.forget_graph()
            ready.recordable = True
        else:
            ready = _Ready(self._engine.new_context())
        context = ready.context
        for tensor in self._engine.inputs:
            if not context.set_input_shape(tensor.name, (size, *tensor.item_shape)):
                raise self._engine.failed(f"does not take {size} items")
        needed = self._engine.activations_of(context)
        if self._activations is None or needed > self._activations.size:
            # Contexts that know the old block, and graphs that have it in them, go with it.
            self._free_activations()
            self._activations = self._device.allocate(needed)
        self._engine.give_memory(context, self._activations.address, self._activations.size)
        for name, places in self._places.items():
            if not context.set_tensor_address(name, places.device.address):
                raise self._engine.failed(f"does not take an address for {name}")
        self._ready[size] = ready
        return ready

    def _execute(self, ready: _Ready) -> bool:
        """Give the inference to the stream; whether as a graph: from the second time on, as TensorRT wants one without."""
        if ready.runs == 1 and ready.recordable and self._device.has_graphs and self._capturable(ready.context):
            try:
                ready.graph = self._device.capture(self._stream, lambda: self._enqueue(ready.context))
            except (DeviceError, EngineError):
                ready.recordable = False  # not everything can be: a layer on a DLA cannot
        ready.runs += 1
        if ready.graph is not None:
            ready.graph.launch(self._stream)
            return True
        self._enqueue(ready.context)
        return False

    def _capturable(self, context: Any) -> bool:  # noqa: ANN401
        """Whether a graph may record the context's work: TensorRT for RTX tells."""
        return not hasattr(context, "is_stream_capturable") or bool(context.is_stream_capturable(self._stream.handle))

    def _enqueue(self, context: Any) -> None:  # noqa: ANN401
        if not context.execute_async_v3(self._stream.handle):
            raise self._engine.failed("cannot run the engine")

    def _free_activations(self) -> None:
        for ready in self._ready.values():
            ready.forget_graph()
        self._ready.clear()
        if self._activations is not None:
            self._activations.free()
        self._activations = None

    def _free_buffers(self) -> None:
        self._free_activations()
        self._capacity, self._places = 0, {}
        while self._blocks:
            self._blocks.pop().free()


def read_layers(text: str) -> tuple[LayerInfo, ...]:
    """The layers in what TensorRT's inspector says as JSON."""

    def types(tensors: Any) -> tuple[str, ...]:  # noqa: ANN401
        return tuple(str(tensor.get("Datatype") or tensor.get("Format/Datatype") or "") for tensor in tensors)

    return tuple(
        LayerInfo(layer, "", (), ())  # names are all that an engine of low profiling verbosity keeps
        if isinstance(layer, str)
        else LayerInfo(
            str(layer.get("Name", "")),
            str(layer.get("LayerType", "")),
            types(layer.get("Inputs", ())),
            types(layer.get("Outputs", ())),
        )
        for layer in json.loads(text).get("Layers", ())
    )
