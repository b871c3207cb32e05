"""What one batch in flight needs: a stream, fixed buffers, and for each batch size a context with a graph of its work.

All of it is made, and run, when the session is opened. Afterwards no memory is allocated, no context changes, and no address
moves: whatever comes is copied into the engine's own inputs, so that one graph for each batch size serves all callers.
TensorRT forbids to change a context whose work is in a graph, hence a context for each size. Those of a slot share one block
of memory for activations, as they never run at the same time.
"""

from __future__ import annotations

from collections.abc import Mapping
from contextlib import ExitStack, suppress
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from convnextpose.errors import DeviceError, DeviceMemoryError, EngineError, PoseError
from engines.session import Arrays
from engines.tensorrt.device import Device
from engines.tensorrt.engine import Engine
from engines.tensorrt.foreign import DeviceArray

WARM_UPS = 2
"""Runs of a batch size before it is captured: libraries choose and load kernels in them."""

CAPTURES = 2
"""How often a capture is tried."""


@dataclass(frozen=True)
class BatchTimes:
    """The GPU's time for a batch, ms, and whether a graph ran it."""

    copy_in_ms: float
    inference_ms: float
    copy_out_ms: float
    replayed: bool


@dataclass(frozen=True)
class _Places:
    """Where a tensor's items are: a block on the GPU and one of the host's pinned memory."""

    device: Any
    pinned: Any


@dataclass
class _Prepared:
    """A context that has its shape, addresses and memory, and the graph of its work if there is one."""

    context: Any
    graph: Any = None


class Slot:
    """One batch in flight. All its methods are called within the device's `current()`, by one thread at a time.

    Args:
        device: the GPU.
        engine: what runs.
        buckets: the batch sizes that it will run, in ascending order.

    Attributes:
        buckets: those.
        unrecorded: why the work of a batch size is in no graph, by batch size; empty where every size has one.

    Raises:
        DeviceMemoryError: memory does not suffice; nothing is held any more.
        EngineError, DeviceError: TensorRT or CUDA failed.
    """

    def __init__(self, device: Device, engine: Engine, buckets: tuple[int, ...]) -> None:
        self._device, self._engine = device, engine
        self.buckets = buckets
        self.unrecorded: dict[int, str] = {}
        self._prepared: dict[int, _Prepared] = {}
        self._places: Mapping[str, _Places] = {}
        self._activations: Any = None
        self._shared: int | None = None
        with ExitStack() as made:
            self._stream = self._keep(made, device.stream())
            self._events = [self._keep(made, device.event()) for _ in range(4)]
            tensors, most = (*engine.inputs, *engine.outputs), buckets[-1]
            self._places = {
                tensor.name: _Places(
                    self._keep(made, device.allocate(most * tensor.item_bytes)),
                    self._keep(made, device.pin(most * tensor.item_bytes)),
                )
                for tensor in tensors
            }
            self._prepare(made)
            self._owned = made.pop_all()

    @property
    def held_bytes(self) -> int:
        """What it has of the GPU's memory."""
        return sum(places.device.size for places in self._places.values()) + int(self._activations.size)

    def start(self, inputs: Mapping[str, NDArray[Any] | DeviceArray], count: int) -> bool:
        """Give the GPU `count` items, at most the last bucket's; returns before they are done.

        Args:
            inputs: for each of the engine's inputs its items, contiguous.
            count: how many.

        Returns:
            Whether a graph runs the inference.

        Raises:
            EngineError, DeviceError: TensorRT or CUDA failed.
        """
        stream, events = self._stream, self._events
        size = next(bucket for bucket in self.buckets if bucket >= count)
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
            self._enqueue(prepared.context)
        events[2].record(stream)
        for tensor in self._engine.outputs:
            places = self._places[tensor.name]
            self._device.copy_out(places.pinned.array[: count * tensor.item_bytes], places.device.address, stream)
        events[3].record(stream)
        return prepared.graph is not None

    def finish(self, count: int, results: Arrays, begin: int, *, replayed: bool) -> BatchTimes:
        """Wait for the batch in flight and put its `count` results where they belong, from item `begin` on.

        Raises:
            DeviceError: the GPU failed at it.
        """
        self._stream.synchronize()
        for tensor in self._engine.outputs:
            found: NDArray[Any] = self._places[tensor.name].pinned.array[: count * tensor.item_bytes].view(tensor.dtype)
            results[tensor.name][begin : begin + count] = found.reshape(count, *tensor.item_shape)
        first, second, third, fourth = self._events
        times = second.milliseconds_since(first), third.milliseconds_since(second), fourth.milliseconds_since(third)
        return BatchTimes(*times, replayed)

    def abandon(self) -> None:
        """Wait for what is in flight, so that its buffers are unused after it."""
        with suppress(DeviceError):  # whoever asked for it is told of it
            self._stream.synchronize()

    def free(self) -> None:
        """Give everything back."""
        self.abandon()
        self._owned.close()
        del self._engine  # a ticket that nobody collected keeps the slot, not the engine

    @staticmethod
    def _keep(made: ExitStack, owned: Any) -> Any:  # noqa: ANN401
        made.callback(owned.free)
        return owned

    def _prepare(self, made: ExitStack) -> None:
        """Make the contexts with their memory, and run and capture each."""
        engine = self._engine
        made.callback(self._drop_contexts)
        if engine.slots == 1:  # one context in all, which changes its shape: no graph could keep it
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
            self._warm_up(context)
            if engine.slots > 1 and self._device.has_graphs:
                self._capture(size)

    def _bind(self, size: int) -> None:
        """Give a batch size's context its shape and its addresses."""
        context = self._prepared[size].context
        self._engine.shape(context, size, self._stream.handle)
        self._stream.synchronize()  # a profile is switched by work on the stream
        for name, places in self._places.items():
            if not context.set_tensor_address(name, places.device.address):
                raise self._engine.failed(f"does not take an address for {name}")

    def _ready(self, size: int) -> _Prepared:
        """What runs a batch size; the one context of TensorRT before 10 is given the shape for it."""
        if self._engine.slots == 1 and self._shared != size:
            self._shared = None
            self._bind(size)
            self._shared = size
        return self._prepared[size]

    def _warm_up(self, context: Any) -> None:  # noqa: ANN401
        for _ in range(WARM_UPS):
            self._enqueue(context)
        self._stream.synchronize()

    def _capture(self, size: int) -> None:
        """Record a batch size's work, or note why that cannot be done."""
        prepared = self._prepared[size]
        for _ in range(CAPTURES):
            try:
                if hasattr(prepared.context, "is_stream_capturable") and not prepared.context.is_stream_capturable(
                    self._stream.handle
                ):
                    raise EngineError("TensorRT says that this stream cannot be captured")
                prepared.graph = self._device.capture(self._stream, lambda: self._enqueue(prepared.context))
                prepared.graph.launch(self._stream)
                self._stream.synchronize()
            except DeviceMemoryError:
                raise
            except PoseError as error:  # not everything can be recorded: a layer on a DLA cannot
                if prepared.graph is not None:
                    prepared.graph.free()
                    prepared.graph = None
                self.unrecorded[size] = str(error)
                self._warm_up(prepared.context)
            else:
                self.unrecorded.pop(size, None)
                return

    def _enqueue(self, context: Any) -> None:  # noqa: ANN401
        if not context.execute_async_v3(self._stream.handle):
            raise self._engine.failed("cannot run the engine")

    def _drop_contexts(self) -> None:
        for prepared in self._prepared.values():
            if prepared.graph is not None:
                prepared.graph.free()
        self._prepared = {}
