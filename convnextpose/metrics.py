"""Scores of poses against the truth: MPJPE, PA-MPJPE, PCK and left-right swaps.

Joints are arrays [..., J, 3] in mm, in the same axes; every score is the mean over all leading axes.
"""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

from convnextpose.errors import GeometryError
from convnextpose.skeleton import JointSet

Joints = NDArray[np.floating]


def root_relative(joints: Joints, joint_set: JointSet) -> NDArray[np.float64]:
    """Joints with the pelvis moved to the origin."""
    joints = np.asarray(joints, np.float64)
    if joints.ndim < 2 or joints.shape[-2:] != (len(joint_set), 3):
        raise GeometryError(f"expected joints [..., {len(joint_set)}, 3] in mm, received {list(joints.shape)}")
    result: NDArray[np.float64] = joints - joints[..., joint_set.root : joint_set.root + 1, :]
    return result


def joint_errors(predicted: Joints, truth: Joints, joint_set: JointSet) -> NDArray[np.float64]:
    """Distances [..., J] in mm after moving both pelvises to the origin, for every joint of the set."""
    return np.linalg.norm(root_relative(predicted, joint_set) - root_relative(truth, joint_set), axis=-1)


def mpjpe(predicted: Joints, truth: Joints, joint_set: JointSet) -> float:
    """Mean per joint position error, mm, over the scored joints (Human3.6M protocol 2)."""
    return float(joint_errors(predicted, truth, joint_set)[..., list(joint_set.scored)].mean())


def align_rigid(predicted: Joints, truth: Joints) -> NDArray[np.float64]:
    """Rotate and move each pose [..., J, 3] onto its truth with the least squared error; no scaling, no reflection.

    Source: Kabsch 1976, the alignment of Human3.6M protocol 1 in the authors' code.
    """
    rotated, _, mean = _rotated(predicted, truth)
    return rotated + mean


def align_similarity(predicted: Joints, truth: Joints) -> NDArray[np.float64]:
    """Rotate, scale and move each pose [..., J, 3] onto its truth with the least squared error; no reflection.

    A pose whose joints are all in one place stays a point.

    Source: Umeyama 1991, equations 39 to 42; PA-MPJPE in most papers on poses in the wild.
    """
    rotated, covariance, mean = _rotated(predicted, truth)
    extent = np.square(rotated).sum((-2, -1))
    scale = covariance / np.where(extent > 0, extent, 1)
    return rotated * scale[..., None, None] + mean


def _rotated(predicted: Joints, truth: Joints) -> tuple[NDArray[np.float64], NDArray[np.float64], NDArray[np.float64]]:
    """Centred poses rotated onto the truth [..., J, 3], their summed products with it [...], and its means [..., 1, 3]."""
    predicted, truth = np.asarray(predicted, np.float64), np.asarray(truth, np.float64)
    mean = truth.mean(-2, keepdims=True)
    a, b = predicted - predicted.mean(-2, keepdims=True), truth - mean
    u, singular, vt = np.linalg.svd(np.swapaxes(a, -1, -2) @ b)
    sign = np.ones((*u.shape[:-2], 3))
    sign[..., 2] = np.sign(np.linalg.det(u @ vt))
    return a @ ((u * sign[..., None, :]) @ vt), (singular * sign).sum(-1), mean


def rigid_joint_errors(predicted: Joints, truth: Joints, joint_set: JointSet) -> NDArray[np.float64]:
    """Distances [..., J] in mm after a rigid alignment of each pose by all its joints, for every joint of the set.

    Their mean over the scored joints is PA-MPJPE of Human3.6M's protocol 1 as in the authors' code: joints that are not scored
    (Thorax) take part in the alignment.
    """
    predicted, truth = root_relative(predicted, joint_set), root_relative(truth, joint_set)
    return np.linalg.norm(align_rigid(predicted, truth) - truth, axis=-1)


def pa_mpjpe(predicted: Joints, truth: Joints, joint_set: JointSet) -> float:
    """MPJPE after a rigid alignment of each pose by its scored joints, mm, over those joints."""
    scored = list(joint_set.scored)
    predicted = root_relative(predicted, joint_set)[..., scored, :]
    truth = root_relative(truth, joint_set)[..., scored, :]
    return float(np.linalg.norm(align_rigid(predicted, truth) - truth, axis=-1).mean())


def pck(predicted_px: Joints, truth_px: Joints, torso_px: NDArray[np.floating], fraction: float = 0.2) -> float:
    """Fraction of joints [..., J, 2] (px) closer to the truth than `fraction` of the torso's length [...] (px), 0..1."""
    distances = np.linalg.norm(np.asarray(predicted_px)[..., :2] - np.asarray(truth_px)[..., :2], axis=-1)
    return float((distances <= fraction * np.asarray(torso_px)[..., None]).mean())


def swap_rate(predicted: Joints, truth: Joints, joint_set: JointSet, apart_mm: float = 80.0) -> float:
    """Fraction of left-right pairs that fit better with left and right exchanged, 0..1.

    Only pairs whose true joints are at least `apart_mm` apart count, as closer ones say nothing; NaN if there are none.
    """
    predicted, truth = root_relative(predicted, joint_set), root_relative(truth, joint_set)
    first, second = (list(side) for side in zip(*joint_set.flip_pairs, strict=True))

    def distance(a: list[int], b: list[int]) -> NDArray[np.float64]:
        return np.linalg.norm(predicted[..., a, :] - truth[..., b, :], axis=-1)

    straight = distance(first, first) + distance(second, second)
    crossed = distance(first, second) + distance(second, first)
    counts = np.linalg.norm(truth[..., first, :] - truth[..., second, :], axis=-1) >= apart_mm
    return float((crossed < straight)[counts].mean()) if counts.any() else float("nan")


def picture_swap_rate(
    predicted_px: Joints, truth_px: Joints, joint_set: JointSet, apart_px: NDArray[np.floating], seen: NDArray[np.bool_]
) -> float:
    """Fraction of left-right pairs that fit better in the picture with left and right exchanged, 0..1.

    Args:
        predicted_px, truth_px: [N, J, 2] joints in the picture, px.
        joint_set: the joints and their left-right pairs.
        apart_px: [N] smallest distance of a pair's joints, px; closer pairs say nothing and do not count.
        seen: [N, J] whether a joint's truth is known; pairs with an unknown one do not count.

    Returns:
        The fraction; NaN if no pair counts.
    """
    predicted, truth = np.asarray(predicted_px, np.float64), np.asarray(truth_px, np.float64)
    first, second = (list(side) for side in zip(*joint_set.flip_pairs, strict=True))

    def distance(a: list[int], b: list[int]) -> NDArray[np.float64]:
        return np.linalg.norm(predicted[:, a] - truth[:, b], axis=-1)

    straight = distance(first, first) + distance(second, second)
    crossed = distance(first, second) + distance(second, first)
    apart = np.linalg.norm(truth[:, first] - truth[:, second], axis=-1) >= np.asarray(apart_px)[:, None]
    counts = seen[:, first] & seen[:, second] & apart
    return float((crossed < straight)[counts].mean()) if counts.any() else float("nan")


def bone_variation(joints: Joints, joint_set: JointSet) -> NDArray[np.float64]:
    """Variation of each bone's length over the poses [F, J, 3] of one person: standard deviation divided by mean, [B].

    A person's bones keep their lengths, so anything above 0 is an error of the estimate.
    """
    near, far = (list(ends) for ends in zip(*joint_set.bones, strict=True))
    joints = np.asarray(joints, np.float64)
    lengths = np.linalg.norm(joints[:, far] - joints[:, near], axis=-1)
    return lengths.std(axis=0) / lengths.mean(axis=0)
