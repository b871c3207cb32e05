"""Who is where: search, following, loss, re-acquisition, given boxes."""

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from convnextpose.crop import Box
from convnextpose.errors import SourceError
from pipeline.people import SEARCH_INTERVAL, GivenBoxes, Person, SinglePerson, box_from_joints, search_windows
from pipeline.stages import infer
from pipeline.types import Frame
from tests.pipeline.blob import BlobRuntime, picture


def follow(boxes, width=640, height=480, runtime=None):
    """Run the finder over pictures with a blob at each box; returns what was found in each."""
    runtime = runtime or BlobRuntime()
    finder, found = SinglePerson(runtime), []
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


def test_a_person_is_followed_and_keeps_the_track():
    walk = [(40 + 5 * i, 100 + i, 80, 220) for i in range(60)]
    found = follow(walk)
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


def test_pictures_that_do_not_follow_each_other_are_each_searched():
    boxes = [(10, 100, 80, 220), (500, 200, 60, 180), None, (300, 10, 100, 300)]
    runtime = BlobRuntime()
    finder = SinglePerson(runtime, follows=False)
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
