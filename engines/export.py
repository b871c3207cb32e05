"""A verified checkpoint becomes an ONNX file with the contract of `engines.runtime`, proven before it is put in place."""

from __future__ import annotations

import hashlib
import logging
import warnings
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from convnextpose.errors import ExportError, install_command
from convnextpose.files import check_place, write_file
from convnextpose.variants import INPUT_SIZE
from engines.metadata import write_metadata
from engines.parity import ParityReport, compare, noise_crops
from engines.runtime import ModelInfo
from engines.select import open_runtime

if TYPE_CHECKING:
    from torch import Tensor, nn

    from convnextpose.checkpoint import VerifiedCheckpoint

OPSET = 18
IR_VERSION = 8
"""The oldest file format that holds opset 18: older runtimes refuse newer ones."""

PARITY_CROPS = 4


@dataclass(frozen=True)
class ExportReport:
    """What was exported.

    Attributes:
        path: the ONNX file.
        sha256: its hash, hexadecimal.
        size_bytes: its size.
        node_count: how many nodes its graph has.
        parity: the exported model against the reference.
    """

    path: Path
    sha256: str
    size_bytes: int
    node_count: int
    parity: ParityReport


def export(
    checkpoint: VerifiedCheckpoint, out: Path, *, name: str, random: bool = False, overwrite: bool = False
) -> ExportReport:
    """Write a verified checkpoint as an ONNX file: compared with the reference first, then put in place at once.

    Args:
        checkpoint: the model.
        out: the file, in a folder that exists.
        name: what people call the model.
        random: whether its weights are random numbers.
        overwrite: whether a file that is already there may be replaced.

    Raises:
        OutputExistsError: the file is there and may not be replaced.
        SinkError: the file cannot be written.
        ExportError: torch, onnx or onnxscript is missing, or they could not export it.
        RuntimeUnavailableError: there is no runtime to prove the exported model in.
        ParityError: the exported model strays from the reference.
    """
    check_place(out, overwrite=overwrite)
    model = _export_model(checkpoint, ModelInfo(name, checkpoint.variant, checkpoint.joint_set, checkpoint.sha256, random))
    data: bytes = model.SerializeToString(deterministic=True)
    with (
        open_runtime(checkpoint, "torch", name=name, random=random) as reference,
        open_runtime(data) as candidate,
    ):
        parity = compare(reference, candidate, noise_crops(PARITY_CROPS))
    parity.check()
    write_file(out, data, overwrite=overwrite)
    return ExportReport(out, hashlib.sha256(data).hexdigest(), len(data), len(model.graph.node), parity)


def export_bytes(checkpoint: VerifiedCheckpoint, *, name: str, random: bool = False) -> bytes:
    """The ONNX file of a verified checkpoint, in memory: the same bytes each time. Not compared with the reference.

    Raises:
        ExportError: torch, onnx or onnxscript is missing, or they could not export it.
    """
    info = ModelInfo(name, checkpoint.variant, checkpoint.joint_set, checkpoint.sha256, random)
    data: bytes = _export_model(checkpoint, info).SerializeToString(deterministic=True)
    return data


def _export_model(checkpoint: VerifiedCheckpoint, info: ModelInfo) -> Any:  # noqa: ANN401 - onnx has no types
    """The ONNX ModelProto, checked."""
    try:
        import onnx
        import onnxscript  # noqa: F401 - torch's exporter needs it and says so less clearly
        import torch

        from engines.folding import contract_network

        network = contract_network(checkpoint)
    except ImportError as error:
        raise ExportError(
            f"exporting a checkpoint needs torch, onnx and onnxscript: {error}; {install_command('build')}"
        ) from error
    example = torch.zeros(2, INPUT_SIZE, INPUT_SIZE, 3, dtype=torch.uint8)
    model = graph_of(network, example, "crops", ("joints", "scores"))
    onnx.helper.set_model_props(model, write_metadata(info))
    _check(model, info)
    return model


def graph_of(network: nn.Module, example: Tensor, takes: str, gives: Sequence[str]) -> Any:  # noqa: ANN401
    """The ONNX ModelProto of a network with one input of any batch size, without the exporter's notes for debugging.

    Args:
        network: in evaluation mode.
        example: an input, of two items or more: torch.export takes a dimension of one for a constant.
        takes, gives: names of the input and of the outputs.

    Raises:
        ExportError: torch could not export it.
    """
    import torch

    try:
        with _quiet_exporter():
            program = torch.onnx.export(
                network,
                (example,),
                dynamo=True,
                opset_version=OPSET,
                input_names=[takes],
                output_names=list(gives),
                dynamic_shapes=({0: torch.export.Dim("N")},),
                verbose=False,
            )
    except torch.onnx.OnnxExporterError as error:
        raise ExportError(f"torch {torch.__version__} could not export the network: {error.__cause__ or error}") from error
    if program is None:
        raise ExportError(f"expected a model from the ONNX exporter of torch {torch.__version__}, received none")
    model = program.model_proto
    _strip(model)
    model.ir_version = IR_VERSION
    return model


def _strip(model: Any) -> None:  # noqa: ANN401
    """Remove what the exporter notes for debugging: stack traces, which hold this machine's paths, and inner shapes."""
    graph = model.graph
    for part in (model, graph, *graph.node, *graph.input, *graph.output, *graph.initializer):
        part.ClearField("doc_string")
        part.ClearField("metadata_props")
    graph.ClearField("value_info")


def _check(model: Any, info: ModelInfo) -> None:  # noqa: ANN401
    """Refuse a graph that is not valid ONNX, has a batch norm left, or other inputs or outputs than the contract's."""
    import onnx

    try:
        onnx.checker.check_model(model, full_check=True)
    except (onnx.checker.ValidationError, onnx.shape_inference.InferenceError) as error:
        raise ExportError(f"the exported graph is not valid ONNX: {error}") from error
    if left := [node.name for node in model.graph.node if node.op_type == "BatchNormalization"]:
        raise ExportError(f"expected every batch norm to be folded, found {', '.join(left)}")
    joint_count = len(info.joint_set)
    expected = {
        "crops": (onnx.TensorProto.UINT8, [None, INPUT_SIZE, INPUT_SIZE, 3]),
        "joints": (onnx.TensorProto.FLOAT, [None, joint_count, 3]),
        "scores": (onnx.TensorProto.FLOAT, [None, joint_count]),
    }
    found = {}
    for value in (*model.graph.input, *model.graph.output):
        tensor = value.type.tensor_type
        shape = [d.dim_value if d.HasField("dim_value") else None for d in tensor.shape.dim]
        found[value.name] = (tensor.elem_type, shape)
    if found != expected:
        raise ExportError(f"expected inputs and outputs {expected} (None: any batch), the exporter made {found}")


@contextmanager
def _quiet_exporter() -> Iterator[None]:
    """Keep the exporter's remarks about itself from the user: what matters is checked afterwards."""
    logger = logging.getLogger("torch.onnx")
    level = logger.level
    logger.setLevel(logging.ERROR)
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            yield
    finally:
        logger.setLevel(level)
