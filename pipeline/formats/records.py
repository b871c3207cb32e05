"""Poses as JSON: the lines of `poses.ndjson`, and a reader for such files.

The first line is the run's header, every other line is one frame. Numbers are rounded: px to 3 decimals, mm to 2, scores to 4,
seconds to 6.
"""

from __future__ import annotations

import json
from dataclasses import asdict, dataclass
from datetime import datetime, timezone
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from convnextpose.camera import Intrinsics, RootDepthSource
from convnextpose.crop import Box
from convnextpose.errors import SourceError
from convnextpose.files import read_file
from convnextpose.skeleton import JOINT_SETS
from convnextpose.variants import Variant
from convnextpose.world import World
from engines.pose import ModelInfo
from engines.session import SessionDescription
from pipeline.types import Pose, PosedFrame, RunHeader, TrackEvent, TrackEventKind

FORMAT = "convnextpose/1"
"""Name and version of the format; readers refuse any other."""

MAX_BYTES = 2**32
"""Largest file of poses that is read, bytes: a day of one person at 25 frames a second."""

AXES = "x right, y down, z forward"

UNITS = {
    "time_s": "s",
    "box": "px",
    "joints_px": "px",
    "joints_mm": "mm",
    "smoothed_mm": "mm",
    "root_depth_mm": "mm",
    "scores": "0..1",
    "camera": "px",
}


@dataclass(frozen=True)
class PosesAtTime:
    """One frame's poses, as read from a file.

    Attributes:
        index: the frame's number in its source, from 0.
        time_s: its time stamp, s.
        camera: the intrinsics that the poses were lifted with.
        poses: the people in it.
        events: what happened to their tracks.
        utc: when it was taken, ISO 8601, to synchronise recordings of several cameras; None if the source was not live.
        clock: the clock of `utc`, as in `pipeline.types.Frame`; None if `utc` is.
        world: the up direction and the floor, as known at this frame; None if the file does not say.
    """

    index: int
    time_s: float
    camera: Intrinsics
    poses: tuple[Pose, ...]
    events: tuple[TrackEvent, ...] = ()
    utc: str | None = None
    clock: str | None = None
    world: World | None = None


@dataclass(frozen=True)
class PoseFile:
    """The contents of a file of poses.

    Attributes:
        header: the run that made it.
        frames: its frames, in order.
        cut_off: whether its last line was incomplete, as after a killed run or on a full disk; that line is left out.
    """

    header: RunHeader
    frames: tuple[PosesAtTime, ...]
    cut_off: bool = False


def header_record(header: RunHeader) -> dict[str, Any]:
    """The header as plain JSON values.

    Raises:
        ValueError: it is not complete: the first frame has not arrived.
    """
    joints = header.joint_set
    if header.camera is None:
        raise ValueError("expected the header of a run whose first frame has arrived, received one without a camera")
    return {
        "type": "header",
        "format": FORMAT,
        "units": UNITS,
        "axes": AXES,
        "joints": list(joints.joints),
        "bones": [list(bone) for bone in joints.bones],
        "camera": asdict(header.camera),
        "root_depth_source": header.root_depth_source.value,
        "model": {
            "name": header.model.name,
            "variant": header.model.variant.name,
            "joint_set": joints.name,
            "checkpoint_sha256": header.model.checkpoint_sha256,
            "random": header.model.random,
        },
        "runtime": asdict(header.runtime),
        "smooth": header.smooth,
        "source": {
            "name": header.source,
            "width": header.width,
            "height": header.height,
            "frame_rate": header.frame_rate,
            "frame_count": header.frame_count,
        },
    }


def frame_record(posed: PosedFrame, header: RunHeader, world_before: World | None = None) -> dict[str, Any]:
    """A frame as plain JSON values. It has a camera only if that differs from the header's.

    It has a world only if that differs from `world_before`, that of the previous frame.
    """
    frame = posed.frame
    record: dict[str, Any] = {"type": "frame", "index": int(frame.index), "time_s": round(float(frame.time_s), 6)}
    if frame.captured_ns is not None:
        record["utc"], record["clock"] = utc_of(frame.captured_ns), frame.clock
    if posed.camera != header.camera:
        record["camera"] = asdict(posed.camera)
    if posed.world is not None and posed.world is not world_before:
        record["world"] = posed.world.record()
    if header.model.random:
        record["random_weights"] = True
    if posed.events:
        record["events"] = [_event_record(event) for event in posed.events]
    record["poses"] = [_pose_record(pose, smooth=header.smooth) for pose in posed.poses]
    return record


def utc_of(unix_ns: int) -> str:
    """Nanoseconds since 1970 as ISO 8601 in UTC, to the microsecond."""
    moment = datetime.fromtimestamp(unix_ns // 10**9, timezone.utc).replace(microsecond=unix_ns % 10**9 // 1000)
    return moment.isoformat(timespec="microseconds")


def _event_record(event: TrackEvent) -> dict[str, Any]:
    record: dict[str, Any] = {"event": event.kind.value, "time_s": round(float(event.time_s), 6)}
    if event.track_id is not None:
        record["track_id"] = int(event.track_id)
    if event.other_id is not None:
        record["other_id"] = int(event.other_id)
    return record | {"reason": event.reason}


def _pose_record(pose: Pose, *, smooth: bool) -> dict[str, Any]:
    x, y, width, height = (round(float(value), 3) for value in (pose.box.x, pose.box.y, pose.box.width, pose.box.height))
    smoothed = {} if pose.smoothed_mm is None or not smooth else {"smoothed_mm": _rounded(pose.smoothed_mm, 2)}
    return {
        "track_id": int(pose.track_id),
        "box": [x, y, max(width, 0.001), max(height, 0.001)],  # after rounding, its area is still above 0
        "joints_px": _rounded(pose.joints_px, 3),
        "joints_mm": _rounded(pose.joints_mm, 2),
        **smoothed,
        "scores": _rounded(pose.scores, 4),
        "root_depth_mm": round(float(pose.root_depth_mm), 2),
        "root_depth_source": pose.root_depth_source.value,
        "cut_by_edge": pose.cut_by_edge,
        "depth_scale": round(float(pose.depth_scale), 4),
    }


def _rounded(values: NDArray[np.float64], decimals: int) -> list[Any]:
    return np.round(np.asarray(values, np.float64), decimals).tolist()


def to_line(record: dict[str, Any]) -> bytes:
    """A record as one line.

    Raises:
        ValueError: it contains NaN or infinity, which JSON cannot represent.
    """
    return json.dumps(record, separators=(",", ":"), allow_nan=False).encode() + b"\n"


def read_poses(path: str | Path) -> PoseFile:
    """Read a `poses.ndjson`.

    Raises:
        SourceError: it cannot be read, or is not such a file; names the line.
    """
    *lines, rest = read_file(Path(path), MAX_BYTES, SourceError, "a file of poses").split(b"\n")
    number = 1
    try:
        header = _parse_header(json.loads(lines[0] if lines else rest))
        frames: list[PosesAtTime] = []
        for number, line in enumerate(lines[1:], 2):  # noqa: B007  # used in the error message
            frames.append(_parse_frame(json.loads(line), header, frames[-1].world if frames else None))
    except (ValueError, KeyError, TypeError, AttributeError, ArithmeticError, RecursionError) as error:
        what = f"it lacks {error}" if isinstance(error, KeyError) else str(error)
        raise SourceError(f"expected a poses.ndjson, but line {number} of {path} is not one of its lines: {what}") from error
    return PoseFile(header, tuple(frames), cut_off=bool(rest) and bool(lines))


def _parse_header(record: dict[str, Any]) -> RunHeader:
    if record["type"] != "header" or record["format"] != FORMAT:
        raise ValueError(f"expected a header of {FORMAT}")
    model, source = record["model"], record["source"]
    joints = JOINT_SETS.get(model["joint_set"])
    if joints is None or list(joints.joints) != record["joints"]:
        raise ValueError(f"its joints are not those of a known joint set ({', '.join(JOINT_SETS)})")
    return RunHeader(
        source=source["name"],
        width=source["width"],
        height=source["height"],
        frame_rate=source["frame_rate"],
        frame_count=source["frame_count"],
        camera=Intrinsics(**record["camera"]),
        root_depth_source=RootDepthSource(record["root_depth_source"]),
        model=ModelInfo(model["name"], Variant[model["variant"]], joints, model["checkpoint_sha256"], model["random"]),
        runtime=SessionDescription(**record["runtime"]),
        smooth=record.get("smooth", False),
    )


def _parse_frame(record: dict[str, Any], header: RunHeader, world: World | None) -> PosesAtTime:
    if record["type"] != "frame":
        raise ValueError("expected a frame")
    camera = Intrinsics(**record["camera"]) if "camera" in record else header.camera
    assert camera is not None  # a header from a file has one
    poses = tuple(_parse_pose(pose, len(header.joint_set)) for pose in record["poses"])
    events = tuple(_parse_event(event) for event in record.get("events", ()))
    world = World.parse(record["world"]) if "world" in record else world
    utc, clock = record.get("utc"), record.get("clock")
    return PosesAtTime(record["index"], record["time_s"], camera, poses, events, utc, clock, world)


def _parse_event(record: dict[str, Any]) -> TrackEvent:
    return TrackEvent(
        TrackEventKind(record["event"]), record["time_s"], record.get("track_id"), record["reason"], record.get("other_id")
    )


def _parse_pose(record: dict[str, Any], joints: int) -> Pose:
    if len(record["scores"]) != joints:
        raise ValueError(f"expected poses of {joints} joints, received one of {len(record['scores'])}")
    return Pose(
        track_id=record["track_id"],
        box=Box(*record["box"]),
        joints_px=np.array(record["joints_px"], np.float64),
        joints_mm=np.array(record["joints_mm"], np.float64),
        scores=np.array(record["scores"], np.float64),
        root_depth_mm=record["root_depth_mm"],
        root_depth_source=RootDepthSource(record["root_depth_source"]),
        cut_by_edge=bool(record.get("cut_by_edge", False)),  # absent in results of 0.1.0
        smoothed_mm=np.array(record["smoothed_mm"], np.float64) if "smoothed_mm" in record else None,
        depth_scale=record.get("depth_scale", 1.0),
    )
