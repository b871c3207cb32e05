"""Smoothed poses: steadier, with little lag, and independent of the frame rate and the axes."""

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from convnextpose.camera import RootDepthSource
from convnextpose.crop import Box
from pipeline.people.smoothing import PoseSmoother
from pipeline.types import Pose


def at(joints_mm, track_id=0):
    count = len(joints_mm)
    return Pose(
        track_id, Box(0, 0, 10, 20), np.zeros((count, 2)), joints_mm, np.ones(count), joints_mm[0, 2], RootDepthSource.GIVEN
    )


def smoothed(times, poses):
    smoother = PoseSmoother(0)
    return np.array([smoother.step(t, [at(pose)])[0] for t, pose in zip(times, poses, strict=True)])


def waving(times):
    """[T, 4, 3] mm: a pelvis at rest 4 m away, and joints that swing like arms and legs."""
    phase = 2 * np.pi * np.outer(times, [0.0, 0.9, 0.9, 1.5])
    swing = np.array([0, 150, 300, 250]) * np.sin(phase + np.array([0, 0, 1, 2]))
    rest = np.array([[0, 0, 4000], [150, 400, 4000], [-150, 800, 4000], [300, -300, 3900]], np.float64)
    return rest + swing[..., None] * np.array([0.8, 0.2, 0.6])


def unrest(poses):
    return float(np.sqrt((np.diff(poses, 2, axis=0) ** 2).sum(-1).mean()))


def delay_s(times, late, early):
    """The lag of `late` behind `early`, s."""
    delays = np.arange(-0.1, 0.2, 0.002)
    flat = early.reshape(len(times), -1)
    moved = [np.stack([np.interp(times - d, times, column) for column in flat.T], axis=1) for d in delays]
    return delays[np.argmin([((late.reshape(len(times), -1) - m)[20:] ** 2).sum() for m in moved])]


@pytest.mark.parametrize("rate", [25, 60])
def test_jitter_is_halved_at_a_lag_under_30_ms(rate):
    times = np.arange(0, 10, 1 / rate)
    truth = waving(times)
    seen = truth + np.random.default_rng(3).normal(0, 12, truth.shape) * (np.arange(4) > 0)[:, None]
    calm = smoothed(times, seen)
    assert unrest(calm - truth) < 0.5 * unrest(seen - truth)
    assert delay_s(times, calm, truth) - delay_s(times, seen, truth) < 0.03


@pytest.mark.parametrize("rate", [10, 25])
def test_who_walks_by_is_not_ahead_of_the_pose_in_the_picture_though_the_depth_is_unsure(rate):
    times = np.arange(0, 4, 1 / rate)
    noise = np.random.default_rng(0).standard_normal((2, len(times)))
    depth = 4000 * (1 + 0.05 * noise[0])
    truth_px = 620 * (1400 * times - 2800) / 4000
    place = np.stack([(truth_px + 2 * noise[1]) / 620 * depth, 0.1 * depth, depth], axis=-1)
    calm = smoothed(times, place[:, None] + waving(np.zeros(1)) - [0, 0, 4000])[:, 0]
    behind_px = (truth_px - 620 * calm[:, 0] / calm[:, 2])[len(times) // 4 :]
    assert abs(behind_px.mean()) / (620 * 1400 / 4000) < 0.015, "less than 15 ms behind"
    assert unrest(calm[:, None, 2:]) < 0.6 * unrest(place[:, None, 2:])


def test_mediapipe_4507_a_person_at_rest_does_not_jitter():
    times = np.arange(0, 8, 1 / 30)
    rest = np.repeat(waving(np.zeros(1)), len(times), axis=0)
    seen = rest + np.random.default_rng(1).normal(0, 10, rest.shape)
    calm = smoothed(times, seen)[60:]
    assert unrest(calm) < 0.35 * unrest(seen) and np.abs(calm - rest[60:]).max() < 40


def test_a_pose_that_does_not_change_is_left_as_it_is():
    poses = np.repeat(waving(np.zeros(1)), 20, axis=0)
    assert np.allclose(smoothed(np.arange(20) / 10, poses), poses)


def test_the_same_motion_gives_the_same_curve_at_every_frame_rate():
    curves = []
    for rate in (120, 240):
        times = np.arange(0, 4, 1 / rate)
        curves.append(smoothed(times, waving(times))[:: rate // 60])
    assert np.abs(curves[0] - curves[1]).max() < 12


@settings(deadline=None)
@given(st.floats(0, 2 * np.pi), st.lists(st.floats(0.005, 0.3), min_size=3, max_size=20))
def test_turned_motion_gives_turned_curves(angle, gaps):
    times = np.cumsum(gaps)
    c, s = np.cos(angle), np.sin(angle)
    turn = np.array([[c, -s, 0], [s, c, 0], [0, 0, 1]])
    poses = waving(times)
    assert np.allclose(smoothed(times, poses @ turn.T), smoothed(times, poses) @ turn.T, atol=1e-6)


def test_people_are_smoothed_apart_and_anew_after_a_long_absence():
    smoother, (first, second) = PoseSmoother(0), waving(np.array([0.0, 0.3]))
    smoother.step(0.0, [at(first, 0), at(second, 1)])
    kept, gone = smoother.step(0.1, [at(second, 0), at(second, 1)])
    assert not np.allclose(kept, second) and np.allclose(gone, second)
    (back,) = smoother.step(9.0, [at(first, 1)])
    assert np.allclose(back, first)
