"""The installed package: the wheel has every package and its data, nothing else, and runs from any folder."""

import os
import subprocess
import sys
import venv
import zipfile
from pathlib import Path

import pytest

ROOT = Path(__file__).parent.parent
PACKAGES = ("convnextpose", "engines", "pipeline", "tools")


@pytest.fixture(scope="module")
def wheel(tmp_path_factory):
    """The wheel, built from a copy of the tracked files, because a build leaves folders behind."""
    copy, out = tmp_path_factory.mktemp("source"), tmp_path_factory.mktemp("wheel")
    tracked = subprocess.run(["git", "ls-files", "-z"], cwd=ROOT, capture_output=True, check=True, text=True).stdout.split("\0")
    for name in filter(None, tracked):
        if name.startswith(PACKAGES) or "/" not in name:
            (copy / name).parent.mkdir(parents=True, exist_ok=True)
            (copy / name).write_bytes((ROOT / name).read_bytes())
    command = [sys.executable, "-m", "pip", "wheel", "-q", "--no-deps", "--no-build-isolation", "-w", str(out), str(copy)]
    subprocess.run(command, check=True, capture_output=True)
    (built,) = out.glob("*.whl")
    return built


def test_the_wheel_holds_every_package_with_its_data_and_nothing_else(wheel):
    with zipfile.ZipFile(wheel) as archive:
        names = set(archive.namelist())
    for package in PACKAGES:
        for path in (ROOT / package).rglob("*"):
            if path.is_file() and "__pycache__" not in path.parts:
                assert path.relative_to(ROOT).as_posix() in names
    assert {name.split("/")[0] for name in names if ".dist-info" not in name} == set(PACKAGES)
    assert any(name.endswith("licenses/LICENSE") for name in names)


@pytest.mark.slow
def test_the_installed_wheel_runs_the_demo_from_another_folder(wheel, tmp_path):
    """In an empty environment, with only the base install's dependencies."""
    environment = tmp_path / "environment"
    venv.create(environment, with_pip=True)
    python = environment / ("Scripts" if os.name == "nt" else "bin") / "python"
    install = [str(python), "-m", "pip", "install", "-q", "-c", str(ROOT / "constraints.txt"), str(wheel)]
    subprocess.run(install, check=True, capture_output=True)
    headless = [str(python), "-m", "pip", "install", "-q", "-c", str(ROOT / "constraints.txt"), "opencv-python-headless"]
    if subprocess.run([str(python), "-c", "import cv2"], capture_output=True, check=False).returncode:  # a server without libGL
        subprocess.run([str(python), "-m", "pip", "uninstall", "-q", "-y", "opencv-python"], check=True, capture_output=True)
        subprocess.run(headless, check=True, capture_output=True)
    code = (
        "import convnextpose\n"
        "from convnextpose import weights\n"
        "with convnextpose.open_pipeline(convnextpose.RunConfig(weights.DEMO_CLIP, out='results')) as pipeline:\n"
        "    print(sum(len(posed.poses) for posed in pipeline))\n"
        "import sys\n"
        "assert 'torch' not in sys.modules\n"
    )
    result = subprocess.run([str(python), "-c", code], cwd=tmp_path, capture_output=True, text=True, check=False)
    assert result.returncode == 0, result.stderr
    assert result.stdout.strip() == "250"
    assert (tmp_path / "results" / "summary.json").exists()
