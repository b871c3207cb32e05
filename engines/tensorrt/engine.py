"""A loaded engine: its tensors, its profiles and its execution contexts, with the differences between TensorRT's families.

At run time TensorRT's own logger prints its messages. A logger in Python would be called from TensorRT's threads, which could
wait for the interpreter's lock while a call that holds it waits for them. So the errors here only refer to the printed
messages.
"""

from __future__ import annotations

import json
import math
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import numpy as np

from convnextpose.errors import DeviceMemoryError, EngineError, RuntimeUnavailableError
from engines import manifest as manifests
from engines.manifest import EngineManifest
from engines.session import ArraySpec
from engines.tensorrt.module import Library

SLOTS = 3
"""Batches in flight: one is filled while a second runs and the results of a third are read."""

LOW_MEMORY = 256 * 2**20
"""If TensorRT fails while less than this is free on the GPU, bytes, lack of memory is assumed to be the cause. CUDA and the
libraries below TensorRT report this in many different messages, or in none."""

_TYPES = {
    "FLOAT": "float32", "HALF": "float16", "INT8": "int8", "UINT8": "uint8", "INT32": "int32", "INT64": "int64", "BOOL": "bool",
}  # fmt: skip
"""TensorRT's names of types, and numpy's."""


@dataclass(frozen=True)
class LayerInfo:
    """A layer of an engine, as TensorRT's inspector reports it.

    Attributes:
        name: TensorRT's name for it.
        kind: TensorRT's name for its kind, empty if it has none.
        inputs, outputs: types (and formats) of its tensors, as TensorRT names them.
    """

    name: str
    kind: str
    inputs: tuple[str, ...]
    outputs: tuple[str, ...]


@dataclass(frozen=True)
class Tensor:
    """An input or an output of an engine.

    Attributes:
        name: its name.
        dtype: numpy's name for its type.
        item_shape: its shape without the batch axis.
    """

    name: str
    dtype: str
    item_shape: tuple[int, ...]

    @property
    def spec(self) -> ArraySpec:
        """Its specification for a session. Any number of items is accepted: they are split into batches, and padded."""
        return ArraySpec(self.name, self.dtype, (None, *self.item_shape))

    @property
    def item_bytes(self) -> int:
        """The size of one item."""
        return math.prod(self.item_shape) * np.dtype(self.dtype).itemsize


class Engine:
    """TensorRT's engine. All its methods are called within the device's `current()`.

    Args:
        data: the engine file's bytes.
        manifest: its manifest.
        library: the TensorRT module that runs it.
        free_bytes: returns the free memory of the GPU, bytes.

    Attributes:
        inputs, outputs: its tensors.
        min_batch, max_batch: the smallest and the largest number of items at once.
        slots: number of batches that may be in flight. TensorRT before 10 allows only one execution context.
        activation_bytes: memory that its layers need for the largest batch.

    Raises:
        EngineError: TensorRT rejects it, or an axis other than the batch is free in its tensors.
        DeviceMemoryError: the GPU has too little memory for its weights.
        RuntimeUnavailableError: TensorRT does not start.
    """

    def __init__(self, data: bytes, manifest: EngineManifest, library: Library, free_bytes: Callable[[], int]) -> None:
        self._module = library.module
        self._called = f"{library.name} {library.version}"
        self._free_bytes = free_bytes
        self._logger = library.native_logger()
        try:
            self._runtime = self._module.Runtime(self._logger)
        except TypeError as error:  # its constructor returned nothing: no driver, or one that is too old
            raise RuntimeUnavailableError(f"{self._called} does not start: {error}; it printed the reason above") from error
        if manifest.options.get(manifests.VERSION_COMPATIBLE):
            # Any engine is native code: the manifest shows that the file is complete, not who made it (docs/tensorrt.md).
            self._runtime.engine_host_code_allowed = True
        if (core := manifest.options.get("dla_core")) is not None:
            self._runtime.DLA_core = core
        self._engine = self._runtime.deserialize_cuda_engine(data)
        if self._engine is None:
            raise self.failed("cannot load the engine", f"; build it again with `{manifest.command}`")
        self.inputs, self.outputs = self._tensors("INPUT"), self._tensors("OUTPUT")
        self._profiles = [self._profile(index) for index in range(self._engine.num_optimization_profiles)]
        self.min_batch = min(fewest for fewest, _ in self._profiles)
        self.max_batch = max(most for _, most in self._profiles)
        self.slots = SLOTS if hasattr(self._module, "ExecutionContextAllocationStrategy") else 1
        size = getattr(self._engine, "device_memory_size_v2", None)
        self.activation_bytes = int(self._engine.device_memory_size if size is None else size)
        self._config: Any = None
        self._compiled: Any = None

    def buckets(self, limit: int) -> tuple[int, ...]:
        """The batch sizes that run, up to `limit`: 1, 2, 4, 8, ..., and the limit. Other batches are padded."""
        doubling = {2**exponent for exponent in range(limit.bit_length())}
        return tuple(sorted({size for size in doubling | {limit} if self.min_batch <= size <= limit and self._fits(size)}))

    def new_context(self) -> Any:  # noqa: ANN401
        """A new execution context, without memory for activations.

        Raises:
            DeviceMemoryError: there is too little memory.
            EngineError: TensorRT cannot make one.
        """
        module, engine = self._module, self._engine
        if self.slots == 1:
            context = engine.create_execution_context_without_device_memory()
        elif self._runtime_config() is not None:
            context = engine.create_execution_context(self._config)
        else:
            context = engine.create_execution_context(module.ExecutionContextAllocationStrategy.USER_MANAGED)
        if context is None:
            raise self.failed("could not create an execution context")
        return context

    def shape(self, context: Any, size: int, stream: int) -> None:  # noqa: ANN401
        """Set a context to a batch size and to the narrowest profile that includes it, on a stream.

        Raises:
            EngineError, DeviceMemoryError: TensorRT rejects it.
        """
        _, profile = min((most - fewest, i) for i, (fewest, most) in enumerate(self._profiles) if fewest <= size <= most)
        if context.active_optimization_profile != profile and not context.set_optimization_profile_async(profile, stream):
            raise self.failed(f"does not take profile {profile}")
        for tensor in self.inputs:
            if not context.set_input_shape(tensor.name, (size, *tensor.item_shape)):
                raise self.failed(f"does not take {size} items")

    def give_memory(self, context: Any, address: int, size: int) -> None:  # noqa: ANN401
        """Let a context use a block for activations."""
        if hasattr(context, "set_device_memory"):
            context.set_device_memory(address, size)
        else:
            context.device_memory = address

    def activations_of(self, context: Any) -> int:  # noqa: ANN401
        """Memory that a context needs for activations with its present shape, bytes."""
        if hasattr(context, "update_device_memory_size_for_shapes"):
            needed = int(context.update_device_memory_size_for_shapes())
            if needed == 0 and self.activation_bytes:  # this is how it reports a failure
                raise self.failed("does not report how much memory it needs")
            return needed
        return self.activation_bytes

    def layers(self) -> tuple[LayerInfo, ...]:
        """Its layers."""
        text = self._engine.create_engine_inspector().get_engine_information(self._module.LayerInformationFormat.JSON)
        return read_layers(text)

    @property
    def compiles(self) -> bool:
        """Whether it compiles kernels on this machine and can save them: TensorRT for RTX does."""
        return hasattr(self._module, "DynamicShapesKernelSpecializationStrategy")

    def take_compiled(self, kept: bytes) -> bool:
        """Load the kernels that an earlier process compiled, before the first context; returns whether they fit this
        machine."""
        assert self._runtime_config() is not None
        return bool(self._compiled.deserialize(kept))

    def compiled(self) -> bytes:
        """The kernels compiled so far, for `take_compiled`; empty if there are none."""
        if self._compiled is None:
            return b""
        kept = self._compiled.serialize()
        return b"" if kept is None else bytes(kept)

    def failed(self, what: str, advice: str = "") -> Exception:
        """The error for a TensorRT call that failed."""
        free = self._free_bytes()
        if free < LOW_MEMORY:
            return DeviceMemoryError(f"{self._called} {what}, with {free / 2**20:.0f} MiB free on the GPU")
        return EngineError(f"{self._called} {what}: it printed the reason above{advice}")

    def _runtime_config(self) -> Any:  # noqa: ANN401
        """The settings with which RTX makes contexts; None for other libraries."""
        if self._config is None and self.compiles:
            module = self._module
            config = self._engine.create_runtime_config()
            config.set_execution_context_allocation_strategy(module.ExecutionContextAllocationStrategy.USER_MANAGED)
            # RTX would first run fallback kernels for a new shape, and a graph would keep those for good.
            config.dynamic_shapes_kernel_specialization_strategy = module.DynamicShapesKernelSpecializationStrategy.EAGER
            self._compiled = config.create_runtime_cache()
            config.set_runtime_cache(self._compiled)  # kernels that one context compiled are reused by the next
            self._config = config
        return self._config

    def _profile(self, index: int) -> tuple[int, int]:
        if (fixed := int(self._engine.get_tensor_shape(self.inputs[0].name)[0])) > 0:
            return fixed, fixed
        fewest, _, most = (tuple(shape) for shape in self._engine.get_tensor_profile_shape(self.inputs[0].name, index))
        return int(fewest[0]), int(most[0])

    def _fits(self, size: int) -> bool:
        return any(fewest <= size <= most for fewest, most in self._profiles)

    def _tensors(self, mode: str) -> tuple[Tensor, ...]:
        """Its inputs or outputs; `mode` is TensorRT's name of either.

        Raises:
            EngineError: one has a type that numpy lacks, or an axis other than the batch is free; or there is none.
        """
        engine, found = self._engine, []
        for name in map(engine.get_tensor_name, range(engine.num_io_tensors)):
            if engine.get_tensor_mode(name).name != mode:
                continue
            kind, shape = engine.get_tensor_dtype(name).name, tuple(engine.get_tensor_shape(name))
            if kind not in _TYPES or not shape or min(shape[1:], default=1) < 1:
                raise EngineError(
                    f"expected tensors of types {', '.join(_TYPES)} in which only the batch varies, received {name} {kind} "
                    f"{list(shape)}; build the engine again"
                )
            found.append(Tensor(name, _TYPES[kind], shape[1:]))
        if not found:
            raise EngineError(f"expected an engine with an {mode.lower()}, received one without; build it again")
        return tuple(found)


def read_layers(text: str) -> tuple[LayerInfo, ...]:
    """The layers in the JSON of TensorRT's inspector."""

    def types(tensors: Any) -> tuple[str, ...]:  # noqa: ANN401
        return tuple(str(tensor.get("Datatype") or tensor.get("Format/Datatype") or "") for tensor in tensors)

    return tuple(
        LayerInfo(layer, "", (), ())  # an engine of low profiling verbosity has only names
        if isinstance(layer, str)
        else LayerInfo(
            str(layer.get("Name", "")),
            str(layer.get("LayerType", "")),
            types(layer.get("Inputs", ())),
            types(layer.get("Outputs", ())),
        )
        for layer in json.loads(text).get("Layers", ())
    )
