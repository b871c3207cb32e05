"""An exported model's description: written into the ONNX file's metadata, and read without an ONNX library.

OpenVINO does not show a model's metadata and the base install has no `onnx`: `engines.onnx_parser` reads it.
"""

from __future__ import annotations

from collections.abc import Mapping

from convnextpose.errors import ModelError
from convnextpose.files import show
from convnextpose.skeleton import JOINT_SETS
from convnextpose.variants import Variant
from engines.onnx_parser import parse_onnx
from engines.pose import PRECISIONS, ModelInfo

CONTRACT = "1"
"""Version of the exported graph's contract: its input, its outputs and its metadata."""


def write_metadata(info: ModelInfo) -> dict[str, str]:
    """The metadata of an exported model of `info`; a missing precision means FP32."""
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
    """Read an exported model's description from its file.

    Args:
        model: the ONNX file's bytes.
        source: its name in error messages.
        name: a name to use instead of the one in the file.

    Raises:
        ModelError: it is not a complete ONNX file, or not one that this project exported.
    """
    found = parse_onnx(model, source).metadata
    if "convnextpose.contract" not in found:
        raise ModelError(
            f"expected a model exported by this project, received {source}, which lacks its metadata; export a checkpoint with "
            "`convnextpose export CHECKPOINT --out FILE.onnx`"
        )
    return info_of(found, source, name)


def info_of(found: Mapping[str, str], source: str, name: str | None = None) -> ModelInfo:
    """The model's description from its metadata, as written by `write_metadata`.

    Raises:
        ModelError: it has another contract, an entry is missing, or a value is unknown.
    """
    if found.get("convnextpose.contract") != CONTRACT:
        raise ModelError(
            f"expected a model of contract {CONTRACT}, received {source} of contract "
            f"{show(found.get('convnextpose.contract'))}; export it again"
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
