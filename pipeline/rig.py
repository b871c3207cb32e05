"""A humanoid of rotating bones, computed from joint positions, for avatars and animation files.

Everything is in Unity's axes: left-handed, y up; a person who faces z has the right hand at +x.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from convnextpose.skeleton import JointSet

Array = NDArray[np.float64]


@dataclass(frozen=True)
class Bone:
    """A bone of Unity's humanoid.

    Attributes:
        parent: its parent bone; empty for the hips.
        at: the joint at its beginning.
        to: the joint that it points to; empty if it follows its parent.
        rest: its direction in the T-pose, Unity's axes.
    """

    parent: str
    at: str
    to: str
    rest: tuple[float, float, float] = (0.0, 1.0, 0.0)


def _limbs(side: str, letter: str, out: float) -> dict[str, Bone]:
    """The leg and the arm of one side."""
    down, outward = (0.0, -1.0, 0.0), (out, 0.0, 0.0)
    return {
        f"{side}UpperLeg": Bone("Hips", f"{letter}_Hip", f"{letter}_Knee", down),
        f"{side}LowerLeg": Bone(f"{side}UpperLeg", f"{letter}_Knee", f"{letter}_Ankle", down),
        f"{side}Foot": Bone(f"{side}LowerLeg", f"{letter}_Ankle", ""),
        f"{side}UpperArm": Bone("Spine", f"{letter}_Shoulder", f"{letter}_Elbow", outward),
        f"{side}LowerArm": Bone(f"{side}UpperArm", f"{letter}_Elbow", f"{letter}_Wrist", outward),
        f"{side}Hand": Bone(f"{side}LowerArm", f"{letter}_Wrist", ""),
    }


BONES: dict[str, Bone] = {
    "Hips": Bone("", "Pelvis", "spine"),
    "Spine": Bone("Hips", "spine", "neck"),
    "Neck": Bone("Spine", "neck", "Head"),
    "Head": Bone("Neck", "Head", ""),
    **_limbs("Left", "L", -1.0),
    **_limbs("Right", "R", 1.0),
}
"""Unity's bones, parents before children. `spine` is called Torso or Spine in the joint sets, and `neck` Neck or Thorax."""

_FRAMES = {"Hips": ("L_Hip", "R_Hip"), "Spine": ("L_Shoulder", "R_Shoulder")}
"""Bones whose rotation about their own axis is visible, with the pair of joints that shows it."""


def joint_indices(joint_set: JointSet) -> dict[str, int]:
    """The indices of the joints by name, with `spine` and `neck` instead of the joint set's own names for them."""
    names = {name: index for index, name in enumerate(joint_set.joints)}
    names["spine"] = names["Torso"] if "Torso" in names else names["Spine"]
    names["neck"] = names["Neck"] if "Neck" in names else names["Thorax"]
    return names


def solve(joints_m: Array, names: dict[str, int]) -> dict[str, tuple[Array, Array]]:
    """The start points of Unity's humanoid bones, and their rotations from the T-pose.

    A limb is rotated the shortest way from its parent's direction to its own: rotation about its own axis is not visible.

    Args:
        joints_m: [J, 3] in Unity's axes, m.
        names: the joints' indices by name, from `joint_indices`.

    Returns:
        For each bone its position [3], m, and its rotation [3, 3], both in the space of `joints_m`.
    """
    solved: dict[str, tuple[Array, Array]] = {}
    for name, bone in BONES.items():
        at = joints_m[names[bone.at]]
        rotation = solved[bone.parent][1] if bone.parent else np.eye(3)
        if name in _FRAMES:
            left, right = (joints_m[names[joint]] for joint in _FRAMES[name])
            rotation = _frame(right - left, joints_m[names[bone.to]] - at, rotation)
        elif bone.to:
            rotation = _between(rotation @ np.array(bone.rest), joints_m[names[bone.to]] - at) @ rotation
        solved[name] = (at, rotation)
    return solved


def _frame(right: Array, up: Array, otherwise: Array) -> Array:
    """The rotation with y axis `up` and an x axis as near to `right` as possible; `otherwise` if they are parallel."""
    forward = np.cross(right, up)
    length, height = float(np.linalg.norm(forward)), float(np.linalg.norm(up))
    if length < 1e-9 or height < 1e-9:
        return otherwise
    y, z = up / height, forward / length
    return np.stack([np.cross(y, z), y, z], axis=1)


def _between(start: Array, end: Array) -> Array:
    """The shortest rotation from one direction to another; the identity if the other has no length."""
    length = float(np.linalg.norm(end))
    if length < 1e-9:
        return np.eye(3)
    a, b = start / np.linalg.norm(start), end / length
    axis, cosine = np.cross(a, b), float(a @ b)
    if cosine < -1 + 1e-9:  # opposite: half a turn about any perpendicular axis
        across = np.cross(a, np.eye(3)[np.argmin(np.abs(a))])
        across /= np.linalg.norm(across)
        return 2 * np.outer(across, across) - np.eye(3)
    x, y, z = axis
    cross = np.array([[0, -z, y], [z, 0, -x], [-y, x, 0]])
    return np.eye(3) + cross + cross @ cross / (1 + cosine)


def quaternion(rotation: Array) -> tuple[float, float, float, float]:
    """A rotation [3, 3] as a unit quaternion x, y, z, w with w >= 0."""
    # The diagonal gives the four components' squares; dividing by the largest component is numerically safe.
    m = rotation
    squares = np.array([1 + m[0, 0] - m[1, 1] - m[2, 2], 1 - m[0, 0] + m[1, 1] - m[2, 2], 1 - m[0, 0] - m[1, 1] + m[2, 2],
                        1 + np.trace(m)])  # fmt: skip
    products = np.array(
        [
            [squares[0], m[0, 1] + m[1, 0], m[0, 2] + m[2, 0], m[2, 1] - m[1, 2]],
            [m[0, 1] + m[1, 0], squares[1], m[1, 2] + m[2, 1], m[0, 2] - m[2, 0]],
            [m[0, 2] + m[2, 0], m[1, 2] + m[2, 1], squares[2], m[1, 0] - m[0, 1]],
            [m[2, 1] - m[1, 2], m[0, 2] - m[2, 0], m[1, 0] - m[0, 1], squares[3]],
        ]
    )
    row = products[np.argmax(squares)]
    row = row / np.linalg.norm(row) * (1 if row[3] >= 0 else -1)
    x, y, z, w = (float(value) for value in row)
    return x, y, z, w
