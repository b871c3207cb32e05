"""Networks as they are exported: preprocessing and batch norms are folded into convolutions, and joints are in px and mm."""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np

from convnextpose.crop import RGB_MEAN, RGB_STD, SCORE_SPREAD_PX, crop_from_bins
from convnextpose.variants import BACKBONE_STRIDE, HEAD_KERNEL, INPUT_SIZE

if TYPE_CHECKING:
    from torch import Tensor, nn

    from convnextpose.checkpoint import VerifiedCheckpoint
    from convnextpose.detector import Detector
    from convnextpose.network import Backbone, PoseNetwork


def contract_network(checkpoint: VerifiedCheckpoint, *, half: bool = False) -> nn.Module:
    """The verified model with the inputs and outputs of every exported model, and without batch norms.

    Args:
        checkpoint: the model.
        half: whether it computes in FP16 up to its logits, as a typed FP16 graph does, or in FP32; the rest is in FP32.

    Returns:
        A module in evaluation mode: crops [N, 256, 256, 3] uint8 BGR to joints [N, J, 3] (x px and y px in the crop, z mm
        from the pelvis) and scores [N, J].
    """
    import torch
    from torch import nn

    from convnextpose.checkpoint import build_network

    class ContractNetwork(nn.Module):
        bins_px: Tensor
        bins_mm: Tensor

        def __init__(self, network: PoseNetwork) -> None:
            super().__init__()
            self.network = network
            factor, offset = crop_from_bins(network.variant).T
            bins = np.arange(network.variant.spec.heatmap_size)
            self.register_buffer("bins_px", torch.tensor(bins * factor[0] + offset[0], dtype=torch.float32))
            self.register_buffer("bins_mm", torch.tensor(bins * factor[2] + offset[2], dtype=torch.float32))

        def forward(self, crops: Tensor) -> tuple[Tensor, Tensor]:
            network, spec = self.network, self.network.variant.spec
            joints, size, depth = network.joint_count, spec.heatmap_size, spec.depth_bins
            # Cast first: TensorRT casts uint8 and does nothing else with it.
            images = crops.half() if half else crops.float()
            maps = network.head(network.backbone(images.permute(0, 3, 1, 2)))
            if half:
                maps = maps.float()

            # The marginals of `network.marginals`, from two passes over the volume instead of three.
            volume = torch.softmax(maps.reshape(-1, joints, depth * size * size), dim=2)
            volume = volume.reshape(-1, joints, depth, size * size)
            plane = volume.sum(2).reshape(-1, joints, size, size)
            # Libraries sum a softmax over so many bins with an error of 1e-5 (0.006 px where measured); dividing by the
            # marginals' own sums removes it.
            along_x, along_y, along_z = (p / p.sum(2, keepdim=True) for p in (plane.sum(2), plane.sum(3), volume.sum(3)))

            x = (along_x * self.bins_px).sum(2, keepdim=True)
            y = (along_y * self.bins_px).sum(2, keepdim=True)
            z = (along_z * self.bins_mm).sum(2, keepdim=True)
            variance = (along_x * (self.bins_px - x).square()).sum(2) + (along_y * (self.bins_px - y).square()).sum(2)
            return torch.cat([x, y, z], dim=2), torch.exp(variance * (-0.5 / SCORE_SPREAD_PX**2))

    network = build_network(checkpoint).double()  # so that the only rounding is the last one, of the weights to FP32
    _fold_backbone(network.backbone)
    _fold_last_norm(network)
    _fold_blocks(network)
    return ContractNetwork(network.half() if half else network.float()).eval().requires_grad_(False)


def contract_detector(detector: Detector) -> nn.Module:
    """The people detector as it is exported, without batch norms.

    Returns:
        A module in evaluation mode: frames [N, H, W, 3] uint8 BGR, H and W multiples of 16, to boxes [N, K, 4] and scores
        [N, K]. All of it computes in FP32.
    """
    from torch import nn

    from convnextpose.detector import decode

    class ContractDetector(nn.Module):
        def __init__(self, network: Detector) -> None:
            super().__init__()
            self.network = network

        def forward(self, frames: Tensor) -> tuple[Tensor, Tensor]:
            # Cast first: TensorRT casts uint8 and does nothing else with it.
            return decode(self.network(frames.float().permute(0, 3, 1, 2)))

    network = detector.double().eval()  # as above
    _fold_backbone(network.backbone)
    for lateral in (network.coarse, network.fine):
        _read(lateral.conv, *_scale_and_shift(lateral.norm))
        lateral.set_submodule("norm", nn.Identity())
    _fold_blocks(network)
    return ContractDetector(network.float()).eval().requires_grad_(False)


def _fold_backbone(backbone: Backbone) -> None:
    """Fold the preprocessing into the stem, and the norms of the stem and of downsampling into their convolutions."""
    import torch
    from torch import nn

    def take(norm: str) -> tuple[Tensor, Tensor]:
        found = _scale_and_shift(backbone.get_submodule(norm))
        backbone.set_submodule(norm, nn.Identity())
        return found

    def conv(name: str) -> nn.Conv2d:
        found = backbone.get_submodule(name)
        assert isinstance(found, nn.Conv2d)
        return found

    stem = conv("downsample_layers.0.0")
    _give(stem, *take("downsample_layers.0.1"))
    mean, std = (torch.tensor(values, dtype=torch.float64) for values in (RGB_MEAN, RGB_STD))
    _read(stem, 1 / (255 * std), -mean / std)
    stem.weight.data = stem.weight.data.flip(1)  # the pictures' channels are BGR
    for index in range(1, len(backbone.downsample_layers)):
        _read(conv(f"downsample_layers.{index}.1"), *take(f"downsample_layers.{index}.0"))


def _fold_blocks(network: nn.Module) -> None:
    """Fold the norm of every block and head layer into the depthwise convolution before it."""
    from torch import nn

    from convnextpose.network import Block, HeadLayer

    for module in network.modules():
        if isinstance(module, (Block, HeadLayer)) and isinstance(module.norm, nn.BatchNorm2d):
            _give(module.dwconv, *_scale_and_shift(module.norm))
            module.set_submodule("norm", nn.Identity())


def _fold_last_norm(network: PoseNetwork) -> None:
    """Fold the backbone's last norm and that of the head's first layer around the zero-padded convolution between them.

    The last norm's shift is missing in the padding, so a bias cannot represent it. But what the shift adds is the same for
    every crop, the convolution of a constant: that map replaces the bias. Unlike folding that divides by the norm's scale,
    this also holds for channels whose scale is tiny or zero.
    """
    from torch import nn

    class AddMap(nn.Module):
        values: Tensor

        def __init__(self, values: Tensor) -> None:
            super().__init__()
            self.register_buffer("values", values)

        def forward(self, x: Tensor) -> Tensor:
            return x + self.values

    layer = network.head.get_submodule("deconv_layers_1")
    conv = layer.get_submodule("dwconv")
    assert isinstance(conv, nn.Conv2d)
    _give(conv, *_scale_and_shift(layer.get_submodule("norm")))
    scale, shift = _scale_and_shift(network.backbone.norm)
    size = INPUT_SIZE // BACKBONE_STRIDE
    constant = shift[None, :, None, None].expand(1, -1, size, size)
    values = nn.functional.conv2d(constant, conv.weight, conv.bias, padding=HEAD_KERNEL // 2, groups=len(shift))
    layer.set_submodule("norm", AddMap(values))
    network.backbone.set_submodule("norm", nn.Identity())
    conv.register_parameter("bias", None)
    conv.weight.data *= scale[:, None, None, None]


def _scale_and_shift(norm: nn.Module) -> tuple[Tensor, Tensor]:
    """The factor and the summand of a batch norm in evaluation mode, [C] each."""
    from torch import nn

    assert isinstance(norm, nn.BatchNorm2d)
    assert norm.running_mean is not None and norm.running_var is not None
    scale = norm.weight / (norm.running_var + norm.eps).sqrt()
    return scale, norm.bias - norm.running_mean * scale


def _give(conv: nn.Conv2d, scale: Tensor, shift: Tensor) -> None:
    """Make a convolution return scale * its result + shift."""
    assert conv.bias is not None
    conv.weight.data *= scale[:, None, None, None]
    conv.bias.data = conv.bias * scale + shift


def _read(conv: nn.Conv2d, scale: Tensor, shift: Tensor) -> None:
    """Make a convolution read scale * its input + shift: exact only without padding."""
    assert conv.bias is not None
    conv.bias.data += (conv.weight * shift[:, None, None]).sum((1, 2, 3))
    conv.weight.data *= scale[:, None, None]
