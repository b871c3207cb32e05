"""`--precision fastest`: engines in FP16 and in each INT8 scheme, proven and timed on the local GPU; the fastest stays."""

from __future__ import annotations

from collections.abc import Mapping
from contextlib import ExitStack
from dataclasses import replace

from convnextpose.errors import EngineError, PoseError, RuntimeUnavailableError
from engines import manifest
from engines.build import build, plan
from engines.build_request import BuildFailure, BuildReport, BuildRequest, BuildResult, Progress, Step
from engines.build_sources import is_detector
from engines.bundle import BUNDLE_SUFFIX
from engines.parity import noise_crops
from engines.precision import INT8_SCHEMES
from engines.sessions.engine_file import open_engine
from engines.targets import Target, find_target
from engines.tensorrt import runtime_cache
from engines.timing import measure

FASTEST = "fastest"
"""Its name in `--precision`."""

CANDIDATES = (("fp16", INT8_SCHEMES[0].key), *(("int8", scheme.key) for scheme in INT8_SCHEMES))
"""Precision and INT8 scheme of each candidate. FP16 is kept unless another is faster."""

ROUNDS, WARM_UP = 200, 20


def build_fastest(request: BuildRequest, progress: Progress) -> BuildReport:
    """Build a model in FP16 and in every INT8 scheme for the local GPU, and keep the one that is fastest there.

    Candidates that exceed their limits, or that the library or a DLA does not support, are reported and excluded. The others
    are timed alternately, with the typical number of crops. Engines that existed before are kept.

    Args:
        request: what to build; its precisions and its scheme are ignored.
        progress: called at each step's begin and end.

    Raises:
        RuntimeUnavailableError: a target is not the local GPU, so that nothing can be timed.
        PoseError: the model, the calibration set or the folder cannot be used; nothing was built.
    """
    if request.source.endswith(BUNDLE_SUFFIX) or is_detector(request.source):
        what = "people detector" if is_detector(request.source) else "bundle"
        raise EngineError(f"expected a checkpoint for --precision {FASTEST}, received {request.source}, a {what}")
    targets = request.targets or (find_target("this"),)
    for target in targets:
        if plan(target, request.library).gpu is None:
            raise RuntimeUnavailableError(
                f"--precision {FASTEST} times engines on the GPU that they are for, and there is no {target.title} here: build "
                "there, or name a precision, such as --precision fp16"
            )
    reports = [_fastest(replace(request, targets=(target,)), target, progress) for target in targets]
    return BuildReport(
        tuple(result for report in reports for result in report.results),
        tuple(failure for report in reports for failure in report.failures),
    )


def _fastest(request: BuildRequest, target: Target, progress: Progress) -> BuildReport:
    made: dict[str, BuildResult] = {}
    failures: list[BuildFailure] = []
    for precision, scheme in CANDIDATES:
        name = precision if precision == "fp16" else f"{precision} {scheme}"
        subject = f"{request.source} {name} {target.name}"
        try:
            report = build(replace(request, precisions=(precision,), scheme=scheme), progress)
        except PoseError as error:
            report = BuildReport((), (BuildFailure(subject, error),))
        failures += report.failures
        made |= dict(zip((name,), report.results, strict=False))
        for failure in report.failures:
            progress(Step(subject, f"excluded: {failure.error}", done=True))
    if not made:
        return BuildReport((), tuple(failures))
    times = _times_ms(made, request.options.batch.typical)
    best = choose(times)
    told = ", ".join(f"{name} {time:.3f} ms" for name, time in times.items())
    gain = f", {times['fp16'] / times[best]:.2f} times as fast as fp16" if best != "fp16" and "fp16" in times else ""
    progress(Step(f"{request.source} {target.name}", f"fastest: {best}{gain} ({told})", done=True))
    for name, result in made.items():
        if name != best and result.outcome == "built":
            for path in (result.path, manifest.path_of(result.path), runtime_cache.path_of(result.path)):
                path.unlink(missing_ok=True)
    return BuildReport((made[best],), ())


def choose(times: Mapping[str, float]) -> str:
    """Name of the fastest; the first one if several are equal."""
    return min(times, key=lambda name: times[name])


def _times_ms(made: Mapping[str, BuildResult], crops: int) -> dict[str, float]:
    """Median GPU time for a batch in each engine, ms."""
    with ExitStack() as opened:
        sessions = {}
        for name, result in made.items():
            sessions[name] = open_engine(result.path)
            opened.callback(sessions[name].close)
        return {row.runtime: row.gpu.p50 for row in measure(sessions, noise_crops(crops), ROUNDS, WARM_UP)}
