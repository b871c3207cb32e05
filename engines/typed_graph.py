"""Operations on the graph of a typed model: its convolutions by name, the additions of its blocks, its types, its end.

All of them work on ONNX's own messages. `engines.precision` uses them to change a graph's precision.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import numpy as np

from convnextpose.errors import EngineError, ExportError, ModelError, install_command
from engines.graph import fold_casts, layer_name
from engines.kernels.blocks import LOGITS
from engines.metadata import read_metadata, write_metadata
from engines.pose import ModelInfo

OPSET, IR_VERSION = 19, 9
"""The first opset whose quantisation has FP16 scales, and the oldest file format that supports it. The graphs' other operators
have not changed since the exporter's opset 18."""

STEM, LAST = "backbone.downsample_layers.0.0", "head.final_layer"
"""The first convolution and the last one."""

NEEDS = "giving a model another precision needs onnx and onnxruntime"

_CAST = "logits_to_fp32"
"""The node after the last convolution of a typed graph."""


def ends_at_logits(model: bytes) -> bytes:
    """A typed FP16 or INT8 graph up to its FP16 logits [N, J * D, H, W], which are its only output.

    Raises:
        EngineError: it is in FP32, or not a typed graph.
    """
    try:
        import onnx
    except ImportError as error:
        raise EngineError(f"ending a graph at its logits needs onnx: {error}; {install_command('build')}") from error
    proto = onnx.load_from_string(model)
    found = [node for node in proto.graph.node if node.name == _CAST]
    if not found:
        precision = read_metadata(model, "the model in memory").precision
        raise EngineError(f"expected a typed graph in fp16 or int8 to end at its logits, received one in {precision}")
    names, info = {found[0].input[0]: LOGITS}, read_metadata(model, "the model in memory")
    for node in proto.graph.node:
        node.output[:] = [names.get(name, name) for name in node.output]
    spec, batch = info.variant.spec, proto.graph.input[0].type.tensor_type.shape.dim[0].dim_param
    shape = (batch, len(info.joint_set) * spec.depth_bins, spec.heatmap_size, spec.heatmap_size)
    del proto.graph.output[:]
    proto.graph.output.append(onnx.helper.make_tensor_value_info(LOGITS, onnx.TensorProto.FLOAT16, shape))
    drop_unused(proto.graph)
    return finish(proto, info)


def load(model: bytes) -> tuple[Any, ModelInfo]:
    """The ONNX ModelProto of an exported FP32 model, and the model's description from its metadata."""
    info = read_metadata(model, "the model in memory")
    if info.precision != "fp32":
        raise ModelError(f"expected an exported model in FP32, received {info.name} in {info.precision}; export it again")
    try:
        import onnx
    except ImportError as error:
        raise ExportError(f"{NEEDS}: {error}; {install_command('build')}") from error
    proto = onnx.load_from_string(model)
    fold_casts(proto)
    if not {STEM, LAST} <= set(layers(proto.graph)):
        raise ExportError(f"expected convolutions named {STEM} and {LAST} in model {info.name}, found none; export it again")
    return proto, info


def finish(proto: Any, info: ModelInfo) -> bytes:  # noqa: ANN401
    """The file of a typed graph, checked."""
    import onnx

    proto.graph.ClearField("value_info")  # the previous types
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


def layers(graph: Any) -> dict[str, Any]:  # noqa: ANN401
    """The convolutions by name, quantised or not, in the order in which they run."""
    maker = {output: node for node in graph.node for output in node.output}
    found = {}
    for node in graph.node:
        if node.op_type == "Conv":
            weight = node.input[1]
            found[layer_name(maker[weight].input[0] if weight in maker else weight)] = node
    return found


def residuals(graph: Any) -> dict[str, tuple[Any, int]]:  # noqa: ANN401
    """For the last convolution of each block: the block's addition, and the index of its input that the convolution makes."""
    made_by = {node.output[0]: layer for layer, node in layers(graph).items()}
    return {
        made_by[name]: (node, index)
        for node in graph.node
        if node.op_type == "Add"
        for index, name in enumerate(node.input)
        if made_by.get(name, "").endswith(".pwconv2")
    }


def quantise_residuals(graph: Any, ranges: Mapping[str, tuple[float, float]]) -> None:  # noqa: ANN401
    """Put quantisation nodes before both inputs of the additions after some convolutions: symmetric, by tensor."""
    import onnx

    nodes, found = list(graph.node), residuals(graph)
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


def attribute(node: Any, name: str, default: int) -> int:  # noqa: ANN401
    """A whole number among a node's attributes."""
    return next((attribute.i for attribute in node.attribute if attribute.name == name), default)


def make_half(graph: Any) -> None:  # noqa: ANN401
    """Make everything up to the last convolution FP16, and cast its result to FP32."""
    import onnx

    types = onnx.TensorProto
    last = layers(graph)[LAST]
    body = _ancestors(graph, [last.output[0]])
    tensors = {tensor.name: tensor for tensor in graph.initializer}
    for node in body:
        if node.op_type == "Cast":
            for attribute in node.attribute:
                if attribute.name == "to":
                    attribute.i = types.FLOAT16
        if node.op_type == "Resize":
            continue  # its factors are always FP32
        for name in node.input:
            tensor = tensors.get(name)
            if tensor is not None and tensor.data_type == types.FLOAT:
                with np.errstate(over="ignore"):  # an overflow is found when the graph is proven
                    half = onnx.numpy_helper.to_array(tensor).astype(np.float16)
                tensor.CopyFrom(onnx.numpy_helper.from_array(half, name))
    logits = last.output[0]
    last.output[0] = f"{logits}_fp16"
    cast = onnx.helper.make_node("Cast", [last.output[0]], [logits], name=_CAST, to=types.FLOAT)
    nodes = list(graph.node)
    after = nodes.index(last) + 1
    _replace(graph.node, [*nodes[:after], cast, *nodes[after:]])


def drop_unused(graph: Any) -> None:  # noqa: ANN401
    """Drop the nodes and initializers that no output needs."""
    needed = _ancestors(graph, [output.name for output in graph.output])
    read = {name for node in needed for name in node.input}
    _replace(graph.node, needed)
    _replace(graph.initializer, [tensor for tensor in graph.initializer if tensor.name in read])


def _ancestors(graph: Any, names: list[str]) -> list[Any]:  # noqa: ANN401
    """The nodes that make the named values, and those before them, in the graph's order."""
    wanted, found = set(names), []
    for node in reversed(graph.node):  # nodes come after those whose results they read
        if wanted & set(node.output):
            wanted |= set(node.input)
            found.append(node)
    return found[::-1]


def _replace(repeated: Any, items: list[Any]) -> None:  # noqa: ANN401
    """Replace the messages of a repeated field."""
    copies = []
    for item in items:
        copies.append(type(item)())
        copies[-1].CopyFrom(item)
    del repeated[:]
    repeated.extend(copies)
