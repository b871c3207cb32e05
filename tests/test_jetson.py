"""The Jetson image, as far as it can be tested without a board: what it copies, installs and refuses."""

import importlib.util
import re
import shutil
import subprocess
import sys
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

if sys.version_info >= (3, 11):
    import tomllib
else:
    import tomli as tomllib

ROOT = Path(__file__).parent.parent
DOCKERFILE = ROOT / "Dockerfile.jetson"
DESKTOP = ROOT / "Dockerfile"
PROJECT = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))
DEMO = ROOT / "convnextpose" / "weights" / "demo.mp4"


@pytest.fixture(scope="module")
def jetson():
    """The script that the image runs, as a module."""
    spec = importlib.util.spec_from_file_location("jetson_script", ROOT / ".ci" / "jetson.py")
    module = importlib.util.module_from_spec(spec)
    sys.modules[spec.name] = module
    spec.loader.exec_module(module)
    return module


def instructions(file=DOCKERFILE):
    """A Dockerfile's instructions: each its name and the rest of its line, continued lines joined."""
    text = re.sub(r"^\s*#.*\n", "", file.read_text(encoding="utf-8"), flags=re.MULTILINE).replace("\\\n", " ")
    return [tuple(line.split(None, 1)) for line in text.splitlines() if line.strip()]


def copied(file=DOCKERFILE):
    return [source for name, rest in instructions(file) if name == "COPY" for source in rest.split()[:-1]]


@pytest.mark.parametrize("file", [DOCKERFILE, DESKTOP], ids=lambda file: file.name)
def test_hadolint_has_no_complaint(file):
    hadolint = shutil.which("hadolint", path=str(Path(sys.executable).parent)) or shutil.which("hadolint")
    if hadolint is None:
        pytest.skip("hadolint is not installed")
    result = subprocess.run([hadolint, str(file)], capture_output=True, text=True, check=False)
    assert result.returncode == 0, result.stdout


def test_what_it_copies_is_there_and_reaches_the_build():
    ignore = (ROOT / ".dockerignore").read_text(encoding="utf-8").splitlines()
    rules = [rule for rule in ignore if rule and not rule.startswith("#")]
    assert rules[0] == "*"
    assert {rule[1:] for rule in rules if rule.startswith("!")} == set(copied())
    assert all((ROOT / source).exists() for source in copied())


def test_csi_cameras_have_their_gstreamer_process():
    installed = " ".join(rest for name, rest in instructions() if name == "RUN")
    assert all(f"gstreamer1.0-{part}" in installed for part in ("tools", "plugins-base", "plugins-good", "plugins-bad"))


@pytest.mark.parametrize("file", [DOCKERFILE, DESKTOP], ids=lambda file: file.name)
def test_an_image_looks_after_itself(file):
    assert dict(instructions(file))["HEALTHCHECK"].endswith('CMD ["convnextpose", "doctor"]')


def test_the_desktop_image_runs_as_a_user():
    found = dict(instructions(DESKTOP))
    assert int(found["USER"]) > 0
    assert found["ENTRYPOINT"] == '["convnextpose"]'
    assert set(copied(DESKTOP)) == set(copied()) - {".ci/jetson.py"}
    extras = re.findall(r"EXTRA=([\w,-]+)", DESKTOP.read_text(encoding="utf-8"))
    assert {name for extra in extras for name in extra.split(",")} <= set(PROJECT["project"]["optional-dependencies"])
    asked = " ".join(rest for name, rest in instructions(DESKTOP) if name == "RUN")
    assert "opencv-python-headless" in (ROOT / "constraints.txt").read_text() and "uninstall -y opencv-python " in asked


def test_every_package_is_copied_and_installed():
    setup = PROJECT["tool"]["setuptools"]
    tops = {package.split(".")[0] for package in setup["packages"]}
    assert tops <= set(copied())
    installed = {ROOT / package.replace(".", "/") / "__init__.py" for package in setup["packages"]}
    for top, patterns in setup["package-data"].items():
        installed |= {file for pattern in patterns for file in (ROOT / top).glob(pattern)}
    assert {file for top in tops for file in (ROOT / top).rglob("__init__.py")} <= installed


def test_its_entry_point_is_the_console_script():
    assert dict(instructions())["ENTRYPOINT"] == '["convnextpose"]'
    assert "convnextpose" in PROJECT["project"]["scripts"]


def test_pip_is_told_what_to_install_in_one_place_only():
    asked = [
        command for name, rest in instructions() if name == "RUN" for command in rest.split("&&") if "pip install" in command
    ]
    assert [command.split() for command in asked] == [
        ["pip", "install", "--no-deps", "."],
        ["pip", "install", "-r", "/tmp/pip/requirements.txt", "-c", "/tmp/pip/constraints.txt"],
    ]


def test_the_script_writes_what_pip_reads(tmp_path):
    script = [sys.executable, str(ROOT / ".ci" / "jetson.py"), "requirements", "--cuda", "12", str(tmp_path / "pip")]
    assert subprocess.run(script, cwd=tmp_path, check=False).returncode == 0
    assert {path.name for path in (tmp_path / "pip").iterdir()} == {"requirements.txt", "constraints.txt"}


def test_everything_but_the_systems_own_is_installed(jetson):
    found = {jetson.package_name(line) for line in jetson.requirements()}
    wanted = [*PROJECT["project"]["dependencies"], *PROJECT["project"]["optional-dependencies"]["tensorrt"]]
    assert found == {jetson.package_name(line) for line in wanted} - set(jetson.SYSTEM)
    assert not {"opencv-python", "opencv-python-headless", "tensorrt", "torch"} & found
    assert all("extra" not in line for line in jetson.requirements())


def test_versions_are_the_pinned_ones_where_the_system_does_not_decide(jetson):
    for board in jetson.BOARDS:
        lines = jetson.constraints(board.cuda)
        names = [jetson.package_name(line) for line in lines]
        assert "numpy<2" in lines and names.count("numpy") == 1
        assert f"cuda-python=={board.cuda}.*" in lines
        assert not [name for name in names if name.startswith("opencv")]
        pins = [line for line in jetson.CONSTRAINTS.read_text(encoding="utf-8").splitlines() if line and line[0] != "#"]
        assert {jetson.package_name(line) for line in pins if line not in lines} == set(jetson.UNPINNED)


GOOD = {
    "cv2_file": "/usr/lib/python3.10/dist-packages/cv2/__init__.py",
    "build_information": "  Video I/O:\n    GStreamer:                   YES (1.20.3)\n",
    "tensorrt_file": "/usr/lib/python3.10/dist-packages/tensorrt/__init__.py",
    "numpy_version": "1.26.4",
    "prefix": "/opt/convnextpose",
}


def test_a_good_image_has_no_fault(jetson):
    assert jetson.image_faults(**GOOD) == []


@pytest.mark.parametrize(
    ("changed", "told"),
    [
        ({"cv2_file": "/opt/convnextpose/lib/python3.10/site-packages/cv2/__init__.py"}, "pip's"),
        ({"build_information": "    GStreamer:                   NO\n"}, "GStreamer"),
        ({"build_information": ""}, "GStreamer"),
        ({"tensorrt_file": None}, "found none"),
        ({"tensorrt_file": "/opt/convnextpose/lib/python3.10/site-packages/tensorrt/__init__.py"}, "pip's"),
    ],
)
def test_each_fault_is_told(jetson, changed, told):
    (fault,) = jetson.image_faults(**{**GOOD, **changed})
    assert told in fault


@given(st.integers(0, 12), st.integers(0, 40))
def test_numpy_2_and_later_are_refused(jetson, major, minor):
    assert bool(jetson.image_faults(**{**GOOD, "numpy_version": f"{major}.{minor}.0rc1"})) == (major >= 2)


def test_pips_opencv_is_refused(jetson):
    # This environment's own OpenCV, installed by pip: the fault that the check exists for.
    import cv2

    if "site-packages" not in str(cv2.__file__):
        pytest.skip("OpenCV is the system's here")
    faults = jetson.image_faults(**{**GOOD, "cv2_file": cv2.__file__, "prefix": sys.prefix})
    assert any("pip's" in fault for fault in faults)
    result = subprocess.run(
        [sys.executable, str(ROOT / ".ci" / "jetson.py"), "image"], capture_output=True, text=True, check=False
    )
    assert result.returncode == 1
    assert "expected the system's OpenCV" in result.stderr


def test_the_default_job_runs_on_another_cpu_without_torch_or_openvino():
    pytest.importorskip("onnxruntime")
    code = (
        "import platform, sys\n"
        "platform.machine = lambda: 'aarch64'\n"
        "for name in ('torch', 'openvino', 'onnx', 'onnxscript', 'safetensors', 'tensorrt', 'tensorrt_rtx', 'cuda'):\n"
        "    sys.modules[name] = None\n"
        "from pathlib import Path\n"
        "from pipeline.run import RunConfig, open_pipeline\n"
        f"with open_pipeline(RunConfig(Path({str(DEMO)!r}), threads=2)) as poses:\n"
        "    for frame in poses:\n"
        "        print(poses.header.runtime.name, len(frame.poses))\n"
        "        if frame.frame.index == 3:\n"
        "            break\n"
    )
    result = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, cwd=ROOT, check=False)
    assert result.returncode == 0, result.stderr
    assert result.stdout.splitlines() == ["onnxruntime 1"] * 4
