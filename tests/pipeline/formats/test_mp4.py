"""The video: its times, sizes and colours, and what is left of it if writing ends early."""

import io
import subprocess
import sys
from dataclasses import replace
from pathlib import Path

import av
import cv2
import numpy as np
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from convnextpose.errors import SinkError
from pipeline.formats.files import GrowingFile
from pipeline.formats.mp4 import MAX_GAP_S, MAX_SIDE, Mp4Recorder
from pipeline.sources import open_source
from pipeline.types import PosedFrame
from tests.cases import fast_first
from tests.pipeline.formats.samples import CAMERA, HEADER, count_pictures, names, noise, posed, write

ROOT = Path(__file__).parents[3]


@settings(max_examples=10, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(gaps=st.lists(st.floats(0.002, 2.0), min_size=1, max_size=40), start=st.sampled_from([0.0, 0.013, 7.25]))
def test_every_picture_has_its_time(tmp_path, gaps, start):
    times = start + np.concatenate([[0.0], np.cumsum(gaps)])
    path = write(Mp4Recorder(tmp_path / "poses.mp4", HEADER, overwrite=True), [posed(i, t) for i, t in enumerate(times)])
    with av.open(str(path)) as container:
        stream = container.streams.video[0]
        assert stream.codec_context.name == "h264" and stream.codec_context.pix_fmt == "yuv420p"
        assert stream.frames == len(times), "a finished video is an ordinary MP4, which counts its frames"
        pictures = list(container.decode(stream))
        duration = float(stream.duration * stream.time_base)
    assert times[-1] - times[0] < duration < times[-1] - times[0] + 1, "it ends with its last picture"
    written = np.array([float(p.pts * p.time_base) for p in pictures])
    assert np.abs(written - (times - times[0])).max() < 1e-3
    levels = [p.to_ndarray(format="bgr24").mean() for p in pictures]
    assert np.allclose(levels, [40 + i * 7 % 180 for i in range(len(times))], atol=4)


def test_a_source_reads_the_video_with_the_same_times(tmp_path):
    path = write(Mp4Recorder(tmp_path / "poses.mp4", HEADER), [posed(i) for i in range(50)])
    with open_source(path) as source:
        assert source.info.frame_rate == pytest.approx(25)
        assert np.allclose([f.time_s for f in source], np.arange(50) / 25, atol=1e-3)


def test_colours_stay_what_they_are(tmp_path):
    image = np.zeros((720, 1280, 3), np.uint8)
    colours = [(255, 0, 0), (0, 255, 0), (0, 0, 255), (30, 200, 250)]
    for column, colour in enumerate(colours):
        image[:, column * 320 : (column + 1) * 320] = colour
    path = write(Mp4Recorder(tmp_path / "poses.mp4", HEADER), [replace(posed(0), picture=image)])
    with open_source(path) as source:
        (frame,) = source
    with av.open(str(path)) as container:
        assert next(container.decode(video=0)).colorspace == 6, "declared, because players assume BT.709 for high definition"
    for column, colour in enumerate(colours):
        assert np.abs(frame.image[360, column * 320 + 160].astype(int) - colour).max() < 8


@pytest.mark.parametrize(
    ("size", "becomes"), [((97, 64), (98, 64)), ((96, 63), (96, 64)), ((1, 1), (2, 2)), ((33, 51), (34, 52))]
)
def test_odd_sizes_gain_a_pixel(tmp_path, size, becomes):
    path = write(Mp4Recorder(tmp_path / "poses.mp4", HEADER), [posed(0, size=size), posed(1, size=size)])
    with open_source(path) as source:
        assert (source.info.width, source.info.height) == becomes
        for frame in source:
            assert np.ptp(frame.image) < 10, "the edge is repeated, not black"


def test_pictures_of_other_sizes_are_fitted_between_black_borders(tmp_path):
    frames = [posed(0, size=(96, 64)), posed(1, size=(64, 96)), posed(2, size=(400, 100)), posed(3, size=(96, 64))]
    with open_source(write(Mp4Recorder(tmp_path / "poses.mp4", HEADER), frames)) as source:
        first, tall, wide, last = source
    assert {(f.width, f.height) for f in (first, tall, wide, last)} == {(96, 64)}
    for frame in (first, last):
        assert frame.image.min() > 30
    assert tall.image[:, :20].max() < 12 and tall.image[:, -20:].max() < 12 and tall.image[5:-5, 40:56].min() > 30
    assert wide.image[:16].max() < 12 and wide.image[-16:].max() < 12 and wide.image[28:36, 5:-5].min() > 30


def test_time_stamps_that_do_not_grow_are_refused(tmp_path):
    recorder = Mp4Recorder(tmp_path / "poses.mp4", HEADER)
    recorder.write(posed(0, 1.0))
    with pytest.raises(SinkError, match="increase"):
        recorder.write(posed(1, 1.0))
    recorder.close()
    with open_source(recorder.path) as source:
        assert len(list(source)) == 1


def test_times_far_apart_are_kept_or_refused(tmp_path):
    recorder = Mp4Recorder(tmp_path / "poses.mp4", HEADER)
    times = [5.0, 5.04, 5 + MAX_GAP_S, 5 + 2 * MAX_GAP_S, 5.04 + 2 * MAX_GAP_S]
    for index, time_s in enumerate(times):
        recorder.write(posed(index, time_s))
    for far in (3 * MAX_GAP_S + 6, 1e300):
        with pytest.raises(SinkError, match="at most 23860 s between"):
            recorder.write(posed(9, far))
    recorder.close()
    with av.open(str(recorder.path)) as container:
        found = [float(p.pts * p.time_base) for p in container.decode(video=0)]
    assert np.allclose(found, np.array(times) - 5, atol=1e-3)


def test_a_video_needs_drawn_pictures(tmp_path):
    recorder = Mp4Recorder(tmp_path / "poses.mp4", HEADER)
    with pytest.raises(SinkError, match="draw"):
        recorder.write(posed(0, drawn=False))
    recorder.close()
    assert names(tmp_path) == []


def test_a_run_may_overwrite_the_video_that_it_reads(tmp_path):
    path = write(Mp4Recorder(tmp_path / "poses.mp4", HEADER), [noise(i) for i in range(30)])
    with open_source(path) as source:
        write(Mp4Recorder(path, HEADER, overwrite=True), (PosedFrame(f, (), CAMERA, f.image) for f in source))
    with open_source(path) as source:
        assert len(list(source)) == 30


def test_an_encoder_with_more_threads_writes_the_same_times(tmp_path):
    path = write(Mp4Recorder(tmp_path / "poses.mp4", HEADER, threads=2), [noise(i) for i in range(30)])
    with open_source(path) as source:
        frames = list(source)
    assert np.allclose([f.time_s for f in frames], np.arange(30) / 25, atol=1e-3)
    small = cv2.resize(noise(29).picture, (32, 24), interpolation=cv2.INTER_AREA).astype(int)
    assert np.abs(small - cv2.resize(frames[29].image, (32, 24), interpolation=cv2.INTER_AREA)).mean() < 8


def test_pictures_that_h264_cannot_hold_are_made_smaller(tmp_path):
    write(Mp4Recorder(tmp_path / "wide.mp4", HEADER), [posed(0, size=(20_000, 40))])
    with av.open(str(tmp_path / "wide.mp4")) as container:
        (frame,) = container.decode(video=0)
    assert frame.width == MAX_SIDE


class Recording(io.FileIO):
    """A file that records the position of each write."""

    def __init__(self, path, log):
        super().__init__(path, "xb")
        self._log = log

    def write(self, data):
        self._log.append((self.tell(), bytes(data)))
        return super().write(data)


@pytest.mark.parametrize("step", fast_first([9, 1]))
def test_the_video_plays_whenever_writing_ends(step, tmp_path, monkeypatch):
    """After each byte of each write, or each `step`th, as a killed run may leave it, the frames written before that play."""
    log = []
    monkeypatch.setattr(GrowingFile, "make", lambda path, overwrite: GrowingFile(Recording(path, log)))
    recorder = Mp4Recorder(tmp_path / "poses.mp4", replace(HEADER, frame_rate=3.0))
    done = []  # (number of writes, number of frames written by then)
    for index in range(8):
        recorder.write(posed(index, index / 3, size=(32, 32)))
        assert recorder.written == index, "every frame but the last is in the file"
        done.append((len(log), recorder.written))
    recorder.close()
    done.append((len(log), recorder.written))
    assert recorder.written == 8

    content = bytearray()
    for number, (offset, data) in enumerate(log, 1):
        whole = max((frames for writes, frames in done if writes < number), default=0)
        # A killed process may split long writes, but never one of a few bytes within a page.
        for end in [*range(1, len(data), step), len(data)] if len(data) > 8 else [len(data)]:
            content[offset : offset + end] = data[:end]
            if whole:
                assert count_pictures(bytes(content)) >= whole
    assert bytes(content) == recorder.path.read_bytes()
    assert count_pictures(bytes(content)) == 8


def test_a_recorder_that_nobody_closes_does_no_harm(tmp_path):
    code = (
        "import gc, sys; from pathlib import Path\n"
        "from pipeline.formats.mp4 import Mp4Recorder\n"
        "from tests.pipeline.formats.samples import HEADER, posed\n"
        "for name in ('forgotten', 'until the end'):\n"
        "    recorder = Mp4Recorder(Path(sys.argv[1]) / name, HEADER)\n"
        "    for index in range(4): recorder.write(posed(index))\n"
        "    gc.collect()\n"
    )
    subprocess.run([sys.executable, "-c", code, str(tmp_path)], cwd=ROOT, check=True)
    assert [count_pictures((tmp_path / name).read_bytes()) for name in names(tmp_path)] == [3, 3]
