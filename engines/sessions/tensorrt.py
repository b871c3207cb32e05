"""TensorRT, the full one or for RTX: batches in three slots, each filled while another runs, as CUDA graphs.

Everything that running needs is allocated, and run once, when the session is opened (`engines.tensorrt.slot`). So opening finds
out how large a batch the GPU's memory allows, and TensorRT for RTX has compiled its kernels before the first crop.
"""

from __future__ import annotations

import threading
import time
import warnings
from collections.abc import Iterator, Mapping
from contextlib import AbstractContextManager, contextmanager, suppress
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from convnextpose.errors import DeviceError, DeviceMemoryError, GeometryError, RuntimeUnavailableError
from engines.kernels.blocks import DeviceFrame
from engines.manifest import EngineManifest, Machine
from engines.roofline import Floor, Work, floor
from engines.session import ORIGINS, Arrays, ArraySpec, HeldFrame, SessionDescription, check_given
from engines.tensorrt import runtime_cache
from engines.tensorrt.device import Device
from engines.tensorrt.engine import Engine, LayerInfo
from engines.tensorrt.foreign import DeviceArray, adopt
from engines.tensorrt.frames import Frames, engine_kernels
from engines.tensorrt.module import Library
from engines.tensorrt.slot import BatchTimes, MemoryUse, Slot, Ticket, results_of
from engines.timing import RunTimes


class TensorRTSession:
    """Runs an engine: a `TicketSession`. Any thread may call it: it makes CUDA's primary context current for each call. No
    thread blocks another one while it waits for the GPU.

    It is also a `FrameSession`: if the crops of a pose network can be made on the GPU, it takes a frame that it holds, and the
    position of each crop. If they cannot, for example without NVRTC, a RuntimeWarning says why, and the caller makes them.

    If the GPU's memory is too small for three batches of the engine's largest size in flight, there are fewer, and then smaller
    ones; a warning says so when the session is opened.

    Args:
        engine: the engine.
        manifest: its manifest.
        library: the TensorRT module that runs it.
        device: the GPU that runs it.
        name: what error messages call the network; None for the manifest's name of the model.
        cache: file for the kernels that TensorRT for RTX compiles; None for no file.

    Attributes:
        manifest: the engine's manifest.

    Raises:
        EngineError: it does not fit the machine or its manifest, or TensorRT cannot load it.
        RuntimeUnavailableError: the GPU's memory does not suffice for the smallest batch, or the engine ends at its logits and
            the kernel that computes joints from them is not available.
    """

    def __init__(
        self,
        engine: bytes,
        manifest: EngineManifest,
        library: Library,
        device: Device,
        *,
        name: str | None = None,
        cache: Path | None = None,
    ) -> None:
        manifest.check_bytes(engine)
        gpu = device.gpu
        manifest.check(Machine(library.name, library.version, gpu.compute_capability, gpu.name, gpu.driver))
        self.manifest = manifest
        self._name = name or f"model {manifest.model.name}"
        self._device = device
        self._times = RunTimes(0.0, 0.0, 0.0, 0.0, 0, 0)
        self._changed = threading.Condition()
        self._open, self._calls = True, 0
        with device.current():
            opened = Engine(engine, manifest, library, device.free_bytes)
            kept = runtime_cache.read(cache, opened) if cache is not None and opened.compiles else None
            self._kernels = engine_kernels(opened, manifest.model, device)
            self._frames = None if self._kernels is None else Frames(device, self._kernels.uploads)
            try:
                self._slots = self._reserve(opened)
            except BaseException:
                self._free_kernels()
                raise
            if cache is not None and opened.compiles:
                runtime_cache.write(cache, opened, kept)
        self._engine: Engine | None = opened
        self._free = list(self._slots)
        self.inputs: tuple[ArraySpec, ...] = tuple(tensor.spec for tensor in opened.inputs)
        results = results_of(opened, self._kernels)
        self.outputs: tuple[ArraySpec, ...] = tuple(tensor.spec for tensor in results)
        self._results = {tensor.name: (tensor.item_shape, tensor.dtype) for tensor in results}
        self._description = SessionDescription(
            library.name, library.version, gpu.name, manifest.model.precision, 1, "gpu" if self.takes_frames else "cpu"
        )

    @property
    def limit(self) -> int:
        """Largest number of items in a batch: the engine's largest batch, or less if memory did not suffice."""
        return self._limit

    @property
    def slots(self) -> int:
        """Number of batches that may be in flight."""
        return self._slot_count

    @property
    def buckets(self) -> tuple[int, ...]:
        """The batch sizes that are really run: a batch between two of them is padded."""
        return self._buckets

    @property
    def binding(self) -> str:
        """The binding to CUDA, and its version."""
        return self._device.binding

    @property
    def has_graphs(self) -> bool:
        """Whether batches are run as CUDA graphs: neither every binding nor TensorRT 8 has them."""
        return self._device.has_graphs and set(self._buckets) != set(self._unrecorded)

    @property
    def unrecorded(self) -> Mapping[int, str]:
        """Why a batch size is run without a graph, by batch size; empty if every size has one, or the binding has no graphs."""
        return self._unrecorded

    @property
    def takes_frames(self) -> bool:
        """Whether it makes crops itself, of frames that it holds."""
        return self._frames is not None

    def hold(self, picture: NDArray[np.uint8] | DeviceFrame) -> AbstractContextManager[HeldFrame]:
        """A frame on the GPU; all runs with crops of it must have ended when the context is left.

        Args:
            picture: uint8 [H, W, 3] BGR, which may not change meanwhile; or a frame in the memory of this GPU.
        """
        assert self._frames is not None, "takes_frames tells"
        return self._frames.hold(picture)

    @property
    def times(self) -> RunTimes:
        """How long the latest run took; after runs of several threads, one of theirs."""
        return self._times

    def floor(self, work: Work, crops: int) -> Floor:
        """The lower bound of the time that this GPU needs for a network's work on some crops."""
        device, precision = self._device, self.manifest.model.precision
        return floor(work, device.figures(), device.gpu.compute_capability, precision, crops)

    def describe(self) -> SessionDescription:
        """What runs the network."""
        return self._description

    def layers(self) -> tuple[LayerInfo, ...]:
        """The engine's layers, as TensorRT reports them."""
        with self._call() as engine:
            return engine.layers()

    def memory(self) -> MemoryUse:
        """The memory that it uses now, and the free memory."""
        with self._call() as engine:
            held = sum(slot.held_bytes for slot in self._slots) + (self._frames.held_bytes if self._frames else 0)
            return MemoryUse(engine.activation_bytes, held, self._device.free_bytes())

    def run(self, arrays: Mapping[str, NDArray[Any]]) -> Arrays:
        """The outputs by name, each in memory of its own; item i of each is of item i of the inputs.

        Args:
            arrays: every input by its name, one item or more along axis 0, the same number in each: of numpy, or of a library
                that has them on the GPU (torch, CuPy); those are copied within the GPU when their own stream has made them. Or
                `origins`, from a held frame.

        Raises:
            GeometryError: the arrays are not those of `inputs`.
            ModelError: TensorRT failed at running the network.
            RuntimeUnavailableError: the session is closed, or CUDA failed.
        """
        begun = time.perf_counter_ns()
        given, count = self._checked(arrays)
        results = self._room(count)
        flying: list[tuple[Ticket, int]] = []
        finished: list[BatchTimes] = []
        with self._call():
            try:
                begin = 0
                while begin < count or flying:
                    # A caller that has a slot does not wait for another one, which might belong to a caller that does the
                    # same.
                    slot = self._take(wait=not flying) if begin < count else None
                    if slot is None:
                        ticket, place = flying[0]
                        finished.append(self._land(ticket, results, place))
                        flying.pop(0)
                        continue
                    end = min(begin + self._limit, count)
                    part = {name: array[begin:end] for name, array in given.items()}
                    flying.append((self._start(slot, part, end - begin), begin))
                    begin = end
            except BaseException:
                for ticket, _ in flying:
                    self._abandon(ticket)
                raise
        self._note(begun, finished)
        return results

    def submit(self, arrays: Mapping[str, NDArray[Any]]) -> Ticket:
        """Give the GPU one batch; returns a ticket for `collect` before it is done. Waits while every slot is taken.

        Args:
            arrays: as for `run`, `limit` items at most. Those of the host may be changed once this has returned, those of the
                GPU once the ticket is collected.

        Raises:
            As `run`; and GeometryError: there are more items than `limit`.
        """
        given, count = self._checked(arrays)
        if count > self._limit:
            raise GeometryError(f"expected at most {self._limit} items in one batch, received {count}")
        with self._call():
            slot = self._take(wait=True)
            assert slot is not None
            return self._start(slot, given, count)

    def collect(self, ticket: Ticket) -> Arrays:
        """Wait for the outputs of a batch. Every ticket must be collected: until then it occupies a slot.

        Raises:
            ModelError: TensorRT failed at running the network.
            RuntimeUnavailableError: the session is closed, CUDA failed, or the ticket was collected before.
        """
        with self._call():
            if ticket.slot is None:
                raise RuntimeUnavailableError("expected a ticket that was not collected, received one that was")
            results = self._room(ticket.count)
            self._note(ticket.begun_ns, [self._land(ticket, results, 0)])
            return results

    def close(self) -> None:
        """Free its resources after calls in progress have ended; calling it again does nothing."""
        with self._changed:
            was_open, self._open = self._open, False
            self._changed.notify_all()
            self._changed.wait_for(lambda: self._calls == 0)
        if was_open:
            with self._device.current():
                while self._slots:
                    self._slots.pop().free()
                self._free_kernels()
                # TensorRT's objects also free memory, which needs the GPU to be current.
                self._free.clear()
                self._engine = None

    def _free_kernels(self) -> None:
        """Free what runs around the engine, after all slots."""
        if self._frames is not None and self._kernels is not None:
            with suppress(DeviceError):  # the caller of a picture that failed has learned of it
                self._kernels.uploads.synchronize()
            self._frames.close()
            self._kernels.free()

    def _reserve(self, engine: Engine) -> list[Slot]:
        """Make as many slots with as large a batch as memory allows; fewer slots are preferred to a smaller batch.

        Raises:
            RuntimeUnavailableError: there is too little memory for the smallest batch.
        """
        limit, slots = engine.max_batch, list[Slot]()
        while not slots:
            buckets = engine.buckets(limit)
            try:
                while len(slots) < engine.slots:
                    slots.append(Slot(self._device, engine, buckets, self._kernels))
            except DeviceMemoryError as error:
                if slots:
                    break
                if len(buckets) == 1:
                    raise RuntimeUnavailableError(
                        f"the GPU has too little free memory for a batch of {limit}: {error}; stop other programs that use "
                        "it, or choose a smaller model"
                    ) from error
                limit = buckets[-2]
            except BaseException:
                for slot in slots:
                    slot.free()
                raise
        if limit < engine.max_batch or len(slots) < engine.slots:
            wanted = f"{engine.slots} batches of {engine.max_batch} items"
            warnings.warn(
                f"the GPU has too little free memory for {wanted} in flight: going on with {len(slots)} of {limit}",
                RuntimeWarning,
                stacklevel=4,
            )
        self._limit, self._slot_count, self._buckets = limit, len(slots), buckets
        self._unrecorded = {size: reason for slot in slots for size, reason in slot.unrecorded.items()}
        if self._unrecorded and self._device.has_graphs and engine.slots > 1:
            sizes = ", ".join(map(str, sorted(self._unrecorded)))
            reason = next(iter(self._unrecorded.values()))
            warnings.warn(
                f"batches of {sizes} run without a CUDA graph, which is slower: {reason}", RuntimeWarning, stacklevel=4
            )
        return slots

    @contextmanager
    def _call(self) -> Iterator[Engine]:
        """A context for a call, with the GPU current; `close` waits for its end.

        Raises:
            RuntimeUnavailableError: the session is closed.
        """
        with self._changed:
            self._check_open()
            self._calls += 1
        try:
            with self._device.current():
                assert self._engine is not None
                yield self._engine
        finally:
            with self._changed:
                self._calls -= 1
                self._changed.notify_all()

    def _checked(self, arrays: Mapping[str, Any]) -> tuple[dict[str, Any], int]:
        """The inputs, contiguous, and the number of their items."""
        adopted = {name: adopt(array, name) for name, array in arrays.items()}
        # An array on the GPU has all that is checked: a type, a shape, and a length.
        count = check_given(adopted, self)  # type: ignore[arg-type]
        if isinstance(adopted.get(ORIGINS.name), DeviceArray):
            raise GeometryError(f"expected {ORIGINS.name} in the host's memory, received them on the GPU")
        given = {n: np.ascontiguousarray(a) if isinstance(a, np.ndarray) else a for n, a in adopted.items()}
        return given, count

    def _room(self, count: int) -> Arrays:
        return {name: np.empty((count, *shape), dtype) for name, (shape, dtype) in self._results.items()}

    def _take(self, *, wait: bool) -> Slot | None:
        """A free slot; None if there is none and the caller does not wait.

        Raises:
            RuntimeUnavailableError: the session was closed meanwhile.
        """
        with self._changed:
            if wait:
                self._changed.wait_for(lambda: self._free or not self._open)
                if not self._free:
                    self._check_open()
            return self._free.pop() if self._free else None

    def _start(self, slot: Slot, given: dict[str, Any], count: int) -> Ticket:
        ticket = Ticket(count, slot, False, time.perf_counter_ns(), given)
        try:
            ticket.replayed = slot.start(given, count)
        except BaseException:
            self._abandon(ticket)
            raise
        return ticket

    def _land(self, ticket: Ticket, results: Arrays, begin: int) -> BatchTimes:
        """Wait for a batch, copy its results to their place, and free its slot."""
        slot = ticket.slot
        assert slot is not None
        try:
            found = slot.finish(ticket.count, results, begin, replayed=ticket.replayed)
        except Exception:
            self._abandon(ticket)
            raise
        self._release(ticket)
        return found

    def _abandon(self, ticket: Ticket) -> None:
        """Free the slot of a batch whose results are no longer needed, when nothing uses it any more."""
        if ticket.slot is not None:
            ticket.slot.abandon()
            self._release(ticket)

    def _release(self, ticket: Ticket) -> None:
        with self._changed:
            if ticket.slot is not None:
                self._free.append(ticket.slot)
            ticket.slot, ticket.inputs = None, {}
            self._changed.notify_all()

    def _note(self, begun_ns: int, finished: list[BatchTimes]) -> None:
        self._times = RunTimes(
            (time.perf_counter_ns() - begun_ns) / 1e6,
            sum(batch.copy_in_ms for batch in finished),
            sum(batch.inference_ms for batch in finished),
            sum(batch.copy_out_ms for batch in finished),
            len(finished),
            sum(batch.replayed for batch in finished),
        )

    def _check_open(self) -> None:
        if not self._open:
            raise RuntimeUnavailableError(f"the session of {self._name} is closed; open it again to run it")
