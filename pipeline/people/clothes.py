"""The colours of people's clothes: they distinguish two people who meet, if positions and poses are alike."""

from __future__ import annotations

import cv2
import numpy as np
from numpy.typing import NDArray

from convnextpose.skeleton import JointSet

PATCH = 0.04
"""Half the side of the squares whose colours are read, in units of the person's size."""


class Clothes:
    """Reads the colours of chest, belly and thighs, which one person's clothes mostly cover.

    Args:
        joint_set: the joints' names.
    """

    def __init__(self, joint_set: JointSet) -> None:
        index = joint_set.joints.index
        shoulders, hips, knees = ([index(f"{side}_{name}") for side in "LR"] for name in ("Shoulder", "Hip", "Knee"))
        self._weights = np.zeros((4, len(joint_set)))
        for row, share in enumerate((0.7, 0.3)):
            self._weights[row, shoulders], self._weights[row, hips] = share / 2, (1 - share) / 2
        for row, hip, knee in zip((2, 3), hips, knees, strict=True):
            self._weights[row, [hip, knee]] = 0.5

    def read(self, image: NDArray[np.uint8], joints: NDArray[np.floating], size_px: float) -> NDArray[np.float64]:
        """[3, 3] mean BGR of chest, belly and both thighs of a person in a picture [H, W, 3]; NaN where that is outside.

        Args:
            image: BGR uint8.
            joints: [J, 2 or more] x px and y px.
            size_px: square root of the person's area, px.
        """
        points = self._weights @ np.asarray(joints)[:, :2]
        reach = max(1.0, PATCH * size_px)
        colours = np.full((4, 3), np.nan)
        for row, (x, y) in enumerate(points.tolist()):
            left, top, right, bottom = round(x - reach), round(y - reach), round(x + reach) + 1, round(y + reach) + 1
            patch = image[max(0, top) : max(0, bottom), max(0, left) : max(0, right)]
            if patch.size:
                colours[row] = cv2.mean(patch)[:3]
        colours[2] = (colours[2] + colours[3]) / 2
        return colours[:3]


def difference(one: NDArray[np.float64], other: NDArray[np.float64]) -> float:
    """The mean squared difference of two people's colours [3, 3], grey levels squared; 0 if none can be compared."""
    squared = (one - other) ** 2
    known = np.isfinite(squared)
    return float(squared[known].mean()) if known.any() else 0.0
