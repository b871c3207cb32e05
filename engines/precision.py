"""Precision as part of the graph: an exported FP32 model becomes a strongly typed FP16 or INT8 graph, proven on the CPU.

TensorRT uses a strongly typed graph's types unchanged, so the graph that is proven here is the one that runs there. In every
graph the crops stay uint8, and everything after the last convolution, `head.final_layer`, computes in FP32.
"""

from __future__ import annotations

import tempfile
from collections.abc import Collection, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from types import MappingProxyType
from typing import Any, NoReturn

import numpy as np
from numpy.typing import NDArray

from convnextpose.errors import ExportError, ParityError, install_command
from engines import typed_graph as graphs
from engines.calibration import CalibrationSet
from engines.metadata import read_metadata
from engines.parity import LIMITS, LayerSensitivity, ParityLimits, ParityReport, compare
from engines.pose import PoseModel, PosePredictor
from engines.sessions.typed import TypedSession

CALIBRATION_BATCH = 8
"""Number of crops that are run at once to find the ranges: limits memory."""

RANKING_CROPS = 4
"""Number of crops for measuring each layer's effect: enough to rank the layers, but few because every layer is measured."""


@dataclass(frozen=True)
class Int8Scheme:
    """An INT8 scheme: the layers of an INT8 graph that are to be in INT8.

    Attributes:
        key: its name in commands and files.
        name: its description.
        prefixes: prefixes of the names of these convolutions; empty for every quantisable one.
        residuals: whether both inputs of a block's addition are quantised as well. TensorRT then adds within the convolution's
            INT8 kernel; otherwise the convolution's result is converted first.
    """

    key: str
    name: str
    prefixes: tuple[str, ...] = ()
    residuals: bool = False

    def layers(self, model: bytes) -> tuple[str, ...]:
        """Its convolutions in an exported model, in the order in which they run."""
        return tuple(name for name in quantisable_layers(model) if name.startswith(self.prefixes or ("",)))


_LATE = ("backbone.downsample_layers.2", "backbone.stages.2", "backbone.downsample_layers.3", "backbone.stages.3", "head.")

INT8_SCHEMES = (
    Int8Scheme("every", "every layer"),
    Int8Scheme("every-additions", "every layer and addition", residuals=True),
    Int8Scheme("late", "the last two stages and the head", _LATE),
    Int8Scheme("late-additions", "the last two stages and the head, and additions", _LATE, residuals=True),
)
"""The INT8 schemes; `to_int8` and `build` use the first by default."""


@dataclass(frozen=True)
class Int8Model:
    """An INT8 graph within its limits.

    Attributes:
        onnx: the graph.
        parity: its comparison with the reference.
        excluded: the layers that were left in FP16 for this, the most sensitive first.
    """

    onnx: bytes
    parity: ParityReport
    excluded: tuple[LayerSensitivity, ...]


def to_fp16(model: bytes) -> bytes:
    """A strongly typed FP16 graph from an exported FP32 model: weights and results of all layers are FP16.

    Raises:
        ModelError: it is not a model that this project exported in FP32.
        ExportError: onnx is missing, or the graph is not one that can be typed.
    """
    proto, info = graphs.load(model)
    graphs.make_half(proto.graph)
    return graphs.finish(proto, replace(info, precision="fp16"))


def to_int8(model: bytes, crops: NDArray[np.uint8], *, exclude: Sequence[str] = ()) -> bytes:
    """A strongly typed graph from an exported FP32 model: convolutions in INT8 between quantisation nodes, the rest in FP16.

    Symmetric, weights by output channel, activations by tensor, biases in FP16. Depthwise convolutions gain nothing from INT8,
    and the stem's pixels would lose a bit to the sign: both stay in FP16, and all that follows the last convolution in FP32.

    Args:
        model: the exported model.
        crops: uint8 [N, 256, 256, 3] of people; they show the ranges of the activations.
        exclude: names of convolutions that stay in FP16, e.g. `head.final_layer`.

    Raises:
        ModelError: it is not a model that this project exported in FP32.
        GeometryError, CalibrationError: the crops cannot be used.
        ExportError: onnx or onnxruntime is missing, `exclude` names layers that the model does not have, or quantising failed.
    """
    return leave_in_fp16(model, quantise(model, crops), exclude)


def quantisable_layers(model: bytes) -> tuple[str, ...]:
    """The convolutions that `to_int8` quantises if none is excluded, in the order in which they run.

    Raises:
        ModelError, ExportError: as for `to_fp16`.
    """
    proto, _ = graphs.load(model)
    return tuple(
        name
        for name, node in graphs.layers(proto.graph).items()
        if name != graphs.STEM and graphs.attribute(node, "group", 1) == 1
    )


def quantise(model: bytes, crops: NDArray[np.uint8]) -> bytes:
    """An exported FP32 model with every quantisable layer between INT8 quantisation nodes, the rest still in FP32.

    Raises:
        As for `to_int8`.
    """
    calibration = CalibrationSet(crops)
    layers = quantisable_layers(model)
    proto, info = graphs.load(model)
    try:
        from onnxruntime.quantization import CalibrationDataReader, QuantFormat, QuantType, quantize_static
    except ImportError as error:
        raise ExportError(f"{graphs.NEEDS}: {error}; {install_command('build')}") from error

    class Batches(CalibrationDataReader):  # type: ignore[misc]  # onnxruntime has no types
        def __init__(self) -> None:
            starts = range(0, len(crops), CALIBRATION_BATCH)
            self._batches: Iterator[dict[str, Any]] = ({"crops": crops[s : s + CALIBRATION_BATCH]} for s in starts)

        def get_next(self) -> dict[str, Any] | None:
            return next(self._batches, None)

    import onnx

    nodes = graphs.layers(proto.graph)
    # The mark of ONNX Runtime's own preparation, which has nothing left to fold here: without the mark a warning asks for it.
    onnx.helper.set_model_props(proto, {"onnx.quant.pre_process": "onnxruntime.quant"})
    with tempfile.TemporaryDirectory() as folder:
        out = Path(folder) / "quantised.onnx"
        try:
            quantize_static(
                proto,
                out,
                Batches(),
                quant_format=QuantFormat.QDQ,
                op_types_to_quantize=["Conv"],
                nodes_to_quantize=[nodes[layer].name for layer in layers],
                per_channel=True,
                activation_type=QuantType.QInt8,
                weight_type=QuantType.QInt8,
                extra_options={
                    "ActivationSymmetric": True,
                    "WeightSymmetric": True,
                    "QuantizeBias": False,
                    # Only a convolution's input: its result stays in FP16.
                    "OpTypesToExcludeOutputQuantization": ["Conv"],
                },
            )
        except (RuntimeError, ValueError) as error:
            raise ExportError(f"ONNX Runtime could not quantise model {info.name}: {error}") from error
        quantised = onnx.load(out)
    return graphs.finish(quantised, replace(info, precision="int8", calibration_sha256=calibration.sha256))


def residual_ranges(model: bytes, crops: NDArray[np.uint8]) -> dict[str, tuple[float, float]]:
    """The largest magnitudes of both inputs of a block's addition, by the convolution that makes one of the two.

    Args:
        model: an exported FP32 model.
        crops: uint8 [N, 256, 256, 3] of people.

    Returns:
        For each such convolution: the magnitude of the other branch, and that of its own result.

    Raises:
        ModelError, ExportError: as for `to_fp16`.
    """
    proto, info = graphs.load(model)
    try:
        import onnx
        from onnxruntime import InferenceSession, SessionOptions
    except ImportError as error:
        raise ExportError(f"{graphs.NEEDS}: {error}; {install_command('build')}") from error
    found = graphs.residuals(proto.graph)
    names = [name for add, branch in found.values() for name in (add.input[1 - branch], add.input[branch])]
    for name in dict.fromkeys(names):
        proto.graph.output.append(onnx.helper.make_tensor_value_info(name, onnx.TensorProto.FLOAT, None))
    options = SessionOptions()
    options.log_severity_level = 3
    session = InferenceSession(proto.SerializeToString(), options, providers=["CPUExecutionProvider"])
    largest = np.zeros(len(names))
    for begin in range(0, len(crops), CALIBRATION_BATCH):
        values = session.run(names, {"crops": crops[begin : begin + CALIBRATION_BATCH]})
        largest = np.maximum(largest, [np.abs(value).max() for value in values])
    if not np.isfinite(largest).all():
        raise ExportError(f"expected finite values in model {info.name}, received NaN or infinity")
    return {layer: (float(x), float(y)) for layer, (x, y) in zip(found, largest.reshape(-1, 2), strict=True)}


def leave_in_fp16(
    model: bytes,
    quantised: bytes,
    exclude: Sequence[str],
    residuals: Mapping[str, tuple[float, float]] = MappingProxyType({}),
) -> bytes:
    """The INT8 graph of `to_int8`, from the exported FP32 model and its quantised version.

    Args:
        model: the exported model.
        quantised: the result of `quantise`.
        exclude: names of convolutions that stay in FP16.
        residuals: the result of `residual_ranges`: the additions after convolutions in INT8 read INT8 on both branches.

    Raises:
        ExportError: `exclude` names layers that the model does not have.
    """
    original, _ = graphs.load(model)
    import onnx

    known = graphs.layers(original.graph)
    if foreign := [layer for layer in exclude if layer not in known]:
        raise ExportError(
            f"expected layers of the model to leave in FP16, for example {graphs.LAST}, received {', '.join(foreign)}"
        )
    weights = {tensor.name: tensor for tensor in original.graph.initializer}
    info = read_metadata(quantised, "the quantised model")
    proto = onnx.load_from_string(quantised)
    maker = {output: node for node in proto.graph.node for output in node.output}
    for layer, node in graphs.layers(proto.graph).items():
        if layer in exclude and node.input[1] not in weights:
            weight = known[layer].input[1]
            node.input[0] = maker[maker[node.input[0]].input[0]].input[0]  # the value before both quantisation nodes
            node.input[1] = weight
            proto.graph.initializer.append(weights[weight])
    graphs.quantise_residuals(proto.graph, {layer: found for layer, found in residuals.items() if layer not in exclude})
    graphs.drop_unused(proto.graph)
    graphs.make_half(proto.graph)
    return graphs.finish(proto, info)


def measure(
    model: bytes, reference: PosePredictor, crops: NDArray[np.uint8], limits: ParityLimits | None = None
) -> ParityReport:
    """Compare a typed graph, computed exactly as its types say, with FP32 PyTorch; call the report's `check` afterwards.

    Args:
        model: a graph of `to_fp16` or `to_int8`, or an exported model.
        reference: its checkpoint in PyTorch.
        crops: uint8 [N, 256, 256, 3] of people, not used for calibration.
        limits: its limits; None for those of its precision.

    Raises:
        ModelError: the graph is damaged, or of another checkpoint.
        ParityError: there are no crops, or values exceed the range of their type.
    """
    info = read_metadata(model, "the model in memory")
    with PoseModel(TypedSession(model, f"model {info.name}", precision=info.precision), info) as candidate:
        return compare(reference, candidate, crops, limits or LIMITS[info.precision])


def int8_within_limits(
    model: bytes,
    calibration: NDArray[np.uint8],
    reference: PosePredictor,
    crops: NDArray[np.uint8],
    limits: ParityLimits = LIMITS["int8"],
    scheme: Int8Scheme = INT8_SCHEMES[0],
) -> Int8Model:
    """The INT8 graph of an exported FP32 model with as few layers in FP16 as its limits allow.

    If the graph with every layer in INT8 exceeds the limits, each layer's effect is measured alone, and the most sensitive
    layers stay in FP16: the smallest number that a bisection finds.

    Args:
        model: the exported model.
        calibration: uint8 [N, 256, 256, 3] of people, for the ranges.
        reference: its checkpoint in PyTorch.
        crops: uint8 [M, 256, 256, 3] of other people, to measure on.
        limits: the graph's limits.
        scheme: the layers that may be in INT8.

    Raises:
        As for `to_int8` and `measure`.
        ParityError: only a graph without INT8 layers is within the limits; names the worst joints.
    """
    quantised = quantise(model, calibration)
    layers, every = scheme.layers(model), quantisable_layers(model)
    residuals = residual_ranges(model, calibration) if scheme.residuals else {}

    def only(kept: Collection[str]) -> bytes:
        return leave_in_fp16(model, quantised, [layer for layer in every if layer not in kept], residuals)

    def without(excluded: Sequence[LayerSensitivity]) -> Int8Model:
        onnx = only(set(layers) - {entry.layer for entry in excluded})
        return Int8Model(onnx, measure(onnx, reference, crops, limits), tuple(excluded))

    everything = without(())
    if everything.parity.passed:
        return everything
    nothing = measure(only(()), reference, crops, limits)
    if not nothing.passed:
        _refuse("even with every layer in FP16", nothing)
    sensitivities = []
    for layer in layers:
        parity = measure(only({layer}), reference, crops[:RANKING_CROPS], limits)
        sensitivities.append(LayerSensitivity(layer, parity.px.mean, parity.mm.mean))
    sensitivities.sort(key=lambda entry: max(entry.mean_px / limits.mean_px, entry.mean_mm / limits.mean_mm), reverse=True)
    best: Int8Model | None = None
    fails, holds = 0, len(sensitivities)
    while holds - fails > 1:
        middle = (fails + holds) // 2
        tried = without(sensitivities[:middle])
        if tried.parity.passed:
            best, holds = tried, middle
        else:
            fails = middle
    if best is None:
        worst = ", ".join(map(str, sensitivities[:3]))
        _refuse(f"with any layer in INT8, the most sensitive of which alone are {worst}", everything.parity)
    return best


def _refuse(when: str, parity: ParityReport) -> NoReturn:
    try:
        parity.check()
    except ParityError as error:
        raise ParityError(f"{when}, {error}; build it in FP16") from None
    raise AssertionError("refused although its limits hold")
