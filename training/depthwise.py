"""Depthwise convolutions whose weight gradient does not take most of a training step on a CPU."""

from __future__ import annotations

import torch
import torch.nn.functional as F  # noqa: N812
from torch import Tensor, nn

STRIP = 3
"""Columns of a kernel processed at a time: oneDNN (3.12) has a fast weight gradient for depthwise convolutions up to 3 px
wide, of any height. A 7x7 takes it ten times as long as three strips (13.4 and 1.4 ms for 16 maps of 40x32x32 in BF16 on one
core)."""


def strip_weight_gradient(inputs: Tensor, gradient: Tensor, kernel: int) -> Tensor:
    """The gradient of a depthwise convolution's weights, strip by strip: the same sum as PyTorch's, up to rounding.

    Args:
        inputs: [N, C, H, W] the input, convolved with a stride of 1 and a padding that keeps its size.
        gradient: [N, C, H, W] the loss's gradient at the output.
        kernel: the kernel's side, px, odd.

    Returns:
        [C, 1, kernel, kernel].
    """
    channels, width, reach, strips = inputs.shape[1], inputs.shape[3], kernel // 2, []
    padded = F.pad(inputs, (reach, reach, reach, reach))
    for first in range(0, kernel, STRIP):
        columns = min(STRIP, kernel - first)
        part = padded[..., first : first + width + columns - 1]
        weight = inputs.new_empty(channels, 1, kernel, columns)
        none = [0, 0]
        strip = torch.ops.aten.convolution_backward(
            gradient, part, weight, None, [1, 1], none, [1, 1], False, none, channels, [False, True, False]
        )
        strips.append(strip[1])
    return torch.cat(strips, 3)


class _Depthwise(torch.autograd.Function):
    @staticmethod
    def forward(ctx: torch.autograd.function.FunctionCtx, inputs: Tensor, weight: Tensor, bias: Tensor) -> Tensor:
        ctx.save_for_backward(inputs, weight)
        return F.conv2d(inputs, weight, bias, padding=weight.shape[2] // 2, groups=weight.shape[0])

    @staticmethod
    def backward(ctx: torch.autograd.function.FunctionCtx, gradient: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        inputs, weight = ctx.saved_tensors
        channels, side = weight.shape[0], weight.shape[2]
        pad, one = [side // 2, side // 2], [1, 1]
        for_inputs = torch.ops.aten.convolution_backward(
            gradient, inputs, weight, None, one, pad, one, False, [0, 0], channels, [True, False, False]
        )[0]
        return for_inputs, strip_weight_gradient(inputs, gradient, side), gradient.sum((0, 2, 3), dtype=torch.float32)


class StripConv2d(nn.Conv2d):
    """A depthwise convolution with the gradient above; its tensors and results are those of `nn.Conv2d`."""

    def forward(self, inputs: Tensor) -> Tensor:
        """[N, C, H, W] to the same shape."""
        weight, bias = self.weight, self.bias
        assert bias is not None
        kind = inputs.device.type
        if torch.is_autocast_enabled(kind):
            dtype = torch.get_autocast_dtype(kind)
            inputs, weight, bias = inputs.to(dtype), weight.to(dtype), bias.to(dtype)
        result: Tensor = _Depthwise.apply(inputs, weight, bias)
        return result


def quicken(network: nn.Module) -> None:
    """Give a network's wide depthwise convolutions the fast gradient, in place."""
    for module in list(network.modules()):
        for name, child in module.named_children():
            if not isinstance(child, nn.Conv2d) or child.bias is None or child.kernel_size[0] <= STRIP:
                continue
            same_size = child.padding == tuple(side // 2 for side in child.kernel_size) and child.padding_mode == "zeros"
            plain = child.stride == child.dilation == (1, 1) and child.kernel_size[0] == child.kernel_size[1]
            if same_size and plain and child.groups == child.in_channels == child.out_channels:
                quick = StripConv2d(
                    child.in_channels, child.out_channels, child.kernel_size, padding=child.padding, groups=child.groups
                )
                quick.weight, quick.bias = child.weight, child.bias
                setattr(module, name, quick)
