"""The world is estimated from walking people, even beside others who sit or jump, and it says how certain it is."""

import json
import math
from dataclasses import replace

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

pytest.importorskip("torch", reason="the people's bodies are those of the training")

from convnextpose.errors import GeometryError, SourceError
from convnextpose.skeleton import HUMAN36M
from convnextpose.world import GivenWorld, World, WorldOrigin, rotation_of, up_of
from pipeline.people.world import ANKLE_MM, MAX_SAMPLES, WorldEstimator
from pipeline.types import TrackEvent, TrackEventKind
from tests.cases import fast_first
from tests.pipeline.people.actors import CAMERA, Actor, film, scene, size_of

HEIGHTS = {-10: 1300.0, 0: 1400.0, 20: 2600.0, 45: 5000.0}


def pair(pitch, bodies=(14, 20)):  # of the usual size
    far = scene(pitch, HEIGHTS[pitch])
    return Actor(bodies[0], (-700, -far)), Actor(bodies[1], (800, -far - 500), phase=2.5)


def watched(actors, pitch, *, estimator=None, **options):
    estimator = estimator or WorldEstimator(HUMAN36M)
    world, scales = World.level(), {}
    for time_s, poses in film(actors, pitch, height_mm=HEIGHTS[pitch], **options):
        world, scales = estimator.step(time_s, CAMERA, poses)
    return world, scales


def tilt_degrees(world, pitch, roll=0.0):
    return math.degrees(math.acos(min(1.0, float(world.up @ up_of(pitch, roll)))))


@pytest.mark.parametrize("pitch", fast_first([45, -10, 0, 20]))
def test_two_who_walk_for_ten_seconds_tell_where_the_floor_is(pitch):
    tilts, heights = [], []
    for seed in (0, 1):
        world, scales = watched(pair(pitch), pitch, seed=seed)
        assert world.origin is world.height_origin is WorldOrigin.ESTIMATED and set(scales) == {0, 1}
        tilts.append(tilt_degrees(world, pitch))
        heights.append(abs(world.height_mm / HEIGHTS[pitch] - 1))
        assert tilts[-1] < 3 * world.tilt_error_degrees and heights[-1] * world.height_mm < 3 * world.height_error_mm
        print(f"pitch {pitch}: tilt {tilts[-1]:.2f} (said {world.tilt_error_degrees:.2f}), height off by {heights[-1]:.1%}")
    # A camera that looks up sees only distant feet: there half a degree is 8 % of the height.
    assert np.mean(tilts) < 3 and np.mean(heights) < (0.1 if pitch < 0 else 0.05)


@pytest.mark.slow
@pytest.mark.parametrize("seed", range(2))
@pytest.mark.parametrize("pitch", HEIGHTS)
def test_so_do_other_people(pitch, seed):
    world, _ = watched(pair(pitch, (2 * seed, 2 * seed + 1)), pitch, seed=seed, roll=3.0)
    assert tilt_degrees(world, pitch, 3.0) < 3 * world.tilt_error_degrees
    off = abs(world.height_mm / HEIGHTS[pitch] - 1)
    assert off < 0.3, "both may be tall, or both small: adults differ by 8 %, and half a degree matters as much"


@pytest.mark.slow
def test_who_sits_and_who_jumps_beside_them_change_little():
    far = scene(20, HEIGHTS[20])
    others = (
        Actor(9, (-1700, -far - 800), (0, 0), "sit", 0.5),
        Actor(11, (1900, -far), (0, 0), "jump"),
        Actor(12, (0, -far + 900), (0, 0), "lie", 1.0),
    )
    world, _ = watched((*pair(20), *others), 20)
    assert tilt_degrees(world, 20) < 3 and abs(world.height_mm / HEIGHTS[20] - 1) < 0.05


@pytest.mark.slow
def test_it_gets_surer_and_remembers_no_more_than_it_needs():
    estimator, errors = WorldEstimator(HUMAN36M), []
    for time_s, poses in film(pair(20), 20, height_mm=HEIGHTS[20], seconds=6):
        errors.append(estimator.step(time_s, CAMERA, poses)[0].tilt_error_degrees)
    assert errors[-1] < 0.6 * errors[0]
    for time_s, poses in film(pair(20), 20, height_mm=HEIGHTS[20], seconds=3):
        for number in range(60):  # as if the people stayed for minutes
            estimator.step(7 + 3 * number + time_s, CAMERA, poses if number % 8 == 0 else ())
    assert len(estimator._samples) <= MAX_SAMPLES


def test_long_footage_forgets_nobody_and_passers_by_fill_no_memory(monkeypatch):
    people = pair(20, (min(range(64), key=size_of), max(range(64), key=size_of)))
    whole, thinned, passers = (WorldEstimator(HUMAN36M, GivenWorld(up=up_of(20, 0))) for _ in range(3))
    for index, (time_s, poses) in enumerate(film(people, 20, height_mm=HEIGHTS[20], seconds=12, rate=5.0)):
        monkeypatch.setattr("pipeline.people.world.MAX_SAMPLES", 10**6)
        world, _ = whole.step(time_s, CAMERA, poses)
        monkeypatch.setattr("pipeline.people.world.MAX_SAMPLES", 20)
        of_some, _ = thinned.step(time_s, CAMERA, poses)
        passers.step(time_s, CAMERA, [replace(pose, track_id=2 * index + i) for i, pose in enumerate(poses)])
        assert len(thinned._samples) <= 20 and len(passers._samples) <= 20
    assert of_some.height_mm == pytest.approx(world.height_mm, rel=0.03)  # from one of them alone: 18 % less


def test_feet_stand_on_the_floor_of_the_world():
    estimator = WorldEstimator(HUMAN36M)
    feet = []
    for time_s, poses in film(pair(20), 20, height_mm=HEIGHTS[20], seconds=5):
        world, scales = estimator.step(time_s, CAMERA, poses)
        if time_s > 2:
            feet += [world.place_on_floor(p.joints_mm, 0, scales[p.track_id])[[3, 6], 1].min() for p in poses]
    assert abs(np.median(feet) - ANKLE_MM) < 30


def test_who_is_lost_and_found_again_does_not_count_several_times():
    small, large = min(range(64), key=size_of), max(range(64), key=size_of)
    whole, broken = (WorldEstimator(HUMAN36M, GivenWorld(up=up_of(20, 0))) for _ in range(2))
    for time_s, poses in film(pair(20, (small, large)), 20, height_mm=HEIGHTS[20], seconds=5, rate=5.0):
        world, _ = whole.step(time_s, CAMERA, poses)
        pieces = [replace(p, track_id=2 + int(time_s)) if p.track_id == 1 else p for p in poses]
        of_pieces, _ = broken.step(time_s, CAMERA, pieces)
    assert of_pieces.height_mm == pytest.approx(world.height_mm, rel=0.02)


def test_what_is_given_stays_and_the_rest_is_estimated():
    up = up_of(20, 0)
    world, _ = watched(pair(20), 20, estimator=WorldEstimator(HUMAN36M, GivenWorld(up=up)), seconds=4)
    assert np.allclose(world.up, up) and world.origin is WorldOrigin.GIVEN and world.tilt_error_degrees is None
    assert world.height_origin is WorldOrigin.ESTIMATED and abs(world.height_mm / HEIGHTS[20] - 1) < 0.08
    whole = World.of(up, 2600.0, WorldOrigin.GIVEN, WorldOrigin.GIVEN)
    world, scales = watched(pair(20), 20, estimator=WorldEstimator(HUMAN36M, GivenWorld(world=whole)), seconds=1)
    assert world is whole and all(scale != 1 for scale in scales.values())


def test_nobody_leaves_it_level_and_another_take_begins_anew():
    estimator = WorldEstimator(HUMAN36M)
    assert estimator.step(0.0, CAMERA, ())[0].origin is WorldOrigin.LEVEL
    for time_s, poses in film(pair(20), 20, height_mm=HEIGHTS[20], seconds=2):
        world, _ = estimator.step(time_s, CAMERA, poses)
    assert world.origin is WorldOrigin.ESTIMATED
    cut = TrackEvent(TrackEventKind.CUT, 2.0, None, "a hard cut")
    assert estimator.step(2.0, CAMERA, (), (cut,))[0].origin is WorldOrigin.LEVEL


angles = st.floats(-80, 80)


@settings(deadline=None)
@given(pitch=angles, roll=angles, height=st.floats(1, 1e5), point=st.tuples(*[st.floats(-1e4, 1e4)] * 3))
def test_a_world_is_a_rigid_transform_that_comes_back(pitch, roll, height, point):
    world = World.of(up_of(pitch, roll), height, WorldOrigin.GIVEN, WorldOrigin.LEVEL)
    assert world.pitch_degrees == pytest.approx(pitch, abs=1e-6) and world.roll_degrees == pytest.approx(roll, abs=1e-6)
    there = world.from_camera(np.array(point))
    assert np.allclose(world.to_camera(there), point, atol=1e-6)
    assert np.allclose(world.from_camera(np.zeros(3)), (0, height, 0)), "the origin is the floor below the camera"
    assert np.linalg.norm(there - (0, height, 0)) == pytest.approx(np.linalg.norm(point), abs=1e-6)
    again = World.parse(json.loads(json.dumps(world.record())))
    assert np.allclose(again.from_camera(np.array(point)), there, atol=0.1)


def test_standing_keeps_the_picture():
    joints = np.random.default_rng(1).uniform(-500, 500, (18, 3)) + np.array([0, 0, 4000])
    world = World.of(up_of(30, 5), 2000, WorldOrigin.GIVEN, WorldOrigin.GIVEN)
    moved = world.to_camera(world.place_on_floor(joints, 0, 1.2))
    assert np.allclose(moved[:, :2] / moved[:, 2:], joints[:, :2] / joints[:, 2:])
    assert np.allclose(np.diff(moved[:, 2]), np.diff(joints[:, 2])) and moved[0, 2] == pytest.approx(1.2 * joints[0, 2])


@pytest.mark.parametrize(
    "text",
    ["", "{}", "[1]", '{"world_from_camera": 7}', '{"world_from_camera": [[1,0,0,0],[0,1,0,1500],[0,0,1,"a"]]}',
     '{"world_from_camera": [[1,0,0,0],[0,2,0,1500],[0,0,1,0]]}', '{"world_from_camera": [[1,0,0,0],[0,-1,0,-5],[0,0,-1,0]]}'],
)  # fmt: skip
def test_what_is_no_camera_pose_is_refused_in_one_sentence(tmp_path, text):
    path = tmp_path / "pose.json"
    path.write_text(text)
    with pytest.raises(SourceError, match=r"pose\.json") as caught:
        GivenWorld.read(path)
    assert "\n" not in str(caught.value)


def test_a_camera_pose_is_read(tmp_path):
    matrix = np.column_stack([rotation_of(up_of(30, 0)), (100, 2500, -300)])
    path = tmp_path / "pose.json"
    path.write_text(json.dumps({"world_from_camera": matrix.tolist()}))
    world = GivenWorld.read(path).world
    assert world.origin is WorldOrigin.GIVEN and np.allclose(world.position_mm, (100, 2500, -300))
    assert world.pitch_degrees == pytest.approx(30)


@pytest.mark.parametrize(("pitch", "roll", "height"), [(90.0, None, None), (None, math.nan, None), (None, None, 0.0)])
def test_angles_of_no_camera_are_refused(pitch, roll, height):
    with pytest.raises(GeometryError, match="expected"):
        GivenWorld.of_angles(pitch, roll, height)
