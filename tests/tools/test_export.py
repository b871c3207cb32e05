"""`convnextpose export` from a checkpoint on disk to a file that runs."""

import hashlib

import pytest

torch = pytest.importorskip("torch", reason="checkpoints need torch")
pytest.importorskip("onnx", reason="exporting needs onnx")

from convnextpose.network import random_state  # noqa: E402
from convnextpose.variants import Variant  # noqa: E402
from engines.opening import open_pose_model  # noqa: E402
from engines.parity import noise_crops  # noqa: E402


@pytest.fixture(scope="module")
def checkpoint(tmp_path_factory):
    """A checkpoint as the authors save them: with `module.` and the optimizer's state."""
    path = tmp_path_factory.mktemp("checkpoint") / "ConvNeXtPose_XS.tar"
    state = {f"module.{name}": tensor for name, tensor in random_state(Variant.XS).items()}
    torch.save({"epoch": 1, "network": state, "optimizer": {}}, path)
    return path


def test_it_writes_a_file_that_runs_and_says_what_it_wrote(cli, checkpoint, tmp_path):
    out = tmp_path / "my model.onnx"
    code, text, _ = cli("export", checkpoint, "--out", out)
    assert code == 0
    assert str(out) in text
    assert "nodes" in text
    assert hashlib.sha256(out.read_bytes()).hexdigest() in text
    assert "agrees with torch" in text
    with open_pose_model(out) as runtime:
        assert runtime.info.name == "my model"
        assert runtime.info.checkpoint_sha256 == hashlib.sha256(checkpoint.read_bytes()).hexdigest()
        assert runtime.run(noise_crops(1)).joints.shape == (1, 18, 3)


def test_it_keeps_what_is_there(cli, checkpoint, tmp_path):
    out = tmp_path / "model.onnx"
    out.write_text("mine")
    code, text, error = cli("export", checkpoint, "--out", out)
    assert (code, text) == (1, "")
    assert "exists already" in error
    assert out.read_text() == "mine"


def test_something_else_is_one_line_and_exit_code_1(cli, tmp_path):
    path = tmp_path / "notes.txt"
    path.write_text("no checkpoint")
    code, _, error = cli("export", path, "--out", tmp_path / "model.onnx")
    assert code == 1
    assert "notes.txt" in error
    assert "Traceback" not in error
    assert [found.name for found in tmp_path.iterdir()] == ["notes.txt"]


@pytest.mark.parametrize("arguments", [["a.tar"], ["--out", "b.onnx"], ["a.tar", "--out", "b.onnx", "--unknown"]])
def test_wrong_use_is_exit_code_2(cli, arguments):
    assert cli("export", *arguments)[0] == 2
