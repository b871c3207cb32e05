"""Poses as NumPy arrays."""

from __future__ import annotations

import json
import mmap
from collections.abc import Sequence
from functools import cache
from typing import Any

import numpy as np
from numpy.typing import NDArray

from convnextpose.camera import Intrinsics, RootDepthSource
from convnextpose.files import check_free, partial_file, put_in_place
from convnextpose.world import World
from pipeline.formats.base import PoseRecorder
from pipeline.formats.files import GrowingFile
from pipeline.formats.records import PoseFile, header_record, utc_of
from pipeline.types import Pose, PosedFrame, RunHeader

_FRAME = np.dtype(
    [
        ("frame_index", np.int64),
        ("time_s", np.float64),
        ("utc", "datetime64[us]"),
        ("clock", np.str_, 7),
        ("camera", np.float64, 4),
    ]
)


@cache
def _pose_type(joints: int, *, smooth: bool) -> np.dtype[Any]:
    return np.dtype(
        [
            ("pose_frame", np.int64),
            ("track_id", np.int64),
            ("box", np.float64, 4),
            ("joints_px", np.float32, (joints, 2)),
            ("joints_mm", np.float32, (joints, 3)),
            ("scores", np.float32, joints),
            ("root_depth_mm", np.float64),
            ("root_depth_source", np.str_, max(len(source.value) for source in RootDepthSource)),
            ("cut_by_edge", np.bool_),
            ("depth_scale", np.float32),
        ]
        + ([("smoothed_mm", np.float32, (joints, 3))] if smooth else [])
    )


class NpzRecorder(PoseRecorder):
    """Writes `poses.npz` when it is closed. Until then the poses are in unnamed files on the same disk.

    For F frames and P poses of J joints: `frame_index` [F], `time_s` [F] s, `utc` [F] (time of capture; NaT for
    recordings), `clock` [F] (what measured it: `kernel`, `sender`, `arrival`, or empty), `camera` [F, 4] (fx, fy, cx, cy) px;
    `pose_frame` [P] (the row of its frame), `track_id` [P], `box` [P, 4] (x, y, width, height) px, `joints_px` [P, J, 2],
    `joints_mm` [P, J, 3], `scores` [P, J], `root_depth_mm` [P], `root_depth_source` [P], `cut_by_edge` [P],
    `depth_scale` [P], and `smoothed_mm` [P, J, 3] if the run's header says so (NaN for a pose that was not smoothed);
    `world_from_camera` [3, 4] mm, as known at the last frame, and `world`, the same with its origin as JSON text (NaN and
    `null` if unknown); `header`, the run's header as JSON text; and `random_weights`, whether the poses are meaningless.

    A killed run leaves no arrays; `pose_arrays` makes them from the lines of JSON.
    """

    def _begin(self, item: PosedFrame) -> None:
        if self._overwrite:
            self.path.unlink(missing_ok=True)  # so that a killed run leaves no old arrays beside its own video
        else:
            check_free(self.path, overwrite=False)
        self._taken = self._pose_count = 0
        self._world: World | None = None
        self._frames = GrowingFile.unnamed(self.path.parent)
        self._poses = GrowingFile.unnamed(self.path.parent)

    def _add(self, item: PosedFrame) -> None:
        poses = _pose_rows(self._taken, item.poses, self._header)
        taken = item.frame.captured_ns
        frame = _frame_row(
            item.frame.index, item.frame.time_s, None if taken is None else utc_of(taken), item.frame.clock, item.camera
        )
        self._poses.append(poses.tobytes())
        self._frames.append(frame.tobytes())
        self._taken += 1
        self._world = item.world
        self._pose_count += len(poses)

    def _finish(self) -> None:
        try:
            if self._taken:
                frames = _rows(self._frames, _FRAME, self._taken)
                poses = _rows(
                    self._poses, _pose_type(len(self._header.joint_set), smooth=self._header.smooth), self._pose_count
                )
                with partial_file(self.path.parent) as (part, file):
                    np.savez(file, **_arrays(frames, poses, self._header, self._world))
                    put_in_place(part, file, self.path, overwrite=self._overwrite)
                self.written = self._taken
        finally:
            self._frames.close()
            self._poses.close()


def pose_arrays(poses: PoseFile) -> dict[str, Any]:
    """The arrays of `poses.npz`, by name, made from the frames of a `poses.ndjson`.

    Raises:
        OverflowError, ValueError: an id or a number does not fit into the arrays.
    """
    frames = [_frame_row(frame.index, frame.time_s, frame.utc, frame.clock, frame.camera) for frame in poses.frames]
    rows = [_pose_rows(row, frame.poses, poses.header) for row, frame in enumerate(poses.frames)]
    rows.append(_pose_rows(0, (), poses.header))
    world = poses.frames[-1].world if poses.frames else None
    return _arrays(np.array(frames, _FRAME), np.concatenate(rows), poses.header, world)


def _frame_row(index: int, time_s: float, utc: str | None, clock: str | None, camera: Intrinsics) -> NDArray[Any]:
    # NumPy's times have no time zone: all are in UTC.
    moment = np.datetime64("NaT" if utc is None else utc.removesuffix("+00:00"), "us")
    return np.array((index, time_s, moment, clock or "", (camera.fx, camera.fy, camera.cx, camera.cy)), _FRAME)


def _pose_rows(frame_row: int, poses: Sequence[Pose], header: RunHeader) -> NDArray[Any]:
    joints = len(header.joint_set)
    unknown = np.full((joints, 3), np.nan)
    rows = [
        (
            frame_row,
            pose.track_id,
            (pose.box.x, pose.box.y, pose.box.width, pose.box.height),
            pose.joints_px,
            pose.joints_mm,
            pose.scores,
            pose.root_depth_mm,
            pose.root_depth_source.value,
            pose.cut_by_edge,
            pose.depth_scale,
            *([unknown if pose.smoothed_mm is None else pose.smoothed_mm] if header.smooth else []),
        )
        for pose in poses
    ]
    return np.array(rows, _pose_type(joints, smooth=header.smooth))


def _rows(file: GrowingFile, kind: np.dtype[Any], count: int) -> NDArray[Any]:
    """The first rows of a file, mapped into memory, because they may not fit into it."""
    if count == 0:
        return np.empty(0, kind)
    return np.frombuffer(mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ), kind, count)


def _arrays(frames: NDArray[Any], poses: NDArray[Any], header: RunHeader, world: World | None) -> dict[str, Any]:
    matrix = np.full((3, 4), np.nan) if world is None else np.column_stack([world.rotation, world.position_mm])
    return {
        **{name: frames[name] for name in frames.dtype.fields or ()},
        **{name: poses[name] for name in poses.dtype.fields or ()},
        "world_from_camera": matrix,
        "world": np.array(json.dumps(None if world is None else world.record())),
        "header": np.array(json.dumps(header_record(header))),
        "random_weights": np.array(header.model.random),
    }
