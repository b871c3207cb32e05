"""The types that the pipeline's stages exchange: a frame, a pose, a posed frame, and the header of a run."""

from __future__ import annotations

from dataclasses import dataclass, replace
from datetime import datetime, timezone
from enum import Enum
from typing import Literal

import numpy as np
from numpy.typing import NDArray

from convnextpose.camera import Intrinsics, RootDepthSource
from convnextpose.crop import Box
from convnextpose.errors import GeometryError
from convnextpose.skeleton import JointSet
from convnextpose.world import World
from engines.pose import ModelInfo
from engines.session import SessionDescription
from pipeline.timeline import Timeline


@dataclass(frozen=True)
class Frame:
    """One captured picture.

    Attributes:
        image: BGR uint8 [H, W, 3].
        source_id: id of its source, such as the file's name.
        index: its number in the source, from 0.
        time_s: its time stamp in the stream, s, never the wall clock; the index for folders. It always grows, even when a
            camera reconnects.
        captured_ns: when it was taken, ns since 1970 (Unix time), for live sources; None for files.
        clock: the clock of `captured_ns`: the kernel's time stamp of the capture, the sender's clock, or the time of arrival.
        decoded_ns: begin and end of its decoding, perf_counter_ns, if the source decodes ahead; otherwise None.
    """

    image: NDArray[np.uint8]
    source_id: str
    index: int
    time_s: float
    captured_ns: int | None = None
    clock: Literal["kernel", "sender", "arrival"] | None = None
    decoded_ns: tuple[int, int] | None = None

    def __post_init__(self) -> None:
        """Check the picture, and that a capture time comes with its clock."""
        if self.image.dtype != np.uint8 or self.image.ndim != 3 or self.image.shape[2] != 3 or 0 in self.image.shape:
            raise GeometryError(f"expected a BGR picture uint8 [H, W, 3], received {self.image.dtype} {list(self.image.shape)}")
        if (self.captured_ns is None) != (self.clock is None):
            raise ValueError(f"expected captured_ns and clock together, received {self.captured_ns} and {self.clock}")

    @property
    def width(self) -> int:
        """Width, px."""
        return int(self.image.shape[1])

    @property
    def height(self) -> int:
        """Height, px."""
        return int(self.image.shape[0])


@dataclass(frozen=True)
class UnreadableFrame:
    """A frame of a source that cannot be read or was lost, while others can be read.

    Attributes:
        source_id: id of its source.
        index: its number in the source; `Frame`s and unreadable frames are numbered together.
        reason: one sentence.
        given_up: whether it was replaced by newer frames: it counts as dropped, not as failed.
    """

    source_id: str
    index: int
    reason: str
    given_up: bool = False


@dataclass(frozen=True)
class State:
    """The state of a source from a point in time.

    Attributes:
        utc: when it began, ISO 8601 in UTC.
        state: for a stream `open`, `running`, `ended`, `stopped` or `broken`; for a live source also `connecting`, `live`,
            `stalled` (connected, but nothing arrives) or `lost` (it reconnects until the run ends).
        cause: why, and what to do, in one sentence; empty if there is nothing to explain.
    """

    utc: str
    state: str
    cause: str = ""

    @classmethod
    def now(cls, state: str, cause: str = "") -> State:
        """A state that begins now."""
        return cls(datetime.now(timezone.utc).isoformat(timespec="milliseconds"), state, cause)


@dataclass(frozen=True)
class SourceInfo:
    """The description of a source, known when it is opened.

    Attributes:
        id: the file's or folder's name, or the URI without its password.
        live: whether it produces frames in real time, so that frames that are not taken in time are lost.
        width, height: size of its first picture, upright, px; None if unknown yet.
        frame_rate: nominal frames a second; None without one (pictures).
        frame_count: declared number of frames; None if unknown. A video's container may declare more than it contains.
        notes: notes for the user, one sentence each.
    """

    id: str
    live: bool
    width: int | None
    height: int | None
    frame_rate: float | None
    frame_count: int | None
    notes: tuple[str, ...] = ()


@dataclass(frozen=True)
class Pose:
    """One person's pose in one frame.

    Attributes:
        track_id: the person's number, the same in all frames of a run.
        box: the person's box in the picture, px.
        joints_px: [J, 2] joints in the picture, px (pixel centres at whole numbers).
        joints_mm: [J, 3] joints in camera space (x right, y down, z forward), mm.
        scores: [J] in 0..1.
        root_depth_mm: distance of the pelvis from the camera along z, mm.
        root_depth_source: how that distance was found.
        cut_by_edge: whether the box reaches the picture's edge, so that part of the person may be out of sight.
        smoothed_mm: [J, 3] `joints_mm` smoothed over time, mm, or None without smoothing.
        depth_scale: the factor on the root depth that puts the feet on the world's floor, averaged over about a second; 1 if
            unknown.
    """

    track_id: int
    box: Box
    joints_px: NDArray[np.float64]
    joints_mm: NDArray[np.float64]
    scores: NDArray[np.float64]
    root_depth_mm: float
    root_depth_source: RootDepthSource
    cut_by_edge: bool = False
    smoothed_mm: NDArray[np.float64] | None = None
    depth_scale: float = 1.0

    def __post_init__(self) -> None:
        """Check that the shapes agree and every number is finite."""
        count = len(self.scores)
        if self.joints_px.shape != (count, 2) or self.joints_mm.shape != (count, 3) or self.scores.shape != (count,):
            raise GeometryError(
                f"expected joints_px [J, 2], joints_mm [J, 3] and scores [J], received {self.joints_px.shape}, "
                f"{self.joints_mm.shape} and {self.scores.shape}"
            )
        if not (np.isfinite(self.joints_px).all() and np.isfinite(self.joints_mm).all()):
            raise GeometryError("expected finite joints, received NaN or infinity")
        if self.smoothed_mm is not None and (self.smoothed_mm.shape != (count, 3) or not np.isfinite(self.smoothed_mm).all()):
            raise GeometryError(f"expected finite smoothed_mm [{count}, 3], received {self.smoothed_mm.shape}")
        if not 0 < self.depth_scale < np.inf:
            raise GeometryError(f"expected a positive depth_scale, received {self.depth_scale}")


class TrackEventKind(str, Enum):
    """What can happen to a person's track."""

    BORN = "born"
    """A person was seen twice and gets an id."""
    LOST = "lost"
    """A person is out of sight."""
    FOUND_AGAIN = "found_again"
    """A lost person is back."""
    MERGED = "merged"
    """Two tracks were of the same person; the younger one ended."""
    CUT = "cut"
    """A new take begins; the track ended."""


@dataclass(frozen=True)
class TrackEvent:
    """Something that happened to a track.

    Attributes:
        kind: what happened.
        time_s: the time stamp of the frame that showed it, s.
        track_id: the track; None for a cut while nobody was tracked.
        reason: why, in a few words.
        other_id: for a merged track, the one that continues.
    """

    kind: TrackEventKind
    time_s: float
    track_id: int | None
    reason: str
    other_id: int | None = None

    def __str__(self) -> str:
        """The event as text, for logs."""
        who = "" if self.track_id is None else f" person {self.track_id}"
        return f"{self.time_s:.3f} s: {self.kind.value}{who} ({self.reason})"


@dataclass(frozen=True)
class PosedFrame:
    """A frame that went through the pipeline.

    Attributes:
        frame: the captured picture, its number and its time.
        poses: the poses of the people in it; empty if nobody was found.
        camera: the intrinsics that its poses were lifted with.
        picture: BGR uint8 [H2, W2, 3], the drawn result, or None if nothing is drawn.
        timeline: the time that each stage took; None until every stage has finished.
        problems: why people in it have no pose, one sentence each.
        events: what happened to people's tracks in it.
        world: the up direction and the floor, as known at this frame; None if unknown.
    """

    frame: Frame
    poses: tuple[Pose, ...]
    camera: Intrinsics
    picture: NDArray[np.uint8] | None = None
    timeline: Timeline | None = None
    problems: tuple[str, ...] = ()
    events: tuple[TrackEvent, ...] = ()
    world: World | None = None

    @property
    def source_id(self) -> str:
        """The id of its source."""
        return self.frame.source_id


@dataclass(frozen=True)
class RunHeader:
    """The description of a run that every result begins with.

    Attributes:
        source: name of the video, picture, folder or camera.
        width, height: size of its first picture, px; None until a camera has sent one.
        frame_rate: nominal frames a second; None without one (pictures).
        frame_count: declared number of frames; None if unknown.
        camera: the intrinsics, given or assumed; None until the first picture, if they are assumed from its size.
        root_depth_source: how root depths are found.
        model: the model.
        runtime: the runtime that runs it.
        smooth: whether data files also contain the smoothed poses.
    """

    source: str
    width: int | None
    height: int | None
    frame_rate: float | None
    frame_count: int | None
    camera: Intrinsics | None
    root_depth_source: RootDepthSource
    model: ModelInfo
    runtime: SessionDescription
    smooth: bool = False

    @property
    def joint_set(self) -> JointSet:
        """The order, names and bones of the joints."""
        return self.model.joint_set

    def completed(self, first: PosedFrame) -> RunHeader:
        """The header, completed with what is known only from the first frame."""
        if self.width and self.height and self.camera:
            return self
        return replace(self, width=first.frame.width, height=first.frame.height, camera=self.camera or first.camera)
