"""Files for the tests of sources, and how sources read them."""

import struct
from fractions import Fraction

import av
import cv2
import numpy as np
import pytest

from convnextpose.errors import SourceError
from pipeline.sources import open_source

RATE = 25
COUNT = 60


def picture(index, width=96, height=64):
    """A textured picture that differs from frame to frame."""
    y, x = np.mgrid[0:height, 0:width]
    noise = np.random.default_rng(index).integers(0, 24, (height, width, 3))
    return (np.stack([x + 3 * index, 2 * y + index, (x + y) // 2 + 60], -1) % 232 + noise).astype(np.uint8)


def same_picture(a, b):
    """Whether a frame shows a picture, apart from compression errors."""
    return np.abs(cv2.blur(a, (9, 9)).astype(int) - cv2.blur(b, (9, 9))).mean() < 6


def write_video(
    path, codec="libx264", *, times=None, options=None, container_options=None, pictures=None, max_b_frames=None, rate=RATE
):
    """A video of `picture`s, at `times` in seconds or at `rate` frames a second."""
    pictures = [picture(i) for i in range(COUNT if times is None else len(times))] if pictures is None else pictures
    pixels = {"mjpeg": "yuvj420p", "gif": "rgb8", "ffv1": "bgr0"}.get(codec, "yuv420p")
    with av.open(str(path), "w", options=container_options or {}) as container:
        stream = container.add_stream(codec, rate=rate, options=options or {})
        stream.height, stream.width = pictures[0].shape[:2]
        stream.pix_fmt = pixels
        stream.codec_context.thread_count = 1  # the same bytes on every machine: tests cut and damage them
        stream.bit_rate = 0 if codec == "libx264" else 2_000_000
        if max_b_frames is not None:
            stream.codec_context.max_b_frames = max_b_frames
        if times is not None:
            stream.codec_context.time_base = Fraction(1, 90_000)
        for index, image in enumerate(pictures):
            frame = av.VideoFrame.from_ndarray(image, format="bgr24")
            if times is not None:
                frame.pts, frame.time_base = round(times[index] * 90_000), Fraction(1, 90_000)
            container.mux(stream.encode(frame))
        container.mux(stream.encode(None))
    return path


def read(path, **options):
    """Read a source to its end: (frames, the error that ended it or None)."""
    frames = []
    with open_source(path, **options) as source:
        try:
            frames.extend(source)
        except SourceError as error:
            assert list(source) == [], "a source that broke has ended"
            return frames, error
    return frames, None


def refusal(path, **options):
    """The one sentence with which a file is refused when it is opened."""
    with pytest.raises(SourceError) as caught:
        open_source(path, **options)
    assert isinstance(caught.value, OSError)
    message = str(caught.value)
    assert message and "\n" not in message and len(message) < 400
    return message


def exif(orientation):
    """EXIF data with only a picture's orientation, from the TIFF header on."""
    return b"MM\0*" + struct.pack(">IHHHIHHI", 8, 1, 0x112, 3, 1, orientation, 0, 0)


def jpeg_with_exif(image, orientation):
    """A JPEG from a rotated camera."""
    jpeg = cv2.imencode(".jpg", image, [cv2.IMWRITE_JPEG_QUALITY, 97])[1].tobytes()
    body = b"Exif\0\0" + exif(orientation)
    return jpeg[:2] + b"\xff\xe1" + struct.pack(">H", len(body) + 2) + body + jpeg[2:]


def hevc(folder, image):
    """A picture in HEVC: (the decoder's configuration, its data)."""
    path = folder / "tile.mkv"
    with av.open(str(path), "w") as container:
        stream = container.add_stream("libx265", rate=1, options={"crf": "4", "x265-params": "log-level=none"})
        stream.height, stream.width = image.shape[:2]
        stream.pix_fmt = "yuvj420p"
        container.mux(stream.encode(av.VideoFrame.from_ndarray(image, format="bgr24")))
        container.mux(stream.encode(None))
    with av.open(str(path)) as container:
        stream = container.streams.video[0]
        return bytes(stream.codec_context.extradata), bytes(next(container.demux(stream)))


def av1(folder, image):
    """A picture in AV1: (the decoder's configuration, its data)."""
    path = folder / "tile.avif"
    path.write_bytes(cv2.imencode(".avif", image, [cv2.IMWRITE_AVIF_QUALITY, 95])[1].tobytes())
    data = path.read_bytes()
    at = data.index(b"av1C")
    configuration = data[at + 4 : at - 4 + int.from_bytes(data[at - 4 : at], "big")]
    with av.open(str(path)) as container:
        return configuration, bytes(next(container.demux(video=0)))


def box(kind, *bodies, version=None, flags=0):
    """A box of an ISO file; a full box if a version is given."""
    body = b"" if version is None else bytes([version]) + flags.to_bytes(3, "big")
    body += b"".join(bodies)
    return struct.pack(">I", 8 + len(body)) + kind + body


def heif(folder, image, *, kind=b"hvc1", tile=None, turns=(), orientation=None, colours=None):
    """A HEIF file of a picture, as phones write it: HEVC (`hvc1`) or AV1 (`av01`), whole or in a grid of square tiles.

    turns: bodies of `irot` and `imir` boxes, in order. orientation: EXIF's. colours: the body of a `colr` box.
    """
    height, width = image.shape[:2]
    if tile is None:
        rows, columns, parts = 1, 1, [image]
    else:
        rows, columns = -(-height // tile), -(-width // tile)
        padded = cv2.copyMakeBorder(
            image, 0, rows * tile - height, 0, columns * tile - width, cv2.BORDER_REPLICATE
        )  # fmt: skip
        parts = [
            padded[y : y + tile, x : x + tile] for y in range(0, rows * tile, tile) for x in range(0, columns * tile, tile)
        ]
    coded = [hevc(folder, part) if kind == b"hvc1" else av1(folder, part) for part in parts]
    part_height, part_width = parts[0].shape[:2]
    properties = [
        box(b"hvcC" if kind == b"hvc1" else b"av1C", coded[0][0]),
        box(b"ispe", struct.pack(">II", part_width, part_height), version=0),
        box(b"ispe", struct.pack(">II", width, height), version=0),
        box(b"colr", colours or b"nclx" + struct.pack(">HHHB", 1, 13, 6, 0x80)),
        *(box(name, body) for name, body in turns),
    ]
    shown = [4, *(0x80 | place for place in range(5, 5 + len(turns)))]  # rotations and mirrorings are essential properties
    contents, kinds, references = [data for _, data in coded], [kind] * len(coded), b""
    associations = [(number, [0x81, 2]) for number in range(1, len(coded) + 1)]
    primary = 1
    if tile is None:
        associations[0][1].extend(shown)
    else:
        primary = len(coded) + 1
        contents.append(struct.pack(">BBBBHH", 0, 0, rows - 1, columns - 1, width, height))
        kinds.append(b"grid")
        associations.append((primary, [3, *shown]))
        references += box(b"dimg", struct.pack(f">HH{len(coded)}H", primary, len(coded), *range(1, len(coded) + 1)))
    if orientation is not None:
        contents.append(bytes(4) + exif(orientation))
        kinds.append(b"Exif")
        references += box(b"cdsc", struct.pack(">HHH", len(contents), 1, primary))
    entries = b"".join(
        box(b"infe", struct.pack(">HH4s", number, 0, name), b"\0", version=2) for number, name in enumerate(kinds, 1)
    )
    linked = b"".join(struct.pack(">HB", number, len(places)) + bytes(places) for number, places in associations)

    def meta(begin):
        places, at = b"", begin
        for number, content in enumerate(contents, 1):
            places += struct.pack(">HHHII", number, 0, 1, at, len(content))
            at += len(content)
        return box(
            b"meta",
            box(b"hdlr", bytes(4) + b"pict" + bytes(13), version=0),
            box(b"pitm", struct.pack(">H", primary), version=0),
            box(b"iinf", struct.pack(">H", len(kinds)), entries, version=0),
            box(b"iref", references, version=0) if references else b"",
            box(b"iprp", box(b"ipco", *properties), box(b"ipma", struct.pack(">I", len(associations)), linked, version=0)),
            box(b"iloc", b"\x44\0", struct.pack(">H", len(contents)), places, version=0),
            version=0,
        )

    brand = b"heic" if kind == b"hvc1" else b"avif"
    head = box(b"ftyp", brand, bytes(4), b"mif1", brand)
    begin = len(head) + len(meta(0)) + 8
    return head + meta(begin) + box(b"mdat", *contents)
