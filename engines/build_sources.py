"""The sources of graphs for engines: a checkpoint, which is exported, typed and proven here; a people detector's ONNX file,
which gets a fixed frame size and is proven here; or a bundle, which was made and proven on another machine."""

from __future__ import annotations

import hashlib
from collections.abc import Mapping
from dataclasses import replace
from functools import cached_property, partial
from pathlib import Path
from types import MappingProxyType

import numpy as np

from convnextpose import weights
from convnextpose.checkpoint import VerifiedCheckpoint, verify
from convnextpose.errors import EngineError, ParityError, PoseError
from engines.build_request import BuildRequest, Progress, Step, check_dla, step
from engines.bundle import DetectorProof, Proof, RecordedBoxes, RecordedPoses, TypedModel, read_bundle
from engines.calibration import CalibrationSet, SplitCrops, hash_crops
from engines.graph import fix_input, pose_graph
from engines.layouts import MAX_NAMES, DetectedBoxes
from engines.manifest import BatchRange, EngineModel
from engines.onnx_file import check_fp32, first_channels, read_onnx
from engines.onnx_parser import parse_onnx
from engines.opening import open_people_detector, open_pose_model
from engines.parity import LayerSensitivity, compare_detectors, frames_of
from engines.people import TOLD, DetectorInfo, with_sides
from engines.pose import ModelInfo
from engines.precision import int8_within_limits, measure, to_fp16
from engines.targets import find_target


class CheckpointSource:
    """A checkpoint: verified at once; exported, typed and proven when a graph is first needed, once for each precision."""

    def __init__(self, request: BuildRequest, progress: Progress) -> None:
        _refuse_detector_options(request)
        self.request = request
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
        """The crops that graphs are calibrated and proven on."""
        crops, which, yours = _crops(self._calibration)
        told = f"crops {which}: {len(crops.calibration)} to calibrate INT8 on, {len(crops.proof)} others for the proof{yours}"
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
        """The metadata of the graph in a precision."""
        calibrated = hash_crops(self.crops.calibration) if precision == "int8" else None
        checkpoint = self.checkpoint
        return ModelInfo(self.name, checkpoint.variant, checkpoint.joint_set, checkpoint.sha256, False, precision, calibrated)

    def typed(self, precision: str) -> TypedModel:
        """The graph in a precision.

        Raises:
            ParityError: it exceeds its limits; names the worst joints. After this or any other error it is `refused`.
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
        excluded: tuple[LayerSensitivity, ...] = ()
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


class DetectorSource:
    """A people detector in ONNX: recognised at once, with its frame size fixed; proven when its graph is first needed."""

    precisions = ("fp32",)
    """FP32 only: it is not known which of its layers tolerate FP16."""

    def __init__(self, request: BuildRequest, progress: Progress) -> None:
        path = weights.detector() if request.source == weights.DETECTOR else Path(request.source)
        self.name = path.stem
        _refuse_what_detectors_lack(request)
        self.targets = request.targets or (find_target("this"),)
        self._calibration, self._progress = request.calibration, progress
        with step(progress, self.name, "reading the file") as done:
            data = read_onnx(path, None)
            found = parse_onnx(data, str(path))
            if "convnextpose.contract" in found.metadata:
                raise EngineError(
                    f"expected a people detector, received the exported pose model {path}: build from its checkpoint"
                )
            check_fp32(found, str(path))
            opened = open_people_detector(data, "onnxruntime", person=request.person, name=self.name, frame=request.frame)
            with opened as detector:
                width, height = frame = request.frame or detector.frame_size
                if (fits := detector.frame_for(*frame)) != frame:
                    raise EngineError(
                        f"expected frames that {self.name} takes, such as --frame {fits[0]},{fits[1]}, received "
                        f"{width},{height}"
                    )
                self._data, self._person = data, request.person
                self._input = with_sides(detector.picture, width, height)
                told = {key: found.metadata[key] for key in TOLD if len(found.metadata.get(key, "")) in range(1, MAX_NAMES + 1)}
                self._info = DetectorInfo(
                    self.name, hashlib.sha256(data).hexdigest(), width, height, detector.layout.name, detector.person, told,
                    first_channels(found),
                )  # fmt: skip
                self.request = _with_batch_of(detector.picture.shape[0], request)
                done(f"recognised: {detector.about}; its engine takes only frames of {width}x{height} px")
        self.refused: dict[str, PoseError] = {}
        self._typed: TypedModel | None = None

    def info(self, precision: str) -> DetectorInfo:
        """The graph's metadata."""
        return self._info

    def typed(self, precision: str) -> TypedModel:
        """The graph.

        Raises:
            ParityError: it exceeds its limits. After this or any other error it is `refused`.
        """
        if self._typed is None:
            try:
                self._typed = self._prove()
            except PoseError as error:
                self.refused[precision] = error
                raise
        return self._typed

    def _prove(self) -> TypedModel:
        info = self._info
        crops, which, yours = _crops(self._calibration)
        frames = frames_of(crops.proof, info.width, info.height)
        self._progress(Step(self.name, f"{len(frames)} frames composed of crops {which}{yours}", done=True))
        with step(self._progress, f"{self.name} fp32", "proving on the CPU") as done:
            fixed = fix_input(self._data, self._input)
            opened = partial(open_people_detector, runtime="onnxruntime", person=self._person, name=self.name)
            with opened(self._data, frame=(info.width, info.height)) as reference:
                alone = [reference.run(frame[None]) for frame in frames]
                boxes, scores = (np.concatenate([getattr(one, what) for one in alone]) for what in ("boxes", "scores"))
                proof = DetectorProof(crops.proof, DetectedBoxes(boxes, scores), reference.describe())
            with open_people_detector(fixed, person=self._person) as candidate:  # the other library, if there are two
                parity = compare_detectors(RecordedBoxes(proof), candidate, frames)
            parity.check()
            if not parity.boxes:
                raise ParityError(
                    f"expected crops in which {self.name} finds people, for its proof, but it found nobody in those {which}: "
                    "give other crops with --calibration (`convnextpose calibrate` makes them)"
                )
            done(f"graph: {parity}")
        return TypedModel(fixed, info, parity, (), proof)


class BundleSource:
    """A bundle: export, typing and proof were done on another machine."""

    refused: Mapping[str, PoseError] = MappingProxyType({})

    def __init__(self, request: BuildRequest) -> None:
        _refuse_detector_options(request)
        self.request = request
        if request.via is not None:
            raise EngineError(f"expected a checkpoint for --via {request.via}, received the bundle {request.source}")
        if request.calibration is not None:
            raise EngineError(
                f"expected no --calibration for the bundle {request.source}, which was calibrated and proven where it was "
                "made: omit the option"
            )
        bundle = read_bundle(Path(request.source))
        self._model = bundle.model
        self.precisions = (bundle.model.info.precision,)
        check_dla(request.options, self.precisions)
        if request.precisions not in ((), self.precisions):
            raise EngineError(
                f"expected precision {self.precisions[0]}, which {request.source} has, received {', '.join(request.precisions)}"
            )
        self.targets = request.targets or (find_target(bundle.draft.target),)

    def info(self, precision: str) -> EngineModel:
        """The graph's metadata."""
        return self._model.info

    def typed(self, precision: str) -> TypedModel:
        """The graph."""
        return self._model


Source = CheckpointSource | DetectorSource | BundleSource


def is_detector(source: str) -> bool:
    """Whether a request's source is a people detector: the package's own by its name, or an ONNX file."""
    return source.endswith(".onnx") or (source == weights.DETECTOR and not Path(source).exists())


def _crops(calibration: Path | None) -> tuple[SplitCrops, str, str]:
    """The crops for calibration and proof, a text that says whose they are, and one that says how to give others."""
    crops = CalibrationSet.load(calibration or weights.CALIBRATION).split()
    if calibration:
        return crops, f"of {calibration}", ""
    return crops, "of synthetic people, the package's own", "; --calibration FILE uses yours"


def _refuse_detector_options(request: BuildRequest) -> None:
    """Refuse options that apply only to a people detector's file.

    Raises:
        EngineError: names them.
    """
    if request.frame is not None or request.person is not None:
        raise EngineError(
            f"expected a people detector ({weights.DETECTOR} or an .onnx file) for --frame and --detector-class, received "
            f"{request.source}"
        )


def _refuse_what_detectors_lack(request: BuildRequest) -> None:
    """Refuse options that apply only to pose models.

    Raises:
        EngineError: names them.
    """
    if request.precisions not in ((), DetectorSource.precisions):
        raise EngineError(
            f"expected precision fp32 for {request.source}, a people detector, received {', '.join(request.precisions)}: "
            "it is not known which of its layers tolerate another precision"
        )
    if request.via is not None or request.options.tail_kernel or request.options.dla_core is not None:
        told = "--via" if request.via else "--tail-kernel" if request.options.tail_kernel else "--dla-core"
        raise EngineError(f"expected a checkpoint of a pose model for {told}, received {request.source}, a people detector")


def _with_batch_of(fixed: int | None, request: BuildRequest) -> BuildRequest:
    """The request with the batch size that a file fixes, if any.

    Raises:
        EngineError: the request has another batch size.
    """
    batch = request.options.batch
    if fixed is None or (batch.min, batch.max) == (fixed, fixed):
        return request
    if batch != BatchRange():
        raise EngineError(
            f"expected --batch {fixed},{fixed},{fixed} for {request.source}, which takes {fixed} frame at a time, received "
            f"{batch.min},{batch.typical},{batch.max}"
        )
    return replace(request, options=replace(request.options, batch=BatchRange(fixed, fixed, fixed)))
