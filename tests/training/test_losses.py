"""The memory-saving loss is the plain one."""

from __future__ import annotations

import pytest

torch = pytest.importorskip("torch")
from convnextpose import network  # noqa: E402
from training import losses  # noqa: E402


@pytest.fixture
def maps():
    return torch.randn(2, 18 * 8, 6, 10, generator=torch.Generator().manual_seed(0)).requires_grad_()


@pytest.fixture(params=[2**18, 1], ids=["together", "one at a time"])
def any_lots(request, monkeypatch):
    monkeypatch.setattr(losses, "CACHED", request.param)


def plain(maps):
    return network.marginals(maps.unflatten(1, (18, 8)))


def test_marginals_and_their_gradient_are_the_softmax_s(maps, any_lots):
    ours, theirs = losses.marginals(maps, 18), plain(maps)
    weights = [torch.randn(p.shape, generator=torch.Generator().manual_seed(k)) for k, p in enumerate(theirs)]
    for p, q in zip(ours, theirs, strict=True):
        torch.testing.assert_close(p, q)
        torch.testing.assert_close(p.sum(2), torch.ones(2, 18))
    gradients = [
        torch.autograd.grad(sum((p * w).sum() for p, w in zip(axes, weights, strict=True)), maps)[0] for axes in (ours, theirs)
    ]
    torch.testing.assert_close(*gradients, atol=1e-6, rtol=1e-4)


def test_expectations_are_the_network_s(maps):
    bins = network.soft_argmax(maps.unflatten(1, (18, 8)))
    torch.testing.assert_close(losses.expectations(losses.marginals(maps, 18)), bins / torch.tensor([10.0, 6.0, 8.0]))


def test_only_joints_inside_the_volume_count(maps):
    joints = torch.full((2, 18, 3), 100.0)
    joints[0, 3, 0] = -5
    joints[1, 4, 2] = 1001
    loss, error = losses.pose_loss(maps, joints, 256)
    moved = joints.clone()
    moved[0, 3, 1], moved[1, 4, 0] = 9, 17
    assert torch.equal(torch.stack(losses.pose_loss(maps, moved, 256)), torch.stack((loss, error)))
    moved[0, 5, 0] = 9
    assert losses.pose_loss(maps, moved, 256)[1] != error


def test_nothing_to_learn_from_is_no_loss(maps):
    loss, error = losses.pose_loss(maps, torch.full((2, 18, 3), -9.0), 256)
    assert loss == 0 and error == 0


def test_a_perfect_answer_has_no_error():
    target = torch.rand(3, 18, 3, generator=torch.Generator().manual_seed(1)) * 0.8 + 0.1
    cell = (target * 32).floor().long()
    maps = torch.full((3, 18, 32, 32, 32), -100.0)
    person, joint = torch.meshgrid(torch.arange(3), torch.arange(18), indexing="ij")
    maps[person, joint, cell[..., 2], cell[..., 1], cell[..., 0]] = 100.0
    joints = losses.joints_from_shares(cell / 32, 256)
    assert losses.pose_loss(maps.flatten(1, 2), joints, 256)[1] < 1e-6


def test_each_part_of_the_loss_counts_by_its_weight(maps):
    joints = torch.rand(2, 18, 3, generator=torch.Generator().manual_seed(2)) * 250
    (whole, error), (l1, _), (entropy, _) = (
        losses.pose_loss(maps, joints, 256, **weights) for weights in ({}, {"entropy": 0.0}, {"l1": 0.0})
    )
    torch.testing.assert_close(whole, l1 + entropy)
    torch.testing.assert_close(l1, losses.L1_WEIGHT * error)


def test_with_ones_for_weights_the_loss_is_the_plain_mean(maps):
    joints = torch.rand(2, 18, 3, generator=torch.Generator().manual_seed(3)) * 300 - 20
    weighted = torch.stack(losses.pose_loss(maps, joints, 256, torch.ones_like(joints)))
    assert torch.equal(weighted, torch.stack(losses.pose_loss(maps, joints, 256)))
    target = losses.shares_from_joints(joints, 256)
    counts = ((target >= 0) & (target < 1)).all(-1)
    assert 0 < counts.sum() < counts.numel()
    axes = losses.marginals(maps, 18)
    errors = (losses.expectations(axes) - target).abs().mean(-1)[counts]
    entropies = []
    for axis, p in enumerate(axes):
        bins = torch.arange(p.shape[2]) / p.shape[2]
        wanted = torch.softmax(-0.5 * ((bins - target[..., axis, None]) / losses.TARGET_WIDTH) ** 2, 2)
        entropies.append(-(wanted * (p + 1e-8).log()).sum(2)[counts].mean())
    torch.testing.assert_close(weighted[1], errors.mean())
    torch.testing.assert_close(weighted[0], losses.L1_WEIGHT * errors.mean() + torch.stack(entropies).mean())


def test_a_coordinate_without_weight_teaches_nothing(maps):
    joints = torch.rand(2, 18, 3, generator=torch.Generator().manual_seed(4)) * 250
    weights = torch.ones_like(joints)
    weights[0, 5], weights[1, :, 2] = 0, 0
    moved = joints.clone()
    moved[0, 5], moved[1, :, 2] = moved[0, 5] / 2, -moved[1, :, 2]
    first, second = (torch.stack(losses.pose_loss(maps, each, 256, weights)) for each in (joints, moved))
    assert torch.equal(first, second)
    assert losses.pose_loss(maps, moved, 256)[0] != losses.pose_loss(maps, joints, 256)[0]
    doubled = torch.stack(losses.pose_loss(maps, joints, 256, 2 * weights))
    torch.testing.assert_close(doubled, first)  # what counts is how they compare
