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

from convnextpose.errors import EngineError, GeometryError
from convnextpose.files import put_in_place
from engines.manifest import EngineDraft
from engines.parity import LayerHarm, ParityReport
from engines.pose import ModelInfo, Predictions, check_crops
from engines.session import SessionDescription

BUNDLE_SUFFIX = ".bundle.zip"

BUNDLE_GRAPH, BUNDLE_DRAFT, BUNDLE_PROOF = "model.onnx", "draft.json", "proof.npz"
"""The files in a bundle."""


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


def write_bundle(bundle: Bundle, path: Path) -> None:
    """Write it as a ZIP file, in one step.

    Raises:
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
    put_in_place(buffer.getvalue(), path)


def read_bundle(path: Path) -> Bundle:
    """Read what `write_bundle` wrote.

    Raises:
        EngineError: there is no such file, or it is damaged, edited or something else.
    """
    try:
        with zipfile.ZipFile(path) as archive:
            text, onnx, proof = (archive.read(name) for name in (BUNDLE_DRAFT, BUNDLE_GRAPH, BUNDLE_PROOF))
        draft = EngineDraft.from_json(text.decode())
        if hashlib.sha256(onnx).hexdigest() != draft.onnx_sha256:
            raise ValueError("its graph is not the one that its draft tells of")
        with np.load(io.BytesIO(proof), allow_pickle=False) as arrays:
            reference = SessionDescription(**json.loads(str(arrays["reference"])))
            recorded = Proof(arrays["crops"], Predictions(arrays["joints"], arrays["scores"]), reference)
        check_crops(recorded.crops)
    except FileNotFoundError:
        raise EngineError(f"expected a bundle that `convnextpose build` wrote, there is no {path}") from None
    # zipfile, numpy and their parsers raise all kinds of errors for damaged bytes.
    except Exception as error:
        raise EngineError(
            f"expected a bundle that `convnextpose build` wrote, {path} is damaged or something else: {error}"
        ) from error
    return Bundle(draft, TypedModel(onnx, draft.model, draft.graph_parity, draft.excluded_layers, recorded))
