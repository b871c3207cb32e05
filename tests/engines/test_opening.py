"""Choices, their reasons, and refusals: nothing is substituted silently, nothing damaged is opened."""

import importlib.machinery
import importlib.util
import platform
import re
import subprocess
import sys
import types
from dataclasses import replace
from importlib import metadata
from pathlib import Path

import onnx
import pytest
from hypothesis import given
from hypothesis import strategies as st

from convnextpose import weights
from convnextpose.errors import EngineError, ModelError, RuntimeUnavailableError
from convnextpose.skeleton import JOINT_SETS
from convnextpose.variants import Variant
from engines.cpu_precision import measure_precisions
from engines.metadata import read_metadata, write_metadata
from engines.opening import choose_precision, open_pose_model
from engines.pose import ModelInfo
from engines.sessions.openvino import cpu_precisions
from engines.sessions.registry import RUNTIMES, Choice, choose_runtime, runtime_help

ROOT = Path(__file__).parent.parent.parent
LIBRARIES = (
    "torch",
    "onnx",
    "onnxscript",
    "onnxruntime",
    "openvino",
    "safetensors",
    "tensorrt",
    "tensorrt_rtx",
    "cuda",
    "pycuda",
)
TENSORRT = ("tensorrt", "tensorrt_rtx")

infos = st.builds(
    ModelInfo,
    name=st.text(st.characters(codec="utf-8"), min_size=1),
    variant=st.sampled_from(Variant),
    joint_set=st.sampled_from(list(JOINT_SETS.values())),
    checkpoint_sha256=st.text("0123456789abcdef", min_size=64, max_size=64),
    random=st.booleans(),
)


def small_model(metadata):
    model = onnx.ModelProto(ir_version=8, graph=onnx.GraphProto(name="g", doc_string="x" * 200))
    onnx.helper.set_model_props(model, metadata)
    return model.SerializeToString()


def hide(monkeypatch, *names):
    """Make libraries appear not to be installed."""
    for name in names:
        monkeypatch.setitem(sys.modules, name, None)


@given(infos)
def test_metadata_survives_the_file(info):
    data = small_model(write_metadata(info))
    assert read_metadata(data, "it") == info
    assert read_metadata(data, "it", "other").name == "other"


@given(infos, st.data())
def test_a_file_that_is_cut_short_is_refused(info, data):
    whole = small_model(write_metadata(info))
    cut = data.draw(st.integers(0, len(whole) - 1))
    with pytest.raises(ModelError, match=r"\bit\b"):
        read_metadata(whole[:cut], "it")


@given(st.binary(max_size=200))
def test_no_bytes_raise_anything_else(data):
    with pytest.raises(ModelError):
        read_metadata(data, "it")


@pytest.mark.parametrize("content", [b"", b"\x80" * 10**6, bytes(1000), b"PK\x03\x04" + bytes(100)])
def test_other_files_are_refused(content, tmp_path):
    path = tmp_path / "other.onnx"
    path.write_bytes(content)
    with pytest.raises(ModelError, match=r"other\.onnx"):
        open_pose_model(path)


def test_a_truncated_model_is_refused(onnx_bytes):
    for size in (len(onnx_bytes) - 1, len(onnx_bytes) // 2, 100):
        with pytest.raises(ModelError, match="cut short"):
            open_pose_model(onnx_bytes[:size])


@pytest.mark.parametrize(
    ("key", "value", "message"),
    [
        ("convnextpose.contract", None, "exported by this project"),
        ("convnextpose.contract", "2", "contract 1, received .* of contract 2"),
        ("variant", "XXL", "'XXL'"),
        ("variant", None, "'variant'"),
        ("joint_set", "hands", "'hands'"),
        ("random", "perhaps", "'perhaps'"),
    ],
)
def test_foreign_and_incomplete_metadata_is_refused(key, value, message):
    metadata = write_metadata(ModelInfo("x", Variant.XS, JOINT_SETS["human36m"], "0" * 64))
    del metadata[key]
    if value is not None:
        metadata[key] = value
    with pytest.raises(ModelError, match=message):
        read_metadata(small_model(metadata), "it")


def test_a_missing_file_is_told(tmp_path):
    with pytest.raises(ModelError, match=r"none\.onnx"):
        open_pose_model(tmp_path / "none.onnx")


def test_names_and_randomness_come_from_the_model_or_the_caller(checkpoint, exported):
    with open_pose_model(exported.path) as runtime:
        assert (runtime.info.name, runtime.info.random) == ("tiny", True)
    with open_pose_model(exported.path, name="mine") as runtime:
        assert runtime.info.name == "mine"
    with open_pose_model(checkpoint, "torch", random=True) as runtime:
        assert (runtime.info.name, runtime.info.random) == ("xs", True)


def test_a_checkpoint_opens_in_any_runtime(checkpoint, crops):
    with open_pose_model(checkpoint, name="direct") as runtime:
        assert runtime.info.name == "direct"
        assert not runtime.info.random
        assert len(runtime.run(crops[:2]).scores) == 2


def test_torch_needs_a_checkpoint(exported):
    with pytest.raises(RuntimeUnavailableError, match="expected a checkpoint for the runtime torch"):
        open_pose_model(exported.path, "torch")


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"runtime": "tflite"}, "auto, openvino, onnxruntime, torch, tensorrt or triton://HOST:PORT/NAME, received 'tflite'"),
        ({"threads": 0}, "expected 1 to [0-9]+ threads, received 0"),
        ({"threads": 5000}, "expected 1 to [0-9]+ threads, received 5000: this machine has [0-9]+ cores"),
        ({"threads": 2**31}, "expected 1 to [0-9]+ threads, received 2147483648"),
        ({"runtime": "openvino", "precision": "int3"}, "auto, fp32, bf16, fp16, int8, received 'int3'"),
        ({"runtime": "onnxruntime", "precision": "bf16"}, "fp32.*'bf16'"),
    ],
)
def test_what_no_runtime_does_is_refused(options, message, onnx_bytes):
    with pytest.raises(RuntimeUnavailableError, match=message):
        open_pose_model(onnx_bytes, **options)


@pytest.mark.parametrize(
    ("machine", "missing", "chosen", "reason"),
    [
        ("x86_64", [], "openvino", "default on an x86-64 CPU"),
        ("AMD64", [], "openvino", "default on an x86-64 CPU"),
        ("x86_64", ["openvino"], "onnxruntime", "openvino, the default on an x86-64 CPU, is not"),
        ("aarch64", [], "onnxruntime", "default on a CPU of type aarch64"),
        ("aarch64", ["onnxruntime"], "openvino", "onnxruntime, the default on a CPU of type aarch64, is not"),
    ],
)
def test_auto_chooses_by_what_is_installed_and_says_why(machine, missing, chosen, reason, monkeypatch):
    monkeypatch.setattr(platform, "machine", lambda: machine)
    hide(monkeypatch, *missing)
    choice = choose_runtime()
    assert choice.name == chosen
    assert choice.reason.endswith(reason)


def test_auto_runs_engines_in_tensorrt_and_nothing_else_in_it(monkeypatch):
    monkeypatch.setitem(sys.modules, "tensorrt", types.ModuleType("tensorrt"))
    sys.modules["tensorrt"].__spec__ = importlib.machinery.ModuleSpec("tensorrt", None)
    assert choose_runtime(engine=True) == Choice("tensorrt", "the model is an engine")
    assert choose_runtime("tensorrt", engine=True).reason == "it was asked for"
    assert choose_runtime().name != "tensorrt"
    with pytest.raises(RuntimeUnavailableError, match="received a model of another kind; build one with `convnextpose build`"):
        choose_runtime("tensorrt")
    for other in ("openvino", "onnxruntime", "torch"):
        with pytest.raises(RuntimeUnavailableError, match=f"{other} runs no engines; choose tensorrt"):
            choose_runtime(other, engine=True)
    hide(monkeypatch, *TENSORRT)
    with pytest.raises(RuntimeUnavailableError, match="not installed; pip install"):
        choose_runtime(engine=True)


@pytest.mark.parametrize(
    ("present", "told"), [(("tensorrt",), "tensorrt"), (("tensorrt_rtx",), "tensorrt_rtx"), (TENSORRT, "tensorrt")]
)
def test_either_tensorrt_makes_the_runtime_available(present, told, monkeypatch):
    for name in TENSORRT:
        module = types.ModuleType(name) if name in present else None
        monkeypatch.setitem(sys.modules, name, module)
        if module:
            module.__spec__ = importlib.machinery.ModuleSpec(name, None)
    monkeypatch.setattr(metadata, "version", lambda package: f"1 of {package}")
    found = RUNTIMES["tensorrt"]
    assert found.modules
    assert found.version.startswith(f"{told} 1 of tensorrt")
    assert ("rtx" in found.version) == ("tensorrt_rtx" in present)


def test_an_engine_takes_no_threads(tmp_path, monkeypatch):
    monkeypatch.setitem(sys.modules, "tensorrt", types.ModuleType("tensorrt"))
    sys.modules["tensorrt"].__spec__ = importlib.machinery.ModuleSpec("tensorrt", None)
    with pytest.raises(RuntimeUnavailableError, match="which computes on the GPU, received 2"):
        open_pose_model(tmp_path / "any.engine", threads=2)


def test_a_missing_engine_is_told(tmp_path, monkeypatch):
    monkeypatch.setitem(sys.modules, "tensorrt", types.ModuleType("tensorrt"))
    sys.modules["tensorrt"].__spec__ = importlib.machinery.ModuleSpec("tensorrt", None)
    with pytest.raises(EngineError, match=r"expected an engine at .*none\.engine"):
        open_pose_model(tmp_path / "none.engine")


def test_auto_never_falls_back_to_torch(monkeypatch):
    hide(monkeypatch, "openvino", "onnxruntime")
    with pytest.raises(RuntimeUnavailableError, match="pip install"):
        choose_runtime()


@pytest.mark.parametrize("name", RUNTIMES)
def test_a_runtime_that_was_asked_for_and_is_missing_is_an_error(name, monkeypatch, checkpoint):
    if name == "tensorrt" and not any(map(importlib.util.find_spec, TENSORRT)):
        pytest.skip("no TensorRT is installed")
    assert choose_runtime(name, engine=name == "tensorrt").name == name
    hide(monkeypatch, *(TENSORRT if name == "tensorrt" else (name,)))
    with pytest.raises(RuntimeUnavailableError, match=rf"{name} was asked for and is not installed; pip install "):
        open_pose_model(checkpoint, name)
    assert not RUNTIMES[name].modules
    assert RUNTIMES[name].version is None
    assert RUNTIMES[name].how_to_install.startswith("pip install ")
    others = [found for found in RUNTIMES.values() if found.name not in (name, "tensorrt")]
    assert all(found.modules and found.version for found in others)


def test_a_runtime_that_is_installed_and_does_not_load_is_an_error(tmp_path, exported):
    package = tmp_path / "openvino"
    package.mkdir()
    (package / "__init__.py").write_text("raise ImportError('libtbb.so.12: cannot open shared object file')")
    code = (
        "import sys\n"
        f"sys.path.insert(0, {str(tmp_path)!r})\n"
        "from pathlib import Path\n"
        "from convnextpose.errors import RuntimeUnavailableError\n"
        "from engines.opening import open_pose_model\n"
        f"try: open_pose_model(Path({str(exported.path)!r}), 'openvino')\n"
        "except RuntimeUnavailableError as error: print(error)\n"
    )
    result = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, cwd=ROOT, check=True)
    assert "openvino is installed but does not load: libtbb.so.12" in result.stdout


def test_importing_the_package_loads_no_library():
    modules = sorted(
        ".".join(path.relative_to(ROOT).with_suffix("").parts).removesuffix(".__init__")
        for path in (ROOT / "engines").rglob("*.py")
    )
    assert "engines.sessions.openvino" in modules
    code = (
        "import importlib, sys\n"
        f"for name in {modules!r}: importlib.import_module(name)\n"
        "from engines.sessions.registry import RUNTIMES, choose_runtime\n"
        "[runtime.version for runtime in RUNTIMES.values()], choose_runtime()\n"
        f"print([name for name in {LIBRARIES!r} if name in sys.modules])\n"
    )
    result = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, cwd=ROOT, check=True)
    assert result.stdout.strip() == "[]"


SHIPPED = ModelInfo("xs", Variant.XS, JOINT_SETS["human36m"], "5" * 64)


def deviating(mean_mm, runtime="openvino"):
    return weights.Deviation(0.05, 0.4, mean_mm, 2.0, 0.003, crops=8, runtime=runtime)


@pytest.mark.parametrize(
    ("deviations", "cpu", "runtime", "precision", "chosen", "reason"),
    [
        ({"bf16": deviating(0.3)}, ["fp32", "bf16"], "openvino", "fp32", "bf16", "natively and .* by 0.05 px and 0.3 mm"),
        ({"bf16": deviating(0.3)}, ["fp32", "fp16"], "openvino", "fp32", "fp32", "this CPU does not compute BF16 natively"),
        ({"bf16": deviating(0.3, "torch")}, ["fp32", "bf16"], "openvino", "fp32", "bf16", "in BF16 of torch, in which it"),
        ({"bf16": deviating(0.3, "torch")}, ["fp32"], "openvino", "fp32", "fp32", "this CPU does not compute BF16 natively"),
        ({"bf16": deviating(30.0)}, ["fp32", "bf16"], "openvino", "fp32", "fp32", "differs from FP32 by .* 30 mm .* beyond"),
        ({"bf16": deviating(float("nan"))}, ["fp32", "bf16"], "openvino", "fp32", "fp32", "beyond the limits"),
        ({}, ["fp32", "bf16"], "openvino", "fp32", "fp32", "not proven in BF16"),
        (None, ["fp32", "bf16"], "openvino", "fp32", "fp32", "not proven in BF16"),
        ({"bf16": deviating(0.3)}, ["fp32", "bf16"], "openvino", "fp16", "fp32", "only FP32 models are proven"),
        ({"bf16": deviating(0.3)}, ["fp32", "bf16"], "openvino", "int8", "int8", "made in it"),
        ({"bf16": deviating(0.3)}, ["fp32", "bf16"], "onnxruntime", "fp32", "fp32", "onnxruntime computes in no other"),
        ({"bf16": deviating(0.3)}, ["fp32", "bf16"], "torch", "fp32", "fp32", "torch computes in no other"),
        ({"bf16": deviating(0.3)}, ["fp32", "bf16"], "tensorrt", "fp16", "fp16", "made in it"),
    ],
)  # fmt: skip
def test_auto_takes_a_precision_that_is_native_and_proven(
    deviations, cpu, runtime, precision, chosen, reason, monkeypatch, tmp_path
):
    shipped = weights.Weights("xs", Variant.XS, tmp_path, tmp_path, "", None, deviations or {})
    monkeypatch.setattr("engines.opening.cpu_precisions", lambda: cpu)
    monkeypatch.setattr(weights, "by_checkpoint", lambda sha256: shipped if deviations is not None else None)
    found = choose_precision("auto", runtime, replace(SHIPPED, precision=precision))
    assert found.name == chosen
    assert re.search(reason, found.reason)


def test_a_precision_that_was_asked_for_is_taken_or_an_error(monkeypatch):
    monkeypatch.setattr("engines.opening.cpu_precisions", lambda: ["fp32", "bf16"])
    for precision in ("fp32", "bf16"):
        assert choose_precision(precision, "openvino", SHIPPED) == Choice(precision, "it was asked for")
    for precision, runtime in (("fp16", "openvino"), ("bf16", "onnxruntime"), ("int8", "onnxruntime"), ("int8", "torch")):
        with pytest.raises(RuntimeUnavailableError, match=rf"that {runtime} has on this CPU \(fp32.*received '{precision}'"):
            choose_precision(precision, runtime, SHIPPED)
    for precision, own in (("fp32", "int8"), ("bf16", "int8")):
        with pytest.raises(RuntimeUnavailableError, match=f"expected precision auto or {own}, .*received '{precision}'"):
            choose_precision(precision, "openvino", replace(SHIPPED, precision=own))
    with pytest.raises(ModelError, match=r"an INT8 graph \(of the package's: xs\), received tiny, which has none"):
        choose_precision("int8", "openvino", replace(SHIPPED, name="tiny"))


def test_the_package_s_int8_graph_stands_in_for_its_model(onnx_bytes, exported):
    pytest.importorskip("openvino")
    with open_pose_model(weights.load("xs").onnx, "openvino", precision="int8", name="mine") as model:
        assert (model.info.name, model.info.precision) == ("mine", "int8")
        assert model.describe().precision == "int8+fp32"
    with pytest.raises(ModelError, match="which has none"):
        open_pose_model(onnx_bytes, "openvino", precision="int8")


def test_the_help_text_names_every_runtime_and_what_it_runs():
    text = runtime_help()
    local, served = text.split("; or ")
    assert local == "auto, or openvino and onnxruntime for exported models, torch for checkpoints, tensorrt for engines"
    assert served == "triton://HOST:PORT/NAME for a model that a Triton server has."
    assert all(name in text for name in RUNTIMES)


@pytest.mark.slow
def test_the_speed_of_each_precision_is_measured():
    pytest.importorskip("openvino")
    speeds = measure_precisions()
    assert {speed.precision for speed in speeds} == {"fp32", "int8"} | ({"bf16"} & set(cpu_precisions()))
    assert [speed.is_default for speed in speeds].count(True) == 1
    assert all(speed.alone_ms > 0 and speed.batch_ms > 0 for speed in speeds)
    assert {speed.runs_in for speed in speeds} <= {"fp32", "bf16", "int8+fp32"}
