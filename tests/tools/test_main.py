"""The command line loads only what a subcommand needs; printing never ends a run, whatever characters names contain."""

from __future__ import annotations

import ast
import importlib
import inspect
import json
import os
import shutil
import subprocess
import sys
from pathlib import Path

import cv2
import numpy as np
import pytest

from convnextpose import weights
from tools.console import make_console, visible
from tools.loading import SWAP_OPENCV, explain, missing_library
from tools.main import COMMANDS

ROOT = Path(__file__).parent.parent.parent


def convnextpose(*arguments, path=(), cwd=ROOT, **environment):
    return subprocess.run(
        [sys.executable, "-m", "tools.main", *map(str, arguments)],
        capture_output=True,
        cwd=cwd,
        env={**os.environ, "PYTHONPATH": os.pathsep.join([*map(str, path), str(ROOT)]), **environment},
        check=False,
    )


@pytest.fixture
def without(tmp_path):
    """A function that makes a folder whose modules fail to load, each for its own reason."""

    def make(**reasons):
        for name, reason in reasons.items():
            (tmp_path / f"{name}.py").write_text(f"raise ImportError({reason!r}, name={name!r})")
        return [tmp_path]

    return make


def lacks(library):
    return f"{library}: cannot open shared object file: No such file or directory"


# Loading


def test_the_list_of_subcommands_loads_none_of_them(without):
    broken = without(
        **{name: lacks("libany.so.1") for name in ("numpy", "cv2", "av", "torch", "onnx", "openvino", "onnxruntime")}
    )
    for arguments in (["--help"], ["doctor", "--help"]):
        result = convnextpose(*arguments, path=broken)
        assert result.returncode == 0, result.stderr.decode()
    listed = convnextpose("--help", path=broken, COLUMNS="200").stdout.decode()
    assert all(name in listed and summary in listed for name, summary in COMMANDS.items())


@pytest.mark.parametrize("name", COMMANDS)
def test_the_list_says_of_each_what_its_own_help_says(name):
    module = importlib.import_module(f"tools.{name.replace('-', '_')}")
    command = getattr(module, f"{name.replace('-', '_')}_command")
    assert " ".join(inspect.getdoc(command).partition("\n\n")[0].split()) == COMMANDS[name]


def test_every_subcommand_is_listed():
    files = {path.stem for path in (ROOT / "tools").glob("*.py")}
    assert {name.replace("-", "_") for name in COMMANDS} == files - {"__init__", "main", "console", "run_console", "loading"}


@pytest.mark.slow
@pytest.mark.parametrize("library", ["libGL.so.1", "libxcb.so.1", "libgthread-2.0.so.0"])
def test_a_library_that_opencv_lacks_is_named_with_what_mends_it(library, without, tmp_path):
    broken = without(cv2=lacks(library))
    result = convnextpose("run", weights.DEMO_CLIP, "--out", tmp_path / "out", path=broken)
    assert result.returncode == 1
    (line,) = result.stderr.decode().splitlines()
    assert line.startswith(f"error: OpenCV cannot be loaded, as the system lacks {library}")
    assert SWAP_OPENCV in line
    result = convnextpose("doctor", "--json", path=broken)
    found = {found["what"]: found for found in json.loads(result.stdout)}
    assert result.returncode == 1
    assert (found["OpenCV"]["state"], found["OpenCV"]["mend"]) == ("broken", SWAP_OPENCV)
    assert library in found["OpenCV"]["found"]
    assert found["weights xs"]["state"] == "ok"
    assert convnextpose("verify", "--help", path=broken).returncode == 0


def test_the_doctor_looks_at_a_machine_without_numpy(without):
    result = convnextpose("doctor", "--json", path=without(numpy=lacks("libgfortran.so.5")))
    found = {found["what"]: found for found in json.loads(result.stdout)}
    assert result.returncode == 1
    assert found["numpy"]["state"] == "broken"
    assert "libgfortran.so.5" in found["numpy"]["found"]


def test_what_is_said_of_libraries():
    assert missing_library(ImportError("Library not loaded: @rpath/libomp.dylib")) == "@rpath/libomp.dylib"
    assert "lacks libavcodec.so.60" in explain(ImportError(lacks("libavcodec.so.60"), name="av._core"))
    assert (
        explain(ModuleNotFoundError("No module named 'av'", name="av")) == "the package av is not installed: `pip install av`"
    )
    assert explain(ModuleNotFoundError("No module named 'cv2'", name="cv2")).endswith("`pip install opencv-python`")
    assert explain(ModuleNotFoundError("No module named 'tools.nothing'", name="tools.nothing")) is None
    assert explain(ImportError("cannot import name 'a' from 'engines'", name="engines")) is None


# Logging


def test_verbose_tells_on_stderr_what_goes_on_and_without_it_the_library_is_silent(tmp_path):
    cv2.imwrite(str(tmp_path / "black.png"), np.zeros((64, 64, 3), np.uint8))
    run = ("run", tmp_path / "black.png", "--formats", "ndjson", "--out")
    told = convnextpose("--verbose", *run, tmp_path / "a").stderr.decode()
    assert "INFO    convnextpose.models: model xs (XS) runs in" in told
    assert "INFO    convnextpose.streams: black.png: open" in told
    assert "INFO" not in convnextpose(*run, tmp_path / "b").stderr.decode()


# Printing


@pytest.mark.slow
@pytest.mark.parametrize("encoding", ["cp1252", "utf-8", "ascii"])
def test_a_name_that_the_terminal_cannot_write(encoding, tmp_path):
    pytest.importorskip("torch")
    name = "модель:x:🙂.safetensors"
    shutil.copy(weights.load("xs").safetensors, tmp_path / name)
    result = convnextpose("verify", tmp_path / name, tmp_path / "нет.pth", PYTHONIOENCODING=encoding)
    assert result.returncode == 1
    assert b"Traceback" not in result.stderr
    assert "1 of 2 verified" in result.stdout.decode(encoding)
    if encoding == "utf-8":
        assert name in result.stdout.decode()


@pytest.mark.skipif(sys.platform != "linux", reason="names of any bytes")
def test_a_name_that_is_no_text(tmp_path):
    path = os.fsencode(tmp_path) + b"/\xff\xfe.pth"
    Path(os.fsdecode(path)).write_bytes(b"nothing")
    result = subprocess.run([sys.executable, "-m", "tools.main", "verify", path], capture_output=True, cwd=ROOT, check=False)
    assert result.returncode == 1
    assert b"0 of 1 verified" in result.stdout and b"Traceback" not in result.stderr


@pytest.mark.parametrize("name", ["a:x:b.mp4", ":smiley:.mp4", "[red]a[/].mp4"])
def test_a_name_is_printed_as_it_is(name):
    from rich.markup import escape

    console = make_console(soft_wrap=True)
    with console.capture() as captured:
        console.print(escape(name))
    assert captured.get() == f"{name}\n"


def test_a_name_commands_no_terminal():
    console = make_console(soft_wrap=True)
    with console.capture() as captured:
        console.print("a\x1b]0;title\x07b\x9b2Jc\u202ed")
    assert captured.get() == "a\\x1b]0;title\\x07b\\x9b2Jc\\u202ed\n"
    assert visible("é\tя\n") == "é\tя\n"


def test_every_console_is_made_in_one_place():
    for path in (ROOT / "tools").glob("*.py"):
        for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
            made = isinstance(node, ast.Call) and isinstance(node.func, ast.Name) and node.func.id == "Console"
            assert not made, f"{path.name}:{node.lineno} makes a console of its own"


# A working directory that was deleted

DELETED = """
import os, sys, tempfile
folder = tempfile.mkdtemp()
os.chdir(folder)
os.rmdir(folder)
from tools.main import main
sys.argv = ["convnextpose", *sys.argv[1:]]
main()
"""


@pytest.mark.skipif(sys.platform == "win32", reason="it deletes no folder that is in use")
def test_a_working_directory_that_was_deleted(tmp_path):
    script = tmp_path / "script.py"  # like the console script: modules are searched for in its own folder
    script.write_text(DELETED)

    def run(*arguments):
        command = [sys.executable, script, *map(str, arguments)]
        return subprocess.run(command, capture_output=True, text=True, env={**os.environ, "PYTHONPATH": str(ROOT)}, check=False)

    picture = tmp_path / "black.png"
    cv2.imwrite(str(picture), np.zeros((64, 64, 3), np.uint8))
    found = run("run", picture, "--out", tmp_path / "out")
    assert found.returncode == 0, found.stderr
    assert (tmp_path / "out" / "poses.ndjson").exists()
    refused = run("verify", weights.load("xs").safetensors)
    assert refused.returncode == 1
    assert "a working directory that was deleted" in refused.stdout + refused.stderr
    assert "FATAL" not in refused.stderr and "Traceback" not in refused.stderr
