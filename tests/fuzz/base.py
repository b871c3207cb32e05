"""The interface of a kind of input, and code shared by several kinds: whole runs of the command line, one open network."""

from __future__ import annotations

import importlib
import io
import logging
import sys
from contextlib import redirect_stderr, redirect_stdout, suppress
from functools import cache
from pathlib import Path
from random import Random
from typing import Any, Protocol

import numpy as np
import typer.main

import pipeline.models
import tools.calibrate
import tools.main
from convnextpose import weights
from engines.opening import open_people_detector, open_pose_model


class Kind(Protocol):
    """A kind of input."""

    def prepare(self) -> str | None:
        """Make what all cases start from, or return why it cannot be made here. Called once, before the first fork."""
        ...

    def read(self, random: Random, folder: Path) -> object:
        """Make a spoilt input in an empty folder, the process's working directory, and let the project read it."""
        ...


def command(*arguments: object) -> None:
    """Run the command line in this process; it ends with SystemExit."""
    sys.argv = ["convnextpose", *map(str, arguments)]
    logger = logging.getLogger("convnextpose")
    handlers, level = list(logger.handlers), logger.level
    try:
        tools.main.main()
    finally:  # remove what --verbose added
        logger.handlers[:], logger.level = handlers, level


_build_app = tools.main.build_app


@cache
def _app(wanted: str) -> Any:
    return typer.main.get_command(_build_app([wanted]))


WHOLE_RUNS = 0.02
"""The fraction of cases that are whole runs of the command line: each costs as much as a hundred others."""


def run_on(source: object, *options: object) -> None:
    """`convnextpose run` with the open network."""
    command("run", source, "--out", "results", "--runtime", "onnxruntime", "--threads", 1, *options)


def import_all() -> None:
    """Import everything that the command line imports, also for printing, so that no child has to.

    Each subcommand's parser is also made only once: that costs more than most inputs.
    """
    tools.main.build_app = lambda words: _app(next((word for word in words if word in tools.main.COMMANDS), ""))
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
    """Open the network once. ONNX Runtime with one thread starts no other, so that forked children can run it."""
    if not _warm:
        _warm["model"] = open_pose_model(weights.load("xs").onnx, "onnxruntime", threads=1, name="xs")
        _warm["detector"] = open_people_detector(weights.detector(), "onnxruntime", threads=1)
        for each in _warm.values():
            each.close = lambda: None  # a child's next case also runs it
        cold = pipeline.models.open_model

        def open_model(model: str, runtime: str = "auto", **options: Any) -> object:
            plain = options.get("precision", "auto") == "auto" and not options.get("random_weights")
            if model == "xs" and runtime in ("auto", "onnxruntime") and plain:
                return _warm["model"]
            return cold(model, runtime, **options)

        for module in (pipeline.models, tools.calibrate):
            module.open_model = open_model  # type: ignore[assignment]
            module.open_detector = lambda *_, **__: _warm["detector"]


def picture(index: int = 0, width: int = 64, height: int = 48) -> np.ndarray:
    """A textured BGR picture."""
    y, x = np.mgrid[:height, :width]
    return np.stack([x * 3 + index * 5, y * 4, x + y], -1).astype(np.uint8)
