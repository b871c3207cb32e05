"""How alike two poses are: whether they are the same person's, seen twice."""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

from convnextpose.skeleton import JointSet

SPREAD = {
    "Shoulder": 0.158, "Elbow": 0.144, "Wrist": 0.124, "Hip": 0.214, "Knee": 0.174, "Ankle": 0.178, "Nose": 0.052,
}  # fmt: skip
"""How far people who mark the same joint are apart, as a share of the person's size.

Source: COCO's keypoint evaluation, k = 2 sigma (cocodataset.org, "Keypoint evaluation").
"""

OTHER_SPREAD = 0.158
"""The same for joints that COCO doesn't have: as wide as shoulders."""


def joint_spread(joint_set: JointSet) -> NDArray[np.float64]:
    """The spread of each joint [J] of a joint set."""
    names = (name.removeprefix("L_").removeprefix("R_") for name in joint_set.joints)
    return np.array([SPREAD.get(name, OTHER_SPREAD) for name in names])


def similarity(
    one: NDArray[np.floating], other: NDArray[np.floating], size_px: float, spread: NDArray[np.float64]
) -> NDArray[np.float64]:
    """Object keypoint similarity of poses: 1 where joint lies on joint, 0 for people far apart.

    Args:
        one, other: [..., J, 2 or more] x px and y px.
        size_px: square root of the person's area, px.
        spread: [J], as `joint_spread` gives it.

    Returns:
        [...] in 0..1: the mean over the joints of exp(-d² / (2 size² spread²)).
    """
    squared = ((np.asarray(one)[..., :2] - np.asarray(other)[..., :2]) ** 2).sum(-1)
    return np.asarray(np.exp(-squared / (2 * (size_px * spread) ** 2)).mean(-1))
