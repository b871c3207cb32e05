"""OSC over UDP, one bundle a frame, for avatars (VMC, VRChat) and for instruments (plain).

Space: metres, upright in the world (`convnextpose/world.py`), the floor at height 0.

- `plain`: the world's axes: right-handed, x to the camera's right, y up, z towards the camera and behind it; the origin is the
  floor below the camera. All people.
- `vmc` and `vrchat`: Unity's left-handed axes, y up. A person who faces the camera looks along +z, with the right hand at +x.
  The origin is where the person was first seen. An avatar follows one person of the first source: the one seen longest.

Sources: VMC protocol 2.0, https://protocol.vmc.info/english; VRChat's OSC trackers,
https://docs.vrchat.com/docs/osc-trackers.
"""

from __future__ import annotations

import contextlib
import math
import socket
from collections.abc import Callable, Iterator
from dataclasses import replace
from functools import partial

import numpy as np
from numpy.typing import NDArray

from convnextpose.errors import RuntimeUnavailableError, SinkError, install_command
from convnextpose.skeleton import JointSet
from pipeline.draw import as_shown
from pipeline.rig import BONES, joint_indices, quaternion, solve
from pipeline.status import RunStatus
from pipeline.types import Pose, PosedFrame
from pipeline.view3d import Floor
from pipeline.views.base import Endpoint, View

Array = NDArray[np.float64]
Value = str | int | float
Message = tuple[str, list[Value]]
"""An OSC address and its arguments: strings, 32-bit integers and floats."""

MOST_BYTES = 60_000
"""Largest bundle, bytes, since it is one UDP datagram: people who do not fit are left out, the farthest first."""


TRACKERS = ("Hips", "LeftFoot", "RightFoot", "LeftLowerLeg", "RightLowerLeg", "LeftLowerArm", "RightLowerArm", "Spine")
"""VRChat's trackers 1 to 8: the start points of these bones."""


def euler_degrees(rotation: Array) -> tuple[float, float, float]:
    """A rotation [3, 3] as Unity's Euler angles x, y, z, degrees: about z first, then x, then y."""
    x = math.asin(float(np.clip(-rotation[1, 2], -1, 1)))
    y = math.atan2(rotation[0, 2], rotation[2, 2])
    z = math.atan2(rotation[1, 0], rotation[1, 1])
    return math.degrees(x), math.degrees(y), math.degrees(z)


class OscView:
    """A view that sends OSC bundles.

    Args:
        endpoint: the receiver's host and port.
        status: the run's status.
        style: `vmc`, `vrchat` or `plain`.

    Raises:
        RuntimeUnavailableError: python-osc is not installed.
        SinkError: the host is not known.
    """

    def __init__(self, endpoint: Endpoint, status: RunStatus, style: str) -> None:
        try:
            import pythonosc.osc_bundle_builder  # noqa: F401  # to fail now and not at the first frame
        except ImportError as error:
            raise RuntimeUnavailableError(f"OSC needs python-osc: {error}; {install_command('osc')}") from error
        try:
            found = socket.getaddrinfo(endpoint.host, endpoint.port, type=socket.SOCK_DGRAM)[0]
        except OSError as error:
            raise SinkError(f"expected a host to send OSC to, received {endpoint}: {error.strerror or error}") from error
        self._socket, self._to = socket.socket(found[0], socket.SOCK_DGRAM), found[4]
        self.name = f"osc-{style}"
        self.address = f"udp://{endpoint}"
        self._joint_sets = {source: header.joint_set for source, header in status.headers.items()}
        self._first = next(iter(self._joint_sets))
        self._floors = {source: Floor(joint_set.root) for source, joint_set in self._joint_sets.items()}
        self._messages = STYLES[style]
        self._origin: dict[int, Array] = {}

    def show(self, posed: PosedFrame, /) -> None:
        """Send a frame's bundle; if the network does not accept it, the frame is lost, as usual with UDP."""
        source = posed.frame.source_id
        if self._messages is not _plain and source != self._first:
            return
        posed = replace(posed, poses=tuple(as_shown(pose, posed.camera) for pose in posed.poses))
        floor = self._floors[source]
        floor.follow(posed.frame, posed.poses, posed.world)
        with contextlib.suppress(OSError):
            self._socket.sendto(bundle(self._messages(self, posed, floor)), self._to)

    def close(self) -> None:
        """Close the socket."""
        self._socket.close()

    def joints_of(self, posed: PosedFrame) -> JointSet:
        """The joint set of a frame's poses."""
        return self._joint_sets[posed.frame.source_id]

    def avatar(self, posed: PosedFrame, floor: Floor) -> Array | None:
        """The joints [J, 3] of the person seen longest, in Unity's axes, m, or None if nobody is seen."""
        if not posed.poses:
            return None
        pose = min(posed.poses, key=lambda pose: pose.track_id)
        place = floor.places[pose.track_id]
        origin = self._origin.setdefault(pose.track_id, place)
        self._origin = {pose.track_id: origin}
        joints = floor.joints[pose.track_id]
        x, z = place - origin
        level = joints - joints[self.joints_of(posed).root] * (1, 0, 1) + (x, 0, z)
        return -level / 1000


def bundle(messages: Iterator[Message]) -> bytes:
    """Messages as one OSC bundle with immediate execution; messages beyond MOST_BYTES are left out."""
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
    """Joints [J, 3], m, in the world."""
    level: Array = floor.joints[pose.track_id] * (1, -1, -1) / 1000
    return level


def _vmc(view: OscView, posed: PosedFrame, floor: Floor) -> Iterator[Message]:
    yield "/VMC/Ext/OK", [1]
    yield "/VMC/Ext/T", [float(posed.frame.time_s)]
    joints = view.avatar(posed, floor)
    if joints is None:
        return  # no pose to send: the avatar does not move
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
"""Functions that make a frame's messages, by style."""


def opener(style: str) -> Callable[[Endpoint, RunStatus], View]:
    """A function that opens an OSC view of a style."""
    return partial(OscView, style=style)
