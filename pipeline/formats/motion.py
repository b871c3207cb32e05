"""The base class of motion formats: each person's joints in the world, at a constant frame rate; gaps stay gaps.

Poses arrive in camera space and are kept in an unnamed file on the results' disk until the end, about half a kilobyte each,
because the world is known best at the end. Then they are read one person at a time, so that memory holds the poses of one
person (TRC, C3D, BVH) or of all (glTF). A file is written under a partial name, read back, compared, and then put in place.
"""

from __future__ import annotations

import math
import mmap
from abc import abstractmethod
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from convnextpose.errors import SinkError
from convnextpose.files import already_there, check_free, partial_file, put_in_place
from convnextpose.world import World
from pipeline.formats.base import PoseRecorder, WrittenFile
from pipeline.formats.files import GrowingFile
from pipeline.formats.names import NAMES
from pipeline.types import PosedFrame, RunHeader, TrackEventKind

Array = NDArray[np.float64]

WITHIN = 0.1
"""A time stamp that differs from the constant rate by less than this fraction of a frame counts as equal."""

GAP = 1.5
"""Poses farther apart than this many frames have a gap between them."""

MAX_FRAMES = 10_000_000
"""Largest number of frames of one person: time stamps that need more are broken."""


@dataclass(frozen=True)
class Export:
    """How motion files are written.

    Attributes:
        names: the naming scheme of joints and bones (`pipeline.formats.names.NAMES`), or `auto` for the format's usual one.
        fill_s: gaps up to this length are interpolated linearly, s.
    """

    names: str = "auto"
    fill_s: float = 0.0

    def __post_init__(self) -> None:
        """Check the names and the time."""
        if self.names not in ("auto", *NAMES):
            raise ValueError(f"expected names of {', '.join(NAMES)} or auto, received {self.names!r}")
        if not 0 <= self.fill_s < math.inf:
            raise ValueError(f"expected a time up to which gaps are filled, 0 s or more, received {self.fill_s}")


@dataclass(frozen=True)
class Track:
    """One person's poses as recorded.

    Attributes:
        track_id: the person's number.
        frame_index: [T] numbers of the frames.
        time_s: [T] their time stamps, increasing.
        joints_mm: [T, J, 3] in the world, mm.
        joints_px: [T, J, 2] in the picture, px.
        scores: [T, J].
    """

    track_id: int
    frame_index: NDArray[np.int64]
    time_s: Array
    joints_mm: Array
    joints_px: Array
    scores: Array


@dataclass(frozen=True)
class Motion:
    """One person's motion at a constant rate.

    Attributes:
        track_id: the person's number.
        rate: frames a second.
        first: the number of the first frame in the recording's own constant rate, from 0.
        joints_mm: [T, J, 3] in the world, mm; NaN where the person was not seen.
        resampled: whether poses were interpolated, because the time stamps are not at a constant rate.
    """

    track_id: int
    rate: float
    first: int
    joints_mm: Array
    resampled: bool

    @property
    def seen(self) -> NDArray[np.bool_]:
        """[T] whether the person was seen, or the gap was filled."""
        return np.isfinite(self.joints_mm[:, 0, 0])

    def stretches(self) -> list[slice]:
        """The parts without a gap."""
        edges = np.flatnonzero(np.diff(np.concatenate([[0], self.seen.astype(np.int8), [0]])))
        return [slice(int(a), int(b)) for a, b in edges.reshape(-1, 2)]


def rate_of(header: RunHeader, times_s: Array) -> float:
    """The constant rate of a recording: the nominal one if the time stamps agree with it, otherwise from their usual distance.

    Args:
        header: the run's header.
        times_s: the time stamps of all frames.
    """
    steps = np.diff(times_s)
    steps = steps[steps > 0]
    usual = 1 / float(np.median(steps)) if len(steps) else (header.frame_rate or 1.0)
    nominal = header.frame_rate
    if nominal is not None and 0.5 < usual / nominal < 2:
        return nominal
    return round(usual, 3) or usual


def at_constant_rate(track: Track, rate: float, begin_s: float, fill_s: float) -> Motion:
    """A person's motion at a constant rate, interpolated linearly where the time stamps differ from it.

    Args:
        track: the person.
        rate: frames a second.
        begin_s: the time of the recording's first frame.
        fill_s: gaps up to this length are filled, s.

    Raises:
        SinkError: the time stamps need more frames than a file can hold.
    """
    at = (track.time_s - begin_s) * rate  # in frames
    first, last = math.ceil(at[0] - WITHIN), math.floor(at[-1] + WITHIN)
    if last < first:
        first = last = round(float(at[0]))
    if last - first >= MAX_FRAMES:
        raise SinkError(f"expected at most {MAX_FRAMES} frames of a person, received {last - first + 1}: check the time stamps")
    grid = np.arange(first, last + 1)
    after = np.clip(np.searchsorted(at, grid), 0, len(at) - 1)
    before = np.maximum(after - 1, 0)
    nearest = np.where(np.abs(at[before] - grid) < np.abs(at[after] - grid), before, after)
    joints = track.joints_mm[nearest].copy()
    between = np.abs(at[nearest] - grid) > WITHIN
    distance = at[after] - at[before]
    share = np.clip((grid - at[before]) / np.where(distance > 0, distance, 1), 0, 1)[:, None, None]
    line = track.joints_mm[before] + share * (track.joints_mm[after] - track.joints_mm[before])
    joints[between] = line[between]
    limit = max(GAP, fill_s * rate + 1 + WITHIN if fill_s else 0.0)
    joints[between & (distance > limit)] = np.nan
    return Motion(track.track_id, rate, first, joints, bool((between & (distance <= GAP)).any()))


class MotionRecorder(PoseRecorder):
    """Collects poses, and writes them when closed. A format adds `_save`, `_write_part` and `_check_part`.

    The poses are the smoothed ones if the run's header says so, otherwise the raw ones.
    """

    def __init__(self, path: Path, header: RunHeader, *, overwrite: bool = False, export: Export | None = None) -> None:
        """As for every recorder.

        Args:
            path: the file, or for one file for each person the name without their numbers: `poses.trc` for `poses-3.trc`.
            header: the run's header.
            overwrite: whether existing files may be replaced.
            export: how the files are written.
        """
        super().__init__(path, header, overwrite=overwrite)
        self.export = export or Export()
        self._written: list[WrittenFile] = []
        if not overwrite:
            for other in self._others():
                raise already_there(other)

    @property
    def files(self) -> list[WrittenFile]:
        """The files that exist."""
        return [file for file in self._written if file.path.is_file()]

    @abstractmethod
    def _save(self, tracks: Sequence[int]) -> Iterator[tuple[Path, Any]]:
        """The path and the content of each file, for `_write_part` to write and `_check_part` to compare."""

    @abstractmethod
    def _write_part(self, part: Path, content: Any) -> None:  # noqa: ANN401  # as yielded by the format's `_save`
        """Write a file under a partial name."""

    @abstractmethod
    def _check_part(self, part: Path, content: Any) -> None:  # noqa: ANN401
        """Read the file back and compare.

        Raises:
            ValueError: it differs from what should have been written.
        """

    # Used by the formats.

    def person_path(self, track_id: int, stretch: int = 0) -> Path:
        """The file of a person, or of a person's later part, for formats that cannot have gaps."""
        tail = f"-{stretch + 1}" if stretch else ""
        return self.path.with_name(f"{self.path.stem}-{track_id}{tail}{self.path.suffix}")

    def track(self, track_id: int) -> Track:
        """A person's poses as recorded."""
        rows = self._rows[self._rows["track_id"] == track_id]
        rows = rows[np.argsort(rows["time_s"], kind="stable")]
        keep = np.concatenate([[True], np.diff(rows["time_s"]) > 0])
        rows = rows[keep]
        root = self._header.joint_set.root
        joints = np.empty((len(rows), len(self._header.joint_set), 3))
        for at, row in enumerate(rows):
            world = self._worlds[row["take"]] or World.level()
            joints[at] = world.place_on_floor(row["joints_mm"], root, float(row["depth_scale"]))
        return Track(
            track_id,
            rows["frame_index"].astype(np.int64),
            rows["time_s"].astype(np.float64),
            joints,
            rows["joints_px"].astype(np.float64),
            rows["scores"].astype(np.float64),
        )

    def motion(self, track_id: int) -> Motion:
        """A person's motion at the recording's constant rate."""
        times = np.array(self._times)
        return at_constant_rate(self.track(track_id), rate_of(self._header, times), float(times.min()), self.export.fill_s)

    # The steps of a recorder.

    def _begin(self, item: PosedFrame) -> None:
        if not self._overwrite:
            check_free(self.path, overwrite=False)
            for other in self._others():
                raise already_there(other)
        else:  # so that a killed run leaves no old files beside its own
            for path in (self.path, *self._others()):
                path.unlink(missing_ok=True)
        joints = len(self._header.joint_set)
        self._type = np.dtype(
            [
                ("frame_index", np.int64),
                ("time_s", np.float64),
                ("track_id", np.int64),
                ("take", np.int32),
                ("depth_scale", np.float32),
                ("joints_mm", np.float32, (joints, 3)),
                ("joints_px", np.float32, (joints, 2)),
                ("scores", np.float32, joints),
            ]
        )
        self._times: list[float] = []
        self._worlds: list[World | None] = [None]
        self._ids: dict[int, None] = {}
        self._count = 0
        self._collected = GrowingFile.unnamed(self.path.parent)

    def _add(self, item: PosedFrame) -> None:
        if self._times and any(event.kind is TrackEventKind.CUT for event in item.events):
            self._worlds.append(None)  # another take, before which the camera may have moved
        rows = []
        for pose in item.poses:
            smoothed = pose.smoothed_mm if self._header.smooth else None
            place = pose.joints_mm if smoothed is None or smoothed[:, 2].min() <= 0 else smoothed
            take, scale = len(self._worlds) - 1, pose.depth_scale
            head = (item.frame.index, item.frame.time_s, pose.track_id, take, scale)
            rows.append((*head, place, pose.joints_px, pose.scores))
        self._collected.append(np.array(rows, self._type).tobytes())
        self._worlds[-1] = item.world
        self._ids.update(dict.fromkeys(pose.track_id for pose in item.poses))
        self._count += len(rows)
        self._times.append(item.frame.time_s)

    def _finish(self) -> None:
        try:
            if not self._times:
                return
            self._rows = np.empty(0, self._type)
            if self._count:
                mapped = mmap.mmap(self._collected.fileno(), 0, access=mmap.ACCESS_READ)
                self._rows = np.frombuffer(mapped, self._type, self._count)
            for path, content in self._save(sorted(self._ids)):
                self._put(path, content)
            self.written = len(self._times) if self._written else 0
        finally:
            self._collected.close()

    def _put(self, path: Path, content: Any) -> None:  # noqa: ANN401
        with partial_file(path.parent) as (part, file):
            self._write_part(part, content)
            try:
                self._check_part(part, content)
            except (ValueError, ArithmeticError, LookupError) as error:
                raise SinkError(f"{path} was read back and is not what was written: {error}") from error
            put_in_place(part, file, path, overwrite=self._overwrite)
        self._written.append(WrittenFile(path, len(self._times), path.stat().st_size))

    def _others(self) -> list[Path]:
        """Existing files of people."""
        return sorted(self.path.parent.glob(f"{self.path.stem}-*{self.path.suffix}")) if self.path.parent.is_dir() else []


def compare(what: str, written: Array, read: Array, within: float) -> None:
    """Check that the numbers that were read equal the written ones.

    Raises:
        ValueError: they differ; says by how much.
    """
    if written.shape != read.shape:
        raise ValueError(f"expected {what} {list(written.shape)}, received {list(read.shape)}")
    if (np.isnan(written) != np.isnan(read)).any():
        raise ValueError(f"expected the gaps of {what} as they were")
    off = float(np.nanmax(np.abs(written - read), initial=0.0))
    if off > within:
        raise ValueError(f"expected {what} within {within:g}, received {off:g} off")
