"""The 3D view's floor: a round floor that rotates slowly, the people's positions on it, the real camera's position, the
shadows.

Its axes are those of a level camera on the floor: x right, y down, z forward, mm; the world's rotated by 180 degrees about x.
"""

from __future__ import annotations

import math
from dataclasses import dataclass, field

import cv2
import numpy as np
from numpy.typing import NDArray

from convnextpose.world import World
from pipeline.strokes import (
    LEFT_BGR,
    MIDDLE_BGR,
    MUTED_BGR,
    OUTLINE_BGR,
    RIGHT_BGR,
    SHIFT,
    TEXT_BGR,
    Array,
    Colour,
    Picture,
    Strokes,
    blend,
    fixed,
    line_width,
    mixed,
    paint,
    text_image,
)
from pipeline.types import Frame, Pose

_BACKDROP_BGR = (36, 30, 27)
_RIM_BGR = (51, 43, 39)
_FLOOR_BGR = (70, 60, 54)
GRID_BGR = (128, 114, 104)

# The 3D view's own camera looks down a little, at a point above the middle of a round floor.
_PITCH = math.radians(14.0)
_EYE_MM = 4200.0
_TARGET_MM = 1000.0
_FLOOR_RADIUS_MM = 1050.0
_ROOM_MM = 800.0  # from a pelvis to the floor's edge, before the view widens
_WIDEST = 6.0

_KEY: tuple[tuple[str, Colour], ...] = (("left", LEFT_BGR), ("right", RIGHT_BGR), ("unsure", MIDDLE_BGR))
_SEVERAL_KEY: tuple[tuple[str, Colour], ...] = (("left", (225, 225, 225)), ("right", (120, 120, 120)), ("unsure", MIDDLE_BGR))

FAR_MM = 1e5
"""Joints may be anywhere: points farther away than this are out of sight, and are drawn at this distance."""


@dataclass
class Floor:
    """The people's positions on the 3D view's floor: the state between frames.

    Attributes:
        root: the pelvis.
        source_id, time_s: those of the last frame.
        places: smoothed (x, z) of each track's pelvis.
        centre: (x, z) at the floor's middle: the middle of the people, plus `slack`.
        slack: how far the floor's middle lags behind after a person came or left; it decays.
        joints: [J, 3] of each track's pose in this frame.
        zoom: smoothed; how many times wider than for one person the view is.
    """

    root: int
    source_id: str = ""
    time_s: float = -math.inf
    places: dict[int, Array] = field(default_factory=dict)
    centre: Array = field(default_factory=lambda: np.zeros(2))
    slack: Array = field(default_factory=lambda: np.zeros(2))
    joints: dict[int, Array] = field(default_factory=dict)
    zoom: float = 1.0

    def follow(self, frame: Frame, poses: tuple[Pose, ...], world: World | None) -> None:
        """Update to the next frame's people, in the world as known so far; None assumes a level camera."""
        elapsed_s = frame.time_s - self.time_s
        before = self.places if frame.source_id == self.source_id and elapsed_s >= 0 else {}
        self.source_id, self.time_s, self.places, self.joints = frame.source_id, frame.time_s, {}, {}
        if not poses:
            return

        def share(constant_s: float) -> float:
            """The fraction of the step to a new value that this frame makes."""
            return 1.0 - math.exp(-elapsed_s / constant_s) if before else 1.0

        for pose in poses:
            stood = (world or World.level()).place_on_floor(pose.joints_mm, self.root, pose.depth_scale) * (1, -1, -1)
            self.joints[pose.track_id] = joints = np.clip(stood, -FAR_MM, FAR_MM)
            pelvis = joints[self.root, [0, 2]]
            last = before.get(pose.track_id, pelvis)
            self.places[pose.track_id] = last + share(0.3) * (pelvis - last)
        places = np.array(list(self.places.values()))
        middle = places.mean(axis=0)
        if before and self.places.keys() != before.keys():
            self.slack = self.centre - middle
        else:
            self.slack = self.slack * (1.0 - share(0.4))
        self.centre = middle + self.slack
        reach = float(np.hypot(*(places - middle).T).max())
        self.zoom += share(0.6) * (min(max(1.0, (reach + _ROOM_MM) / _FLOOR_RADIUS_MM), _WIDEST) - self.zoom)

    def place_on_floor(self, pose: Pose) -> Array:
        """The pose's joints [J, 3] relative to the floor's middle, mm divided by the zoom."""
        joints = self.joints[pose.track_id]
        x, z = self.places[pose.track_id] - self.centre
        return (joints - joints[self.root] * (1, 0, 1) + (x, 0, z)) / self.zoom


@dataclass(frozen=True)
class View:
    """The parts of the 3D view that are the same for all pictures of one size.

    Attributes:
        width, height: px.
        scale: px per mm at the middle of the floor.
        backdrop: [H, W, 3] background, floor and key.
    """

    width: int
    height: int
    scale: float
    backdrop: Picture

    @classmethod
    def of_size(cls, width: int, height: int, *, several: bool = False) -> View:
        """The view that fills `width` x `height` px with a person who raises the arms, and the floor.

        Its key explains the sides of one person by colour, those of several people by light and dark.
        """
        # The floor's front edge is as far below the middle as raised hands are above it, both with a little room.
        scale = min(height / 2860.0, width / 2280.0)
        view = cls(width, height, scale, np.full((height, width, 3), _BACKDROP_BGR, np.uint8))
        angles = np.linspace(0.0, 2.0 * np.pi, 180, endpoint=False)
        rim = np.stack([np.cos(angles), np.zeros(180), np.sin(angles)], axis=1) * _FLOOR_RADIUS_MM
        for share in np.linspace(1.0, 0.0, 24, endpoint=False):
            ring = fixed(view.project(rim * share)[:, :2])
            cv2.fillConvexPoly(view.backdrop, ring, mixed(_FLOOR_BGR, _RIM_BGR, share), cv2.LINE_AA, SHIFT)
        view._draw_key(_SEVERAL_KEY if several else _KEY)
        return view

    @property
    def unit(self) -> float:
        """Width of a thin line, px: 1 at 360p."""
        return min(self.width, self.height) / 360

    @property
    def text_px(self) -> float:
        """Height of a line of text, px."""
        return 15.0 * self.unit

    @property
    def margin(self) -> float:
        """Distance between text and the edges, px."""
        return 9.0 * self.unit

    def _draw_key(self, key: tuple[tuple[str, Colour], ...]) -> None:
        """Draw the key to colours and dashes, in the top left corner."""
        unit, x = self.unit, self.margin
        for name, bgr in key:
            words = text_image(name, self.text_px, TEXT_BGR)
            y = self.margin + words.height / 2
            swatch = Strokes(
                start=np.array([[x + 3 * unit, y]]),
                end=np.array([[x + 19 * unit, y]]),
                radii=np.full((1, 2), (2.0 if name == "unsure" else 3.0) * unit),
                bgr=np.array([bgr], np.float64),
                edge_bgr=np.array([OUTLINE_BGR], np.float64),
                depth=np.zeros(1),
            )
            paint(self.backdrop, swatch.dashed() if name == "unsure" else swatch, 0.9 * unit)
            blend(self.backdrop, words, x + 26 * unit, self.margin)
            x += words.width + 40 * unit

    def project(self, points_mm: Array) -> Array:
        """Project points [..., 3], relative to the floor's middle, to x px, y px and nearness: 1 there, more in front of it."""
        x, y, z = points_mm[..., 0], points_mm[..., 1] + _TARGET_MM, points_mm[..., 2]
        down = y * math.cos(_PITCH) - z * math.sin(_PITCH)
        ahead = y * math.sin(_PITCH) + z * math.cos(_PITCH)
        nearness = _EYE_MM / np.maximum(_EYE_MM + ahead, 0.1 * _EYE_MM)
        scale = self.scale * nearness
        return np.stack([self.width / 2 + x * scale, self.height / 2 + down * scale - 130.0 * self.scale, nearness], axis=-1)

    def shows(self, points: Array) -> NDArray[np.bool_]:
        """Which of the points [..., 3] from `project` are inside the view: for people far apart it widens only to a limit."""
        return np.asarray(((points[..., :2] >= 0) & (points[..., :2] < (self.width, self.height))).all(axis=-1))


def turned(points_mm: Array, turn: float) -> Array:
    """Points [..., 3] rotated about the vertical axis by an angle in radians."""
    c, s = math.cos(turn), math.sin(turn)
    x, y, z = points_mm[..., 0], points_mm[..., 1], points_mm[..., 2]
    return np.stack([c * x + s * z, y, c * z - s * x], axis=-1)


def draw_grid(panel: Picture, view: View, floor: Floor, turn: float, step_mm: float) -> None:
    """Draw the floor's grid: it stays in place in the world while people walk, and fades towards the floor's edge."""
    radius, step = _FLOOR_RADIUS_MM, step_mm / floor.zoom
    pieces = []
    for axis in (0, 1):
        across = np.arange(-radius // step, radius // step + 2) * step - floor.centre[axis] / floor.zoom % step
        across = across[np.abs(across) < radius]
        along = np.sqrt(radius**2 - across**2)[:, None] * np.linspace(-1.0, 1.0, 9)
        points = np.zeros((*along.shape, 3))
        points[..., 2 * axis], points[..., 2 - 2 * axis] = across[:, None], along
        pieces.append(np.stack([points[:, :-1], points[:, 1:]], axis=2).reshape(-1, 2, 3))
    lines = np.concatenate(pieces)
    light = 1.0 - (lines.mean(axis=1) ** 2).sum(axis=1) / radius**2
    levels = np.clip(light * 4, 0, 3).astype(np.intp)
    points = fixed(view.project(turned(lines, turn))[..., :2])
    for level in range(4):
        bgr = mixed(_FLOOR_BGR, GRID_BGR, (level + 1) / 4)
        cv2.polylines(panel, list(points[levels == level]), False, bgr, line_width(0.8 * view.unit), cv2.LINE_AA, SHIFT)


def draw_camera(panel: Picture, view: View, floor: Floor, turn: float, half_angle: float) -> None:
    """Draw a wedge flat on the floor at the real camera's position, or towards it, as wide as its angle of view."""
    distance = math.hypot(*floor.centre)
    if distance == 0.0:
        return
    x, z = -floor.centre / distance * min(distance / floor.zoom, 0.86 * _FLOOR_RADIUS_MM)
    wide = 230.0 * min(math.tan(half_angle), 1.2)
    wedge = np.array([[x, 0, z], [x + wide, 0, z + 230.0], [x - wide, 0, z + 230.0]])
    points = view.project(turned(wedge, turn))[:, :2]
    cv2.fillConvexPoly(panel, fixed(points), GRID_BGR, cv2.LINE_AA, SHIFT)
    cv2.polylines(panel, [fixed(points)], True, TEXT_BGR, line_width(view.unit), cv2.LINE_AA, SHIFT)
    words = text_image("camera", 0.9 * view.text_px, MUTED_BGR)
    blend(panel, words, points[0, 0] - words.width / 2, points[:, 1].max() + 2 * view.unit)


def draw_shadows(panel: Picture, view: View, bones: Array, radius_px: float) -> None:
    """Darken the floor softly along bones [B, 2, 2] (px) that were projected onto it."""
    # A shadow has no fine detail: it is drawn small, and only the part that isn't empty is blurred and enlarged.
    factor = max(1, min(view.width, view.height) // 180)
    small = np.zeros((-(-view.height // factor), -(-view.width // factor)), np.uint8)
    size = np.array([view.width, view.height])
    lines = fixed(np.clip(bones, -2.0 * size, 3.0 * size) / factor)
    thickness = line_width(2 * radius_px / factor)
    cv2.polylines(small, list(lines), False, 190, thickness, cv2.LINE_AA, SHIFT)
    blur = (thickness + 1, max(1, thickness // 2))
    x, y, width, height = cv2.boundingRect(small)
    left, top = max(0, x - 2 * blur[0]), max(0, y - 2 * blur[1])
    drawn = small[top : y + height + 2 * blur[1], left : x + width + 2 * blur[0]]
    soft = cv2.blur(cv2.blur(drawn, blur), blur)
    x, y, width, height = cv2.boundingRect(soft)
    if width == 0:
        return
    light = cv2.resize(255 - soft[y : y + height, x : x + width], (width * factor, height * factor))
    region = panel[(top + y) * factor :, (left + x) * factor :][: height * factor, : width * factor]
    light = light[: region.shape[0], : region.shape[1]]
    region[:] = cv2.multiply(region, cv2.merge([light, light, light]), scale=1 / 255)
