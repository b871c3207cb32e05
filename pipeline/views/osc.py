"""OSC over UDP, one bundle a frame, for avatars (VMC, VRChat) and for instruments (plain).

Space: metres, the camera taken to be level, the floor at height 0 where the feet are.

- `plain`: right-handed, x to the camera's right, y up, z towards the camera and behind it; the origin is the floor below the
  camera. All people.
- `vmc` and `vrchat`: Unity's left-handed axes, y up. Somebody who faces the camera looks along +z, the right hand at +x; the
  origin is where the person was first seen. An avatar follows one person: of the first source, the one seen longest.

Sources: VMC protocol 2.0, https://protocol.vmc.info/english; VRChat's OSC trackers,
https://docs.vrchat.com/docs/osc-trackers.
"""

from __future__ import annotations

import contextlib
import math
import socket
from collections.abc import Callable, Iterator
from dataclasses import dataclass, replace
from functools import partial

import numpy as np
from numpy.typing import NDArray

from convnextpose.errors import RuntimeUnavailableError, SinkError, install_command
from convnextpose.skeleton import JointSet
from pipeline.draw import as_shown
from pipeline.status import RunStatus
from pipeline.types import Pose, PosedFrame
from pipeline.view3d import Floor
from pipeline.views.base import Place, View

Array = NDArray[np.float64]
Value = str | int | float
Message = tuple[str, list[Value]]
"""An OSC address and its arguments: strings, 32-bit integers and floats."""

MOST_BYTES = 60_000
"""A bundle is one UDP datagram: of a crowd, those who do not fit are left out, the farthest first."""


@dataclass(frozen=True)
class Bone:
    """A bone of Unity's humanoid.

    Attributes:
        parent: the bone that it hangs on; empty for the hips.
        at: the joint that it begins at.
        to: the joint that it points to; empty where it follows its parent.
        rest: its direction in the T-pose, Unity's axes.
    """

    parent: str
    at: str
    to: str
    rest: tuple[float, float, float] = (0.0, 1.0, 0.0)


def _limbs(side: str, letter: str, out: float) -> dict[str, Bone]:
    """One side's leg and arm."""
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
"""Parents before children. `spine` and `neck` are the joints that the joint sets call Torso or Spine, and Neck or Thorax."""

_FRAMES = {"Hips": ("L_Hip", "R_Hip"), "Spine": ("L_Shoulder", "R_Shoulder")}
"""Bones whose turn about their own axis is seen: the pair of joints that lies across them."""

TRACKERS = ("Hips", "LeftFoot", "RightFoot", "LeftLowerLeg", "RightLowerLeg", "LeftLowerArm", "RightLowerArm", "Spine")
"""VRChat's trackers 1 to 8: where these bones begin."""


def joint_indices(joint_set: JointSet) -> dict[str, int]:
    """The joints by name, with `spine` and `neck` for what each joint set calls them."""
    names = {name: index for index, name in enumerate(joint_set.joints)}
    names["spine"] = names["Torso"] if "Torso" in names else names["Spine"]
    names["neck"] = names["Neck"] if "Neck" in names else names["Thorax"]
    return names


def solve(joints_m: Array, names: dict[str, int]) -> dict[str, tuple[Array, Array]]:
    """Where Unity's humanoid bones begin, and how they are turned out of the T-pose.

    A limb is turned the shortest way from its parent's direction to its own: its turn about its own axis cannot be seen.

    Args:
        joints_m: [J, 3] in Unity's axes, m.
        names: the joints' indices by name, of `joint_indices`.

    Returns:
        For each bone its place [3], m, and its rotation [3, 3], both in the space of `joints_m`.
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
    """The rotation with this y axis, and an x axis as near to `right` as that allows; `otherwise` where they are parallel."""
    forward = np.cross(right, up)
    length, height = float(np.linalg.norm(forward)), float(np.linalg.norm(up))
    if length < 1e-9 or height < 1e-9:
        return otherwise
    y, z = up / height, forward / length
    return np.stack([np.cross(y, z), y, z], axis=1)


def _between(start: Array, end: Array) -> Array:
    """The shortest rotation from one direction to another; none where the other has no length."""
    length = float(np.linalg.norm(end))
    if length < 1e-9:
        return np.eye(3)
    a, b = start / np.linalg.norm(start), end / length
    axis, cosine = np.cross(a, b), float(a @ b)
    if cosine < -1 + 1e-9:  # opposite: half a turn about any axis across
        across = np.cross(a, np.eye(3)[np.argmin(np.abs(a))])
        across /= np.linalg.norm(across)
        return 2 * np.outer(across, across) - np.eye(3)
    x, y, z = axis
    cross = np.array([[0, -z, y], [z, 0, -x], [-y, x, 0]])
    return np.eye(3) + cross + cross @ cross / (1 + cosine)


def quaternion(rotation: Array) -> tuple[float, float, float, float]:
    """A rotation [3, 3] as a unit quaternion x, y, z, w with w >= 0."""
    # The four squares are found from the diagonal; the largest component is the safe one to divide by.
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


def euler_degrees(rotation: Array) -> tuple[float, float, float]:
    """A rotation [3, 3] as Unity's Euler angles x, y, z, degrees: about z first, then x, then y."""
    x = math.asin(float(np.clip(-rotation[1, 2], -1, 1)))
    y = math.atan2(rotation[0, 2], rotation[2, 2])
    z = math.atan2(rotation[1, 0], rotation[1, 1])
    return math.degrees(x), math.degrees(y), math.degrees(z)


class OscView:
    """Sends OSC bundles. A view.

    Args:
        place: where to.
        status: what the run is and does.
        style: `vmc`, `vrchat` or `plain`.

    Raises:
        RuntimeUnavailableError: python-osc is not installed.
        SinkError: the host is not known.
    """

    def __init__(self, place: Place, status: RunStatus, style: str) -> None:
        try:
            import pythonosc.osc_bundle_builder  # noqa: F401  # so that it is missed now and not at the first frame
        except ImportError as error:
            raise RuntimeUnavailableError(f"OSC needs python-osc: {error}; {install_command('osc')}") from error
        try:
            found = socket.getaddrinfo(place.host, place.port, type=socket.SOCK_DGRAM)[0]
        except OSError as error:
            raise SinkError(f"expected a host to send OSC to, received {place}: {error.strerror or error}") from error
        self._socket, self._to = socket.socket(found[0], socket.SOCK_DGRAM), found[4]
        self.name = f"osc-{style}"
        self.address = f"udp://{place}"
        self._joint_sets = {source: header.joint_set for source, header in status.headers.items()}
        self._first = next(iter(self._joint_sets))
        self._floors = {source: Floor(joint_set.root) for source, joint_set in self._joint_sets.items()}
        self._messages = STYLES[style]
        self._origin: dict[int, Array] = {}

    def show(self, posed: PosedFrame, /) -> None:
        """Send a frame's bundle; where the network does not take it, the frame is lost, as UDP has it."""
        source = posed.frame.source_id
        if self._messages is not _plain and source != self._first:
            return
        posed = replace(posed, poses=tuple(as_shown(pose, posed.camera) for pose in posed.poses))
        floor = self._floors[source]
        floor.follow(posed.frame, posed.poses)
        with contextlib.suppress(OSError):
            self._socket.sendto(bundle(self._messages(self, posed, floor)), self._to)

    def close(self) -> None:
        """Close the socket."""
        self._socket.close()

    def joints_of(self, posed: PosedFrame) -> JointSet:
        """The joint set of a frame's poses."""
        return self._joint_sets[posed.frame.source_id]

    def avatar(self, posed: PosedFrame, floor: Floor) -> Array | None:
        """The joints [J, 3] of the person seen longest, in Unity's axes, m, or None where nobody is seen."""
        if not posed.poses:
            return None
        pose = min(posed.poses, key=lambda pose: pose.track_id)
        place = floor.places[pose.track_id]
        origin = self._origin.setdefault(pose.track_id, place)
        self._origin = {pose.track_id: origin}
        root = pose.joints_mm[self.joints_of(posed).root]
        x, z = place - origin
        level = pose.joints_mm - root * (1, 0, 1) + (x, -floor.ground, z)
        return -level / 1000


def bundle(messages: Iterator[Message]) -> bytes:
    """Messages as one OSC bundle, to be acted on at once; what would make it longer than MOST_BYTES is left out."""
    from pythonosc.osc_bundle_builder import IMMEDIATELY, OscBundleBuilder
    from pythonosc.osc_message_builder import OscMessageBuilder

    builder, size = OscBundleBuilder(IMMEDIATELY), 16
    for address, values in messages:
        message = OscMessageBuilder(address)
        for value in values:
            message.add_arg(value, {str: "s", int: "i", float: "f"}[type(value)])
        built = message.build()
        size += 4 + built.size
        if size > MOST_BYTES:
            break
        builder.add_content(built)
    return builder.build().dgram


def _plain(view: OscView, posed: PosedFrame, floor: Floor) -> Iterator[Message]:
    source, joints = posed.frame.source_id, view.joints_of(posed)
    guess = int(any(pose.root_depth_source.value not in ("intrinsics", "given") for pose in posed.poses))
    index = posed.frame.index % 2**31
    yield "/convnextpose/frame", [source, index, float(posed.frame.time_s), len(posed.poses), guess]
    for pose in sorted(posed.poses, key=lambda pose: pose.root_depth_mm):
        for name, place, score in zip(joints.joints, _level_m(pose, floor), pose.scores, strict=True):
            yield f"/convnextpose/person/{name}", [source, pose.track_id % 2**31, *_floats(place), float(score)]


def _level_m(pose: Pose, floor: Floor) -> Array:
    """Joints [J, 3], m: x right, y up from the floor, z towards the camera."""
    level: Array = (pose.joints_mm - (0, floor.ground, 0)) * (1, -1, -1) / 1000
    return level


def _vmc(view: OscView, posed: PosedFrame, floor: Floor) -> Iterator[Message]:
    yield "/VMC/Ext/OK", [1]
    yield "/VMC/Ext/T", [float(posed.frame.time_s)]
    joints = view.avatar(posed, floor)
    if joints is None:
        return  # the avatar stays as it is: there is no pose to send
    yield "/VMC/Ext/Root/Pos", ["root", 0.0, 0.0, 0.0, 0.0, 0.0, 0.0, 1.0]
    solved = solve(joints, joint_indices(view.joints_of(posed)))
    for name, (place, rotation) in solved.items():
        parent_place, parent = solved.get(BONES[name].parent, (np.zeros(3), np.eye(3)))
        local = parent.T @ (place - parent_place)
        yield "/VMC/Ext/Bone/Pos", [name, *_floats(local), *quaternion(parent.T @ rotation)]


def _vrchat(view: OscView, posed: PosedFrame, floor: Floor) -> Iterator[Message]:
    joints = view.avatar(posed, floor)
    if joints is None:
        return
    names = joint_indices(view.joints_of(posed))
    solved = solve(joints, names)
    for number, name in enumerate(TRACKERS, 1):
        place, rotation = solved[name]
        yield f"/tracking/trackers/{number}/position", list(_floats(place))
        yield f"/tracking/trackers/{number}/rotation", list(euler_degrees(rotation))
    yield "/tracking/trackers/head/position", list(_floats(solved["Head"][0]))
    yield "/tracking/trackers/head/rotation", list(euler_degrees(solved["Head"][1]))


def _floats(place: Array) -> tuple[float, float, float]:
    x, y, z = (float(value) for value in place)
    return x, y, z


STYLES: dict[str, Callable[[OscView, PosedFrame, Floor], Iterator[Message]]] = {"vmc": _vmc, "vrchat": _vrchat, "plain": _plain}
"""What is sent of a frame, by style."""


def opener(style: str) -> Callable[[Place, RunStatus], View]:
    """What opens an OSC view of a style."""
    return partial(OscView, style=style)
