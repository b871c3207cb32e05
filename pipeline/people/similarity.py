"""The similarity of two poses, to decide whether they are of the same person."""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

from convnextpose.skeleton import JointSet

SPREAD = {
    "Shoulder": 0.158, "Elbow": 0.144, "Wrist": 0.124, "Hip": 0.214, "Knee": 0.174, "Ankle": 0.178, "Nose": 0.052,
}  # fmt: skip
"""Distance between different annotators' marks of a joint, as a share of the person's size.

Source: COCO's keypoint evaluation, k = 2 sigma (cocodataset.org, "Keypoint evaluation").
"""

OTHER_SPREAD = 0.158
"""The same for joints that COCO doesn't have: as wide as shoulders."""


class PoseSimilarity:
    """Object keypoint similarity of poses: 1 for identical joints, 0 for people far apart.

    A pose network sometimes exchanges left and right, especially in a view from the side, so a pose and its mirror image count
    as equal.

    Args:
        joint_set: the joints' names and sides.
    """

    def __init__(self, joint_set: JointSet) -> None:
        names = (name.removeprefix("L_").removeprefix("R_") for name in joint_set.joints)
        self._spread = np.array([SPREAD.get(name, OTHER_SPREAD) for name in names])
        self._ways = np.array([range(len(joint_set)), joint_set.flip_order])

    def __call__(self, one: NDArray[np.floating], other: NDArray[np.floating], size_px: float) -> float:
        """How alike two poses [J, 2 or more] (x px and y px) are, 0..1: the mean over joints of exp(-d² / (2 size² spread²)).

        Args:
            one, other: the poses.
            size_px: square root of the person's area, px.
        """
        alike = np.exp(self._squared(one, other) / (-2 * (size_px * self._spread) ** 2))
        return float(alike.sum(axis=1).max()) / alike.shape[1]

    def distance(self, one: NDArray[np.floating], other: NDArray[np.floating]) -> float:
        """The mean squared distance of the joints of two poses [J, 2 or more], px squared."""
        squared = self._squared(one, other)
        return float(squared.sum(axis=1).min()) / squared.shape[1]

    def _squared(self, one: NDArray[np.floating], other: NDArray[np.floating]) -> NDArray[np.float64]:
        """[2, J] squared distances of the joints: unchanged, and with the sides of one pose exchanged."""
        a, b = np.asarray(one, np.float64)[:, :2], np.asarray(other, np.float64)[:, :2]
        away = a - b[self._ways]
        return np.asarray(np.einsum("wjk,wjk->wj", away, away))
