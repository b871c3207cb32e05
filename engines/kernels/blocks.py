"""The kernels' parameters: for each crop a frame on the GPU with its pixel format and a matrix; and the shape of the logits."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from enum import IntEnum

import numpy as np
from numpy.typing import NDArray

from convnextpose.crop import SCORE_SPREAD_PX, crop_from_bins, invert_affine
from convnextpose.errors import GeometryError
from convnextpose.variants import Variant

LARGEST_SIDE_PX = 32_768
"""Longest side of a frame, px: for larger ones FP32 is not precise enough for positions between two pixels."""

VECTOR = 8
"""Number of FP16 logits that the tail reads at once: the width of a heat map is a multiple of it."""

LOGITS = "logits"
"""Name of the only output of a graph or an engine that leaves joints and scores to the tail kernel."""

_THREADS, _VECTORS_EACH = 256, 4
"""Threads of a block of the tail, and the smallest number of vectors for each: fewer would not hide the memory's latency."""


class PixelFormat(IntEnum):
    """The layout of a frame's pixels in memory; the numbers are those in `crop.cu`."""

    BGR = 0
    """One plane of three bytes a pixel."""
    NV12 = 1
    """Luma, and a plane of half the size with interleaved U and V: the format of NVDEC."""
    YUV420 = 2
    """Luma, U and V in separate planes, U and V of half the size."""


@dataclass(frozen=True)
class Colours:
    """The conversion from YUV to RGB.

    Attributes:
        red, blue: their shares in luma, 0..1; green has the rest.
        full_range: whether luma ranges from 0 to 255, or from 16 to 235 with chroma from 16 to 240.
    """

    red: float
    blue: float
    full_range: bool

    def factors(self) -> tuple[float, float, float, float, float, float]:
        """Luma's offset and gain, then what V adds to red, U and V to green, and U to blue, for values in 0..255.

        Source: ITU-R BT.601 and BT.709, equations of luma and of colour difference, inverted.
        """
        gain, chroma = (1.0, 1.0) if self.full_range else (255 / 219, 255 / 224)
        green = 1 - self.red - self.blue
        red_v, blue_u = 2 * (1 - self.red) * chroma, 2 * (1 - self.blue) * chroma
        return (
            0.0 if self.full_range else 16.0,
            gain,
            red_v,
            -blue_u * self.blue / green,
            -red_v * self.red / green,
            blue_u,
        )


BT601, BT601_FULL = Colours(0.299, 0.114, full_range=False), Colours(0.299, 0.114, full_range=True)
BT709, BT709_FULL = Colours(0.2126, 0.0722, full_range=False), Colours(0.2126, 0.0722, full_range=True)


@dataclass(frozen=True)
class DeviceFrame:
    """A frame in the GPU's memory.

    Attributes:
        planes: the address of each plane.
        pitches: bytes from one row to the next, for each plane.
        width, height: px.
        format: the layout of its pixels.
        colours: the conversion from YUV to RGB; ignored for BGR.
    """

    planes: tuple[int, ...]
    pitches: tuple[int, ...]
    width: int
    height: int
    format: PixelFormat = PixelFormat.BGR
    colours: Colours = BT709

    def __post_init__(self) -> None:
        """Refuse planes that cannot hold such a frame."""
        if not (1 <= self.width <= LARGEST_SIDE_PX and 1 <= self.height <= LARGEST_SIDE_PX):
            raise GeometryError(
                f"expected a frame with sides of 1 to {LARGEST_SIDE_PX} px, received {self.width}x{self.height}"
            )
        half = (self.width + 1) // 2
        least = {
            PixelFormat.BGR: (3 * self.width,),
            PixelFormat.NV12: (self.width, 2 * half),
            PixelFormat.YUV420: (self.width, half, half),
        }[self.format]
        if len(self.planes) != len(least) or len(self.pitches) != len(least):
            raise GeometryError(f"expected {len(least)} planes of {self.format.name}, received {len(self.planes)}")
        if any(pitch < row for pitch, row in zip(self.pitches, least, strict=True)):
            raise GeometryError(
                f"expected rows of at least {', '.join(map(str, least))} bytes of {self.format.name}, {self.width} px wide, "
                f"received {', '.join(map(str, self.pitches))}"
            )


ORIGIN = np.dtype(
    [
        ("planes", np.uint64, 3),
        ("pitches", np.int32, 3),
        ("width", np.int32),
        ("height", np.int32),
        ("format", np.int32),
        ("factors", np.float32, 6),
        ("matrix", np.float32, (2, 3)),
    ],
    align=True,
)
"""`struct Origin` of `crop.cu`. All zeros mean no crop."""


def crop_origins(frame: DeviceFrame, crop_from_image: Sequence[NDArray[np.float64]]) -> NDArray[np.uint8]:
    """The crop kernel's parameters for crops of a frame.

    Args:
        frame: the frame on the GPU.
        crop_from_image: for each crop the affine 2x3 from the frame's px to the crop's, as `convnextpose.crop` makes it.

    Returns:
        uint8 [N, 96]: an ORIGIN for each crop.

    Raises:
        GeometryError: a matrix cannot be inverted.
    """
    origins = np.zeros(len(crop_from_image), ORIGIN)
    origins["planes"][:, : len(frame.planes)] = frame.planes
    origins["pitches"][:, : len(frame.pitches)] = frame.pitches
    origins["width"], origins["height"], origins["format"] = frame.width, frame.height, frame.format
    origins["factors"] = frame.colours.factors()
    matrices = np.asarray(crop_from_image, np.float64).reshape(-1, 2, 3)
    try:
        origins["matrix"] = invert_affine(matrices)
    except np.linalg.LinAlgError:
        wrong = min(matrices, key=lambda matrix: abs(np.linalg.det(matrix[:, :2])))
        raise GeometryError(f"expected a matrix that can be inverted, received {wrong.tolist()}") from None
    return origins.view(np.uint8).reshape(len(origins), ORIGIN.itemsize)


VOLUME = np.dtype(
    [
        ("depth", np.int32),
        ("height", np.int32),
        ("width", np.int32),
        ("splits", np.int32),
        ("px_x", np.float32),
        ("px_y", np.float32),
        ("mm", np.float32),
        ("mm_offset", np.float32),
        ("score_factor", np.float32),
    ],
    align=True,
)
"""`struct Volume` of `tail.cu`."""

SUMS_BYTES, ARRIVED_BYTES = 32, 4


@dataclass(frozen=True)
class TailShape:
    """The volumes that the tail kernel reads.

    Attributes:
        joint_count: joints of a crop.
        depth, height, width: bins.
        px_x, px_y: px of the crop for a bin.
        mm, mm_offset: depth from the pelvis in mm is bins * mm + mm_offset.
    """

    joint_count: int
    depth: int
    height: int
    width: int
    px_x: float
    px_y: float
    mm: float
    mm_offset: float

    def __post_init__(self) -> None:
        """Refuse shapes that the kernel cannot read."""
        if self.width % VECTOR or min(self.joint_count, self.depth, self.height, self.width) < 1:
            raise GeometryError(
                f"expected volumes with a width in {VECTOR}s, received {self.joint_count} joints of depth {self.depth}, height "
                f"{self.height}, width {self.width}"
            )

    @classmethod
    def of(cls, variant: Variant, joint_count: int) -> TailShape:
        """The shape of a variant's heat maps."""
        spec = variant.spec
        (px_x, _), (px_y, _), (mm, mm_offset) = crop_from_bins(variant)
        return cls(joint_count, spec.depth_bins, spec.heatmap_size, spec.heatmap_size, px_x, px_y, mm, mm_offset)

    @property
    def splits(self) -> int:
        """Number of blocks that share a joint's volume: otherwise a single crop would use only a small part of a large GPU."""
        vectors = self.depth * self.height * self.width // VECTOR
        return max(1, min(_THREADS, vectors // (_THREADS * _VECTORS_EACH)))

    @property
    def logit_bytes(self) -> int:
        """Size of a crop's logits, bytes."""
        return 2 * self.joint_count * self.depth * self.height * self.width

    def workspace(self, most: int) -> int:
        """Size of the kernel's workspace for up to `most` crops, bytes; it is cleared once, before the first run."""
        return most * self.joint_count * (self.splits * SUMS_BYTES + ARRIVED_BYTES)

    def arrived_offset(self, most: int) -> int:
        """Offset of the counters in the workspace for `most` crops, after the partial sums, bytes."""
        return most * self.joint_count * self.splits * SUMS_BYTES

    def parameters(self) -> NDArray[np.void]:
        """The kernel's argument: VOLUME []."""
        score_factor = -0.5 / SCORE_SPREAD_PX**2
        values = (self.depth, self.height, self.width, self.splits, self.px_x, self.px_y, self.mm, self.mm_offset, score_factor)
        return np.array([values], VOLUME)
