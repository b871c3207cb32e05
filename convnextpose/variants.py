"""The four ConvNeXtPose variants: the only table with their numbers.

Sources: kernel sizes, depths and widths were read from the authors' four published checkpoints; the errors are those of
the paper's table (Human3.6M, protocol 2). S, M and L have the same backbone and differ only in their heads.
"""

from __future__ import annotations

from dataclasses import dataclass
from enum import Enum

INPUT_SIZE = 256
"""Side of the square crop that the network reads, px."""

DEPTH_EXTENT_MM = 2000.0
"""Depth of the heat-map volume around the pelvis, mm (1000 mm to each side)."""

BACKBONE_STRIDE = 32
"""The backbone's total stride: a 256 px crop becomes an 8x8 map."""

HEAD_LAYERS = 3
"""Number of head layers of every variant. The paper's 2UP and 3UP count those that upsample."""

BACKBONE_KERNEL = 7
HEAD_KERNEL = 3


@dataclass(frozen=True)
class VariantSpec:
    """The numbers of one variant.

    Attributes:
        backbone: the name of its ConvNeXt configuration.
        depths: residual blocks in each of the four stages.
        channels: channels of each of the four stages.
        head_channels: channels of each of the three head layers.
        upsampling_layers: how many of the head layers, counted from the first, upsample by two.
        paper_mpjpe_mm: MPJPE on Human3.6M (protocol 2) in the paper's table, mm.
        paper_parameters: number of trainable parameters as the paper's table prints it.
    """

    backbone: str
    depths: tuple[int, int, int, int]
    channels: tuple[int, int, int, int]
    head_channels: int
    upsampling_layers: int
    paper_mpjpe_mm: float
    paper_parameters: str

    @property
    def heatmap_size(self) -> int:
        """Side of the heat-map, in bins."""
        return INPUT_SIZE // BACKBONE_STRIDE * 2**self.upsampling_layers

    @property
    def depth_bins(self) -> int:
        """Depth of the heat-map volume, in bins: the authors use a cube."""
        return self.heatmap_size


class Variant(Enum):
    """XS, S, M or L. `Variant.XS.value` is its `VariantSpec`; `Variant["XS"]` finds it by name."""

    XS = VariantSpec("Atto", (2, 2, 6, 2), (40, 80, 160, 320), 128, 2, 56.61, "3.53M")
    S = VariantSpec("Femto-L", (3, 3, 9, 3), (48, 96, 192, 384), 256, 2, 51.80, "7.44M")
    M = VariantSpec("Femto-L", (3, 3, 9, 3), (48, 96, 192, 384), 256, 3, 51.05, "7.59M")
    L = VariantSpec("Femto-L", (3, 3, 9, 3), (48, 96, 192, 384), 512, 3, 49.75, "8.38M")

    @property
    def spec(self) -> VariantSpec:
        """The variant's numbers."""
        return self.value
