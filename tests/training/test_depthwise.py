"""The quick gradient of depthwise convolutions is PyTorch's own."""

from __future__ import annotations

import copy

import pytest
from hypothesis import given
from hypothesis import strategies as st

torch = pytest.importorskip("torch")
from torch import nn  # noqa: E402

from convnextpose.network import PoseNetwork  # noqa: E402
from convnextpose.variants import Variant  # noqa: E402
from training.depthwise import StripConv2d, quicken  # noqa: E402


@given(st.sampled_from([5, 7, 9]), st.integers(2, 9), st.integers(1, 12), st.integers(1, 12), st.integers(0, 2**31))
def test_gradients_are_those_of_the_plain_convolution(kernel, channels, height, width, seed):
    torch.manual_seed(seed)
    plain = nn.Sequential(nn.Conv2d(channels, channels, kernel, padding=kernel // 2, groups=channels))
    quick = copy.deepcopy(plain)
    quicken(quick)
    assert isinstance(quick[0], StripConv2d)
    inputs = torch.randn(2, channels, height, width).to(memory_format=torch.channels_last)
    weights = torch.randn(2, channels, height, width)
    results = []
    for network in (plain, quick):
        given_inputs = inputs.clone().requires_grad_()
        (network(given_inputs) * weights).sum().backward()
        results.append([given_inputs.grad, network[0].weight.grad, network[0].bias.grad])
    for ours, theirs in zip(*reversed(results), strict=True):
        torch.testing.assert_close(ours, theirs, atol=1e-4, rtol=1e-4)


def test_a_quickened_network_is_the_same_network():
    network = PoseNetwork(Variant.XS)
    quick = copy.deepcopy(network)
    quicken(quick)
    assert sum(isinstance(module, StripConv2d) for module in quick.modules()) == 12  # one for each block
    assert list(quick.state_dict()) == list(network.state_dict())
    assert [name for name, _ in quick.named_parameters()] == [name for name, _ in network.named_parameters()]
    images = torch.randn(2, 3, 64, 64)
    assert torch.equal(quick(images), network(images))


def test_autocast_computes_in_bf16_and_keeps_gradients_in_fp32():
    network = nn.Sequential(nn.Conv2d(8, 8, 7, padding=3, groups=8))
    quicken(network)
    with torch.autocast("cpu", dtype=torch.bfloat16):
        result = network(torch.randn(1, 8, 16, 16))
    result.float().sum().backward()
    assert result.dtype == torch.bfloat16
    assert network[0].weight.grad.dtype == network[0].bias.grad.dtype == torch.float32
    assert network[0].bias.grad.tolist() == [256.0] * 8
