"""From a person's box to the network's square crop and back, and from heat map bins to px and mm.

Transforms are named target_from_source; each is a 2x3 affine matrix for points (x, y) in px with pixel centres at whole
numbers, as OpenCV's warpAffine takes them. Source of the geometry: the authors' public code.
"""

from __future__ import annotations

from dataclasses import dataclass
from math import isfinite

import numpy as np
from numpy.typing import NDArray

from convnextpose.errors import GeometryError
from convnextpose.variants import DEPTH_EXTENT_MM, INPUT_SIZE, Variant

ENLARGEMENT = 1.25
"""Factor from the person's square box to the crop's region."""

RGB_MEAN = (0.485, 0.456, 0.406)
RGB_STD = (0.229, 0.224, 0.225)
"""ImageNet's channel statistics, for pixels in 0..1."""

SCORE_SPREAD_PX = 24.0
"""Standard deviation of a joint's heat map at which its score is exp(-1/2), px of the crop."""


@dataclass(frozen=True)
class Box:
    """An upright rectangle in a picture, px.

    Attributes:
        x, y: its top left corner, px.
        width, height: its sides, px; positive.
    """

    x: float
    y: float
    width: float
    height: float

    def __post_init__(self) -> None:
        """Refuse boxes that enclose nothing."""
        x, y, width, height = values = self.x, self.y, self.width, self.height
        if not (isfinite(x) and isfinite(y) and isfinite(width) and isfinite(height)):
            raise GeometryError(f"expected a box of four finite numbers x,y,width,height in px, received {values}")
        if width <= 0 or height <= 0:
            raise GeometryError(f"expected a box with a positive width and height in px, received {values}")

    @property
    def area(self) -> float:
        """Area, px squared."""
        return self.width * self.height

    @property
    def center(self) -> tuple[float, float]:
        """Centre, px."""
        return self.x + self.width / 2, self.y + self.height / 2

    @classmethod
    def around(cls, points: NDArray[np.floating]) -> Box:
        """The smallest box around points [J, 2 or more] (px).

        Raises:
            GeometryError: the points are not finite, or enclose nothing.
        """
        low, high = points[:, :2].min(axis=0), points[:, :2].max(axis=0)
        return cls(float(low[0]), float(low[1]), float(high[0] - low[0]), float(high[1] - low[1]))

    def clip(self, width: int, height: int) -> Box:
        """The part of the box inside a `width` x `height` px picture.

        Raises:
            GeometryError: no part of it is.
        """
        x0, y0 = max(0.0, self.x), max(0.0, self.y)
        x1, y1 = min(float(width), self.x + self.width), min(float(height), self.y + self.height)
        if x1 <= x0 or y1 <= y0:
            raise GeometryError(
                f"expected a box that overlaps the {width}x{height} px picture, received x={self.x:g}, y={self.y:g}, "
                f"width={self.width:g}, height={self.height:g}"
            )
        return Box(x0, y0, x1 - x0, y1 - y0)

    def square(self, enlargement: float = ENLARGEMENT) -> Box:
        """The square around the same centre with the longer side times `enlargement`: the region of the crop."""
        side = max(self.width, self.height) * enlargement
        cx, cy = self.center
        return Box(cx - side / 2, cy - side / 2, side, side)

    def iou(self, other: Box) -> float:
        """Intersection over union with `other`, 0..1."""
        w = min(self.x + self.width, other.x + other.width) - max(self.x, other.x)
        h = min(self.y + self.height, other.y + other.height) - max(self.y, other.y)
        shared = max(0.0, w) * max(0.0, h)
        return shared / (self.area + other.area - shared)


def crop_region(box: Box, width: int, height: int) -> Box:
    """The square region of a `width` x `height` px picture that the network reads for a person's box.

    The box is clipped to the picture, made square around its centre and enlarged; the region may reach beyond the picture,
    where the crop is black.

    Raises:
        GeometryError: no part of the box is inside the picture.
    """
    return box.clip(width, height).square()


def crop_from_image(region: Box, size: int = INPUT_SIZE) -> NDArray[np.float64]:
    """The affine 2x3 from picture px to crop px, for a square region."""
    scale = size / region.width
    cx, cy = region.center
    return np.array([[scale, 0.0, size / 2 - scale * cx], [0.0, scale, size / 2 - scale * cy]])


def image_from_crop(region: Box, size: int = INPUT_SIZE) -> NDArray[np.float64]:
    """The affine 2x3 from crop px to picture px, for a square region: the inverse of `crop_from_image`."""
    scale = region.width / size
    cx, cy = region.center
    return np.array([[scale, 0.0, cx - scale * size / 2], [0.0, scale, cy - scale * size / 2]])


def invert_affine(matrix: NDArray[np.float64]) -> NDArray[np.float64]:
    """The inverses of affine matrices [..., 2, 3]."""
    linear = np.linalg.inv(matrix[..., :2])
    return np.concatenate([linear, -linear @ matrix[..., 2:]], axis=-1)


def apply_affine(matrix: NDArray[np.float64], points: NDArray[np.floating]) -> NDArray[np.float64]:
    """Transform points [..., 2 or more]: the first two columns (px) change, any others pass through."""
    result = np.array(points, np.float64)
    result[..., :2] = result[..., :2] @ matrix[:, :2].T + matrix[:, 2]
    return result


def normalise(crops: NDArray[np.uint8]) -> NDArray[np.float32]:
    """The official preprocessing: BGR crops [N, 256, 256, 3] uint8 to normalised RGB [N, 3, 256, 256] float32."""
    rgb = crops[..., ::-1].astype(np.float32) / np.float32(255)
    return np.ascontiguousarray(
        ((rgb - np.asarray(RGB_MEAN, np.float32)) / np.asarray(RGB_STD, np.float32)).transpose(0, 3, 1, 2)
    )


def crop_from_bins(variant: Variant) -> NDArray[np.float64]:
    """[3, 2]: factor and offset that convert bins to x, y (px of the crop) and z (mm from the pelvis)."""
    spec = variant.spec
    px = INPUT_SIZE / spec.heatmap_size
    return np.array([[px, 0.0], [px, 0.0], [DEPTH_EXTENT_MM / spec.depth_bins, -DEPTH_EXTENT_MM / 2]])


def decode_bins(bins: NDArray[np.floating], variant: Variant) -> NDArray[np.float64]:
    """Heat map coordinates [..., 3] (bins of W, H, D) to (x px, y px of the crop, z mm from the pelvis) [..., 3]."""
    factor, offset = crop_from_bins(variant).T
    return np.asarray(bins, np.float64) * factor + offset


def encode_bins(joints: NDArray[np.floating], variant: Variant) -> NDArray[np.float64]:
    """The inverse of `decode_bins`: (x px, y px of the crop, z mm from the pelvis) [..., 3] to bins [..., 3]."""
    factor, offset = crop_from_bins(variant).T
    return (np.asarray(joints, np.float64) - offset) / factor
