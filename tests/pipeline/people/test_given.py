"""Given boxes: their file formats, and every way in which such a file can be wrong."""

import json

import pytest
from hypothesis import given
from hypothesis import strategies as st

from convnextpose.crop import Box
from convnextpose.errors import SourceError
from pipeline.people.given import GivenBoxes
from pipeline.stages import TrackedBox
from pipeline.timeline import Stopwatch
from pipeline.types import Frame
from tests.pipeline.blob import picture


def people(finder, index):
    return finder.find(Frame(picture(8, 8), "t", index, 0.0), Stopwatch())


def test_boxes_are_read_from_csv(tmp_path):
    path = tmp_path / "boxes.csv"
    path.write_text("frame,track_id,x,y,width,height\n0,3,1,2,30,40\n0,4,5,6,70,80\n2,3,1.5,2,30,40\n")
    finder = GivenBoxes.read(path)
    assert people(finder, 0) == (TrackedBox(3, Box(1, 2, 30, 40)), TrackedBox(4, Box(5, 6, 70, 80)))
    assert people(finder, 1) == ()
    assert people(finder, 2) == (TrackedBox(3, Box(1.5, 2, 30, 40)),)


def test_boxes_of_a_spreadsheet_without_track_ids_are_told_apart(tmp_path):
    path = tmp_path / "boxes.csv"
    path.write_bytes("\ufeffframe, x, y, width, height\r\n0, 1, 2, 30, 40\r\n0, 5, 6, 70, 80\r\n".encode())
    assert people(GivenBoxes.read(path), 0) == (TrackedBox(0, Box(1, 2, 30, 40)), TrackedBox(1, Box(5, 6, 70, 80)))


rows_of_boxes = st.tuples(st.integers(0, 50), st.floats(0, 500), st.floats(0, 300), st.floats(1, 100), st.floats(1, 100))
boxes = st.lists(rows_of_boxes, min_size=1, max_size=20)


@given(boxes)
def test_every_format_gives_the_same_boxes(tmp_path_factory, rows):
    folder = tmp_path_factory.mktemp("boxes")
    texts = {
        "a.csv": "frame,x,y,width,height\n" + "".join(f"{f},{x!r},{y!r},{w!r},{h!r}\n" for f, x, y, w, h in rows),
        "b.csv": "frame,x1,y1,x2,y2\n" + "".join(f"{f},{x!r},{y!r},{x + w!r},{y + h!r}\n" for f, x, y, w, h in rows),
        "c.txt": "".join(f"{f + 1},-1,{x + 1!r},{y + 1!r},{w!r},{h!r},0.9,-1,-1,-1\n" for f, x, y, w, h in rows),
    }
    finders = []
    for name, text in texts.items():
        (folder / name).write_text(text)
        finders.append(GivenBoxes.read(folder / name))
    for index in range(51):
        first, *others = (people(finder, index) for finder in finders)
        for other in others:
            assert [p.track_id for p in other] == [p.track_id for p in first]
            for a, b in zip(first, other, strict=True):
                assert (a.box.x, a.box.y) == pytest.approx((b.box.x, b.box.y), abs=1e-9)
                assert (a.box.width, a.box.height) == pytest.approx((b.box.width, b.box.height), abs=1e-9)


def test_corners_taken_for_sides_are_noticed(tmp_path):
    path = tmp_path / "boxes.csv"
    path.write_text("frame,x,y,width,height\n" + "".join(f"{i},{300 + i},120,{420 + i},460\n" for i in range(20)))
    with pytest.raises(SourceError, match="x1,y1,x2,y2"):
        GivenBoxes.read(path).check(path, 640, 480)
    path.write_text("frame,x,y,width,height\n" + "".join(f"{i},{300 + i},120,120,340\n" for i in range(20)))
    GivenBoxes.read(path).check(path, 640, 480)


@given(boxes)
def test_boxes_inside_the_picture_are_never_taken_for_corners(rows):
    finder = GivenBoxes({i: (TrackedBox(0, Box(x, y, w, h)),) for i, (_, x, y, w, h) in enumerate(rows)})
    finder.check("boxes.csv", 640, 480)


def deep(levels):
    return "[" * levels + "]" * levels


@pytest.mark.parametrize(
    ("text", "told"),
    [
        ("", "empty"),
        ("frame,x,y,width\n0,1,2,3\n", "'height'"),
        ("frame,x,y,width,height\n0,1,2,3,4\n1,1,2,x,4\n", "beyond line 2"),
        ("frame,x,y,width,height\n0,1,2,3,-4\n", "positive"),
        ("frame,x,y,width,height\n0,1,2\n", "line 2 has no width"),
        ("frame,track_id,x,y,width,height\n0,1,1,2,3,4\n0,1,5,6,7,8\n", "person 1 of frame 0 again"),
        (f"frame,track_id,x,y,width,height\n0,{2**63},1,2,3,4\n", "whole number"),
        ("frame,track_id,x,y,width,height\n0,nan,1,2,3,4\n", "whole number"),
        ("frame,track_id,x,y,width,height\n0,1.5,1,2,3,4\n", "whole number"),
        ("frame,x,y,width,height\n0," + "1" * 140_000 + ",2,3,4\n", "field"),
        ("1,1,2\n", "3 columns"),
        ('{"type":"frame","index":0,"poses":[{"track_id":0,"box":[1,2,3]}]}\n', "line 1 of"),
        ("{nonsense\n", "line 1 of"),
        ('{"a":' + deep(100_000) + "}\n", "line 1"),
        ('{"type":"header","width":1' + "0" * 5000 + "}\n", "line 1"),
    ],
)
def test_bad_boxes_are_refused_in_one_sentence(tmp_path, text, told):
    path = tmp_path / "boxes"
    path.write_text(text)
    with pytest.raises(SourceError, match=told) as caught:
        GivenBoxes.read(path)
    assert "\n" not in str(caught.value) and len(str(caught.value)) < 500


@pytest.mark.parametrize("track_id", [2**63, "a", None, float("inf"), [1], True])
def test_track_ids_that_no_format_holds_are_refused(tmp_path, track_id):
    """No run writes them, but another program may."""
    path = tmp_path / "poses.ndjson"
    pose = {"track_id": track_id, "box": [1, 2, 3, 4]}
    path.write_text(json.dumps({"type": "frame", "index": 0, "poses": [pose]}) + "\n")
    with pytest.raises(SourceError):
        GivenBoxes.read(path)


def test_what_is_no_file_is_refused(tmp_path):
    with pytest.raises(SourceError, match="No such file"):
        GivenBoxes.read(tmp_path / "none.csv")
    for place in (tmp_path, "/dev/zero"):
        with pytest.raises(SourceError, match="a folder, a device or a pipe"):
            GivenBoxes.read(type(tmp_path)(place))
