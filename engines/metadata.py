"""What an exported model says about itself: written into the ONNX file's metadata, and read back without any ONNX library.

OpenVINO does not show a model's metadata and the base install has no `onnx`, so the few fields that hold it are read here.
"""

from __future__ import annotations

from collections.abc import Iterator

from convnextpose.errors import ModelError
from convnextpose.skeleton import JOINT_SETS
from convnextpose.variants import Variant
from engines.pose import PRECISIONS, ModelInfo

CONTRACT = "1"
"""Version of the exported graph's contract: its input, its outputs and its metadata."""

_METADATA_FIELD, _KEY_FIELD, _VALUE_FIELD = 14, 1, 2
"""Field numbers of ModelProto.metadata_props and StringStringEntryProto.key and .value in onnx.proto."""


def write_metadata(info: ModelInfo) -> dict[str, str]:
    """The metadata that an exported model of `info` holds; what is missing means FP32."""
    typed = {} if info.precision == "fp32" else {"precision": info.precision}
    calibrated = {} if info.calibration_sha256 is None else {"calibration_sha256": info.calibration_sha256}
    return {
        "convnextpose.contract": CONTRACT,
        "variant": info.variant.name,
        "joint_set": info.joint_set.name,
        "checkpoint_sha256": info.checkpoint_sha256,
        "name": info.name,
        "random": str(int(info.random)),
        **typed,
        **calibrated,
    }


def read_metadata(model: bytes, source: str, name: str | None = None) -> ModelInfo:
    """What an exported model says about itself.

    Args:
        model: the ONNX file's bytes.
        source: what error messages call it.
        name: what to call the model instead of the name in it.

    Raises:
        ModelError: it is no whole ONNX file, or not one that this project exported.
    """
    try:
        entries = [dict(_fields(value)) for number, value in _fields(model) if number == _METADATA_FIELD]
        found = {entry[_KEY_FIELD].decode(): entry.get(_VALUE_FIELD, b"").decode() for entry in entries}
    except (IndexError, KeyError, ValueError):
        raise ModelError(f"expected an ONNX model, received {source}, which is damaged, cut short or something else") from None
    if "convnextpose.contract" not in found:
        raise ModelError(
            f"expected a model exported by this project, received {source}, which lacks its metadata; export a checkpoint with "
            "`convnextpose export CHECKPOINT --out FILE.onnx`"
        )
    if found["convnextpose.contract"] != CONTRACT:
        raise ModelError(
            f"expected a model of contract {CONTRACT}, received {source} of contract {found['convnextpose.contract']}; "
            "export it again"
        )
    try:
        return ModelInfo(
            name=name or found["name"],
            variant=Variant[found["variant"]],
            joint_set=JOINT_SETS[found["joint_set"]],
            checkpoint_sha256=found["checkpoint_sha256"],
            random={"0": False, "1": True}[found["random"]],
            precision={precision: precision for precision in PRECISIONS}[found.get("precision", "fp32")],
            calibration_sha256=found.get("calibration_sha256"),
        )
    except KeyError as error:
        raise ModelError(f"expected known metadata in {source}, received none or an unknown value for {error}") from None


def _fields(message: bytes) -> Iterator[tuple[int, bytes]]:
    """Number and content of a protobuf message's length-delimited fields; the others are stepped over.

    Raises:
        IndexError, ValueError: the bytes are no protobuf message, or end within one.
    """
    view, position = memoryview(message), 0
    while position < len(view):
        tag, position = _varint(view, position)
        kind = tag & 7
        if kind == 0:
            _, position = _varint(view, position)
            continue
        length, position = _varint(view, position) if kind == 2 else ({1: 8, 5: 4}.get(kind, -1), position)
        if length < 0 or position + length > len(view):
            raise ValueError("no protobuf message")
        if kind == 2:
            # Weights are stepped over, not copied: only small fields are of interest.
            yield tag >> 3, bytes(view[position : position + length]) if length < 65536 else b""
        position += length


def _varint(view: memoryview, position: int) -> tuple[int, int]:
    """A protobuf varint and the position after it; raises as `_fields` does."""
    value = shift = 0
    while view[position] & 0x80:
        if shift > 63:
            raise ValueError("no protobuf message")
        value |= (view[position] & 0x7F) << shift
        position, shift = position + 1, shift + 7
    return value | view[position] << shift, position + 1
