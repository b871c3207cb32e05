"""The steps for a frame's people, as plain functions without threads: crops, predictions, the lift to camera space."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

import cv2
import numpy as np
from numpy.typing import NDArray

from convnextpose.camera import Intrinsics, RootDepthSource, root_depth_from_bones_mm
from convnextpose.crop import Box, apply_affine, crop_from_image, crop_region, image_from_crop
from convnextpose.errors import GeometryError
from convnextpose.skeleton import JointSet
from convnextpose.variants import INPUT_SIZE
from engines.pose import PoseModel
from engines.session import HeldFrame
from pipeline.timeline import Stopwatch
from pipeline.types import Pose

BATCH = 32
"""Largest batch of crops for the network: limits memory."""

FOUR_CHANNELS_PX = 640
"""Largest side of a region that is cut out with a fourth channel, px: for larger ones, adding it costs more than it saves."""

EDGE_FRACTION = 0.01
"""A box reaches the picture's edge if its distance from it is less than this fraction of the picture's side."""


@dataclass(frozen=True)
class TrackedBox:
    """A box in which the network reads a person.

    Attributes:
        track_id: the person's number, the same in all frames of a run.
        box: the person's box, px.
    """

    track_id: int
    box: Box


@dataclass(frozen=True)
class RelativePose:
    """A pose as the network gives it: in the picture, with depths from the pelvis.

    Attributes:
        track_id: that of the `TrackedBox`.
        box: the box that it was read from, px.
        joints: [J, 3] x px and y px in the picture, z mm from the pelvis.
        scores: [J] in 0..1.
        region: the square of the picture that the network read, px.
    """

    track_id: int
    box: Box
    joints: NDArray[np.float64]
    scores: NDArray[np.float64]
    region: Box

    @property
    def score(self) -> float:
        """Mean score of the joints, 0..1."""
        return float(self.scores.mean())


def warp_crop(image: NDArray[np.uint8], region: Box, out: NDArray[np.uint8] | None = None) -> NDArray[np.uint8]:
    """Cut a square region out of a BGR picture [H, W, 3] uint8 as a crop [256, 256, 3] uint8 (bilinear, black outside).

    Args:
        image: the picture.
        region: the region, px.
        out: where the crop is written; None for a new array.
    """
    crop = np.empty((INPUT_SIZE, INPUT_SIZE, 3), np.uint8) if out is None else out
    matrix, size = crop_from_image(region), (INPUT_SIZE, INPUT_SIZE)
    if region.width > FOUR_CHANNELS_PX:
        return np.asarray(cv2.warpAffine(image, matrix, size, dst=crop), np.uint8)
    # OpenCV takes half as long for four channels, so it pays to add a fourth to the part that the region covers.
    left, top = (max(0, math.floor(edge) - 1) for edge in (region.x, region.y))
    right, bottom = math.ceil(region.x + region.width) + 2, math.ceil(region.y + region.height) + 2
    part = image[top : max(0, bottom), left : max(0, right)]
    if part.size == 0:  # the region is outside the picture
        crop[:] = 0
        return crop
    matrix[:, 2] += matrix[:, :2] @ (left, top)
    warped = cv2.warpAffine(cv2.cvtColor(part, cv2.COLOR_BGR2BGRA), matrix, size)
    return np.asarray(cv2.cvtColor(warped, cv2.COLOR_BGRA2BGR, dst=crop), np.uint8)


def predict(
    model: PoseModel,
    image: NDArray[np.uint8],
    boxes: Sequence[TrackedBox],
    stopwatch: Stopwatch | None = None,
    held: HeldFrame | None = None,
) -> tuple[RelativePose, ...]:
    """Read the people in boxes of a BGR picture [H, W, 3] uint8, BATCH at a time.

    Args:
        model: reads them.
        image: the picture.
        boxes: the people's boxes.
        stopwatch: receives the time of each stage.
        held: the same picture, held by the model, which then makes the crops; None to make them here.

    Raises:
        GeometryError: a box lies outside the picture.
    """
    stopwatch = stopwatch or Stopwatch()
    height, width = image.shape[:2]
    poses = []
    for begin in range(0, len(boxes), BATCH):
        batch = boxes[begin : begin + BATCH]
        with stopwatch.span("preprocess"):
            regions = [crop_region(tracked.box, width, height) for tracked in batch]
            if held is None:
                crops = np.empty((len(regions), INPUT_SIZE, INPUT_SIZE, 3), np.uint8)
                for region, crop in zip(regions, crops, strict=True):
                    warp_crop(image, region, crop)
            else:
                crops = held.origins([crop_from_image(region) for region in regions])
        with stopwatch.span("infer"):
            predictions = model.run(crops)
        for tracked, region, joints, scores in zip(batch, regions, predictions.joints, predictions.scores, strict=True):
            in_picture = apply_affine(image_from_crop(region), joints)
            poses.append(RelativePose(tracked.track_id, tracked.box, in_picture, scores.astype(np.float64), region))
    return tuple(poses)


def reaches_edge(box: Box, width: int, height: int) -> bool:
    """Whether a person's box reaches the edge of a `width` x `height` px picture, so that the person may be cut off by it."""
    x_margin, y_margin = EDGE_FRACTION * width, EDGE_FRACTION * height
    return (
        box.x <= x_margin
        or box.y <= y_margin
        or box.x + box.width >= width - x_margin
        or box.y + box.height >= height - y_margin
    )


def lift(pose: RelativePose, size: tuple[int, int], camera: Intrinsics, source: RootDepthSource, joint_set: JointSet) -> Pose:
    """Lift a pose to camera space, with the root depth estimated from the region that the network read.

    If the picture's edge cuts the person off, that region is too small and the pelvis would be too far away. Then the depth is
    estimated from the lengths of the visible bones.

    Args:
        pose: the pose in the picture.
        size: the picture's width and height, px.
        camera: its intrinsics.
        source: whether they are true or assumed.
        joint_set: the joints' names and bones.

    Raises:
        GeometryError: a joint would be behind the camera, so intrinsics and box cannot both be right.
    """
    root_depth_mm, cut = camera.estimate_root_depth_mm(pose.region.area), reaches_edge(pose.box, *size)
    if cut:
        inside = np.all((pose.joints[:, :2] >= 0) & (pose.joints[:, :2] < size), axis=1)
        by_bones_mm = root_depth_from_bones_mm(camera, pose.joints, inside, joint_set)
        if by_bones_mm is not None:
            root_depth_mm, source = by_bones_mm, RootDepthSource.BONE_LENGTHS
    points = pose.joints.copy()
    points[:, 2] += root_depth_mm
    if points[:, 2].min() <= 0:
        raise GeometryError(
            f"expected a person wholly in front of the camera, received a root depth of {root_depth_mm:.0f} mm with a joint "
            f"at {points[:, 2].min():.0f} mm: check the camera's intrinsics and the box"
        )
    return Pose(
        track_id=pose.track_id,
        box=pose.box,
        joints_px=np.ascontiguousarray(points[:, :2]),
        joints_mm=camera.unproject(points),
        scores=pose.scores,
        root_depth_mm=root_depth_mm,
        root_depth_source=source,
        cut_by_edge=cut,
    )
