"""The kinds of inputs: how a valid one is made, how it is spoilt, and which part of the project reads it.

Most cases call the function that reads the input; its errors are those that the command line prints. Some are whole runs of the
command line, with the network opened once before all of them.
"""

from __future__ import annotations

import os
import resource
import sys
from collections.abc import Callable
from pathlib import Path
from random import Random

from convnextpose.errors import CalibrationError
from tests.fuzz.base import Kind
from tests.fuzz.media import Folders, Media, pictures, videos
from tests.fuzz.models import Arrays, Bundles, Calibrations, Checkpoints, Engines, Graphs
from tests.fuzz.texts import Arguments, Boxes, PoseFiles, SourceLists, Uris
from tests.fuzz.zygote import MEMORY


class Fault:
    """An input with a forbidden effect, to show that it is detected."""

    def __init__(self, action: Callable[[], object]) -> None:
        self._action = action

    def prepare(self) -> str | None:
        return None

    def read(self, random: Random, folder: Path) -> object:
        return self._action()


class FaultsAmongOthers:
    """Inputs some of which crash, some raise an error, and most do neither."""

    def prepare(self) -> str | None:
        return None

    def read(self, random: Random, folder: Path) -> None:
        kind = random.random()
        if kind < 0.15:
            os.abort()
        if kind < 0.3:
            raise KeyError(kind)
        if any(folder.iterdir()) or Path.cwd() != folder:
            raise AssertionError("a case begins in an empty folder of its own")
        (folder / "left").write_text("what it leaves")
        if kind < 0.5:
            _refuse(f"expected a case that is refused, received {kind}")


class FaultAfterAnother:
    """The first input of a process is read, the others are faults."""

    def __init__(self) -> None:
        self._seen = False

    def prepare(self) -> str | None:
        return None

    def read(self, random: Random, folder: Path) -> None:
        self._seen, seen = True, self._seen
        assert not seen


def _refuse(told: str) -> None:
    raise CalibrationError(told)


def _hang() -> None:
    resource.setrlimit(resource.RLIMIT_CPU, (1, 2))  # a shorter limit than for other cases
    while True:
        pass


KINDS: dict[str, Kind] = {
    "video": Media(videos),
    "picture": Media(pictures),
    "folder": Folders(),
    "checkpoint": Checkpoints(),
    "onnx": Graphs(),
    "engine": Engines(),
    "bundle": Bundles(),
    "calibration": Calibrations(),
    "boxes": Boxes(),
    "ndjson": PoseFiles(),
    "npz": Arrays(),
    "sources": SourceLists(),
    "uri": Uris(),
    "arguments": Arguments(),
    "faults: among others": FaultsAmongOthers(),
    "faults: after another": FaultAfterAnother(),
    "fault: accepted": Fault(int),
    "fault: refused": Fault(lambda: _refuse("expected a case that is refused, received this one")),
    "fault: speechless": Fault(lambda: _refuse("no")),
    "fault: traceback": Fault(lambda: 1 // 0),
    "fault: exit code": Fault(lambda: sys.exit(3)),
    "fault: crash": Fault(os.abort),
    "fault: hang": Fault(_hang),
    "fault: memory": Fault(lambda: bytes(2 * MEMORY)),
}
