"""The detector's loss wants what decoding gives, its figures count what they say, and its runs are those of the trainer."""

from __future__ import annotations

import math
from dataclasses import replace

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

torch = pytest.importorskip("torch")
from convnextpose import weights  # noqa: E402
from convnextpose.detector import STRIDE, build_detector, decode  # noqa: E402
from training import state  # noqa: E402
from training.dataset import seeded  # noqa: E402
from training.detector import (  # noqa: E402
    SETS,
    DetectorTrainer,
    FrameChunks,
    detection_loss,
    held_out,
    predict,
    score,
    targets,
)
from training.frames import FrameRenderer  # noqa: E402
from training.plan import Plan  # noqa: E402
from training.stream import Stream  # noqa: E402
from training.train import run  # noqa: E402

CPU = torch.device("cpu")
PLAN = Plan(size=64, steps=4, batch=4, chunk=4, kept=3, filled=2, reuse=1.5, warmup=2)
MIDDLE = st.integers(8, 119).map(lambda px: px + 0.3)
"""A person's middle, px: not on the line between two cells, where rounding decides."""
START = weights.FOLDER / "xs.safetensors"


@pytest.fixture(scope="module")
def frames():
    renderer = FrameRenderer("cpu", 128)
    return renderer.batch(24, 0.6, seeded(renderer.device, 9))


def perfect(x, y, width, height, cells=16):
    """Maps that say where one person is: sure of the middle, and the right box in every cell."""
    maps = torch.full((1, 5, cells, cells), -12.0)
    u, v = (x + width / 2) / STRIDE, (y + height / 2) / STRIDE
    maps[0, 0, math.floor(v), math.floor(u)] = 12
    line = torch.arange(cells) + 0.5
    maps[0, 1], maps[0, 2] = u - line, (v - line)[:, None]
    maps[0, 3], maps[0, 4] = math.log(width / STRIDE), math.log(height / STRIDE)
    return maps


def one(x, y, width, height, kind=1.0):
    return torch.tensor([[[x, y, width, height, kind]]])


@given(MIDDLE, MIDDLE, st.floats(6, 200), st.floats(6, 200))
def test_decoding_inverts_the_targets(u, v, width, height):
    truth = (u - width / 2, v - height / 2, width, height)
    boxes, scores = decode(perfect(*truth))
    torch.testing.assert_close(boxes[0, 0], torch.tensor(truth), atol=1e-2, rtol=1e-4)
    assert scores[0, 0] > 0.99 and scores[0, 1] < 0.01


@settings(max_examples=25, deadline=None)
@given(MIDDLE, MIDDLE, st.floats(6, 120), st.floats(6, 120))
def test_the_truth_has_the_least_loss(u, v, width, height):
    truth = (u - width / 2, v - height / 2, width, height)
    labels = one(*truth)
    best, error = detection_loss(perfect(*truth), labels)
    assert best < 1e-3 and error < 1e-4
    for change in range(5):
        maps = perfect(*truth)
        maps[:, change] += 1.0 if change else 14.0  # everywhere: a person in each cell, or boxes that are off
        assert detection_loss(maps, labels)[0] > 0.1
    missed = perfect(*truth)
    missed[:, 0] = -12
    assert detection_loss(missed, labels)[0] > 1


def test_who_can_hardly_be_seen_is_neither_wanted_nor_wrong():
    sure, hidden, nobody = perfect(40, 30, 20, 60), one(40, 30, 20, 60, 0.0), one(0, 0, 0, 0, -1.0)
    assert detection_loss(sure, hidden)[0] < 0.01 < 1 < detection_loss(sure, nobody)[0]


def test_targets_lie_in_the_picture(frames):
    labels = targets(frames)
    there = labels[..., 4] >= 0
    assert (labels[..., 4] == 1).any() and (~there).any()
    high = labels[..., :2] + labels[..., 2:4]
    areas = frames.areas[:, None].expand(-1, labels.shape[1], -1)
    assert (labels[there][:, :2] >= -0.5).all() and (high[there] <= areas[there] - 0.5 + 1e-3).all()


def test_numbers_of_poses_mean_nothing_to_it():
    trainer = DetectorTrainer(replace(PLAN, turned=1.0, coats=0.5), CPU)
    assert trainer.plan == replace(PLAN, **{n: 0.0 for n in DetectorTrainer.unused - {"variant"}})


def test_mirroring_twice_changes_nothing(frames):
    trainer = DetectorTrainer(PLAN, CPU)
    labels = targets(frames)
    images, mirrored = trainer.mirrored(frames.images, labels)
    middle = mirrored[..., 0] + mirrored[..., 2] / 2
    torch.testing.assert_close(middle, 127 - labels[..., 0] - labels[..., 2] / 2)
    back = trainer.mirrored(images, mirrored)
    assert torch.equal(back[0], frames.images)
    torch.testing.assert_close(back[1], labels, atol=1e-4, rtol=0)


def test_the_truth_scores_best(frames):
    labels = targets(frames).numpy()
    people = [truth[truth[:, 4] == 1] for truth in labels]
    right = [(p[:, :4], np.full(len(p), 0.9)) for p in people]
    figures = score(right, frames)
    assert figures.average_precision == pytest.approx(1) and figures.false_positives == 0
    assert all(math.isnan(r) or r == 1 for r in figures.recall)
    twice = [(np.concatenate([b, b]), np.concatenate([s, s - 0.1])) for b, s in right]
    assert score(twice, frames).average_precision == pytest.approx(1)  # the surer ones came first
    assert score([(np.concatenate([b, b]), np.concatenate([s, s])) for b, s in right], frames).average_precision < 0.9
    moved = [(b + np.array([1000, 0, 0, 0]), s) for b, s in right]
    assert score(moved, frames).average_precision == 0
    empty = [len(truth[truth[:, 4] >= 0]) == 0 for truth in labels]
    ghost = (np.array([[5.0, 5, 20, 50]]), np.array([0.8]))
    haunted = [ghost if e else r for e, r in zip(empty, right, strict=True)]
    assert any(empty) and score(haunted, frames).false_positives == 1


@pytest.mark.slow
def test_two_slices_are_one(tmp_path):
    whole = run(tmp_path / "whole", PLAN, CPU, held_out_count=0, kind=DetectorTrainer)
    run(tmp_path / "slices", PLAN, CPU, steps=1, held_out_count=0, kind=DetectorTrainer)
    resumed = run(tmp_path / "slices", PLAN, CPU, steps=3, held_out_count=0, kind=DetectorTrainer)
    assert resumed.step == 4 and state.load_facts(tmp_path / "slices") == state.load_facts(tmp_path / "whole")
    for a, b in zip(whole.average.state_dict().values(), resumed.average.state_dict().values(), strict=True):
        assert torch.equal(a, b)
    shipped = build_detector(tmp_path / "whole" / "last.safetensors").state_dict()
    torch.testing.assert_close(shipped, whole.average.state_dict(), atol=1e-3, rtol=1e-3)


def test_it_begins_with_a_pose_network_s_backbone():
    with_help, without = DetectorTrainer(PLAN, CPU, START).network, DetectorTrainer(PLAN, CPU).network
    name = "stages.2.3.pwconv1.weight"
    given = state.load_file(START)[f"backbone.{name}"].float()
    torch.testing.assert_close(with_help.backbone.get_parameter(name), given)
    assert not torch.equal(without.backbone.get_parameter(name), given)


def test_a_few_frames_can_be_learnt():
    plan = replace(PLAN, steps=40, batch=8, chunk=8, kept=1, filled=1, reuse=1e9, average=0.9, first_difficulty=0.0)
    trainer = DetectorTrainer(plan, CPU, START)
    with Stream(plan, CPU, kind=FrameChunks) as stream:
        losses = torch.stack([trainer.update(stream)[0] for _ in range(plan.steps)])
    assert losses[-8:].mean() < 0.4 * losses[:3].mean()


def test_held_out_sets_are_fixed_and_differ(monkeypatch):
    monkeypatch.setattr("training.detector.LOT", 8)
    renderer = FrameRenderer("cpu", 64)
    sets = {name: held_out(name, 8, renderer) for name in SETS}
    assert torch.equal(sets["hard"].images, held_out("hard", 8, renderer).images)
    assert not torch.equal(sets["hard"].images, sets["never"].images)
    network = DetectorTrainer(PLAN, CPU).average
    assert score(predict(network, sets["hard"].images), sets["hard"]).average_precision < 0.3  # nothing learnt yet
