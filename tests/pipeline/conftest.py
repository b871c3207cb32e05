"""Files that several tests of sources use."""

import cv2
import pytest

from tests.pipeline.media import picture, write_video


@pytest.fixture(scope="session")
def clips(tmp_path_factory):
    """The same frames in many containers."""
    folder = tmp_path_factory.mktemp("clips")
    h264 = {"g": "12"}
    return {
        "mp4": write_video(folder / "a.mp4", options=h264, container_options={"movflags": "faststart"}),
        "fragmented": write_video(
            folder / "fragmented.mp4",
            options=h264,
            container_options={"movflags": "frag_keyframe+empty_moov+default_base_moof"},
        ),
        "mkv": write_video(folder / "a.mkv", options=h264),
        "ts": write_video(folder / "a.ts", options=h264),
        "avi": write_video(folder / "a.avi", "mpeg4", options={"bf": "2", "g": "12"}),
        "mjpeg": write_video(folder / "mjpeg.avi", "mjpeg"),
        "mpg": write_video(folder / "a.mpg", "mpeg2video", options={"bf": "2"}),
        "gif": write_video(folder / "a.gif", "gif"),
        "raw": write_video(folder / "a.h264", options=h264),
    }


@pytest.fixture
def holiday(tmp_path):
    """A folder of pictures of different sizes, whose alphabetical order is not that of their numbers, and other files."""
    folder = tmp_path / "holiday"
    folder.mkdir()
    for index, name in enumerate(["img1.png", "img2.jpg", "img9.PNG", "img10.png", "img11.bmp"]):
        suffix = name[-4:].lower()
        (folder / name).write_bytes(cv2.imencode(suffix, picture(index, 96 + 2 * index))[1].tobytes())
    (folder / "notes.txt").write_text("no picture")
    (folder / "._img1.png").write_bytes(b"what another system leaves")
    (folder / "inner.png").mkdir()
    return folder
