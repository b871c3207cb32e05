"""The network as it is exported: preprocessing and batch norms folded into convolutions, joints in px and mm out."""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np

from convnextpose.crop import RGB_MEAN, RGB_STD, crop_from_bins
from convnextpose.variants import BACKBONE_STRIDE, HEAD_KERNEL, HEAD_LAYERS, INPUT_SIZE

if TYPE_CHECKING:
    from torch import Tensor, nn

    from convnextpose.checkpoint import VerifiedCheckpoint
    from convnextpose.network import PoseNetwork


def contract_network(checkpoint: VerifiedCheckpoint) -> nn.Module:
    """The verified model with the contract that every exported model has, and without batch norms.

    Returns:
        A module in evaluation mode: crops [N, 256, 256, 3] uint8 BGR to joints [N, J, 3] (x px and y px in the crop, z mm
        from the pelvis) and scores [N, J]. All of it computes in FP32.
    """
    import torch
    from torch import nn

    from convnextpose.network import SCORE_SPREAD_PX

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
            maps = network.head(network.backbone(crops.float().permute(0, 3, 1, 2)))

            # The marginals of `network.marginals`, from two passes over the volume instead of three.
            volume = torch.softmax(maps.reshape(-1, joints, depth * size * size), dim=2)
            volume = volume.reshape(-1, joints, depth, size * size)
            plane = volume.sum(2).reshape(-1, joints, size, size)
            # Libraries sum a softmax over so many bins with an error of 1e-5 (0.006 px where measured): dividing by the
            # marginals' own sums takes it out again.
            along_x, along_y, along_z = (p / p.sum(2, keepdim=True) for p in (plane.sum(2), plane.sum(3), volume.sum(3)))

            x = (along_x * self.bins_px).sum(2, keepdim=True)
            y = (along_y * self.bins_px).sum(2, keepdim=True)
            z = (along_z * self.bins_mm).sum(2, keepdim=True)
            variance = (along_x * (self.bins_px - x).square()).sum(2) + (along_y * (self.bins_px - y).square()).sum(2)
            return torch.cat([x, y, z], dim=2), torch.exp(variance * (-0.5 / SCORE_SPREAD_PX**2))

    return ContractNetwork(_folded_network(checkpoint)).eval().requires_grad_(False)


def _folded_network(checkpoint: VerifiedCheckpoint) -> PoseNetwork:
    """The network with the preprocessing and every batch norm moved into the convolutions beside them, for BGR 0..255."""
    import torch
    from torch import nn

    from convnextpose.network import build_network

    class AddMap(nn.Module):
        values: Tensor

        def __init__(self, values: Tensor) -> None:
            super().__init__()
            self.register_buffer("values", values)

        def forward(self, x: Tensor) -> Tensor:
            return x + self.values

    network = build_network(checkpoint)
    spec = checkpoint.variant.spec
    # Folded in FP64, so that the only rounding is the last one, of the weights to FP32.
    state = {name: tensor.double() for name, tensor in network.state_dict().items()}

    def take_norm(name: str) -> tuple[Tensor, Tensor]:
        """Scale and shift [C] that a batch norm in evaluation mode applies; it is gone afterwards."""
        norm = network.get_submodule(name)
        assert isinstance(norm, nn.BatchNorm2d)
        weight, bias, mean, variance, _ = (state.pop(f"{name}.{key}") for key in norm.state_dict())
        network.set_submodule(name, nn.Identity())
        scale = weight / (variance + norm.eps).sqrt()
        return scale, bias - mean * scale

    def scale_output(conv: str, scale: Tensor, shift: Tensor) -> None:
        """Make the convolution give scale * its result + shift."""
        state[f"{conv}.weight"] *= scale[:, None, None, None]
        state[f"{conv}.bias"] = state[f"{conv}.bias"] * scale + shift

    def scale_input(conv: str, scale: Tensor, shift: Tensor) -> None:
        """Make the convolution read scale * its input + shift: exact only without padding."""
        weight = state[f"{conv}.weight"]
        state[f"{conv}.bias"] += (weight * shift[:, None, None]).sum((1, 2, 3))
        state[f"{conv}.weight"] = weight * scale[:, None, None]

    stem = "backbone.downsample_layers.0.0"
    scale_output(stem, *take_norm("backbone.downsample_layers.0.1"))
    mean, std = (torch.tensor(values, dtype=torch.float64) for values in (RGB_MEAN, RGB_STD))
    scale_input(stem, 1 / (255 * std), -mean / std)
    state[f"{stem}.weight"] = state[f"{stem}.weight"].flip(1)  # the crops' channels are BGR

    for index in range(1, len(spec.depths)):
        scale_input(f"backbone.downsample_layers.{index}.1", *take_norm(f"backbone.downsample_layers.{index}.0"))
    blocks = [f"backbone.stages.{stage}.{block}" for stage, depth in enumerate(spec.depths) for block in range(depth)]
    head = [f"head.deconv_layers_{index}" for index in range(1, HEAD_LAYERS + 1)]
    for block in blocks + head:
        scale_output(f"{block}.dwconv", *take_norm(f"{block}.norm"))

    # The backbone's last norm meets a zero-padded convolution: its shift is missing beyond the border, so no bias can hold
    # it. But what the shift adds is the same for every crop, the convolution of a constant: that map takes the bias's place.
    # Unlike folding that divides by the norm's scale, this holds for channels whose scale is tiny or zero, too.
    scale, shift = take_norm("backbone.norm")
    first, size = f"{head[0]}.dwconv", INPUT_SIZE // BACKBONE_STRIDE
    weight, bias = state.pop(f"{first}.weight"), state.pop(f"{first}.bias")
    constant = shift[None, :, None, None].expand(1, -1, size, size)
    values = nn.functional.conv2d(constant, weight, bias, padding=HEAD_KERNEL // 2, groups=len(shift))
    network.set_submodule(f"{head[0]}.norm", AddMap(values.float()))
    network.get_submodule(first).register_parameter("bias", None)
    state |= {f"{first}.weight": weight * scale[:, None, None, None], f"{head[0]}.norm.values": values}

    network.load_state_dict({name: tensor.float() for name, tensor in state.items()})
    return network
