"""Shared by the tests of formats: a header, posed frames, and every recorder with a way to count the items in its file."""

import csv
import io
import json
from collections.abc import Callable
from dataclasses import dataclass, replace
from pathlib import Path

import av
import numpy as np

from convnextpose.camera import Intrinsics, RootDepthSource
from convnextpose.crop import Box
from convnextpose.skeleton import HUMAN36M
from convnextpose.variants import Variant
from engines.pose import ModelInfo
from engines.session import SessionDescription
from pipeline.formats.glb import read_glb
from pipeline.formats.records import read_poses
from pipeline.formats.table import FORMATS
from pipeline.formats.trace import TraceRecorder
from pipeline.timeline import STAGES, Span, Timeline
from pipeline.types import Frame, Pose, PosedFrame, RunHeader

CAMERA = Intrinsics.assumed(96, 64)
HEADER = RunHeader(
    "walk.mp4", 96, 64, 25.0, 250, CAMERA, RootDepthSource.ASSUMED_FOV,
    ModelInfo("xs", Variant.XS, HUMAN36M, "ab" * 32),
    SessionDescription("onnxruntime", "1.17", "CPU", "fp32", 2),
)  # fmt: skip


def pose(seed=0, joints=18, track_id=1):
    rng = np.random.default_rng(seed)
    return Pose(
        track_id, Box(10.5, -3.25, 40, 50.125), rng.uniform(-50, 200, (joints, 2)), rng.uniform(-3000, 5000, (joints, 3)),
        rng.uniform(0, 1, joints), 4321.5, RootDepthSource.ASSUMED_FOV,
    )  # fmt: skip


def posed(index, time_s=None, poses=None, size=(96, 64), camera=CAMERA, drawn=True):
    """A frame whose grey level encodes its index, with one pose."""
    width, height = size
    image = np.full((height, width, 3), 40 + index * 7 % 180, np.uint8)
    poses = (pose(index),) if poses is None else poses
    return PosedFrame(
        Frame(image, "walk.mp4", index, index / 25 if time_s is None else time_s), poses, camera, image if drawn else None
    )


def noise(index, width=320, height=240):
    """A frame that no encoder can compress well."""
    image = np.random.default_rng(index).integers(0, 256, (height, width, 3), np.uint8)
    return replace(posed(index), picture=image)


def timeline(index):
    """A frame that took 1 ms in every stage."""
    spans = [Span(stage, n * 10**6, n * 10**6, (n + 1) * 10**6) for n, stage in enumerate(STAGES, index)]
    return Timeline("clip.mp4", index, tuple(spans))


def names(folder):
    return sorted(path.name for path in folder.iterdir())


def write(recorder, frames):
    """Write all frames and close the recorder; returns the file."""
    for frame in frames:
        recorder.write(frame)
    recorder.close()
    return recorder.path


def count_pictures(data):
    """Number of frames of an MP4; fails if it cannot be opened."""
    count = 0
    with av.open(io.BytesIO(data)) as container:
        for _ in container.decode(video=0):
            count += 1
    return count


def _count_timelines(path):
    text = path.read_text()
    events = json.loads(text if text.endswith("]\n") else text + "]")  # viewers accept a missing bracket
    return len([event for event in events if event["ph"] == "X"]) // len(STAGES)


def _count_arrays(path):
    with np.load(path, allow_pickle=False) as arrays:
        assert set(arrays["pose_frame"]) <= set(range(len(arrays["frame_index"])))
        return len(arrays["frame_index"])


def _count_lines(path):
    result = read_poses(path)
    assert not result.cut_off
    return len(result.frames)


def _count_rows(path):
    with path.open(newline="") as file:
        return len({row["frame"] for row in csv.DictReader(file)})


def _count_keys(path):
    document, _ = read_glb(path)
    moved = [c for c in document["animations"][0]["channels"] if c["target"]["path"] == "translation"]
    samplers = document["animations"][0]["samplers"]
    return sum(document["accessors"][samplers[c["sampler"]]["input"]]["count"] for c in moved)


@dataclass(frozen=True)
class Case:
    """A recorder for the tests of the laws that hold for all recorders.

    Attributes:
        file_name: the name of its file.
        make: makes it, from a path and `overwrite`.
        item: makes the item with an index.
        count_in: counts the items in its file with another reader.
        at_once: whether its file grows while it is written.
    """

    file_name: str
    make: Callable
    item: Callable
    count_in: Callable
    at_once: bool = True

    def count(self, path: Path) -> int:
        """Number of items in the file; 0 if there is no file."""
        return self.count_in(path) if path.exists() else 0


def _case(name, count_in, **options):
    made = FORMATS[name]

    def make(path, **options):
        return made.recorder(path, HEADER, **options)

    return Case(made.file_name, make, lambda index: posed(index, size=(16, 16)), count_in, **options)


CASES = {
    "mp4": _case("mp4", lambda path: count_pictures(path.read_bytes())),
    "ndjson": _case("ndjson", _count_lines),
    "npz": _case("npz", _count_arrays, at_once=False),
    "csv": _case("csv", _count_rows, at_once=False),
    "glb": _case("glb", _count_keys, at_once=False),
    "trace": Case("trace.json", TraceRecorder, timeline, _count_timelines),
}
