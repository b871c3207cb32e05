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
        source_id: which source it is from: the file's name.
        index: its number in the source, from 0.
        time_s: its time stamp in seconds: the stream's own, never the wall clock; index for folders. It grows, also where a
            camera comes back.
        captured_ns: when it was taken, ns since 1970 (Unix time), for live sources; None for files.
        clock: what `captured_ns` is by: the kernel's stamp of the capture, the sender's, or the moment of its arrival here.
        decoded_ns: when its decoding began and ended, perf_counter_ns, where the source decodes ahead of who takes the frames.
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
    """A frame of a source that cannot be read, or that was lost, between others that can.

    Attributes:
        source_id: which source it is from.
        index: its number in the source, in one row with those of `Frame`.
        reason: one sentence.
        given_up: whether it could have been read, but newer ones came: it counts as dropped, not as failed.
    """

    source_id: str
    index: int
    reason: str
    given_up: bool = False


@dataclass(frozen=True)
class State:
    """What a source was doing from a moment on.

    Attributes:
        utc: when, ISO 8601 in UTC.
        state: of a stream `open`, `running`, `ended`, `stopped` or `broken`; of a live source also `connecting`, `live`,
            `stalled` (nothing comes, though it is connected) or `lost` (it is tried again until the run ends).
        cause: why and what to do, one sentence; empty where that is plain.
    """

    utc: str
    state: str
    cause: str = ""

    @classmethod
    def now(cls, state: str, cause: str = "") -> State:
        """A state from this moment on."""
        return cls(datetime.now(timezone.utc).isoformat(timespec="milliseconds"), state, cause)


@dataclass(frozen=True)
class SourceInfo:
    """What a source says about itself when it is opened.

    Attributes:
        id: the file's or folder's name, or the URI without its password.
        live: whether it goes on by itself, so that frames which nobody takes in time are lost.
        width, height: size of its first picture, upright, px; None where it is not known yet.
        frame_rate: nominal frames a second, or None where it has none (pictures).
        frame_count: frames that it says it has, or None where it doesn't say. A video's container may count more than it gives.
        notes: what a user should be told about it, one sentence each.
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
        track_id: the same number for the same person in the frames of a run.
        box: the person's box in the picture, px.
        joints_px: [J, 2] joints in the picture, px (pixel centres at whole numbers).
        joints_mm: [J, 3] joints in camera space (x right, y down, z forward), mm.
        scores: [J] in 0..1.
        root_depth_mm: distance of the pelvis from the camera along z, mm.
        root_depth_source: where that distance came from.
        cut_by_edge: whether the box reaches the picture's edge, so that a part of the person may be out of sight.
        smoothed_mm: [J, 3] as `joints_mm`, smoothed over time, or None where nobody smooths.
        depth_scale: the factor on the root depth with which the feet stand on the world's floor, over about a second; 1 where
            that is not known.
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
        """Check that the shapes fit each other and every number is finite."""
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
    """Somebody was seen twice, and has an id from now on."""
    LOST = "lost"
    """Somebody is out of sight."""
    FOUND_AGAIN = "found_again"
    """Somebody who was lost is back."""
    MERGED = "merged"
    """Two tracks were one person's; the younger ended."""
    CUT = "cut"
    """A new take begins: the track ended."""


@dataclass(frozen=True)
class TrackEvent:
    """Something that happened to a track.

    Attributes:
        kind: what.
        time_s: when: the time stamp of the frame that showed it.
        track_id: whose track; None for a cut while nobody was followed.
        reason: why, a few words.
        other_id: the track that goes on, for a merged one.
    """

    kind: TrackEventKind
    time_s: float
    track_id: int | None
    reason: str
    other_id: int | None = None

    def __str__(self) -> str:
        """For logs."""
        who = "" if self.track_id is None else f" person {self.track_id}"
        return f"{self.time_s:.3f} s: {self.kind.value}{who} ({self.reason})"


@dataclass(frozen=True)
class PosedFrame:
    """A frame that went through the pipeline.

    Attributes:
        frame: the captured picture, its number and its time.
        poses: the people in it, none if nobody was found.
        camera: the intrinsics that its poses were lifted with.
        picture: BGR uint8 [H2, W2, 3], the drawn result, or None where drawing is off.
        timeline: where the frame's time went; None until every stage is done with it.
        problems: why people in it have no pose, one sentence each.
        events: what happened to people's tracks with it.
        world: where up and the floor are, as it was known by then; None where nobody says.
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
        """Which source it is from."""
        return self.frame.source_id


@dataclass(frozen=True)
class RunHeader:
    """What a run is: written at the head of every result.

    Attributes:
        source: name of the video, picture, folder or camera.
        width, height: size of its first picture, px; None until a camera has sent one.
        frame_rate: nominal frames a second, or None where the source has none (pictures).
        frame_count: frames that the source says it has, or None where it doesn't say.
        camera: the intrinsics, given or assumed; None until the first picture, where they are assumed from its size.
        root_depth_source: where root depths come from.
        model: the model.
        runtime: what runs it.
        smooth: whether files with numbers hold the smoothed poses, too.
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
        """Order, names and bones of the joints."""
        return self.model.joint_set

    def completed(self, first: PosedFrame) -> RunHeader:
        """The header with what only the first frame can tell."""
        if self.width and self.height and self.camera:
            return self
        return replace(self, width=first.frame.width, height=first.frame.height, camera=self.camera or first.camera)
