"""Other programs' names of joints and bones (`--names`)."""

from __future__ import annotations

from convnextpose.skeleton import JointSet
from pipeline.rig import BONES

_SIDED = {
    "Hip": ("Hip", "UpperLeg", "thigh", "UpLeg"),
    "Knee": ("Knee", "LowerLeg", "shin", "Leg"),
    "Ankle": ("Ankle", "Foot", "foot", "Foot"),
    "Toe": ("BigToe", "Toes", "toe", "ToeBase"),
    "Shoulder": ("Shoulder", "UpperArm", "upper_arm", "Arm"),
    "Elbow": ("Elbow", "LowerArm", "forearm", "ForeArm"),
    "Wrist": ("Wrist", "Hand", "hand", "Hand"),
}
"""For joints on both the left and the right: the marker (Pose2Sim, OpenSim), and the bone in Unity, Blender and Mixamo."""

_MIDDLE = {
    "Pelvis": ("Hip", "Hips", "hips", "Hips"),
    "spine": ("Spine", "Spine", "spine", "Spine"),
    "neck": ("Neck", "Neck", "neck", "Neck"),
    "Head": ("Head", "Head", "head", "Head"),
}

NAMES = {
    "own": "the joint set's names; bones have Unity's",
    "opensim": "markers as Pose2Sim names them (RHip, LAnkle)",
    "unity": "Unity's HumanBodyBones (RightUpperLeg)",
    "blender": "Rigify's, with .L and .R (thigh.R)",
    "mixamo": "Mixamo's (mixamorig:RightUpLeg)",
}
"""The naming schemes."""

_COLUMN = {"opensim": 0, "unity": 1, "blender": 2, "mixamo": 3}


def _name(scheme: str, side: str, words: tuple[str, ...]) -> str:
    word = words[_COLUMN[scheme]]
    if scheme == "opensim":
        return f"{side[:1]}{word}"
    if scheme == "blender":
        return f"{word}.{side[0]}" if side else word
    return f"{'mixamorig:' if scheme == 'mixamo' else ''}{side}{word}"


def joint_names(joint_set: JointSet, scheme: str) -> list[str]:
    """A scheme's name of each joint; joints for which it has none keep their own."""
    if scheme == "own":
        return list(joint_set.joints)
    middle = {
        "Pelvis": "Pelvis",
        "Torso" if "Torso" in joint_set.joints else "Spine": "spine",
        "Neck" if "Neck" in joint_set.joints else "Thorax": "neck",
        "Head": "Head",
    }
    names = []
    for joint in joint_set.joints:
        side, _, rest = joint.partition("_")
        if side in ("L", "R") and rest in _SIDED:
            names.append(_name(scheme, {"L": "Left", "R": "Right"}[side], _SIDED[rest]))
        elif joint in middle:
            names.append(_name(scheme, "", _MIDDLE[middle[joint]]))
        else:
            names.append(joint.replace("_", "") if scheme == "opensim" else joint)
    return names


def bone_names(scheme: str) -> dict[str, str]:
    """A scheme's name of each bone of `pipeline.rig.BONES`."""
    names = {}
    for bone, facts in BONES.items():
        side, _, rest = facts.at.partition("_")
        if scheme == "own":
            names[bone] = bone
        elif rest in _SIDED:
            names[bone] = _name(scheme, {"L": "Left", "R": "Right"}[side], _SIDED[rest])
        else:
            names[bone] = _name(scheme, "", _MIDDLE[facts.at])
    return names
