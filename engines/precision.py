"""Precision in the graph: an exported FP32 model becomes a strongly typed FP16 or INT8 graph, and is proven on the CPU.

TensorRT takes a strongly typed graph's types as they stand, so what is proven here is what runs there. In all of them the crops
stay uint8, and everything after the last convolution, `head.final_layer`, computes in FP32.
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

from convnextpose.errors import ExportError, ModelError, ParityError, install_command
from engines.calibration import CalibrationSet
from engines.graph import fold_casts, layer_name
from engines.metadata import read_metadata, write_metadata
from engines.parity import LIMITS, LayerHarm, ParityLimits, ParityReport, compare
from engines.pose import ModelInfo, PoseModel, PosePredictor
from engines.sessions.typed import TypedSession

OPSET, IR_VERSION = 19, 9
"""The first opset whose quantisation has FP16 scales, and the oldest file format that holds it. What else the graphs use has
not changed since the exporter's opset 18."""

STEM, LAST = "backbone.downsample_layers.0.0", "head.final_layer"
"""The first convolution and the last one."""

CALIBRATION_BATCH = 8
"""Crops that are run at once to find the ranges: bounds memory."""

RANKING_CROPS = 4
"""Crops on which each layer's harm is measured: enough to rank them, few as every layer has its turn."""

_NEEDS = "giving a model another precision needs onnx and onnxruntime"


@dataclass(frozen=True)
class Int8Scheme:
    """Which layers an INT8 graph tries to have in INT8.

    Attributes:
        name: what it is called.
        prefixes: how the names of those convolutions begin; empty for every quantisable one.
        residuals: whether what a block's addition reads, on both branches, is quantised as well. TensorRT then adds within the
            convolution's INT8 kernel; otherwise the convolution's result is widened first.
    """

    name: str
    prefixes: tuple[str, ...] = ()
    residuals: bool = False

    def layers(self, model: bytes) -> tuple[str, ...]:
        """Its convolutions in an exported model, in the order in which they run."""
        return tuple(name for name in quantisable_layers(model) if name.startswith(self.prefixes or ("",)))


_LATE = ("backbone.downsample_layers.2", "backbone.stages.2", "backbone.downsample_layers.3", "backbone.stages.3", "head.")

INT8_SCHEMES = (
    Int8Scheme("every layer"),
    Int8Scheme("every layer and addition", residuals=True),
    Int8Scheme("the last two stages and the head", _LATE),
    Int8Scheme("the last two stages and the head, and additions", _LATE, residuals=True),
)
"""What an INT8 graph may be; `to_int8` makes the first."""


@dataclass(frozen=True)
class Int8Model:
    """An INT8 graph that holds its limits.

    Attributes:
        onnx: the graph.
        parity: it against the reference.
        excluded: the layers that were left in FP16 for it, the most harmful first.
    """

    onnx: bytes
    parity: ParityReport
    excluded: tuple[LayerHarm, ...]


def to_fp16(model: bytes) -> bytes:
    """A strongly typed FP16 graph from an exported FP32 model: weights and results of all layers are FP16.

    Raises:
        ModelError: it is not a model that this project exported in FP32.
        ExportError: onnx is missing, or the graph is not one that can be typed.
    """
    proto, info = _load(model)
    _make_half(proto.graph)
    return _finish(proto, replace(info, precision="fp16"))


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
        GeometryError, CalibrationError: the crops are of no use.
        ExportError: onnx or onnxruntime is missing, `exclude` names what the model has not, or quantising failed.
    """
    return leave_in_fp16(model, quantise(model, crops), exclude)


def quantisable_layers(model: bytes) -> tuple[str, ...]:
    """The convolutions that `to_int8` quantises if none is excluded, in the order in which they run.

    Raises:
        ModelError, ExportError: as for `to_fp16`.
    """
    proto, _ = _load(model)
    return tuple(name for name, node in _layers(proto.graph).items() if name != STEM and _attribute(node, "group", 1) == 1)


def quantise(model: bytes, crops: NDArray[np.uint8]) -> bytes:
    """An exported FP32 model with every quantisable layer between INT8 quantisation nodes, the rest still in FP32.

    Raises:
        As `to_int8` does.
    """
    calibration = CalibrationSet(crops)
    layers = quantisable_layers(model)
    proto, info = _load(model)
    try:
        from onnxruntime.quantization import CalibrationDataReader, QuantFormat, QuantType, quantize_static
    except ImportError as error:
        raise ExportError(f"{_NEEDS}: {error}; {install_command('build')}") from error

    class Batches(CalibrationDataReader):  # type: ignore[misc]  # onnxruntime has no types
        def __init__(self) -> None:
            starts = range(0, len(crops), CALIBRATION_BATCH)
            self._batches: Iterator[dict[str, Any]] = ({"crops": crops[s : s + CALIBRATION_BATCH]} for s in starts)

        def get_next(self) -> dict[str, Any] | None:
            return next(self._batches, None)

    import onnx

    nodes = _layers(proto.graph)
    # The mark of ONNX Runtime's own preparation, which has nothing left to fold here: without it, it is asked for in a warning.
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
                    # Only what a convolution reads: its result goes on in FP16.
                    "OpTypesToExcludeOutputQuantization": ["Conv"],
                },
            )
        except (RuntimeError, ValueError) as error:
            raise ExportError(f"ONNX Runtime could not quantise model {info.name}: {error}") from error
        quantised = onnx.load(out)
    return _finish(quantised, replace(info, precision="int8", calibration_sha256=calibration.sha256))


def residual_ranges(model: bytes, crops: NDArray[np.uint8]) -> dict[str, tuple[float, float]]:
    """The largest magnitudes of what a block's addition reads, by the convolution that makes one of the two.

    Args:
        model: an exported FP32 model.
        crops: uint8 [N, 256, 256, 3] of people.

    Returns:
        For each such convolution: of the other branch, and of its own result.

    Raises:
        ModelError, ExportError: as for `to_fp16`.
    """
    proto, info = _load(model)
    try:
        import onnx
        from onnxruntime import InferenceSession, SessionOptions
    except ImportError as error:
        raise ExportError(f"{_NEEDS}: {error}; {install_command('build')}") from error
    found = _residuals(proto.graph)
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
    """The INT8 graph that `to_int8` gives, from the exported FP32 model and what `quantise` made of it.

    Args:
        model: the exported model.
        quantised: what `quantise` made of it.
        exclude: names of convolutions that stay in FP16.
        residuals: what `residual_ranges` gave: the additions after convolutions in INT8 read INT8 on both branches.

    Raises:
        ExportError: `exclude` names what the model has not.
    """
    original, _ = _load(model)
    import onnx

    known = _layers(original.graph)
    if foreign := [layer for layer in exclude if layer not in known]:
        raise ExportError(f"expected layers of the model to leave in FP16, for example {LAST}, received {', '.join(foreign)}")
    weights = {tensor.name: tensor for tensor in original.graph.initializer}
    info = read_metadata(quantised, "the quantised model")
    proto = onnx.load_from_string(quantised)
    maker = {output: node for node in proto.graph.node for output in node.output}
    for layer, node in _layers(proto.graph).items():
        if layer in exclude and node.input[1] not in weights:
            weight = known[layer].input[1]
            node.input[0] = maker[maker[node.input[0]].input[0]].input[0]  # what was quantised and dequantised again
            node.input[1] = weight
            proto.graph.initializer.append(weights[weight])
    _quantise_residuals(proto.graph, {layer: found for layer, found in residuals.items() if layer not in exclude})
    _drop_unused(proto.graph)
    _make_half(proto.graph)
    return _finish(proto, info)


def measure(
    model: bytes, reference: PosePredictor, crops: NDArray[np.uint8], limits: ParityLimits | None = None
) -> ParityReport:
    """A typed graph, computed exactly as its types say, against the reference, FP32 PyTorch; call the report's `check`.

    Args:
        model: what `to_fp16` or `to_int8` gave, or an exported model.
        reference: its checkpoint in PyTorch.
        crops: uint8 [N, 256, 256, 3] of people, others than an INT8 graph was calibrated on.
        limits: what it is held to; None for those of its precision.

    Raises:
        ModelError: the graph is damaged, or of another checkpoint.
        ParityError: there are no crops, or values leave the range of their type.
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
    """The INT8 graph of an exported FP32 model with as few layers left in FP16 as its limits ask for.

    If the graph with every layer in INT8 strays too far, each layer's harm is measured alone, and the most harmful are left
    in FP16: the fewest that a bisection finds.

    Args:
        model: the exported model.
        calibration: uint8 [N, 256, 256, 3] of people, for the ranges.
        reference: its checkpoint in PyTorch.
        crops: uint8 [M, 256, 256, 3] of people, others than those, to measure on.
        limits: what the graph is held to.
        scheme: which layers may be in INT8.

    Raises:
        As `to_int8` and `measure` do.
        ParityError: the limits hold with no layer in INT8; names the worst joints.
    """
    quantised = quantise(model, calibration)
    layers, every = scheme.layers(model), quantisable_layers(model)
    residuals = residual_ranges(model, calibration) if scheme.residuals else {}

    def only(kept: Collection[str]) -> bytes:
        return leave_in_fp16(model, quantised, [layer for layer in every if layer not in kept], residuals)

    def without(excluded: Sequence[LayerHarm]) -> Int8Model:
        onnx = only(set(layers) - {harm.layer for harm in excluded})
        return Int8Model(onnx, measure(onnx, reference, crops, limits), tuple(excluded))

    everything = without(())
    if everything.parity.passed:
        return everything
    nothing = measure(only(()), reference, crops, limits)
    if not nothing.passed:
        _refuse("even with every layer in FP16", nothing)
    harms = []
    for layer in layers:
        parity = measure(only({layer}), reference, crops[:RANKING_CROPS], limits)
        harms.append(LayerHarm(layer, parity.px.mean, parity.mm.mean))
    harms.sort(key=lambda harm: max(harm.mean_px / limits.mean_px, harm.mean_mm / limits.mean_mm), reverse=True)
    best: Int8Model | None = None
    fails, holds = 0, len(harms)
    while holds - fails > 1:
        middle = (fails + holds) // 2
        tried = without(harms[:middle])
        if tried.parity.passed:
            best, holds = tried, middle
        else:
            fails = middle
    if best is None:
        worst = ", ".join(map(str, harms[:3]))
        _refuse(f"with any layer in INT8, the most harmful of which alone are {worst}", everything.parity)
    return best


def _refuse(when: str, parity: ParityReport) -> NoReturn:
    try:
        parity.check()
    except ParityError as error:
        raise ParityError(f"{when}, {error}; build it in FP16") from None
    raise AssertionError("refused although its limits hold")


def _load(model: bytes) -> tuple[Any, ModelInfo]:
    """The ONNX ModelProto of an exported FP32 model, and what the model says about itself."""
    info = read_metadata(model, "the model in memory")
    if info.precision != "fp32":
        raise ModelError(f"expected an exported model in FP32, received {info.name} in {info.precision}; export it again")
    try:
        import onnx
    except ImportError as error:
        raise ExportError(f"{_NEEDS}: {error}; {install_command('build')}") from error
    proto = onnx.load_from_string(model)
    fold_casts(proto)
    if not {STEM, LAST} <= set(_layers(proto.graph)):
        raise ExportError(f"expected convolutions named {STEM} and {LAST} in model {info.name}, found none; export it again")
    return proto, info


def _finish(proto: Any, info: ModelInfo) -> bytes:  # noqa: ANN401
    """The file of a typed graph, checked."""
    import onnx

    proto.graph.ClearField("value_info")  # the types from before
    del proto.opset_import[:]
    proto.opset_import.append(onnx.helper.make_opsetid("", OPSET))
    proto.ir_version = IR_VERSION
    proto.producer_name, proto.producer_version = "convnextpose", ""
    del proto.metadata_props[:]
    onnx.helper.set_model_props(proto, write_metadata(info))
    try:
        onnx.checker.check_model(proto, full_check=True)
    except (onnx.checker.ValidationError, onnx.shape_inference.InferenceError) as error:
        raise ExportError(f"the {info.precision} graph of model {info.name} is not valid ONNX: {error}") from error
    data: bytes = proto.SerializeToString(deterministic=True)
    return data


def _layers(graph: Any) -> dict[str, Any]:  # noqa: ANN401
    """The convolutions by name, in the order in which they run, quantised or not."""
    maker = {output: node for node in graph.node for output in node.output}
    layers = {}
    for node in graph.node:
        if node.op_type == "Conv":
            weight = node.input[1]
            layers[layer_name(maker[weight].input[0] if weight in maker else weight)] = node
    return layers


def _residuals(graph: Any) -> dict[str, tuple[Any, int]]:  # noqa: ANN401
    """A block's additions, and which of their inputs the block's last convolution makes, by that convolution."""
    made_by = {node.output[0]: layer for layer, node in _layers(graph).items()}
    return {
        made_by[name]: (node, index)
        for node in graph.node
        if node.op_type == "Add"
        for index, name in enumerate(node.input)
        if made_by.get(name, "").endswith(".pwconv2")
    }


def _quantise_residuals(graph: Any, ranges: Mapping[str, tuple[float, float]]) -> None:  # noqa: ANN401
    """Put quantisation nodes before both inputs of the additions after some convolutions: symmetric, by tensor."""
    import onnx

    nodes, found = list(graph.node), _residuals(graph)
    for layer, largest in ranges.items():
        add, branch = found[layer]
        for index, most in ((1 - branch, largest[0]), (branch, largest[1])):
            name = f"{layer}.residual_{index}"
            scale = np.array(max(most, np.finfo(np.float16).tiny * 127) / 127, np.float32)
            graph.initializer.append(onnx.numpy_helper.from_array(scale, f"{name}_scale"))
            graph.initializer.append(onnx.numpy_helper.from_array(np.array(0, np.int8), f"{name}_zero"))
            ends = [f"{name}_scale", f"{name}_zero"]
            pair = [
                onnx.helper.make_node("QuantizeLinear", [add.input[index], *ends], [f"{name}_int8"], name=f"{name}_quantise"),
                onnx.helper.make_node("DequantizeLinear", [f"{name}_int8", *ends], [name], name=f"{name}_dequantise"),
            ]
            place = next(position for position, node in enumerate(nodes) if node is add)
            nodes[place:place] = pair
            add.input[index] = name
    _replace(graph.node, nodes)


def _attribute(node: Any, name: str, default: int) -> int:  # noqa: ANN401
    return next((attribute.i for attribute in node.attribute if attribute.name == name), default)


def _make_half(graph: Any) -> None:  # noqa: ANN401
    """Make everything up to the last convolution FP16, and cast its result to FP32."""
    import onnx

    types = onnx.TensorProto
    last = _layers(graph)[LAST]
    body = _ancestors(graph, [last.output[0]])
    tensors = {tensor.name: tensor for tensor in graph.initializer}
    for node in body:
        if node.op_type == "Cast":
            for attribute in node.attribute:
                if attribute.name == "to":
                    attribute.i = types.FLOAT16
        if node.op_type == "Resize":
            continue  # its factors are FP32 in any graph
        for name in node.input:
            tensor = tensors.get(name)
            if tensor is not None and tensor.data_type == types.FLOAT:
                with np.errstate(over="ignore"):  # what does not fit shows when the graph is proven
                    half = onnx.numpy_helper.to_array(tensor).astype(np.float16)
                tensor.CopyFrom(onnx.numpy_helper.from_array(half, name))
    logits = last.output[0]
    last.output[0] = f"{logits}_fp16"
    cast = onnx.helper.make_node("Cast", [last.output[0]], [logits], name="logits_to_fp32", to=types.FLOAT)
    nodes = list(graph.node)
    after = nodes.index(last) + 1
    _replace(graph.node, [*nodes[:after], cast, *nodes[after:]])


def _drop_unused(graph: Any) -> None:  # noqa: ANN401
    """Drop the nodes and initializers that no output needs."""
    needed = _ancestors(graph, [output.name for output in graph.output])
    read = {name for node in needed for name in node.input}
    _replace(graph.node, needed)
    _replace(graph.initializer, [tensor for tensor in graph.initializer if tensor.name in read])


def _ancestors(graph: Any, names: list[str]) -> list[Any]:  # noqa: ANN401
    """The nodes that make the named values, and those before them, in the graph's order."""
    wanted, found = set(names), []
    for node in reversed(graph.node):  # nodes stand after those that they read
        if wanted & set(node.output):
            wanted |= set(node.input)
            found.append(node)
    return found[::-1]


def _replace(repeated: Any, items: list[Any]) -> None:  # noqa: ANN401
    """Put other messages in the place of a repeated field's."""
    copies = []
    for item in items:
        copies.append(type(item)())
        copies[-1].CopyFrom(item)
    del repeated[:]
    repeated.extend(copies)
