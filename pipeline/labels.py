"""A colour for each track id, and labels in a picture that do not overlap."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from pipeline.strokes import OUTLINE_BGR, Array, Picture, blend, mixed, text_image

PEOPLE_BGR = (
    (233, 180, 86), (66, 228, 240), (167, 121, 255), (120, 214, 96), (0, 140, 255), (255, 120, 150), (190, 235, 190),
    (90, 90, 245), (215, 200, 0), (205, 170, 240), (0, 190, 190), (150, 190, 215),
)  # fmt: skip
"""Colours of people; track ids take them in turn. The first ones resemble Okabe and Ito's colours for colour-blind people."""

_LIGHT, _DARK = (255, 255, 255), (0, 0, 0)


def person_bgr(track_id: int) -> tuple[int, int, int]:
    """The colour of a person."""
    return PEOPLE_BGR[track_id % len(PEOPLE_BGR)]


def side_bgr(track_id: int) -> Array:
    """[3, 3] colours of a person's left (light), right (dark) and middle."""
    bgr = person_bgr(track_id)
    return np.array([mixed(bgr, _LIGHT, 0.5), mixed(bgr, _DARK, 0.35), bgr], np.float64)


_STEPS = np.stack(np.meshgrid(np.arange(-10, 11), np.arange(-10, 11)), axis=-1).reshape(-1, 2)
"""[N, 2] positions to try, in units of half a label. In a corner a quarter of them is inside the picture, and one of these is
free even beside ten other labels, each of which covers nine positions."""


@dataclass(frozen=True)
class Label:
    """A label with its preferred position.

    Attributes:
        words: its text.
        bgr: its background colour.
        left, bottom: preferred position of its bottom left corner, px.
    """

    words: str
    bgr: tuple[int, int, int]
    left: float
    bottom: float


def draw_labels(picture: Picture, labels: Sequence[Label], height_px: float) -> None:
    """Draw labels in order, each as near to its preferred position as earlier labels and the picture's edges allow."""
    taken: list[tuple[int, int, int, int]] = []
    pad = max(1, round(height_px / 7))
    for label in labels:
        text = text_image(label.words, height_px, OUTLINE_BGR)
        height, width = text.height + 2 * pad, text.width + 2 * pad
        most_x, most_y = max(0, picture.shape[1] - width), max(0, picture.shape[0] - height)
        wanted_x, wanted_y = min(max(label.left, 0.0), most_x), min(max(label.bottom - height, 0.0), most_y)
        places = np.rint((wanted_x, wanted_y) + _STEPS * ((width + pad) / 2, (height + pad) / 2)).astype(int)
        places = np.clip(places, 0, (most_x, most_y))
        left, top, right, bottom = np.array(taken, int).reshape(-1, 4).T
        xs, ys = places[:, :1], places[:, 1:]
        hidden = ((xs < right) & (xs + width > left) & (ys < bottom) & (ys + height > top)).any(axis=1)
        x, y = places[np.argmin(((places - (wanted_x, wanted_y)) ** 2).sum(axis=1) + 1e9 * hidden)].tolist()
        taken.append((x, y, x + width, y + height))
        edge = max(1, pad // 2)
        picture[max(0, y - edge) : y + height + edge, max(0, x - edge) : x + width + edge] = OUTLINE_BGR
        picture[y : y + height, x : x + width] = label.bgr
        blend(picture, text, x + pad, y + pad)
