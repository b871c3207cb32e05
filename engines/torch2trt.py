"""Builds an engine from a verified checkpoint through torch2trt, with the builder flags of TensorRT 8 and 10.

TensorRT 8 has no strongly typed networks, so the precision is requested here: FP16 by a flag, INT8 by a flag and by the ranges
of each convolution's input and output, FP32 after the last convolution by constraints on those layers.

torch2trt (github.com/NVIDIA-AI-IOT/torch2trt, not on PyPI) makes the network, layer by layer, while PyTorch runs it. Its
function `torch2trt` neither takes uint8 nor gives access to the layers before it builds. So this file uses torch2trt's
conversion context and builds by itself. If torch2trt has no converter for a function, it silently makes the result a constant:
only the engine's parity with PyTorch proves the conversion.

Never run: that takes TensorRT 8.5 to 10, a GPU and torch2trt. Written from torch2trt's source at commit 4e820ae.
"""

from __future__ import annotations

import importlib
import importlib.util
import threading
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from importlib import metadata
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

from convnextpose.errors import CalibrationError, EngineError, RuntimeUnavailableError, install_command
from convnextpose.variants import INPUT_SIZE
from engines.calibration import CalibrationSet
from engines.pose import PRECISIONS
from engines.precision import CALIBRATION_BATCH
from engines.tensorrt.builder import BuildOptions, BuiltEngine, interruptible, watch
from engines.tensorrt.device import Gpu
from engines.tensorrt.gpu import find_gpu
from engines.tensorrt.module import Library
from engines.typed_graph import LAST, STEM

if TYPE_CHECKING:
    from torch import Tensor, nn

    from convnextpose.checkpoint import VerifiedCheckpoint

HOW_TO_INSTALL = "pip install --no-build-isolation git+https://github.com/NVIDIA-AI-IOT/torch2trt"
"""The command that installs torch2trt. Its setup imports torch and tensorrt, which an isolated build does not see."""


@dataclass(frozen=True)
class ConvolutionRange:
    """The largest magnitudes of a convolution's input and output, for scaling them to INT8.

    Attributes:
        reads, gives: the magnitude of its input and of its output, each over all crops.
    """

    reads: float
    gives: float


def build_engine(
    checkpoint: VerifiedCheckpoint,
    library: Library,
    *,
    precision: str = "fp16",
    options: BuildOptions | None = None,
    calibration_crops: NDArray[np.uint8] | None = None,
) -> BuiltEngine:
    """Build an engine for the local GPU, with the contract of `engines.pose`. Ctrl-C ends it, as it does a typed build.

    Args:
        checkpoint: the model.
        library: `tensorrt` 8.5 or later, before 11.
        precision: `fp32`, `fp16`, or `int8` (the stem and the depthwise convolutions in FP16). All that follows the last
            convolution computes in FP32.
        options: its batch sizes and its workspace; None for the defaults.
        calibration_crops: uint8 [N, 256, 256, 3] of people; they determine the ranges for INT8.

    Raises:
        RuntimeUnavailableError: torch2trt, torch or a GPU is missing; says how to get it.
        CalibrationError: INT8 without crops, or the crops cannot be used.
        EngineError: the library or torch2trt cannot build it; quotes its message.
    """
    options = options or BuildOptions()
    if precision not in PRECISIONS:
        raise EngineError(f"expected precision {', '.join(PRECISIONS)}, received {precision!r}")
    if precision == "int8" and calibration_crops is None:
        raise CalibrationError(
            "expected crops of people to calibrate an INT8 engine on, received none; collect some with `convnextpose calibrate`"
        )
    if importlib.util.find_spec("torch2trt") is None:
        raise RuntimeUnavailableError(
            f"--via torch2trt needs torch2trt, which is not installed and not on PyPI; get it from GitHub: {HOW_TO_INSTALL}"
        )
    _check(library, options)
    network, converter = _load(checkpoint)
    gpu = find_gpu()
    if gpu is None:
        raise RuntimeUnavailableError(f"{library.name} {library.version} builds for the local GPU, but there is none")
    return interruptible(
        library, lambda cancelled: _build(network, converter, library, gpu, precision, options, calibration_crops, cancelled)
    )


def _build(
    network: nn.Module,
    converter: Any,  # noqa: ANN401
    library: Library,
    gpu: Gpu,
    precision: str,
    options: BuildOptions,
    calibration_crops: NDArray[np.uint8] | None,
    cancelled: threading.Event,
) -> BuiltEngine:
    """The work of `build_engine`."""
    trt, errors = library.module, list[str]()
    logger = library.logger(lambda severity, text: errors.append(text) if severity.endswith("error") else None)
    builder = trt.Builder(logger)
    definition = builder.create_network(1 << int(trt.NetworkDefinitionCreationFlag.EXPLICIT_BATCH))
    config = builder.create_builder_config()
    config.clear_flag(trt.BuilderFlag.TF32)  # FP32 means FP32
    if options.workspace_mib is not None:
        config.set_memory_pool_limit(trt.MemoryPoolType.WORKSPACE, options.workspace_mib * 2**20)
    ranges = {}
    if precision != "fp32":
        config.set_flag(trt.BuilderFlag.FP16)
        config.set_flag(trt.BuilderFlag.OBEY_PRECISION_CONSTRAINTS)
    if precision == "int8":
        assert calibration_crops is not None
        config.set_flag(trt.BuilderFlag.INT8)
        ranges = convolution_ranges(network, calibration_crops)

    tail = define_network(network, converter, trt, definition, config, ranges)
    if precision != "fp32":
        for index in range(tail, definition.num_layers):
            layer = definition.get_layer(index)
            if layer.get_output(0).dtype == trt.float32:  # the others compute shapes
                layer.precision = trt.float32
                layer.set_output_type(0, trt.float32)
    profile = builder.create_optimization_profile()
    batch = options.batch
    profile.set_shape("crops", *((count, INPUT_SIZE, INPUT_SIZE, 3) for count in (batch.min, batch.typical, batch.max)))
    config.add_optimization_profile(profile)
    watch(library, config, cancelled)
    data = builder.build_serialized_network(definition, config)
    if data is None:
        told = "; ".join(" ".join(text.split()) for text in errors[-3:]) or "it did not say why"
        raise EngineError(f"{library.name} {library.version} could not build the engine: {told}")
    return BuiltEngine(
        data=bytes(data),
        library=library.name,
        library_version=library.version,
        compute_capabilities=(gpu.compute_capability,),
        gpu_name=gpu.name,
        driver=gpu.driver,
        batch=batch,
        options={**options.named(), "via": "torch2trt", "torch2trt_version": _version()},
    )


def convolution_ranges(network: nn.Module, crops: NDArray[np.uint8]) -> dict[str, ConvolutionRange]:
    """The ranges of every convolution that is worth quantising, by name: those of `engines.precision.quantisable_layers`.

    Args:
        network: the result of `engines.folding.contract_network`.
        crops: uint8 [N, 256, 256, 3] of people.

    Raises:
        GeometryError, CalibrationError: the crops cannot be used.
    """
    import torch

    CalibrationSet(crops)
    ranges: dict[str, ConvolutionRange] = {}

    def widen(name: str) -> Callable[[Any, tuple[Tensor, ...], Tensor], None]:
        def hook(_: Any, inputs: tuple[Tensor, ...], output: Tensor) -> None:  # noqa: ANN401
            known = ranges.get(name, ConvolutionRange(0.0, 0.0))
            reads, gives = float(inputs[0].abs().max()), float(output.abs().max())
            ranges[name] = ConvolutionRange(max(known.reads, reads), max(known.gives, gives))

        return hook

    handles = [layer.register_forward_hook(widen(name)) for name, layer in _quantisable(network)]
    try:
        with torch.inference_mode():
            for begin in range(0, len(crops), CALIBRATION_BATCH):
                network(torch.from_numpy(crops[begin : begin + CALIBRATION_BATCH]))
    finally:
        for handle in handles:
            handle.remove()
    return ranges


def define_network(
    network: nn.Module,
    converter: Any,  # noqa: ANN401
    trt: Any,  # noqa: ANN401
    definition: Any,  # noqa: ANN401
    config: Any,  # noqa: ANN401
    ranges: dict[str, ConvolutionRange],
) -> int:
    """Fill a TensorRT network: the contract's input and outputs, and the layers that torch2trt converts between them.

    Args:
        network: the result of `engines.folding.contract_network`.
        converter: the module torch2trt.
        trt: the module tensorrt.
        definition, config: its empty network and its builder's config.
        ranges: the convolutions that may compute in INT8, and their ranges.

    Returns:
        The index of the first layer after the last convolution.

    Raises:
        EngineError: torch2trt could not convert the network.
    """
    import torch

    _add_converters(converter, trt)
    crops = definition.add_input("crops", trt.uint8, (-1, INPUT_SIZE, INPUT_SIZE, 3))
    cast = definition.add_identity(crops)  # TensorRT only allows casts of uint8
    cast.set_output_type(0, trt.float32)
    # Converters look up a tensor's TensorRT counterpart in this attribute. A float tensor: `float()` returns it unchanged.
    example: Any = torch.zeros(2, INPUT_SIZE, INPUT_SIZE, 3)
    example._trt = cast.get_output(0)
    tails: list[int] = []

    def scale(given: ConvolutionRange) -> Callable[[Any, Any, Any], None]:
        def hook(_: Any, inputs: Any, output: Any) -> None:  # noqa: ANN401
            inputs[0]._trt.set_dynamic_range(-given.reads, given.reads)
            output._trt.set_dynamic_range(-given.gives, given.gives)

        return hook

    handles = [network.get_submodule(f"network.{LAST}").register_forward_hook(lambda *_: tails.append(definition.num_layers))]
    handles += [layer.register_forward_hook(scale(ranges[name])) for name, layer in _quantisable(network) if name in ranges]
    asked = {
        "module": network,
        "fp16_mode": True,
        "int8_mode": bool(ranges),
        "default_device_type": trt.DeviceType.GPU,
        "device_types": {},
        "gpu_fallback": True,
    }
    try:
        with converter.ConversionContext(definition, torch2trt_kwargs=asked, builder_config=config), torch.no_grad():
            outputs = dict(zip(("joints", "scores"), network(example), strict=True))
        for name, tensor in outputs.items():
            tensor._trt.name = name
            definition.mark_output(tensor._trt)
    # Its converters raise all kinds of errors.
    except (ArithmeticError, AssertionError, AttributeError, LookupError, RuntimeError, TypeError, ValueError) as error:
        raise EngineError(f"torch2trt {_version()} could not convert the network: {error}") from error
    finally:
        for handle in handles:
            handle.remove()
    return tails[0]


def _check(library: Library, options: BuildOptions) -> None:
    """Refuse a library without precision flags, and options that only typed builds have.

    Raises:
        EngineError: says which.
    """
    trt = library.module
    # torch2trt cannot even be imported if the flags do not exist.
    if not hasattr(trt.BuilderFlag, "FP16"):
        raise EngineError(
            f"--via torch2trt needs a TensorRT with flags for the precision (8 or 10), but {library.name} {library.version} "
            "has none: build without it"
        )
    if not hasattr(trt, "uint8"):
        raise EngineError(
            f"expected TensorRT 8.5 or later, whose engines take uint8, received {library.version}: update JetPack"
        )
    given = {
        "version_compatible": options.version_compatible,
        "hardware_compatible": options.hardware_compatible is not None,
        "dla_core": options.dla_core is not None,
    }
    if asked := [name for name, is_given in given.items() if is_given]:
        raise EngineError(f"expected no {', '.join(asked)} with --via torch2trt: only typed graphs are built with them")


def _load(checkpoint: VerifiedCheckpoint) -> tuple[nn.Module, Any]:
    """The network of a checkpoint and the module torch2trt.

    Raises:
        RuntimeUnavailableError: torch is missing, or one of them does not load.
    """
    try:
        from engines.folding import contract_network

        network = contract_network(checkpoint)
    except ImportError as error:
        raise RuntimeUnavailableError(f"--via torch2trt needs torch: {error}; {install_command('build')}") from error
    try:
        return network, importlib.import_module("torch2trt")
    except (ImportError, AttributeError, OSError) as error:  # it uses names that not every torch and tensorrt has
        raise RuntimeUnavailableError(
            f"torch2trt is installed but does not load: {error}; install it again: {HOW_TO_INSTALL}"
        ) from error


def _add_converters(converter: Any, trt: Any) -> None:  # noqa: ANN401
    """Register converters for the functions in our network that torch2trt does not know."""

    @converter.tensorrt_converter("torch.softmax")  # type: ignore[untyped-decorator]
    def softmax(context: Any) -> None:  # noqa: ANN401
        layer = context.network.add_softmax(context.method_args[0]._trt)
        layer.axes = 1 << context.method_kwargs["dim"]
        context.method_return._trt = layer.get_output(0)

    @converter.tensorrt_converter("torch.Tensor.square")  # type: ignore[untyped-decorator]
    def square(context: Any) -> None:  # noqa: ANN401
        (value,) = context.method_args
        layer = context.network.add_elementwise(value._trt, value._trt, trt.ElementWiseOperation.PROD)
        context.method_return._trt = layer.get_output(0)


def _quantisable(network: nn.Module) -> Iterator[tuple[str, nn.Module]]:
    """The convolutions that are worth quantising, with their names in the checkpoint: neither depthwise nor the stem."""
    from torch import nn

    for name, layer in network.get_submodule("network").named_modules():
        if isinstance(layer, nn.Conv2d) and layer.groups == 1 and name != STEM:
            yield name, layer


def _version() -> str:
    try:
        return metadata.version("torch2trt")
    except metadata.PackageNotFoundError:
        return "of unknown version"
