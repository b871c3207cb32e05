"""Draws lines and text on a picture: strokes with round ends and outlines, blended text, and their units.

Everything is antialiased and placed to a sixteenth of a pixel; anything outside the picture is left out.
"""

from __future__ import annotations

from collections.abc import Sequence
from functools import lru_cache
from typing import NamedTuple

import cv2
import numpy as np
from numpy.typing import NDArray

LEFT_BGR = (255, 168, 56)
RIGHT_BGR = (32, 128, 255)
MIDDLE_BGR = (240, 240, 240)
"""Colours of the person's own left, right and middle."""

OUTLINE_BGR = (24, 20, 18)
TEXT_BGR = (222, 216, 212)
MUTED_BGR = (180, 170, 162)

FAR_PX = 1e9
"""Joints may be anywhere: points farther away than this are out of sight, and are drawn at this distance."""

SHIFT = 4
"""OpenCV's fixed point: 1/16 px."""

Array = NDArray[np.float64]
Picture = NDArray[np.uint8]
Colour = tuple[float, float, float]


class Strokes(NamedTuple):
    """Lines with round ends, which may taper; a dot is a line of length 0.

    Attributes:
        start, end: [N, 2] px.
        radii: [N, 2] at start and end, px.
        bgr, edge_bgr: [N, 3] colours of the inside and of the outline.
        depth: [N], greater is farther away.
    """

    start: Array
    end: Array
    radii: Array
    bgr: Array
    edge_bgr: Array
    depth: Array

    @classmethod
    def joined(cls, parts: Sequence[Strokes]) -> Strokes:
        """The strokes of all parts."""
        if len(parts) == 1:
            return parts[0]
        return cls(*(np.concatenate(columns) for columns in zip(*parts, strict=True)))

    def take(self, which: NDArray[np.intp] | NDArray[np.bool_]) -> Strokes:
        """Some of the strokes, by index or by mask."""
        return Strokes(*(column[which] for column in self))

    def between(self, first: Array, last: Array) -> Strokes:
        """The part of each stroke between two fractions of its length [N]."""
        along, widening = self.end - self.start, self.radii[:, 1:] - self.radii[:, :1]
        return self._replace(
            start=self.start + first[:, None] * along,
            end=self.start + last[:, None] * along,
            radii=self.radii[:, :1] + np.stack([first, last], axis=1) * widening,
        )

    def inside(self, width: int, height: int) -> Strokes:
        """The visible parts in a `width` x `height` px picture: safe to draw, however long the strokes are."""
        margin = 2.0 * self.radii.max(initial=0.0) + 8.0
        near_edge, far_edge = -margin, np.array([width, height]) + margin
        if ((self.start >= near_edge) & (self.start <= far_edge) & (self.end >= near_edge) & (self.end <= far_edge)).all():
            return self
        # Liang and Barsky: the fractions of the length at which the line crosses the edges.
        along = self.end - self.start
        with np.errstate(divide="ignore", over="ignore", invalid="ignore"):
            crossings = np.stack([(near_edge - self.start) / along, (far_edge - self.start) / along])
        level = along == 0
        between = (self.start >= near_edge) & (self.start <= far_edge)
        enters = np.where(level, np.where(between, 0.0, np.inf), crossings.min(axis=0)).max(axis=1).clip(min=0.0)
        leaves = np.where(level, np.where(between, 1.0, -np.inf), crossings.max(axis=0)).min(axis=1).clip(max=1.0)
        seen = enters <= leaves
        return self.take(seen).between(enters[seen], leaves[seen])

    def dashed(self) -> Strokes:
        """The strokes at half their width, in three to nine dashes, depending on their length."""
        length = np.hypot(*(self.end - self.start).T)
        counts = np.clip(length / np.maximum(6.0 * self.radii.mean(axis=1), 1e-9), 3, 9).astype(np.intp)
        which = np.repeat(np.arange(len(counts)), counts)
        number = np.arange(len(which)) - np.repeat(np.cumsum(counts) - counts, counts)
        dashes = self.take(which).between((number + 0.3) / counts[which], (number + 0.7) / counts[which])
        return dashes._replace(radii=dashes.radii * 0.5)

    def polygons(self, outline_px: float) -> NDArray[np.int32]:
        """The strokes [2, N, P, 2] in OpenCV's fixed point: first wider by `outline_px` all around, then unchanged."""
        along = self.end - self.start
        length = np.hypot(along[:, 0], along[:, 1])
        cos = np.where(length > 0, along[:, 0], 1.0) / np.where(length > 0, length, 1.0)
        sin = along[:, 1] / np.where(length > 0, length, 1.0)
        count = len(_ROUND) // 2
        radii = np.repeat(self.radii[:, ::-1] + np.array([outline_px, 0.0])[:, None, None], count, axis=2)
        points = np.empty((*radii.shape, 2))
        points[...] = np.repeat(np.stack([self.end, self.start], axis=1), count, axis=1)
        points[..., 0] += radii * (cos[:, None] * _ROUND[:, 0] - sin[:, None] * _ROUND[:, 1])
        points[..., 1] += radii * (sin[:, None] * _ROUND[:, 0] + cos[:, None] * _ROUND[:, 1])
        return fixed(points)


def _round_ends() -> Array:
    """[P, 2]: a semicircle around the end of a stroke that runs along x, then one around its start."""
    angles = np.concatenate([np.linspace(-0.5, 0.5, 9), np.linspace(0.5, 1.5, 9)]) * np.pi
    return np.stack([np.cos(angles), np.sin(angles)], axis=1)


_ROUND = _round_ends()


def fixed(points: Array) -> NDArray[np.int32]:
    """Convert points, px, to OpenCV's fixed point."""
    return np.rint(points * (1 << SHIFT)).astype(np.int32)


def mixed(one: Colour, other: Colour, share: float) -> list[float]:
    """A mixture of two colours: `share` is the other's part."""
    return [a + (b - a) * share for a, b in zip(one, other, strict=True)]


def line_width(width_px: float) -> int:
    """The nearest line width that OpenCV can draw."""
    return max(1, round(width_px))


def paint(canvas: Picture, strokes: Strokes, outline_px: float) -> None:
    """Draw strokes from far to near, each with an outline that separates it from the picture and from the limb behind."""
    strokes = strokes.inside(canvas.shape[1], canvas.shape[0])
    strokes = strokes.take(np.argsort(-strokes.depth, kind="stable"))
    for wide, narrow, edge_bgr, bgr in zip(
        *strokes.polygons(outline_px), strokes.edge_bgr.tolist(), strokes.bgr.tolist(), strict=True
    ):
        cv2.fillConvexPoly(canvas, wide, edge_bgr, cv2.LINE_AA, SHIFT)
        cv2.fillConvexPoly(canvas, narrow, bgr, cv2.LINE_AA, SHIFT)


class TextImage(NamedTuple):
    """A line of text ready to blend: its colours [h, w, 3], and how much of the picture below stays visible, of 255."""

    ink: Picture
    stays: Picture

    @property
    def width(self) -> int:
        """Width, px."""
        return int(self.ink.shape[1])

    @property
    def height(self) -> int:
        """Height, px."""
        return int(self.ink.shape[0])


@lru_cache(maxsize=64)
def text_image(words: str, height_px: float, bgr: Colour) -> TextImage:
    """A line of text in a colour, `height_px` high from the top of its letters to the bottom of g."""
    font, tallest = cv2.FONT_HERSHEY_SIMPLEX, "Hg"
    (_, ascent), descent = cv2.getTextSize(tallest, font, 4.0, 1)
    scale = 4.0 * max(height_px, 1.0) / (ascent + descent)
    thickness = line_width(height_px / 11)
    (_, ascent), descent = cv2.getTextSize(tallest, font, scale, thickness)
    (width, _), _ = cv2.getTextSize(words, font, scale, thickness)
    pad = thickness + 1
    cover = np.zeros((ascent + descent + 2 * pad, width + 2 * pad), np.uint8)
    cv2.putText(cover, words, (pad, pad + ascent), font, scale, 255, thickness, cv2.LINE_AA)
    ink = np.rint(cover[..., None] / 255 * np.array(bgr)).astype(np.uint8)
    return TextImage(ink, np.repeat(255 - cover[..., None], 3, axis=2))


def blend(canvas: Picture, text: TextImage, x: float, y: float) -> None:
    """Write text with its top left corner at (x, y) px; parts outside the canvas are left out."""
    left, top = (round(min(max(value, -FAR_PX), FAR_PX)) for value in (x, y))
    part = np.s_[max(0, -top) : max(0, canvas.shape[0] - top), max(0, -left) : max(0, canvas.shape[1] - left)]
    ink, stays = text.ink[part], text.stays[part]
    if ink.size:
        region = canvas[max(0, top) :, max(0, left) :][: ink.shape[0], : ink.shape[1]]
        region[:] = cv2.add(cv2.multiply(region, stays, scale=1 / 255), ink)
