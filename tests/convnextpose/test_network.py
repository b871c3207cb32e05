"""The network's numbers are those of the published models, and its last layers follow their definitions."""

from __future__ import annotations

import pytest

from convnextpose.variants import Variant

torch = pytest.importorskip("torch")
from hypothesis import given  # noqa: E402
from hypothesis import strategies as st  # noqa: E402
from torch.utils.flop_counter import FlopCounterMode  # noqa: E402

from convnextpose.network import (  # noqa: E402 (it needs torch)
    PoseNetwork,
    expected_shapes,
    joint_scores,
    marginals,
    random_state,
    soft_argmax,
)
from tests.cases import fast_first  # noqa: E402

# variant: trainable parameters, numbers in the state dict, multiply-adds (G), final outputs for 18 and 21 joints
NUMBERS = {
    Variant.XS: (3_528_008, 3_534_140, 0.815, 576, 672),
    Variant.S: (7_438_976, 7_448_954, 1.738, 576, 672),
    Variant.M: (7_587_008, 7_596_986, 2.795, 1152, 1344),
    Variant.L: (8_380_352, 8_391_354, 4.264, 1152, 1344),
}


def on_meta(variant, joint_count=18):
    with torch.device("meta"):
        return PoseNetwork(variant, joint_count).eval(), torch.empty(1, 3, 256, 256)


@pytest.mark.parametrize("variant", Variant)
def test_parameters(variant):
    network, _ = on_meta(variant)
    trainable, everything, *_ = NUMBERS[variant]
    assert sum(parameter.numel() for parameter in network.parameters()) == trainable
    assert sum(tensor.numel() for tensor in network.state_dict().values()) == everything


@pytest.mark.parametrize("variant", Variant)
def test_multiply_adds(variant):
    network, images = on_meta(variant)
    with FlopCounterMode(display=False) as counter:
        network.logits(images)
    assert counter.get_total_flops() / 2e9 == pytest.approx(NUMBERS[variant][2], abs=0.001)


@pytest.mark.parametrize(
    ("variant", "joint_count"),
    fast_first([(Variant.XS, 21), *((v, 18) for v in Variant), *((v, 21) for v in list(Variant)[1:])], 5),
)
def test_heat_maps(variant, joint_count):
    network, images = on_meta(variant, joint_count)
    side = 64 if variant in (Variant.M, Variant.L) else 32
    assert network.backbone(images).shape == (1, variant.spec.channels[-1], 8, 8)
    assert network.logits(images).shape == (1, joint_count, side, side, side)
    assert network(images).shape == (1, joint_count, 3)
    outputs = NUMBERS[variant][3 if joint_count == 18 else 4]
    assert network.head.final_layer.out_channels == outputs
    assert expected_shapes(variant, joint_count)["head.final_layer.weight"][0] == outputs


def test_channels_of_the_heat_map_are_joint_by_joint_then_depth_by_depth():
    network = PoseNetwork(Variant.XS).eval()
    network.load_state_dict(random_state(Variant.XS))
    with torch.no_grad():
        network.head.final_layer.weight.zero_()
        network.head.final_layer.bias.zero_()
        network.head.final_layer.bias[5 * 32 + 11] = 50.0
        joints = network(torch.zeros(1, 3, 256, 256))
    assert joints[0, 5] == pytest.approx(torch.tensor([15.5, 15.5, 11.0]), abs=1e-3)
    assert joints[0, 4] == pytest.approx(torch.tensor([15.5, 15.5, 15.5]), abs=1e-3)


def test_random_states_are_what_their_seed_says():
    first, again, other = random_state(Variant.XS), random_state(Variant.XS), random_state(Variant.XS, seed=1)
    assert {name: tuple(tensor.shape) for name, tensor in first.items()} == expected_shapes(Variant.XS, 18)
    assert all(torch.equal(first[name], again[name]) for name in first)
    assert not torch.equal(first["head.final_layer.weight"], other["head.final_layer.weight"])


def test_a_random_network_gives_sane_numbers():
    network = PoseNetwork(Variant.XS).eval()
    network.load_state_dict(random_state(Variant.XS))
    with torch.no_grad():
        logits = network.logits(torch.randn(1, 3, 256, 256, generator=torch.Generator().manual_seed(0)))
    assert logits.isfinite().all()
    assert 0.01 < logits.std() < 100


volumes = st.tuples(*[st.integers(2, 9)] * 3)


@given(shape=volumes, data=st.data())
def test_soft_argmax_of_one_bin_is_its_index(shape, data):
    d, h, w = (data.draw(st.integers(0, size - 1)) for size in shape)
    logits = torch.zeros(1, 2, *shape)
    logits[0, 1, d, h, w] = 100.0
    assert soft_argmax(logits)[0, 1].tolist() == pytest.approx([w, h, d], abs=1e-4)
    assert soft_argmax(logits)[0, 0].tolist() == pytest.approx([(shape[2] - 1) / 2, (shape[1] - 1) / 2, (shape[0] - 1) / 2])
    assert joint_scores(logits)[0, 1].item() == pytest.approx(1.0, abs=1e-4)


@given(shape=volumes, seed=st.integers(0, 2**31), scale=st.floats(0, 50), shift=st.floats(-100, 100))
def test_laws_of_the_last_layers(shape, seed, scale, shift):
    logits = torch.randn(2, 3, *shape, generator=torch.Generator().manual_seed(seed)) * scale
    joints, scores = soft_argmax(logits), joint_scores(logits)
    assert joints.shape == (2, 3, 3)
    assert (joints >= 0).all()
    assert (joints <= torch.tensor([shape[2] - 1, shape[1] - 1, shape[0] - 1]) + 1e-4).all()
    assert ((scores >= 0) & (scores <= 1)).all()
    for p in marginals(logits):
        assert p.sum(-1) == pytest.approx(torch.ones(2, 3), abs=1e-5)
    # Adding a number to every logit changes nothing; mirroring the volume mirrors only x.
    assert torch.allclose(soft_argmax(logits + shift), joints, atol=1e-2)
    mirrored = soft_argmax(logits.flip(-1))
    assert torch.allclose(mirrored[..., 0], shape[2] - 1 - joints[..., 0], atol=1e-4)
    assert torch.allclose(mirrored[..., 1:], joints[..., 1:], atol=1e-4)


def test_a_spread_out_heat_map_scores_less():
    flat, sharp = torch.zeros(1, 1, 32, 32, 32), torch.zeros(1, 1, 32, 32, 32)
    sharp[0, 0, 3, 4, 5] = 100.0
    assert joint_scores(flat).item() == pytest.approx(0.00008, abs=1e-5)
    assert joint_scores(sharp).item() == pytest.approx(1.0)
