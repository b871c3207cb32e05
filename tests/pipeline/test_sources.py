"""Sources with real files that the tests make: times, orientation, streams, and refused files."""

import itertools
import os
import struct
import threading
import wave
from fractions import Fraction
from pathlib import Path

import av
import cv2
import numpy as np
import pytest
from av.bitstream import BitStreamFilterContext
from av.stream import Disposition
from av.video.frame import PictureType
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from convnextpose.errors import SourceError
from pipeline.sources import open_source
from tests.pipeline.media import COUNT, RATE, jpeg_with_exif, picture, read, refusal, same_picture, write_video

# Times and sizes.


@pytest.mark.parametrize("kind", ["mp4", "fragmented", "mkv", "ts", "avi", "mjpeg", "mpg", "gif", "raw"])
def test_every_container_gives_all_frames_at_their_times(clips, kind):
    with open_source(clips[kind]) as source:
        assert (source.info.id, source.info.width, source.info.height) == (clips[kind].name, 96, 64)
        assert source.info.frame_rate == pytest.approx(RATE)
        assert source.info.frame_count in (None, COUNT)
        frames = list(source)
    assert [f.index for f in frames] == list(range(COUNT))
    assert {f.source_id for f in frames} == {clips[kind].name}
    assert np.allclose([f.time_s for f in frames], np.arange(COUNT) / RATE, atol=1e-3)
    if kind != "gif":  # its palette has few colours
        for index, frame in enumerate(frames):
            blurred = cv2.blur(frame.image, (9, 9)), cv2.blur(picture(index), (9, 9))
            assert np.abs(blurred[0].astype(int) - blurred[1]).mean() < 12, "frames come in order"


def test_containers_that_count_their_frames_say_how_many(clips):
    for kind in ("mp4", "avi"):
        with open_source(clips[kind]) as source:
            assert source.info.frame_count == COUNT


@settings(max_examples=12, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(gaps=st.lists(st.floats(0.002, 3.0), min_size=1, max_size=12), start=st.floats(0, 5))
def test_a_variable_frame_rate_stays_what_it_is(tmp_path, gaps, start):
    times = start + np.concatenate([[0.0], np.cumsum(gaps)])
    frames, error = read(write_video(tmp_path / "v.mp4", times=times, options={"preset": "ultrafast"}))
    assert error is None
    assert np.allclose([f.time_s for f in frames], times - times[0], atol=1e-3)


@pytest.mark.parametrize("count", [40, 41, 42])
def test_transport_streams_put_together_are_one(tmp_path, count):
    """At the seam the time stamps jump back, and the numbering of the packets is interrupted."""
    once = write_video(tmp_path / "once.ts", pictures=[picture(i) for i in range(count)], options={"g": "12"})
    twice = tmp_path / "twice.ts"
    twice.write_bytes(once.read_bytes() * 2)
    frames, error = read(twice)
    assert error is None and len(frames) == 2 * count
    assert np.allclose(np.diff([f.time_s for f in frames]), 1 / RATE, atol=1e-3)


def test_an_odd_width_gives_whole_rows(tmp_path):
    image = picture(0, 97, 63)
    frames, _ = read(write_video(tmp_path / "odd.mkv", "ffv1", pictures=[image] * 2))
    assert frames[0].image.flags.c_contiguous
    assert np.array_equal(frames[0].image, image)


def set_display_matrix(path, a, b, c, d):
    """Patch the track header's matrix, as written by a phone that is held sideways."""
    data = bytearray(path.read_bytes())
    at = data.index(b"tkhd") + 4 + 40
    one = 1 << 16
    data[at : at + 36] = struct.pack(">9i", a * one, b * one, 0, c * one, d * one, 0, 0, 0, 1 << 30)
    path.write_bytes(data)


@pytest.mark.parametrize(
    "matrix",
    [(1, 0, 0, 1), (0, 1, -1, 0), (-1, 0, 0, -1), (0, -1, 1, 0), (-1, 0, 0, 1), (1, 0, 0, -1), (0, 1, 1, 0), (0, -1, -1, 0)],
)
def test_rotated_and_mirrored_video_stands_upright(tmp_path, matrix):
    """x' = a x + c y, y' = b x + d y, for each quarter of the picture."""
    grey = np.zeros((64, 96), np.uint8)
    levels = {(-1, -1): 40, (1, -1): 100, (-1, 1): 160, (1, 1): 220}
    for (x, y), level in levels.items():
        grey[slice(32, 64) if y > 0 else slice(0, 32), slice(48, 96) if x > 0 else slice(0, 48)] = level
    path = write_video(tmp_path / "phone.mp4", pictures=[np.dstack([grey] * 3)] * 3)
    set_display_matrix(path, *matrix)
    a, b, c, d = matrix
    with open_source(path) as source:
        frames = list(source)
        assert (source.info.width, source.info.height) == ((64, 96) if b else (96, 64))
    for frame in frames:
        assert (frame.width, frame.height) == (source.info.width, source.info.height)
        for (x, y), level in levels.items():
            column, row = ((1 + a * x + c * y) // 2, (1 + b * x + d * y) // 2)
            assert abs(int(frame.image[[frame.height // 4, -frame.height // 4][row], :, 1][[20, -20][column]]) - level) < 8


def test_names_that_mean_something_to_ffmpeg_are_only_names(clips, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    for name in ("12:30 http.mp4", "frame%03d.mp4", "concat:a|b.mp4", "pipe:0", "ä ö.mp4"):
        Path(name).write_bytes(clips["mp4"].read_bytes())
        frames, error = read(name)
        assert error is None and len(frames) == COUNT and frames[0].source_id == name


def test_metadata_in_an_old_encoding_is_no_obstacle(tmp_path):
    path = tmp_path / "old.mp4"
    with av.open(str(path), "w") as container:
        container.metadata["title"] = "caf#"
        stream = container.add_stream("libx264", rate=RATE)
        stream.width, stream.height, stream.pix_fmt = 96, 64, "yuv420p"
        container.mux(stream.encode(av.VideoFrame.from_ndarray(picture(0), format="bgr24")))
        container.mux(stream.encode(None))
    data = path.read_bytes()
    assert b"caf#" in data
    path.write_bytes(data.replace(b"caf#", b"caf\xe9"))
    assert len(read(path)[0]) == 1


# Time stamps.


B_FRAMES = {"x264-params": "bframes=3:b-adapt=0:scenecut=0:keyint=20"}


@pytest.mark.parametrize("suffix", ["avi", "mp4", "mkv", "ts", "h264", "no composition offsets"])
def test_pictures_that_are_decoded_in_another_order_have_their_times(tmp_path, suffix):
    """In AVI, and in MP4 from poor writers, packets are stamped in decoding order; raw H.264 has no stamps."""
    name = "b.mp4" if " " in suffix else f"b.{suffix}"
    path = write_video(tmp_path / name, options=B_FRAMES, max_b_frames=3, rate=10)
    if " " in suffix:
        path.write_bytes(path.read_bytes().replace(b"ctts", b"free").replace(b"edts", b"free"))
    with av.open(str(path)) as container:
        kinds = [frame.pict_type for frame in container.decode(video=0)]
    assert kinds.count(PictureType.B) > COUNT / 2
    with open_source(path) as source:
        assert source.info.frame_rate == pytest.approx(10)
        frames = list(source)
    assert np.allclose([frame.time_s for frame in frames], np.arange(COUNT) / 10, atol=1e-3)
    assert all(same_picture(frame.image, picture(index)) for index, frame in enumerate(frames))


def test_transport_streams_put_together_keep_their_own_spacing(tmp_path):
    times = np.cumsum([0, 0.1, 0.3, 0.04, 0.2, 0.5, 0.04])
    once = write_video(tmp_path / "once.ts", times=times)
    twice = tmp_path / "twice.ts"
    twice.write_bytes(once.read_bytes() * 2)
    frames, error = read(twice)
    gaps = np.diff([frame.time_s for frame in frames])
    assert error is None and np.allclose(np.delete(gaps, len(times) - 1), np.tile(np.diff(times), 2), atol=1e-3)


# Data that is not needed must not cause failures.


@pytest.mark.parametrize(("orientation", "turned"), [(1, None), (3, cv2.ROTATE_180), (6, cv2.ROTATE_90_CLOCKWISE)])
def test_side_data_of_an_unknown_kind_is_no_obstacle(tmp_path, orientation, turned):
    """Motion JPEG of a camera that writes EXIF, which FFmpeg returns as side data for which PyAV has no name."""
    image = cv2.blur(picture(0), (9, 9))
    path = tmp_path / "camera.mkv"
    with av.open(str(path), "w") as container:
        stream = container.add_stream("mjpeg", rate=RATE)
        stream.width, stream.height, stream.pix_fmt = 96, 64, "yuvj420p"
        for index in range(3):
            packet = av.Packet(jpeg_with_exif(image, orientation))
            packet.stream, packet.pts, packet.dts, packet.time_base = stream, index, index, Fraction(1, RATE)
            container.mux(packet)
    frames, error = read(path)
    assert error is None and len(frames) == 3
    upright = image if turned is None else cv2.rotate(image, turned)
    assert all(frame.image.shape == upright.shape and same_picture(frame.image, upright) for frame in frames)


@pytest.mark.parametrize("matrix", range(18))
def test_colours_of_every_kind_are_read_or_told(tmp_path, matrix):
    """Whichever number the stream contains for its colours, even an undefined one."""
    plain = write_video(tmp_path / "a.h264", pictures=[picture(0)] * 2)
    path = tmp_path / "coloured.h264"
    with av.open(str(plain)) as source, av.open(str(path), "w") as target:
        stream = target.add_stream_from_template(source.streams.video[0])
        change = BitStreamFilterContext(
            f"h264_metadata=matrix_coefficients={matrix}:colour_primaries={matrix}:transfer_characteristics={matrix}",
            in_stream=source.streams.video[0],
        )
        for packet in source.demux(video=0):
            for changed in change.filter(packet if packet.size else None):
                changed.stream = stream
                target.mux(changed)
    try:
        frames, error = read(path)
    except SourceError as refused:
        frames, error = [], refused
    assert len(frames) == 2 or "\n" not in str(error)


# Several streams.


def two_streams(path, default, sizes=((96, 64), (192, 128))):
    """A file of two video streams, one of them marked as default, or both, or none."""
    with av.open(str(path), "w") as container:
        streams = []
        for number, (width, height) in enumerate(sizes):
            stream = container.add_stream("libx264", rate=RATE)
            stream.width, stream.height, stream.pix_fmt = width, height, "yuv420p"
            stream.disposition = Disposition.default if number in default else Disposition(0)
            streams.append(stream)
        for index in range(5):
            for number, stream in enumerate(streams):
                image = picture(index + 50 * number, stream.width, stream.height)
                container.mux(stream.encode(av.VideoFrame.from_ndarray(image, format="bgr24")))
        for stream in streams:
            container.mux(stream.encode(None))
    return path


@pytest.mark.parametrize(
    ("default", "sizes", "chosen"),
    [
        ((0,), ((96, 64), (192, 128)), 0),
        ((1,), ((96, 64), (192, 128)), 1),
        ((1,), ((192, 128), (96, 64)), 1),
        ((0, 1), ((96, 64), (192, 128)), 1),
        ((0, 1), ((192, 128), (96, 64)), 0),
        ((0, 1), ((96, 64), (96, 64)), 0),
    ],
)
def test_of_two_streams_the_default_one_is_read_then_the_larger(tmp_path, default, sizes, chosen):
    path = two_streams(tmp_path / "two.mkv", default, sizes)
    for number in (None, 0, 1):
        with open_source(path, stream=number) as source:
            frames = list(source)
            read_stream = chosen if number is None else number
            assert (source.info.width, source.info.height) == sizes[read_stream] and len(frames) == 5
            if number is None:
                (note,) = source.info.notes
                assert f"stream {chosen} (" in note and f"{1 - chosen} (" in note
            else:
                assert source.info.notes == ()
        assert all(same_picture(f.image, picture(f.index + 50 * read_stream, f.width, f.height)) for f in frames)


def test_a_stream_that_is_not_there_is_refused(tmp_path, clips):
    assert "streams 0 to 1" in refusal(two_streams(tmp_path / "two.mkv", (0,)), stream=2)
    for number in (1, -1):
        assert "only stream 0" in refusal(clips["mp4"], stream=number)
    for path in (clips["mp4"], clips["gif"]):
        with open_source(path, stream=0) as source:
            assert source.info.notes == ()


# Files that are refused.


def test_what_is_no_video_is_refused_in_one_sentence(tmp_path, clips):
    (tmp_path / "empty.mp4").write_bytes(b"")
    (tmp_path / "noise.mp4").write_bytes(np.random.default_rng(0).bytes(5000))
    (tmp_path / "text.mp4").write_text("this is no video\n" * 100)
    (tmp_path / "text.txt").write_text("this is no video\n" * 100)
    (tmp_path / "head.mp4").write_bytes(clips["mp4"].read_bytes()[:40])
    (tmp_path / "zeros.jpg").write_bytes(b"\0" * 100)
    (tmp_path / "empty.png").write_bytes(b"")
    for path in sorted(tmp_path.iterdir()):
        assert path.name in refusal(path)
    assert "empty" in refusal(tmp_path / "empty.mp4")
    assert "text" in refusal(tmp_path / "text.txt")
    assert "cut short" in refusal(tmp_path / "head.mp4")
    assert "there is no" in refusal(tmp_path / "missing.mp4")


def test_an_mp4_without_its_index_is_cut_short(tmp_path):
    path = write_video(tmp_path / "phone.mp4")  # the index is at the end
    path.write_bytes(path.read_bytes()[:-200])
    assert "cut short" in refusal(path)


def test_devices_and_pipes_are_refused_without_waiting(tmp_path):
    os.mkfifo(tmp_path / "pipe.mp4")
    assert "pipe" in refusal(tmp_path / "pipe.mp4")
    assert "device" in refusal("/dev/null")


@pytest.mark.skipif(os.geteuid() == 0, reason="root may read everything")
def test_a_file_without_permission_is_refused(tmp_path, clips):
    path = tmp_path / "mine.mp4"
    path.write_bytes(clips["mp4"].read_bytes())
    path.chmod(0)
    assert "ermission" in refusal(path)


def test_sound_is_refused_even_with_a_cover_picture(tmp_path):
    sound = tmp_path / "sound.wav"
    with wave.open(str(sound), "wb") as file:
        file.setnchannels(1)
        file.setsampwidth(2)
        file.setframerate(8000)
        file.writeframes(np.random.default_rng(0).integers(-2000, 2000, 8000, np.int16).tobytes())
    assert "only sound" in refusal(sound)

    cover = cv2.imencode(".jpg", picture(0))[1].tobytes()
    body = b"\0image/jpeg\0\x03\0" + cover
    frame = b"APIC" + struct.pack(">I", len(body)) + b"\0\0" + body
    size = bytes((len(frame) >> shift) & 0x7F for shift in (21, 14, 7, 0))
    song = tmp_path / "song.mp3"
    with av.open(str(tmp_path / "plain.mp3"), "w") as container:
        stream = container.add_stream("libmp3lame", rate=44100)
        samples = np.random.default_rng(0).integers(-2000, 2000, (1, 2 * 1152 * 20), np.int16)
        for start in range(0, samples.shape[1], 2 * 1152):
            chunk = av.AudioFrame.from_ndarray(samples[:, start : start + 2 * 1152], format="s16", layout="stereo")
            chunk.sample_rate = 44100
            container.mux(stream.encode(chunk))
        container.mux(stream.encode(None))
    song.write_bytes(b"ID3\x03\0\0" + size + frame + (tmp_path / "plain.mp3").read_bytes())
    with av.open(str(song)) as container:
        assert container.streams.video, "for FFmpeg the cover is a video stream"
    assert "only sound" in refusal(song)


def test_an_unknown_codec_is_refused(clips, tmp_path):
    path = tmp_path / "strange.mp4"
    path.write_bytes(clips["mp4"].read_bytes().replace(b"avc1", b"zzzz"))
    assert "codec" in refusal(path)


# Lifetime.


@pytest.mark.parametrize("kind", ["video", "folder"])
def test_a_source_is_read_once_from_any_thread_and_closed_from_any(clips, holiday, kind):
    source = open_source(clips["mp4"] if kind == "video" else holiday)
    first = list(itertools.islice(source, 2))
    second = []
    thread = threading.Thread(target=lambda: second.extend(itertools.islice(source, 2)))
    thread.start()
    thread.join()
    assert [f.index for f in first + second] == [0, 1, 2, 3]
    source.close()
    source.close()
    assert list(source) == []


def test_closing_ends_another_threads_frames(clips):
    source = open_source(clips["mp4"])
    taken, begun = [], threading.Event()

    def take():
        for frame in source:
            taken.append(frame.index)
            begun.set()

    thread = threading.Thread(target=take)
    thread.start()
    assert begun.wait(10)
    source.close()
    thread.join(10)
    assert not thread.is_alive()
    assert taken == list(range(len(taken)))
