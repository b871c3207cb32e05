"""A small people detector for whole frames, in PyTorch: a heat map of people's centres, and a box for each of its cells.

The backbone consists of the first layers of XS. A neck combines its maps of strides 16 and 8, and a last convolution gives five
maps of stride 8. Source of the idea: CenterNet ("Objects as Points").
"""

from __future__ import annotations

import itertools
from pathlib import Path

import torch
import torch.nn.functional as F  # noqa: N812
from torch import Tensor, nn

from convnextpose.containers import read_container
from convnextpose.errors import CheckpointError
from convnextpose.files import show
from convnextpose.network import Backbone, HeadLayer, Normalise
from convnextpose.pickles import StoredTensor
from convnextpose.variants import Variant, VariantSpec

FRAME_SIZE = 384
"""The longer side of the frames of the package's detector, px; it was trained on squares, which were black outside the
picture."""

STRIDE = 8
"""Side of a heat-map's cell, px."""

BLOCKS = (2, 2, 4)
"""Residual blocks of each stage. XS has two more of stride 16 and a fourth stage, with most of its parameters."""

NECK_CHANNELS = 64

CANDIDATES = 32
"""Number of boxes that the detector returns for each frame, the best first."""

MAPS = 5
"""Number of outputs for each cell: the logit of a person's centre, the centre's offset from the cell (x, y, in cells), and the
logarithms of width and height (in cells)."""

LARGEST_LOG = 6.0
"""Boxes are at most exp(6) cells wide, so that even an untrained network's are finite."""


class Detector(nn.Module):
    """Normalised RGB frames [N, 3, H, W] in, maps [N, 5, H / 8, W / 8] out; H and W are multiples of 16."""

    def __init__(self) -> None:
        super().__init__()
        spec = Variant.XS.spec
        self.backbone = _trunk(spec)
        self.coarse = _Lateral(spec.channels[2])
        self.fine = _Lateral(spec.channels[1])
        self.neck = nn.Sequential(*(HeadLayer(NECK_CHANNELS, NECK_CHANNELS, upsample=False) for _ in range(2)))
        self.final_layer = nn.Conv2d(NECK_CHANNELS, MAPS, 1)

    def forward(self, images: Tensor) -> Tensor:
        """The maps, in the order of `MAPS`."""
        backbone = self.backbone
        x = images
        features = []
        for downsample, stage in zip(backbone.downsample_layers, backbone.stages, strict=True):
            x = stage(downsample(x))
            features.append(x)
        above = F.interpolate(self.coarse(features[2]), scale_factor=2.0, mode="nearest")
        result: Tensor = self.final_layer(self.neck(torch.relu(self.fine(features[1]) + above)))
        return result


class _Lateral(nn.Module):
    """A batch norm and a 1x1 convolution to the neck's width."""

    def __init__(self, before: int) -> None:
        super().__init__()
        self.norm = nn.BatchNorm2d(before)
        self.conv = nn.Conv2d(before, NECK_CHANNELS, 1)

    def forward(self, x: Tensor) -> Tensor:
        """[N, before, H, W] to [N, NECK_CHANNELS, H, W]."""
        result: Tensor = self.conv(self.norm(x))
        return result


def _trunk(spec: VariantSpec) -> Backbone:
    """The first BLOCKS of a variant's backbone, under the same names."""
    backbone = Backbone(spec)
    backbone.downsample_layers = backbone.downsample_layers[: len(BLOCKS)]
    backbone.stages = nn.ModuleList(
        nn.Sequential(*itertools.islice(stage.children(), count)) for stage, count in zip(backbone.stages, BLOCKS, strict=False)
    )
    del backbone.norm
    return backbone


def decode(maps: Tensor, count: int = CANDIDATES) -> tuple[Tensor, Tensor]:
    """Maps [N, 5, H, W] to boxes [N, K, 4] (x, y, width, height, px of the frame) and scores [N, K] in 0..1, the best first.

    Only cells without a higher-scoring neighbour are candidates; if there are fewer than K, scores of 0 follow. K is `count`;
    there are at least as many cells.
    """
    heat = torch.sigmoid(maps[:, :1])
    peaks = torch.where(F.max_pool2d(heat, 3, 1, 1) == heat, heat, torch.zeros_like(heat))
    height, width = maps.shape[2:]
    rows, columns = (torch.arange(n, device=maps.device, dtype=maps.dtype) + 0.5 for n in (height, width))
    middle = maps[:, 1:3] + torch.stack([columns.expand(height, width), rows[:, None].expand(height, width)])
    size = maps[:, 3:].clamp(-LARGEST_LOG, LARGEST_LOG).exp()
    boxes = torch.cat([middle - size / 2, size], 1).flatten(2) * STRIDE
    scores, index = peaks.flatten(1).topk(count, dim=1)
    return boxes.gather(2, index[:, None].expand(-1, 4, -1)).transpose(1, 2), scores


class DetectorReference(nn.Module):
    """A detector with nothing folded, from frames to boxes: the reference for every exported detector.

    Frames uint8 [N, H, W, 3] BGR to boxes float32 [N, K, 4] and scores float32 [N, K], as `decode` returns them.
    """

    def __init__(self, network: Detector) -> None:
        super().__init__()
        self.normalise = Normalise()
        self.network = network

    def forward(self, frames: Tensor) -> tuple[Tensor, Tensor]:
        """Boxes and scores."""
        return decode(self.network(self.normalise(frames)))


def build_detector(path: Path) -> Detector:
    """The detector of a safetensors file (FP16 or FP32) in evaluation mode, FP32 on the CPU.

    Raises:
        CheckpointError: the file cannot be read, or its tensors are not the detector's.
    """
    state = read_container(path).tree
    if not isinstance(state, dict) or not all(isinstance(tensor, StoredTensor) for tensor in state.values()):
        raise CheckpointError(f"expected a safetensors file of a people detector at {path}, but it holds something else")
    network = Detector()
    own = network.state_dict()
    wrong = sorted(set(own) ^ set(state)) or sorted(k for k, t in own.items() if tuple(t.shape) != state[k].shape)
    if wrong:
        raise CheckpointError(
            f"expected the tensors of a people detector in {path}, but {show(wrong[0])} is missing, unknown or of another shape"
        )
    network.load_state_dict({name: torch.from_numpy(tensor.numpy()) for name, tensor in state.items()})
    return network.float().eval().requires_grad_(False)
