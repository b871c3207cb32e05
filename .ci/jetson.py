"""The packages that the Jetson image installs beside its system's OpenCV and TensorRT, and checks of both.

    python .ci/jetson.py requirements --cuda 12 FOLDER   in the image: FOLDER/requirements.txt and constraints.txt for pip
    python .ci/jetson.py image                           in the image: are OpenCV, TensorRT and NumPy what the code needs?
    python .ci/jetson.py wheels                          anywhere, with uv: does every package have a wheel for the boards?

Exit codes: 0 all is well, 1 it is not, 2 wrong use. Run by Dockerfile.jetson and by maintainers; not installed.
"""

from __future__ import annotations

import argparse
import importlib.util
import re
import subprocess
import sys
import tempfile
from collections.abc import Sequence
from dataclasses import dataclass
from importlib import metadata
from pathlib import Path

CONSTRAINTS = Path(__file__).parent.parent / "constraints.txt"

EXTRAS = ("tensorrt",)
"""The extras of the image in addition to the base install."""

SYSTEM = ("opencv-python", "tensorrt")
"""Requirements that the image's system provides: pip does not install them."""

NUMPY = "numpy<2"
"""JetPack's and Ubuntu's OpenCV were built against NumPy 1 and do not load with 2."""

UNPINNED = ("numpy", "ml-dtypes", "opencv-python", "opencv-python-headless")
"""Packages whose pinned versions do not fit the system: the OpenCVs, NumPy, and a package that needs NumPy 2."""


@dataclass(frozen=True)
class Board:
    """A system that the image is built for.

    Attributes:
        name: its name.
        python: its Python's version.
        platform: uv's name of its processor and C library.
        cuda: its CUDA's major version.
    """

    name: str
    python: str
    platform: str
    cuda: int


BOARDS = (
    Board("JetPack 6", "3.10", "aarch64-manylinux_2_35", 12),
    Board("JetPack 7", "3.12", "aarch64-manylinux_2_39", 13),
)


def requirements(extras: Sequence[str] = EXTRAS) -> list[str]:
    """The packages that pip installs: the project's requirements from its metadata, without those that the system provides."""
    found = []
    for line in metadata.requires("convnextpose") or []:
        requirement, _, marker = (part.strip() for part in line.partition(";"))
        extra = re.fullmatch(r"extra == [\"'](.*)[\"']", marker)
        if "extra" in marker and (extra is None or extra[1] not in extras):
            continue
        if package_name(requirement) not in SYSTEM:
            found.append(requirement if extra or not marker else line)
    return found


def constraints(cuda: int) -> list[str]:
    """The versions for pip: those of constraints.txt, except for packages that must fit the system."""
    pinned = [line for line in CONSTRAINTS.read_text(encoding="utf-8").splitlines() if line and not line.startswith("#")]
    return [*(line for line in pinned if package_name(line) not in UNPINNED), NUMPY, f"cuda-python=={cuda}.*"]


def package_name(requirement: str) -> str:
    """The name in a requirement: `opencv-python` for `opencv-python>=4.10`."""
    return re.split(r"[^A-Za-z0-9._-]", requirement, maxsplit=1)[0].lower()


def image_faults(
    cv2_file: str, build_information: str, tensorrt_file: str | None, numpy_version: str, prefix: str
) -> list[str]:
    """The faults of an image, one sentence each.

    Args:
        cv2_file: where OpenCV was loaded from.
        build_information: OpenCV's description of its build.
        tensorrt_file: where TensorRT would be loaded from; None if it is missing.
        numpy_version: NumPy's version.
        prefix: the environment that pip installs into.
    """
    faults = []
    if Path(cv2_file).is_relative_to(prefix):
        faults.append(f"expected the system's OpenCV, found pip's in {cv2_file}: something requires an opencv package")
    if not re.search(r"GStreamer: +YES", build_information):
        faults.append(f"expected an OpenCV with GStreamer, {cv2_file} has none: install another OpenCV in the base image")
    if tensorrt_file is None:
        faults.append("expected the system's TensorRT, found none: choose a base image that has it for its own Python")
    elif Path(tensorrt_file).is_relative_to(prefix):
        faults.append(f"expected the system's TensorRT, found pip's in {tensorrt_file}: something requires a tensorrt package")
    if int(numpy_version.split(".")[0]) >= 2:
        faults.append(f"expected {NUMPY}, which the system's OpenCV was built against, found {numpy_version}")
    return faults


def check_image() -> int:
    """Check the running Python. TensorRT is located, not loaded: loading needs libraries that only a board provides."""
    import cv2
    import numpy as np

    tensorrt = importlib.util.find_spec("tensorrt")
    origin = tensorrt.origin if tensorrt else None
    faults = image_faults(str(cv2.__file__), cv2.getBuildInformation(), origin, np.__version__, sys.prefix)
    for fault in faults:
        print(f"error: {fault}", file=sys.stderr)
    if not faults:
        print(f"OpenCV {cv2.__version__} in {cv2.__file__}, TensorRT in {origin}, NumPy {np.__version__}")
    return 1 if faults else 0


def write_requirements(folder: Path, cuda: int, extras: Sequence[str] = EXTRAS) -> int:
    """Write the two files for pip."""
    folder.mkdir(parents=True, exist_ok=True)
    for name, lines in (("requirements.txt", requirements(extras)), ("constraints.txt", constraints(cuda))):
        (folder / name).write_text("".join(f"{line}\n" for line in lines), encoding="utf-8")
    return 0


def check_wheels() -> int:
    """Resolve the image's packages against the package index, for each board, with wheels only."""
    failed = False
    for board in BOARDS:
        with tempfile.TemporaryDirectory() as folder:
            write_requirements(Path(folder), board.cuda)
            resolve = [
                *("uv", "pip", "compile", "-q", "--no-header", "--no-annotate", "--only-binary", ":all:"),
                *("--python-version", board.python, "--python-platform", board.platform),
                *("-c", f"{folder}/constraints.txt", f"{folder}/requirements.txt"),
            ]
            done = subprocess.run(resolve, capture_output=True, text=True, check=False)
        chosen = done.stdout.split()
        foreign = [pin for pin in chosen if package_name(pin).startswith(("opencv", "tensorrt", "torch", "openvino"))]
        failed = failed or done.returncode != 0 or bool(foreign)
        print(f"{board.name} (Python {board.python}, {board.platform}): {len(chosen)} wheels")
        print("".join(f"    {line}\n" for line in chosen or done.stderr.splitlines()), end="")
        for pin in foreign:
            print(f"error: {pin} has no place in the image", file=sys.stderr)
    return 1 if failed else 0


def main() -> int:
    """Parse the command line and run one command."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    commands = parser.add_subparsers(dest="command", required=True)
    written = commands.add_parser("requirements", help="write requirements.txt and constraints.txt for pip")
    written.add_argument("folder", type=Path)
    written.add_argument("--cuda", type=int, required=True, help="the image's CUDA, its major version")
    written.add_argument("--extra", action="append", default=list(EXTRAS), help="an extra to install beside tensorrt: build")
    commands.add_parser("image", help="check the image's OpenCV, TensorRT and NumPy")
    commands.add_parser("wheels", help="check that there is a wheel of everything for the boards; needs uv")
    given = parser.parse_args()
    if given.command == "requirements":
        return write_requirements(given.folder, given.cuda, given.extra)
    return check_image() if given.command == "image" else check_wheels()


if __name__ == "__main__":
    sys.exit(main())
