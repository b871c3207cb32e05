"""What a kind of input is, and what several of them share: whole runs of the command line, the network opened once."""

from __future__ import annotations

import importlib
import io
import sys
from contextlib import redirect_stderr, redirect_stdout, suppress
from pathlib import Path
from random import Random
from typing import Any, Protocol

import numpy as np

import pipeline.models
import tools.main
from convnextpose import weights
from engines.opening import open_people_detector, open_pose_model


class Kind(Protocol):
    """A kind of input."""

    def prepare(self) -> str | None:
        """Make what all cases start from, or say why it cannot be made here. Called once, before the first fork."""
        ...

    def read(self, random: Random, folder: Path) -> object:
        """Make a spoilt input in an empty folder, where the process is, and have the project read it."""
        ...


def command(*arguments: object) -> None:
    """Run the command line in this process; it ends with SystemExit."""
    sys.argv = ["convnextpose", *map(str, arguments)]
    tools.main.main()


def run_on(source: object, *options: object) -> None:
    """`convnextpose run` with the network that is open already."""
    command("run", source, "--out", "results", "--runtime", "onnxruntime", "--threads", 1, *options)


def import_all() -> None:
    """Import what the command line does, also what it imports when it prints, so that no child has to."""
    for name in tools.main.COMMANDS:
        importlib.import_module(f"tools.{name.replace('-', '_')}")
    lines = (
        ["--help"],
        ["run"],
        ["verify", "missing"],
        ["engine", "inspect", "missing"],
        ["calibrate", "missing", "--out", "x.npz"],
    )
    for arguments in lines:
        with suppress(SystemExit), redirect_stdout(io.StringIO()), redirect_stderr(io.StringIO()):
            command(*arguments)


_warm: dict[str, Any] = {}


def warm() -> None:
    """Open the network once. ONNX Runtime with one thread starts none, so that the children of a fork can run it."""
    if not _warm:
        _warm["model"] = open_pose_model(weights.load("xs").onnx, "onnxruntime", threads=1, name="xs")
        _warm["detector"] = open_people_detector(weights.detector(), "onnxruntime", threads=1)
        cold = pipeline.models.open_model

        def open_model(model: str, runtime: str = "auto", **options: Any) -> object:
            plain = options.get("precision", "auto") == "auto" and not options.get("random_weights")
            if model == "xs" and runtime == "onnxruntime" and options.get("threads") == 1 and plain:
                return _warm["model"]
            return cold(model, runtime, **options)

        pipeline.models.open_model = open_model  # type: ignore[assignment]
        pipeline.models.open_detector = lambda *_, **__: _warm["detector"]


def picture(index: int = 0, width: int = 64, height: int = 48) -> np.ndarray:
    """A textured BGR picture."""
    y, x = np.mgrid[:height, :width]
    return np.stack([x * 3 + index * 5, y * 4, x + y], -1).astype(np.uint8)
