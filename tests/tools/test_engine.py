"""`engine inspect`, `bench-engine`, `run --model x.engine` and `doctor` with an engine, with a GPU, or without both."""

import importlib.machinery
import json
import sys
import types
from dataclasses import replace

import cv2
import pytest

from convnextpose import weights
from convnextpose.errors import ModelError, RuntimeUnavailableError
from engines import manifest as manifests
from engines.sessions import engine_file
from engines.sessions import tensorrt as tensorrt_session
from engines.sessions.base import LockedSession
from engines.tensorrt.device import NO_DRIVER, NO_GPU
from engines.tensorrt.device_cuda import CudaDevice
from engines.tensorrt.module import Library
from engines.timing import RunTimes
from tests.engines.manifests import manifest_of
from tests.engines.memory_gpu import Driver
from tests.engines.memory_tensorrt import engine_bytes, predict, tensorrt_module


@pytest.fixture
def engine(tmp_path):
    """An engine for the simulated GPU, made from the default weights' checkpoint."""
    data = engine_bytes(padding=100)
    made = manifest_of(data, gpu_name=None)
    card = weights.load("xs")
    checkpoint = json.loads(card.onnx.with_suffix(".json").read_text())["sha256"]["safetensors"]
    made = replace(made, model=replace(made.model, name="xs", checkpoint_sha256=checkpoint, random=False))
    path = tmp_path / "xs-fp16-rtx40.engine"
    path.write_bytes(data)
    manifests.path_of(path).write_text(made.to_json())
    return path


@pytest.fixture
def gpu(monkeypatch):
    """A simulated GPU with TensorRT 10."""
    driver = Driver()
    module = tensorrt_module(driver)
    monkeypatch.setattr(tensorrt_session, "engine_kernels", lambda *_: None)
    monkeypatch.setattr(engine_file, "load_library", lambda name: Library("tensorrt", module.__version__, module))
    monkeypatch.setattr(engine_file, "open_device", lambda binding: CudaDevice(driver, "cuda-python in memory"))
    return driver


def test_inspecting_prints_the_manifest_and_what_is_inside(cli, engine, gpu):
    code, text, _ = cli("engine", "inspect", engine)
    assert code == 0
    made = manifests.read(engine)
    for told in (made.engine_sha256, made.onnx_sha256, made.model.checkpoint_sha256, made.command, "tensorrt 10.3.0", "8.9"):
        assert told in text
    assert "runs: tensorrt 10.3.0 (fp16 on GPU in memory" in text
    assert "1 Convolution Half -> Float" in text
    assert "MiB of activations" in text
    code, text, _ = cli("engine", "inspect", engine, "--layers")
    assert "stem Convolution Half -> Float" in text
    assert gpu.live == 0


def test_inspecting_without_a_gpu_prints_the_manifest_and_says_why_that_is_all(cli, engine, no_gpu):
    code, text, error = cli("engine", "inspect", engine)
    assert code == 0
    assert error == ""
    assert manifests.read(engine).command in text
    assert "does not run" in text
    assert "layers   and memory: TensorRT reports them" in text


def test_inspecting_a_damaged_engine_fails_after_its_manifest_was_printed(cli, engine):
    engine.write_bytes(engine.read_bytes()[:-1])
    code, text, error = cli("engine", "inspect", engine)
    assert code == 1
    assert "checkpoint" in text
    assert "the file was cut short or replaced" in error
    assert "Traceback" not in error


def test_inspecting_what_is_no_engine_is_one_sentence(cli, tmp_path):
    code, _, error = cli("engine", "inspect", tmp_path / "none.engine")
    assert code == 1
    assert error.count("\n") == 1
    assert "none.engine" in error


def test_a_run_with_an_engine_where_no_gpu_is_ends_in_one_sentence(cli, engine, tmp_path, no_gpu):
    out = tmp_path / "out"
    code, _, error = cli("run", weights.DEMO_CLIP, "--model", engine, "--out", out)
    assert code == 1
    assert error.startswith("error: ")
    assert error.count("\n") == 1
    assert not out.exists()


def test_a_run_with_an_engine_gives_poses(cli, engine, gpu, tmp_path, monkeypatch):
    monkeypatch.setitem(sys.modules, "tensorrt", tensorrt_module(gpu))
    monkeypatch.setattr("engines.sessions.registry._found", lambda name: True)
    boxes, picture = tmp_path / "boxes.csv", tmp_path / "person.png"
    boxes.write_text("frame,x,y,width,height\n0,100,100,200,300\n0,120,100,200,300\n")
    cv2.imwrite(str(picture), cv2.VideoCapture(str(weights.DEMO_CLIP)).read()[1])
    for choice in (("--model", engine), ("--model", engine, "--runtime", "tensorrt")):
        out = tmp_path / "out"
        code, text, error = cli("run", picture, *choice, "--out", out, "--boxes", boxes, "--overwrite")
        assert (code, error) == (0, "")
        assert "runtime  tensorrt 10.3.0 (fp16 on GPU in memory" in text
        assert ("because the model is an engine" in text) == ("--runtime" not in choice)
        assert weights.load("xs").summary in text
        assert "a pose in 1 of 1 frames" in text
    assert gpu.violations == []
    assert gpu.live == 0


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (("--model", "a.engine", "--weights", "random"), "a model with replaceable weights"),
    ],
)
def test_an_engine_and_something_else_is_wrong_use(cli, arguments, message, tmp_path):
    code, _, error = cli("run", weights.DEMO_CLIP, "--out", tmp_path / "out", *arguments)
    assert code == 2
    assert message.replace("\\", "") in " ".join(error.replace("│", " ").split())


@pytest.mark.parametrize("arguments", [("--runtime", "openvino"), ("--threads", "2")])
def test_what_an_engine_does_not_do_is_refused(cli, engine, gpu, arguments, tmp_path, monkeypatch):
    monkeypatch.setattr("engines.sessions.registry._found", lambda name: True)
    code, _, error = cli("run", weights.DEMO_CLIP, "--out", tmp_path / "out", "--model", engine, *arguments)
    assert code == 1
    assert "engine" in error


def test_bench_engine_times_every_number_of_crops(cli, engine, gpu, tmp_path):
    out = tmp_path / "bench.json"
    code, text, _ = cli("bench-engine", engine, "--no-reference", "--rounds", 4, "--warm-up", 2, "--json", out)
    assert code == 0
    found = json.loads(out.read_text())
    assert found["engine"] == engine.name
    assert [row["crops"] for row in found["latencies"]] == [1, 2, 4, 8]
    for row in found["latencies"]:
        assert 0 < row["host"]["p50"] <= row["host"]["p95"] <= row["host"]["p99"]
        assert 0 < row["inference"]["p50"] < row["gpu"]["p50"]
        assert row["replayed"] == 4
    assert set(found["floors_ms"]) == {"1", "2", "4", "8"}
    assert "billion multiply-adds" in text and "times the floor" in text
    assert "engine fp16" in text
    assert "CUDA graphs in" not in text  # printed only if a run was without graphs
    code, _, error = cli("bench-engine", engine, "--no-reference", "--json", out)
    assert code == 1
    assert "--overwrite" in error
    assert gpu.live == 0


@pytest.mark.parametrize(
    ("able", "arguments", "how"),
    [
        (True, (), "compiled, with CUDA graphs"),
        (True, ("--no-compile",), "not compiled, with CUDA graphs"),
        (False, (), "not compiled (torch cannot run the reference: Cannot find a working triton installation.)"),
    ],
)
def test_bench_engine_puts_the_reference_beside_it(cli, engine, gpu, tmp_path, monkeypatch, able, arguments, how):
    """The reference is replaced by one that needs no GPU; the test is that both are in one table."""
    pytest.importorskip("torch")

    class Stand(LockedSession):
        def __init__(self, network, name, *, precision, compiled=False):
            assert precision == "fp16"
            self.broken = compiled and not able
            super().__init__(name, network.inputs, network.outputs, manifests.read(engine).graph_parity.reference)

        times = RunTimes(2.0, 0.5, 1.0, 0.5, 1, 1)

        def _infer(self, arrays, count):
            if self.broken:
                raise ModelError("torch cannot run the reference: Cannot find a working triton installation.")
            return dict(zip(("joints", "scores"), predict(arrays["crops"]), strict=True))

        def _release(self):
            pass

    monkeypatch.setattr("tools.bench_engine.TorchGpuSession", Stand)
    out = tmp_path / "bench.json"
    code, text, _ = cli("bench-engine", engine, "--batches", "1,3", "--rounds", 2, "--warm-up", 2, "--json", out, *arguments)
    assert code == 0
    assert f"batch norms folded, {how}" in " ".join(text.split())
    rows = json.loads(out.read_text())["latencies"]
    assert [(row["crops"], row["runtime"]) for row in rows] == [
        (1, "engine fp16"), (1, "torch fp16"), (3, "engine fp16"), (3, "torch fp16"),
    ]  # fmt: skip
    assert rows[1]["crops_per_s"] == pytest.approx(500)
    assert "torch fp16" in text


def test_bench_engine_wants_the_checkpoint_that_the_engine_was_made_from(cli, engine, gpu, tmp_path):
    pytest.importorskip("torch")
    data, path = engine_bytes(), tmp_path / "other.engine"
    path.write_bytes(data)
    manifests.path_of(path).write_text(manifest_of(data).to_json())
    code, _, error = cli("bench-engine", path)
    assert code == 1
    assert "give that checkpoint's file with --checkpoint" in error
    code, _, error = cli("bench-engine", path, "--checkpoint", weights.load("xs").safetensors)
    assert code == 1
    assert "expected checkpoint 000000000000, which the engine was made from, but" in error
    assert gpu.live == 0


@pytest.mark.parametrize("batches", ["0", "a", "", "1,-2"])
def test_bench_engine_refuses_numbers_that_are_none(cli, engine, batches):
    assert cli("bench-engine", engine, "--batches", batches)[0] == 2


@pytest.fixture
def doctor(cli, monkeypatch):
    """A function that returns the exit code and the doctor's findings by name, without measuring this machine's speed."""
    monkeypatch.setattr("engines.cpu_precision.measure_precisions", tuple)

    def examine():
        code, text, _ = cli("doctor", "--json")
        return code, {found["what"]: found for found in json.loads(text)}

    return examine


def test_the_doctor_tells_of_gpu_driver_binding_and_tensorrt_in_a_sentence_each(doctor, no_gpu):
    code, findings = doctor()
    assert code == 0
    assert findings["GPU"]["state"] == "missing"
    assert findings["GPU"]["found"] in (NO_DRIVER, NO_GPU) or "is installed; pip install" in findings["GPU"]["found"]
    assert "NVIDIA driver" in findings or "Jetson" in findings
    assert {"cuda-python", "pycuda"} & set(findings)
    assert any(name.startswith("module tensorrt") for name in findings)
    for finding in findings.values():
        assert "\n" not in finding["found"]
        assert (finding["mend"] == "") == (finding["state"] == "ok")


def test_the_doctor_tells_where_crops_are_made(doctor, no_gpu, monkeypatch):
    def missing(kernel, capability):
        raise RuntimeUnavailableError(
            "the kernels need NVRTC, which does not load: no such file; pip install nvidia-cuda-nvrtc"
        )

    monkeypatch.setattr("engines.kernels.program.compile_kernel", missing)
    found = doctor()[1]["kernels"]
    assert found["state"] == "missing"
    assert found["found"] == "crops are made on the CPU: the kernels need NVRTC, which does not load: no such file"
    assert found["mend"] == "pip install nvidia-cuda-nvrtc"
    monkeypatch.setattr("engines.kernels.program.compile_kernel", lambda kernel, capability: b"code")
    found = doctor()[1]["kernels"]
    assert found["state"] == "ok"


def test_the_doctor_says_what_is_experimental(doctor, no_gpu, monkeypatch):
    monkeypatch.setattr("engines.tensorrt.gpu.binding_installed", lambda name: True)
    package = types.ModuleType("torch2trt")
    package.__spec__ = importlib.machinery.ModuleSpec("torch2trt", None)
    monkeypatch.setitem(sys.modules, "torch2trt", package)
    _, findings = doctor()
    assert "experimental" in findings["pycuda"]["found"] and "experimental" in findings["torch2trt"]["found"]
    assert "experimental" not in findings["cuda-python"]["found"]


def test_the_doctor_tells_what_a_module_that_does_not_load_lacks(doctor, tmp_path, monkeypatch):
    package = tmp_path / "tensorrt"
    package.mkdir()
    (package / "__init__.py").write_text("raise ImportError('libnvinfer.so.10: cannot open shared object file')")
    monkeypatch.syspath_prepend(tmp_path)
    monkeypatch.delitem(sys.modules, "tensorrt", raising=False)
    found = doctor()[1]["module tensorrt"]
    assert found["state"] == "missing"
    assert "libnvinfer.so.10" in found["found"]


def test_the_doctor_tells_which_gpu_is_there(doctor, monkeypatch):
    monkeypatch.setattr("engines.tensorrt.gpu.open_device", lambda: CudaDevice(Driver(), "cuda-python in memory"))
    found = doctor()[1]["GPU"]
    assert found["state"] == "ok"
    assert "GPU in memory, compute capability 8.9, driver for CUDA 13.1" in found["found"]
