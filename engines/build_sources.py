"""Where graphs to build come from: a checkpoint, which is exported, typed and proven here, or a bundle, which was elsewhere."""

from __future__ import annotations

from collections.abc import Mapping
from functools import cached_property
from pathlib import Path
from types import MappingProxyType

from convnextpose import weights
from convnextpose.checkpoint import VerifiedCheckpoint, verify
from convnextpose.errors import EngineError, PoseError
from engines.build_request import BuildRequest, Progress, Step, check_dla, step
from engines.bundle import Proof, RecordedPoses, TypedModel, read_bundle
from engines.calibration import CalibrationSet, SplitCrops, hash_crops
from engines.graph import pose_graph
from engines.opening import open_pose_model
from engines.parity import LayerHarm
from engines.pose import ModelInfo
from engines.precision import int8_within_limits, measure, to_fp16
from engines.targets import find_target


class CheckpointSource:
    """A checkpoint: verified at once, exported, typed and proven when a graph is first asked for, once for each precision."""

    def __init__(self, request: BuildRequest, progress: Progress) -> None:
        self.precisions = request.precisions or ("fp16",)
        self.targets = request.targets or (find_target("this"),)
        self._calibration, self._scheme = request.calibration, request.int8_scheme
        self._progress = progress
        path = Path(request.source)
        known = request.source in weights.names() and not path.exists()
        self.name = request.source if known else path.name if path.is_dir() else path.stem
        with step(progress, self.name, "verifying") as done:
            self.checkpoint: VerifiedCheckpoint = verify(weights.load(request.source).safetensors if known else path)
            claim = self.checkpoint.name_claims
            wrong = f"; WRONG NAME: it claims variant {claim.name}" if claim else ""
            done(f"verified: variant {self.checkpoint.variant.name}, {len(self.checkpoint.joint_set)} joints{wrong}")
        self.refused: dict[str, PoseError] = {}
        self._typed: dict[str, TypedModel] = {}

    @cached_property
    def crops(self) -> SplitCrops:
        """What graphs are calibrated and proven on."""
        crops = CalibrationSet.load(self._calibration or weights.CALIBRATION).split()
        which = f"of {self._calibration}" if self._calibration else "of synthetic people, the package's own"
        yours = "" if self._calibration else "; --calibration FILE takes yours"
        told = f"crops {which}: {len(crops.calibration)} to calibrate INT8, {len(crops.proof)} others to prove{yours}"
        self._progress(Step(self.name, told, done=True))
        return crops

    @cached_property
    def _exported(self) -> bytes:
        with step(self._progress, self.name, "exporting") as done:
            exported = pose_graph(self.checkpoint, name=self.name)
            done(f"exported: {len(exported) / 2**20:.1f} MiB of ONNX")
        return exported

    @cached_property
    def _proof(self) -> Proof:
        with open_pose_model(self.checkpoint, "torch", name=self.name) as reference:
            return Proof(self.crops.proof, reference.run(self.crops.proof), reference.describe())

    def info(self, precision: str) -> ModelInfo:
        """What the graph in a precision will say about itself."""
        calibrated = hash_crops(self.crops.calibration) if precision == "int8" else None
        checkpoint = self.checkpoint
        return ModelInfo(self.name, checkpoint.variant, checkpoint.joint_set, checkpoint.sha256, False, precision, calibrated)

    def typed(self, precision: str) -> TypedModel:
        """The graph in a precision.

        Raises:
            ParityError: it strays past its limits; names the worst joints. It is then `refused`, as after any other error.
        """
        if precision not in self._typed:
            try:
                self._typed[precision] = self._type(precision)
            except PoseError as error:
                self.refused[precision] = error
                raise
        return self._typed[precision]

    def _type(self, precision: str) -> TypedModel:
        exported, proof, crops = self._exported, self._proof, self.crops
        reference = RecordedPoses(proof, self.info("fp32"))
        working = "calibrating, and proving on the CPU" if precision == "int8" else "proving on the CPU"
        excluded: tuple[LayerHarm, ...] = ()
        with step(self._progress, f"{self.name} {precision}", working) as done:
            if precision == "int8":
                found = int8_within_limits(exported, crops.calibration, reference, crops.proof, scheme=self._scheme)
                onnx, parity, excluded = found.onnx, found.parity, found.excluded
            else:
                onnx = to_fp16(exported) if precision == "fp16" else exported
                parity = measure(onnx, reference, crops.proof)
                parity.check()
            left = f"; left in FP16 for it: {', '.join(map(str, excluded))}" if excluded else ""
            done(f"graph: {parity}{left}")
        return TypedModel(onnx, self.info(precision), parity, excluded, proof)


class BundleSource:
    """A bundle: all that was done elsewhere."""

    refused: Mapping[str, PoseError] = MappingProxyType({})

    def __init__(self, request: BuildRequest) -> None:
        if request.via is not None:
            raise EngineError(f"{request.via} builds from a checkpoint, received the bundle {request.source}")
        if request.calibration is not None:
            raise EngineError(f"{request.source} was calibrated and proven where it was made, received --calibration for it")
        bundle = read_bundle(Path(request.source))
        self._model = bundle.model
        self.precisions = (bundle.model.info.precision,)
        check_dla(request.options, self.precisions)
        if request.precisions not in ((), self.precisions):
            raise EngineError(
                f"expected precision {self.precisions[0]}, which {request.source} has, received {', '.join(request.precisions)}"
            )
        self.targets = request.targets or (find_target(bundle.draft.target),)

    def info(self, precision: str) -> ModelInfo:
        """What the graph says about itself."""
        return self._model.info

    def typed(self, precision: str) -> TypedModel:
        """The graph."""
        return self._model


Source = CheckpointSource | BundleSource
