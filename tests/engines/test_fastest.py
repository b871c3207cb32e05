"""Which candidate is kept, and what happens to the others. Builds and times are given, so no GPU is needed."""

from dataclasses import replace

import pytest

from convnextpose.errors import ParityError, RuntimeUnavailableError
from engines import fastest, manifest
from engines.build_request import BuildFailure, BuildReport, BuildRequest, BuildResult, Plan
from engines.fastest import build_fastest, choose
from engines.targets import find_target
from engines.tensorrt.device import Gpu
from tests.engines.manifests import manifest_of

TIMES = {"fp16": 0.2, "int8 every": 0.25, "int8 every-additions": 0.3, "int8 late": 0.16, "int8 late-additions": 0.16}


@pytest.fixture
def bench(monkeypatch):
    """Builds that write files with the right names; on request they fail, or the files exist already."""
    there, failing = set(), set()

    def build(request, progress):
        (precision,) = request.precisions
        name = precision if precision == "fp16" else f"{precision} {request.scheme}"
        if name in failing:
            return BuildReport((), (BuildFailure(name, ParityError("it strays")),))
        path = request.out / f"xs-{name.replace(' ', '-')}-this.engine"
        for part in (path, manifest.path_of(path)):
            part.write_bytes(b"")
        return BuildReport((BuildResult(path, "kept" if name in there else "built", manifest_of(b"")),), ())

    monkeypatch.setattr(fastest, "build", build)
    monkeypatch.setattr(fastest, "plan", lambda target, library: Plan(target, None, "8.9", Gpu("any", "8.9", "CUDA 13.0")))
    monkeypatch.setattr(fastest, "_times_ms", lambda made, crops: {name: TIMES[name] for name in made})
    return there, failing


def run(tmp_path):
    told = []
    request = BuildRequest("xs", tmp_path, targets=(find_target("this"),))
    return build_fastest(request, lambda step: told.append(step.text)), told


def engines(folder):
    return sorted(path.name for path in folder.glob("*.engine"))


def test_the_fastest_stays_and_by_how_much_is_told(bench, tmp_path):
    report, told = run(tmp_path)
    assert [result.path.name for result in report.results] == engines(tmp_path) == ["xs-int8-late-this.engine"]
    assert len(list(tmp_path.iterdir())) == 2
    assert told[-1].startswith("fastest: int8 late, 1.25 times as fast as fp16 (fp16 0.200 ms, int8 every 0.250 ms")


def test_what_strays_takes_no_part_and_what_was_there_stays(bench, tmp_path):
    there, failing = bench
    there.add("int8 every")
    failing |= {"int8 late", "int8 late-additions"}
    report, told = run(tmp_path)
    assert [result.path.name for result in report.results] == ["xs-fp16-this.engine"]
    assert engines(tmp_path) == ["xs-fp16-this.engine", "xs-int8-every-this.engine"]
    assert report.failures == ()
    assert sum("excluded: it strays" in text for text in told) == 2
    assert told[-1].startswith("fastest: fp16 (")


def test_where_nothing_can_be_built_that_is_a_failure(bench, tmp_path):
    bench[1].update(TIMES)
    report, _ = run(tmp_path)
    assert report.results == ()
    assert len(report.failures) == len(TIMES)


def test_fp16_stays_where_nothing_is_faster():
    assert choose({"fp16": 1.0, "int8 every": 1.0}) == "fp16"


def test_another_gpu_than_the_one_at_hand_is_refused(bench, monkeypatch, tmp_path):
    monkeypatch.setattr(fastest, "plan", lambda target, library: replace(Plan(target, None, "8.9"), reason="absent"))
    with pytest.raises(RuntimeUnavailableError, match="times engines on the GPU that they are for"):
        run(tmp_path)
