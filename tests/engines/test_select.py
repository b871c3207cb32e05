"""What is chosen, why, and what is refused: nothing is substituted silently, nothing damaged is opened."""

import platform
import subprocess
import sys
from pathlib import Path

import onnx
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from convnextpose.errors import ModelError, RuntimeUnavailableError
from convnextpose.skeleton import JOINT_SETS
from convnextpose.variants import Variant
from engines.metadata import read_metadata, write_metadata
from engines.runtime import ModelInfo
from engines.select import RUNTIMES, available, choose_runtime, open_runtime

ROOT = Path(__file__).parent.parent.parent
LIBRARIES = ("torch", "onnx", "onnxscript", "onnxruntime", "openvino", "safetensors")

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
    """Make libraries look as if they were not installed."""
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


@settings(max_examples=300)
@given(st.binary(max_size=200))
def test_no_bytes_raise_anything_else(data):
    with pytest.raises(ModelError):
        read_metadata(data, "it")


@pytest.mark.parametrize("content", [b"", b"\x80" * 10**6, bytes(1000), b"PK\x03\x04" + bytes(100)])
def test_other_files_are_refused(content, tmp_path):
    path = tmp_path / "other.onnx"
    path.write_bytes(content)
    with pytest.raises(ModelError, match=r"other\.onnx"):
        open_runtime(path)


def test_a_truncated_model_is_refused(onnx_bytes):
    for size in (len(onnx_bytes) - 1, len(onnx_bytes) // 2, 100):
        with pytest.raises(ModelError, match="cut short"):
            open_runtime(onnx_bytes[:size])


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
        open_runtime(tmp_path / "none.onnx")


def test_names_and_randomness_come_from_the_model_or_the_caller(checkpoint, exported):
    with open_runtime(exported.path) as runtime:
        assert (runtime.model.name, runtime.model.random) == ("tiny", True)
    with open_runtime(exported.path, name="mine") as runtime:
        assert runtime.model.name == "mine"
    with open_runtime(checkpoint, "torch", random=True) as runtime:
        assert (runtime.model.name, runtime.model.random) == ("xs", True)


def test_a_checkpoint_opens_in_any_runtime(checkpoint, crops):
    with open_runtime(checkpoint, name="direct") as runtime:
        assert runtime.model.name == "direct"
        assert not runtime.model.random
        assert len(runtime.run(crops[:2]).scores) == 2


def test_torch_needs_a_checkpoint(exported):
    with pytest.raises(RuntimeUnavailableError, match="torch runs checkpoints"):
        open_runtime(exported.path, "torch")


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"runtime": "tflite"}, "auto, openvino, onnxruntime, torch, received 'tflite'"),
        ({"threads": 0}, "1 thread or more, received 0"),
        ({"runtime": "openvino", "precision": "int3"}, "fp32.*'int3'"),
        ({"runtime": "onnxruntime", "precision": "bf16"}, "fp32.*'bf16'"),
    ],
)
def test_what_no_runtime_does_is_refused(options, message, onnx_bytes):
    with pytest.raises(RuntimeUnavailableError, match=message):
        open_runtime(onnx_bytes, **options)


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


def test_auto_never_falls_back_to_torch(monkeypatch):
    hide(monkeypatch, "openvino", "onnxruntime")
    with pytest.raises(RuntimeUnavailableError, match="pip install"):
        choose_runtime()


@pytest.mark.parametrize("name", RUNTIMES)
def test_a_runtime_that_was_asked_for_and_is_missing_is_an_error(name, monkeypatch, checkpoint):
    assert choose_runtime(name).name == name
    hide(monkeypatch, name)
    with pytest.raises(RuntimeUnavailableError, match=rf"{name} was asked for and is not installed; pip install "):
        open_runtime(checkpoint, name)
    state = {found.name: found for found in available()}
    assert not state[name].installed
    assert state[name].version is None
    assert state[name].what_to_install.startswith("pip install ")
    assert all(found.installed and found.version for found in available() if found.name != name)


def test_a_runtime_that_is_installed_and_does_not_load_is_an_error(tmp_path, exported):
    package = tmp_path / "openvino"
    package.mkdir()
    (package / "__init__.py").write_text("raise ImportError('libtbb.so.12: cannot open shared object file')")
    code = (
        "import sys\n"
        f"sys.path.insert(0, {str(tmp_path)!r})\n"
        "from pathlib import Path\n"
        "from convnextpose.errors import RuntimeUnavailableError\n"
        "from engines.select import open_runtime\n"
        f"try: open_runtime(Path({str(exported.path)!r}), 'openvino')\n"
        "except RuntimeUnavailableError as error: print(error)\n"
    )
    result = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, cwd=ROOT, check=True)
    assert "openvino is installed but does not load: libtbb.so.12" in result.stdout


def test_importing_the_package_loads_no_library():
    modules = sorted(
        ".".join(path.relative_to(ROOT).with_suffix("").parts).removesuffix(".__init__")
        for path in (ROOT / "engines").rglob("*.py")
    )
    assert "engines.runtimes.openvino" in modules
    code = (
        "import importlib, sys\n"
        f"for name in {modules!r}: importlib.import_module(name)\n"
        "from engines.select import available, choose_runtime\n"
        "available(), choose_runtime()\n"
        f"print([name for name in {LIBRARIES!r} if name in sys.modules])\n"
    )
    result = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, cwd=ROOT, check=True)
    assert result.stdout.strip() == "[]"
