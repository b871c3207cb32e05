"""A model's card describes its precisions: BF16 is proven on any CPU."""

from dataclasses import asdict, replace

import numpy as np
import pytest
import torch

from convnextpose import weights
from convnextpose.checkpoint import build_network, verify
from convnextpose.network import Bf16Reference
from engines.calibration import CalibrationSet
from engines.cpu_precision import bf16_in_torch
from engines.opening import open_pose_model
from engines.parity import LIMITS, compare


@pytest.fixture(scope="module")
def checkpoint():
    return verify(weights.load("xs").safetensors)


@pytest.fixture(scope="module")
def crops():
    return CalibrationSet.load(weights.CALIBRATION).split().proof[:2]


@pytest.fixture(scope="module")
def reference(checkpoint):
    with open_pose_model(checkpoint, "torch", name="xs") as model:
        yield model


def in_bf16(reference, checkpoint, crops):
    with bf16_in_torch(checkpoint, reference.info) as candidate:
        return compare(reference, candidate, crops, LIMITS["bf16"])


def test_bf16_is_proven_without_a_cpu_that_has_it(reference, checkpoint, crops):
    report = in_bf16(reference, checkpoint, crops)
    report.check()
    assert (report.deviation.runtime, report.candidate.precision) == ("torch", "bf16")
    native = weights.load("xs").deviations["bf16"]  # of 8 crops, in hardware
    assert 0.3 * native.mean_px < report.px.mean < 3 * native.mean_px, "it rounds as much as hardware does"
    assert 0.3 * native.mean_mm < report.mm.mean < 3 * native.mean_mm


def test_damaged_weights_are_not_proven(reference, checkpoint, crops):
    layer = next(name for name, value in checkpoint.state.items() if name.endswith("pwconv2.weight") and value.ndim == 4)
    damaged = replace_weights(checkpoint, layer, lambda weight: np.roll(weight, 1, axis=0))
    report = in_bf16(reference, damaged, crops)
    assert not report.passed
    assert not LIMITS["bf16"].hold(report.deviation)


def replace_weights(checkpoint, layer, change):
    """The checkpoint with a changed layer under its old hash, like the result of a failed conversion."""
    changed = object.__new__(type(checkpoint))
    changed.__dict__.update(checkpoint.__dict__)
    changed.__dict__["state"] = {**checkpoint.state, layer: change(checkpoint.state[layer])}
    return changed


def test_a_convolution_sums_in_fp32_and_rounds_once(checkpoint):
    network = Bf16Reference(build_network(checkpoint)).eval()
    convolution = next(m for m in network.modules() if isinstance(m, torch.nn.Conv2d))
    seen = []
    convolution.register_forward_hook(lambda module, inputs, output: seen.append((inputs[0], output)))
    with torch.inference_mode():
        joints, scores = network(torch.full((1, 256, 256, 3), 90, dtype=torch.uint8))
        taken, given = seen[0]
        exact = torch.nn.functional.conv2d(
            taken.double(), convolution.weight.double(), convolution.bias.double(), convolution.stride, convolution.padding,
            convolution.dilation, convolution.groups,
        )  # fmt: skip
    assert taken.dtype == given.dtype == torch.bfloat16
    assert joints.dtype == scores.dtype == torch.float32
    torch.testing.assert_close(given.double(), exact, rtol=2**-8, atol=1e-5)


def test_a_card_tells_in_which_runtime_it_was_proven():
    told = asdict(weights.Deviation(0.05, 0.4, 0.3, 2.0, 0.003, crops=8, runtime="torch"))
    assert weights.Deviation(**told).runtime == "torch"
    del told["runtime"]
    assert weights.Deviation(**told) == replace(weights.Deviation(**told), runtime="openvino"), "older cards do not say"
