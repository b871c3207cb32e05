"""Laws of the scores."""

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.extra import numpy as hnp

from convnextpose.errors import GeometryError
from convnextpose.metrics import (
    align_rigid,
    align_similarity,
    bone_variation,
    mpjpe,
    pa_mpjpe,
    pck,
    picture_swap_rate,
    swap_rate,
)
from convnextpose.skeleton import HUMAN36M

poses = hnp.arrays(np.float64, (3, 18, 3), elements=st.floats(-1000, 1000))
vectors = hnp.arrays(np.float64, 3, elements=st.floats(-3, 3))


def rotation(axis_angle):
    angle = np.linalg.norm(axis_angle)
    if angle < 1e-9:
        return np.eye(3)
    x, y, z = axis_angle / angle
    k = np.array([[0, -z, y], [z, 0, -x], [-y, x, 0]])
    return np.eye(3) + np.sin(angle) * k + (1 - np.cos(angle)) * k @ k


def person(seed=0):
    return np.random.default_rng(seed).normal(0, 400, (5, 18, 3))


@given(poses, poses, vectors, vectors)
def test_pa_mpjpe_does_not_see_rotation_and_translation(predicted, truth, turn, shift):
    moved = predicted @ rotation(turn).T + 100 * shift
    assert pa_mpjpe(moved, truth, HUMAN36M) == pytest.approx(pa_mpjpe(predicted, truth, HUMAN36M), abs=1e-6)


@given(poses, vectors, vectors)
def test_alignment_undoes_a_rigid_motion(truth, turn, shift):
    moved = truth @ rotation(turn).T + 100 * shift
    assert np.allclose(align_rigid(moved, truth), truth, atol=1e-6)


@given(poses, vectors, vectors, st.floats(0.1, 10))
def test_alignment_with_scale_undoes_a_similarity(truth, turn, shift, scale):
    moved = scale * truth @ rotation(turn).T + 100 * shift
    assert np.allclose(align_similarity(moved, truth), truth, atol=1e-5)


@given(poses, poses)
def test_freedom_to_scale_never_makes_the_squared_error_larger(predicted, truth):
    def error(aligned):
        return np.square(aligned - truth).sum((-2, -1))

    assert (error(align_similarity(predicted, truth)) <= error(align_rigid(predicted, truth)) * (1 + 1e-9) + 1e-6).all()


def test_alignment_with_scale_never_mirrors():
    truth = person()
    assert np.linalg.norm(align_similarity(truth * [-1, 1, 1], truth) - truth, axis=-1).mean() > 50


def test_alignment_never_mirrors_nor_scales():
    truth = person()
    mirrored = truth * [-1, 1, 1]
    assert pa_mpjpe(mirrored, truth, HUMAN36M) > 50
    assert pa_mpjpe(2 * truth, truth, HUMAN36M) > 50


@given(poses, poses, vectors)
def test_mpjpe_does_not_see_translation_and_is_a_distance(a, b, shift):
    assert mpjpe(a + 100 * shift, b, HUMAN36M) == pytest.approx(mpjpe(a, b, HUMAN36M), abs=1e-6)
    assert mpjpe(a, b, HUMAN36M) == pytest.approx(mpjpe(b, a, HUMAN36M))
    assert mpjpe(a, a, HUMAN36M) == 0
    assert pa_mpjpe(a, b, HUMAN36M) >= 0


def test_the_thorax_is_not_scored():
    truth, moved = person(), person()
    moved[:, 17] += 1000
    assert mpjpe(moved, truth, HUMAN36M) == 0
    moved[:, 16] += [17, 0, 0]
    assert mpjpe(moved, truth, HUMAN36M) == pytest.approx(1.0)


def test_a_pose_with_left_and_right_exchanged_is_all_swaps():
    truth = person()
    exchanged = truth[:, list(HUMAN36M.flip_order)]
    assert swap_rate(truth, truth, HUMAN36M) == 0
    assert swap_rate(exchanged, truth, HUMAN36M) == 1
    assert np.isnan(swap_rate(truth * 0, truth * 0, HUMAN36M))


def test_pck_counts_joints_within_a_fifth_of_the_torso():
    truth = np.zeros((2, 4, 2))
    predicted = truth.copy()
    predicted[0, 0, 0], predicted[1, 1, 1] = 19.9, 20.1
    assert pck(predicted, truth, np.array([100.0, 100.0])) == pytest.approx(7 / 8)


@pytest.mark.parametrize("shape", [(18,), (17, 3), (18, 2)])
def test_other_shapes_are_refused(shape):
    with pytest.raises(GeometryError, match=r"\[..., 18, 3\]"):
        mpjpe(np.zeros(shape), np.zeros((18, 3)), HUMAN36M)


def test_swaps_in_the_picture_count_only_pairs_that_are_seen_and_apart():
    truth = person()[..., :2]
    seen, apart = np.ones((5, 18), bool), np.zeros(5)
    assert picture_swap_rate(truth, truth, HUMAN36M, apart, seen) == 0
    exchanged = truth[:, list(HUMAN36M.flip_order)]
    assert picture_swap_rate(exchanged, truth, HUMAN36M, apart, seen) == 1
    left, right = HUMAN36M.flip_pairs[0]
    one = truth.copy()
    one[:, [left, right]] = truth[:, [right, left]]
    assert picture_swap_rate(one, truth, HUMAN36M, apart, seen) == pytest.approx(1 / len(HUMAN36M.flip_pairs))
    seen[:, left] = False
    assert picture_swap_rate(one, truth, HUMAN36M, apart, seen) == 0
    assert np.isnan(picture_swap_rate(one, truth, HUMAN36M, apart + 1e9, seen))


@given(hnp.arrays(np.float64, (4, 3), elements=st.floats(-3, 3)), st.floats(0.1, 10))
def test_bones_of_a_body_that_only_turns_do_not_vary_and_size_does_not_matter(turns, scale):
    body = person()[0]
    assert np.allclose(bone_variation(np.stack([body @ rotation(turn).T for turn in turns]), HUMAN36M), 0, atol=1e-9)
    poses = person()
    assert np.allclose(bone_variation(scale * poses, HUMAN36M), bone_variation(poses, HUMAN36M))
    assert bone_variation(np.stack([body, 3 * body]), HUMAN36M) == pytest.approx(np.full(len(HUMAN36M.bones), 0.5))
