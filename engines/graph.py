"""Networks as ONNX graphs in memory: with the contract's inputs and outputs, no batch norms, and only standard operators.

The graphs here are not compared with anything: `engines.export` does that before a file is put in place.
"""

from __future__ import annotations

import logging
import math
import warnings
from collections.abc import Iterable, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from convnextpose.errors import ExportError, install_command
from engines.metadata import write_metadata
from engines.people import LEAST_SIDE, SIDE_STEP, people_metadata, people_specs
from engines.pose import CROPS, ModelInfo, predicts
from engines.session import ArraySpec

if TYPE_CHECKING:
    from torch import Tensor, nn

    from convnextpose.checkpoint import VerifiedCheckpoint

OPSET = 18
IR_VERSION = 8
"""The oldest file format that supports opset 18: older runtimes refuse newer formats."""

STORED_IN_FP16_FROM = 1024
"""Smallest number of values in a constant for which storing it in FP16 is worth a cast."""


def pose_graph(checkpoint: VerifiedCheckpoint, *, name: str, random: bool = False) -> bytes:
    """The ONNX file of a verified checkpoint: the same bytes each time.

    Args:
        checkpoint: the model.
        name: the model's name.
        random: whether its weights are random.

    Raises:
        ExportError: torch, onnx or onnxscript is missing, or they could not export it.
    """
    info = ModelInfo(name, checkpoint.variant, checkpoint.joint_set, checkpoint.sha256, random)
    with _exporter("a checkpoint"):
        from engines.folding import contract_network

        network = contract_network(checkpoint)
    return _graph(network, (CROPS,), predicts(len(checkpoint.joint_set)), write_metadata(info))


def people_graph(weights: Path) -> bytes:
    """The ONNX file of a people detector's safetensors file: the same bytes each time.

    Raises:
        CheckpointError: the weights are not a detector's.
        ExportError: torch, onnx or onnxscript is missing, or they could not export it.
    """
    with _exporter("a people detector"):
        from convnextpose.detector import CANDIDATES, FRAME_SIZE, build_detector
        from engines.folding import contract_detector

        network = contract_detector(build_detector(weights))
    return _graph(network, *people_specs(CANDIDATES), people_metadata(FRAME_SIZE))


def layer_name(weight: str) -> str:
    """A convolution's name, as checkpoints have it, from the name of its weight in an exported graph."""
    return weight.removeprefix("network.").partition(".weight")[0]


def store_in_fp16(model: bytes) -> bytes:
    """Make an exported FP32 model smaller: weights that FP16 can represent exactly are stored in FP16, each with a cast to
    FP32.

    Nothing is rounded: other weights stay in FP32. For a checkpoint in FP16 these are the weights that norms were folded into,
    a ninth of all; for a checkpoint in FP32 nearly all. The libraries fold the casts when they open the file.
    """
    import onnx

    proto = onnx.load_from_string(model)
    casts = []
    for tensor in proto.graph.initializer:
        if tensor.data_type != onnx.TensorProto.FLOAT or math.prod(tensor.dims) < STORED_IN_FP16_FROM:
            continue
        weights = onnx.numpy_helper.to_array(tensor)
        with np.errstate(over="ignore"):
            half = weights.astype(np.float16)
        if np.array_equal(half.astype(np.float32), weights):
            name = tensor.name
            tensor.CopyFrom(onnx.numpy_helper.from_array(half, f"{name}_fp16"))
            casts.append(onnx.helper.make_node("Cast", [tensor.name], [name], f"{name}_fp32", to=onnx.TensorProto.FLOAT))
    nodes = [*casts, *proto.graph.node]
    copies = [type(node).FromString(node.SerializeToString()) for node in nodes]
    del proto.graph.node[:]
    proto.graph.node.extend(copies)
    data: bytes = proto.SerializeToString(deterministic=True)
    return data


def fold_casts(proto: Any) -> None:  # noqa: ANN401 - onnx has no types
    """Undo `store_in_fp16` in a ModelProto: FP16 constants that are cast become FP32 constants."""
    import onnx

    graph = proto.graph
    tensors = {tensor.name: tensor for tensor in graph.initializer}
    for node in [node for node in graph.node if node.op_type == "Cast" and node.input[0] in tensors]:
        tensor = tensors[node.input[0]]
        if tensor.data_type == onnx.TensorProto.FLOAT16:
            weights = onnx.numpy_helper.to_array(tensor).astype(np.float32)
            tensor.CopyFrom(onnx.numpy_helper.from_array(weights, node.output[0]))
            graph.node.remove(node)


@contextmanager
def _exporter(what: str) -> Iterator[None]:
    """Check that the libraries for exporting are installed.

    Raises:
        ExportError: one is missing.
    """
    try:
        import onnx  # noqa: F401
        import onnxscript  # noqa: F401 - torch's exporter needs it and says so less clearly
        import torch  # noqa: F401

        yield
    except ImportError as error:
        raise ExportError(f"exporting {what} needs torch, onnx and onnxscript: {error}; {install_command('build')}") from error


def _graph(network: nn.Module, inputs: Sequence[ArraySpec], outputs: Sequence[ArraySpec], metadata: dict[str, str]) -> bytes:
    """The ONNX file of a network of any batch size, checked, without the exporter's notes for debugging.

    Args:
        network: the network, in evaluation mode.
        inputs, outputs: its inputs and outputs; variable axes of inputs other than the first are sides of frames.
        metadata: the file's metadata.

    Raises:
        ExportError: torch could not export it, or the exported graph is wrong.
    """
    import onnx

    model = onnx.load_from_string(_convert(network, inputs, outputs))
    onnx.helper.set_model_props(model, metadata)
    _check(model, [*inputs, *outputs])
    data: bytes = model.SerializeToString(deterministic=True)
    return data


def _convert(network: nn.Module, inputs: Sequence[ArraySpec], outputs: Sequence[ArraySpec]) -> bytes:
    """The graph that torch's exporter makes of a network, without the exporter's debugging notes; takes seconds.

    Raises:
        ExportError: torch could not export it.
    """
    import torch

    try:
        with _quiet_exporter():
            program = torch.onnx.export(
                network,
                tuple(_example(spec) for spec in inputs),
                dynamo=True,
                opset_version=OPSET,
                input_names=[spec.name for spec in inputs],
                output_names=[spec.name for spec in outputs],
                dynamic_shapes=tuple(map(_free_axes, inputs)),
                verbose=False,
            )
    except torch.onnx.OnnxExporterError as error:
        raise ExportError(f"torch {torch.__version__} could not export the network: {error.__cause__ or error}") from error
    if program is None:
        raise ExportError(f"expected a model from the ONNX exporter of torch {torch.__version__}, received none")
    model = program.model_proto
    _strip(model)
    model.ir_version = IR_VERSION
    data: bytes = model.SerializeToString(deterministic=True)
    return data


def _example(spec: ArraySpec) -> Tensor:
    """Two items, as torch.export treats a dimension of one as constant; the sides of frames differ for the same reason."""
    import torch

    free = {axis: 2 if axis == 0 else LEAST_SIDE + axis * SIDE_STEP for axis in _free_axes(spec)}
    return torch.zeros([free[axis] if n is None else n for axis, n in enumerate(spec.shape)], dtype=getattr(torch, spec.dtype))


def _free_axes(spec: ArraySpec) -> dict[int, Any]:
    """An input's variable axes, and their names for torch.export."""
    import torch

    steps = {
        axis: SIDE_STEP * torch.export.Dim("NHWC"[axis], min=LEAST_SIDE // SIDE_STEP)
        for axis, length in enumerate(spec.shape)
        if axis and length is None
    }
    return {0: torch.export.Dim("N"), **steps}


def _strip(model: Any) -> None:  # noqa: ANN401 - onnx has no types
    """Remove the exporter's debugging notes: stack traces, which contain this machine's paths, and inner shapes."""
    graph = model.graph
    for part in (model, graph, *graph.node, *graph.input, *graph.output, *graph.initializer):
        part.ClearField("doc_string")
        part.ClearField("metadata_props")
    graph.ClearField("value_info")


def _check(model: Any, expected: list[ArraySpec]) -> None:  # noqa: ANN401
    """Refuse a graph that is not valid ONNX, still has a batch norm, or has the wrong inputs or outputs."""
    import onnx

    try:
        onnx.checker.check_model(model, full_check=True)
    except (onnx.checker.ValidationError, onnx.shape_inference.InferenceError) as error:
        raise ExportError(f"the exported graph is not valid ONNX: {error}") from error
    if left := [node.name for node in model.graph.node if node.op_type == "BatchNormalization"]:
        raise ExportError(f"expected every batch norm to be folded, found {', '.join(left)}")
    found = specs_of((*model.graph.input, *model.graph.output))
    if found != tuple(expected):
        raise ExportError(f"expected {', '.join(map(str, expected))}, but the exporter made {', '.join(map(str, found))}")


def fix_input(model: bytes, wanted: ArraySpec) -> bytes:
    """An ONNX model whose input has the lengths that a spec of this name fixes; the same bytes if it has them already.

    Raises:
        ExportError: onnx is missing.
    """
    try:
        import onnx
    except ImportError as error:
        raise ExportError(f"fixing a network's sides needs onnx: {error}; {install_command('build')}") from error
    proto = onnx.load_from_string(model)
    (value,) = (value for value in proto.graph.input if value.name == wanted.name)
    free = [
        (dimension, length)
        for dimension, length in zip(value.type.tensor_type.shape.dim, wanted.shape, strict=True)
        if length is not None and not dimension.HasField("dim_value")
    ]
    for dimension, length in free:
        dimension.dim_value = length
    data: bytes = proto.SerializeToString(deterministic=True) if free else model
    return data


def specs_of(values: Iterable[Any]) -> tuple[ArraySpec, ...]:
    """The specs of an ONNX graph's inputs or outputs."""
    import onnx

    specs = []
    for value in values:
        tensor = value.type.tensor_type
        shape = tuple(length.dim_value if length.HasField("dim_value") else None for length in tensor.shape.dim)
        specs.append(ArraySpec(value.name, onnx.helper.tensor_dtype_to_np_dtype(tensor.elem_type).name, shape))
    return tuple(specs)


@contextmanager
def _quiet_exporter() -> Iterator[None]:
    """Hide the exporter's messages from the user: what matters is checked afterwards."""
    logger = logging.getLogger("torch.onnx")
    level = logger.level
    logger.setLevel(logging.ERROR)
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            yield
    finally:
        logger.setLevel(level)
