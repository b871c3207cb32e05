"""The reference that an engine is compared with, and the bundle for targets that cannot be built on this machine.

A bundle is a ZIP file with the typed graph, a draft of the manifest, and crops with FP32 PyTorch's predictions for them: the
target builds and proves its engine from it, without torch and without the checkpoint (docs/decisions/0006). A detector's
bundle has boxes instead of predictions.
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
from engines.layouts import DetectedBoxes
from engines.manifest import EngineDraft, EngineModel, Parity
from engines.onnx_file import POSE, read_onnx
from engines.parity import FRAMES, LayerSensitivity, frames_of
from engines.pose import ModelInfo, Predictions, check_crops
from engines.session import SessionDescription
from engines.typed_json import decode

BUNDLE_SUFFIX = ".bundle.zip"

BUNDLE_GRAPH, BUNDLE_DRAFT, BUNDLE_PROOF = "model.onnx", "draft.json", "proof.npz"
"""The files in a bundle."""

MAX_GRAPH_BYTES = 128 * 1024**2
"""The largest graph in a bundle. The largest variant's in FP32 has 34 MB."""

_MAX_PROOF_BYTES = 16 * 1024**2
_MAX_CROPS_BYTES, _MAX_FOUND_BYTES = MAX_PROOF_CROPS * INPUT_SIZE**2 * 3, 64 * 1024


@dataclass(frozen=True)
class Proof:
    """The reference for a pose model's engine: crops, and FP32 PyTorch's predictions for them.

    Attributes:
        crops: uint8 [N, 256, 256, 3], not used for calibration.
        expected: the predictions for them.
        reference: description of the model that made the predictions.
    """

    crops: NDArray[np.uint8]
    expected: Predictions
    reference: SessionDescription


@dataclass(frozen=True)
class DetectorProof:
    """The reference for a people detector's engine: frames, and the boxes that ONNX Runtime computes for them from its file.

    Attributes:
        crops: uint8 [N, 256, 256, 3] of people, which the frames are composed of.
        expected: the boxes for `engines.parity.frames_of` them.
        reference: description of the detector that found them.
    """

    crops: NDArray[np.uint8]
    expected: DetectedBoxes
    reference: SessionDescription


@dataclass(frozen=True)
class TypedModel:
    """A graph with its precision built in, proven on the CPU.

    Attributes:
        onnx: the graph.
        info: the model's description.
        parity: the graph compared with the reference.
        excluded: the layers of an INT8 graph that stay in FP16, the most sensitive first.
        proof: the reference for its engines.
    """

    onnx: bytes
    info: EngineModel
    parity: Parity
    excluded: tuple[LayerSensitivity, ...]
    proof: Proof | DetectorProof


class RecordedPoses:
    """The reference's recorded predictions, for exactly the recorded crops: a `PosePredictor` without a library."""

    def __init__(self, proof: Proof, info: ModelInfo) -> None:
        self._proof = proof
        self.info = info

    def run(self, crops: NDArray[np.uint8]) -> Predictions:
        """The predictions for the recorded crops, or for the first of them.

        Raises:
            GeometryError: the crops are not the recorded ones.
        """
        check_crops(crops)
        count = len(crops)
        if not np.array_equal(crops, self._proof.crops[:count]):
            raise GeometryError(f"expected the crops that the reference was recorded on, received {count} others")
        return Predictions(self._proof.expected.joints[:count], self._proof.expected.scores[:count])

    def describe(self) -> SessionDescription:
        """Description of the model that made them."""
        return self._proof.reference


class RecordedBoxes:
    """The reference's recorded boxes, for exactly the recorded frames."""

    def __init__(self, proof: DetectorProof) -> None:
        self._proof = proof

    def run(self, frames: NDArray[np.uint8]) -> DetectedBoxes:
        """The boxes for the recorded frames.

        Raises:
            GeometryError: the frames are not the recorded ones.
        """
        if not np.array_equal(frames, frames_of(self._proof.crops, frames.shape[2], frames.shape[1])):
            raise GeometryError(f"expected the frames that the reference was recorded on, received {len(frames)} others")
        return self._proof.expected

    def describe(self) -> SessionDescription:
        """Description of the detector that found them."""
        return self._proof.reference


@dataclass(frozen=True)
class Bundle:
    """The input for building an engine on another machine, without torch and without the checkpoint.

    Attributes:
        draft: the draft of the engine's manifest.
        model: the typed graph, its proof on the CPU and the reference for its engine.
    """

    draft: EngineDraft
    model: TypedModel


def write_bundle(bundle: Bundle, path: Path, *, overwrite: bool = False) -> None:
    """Write it as a ZIP file, in one step.

    Raises:
        EngineError: its graph is larger than the limit for reading one.
        OutputExistsError: the file exists and may not be replaced.
        SinkError: it cannot be written.
    """
    if (size := len(bundle.model.onnx)) > MAX_GRAPH_BYTES:
        raise EngineError(
            f"expected a graph of at most {size_text(MAX_GRAPH_BYTES)} in a bundle, received {size_text(size)}: take the "
            "model's file to the target and build there"
        )
    proof, buffer, arrays = bundle.model.proof, io.BytesIO(), io.BytesIO()
    found = proof.expected.joints if isinstance(proof, Proof) else proof.expected.boxes
    np.savez_compressed(
        arrays,
        crops=proof.crops,
        scores=proof.expected.scores,
        reference=np.array(json.dumps(asdict(proof.reference))),
        **{"joints" if isinstance(proof, Proof) else "boxes": found},  # type: ignore[arg-type]
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


def _read_proof(data: bytes, model: EngineModel) -> Proof | DetectorProof:
    what = "joints" if isinstance(model, ModelInfo) else "boxes"
    limits = {"crops": _MAX_CROPS_BYTES, what: _MAX_FOUND_BYTES, "scores": _MAX_FOUND_BYTES, "reference": MAX_JSON_BYTES}
    arrays = read_npz(data, limits)
    crops, found, scores = arrays["crops"], arrays[what], arrays["scores"]
    check_crops(crops)
    reference = decode(SessionDescription, parse_json(str(arrays["reference"])))
    if isinstance(model, ModelInfo):
        wanted: tuple[int, ...] = (len(crops), len(model.joint_set), 3)
    else:
        wanted = (min(len(crops), FRAMES), *found.shape[1:])
    if found.shape != wanted or found.dtype != np.float32 or scores.dtype != np.float32 or not found.size:
        raise ValueError(f"its proof has {what} {found.dtype} {list(found.shape)} for {len(crops)} crops")
    if isinstance(model, ModelInfo):
        return Proof(crops, Predictions(found, scores), reference)
    return DetectorProof(crops, DetectedBoxes(found, scores), reference)


def read_bundle(path: Path) -> Bundle:
    """Read what `write_bundle` wrote.

    Raises:
        EngineError: there is no such file, it is damaged or edited, or it is no bundle.
    """
    data = read_file(path, MAX_GRAPH_BYTES + _MAX_PROOF_BYTES, EngineError, "a bundle that `convnextpose build` wrote")
    try:
        archive = open_zip(data, unpacked_limit(len(data)))
        draft = EngineDraft.from_json(_member(archive, BUNDLE_DRAFT, MAX_JSON_BYTES).decode())
        onnx = _member(archive, BUNDLE_GRAPH, MAX_GRAPH_BYTES)
        if hashlib.sha256(onnx).hexdigest() != draft.onnx_sha256:
            raise ValueError("its graph is not the one that its draft describes")
        read_onnx(onnx, POSE if isinstance(draft.model, ModelInfo) else None, f"{BUNDLE_GRAPH} in {path}")
        recorded = _read_proof(_member(archive, BUNDLE_PROOF, _MAX_PROOF_BYTES), draft.model)
    except LimitError as error:
        raise EngineError(f"{path}: {error}") from error
    # zipfile, numpy and their parsers raise all kinds of errors for damaged bytes.
    except Exception as error:
        raise EngineError(
            f"expected a bundle that `convnextpose build` wrote, but {path} is damaged or something else: {error}"
        ) from error
    return Bundle(draft, TypedModel(onnx, draft.model, draft.graph_parity, draft.excluded_layers, recorded))
