"""The pinhole camera: joints in the picture to joints in camera space, and the root depth with its source.

Camera axes: x right, y down, z forward; millimetres. Picture coordinates: px, with pixel centres at whole numbers.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from enum import Enum
from functools import lru_cache

import numpy as np
from numpy.typing import NDArray

from convnextpose.errors import GeometryError
from convnextpose.skeleton import JointSet

ASSUMED_FOV_DEGREES = 60.0
"""Field of view across the picture's longer side if no intrinsics are given, degrees: typical of phones and web cameras."""

PERSON_EXTENT_MM = 2000.0
"""Assumed length of the side of a person's enlarged box (3DMPPE's first estimate of the root depth), mm."""


BONE_LENGTHS_MM = {
    ("Hip", "Knee"): 385.0, ("Knee", "Ankle"): 425.0, ("Shoulder", "Elbow"): 258.0, ("Elbow", "Wrist"): 230.0,
    ("Hip", "Shoulder"): 461.0, ("Hip", "Hip"): 221.0, ("Shoulder", "Shoulder"): 339.0,
}  # fmt: skip
"""Lengths between joints, mm: medians over the 2,000 adult bodies that the default weights were trained with."""

LEAST_BONES = 3
"""Number of visible bones that are needed to estimate a root depth from their lengths."""

_PROPORTIONS_WITHIN = 0.02
"""Largest difference of aspect ratios that count as equal: sizes are rounded to whole blocks."""

_NEAREST_MM, _FARTHEST_MM = 100.0, 1e6


class RootDepthSource(str, Enum):
    """The source of a pose's root depth, which shows how far its position in camera space can be trusted."""

    INTRINSICS = "intrinsics"
    """Estimated from the box with the camera's true intrinsics."""
    ASSUMED_FOV = "assumed_fov"
    """Estimated from the box with an assumed field of view: scale and position are a guess, the shape is not."""
    BONE_LENGTHS = "bone_lengths"
    """Estimated from the visible bones and an adult's bone lengths, because the picture's edge cuts the person off: a guess."""
    GIVEN = "given"
    """Given by the caller."""


@dataclass(frozen=True)
class Intrinsics:
    """A pinhole camera without distortion.

    Attributes:
        fx, fy: focal lengths, px.
        cx, cy: principal point, px.
    """

    fx: float
    fy: float
    cx: float
    cy: float

    def __post_init__(self) -> None:
        """Check that the four numbers describe a camera."""
        values = (self.fx, self.fy, self.cx, self.cy)
        if not all(math.isfinite(v) for v in values) or self.fx <= 0 or self.fy <= 0:
            raise GeometryError(
                f"expected a camera of four finite numbers fx,fy,cx,cy with positive focal lengths in px, received {values}"
            )

    @classmethod
    def parse(cls, text: str) -> Intrinsics:
        """Read `fx,fy,cx,cy`, px, as on the command line.

        Raises:
            GeometryError: the text is not four valid numbers.
        """
        try:
            fx, fy, cx, cy = (float(part) for part in text.split(","))
        except ValueError:
            raise GeometryError(
                f"expected a camera as fx,fy,cx,cy in px, for example 1500,1500,640,360, received {text!r}"
            ) from None
        return cls(fx, fy, cx, cy)

    @classmethod
    def assumed(cls, width: int, height: int, fov_degrees: float = ASSUMED_FOV_DEGREES) -> Intrinsics:
        """A camera with `fov_degrees` across the longer side of a `width` x `height` px picture, centred on the picture."""
        focal = max(width, height) / 2 / math.tan(math.radians(fov_degrees) / 2)
        return cls(focal, focal, (width - 1) / 2, (height - 1) / 2)

    def resized(self, size: tuple[int, int], becomes: tuple[int, int]) -> Intrinsics | None:
        """The intrinsics of pictures of width and height `size` (px), converted for the same pictures scaled to `becomes` (px).

        None if the two have different aspect ratios: then one is not a scaled version of the other.
        """
        if size == becomes:
            return self
        x, y = becomes[0] / size[0], becomes[1] / size[1]
        if abs(x / y - 1) > _PROPORTIONS_WITHIN:
            return None
        return Intrinsics(self.fx * x, self.fy * y, (self.cx + 0.5) * x - 0.5, (self.cy + 0.5) * y - 0.5)

    def project(self, points_mm: NDArray[np.floating]) -> NDArray[np.float64]:
        """Points in camera space [..., 3] (mm) to (x px, y px, depth mm) [..., 3]."""
        points = np.asarray(points_mm, np.float64)
        z = points[..., 2]
        return np.stack([points[..., 0] / z * self.fx + self.cx, points[..., 1] / z * self.fy + self.cy, z], axis=-1)

    def unproject(self, points: NDArray[np.floating]) -> NDArray[np.float64]:
        """(x px, y px, depth mm) [..., 3] to points in camera space [..., 3] (mm)."""
        points = np.asarray(points, np.float64)
        x, y, z = points[..., 0], points[..., 1], points[..., 2]
        unprojected = np.empty((*points.shape[:-1], 3))
        unprojected[..., 0] = (x - self.cx) / self.fx * z
        unprojected[..., 1] = (y - self.cy) / self.fy * z
        unprojected[..., 2] = z
        return unprojected

    def estimate_root_depth_mm(self, box_area_px: float) -> float:
        """The pelvis's distance (mm) estimated from the area of the enlarged square box (px²): sqrt(fx fy 2000^2 / area).

        Source: 3DMPPE (Moon et al. 2019), the factor that RootNet's network corrects.

        Raises:
            GeometryError: the area is not a positive number.
        """
        if not (math.isfinite(box_area_px) and box_area_px > 0):
            raise GeometryError(f"expected a box with a positive area in px, received an area of {box_area_px}")
        return math.sqrt(self.fx * self.fy / box_area_px) * PERSON_EXTENT_MM


@lru_cache
def _bones_of(joints: tuple[str, ...]) -> tuple[tuple[int, int, float], ...]:
    """The bones of BONE_LENGTHS_MM: the indices of their two joints, and their lengths, mm."""
    bones = []
    for (first, second), length_mm in BONE_LENGTHS_MM.items():
        ends = [(f"L_{first}", f"R_{second}")] if first == second else [(f"{s}_{first}", f"{s}_{second}") for s in "LR"]
        bones += [(joints.index(a), joints.index(b), length_mm) for a, b in ends]
    return tuple(bones)


def root_depth_from_bones_mm(
    camera: Intrinsics, joints: NDArray[np.floating], seen: NDArray[np.bool_], joint_set: JointSet
) -> float | None:
    """The root depth at which the visible bones have the total length of an adult's bones, mm; None if too few are visible.

    The farther away the pelvis is, the longer are bones of the same size in the picture, so there is at most one such depth.

    Args:
        camera: the intrinsics.
        joints: [J, 3] x px and y px in the picture, z mm from the pelvis.
        seen: [J] whether each joint is inside the picture.
        joint_set: the joints' names.
    """
    pairs, wanted_mm = [], 0.0
    for a, b, length_mm in _bones_of(joint_set.joints):
        if seen[a] and seen[b]:
            pairs.append((a, b))
            wanted_mm += length_mm
    if len(pairs) < LEAST_BONES:
        return None
    a, b = np.array(pairs).T
    points = np.asarray(joints, np.float64)
    # A bone's vector is start + depth * growth, so the total length is a convex function of the depth.
    rays = camera.unproject(np.column_stack([points[:, :2], np.ones(len(points))]))
    places = rays * points[:, 2:]
    start, growth = places[a] - places[b], rays[a] - rays[b]

    def too_long_mm(root_depth_mm: float) -> tuple[float, float]:
        bones = start + root_depth_mm * growth
        lengths = np.sqrt((bones * bones).sum(axis=1))
        return float(lengths.sum()) - wanted_mm, float(((bones * growth).sum(axis=1) / np.maximum(lengths, 1e-9)).sum())

    near, depth = max(_NEAREST_MM, _NEAREST_MM - float(points[:, 2].min())), _FARTHEST_MM
    excess, slope = too_long_mm(depth)
    if not too_long_mm(near)[0] < 0 < excess:
        return None
    while excess > 1e-6 * wanted_mm:  # as the function is convex, Newton's method approaches the root from above
        depth -= excess / slope
        excess, slope = too_long_mm(depth)
    return depth
