"""Recordings that break off or are damaged: frames before that are kept, lost frames are reported or counted."""

import struct

import av
import numpy as np
import pytest

from pipeline.sources import open_source
from pipeline.types import Frame, UnreadableFrame
from tests.cases import fast_first
from tests.pipeline.media import COUNT, RATE, picture, read, refusal, write_video

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
    # The picture in which the damage begins may still decode: nothing distinguishes it from an intact one.
    assert all(np.array_equal(a.image, b.image) for a, b in zip(frames[:-1], whole, strict=False))


def test_a_lost_packet_of_a_transport_stream_breaks_it(tmp_path):
    path = write_video(tmp_path / "lost.ts", options={"g": "250", "crf": "10"})
    whole, _ = read(path)
    data = path.read_bytes()
    packets = [data[at : at + 188] for at in range(0, len(data), 188)]
    # A packet of the video, in the middle of a picture.
    inner = [n for n, packet in enumerate(packets) if packet[1] == 0x01 and packet[2] == 0x00]
    for lost in (inner[len(inner) // 3], inner[len(inner) // 2]):
        path.write_bytes(b"".join(packet for n, packet in enumerate(packets) if n != lost))
        frames, error = read(path)
        assert f"broke at frame {len(frames)}" in str(error) and "damaged" in str(error)
        assert 0.1 * COUNT < len(frames) < COUNT
        assert all(np.array_equal(a.image, b.image) for a, b in zip(frames, whole, strict=False))


def avi_chunks(data):
    """The offsets of the first picture chunks of an AVI."""
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
    """Frames wait in the decoder to be reordered: a break after them must not lose them."""
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
    """Whether or not the stream's parameters, which come with that key frame, are in the 5 MB that FFmpeg searches for them."""
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


# Damage that is skipped.


def damaged(path, how):
    """A copy of a video with a lost part; None if this kind of damage does not fit the format."""
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
@pytest.mark.parametrize("b_frames", fast_first([2, 0]))
def test_damage_that_is_skipped_is_counted_and_what_follows_is_true(tmp_path, kind, how, b_frames):
    """Every frame equals the intact video's frame of that time; lost frames account for the rest."""
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
    # The last picture before damage may still decode, with a part that is guessed: nothing shows this.
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


def test_half_a_jpeg_is_no_picture(tmp_path):
    """FFmpeg fills its other half with the previous picture, without reporting it."""
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
