"""`make gpu-check` runs without `av` and OpenVINO, keeps its time limits, and reports failures. Here on the CPU."""

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

from tests.cases import fast_first
from tests.gpu import check

ROOT = Path(__file__).parent.parent

BLOCK = """
import sys

class Blocked:
    def find_spec(self, name, path=None, target=None):
        if name.split(".")[0] in ("av", "openvino"):
            raise ModuleNotFoundError(f"No module named {name!r}", name=name)

sys.meta_path.insert(0, Blocked())
"""


@pytest.fixture
def without(tmp_path):
    """The environment for a process, and its child processes, in which neither `av` nor OpenVINO can be imported."""
    folder = tmp_path / "block"
    folder.mkdir()
    (folder / "sitecustomize.py").write_text(BLOCK)
    return {**os.environ, "PYTHONPATH": str(folder), "OMP_NUM_THREADS": "1"}


def run_check(environment, out, *arguments):
    command = [sys.executable, "-m", "tests.gpu.check", "--device", "cpu", "--out", str(out), *arguments]
    done = subprocess.run(command, env=environment, cwd=ROOT, capture_output=True, text=True, check=False)
    return done.returncode, json.loads((out / "gpu-check.json").read_text()), done.stdout + done.stderr


def test_what_needs_no_torch(without, tmp_path):
    code, found, told = run_check(without, tmp_path / "out", "--only", "machine,device,runtime")
    parts = found["parts"]
    assert {name: part["state"] for name, part in parts.items()} == dict.fromkeys(("machine", "device", "runtime"), "passed"), (
        told
    )
    assert code == 0
    assert "GPU in memory" in parts["machine"]["figures"]["gpu"]
    assert "GPU in memory" in told
    assert parts["runtime"]["figures"]["8 crops"]["runs_as_graphs"] > 0.5
    assert sorted(path.name for path in (tmp_path / "out").iterdir()) == ["gpu-check.json", "gpu-check.log"]
    assert "=== runtime" in (tmp_path / "out" / "gpu-check.log").read_text()


@pytest.mark.slow
def test_every_part_runs_on_the_cpu(without, tmp_path):
    pytest.importorskip("torch")
    _, found, told = run_check(without, tmp_path / "out", "--minutes", "20")
    states = {name: part["state"] for name, part in found["parts"].items()}
    assert states.pop("tensorrt") == "left out", told
    # torch also compiles on the CPU if there is a compiler, but that may exceed any time limit.
    states.pop("compiled")
    assert set(states.values()) == {"passed"}, told
    assert set(check.LIMITS_S) == found["parts"].keys()


def test_a_part_that_takes_too_long_is_ended_and_one_that_breaks_is_told(monkeypatch, tmp_path, capsys):
    monkeypatch.setattr(check, "LIMITS_S", {"device": 0.05, "nonsense": 20, "machine": 20})
    assert check.main(["--device", "cpu", "--out", str(tmp_path)]) == 1
    parts = json.loads((tmp_path / "gpu-check.json").read_text())["parts"]
    assert parts["device"]["state"] == "timed out"
    assert parts["nonsense"]["state"] == "failed"
    assert "KeyError" in parts["nonsense"]["error"]
    assert parts["machine"]["state"] == "passed"
    assert "Traceback" in (tmp_path / "gpu-check.log").read_text()
    assert "timed out" in capsys.readouterr().out


def test_without_time_nothing_begins(tmp_path):
    assert check.main(["--device", "cpu", "--out", str(tmp_path), "--minutes", "0.01", "--only", "device"]) == 0
    part = json.loads((tmp_path / "gpu-check.json").read_text())["parts"]["device"]
    assert (part["state"], part["error"]) == ("left out", "no time was left")


@pytest.mark.parametrize(
    ("arguments", "code", "told"),
    fast_first(
        [
            (("run", "clip.mp4", "--out", "nowhere"), 1, "the package av is not installed: `pip install av`"),
            (("build", "--help"), 0, "--precision"),
            (("doctor",), 1, "pip install av"),
            (("verify", "convnextpose/weights/xs.safetensors"), 0, "XS"),
            (("bench-engine", "--help"), 0, "--no-compile"),
            (("calibrate", "--help"), 1, "the package av is not installed"),
        ],
        fast=2,
    ),
)
def test_commands_need_only_what_they_use(without, arguments, code, told):
    """One that needs `av` says so in a sentence; the others work."""
    command = [sys.executable, "-m", "tools.main", *arguments]
    done = subprocess.run(command, env={**without, "COLUMNS": "200"}, cwd=ROOT, capture_output=True, text=True, check=False)
    said = done.stdout + done.stderr
    assert done.returncode == code, said
    assert told in said
    assert "Traceback" not in said
