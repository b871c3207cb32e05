"""A checkpoint becomes proven engines or bundles; each is either complete or absent, whatever happens meanwhile."""

import hashlib
import json
import os
import resource
import shlex
import shutil
import tracemalloc
import zipfile
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest

from convnextpose import weights
from convnextpose.errors import (
    CalibrationError,
    CheckpointError,
    EngineError,
    GeometryError,
    OutputExistsError,
    ParityError,
    RuntimeUnavailableError,
    SinkError,
)
from convnextpose.network import random_state
from convnextpose.variants import Variant
from engines import build as building
from engines import build_job, manifest
from engines.build import build, find_checkpoints, plan
from engines.build_request import BuildRequest
from engines.bundle import RecordedPoses, read_bundle
from engines.calibration import MAX_PROOF_CROPS, MIN_CROPS, CalibrationSet, hash_crops
from engines.manifest import BatchRange, EngineDraft, EngineManifest
from engines.opening import open_pose_model
from engines.parity import LIMITS, noise_crops
from engines.pose import CROPS, PoseModel, predicts
from engines.sessions.base import LockedSession
from engines.targets import find_target
from engines.tensorrt.builder import BuildOptions, BuiltEngine
from engines.tensorrt.device import Gpu
from tests.cases import fast_first

pytest.importorskip("tensorrt_rtx")
pytest.importorskip("onnxruntime", reason="it quantises")

pytestmark = pytest.mark.usefixtures("engines_once")
RTX40, ORIN = find_target("rtx40"), find_target("orin")


@pytest.fixture(scope="module")
def few(tmp_path_factory):
    """The smallest set that can be split."""
    path = tmp_path_factory.mktemp("set") / "few.npz"
    CalibrationSet(CalibrationSet.load(weights.CALIBRATION).crops[:12], ("some",)).save(path)
    return path


@pytest.fixture(scope="module")
def made(few, tmp_path_factory):
    """The default weights in FP16 and INT8, for a desktop and, as a bundle, for a Jetson."""
    out = tmp_path_factory.mktemp("made") / "engines"
    steps = []
    request = BuildRequest("xs", out, ("fp16", "int8"), (RTX40, ORIN), calibration=few)
    report = build(request, steps.append)
    return SimpleNamespace(out=out, request=request, report=report, steps=steps, told=told(steps))


@pytest.fixture(scope="module")
def bundle(made):
    """A bundle, from which an engine builds in half a second."""
    return str(made.out / "xs-fp16-orin.bundle.zip")


def told(steps):
    return [f"{step.subject}: {step.text}" for step in steps if step.done]


def ignore(step):
    pass


def names(folder):
    return sorted(path.name for path in folder.iterdir())


# Results


def test_every_combination_is_made_and_nothing_else(made):
    assert not made.report.failures
    assert [(result.path.name, result.outcome) for result in made.report.results] == [
        ("xs-fp16-rtx40.engine", "built"),
        ("xs-fp16-orin.bundle.zip", "bundled"),
        ("xs-int8-rtx40.engine", "built"),
        ("xs-int8-orin.bundle.zip", "bundled"),
    ]
    assert names(made.out) == [
        "xs-fp16-orin.bundle.zip",
        "xs-fp16-rtx40.engine",
        "xs-fp16-rtx40.engine.json",
        "xs-int8-orin.bundle.zip",
        "xs-int8-rtx40.engine",
        "xs-int8-rtx40.engine.json",
    ]


def test_convolutions_compute_in_what_was_asked_for(made):
    types = {result.path.name: dict(result.convolutions) for result in made.report.results}
    assert types["xs-fp16-rtx40.engine"] == {"Half": 47}
    assert types["xs-int8-rtx40.engine"] == {"Int8": 31, "Half": 16}


def test_manifests_tell_what_was_made(made, few):
    split = CalibrationSet.load(few).split()
    for precision in ("fp16", "int8"):
        found = manifest.load(made.out / f"xs-{precision}-rtx40.engine")
        assert (found.model.name, found.model.variant, found.model.precision) == ("xs", Variant.XS, precision)
        assert weights.by_checkpoint(found.model.checkpoint_sha256).name == "xs"
        assert found.model.calibration_sha256 == (hash_crops(split.calibration) if precision == "int8" else None)
        assert (found.library, found.compute_capabilities, found.gpu_name) == ("tensorrt_rtx", ("8.9",), None)
        assert found.batch == BatchRange()
        assert found.graph_parity.passed
        assert found.graph_parity.crops == len(split.proof)
        assert found.graph_parity.limits == LIMITS[precision]
        assert found.graph_parity.candidate.precision == precision
        assert found.graph_parity.reference.name == "torch"
        assert 0 < found.graph_parity.mm.mean < found.graph_parity.mm.max
        assert len(found.graph_parity.joints) == 18
        assert found.engine_parity is None


def test_each_step_is_told_and_the_dear_ones_once(made):
    for text, count in (("verified", 1), ("exported", 1), ("crops of ", 1), ("graph: ", 2), ("built by", 2), ("wrote", 4)):
        assert sum(text in line for line in made.told) == count, text
    begun = [(step.subject, step.text) for step in made.steps if not step.done]
    assert ("xs int8", "calibrating, and proving on the CPU") in begun


def test_the_command_in_the_manifest_builds_it_again(made, bundle, tmp_path):
    options = BuildOptions(BatchRange(2, 3, 4), workspace_mib=300)
    request = BuildRequest(bundle, tmp_path / "my engines", targets=(RTX40,), options=options, library="tensorrt_rtx")
    (result,) = build(request, ignore).results
    words = shlex.split(result.draft.command)
    assert words[:3] == ["convnextpose", "build", bundle]
    given = dict(zip(words[3::2], words[4::2], strict=True))
    assert given == {
        "--out": str(tmp_path / "my engines"), "--precision": "fp16", "--target": "rtx40", "--batch": "2,3,4",
        "--workspace": "300", "--library": "tensorrt_rtx",
    }  # fmt: skip
    assert result.draft.batch == BatchRange(2, 3, 4)
    assert result.draft.options["workspace_mib"] == 300


@pytest.mark.slow
def test_a_published_checkpoint_with_numbered_head_layers(published, few, tmp_path):
    path = published(tmp_path / "ConvNeXtPose_XS (1).tar", random_state(Variant.XS), numbered=True, optimizer=False)
    (result,) = build(BuildRequest(str(path), tmp_path / "out", targets=(RTX40,), calibration=few), ignore).results
    assert result.path.name == "ConvNeXtPose_XS (1)-fp16-rtx40.engine"
    assert manifest.load(result.path).model.variant is Variant.XS


# Existing files


def test_what_fits_is_kept(made):
    before = {path: path.stat().st_mtime_ns for path in made.out.iterdir()}
    steps = []
    report = build(made.request, steps.append)
    assert [result.outcome for result in report.results] == ["kept"] * 4
    assert [result.draft for result in report.results] == [result.draft for result in made.report.results]
    assert {path: path.stat().st_mtime_ns for path in made.out.iterdir()} == before
    assert not any("exported" in line or "graph" in line for line in told(steps))


def rebuild(bundle, out, **changes):
    report = build(replace(BuildRequest(bundle, out, targets=(RTX40,)), **changes), ignore)
    for failure in report.failures:
        raise failure.error
    return report.results[0]


@pytest.fixture
def engine(made, tmp_path):
    """An engine like the bundle's, with its manifest, alone in `tmp_path`."""
    for name in ("xs-fp16-rtx40.engine", "xs-fp16-rtx40.engine.json"):
        shutil.copyfile(made.out / name, tmp_path / name)
    return tmp_path / "xs-fp16-rtx40.engine"


def test_what_does_not_fit_is_replaced(engine, bundle, tmp_path):
    assert rebuild(bundle, tmp_path).outcome == "kept"
    assert rebuild(bundle, tmp_path, options=BuildOptions(BatchRange(1, 2, 4))).outcome == "built"
    assert rebuild(bundle, tmp_path, options=BuildOptions(BatchRange(1, 2, 4))).outcome == "kept"
    assert rebuild(bundle, tmp_path).outcome == "built"
    engine.write_bytes(engine.read_bytes()[:-1])
    assert rebuild(bundle, tmp_path).outcome == "built"
    assert rebuild(bundle, tmp_path, overwrite=True).outcome == "built"
    found = manifest.load(engine)
    manifest.path_of(engine).write_text(replace(found, library_version="1.0.0").to_json())
    assert rebuild(bundle, tmp_path).outcome == "built"
    assert manifest.load(engine) == found


def test_what_is_of_another_origin_is_kept(bundle, tmp_path):
    engine = tmp_path / "xs-fp16-rtx40.engine"
    engine.write_text("mine")
    with pytest.raises(OutputExistsError, match=r"cannot be told what it was built from .*--overwrite"):
        rebuild(bundle, tmp_path)
    assert engine.read_text() == "mine"
    assert rebuild(bundle, tmp_path, overwrite=True).outcome == "built"
    found = manifest.load(engine)
    other = replace(found, model=replace(found.model, checkpoint_sha256="00" * 32))
    manifest.path_of(engine).write_text(other.to_json())
    with pytest.raises(OutputExistsError, match="from another checkpoint"):
        rebuild(bundle, tmp_path)


# Faults


def test_a_manifest_that_was_edited_is_not_trusted(engine, bundle, tmp_path):
    path = manifest.path_of(engine)
    path.write_text(path.read_text().replace('"8.9"', '"8.6"'))
    with pytest.raises(EngineError, match="edited"):
        manifest.load(engine)
    with pytest.raises(OutputExistsError, match="edited"):
        rebuild(bundle, tmp_path)


@contextmanager
def small_disk(size):
    """No file may grow beyond `size` bytes, as on a full disk."""
    before = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (size, before[1]))
    try:
        yield
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, before)


def test_a_full_disk_leaves_what_was_there(bundle, tmp_path):
    with small_disk(1_000_000), pytest.raises(SinkError, match=r"cannot write .*xs-fp16-rtx40\.engine"):
        rebuild(bundle, tmp_path)
    assert names(tmp_path) == []
    engine = rebuild(bundle, tmp_path).path
    found = manifest.load(engine)
    with small_disk(1_000_000), pytest.raises(SinkError):
        rebuild(bundle, tmp_path, options=BuildOptions(BatchRange(1, 1, 4)))
    assert manifest.load(engine) == found
    assert len(names(tmp_path)) == 2
    bundled = build(BuildRequest(bundle, tmp_path / "more", targets=(ORIN,), overwrite=True), ignore)
    assert bundled.results[0].outcome == "bundled"
    with small_disk(1_000_000), pytest.raises(SinkError):
        rebuild(bundle, tmp_path / "more", targets=(ORIN,), overwrite=True)
    assert read_bundle(tmp_path / "more" / "xs-fp16-orin.bundle.zip").draft == bundled.results[0].draft


def test_an_engine_without_its_manifest_is_never_left(bundle, tmp_path, monkeypatch):
    """A stop between the two moves leaves neither; a kill leaves only the manifest, and the next build completes it."""
    original = os.link

    def stop(path, target):
        if str(target).endswith(".engine"):
            raise KeyboardInterrupt
        return original(path, target)

    monkeypatch.setattr(os, "link", stop)
    with pytest.raises(KeyboardInterrupt):
        rebuild(bundle, tmp_path)
    assert names(tmp_path) == []
    monkeypatch.undo()
    engine = rebuild(bundle, tmp_path).path
    engine.unlink()
    assert rebuild(bundle, tmp_path).outcome == "built"
    manifest.load(engine)


def test_a_file_that_is_no_manifest_is_not_replaced_by_one(bundle, tmp_path):
    mine = tmp_path / "xs-fp16-rtx40.engine.json"
    mine.write_text("mine")
    with pytest.raises(OutputExistsError, match="exists and is not a manifest"):
        rebuild(bundle, tmp_path)
    assert mine.read_text() == "mine"
    assert names(tmp_path) == [mine.name]


def test_a_file_that_appears_during_a_build_stays(bundle, tmp_path, monkeypatch):
    engine = tmp_path / "xs-fp16-rtx40.engine"

    def build_engine(*arguments):
        engine.write_text("another program's")
        return original(*arguments)

    original = build_job.build_engine
    monkeypatch.setattr(build_job, "build_engine", build_engine)
    with pytest.raises(OutputExistsError):
        rebuild(bundle, tmp_path)
    assert engine.read_text() == "another program's"
    assert names(tmp_path) == [engine.name]


def rewritten(bundle, path, edit):
    """A bundle whose draft was edited and got a new hash, which anybody can do."""
    with zipfile.ZipFile(bundle) as source, zipfile.ZipFile(path, "w") as target:
        for member in source.namelist():
            data = source.read(member)
            if member == "draft.json":
                draft = {key: value for key, value in json.loads(data).items() if key not in ("format", "version", "sha256")}
                edit(draft)
                digest = hashlib.sha256(json.dumps(draft, sort_keys=True).encode()).hexdigest()
                data = json.dumps({"format": EngineDraft.FORMAT, "version": 1, "sha256": digest, **draft})
            target.writestr(member, data)
    return path


@pytest.mark.parametrize("name", ["../../outside", "/tmp/outside", "a/b", "a\0b", "\x1b[2J", "n" * 300, "..\\a\n"])
def test_a_name_in_a_bundle_leads_nowhere(name, bundle, tmp_path):
    evil = rewritten(bundle, tmp_path / "evil.bundle.zip", lambda draft: draft["model"].update(name=name))
    out = tmp_path / "some" / "folder"
    before = names(tmp_path.parent)
    with pytest.raises(EngineError, match="name") as error:
        rebuild(str(evil), out)
    assert str(error.value).isprintable()
    assert names(out) == []
    assert names(tmp_path) == ["evil.bundle.zip", "some"]
    assert names(tmp_path.parent) == before


@pytest.mark.parametrize(
    ("key", "value"), [("precision", "../../outside"), ("variant", "../.."), ("joint_set", ["a"]), ("random", "yes")]
)
def test_what_else_a_bundle_says_of_its_model_leads_nowhere(key, value, bundle, tmp_path):
    evil = rewritten(bundle, tmp_path / "evil.bundle.zip", lambda draft: draft["model"].update({key: value}))
    with pytest.raises(EngineError, match="damaged or something else"):
        rebuild(str(evil), tmp_path / "out")


@pytest.mark.parametrize("member", fast_first(["model.onnx", "draft.json", "proof.npz"]))
def test_a_bundle_that_unpacks_to_gigabytes_is_refused_before_it_does(member, bundle, tmp_path):
    path = tmp_path / "bomb.bundle.zip"
    with zipfile.ZipFile(bundle) as source, zipfile.ZipFile(path, "w", zipfile.ZIP_DEFLATED) as target:
        for name in source.namelist():
            target.writestr(name, bytes(140_000_000) if name == member else source.read(name))
    tracemalloc.start()
    try:
        with pytest.raises(EngineError, match="at most"):
            read_bundle(path)
        assert tracemalloc.get_traced_memory()[1] < 100e6
    finally:
        tracemalloc.stop()


def test_builds_at_once_make_one_whole_engine(bundle, tmp_path):
    reports, steps = [], []
    sizes = (BatchRange(1, 1, 8), BatchRange(1, 1, 8), BatchRange(1, 2, 4))

    def work(batch):
        request = BuildRequest(bundle, tmp_path, targets=(RTX40,), options=BuildOptions(batch))
        reports.append(build(request, steps.append))

    with ThreadPoolExecutor(len(sizes)) as pool:
        list(pool.map(work, sizes))
    assert not any(report.failures for report in reports)
    assert names(tmp_path) == ["xs-fp16-rtx40.engine", "xs-fp16-rtx40.engine.json"]
    assert manifest.load(tmp_path / "xs-fp16-rtx40.engine").batch in sizes
    assert any("waiting for another build" in line for line in told(steps))
    outcomes = [result.outcome for report in reports for result in report.results]
    assert "built" in outcomes
    assert set(outcomes) <= {"built", "kept"}


def test_a_killed_build_holds_nobody_up(bundle, tmp_path):
    """The system releases the lock of a process that dies."""
    read, write = os.pipe()
    child = os.fork()
    if child == 0:
        with build_job.folder_lock(tmp_path, lambda: None):
            os.write(write, b"x")
            os.kill(os.getpid(), 9)
    os.read(read, 1)
    os.waitpid(child, 0)
    assert rebuild(bundle, tmp_path).outcome == "built"


def test_a_graph_past_its_limits_leaves_no_engine(few, tmp_path, monkeypatch):
    limits = replace(LIMITS["fp16"], mean_mm=1e-6)
    monkeypatch.setitem(LIMITS, "fp16", limits)
    report = build(BuildRequest("xs", tmp_path, targets=(RTX40, ORIN), calibration=few), ignore)
    assert report.results == ()
    (failure,) = report.failures
    assert isinstance(failure.error, ParityError)
    assert "worst joints: " in str(failure.error)
    assert names(tmp_path) == []


def test_int8_that_is_none_is_refused(made, tmp_path):
    """TensorRT for RTX computes INT8 graphs in FP16 on Turing; the other target is built."""
    source = str(made.out / "xs-int8-orin.bundle.zip")
    report = build(BuildRequest(source, tmp_path, targets=(find_target("rtx20"), find_target("rtx50"))), ignore)
    (failure,) = report.failures
    assert failure.subject == "xs int8 rtx20"
    assert "computes every convolution of this INT8 graph in Half on 7.5, none in INT8: build it in FP16" in str(failure.error)
    assert names(tmp_path) == ["xs-int8-rtx50.engine", "xs-int8-rtx50.engine.json"]


@pytest.mark.parametrize("kind", ["one", "black", "eight"])
def test_useless_calibration_sets(kind, tmp_path):
    crops = {
        "one": noise_crops(1),
        "black": np.zeros((12, 256, 256, 3), np.uint8),
        "eight": noise_crops(MIN_CROPS),
    }[kind]
    path = tmp_path / "set.npz"
    header = {"format": "convnextpose.calibration", "version": 1, "sha256": hash_crops(crops), "sources": []}
    np.savez_compressed(path, header=np.array(json.dumps(header)), crops=crops)
    expected = {"one": "received 1", "black": "received 1", "eight": "expected 12 different crops or more"}[kind]
    report_of = BuildRequest("xs", tmp_path / "out", ("int8",), (RTX40,), calibration=path)
    with pytest.raises(CalibrationError, match=expected):
        build(report_of, ignore)
    assert names(tmp_path / "out") == []


def test_requests_that_cannot_be_met(bundle, tmp_path):
    def refused(error, match, source="xs", **fields):
        with pytest.raises(error, match=match):
            build(BuildRequest(source, tmp_path / "out", **{"targets": (RTX40,), **fields}), ignore)

    refused(EngineError, "expected precision fp32, fp16, int8, received fp8", precisions=("fp8",))
    refused(EngineError, "expected library tensorrt or tensorrt_rtx", library="tensorflow")
    refused(EngineError, "expected torch2trt, received 'torch'", via="torch")
    refused(
        EngineError,
        "for --dla-core, but GeForce RTX 40 series .* has none",
        options=BuildOptions(BatchRange(4, 4, 4), dla_core=0),
    )
    refused(EngineError, "one number of crops for --dla-core, .* received 1 to 8", options=BuildOptions(dla_core=0))
    core = BuildOptions(BatchRange(4, 4, 4), dla_core=0)
    refused(EngineError, "precision fp16 for --dla-core, received int8", options=core, precisions=("fp16", "int8"), targets=())
    refused(CheckpointError, "nothing.tar", source=str(tmp_path / "nothing.tar"))
    refused(CalibrationError, "there is no", calibration=tmp_path / "none.npz", precisions=("int8",))
    refused(EngineError, "there is no", source=str(tmp_path / "none.bundle.zip"))
    refused(EngineError, "expected precision fp16, which .* has, received int8", source=bundle, precisions=("int8",))
    refused(EngineError, "calibrated and proven where it was made", source=bundle, calibration=tmp_path / "any.npz")
    refused(EngineError, "expected a checkpoint for --via torch2trt, received the bundle", source=bundle, via="torch2trt")
    refused(RuntimeUnavailableError, "torch2trt builds only on the target itself", via="torch2trt", targets=(ORIN,))
    (tmp_path / "file").write_text("")
    with pytest.raises(SinkError, match="cannot write into"):
        build(BuildRequest("xs", tmp_path / "file", targets=(RTX40,)), ignore)


# Bundles


def test_a_bundle_builds_the_same_engine(made, bundle, tmp_path):
    found, expected = rebuild(bundle, tmp_path).draft, manifest.load(made.out / "xs-fp16-rtx40.engine")
    assert isinstance(found, EngineManifest)
    same = ("model", "onnx_sha256", "target", "batch", "options", "excluded_layers", "graph_parity", "compute_capabilities")
    for field in same:
        assert getattr(found, field) == getattr(expected, field), field


def test_a_bundle_needs_neither_torch_nor_onnx(bundle, build_alone, tmp_path):
    build_alone(bundle, tmp_path)
    manifest.load(tmp_path / "xs-fp16-rtx40.engine")


def test_a_bundle_says_what_to_do_with_it(made, bundle):
    (line,) = [line for line in made.told if "wrote xs-fp16-orin" in line]
    assert "take it to Jetson Orin (JetPack 6.1, 6.2, 7.2, 7.2.2)" in line
    command = read_bundle(Path(bundle)).draft.command
    assert command == "convnextpose build xs-fp16-orin.bundle.zip --out . --target orin"
    assert f"`{command}`" in line
    assert any("cannot be built here: engines for Jetson Orin are built on it" in line for line in made.told)


def test_a_bundle_carries_the_proof(bundle):
    proof = read_bundle(Path(bundle)).model.proof
    with open_pose_model(weights.load("xs").onnx, precision="fp32", threads=1) as runtime:
        model = runtime.info
        found = runtime.run(proof.crops)
    assert np.abs(found.joints - proof.expected.joints).max() < 0.1
    recorded = RecordedPoses(proof, model)
    assert np.array_equal(recorded.run(proof.crops[:2]).joints, proof.expected.joints[:2])
    with pytest.raises(GeometryError, match="recorded on"):
        recorded.run(proof.crops[::-1])


def test_damaged_bundles_are_refused(bundle, tmp_path):
    whole = Path(bundle).read_bytes()
    path = tmp_path / "m.bundle.zip"
    for damaged in (whole[:-100], whole[:1000], b"", b"no zip" * 100):
        path.write_bytes(damaged)
        with pytest.raises(EngineError, match=r"m\.bundle\.zip is damaged or something else"):
            read_bundle(path)

    def change(name, edit):
        with zipfile.ZipFile(bundle) as source, zipfile.ZipFile(path, "w") as target:
            for member in source.namelist():
                data = source.read(member)
                target.writestr(member, edit(data) if member == name else data)

    change("model.onnx", lambda data: data[:-1] + b"?")
    with pytest.raises(EngineError, match="not the one that its draft describes"):
        read_bundle(path)
    change("draft.json", lambda data: data.replace(b'"orin"', b'"thor"'))
    with pytest.raises(EngineError, match="edited"):
        read_bundle(path)
    change("proof.npz", lambda data: b"")
    with pytest.raises(EngineError, match="damaged"):
        read_bundle(path)


# With a GPU: the runtime is replaced, so that the graph itself runs here instead of the engine


class Stand(LockedSession):
    """An engine's predictions: the recorded reference plus a given error."""

    def __init__(self, manifest, proof, error_mm):
        self._proof, self._error_mm = proof, error_mm
        joint_count = len(manifest.model.joint_set)
        super().__init__("it", (CROPS,), predicts(joint_count), manifest.graph_parity.candidate)

    def _infer(self, arrays, count):
        joints = self._proof.expected.joints + np.float32([0, 0, self._error_mm])
        return {"joints": joints[:count], "scores": self._proof.expected.scores[:count]}

    def _release(self):
        pass


@pytest.mark.parametrize("error_mm", [0.1, 9.0])
def test_an_engine_is_proven_where_it_can_run(error_mm, bundle, tmp_path, monkeypatch):
    opened = []

    def open_engine(path, runtime):
        assert runtime == "tensorrt"
        opened.append(manifest.load(path))
        return PoseModel(Stand(opened[-1], read_bundle(Path(bundle)).model.proof, error_mm), opened[-1].model)

    monkeypatch.setattr(build_job, "find_gpu", lambda: Gpu("NVIDIA GeForce RTX 4090", "8.9", "CUDA 13.0"))
    monkeypatch.setattr(build_job, "open_pose_model", open_engine)
    report = build(BuildRequest(bundle, tmp_path, targets=(RTX40, find_target("rtx30"))), ignore)
    assert len(opened) == 1  # the other target's engine does not fit this GPU
    if error_mm > LIMITS["fp16"].max_mm:
        (failure,) = report.failures
        assert isinstance(failure.error, ParityError)
        assert names(tmp_path) == ["xs-fp16-rtx30.engine", "xs-fp16-rtx30.engine.json"]
    else:
        parity = manifest.load(tmp_path / "xs-fp16-rtx40.engine").engine_parity
        assert parity.mm.mean == pytest.approx(error_mm, rel=1e-3)
        assert manifest.load(tmp_path / "xs-fp16-rtx30.engine").engine_parity is None


@pytest.mark.slow
def test_via_torch2trt(few, tmp_path, monkeypatch):
    """The builder gets the checkpoint and the calibration crops, and the manifest records this way of building."""
    calls = []

    def build_engine(checkpoint, library, *, precision, options, calibration_crops):
        calls.append((checkpoint.variant, precision, hash_crops(calibration_crops)))
        told = {**options.named(), "via": "torch2trt", "torch2trt_version": "0.5"}
        return BuiltEngine(b"engine", library.name, library.version, ("8.9",), None, None, options.batch, told)

    monkeypatch.setattr(build_job.torch2trt, "build_engine", build_engine)
    request = BuildRequest("xs", tmp_path, ("int8",), (RTX40,), calibration=few, via="torch2trt")
    (result,) = build(request, ignore).results
    found = manifest.load(result.path)
    assert calls == [(Variant.XS, "int8", found.model.calibration_sha256)]
    assert (found.options["via"], found.options["torch2trt_version"]) == ("torch2trt", "0.5")
    assert "--via torch2trt" in found.command
    assert [result.outcome for result in build(request, ignore).results] == ["kept"]
    assert [result.outcome for result in build(replace(request, via=None), ignore).results] == ["built"]


def test_what_builds_for_a_target(monkeypatch):
    def no_gpu():
        raise RuntimeUnavailableError("no NVIDIA driver was found")

    monkeypatch.setattr(building, "open_device", no_gpu)
    assert plan(RTX40).library.name == "tensorrt_rtx"
    assert plan(RTX40).compute_capability == "8.9"
    assert "are built on it" in plan(ORIN).reason
    with pytest.raises(RuntimeUnavailableError, match=r"no NVIDIA driver was found; name a target with --target"):
        plan(find_target("this"))
    gpu = Gpu("NVIDIA GeForce RTX 4070", "8.9", "CUDA 13.0")
    monkeypatch.setattr(building, "open_device", lambda: SimpleNamespace(gpu=gpu))
    here = plan(find_target("this"), "tensorrt_rtx")
    assert (here.gpu, here.compute_capability) == (gpu, "8.9")
    gpu = replace(gpu, compute_capability="9.0")
    with pytest.raises(RuntimeUnavailableError, match=r"does not build for compute capability 9\.0"):
        plan(find_target("this"), "tensorrt_rtx")


# Folders of checkpoints


def test_checkpoints_in_a_folder(tmp_path):
    for name in ("b.tar", "A.PTH", "notes.txt", ".hidden.tar", "x.bundle.zip", "z.safetensors"):
        (tmp_path / name).write_text("")
    (tmp_path / "unpacked").mkdir()
    (tmp_path / "unpacked" / "data.pkl").write_text("")
    (tmp_path / "other").mkdir()
    assert [path.name for path in find_checkpoints(tmp_path)] == ["A.PTH", "b.tar", "unpacked", "z.safetensors"]
    with pytest.raises(EngineError, match="found none"):
        find_checkpoints(tmp_path / "other")
    with pytest.raises(EngineError, match="expected a folder"):
        find_checkpoints(tmp_path / "b.tar")


# Calibration sets in two parts


@pytest.mark.parametrize("count", [12, 13, 24, 100])
def test_the_parts_share_no_crop_and_lose_none(count):
    crops = noise_crops(count)
    split = CalibrationSet(np.concatenate([crops, crops[:5]])).split()
    calibration, proof = ({hash_crops(crop[None]) for crop in part} for part in (split.calibration, split.proof))
    assert not calibration & proof
    assert calibration | proof == {hash_crops(crop[None]) for crop in crops}
    assert len(split.calibration) + len(split.proof) == count
    assert len(split.calibration) >= MIN_CROPS
    assert 4 <= len(split.proof) <= MAX_PROOF_CROPS


def test_the_shipped_set():
    found = CalibrationSet.load(weights.CALIBRATION)
    assert len(found) == 24
    assert weights.CALIBRATION.stat().st_size < 3_000_000
    assert len(found.split().proof) == 8
    assert weights.DEMO_CLIP.name in found.sources
