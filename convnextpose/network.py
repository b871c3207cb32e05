"""The ConvNeXtPose network in PyTorch: the reference that every engine is compared with.

Module names follow the published checkpoints' keys, without `module.`; see `checkpoint.py` for the two head formats.
Source: the authors' public code (ConvNeXt with batch norm and ReLU, no layer scale; a head of three depthwise-separable
layers; soft-argmax over the whole volume).
"""

from __future__ import annotations

import itertools
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import torch
from torch import Tensor, nn
from torch.overrides import TorchFunctionMode

from convnextpose.crop import RGB_MEAN, RGB_STD, SCORE_SPREAD_PX, crop_from_bins
from convnextpose.variants import BACKBONE_KERNEL, HEAD_KERNEL, HEAD_LAYERS, INPUT_SIZE, Variant, VariantSpec


class Block(nn.Module):
    """One residual block: depthwise 7x7, batch norm, 1x1 to four times the width, ReLU, 1x1 back, plus the input."""

    def __init__(self, channels: int) -> None:
        super().__init__()
        self.dwconv = nn.Conv2d(channels, channels, BACKBONE_KERNEL, padding=BACKBONE_KERNEL // 2, groups=channels)
        self.norm = nn.BatchNorm2d(channels)
        self.pwconv1 = nn.Conv2d(channels, 4 * channels, 1)
        self.act = nn.ReLU()
        self.pwconv2 = nn.Conv2d(4 * channels, channels, 1)

    def forward(self, x: Tensor) -> Tensor:
        """[N, C, H, W] to the same shape."""
        result: Tensor = x + self.pwconv2(self.act(self.pwconv1(self.norm(self.dwconv(x)))))
        return result


class Backbone(nn.Module):
    """ConvNeXt with batch norm: [N, 3, 256, 256] to [N, C, 8, 8]."""

    def __init__(self, spec: VariantSpec) -> None:
        super().__init__()
        channels = spec.channels
        stem = nn.Sequential(nn.Conv2d(3, channels[0], 4, stride=4), nn.BatchNorm2d(channels[0]))
        self.downsample_layers = nn.ModuleList([stem])
        for before, after in itertools.pairwise(channels):
            self.downsample_layers.append(nn.Sequential(nn.BatchNorm2d(before), nn.Conv2d(before, after, 2, stride=2)))
        self.stages = nn.ModuleList(
            nn.Sequential(*(Block(width) for _ in range(depth))) for depth, width in zip(spec.depths, channels, strict=True)
        )
        self.norm = nn.BatchNorm2d(channels[-1])

    def forward(self, x: Tensor) -> Tensor:
        """The last stage's features, normalised."""
        for downsample, stage in zip(self.downsample_layers, self.stages, strict=True):
            x = stage(downsample(x))
        result: Tensor = self.norm(x)
        return result


class HeadLayer(nn.Module):
    """Depthwise 3x3, batch norm, 1x1, ReLU, and in some layers, depending on the variant, bilinear upsampling by two."""

    def __init__(self, before: int, after: int, upsample: bool) -> None:
        super().__init__()
        self.dwconv = nn.Conv2d(before, before, HEAD_KERNEL, padding=HEAD_KERNEL // 2, groups=before)
        self.norm = nn.BatchNorm2d(before)
        self.pwconv = nn.Conv2d(before, after, 1)
        self.act = nn.ReLU()
        self.upsample = nn.UpsamplingBilinear2d(scale_factor=2) if upsample else nn.Identity()

    def forward(self, x: Tensor) -> Tensor:
        """[N, before, H, W] to [N, after, H or 2H, W or 2W]."""
        result: Tensor = self.upsample(self.act(self.pwconv(self.norm(self.dwconv(x)))))
        return result


class Head(nn.Module):
    """Three head layers and the 1x1 convolution to the heat-maps: [N, C, 8, 8] to [N, J * D, H, W]."""

    def __init__(self, spec: VariantSpec, joint_count: int) -> None:
        super().__init__()
        width = spec.channels[-1]
        for index in range(1, HEAD_LAYERS + 1):
            self.add_module(f"deconv_layers_{index}", HeadLayer(width, spec.head_channels, index <= spec.upsampling_layers))
            width = spec.head_channels
        self.final_layer = nn.Conv2d(width, joint_count * spec.depth_bins, 1)

    def forward(self, x: Tensor) -> Tensor:
        """The logits of every joint's volume."""
        for layer in self.children():
            x = layer(x)
        return x


class PoseNetwork(nn.Module):
    """A ConvNeXtPose variant: normalised RGB crops in, heat-map coordinates out.

    Attributes:
        variant: XS, S, M or L.
        joint_count: number of joints that it estimates.
    """

    def __init__(self, variant: Variant, joint_count: int = 18) -> None:
        super().__init__()
        self.variant = variant
        self.joint_count = joint_count
        self.backbone = Backbone(variant.spec)
        self.head = Head(variant.spec, joint_count)

    def logits(self, images: Tensor) -> Tensor:
        """[N, 3, 256, 256], RGB normalised as `crop.normalise` does, to logits [N, J, D, H, W]."""
        maps = self.head(self.backbone(images))
        count, _, height, width = maps.shape
        result: Tensor = maps.reshape(count, self.joint_count, self.variant.spec.depth_bins, height, width)
        return result

    def forward(self, images: Tensor) -> Tensor:
        """[N, 3, 256, 256] normalised RGB to joints [N, J, 3], (x, y, z) in bins of (W, H, D)."""
        return soft_argmax(self.logits(images))


class PoseReference(nn.Module):
    """A network as the authors define it, with nothing folded, from crops to joints: the reference for every engine.

    Crops uint8 [N, 256, 256, 3] BGR to joints float32 [N, J, 3] (x px and y px in the crop, z mm from the pelvis) and scores
    float32 [N, J]. Everything after the network's logits computes in FP32, whatever the network's type.
    """

    factor: Tensor
    offset: Tensor

    def __init__(self, network: PoseNetwork) -> None:
        super().__init__()
        self.network = network
        factor, offset = crop_from_bins(network.variant).T
        self.normalise = Normalise()
        self.register_buffer("factor", torch.tensor(factor, dtype=torch.float32))
        self.register_buffer("offset", torch.tensor(offset, dtype=torch.float32))

    def forward(self, crops: Tensor) -> tuple[Tensor, Tensor]:
        """Joints and scores."""
        images = self.normalise(crops).to(self.network.head.final_layer.weight.dtype)
        logits = self.network.logits(images).float()
        return soft_argmax(logits) * self.factor + self.offset, joint_scores(logits)


class Bf16Reference(PoseReference):
    """The same in BF16 up to the logits, on any CPU: for the deviation of BF16 if the CPU does not support it.

    Every layer rounds its result to BF16. Convolutions sum in FP32, as BF16 hardware does: the products of two BF16 numbers are
    exact there. PyTorch's own BF16 convolutions take twenty seconds a crop on a CPU without BF16.
    """

    def __init__(self, network: PoseNetwork) -> None:
        super().__init__(network.to(torch.bfloat16))

    def forward(self, crops: Tensor) -> tuple[Tensor, Tensor]:
        """Joints and scores."""
        with _Float32Sums():
            return super().forward(crops)


class _Float32Sums(TorchFunctionMode):
    """Makes convolutions of BF16 tensors sum in FP32 and round once."""

    def __torch_function__(
        self, func: Callable[..., Any], types: object, args: Sequence[Any] = (), kwargs: Mapping[str, Any] | None = None
    ) -> Any:  # noqa: ANN401 - whatever torch's functions give
        convolution: Callable[..., Tensor] = torch.conv2d
        if func is not convolution:
            return func(*args, **(kwargs or {}))
        wide = [value.float() if isinstance(value, Tensor) else value for value in args]
        return convolution(*wide, **(kwargs or {})).to(args[0].dtype)


class Normalise(nn.Module):
    """The official preprocessing, as `crop.normalise`: BGR [N, H, W, 3] uint8 to normalised RGB [N, 3, H, W] float32."""

    mean: Tensor
    std: Tensor

    def __init__(self) -> None:
        super().__init__()
        for name, values in (("mean", RGB_MEAN), ("std", RGB_STD)):
            self.register_buffer(name, torch.tensor(values, dtype=torch.float32))

    def forward(self, images: Tensor) -> Tensor:
        """Normalise; the result's memory has the channels last, like that of the images."""
        return ((images.flip(-1).float() / 255 - self.mean) / self.std).permute(0, 3, 1, 2)


def soft_argmax(logits: Tensor) -> Tensor:
    """The expectation of the bin index along each axis, under a softmax over each joint's whole volume.

    Args:
        logits: [N, J, D, H, W].

    Returns:
        [N, J, 3], (x, y, z) in bins. Source: integral human pose regression, as in the authors' code.
    """
    return torch.stack([(p * _bins(p)).sum(-1) for p in marginals(logits)], dim=-1)


def joint_scores(logits: Tensor) -> Tensor:
    """The network's confidence in each joint's position in the crop: [N, J, D, H, W] to [N, J] in 0..1.

    exp(-variance / (2 * SCORE_SPREAD_PX^2)), where variance is that of the joint's heat-map along x plus that along y, in
    px of the crop squared. A heat-map with all its mass in one bin scores 1, one spread evenly over the crop 0.00008.
    """
    variance = torch.zeros(logits.shape[:2], dtype=logits.dtype, device=logits.device)
    for p in marginals(logits)[:2]:
        px = _bins(p) * (INPUT_SIZE / p.shape[-1])
        mean = (p * px).sum(-1, keepdim=True)
        variance = variance + (p * (px - mean).square()).sum(-1)
    return torch.exp(-variance / (2 * SCORE_SPREAD_PX**2))


def marginals(logits: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """The marginals of the softmax over each joint's volume: [N, J, W], [N, J, H], [N, J, D].

    Each is divided by its own sum: in FP32 a softmax over 64^3 bins sums to one only within 1e-5, which is 0.006 px.
    """
    volume = torch.softmax(logits.flatten(2), dim=2).reshape(logits.shape)
    along_x, along_y, along_z = (volume.sum(axes) for axes in ((2, 3), (2, 4), (3, 4)))
    return _normalised(along_x), _normalised(along_y), _normalised(along_z)


def _normalised(p: Tensor) -> Tensor:
    result: Tensor = p / p.sum(-1, keepdim=True)
    return result


def _bins(p: Tensor) -> Tensor:
    return torch.arange(p.shape[-1], dtype=p.dtype, device=p.device)


def expected_shapes(variant: Variant, joint_count: int) -> dict[str, tuple[int, ...]]:
    """The shape of every tensor in the variant's state dict, by name; nothing is allocated."""
    with torch.device("meta"):
        state = PoseNetwork(variant, joint_count).state_dict()
    return {name: tuple(tensor.shape) for name, tensor in state.items()}


def random_state(variant: Variant, joint_count: int = 18, seed: int = 0) -> Mapping[str, Tensor]:
    """A state dict of random weights, the same for the same seed: for benchmarks and tests, never for poses.

    Each residual branch and the last layer are damped, so that activations have a reasonable size; and no batch norm is the
    identity, so that a mistake in folding shows.
    """
    generator = torch.Generator().manual_seed(seed)

    def normal(shape: tuple[int, ...], scale: float, shift: float = 0.0) -> Tensor:
        return torch.randn(shape, generator=generator) * scale + shift

    state: dict[str, Tensor] = {}
    for name, shape in expected_shapes(variant, joint_count).items():
        leaf = name.rsplit(".", 1)[-1]
        if leaf == "num_batches_tracked":
            state[name] = torch.tensor(1)
        elif leaf == "running_var":
            state[name] = normal(shape, 0.1).abs() + 0.7
        elif leaf == "weight" and len(shape) == 4:
            fan_in = shape[1] * shape[2] * shape[3]
            gain = 0.3 if name.endswith("pwconv2.weight") else 0.005 if "final_layer" in name else 1.0
            state[name] = normal(shape, gain * (2.0 / fan_in) ** 0.5)
        elif leaf == "weight":
            state[name] = normal(shape, 0.1, 1.0)
        else:
            state[name] = normal(shape, 0.05)
    return state
