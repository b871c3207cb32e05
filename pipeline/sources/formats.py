"""The format of a picture file and its declared size, from its first bytes: nothing is decoded.

Sources: PNG and APNG (W3C, third edition), JPEG (ITU-T T.81), WebP (RFC 9649), TIFF 6.0 and BigTIFF, BMP (Microsoft's
BITMAPFILEHEADER and BITMAPINFOHEADER), GIF89a (CompuServe), JPEG 2000 (ITU-T T.800), Netpbm's manual pages.
"""

from __future__ import annotations

import re
import struct
from collections.abc import Callable
from dataclasses import dataclass

import pipeline.sources.heif as heif

MALFORMED = (ValueError, IndexError, KeyError, struct.error)
"""The exceptions that reading a broken header raises."""


@dataclass(frozen=True)
class PictureFormat:
    """A format of pictures.

    Attributes:
        name: its usual name.
        begins: whether a file with these first bytes (at least 32 if the file has them) is of this format.
        size: its width and height, px, from the complete file; raises one of MALFORMED if that is broken.
    """

    name: str
    begins: Callable[[bytes], bool]
    size: Callable[[bytes], tuple[int, int]]


def tiff_tags(data: bytes) -> dict[int, int]:
    """The whole numbers of a TIFF's first directory, by tag; also what EXIF data is. The largest where a tag comes twice."""
    order = {b"II": "<", b"MM": ">"}[data[:2]]
    big = struct.unpack_from(order + "H", data, 2)[0] == 43
    (at,) = struct.unpack_from(order + ("Q" if big else "I"), data, 8 if big else 4)
    (count,) = struct.unpack_from(order + ("Q" if big else "H"), data, at)
    at += 8 if big else 2
    kinds = {1: "B", 3: "H", 4: "I", 16: "Q"}
    tags: dict[int, int] = {}
    for entry in range(at, at + min(count, 4096) * (20 if big else 12), 20 if big else 12):
        tag, kind = struct.unpack_from(order + "HH", data, entry)
        if kind in kinds:
            (value,) = struct.unpack_from(order + kinds[kind], data, entry + (12 if big else 8))
            tags[tag] = max(value, tags.get(tag, 0))
    return tags


_JPEG_MARKER = re.compile(rb"\xff+([^\xff\0])")


def _jpeg_size(data: bytes) -> tuple[int, int]:
    at = 2
    while found := _JPEG_MARKER.search(data, at):  # decoders search for the next marker too
        marker, at = found[1][0], found.end()
        if 0xC0 <= marker <= 0xCF and marker not in (0xC4, 0xC8, 0xCC):
            height, width = struct.unpack_from(">HH", data, at + 3)
            return width, height
        if marker != 0x01 and not 0xD0 <= marker <= 0xD8:  # these have no length
            at += struct.unpack_from(">H", data, at)[0]
    raise ValueError("no size")


def _webp_size(data: bytes) -> tuple[int, int]:
    if data[12:16] == b"VP8X":
        return 1 + int.from_bytes(data[24:27], "little"), 1 + int.from_bytes(data[27:30], "little")
    if data[12:16] == b"VP8L":
        bits = int.from_bytes(data[21:25], "little")
        return 1 + (bits & 0x3FFF), 1 + (bits >> 14 & 0x3FFF)
    width, height = struct.unpack_from("<HH", data, 26)
    return width & 0x3FFF, height & 0x3FFF


def _tiff_size(data: bytes) -> tuple[int, int]:
    tags = tiff_tags(data)
    # Decoders make room for whole tiles.
    return max(tags[256], tags.get(322, 0)), max(tags[257], tags.get(323, 0))


def _bmp_size(data: bytes) -> tuple[int, int]:
    if struct.unpack_from("<I", data, 14)[0] == 12:
        return struct.unpack_from("<HH", data, 18)
    width, height = struct.unpack_from("<ii", data, 18)
    return abs(width), abs(height)


def _jpeg2000_size(data: bytes) -> tuple[int, int]:
    at = 0
    while data[at : at + 2] != b"\xff\x4f":  # skip boxes up to the one that begins with the codestream's first marker
        size, kind = struct.unpack_from(">I4s", data, at)
        if size == 1:
            (size,) = struct.unpack_from(">Q", data, at + 8)
        at += 8 if kind == b"jp2c" else max(size, 8)
    right, bottom, left, top = struct.unpack_from(">4I", data, at + 8)
    if right < left or bottom < top:
        raise ValueError("no size")
    return right - left, bottom - top


def _netpbm_size(data: bytes) -> tuple[int, int]:
    words = re.match(rb"P[1-6](?:\s|#[^\n]*\n)+(\d{1,9})(?:\s|#[^\n]*\n)+(\d{1,9})\s", data[: 1 << 16])
    if words is None:
        raise ValueError("no size")
    return int(words[1]), int(words[2])


FORMATS = (
    PictureFormat("JPEG", lambda head: head.startswith(b"\xff\xd8\xff"), _jpeg_size),
    PictureFormat("PNG", lambda head: head.startswith(b"\x89PNG\r\n\x1a\n"), lambda data: struct.unpack_from(">II", data, 16)),
    PictureFormat("WebP", lambda head: head[:4] == b"RIFF" and head[8:12] == b"WEBP", _webp_size),
    PictureFormat("TIFF", lambda head: head[:4] in (b"II*\0", b"MM\0*", b"II+\0", b"MM\0+"), _tiff_size),
    PictureFormat("BMP", lambda head: head[:2] == b"BM" and head[6:10] == bytes(4), _bmp_size),
    PictureFormat(
        "JPEG 2000",
        lambda head: head.startswith((b"\0\0\0\x0cjP  \r\n\x87\n", b"\xff\x4f\xff\x51")),
        _jpeg2000_size,
    ),
    PictureFormat("Netpbm", lambda head: re.match(rb"P[1-6][\s#]", head) is not None, _netpbm_size),
    PictureFormat("GIF", lambda head: head[:6] in (b"GIF87a", b"GIF89a"), lambda data: struct.unpack_from("<HH", data, 6)),
    PictureFormat("HEIF", heif.begins, lambda data: heif.read(data).size),
)


def format_of(head: bytes) -> PictureFormat | None:
    """The format of a picture file by its first bytes, or None if it is not a known picture format."""
    return next((known for known in FORMATS if known.begins(head)), None)


def is_animated(data: bytes) -> bool:
    """Whether a file of one of the formats is animated: GIF, APNG, animated WebP, AVIF and HEIF sequences."""
    if data.startswith(b"GIF8"):
        return True
    if data.startswith(b"\x89PNG"):
        at = 8
        while at + 8 <= len(data) and data[at + 4 : at + 8] not in (b"IDAT", b"acTL"):
            at += 12 + int.from_bytes(data[at : at + 4], "big")
        return data[at + 4 : at + 8] == b"acTL"
    if data[:4] == b"RIFF":
        return data[12:16] == b"VP8X" and bool(data[20] & 2)
    return heif.begins(data) and heif.is_sequence(data)
