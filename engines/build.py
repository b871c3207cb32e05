"""From a verified checkpoint to engines: export, typing, proof, build, manifest, and files that are whole or not there.

For a target that cannot be built here, a bundle takes an engine's place: a ZIP file with the typed graph and a draft of the
manifest, from which the same command builds the engine on the target.
"""

from __future__ import annotations

import hashlib
import os
import platform
import shlex
import tempfile
from collections import Counter
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, field, fields, replace
from functools import cached_property
from pathlib import Path
from types import MappingProxyType

from convnextpose import weights
from convnextpose.checkpoint import VerifiedCheckpoint, verify
from convnextpose.errors import (
    EngineError,
    OutputExistsError,
    PoseError,
    RuntimeUnavailableError,
    SinkError,
)
from convnextpose.files import child, read_file, show, write_file, write_files
from engines import manifest, torch2trt
from engines.bundle import BUNDLE_SUFFIX, Bundle, Proof, RecordedPoses, TypedModel, read_bundle, write_bundle
from engines.calibration import CalibrationSet, SplitCrops, hash_crops
from engines.graph import pose_graph
from engines.manifest import ENGINE_SUFFIX, EngineDraft, EngineManifest, Machine, OptionValue
from engines.opening import open_pose_model
from engines.parity import LIMITS, LayerHarm, compare
from engines.pose import PRECISIONS, ModelInfo
from engines.precision import int8_within_limits, measure, to_fp16
from engines.targets import Target, find_target
from engines.tensorrt.builder import BuildOptions, BuiltEngine, build_engine, convolution_types
from engines.tensorrt.device import Gpu
from engines.tensorrt.gpu import find_gpu, open_device
from engines.tensorrt.module import LIBRARIES, Library, load_library

CHECKPOINT_SUFFIXES = (".tar", ".pth", ".pt", ".ckpt", ".zip", ".safetensors")
"""What a folder is searched for; a checkpoint that is named by itself may be called anything."""

UNTOLD = "a type that the log does not tell"
"""In a count of convolutions: those that the library's log leaves out."""

MAX_TIMING_BYTES = 256 * 1024**2
"""The largest timing cache that is read; one has some MB."""

TORCH2TRT = "torch2trt"
"""The way for TensorRT 8, which has no strongly typed networks; `engines.torch2trt`."""


@dataclass(frozen=True)
class Step:
    """What a build does, for whoever watches.

    Attributes:
        subject: what it works on: a model's name, its precision, its target.
        text: what is done, in words.
        done: whether it is, or begins.
    """

    subject: str
    text: str
    done: bool


Progress = Callable[[Step], None]


@dataclass(frozen=True)
class BuildRequest:
    """What is to be built of one model.

    Attributes:
        source: name of default weights, a checkpoint, or a bundle.
        out: the folder for the engines; made if it is not there.
        precisions: fp32, fp16, int8; none for FP16, or for a bundle's own.
        targets: what for; none for the GPU at hand, or for a bundle's own.
        options: the builder's.
        calibration: the calibration set, None for the one that the package ships. It proves graphs of every precision.
        library: `tensorrt` or `tensorrt_rtx`; None for what a target prefers.
        via: `torch2trt` for TensorRT 8, otherwise None.
        overwrite: whether to build again what is there, and to replace files of another origin.
    """

    source: str
    out: Path
    precisions: tuple[str, ...] = ()
    targets: tuple[Target, ...] = ()
    options: BuildOptions = field(default_factory=BuildOptions)
    calibration: Path | None = None
    library: str | None = None
    via: str | None = None
    overwrite: bool = False

    def __post_init__(self) -> None:
        """Check the names, and that a target has what is asked for.

        Raises:
            EngineError: one is unknown, or it has not.
        """
        if unknown := [name for name in self.precisions if name not in PRECISIONS]:
            raise EngineError(f"expected precision {', '.join(PRECISIONS)}, received {', '.join(unknown)}")
        if self.library not in (None, *LIBRARIES):
            raise EngineError(f"expected library {' or '.join(LIBRARIES)}, received {self.library!r}")
        if self.via not in (None, TORCH2TRT):
            raise EngineError(f"expected {TORCH2TRT}, received {self.via!r}")
        batch = self.options.batch
        if self.options.dla_core is not None and batch.min != batch.max:
            raise EngineError(
                f"expected one number of crops for --dla-core, such as --batch 4,4,4, received {batch.min} to {batch.max}: a "
                "DLA takes no other"
            )
        check_dla(self.options, self.precisions)
        if self.options.tail_kernel and (self.via is not None or "fp32" in self.precisions):
            raise EngineError(
                f"expected precision fp16 or int8 for --tail-kernel, which reads FP16 logits, received {self.via or 'fp32'}"
            )
        for target in self.targets:
            if self.options.dla_core is not None and not (target.dla or target.is_at_hand):
                raise EngineError(f"expected a target with a DLA for --dla-core, {target.title} has none")

    def command(self, precision: str, target: str) -> str:
        """The command that builds one of its engines."""
        options, plain = self.options, BuildOptions()
        words = ["convnextpose", "build", self.source, "--out", str(self.out)]
        words += ["--precision", precision] if precision else []  # a bundle has its own
        words += ["--target", target]
        if options.batch != plain.batch:
            words += ["--batch", ",".join(str(getattr(options.batch, f.name)) for f in fields(options.batch))]
        for name, value in options.named().items():
            if value is not None and value is not False:  # a core may be 0
                words += ["--" + name.removesuffix("_mib").replace("_", "-"), *([] if value is True else [str(value)])]
        for name, given in (("calibration", self.calibration), ("library", self.library), ("via", self.via)):
            if given is not None:
                words += [f"--{name}", str(given)]
        return shlex.join(words)


def check_dla(options: BuildOptions, precisions: tuple[str, ...]) -> None:
    """Refuse a precision that a DLA is not known to take.

    Raises:
        EngineError: saying which it takes.
    """
    if options.dla_core is not None and (refused := [name for name in precisions if name != "fp16"]):
        raise EngineError(
            f"expected precision fp16 for --dla-core, received {', '.join(refused)}: a DLA computes in no FP32, and was never "
            "shown to take a graph with quantisation nodes"
        )


@dataclass(frozen=True)
class Plan:
    """How an engine for a target is made on this machine.

    Attributes:
        target: the target.
        library: what builds it; None where nothing here can, so that a bundle is written.
        compute_capability: what it is built for, such as `8.9`.
        gpu: the GPU at hand, None where the engine is built without one.
        reason: why nothing here can build it.
    """

    target: Target
    library: Library | None
    compute_capability: str = ""
    gpu: Gpu | None = None
    reason: str = ""


@dataclass(frozen=True)
class BuildResult:
    """What came of one engine.

    Attributes:
        path: the engine, or the bundle.
        outcome: `built`, `kept` (it was there already), or `bundled`.
        draft: its manifest; a bundle's draft.
        convolutions: how many convolutions compute in which type, as far as the library told: `Half`, `Int8`, `Float`.
    """

    path: Path
    outcome: str
    draft: EngineDraft
    convolutions: tuple[tuple[str, int], ...] = ()


@dataclass(frozen=True)
class BuildFailure:
    """Something that could not be built.

    Attributes:
        subject: the model, its precision and its target.
        error: why.
    """

    subject: str
    error: PoseError


@dataclass(frozen=True)
class BuildReport:
    """What came of a request.

    Attributes:
        results: the engines and bundles that are there now.
        failures: what is not.
    """

    results: tuple[BuildResult, ...]
    failures: tuple[BuildFailure, ...]


def find_checkpoints(folder: Path) -> list[Path]:
    """The checkpoints in a folder, by their names' ends, and unpacked ones; what they really are, `verify` decides.

    Raises:
        EngineError: it is no folder, or has none.
    """
    if not folder.is_dir():
        raise EngineError(f"expected a folder of checkpoints, received {folder}")
    found = [
        path
        for path in sorted(folder.iterdir())
        if not path.name.startswith(".")
        and not path.name.endswith(BUNDLE_SUFFIX)
        and (path.suffix.lower() in CHECKPOINT_SUFFIXES or (path / "data.pkl").exists())
    ]
    if not found:
        raise EngineError(f"expected checkpoints ({', '.join(CHECKPOINT_SUFFIXES)}) in {folder}, found none")
    return found


def plan(target: Target, library: str | None = None) -> Plan:
    """How an engine for a target is made here: by the first of its libraries that is installed and can, or not at all.

    Args:
        target: the target.
        library: the one library that may build it, None for those that the target prefers.

    Raises:
        RuntimeUnavailableError: the target is the GPU at hand, and there is none, or no library for it.
    """
    if target.jetpacks and platform.machine() != "aarch64":
        return Plan(target, None, reason=f"engines for {target.title} are built on it")
    reasons = []
    for name in target.libraries if library is None else (library,):
        try:
            loaded = load_library(name)
        except RuntimeUnavailableError as error:
            reasons.append(str(error))
            continue
        if loaded.builds_for_absent_gpus and not target.is_at_hand:
            for capability in target.compute_capabilities:
                if capability in loaded.compute_capabilities:
                    return Plan(target, loaded, capability)
            reasons.append(f"{name} {loaded.version} builds for {', '.join(loaded.compute_capabilities)}")
            continue
        try:
            gpu = open_device().gpu
        except RuntimeUnavailableError as error:
            reasons.append(f"{name} builds for the GPU at hand, and {error}")
            continue
        if loaded.builds_for_absent_gpus and gpu.compute_capability not in loaded.compute_capabilities:
            reasons.append(f"{name} {loaded.version} does not build for compute capability {gpu.compute_capability}")
        elif target.is_at_hand or gpu.compute_capability in target.compute_capabilities:
            return Plan(target, loaded, gpu.compute_capability, gpu)
        else:
            reasons.append(f"{name} builds for the GPU at hand, a {gpu.name} ({gpu.compute_capability})")
    reason = "; ".join(reasons)
    if target.is_at_hand:
        raise RuntimeUnavailableError(f"no engine can be built for the GPU at hand: {reason}; name a target with --target")
    return Plan(target, None, reason=reason)


def build(request: BuildRequest, progress: Progress) -> BuildReport:
    """Build every combination of a model's precisions and targets; what is there already and fits is kept.

    One that fails costs the others nothing, and nothing half is left of it.

    Args:
        request: what to build.
        progress: called at each step's begin and end.

    Raises:
        PoseError: the model, the calibration set, a target or the folder is of no use; nothing was built.
    """
    try:
        request.out.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise SinkError(f"cannot write into {request.out}: {error.strerror}") from error
    source = _BundleSource(request) if request.source.endswith(BUNDLE_SUFFIX) else _CheckpointSource(request, progress)
    results: list[BuildResult] = []
    failures: list[BuildFailure] = []
    plans = [plan(target, request.library) for target in source.targets]
    if request.via is not None and (missing := [planned for planned in plans if planned.library is None]):
        raise RuntimeUnavailableError(
            f"{request.via} builds on the target itself, and this is not {missing[0].target.title}: {missing[0].reason}; "
            "take the checkpoint there"
        )
    jobs = [_Job(request, source, precision, planned, progress) for precision in source.precisions for planned in plans]
    for job in jobs:
        if job.precision in source.refused:
            continue  # its graph failed, and was told of once
        try:
            # What is there already costs no export and no proof.
            results.append(job.kept() or job.make())
        except PoseError as error:
            failures.append(BuildFailure(job.subject, error))
    return BuildReport(tuple(results), tuple(failures))


class _CheckpointSource:
    """A checkpoint: verified at once, exported, typed and proven when a graph is first asked for, once for each precision."""

    def __init__(self, request: BuildRequest, progress: Progress) -> None:
        self.precisions = request.precisions or ("fp16",)
        self.targets = request.targets or (find_target("this"),)
        self._calibration = request.calibration
        self._progress = progress
        path = Path(request.source)
        known = request.source in weights.names() and not path.exists()
        self.name = request.source if known else path.name if path.is_dir() else path.stem
        with _step(progress, self.name, "verifying") as done:
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
        with _step(self._progress, self.name, "exporting") as done:
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
        with _step(self._progress, f"{self.name} {precision}", working) as done:
            if precision == "int8":
                found = int8_within_limits(exported, crops.calibration, reference, crops.proof)
                onnx, parity, excluded = found.onnx, found.parity, found.excluded
            else:
                onnx = to_fp16(exported) if precision == "fp16" else exported
                parity = measure(onnx, reference, crops.proof)
                parity.check()
            left = f"; left in FP16 for it: {', '.join(map(str, excluded))}" if excluded else ""
            done(f"graph: {parity}{left}")
        return TypedModel(onnx, self.info(precision), parity, excluded, proof)


class _BundleSource:
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


_Source = _CheckpointSource | _BundleSource


class _Job:
    """One engine of one model in one precision for one target."""

    def __init__(self, request: BuildRequest, source: _Source, precision: str, planned: Plan, progress: Progress) -> None:
        self.precision = precision
        self._request, self._source, self._plan = request, source, planned
        self._progress = progress
        self._info = source.info(precision)
        target = planned.target.name
        self.subject = f"{self._info.name} {precision} {target}"
        try:
            self._path = child(
                request.out, f"{self._info.name}-{precision}-{target}{ENGINE_SUFFIX if planned.library else BUNDLE_SUFFIX}"
            )
        except ValueError as error:  # the name may be out of a bundle
            raise EngineError(f"{show(request.source)}: {error}") from error
        self._replacing: tuple[Path, ...] = ()
        self._options: dict[str, OptionValue] = {**request.options.named(), "via": request.via}

    def kept(self) -> BuildResult | None:
        """What is there already, where it is what was asked for.

        Raises:
            OutputExistsError: something else is there, and may not be replaced.
        """
        self._replacing = (self._path, manifest.path_of(self._path)) if self._request.overwrite else ()
        if self._request.overwrite:
            return None
        if not self._path.exists():
            self._look_at_lone_manifest()
            return None
        try:
            found = manifest.read(self._path) if self._plan.library else read_bundle(self._path).draft
        except EngineError as error:
            raise OutputExistsError(
                f"{self._path} is there and does not tell what it is ({error}); replace it with --overwrite, or name another "
                "folder"
            ) from error
        if found.model.checkpoint_sha256 != self._info.checkpoint_sha256:
            raise OutputExistsError(
                f"{self._path} is there and of another checkpoint ({found.model.checkpoint_sha256[:12]}, asked for was "
                f"{self._info.checkpoint_sha256[:12]}); replace it with --overwrite, or name another folder"
            )
        self._replacing = (self._path, manifest.path_of(self._path))  # of this checkpoint, made by another build
        wanted = (self._info, self._plan.target.name, self._request.options.batch)
        if (found.model, found.target, found.batch) != wanted or not self._options.items() <= found.options.items():
            return None
        if isinstance(found, EngineManifest) and not self._fits(found):
            return None
        self._progress(Step(self.subject, f"{self._path.name} is there already and fits: nothing to do", done=True))
        return BuildResult(self._path, "kept", found)

    def _look_at_lone_manifest(self) -> None:
        """Let a manifest be replaced whose engine is not there: a build that was killed between the two leaves one."""
        lone = manifest.path_of(self._path)
        if self._plan.library and lone.exists():
            try:
                manifest.read(self._path)
            except EngineError as error:
                raise OutputExistsError(
                    f"{lone} is there and is no manifest ({error}); replace it with --overwrite, or name another folder"
                ) from error
            self._replacing = (lone,)

    def _fits(self, found: EngineManifest) -> bool:
        """Whether an engine is whole, and what would be built again."""
        planned = self._plan
        assert planned.library is not None
        try:
            manifest.load(self._path)
        except EngineError:
            return False
        return (found.library, found.library_version, found.compute_capabilities, found.gpu_name) == (
            planned.library.name,
            planned.library.version,
            (planned.compute_capability,),
            planned.gpu.name if planned.gpu else None,
        )

    def make(self) -> BuildResult:
        """Build the engine, or write its bundle; one at a time in one folder, so that an engine and its manifest fit."""
        typed = self._source.typed(self.precision)
        with _folder_lock(self._request.out, lambda: self._tell(f"waiting for another build in {self._request.out}")):
            if kept := self.kept():
                return kept
            draft = EngineDraft(
                model=typed.info,
                onnx_sha256=hashlib.sha256(typed.onnx).hexdigest(),
                target=self._plan.target.name,
                batch=self._request.options.batch,
                options=self._options,
                excluded_layers=typed.excluded,
                graph_parity=typed.parity,
                command=self._request.command(self.precision, self._plan.target.name),
            )
            return self._build(typed, draft) if self._plan.library else self._bundle(typed, draft)

    def _build(self, typed: TypedModel, draft: EngineDraft) -> BuildResult:
        library = self._plan.library
        assert library is not None
        with _step(self._progress, self.subject, f"building with {library.name} {library.version}") as done:
            cache = self._request.out / f"{library.name}-{library.version}-{self._plan.compute_capability}.timing"
            built = self._built(library, typed, cache)
            types = _count_types(built, typed)
            # Only where the log tells of every convolution: what it leaves out may well be in INT8.
            if typed.info.precision == "int8" and types and not types["Int8"] and not types[UNTOLD]:
                raise EngineError(
                    f"{library.name} {library.version} computes no convolution of this INT8 graph in INT8 on "
                    f"{self._plan.compute_capability}, but in {', '.join(types)}: build it in FP16"
                )
            told = ", ".join(f"{count} in {kind}" for kind, count in types.most_common()) or "not told"
            done(f"built by {library.name} {library.version}: {len(built.layers)} layers, convolutions: {told}")
        found = EngineManifest(
            **{field.name: getattr(draft, field.name) for field in fields(draft)},
            engine_sha256=hashlib.sha256(built.data).hexdigest(),
            engine_bytes=len(built.data),
            library=built.library,
            library_version=built.library_version,
            compute_capabilities=built.compute_capabilities,
            gpu_name=built.gpu_name,
            driver=built.driver,
            engine_parity=None,
        )
        found = replace(found, options={**built.options, **found.options})
        if _runs_here(found):
            found = self._proven(found, built, typed)
        write_files(_pair(built.data, found, self._path), self._replacing)
        if built.timing_cache is not None:
            write_file(cache, built.timing_cache, overwrite=True)
        self._tell(f"wrote {self._path.name} ({len(built.data) / 2**20:.1f} MiB) and its manifest")
        return BuildResult(self._path, "built", found, tuple(types.most_common()))

    def _built(self, library: Library, typed: TypedModel, cache: Path) -> BuiltEngine:
        options = self._request.options
        if self._request.via is not None:
            assert isinstance(self._source, _CheckpointSource)
            return torch2trt.build_engine(
                self._source.checkpoint,
                library,
                precision=self.precision,
                options=options,
                calibration_crops=self._source.crops.calibration,
            )
        capability = None if self._plan.gpu else self._plan.compute_capability
        timings = b""
        if library.keeps_timings and cache.exists():
            timings = read_file(cache, MAX_TIMING_BYTES, EngineError, "a timing cache of earlier builds")
        return build_engine(typed.onnx, library, capability, options, timings)

    def _proven(self, found: EngineManifest, built: BuiltEngine, typed: TypedModel) -> EngineManifest:
        """The manifest with the proof of the engine itself, on the GPU at hand.

        Raises:
            ParityError: it strays past its limits; names the worst joints.
        """
        with _step(self._progress, self.subject, "proving the engine") as done:
            with tempfile.TemporaryDirectory() as folder:
                path = Path(folder) / self._path.name
                write_files(_pair(built.data, found, path))
                with open_pose_model(path, "tensorrt") as candidate:
                    proof, reference = typed.proof, RecordedPoses(typed.proof, replace(typed.info, precision="fp32"))
                    parity = compare(reference, candidate, proof.crops, LIMITS[typed.info.precision])
            parity.check()
            done(f"engine: {parity}")
        return replace(found, engine_parity=parity)

    def _bundle(self, typed: TypedModel, draft: EngineDraft) -> BuildResult:
        there = replace(self._request, source=self._path.name, out=Path(), precisions=(), targets=(), calibration=None)
        draft = replace(draft, command=there.command("", draft.target))
        write_bundle(Bundle(draft, typed), self._path, overwrite=self._path in self._replacing)
        target = self._plan.target
        fits = [jetpack.version for jetpack in target.jetpacks if jetpack.strongly_typed]
        needs = f" (JetPack {', '.join(fits)})" if fits else ""
        self._tell(f"cannot be built here: {self._plan.reason}")
        self._tell(f"wrote {self._path.name}: take it to {target.title}{needs} and run `{draft.command}`")
        return BuildResult(self._path, "bundled", draft)

    def _tell(self, text: str) -> None:
        self._progress(Step(self.subject, text, done=True))


def _runs_here(found: EngineManifest) -> bool:
    """Whether there is a GPU here that an engine fits."""
    gpu = find_gpu()
    if gpu is None:
        return False
    return not found.misfit(Machine(found.library, found.library_version, gpu.compute_capability, gpu.name, gpu.driver))


def _count_types(built: BuiltEngine, typed: TypedModel) -> Counter[str]:
    """How many convolutions compute in which type, or UNTOLD; none where the library, or a missing `onnx`, tells nothing."""
    try:
        import onnx

        found = convolution_types(built.layers, typed.onnx)
    except ImportError:  # a machine that builds from a bundle need not have it
        return Counter()
    untold = sum(node.op_type == "Conv" for node in onnx.load_from_string(typed.onnx).graph.node) - len(found)
    return Counter(weights for _, weights in found.values()) + Counter({UNTOLD: untold if found else 0})


@contextmanager
def _step(progress: Progress, subject: str, text: str) -> Iterator[Callable[[str], None]]:
    """Tell that something begins, and, once the function that this gives is called, that it is done and what came of it."""
    progress(Step(subject, text, done=False))
    yield lambda result: progress(Step(subject, result, done=True))


@contextmanager
def _folder_lock(folder: Path, waiting: Callable[[], None]) -> Iterator[None]:
    """Keep other builds out of a folder meanwhile, in this process and others; the system lifts it if the process dies.

    Where there are no such locks nothing is locked: an engine and a manifest of two builds are then found not to fit when
    they are loaded.
    """
    try:
        import fcntl
    except ImportError:  # Windows
        yield
        return
    handle = os.open(folder, os.O_RDONLY)
    try:
        try:
            fcntl.flock(handle, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            waiting()
            fcntl.flock(handle, fcntl.LOCK_EX)
        except OSError:  # a file system without locks
            pass
        yield
    finally:
        os.close(handle)


def _pair(engine: bytes, found: EngineManifest, path: Path) -> dict[Path, bytes]:
    """An engine and its manifest by their places, the manifest first: an engine without one would be of unknown origin."""
    return {manifest.path_of(path): found.to_json().encode(), path: engine}
