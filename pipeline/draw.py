"""The picture that people see: the skeleton over the frame, and beside it the same pose in 3D on a floor that turns slowly.

The person's left is blue, the right orange, the middle white: a pair that colour-blind people tell apart too. Joints below
`LOW_SCORE` are hollow, and bones that end at one are thin and dashed. Line widths and text follow the picture's shorter
side, so that 360p and 4K look alike. The 3D view turns with the frame's time stamp, never the wall clock: the same frames
always give the same pictures.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass, field
from functools import lru_cache
from typing import NamedTuple

import cv2
import numpy as np
from numpy.typing import NDArray

from convnextpose.camera import Intrinsics
from convnextpose.crop import Box
from convnextpose.errors import GeometryError
from convnextpose.skeleton import JointSet
from pipeline.types import Frame, Pose

LEFT_BGR = (255, 168, 56)
RIGHT_BGR = (32, 128, 255)
MIDDLE_BGR = (240, 240, 240)
"""Colours of the person's own left, right and middle."""

LOW_SCORE = 0.3
"""Below this score a joint is drawn hollow, and the bones that end at it thin and dashed."""

TURN_DEGREES_PER_S = 15.0
"""How fast the 3D view turns: once round in 24 s."""

START_DEGREES = 30.0
"""The 3D view's turn at time 0, so that a single picture shows depth too."""

_SIDES = {"left": LEFT_BGR, "right": RIGHT_BGR, "middle": MIDDLE_BGR}
_OUTLINE_BGR = (24, 20, 18)
_BACKDROP_BGR = (36, 30, 27)
_RIM_BGR = (51, 43, 39)
_FLOOR_BGR = (70, 60, 54)
_GRID_BGR = (128, 114, 104)
_TEXT_BGR = (222, 216, 212)
_MUTED_BGR = (180, 170, 162)
_CAPTION_BGR = (0, 196, 255)

# The 3D view's own camera looks down a little, at a point above the middle of a round floor.
_PITCH = math.radians(14.0)
_EYE_MM = 4200.0
_TARGET_MM = 1000.0
_FLOOR_RADIUS_MM = 1050.0
_ROOM_MM = 800.0  # from a pelvis to the floor's edge, before the view widens
_WIDEST = 6.0
_SOLE_MM = 35.0  # the lowest joints are ankles or toes: the ground is under them
_LEG_MM = 1150.0  # a joint farther below the pelvis than legs reach tells nothing about the ground
_BONE_RADIUS_MM = 24.0
_SHADOW_RADIUS_MM = 60.0

# Joints may be anywhere: what is farther than this is out of sight, and drawn as if it were here.
_FAR_MM = 1e5
_FAR_PX = 1e9
_SHIFT = 4  # OpenCV's fixed point: 1/16 px

Array = NDArray[np.float64]
Picture = NDArray[np.uint8]
Colour = tuple[float, float, float]


class PoseRenderer:
    """Draws the frames of one source, in order.

    It remembers where the people and the ground were, so that noise in the root depth doesn't shake the 3D view: a person's
    place on the floor is smoothed over time, the shape never. A frame of another source, or of an earlier time, starts
    afresh. One thread at a time.
    """

    def __init__(self, joint_set: JointSet) -> None:
        """Prepare to draw poses of `joint_set`."""
        self._joint_set = joint_set
        self._skeleton = _Skeleton.of(joint_set)
        self._stage = _Stage(joint_set.root)
        self._view: _View | None = None

    def render(self, frame: Frame, poses: tuple[Pose, ...], camera: Intrinsics, *, caption: str | None = None) -> Picture:
        """The frame with its poses drawn over it, and the 3D view to its right.

        Args:
            frame: the picture [H, W]; it is not modified.
            poses: the people in it.
            camera: the intrinsics that the poses were lifted with.
            caption: a warning to stamp on the picture.

        Returns:
            BGR uint8 [H, W + min(H, W), 3], one row or column larger where that would be odd: video wants even sides.

        Raises:
            GeometryError: a pose has another number of joints than the joint set.
        """
        for pose in poses:
            if len(pose.scores) != len(self._joint_set):
                raise GeometryError(
                    f"expected poses of {len(self._joint_set)} joints ({self._joint_set.name}), received {len(pose.scores)}"
                )
        height, width = frame.height, frame.width
        side = min(height, width)
        canvas = np.empty((height + height % 2, width + side + (width + side) % 2, 3), np.uint8)
        picture, panel = canvas[:height, :width], canvas[:, width:]
        picture[:] = frame.image
        canvas[height:, :width] = frame.image[-1:]

        unit = side / 360
        for pose in sorted(poses, key=lambda pose: -pose.root_depth_mm):
            _draw_corners(picture, pose.box, unit)
            self._draw_over(picture, pose, unit)
        if len(poses) > 1:
            for pose in poses:
                _draw_label(picture, f"#{pose.track_id}", pose.box, unit)
        if caption:
            _draw_caption(picture, caption, unit)

        if self._view is None or (self._view.height, self._view.width) != panel.shape[:2]:
            self._view = _View.of_size(panel.shape[1], panel.shape[0])
        self._stage.follow(frame, poses)
        self._draw_panel(panel, self._view, frame, poses, camera)
        return canvas

    def _draw_over(self, picture: Picture, pose: Pose, unit: float) -> None:
        """Draw the skeleton over the picture."""
        points = np.clip(pose.joints_px, -_FAR_PX, _FAR_PX)
        # A small person gets thin bones, to stay visible underneath.
        radius = float(np.clip(0.0105 * max(pose.box.width, pose.box.height), 1.3 * unit, 3.2 * unit))
        depth = np.clip(pose.joints_mm[:, 2], -_FAR_MM, _FAR_MM)
        strokes = self._skeleton.strokes(points, np.full(len(points), radius), depth, np.ones(len(points)), pose.scores)
        _paint(picture, strokes, max(1.0, 0.9 * unit))

    def _draw_panel(self, panel: Picture, view: _View, frame: Frame, poses: tuple[Pose, ...], camera: Intrinsics) -> None:
        """Draw the 3D view: floor, shadows, camera mark, people."""
        stage = self._stage
        turn = math.radians((START_DEGREES + TURN_DEGREES_PER_S * frame.time_s) % 360.0)
        step_mm = 500.0 if stage.zoom < 2.5 else 1000.0
        panel[:] = view.backdrop
        _draw_grid(panel, view, stage, turn, step_mm)
        note = _text(f"grid {step_mm / 1000:g} m", view.text_px, _MUTED_BGR)
        _blend(panel, note, view.margin, view.height - view.margin - note.height)
        if not poses:
            words = _text("no person", 1.6 * view.text_px, _MUTED_BGR)
            _blend(panel, words, (view.width - words.width) / 2, view.height / 2)
            return

        places = [_turned(stage.stand(pose), turn) for pose in poses]
        on_floor = [view.project(place * (1, 0, 1))[:, :2] for place in places]
        _draw_shadows(
            panel,
            view,
            np.concatenate([points[self._skeleton.bones] for points in on_floor]),
            _SHADOW_RADIUS_MM / stage.zoom * view.scale,
        )
        _draw_camera(panel, view, stage, turn, math.atan(frame.width / 2 / camera.fx))
        people = [view.project(place) for place in places]
        parts = []
        for pose, points in zip(poses, people, strict=True):
            nearness = points[:, 2]
            # More than perspective alone would, width and brightness tell near from far.
            radius = np.maximum(_BONE_RADIUS_MM / stage.zoom * view.scale * nearness**1.5, 0.9 * view.unit)
            shade = np.clip(0.94 + 1.5 * (nearness - 1.0), 0.6, 1.0)
            parts.append(self._skeleton.strokes(points[:, :2], radius, -nearness, shade, pose.scores))
        _paint(panel, _Strokes.joined(parts), max(1.0, 0.9 * view.unit))
        if len(poses) > 1:
            for pose, points in zip(poses, people, strict=True):
                label = _text(f"#{pose.track_id}", view.text_px, _TEXT_BGR)
                x, y, nearness_there = points[np.argmin(points[:, 1])]
                gap = 2 * _BONE_RADIUS_MM / stage.zoom * view.scale * nearness_there + 2 * view.unit
                _blend(panel, label, x - label.width / 2, y - gap - label.height)


class _Strokes(NamedTuple):
    """Round-ended lines that may taper; a dot is one without length.

    Attributes:
        start, end: [N, 2] px.
        radii: [N, 2] at start and end, px.
        bgr, edge_bgr: [N, 3] of the inside and of the outline.
        depth: [N], greater is farther away.
    """

    start: Array
    end: Array
    radii: Array
    bgr: Array
    edge_bgr: Array
    depth: Array

    @classmethod
    def joined(cls, parts: Sequence[_Strokes]) -> _Strokes:
        """The strokes of all parts."""
        return cls(*(np.concatenate(columns) for columns in zip(*parts, strict=True)))

    def take(self, which: NDArray[np.intp] | NDArray[np.bool_]) -> _Strokes:
        """Some of the strokes, by index or by mask."""
        return _Strokes(*(column[which] for column in self))

    def between(self, first: Array, last: Array) -> _Strokes:
        """The part of each stroke between two fractions of its length [N]."""
        along, widening = self.end - self.start, self.radii[:, 1:] - self.radii[:, :1]
        return self._replace(
            start=self.start + first[:, None] * along,
            end=self.start + last[:, None] * along,
            radii=self.radii[:, :1] + np.stack([first, last], axis=1) * widening,
        )

    def inside(self, width: int, height: int) -> _Strokes:
        """The parts that can be seen in a `width` x `height` px picture: safe to draw, however far the strokes reach."""
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

    def dashed(self) -> _Strokes:
        """The strokes at half their width, in three to nine dashes, as many as their lengths hold."""
        length = np.hypot(*(self.end - self.start).T)
        counts = np.clip(length / np.maximum(6.0 * self.radii.mean(axis=1), 1e-9), 3, 9).astype(np.intp)
        which = np.repeat(np.arange(len(counts)), counts)
        number = np.arange(len(which)) - np.repeat(np.cumsum(counts) - counts, counts)
        dashes = self.take(which).between((number + 0.3) / counts[which], (number + 0.7) / counts[which])
        return dashes._replace(radii=dashes.radii * 0.5)

    def polygons(self, outline_px: float) -> NDArray[np.int32]:
        """The strokes [N, P, 2], wider by `outline_px` all around, in OpenCV's fixed point."""
        along = self.end - self.start
        length = np.hypot(along[:, 0], along[:, 1])
        cos = np.where(length > 0, along[:, 0], 1.0) / np.where(length > 0, length, 1.0)
        sin = along[:, 1] / np.where(length > 0, length, 1.0)
        count = len(_ROUND) // 2
        radii = np.repeat(self.radii[:, ::-1] + outline_px, count, axis=1)
        points = np.repeat(np.stack([self.end, self.start], axis=1), count, axis=1)
        points[..., 0] += radii * (cos[:, None] * _ROUND[:, 0] - sin[:, None] * _ROUND[:, 1])
        points[..., 1] += radii * (sin[:, None] * _ROUND[:, 0] + cos[:, None] * _ROUND[:, 1])
        return _fixed(points)


def _round_ends() -> Array:
    """[P, 2]: half a circle around the end of a stroke that runs along x, then half a one around its start."""
    angles = np.concatenate([np.linspace(-0.5, 0.5, 9), np.linspace(0.5, 1.5, 9)]) * np.pi
    return np.stack([np.cos(angles), np.sin(angles)], axis=1)


_ROUND = _round_ends()


@dataclass(frozen=True)
class _Skeleton:
    """What of a joint set is drawn.

    Attributes:
        bones: [B, 2] pairs of joints.
        bone_bgr: [B, 3] colours.
        joints: [K] joints at the ends of bones. One without bones (Human3.6M's Thorax) would be a dot that means nothing.
        joint_bgr: [K, 3] colours.
    """

    bones: NDArray[np.intp]
    bone_bgr: Array
    joints: NDArray[np.intp]
    joint_bgr: Array

    @classmethod
    def of(cls, joint_set: JointSet) -> _Skeleton:
        """The bones and joints of a joint set, in the colours of their sides."""
        bones = np.array(joint_set.bones, np.intp)
        colours = np.array([_SIDES[joint_set.side(joint)] for joint in range(len(joint_set))], np.float64)
        joints = np.unique(bones)
        return cls(bones, colours[bones[:, 1]], joints, colours[joints])

    def strokes(self, points: Array, radius: Array, depth: Array, shade: Array, scores: Array) -> _Strokes:
        """One person's bones and joints.

        Args:
            points: [J, 2] px.
            radius: [J] of the bones there, px.
            depth: [J], greater is farther away.
            shade: [J] brightness, 0..1.
            scores: [J], 0..1.
        """
        dark = np.array(_OUTLINE_BGR, np.float64)
        bone_depth = depth[self.bones].mean(axis=1)
        bones = _Strokes(
            start=points[self.bones[:, 0]],
            end=points[self.bones[:, 1]],
            radii=radius[self.bones],
            bgr=self.bone_bgr * shade[self.bones].mean(axis=1)[:, None],
            edge_bgr=np.repeat(dark[None], len(self.bones), axis=0),
            depth=bone_depth,
        )
        # A joint is painted after all the bones that meet in it.
        front = depth.copy()
        np.minimum.at(front, self.bones, bone_depth[:, None])
        sure = scores >= LOW_SCORE
        solid = sure[self.joints, None]
        bgr = self.joint_bgr * shade[self.joints, None]
        dots = _Strokes(
            start=points[self.joints],
            end=points[self.joints],
            radii=np.repeat(radius[self.joints, None] * np.where(solid, 1.35, 1.0), 2, axis=1),
            bgr=np.where(solid, bgr, dark),
            edge_bgr=np.where(solid, dark, bgr),
            depth=np.nextafter(front[self.joints], -np.inf),
        )
        if sure.all():
            return _Strokes.joined([bones, dots])
        whole = sure[self.bones[:, 0]] & sure[self.bones[:, 1]]
        return _Strokes.joined([bones.take(whole), bones.take(~whole).dashed(), dots])


@dataclass
class _Stage:
    """Where people stand on the 3D view's floor: what is remembered from frame to frame, in camera space, mm.

    Attributes:
        root: the pelvis.
        source_id, time_s: of the last frame.
        places: smoothed (x, z) of each track's pelvis.
        centre: (x, z) at the floor's middle: the middle of the people, plus `slack`.
        slack: how far the floor's middle lags behind after somebody came or left; it fades.
        ground: smoothed y of the ground.
        zoom: smoothed; how many times wider than for one person the view is.
    """

    root: int
    source_id: str = ""
    time_s: float = -math.inf
    places: dict[int, Array] = field(default_factory=dict)
    centre: Array = field(default_factory=lambda: np.zeros(2))
    slack: Array = field(default_factory=lambda: np.zeros(2))
    ground: float = 0.0
    zoom: float = 1.0

    def follow(self, frame: Frame, poses: tuple[Pose, ...]) -> None:
        """Move on to the next frame's people."""
        elapsed_s = frame.time_s - self.time_s
        before = self.places if frame.source_id == self.source_id and elapsed_s >= 0 else {}
        self.source_id, self.time_s, self.places = frame.source_id, frame.time_s, {}
        if not poses:
            return

        def share(constant_s: float) -> float:
            """How much of the way to a new value this frame goes."""
            return 1.0 - math.exp(-elapsed_s / constant_s) if before else 1.0

        grounds = []
        for pose in poses:
            joints = np.clip(pose.joints_mm, -_FAR_MM, _FAR_MM)
            pelvis = joints[self.root, [0, 2]]
            last = before.get(pose.track_id, pelvis)
            self.places[pose.track_id] = last + share(0.3) * (pelvis - last)
            grounds.append(min(float(joints[:, 1].max()), float(joints[self.root, 1]) + _LEG_MM) + _SOLE_MM)
        places = np.array(list(self.places.values()))
        middle = places.mean(axis=0)
        if before and self.places.keys() != before.keys():
            self.slack = self.centre - middle
        else:
            self.slack = self.slack * (1.0 - share(0.4))
        self.centre = middle + self.slack
        # Feet leave the ground for a moment but never go below it (y is down): it sinks fast and rises slowly.
        ground = max(grounds)
        self.ground += share(0.15 if ground > self.ground else 1.0) * (ground - self.ground)
        reach = float(np.hypot(*(places - middle).T).max())
        self.zoom += share(0.6) * (min(max(1.0, (reach + _ROOM_MM) / _FLOOR_RADIUS_MM), _WIDEST) - self.zoom)

    def stand(self, pose: Pose) -> Array:
        """The pose's joints [J, 3] from the floor's middle: camera axes, mm over the zoom."""
        joints = np.clip(pose.joints_mm, -_FAR_MM, _FAR_MM)
        x, z = self.places[pose.track_id] - self.centre
        return (joints - joints[self.root] * (1, 0, 1) + (x, -self.ground, z)) / self.zoom


@dataclass(frozen=True)
class _View:
    """What of the 3D view stays the same for pictures of one size.

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
    def of_size(cls, width: int, height: int) -> _View:
        """The view that fills `width` x `height` px with a person who raises the arms, and the floor."""
        # The floor's front edge is as far below the middle as raised hands are above it, both with a little room.
        scale = min(height / 2860.0, width / 2280.0)
        view = cls(width, height, scale, np.full((height, width, 3), _BACKDROP_BGR, np.uint8))
        angles = np.linspace(0.0, 2.0 * np.pi, 180, endpoint=False)
        rim = np.stack([np.cos(angles), np.zeros(180), np.sin(angles)], axis=1) * _FLOOR_RADIUS_MM
        for share in np.linspace(1.0, 0.0, 24, endpoint=False):
            ring = _fixed(view.project(rim * share)[:, :2])
            cv2.fillConvexPoly(view.backdrop, ring, _mixed(_FLOOR_BGR, _RIM_BGR, share), cv2.LINE_AA, _SHIFT)
        view._draw_key()
        return view

    @property
    def unit(self) -> float:
        """A thin line's width, px: 1 at 360p."""
        return min(self.width, self.height) / 360

    @property
    def text_px(self) -> float:
        """Height of a line of text, px."""
        return 15.0 * self.unit

    @property
    def margin(self) -> float:
        """Between text and the edges, px."""
        return 9.0 * self.unit

    def _draw_key(self) -> None:
        """What colours and dashes mean, in the top left corner."""
        unit, x = self.unit, self.margin
        for name, bgr in (("left", LEFT_BGR), ("right", RIGHT_BGR), ("unsure", MIDDLE_BGR)):
            words = _text(name, self.text_px, _TEXT_BGR)
            y = self.margin + words.height / 2
            swatch = _Strokes(
                start=np.array([[x + 3 * unit, y]]),
                end=np.array([[x + 19 * unit, y]]),
                radii=np.full((1, 2), (2.0 if name == "unsure" else 3.0) * unit),
                bgr=np.array([bgr], np.float64),
                edge_bgr=np.array([_OUTLINE_BGR], np.float64),
                depth=np.zeros(1),
            )
            _paint(self.backdrop, swatch.dashed() if name == "unsure" else swatch, 0.9 * unit)
            _blend(self.backdrop, words, x + 26 * unit, self.margin)
            x += words.width + 40 * unit

    def project(self, points_mm: Array) -> Array:
        """Points [..., 3] from the floor's middle to x px, y px and nearness: 1 at the floor's middle, more in front."""
        x, y, z = points_mm[..., 0], points_mm[..., 1] + _TARGET_MM, points_mm[..., 2]
        down = y * math.cos(_PITCH) - z * math.sin(_PITCH)
        ahead = y * math.sin(_PITCH) + z * math.cos(_PITCH)
        nearness = _EYE_MM / np.maximum(_EYE_MM + ahead, 0.1 * _EYE_MM)
        scale = self.scale * nearness
        return np.stack([self.width / 2 + x * scale, self.height / 2 + down * scale - 130.0 * self.scale, nearness], axis=-1)


def _turned(points_mm: Array, turn: float) -> Array:
    """Points [..., 3] turned about the upright axis by an angle in radians."""
    c, s = math.cos(turn), math.sin(turn)
    x, y, z = points_mm[..., 0], points_mm[..., 1], points_mm[..., 2]
    return np.stack([c * x + s * z, y, c * z - s * x], axis=-1)


def _fixed(points: Array) -> NDArray[np.int32]:
    """Points, px, in OpenCV's fixed point."""
    return np.rint(points * (1 << _SHIFT)).astype(np.int32)


def _mixed(one: Colour, other: Colour, share: float) -> list[float]:
    """A colour between two: `share` of the other."""
    return [a + (b - a) * share for a, b in zip(one, other, strict=True)]


def _thickness(width_px: float) -> int:
    """The nearest line width that OpenCV draws."""
    return max(1, round(width_px))


def _paint(canvas: Picture, strokes: _Strokes, outline_px: float) -> None:
    """Draw strokes far to near, each with an outline: it stands out from any picture, and from the limb behind it."""
    strokes = strokes.inside(canvas.shape[1], canvas.shape[0])
    strokes = strokes.take(np.argsort(-strokes.depth, kind="stable"))
    for wide, narrow, edge_bgr, bgr in zip(
        strokes.polygons(outline_px), strokes.polygons(0.0), strokes.edge_bgr.tolist(), strokes.bgr.tolist(), strict=True
    ):
        cv2.fillConvexPoly(canvas, wide, edge_bgr, cv2.LINE_AA, _SHIFT)
        cv2.fillConvexPoly(canvas, narrow, bgr, cv2.LINE_AA, _SHIFT)


class _Text(NamedTuple):
    """A line of text ready to blend: ink [h, w, 3], and how much of what is underneath stays, of 255."""

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
def _text(words: str, height_px: float, bgr: Colour) -> _Text:
    """A line of text in a colour, `height_px` high from the top of its letters to the bottom of g."""
    font, tallest = cv2.FONT_HERSHEY_SIMPLEX, "Hg"
    (_, ascent), descent = cv2.getTextSize(tallest, font, 4.0, 1)
    scale = 4.0 * max(height_px, 1.0) / (ascent + descent)
    thickness = _thickness(height_px / 11)
    (_, ascent), descent = cv2.getTextSize(tallest, font, scale, thickness)
    (width, _), _ = cv2.getTextSize(words, font, scale, thickness)
    pad = thickness + 1
    cover = np.zeros((ascent + descent + 2 * pad, width + 2 * pad), np.uint8)
    cv2.putText(cover, words, (pad, pad + ascent), font, scale, 255, thickness, cv2.LINE_AA)
    ink = np.rint(cover[..., None] / 255 * np.array(bgr)).astype(np.uint8)
    return _Text(ink, np.repeat(255 - cover[..., None], 3, axis=2))


def _blend(canvas: Picture, text: _Text, x: float, y: float) -> None:
    """Write text with its top left corner at (x, y) px; what is outside the canvas is left out."""
    left, top = (round(min(max(value, -_FAR_PX), _FAR_PX)) for value in (x, y))
    part = np.s_[max(0, -top) : max(0, canvas.shape[0] - top), max(0, -left) : max(0, canvas.shape[1] - left)]
    ink, stays = text.ink[part], text.stays[part]
    if ink.size:
        region = canvas[max(0, top) :, max(0, left) :][: ink.shape[0], : ink.shape[1]]
        region[:] = cv2.add(cv2.multiply(region, stays, scale=1 / 255), ink)


def _draw_corners(picture: Picture, box: Box, unit: float) -> None:
    """Draw the box's four corners, thin: a whole rectangle would hide more than it shows."""
    size = np.array([picture.shape[1], picture.shape[0]])
    low = np.clip([box.x, box.y], -8.0 * unit, size + 8.0 * unit)
    high = np.clip([box.x + box.width, box.y + box.height], -8.0 * unit, size + 8.0 * unit)
    arm = min(float((high - low).min()) / 3.0, 14.0 * unit)
    (left, top), (right, bottom) = low, high
    corners = np.array([[left, top], [right, top], [right, bottom], [left, bottom]])
    inward = np.array([[arm, arm], [-arm, arm], [-arm, -arm], [arm, -arm]])
    lines = list(_fixed(np.stack([corners + inward * (1, 0), corners, corners + inward * (0, 1)], axis=1)))
    line, edge = _thickness(unit), _thickness(0.6 * unit)
    cv2.polylines(picture, lines, False, _OUTLINE_BGR, line + 2 * edge, cv2.LINE_AA, _SHIFT)
    cv2.polylines(picture, lines, False, MIDDLE_BGR, line, cv2.LINE_AA, _SHIFT)


def _draw_label(picture: Picture, words: str, box: Box, unit: float) -> None:
    """Write a label above the box's top left corner, or inside the picture's edge where there is no room."""
    text, pad = _text(words, 14.0 * unit, MIDDLE_BGR), round(2 * unit)
    height, width = text.height + 2 * pad, text.width + 2 * pad
    left = round(min(max(box.x, 0.0), max(0, picture.shape[1] - width)))
    top = round(min(max(box.y - height - 3 * unit, 0.0), max(0, picture.shape[0] - height)))
    picture[top : top + height, left : left + width] = _OUTLINE_BGR
    _blend(picture, text, left + pad, top + pad)


def _draw_caption(picture: Picture, caption: str, unit: float) -> None:
    """Write a warning across the top of the picture."""
    height_px, room = 24.0 * unit, picture.shape[1] - 16.0 * unit
    text = _text(caption, height_px, _OUTLINE_BGR)
    if text.width > room:
        text = _text(caption, height_px * room / text.width, _OUTLINE_BGR)
    pad = round(5 * unit)
    picture[: text.height + 2 * pad] = _CAPTION_BGR
    _blend(picture, text, (picture.shape[1] - text.width) / 2, pad)


def _draw_grid(panel: Picture, view: _View, stage: _Stage, turn: float, step_mm: float) -> None:
    """Draw the floor's grid: it stays in its place in camera space while people walk, and fades towards the floor's edge."""
    radius, step = _FLOOR_RADIUS_MM, step_mm / stage.zoom
    pieces = []
    for axis in (0, 1):
        across = np.arange(-radius // step, radius // step + 2) * step - stage.centre[axis] / stage.zoom % step
        across = across[np.abs(across) < radius]
        along = np.sqrt(radius**2 - across**2)[:, None] * np.linspace(-1.0, 1.0, 9)
        points = np.zeros((*along.shape, 3))
        points[..., 2 * axis], points[..., 2 - 2 * axis] = across[:, None], along
        pieces.append(np.stack([points[:, :-1], points[:, 1:]], axis=2).reshape(-1, 2, 3))
    lines = np.concatenate(pieces)
    light = 1.0 - (lines.mean(axis=1) ** 2).sum(axis=1) / radius**2
    levels = np.clip(light * 4, 0, 3).astype(np.intp)
    points = _fixed(view.project(_turned(lines, turn))[..., :2])
    for level in range(4):
        bgr = _mixed(_FLOOR_BGR, _GRID_BGR, (level + 1) / 4)
        cv2.polylines(panel, list(points[levels == level]), False, bgr, _thickness(0.8 * view.unit), cv2.LINE_AA, _SHIFT)


def _draw_camera(panel: Picture, view: _View, stage: _Stage, turn: float, half_angle: float) -> None:
    """Draw a wedge flat on the floor where the real camera is, or towards it, as wide as its angle of view."""
    distance = math.hypot(*stage.centre)
    if distance == 0.0:
        return
    x, z = -stage.centre / distance * min(distance / stage.zoom, 0.86 * _FLOOR_RADIUS_MM)
    wide = 230.0 * min(math.tan(half_angle), 1.2)
    wedge = np.array([[x, 0, z], [x + wide, 0, z + 230.0], [x - wide, 0, z + 230.0]])
    points = view.project(_turned(wedge, turn))[:, :2]
    cv2.fillConvexPoly(panel, _fixed(points), _GRID_BGR, cv2.LINE_AA, _SHIFT)
    cv2.polylines(panel, [_fixed(points)], True, _TEXT_BGR, _thickness(view.unit), cv2.LINE_AA, _SHIFT)
    words = _text("camera", 0.9 * view.text_px, _MUTED_BGR)
    _blend(panel, words, points[0, 0] - words.width / 2, points[:, 1].max() + 2 * view.unit)


def _draw_shadows(panel: Picture, view: _View, bones: Array, radius_px: float) -> None:
    """Darken the floor softly along bones [B, 2, 2] (px) that were projected onto it."""
    # A shadow has no fine detail: it is drawn small, and only the part that isn't empty is enlarged.
    factor = max(1, min(view.width, view.height) // 180)
    small = np.zeros((-(-view.height // factor), -(-view.width // factor)), np.uint8)
    size = np.array([view.width, view.height])
    lines = _fixed(np.clip(bones, -2.0 * size, 3.0 * size) / factor)
    thickness = _thickness(2 * radius_px / factor)
    cv2.polylines(small, list(lines), False, 190, thickness, cv2.LINE_AA, _SHIFT)
    blur = (thickness + 1, max(1, thickness // 2))
    soft = cv2.blur(cv2.blur(small, blur), blur)
    x, y, width, height = cv2.boundingRect(soft)
    if width == 0:
        return
    light = cv2.resize(255 - soft[y : y + height, x : x + width], (width * factor, height * factor))
    region = panel[y * factor :, x * factor :][: height * factor, : width * factor]
    light = light[: region.shape[0], : region.shape[1]]
    region[:] = cv2.multiply(region, cv2.merge([light, light, light]), scale=1 / 255)
