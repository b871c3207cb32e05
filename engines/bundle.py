"""What an engine is proven against, and the bundle that takes an engine's place where its target cannot be built here.

A bundle is a ZIP file with the typed graph, a draft of the manifest, and crops with FP32 PyTorch's predictions for them: the
target builds and proves its engine from that, without torch and without the checkpoint (docs/decisions/0006).
"""

from __future__ import annotations

import hashlib
import io
import json
import zipfile
from dataclasses import asdict, dataclass
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from convnextpose.archives import open_zip, read_npz, unpacked_limit
from convnextpose.errors import EngineError, GeometryError
from convnextpose.files import MAX_JSON_BYTES, LimitError, parse_json, read_file, size_text, write_file
from convnextpose.variants import INPUT_SIZE
from engines.calibration import MAX_PROOF_CROPS
from engines.manifest import EngineDraft
from engines.onnx_file import POSE, read_onnx
from engines.parity import LayerHarm, ParityReport
from engines.pose import ModelInfo, Predictions, check_crops
from engines.session import SessionDescription
from engines.typed_json import decode

BUNDLE_SUFFIX = ".bundle.zip"

BUNDLE_GRAPH, BUNDLE_DRAFT, BUNDLE_PROOF = "model.onnx", "draft.json", "proof.npz"
"""The files in a bundle."""

MAX_GRAPH_BYTES = 128 * 1024**2
"""The largest graph in a bundle. That of the largest variant in FP32 has 34 MB."""

_MAX_PROOF_BYTES = 16 * 1024**2
_MAX_CROPS_BYTES, _MAX_JOINTS_BYTES = MAX_PROOF_CROPS * INPUT_SIZE**2 * 3, MAX_PROOF_CROPS * 64 * 3 * 4


@dataclass(frozen=True)
class Proof:
    """What an engine is held against: crops, and what FP32 PyTorch makes of them.

    Attributes:
        crops: uint8 [N, 256, 256, 3], others than an INT8 graph was calibrated on.
        expected: the predictions for them.
        reference: what predicted.
    """

    crops: NDArray[np.uint8]
    expected: Predictions
    reference: SessionDescription


@dataclass(frozen=True)
class TypedModel:
    """A graph with its precision in it, proven on the CPU.

    Attributes:
        onnx: the graph.
        info: which model it is.
        parity: the graph against FP32 PyTorch.
        excluded: the layers that an INT8 graph has in FP16, the most harmful first.
        proof: what its engines are held against.
    """

    onnx: bytes
    info: ModelInfo
    parity: ParityReport
    excluded: tuple[LayerHarm, ...]
    proof: Proof


class RecordedPoses:
    """The reference's predictions, given again for the very crops that they are of: a `PosePredictor` without a library."""

    def __init__(self, proof: Proof, info: ModelInfo) -> None:
        self._proof = proof
        self.info = info

    def run(self, crops: NDArray[np.uint8]) -> Predictions:
        """The predictions for the recorded crops, or for the first of them.

        Raises:
            GeometryError: they are other crops.
        """
        check_crops(crops)
        count = len(crops)
        if not np.array_equal(crops, self._proof.crops[:count]):
            raise GeometryError(f"expected crops that the reference was recorded on, received {count} others")
        return Predictions(self._proof.expected.joints[:count], self._proof.expected.scores[:count])

    def describe(self) -> SessionDescription:
        """What predicted them."""
        return self._proof.reference


@dataclass(frozen=True)
class Bundle:
    """What an engine is built from on another machine, without torch and without the checkpoint.

    Attributes:
        draft: what is known of the engine.
        model: the typed graph, its proof on the CPU and what its engine is held against.
    """

    draft: EngineDraft
    model: TypedModel


def write_bundle(bundle: Bundle, path: Path, *, overwrite: bool = False) -> None:
    """Write it as a ZIP file, in one step.

    Raises:
        OutputExistsError: the file is there and may not be replaced.
        SinkError: it cannot be written.
    """
    proof, buffer, arrays = bundle.model.proof, io.BytesIO(), io.BytesIO()
    np.savez_compressed(
        arrays,
        crops=proof.crops,
        joints=proof.expected.joints,
        scores=proof.expected.scores,
        reference=np.array(json.dumps(asdict(proof.reference))),
    )
    with zipfile.ZipFile(buffer, "w") as archive:
        archive.writestr(BUNDLE_DRAFT, bundle.draft.to_json())
        archive.writestr(BUNDLE_GRAPH, bundle.model.onnx)
        archive.writestr(BUNDLE_PROOF, arrays.getvalue())
    write_file(path, buffer.getvalue(), overwrite=overwrite)


def _member(archive: zipfile.ZipFile, name: str, limit: int) -> bytes:
    size = archive.getinfo(name).file_size
    if size > limit:
        raise LimitError(f"expected {name} of at most {size_text(limit)}, received {size_text(size)}")
    return archive.read(name)


def _read_proof(data: bytes, joint_count: int) -> Proof:
    limits = {"crops": _MAX_CROPS_BYTES, "joints": _MAX_JOINTS_BYTES, "scores": _MAX_JOINTS_BYTES, "reference": MAX_JSON_BYTES}
    arrays = read_npz(data, limits)
    crops, joints, scores = arrays["crops"], arrays["joints"], arrays["scores"]
    check_crops(crops)
    expected = Predictions(joints, scores)
    if (
        joints.shape != (len(crops), joint_count, 3)
        or joints.dtype != np.float32
        or scores.dtype != np.float32
        or not len(crops)
    ):
        raise ValueError(f"its proof has predictions {joints.dtype} {list(joints.shape)} for {len(crops)} crops")
    return Proof(crops, expected, decode(SessionDescription, parse_json(str(arrays["reference"]))))


def read_bundle(path: Path) -> Bundle:
    """Read what `write_bundle` wrote.

    Raises:
        EngineError: there is no such file, or it is damaged, edited or something else.
    """
    data = read_file(path, MAX_GRAPH_BYTES + _MAX_PROOF_BYTES, EngineError, "a bundle that `convnextpose build` wrote")
    try:
        archive = open_zip(data, unpacked_limit(len(data)))
        draft = EngineDraft.from_json(_member(archive, BUNDLE_DRAFT, MAX_JSON_BYTES).decode())
        onnx = _member(archive, BUNDLE_GRAPH, MAX_GRAPH_BYTES)
        if hashlib.sha256(onnx).hexdigest() != draft.onnx_sha256:
            raise ValueError("its graph is not the one that its draft tells of")
        read_onnx(onnx, POSE, f"{BUNDLE_GRAPH} in {path}")
        recorded = _read_proof(_member(archive, BUNDLE_PROOF, _MAX_PROOF_BYTES), len(draft.model.joint_set))
    except LimitError as error:
        raise EngineError(f"{path}: {error}") from error
    # zipfile, numpy and their parsers raise all kinds of errors for damaged bytes.
    except Exception as error:
        raise EngineError(
            f"expected a bundle that `convnextpose build` wrote, {path} is damaged or something else: {error}"
        ) from error
    return Bundle(draft, TypedModel(onnx, draft.model, draft.graph_parity, draft.excluded_layers, recorded))
