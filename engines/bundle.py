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
from engines.parity import FRAMES, LayerHarm, frames_of
from engines.pose import ModelInfo, Predictions, check_crops
from engines.session import SessionDescription
from engines.typed_json import decode

BUNDLE_SUFFIX = ".bundle.zip"

BUNDLE_GRAPH, BUNDLE_DRAFT, BUNDLE_PROOF = "model.onnx", "draft.json", "proof.npz"
"""The files in a bundle."""

MAX_GRAPH_BYTES = 128 * 1024**2
"""The largest graph in a bundle. That of the largest variant in FP32 has 34 MB."""

_MAX_PROOF_BYTES = 16 * 1024**2
_MAX_CROPS_BYTES, _MAX_FOUND_BYTES = MAX_PROOF_CROPS * INPUT_SIZE**2 * 3, 64 * 1024


@dataclass(frozen=True)
class Proof:
    """What a pose model's engine is held against: crops, and what FP32 PyTorch makes of them.

    Attributes:
        crops: uint8 [N, 256, 256, 3], others than an INT8 graph was calibrated on.
        expected: the predictions for them.
        reference: what predicted.
    """

    crops: NDArray[np.uint8]
    expected: Predictions
    reference: SessionDescription


@dataclass(frozen=True)
class DetectorProof:
    """What a people detector's engine is held against: frames, and what its file gives for them in ONNX Runtime.

    Attributes:
        crops: uint8 [N, 256, 256, 3] of people, that the frames are put together of.
        expected: the boxes for `engines.parity.frames_of` them.
        reference: what found them.
    """

    crops: NDArray[np.uint8]
    expected: DetectedBoxes
    reference: SessionDescription


@dataclass(frozen=True)
class TypedModel:
    """A graph with its precision in it, proven on the CPU.

    Attributes:
        onnx: the graph.
        info: which model it is.
        parity: the graph against the reference.
        excluded: the layers that an INT8 graph has in FP16, the most harmful first.
        proof: what its engines are held against.
    """

    onnx: bytes
    info: EngineModel
    parity: Parity
    excluded: tuple[LayerHarm, ...]
    proof: Proof | DetectorProof


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


class RecordedBoxes:
    """The reference's boxes, given again for the frames that they are of."""

    def __init__(self, proof: DetectorProof) -> None:
        self._proof = proof

    def run(self, frames: NDArray[np.uint8]) -> DetectedBoxes:
        """The boxes for the recorded frames.

        Raises:
            GeometryError: they are other frames.
        """
        if not np.array_equal(frames, frames_of(self._proof.crops, frames.shape[2], frames.shape[1])):
            raise GeometryError(f"expected frames that the reference was recorded on, received {len(frames)} others")
        return self._proof.expected

    def describe(self) -> SessionDescription:
        """What found them."""
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
        EngineError: its graph is larger than what is read of one.
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
        EngineError: there is no such file, or it is damaged, edited or something else.
    """
    data = read_file(path, MAX_GRAPH_BYTES + _MAX_PROOF_BYTES, EngineError, "a bundle that `convnextpose build` wrote")
    try:
        archive = open_zip(data, unpacked_limit(len(data)))
        draft = EngineDraft.from_json(_member(archive, BUNDLE_DRAFT, MAX_JSON_BYTES).decode())
        onnx = _member(archive, BUNDLE_GRAPH, MAX_GRAPH_BYTES)
        if hashlib.sha256(onnx).hexdigest() != draft.onnx_sha256:
            raise ValueError("its graph is not the one that its draft tells of")
        read_onnx(onnx, POSE if isinstance(draft.model, ModelInfo) else None, f"{BUNDLE_GRAPH} in {path}")
        recorded = _read_proof(_member(archive, BUNDLE_PROOF, _MAX_PROOF_BYTES), draft.model)
    except LimitError as error:
        raise EngineError(f"{path}: {error}") from error
    # zipfile, numpy and their parsers raise all kinds of errors for damaged bytes.
    except Exception as error:
        raise EngineError(
            f"expected a bundle that `convnextpose build` wrote, {path} is damaged or something else: {error}"
        ) from error
    return Bundle(draft, TypedModel(onnx, draft.model, draft.graph_parity, draft.excluded_layers, recorded))
