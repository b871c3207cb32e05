"""The loss: L1 of the expected coordinates, and cross-entropy of each joint's marginals with a Gaussian around the ground
truth."""

from __future__ import annotations

import torch
from torch import Tensor

from convnextpose.variants import DEPTH_EXTENT_MM

L1_WEIGHT = 10.0
TARGET_WIDTH = 1 / 16
"""Standard deviation of the target marginals, as a share of the axis."""


CACHED = 2**18
"""Values of a volume to process at a time on a CPU: a megabyte in FP32, so that they stay in its cache."""


class _Marginals(torch.autograd.Function):
    """The softmax over each joint's volume, summed to a plane and to the depth axis.

    Autograd would keep several copies of the volume, by far the largest tensor. This keeps only the logits and, on a CPU,
    processes only as many pictures at a time as fit into its cache.
    """

    @staticmethod
    def forward(ctx: torch.autograd.function.FunctionCtx, maps: Tensor, joints: int) -> tuple[Tensor, Tensor]:
        """[N, J * D, H, W] logits to planes [N, H, W, J] and depths [N, J, D], float32."""
        planes, depths, greatest, scales = [], [], [], []
        for volume in _lots(maps, joints):
            volume = volume.float()
            top = volume.amax((1, 2, 4), keepdim=True)
            volume = (volume - top).exp_()
            plane, depth = volume.sum(4), volume.sum((1, 2))
            scale = 1 / depth.sum(2)
            planes.append(plane * scale[:, None, None])
            depths.append(depth * scale[..., None])
            greatest.append(top)
            scales.append(scale)
        plane, depth = torch.cat(planes), torch.cat(depths)
        ctx.save_for_backward(maps, torch.cat(greatest), torch.cat(scales), plane, depth)
        return plane, depth

    @staticmethod
    def backward(ctx: torch.autograd.function.FunctionCtx, d_plane: Tensor, d_depth: Tensor) -> tuple[Tensor, None]:
        """The softmax's derivative: p * (g - sum of p * g), with g the sum of both gradients."""
        maps, top, scale, plane, depth = ctx.saved_tensors
        mean = (d_plane * plane).sum((1, 2)) + (d_depth * depth).sum(2)
        d_plane = ((d_plane - mean[:, None, None]) * scale[:, None, None])[..., None]
        d_depth = (d_depth * scale[..., None])[:, None, None]
        gradient = torch.empty_like(maps)
        joints = plane.shape[3]
        parts = (top, d_plane, d_depth)
        lots = zip(_lots(maps, joints), _lots(gradient, joints), *(t.split(_lot(maps)) for t in parts), strict=True)
        for volume, result, peak, along_plane, along_depth in lots:
            result.copy_((volume.float() - peak).exp_().mul_(along_plane + along_depth))
        return gradient, None


def _lots(maps: Tensor, joints: int) -> list[Tensor]:
    """Views [M, H, W, J, D] of maps [N, J * D, H, W], M pictures each."""
    return list(maps.permute(0, 2, 3, 1).unflatten(3, (joints, -1)).split(_lot(maps)))


def _lot(maps: Tensor) -> int:
    """Number of pictures to process at a time."""
    return max(1, CACHED // maps[0].numel()) if maps.device.type == "cpu" else max(1, len(maps))


def marginals(maps: Tensor, joints: int) -> tuple[Tensor, Tensor, Tensor]:
    """The head's maps [N, J * D, H, W] to probabilities along x [N, J, W], y [N, J, H] and z [N, J, D], float32."""
    plane, depth = _Marginals.apply(maps, joints)
    return plane.sum(1).transpose(1, 2), plane.sum(2).transpose(1, 2), depth


def expectations(axes: tuple[Tensor, Tensor, Tensor]) -> Tensor:
    """[N, J, 3] expected x, y, z as shares (0..1) of the axes: the bin's index over the number of bins, as in decoding."""
    return torch.stack([p @ torch.arange(p.shape[2], dtype=p.dtype, device=p.device) / p.shape[2] for p in axes], 2)


def shares_from_joints(joints: Tensor, size: int) -> Tensor:
    """Joints [N, J, 3] (px, px of a crop of `size`, mm from the pelvis) to shares of the axes."""
    return torch.cat([joints[..., :2] / size, joints[..., 2:] / DEPTH_EXTENT_MM + 0.5], -1)


def joints_from_shares(shares: Tensor, size: int) -> Tensor:
    """The inverse of `shares_from_joints`."""
    return torch.cat([shares[..., :2] * size, (shares[..., 2:] - 0.5) * DEPTH_EXTENT_MM], -1)


def pose_loss(
    maps: Tensor,
    joints: Tensor,
    size: int,
    weights: Tensor | None = None,
    l1: float = L1_WEIGHT,
    entropy: float = 1.0,
    width: float = TARGET_WIDTH,
) -> tuple[Tensor, Tensor]:
    """The loss, and the mean absolute error in it as a share of the axes.

    Args:
        maps: [N, J * D, H, W] the head's output.
        joints: [N, J, 3] the ground truth, x and y in px of a crop of `size` px, z in mm from the pelvis. Joints outside the
            volume do not count.
        size: side of the crops, px.
        weights: [N, J, 3] weight of each coordinate, 0 if its true value is unknown; by default all are 1.
        l1: weight of the mean absolute error.
        entropy: weight of the marginals' cross-entropy.
        width: standard deviation of the target marginals, as a share of the axis.
    """
    axes = marginals(maps, joints.shape[1])
    target = shares_from_joints(joints, size)
    counts = ((target >= 0) & (target < 1)).all(-1, keepdim=True) * (torch.ones_like(target) if weights is None else weights)
    total = counts.sum().clamp_min(1)
    error = ((expectations(axes) - target).abs() * counts).sum() / total
    loss = l1 * error
    for axis, p in enumerate(axes):
        bins = torch.arange(p.shape[2], dtype=p.dtype, device=p.device) / p.shape[2]
        wanted = torch.softmax(-0.5 * ((bins - target[..., axis : axis + 1]) / width).square(), 2)
        loss = loss - entropy * ((wanted * (p + 1e-8).log()).sum(2) * counts[..., axis]).sum() / total
    return loss, error
