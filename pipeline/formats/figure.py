"""A person's motion as a figure of rotating bones of constant length, for BVH and glTF.

A bone's length is its median over the track. Rotations come from the directions of bones (`pipeline/rig.py`). Hips and spine
have all three angles, from the lines through the hips and through the shoulders. Of a limb only the direction is known: it is
rotated the shortest way from its parent, and its twist about its own axis is a convention. Hands, feet and head follow their
parent bones. The rest pose is a T-pose that faces z, with the left hand towards x.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from convnextpose.skeleton import JointSet
from pipeline.rig import BONES, joint_indices, solve

Array = NDArray[np.float64]

MIRROR = np.array([-1.0, 1.0, 1.0])
"""Converts the world's right-handed axes to Unity's left-handed ones, and back."""

ENDS_MM = {
    "Head": (0.0, 100.0, 0.0),
    "LeftHand": (80.0, 0.0, 0.0),
    "RightHand": (-80.0, 0.0, 0.0),
    "LeftFoot": (0.0, 0.0, 120.0),
    "RightFoot": (0.0, 0.0, 120.0),
}
"""End points of bones without a joint at their end, mm from their start in the rest pose: for display only."""


@dataclass(frozen=True)
class Figure:
    """T frames of one person.

    Attributes:
        offsets_mm: for each bone, its start relative to its parent's in the rest pose [3], mm; 0 for the hips.
        root_mm: [T, 3] position of the hips in the world, mm.
        local: for each bone, its rotation relative to its parent [T, 3, 3].
    """

    offsets_mm: dict[str, Array]
    root_mm: Array
    local: dict[str, Array]

    @classmethod
    def of(cls, joints_mm: Array, joint_set: JointSet) -> Figure:
        """The figure of joints [T, J, 3] in the world, mm, without gaps."""
        names = joint_indices(joint_set)
        frames = [solve(joints * MIRROR / 1000, names) for joints in joints_mm]
        mirror = MIRROR[:, None] * MIRROR
        turns = {bone: np.array([frame[bone][1] for frame in frames]) * mirror for bone in BONES}
        local, offsets = {}, {}
        for bone, facts in BONES.items():
            if not facts.parent:
                local[bone], offsets[bone] = turns[bone], np.zeros(3)
                continue
            back = turns[facts.parent].transpose(0, 2, 1)
            local[bone] = back @ turns[bone]
            away = joints_mm[:, names[facts.at]] - joints_mm[:, names[BONES[facts.parent].at]]
            offsets[bone] = np.median((back @ away[..., None])[..., 0], axis=0)
        return cls(offsets, joints_mm[:, names["Pelvis"]], local)

    def places_mm(self) -> dict[str, Array]:
        """The start of each bone [T, 3], mm: forward kinematics."""
        return places_mm(self.offsets_mm, self.root_mm, self.local)

    def cost_mm(self, joints_mm: Array, joint_set: JointSet) -> float:
        """The mean distance between the figure's joints and the original ones [T, J, 3], mm: the error of constant lengths."""
        names, places = joint_indices(joint_set), self.places_mm()
        off = [np.linalg.norm(places[bone] - joints_mm[:, names[facts.at]], axis=1) for bone, facts in BONES.items()]
        return float(np.mean(off))


def places_mm(offsets_mm: dict[str, Array], root_mm: Array, local: dict[str, Array]) -> dict[str, Array]:
    """The start of each bone [T, 3], mm, from the offsets at rest, the hips' positions [T, 3] and the rotations [T, 3, 3]."""
    places, turns = {}, {}
    for bone, facts in BONES.items():
        if not facts.parent:
            places[bone], turns[bone] = root_mm, local[bone]
        else:
            places[bone] = places[facts.parent] + turns[facts.parent] @ offsets_mm[bone]
            turns[bone] = turns[facts.parent] @ local[bone]
    return places
