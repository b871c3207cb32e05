"""One person: detection, following, loss, cuts, and being found again."""

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from convnextpose.crop import Box
from pipeline.people.detection import detect
from pipeline.people.tracks import DETECTION_INTERVAL, SinglePerson, box_from_joints
from pipeline.stages import predict
from pipeline.timeline import Stopwatch
from pipeline.types import Frame
from tests.pipeline.blob import BlobDetector, BlobModel, picture

BOX = (200, 100, 80, 220)


def follow(boxes, width=640, height=480, model=None, detector=None, times=None, pictures=None):
    """Run a finder over pictures with a blob at each box; returns the pose of each, None where there is none."""
    model = model or BlobModel()
    finder, found = SinglePerson(model, detector or BlobDetector()), []
    for index, box in enumerate(boxes):
        image = picture(width, height, box) if pictures is None else pictures[index]
        frame = Frame(image, "test", index, index / 25 if times is None else times[index])
        poses = [p for p in predict(model, image, finder.find(frame, Stopwatch())) if p.score >= finder.min_score]
        finder.observe(tuple(poses))
        found.append(poses[0] if poses else None)
    return found


@settings(max_examples=25, deadline=None)
@given(st.integers(40, 1500), st.integers(40, 1500), st.floats(0.3, 0.9), st.floats(0, 1), st.floats(0, 1))
def test_detected_boxes_are_those_of_the_picture(width, height, size, across, down):
    shape = np.array([width, height])
    extent = np.maximum(size * shape, 16)
    (x, y), (w, h) = ((shape - extent) * (across, down)).round(), extent.round()
    seen = detect(BlobDetector(), picture(width, height, (x, y, w, h)), 0.5)
    box = seen[0].box
    pixel = max(width, height) / BlobDetector.frame_size  # the letterbox's pixels are this large
    np.testing.assert_allclose([*box.center, box.width, box.height], [x + w / 2, y + h / 2, w, h], atol=2.5 * max(1, pixel))
    for detection in seen:
        detection.box.clip(width, height)  # no part of a box is outside the picture
        assert detection.box.x >= 0 and detection.box.x + detection.box.width <= width + 1e-6


@settings(max_examples=15, deadline=None)
@given(st.floats(0.1, 0.9), st.floats(0, 1), st.floats(0, 1))
def test_a_person_anywhere_is_found_in_the_first_frame(size, across, down):
    height = 480 * size
    width = height * 0.4
    box = (across * (636 - width) + 2, down * (476 - height) + 2, width, height)
    model = BlobModel()
    (pose,) = follow([box], model=model)
    assert pose is not None and box_from_joints(pose.joints).iou(Box(*box)) > 0.7
    assert model.crops < 12


def test_what_the_detector_takes_for_a_person_makes_no_pose():
    assert follow([None] * 5) == [None] * 5


def test_a_pose_elsewhere_than_the_detector_saw_somebody_is_nobody():
    class Beside(BlobDetector):
        def run(self, frames):
            seen = super().run(frames)
            seen.boxes[..., 0] += 0.8 * seen.boxes[..., 2]
            return seen

    assert follow([BOX]) != [None]
    assert follow([BOX], detector=Beside()) == [None]


def test_a_followed_person_needs_no_detector():
    detector = BlobDetector()
    assert all(follow([BOX] * 5, detector=detector))
    assert detector.frames == 1


def test_a_person_is_followed_and_keeps_the_track():
    walk = [(40 + 5 * i, 100 + i, 80, 220) for i in range(60)]
    found = follow(walk)
    assert all(found)
    assert {pose.track_id for pose in found} == {0}
    for box, pose in zip(walk, found, strict=True):
        assert box_from_joints(pose.joints).iou(Box(*box)) > 0.7


def test_a_lost_person_makes_no_pose_and_gets_a_new_track_when_found_again():
    found = follow([BOX] * 5 + [None] * 4 + [BOX] * (DETECTION_INTERVAL + 1))
    assert all(found[:5]) and found[5:9] == [None] * 4
    assert found[-1] is not None and found[-1].track_id == 1


def test_a_person_who_leaves_the_picture_is_let_go():
    found = follow([(200 + 30 * i, 100, 80, 220) for i in range(20)])
    assert all(found[:8]) and found[-3:] == [None] * 3


def test_an_empty_stream_is_not_read_in_every_frame():
    model, detector = BlobModel(), BlobDetector()
    follow([None] * 4 * DETECTION_INTERVAL, model=model, detector=detector)
    assert detector.frames <= 4 and model.crops < 4 * 10


def test_pictures_that_do_not_follow_each_other_are_each_searched():
    model = BlobModel()
    finder = SinglePerson(model, BlobDetector(), follows=False)
    for index, box in enumerate([(10, 100, 80, 220), (500, 200, 60, 180), None, (300, 10, 100, 300)]):
        boxes = finder.find(Frame(picture(640, 480, box), "folder", index, float(index)), Stopwatch())
        assert len(boxes) == (0 if box is None else 1)
        assert box is None or boxes[0].box.iou(Box(*box)) > 0.5


def scene(seed, box=BOX):
    """A picture of blocks of colour, dark enough that only the blob in it is bright."""
    blocks = np.random.default_rng(seed).integers(0, 120, (6, 8, 3)).astype(np.uint8)
    image = blocks.repeat(80, 0).repeat(80, 1)
    x, y, w, h = box
    image[y : y + h, x : x + w] = 230
    return image


def test_a_hard_cut_to_another_person_at_the_same_place_begins_a_track():
    found = follow([BOX] * 10, pictures=[scene(1)] * 5 + [scene(2)] * 5)
    assert [pose.track_id for pose in found] == [0] * 5 + [1] * 5, "and the other is found at once"


def test_light_that_changes_and_people_who_move_are_no_cut():
    dark, light = (scene(1) * 0.6).astype(np.uint8), scene(1)
    dark[BOX[1] : BOX[1] + BOX[3], BOX[0] : BOX[0] + BOX[2]] = 230
    walk = [(200 + 9 * i, 100, 80, 220) for i in range(10)]
    assert {pose.track_id for pose in follow([BOX] * 6, pictures=[light, dark] * 3)} == {0}
    assert {pose.track_id for pose in follow(walk, pictures=[scene(1, box) for box in walk])} == {0}


@pytest.mark.parametrize(("gap_s", "tracks"), [(0.5, {0}), (30.0, {0, 1}), (-5.0, {0, 1})])
def test_a_jump_in_time_ends_a_track(gap_s, tracks):
    times = [10 + i / 25 for i in range(5)]
    times += [times[-1] + gap_s + i / 25 for i in range(1, 6)]
    assert {pose.track_id for pose in follow([BOX] * 10, times=times)} == tracks
