"""Who is where: search, detection, following, loss, re-acquisition, given boxes."""

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from convnextpose.crop import Box
from convnextpose.errors import SourceError
from engines.people import PeopleDetector, people_specs
from engines.session import SessionDescription
from engines.sessions.base import LockedSession
from pipeline.people import (
    DETECTION_INTERVAL,
    SEARCH_INTERVAL,
    DetectedPerson,
    GivenBoxes,
    Person,
    SinglePerson,
    box_from_joints,
    detect,
    search_windows,
)
from pipeline.stages import infer
from pipeline.types import Frame
from tests.pipeline.blob import BlobRuntime, picture

SIDE = 384
"""Of the frames that the detector below reads, px."""


class BlobSession(LockedSession):
    """A detector's session: it sees a frame's bright pixels as one person, and in every frame a person where nobody is."""

    def __init__(self):
        self.frames = 0
        super().__init__("blob", *people_specs(SIDE, 2), SessionDescription("blob", "1", "CPU", "exact", 1))

    def _infer(self, arrays, count):
        self.frames += count
        boxes = np.tile(np.array([[0, 0, 1, 1], [5, 5, 30, 60]], np.float32), (count, 1, 1))
        scores = np.tile(np.array([0, 0.3], np.float32), (count, 1))
        for index, frame in enumerate(arrays["frames"]):
            ys, xs = np.nonzero(frame[..., 1] > 128)
            if len(xs):
                boxes[index, 0] = xs.min(), ys.min(), np.ptp(xs) + 1, np.ptp(ys) + 1
                scores[index, 0] = 0.8
        return {"boxes": boxes, "scores": scores}

    def _release(self):
        pass


def detected(runtime):
    return DetectedPerson(runtime, PeopleDetector(BlobSession()))


def follow(boxes, width=640, height=480, runtime=None, finder=SinglePerson):
    """Run the finder over pictures with a blob at each box; returns what was found in each."""
    runtime = runtime or BlobRuntime()
    finder, found = finder(runtime), []
    for index, box in enumerate(boxes):
        frame = Frame(picture(width, height, box), "test", index, index / 25)
        people = finder.find(frame)
        sightings = infer(runtime, frame, people, finder.min_score)
        finder.observe(sightings)
        found.append(sightings[0] if sightings else None)
    return found


@settings(max_examples=15, deadline=None)
@given(st.floats(0.2, 0.9), st.floats(0, 1), st.floats(0, 1))
def test_a_person_anywhere_is_found_in_the_first_frame(size, across, down):
    height = 480 * size
    width = height * 0.4
    box = (across * (636 - width) + 2, down * (476 - height) + 2, width, height)
    (sighting,) = follow([box])
    assert sighting is not None
    assert sighting.person.box.iou(Box(*box)) > 0.4
    assert box_from_joints(sighting.joints).iou(Box(*box)) > 0.7


@settings(max_examples=25, deadline=None)
@given(st.integers(40, 1500), st.integers(40, 1500), st.floats(0.3, 0.9), st.floats(0, 1), st.floats(0, 1))
def test_detected_boxes_are_those_of_the_picture(width, height, size, across, down):
    shape = np.array([width, height])
    extent = np.maximum(size * shape, 16)
    (x, y), (w, h) = ((shape - extent) * (across, down)).round(), extent.round()
    seen = detect(PeopleDetector(BlobSession()), picture(width, height, (x, y, w, h)), 0.5)
    box = seen[0].box
    pixel = max(width, height) / SIDE  # the frame's pixels are this large
    np.testing.assert_allclose([*box.center, box.width, box.height], [x + w / 2, y + h / 2, w, h], atol=2.5 * max(1, pixel))
    for detection in seen:
        detection.box.clip(width, height)  # no part of a box is outside the picture
        assert detection.box.x >= 0 and detection.box.x + detection.box.width <= width + 1e-6


@settings(max_examples=15, deadline=None)
@given(st.floats(0.1, 0.9), st.floats(0, 1), st.floats(0, 1))
def test_a_detected_person_anywhere_is_found_in_the_first_frame(size, across, down):
    height = 480 * size
    width = height * 0.4
    box = (across * (636 - width) + 2, down * (476 - height) + 2, width, height)
    runtime = BlobRuntime()
    (sighting,) = follow([box], runtime=runtime, finder=detected)
    assert sighting is not None and box_from_joints(sighting.joints).iou(Box(*box)) > 0.7
    assert runtime.crops < 12


def test_what_the_detector_takes_for_a_person_makes_no_pose():
    assert follow([None] * 5, finder=detected) == [None] * 5


def test_a_pose_elsewhere_than_the_detector_saw_somebody_is_nobody():
    class Beside(BlobSession):
        def _infer(self, arrays, count):
            found = super()._infer(arrays, count)
            found["boxes"][..., 0] += 0.8 * found["boxes"][..., 2]
            return found

    box = (200, 100, 80, 220)
    assert follow([box], finder=detected) != [None]
    assert follow([box], finder=lambda runtime: DetectedPerson(runtime, PeopleDetector(Beside()))) == [None]


def test_a_followed_person_needs_no_detector():
    box = (200, 100, 80, 220)
    finder, runtime = detected(BlobRuntime()), BlobRuntime()
    before = finder._detector._session.frames
    for index in range(5):
        frame = Frame(picture(640, 480, box), "test", index, index / 25)
        finder.observe(infer(runtime, frame, finder.find(frame), finder.min_score))
    assert finder._detector._session.frames == before + 1


def test_whoever_comes_back_is_soon_detected_as_another_track():
    box = (200, 100, 80, 220)
    found = follow([box] * 5 + [None] * 4 + [box] * (DETECTION_INTERVAL + 1), finder=detected)
    assert all(found[:5]) and found[5:9] == [None] * 4
    assert found[-1] is not None and found[-1].person.track_id == 1


def test_an_empty_stream_is_not_read_in_every_frame():
    runtime = BlobRuntime()
    frames = 4 * DETECTION_INTERVAL
    follow([None] * frames, runtime=runtime, finder=detected)
    assert runtime.crops < 4 * 10  # the detector's ghost is read, and never more often than its turn


@pytest.mark.parametrize("finder", [SinglePerson, detected])
def test_a_person_is_followed_and_keeps_the_track(finder):
    walk = [(40 + 5 * i, 100 + i, 80, 220) for i in range(60)]
    found = follow(walk, finder=finder)
    assert all(found)
    assert {s.person.track_id for s in found} == {0}
    for box, sighting in zip(walk, found, strict=True):
        assert box_from_joints(sighting.joints).iou(Box(*box)) > 0.7


def test_an_empty_picture_has_no_person():
    assert follow([None] * 5) == [None] * 5


def test_a_lost_person_makes_no_pose_and_gets_a_new_track_when_found_again():
    box = (200, 100, 80, 220)
    found = follow([box] * 5 + [None] * 4 + [box] * (SEARCH_INTERVAL + 2))
    assert all(found[:5])
    assert found[5:9] == [None] * 4
    assert found[-1] is not None and found[-1].person.track_id == 1


def test_a_person_who_leaves_the_picture_is_let_go():
    walk = [(200 + 30 * i, 100, 80, 220) for i in range(20)]
    found = follow(walk)
    assert all(found[:8])
    assert found[-3:] == [None] * 3


def test_an_empty_stream_is_not_searched_in_every_frame():
    runtime = BlobRuntime()
    frames = 3 * SEARCH_INTERVAL
    follow([None] * frames, runtime=runtime)
    one_search = sum(map(len, search_windows(640, 480)))
    assert runtime.crops < 5 * 1.2 * one_search


@pytest.mark.parametrize("with_detector", [False, True])
def test_pictures_that_do_not_follow_each_other_are_each_searched(with_detector):
    boxes = [(10, 100, 80, 220), (500, 200, 60, 180), None, (300, 10, 100, 300)]
    runtime = BlobRuntime()
    finder = (
        DetectedPerson(runtime, PeopleDetector(BlobSession()), follows=False)
        if with_detector
        else SinglePerson(runtime, follows=False)
    )
    for index, box in enumerate(boxes):
        people = finder.find(Frame(picture(640, 480, box), "folder", index, float(index)))
        assert len(people) == (0 if box is None else 1)
        if box is not None:
            assert people[0].box.iou(Box(*box)) > 0.5


@given(st.integers(8, 4096), st.integers(8, 4096))
def test_search_windows_cover_the_picture(width, height):
    windows = [window for size in search_windows(width, height) for window in size]
    assert len(windows) < 2000
    rng = np.random.default_rng(0)
    for x, y in rng.random((20, 2)) * (width, height):
        assert any(w.x <= x <= w.x + w.width and w.y <= y <= w.y + w.height for w in windows)


def test_boxes_are_read_from_csv(tmp_path):
    path = tmp_path / "boxes.csv"
    path.write_text("frame,track_id,x,y,width,height\n0,3,1,2,30,40\n0,4,5,6,70,80\n2,3,1.5,2,30,40\n")
    finder = GivenBoxes.read(path)
    frame = [Frame(picture(8, 8), "t", i, 0.0) for i in range(3)]
    assert finder.find(frame[0]) == (Person(3, Box(1, 2, 30, 40)), Person(4, Box(5, 6, 70, 80)))
    assert finder.find(frame[1]) == ()
    assert finder.find(frame[2]) == (Person(3, Box(1.5, 2, 30, 40)),)


def test_boxes_of_a_spreadsheet_without_track_ids_are_told_apart(tmp_path):
    path = tmp_path / "boxes.csv"
    path.write_bytes("\ufeffframe, x, y, width, height\r\n0, 1, 2, 30, 40\r\n0, 5, 6, 70, 80\r\n".encode())
    people = GivenBoxes.read(path).find(Frame(picture(8, 8), "t", 0, 0.0))
    assert people == (Person(0, Box(1, 2, 30, 40)), Person(1, Box(5, 6, 70, 80)))


@pytest.mark.parametrize(
    ("text", "told"),
    [
        ("", "empty"),
        ("frame,x,y,width\n0,1,2,3\n", "'height'"),
        ("frame,x,y,width,height\n0,1,2,3,4\n1,1,2,x,4\n", "after line 2"),
        ("frame,x,y,width,height\n0,1,2,3,-4\n", "positive"),
        ("frame,x,y,width,height\n0,1,2\n", "line 2 has no width"),
        ("frame,track_id,x,y,width,height\n0,1,1,2,3,4\n0,1,5,6,7,8\n", "person 1 of frame 0 again"),
        ('{"type":"frame","index":0,"poses":[{"track_id":0,"box":[1,2,3]}]}\n', "line 1 of"),
        ("{nonsense\n", "line 1 of"),
    ],
)
def test_bad_boxes_are_refused_in_one_sentence(tmp_path, text, told):
    path = tmp_path / "boxes"
    path.write_text(text)
    with pytest.raises(SourceError, match=told) as caught:
        GivenBoxes.read(path)
    assert "\n" not in str(caught.value)


def test_missing_boxes_are_refused(tmp_path):
    with pytest.raises(SourceError, match="No such file"):
        GivenBoxes.read(tmp_path / "none.csv")
