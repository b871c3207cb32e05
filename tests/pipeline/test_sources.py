"""Sources on real files that the tests make: times, uprightness, and every way in which a file can be wrong or break."""

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
from pipeline.types import Frame, UnreadableFrame
from tests.pipeline.media import COUNT, RATE, jpeg_with_exif, picture, read, refusal, write_video


@pytest.fixture(scope="module")
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
    """The time stamps jump back at the seam, and its packets are not numbered on."""
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
    """Patch the track header's matrix, as a phone that was held sideways writes it."""
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


def same_picture(a, b):
    """Whether a frame shows a picture, at its coding's quality."""
    return np.abs(cv2.blur(a, (9, 9)).astype(int) - cv2.blur(b, (9, 9))).mean() < 6


B_FRAMES = {"x264-params": "bframes=3:b-adapt=0:scenecut=0:keyint=20"}


@pytest.mark.parametrize("suffix", ["avi", "mp4", "mkv", "ts", "h264", "no composition offsets"])
def test_pictures_that_are_decoded_in_another_order_have_their_times(tmp_path, suffix):
    """AVI, and MP4 as poor writers leave it, stamp packets in the order of decoding; raw H.264 doesn't stamp them."""
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


# What is not needed must not be able to fail.


@pytest.mark.parametrize(("orientation", "turned"), [(1, None), (3, cv2.ROTATE_180), (6, cv2.ROTATE_90_CLOCKWISE)])
def test_side_data_of_an_unknown_kind_is_no_obstacle(tmp_path, orientation, turned):
    """Motion JPEG of a camera that writes EXIF, which FFmpeg gives as side data that PyAV has no name for."""
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
    """Whatever number the stream writes for its colours, also one that has no meaning."""
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


def test_pictures_have_no_streams_to_choose_from(folder):
    for path in (folder, folder / "img1.png"):
        assert "stream 1" in refusal(path, stream=1)
        with open_source(path, stream=0) as source:
            assert len(list(source)) == source.info.frame_count


# Streams that break.


@pytest.mark.parametrize("kind", ["mp4", "fragmented", "mkv", "avi", "mjpeg"])
@pytest.mark.parametrize("part", [0.4, 0.7, 0.95])
def test_a_file_that_is_cut_short_keeps_what_came_before(clips, tmp_path, kind, part):
    whole, _ = read(clips[kind])
    data = clips[kind].read_bytes()
    path = tmp_path / ("cut" + clips[kind].suffix)
    path.write_bytes(data[: int(len(data) * part)])
    frames, error = read(path)
    assert 0 < len(frames) < COUNT
    assert f"broke at frame {len(frames)}" in str(error) and "cut short" in str(error)
    assert path.name in str(error) and "\n" not in str(error)
    for ours, theirs in zip(frames[:-1], whole, strict=False):
        assert np.array_equal(ours.image, theirs.image) and ours.time_s == pytest.approx(theirs.time_s)
    if kind in ("mp4", "avi", "mjpeg"):
        assert f"frame {len(frames)} of {COUNT}" in str(error)


def test_a_fragmented_file_cut_anywhere_keeps_its_whole_fragments(clips, tmp_path):
    """Also inside a fragment's index, and inside the head of a box."""
    data = clips["fragmented"].read_bytes()
    path = tmp_path / "cut.mp4"
    first = data.index(b"mdat")
    end_of_first = first - 4 + int.from_bytes(data[first - 4 : first], "big")
    second = data.index(b"moof", end_of_first)
    counts = []
    for length in [*range(end_of_first, len(data), 97), second - 3, second + 1, second + 50]:
        path.write_bytes(data[:length])
        frames, error = read(path)
        assert 0 < len(frames) <= COUNT
        assert error is None or f"broke at frame {len(frames)}" in str(error)
        counts.append((length, len(frames)))
    frames_by_length = [count for _, count in sorted(counts)]
    assert frames_by_length == sorted(frames_by_length)


@pytest.mark.parametrize("kind", ["ts", "mpg", "raw"])
def test_formats_that_promise_nothing_give_what_they_have(clips, tmp_path, kind):
    whole, _ = read(clips[kind])
    data = clips[kind].read_bytes()
    path = tmp_path / clips[kind].name
    path.write_bytes(data[: int(len(data) * 0.6)])
    frames, error = read(path)
    assert 0.3 * COUNT < len(frames) < COUNT
    assert error is None or f"broke at frame {len(frames)}" in str(error)
    assert all(np.array_equal(a.image, b.image) for a, b in zip(frames[:-1], whole, strict=False))


@pytest.mark.parametrize("kind", ["mp4", "avi", "mpg"])
def test_damage_in_the_middle_never_passes_for_pictures(clips, tmp_path, kind):
    whole, _ = read(clips[kind])
    data = bytearray(clips[kind].read_bytes())
    middle = len(data) // 2
    data[middle : middle + 1500] = np.random.default_rng(7).bytes(1500)
    path = tmp_path / clips[kind].name
    path.write_bytes(data)
    frames, error = read(path)
    assert error is not None and f"broke at frame {len(frames)}" in str(error)
    assert "damaged" in str(error) or "invalid data" in str(error)
    assert 0.2 * COUNT < len(frames) < COUNT
    # The picture that the damage begins in may still decode: nobody can tell it from a true one.
    assert all(np.array_equal(a.image, b.image) for a, b in zip(frames[:-1], whole, strict=False))


def test_a_lost_packet_of_a_transport_stream_breaks_it(tmp_path):
    path = write_video(tmp_path / "lost.ts", options={"g": "250", "crf": "10"})
    whole, _ = read(path)
    data = path.read_bytes()
    packets = [data[at : at + 188] for at in range(0, len(data), 188)]
    # Of the video, and in the middle of a picture.
    inner = [n for n, packet in enumerate(packets) if packet[1] == 0x01 and packet[2] == 0x00]
    for lost in (inner[len(inner) // 3], inner[len(inner) // 2]):
        path.write_bytes(b"".join(packet for n, packet in enumerate(packets) if n != lost))
        frames, error = read(path)
        assert f"broke at frame {len(frames)}" in str(error) and "damaged" in str(error)
        assert 0.1 * COUNT < len(frames) < COUNT
        assert all(np.array_equal(a.image, b.image) for a, b in zip(frames, whole, strict=False))


def avi_chunks(data):
    """Where the first chunks of an AVI's pictures begin."""
    chunks = [data.index(b"movi") + 4]
    while len(chunks) < COUNT // 2:
        (size,) = struct.unpack_from("<I", data, chunks[-1] + 4)
        chunks.append(chunks[-1] + 8 + size + size % 2)
    assert all(data[chunk : chunk + 4] == b"00dc" for chunk in chunks)
    return chunks


def test_an_avi_says_that_pictures_are_missing(clips, tmp_path):
    data = bytearray(clips["mjpeg"].read_bytes())
    first, second = avi_chunks(data)[20:22]
    data[first:second] = bytes(second - first)
    path = tmp_path / "missing.avi"
    path.write_bytes(data)
    frames, error = read(path)
    assert len(frames) == COUNT - 1
    assert f"frame {len(frames)} of {COUNT}" in str(error)


def test_an_avi_may_repeat_a_picture_with_an_empty_chunk(clips, tmp_path):
    data = clips["mjpeg"].read_bytes().replace(b"idx1", b"JUNK")
    at = avi_chunks(data)[20]
    repeating = bytearray(data[:at] + b"00dc\0\0\0\0" + data[at:])
    for place in (4, data.index(b"movi") - 4):  # the sizes of the file and of the list
        struct.pack_into("<I", repeating, place, struct.unpack_from("<I", data, place)[0] + 8)
    struct.pack_into("<I", repeating, data.index(b"strh") + 8 + 32, COUNT + 1)
    path = tmp_path / "repeat.avi"
    path.write_bytes(repeating)
    frames, error = read(path)
    assert error is None and len(frames) == COUNT
    assert np.allclose([f.time_s for f in frames], [(i + (i >= 20)) / RATE for i in range(COUNT)], atol=1e-3)


def test_pictures_that_a_decoder_held_back_still_come(tmp_path):
    """Frames wait in the decoder to be put in order: a break behind them doesn't swallow them."""
    path = write_video(tmp_path / "b.mp4", options={"bf": "3", "g": "60"}, container_options={"movflags": "faststart"})
    with av.open(str(path)) as container:
        packets = [p for p in container.demux(video=0) if p.size]
        cut, size = packets[40].pos, packets[40].size
        shown = sorted(p.pts for p in packets)
        whole = next(n for n, pts in enumerate(shown) if pts not in {p.pts for p in packets[:40]})
    path.write_bytes(path.read_bytes()[: cut + min(4, size)])
    frames, error = read(path)
    assert len(frames) >= whole and "cut short" in str(error)


@pytest.mark.parametrize("far", [False, True])
def test_a_recording_that_begins_between_key_frames_begins_at_the_first(tmp_path, far):
    """Whether or not the stream's parameters, which come with it, stand within the 5 MB where FFmpeg looks for them."""
    pictures = [np.random.default_rng(i).integers(0, 256, (360, 480, 3), np.uint8) for i in range(34)] if far else None
    options = {"g": "30", "sc_threshold": "0", "preset": "ultrafast", "crf": "1"}
    path = write_video(tmp_path / "late.ts", options=options, pictures=pictures)
    whole, _ = read(path)
    with av.open(str(path)) as container:
        packets = [packet for packet in container.demux(video=0) if packet.size]
    (key,) = [packet.pos for packet in packets[1:] if packet.is_keyframe]
    begin = packets[4].pos
    assert (key - begin > 5_000_000) == far
    path.write_bytes(path.read_bytes()[begin:])
    frames, error = read(path)
    assert error is None and len(frames) == len(whole) - 30
    assert all(np.array_equal(a.image, b.image) for a, b in zip(frames, whole[30:], strict=True))
    assert frames[0].index == 0
    assert np.allclose([f.time_s for f in frames], np.arange(len(frames)) / RATE, atol=1e-3)


def test_a_file_whose_first_picture_is_damaged_does_not_begin_later(tmp_path):
    path = write_video(tmp_path / "first.mp4", options={"g": "12"})
    with av.open(str(path)) as container:
        first = next(container.demux(video=0))
    data = bytearray(path.read_bytes())
    data[first.pos : first.pos + first.size] = bytes(first.size)
    path.write_bytes(data)
    assert "frame 0" in refusal(path)


# Damage that is skipped.


def damaged(path, how):
    """A copy of a video with a stretch that is lost; None where the way does not fit the format."""
    data = path.read_bytes()
    copy = path.with_name(f"damaged{path.suffix}")
    middle = len(data) * 4 // 10
    if how == "noise":
        copy.write_bytes(data[:middle] + np.random.default_rng(7).bytes(1500) + data[middle + 1500 :])
    elif how == "cut":
        copy.write_bytes(data[: len(data) * 7 // 10])
    else:
        packets = [data[at : at + 188] for at in range(0, len(data), 188)]
        inner = [n for n, p in enumerate(packets) if p[1] & 0x5F == 0x01 and p[2] == 0x00]  # of the video, inside a picture
        lost = {"packet": range(1), "burst": range(60), "often": range(0, len(packets), 97)}[how]
        gone = {inner[len(inner) // 3] + n for n in lost}
        copy.write_bytes(b"".join(packet for n, packet in enumerate(packets) if n not in gone))
    return copy


@pytest.mark.parametrize(
    ("kind", "how"),
    [("ts", "packet"), ("ts", "burst"), ("ts", "often"), ("ts", "noise"), ("mp4", "noise"), ("mp4", "cut"), ("avi", "noise"),
     ("avi", "cut"), ("mjpeg", "noise"), ("mkv", "cut"), ("mpg", "noise")],
)  # fmt: skip
@pytest.mark.parametrize("b_frames", [0, 2])
def test_damage_that_is_skipped_is_counted_and_what_follows_is_true(tmp_path, kind, how, b_frames):
    """Every frame is the whole video's of its time, and what is lost fills the rest."""
    name, codec, options, muxer = {
        "ts": ("a.ts", "libx264", {"g": "12"}, {}),
        "mp4": ("a.mp4", "libx264", {"g": "12"}, {"movflags": "faststart"}),
        "avi": ("a.avi", "libx264", {"x264-params": f"bframes={b_frames}:b-adapt=0:keyint=12"}, {}),
        "mjpeg": ("a.avi", "mjpeg", {}, {}),
        "mkv": ("a.mkv", "libx264", {"g": "12"}, {}),
        "mpg": ("a.mpg", "mpeg2video", {"g": "12"}, {}),
    }[kind]
    pictures = [picture(index, 192, 128) for index in range(COUNT)]
    path = write_video(
        tmp_path / name, codec, options=options, container_options=muxer, pictures=pictures,
        max_b_frames=0 if codec == "mjpeg" else b_frames,
    )  # fmt: skip
    whole = {round(frame.time_s, 3): frame.image for frame in read(path)[0]}
    assert len(whole) == COUNT
    copy = damaged(path, how)
    stopped, error = read(copy)
    assert error is not None and len(stopped) < COUNT
    items, error = read(copy, on_damage="skip")
    assert error is None and [item.index for item in items] == list(range(len(items)))
    frames = [item for item in items if isinstance(item, Frame)]
    lost = [item for item in items if isinstance(item, UnreadableFrame)]
    assert len(lost) >= 1 and all("\n" not in item.reason for item in lost)
    assert len(frames) >= len(stopped) - 1 and (how == "cut" or kind == "mjpeg" or len(frames) > len(stopped))
    known = not any("unknown number" in item.reason for item in lost)
    assert known or kind in ("mpg", "mkv")
    if known and how != "often":
        assert len(items) == COUNT
    # The last picture before damage may still decode, though a part of it is guessed: nobody can tell.
    wrong = [frame.index for frame in frames if not np.array_equal(frame.image, whole[round(frame.time_s, 3)])]
    assert len(wrong) <= len({item.index - 1 for item in lost} - {item.index for item in lost})
    assert all(index + 1 in {item.index for item in lost} for index in wrong)


def test_a_first_picture_that_is_damaged_is_skipped_too(tmp_path):
    path = write_video(tmp_path / "first.mp4", options={"g": "12"})
    with av.open(str(path)) as container:
        first = next(container.demux(video=0))
    data = bytearray(path.read_bytes())
    data[first.pos : first.pos + first.size] = bytes(first.size)
    path.write_bytes(data)
    assert "frame 0" in refusal(path)
    items, error = read(path, on_damage="skip")
    assert error is None and len(items) == COUNT
    lost = [isinstance(item, UnreadableFrame) for item in items].index(False)
    assert 1 < lost < 20 and all(isinstance(item, Frame) for item in items[lost:]) and items[lost].time_s == 0


@pytest.mark.parametrize("kind", ["mp4", "avi", "ts", "mkv", "gif"])
def test_without_damage_skipping_changes_nothing(clips, kind):
    stopping, skipping = read(clips[kind]), read(clips[kind], on_damage="skip")
    assert stopping[1] is None and skipping[1] is None
    for a, b in zip(stopping[0], skipping[0], strict=True):
        assert a.time_s == b.time_s and np.array_equal(a.image, b.image)


def test_damage_is_either_skipped_or_not(clips):
    with pytest.raises(ValueError, match="perhaps"):
        open_source(clips["mp4"], on_damage="perhaps")


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
    path = write_video(tmp_path / "phone.mp4")  # the index stands at the end
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
        assert container.streams.video, "the cover is a video stream to FFmpeg"
    assert "only sound" in refusal(song)


def test_an_unknown_codec_is_refused(clips, tmp_path):
    path = tmp_path / "strange.mp4"
    path.write_bytes(clips["mp4"].read_bytes().replace(b"avc1", b"zzzz"))
    assert "codec" in refusal(path)


# Pictures and folders.


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


def test_a_photograph_stands_upright(tmp_path):
    """EXIF orientation 6: the camera was turned, the top row is at the right."""
    image = cv2.blur(picture(0), (15, 15))
    jpeg = cv2.imencode(".jpg", image)[1].tobytes()
    tiff = b"MM\0*" + struct.pack(">IHHHIHHI", 8, 1, 0x112, 3, 1, 6, 0, 0)
    exif = b"Exif\0\0" + tiff
    path = tmp_path / "photo.jpg"
    path.write_bytes(jpeg[:2] + b"\xff\xe1" + struct.pack(">H", len(exif) + 2) + exif + jpeg[2:])
    with open_source(path) as source:
        assert (source.info.width, source.info.height) == (64, 96)
        (frame,) = source
    assert np.abs(frame.image.astype(int) - cv2.rotate(image, cv2.ROTATE_90_CLOCKWISE)).mean() < 6


@pytest.fixture
def folder(tmp_path):
    """Pictures of different sizes, whose order by name is not that of their numbers, among other files."""
    folder = tmp_path / "holiday"
    folder.mkdir()
    for index, name in enumerate(["img1.png", "img2.jpg", "img9.PNG", "img10.png", "img11.bmp"]):
        suffix = name[-4:].lower()
        (folder / name).write_bytes(cv2.imencode(suffix, picture(index, 96 + 2 * index))[1].tobytes())
    (folder / "notes.txt").write_text("no picture")
    (folder / "._img1.png").write_bytes(b"what another system leaves")
    (folder / "inner.png").mkdir()
    return folder


def test_a_folder_gives_its_pictures_in_natural_order(folder):
    with open_source(folder) as source:
        assert (source.info.id, source.info.width, source.info.height) == ("holiday", 96, 64)
        assert (source.info.frame_rate, source.info.frame_count) == (None, 5)
        frames = list(source)
    assert [f.width for f in frames] == [96, 98, 100, 102, 104]
    assert [f.time_s for f in frames] == [0.0, 1.0, 2.0, 3.0, 4.0]
    assert {f.source_id for f in frames} == {"holiday"}


@pytest.mark.parametrize("damaged", [("img9.PNG",), ("img1.png", "img2.jpg"), ("img11.bmp",)])
def test_a_damaged_picture_fails_alone(folder, damaged):
    for name in damaged:
        (folder / name).write_bytes((folder / name).read_bytes()[:60])
    items, error = read(folder)
    assert error is None and [item.index for item in items] == [0, 1, 2, 3, 4]
    names = ["img1.png", "img2.jpg", "img9.PNG", "img10.png", "img11.bmp"]
    for name, item in zip(names, items, strict=True):
        assert isinstance(item, UnreadableFrame if name in damaged else Frame)
        assert item.source_id == "holiday"
        if name in damaged:
            assert name in item.reason and "\n" not in item.reason
        else:
            assert (item.width, item.time_s) == (96 + 2 * names.index(name), names.index(name))
    with open_source(folder) as source:
        assert source.info.width == next(item.width for item in items if isinstance(item, Frame))


def test_a_folder_in_which_nothing_can_be_read_is_refused(folder):
    for path in folder.glob("img*"):
        path.write_bytes(path.read_bytes()[:20])
    assert "img1.png" in refusal(folder) and "4 others" in refusal(folder)


def test_what_a_folder_leaves_out_is_told(folder):
    with open_source(folder) as source:
        assert [note for note in source.info.notes if "1 .txt" in note]
    (folder / "notes.txt").unlink()
    with open_source(folder) as source:
        assert source.info.notes == ()


def test_a_folder_without_pictures_is_refused(tmp_path):
    assert str(tmp_path) in refusal(tmp_path)


def test_a_capture_time_comes_with_its_clock(folder):
    frames, _ = read(folder)
    assert {(frame.captured_ns, frame.clock) for frame in frames} == {(None, None)}
    assert Frame(picture(0), "camera", 0, 0.0, captured_ns=1, clock="kernel").clock == "kernel"
    with pytest.raises(ValueError, match="together"):
        Frame(picture(0), "camera", 0, 0.0, captured_ns=1)


# Lifetime.


@pytest.mark.parametrize("kind", ["video", "folder"])
def test_a_source_is_read_once_from_any_thread_and_closed_from_any(clips, folder, kind):
    source = open_source(clips["mp4"] if kind == "video" else folder)
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


def test_half_a_jpeg_is_no_picture(tmp_path):
    """FFmpeg fills its other half with the picture before, and does not say so."""
    whole = write_video(tmp_path / "whole.mkv", "mjpeg", pictures=[picture(index) for index in range(10)])
    path = tmp_path / "half.mkv"
    with av.open(str(whole)) as source, av.open(str(path), "w") as target:
        stream = target.add_stream_from_template(source.streams.video[0])
        for index, packet in enumerate(source.demux(video=0)):
            if packet.dts is None:
                continue
            if index == 4:
                half = av.Packet(bytes(packet)[: packet.size // 2])
                half.pts, half.dts, half.time_base, half.is_keyframe = packet.pts, packet.dts, packet.time_base, True
                packet = half
            packet.stream = stream
            target.mux(packet)
    frames, error = read(path)
    assert len(frames) == 4 and "broke at frame 4" in str(error)
    frames, error = read(path, on_damage="skip")
    assert error is None and [f.index for f in frames if isinstance(f, UnreadableFrame)] == [4] and len(frames) == 10
