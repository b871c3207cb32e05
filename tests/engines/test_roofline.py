"""The work of a network equals that of PyTorch's layers, and the floor agrees with GPUs' data sheets."""

import math

import pytest

from convnextpose import weights
from engines.roofline import FP16_PER_CYCLE, Floor, GpuFigures, Work, count_work, floor


def test_work_is_counted_as_the_layers_do_it(checkpoint, onnx_bytes):
    import torch
    from torch import nn

    from convnextpose.checkpoint import build_network

    network, done = build_network(checkpoint).eval(), []

    def count(layer, inputs, output):
        done.append((layer.groups > 1, output.numel() * layer.weight[0].numel(), layer.weight.numel()))

    for layer in network.modules():
        if isinstance(layer, nn.Conv2d):
            layer.register_forward_hook(count)
    with torch.inference_mode():
        network(torch.zeros(1, 3, 256, 256))
    work = count_work(onnx_bytes, "it")
    assert work.multiply_adds == sum(size for grouped, size, _ in done if not grouped)
    assert work.depthwise == sum(size for grouped, size, _ in done if grouped)
    assert work.weights == sum(size for *_, size in done)
    assert work.ends == 256 * 256 * 3 + 18 * 4 * 4


def test_the_default_weights_cost_what_the_docs_say():
    work = count_work(weights.load("xs").onnx.read_bytes(), "xs")
    assert 0.7e9 < work.multiply_adds + work.depthwise < 0.9e9


@pytest.mark.parametrize(
    ("capability", "figures", "tflops"),
    [
        ("9.0", GpuFigures(132, 1830, 3350, 50 << 20), 989),  # H100 SXM
        ("8.9", GpuFigures(128, 2520, 1008, 72 << 20), 330),  # RTX 4090
        ("8.0", GpuFigures(108, 1410, 1555, 40 << 20), 312),  # A100
        ("8.7", GpuFigures(16, 1300, None, 4 << 20), 42.5),  # AGX Orin
    ],
)
def test_peaks_are_those_of_the_data_sheets(capability, figures, tflops):
    assert 2 * FP16_PER_CYCLE[capability] * figures.multiprocessors * figures.clock_mhz / 1e6 == pytest.approx(tflops, rel=0.02)
    work = Work(multiply_adds=10**12, depthwise=0, weights=10**6, ends=1000, between=10**8)
    found = floor(work, figures, capability, "fp16", 2)
    assert found.compute_ms == pytest.approx(2 * 2 / tflops * 1e3, rel=0.02)
    if figures.memory_gb_s is None:
        assert found.once_ms is None
    else:
        assert found.once_ms == pytest.approx((2e6 + 2000) / figures.memory_gb_s / 1e6)
        assert found.through_memory_ms == pytest.approx((2e6 + 2000 + 4e8) / figures.memory_gb_s / 1e6)


def test_what_is_not_known_is_not_made_up():
    figures = GpuFigures.of(10, 10**6, 0, 0, 0)
    assert figures.memory_gb_s is None
    assert floor(Work(1, 0, 1, 1, 1), figures, "11.0", "int8", 1) == Floor(None, None, None)
    assert math.isfinite(floor(Work(1, 0, 1, 1, 1), figures, "9.0", "int8", 1).compute_ms)
