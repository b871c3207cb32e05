"""The builder: makes a TensorRT engine from a typed ONNX graph, and reads from the build log the type in which each layer
computes.

A strongly typed graph's types are the engine's: no flag requests a precision. The same code serves `tensorrt` 10 and 11 and
`tensorrt_rtx`; `engines.tensorrt.module` hides their differences.
"""

from __future__ import annotations

import math
import re
import threading
import time
import warnings
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Any, TypeVar

from convnextpose.errors import EngineError, RuntimeUnavailableError
from engines.graph import layer_name
from engines.manifest import HARDWARE_COMPATIBLE, MAX_BATCH, VERSION_COMPATIBLE, BatchRange, OptionValue
from engines.tensorrt.device import Gpu
from engines.tensorrt.gpu import find_gpu
from engines.tensorrt.module import Library
from engines.typed_graph import ends_at_logits

CANCEL_WAIT_S, CANCEL_LIMIT_S = 2.0, 30.0
"""How long to wait for an interrupted build before a warning, and in all, s: the library stops only between two steps."""

OPTIMIZATION_LEVEL = 5
"""TensorRT's highest optimisation level: it compares the most kernels, which takes minutes, once."""

PROFILES = ((1, 1), (2, 4), (5, 8), (9, MAX_BATCH))
"""Ranges of batch sizes; the full TensorRT tunes its kernels for each separately."""

LOG_LINES = 3
"""Largest number of the library's error messages that are shown."""

_Result = TypeVar("_Result")


@dataclass(frozen=True)
class BuildOptions:
    """The options of a build, besides the graph and the target.

    Attributes:
        batch: the engine's batch sizes, in crops or frames.
        workspace_mib: limit of the GPU memory that its layers may use for themselves, MiB; None for the library's own choice.
        version_compatible: whether later versions of the library can run it, too.
        hardware_compatible: `ampere_plus` or `same_compute_capability`, so that other GPUs can run it; None for this GPU only.
        dla_core: the deep-learning accelerator that it runs on, with unsupported layers on the GPU; None for the GPU alone.
        tail_kernel: whether it ends at its logits, so that a kernel of this project computes joints and scores from them.
    """

    batch: BatchRange = field(default_factory=BatchRange)
    workspace_mib: int | None = None
    version_compatible: bool = False
    hardware_compatible: str | None = None
    dla_core: int | None = None
    tail_kernel: bool = False

    def named(self) -> dict[str, OptionValue]:
        """The options by name, as the manifest records them, without the batch, which it has separately."""
        return {
            "workspace_mib": self.workspace_mib,
            VERSION_COMPATIBLE: self.version_compatible,
            HARDWARE_COMPATIBLE: self.hardware_compatible,
            "dla_core": self.dla_core,
            "tail_kernel": self.tail_kernel,
        }


@dataclass(frozen=True)
class EngineTensor:
    """A tensor that a layer of an engine reads or writes.

    Attributes:
        type: the library's name of its type: `Half`, `Int8`, `Float`, ...
        dimensions: its shape; -1 for the batch axis.
    """

    type: str
    dimensions: tuple[int, ...]


@dataclass(frozen=True)
class EngineLayer:
    """One layer of a built engine, from the build log.

    Attributes:
        name: the library's name for it.
        kind: the library's name for its kind.
        onnx_nodes: names of the ONNX nodes that it computes.
        inputs, constants, outputs: its tensors.
    """

    name: str
    kind: str
    onnx_nodes: tuple[str, ...]
    inputs: tuple[EngineTensor, ...]
    constants: tuple[EngineTensor, ...]
    outputs: tuple[EngineTensor, ...]


@dataclass(frozen=True)
class BuiltEngine:
    """An engine that was built, not yet written.

    Attributes:
        data: the engine.
        library: the module that built it: `tensorrt` or `tensorrt_rtx`.
        library_version: its full version.
        compute_capabilities: those of the GPUs that it runs on, such as `8.9`.
        gpu_name: name of the GPU that it was built on, None if it was built without one.
        driver: the driver's version there, None if it was built without a GPU.
        batch: its batch sizes, in crops or frames.
        options: the builder's options, by name, as the manifest records them.
        layers: its layers, as far as the library reports them.
        timing_cache: the library's timings for the next build, None if it keeps none.
    """

    data: bytes
    library: str
    library_version: str
    compute_capabilities: tuple[str, ...]
    gpu_name: str | None
    driver: str | None
    batch: BatchRange
    options: Mapping[str, OptionValue]
    layers: tuple[EngineLayer, ...] = ()
    timing_cache: bytes | None = None


def build_engine(
    onnx: bytes,
    library: Library,
    compute_capability: str | None = None,
    options: BuildOptions = BuildOptions(),
    timing_cache: bytes = b"",
) -> BuiltEngine:
    """Build an engine. Ctrl-C stops it between two of its steps.

    Args:
        onnx: a typed graph, in which only the batch may be free.
        library: the library that builds it.
        compute_capability: that of the target GPU, such as `8.9`, if the library builds for absent GPUs; None for the local
            GPU.
        options: the options of the build.
        timing_cache: that of an earlier build; anything else is ignored.

    Raises:
        EngineError: the library has no such option or target, or rejects the graph; has the library's message.
        RuntimeUnavailableError: it needs a GPU to build, and there is none.
    """
    gpu = None if compute_capability is not None and library.builds_for_absent_gpus else find_gpu()
    if gpu is None and compute_capability is None:
        raise RuntimeUnavailableError(f"{library.name} {library.version} builds for the local GPU, but there is none")
    found = compute_capability or (gpu.compute_capability if gpu else "")
    return interruptible(library, lambda cancelled: _build(onnx, library, found, gpu, options, timing_cache, cancelled))


def _build(
    onnx: bytes,
    library: Library,
    found: str,
    gpu: Gpu | None,
    options: BuildOptions,
    timing_cache: bytes,
    cancelled: threading.Event,
) -> BuiltEngine:
    """The work of `build_engine`, for the compute capability `found`."""
    module = library.module
    log = _Log()
    logger = library.logger(log.add)
    try:
        builder = module.Builder(logger)
    except TypeError as error:  # its constructor returned nothing: no driver, or one that is too old
        raise RuntimeUnavailableError(f"{library.name} {library.version} does not start: {log.errors() or error}") from error
    network = builder.create_network(library.network_flags())
    parser = module.OnnxParser(network, logger)
    if options.dla_core is not None and hasattr(module.OnnxParserFlag, "ADJUST_FOR_DLA"):  # since TensorRT 10.16
        parser.set_flag(module.OnnxParserFlag.ADJUST_FOR_DLA)
    if not parser.parse(ends_at_logits(onnx) if options.tail_kernel else onnx):
        told = "; ".join(parser.get_error(index).desc() for index in range(min(parser.num_errors, LOG_LINES)))
        raise EngineError(f"{library.name} {library.version} does not take the graph: {told or log.errors()}")
    config = builder.create_builder_config()
    config.profiling_verbosity = module.ProfilingVerbosity.DETAILED
    config.clear_flag(library.builder_flag("TF32"))  # FP32 means FP32
    if hasattr(module.BuilderFlag, "REQUIRE_USER_ALLOCATION"):  # without it a CUDA graph may not record the engine
        config.set_flag(module.BuilderFlag.REQUIRE_USER_ALLOCATION)
    if hasattr(config, "builder_optimization_level"):
        config.builder_optimization_level = OPTIMIZATION_LEVEL
    batch = options.batch
    # RTX makes kernels for each shape that runs, when the engine is opened: more profiles would only make it larger.
    parts = (batch,) if library.builds_for_absent_gpus else split_batch(batch)
    free = _inputs_of_free_batch(network, batch)
    for part in parts if free else ():
        profile = builder.create_optimization_profile()
        for name, shape in free.items():
            profile.set_shape(name, *((count, *shape) for count in (part.min, part.typical, part.max)))
        if config.add_optimization_profile(profile) < 0:
            raise EngineError(f"{library.name} {library.version} takes no profile of {part.min} to {part.max}: {log.errors()}")
    if library.builds_for_absent_gpus:  # its own default leaves Turing out
        config.num_compute_capabilities = 1
        if config.set_compute_capability(library.compute_capability(found), 0) is False:
            raise EngineError(f"{library.name} {library.version} does not build for {found}: {log.errors()}")
    _set_options(library, builder, config, options)
    if library.keeps_timings:
        cache = config.create_timing_cache(timing_cache) or config.create_timing_cache(b"")
        config.set_timing_cache(cache, ignore_mismatch=False)
    watch(library, config, cancelled)
    data = builder.build_serialized_network(network, config)
    if data is None:
        raise EngineError(f"{library.name} {library.version} could not build the engine: {log.errors()}")
    timings = config.get_timing_cache() if library.keeps_timings else None
    return BuiltEngine(
        data=bytes(data),
        library=library.name,
        library_version=library.version,
        compute_capabilities=(found,),
        gpu_name=gpu.name if gpu else None,
        driver=gpu.driver if gpu else None,
        batch=batch,
        options={
            **options.named(),
            "profiles": ",".join(f"{part.min}-{part.typical}-{part.max}" for part in parts),
            "optimization_level": OPTIMIZATION_LEVEL,
        },
        layers=read_layers("\n".join(log.layers)),
        timing_cache=bytes(timings.serialize()) if timings is not None else None,
    )


def _inputs_of_free_batch(network: Any, batch: BatchRange) -> dict[str, tuple[int, ...]]:  # noqa: ANN401
    """The shapes of one item of a network's inputs, by name; empty if the network's batch is fixed.

    Raises:
        EngineError: an axis other than the batch is free in an input or an output, or the batch is fixed at another number.
    """
    inputs = [network.get_input(index) for index in range(network.num_inputs)]
    outputs = [network.get_output(index) for index in range(network.num_outputs)]
    for tensor in (*inputs, *outputs):
        if min(tuple(tensor.shape)[1:], default=1) < 0:
            raise EngineError(f"expected a graph in which only the batch varies, received {tensor.name} {list(tensor.shape)}")
    fixed = {int(tensor.shape[0]) for tensor in inputs} - {-1}
    if fixed and fixed != {batch.min, batch.max}:
        raise EngineError(
            f"expected a batch of {', '.join(map(str, fixed))}, which the graph has fixed, received {batch.min} to {batch.max}"
        )
    return {tensor.name: tuple(tensor.shape)[1:] for tensor in inputs if tensor.shape[0] < 0}


def split_batch(batch: BatchRange) -> tuple[BatchRange, ...]:
    """The ranges of batch sizes that get an optimisation profile each.

    A profile is tuned for one number of crops: the one given as typical, or else the range's largest, to which smaller batches
    are padded.
    """
    parts = []
    for fewest, most in PROFILES:
        low, high = max(fewest, batch.min), min(most, batch.max)
        if low <= high:
            parts.append(BatchRange(low, batch.typical if low <= batch.typical <= high else high, high))
    return tuple(parts)


def _set_options(library: Library, builder: Any, config: Any, options: BuildOptions) -> None:  # noqa: ANN401
    module = library.module
    if options.workspace_mib is not None:
        config.set_memory_pool_limit(module.MemoryPoolType.WORKSPACE, options.workspace_mib * 2**20)
    if options.version_compatible:
        config.set_flag(library.builder_flag("VERSION_COMPATIBLE"))
    if options.hardware_compatible is not None:
        if library.builds_for_absent_gpus:
            raise EngineError(f"{library.name} builds for compute capabilities, not for hardware compatibility: name targets")
        config.hardware_compatibility_level = library.hardware_compatibility(options.hardware_compatible)
    if options.dla_core is not None:
        if not 0 <= options.dla_core < builder.num_DLA_cores:
            raise EngineError(
                f"expected one of {builder.num_DLA_cores} DLA cores that {library.name} {library.version} finds here, received "
                f"{options.dla_core}"
            )
        config.default_device_type = module.DeviceType.DLA
        config.DLA_core = options.dla_core
        config.set_flag(library.builder_flag("GPU_FALLBACK"))


def interruptible(library: Library, work: Callable[[threading.Event], _Result]) -> _Result:
    """Call the library in a separate thread, so that Ctrl-C stops it; the thread gets an event that signals this.

    A library that calls Python, for example to log, swallows exceptions raised there, and KeyboardInterrupt is raised in
    whatever the main thread is doing. So the library must not run in the main thread.

    Raises:
        KeyboardInterrupt: the build has stopped; or it did not within 30 s, or Ctrl-C was pressed again.
    """
    cancelled, ended = threading.Event(), threading.Event()
    results: list[_Result] = []
    errors: list[BaseException] = []

    def run() -> None:
        try:
            results.append(work(cancelled))
        except BaseException as error:  # noqa: BLE001 - raised again by the caller
            errors.append(error)
        finally:
            ended.set()

    # A daemon: a library without a monitor does not stop sooner, and the process need not wait for it.
    worker = threading.Thread(target=run, name="tensorrt-build", daemon=True)

    def ends_within(wait_s: float) -> bool:
        # Not the thread's `join` or `is_alive`: until Python 3.13 Ctrl-C within them makes a running thread count as ended.
        end = time.monotonic() + wait_s
        while not ended.is_set() and time.monotonic() < end:
            ended.wait(0.1)  # not longer: Ctrl-C just before the wait begins is handled at its end
        return ended.is_set()

    try:
        worker.start()
        ends_within(math.inf)
    except KeyboardInterrupt:
        cancelled.set()
        if hasattr(library.module, "IProgressMonitor") and not ends_within(CANCEL_WAIT_S):
            told = f"stopping: {library.name} can be stopped only between two steps of a build; Ctrl-C again ends at once"
            warnings.warn(told, RuntimeWarning, stacklevel=3)
            ends_within(CANCEL_LIMIT_S - CANCEL_WAIT_S)
        raise
    if errors:
        raise errors[0]
    return results[0]


def watch(library: Library, config: Any, cancelled: threading.Event) -> None:  # noqa: ANN401
    """Let a build stop at its next step once an event is set, if the library supports this."""
    if not hasattr(library.module, "IProgressMonitor"):
        return

    class Monitor(library.module.IProgressMonitor):  # type: ignore[misc, name-defined]
        def phase_start(self, *_: Any) -> None:  # noqa: ANN401
            pass

        def phase_finish(self, *_: Any) -> None:  # noqa: ANN401
            pass

        def step_complete(self, *_: Any) -> bool:  # noqa: ANN401
            return not cancelled.is_set()

    config.progress_monitor = Monitor()


class _Log:
    """The library's messages during a build: its errors, and the description of the layers."""

    def __init__(self) -> None:
        self._errors: list[str] = []
        self.layers: list[str] = []

    def add(self, severity: str, message: str) -> None:
        if severity in ("error", "internal_error"):
            self._errors.append(" ".join(message.split()))
        elif "LayerType:" in message:
            self.layers.append(message)

    def errors(self) -> str:
        """The last errors, in one line."""
        return "; ".join(self._errors[-LOG_LINES:]) or "it did not say why"


_LAYER = re.compile(r"^Name: (?P<name>.*?), LayerType: (?P<kind>\w+), (?P<rest>Inputs: .*)$", re.MULTILINE)
_TENSOR = re.compile(r"Dimensions: \[(?P<dimensions>[-\d,]*)\].*?Datatype: (?P<type>[^,}]+)")
_TYPE = re.compile(r"\b(FP32|FP16|Int8)\b")
"""The type in a description of a format, such as `Row major linear FP32`, in full TensorRT."""
_TYPE_NAMES = {"FP32": "Float", "FP16": "Half"}
_WEIGHTS = re.compile(r'Weights: \{"Type": "(\w+)", "Count": (\d+)\}')
"""Weights as full TensorRT reports them; TensorRT for RTX lists them among the constants."""
_NODE = re.compile(r"\[ONNX Layer: (.*?)\](?=\s*(?:\x1e|\x1f|\[|$))")


def read_layers(log: str) -> tuple[EngineLayer, ...]:
    """The layers in the engine description that a build log has if ProfilingVerbosity is DETAILED; () if it has none."""
    layers = []
    for match in _LAYER.finditer(log):
        inputs, constants, outputs = (_tensors(match["rest"], part) for part in ("Inputs", "Constants", "Outputs"))
        constants += tuple(EngineTensor(kind, (int(count),)) for kind, count in _WEIGHTS.findall(match["rest"]))
        _, _, metadata = match["rest"].partition("Metadata: ")
        layers.append(EngineLayer(match["name"], match["kind"], tuple(_NODE.findall(metadata)), inputs, constants, outputs))
    return tuple(layers)


def _tensors(text: str, part: str) -> tuple[EngineTensor, ...]:
    """The tensors in a layer's `Inputs: [ {...}, {...}], `, and so on."""
    tensors = []
    listed = re.search(rf"{part}: \[(.*?)\], (?:Constants|Outputs|TacticName): ", text)
    for piece in listed[1].split("{")[1:] if listed else []:
        if found := _TENSOR.search(piece):
            dimensions = tuple(int(size) for size in found["dimensions"].split(",") if size)
            described = _TYPE.search(found["type"])
            kind = _TYPE_NAMES.get(described[1], described[1]) if described else found["type"].strip()
            tensors.append(EngineTensor(kind, dimensions))
    return tuple(tensors)


def convolution_types(layers: tuple[EngineLayer, ...], onnx: bytes) -> dict[str, tuple[str, str]]:
    """The types in which a graph's convolutions compute in its engine: that of their inputs and that of their weights.

    Args:
        layers: the engine's layers.
        onnx: the graph that it was built from.

    Returns:
        By the convolutions' names, those of `engines.precision`; convolutions that are not in the log are missing.
    """
    import onnx as library

    graph = library.load_from_string(onnx).graph
    maker = {output: node for node in graph.node for output in node.output}
    shapes = {tensor.name: tuple(tensor.dims) for tensor in graph.initializer}
    found = {}
    for node in graph.node:
        if node.op_type != "Conv":
            continue
        weight = next(iter(maker[node.input[1]].input), "") if node.input[1] in maker else node.input[1]
        if weight not in shapes:  # a foreign graph may compute it
            continue
        size = math.prod(shapes[weight])
        for layer in layers:
            # Kernels next to a convolution name it as well; the one that reads its weights computes it. The weights are a
            # constant, which may be padded or flattened, or the output of another kernel. A plain matrix product may name no
            # node at all.
            sizes = [(constant.type, math.prod(constant.dimensions)) for constant in layer.constants]
            if node.name in layer.onnx_nodes:
                weights = [kind for kind, count in sizes if count >= size]
                weights += [tensor.type for tensor in layer.inputs[1:] if tensor.dimensions == shapes[weight]]
            else:
                weights = [kind for kind, count in sizes if count == size and not layer.onnx_nodes]
            if weights and layer.inputs:
                found[layer_name(weight)] = (layer.inputs[0].type, weights[0])
    return found
