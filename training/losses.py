"""The loss: L1 of the expected coordinates, and cross-entropy of each joint's marginals with a Gaussian around the truth."""

from __future__ import annotations

import torch
from torch import Tensor

from convnextpose.variants import DEPTH_EXTENT_MM

L1_WEIGHT = 10.0
TARGET_WIDTH = 1 / 16
"""Standard deviation of the target marginals, as a share of the axis."""


class _Marginals(torch.autograd.Function):
    """The softmax over each joint's volume, summed to a plane and to the depth axis.

    Autograd would keep several copies of the volume, the largest tensor by far; this keeps one.
    """

    @staticmethod
    def forward(ctx: torch.autograd.function.FunctionCtx, maps: Tensor, joints: int) -> tuple[Tensor, Tensor]:
        """[N, J * D, H, W] logits to planes [N, H, W, J] and depths [N, J, D], float32."""
        volume = maps.permute(0, 2, 3, 1).unflatten(3, (joints, -1)).float()
        volume = (volume - volume.amax((1, 2, 4), keepdim=True)).exp_()
        plane, depth = volume.sum(4), volume.sum((1, 2))
        scale = 1 / depth.sum(2)
        plane, depth = plane * scale[:, None, None], depth * scale[..., None]
        ctx.save_for_backward(volume, scale, plane, depth)
        ctx.dtype = maps.dtype
        return plane, depth

    @staticmethod
    def backward(ctx: torch.autograd.function.FunctionCtx, d_plane: Tensor, d_depth: Tensor) -> tuple[Tensor, None]:
        """The softmax's derivative: p * (g - sum of p * g), with g the sum of both gradients."""
        volume, scale, plane, depth = ctx.saved_tensors
        mean = (d_plane * plane).sum((1, 2)) + (d_depth * depth).sum(2)
        d_plane = (d_plane - mean[:, None, None]) * scale[:, None, None]
        gradient = (d_plane[..., None] + (d_depth * scale[..., None])[:, None, None]) * volume
        return gradient.flatten(3).permute(0, 3, 1, 2).to(ctx.dtype), None


def marginals(maps: Tensor, joints: int) -> tuple[Tensor, Tensor, Tensor]:
    """The head's maps [N, J * D, H, W] to probabilities along x [N, J, W], y [N, J, H] and z [N, J, D], float32."""
    plane, depth = _Marginals.apply(maps, joints)
    return plane.sum(1).transpose(1, 2), plane.sum(2).transpose(1, 2), depth


def expectations(axes: tuple[Tensor, Tensor, Tensor]) -> Tensor:
    """[N, J, 3] expected x, y, z as shares (0..1) of the axes: the bin's index over the count of bins, as decoding has it."""
    return torch.stack([p @ torch.arange(p.shape[2], dtype=p.dtype, device=p.device) / p.shape[2] for p in axes], 2)


def shares_from_joints(joints: Tensor, size: int) -> Tensor:
    """Joints [N, J, 3] (px, px of a crop of `size`, mm from the pelvis) to shares of the axes."""
    return torch.cat([joints[..., :2] / size, joints[..., 2:] / DEPTH_EXTENT_MM + 0.5], -1)


def joints_from_shares(shares: Tensor, size: int) -> Tensor:
    """The inverse of `shares_from_joints`."""
    return torch.cat([shares[..., :2] * size, (shares[..., 2:] - 0.5) * DEPTH_EXTENT_MM], -1)


def pose_loss(maps: Tensor, joints: Tensor, size: int) -> tuple[Tensor, Tensor]:
    """The loss and, of it, the mean absolute error as a share of the axes.

    Args:
        maps: [N, J * D, H, W] the head's output.
        joints: [N, J, 3] the truth, x and y in px of a crop of `size` px, z in mm from the pelvis. Joints outside the volume
            do not count.
        size: side of the crops, px.
    """
    axes = marginals(maps, joints.shape[1])
    target = shares_from_joints(joints, size)
    counts = ((target >= 0) & (target < 1)).all(-1).float()
    total = counts.sum().clamp_min(1)
    error = ((expectations(axes) - target).abs().mean(-1) * counts).sum() / total
    loss = L1_WEIGHT * error
    for axis, p in enumerate(axes):
        bins = torch.arange(p.shape[2], dtype=p.dtype, device=p.device) / p.shape[2]
        wanted = torch.softmax(-0.5 * ((bins - target[..., axis : axis + 1]) / TARGET_WIDTH).square(), 2)
        loss = loss - ((wanted * (p + 1e-8).log()).sum(2) * counts).sum() / total / len(axes)
    return loss, error
