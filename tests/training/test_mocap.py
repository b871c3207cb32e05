"""Captured poses keep their directions and twists on any body, and come with their share of the people."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

torch = pytest.importorskip("torch")
from convnextpose.errors import SourceError  # noqa: E402
from convnextpose.skeleton import HUMAN36M  # noqa: E402
from training import mocap, poses  # noqa: E402
from training.body import SEGMENT, Body, rotation  # noqa: E402
from training.dataset import Renderer  # noqa: E402
from training.draws import Draws  # noqa: E402
from training.mocap import BODY_FROM_CAPTURE, FOOT, HAND, HEAD, Mocap, exponential, limited, logarithm  # noqa: E402
from training.plan import Plan  # noqa: E402
from training.stream import PoseChunks  # noqa: E402

SKELETON = {  # name: parent, offset in mm; a T-pose, the left at +x, z forward
    "hip": (None, (0, 0, 0)), "abdomen": ("hip", (0, 200, -7)), "chest": ("abdomen", (0, 120, -5)),
    "neck": ("chest", (0, 220, -20)), "head": ("neck", (0, 70, 12)),
} | {
    f"{side}{name}": (parent if parent in ("hip", "chest") else f"{side}{parent}", (sign * x, y, z))
    for side, sign in (("l", 1), ("r", -1))
    for name, parent, (x, y, z) in (
        ("Collar", "chest", (27, 190, -50)), ("Shldr", "Collar", (90, -20, 15)), ("ForeArm", "Shldr", (280, -17, 5)),
        ("Hand", "ForeArm", (225, 8, 70)), ("Buttock", "hip", (90, 40, 12)), ("Thigh", "Buttock", (0, -17, -20)),
        ("Shin", "Thigh", (0, -370, 7)), ("Foot", "Shin", (-7, -450, -50)),
    )
}  # fmt: skip
NAMES = list(SKELETON)
PARENTS = [-1 if parent is None else NAMES.index(parent) for parent, _ in SKELETON.values()]
OFFSETS = np.array([offset for _, offset in SKELETON.values()], np.float32)
OURS = {"Shoulder": "Shldr", "Elbow": "ForeArm", "Wrist": "Hand", "Hip": "Thigh", "Knee": "Shin", "Ankle": "Foot"}
BONES = [(f"{s}_{a}", f"{s}_{b}") for s in "LR" for a, b in
         (("Shoulder", "Elbow"), ("Elbow", "Wrist"), ("Hip", "Knee"), ("Knee", "Ankle"))]  # fmt: skip


def write(path, vectors, yaw=None):
    """A file of captured poses: rotation vectors [P, 21, 3], rad."""
    stored = np.round(np.asarray(vectors) / np.pi * 32767).astype(np.int16)
    yaw = np.zeros(len(stored)) if yaw is None else np.asarray(yaw)
    np.savez(
        path, rotvec=stored, yaw=np.round(yaw / np.pi * 32767).astype(np.int16), names=np.array(NAMES),
        parents=np.array(PARENTS, np.int8), offsets=OFFSETS,
    )  # fmt: skip
    return path


def random_vectors(count, seed, largest=0.9):
    vectors = np.random.default_rng(seed).normal(0, 0.4, (count, len(NAMES), 3))
    return vectors.clip(-largest, largest)


def captured_joints(vectors):
    """Where the skeleton's joints are [P, 21, 3], in the body's axes."""
    turned, placed = [], []
    for index, parent in enumerate(PARENTS):
        local = exponential(torch.tensor(vectors[:, index], dtype=torch.float32))
        turned.append(local if parent < 0 else turned[parent] @ local)
        offset = torch.tensor(OFFSETS[index])
        placed.append(torch.zeros(len(vectors), 3) if parent < 0 else placed[parent] + turned[parent] @ offset)
    return torch.stack(placed, 1) @ torch.tensor(BODY_FROM_CAPTURE).T


def direction(joints, index, a, b):
    return torch.nn.functional.normalize(joints[:, index(b)] - joints[:, index(a)], dim=-1)


@pytest.fixture(scope="module")
def body():
    return Body(512)


@given(st.integers(0, 2**32 - 1))
@settings(max_examples=25, deadline=None)
def test_limbs_point_as_captured_on_any_body(tmp_path_factory, body, seed):
    vectors = random_vectors(8, seed)
    captured = Mocap(write(tmp_path_factory.mktemp("mocap") / "poses.npz", vectors))
    rest = body.shaped(body.sample_shapes(8, torch.Generator().manual_seed(seed)))[1]
    joints = poses.move_skeleton(captured.orientations, rest)[1]
    theirs = captured_joints(vectors)
    for a, b in BONES:
        side = a[0].lower()
        ours = direction(joints, HUMAN36M.joints.index, a, b)
        wanted = direction(theirs, NAMES.index, side + OURS[a[2:]], side + OURS[b[2:]])
        assert torch.rad2deg(torch.acos((ours * wanted).sum(-1).clamp(-1, 1))).max() < 1, (a, b)


def test_a_t_pose_is_a_t_pose(tmp_path, body):
    turned = Mocap(write(tmp_path / "poses.npz", np.zeros((1, len(NAMES), 3)))).orientations
    upright = [SEGMENT[name] for name in ("pelvis", "sp1", "sp2", "chest", "neck", "head", "clavR", "footL", "toesR")]
    torch.testing.assert_close(turned[0, upright], torch.eye(3).expand(len(upright), 3, 3))
    angles = torch.zeros(1, len(poses.ANGLES))
    angles[:, [poses.INDEX["R.arm_abd"], poses.INDEX["L.arm_abd"]]] = torch.pi / 2
    ours = poses.orient(angles)[0]
    for name in ("uarmR", "uarmL", "thighR", "thighL"):  # palms and knees face as ours do, not only the bones
        apart = logarithm(ours[SEGMENT[name]].mT @ turned[0, SEGMENT[name]]).norm()
        assert apart < 0.15, name


def test_a_twisted_arm_turns_the_hand_not_the_bone(tmp_path, body):
    vectors = np.zeros((2, len(NAMES), 3))
    along = OFFSETS[NAMES.index("lForeArm")] / np.linalg.norm(OFFSETS[NAMES.index("lForeArm")])
    vectors[1, NAMES.index("lShldr")] = 0.8 * along
    turned = Mocap(write(tmp_path / "poses.npz", vectors)).orientations
    bone = turned[:, SEGMENT["uarmL"]] @ torch.tensor([0.0, 0.0, -1.0])
    torch.testing.assert_close(bone[0], bone[1], atol=1e-3, rtol=0)
    twist = logarithm(turned[0, SEGMENT["handL"]].mT @ turned[1, SEGMENT["handL"]]).norm()
    assert twist == pytest.approx(0.8, abs=1e-3)


def test_facing_is_forward(tmp_path):
    yaw = np.array([0.7, -2.0])
    vectors = np.zeros((2, len(NAMES), 3))
    vectors[:, 0, 1] = yaw  # the root turned by what the file says was the facing
    turned = Mocap(write(tmp_path / "poses.npz", vectors, yaw)).orientations[:, SEGMENT["pelvis"]]
    torch.testing.assert_close(turned, torch.eye(3).expand(2, 3, 3), atol=1e-3, rtol=0)


@given(st.integers(0, 2**32 - 1))
@settings(max_examples=25, deadline=None)
def test_hands_feet_and_head_keep_their_limits(tmp_path_factory, seed):
    vectors = np.random.default_rng(seed).normal(0, 1.5, (8, len(NAMES), 3)).clip(-1.8, 1.8)
    turned = Mocap(write(tmp_path_factory.mktemp("mocap") / "poses.npz", vectors)).orientations
    torch.testing.assert_close(turned @ turned.mT, torch.eye(3).expand(8, 24, 3, 3), atol=1e-4, rtol=0)
    for side in "RL":
        apart = logarithm(turned[:, SEGMENT["larm" + side]].mT @ turned[:, SEGMENT["hand" + side]]).norm(dim=-1)
        assert apart.max() < HAND + 0.01
        shin = turned[:, SEGMENT["shank" + side]].mT @ turned[:, SEGMENT["foot" + side]]
        assert logarithm(shin).norm(dim=-1).max() < FOOT + 0.15  # the resting shank of this skeleton leans by 0.11 rad
    assert logarithm(turned[:, SEGMENT["chest"]].mT @ turned[:, SEGMENT["head"]]).norm(dim=-1).max() < HEAD + 0.01


@given(st.lists(st.floats(-1.7, 1.7), min_size=3, max_size=3), st.floats(0.1, 2))
def test_rotations_have_logarithms_and_limits(vector, most):
    vector = torch.tensor(vector)
    turned = exponential(vector)
    torch.testing.assert_close(turned @ turned.mT, torch.eye(3), atol=1e-5, rtol=0)
    torch.testing.assert_close(logarithm(turned), vector, atol=2e-3, rtol=0)
    held = logarithm(limited(turned, most))
    torch.testing.assert_close(held, vector * min(1.0, most / max(vector.norm().item(), 1e-9)), atol=2e-3, rtol=0)


def test_small_turns_are_those_about_an_axis():
    angle = torch.tensor([0.0, 1e-4, 0.5, 3.0])
    axis = torch.tensor([0.0, 0.0, 1.0])
    torch.testing.assert_close(exponential(angle[:, None] * axis), rotation((0.0, 0.0, 1.0), angle), atol=1e-6, rtol=0)


def test_a_mirrored_capture_is_the_mirrored_person(tmp_path, body):
    turned = Mocap(write(tmp_path / "poses.npz", random_vectors(16, 4))).orientations
    rest = body.shaped(torch.zeros(16, body.shapes.shape[1]))[1]
    joints, mirrored = (poses.move_skeleton(t, rest)[1] for t in (turned, poses.mirror_orientations(turned)))
    expected = joints[:, list(HUMAN36M.flip_order)] * torch.tensor([-1.0, 1.0, 1.0])
    assert (mirrored - expected).abs().max() < 0.005
    assert torch.equal(poses.mirror_orientations(poses.mirror_orientations(turned)), turned)
    angles = poses.sample(Draws(16, torch.Generator().manual_seed(0)), 0.8)
    torch.testing.assert_close(poses.orient(poses.mirror(angles)), poses.mirror_orientations(poses.orient(angles)))


@pytest.mark.parametrize("damage", ["missing", "half a file", "another skeleton", "no poses"])
def test_a_damaged_file_is_told(tmp_path, monkeypatch, damage):
    path = tmp_path / "poses.npz"
    if damage != "missing":
        if damage == "another skeleton":
            monkeypatch.setitem(globals(), "NAMES", ["tail", *NAMES[1:]])
        write(path, np.zeros((0 if damage == "no poses" else 2, len(PARENTS), 3)))
        if damage == "half a file":
            path.write_bytes(path.read_bytes()[:400])
    with pytest.raises(SourceError, match=r"training/README\.md"):
        Mocap(path)


def test_only_the_first_poses_are_used(tmp_path, monkeypatch):
    monkeypatch.setattr(mocap, "COUNT", 3)
    assert len(Mocap(write(tmp_path / "poses.npz", random_vectors(5, 0))).orientations) == 3


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    """A data folder whose captured people all stand on their heads."""
    root = tmp_path_factory.mktemp("data")
    vectors = np.zeros((2, len(NAMES), 3))
    vectors[:, 0, 0] = np.pi - 0.001
    write(root / "mocap_poses.npz", vectors)
    return root


def upside_down(crops):
    return crops.camera_mm[:, HUMAN36M.joints.index("Head"), 1] > crops.camera_mm[:, 0, 1] + 300


def test_the_share_of_the_people_is_captured(folder):
    renderer = Renderer("cpu", 64, data=folder)
    for share, low, high in ((0.0, 0, 2), (0.5, 8, 24), (1.0, 31, 32)):
        crops = renderer.batch(32, 0.0, renderer.generator(1), mocap=share)
        assert low <= upside_down(crops).sum() <= high
    never = renderer.batch(16, 0.0, renderer.generator(1), mocap=1.0, far=1.0)
    assert 3 <= upside_down(never).sum() <= 13  # of those far off, who walk or stand are no captured ones


def test_chunks_take_their_poses_from_the_folder(folder):
    plan = Plan(size=64, chunk=4, mocap=1.0, far=0.0)
    first, again, without = (
        PoseChunks("cpu", 64, data).render(p, 0) for p, data in ((plan, folder), (plan, folder), (Plan(size=64, chunk=4), None))
    )
    assert torch.equal(first[0], again[0]) and not torch.equal(first[1], without[1])
    with pytest.raises(ValueError, match="data folder"):
        PoseChunks("cpu", 64).render(plan, 0)
