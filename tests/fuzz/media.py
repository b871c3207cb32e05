"""Videos, pictures, and folders of pictures."""

from __future__ import annotations

import io
import tempfile
from collections.abc import Callable
from itertools import islice
from pathlib import Path
from random import Random

import av
import cv2

from pipeline.sources import open_source
from tests.fuzz.base import WHOLE_RUNS, picture, run_on, warm
from tests.fuzz.mutations import damaged

MOST_FRAMES = 100
"""Largest number of frames that are read from a source: a header may promise thousands."""


def read_all(path: object, **options: object) -> None:
    """Open a source and read its frames."""
    with open_source(path, **options) as source:  # type: ignore[arg-type]
        for _ in islice(source, MOST_FRAMES):
            pass


class Media:
    """Files of pictures and of videos.

    Args:
        make: returns valid files, by suffix.
    """

    def __init__(self, make: Callable[[], dict[str, bytes]]) -> None:
        self._make = make

    def prepare(self) -> str | None:
        self._files = self._make()
        warm()
        return None

    def read(self, random: Random, folder: Path) -> None:
        name = random.choice(sorted(self._files))
        path = folder / f"clip.{name.split('.')[-1] if random.random() < 0.8 else random.choice(('mp4', 'png', 'x', 'heic'))}"
        path.write_bytes(damaged(random, self._files[name]))
        damage = random.choice(("stop", "skip"))
        if random.random() < WHOLE_RUNS:
            run_on(path, "--on-damage", damage)
        read_all(path, on_damage=damage)


def videos() -> dict[str, bytes]:
    """Short videos in the containers and codecs of cameras and tools."""
    made = {}
    codecs = ("libx264", "mpeg4", "mjpeg", "libvpx", "ffv1")
    for codec, suffixes in zip(codecs, ("mp4 mov ts mkv flv", "avi mp4 mpg", "avi mov", "webm", "mkv avi"), strict=True):
        for suffix in suffixes.split():
            buffer = io.BytesIO()
            form = {"mkv": "matroska", "ts": "mpegts", "mpg": "mpeg"}.get(suffix, suffix)
            with av.open(buffer, "w", format=form) as container:
                stream = container.add_stream(codec, rate=25)
                stream.width, stream.height = 64, 48
                stream.pix_fmt = {"mjpeg": "yuvj420p", "ffv1": "bgr0"}.get(codec, "yuv420p")
                stream.codec_context.thread_count = 1
                for index in range(8):
                    container.mux(stream.encode(av.VideoFrame.from_ndarray(picture(index), format="bgr24")))
                container.mux(stream.encode(None))
            made[f"{codec}.{suffix}"] = buffer.getvalue()
    return made


def pictures() -> dict[str, bytes]:
    """Pictures in every supported format, also with EXIF, animated and in HEIF."""
    from tests.pipeline import media

    made = {}
    for suffix in ("jpg", "png", "webp", "bmp", "tiff", "ppm", "jp2", "avif", "gif"):
        try:
            done, data = cv2.imencode(f".{suffix}", picture())
        except cv2.error:
            continue
        if done:
            made[f"plain.{suffix}"] = data.tobytes()
    made["exif.jpg"] = media.jpeg_with_exif(picture(), 6)
    with tempfile.TemporaryDirectory() as folder:
        for name, options in {"hevc": {}, "tiles": {"tile": 64}, "turned": {"turns": ((b"irot", b"\1"),)}}.items():
            made[f"{name}.heic"] = media.heif(Path(folder), picture(0, 128, 128), **options)
        made["av1.avif"] = media.heif(Path(folder), picture(), kind=b"av01")
    return made


class Folders:
    """Folders of pictures, some of them spoilt, among other files."""

    def prepare(self) -> str | None:
        self._files = pictures()
        warm()
        return None

    def read(self, random: Random, folder: Path) -> None:
        place = folder / "pictures"
        place.mkdir()
        for index in range(random.choice((0, 1, 2, 5))):
            name = random.choice(sorted(self._files))
            data = self._files[name]
            word = random.choice((f"img{index}", f"{index}", "a\nb", "\u202eb", ".hidden", "x" * 200, "img١"))
            path = place / f"{word}.{name.split('.')[-1]}"
            path.write_bytes(damaged(random, data) if random.random() < 0.5 else data)
        kind = random.randrange(6)
        if kind == 0:
            (place / "zero.png").symlink_to("/dev/zero")
        elif kind == 1:
            (place / "loop.png").symlink_to("loop.png")
        elif kind == 2:
            (place / "folder.png").mkdir()
        elif kind == 3:
            (place / "notes.txt").write_bytes(b"")
        if random.random() < WHOLE_RUNS:
            run_on(place)
        read_all(place if random.random() < 0.9 else str(place))
