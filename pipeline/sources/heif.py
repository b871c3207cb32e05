"""HEIF pictures, which HEIC and AVIF are: size, orientation, and the tiles that large ones are made of.

A phone's HEIC is a grid of HEVC pictures; FFmpeg would read each tile as a complete picture. OpenCV reads no HEIC, and no AVIF
whose EXIF data follows the picture.

Sources: ISO/IEC 23008-12 (HEIF: items, properties, grids), ISO/IEC 14496-12 (boxes, `iloc`), ISO/IEC 23000-22 (MIAF).
"""

from __future__ import annotations

import struct
from collections.abc import Iterator
from dataclasses import dataclass, field
from typing import Any

import av
import numpy as np
from numpy.typing import NDArray

from pipeline.sources.limits import DECODER_OPTIONS

_STILL = frozenset({b"mif1", b"heic", b"heix", b"heim", b"heis", b"avif"})
_SEQUENCE = frozenset({b"msf1", b"hevc", b"hevx", b"avis"})

_CODERS = {b"hvc1": ("hevc", b"hvcC"), b"av01": ("libdav1d", b"av1C")}
"""By the kind of an item: FFmpeg's decoder, and the property that configures it."""

_SMALLEST_TILE = 64
"""Smallest side of a grid's tiles, px (MIAF, 7.3.11.4.2): with smaller ones a small file could declare many thousands."""


def _brands(head: bytes) -> list[bytes]:
    """The major brand and the compatible ones."""
    if head[4:8] != b"ftyp":
        return []
    end = min(int.from_bytes(head[:4], "big"), 256)
    return [head[8:12], *(head[at : at + 4] for at in range(16, min(end, len(head) - 3), 4))]


def begins(head: bytes) -> bool:
    """Whether a file that begins like this is a HEIF picture, or a sequence of them."""
    return any(brand in _STILL | _SEQUENCE for brand in _brands(head)[:1])


def is_sequence(head: bytes) -> bool:
    """Whether such a file is meant to be shown as moving pictures."""
    return any(brand in _SEQUENCE for brand in _brands(head)[:1])


@dataclass
class _Item:
    kind: bytes = b""
    extents: list[tuple[int, int]] = field(default_factory=list)  # start and length in the file; length 0: to the end
    inline: bool = False  # in the `idat` box, not elsewhere in the file
    properties: list[tuple[bytes, memoryview]] = field(default_factory=list)
    references: dict[bytes, list[int]] = field(default_factory=dict)

    def find(self, kind: bytes) -> memoryview | None:
        """Its first property of a kind."""
        return next((body for name, body in self.properties if name == kind), None)


@dataclass(frozen=True)
class HeifPicture:
    """The primary picture of a HEIF file.

    Attributes:
        size: stored width and height, px.
        turns: quarters of a turn anticlockwise (`irot`) and flips (`imir`; OpenCV's code), in the order of the file: pairs of a
            name and a number.
        exif: its EXIF data, beginning with the TIFF header, or None. If `turns` is empty its orientation applies.
        rows, columns: numbers of rows and columns of its tiles; 1 and 1 for a single picture.
        decoder: FFmpeg's name of their decoder.
        tiles: their decoder's configuration and data, row by row.
        full_range: whether its luma uses 0..255, None where the file doesn't say.
    """

    size: tuple[int, int]
    turns: tuple[tuple[str, int], ...]
    exif: bytes | None
    rows: int
    columns: int
    decoder: str
    tiles: tuple[tuple[bytes, bytes], ...]
    full_range: bool | None = None


def read(data: bytes) -> HeifPicture:
    """Read the description of a file's primary picture.

    Raises:
        ValueError, IndexError, KeyError, struct.error: it is damaged, or of a kind that isn't read here; a ValueError says so.
    """
    items, primary, inline = _items(data)
    item = items[primary]
    rows = columns = 1
    parts = [item]
    size = item.find(b"ispe")
    if size is None:
        raise ValueError("it does not say its size")
    width, height = struct.unpack_from(">II", size, 4)
    if item.kind == b"grid":
        grid = _content(item, data, inline)
        rows, columns = grid[2] + 1, grid[3] + 1
        width, height = struct.unpack_from(">II" if grid[1] & 1 else ">HH", grid, 4)
        parts = [items[number] for number in item.references[b"dimg"]]
        if len(parts) != rows * columns:
            raise ValueError(f"it has {len(parts)} of {rows * columns} tiles")
    kind = parts[0].kind
    if kind not in _CODERS or any(part.kind != kind for part in parts):
        raise ValueError(f"pictures of kind {kind.decode('latin-1')!r} are not read here: convert it to JPEG")
    decoder, configures = _CODERS[kind]
    turns: list[tuple[str, int]] = []
    for name, body in item.properties:
        if name == b"irot":
            turns.append(("turn", body[0] & 3))
        elif name == b"imir":
            turns.append(("flip", body[0] & 1))
    tiles: list[tuple[bytes, bytes]] = []
    total = 0
    for part in parts:
        configuration = part.find(configures)
        tile_size = part.find(b"ispe")
        if configuration is None or tile_size is None:
            raise ValueError("a tile lacks its size or its decoder's configuration")
        tile_width, tile_height = struct.unpack_from(">II", tile_size, 4)
        if len(parts) > 1 and min(tile_width, tile_height) < _SMALLEST_TILE:
            raise ValueError(f"its tiles have {tile_width} x {tile_height} pixels")
        if tile_width * columns >= width + tile_width or tile_height * rows >= height + tile_height:
            raise ValueError("its tiles are larger than it")
        tiles.append((bytes(configuration), _content(part, data, inline)))
        total += len(tiles[-1][1])
        if total > len(data):
            raise ValueError("its tiles overlap in the file")
    colours = bytes(item.find(b"colr") or parts[0].find(b"colr") or b"")
    full_range = bool(colours[10] & 0x80) if colours[:4] == b"nclx" else None
    exif = None
    for other in items.values():
        if other.kind == b"Exif" and primary in other.references.get(b"cdsc", []):
            content = _content(other, data, inline)
            exif = content[4 + int.from_bytes(content[:4], "big") :]
    return HeifPicture((width, height), tuple(turns), exif, rows, columns, decoder, tuple(tiles), full_range)


def decode(picture: HeifPicture) -> NDArray[np.uint8]:
    """The stored picture BGR uint8 [H, W, 3], assembled from its tiles.

    Raises:
        ValueError: a tile does not decode, or is smaller than it has to be.
        av.FFmpegError: a tile does not decode.
    """
    width, height = picture.size
    image = np.empty((height, width, 3), np.uint8)
    top = 0
    for row in range(picture.rows):
        left = 0
        for column in range(picture.columns):
            tile = _decode_tile(picture.decoder, *picture.tiles[row * picture.columns + column], picture.full_range)
            part = image[top : top + len(tile), left : left + tile.shape[1]]
            if 0 in part.shape:
                raise ValueError("its tiles are larger than it")
            part[:] = tile[: len(part), : part.shape[1]]
            left += tile.shape[1]
        if left < width:
            raise ValueError("its tiles do not cover it")
        top += len(tile)
    if top < height:
        raise ValueError("its tiles do not cover it")
    return image


def _decode_tile(codec: str, configuration: bytes, data: bytes, full_range: bool | None) -> NDArray[np.uint8]:
    decoder: Any = av.CodecContext.create(codec, "r")
    decoder.extradata = configuration
    decoder.options = DECODER_OPTIONS
    decoder.thread_count = 1
    frames = decoder.decode(av.Packet(data)) + decoder.decode(None)
    if len(frames) != 1 or frames[0].is_corrupt:
        raise ValueError("a tile is damaged")
    frame = frames[0]
    # If neither the file nor the stream declares a range, it is full range (MIAF, 7.3.6.4).
    if full_range is not None or frame.color_range == 0:
        frame.color_range = 1 if full_range is False else 2
    return np.asarray(frame.to_ndarray(format="bgr24", threads=1), np.uint8)


def _boxes(data: bytes, begin: int, end: int) -> Iterator[tuple[bytes, int, int]]:
    """Kind, start and end of the body of each box between two positions."""
    while begin + 8 <= end:
        size, kind = struct.unpack_from(">I4s", data, begin)
        body = begin + 8
        if size == 1:
            (size,) = struct.unpack_from(">Q", data, body)
            body += 8
        stop = end if size == 0 else begin + size
        if stop < body or stop > end:
            raise ValueError("it is cut short")
        yield kind, body, stop
        begin = stop


class _Numbers:
    """Big-endian numbers, one after another."""

    def __init__(self, data: bytes, at: int) -> None:
        self._data = data
        self._at = at

    def take(self, size: int) -> int:
        """The next number, of `size` bytes; 0 if `size` is 0."""
        self._at += size
        if self._at > len(self._data):
            raise ValueError("it is cut short")
        return int.from_bytes(self._data[self._at - size : self._at], "big")

    def take_bytes(self, size: int) -> bytes:
        """The next bytes."""
        return self.take(size).to_bytes(size, "big")


def _items(data: bytes) -> tuple[dict[int, _Item], int, tuple[int, int]]:
    """A file's items by number, the number of the primary one, and the position of the body of its `idat` box."""
    outer = {kind: (begin, end) for kind, begin, end in _boxes(data, 0, len(data))}
    if b"meta" not in outer:
        raise ValueError("it holds no picture")
    begin, end = outer[b"meta"]
    boxes = {kind: (first, last) for kind, first, last in _boxes(data, begin + 4, end)}
    items: dict[int, _Item] = {}

    at, end = boxes[b"iinf"]
    for _, first, _ in _boxes(data, at + (6 if data[at] == 0 else 8), end):
        version = data[first]
        numbers = _Numbers(data, first + 4)
        number = numbers.take(4 if version == 3 else 2)
        numbers.take(2)
        items[number] = _Item(kind=numbers.take_bytes(4))

    at, _ = boxes[b"iloc"]
    version = data[at]
    numbers = _Numbers(data, at + 4)
    sizes = numbers.take(2)
    offset_size, length_size, base_size = sizes >> 12, sizes >> 8 & 15, sizes >> 4 & 15
    index_size = sizes & 15 if version else 0
    wide = 4 if version == 2 else 2
    for _ in range(numbers.take(wide)):
        item = items.setdefault(numbers.take(wide), _Item())
        method = numbers.take(2) & 15 if version else 0
        item.inline = method == 1
        numbers.take(2)
        base = numbers.take(base_size)
        count = numbers.take(2)
        if count > 1 and not offset_size + length_size + index_size:
            raise ValueError("its pieces have no position")
        for _ in range(count):
            numbers.take(index_size)
            place = base + numbers.take(offset_size)
            item.extents.append((place, numbers.take(length_size)))

    if b"iref" in boxes:
        at, end = boxes[b"iref"]
        wide = 4 if data[at] else 2
        for kind, first, _ in _boxes(data, at + 4, end):
            numbers = _Numbers(data, first)
            referring = items.setdefault(numbers.take(wide), _Item())
            referring.references[kind] = [numbers.take(wide) for _ in range(numbers.take(2))]

    at, end = boxes[b"iprp"]
    inner = list(_boxes(data, at, end))
    (properties,) = [list(_boxes(data, first, last)) for kind, first, last in inner if kind == b"ipco"]
    for kind, first, _ in inner:
        if kind != b"ipma":
            continue
        version, large = data[first], data[first + 3] & 1
        numbers = _Numbers(data, first + 4)
        for _ in range(numbers.take(4)):
            item = items.setdefault(numbers.take(4 if version else 2), _Item())
            for _ in range(numbers.take(1)):
                index = numbers.take(2) & 0x7FFF if large else numbers.take(1) & 0x7F
                if index:
                    name, begin, end = properties[index - 1]
                    item.properties.append((name, memoryview(data)[begin:end]))

    at, _ = boxes[b"pitm"]
    primary = _Numbers(data, at + 4).take(4 if data[at] else 2)
    return items, primary, boxes.get(b"idat", (0, 0))


def _content(item: _Item, data: bytes, inline: tuple[int, int]) -> bytes:
    begin, end = inline if item.inline else (0, len(data))
    parts = []
    for offset, length in item.extents:
        stop = begin + offset + length if length else end
        if stop > end:
            raise ValueError("it is cut short")
        parts.append(data[begin + offset : stop])
    return b"".join(parts)
