"""One engine of one model in one precision for one target: built, proven and written with its manifest, or bundled."""

from __future__ import annotations

import hashlib
import os
import tempfile
from collections import Counter
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import fields, replace
from pathlib import Path

from convnextpose.errors import EngineError, OutputExistsError
from convnextpose.files import child, read_file, show, write_file, write_files
from engines import manifest, torch2trt
from engines.build_request import BuildResult, Plan, Progress, Step, step
from engines.build_sources import CheckpointSource, Source
from engines.bundle import (
    BUNDLE_SUFFIX,
    Bundle,
    DetectorProof,
    RecordedBoxes,
    RecordedPoses,
    TypedModel,
    read_bundle,
    write_bundle,
)
from engines.manifest import ENGINE_SUFFIX, EngineDraft, EngineManifest, EngineModel, Machine, OptionValue, Parity
from engines.opening import open_people_detector, open_pose_model
from engines.parity import LIMITS, compare, compare_detectors, frames_of
from engines.people import DetectorInfo
from engines.pose import ModelInfo
from engines.precision import INT8_SCHEMES
from engines.tensorrt.builder import BuiltEngine, build_engine, convolution_types
from engines.tensorrt.gpu import find_gpu
from engines.tensorrt.module import Library

UNTOLD = "an unknown type"
"""In a count of convolutions: those that the library's log does not list."""

MAX_TIMING_BYTES = 256 * 1024**2
"""The largest timing cache that is read; typical ones have a few MB."""


class Job:
    """One engine of one model in one precision for one target."""

    def __init__(self, source: Source, precision: str, planned: Plan, progress: Progress) -> None:
        self.precision = precision
        self._request, self._source, self._plan = source.request, source, planned
        request = source.request
        self._progress = progress
        self._info = source.info(precision)
        target = planned.target.name
        self.subject = f"{self._info.name} {precision} {target}"
        try:
            # A bundle's scheme was fixed where the bundle was made: like its precision, it is not among the options.
            scheme = request.scheme if precision == "int8" and isinstance(source, CheckpointSource) else INT8_SCHEMES[0].key
            called = precision if scheme == INT8_SCHEMES[0].key else f"{precision}-{scheme}"
            suffix = ENGINE_SUFFIX if planned.library else BUNDLE_SUFFIX
            self._path = child(request.out, f"{_base_name(self._info)}-{called}-{target}{suffix}")
        except ValueError as error:  # the name may come from a bundle
            raise EngineError(f"{show(request.source)}: {error}") from error
        self._replacing: tuple[Path, ...] = ()
        self._options: dict[str, OptionValue] = {**request.options.named(), "via": request.via}

    def kept(self) -> BuildResult | None:
        """The existing engine, if it fits the request.

        Raises:
            OutputExistsError: another file exists and may not be replaced.
        """
        self._replacing = (self._path, manifest.path_of(self._path)) if self._request.overwrite else ()
        if self._request.overwrite:
            return None
        if not self._path.exists():
            self._check_lone_manifest()
            return None
        try:
            found = manifest.read(self._path) if self._plan.library else read_bundle(self._path).draft
        except EngineError as error:
            raise OutputExistsError(
                f"{self._path} exists, but it cannot be told what it was built from ({error}); replace it with --overwrite, or "
                "name another folder"
            ) from error
        if (there := _origin(found.model)) != (asked := _origin(self._info)):
            raise OutputExistsError(
                f"{self._path} exists and was built from another checkpoint or file ({there[:12]}, not {asked[:12]}); replace "
                "it with --overwrite, or name another folder"
            )
        self._replacing = (self._path, manifest.path_of(self._path))  # of this checkpoint, made by another build
        wanted = (self._info, self._plan.target.name, self._request.options.batch)
        if (found.model, found.target, found.batch) != wanted or not self._options.items() <= found.options.items():
            return None
        if isinstance(found, EngineManifest) and not self._fits(found):
            return None
        self._progress(Step(self.subject, f"{self._path.name} exists already and fits: nothing to do", done=True))
        return BuildResult(self._path, "kept", found)

    def _check_lone_manifest(self) -> None:
        """Allow a manifest without an engine to be replaced: a build that was killed between writing the two leaves one."""
        lone = manifest.path_of(self._path)
        if self._plan.library and lone.exists():
            try:
                manifest.read(self._path)
            except EngineError as error:
                raise OutputExistsError(
                    f"{lone} exists and is not a manifest ({error}); replace it with --overwrite, or name another folder"
                ) from error
            self._replacing = (lone,)

    def _fits(self, found: EngineManifest) -> bool:
        """Whether an engine is intact, and a new build would give the same."""
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
        """Build the engine, or write its bundle; one at a time in a folder, so that an engine and its manifest match."""
        typed = self._source.typed(self.precision)
        with folder_lock(self._request.out, lambda: self._tell(f"waiting for another build in {self._request.out}")):
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
        with step(self._progress, self.subject, f"building with {library.name} {library.version}") as done:
            cache = self._request.out / f"{library.name}-{library.version}-{self._plan.compute_capability}.timing"
            built = self._built(library, typed, cache)
            types = _count_types(built, typed)
            # Only if the log lists every convolution: those that it leaves out may well be in INT8.
            if typed.info.precision == "int8" and types and not types["Int8"] and not types[UNTOLD]:
                raise EngineError(
                    f"{library.name} {library.version} computes every convolution of this INT8 graph in {', '.join(types)} on "
                    f"{self._plan.compute_capability}, none in INT8: build it in FP16"
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
            assert isinstance(self._source, CheckpointSource)
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
        """The manifest with the proof of the engine itself on the local GPU.

        Raises:
            ParityError: the engine exceeds its limits; for a pose model, names the worst joints.
        """
        with step(self._progress, self.subject, "proving the engine") as done:
            with tempfile.TemporaryDirectory() as folder:
                path = Path(folder) / self._path.name
                write_files(_pair(built.data, found, path))
                parity = _measured(path, typed)
            parity.check()
            done(f"engine: {parity}")
        return replace(found, engine_parity=parity)

    def _bundle(self, typed: TypedModel, draft: EngineDraft) -> BuildResult:
        settled = replace(self._request, precisions=(), targets=(), calibration=None, frame=None, person=None)
        there = replace(settled, source=self._path.name, out=Path())
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


def _base_name(info: EngineModel) -> str:
    """How the names of a model's files begin. A detector's has the frame size: there may be engines for several sizes."""
    return f"{info.name}-{info.width}x{info.height}" if isinstance(info, DetectorInfo) else info.name


def _origin(info: EngineModel) -> str:
    """Hash of the checkpoint or the file that a model was made from, hexadecimal."""
    return info.file_sha256 if isinstance(info, DetectorInfo) else info.checkpoint_sha256


def _measured(engine: Path, typed: TypedModel) -> Parity:
    """An engine on the local GPU, compared with the recorded results of its reference."""
    proof, info = typed.proof, typed.info
    if isinstance(proof, DetectorProof):
        assert isinstance(info, DetectorInfo)
        with open_people_detector(engine, "tensorrt") as detector:
            return compare_detectors(RecordedBoxes(proof), detector, frames_of(proof.crops, info.width, info.height))
    assert isinstance(info, ModelInfo)
    with open_pose_model(engine, "tensorrt") as candidate:
        reference = RecordedPoses(proof, replace(info, precision="fp32"))
        return compare(reference, candidate, proof.crops, LIMITS[info.precision])


def _runs_here(found: EngineManifest) -> bool:
    """Whether this machine has a GPU that can run an engine."""
    gpu = find_gpu()
    if gpu is None:
        return False
    return not found.misfit(Machine(found.library, found.library_version, gpu.compute_capability, gpu.name, gpu.driver))


def _count_types(built: BuiltEngine, typed: TypedModel) -> Counter[str]:
    """Number of convolutions by type or UNTOLD; empty if the library reports nothing or `onnx` is missing."""
    try:
        import onnx

        found = convolution_types(built.layers, typed.onnx)
    except ImportError:  # building from a bundle does not need it
        return Counter()
    untold = sum(node.op_type == "Conv" for node in onnx.load_from_string(typed.onnx).graph.node) - len(found)
    return Counter(weights for _, weights in found.values()) + Counter({UNTOLD: untold if found else 0})


@contextmanager
def folder_lock(folder: Path, waiting: Callable[[], None]) -> Iterator[None]:
    """Lock a folder against other builds in this and other processes; the system releases the lock if the process dies.

    If the file system has no locks, nothing is locked: an engine and a manifest of two builds are then refused when they are
    loaded.
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
    """An engine and its manifest by path, the manifest first: an engine without one would be of unknown origin."""
    return {manifest.path_of(path): found.to_json().encode(), path: engine}
