"""OSC: one bundle a frame, parsed by another reader, in the documented axes."""

import contextlib
import socket
from dataclasses import replace

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from convnextpose.errors import SinkError
from convnextpose.skeleton import HUMAN36M, JOINT_SETS
from convnextpose.world import World
from pipeline.rig import BONES, joint_indices, quaternion, solve
from pipeline.views.base import Endpoint
from pipeline.views.osc import STYLES, TRACKERS, OscView, euler_degrees
from tests.pipeline.formats.samples import pose
from tests.pipeline.views.client import WAIT_S, status_of
from tests.pipeline.views.client import frame as seen_frame

osc_bundle = pytest.importorskip("pythonosc.osc_bundle")

NAMES = joint_indices(HUMAN36M)
T_POSE_M = {
    "Pelvis": (0, 0.95, 0), "Torso": (0, 1.2, 0), "Neck": (0, 1.5, 0), "Nose": (0, 1.6, 0.1), "Head": (0, 1.7, 0),
    "Thorax": (0, 1.45, 0), "L_Hip": (-0.1, 0.95, 0), "R_Hip": (0.1, 0.95, 0),
    "L_Knee": (-0.1, 0.5, 0), "R_Knee": (0.1, 0.5, 0), "L_Ankle": (-0.1, 0.035, 0),
    "R_Ankle": (0.1, 0.035, 0), "L_Shoulder": (-0.2, 1.45, 0), "R_Shoulder": (0.2, 1.45, 0),
    "L_Elbow": (-0.5, 1.45, 0), "R_Elbow": (0.5, 1.45, 0), "L_Wrist": (-0.75, 1.45, 0), "R_Wrist": (0.75, 1.45, 0),
}  # fmt: skip
"""A person in the T-pose, Unity's axes: the right hand at +x, the nose at +z."""


def frame(index, *arguments, **options):
    """A frame of a level camera that is 1.2 m high."""
    return replace(seen_frame(index, *arguments, **options), world=World.level(1200))


def t_pose():
    return np.array([T_POSE_M[name] for name in HUMAN36M.joints], np.float64)


def facing_the_camera(away_mm=3000.0, track_id=1):
    """The same person in front of a level camera that is 1.2 m high, as a pose in camera space."""
    joints = t_pose() * (-1000, -1000, -1000) + (0, 1200, away_mm)
    return replace(pose(), joints_mm=joints, track_id=track_id, root_depth_mm=away_mm, scores=np.full(18, 0.9))


@contextlib.contextmanager
def sending(style, sources=("walk.mp4",)):
    with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as receiver:
        receiver.bind(("127.0.0.1", 0))
        receiver.settimeout(WAIT_S)
        view = OscView(Endpoint("127.0.0.1", receiver.getsockname()[1]), status_of(*sources), style)

        def received():
            messages = osc_bundle.OscBundle(receiver.recv(65536))
            return [(message.address, list(message)) for message in messages]

        try:
            yield view, received
        finally:
            view.close()


def test_plain_tells_everybody_in_metres_from_the_floor_below_the_camera():
    with sending("plain") as (view, received):
        view.show(frame(7, poses=(facing_the_camera(3000, 1), facing_the_camera(4000, 2))))
        (address, head), *joints = received()
        assert address == "/convnextpose/frame" and head[:2] == ["walk.mp4", 7] and head[3:] == [2, 1]
        assert len(joints) == 2 * 18
        places = {(values[1], address.rpartition("/")[2]): values[2:] for address, values in joints}
        assert np.allclose(places[1, "R_Wrist"], [-0.75, 1.45, -3.0, 0.9], atol=0.01)
        assert np.allclose(places[2, "L_Ankle"], [0.1, 0.035, -4.0, 0.9], atol=0.01)


@pytest.mark.parametrize("style", STYLES)
def test_vseeface_43_a_frame_is_one_bundle(style):
    with sending(style) as (view, received):
        for index in range(5):
            view.show(frame(index, poses=(facing_the_camera(),)))
            assert received(), f"frame {index} is one datagram that is a bundle"
        for index in range(5, 8):
            view.show(frame(index, poses=(facing_the_camera(),)))
        assert all(received() for _ in range(3)), "as many bundles as frames"


def test_vmc_of_a_t_pose_turns_no_bone_and_stands_at_the_origin():
    with sending("vmc") as (view, received):
        view.show(frame(0, poses=(facing_the_camera(),)))
        messages = received()
        assert [address for address, _ in messages[:3]] == ["/VMC/Ext/OK", "/VMC/Ext/T", "/VMC/Ext/Root/Pos"]
        bones = {values[0]: np.array(values[1:]) for address, values in messages if address == "/VMC/Ext/Bone/Pos"}
        assert set(bones) == set(BONES)
        assert all(np.allclose(values[3:], [0, 0, 0, 1], atol=1e-3) for values in bones.values())
        assert np.allclose(bones["Hips"][:3], [0, 0.95, 0], atol=0.01)
        assert np.allclose(bones["RightLowerArm"][:3], [0.3, 0, 0], atol=0.01)


def test_a_raised_arm_turns_its_bone_alone():
    person = facing_the_camera()
    raised = person.joints_mm.copy()
    shoulder = raised[NAMES["R_Shoulder"]]
    for joint, length in (("R_Elbow", 300), ("R_Wrist", 550)):
        raised[NAMES[joint]] = shoulder - (0, length, 0)
    with sending("vmc") as (view, received):
        view.show(frame(0, poses=(replace(person, joints_mm=raised),)))
        turned = {v[0]: v[4:] for a, v in received() if a == "/VMC/Ext/Bone/Pos" and abs(v[7]) < 0.999}
        assert list(turned) == ["RightUpperArm"]
        quarter_about_z = [0, 0, np.sqrt(0.5), np.sqrt(0.5)]  # from +x to +y
        assert np.allclose(turned["RightUpperArm"], quarter_about_z, atol=1e-3)


@pytest.mark.parametrize("style", STYLES)
def test_poses_that_are_smoothed_are_sent_so(style):
    person = facing_the_camera()
    raw = replace(person, joints_mm=person.joints_mm + 40.0, smoothed_mm=person.joints_mm)
    with sending(style) as (view, received):
        view.show(frame(0, poses=(person,)))
        plain = received()
    with sending(style) as (view, received):
        view.show(frame(0, poses=(raw,)))
        assert received() == plain


def test_vrchat_gets_eight_trackers_and_the_head():
    with sending("vrchat") as (view, received):
        view.show(frame(0, poses=(facing_the_camera(),)))
        messages = dict(received())
        assert len(messages) == 2 * (len(TRACKERS) + 1)
        assert np.allclose(messages["/tracking/trackers/3/position"], T_POSE_M["R_Ankle"], atol=0.01)
        assert np.allclose(messages["/tracking/trackers/head/position"], T_POSE_M["Head"], atol=0.01)
        assert all(np.allclose(values, 0, atol=0.1) for address, values in messages.items() if address.endswith("rotation"))


@pytest.mark.parametrize("style", STYLES)
def test_nobody_in_sight_moves_nothing_and_another_source_moves_no_avatar(style):
    with sending(style, ("walk.mp4", "other")) as (view, received):
        view.show(frame(0, poses=()))
        assert all("Bone" not in address and "trackers" not in address and "person" not in address for address, _ in received())
        view.show(frame(1, "other", poses=(facing_the_camera(),)))
        view.show(frame(2, poses=(facing_the_camera(),)))
        first = received()
        assert ("other" in first[0][1]) is (style == "plain")


def test_the_avatar_is_the_person_seen_longest_and_walks_with_them():
    with sending("vrchat") as (view, received):
        for index in range(100):
            people = (facing_the_camera(5000, 9), facing_the_camera(3000 + 10 * index, 4))
            view.show(frame(index, poses=people))
            hips = dict(received())["/tracking/trackers/1/position"]
        assert -1.0 < hips[2] < -0.7, "walked almost a metre away from the camera: smoothing lags a little"


def test_a_crowd_fits_a_datagram_nearest_first():
    with sending("plain") as (view, received):
        view.show(frame(0, poses=tuple(facing_the_camera(3000 + 10 * n, n) for n in range(200, 0, -1))))
        ids = [values[1] for address, values in received()[1:]]
        assert ids[0] == 1 and ids == sorted(ids) and len(set(ids)) > 20


def test_a_host_that_is_unknown_is_refused():
    with pytest.raises(SinkError, match=r"expected a host to send OSC to, received host\.invalid:9000"):
        OscView(Endpoint("host.invalid", 9000), status_of("walk.mp4"), "vmc")


numbers = st.tuples(*[st.floats(-1, 1)] * 4).map(np.array)
rotations = numbers.filter(lambda q: np.linalg.norm(q) > 0.1).map(lambda q: q / np.linalg.norm(q))


def matrix(q):
    x, y, z, w = q
    return np.array(
        [[1 - 2 * (y * y + z * z), 2 * (x * y - z * w), 2 * (x * z + y * w)],
         [2 * (x * y + z * w), 1 - 2 * (x * x + z * z), 2 * (y * z - x * w)],
         [2 * (x * z - y * w), 2 * (y * z + x * w), 1 - 2 * (x * x + y * y)]]
    )  # fmt: skip


def about(axis, degrees):
    half = np.radians(degrees) / 2
    return matrix([*(np.sin(half) * np.eye(3)[axis]), np.cos(half)])


@given(rotations)
def test_rotations_come_back_from_quaternions_and_from_unitys_angles(q):
    rotation = matrix(q)
    assert np.allclose(matrix(quaternion(rotation)), rotation, atol=1e-6)
    x, y, z = euler_degrees(rotation)
    if abs(abs(x) - 90) > 0.1:  # there y and z are not unique
        assert np.allclose(about(1, y) @ about(0, x) @ about(2, z), rotation, atol=1e-4)


@given(rotations)
def test_a_person_who_is_turned_as_a_whole_turns_the_hips_alone(q):
    joints = t_pose() @ matrix(q).T
    solved = solve(joints, NAMES)
    assert np.allclose(solved["Hips"][1], matrix(q), atol=1e-6)
    for name, bone in BONES.items():
        if bone.parent:
            assert np.allclose(solved[bone.parent][1].T @ solved[name][1], np.eye(3), atol=1e-4), name


@given(st.lists(st.floats(-2, 2), min_size=54, max_size=54), st.sampled_from(sorted(JOINT_SETS)))
def test_any_joints_give_rotations_that_point_each_bone_along_its_joints(values, joint_set):
    joint_set = JOINT_SETS[joint_set]
    joints = np.resize(np.array(values), (len(joint_set), 3))
    names = joint_indices(joint_set)
    for name, (place, rotation) in solve(joints, names).items():
        assert np.allclose(rotation @ rotation.T, np.eye(3), atol=1e-6) and np.linalg.det(rotation) > 0
        bone = BONES[name]
        along = joints[names[bone.to]] - place if bone.to else np.zeros(3)
        length = np.linalg.norm(along)
        if length > 1e-3 and name not in ("Hips", "Spine"):
            assert np.allclose(rotation @ np.array(bone.rest), along / length, atol=1e-3), name
