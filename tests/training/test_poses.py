"""Poses stay within what joints can do, and mirrored poses are mirrored people."""

from __future__ import annotations

import pytest

torch = pytest.importorskip("torch")
from convnextpose.skeleton import HUMAN36M  # noqa: E402
from training import families, poses  # noqa: E402
from training.body import HELD_OUT_BODIES, Body  # noqa: E402
from training.draws import Draws  # noqa: E402


def draws(count, seed=0):
    return Draws(count, torch.Generator().manual_seed(seed))


@pytest.mark.parametrize("never", [False, True])
@pytest.mark.parametrize("difficulty", [0.0, 1.0])
def test_joint_limits_hold(difficulty, never):
    angles = poses.sample(draws(500), difficulty, never)
    assert torch.isfinite(angles).all()
    assert (angles >= poses.LIMITS[:, 0]).all() and (angles <= poses.LIMITS[:, 1]).all()


@pytest.mark.parametrize("family", families.FAMILIES, ids=lambda f: f.draw.__name__)
def test_families_name_known_angles_and_are_rarely_clamped(family):
    drawn = families.relaxed(draws(300)) | family.draw(draws(300))
    assert set(drawn) == set(poses.ANGLES)
    for name, (low, high) in zip(poses.ANGLES, poses.LIMITS.tolist(), strict=True):
        angle = drawn[name].expand(300)
        assert ((angle < low - 0.15) | (angle > high + 0.15)).float().mean() < 0.12, name


def test_who_passes_walks_or_stands():
    passing = torch.arange(400) < 200
    angles = poses.sample(draws(400), 1.0, wide=1.0, passing=passing)
    lean = angles[:, poses.INDEX["root_lean"]].abs()
    assert lean[passing].max() < 0.7 < lean[~passing].max()
    assert (angles[passing][:, [poses.INDEX["R.leg_flex"], poses.INDEX["L.leg_flex"]]] < 1.3).all()


def test_wide_poses_reach_farther_within_the_limits():
    narrow, wide = (poses.sample(draws(400), 0.5, wide=share) for share in (0.0, 1.0))
    assert (wide >= poses.LIMITS[:, 0]).all() and (wide <= poses.LIMITS[:, 1]).all()
    trunk = [poses.INDEX[name] for name in poses.TRUNK]
    assert (wide[:, trunk].std(0) > 1.15 * narrow[:, trunk].std(0)).all()


def test_never_trained_families_are_never_trained():
    held_out = [f for f in families.FAMILIES if f.never]
    assert held_out and all(f.easy == f.hard == 0 for f in held_out)
    for difficulty in (0.0, 1.0):
        assert sum((1 - difficulty) * f.easy + difficulty * f.hard for f in families.FAMILIES) == pytest.approx(1, abs=0.08)


def test_a_mirrored_pose_is_the_mirrored_person():
    body = Body(512)
    angles = poses.sample(draws(64), 0.8)
    skeleton = body.shaped(torch.zeros(64, body.shapes.shape[1]))[1]
    joints = poses.move_skeleton(poses.orient(angles), skeleton)[1]
    mirrored = poses.move_skeleton(poses.orient(poses.mirror(angles)), skeleton)[1]
    expected = joints[:, list(HUMAN36M.flip_order)] * torch.tensor([-1.0, 1.0, 1.0])
    assert (mirrored - expected).abs().max() < 0.005  # the mean body is symmetric to a few mm
    assert torch.equal(poses.mirror(poses.mirror(angles)), angles)


def test_bones_keep_their_lengths():
    body = Body(512)
    skeleton = body.shaped(body.sample_shapes(32, torch.Generator().manual_seed(2)))[1]
    lengths = []
    for seed in (1, 2):
        joints = poses.move_skeleton(poses.orient(poses.sample(draws(32, seed), 1.0)), skeleton)[1]
        limbs = [(1, 2), (2, 3), (4, 5), (5, 6), (11, 12), (12, 13), (14, 15), (15, 16)]
        lengths.append(torch.stack([(joints[:, a] - joints[:, b]).norm(dim=-1) for a, b in limbs]))
    assert torch.allclose(*lengths, atol=1e-4)
    assert (lengths[0] > 0.08).all() and (lengths[0] < 0.65).all()


def test_flexion_goes_forward_and_abduction_outward():
    body = Body(512)
    skeleton = body.shaped(torch.zeros(4, body.shapes.shape[1]))[1]
    angles = torch.zeros(4, len(poses.ANGLES))
    angles[1, poses.INDEX["R.arm_flex"]] = 1.5
    angles[2, poses.INDEX["L.arm_abd"]] = 1.5
    angles[3, poses.INDEX["R.knee"]] = 1.5
    joints = poses.move_skeleton(poses.orient(angles), skeleton)[1]
    name = {n: i for i, n in enumerate(HUMAN36M.joints)}
    assert joints[1, name["R_Wrist"], 1] < joints[0, name["R_Wrist"], 1] - 0.3  # the person looks along -y
    assert joints[2, name["L_Wrist"], 0] > joints[0, name["L_Wrist"], 0] + 0.3  # the left is +x
    assert joints[3, name["R_Ankle"], 1] > joints[0, name["R_Ankle"], 1] + 0.2


def test_held_out_bodies_are_other_bodies():
    body = Body(512)
    held = body.shapes[-HELD_OUT_BODIES:]
    body.shapes = torch.cat([torch.zeros_like(body.shapes[:-HELD_OUT_BODIES]), torch.ones_like(held)])
    generator = torch.Generator().manual_seed(0)
    assert (body.sample_shapes(500, generator) == 0).all()
    assert (body.sample_shapes(500, generator, held_out=True) == 1).all()
