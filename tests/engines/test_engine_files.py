"""Messages of a machine without a GPU about a real engine, intact or damaged."""

import io
from contextlib import redirect_stderr, redirect_stdout
from dataclasses import replace
from pathlib import Path

import pytest

from convnextpose.errors import EngineError, RuntimeUnavailableError
from engines import manifest as manifests
from engines.sessions import engine_file
from engines.sessions.engine_file import open_engine
from engines.sessions.tensorrt import TensorRTSession
from engines.tensorrt.device_cuda import CudaDevice
from engines.tensorrt.gpu import binding_installed
from engines.tensorrt.module import load_library
from tests.engines.manifests import manifest_of
from tests.engines.memory_gpu import Driver


@pytest.fixture(scope="module")
def real_engine(exported, tmp_path_factory):
    """An engine that TensorRT-RTX built from XS with random weights, with its manifest."""
    pytest.importorskip("tensorrt_rtx", reason="building an engine without a GPU needs TensorRT-RTX")
    from engines.precision import to_fp16
    from engines.tensorrt.builder import build_engine

    library = load_library("tensorrt_rtx")
    built = build_engine(to_fp16(exported.path.read_bytes()), library, "8.9")
    path = tmp_path_factory.mktemp("engines") / "tiny.engine"
    path.write_bytes(built.data)
    made = manifest_of(
        built.data, library=library.name, library_version=library.version, compute_capabilities=built.compute_capabilities
    )
    manifests.path_of(path).write_text(made.to_json())
    return path


@pytest.fixture
def copied(real_engine, tmp_path):
    path = tmp_path / "mine.engine"
    path.write_bytes(real_engine.read_bytes())
    manifests.path_of(path).write_bytes(manifests.path_of(real_engine).read_bytes())
    return path


def test_a_real_engine_without_a_gpu_is_told_in_a_sentence(real_engine, no_gpu):
    if not binding_installed("cuda-python"):
        pytest.skip("cuda-python is not installed")
    with pytest.raises(RuntimeUnavailableError, match=r"no NVIDIA driver was found|finds no GPU") as told:
        open_engine(real_engine)
    assert "\n" not in str(told.value)


def test_tensorrt_itself_prints_why_it_does_not_load_an_engine_without_a_gpu(real_engine, no_gpu, capfd):
    """The real library on a simulated GPU: the reason for its refusal, which it prints without using Python."""
    data, found = real_engine.read_bytes(), manifests.load(real_engine)
    device = CudaDevice(Driver(), "cuda-python in memory")
    python = io.StringIO()
    refused = pytest.raises((EngineError, RuntimeUnavailableError), match=r"it printed the reason above|does not start")
    with redirect_stdout(python), redirect_stderr(python), refused as told:
        TensorRTSession(data, found, load_library("tensorrt_rtx"), device)
    assert "\n" not in str(told.value)
    printed = "".join(capfd.readouterr())
    assert "CUDA driver version is insufficient" in printed
    assert python.getvalue() == ""


def test_a_truncated_engine_is_told_before_the_gpu_is_asked(copied):
    copied.write_bytes(copied.read_bytes()[:-100])
    with pytest.raises(
        EngineError, match=r"mine\.engine: expected an engine of .* cut short or replaced; .*convnextpose build"
    ):
        open_engine(copied)


def test_a_changed_engine_is_told(copied):
    data = bytearray(copied.read_bytes())
    data[len(data) // 2] ^= 1
    copied.write_bytes(data)
    with pytest.raises(EngineError, match=r"expected an engine with SHA-256 .* convnextpose build|changed or replaced"):
        open_engine(copied)


def test_an_edited_manifest_is_told(copied):
    path = manifests.path_of(copied)
    path.write_text(path.read_text().replace('"8.9"', '"9.0"'))
    with pytest.raises(EngineError, match="manifest was edited"):
        open_engine(copied)


@pytest.mark.parametrize("missing", ["engine", "manifest"])
def test_half_an_engine_is_told(copied, missing):
    (copied if missing == "engine" else manifests.path_of(copied)).unlink()
    with pytest.raises(EngineError, match=f"expected (an|the) {missing}.*there is no such file"):
        open_engine(copied)


def test_an_engine_of_a_library_that_is_not_here_names_the_library(copied, monkeypatch):
    found = manifests.load(copied)
    manifests.path_of(copied).write_text(replace(found, library="tensorrt").to_json())
    monkeypatch.setattr(engine_file, "open_device", lambda binding: CudaDevice(Driver(), "in memory"))
    if load_or_none("tensorrt"):
        pytest.skip("both families are here")
    with pytest.raises(EngineError, match="library: the engine was built by tensorrt, this machine has tensorrt_rtx"):
        open_engine(copied)


def load_or_none(name):
    try:
        return load_library(name)
    except RuntimeUnavailableError:
        return None


def test_paths_are_paths(copied):
    with pytest.raises(EngineError, match=r"expected an engine at .*nowhere\.engine"):
        open_engine(Path("nowhere.engine"))
