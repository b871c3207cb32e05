"""Joint sets: names, bones, mirror pairs and the root, for the two orders that ConvNeXtPose models are trained on.

Sources: the Human3.6M order and bones are those of the authors' public code, as is the MuCo-3DHP order.
"""

from __future__ import annotations

from dataclasses import dataclass, field

import numpy as np
from numpy.typing import NDArray

from convnextpose.errors import GeometryError


@dataclass(frozen=True)
class JointSet:
    """An order of joints.

    Attributes:
        name: short name, written into exported models and results.
        joints: the joints' names, in the network's order.
        root: index of the pelvis, the origin of relative depth.
        bones: pairs of joint indices (nearer the root, farther from it), for drawing and for bone lengths.
        flip_pairs: pairs of joint indices that trade places in a mirrored picture.
        unscored: joints that the benchmark's score leaves out.
    """

    name: str
    joints: tuple[str, ...]
    root: int
    bones: tuple[tuple[int, int], ...]
    flip_pairs: tuple[tuple[int, int], ...]
    unscored: tuple[int, ...] = ()
    flip_order: tuple[int, ...] = field(init=False, repr=False)

    def __post_init__(self) -> None:
        """Derive the order of the joints in a mirrored picture."""
        order = list(range(len(self.joints)))
        for a, b in self.flip_pairs:
            order[a], order[b] = b, a
        object.__setattr__(self, "flip_order", tuple(order))

    def __len__(self) -> int:
        """Number of joints."""
        return len(self.joints)

    @property
    def scored(self) -> tuple[int, ...]:
        """Indices of the joints that count in MPJPE."""
        return tuple(i for i in range(len(self)) if i not in self.unscored)

    def side(self, joint: int) -> str:
        """`left`, `right` or `middle`: the joint's side of the person's own body."""
        name = self.joints[joint]
        return "left" if name.startswith("L_") else "right" if name.startswith("R_") else "middle"

    def mirror(self, joints: NDArray[np.floating], width: float) -> NDArray[np.floating]:
        """The joints of the same person in the mirrored picture.

        Args:
            joints: [..., J, 2 or 3] with x in px (pixel centres at whole numbers) first.
            width: width of the picture, px.

        Returns:
            An array of the same shape: x becomes width - 1 - x, and left and right trade places.
        """
        if joints.shape[-2] != len(self):
            raise GeometryError(f"expected {len(self)} joints of {self.name}, received an array of {joints.shape}")
        mirrored = joints[..., list(self.flip_order), :].copy()
        mirrored[..., 0] = width - 1 - mirrored[..., 0]
        return mirrored


HUMAN36M = JointSet(
    name="human36m",
    joints=(
        "Pelvis", "R_Hip", "R_Knee", "R_Ankle", "L_Hip", "L_Knee", "L_Ankle", "Torso", "Neck", "Nose", "Head",
        "L_Shoulder", "L_Elbow", "L_Wrist", "R_Shoulder", "R_Elbow", "R_Wrist", "Thorax",
    ),
    root=0,
    bones=(
        (0, 7), (7, 8), (8, 9), (9, 10), (8, 11), (11, 12), (12, 13), (8, 14), (14, 15), (15, 16),
        (0, 1), (1, 2), (2, 3), (0, 4), (4, 5), (5, 6),
    ),
    flip_pairs=((1, 4), (2, 5), (3, 6), (14, 11), (15, 12), (16, 13)),
    unscored=(17,),
)  # fmt: skip
"""Human3.6M's 17 joints and Thorax, the middle of the shoulders, which the score leaves out."""

MUCO = JointSet(
    name="muco",
    joints=(
        "Head_top", "Thorax", "R_Shoulder", "R_Elbow", "R_Wrist", "L_Shoulder", "L_Elbow", "L_Wrist",
        "R_Hip", "R_Knee", "R_Ankle", "L_Hip", "L_Knee", "L_Ankle", "Pelvis", "Spine", "Head",
        "R_Hand", "L_Hand", "R_Toe", "L_Toe",
    ),
    root=14,
    bones=(
        (14, 15), (15, 1), (1, 16), (16, 0), (1, 2), (2, 3), (3, 4), (4, 17), (1, 5), (5, 6), (6, 7), (7, 18),
        (14, 8), (8, 9), (9, 10), (10, 19), (14, 11), (11, 12), (12, 13), (13, 20),
    ),
    flip_pairs=((2, 5), (3, 6), (4, 7), (8, 11), (9, 12), (10, 13), (17, 18), (19, 20)),
)  # fmt: skip
"""The 21 joints of models trained on MuCo-3DHP."""

JOINT_SETS: dict[str, JointSet] = {s.name: s for s in (HUMAN36M, MUCO)}


def joint_set_of_size(count: int) -> JointSet:
    """The joint set with `count` joints: 18 is Human3.6M's, 21 MuCo's.

    Raises:
        GeometryError: no known joint set has that many.
    """
    for joints in JOINT_SETS.values():
        if len(joints) == count:
            return joints
    known = " or ".join(f"{len(s)} ({s.name})" for s in JOINT_SETS.values())
    raise GeometryError(f"expected a model of {known} joints, received one of {count}")
