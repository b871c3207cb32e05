"""Animated WebP, which neither FFmpeg nor older OpenCV reads: each frame is decoded as a picture and drawn on the canvas.

Source: RFC 9649 (WebP): chunks, frames (`ANMF`), blending and disposal.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass

import cv2
import numpy as np
from numpy.typing import NDArray


@dataclass(frozen=True)
class WebpFrame:
    """A frame of an animation.

    Attributes:
        left, top, width, height: its area on the canvas, px.
        duration_ms: how long it is shown, ms.
        blends: whether transparent pixels show the canvas below; otherwise they replace it.
        clears: whether its area is cleared before the next frame.
        picture: the frame as a WebP file.
    """

    left: int
    top: int
    width: int
    height: int
    duration_ms: int
    blends: bool
    clears: bool
    picture: bytes


def frames(data: bytes) -> Iterator[WebpFrame]:
    """The frames of an animated WebP; ValueError at one that is cut short."""
    for kind, begin, end in _chunks(data, 12, len(data)):
        if kind != b"ANMF":
            continue
        if end - begin < 16:
            raise ValueError("a frame is cut short")
        left, top, width, height, duration = (int.from_bytes(data[at : at + 3], "little") for at in range(begin, begin + 15, 3))
        flags = data[begin + 15]
        parts = [
            (name, data[first:last])
            for name, first, last in _chunks(data, begin + 16, end)
            if name in (b"ALPH", b"VP8 ", b"VP8L")
        ]
        size = width.to_bytes(3, "little") + height.to_bytes(3, "little")  # both are stored minus one
        has_alpha = any(name in (b"ALPH", b"VP8L") for name, _ in parts)
        head = (b"VP8X", bytes([0x10 if has_alpha else 0, 0, 0, 0]) + size)
        body = b"WEBP" + b"".join(
            name + len(part).to_bytes(4, "little") + part + bytes(len(part) % 2) for name, part in [head, *parts]
        )
        picture = b"RIFF" + len(body).to_bytes(4, "little") + body
        yield WebpFrame(2 * left, 2 * top, width + 1, height + 1, duration, not flags & 2, bool(flags & 1), picture)


def put_on(canvas: NDArray[np.uint8], frame: WebpFrame) -> None:
    """Draw a frame on the canvas BGRA uint8 [H, W, 4].

    Raises:
        ValueError: it does not decode, or is not inside the canvas.
    """
    place = canvas[frame.top : frame.top + frame.height, frame.left : frame.left + frame.width]
    if place.shape[:2] != (frame.height, frame.width):
        raise ValueError("a frame does not lie on the canvas")
    image = cv2.imdecode(np.frombuffer(frame.picture, np.uint8), cv2.IMREAD_UNCHANGED)
    if image is None or image.shape[:2] != place.shape[:2]:
        raise ValueError("a frame is damaged")
    if image.shape[2] == 3:
        place[..., :3], place[..., 3] = image, 255
        return
    if not frame.blends:
        place[:] = image
        return
    # Colours are not premultiplied: each has the weight of its visible part.
    front = image[..., 3:].astype(np.float32) / 255
    back = place[..., 3:].astype(np.float32) / 255 * (1 - front)
    seen = front + back
    colour = (image[..., :3] * front + place[..., :3] * back) / np.maximum(seen, 1e-6)
    place[..., :3] = np.rint(colour)
    place[..., 3:] = np.rint(seen * 255)


def clear(canvas: NDArray[np.uint8], frame: WebpFrame) -> None:
    """Make a frame's area on the canvas transparent."""
    canvas[frame.top : frame.top + frame.height, frame.left : frame.left + frame.width] = 0


def _chunks(data: bytes, begin: int, end: int) -> Iterator[tuple[bytes, int, int]]:
    while begin + 8 <= end:
        size = int.from_bytes(data[begin + 4 : begin + 8], "little")
        if begin + 8 + size > end:
            raise ValueError("a frame is cut short")
        yield data[begin : begin + 4], begin + 8, begin + 8 + size
        begin += 8 + size + size % 2
