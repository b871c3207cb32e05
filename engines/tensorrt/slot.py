"""The resources of one batch in flight: a stream, fixed buffers, and for each batch size a context with a graph of its work.

All of it is made, and run, when the session is opened. Afterwards no memory is allocated, no context changes, and no address
moves: crops are copied into the engine's own inputs, so that one graph for each batch size serves all callers. TensorRT does
not allow changes of a context whose work is in a graph, so each size has its own context. The contexts of a slot share one
block of memory for activations, because they never run at the same time.

If the kernels of `engines.kernels` are available, a second graph for each size does all the work between a frame and its poses:
it uploads the crops' positions, makes the crops, runs the engine, computes joints and scores if the engine ends at its logits,
and downloads them.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from contextlib import ExitStack, suppress
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from convnextpose.errors import DeviceError, DeviceMemoryError, EngineError, PoseError
from engines.kernels.blocks import ORIGIN
from engines.pose import CROPS, predicts
from engines.session import ORIGINS, Arrays
from engines.tensorrt.device import Device
from engines.tensorrt.engine import Engine, Tensor
from engines.tensorrt.foreign import DeviceArray
from engines.tensorrt.frames import EngineKernels

WARM_UPS = 2
"""Runs of a batch size before it is captured: libraries choose and load kernels during these."""

CAPTURES = 2
"""Largest number of attempts at a capture."""


@dataclass(frozen=True)
class BatchTimes:
    """The GPU's time for a batch, ms, and whether a graph ran it. If crops are made on the GPU, all of it is in
    `inference_ms`."""

    copy_in_ms: float
    inference_ms: float
    copy_out_ms: float
    replayed: bool


@dataclass(frozen=True)
class MemoryUse:
    """Memory around an engine, bytes.

    Attributes:
        activations: memory that its layers need for the largest batch, once for each slot.
        held: memory of this session on the GPU for frames, inputs, results and activations, without the weights.
        free: free memory of the GPU.
    """

    activations: int
    held: int
    free: int


@dataclass(frozen=True)
class _Places:
    """The memory of a tensor's items: a block on the GPU and one of pinned host memory."""

    device: Any
    pinned: Any


@dataclass
class _Prepared:
    """A context with its shape, addresses and memory, and the graphs of its work if there are any.

    Attributes:
        context: the context.
        graph: from crops to results, all on the GPU.
        whole: from frames on the GPU to results on the host.
    """

    context: Any
    graph: Any = None
    whole: Any = None


class Slot:
    """One batch in flight. All its methods are called within the device's `current()`, by one thread at a time.

    Args:
        device: the GPU.
        engine: the engine.
        buckets: the batch sizes that it will run, in ascending order.
        kernels: the kernels around the engine; None for the engine alone.

    Attributes:
        buckets: these batch sizes.
        results: its outputs: the engine's, or joints and scores if the engine ends at its logits.
        unrecorded: why the work of a batch size is in no graph, by batch size; empty if every size has one.

    Raises:
        DeviceMemoryError: there is too little memory; all that was allocated is freed.
        EngineError, DeviceError: TensorRT or CUDA failed.
    """

    def __init__(self, device: Device, engine: Engine, buckets: tuple[int, ...], kernels: EngineKernels | None = None) -> None:
        self._device, self._engine, self._kernels = device, engine, kernels
        self.buckets = buckets
        self.results = results_of(engine, kernels)
        self.unrecorded: dict[int, str] = {}
        self._prepared: dict[int, _Prepared] = {}
        self._places: Mapping[str, _Places] = {}
        self._activations: Any = None
        self._origins: _Places | None = None
        self._workspace: Any = None
        self._shared: int | None = None
        with ExitStack() as made:
            self._stream = self._keep(made, device.stream())
            self._events = [self._keep(made, device.event()) for _ in range(4)]
            most = buckets[-1]

            def room(size: int, *, pinned: bool = True) -> _Places:
                return _Places(
                    self._keep(made, device.allocate(most * size)),
                    self._keep(made, device.pin(most * size)) if pinned else None,
                )

            on_host = {tensor.name: tensor for tensor in (*engine.inputs, *self.results)}
            inner = [tensor for tensor in engine.outputs if tensor.name not in on_host]  # logits
            self._places = {name: room(tensor.item_bytes) for name, tensor in on_host.items()}
            self._places |= {tensor.name: room(tensor.item_bytes, pinned=False) for tensor in inner}
            if kernels is not None:
                self._origins = room(ORIGIN.itemsize)
                if kernels.tail is not None:
                    self._workspace = self._keep(made, device.allocate(kernels.tail.workspace(most)))
                    kernels.kernels.clear(self._workspace.address, self._workspace.size, self._stream)
            self._prepare(made)
            self._owned = made.pop_all()

    @property
    def held_bytes(self) -> int:
        """GPU memory that it has allocated, bytes."""
        own = [places.device for places in (*self._places.values(), self._origins) if places is not None]
        return sum(int(memory.size) for memory in (*own, self._activations, self._workspace) if memory is not None)

    def start(self, inputs: Mapping[str, NDArray[Any] | DeviceArray], count: int) -> bool:
        """Queue `count` items on the GPU, at most as many as the last bucket; returns before they are done.

        Args:
            inputs: for each of the engine's inputs its items, contiguous; or `origins`, the sources of the crops.
            count: number of items.

        Returns:
            Whether a graph runs the inference.

        Raises:
            EngineError, DeviceError: TensorRT or CUDA failed.
        """
        stream, events = self._stream, self._events
        size = next(bucket for bucket in self.buckets if bucket >= count)
        if ORIGINS.name in inputs:
            return self._start_whole(inputs[ORIGINS.name], count, size)
        filled: list[tuple[int, NDArray[np.uint8] | None, DeviceArray | None]] = []
        for tensor in self._engine.inputs:
            given, places = inputs[tensor.name], self._places[tensor.name]
            if isinstance(given, np.ndarray):
                pinned = places.pinned.array[: count * tensor.item_bytes]
                pinned[:] = given.reshape(-1).view(np.uint8)
                filled.append((places.device.address, pinned, None))
            else:
                given.wait(self._device, stream)
                filled.append((places.device.address, None, given))
        events[0].record(stream)
        for address, pinned, source in filled:
            if source is not None:
                self._device.copy_within(address, source.address, source.size, stream)
            elif pinned is not None:
                self._device.copy_in(address, pinned, stream)
        events[1].record(stream)
        prepared = self._ready(size)
        if prepared.graph is not None:
            prepared.graph.launch(stream)
        else:
            self._enqueue(size, prepared.context)
        events[2].record(stream)
        self._copy_out(count)
        events[3].record(stream)
        return prepared.graph is not None

    def _start_whole(self, origins: Any, count: int, size: int) -> bool:  # noqa: ANN401
        """`start` for crops that are made on the GPU."""
        assert self._origins is not None and self._kernels is not None
        stream, events, told = self._stream, self._events, self._origins.pinned.array
        told[: count * ORIGIN.itemsize] = origins.reshape(-1)
        told[count * ORIGIN.itemsize : size * ORIGIN.itemsize] = 0
        stream.wait_for(self._kernels.uploads.handle)
        for event in events[:2]:
            event.record(stream)
        prepared = self._ready(size)
        if prepared.whole is not None:
            prepared.whole.launch(stream)
        else:
            self._enqueue_whole(size, prepared.context)
        for event in events[2:]:
            event.record(stream)
        return prepared.whole is not None

    def finish(self, count: int, results: Arrays, begin: int, *, replayed: bool) -> BatchTimes:
        """Wait for the batch in flight and copy its `count` results to their place, from item `begin` on.

        Raises:
            DeviceError: the GPU failed.
        """
        self._stream.synchronize()
        for tensor in self.results:
            found: NDArray[Any] = self._places[tensor.name].pinned.array[: count * tensor.item_bytes].view(tensor.dtype)
            results[tensor.name][begin : begin + count] = found.reshape(count, *tensor.item_shape)
        first, second, third, fourth = self._events
        times = second.milliseconds_since(first), third.milliseconds_since(second), fourth.milliseconds_since(third)
        return BatchTimes(*times, replayed)

    def abandon(self) -> None:
        """Wait for the work in flight, after which its buffers are unused."""
        with suppress(DeviceError):  # its caller learns of the error
            self._stream.synchronize()

    def free(self) -> None:
        """Free everything."""
        self.abandon()
        self._owned.close()
        del self._engine  # a ticket that was never collected keeps the slot, but not the engine

    @staticmethod
    def _keep(made: ExitStack, owned: Any) -> Any:  # noqa: ANN401
        made.callback(owned.free)
        return owned

    def _prepare(self, made: ExitStack) -> None:
        """Make the contexts with their memory, and run and capture each."""
        engine = self._engine
        made.callback(self._drop_contexts)
        if engine.slots == 1:  # the only context changes its shape, so no graph could keep it
            context = engine.new_context()
            self._prepared = {size: _Prepared(context) for size in self.buckets}
            needed = engine.activation_bytes
            self.unrecorded = dict.fromkeys(self.buckets, "TensorRT before 10 has one execution context for all batch sizes")
        else:
            needed = engine.activation_bytes if self.buckets[-1] == engine.max_batch else 1
            for size in self.buckets:
                self._prepared[size] = _Prepared(engine.new_context())
                self._bind(size)
                needed = max(needed, engine.activations_of(self._prepared[size].context))
        self._activations = self._keep(made, self._device.allocate(needed))
        made.callback(self._drop_contexts)  # before the memory that they use
        for size in self.buckets:
            context = self._ready(size).context
            engine.give_memory(context, self._activations.address, needed)
            self._warm_up(size)
            if self._origins is not None:
                self._origins.pinned.array[:] = 0
                self._enqueue_whole(size, context)
                self._stream.synchronize()
            if engine.slots > 1 and self._device.has_graphs:
                prepared = self._prepared[size]
                prepared.graph = self._capture(size, lambda: self._enqueue(size, context))  # noqa: B023 - called at once
                if self._origins is not None:
                    prepared.whole = self._capture(size, lambda: self._enqueue_whole(size, context))  # noqa: B023

    def _bind(self, size: int) -> None:
        """Set the shape and the addresses of a batch size's context."""
        context = self._prepared[size].context
        self._engine.shape(context, size, self._stream.handle)
        self._stream.synchronize()  # switching a profile is work on the stream
        for tensor in (*self._engine.inputs, *self._engine.outputs):
            if not context.set_tensor_address(tensor.name, self._places[tensor.name].device.address):
                raise self._engine.failed(f"does not take an address for {tensor.name}")

    def _ready(self, size: int) -> _Prepared:
        """The context and graphs for a batch size. With TensorRT before 10 this sets the shape of the only context."""
        if self._engine.slots == 1 and self._shared != size:
            self._shared = None
            self._bind(size)
            self._shared = size
        return self._prepared[size]

    def _warm_up(self, size: int) -> None:
        for _ in range(WARM_UPS):
            self._enqueue(size, self._prepared[size].context)
        self._stream.synchronize()

    def _capture(self, size: int, work: Callable[[], None]) -> Any:  # noqa: ANN401
        """The graph of a batch size's work; None if it cannot be recorded, with a note why."""
        context, graph = self._prepared[size].context, None
        for _ in range(CAPTURES):
            try:
                if hasattr(context, "is_stream_capturable") and not context.is_stream_capturable(self._stream.handle):
                    raise EngineError("TensorRT says that this stream cannot be captured")
                graph = self._device.capture(self._stream, work)
                graph.launch(self._stream)
                self._stream.synchronize()
            except DeviceMemoryError:
                raise
            except PoseError as error:  # some work cannot be recorded, for example a layer on a DLA
                if graph is not None:
                    graph.free()
                    graph = None
                self.unrecorded[size] = str(error)
                self._warm_up(size)
            else:
                self.unrecorded.pop(size, None)
                return graph
        return None

    def _enqueue(self, size: int, context: Any) -> None:  # noqa: ANN401
        """Queue the steps from crops to results, all on the GPU."""
        if not context.execute_async_v3(self._stream.handle):
            raise self._engine.failed("cannot run the engine")
        if self._kernels is not None and self._kernels.tail is not None:
            (logits,) = (self._places[tensor.name].device.address for tensor in self._engine.outputs)
            joints, scores = (self._places[tensor.name].device.address for tensor in self.results)
            most, shape = self.buckets[-1], self._kernels.tail
            self._kernels.kernels.tail(shape, logits, joints, scores, self._workspace.address, most, self._stream, count=size)

    def _enqueue_whole(self, size: int, context: Any) -> None:  # noqa: ANN401
        """Queue the steps from frames on the GPU to results on the host."""
        assert self._origins is not None and self._kernels is not None
        told = self._origins.device.address
        self._device.copy_in(told, self._origins.pinned.array[: size * ORIGIN.itemsize], self._stream)
        self._kernels.kernels.crop(told, self._places[CROPS.name].device.address, size, self._stream)
        self._enqueue(size, context)
        self._copy_out(size)

    def _copy_out(self, count: int) -> None:
        for tensor in self.results:
            places = self._places[tensor.name]
            self._device.copy_out(places.pinned.array[: count * tensor.item_bytes], places.device.address, self._stream)

    def _drop_contexts(self) -> None:
        for prepared in self._prepared.values():
            for graph in (prepared.graph, prepared.whole):
                if graph is not None:
                    graph.free()
        self._prepared = {}


@dataclass(eq=False)
class Ticket:
    """A batch that was submitted to the GPU; the session's `collect` returns its results, once.

    Attributes:
        count: number of its items.
        slot: the slot in which it is in flight; None after it was collected.
        replayed: whether a CUDA graph runs it.
        begun_ns: when it was submitted.
        inputs: arrays on the GPU that must live until it is done.
    """

    count: int
    slot: Slot | None
    replayed: bool
    begun_ns: int
    inputs: Mapping[str, Any]


def results_of(engine: Engine, kernels: EngineKernels | None) -> tuple[Tensor, ...]:
    """The results of an engine together with the kernels around it."""
    if kernels is None or kernels.tail is None:
        return engine.outputs
    joints, scores = predicts(kernels.tail.joint_count)
    return tuple(Tensor(spec.name, spec.dtype, tuple(int(n or 0) for n in spec.shape[1:])) for spec in (joints, scores))
