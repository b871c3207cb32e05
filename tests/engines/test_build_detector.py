"""A people detector becomes engines or bundles: recognised, with fixed frames, proven, and opened as by `--detector`."""

import hashlib
import shlex
from dataclasses import replace
from functools import cache
from pathlib import Path
from types import SimpleNamespace

import cv2
import numpy as np
import pytest

pytest.importorskip("tensorrt_rtx")
pytest.importorskip("onnx")
pytest.importorskip("onnxruntime", reason="it is the reference")

import onnx
import onnxruntime

from convnextpose import weights
from convnextpose.errors import EngineError, ModelError, OutputExistsError, ParityError
from engines import build as building
from engines import build_job, manifest
from engines.build import build
from engines.build_request import BuildRequest, Plan
from engines.build_sources import is_detector
from engines.bundle import read_bundle
from engines.calibration import CalibrationSet
from engines.fastest import build_fastest
from engines.layouts import Placement
from engines.manifest import BatchRange
from engines.opening import open_people_detector
from engines.parity import frames_of
from engines.pose import ModelInfo
from engines.sessions import engine_file
from engines.sessions import tensorrt as tensorrt_session
from engines.sessions.engine_file import open_engine
from engines.targets import find_target
from engines.tensorrt.builder import BuildOptions, BuiltEngine, build_engine
from engines.tensorrt.device import Gpu
from engines.tensorrt.device_cuda import CudaDevice
from engines.tensorrt.module import Library, load_library
from tests.cases import fast_first
from tests.engines.detectors import GROUND, NAMES, PERSON, detector, picture
from tests.engines.manifests import manifest_of
from tests.engines.memory_gpu import DTYPES, Driver
from tests.engines.memory_tensorrt import engine_bytes, tensorrt_module

RTX40, ORIN, THIS = find_target("rtx40"), find_target("orin"), find_target("this")
ENGINE, BUNDLE = "detector-384x384-fp32-rtx40.engine", "detector-384x384-fp32-orin.bundle.zip"


def ignore(step):
    pass


def made_of(source, out, **options):
    """The only result of a request, by default for an RTX 40; a failure is raised."""
    report = build(BuildRequest(str(source), out, **{"targets": (RTX40,), **options}), ignore)
    for failure in report.failures:
        raise failure.error
    (result,) = report.results
    return result


def names(folder):
    return sorted(path.name for path in folder.iterdir())


@pytest.fixture(scope="module")
def made(tmp_path_factory):
    """The package's own detector, for a desktop and, as a bundle, for a Jetson."""
    out, steps = tmp_path_factory.mktemp("made"), []
    report = build(BuildRequest("detector", out, targets=(RTX40, ORIN)), steps.append)
    told = [f"{step.subject}: {step.text}" for step in steps if step.done]
    return SimpleNamespace(out=out, report=report, told=told)


def worn(folder, name):
    """Crops of the person that the graphs of `tests.engines.detectors` find, with the letterbox of a layout."""
    how = NAMES[name].preparation
    crops = np.full((12, 256, 256, 3), GROUND, np.uint8)
    for number, crop in enumerate(crops):
        crop[20 : 100 + number, 16 : 70 + number] = PERSON
        if how.placement is Placement.MIDDLE:
            crop[:8, :8] = how.padding
        if how.placement is not Placement.STRETCHED:  # the last pixel of a frame of 128x96, whole and halved
            crop[90:96, 120:128] = crop[186:192, 248:256] = how.padding
    path = folder / "worn.npz"
    CalibrationSet(crops, ("some",)).save(path)
    return path


def file_of(folder, name, **options):
    path = folder / "factory.onnx"
    path.write_bytes(detector(name, **options))
    return path


# Results


def test_an_engine_and_a_bundle_are_made_and_nothing_else(made):
    assert not made.report.failures
    assert [(result.path.name, result.outcome) for result in made.report.results] == [(ENGINE, "built"), (BUNDLE, "bundled")]
    assert names(made.out) == [BUNDLE, ENGINE, f"{ENGINE}.json"]
    assert dict(made.report.results[0].convolutions) == {"Float": 34}
    assert any("boxes and scores, up to 384x384 px; its engine takes only frames of 384x384" in t for t in made.told)


def test_the_manifest_tells_what_the_file_said_and_that_the_engine_never_ran(made):
    found = manifest.load(made.out / ENGINE)
    info = found.model
    assert (info.name, info.width, info.height, info.layout, info.person) == ("detector", 384, 384, "boxes and scores", None)
    assert info.file_sha256 == weights_sha256()
    assert info.metadata["convnextpose.detector"] == "2"
    assert (found.batch, found.gpu_name, found.engine_parity) == (BatchRange(), None, None)
    assert found.graph_parity.passed and found.graph_parity.boxes > 30
    assert found.graph_parity.reference.name == "onnxruntime"
    assert shlex.split(found.command)[:3] == ["convnextpose", "build", "detector"]


def weights_sha256():
    return hashlib.sha256(weights.detector().read_bytes()).hexdigest()


def test_what_is_there_is_kept_and_another_size_is_another_engine(made, tmp_path):
    for name in (ENGINE, f"{ENGINE}.json"):
        (tmp_path / name).write_bytes((made.out / name).read_bytes())
    assert made_of("detector", tmp_path).outcome == "kept"
    wide = made_of("detector", tmp_path, frame=(384, 224))
    assert (wide.path.name, wide.outcome) == ("detector-384x224-fp32-rtx40.engine", "built")
    assert "--frame 384,224" in wide.draft.command
    assert made_of("detector", tmp_path, frame=(384, 224)).outcome == "kept"
    assert made_of("detector", tmp_path).outcome == "kept"
    found = manifest.read(wide.path)
    manifest.path_of(wide.path).write_text(replace(found, model=replace(found.model, file_sha256="00" * 32)).to_json())
    with pytest.raises(OutputExistsError, match="from another checkpoint or file"):
        made_of("detector", tmp_path, frame=(384, 224))


def test_a_bundle_builds_the_engine_without_torch_and_onnx(made, build_alone, tmp_path):
    build_alone(made.out / BUNDLE, tmp_path)
    found, expected = manifest.load(tmp_path / ENGINE), manifest.load(made.out / ENGINE)
    for field in ("model", "onnx_sha256", "batch", "options", "graph_parity"):
        assert getattr(found, field) == getattr(expected, field), field


def test_a_bundle_carries_the_boxes_of_the_reference(made):
    bundle = read_bundle(made.out / BUNDLE)
    proof = bundle.model.proof
    with open_people_detector(bundle.model.onnx, "onnxruntime") as fixed:
        assert fixed.frame_for(1280, 720) == (384, 384)
        found = fixed.run(frames_of(proof.crops, 384, 384))
    np.testing.assert_allclose(found.boxes, proof.expected.boxes, atol=0.01)
    assert bundle.draft.command == f"convnextpose build {BUNDLE} --out . --target orin"


@pytest.mark.parametrize("name", fast_first(sorted(NAMES, key=lambda name: "D-FINE" not in name)))
def test_tensorrt_for_rtx_takes_every_layout(name):
    """They are only built: nothing here can run an engine."""
    for batch, options in ((None, BuildOptions()), (1, BuildOptions(BatchRange(1, 1, 1)))):
        engine = build_engine(detector(name, batch=batch), load_library("tensorrt_rtx"), "8.9", options)
        assert len(engine.data) > 10_000


def test_a_foreign_detector_s_file_is_not_needed_any_more(tmp_path):
    """Variable sides, a class by name, one frame at a time: all of it is in the manifest."""
    told = {"names": "{0: 'dog', 3: 'worker'}", "imgsz": "[96, 128]", "other": "x"}
    source = file_of(tmp_path, "YOLOv8 and later", free=True, batch=1, person=3, metadata=told)
    result = made_of(source, tmp_path / "out", calibration=worn(tmp_path, "YOLOv8 and later"), person="worker")
    assert result.path.name == "factory-128x96-fp32-rtx40.engine"
    info = result.draft.model
    assert (info.layout, info.person, info.width, info.height) == ("YOLOv8 and later", 3, 128, 96)
    assert info.metadata == {"names": told["names"], "imgsz": told["imgsz"]}
    assert result.draft.batch == BatchRange(1, 1, 1)
    assert "--detector-class worker" in result.draft.command and "--batch 1,1,1" in result.draft.command
    assert result.draft.graph_parity.boxes > 0


# Refusals, in one sentence, that leave nothing behind


def test_requests_that_cannot_be_met(made, tmp_path):
    def refused(match, source="detector", error=EngineError, **fields):
        with pytest.raises(error, match=match) as told:
            made_of(source, tmp_path / "out", **fields)
        assert "\n" not in str(told.value)
        assert names(tmp_path / "out") == []

    refused("expected precision fp32 for detector, a people detector, received fp16", precisions=("fp16",))
    refused("expected a checkpoint of a pose model for --via, received detector, a people detector", via="torch2trt")
    refused("for --tail-kernel, received detector", options=BuildOptions(tail_kernel=True))
    refused("for --dla-core, received", options=BuildOptions(BatchRange(4, 4, 4), dla_core=0), targets=(ORIN,))
    refused(r"such as --frame 400,112, received 390,100", frame=(390, 100))
    refused("frames of 32 to 4096 px", frame=(5000, 5000), error=ModelError)
    refused("expected no class for this people detector", person="0", error=ModelError)
    refused(r"expected a people detector \(detector or an .onnx file\) for --frame", source="xs", frame=(384, 384))
    refused("expected a people detector .* for --frame", source=str(made.out / BUNDLE), frame=(384, 384))
    refused("received the exported pose model .*xs.onnx: build from its checkpoint", source=weights.load("xs").onnx)
    refused("there is no such file", source=tmp_path / "none.onnx", error=ModelError)
    single = file_of(tmp_path, "YOLOX", batch=1)
    refused("--batch 1,1,1 for .*factory.onnx, which takes 1 frame at a time, received 1,2,4", source=single,
            options=BuildOptions(BatchRange(1, 2, 4)))  # fmt: skip
    refused("such as --frame 128,96, received 256,96", source=single, frame=(256, 96))
    refused("it found nobody in those of synthetic people.*--calibration", source=single, error=ParityError)
    with pytest.raises(EngineError, match="for --precision fastest, received detector, a people detector"):
        build_fastest(BuildRequest("detector", tmp_path / "out", targets=(RTX40,)), ignore)


def test_files_that_compute_in_other_types_are_refused(tmp_path):
    """Weights that are only stored in FP16, as in the package's own file, are allowed."""
    name = "RTMDet of MMDeploy"
    whole = detector(name)
    path = tmp_path / "half.onnx"
    proto = onnx.load_from_string(whole)
    (convolution,) = (node for node in proto.graph.node if node.op_type == "Conv")
    (weight,) = (tensor for tensor in proto.graph.initializer if tensor.name == convolution.input[1])
    weight.CopyFrom(onnx.numpy_helper.from_array(onnx.numpy_helper.to_array(weight).astype(np.float16), weight.name))
    path.write_bytes(proto.SerializeToString())
    with pytest.raises(ModelError, match=r"a model in FP32, but .*half\.onnx has Conv of another type: export it in FP32"):
        made_of(path, tmp_path / "out")
    assert any(node.op_type == "Cast" for node in onnx.load(str(weights.detector())).graph.node)


def test_a_graph_in_which_more_than_the_batch_is_free_is_refused():
    with pytest.raises(EngineError, match=r"only the batch varies, received frames \[-1, -1, -1, 3\]"):
        build_engine(weights.detector().read_bytes(), load_library("tensorrt_rtx"), "8.9")
    with pytest.raises(EngineError, match="expected a batch of 1, which the graph has fixed, received 1 to 8"):
        build_engine(detector("YOLOX", batch=1), load_library("tensorrt_rtx"), "8.9")


def test_what_a_source_is(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    assert is_detector("detector") and is_detector("a/yolox.onnx")
    assert not is_detector("xs") and not is_detector("a.tar") and not is_detector("detector.bundle.zip")
    Path("detector").write_text("a checkpoint of that name")
    assert not is_detector("detector")


# With a GPU: a simulated one, whose engines compute the same graph in ONNX Runtime


TYPES = {"tensor(uint8)": "UINT8", "tensor(float)": "FLOAT", "tensor(int64)": "INT64"}
KINDS = {"float32": "FLOAT", "int64": "INT64"}

ONE = BuildOptions(BatchRange(1, 1, 1))
"""Opening an engine runs it twice for each number of frames that it takes, here on the CPU."""


@cache
def runner(onnx_file):
    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads, options.log_severity_level = 1, 3
    return onnxruntime.InferenceSession(onnx_file, options, providers=["CPUExecutionProvider"])


class Bench:
    """A simulated GPU with a TensorRT, whose engines compute their graph plus an error `stray`."""

    def __init__(self, monkeypatch, family="10"):
        self.driver, self.stray, self.networks = Driver(), 0.0, {}
        module = tensorrt_module(self.driver, family, networks=self.networks)
        module.IBuilderConfig = type("IBuilderConfig", (), {})
        library = Library(module.__name__, module.__version__, module)
        gpu = Gpu("GPU in memory", "8.9", "CUDA 13.1")
        monkeypatch.setattr(engine_file, "load_library", lambda name: library)
        monkeypatch.setattr(engine_file, "open_device", lambda binding: CudaDevice(self.driver, "cuda-python in memory"))
        monkeypatch.setattr(tensorrt_session, "engine_kernels", lambda *_: None)
        monkeypatch.setattr(building, "plan", lambda target, name: Plan(target, library, "8.9", gpu))
        monkeypatch.setattr(build_job, "find_gpu", lambda: gpu)
        monkeypatch.setattr(build_job, "build_engine", self.build)

    def build(self, graph, library, capability, options, timings):
        session = runner(graph)
        inputs = {given.name: (TYPES[given.type], given.shape[1:]) for given in session.get_inputs()}
        black = {key: np.zeros((1, *shape), DTYPES[kind]) for key, (kind, shape) in inputs.items()}
        gives = dict(zip([output.name for output in session.get_outputs()], session.run(None, black), strict=True))
        fixed = session.get_inputs()[0].shape[0]
        name = f"network {len(self.networks)}"

        def network(*arrays):
            found = dict(zip(gives, session.run(None, dict(zip(inputs, arrays, strict=True))), strict=True))
            return {key: array + np.asarray(self.stray * (array.ndim == 3), array.dtype) for key, array in found.items()}

        self.networks[name] = network
        data = engine_bytes(
            network=name,
            fixed=fixed if isinstance(fixed, int) else None,
            most=options.batch.max,
            inputs=inputs,
            outputs={key: (KINDS[array.dtype.name], array.shape[1:]) for key, array in gives.items()},
        )
        told = (library.name, library.version, ("8.9",), "GPU in memory", "CUDA 13.1")
        return BuiltEngine(data, *told, options.batch, options.named())

    def check(self):
        assert self.driver.violations == []
        assert self.driver.live == len(self.driver.engines) == 0


@pytest.fixture
def bench(request, monkeypatch):
    made = Bench(monkeypatch, getattr(request, "param", "10"))
    yield made
    made.check()


@pytest.mark.parametrize("bench", ["10", "rtx"], indirect=True)
def test_an_engine_is_proven_where_it_can_run_and_finds_whom_the_file_finds(bench, tmp_path):
    result = made_of("detector", tmp_path, targets=(THIS,), options=BuildOptions(BatchRange(1, 1, 2)), frame=(384, 288))
    found = manifest.load(result.path)
    assert found.engine_parity.passed and found.engine_parity.boxes > 30
    assert found.engine_parity.candidate.device == "GPU in memory"
    frame = cv2.resize(cv2.VideoCapture(str(weights.DEMO_CLIP)).read()[1], (384, 288), interpolation=cv2.INTER_AREA)
    frames = np.stack([frame, frame[:, ::-1], frame[::-1]])
    with open_people_detector(result.path) as engine, open_people_detector(weights.detector(), "onnxruntime") as file:
        assert engine.frame_size == engine.frame_for(1920, 1080) == (384, 288)
        assert engine.describe().name == found.library
        expected, seen = file.run(frames), engine.run(frames)
    np.testing.assert_allclose(seen.scores, expected.scores, atol=1e-4)
    assert expected.scores.max() > 0.5
    sure = expected.scores > 0.3
    np.testing.assert_allclose(seen.boxes[sure], expected.boxes[sure], atol=0.01)


def test_an_engine_that_strays_leaves_no_file(bench, tmp_path):
    bench.stray = 0.2
    with pytest.raises(ParityError, match=r"tensorrt.* disagrees with onnxruntime on \d+ boxes in 4 frames: .* within 0\.2 px"):
        made_of("detector", tmp_path, targets=(THIS,), options=ONE)
    assert names(tmp_path) == []


@pytest.mark.parametrize(
    ("name", "options"),
    [
        ("YOLOX", {"batch": 1}),
        ("RT-DETR and D-FINE", {}),
        ("SSD", {"dtype": "uint8", "channels_first": False}),
        ("RT-DETR of Ultralytics", {}),
        ("RTMDet of MMDeploy", {}),
    ],
)
def test_foreign_engines_give_what_their_files_gave(name, options, bench, tmp_path):
    """Colours, scale and class are those of the file: its metadata and its stem came with the engine."""
    source = file_of(tmp_path, name, **options)
    result = made_of(source, tmp_path / "out", targets=(THIS,), calibration=worn(tmp_path, name))
    source_bytes = source.read_bytes()
    source.unlink()
    frames = np.stack([picture(128, 96, (10 + 8 * n, 12, 50 + 9 * n, 70)) for n in range(3)])
    with (
        open_people_detector(source_bytes, "onnxruntime") as file,
        open_people_detector(result.path, max_batch=4) as engine,
    ):
        assert (engine.layout, engine.about) == (file.layout, file.about)
        expected, seen = file.run(frames), engine.run(frames)
    np.testing.assert_allclose(seen.scores, expected.scores, atol=1e-5)
    np.testing.assert_allclose(seen.boxes, expected.boxes, atol=1e-3)


def test_the_class_that_was_named_when_it_was_built_is_the_engine_s(bench, tmp_path):
    source = file_of(tmp_path, "YOLOv8 and later", person=3)
    result = made_of(source, tmp_path / "out", targets=(THIS,), calibration=worn(tmp_path, "YOLOv8 and later"), person="3")
    with open_people_detector(result.path) as engine:
        assert engine.person == 3 and "people are class 3" in engine.about
    with open_people_detector(result.path, person="1") as engine:
        assert engine.person == 1


def test_an_engine_of_other_frames_or_another_layout_than_its_manifest_tells_is_refused(bench, tmp_path):
    path = made_of("detector", tmp_path, targets=(THIS,), options=ONE).path
    found = manifest.read(path)
    told = r"that the engine's manifest describes \(.*\), received one of boxes and scores, 384x384 px; build it again with `"
    for changes in ({"width": 256}, {"layout": "YOLOX"}, {"layout": "none that is known"}):
        manifest.path_of(path).write_text(replace(found, model=replace(found.model, **changes)).to_json())
        with pytest.raises(EngineError, match=told):
            open_people_detector(path)


def test_run_takes_a_detector_s_engine(cli, bench, tmp_path):
    path = made_of("detector", tmp_path, targets=(THIS,), options=ONE).path
    person = tmp_path / "person.png"
    cv2.imwrite(str(person), cv2.VideoCapture(str(weights.DEMO_CLIP)).read()[1])
    code, text, error = cli("run", person, "--detector", path, "--out", tmp_path / "out")
    assert (code, error) == (0, "")
    assert "a pose in 1 of 1 frames" in text
    assert f"detector {path.name} (boxes and scores, 384x384 px), tensorrt" in text
    assert "fp32 on GPU in memory" in text


def test_engines_of_the_other_kind_are_refused_with_the_option_that_takes_them(cli, bench, tmp_path):
    path = made_of("detector", tmp_path, targets=(THIS,), options=ONE).path
    data = engine_bytes()
    pose = tmp_path / "pose.engine"
    pose.write_bytes(data)
    manifest.path_of(pose).write_text(manifest_of(data).to_json())
    clip, out = weights.DEMO_CLIP, tmp_path / "out"
    for arguments, told in (
        (("run", clip, "--model", path), "expected an engine of a pose model, received one of a people detector, detector"),
        (("run", clip, "--detector", pose), "expected an engine of a people detector, received one of a pose model, tiny"),
        (("triton", path), "expected an engine of a pose model"),
    ):
        code, _, error = cli(*arguments, "--out", out)
        assert code == 1
        assert told in error and error.count("\n") == 1
    with pytest.raises(EngineError, match="which --detector takes"):
        open_engine(path, kind=ModelInfo)


def test_no_gpu_is_a_sentence_and_the_kind_is_told_before_it(cli, made, no_gpu, tmp_path):
    code, _, error = cli("run", weights.DEMO_CLIP, "--detector", made.out / ENGINE, "--out", tmp_path / "out")
    assert code == 1 and error.count("\n") == 1 and ("NVIDIA driver" in error or "no GPU" in error)
    code, _, error = cli("run", weights.DEMO_CLIP, "--model", made.out / ENGINE, "--out", tmp_path / "out")
    assert code == 1 and "which --detector takes" in error
    code, text, _ = cli("engine", "inspect", made.out / ENGINE)
    assert code == 0
    assert "detector detector (boxes and scores, 384x384 px)" in text and "1 to 8 frames" in text
    assert "engine: not measured: it was built without a GPU" in text
