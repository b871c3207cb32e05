"""Converts the results of an earlier run to files for other programs."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np

from convnextpose.camera import RootDepthSource
from convnextpose.world import GivenWorld, World
from pipeline.formats.base import WrittenFile, written_files
from pipeline.formats.motion import Export
from pipeline.formats.records import PosesAtTime, read_poses
from pipeline.formats.table import open_recorders
from pipeline.people.world import WorldEstimator
from pipeline.types import Frame, PosedFrame, RunHeader, TrackEventKind

_NO_PICTURE = np.zeros((1, 1, 3), np.uint8)  # motion files contain no pictures


@dataclass(frozen=True)
class Converted:
    """The result of a conversion.

    Attributes:
        files: the files that were written.
        worlds: the world of each take.
        cut_off: whether the last line of the poses was cut off.
    """

    files: list[WrittenFile]
    worlds: list[World]
    cut_off: bool


def convert(
    poses: Path,
    out: Path,
    formats: Sequence[str],
    *,
    export: Export | None = None,
    given: GivenWorld | None = None,
    raw: bool = False,
    overwrite: bool = False,
) -> Converted:
    """Write a `poses.ndjson` in other formats. The whole file is read into memory.

    Args:
        poses: the file.
        out: folder for the files.
        formats: names from `pipeline.formats.table.FORMATS`, of formats without pictures.
        export: how motion files are written.
        given: what is known of the camera's position. The rest is estimated from all frames of a take together, so that the
            world is as good for its first frames as for its last; a world that was given to the run is kept.
        raw: whether to use the raw poses even if there are smoothed ones.
        overwrite: whether existing files may be replaced.

    Raises:
        SourceError: the file cannot be read.
        SinkError, OutputExistsError: a file cannot be written.
    """
    read = read_poses(poses)
    header = replace(read.header, smooth=read.header.smooth and not raw)
    recorders = open_recorders(out, formats, header, overwrite=overwrite, export=export)
    worlds = []
    try:
        for take in _takes(read.frames):
            known = given or GivenWorld()
            if known.world is None and known.up is None and known.height_mm is None:
                known = _given_to(take[-1].world)
            frames = _stood(take, header, known)
            worlds += [world] if (world := frames[-1].world) is not None else []
            for frame in frames:
                for recorder in recorders:
                    recorder.write(frame)
    finally:
        for recorder in recorders:
            recorder.close()
    return Converted(written_files(recorders), worlds, read.cut_off)


def _takes(frames: Sequence[PosesAtTime]) -> list[list[PosesAtTime]]:
    takes: list[list[PosesAtTime]] = []
    for frame in frames:
        if not takes or any(event.kind is TrackEventKind.CUT for event in frame.events):
            takes.append([])
        takes[-1].append(frame)
    return takes


def _given_to(world: World | None) -> GivenWorld:
    """The part of a run's world that was given, not estimated."""
    if world is None:
        return GivenWorld()
    up = world.up if world.origin.value == "given" else None
    height_mm = world.height_mm if world.height_origin.value == "given" else None
    return GivenWorld(world) if up is not None and height_mm is not None else GivenWorld(None, up, height_mm)


def _stood(take: Sequence[PosesAtTime], header: RunHeader, given: GivenWorld) -> list[PosedFrame]:
    """The frames of a take, in the world that is estimated from all of them."""

    def estimator(known: GivenWorld) -> WorldEstimator:
        return WorldEstimator(header.joint_set, known, true_camera=header.root_depth_source is RootDepthSource.INTRINSICS)

    first, world = estimator(given), None
    for frame in take:
        world, _ = first.step(frame.time_s, frame.camera, frame.poses)
    second, stood = estimator(GivenWorld(world)), []
    for number, frame in enumerate(take):
        _, scales = second.step(frame.time_s, frame.camera, frame.poses)
        posed = tuple(replace(pose, depth_scale=scales[pose.track_id]) for pose in frame.poses)
        picture = Frame(_NO_PICTURE, header.source, frame.index, frame.time_s)
        events = frame.events if number == 0 else ()
        stood.append(PosedFrame(picture, posed, frame.camera, events=events, world=world))
    return stood
