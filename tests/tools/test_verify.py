"""`convnextpose verify` shows people and programs the contents of files; its exit code says whether all are intact."""

from __future__ import annotations

import hashlib
import json

import pytest
import typer
from typer.testing import CliRunner

from tools.verify import verify_command

torch = pytest.importorskip("torch")
from convnextpose.network import random_state  # noqa: E402 (it needs torch)
from convnextpose.variants import Variant  # noqa: E402


@pytest.fixture
def run(monkeypatch):
    app = typer.Typer()
    app.command("verify")(verify_command)

    def invoke(*arguments, width=80):
        monkeypatch.setenv("COLUMNS", str(width))
        return CliRunner().invoke(app, [str(argument) for argument in arguments])

    return invoke


@pytest.fixture(scope="module")
def files(xs_state, published, tmp_path_factory):
    """An XS, an S under the name of an L, and an XS without one of its tensors."""
    folder = tmp_path_factory.mktemp("files")
    published(folder / "ConvNeXtPose_XS.tar", xs_state, optimizer=False)
    published(folder / "ConvNeXtPose_L [1].tar", random_state(Variant.S), numbered=True, optimizer=False)
    broken = {name: tensor for name, tensor in xs_state.items() if name != "backbone.norm.weight"}
    published(folder / "broken.pth", broken, optimizer=False)
    return folder


def row(output, label):
    """The cells of the first row that starts with the label."""
    line = next(line for line in output.splitlines() if line.strip().startswith(label))
    return line.strip().removeprefix(label).split()


@pytest.mark.parametrize("width", [80, 120])
def test_files_side_by_side(width, files, run):
    good, misnamed = files / "ConvNeXtPose_XS.tar", files / "ConvNeXtPose_L [1].tar"
    result = run(good, misnamed, width=width)
    assert result.exit_code == 0
    assert row(result.output, "variant") == ["XS", "S"]
    assert row(result.output, "trainable") == ["3,528,008", "7,438,976"]
    assert row(result.output, "state dict") == ["3,534,140", "7,448,954"]
    assert row(result.output, "backbone") == ["Atto", "Femto-L"]
    assert row(result.output, "blocks") == ["2,2,6,2", "3,3,9,3"]
    assert row(result.output, "channels") == ["40,80,160,320", "48,96,192,384"]
    assert row(result.output, "head kernels") == ["3x3,3x3,3x3"] * 2
    assert row(result.output, "active, %") == ["100,100,100"] * 2
    assert row(result.output, "upsampling") == ["x2,x2,none"] * 2
    assert row(result.output, "keys") == ["named", "numbered"]
    assert row(result.output, "heat-map") == ["32x32", "32x32"]
    assert row(result.output, "depth bins") == ["32", "32"]
    assert row(result.output, "joints") == ["18", "human36m"] * 2
    assert row(result.output, "paper MPJPE") == ["56.61", "mm", "51.80", "mm"]
    for file in (good, misnamed):
        assert f"{hashlib.sha256(file.read_bytes()).hexdigest()}  {file}" in result.output
    assert "[1].tar" in result.output  # not taken for markup
    assert f"WRONG NAME  {misnamed}: its name says L, but its tensors are those of S" in result.output
    assert "2 of 2 verified" in result.output


@pytest.mark.parametrize("width", [40, 80])
def test_no_table_is_wider_than_the_terminal(width, files, run):
    output = run(*[files / "ConvNeXtPose_XS.tar"] * 5, width=width).output
    table = [line for line in output.splitlines() if not line.endswith(".tar") or line.startswith(" ")]
    assert max(map(len, table)) <= width
    assert sum(line.split()[1:].count("XS") for line in table if line.strip().startswith("variant")) == 5


def test_a_bad_file_does_not_hide_the_others(files, run):
    result = run(files / "broken.pth", files / "ConvNeXtPose_XS.tar", files / "nothing.tar")
    assert result.exit_code == 1
    assert row(result.output, "variant") == ["XS"]
    assert "missing tensors (1): backbone.norm.weight (expected [320], received nothing)" in result.output
    assert f"REFUSED  expected a checkpoint at {files / 'nothing.tar'}, but there is no such file" in result.output
    assert "1 of 3 verified" in result.output


def test_only_bad_files(files, run):
    result = run(files / "broken.pth")
    assert result.exit_code == 1
    assert "0 of 1 verified" in result.output


def test_json(files, run):
    result = run("--json", files / "ConvNeXtPose_L [1].tar", files / "broken.pth")
    assert result.exit_code == 1
    misnamed, broken = json.loads(result.output)
    assert (misnamed["verified"], misnamed["error"]) == (True, None)
    assert (misnamed["variant"], misnamed["name_claims"], misnamed["trainable_parameters"]) == ("S", "L", 7_438_976)
    assert misnamed["blocks"] == [3, 3, 9, 3]
    assert misnamed["head"][2] == {"kernel": 3, "channels": 256, "active_percent": 100.0, "upsamples": False}
    assert broken["file"] == str(files / "broken.pth")
    assert broken["verified"] is False
    assert "missing tensors" in broken["error"]


@pytest.mark.parametrize(("variant", "code"), [("XS", 0), ("xs", 0), ("S", 1)])
def test_the_variant_that_the_caller_names(variant, code, files, run):
    result = run(files / "ConvNeXtPose_XS.tar", "--variant", variant)
    assert result.exit_code == code
    assert ("expected S, as requested, received XS" in result.output) == (code == 1)


@pytest.mark.parametrize("arguments", [[], ["m.pth", "--variant", "XL"], ["m.pth", "--nonsense"]])
def test_wrong_use(arguments, run):
    assert run(*arguments).exit_code == 2
