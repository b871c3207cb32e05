"""Single pictures and folders of pictures as sources."""

import cv2
import numpy as np
import pytest

from pipeline.sources import open_source
from pipeline.types import Frame, UnreadableFrame
from tests.pipeline.media import picture, read, refusal


def test_a_picture_is_one_frame(tmp_path):
    path = tmp_path / "one.PNG"
    path.write_bytes(cv2.imencode(".png", picture(3))[1].tobytes())
    with open_source(str(path)) as source:
        assert (source.info.id, source.info.width, source.info.height) == ("one.PNG", 96, 64)
        assert (source.info.frame_rate, source.info.frame_count) == (None, 1)
        (frame,) = source
    assert np.array_equal(frame.image, picture(3)) and (frame.index, frame.time_s) == (0, 0.0)


def test_grey_transparent_and_deep_pictures_become_bgr(tmp_path):
    grey = picture(0)[..., 0]
    for name, image in {
        "grey.png": grey,
        "alpha.png": np.dstack([picture(0), np.full((64, 96), 200, np.uint8)]),
        "deep.png": grey.astype(np.uint16) * 256,
    }.items():
        cv2.imwrite(str(tmp_path / name), image)
        ((frame,), _) = read(tmp_path / name)
        assert frame.image.dtype == np.uint8 and frame.image.shape == (64, 96, 3)


def test_a_folder_gives_its_pictures_in_natural_order(holiday):
    with open_source(holiday) as source:
        assert (source.info.id, source.info.width, source.info.height) == ("holiday", 96, 64)
        assert (source.info.frame_rate, source.info.frame_count) == (None, 5)
        frames = list(source)
    assert [f.width for f in frames] == [96, 98, 100, 102, 104]
    assert [f.time_s for f in frames] == [0.0, 1.0, 2.0, 3.0, 4.0]
    assert {f.source_id for f in frames} == {"holiday"}


@pytest.mark.parametrize("damaged", [("img9.PNG",), ("img1.png", "img2.jpg"), ("img11.bmp",)])
def test_a_damaged_picture_fails_alone(holiday, damaged):
    for name in damaged:
        (holiday / name).write_bytes((holiday / name).read_bytes()[:60])
    items, error = read(holiday)
    assert error is None and [item.index for item in items] == [0, 1, 2, 3, 4]
    names = ["img1.png", "img2.jpg", "img9.PNG", "img10.png", "img11.bmp"]
    for name, item in zip(names, items, strict=True):
        assert isinstance(item, UnreadableFrame if name in damaged else Frame)
        assert item.source_id == "holiday"
        if name in damaged:
            assert name in item.reason and "\n" not in item.reason
        else:
            assert (item.width, item.time_s) == (96 + 2 * names.index(name), names.index(name))
    with open_source(holiday) as source:
        assert source.info.width == next(item.width for item in items if isinstance(item, Frame))


def test_a_folder_in_which_nothing_can_be_read_is_refused(holiday):
    for path in holiday.glob("img*"):
        path.write_bytes(path.read_bytes()[:20])
    assert "img1.png" in refusal(holiday) and "4 others" in refusal(holiday)


def test_what_a_folder_leaves_out_is_told(holiday):
    with open_source(holiday) as source:
        assert [note for note in source.info.notes if "1 .txt" in note]
    (holiday / "notes.txt").unlink()
    with open_source(holiday) as source:
        assert source.info.notes == ()


def test_a_folder_without_pictures_is_refused(tmp_path):
    assert str(tmp_path) in refusal(tmp_path)


def test_a_capture_time_comes_with_its_clock(holiday):
    frames, _ = read(holiday)
    assert {(frame.captured_ns, frame.clock) for frame in frames} == {(None, None)}
    assert Frame(picture(0), "camera", 0, 0.0, captured_ns=1, clock="kernel").clock == "kernel"
    with pytest.raises(ValueError, match="together"):
        Frame(picture(0), "camera", 0, 0.0, captured_ns=1)


def test_pictures_have_no_streams_to_choose_from(holiday):
    for path in (holiday, holiday / "img1.png"):
        assert "stream 1" in refusal(path, stream=1)
        with open_source(path, stream=0) as source:
            assert len(list(source)) == source.info.frame_count
