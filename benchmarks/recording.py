"""One person in front of calibrated cameras: the error of poses against joints triangulated from all cameras.

A recording is a folder with a video from each camera, `*/cam*.mp4` in the order of their names, which all begin at the same
time, and `single_triangulated.npz`:

    names            [K] the joints: `nose`, `l_hip`, `r_hip` and others, as Human3.6M names them but in small letters
    joints3d_m       [F, K, 3] in the world, m
    good             [F, K] whether each joint can be trusted
    K, dist          [C, 3, 3] px, and [C, 4] OpenCV's k1, k2, p1, p2: the cameras
    R, T             [C, 3, 3] and [C, 3] m: camera_from_world
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from zipfile import BadZipFile

import cv2
import numpy as np
from numpy.typing import NDArray

from convnextpose.camera import Intrinsics
from convnextpose.crop import Box
from convnextpose.errors import SourceError
from convnextpose.metrics import align_similarity
from convnextpose.skeleton import HUMAN36M
from pipeline.people.track import box_from_joints
from pipeline.sources import open_source

TRUTH = "single_triangulated.npz"

MIN_GOOD = 8
"""Smallest number of good joints for a pose to be scored: fewer do not determine it."""

Array = NDArray[np.float64]
Reader = Callable[[NDArray[np.uint8], Box], Array]
"""Estimates the joints [18, 3] (px, px of the picture, mm from the pelvis) of the person in a box of a BGR picture [H, W, 3]
uint8."""


@dataclass(frozen=True)
class Camera:
    """A calibrated camera and its video.

    Attributes:
        video: its file.
        matrix: [3, 3] px.
        distortion: [4] OpenCV's k1, k2, p1, p2.
        rotation, translation_mm: [3, 3] and [3] camera_from_world.
    """

    video: Path
    matrix: Array
    distortion: Array
    rotation: Array
    translation_mm: Array

    def from_world(self, joints_mm: Array) -> Array:
        """Convert joints [..., 3], mm, from the world to camera axes."""
        return joints_mm @ self.rotation.T + self.translation_mm

    def project(self, joints_mm: Array) -> Array:
        """Joints [K, 3] in camera axes, mm, to px of the picture [K, 2]."""
        return np.asarray(cv2.projectPoints(joints_mm, np.zeros(3), np.zeros(3), self.matrix, self.distortion)[0][:, 0])

    def unproject(self, joints: Array) -> Array:
        """Joints [J, 3] as px, px of the picture and depth, mm, to camera axes [J, 3], mm."""
        straight = cv2.undistortPoints(joints[:, None, :2], self.matrix, self.distortion, P=self.matrix)[:, 0]
        (fx, _, cx), (_, fy, cy), _ = self.matrix
        return Intrinsics(fx, fy, cx, cy).unproject(np.concatenate([straight, joints[:, 2:]], axis=1))


@dataclass(frozen=True)
class Recording:
    """The true joints of one person.

    Attributes:
        cameras: the C cameras.
        joints: [K] the joints' indices in Human3.6M's order; both hips are among them.
        world_mm: [F, K, 3] the joints in the world, mm.
        good: [F, K] whether each joint can be trusted.
    """

    cameras: tuple[Camera, ...]
    joints: tuple[int, ...]
    world_mm: Array
    good: NDArray[np.bool_]

    @property
    def hips(self) -> list[int]:
        """Indices of both hips among the joints."""
        return [self.joints.index(HUMAN36M.joints.index(name)) for name in ("L_Hip", "R_Hip")]


@dataclass(frozen=True)
class RecordingScore:
    """The errors of poses, with the true depth of the root.

    Attributes:
        poses: number of compared poses.
        mpjpe_mm: mean distance of the good joints after both roots were moved to the origin.
        pa_mpjpe_mm: the same after the best similarity transform (rotation, scale, translation) of each pose onto the truth.
        of_cameras: mpjpe_mm for each camera, by its video's name.
    """

    poses: int
    mpjpe_mm: float
    pa_mpjpe_mm: float
    of_cameras: dict[str, float]


def read_recording(folder: Path) -> Recording:
    """Read a folder as the top of this file describes it.

    Raises:
        SourceError: a file is missing or is not as described.
    """
    path = folder / TRUTH
    names = {name.lower(): number for number, name in enumerate(HUMAN36M.joints)}
    try:
        with np.load(path, allow_pickle=False) as data:
            matrix, distortion, rotation, translation = (data[name].astype(np.float64) for name in ("K", "dist", "R", "T"))
            videos = sorted(folder.glob("*/cam*.mp4"))
            cameras = tuple(
                Camera(*parts) for parts in zip(videos, matrix, distortion, rotation, 1000 * translation, strict=True)
            )
            joints = tuple(names[name] for name in data["names"].tolist())
            world, good = 1000 * data["joints3d_m"].astype(np.float64), data["good"].astype(bool)
        if (
            not {names["l_hip"], names["r_hip"]} <= set(joints)
            or world.shape != (*good.shape, 3)
            or good.shape[1:] != (len(joints),)
        ):
            raise ValueError(f"joints {list(world.shape)}, good {list(good.shape)}, of {len(joints)} names with both hips")
    except (OSError, BadZipFile, KeyError, TypeError, ValueError) as error:
        raise SourceError(
            f"expected a recording in {folder} as benchmarks/recording.py describes it, received "
            f"{type(error).__name__}: {error}"
        ) from error
    return Recording(cameras, joints, world, good)


def views(recording: Recording, every: int = 1) -> Iterator[tuple[Camera, NDArray[np.uint8], Box, Array, NDArray[np.bool_]]]:
    """Every n-th frame of each camera: camera, picture, the person's box, true joints [K, 3] (camera axes, mm), the good ones.

    The person's box is that of the good joints in the picture with an outline's margins, as the tracker makes it. Frames are
    left out if a hip is not good, or more than K - MIN_GOOD joints are not.
    """
    scored = recording.good[:, recording.hips].all(1) & (recording.good.sum(1) >= MIN_GOOD)
    for camera in recording.cameras:
        with open_source(camera.video) as source:
            for frame in source:
                if frame.index >= len(scored):
                    break
                if frame.index % every or not scored[frame.index]:
                    continue
                good = recording.good[frame.index]
                truth = camera.from_world(recording.world_mm[frame.index])
                yield camera, frame.image, box_from_joints(camera.project(truth)[good]), truth, good


def score_recording(recording: Recording, read: Reader, every: int = 1) -> RecordingScore:
    """Compare the poses of every n-th frame of each camera with the truth.

    The root is the middle of the hips.

    Raises:
        SourceError: a video cannot be read, or no frame can be scored.
    """
    hips = recording.hips
    errors: dict[str, list[float]] = {}
    aligned: list[float] = []
    for camera, image, box, truth, good in views(recording, every):
        root = truth[hips].mean(0)
        place = camera.unproject(read(image, box) + np.array([0, 0, root[2]]))[list(recording.joints)]
        predicted, wanted = (place - place[hips].mean(0))[good], (truth - root)[good]
        errors.setdefault(camera.video.name, []).append(_mean_distance(predicted, wanted))
        aligned.append(_mean_distance(align_similarity(predicted, wanted), wanted))
    if not aligned:
        raise SourceError(f"expected frames with both hips and {MIN_GOOD} good joints to score, found none: check {TRUTH}")
    return RecordingScore(
        poses=len(aligned),
        mpjpe_mm=float(np.mean([value for values in errors.values() for value in values])),
        pa_mpjpe_mm=float(np.mean(aligned)),
        of_cameras={name: float(np.mean(values)) for name, values in errors.items()},
    )


def _mean_distance(a: Array, b: Array) -> float:
    return float(np.linalg.norm(a - b, axis=-1).mean())
