"""Pictures of every format: they are upright and complete, and their size is checked first; and animations."""

import struct
import subprocess
import sys
import zlib
from fractions import Fraction
from pathlib import Path

import av
import cv2
import numpy as np
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from pipeline.sources import open_source
from pipeline.sources.files import natural_key
from pipeline.sources.formats import FORMATS, format_of
from pipeline.types import Frame, UnreadableFrame
from tests.pipeline.media import COUNT, av1, box, exif, heif, hevc, jpeg_with_exif, picture, read, refusal, write_video

SMOOTH = cv2.blur(picture(0, 200, 140), (9, 9))
UPRIGHT = {  # for each EXIF orientation, from the stored picture to the upright one
    1: lambda image: image,
    2: lambda image: image[:, ::-1],
    3: lambda image: image[::-1, ::-1],
    4: lambda image: image[::-1],
    5: lambda image: image.transpose(1, 0, 2),
    6: lambda image: np.rot90(image, -1),
    7: lambda image: image[::-1, ::-1].transpose(1, 0, 2),
    8: lambda image: np.rot90(image),
}


def apart(a, b):
    """Mean difference of two pictures, grey levels; infinite if their sizes differ."""
    return np.abs(a.astype(int) - b).mean() if a.shape == b.shape else np.inf


def only(path):
    """The only frame of a picture; its source must report the same size."""
    with open_source(path) as source:
        (frame,) = source
        assert (source.info.width, source.info.height) == (frame.width, frame.height)
        assert (source.info.frame_rate, source.info.frame_count) == (None, 1)
    return frame.image


# Upright.


@pytest.mark.parametrize("orientation", UPRIGHT)
@pytest.mark.parametrize("name", ["a.jpg", "a.jfif", "a.pjpeg", "a.JPE", "a", "a.avif", "a.heic"])
def test_orientation_by_exif(tmp_path, name, orientation):
    path = tmp_path / name
    if name in ("a.avif", "a.heic"):
        path.write_bytes(heif(tmp_path, SMOOTH, kind=b"av01" if name == "a.avif" else b"hvc1", orientation=orientation))
    else:
        path.write_bytes(jpeg_with_exif(SMOOTH, orientation))
    assert apart(only(path), UPRIGHT[orientation](SMOOTH)) < 5


@pytest.mark.parametrize("kind", [b"hvc1", b"av01"])
@pytest.mark.parametrize(
    ("turns", "upright"),
    [
        ([(b"irot", b"\1")], lambda image: np.rot90(image)),
        ([(b"irot", b"\2")], lambda image: image[::-1, ::-1]),
        ([(b"imir", b"\0")], lambda image: image[::-1]),
        ([(b"imir", b"\1")], lambda image: image[:, ::-1]),
        ([(b"irot", b"\3"), (b"imir", b"\1")], lambda image: np.rot90(image, -1)[:, ::-1]),
        ([(b"imir", b"\1"), (b"irot", b"\3")], lambda image: np.rot90(image[:, ::-1], -1)),
        ([(b"irot", b"\0")], lambda image: image),
    ],
)
def test_a_heif_is_turned_by_its_properties_and_then_not_by_exif(tmp_path, kind, turns, upright):
    path = tmp_path / "a.heic"
    path.write_bytes(heif(tmp_path, SMOOTH, kind=kind, turns=turns, orientation=6))
    assert apart(only(path), upright(SMOOTH)) < 5


def test_exif_that_is_broken_is_not_needed(tmp_path):
    path = tmp_path / "a.avif"
    data = heif(tmp_path, SMOOTH, kind=b"av01", orientation=6)
    path.write_bytes(data.replace(exif(6), b"MM\0*" + b"\xff" * (len(exif(6)) - 4)))
    assert apart(only(path), SMOOTH) < 5


# HEIC.


@pytest.mark.parametrize("kind", [b"hvc1", b"av01"])
@pytest.mark.parametrize("tile", [None, 64, 128])
def test_a_heif_is_read_whole(tmp_path, kind, tile):
    """A phone's picture is a grid of tiles; a single tile is not the picture."""
    path = tmp_path / "IMG_0001.HEIC"
    path.write_bytes(heif(tmp_path, SMOOTH, kind=kind, tile=tile))
    assert apart(only(path), SMOOTH) < 5


@pytest.mark.parametrize("part", [0.02, 0.1, 0.5, 0.99])
def test_a_heic_that_is_cut_short_is_refused(tmp_path, part):
    data = heif(tmp_path, SMOOTH, tile=64)
    path = tmp_path / "a.heic"
    path.write_bytes(data[: int(len(data) * part)])
    assert "a.heic" in refusal(path)


def test_a_heic_whose_tile_is_missing_or_of_another_kind_is_refused(tmp_path):
    data = heif(tmp_path, SMOOTH, tile=64)
    path = tmp_path / "a.heic"
    at = data.rindex(struct.pack(">BBBBHH", 0, 0, 2, 3, 200, 140))
    path.write_bytes(data[: at + 2] + b"\x05" + data[at + 3 :])
    assert "12 of 24 tiles" in refusal(path)
    path.write_bytes(data.replace(b"hvc1", b"j2k1"))
    assert "j2k1" in refusal(path)


@settings(suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(places=st.lists(st.tuples(st.integers(0, 900), st.integers(0, 255)), min_size=1, max_size=6))
def test_a_damaged_heic_gives_a_picture_or_one_sentence(tmp_path, places):
    original = tmp_path / "original"
    if not original.exists():
        original.write_bytes(heif(tmp_path, SMOOTH, tile=128, orientation=3))
    data = bytearray(original.read_bytes())
    for at, value in places:
        data[at] = value
    path = tmp_path / "damaged.heic"
    path.write_bytes(data)
    items, error = [], None
    try:
        items, error = read(path)
    except OSError as refused:
        error = refused
    assert items or "damaged.heic" in str(error)


def test_heics_beside_jpegs_are_read_with_them(tmp_path):
    (tmp_path / "IMG_1.JPG").write_bytes(jpeg_with_exif(SMOOTH, 1))
    (tmp_path / "IMG_2.HEIC").write_bytes(heif(tmp_path, SMOOTH[:, :150], tile=64))
    (tmp_path / "IMG_3.jfif").write_bytes(jpeg_with_exif(SMOOTH, 6))
    for rest in tmp_path.glob("tile.*"):
        rest.unlink()
    items, error = read(tmp_path)
    assert error is None and [(item.width, item.height) for item in items] == [(200, 140), (150, 140), (140, 200)]


# Sizes that are only declared.


def png(width, height):
    """A PNG of zeros, compressed to a thousandth of the pixels' size."""

    def chunk(kind, body):
        return struct.pack(">I", len(body)) + kind + body + struct.pack(">I", zlib.crc32(kind + body))

    pack = zlib.compressobj(1)
    row = bytes(1 + -(-width // 8))
    body = b"".join(pack.compress(row) for _ in range(height)) + pack.flush()
    head = struct.pack(">IIBBBBB", width, height, 1, 0, 0, 0, 0)
    return b"\x89PNG\r\n\x1a\n" + chunk(b"IHDR", head) + chunk(b"IDAT", body) + chunk(b"IEND", b"")


def bombs(folder):
    """Files of a few kilobytes that declare 60000 x 60000 px, or the largest size of their format."""
    image = picture(0, 64, 64)
    jpeg, bmp, tiff, jp2 = (cv2.imencode(suffix, image)[1].tobytes() for suffix in (".jpg", ".bmp", ".tiff", ".jp2"))
    frame = jpeg.index(b"\xff\xc0")
    for tag in (256, 257):  # width and height
        tiff = tiff.replace(struct.pack("<HHIHH", tag, 3, 1, 64, 0), struct.pack("<HHII", tag, 4, 1, 60000))
    codestream = jp2.index(b"\xff\x4f\xff\x51")
    tall = struct.pack(">II", 200, 140), struct.pack(">II", 60000, 60000)
    extended = b"WEBPVP8X" + struct.pack("<I", 10) + bytes(4) + b"\xff\xff\0" * 2
    return {
        "a.png": png(64, 64).replace(struct.pack(">II", 64, 64), struct.pack(">II", 60000, 60000)),
        "a.jpg": jpeg[: frame + 5] + struct.pack(">HH", 60000, 60000) + jpeg[frame + 9 :],
        "a.webp": b"RIFF" + struct.pack("<I", 40) + extended + bytes(18),
        "a.tiff": tiff,
        "a.bmp": bmp[:18] + struct.pack("<ii", 60000, -60000) + bmp[26:],
        "a.jp2": jp2[: codestream + 8] + struct.pack(">II", 60000, 60000) + jp2[codestream + 16 :],
        "a.ppm": b"P6\n# a remark\n60000 60000\n255\n" + bytes(100),
        "a.heic": heif(folder, SMOOTH).replace(*tall),
        "grid.heic": heif(folder, SMOOTH, tile=64).replace(struct.pack(">HH", 200, 140), struct.pack(">HH", 60000, 60000)),
        "a.avif": heif(folder, SMOOTH, kind=b"av01").replace(*tall),
    }


def test_what_a_picture_claims_is_looked_at_before_it_is_decoded(tmp_path):
    work, folder = tmp_path / "work", tmp_path / "folder"
    work.mkdir()
    folder.mkdir()
    for name, data in bombs(work).items():
        path = folder / name
        path.write_bytes(data)
        assert len(data) < 100_000
        message = refusal(path)
        assert "million pixels" in message and name in message, message
    (folder / "z.png").write_bytes(cv2.imencode(".png", SMOOTH)[1].tobytes())
    items, error = read(folder)
    assert error is None and [type(item) for item in items] == [UnreadableFrame] * (len(items) - 1) + [Frame]


def test_a_bomb_costs_no_memory(tmp_path):
    """900 million pixels in 109 kB, in a process whose memory could not hold them."""
    path = tmp_path / "b.png"
    path.write_bytes(png(30000, 30000))
    code = (
        "import resource, sys\n"
        "from pipeline.sources import open_source\n"
        "before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss\n"
        "try: open_source(sys.argv[1])\n"
        "except OSError as error: print(error)\n"
        "print((resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before) // 1024)\n"
    )
    message, more_mb = subprocess.run(
        [sys.executable, "-c", code, str(path)], capture_output=True, text=True, check=True
    ).stdout.splitlines()
    assert "30000 x 30000" in message and int(more_mb) < 50


def test_a_videos_size_is_looked_at_before_it_is_decoded(tmp_path):
    big = tmp_path / "big.ts"
    with av.open(str(big), "w") as container:
        stream = container.add_stream("libx264", rate=25, options={"preset": "ultrafast"})
        stream.width, stream.height, stream.pix_fmt = 8192, 8192, "yuv420p"
        stream.codec_context.thread_count = 1
        grey = np.full((8192 * 3 // 2, 8192), 128, np.uint8)
        container.mux(stream.encode(av.VideoFrame.from_ndarray(grey, format="yuv420p")))
        container.mux(stream.encode(None))
    assert big.stat().st_size < 300_000
    assert "8192 x 8192" in refusal(big)
    grows = write_video(tmp_path / "grows.ts")  # half way
    grows.write_bytes(grows.read_bytes() + big.read_bytes())
    frames, error = read(grows)
    assert len(frames) == COUNT and error is not None
    frames, error = read(grows, on_damage="skip")
    assert [type(frame) for frame in frames] == [Frame] * COUNT + [UnreadableFrame] and error is None


def test_an_animations_size_is_looked_at_before_it_is_decoded(tmp_path):
    apng = b"".join(
        struct.pack(">I", len(body)) + kind + body + struct.pack(">I", zlib.crc32(kind + body))
        for kind, body in (
            (b"IHDR", struct.pack(">IIBBBBB", 60000, 60000, 8, 2, 0, 0, 0)),
            (b"acTL", struct.pack(">II", 2, 0)),
            (b"fcTL", struct.pack(">IIIIIHHBB", 0, 60000, 60000, 0, 0, 1, 10, 0, 0)),
            (b"IDAT", zlib.compress(bytes(1000))),
        )
    )
    (tmp_path / "a.png").write_bytes(b"\x89PNG\r\n\x1a\n" + apng)
    gif = bytearray(write_video(tmp_path / "a.gif", "gif", pictures=[picture(0)] * 2).read_bytes())
    gif[6:10] = struct.pack("<HH", 60000, 60000)
    (tmp_path / "a.gif").write_bytes(gif)
    for name in ("a.png", "a.gif"):
        assert "million pixels" in refusal(tmp_path / name)


def test_a_jpeg_2000_that_ends_before_it_begins_has_no_size():
    (known,) = (known for known in FORMATS if known.name == "JPEG 2000")
    header = b"\xff\x4f\xff\x51" + bytes(4)
    assert known.size(header + struct.pack(">4I", 5, 7, 2, 3)) == (3, 4)
    for sizes in ((2, 7, 5, 3), (5, 3, 2, 7)):
        with pytest.raises(ValueError, match="no size"):
            known.size(header + struct.pack(">4I", *sizes))


@given(st.binary(max_size=300), st.sampled_from(FORMATS), st.data())
def test_headers_of_noise_have_a_size_or_none(noise, known, data):
    """Whatever follows a format's first bytes, the result is a size or one of the errors that mean damage."""
    begins = {
        "JPEG": b"\xff\xd8\xff", "PNG": b"\x89PNG\r\n\x1a\n", "WebP": b"RIFF\0\0\0\0WEBP", "TIFF": b"II*\0",
        "BMP": b"BM" + bytes(8), "GIF": b"GIF89a", "JPEG 2000": b"\xff\x4f\xff\x51",
        "Netpbm": b"P6 ", "HEIF": box(b"ftyp", b"heic" + bytes(4)),
    }  # fmt: skip
    whole = begins[known.name] + noise
    assert format_of(whole) is known
    try:
        width, height = known.size(whole)
    except (ValueError, IndexError, KeyError, struct.error):
        return
    assert width >= 0 <= height


# Animations.


def animated(path, codec, form, pixels, times, **options):
    """An animation of `picture`s at times in ms."""
    with av.open(str(path), "w", format=form) as container:
        stream = container.add_stream(codec, rate=10, options=options)
        stream.width, stream.height, stream.pix_fmt = 96, 64, pixels
        stream.codec_context.time_base = Fraction(1, 1000)
        for index, time in enumerate(times):
            frame = av.VideoFrame.from_ndarray(picture(index), format="bgr24")
            frame.pts, frame.time_base = time, Fraction(1, 1000)
            container.mux(stream.encode(frame))
        container.mux(stream.encode(None))
    return path


@pytest.mark.parametrize("name", ["a.webp", "a.png", "a.apng", "a.avif", "a.gif"])
def test_an_animation_gives_all_frames_at_their_times(tmp_path, name):
    times = [0, 100, 200, 500, 600]
    codec, form, pixels, options = {
        "a.webp": ("libwebp_anim", "webp", "bgra", {"lossless": "1"}),
        "a.avif": ("libsvtav1", "avif", "yuv420p", {"crf": "10"}),
        "a.gif": ("gif", "gif", "rgb8", {}),
    }.get(name, ("apng", "apng", "rgb24", {}))
    path = animated(tmp_path / name, codec, form, pixels, times, **options)
    with open_source(path) as source:
        assert (source.info.width, source.info.height) == (96, 64)
        assert source.info.frame_rate is not None and source.info.frame_count in (None, 5)
        frames = list(source)
    assert np.allclose([frame.time_s for frame in frames], np.array(times) / 1000, atol=2e-3)
    for index, frame in enumerate(frames):
        if name != "a.gif":
            assert apart(cv2.blur(frame.image, (9, 9)), cv2.blur(picture(index), (9, 9))) < 6


def animated_webp(canvas, frames):
    """An animated WebP of (left, top, picture BGRA, duration in ms, blends, clears)."""
    body = b""
    for left, top, image, duration, blends, clears in frames:
        still = cv2.imencode(".webp", image, [cv2.IMWRITE_WEBP_QUALITY, 101])[1].tobytes()
        size = tuple(side - 1 for side in image.shape[1::-1])
        numbers = (left // 2, top // 2, *size, duration)
        head = b"".join(number.to_bytes(3, "little") for number in numbers) + bytes([(not blends) << 1 | clears])
        parts = still[12:] if still[12:16] == b"VP8L" else still[12 + 18 :]
        body += b"ANMF" + struct.pack("<I", len(head + parts)) + head + parts
    extent = b"".join((side - 1).to_bytes(3, "little") for side in canvas)
    chunks = b"VP8X" + struct.pack("<I", 10) + bytes([0x12, 0, 0, 0]) + extent + b"ANIM" + struct.pack("<IIH", 6, 0, 0) + body
    return b"RIFF" + struct.pack("<I", 4 + len(chunks)) + b"WEBP" + chunks


def test_frames_of_a_webp_are_put_on_its_canvas(tmp_path):
    """A part of the canvas that is half transparent and then cleared."""
    full = np.dstack([np.full((20, 30), level, np.uint8) for level in (50, 100, 150, 255)])
    part = np.dstack([np.full((8, 10), level, np.uint8) for level in (250, 200, 0, 128)])
    path = tmp_path / "a.webp"
    frames = [(0, 0, full, 40, True, False), (4, 6, part, 60, True, True), (20, 0, part, 100, False, False)]
    path.write_bytes(animated_webp((30, 20), frames))
    items, error = read(path)
    assert error is None and [item.time_s for item in items] == [0.0, 0.04, 0.1]
    assert np.array_equal(items[0].image, full[..., :3])
    expected = full[..., :3].astype(float)
    expected[6:14, 4:14] = expected[6:14, 4:14] * (127 / 255) + np.array([250, 200, 0]) * (128 / 255)
    assert np.abs(items[1].image - expected).max() <= 1
    assert not items[2].image[6:14, 4:14].any() and np.array_equal(items[2].image[10, 20], full[10, 20, :3])


@pytest.mark.parametrize("on_damage", ["stop", "skip"])
def test_a_webp_that_is_cut_short_keeps_its_whole_frames(tmp_path, on_damage):
    full = np.dstack([picture(0, 30, 20), np.full((20, 30), 255, np.uint8)])
    data = animated_webp((30, 20), [(0, 0, full, 40, True, False)] * 4)
    path = tmp_path / "a.webp"
    path.write_bytes(data[:-30])
    items, error = read(path, on_damage=on_damage)
    assert [type(item) for item in items] == [Frame] * 3 + [UnreadableFrame] * (on_damage == "skip")
    assert (error is None) == (on_damage == "skip")
    assert error is None or "broke at frame 3" in str(error)


# The order of a folder.


@given(st.lists(st.tuples(st.sampled_from(["img", "b", "é"]), st.integers(0, 10**12)), unique=True))
def test_natural_order_is_that_of_words_and_numbers(names):
    paths = [Path(f"{word}{number}.png") for word, number in names]
    assert [path.name for path in sorted(paths, key=natural_key)] == [f"{word}{number}.png" for word, number in sorted(names)]


@given(st.lists(st.text(st.characters(exclude_characters="/\0", exclude_categories=["Cs"]), min_size=1, max_size=8)))
def test_every_name_has_a_place_in_the_order(names):
    paths = sorted(map(Path, names), key=natural_key)
    assert sorted(reversed(paths), key=natural_key) == sorted(paths, key=natural_key)


def test_the_helpers_code_what_they_say(tmp_path):
    """A single tile decodes, so a failing test of HEIF is not due to its codec."""
    for coder in (hevc, av1):
        configuration, data = coder(tmp_path, SMOOTH)
        assert len(configuration) > 3 and len(data) > 100
