"""From a verified checkpoint or a people detector to engines: export, typing, proof, build, manifest. Files are written
completely or not at all.

For a target that cannot be built on this machine, a bundle is written instead of an engine: a ZIP file with the typed graph and
a draft of the manifest, from which the same command builds the engine on the target.

    build_request.py    what to build, and the outcome
    build_sources.py    the graphs to build from
    build_job.py        the build of one engine
    fastest.py          the fastest precision on the local GPU
"""

from __future__ import annotations

import platform
from pathlib import Path

from convnextpose.errors import EngineError, PoseError, RuntimeUnavailableError, SinkError
from engines.build_job import Job
from engines.build_request import BuildFailure, BuildReport, BuildRequest, BuildResult, Plan, Progress
from engines.build_sources import BundleSource, CheckpointSource, DetectorSource, Source, is_detector
from engines.bundle import BUNDLE_SUFFIX
from engines.targets import Target
from engines.tensorrt.gpu import open_device
from engines.tensorrt.module import load_library

CHECKPOINT_SUFFIXES = (".tar", ".pth", ".pt", ".ckpt", ".zip", ".safetensors")
"""Suffixes of checkpoints in a folder; a checkpoint that is given by its path may have any name."""


def find_checkpoints(folder: Path) -> list[Path]:
    """The checkpoints in a folder, by suffix, and unpacked ones; `verify` checks them.

    Raises:
        EngineError: it is not a folder, or has no checkpoints.
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
    """Decide how to build an engine for a target: with the first suitable library installed, or not on this machine.

    Args:
        target: the target.
        library: the library to use; None for those that the target prefers.

    Raises:
        RuntimeUnavailableError: the target is the local GPU, and there is none, or no library for it.
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
            reasons.append(f"{name} builds only for the local GPU, but {error}")
            continue
        if loaded.builds_for_absent_gpus and gpu.compute_capability not in loaded.compute_capabilities:
            reasons.append(f"{name} {loaded.version} does not build for compute capability {gpu.compute_capability}")
        elif target.is_at_hand or gpu.compute_capability in target.compute_capabilities:
            return Plan(target, loaded, gpu.compute_capability, gpu)
        else:
            reasons.append(f"{name} builds only for the local GPU, a {gpu.name} ({gpu.compute_capability})")
    reason = "; ".join(reasons)
    if target.is_at_hand:
        raise RuntimeUnavailableError(f"no engine can be built for the local GPU: {reason}; name a target with --target")
    return Plan(target, None, reason=reason)


def build(request: BuildRequest, progress: Progress) -> BuildReport:
    """Build every combination of a model's precisions and targets; existing engines that fit are kept.

    If one fails, the others are still built, and no incomplete file is left.

    Args:
        request: what to build.
        progress: called at the start and end of each step.

    Raises:
        PoseError: the model, the calibration set, a target or the folder cannot be used; nothing was built.
    """
    try:
        request.out.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise SinkError(f"cannot write into {request.out}: {error.strerror}") from error
    source: Source
    if request.source.endswith(BUNDLE_SUFFIX):
        source = BundleSource(request)
    else:
        source = DetectorSource(request, progress) if is_detector(request.source) else CheckpointSource(request, progress)
    results: list[BuildResult] = []
    failures: list[BuildFailure] = []
    plans = [plan(target, request.library) for target in source.targets]
    if request.via is not None and (missing := [planned for planned in plans if planned.library is None]):
        raise RuntimeUnavailableError(
            f"{request.via} builds only on the target itself, and this machine is not {missing[0].target.title} "
            f"({missing[0].reason}): copy the checkpoint to the target and build there"
        )
    jobs = [Job(source, precision, planned, progress) for precision in source.precisions for planned in plans]
    for job in jobs:
        if job.precision in source.refused:
            continue  # its graph failed, which was reported already
        try:
            # An engine that exists already needs no export and no proof.
            results.append(job.kept() or job.make())
        except PoseError as error:
            failures.append(BuildFailure(job.subject, error))
    return BuildReport(tuple(results), tuple(failures))
