"""Draws the result: the skeletons over the frame, and beside it the same poses in 3D on a floor that rotates slowly.

A single person's left is blue, the right orange, the middle white: colour-blind people can distinguish these, too. With
several people, each has a colour that depends on the track id, lighter on the left and darker on the right. Joints below
`LOW_SCORE` are hollow, and bones that end at one are thin and dashed. Line widths and text scale with the picture's shorter
side, so that 360p and 4K look alike. The 3D view rotates with the frame's time stamp, not with the wall clock: the same frames
always give the same pictures.
"""

from __future__ import annotations

import math
from dataclasses import dataclass, replace

import cv2
import numpy as np
from numpy.typing import NDArray

from convnextpose.camera import Intrinsics
from convnextpose.crop import Box
from convnextpose.errors import GeometryError
from convnextpose.skeleton import JointSet
from convnextpose.world import World
from pipeline.labels import Label, draw_labels, person_bgr, side_bgr
from pipeline.strokes import (
    FAR_PX,
    LEFT_BGR,
    MIDDLE_BGR,
    MUTED_BGR,
    OUTLINE_BGR,
    RIGHT_BGR,
    SHIFT,
    Array,
    Colour,
    Picture,
    Strokes,
    blend,
    fixed,
    line_width,
    paint,
    text_image,
)
from pipeline.types import Frame, Pose
from pipeline.view3d import FAR_MM, Floor, View, draw_camera, draw_grid, draw_shadows, turned

LOW_SCORE = 0.3
"""Below this score a joint is drawn hollow, and the bones that end at it thin and dashed."""

TURN_DEGREES_PER_S = 15.0
"""Angular speed of the 3D view: one rotation in 24 s."""

START_DEGREES = 30.0
"""The 3D view's angle at time 0: not 0, so that even a single picture shows depth."""

_SIDES = ("left", "right", "middle")
_ALONE_BGR = np.array([LEFT_BGR, RIGHT_BGR, MIDDLE_BGR], np.float64)
_CAPTION_BGR = (0, 196, 255)
_BONE_RADIUS_MM = 24.0
_SHADOW_RADIUS_MM = 60.0


class PoseRenderer:
    """Draws the frames of one source, in order.

    A person's position on the floor is smoothed over time, so that noise in the root depth does not shake the 3D view. A frame
    of another source, or of an earlier time, resets this. If poses have smoothed joints, these are drawn. Not thread-safe.
    """

    def __init__(self, joint_set: JointSet) -> None:
        """Prepare to draw poses of `joint_set`."""
        self._joint_set = joint_set
        self._skeleton = _Skeleton.of(joint_set)
        self._floor = Floor(joint_set.root)
        self._views: dict[tuple[int, int, bool], View] = {}
        self._several = False

    def render(
        self,
        frame: Frame,
        poses: tuple[Pose, ...],
        camera: Intrinsics,
        world: World | None = None,
        *,
        caption: str | None = None,
    ) -> Picture:
        """The frame with its poses drawn over it, and the 3D view to its right.

        Args:
            frame: the picture [H, W]; it is not modified.
            poses: the people in it.
            camera: the intrinsics that the poses were lifted with.
            world: the world of the 3D view; None assumes a level camera.
            caption: a warning to write on the picture.

        Returns:
            BGR uint8 [H, W + min(H, W), 3], with odd sides made one px larger: video needs even sides.

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
        poses = tuple(as_shown(pose, camera) for pose in poses)
        afresh = frame.source_id != self._floor.source_id or frame.time_s < self._floor.time_s
        # Once there were several people, they keep their colours: colours that change would identify nobody.
        self._several = len(poses) > 1 or (self._several and not afresh)
        far_first = sorted(poses, key=lambda pose: -pose.root_depth_mm)
        for pose in far_first:
            _draw_corners(picture, pose.box, unit, person_bgr(pose.track_id) if self._several else MIDDLE_BGR)
            self._draw_over(picture, pose, unit)
        if self._several:
            draw_labels(picture, [_label(pose, pose.box.x, pose.box.y - 3 * unit) for pose in far_first[::-1]], 12.0 * unit)
        if caption:
            _draw_caption(picture, caption, unit)

        size = panel.shape[1], panel.shape[0], self._several
        if size not in self._views:
            self._views = {size: View.of_size(size[0], size[1], several=self._several)}
        self._floor.follow(frame, poses, world)
        self._draw_panel(panel, self._views[size], frame, poses, camera)
        return canvas

    def _colours(self, pose: Pose) -> Array:
        """[3, 3] colours of a person's left, right and middle."""
        return side_bgr(pose.track_id) if self._several else _ALONE_BGR

    def _draw_over(self, picture: Picture, pose: Pose, unit: float) -> None:
        """Draw the skeleton over the picture."""
        points = np.clip(pose.joints_px, -FAR_PX, FAR_PX)
        # A small person gets thin bones, which do not hide the person.
        radius = float(np.clip(0.0105 * max(pose.box.width, pose.box.height), 1.3 * unit, 3.2 * unit))
        depth = np.clip(pose.joints_mm[:, 2], -FAR_MM, FAR_MM)
        strokes = self._skeleton.strokes(
            points, np.full(len(points), radius), depth, np.ones(len(points)), pose.scores, self._colours(pose)
        )
        paint(picture, strokes, max(1.0, 0.9 * unit))

    def _draw_panel(self, panel: Picture, view: View, frame: Frame, poses: tuple[Pose, ...], camera: Intrinsics) -> None:
        """Draw the 3D view: floor, shadows, camera mark, people."""
        floor = self._floor
        turn = math.radians((START_DEGREES + TURN_DEGREES_PER_S * frame.time_s) % 360.0)
        step_mm = 500.0 if floor.zoom < 2.5 else 1000.0
        panel[:] = view.backdrop
        draw_grid(panel, view, floor, turn, step_mm)
        places = [turned(floor.place_on_floor(pose), turn) for pose in poses]
        people = [view.project(place) for place in places]
        shown = [view.shows(points) for points in people]
        outside = sum(not inside.any() for inside in shown)
        grid = f"grid {step_mm / 1000:g} m" + (f", {outside} farther away" if outside else "")
        note = text_image(grid, view.text_px, MUTED_BGR)
        blend(panel, note, view.margin, view.height - view.margin - note.height)
        if not poses:
            words = text_image("no person", 1.6 * view.text_px, MUTED_BGR)
            blend(panel, words, (view.width - words.width) / 2, view.height / 2)
            return

        on_floor = [view.project(place * (1, 0, 1))[:, :2] for place in places]
        draw_shadows(
            panel,
            view,
            np.concatenate([points[self._skeleton.bones] for points in on_floor]),
            _SHADOW_RADIUS_MM / floor.zoom * view.scale,
        )
        draw_camera(panel, view, floor, turn, math.atan(frame.width / 2 / camera.fx))
        parts = []
        for pose, points in zip(poses, people, strict=True):
            nearness = points[:, 2]
            # Width and brightness vary more than with perspective alone, to show what is near and what is far.
            radius = np.maximum(_BONE_RADIUS_MM / floor.zoom * view.scale * nearness**1.5, 0.9 * view.unit)
            shade = np.clip(0.94 + 1.5 * (nearness - 1.0), 0.6, 1.0)
            parts.append(self._skeleton.strokes(points[:, :2], radius, -nearness, shade, pose.scores, self._colours(pose)))
        paint(panel, Strokes.joined(parts), max(1.0, 0.9 * view.unit))
        if self._several:
            labels = []
            seen = [(pose, points[inside]) for pose, points, inside in zip(poses, people, shown, strict=True) if inside.any()]
            for pose, points in sorted(seen, key=lambda entry: -float(entry[1][:, 2].mean())):
                x, y, nearness_there = points[np.argmin(points[:, 1])]
                gap = 2 * _BONE_RADIUS_MM / floor.zoom * view.scale * nearness_there + 2 * view.unit
                labels.append(_label(pose, float(x) - 0.6 * view.text_px, float(y) - gap))
            draw_labels(panel, labels, 0.8 * view.text_px)


@dataclass(frozen=True)
class _Skeleton:
    """The parts of a joint set that are drawn.

    Attributes:
        bones: [B, 2] pairs of joints.
        bone_sides: [B] 0 for the left, 1 for the right, 2 for the middle.
        joints: [K] joints at the ends of bones. A joint without bones (Human3.6M's Thorax) would be a meaningless dot.
        joint_sides: [K] as `bone_sides`.
    """

    bones: NDArray[np.intp]
    bone_sides: NDArray[np.intp]
    joints: NDArray[np.intp]
    joint_sides: NDArray[np.intp]

    @classmethod
    def of(cls, joint_set: JointSet) -> _Skeleton:
        """The bones and joints of a joint set, and their sides."""
        bones = np.array(joint_set.bones, np.intp)
        sides = np.array([_SIDES.index(joint_set.side(joint)) for joint in range(len(joint_set))], np.intp)
        joints = np.unique(bones)
        return cls(bones, sides[bones[:, 1]], joints, sides[joints])

    def strokes(self, points: Array, radius: Array, depth: Array, shade: Array, scores: Array, bgr: Array) -> Strokes:
        """One person's bones and joints.

        Args:
            points: [J, 2] px.
            radius: [J] radius of the bones at each joint, px.
            depth: [J], greater is farther away.
            shade: [J] brightness, 0..1.
            scores: [J], 0..1.
            bgr: [3, 3] colours of left, right and middle.
        """
        dark = np.array(OUTLINE_BGR, np.float64)
        bone_depth = depth[self.bones].mean(axis=1)
        bones = Strokes(
            start=points[self.bones[:, 0]],
            end=points[self.bones[:, 1]],
            radii=radius[self.bones],
            bgr=bgr[self.bone_sides] * shade[self.bones].mean(axis=1)[:, None],
            edge_bgr=np.repeat(dark[None], len(self.bones), axis=0),
            depth=bone_depth,
        )
        # A joint is painted after all the bones that meet in it.
        front = depth.copy()
        np.minimum.at(front, self.bones, bone_depth[:, None])
        sure = scores >= LOW_SCORE
        solid = sure[self.joints, None]
        joint_bgr = bgr[self.joint_sides] * shade[self.joints, None]
        dots = Strokes(
            start=points[self.joints],
            end=points[self.joints],
            radii=np.repeat(radius[self.joints, None] * np.where(solid, 1.35, 1.0), 2, axis=1),
            bgr=np.where(solid, joint_bgr, dark),
            edge_bgr=np.where(solid, dark, joint_bgr),
            depth=np.nextafter(front[self.joints], -np.inf),
        )
        if sure.all():
            return Strokes.joined([bones, dots])
        whole = sure[self.bones[:, 0]] & sure[self.bones[:, 1]]
        return Strokes.joined([bones.take(whole), bones.take(~whole).dashed(), dots])


def _draw_corners(picture: Picture, box: Box, unit: float, bgr: Colour) -> None:
    """Draw the box's four corners, thin: a whole rectangle would hide more than it shows."""
    size = np.array([picture.shape[1], picture.shape[0]])
    low = np.clip([box.x, box.y], -8.0 * unit, size + 8.0 * unit)
    high = np.clip([box.x + box.width, box.y + box.height], -8.0 * unit, size + 8.0 * unit)
    arm = min(float((high - low).min()) / 3.0, 14.0 * unit)
    (left, top), (right, bottom) = low, high
    corners = np.array([[left, top], [right, top], [right, bottom], [left, bottom]])
    inward = np.array([[arm, arm], [-arm, arm], [-arm, -arm], [arm, -arm]])
    lines = list(fixed(np.stack([corners + inward * (1, 0), corners, corners + inward * (0, 1)], axis=1)))
    line, edge = line_width(unit), line_width(0.6 * unit)
    cv2.polylines(picture, lines, False, OUTLINE_BGR, line + 2 * edge, cv2.LINE_AA, SHIFT)
    cv2.polylines(picture, lines, False, bgr, line, cv2.LINE_AA, SHIFT)


def as_shown(pose: Pose, camera: Intrinsics) -> Pose:
    """The pose that pictures and views show: smoothed over time, if it has smoothed joints."""
    if pose.smoothed_mm is None or pose.smoothed_mm[:, 2].min() <= 0:
        return pose
    return replace(pose, joints_mm=pose.smoothed_mm, joints_px=camera.project(pose.smoothed_mm)[:, :2])


def _label(pose: Pose, left: float, bottom: float) -> Label:
    return Label(f"{pose.track_id}", person_bgr(pose.track_id), left, bottom)


def _draw_caption(picture: Picture, caption: str, unit: float) -> None:
    """Write a warning across the top of the picture."""
    height_px, room = 24.0 * unit, picture.shape[1] - 16.0 * unit
    text = text_image(caption, height_px, OUTLINE_BGR)
    if text.width > room:
        text = text_image(caption, height_px * room / text.width, OUTLINE_BGR)
    pad = round(5 * unit)
    picture[: text.height + 2 * pad] = _CAPTION_BGR
    blend(picture, text, (picture.shape[1] - text.width) / 2, pad)
