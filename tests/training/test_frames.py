"""Frames repeat from a seed, and their labels say who is in them, where, and how much of each can be seen."""

from __future__ import annotations

import numpy as np
import pytest

torch = pytest.importorskip("torch")
from convnextpose.camera import Intrinsics  # noqa: E402
from training.body import UP, rotation  # noqa: E402
from training.dataset import seeded  # noqa: E402
from training.draws import Draws  # noqa: E402
from training.frames import MAX_PEOPLE, FrameRenderer, Frames  # noqa: E402
from training.render import CAMERA_FROM_BODY, Stand, render  # noqa: E402


@pytest.fixture(scope="module")
def renderer():
    return FrameRenderer("cpu", 128)


@pytest.fixture(scope="module")
def frames(renderer):
    """Easy frames: without things in front of people."""
    return renderer.batch(48, 0.0, seeded(renderer.device, 4))


def test_a_seed_decides_everything(renderer):
    first, again, other = (renderer.batch(4, 0.9, seeded(renderer.device, 5, k)) for k in (1, 1, 2))
    for name in Frames.__dataclass_fields__:
        assert torch.equal(getattr(first, name), getattr(again, name)), name
    assert not torch.equal(first.images, other.images)
    assert not torch.equal(renderer.batch(4, 0.9, seeded(renderer.device, 5, 1), never=True).images, first.images)


def test_frames_have_nobody_or_several_small_and_large_people(frames):
    counts = frames.there.sum(1)
    assert counts.min() == 0 and counts.max() >= 4 and frames.there.shape[1] == MAX_PEOPLE
    heights = frames.boxes[frames.there][:, 3]
    assert heights.min() < 30 and heights.max() > 128
    assert (frames.boxes[~frames.there] == 0).all() and (frames.shown[~frames.there] == 0).all()


def test_labels_agree_with_projection(frames):
    for index, slot in frames.there.nonzero().tolist():
        projected = Intrinsics(*frames.intrinsics[index].tolist()).project(frames.camera_mm[index, slot].numpy())
        np.testing.assert_allclose(frames.joints_px[index, slot], projected[:, :2], atol=0.05)


def test_boxes_enclose_the_joints(frames):
    boxes, joints = frames.boxes[frames.there], frames.joints_px[frames.there]
    slack = 0.02 * boxes[:, None, 3] + 1
    assert (joints >= boxes[:, None, :2] - slack[..., None]).all()
    assert (joints <= boxes[:, None, :2] + boxes[:, None, 2:] + slack[..., None]).all()


def test_nearer_people_cover_farther_ones(frames):
    low, high = frames.boxes[..., :2], frames.boxes[..., :2] + frames.boxes[..., 2:]
    whole = frames.there & (low > 1).all(-1) & (high < frames.areas[:, None] - 2).all(-1)
    depth = torch.where(frames.there, frames.camera_mm[:, :, 0, 2], torch.inf)
    nearest = depth == depth.amin(1, keepdim=True)
    assert (whole & nearest).sum() >= 5
    assert (frames.shown[whole & nearest] > 0.9).all()
    assert (frames.shown[whole & ~nearest] < 0.7).any()


def test_whoever_is_drawn_changes_the_picture(frames, renderer):
    """The pictures themselves: what lies at a visible joint is not the background."""
    bodies = frames.there & (frames.shown > 0.9)
    assert bodies.any()
    for index, slot in bodies.nonzero().tolist():
        x, y, w, h = frames.boxes[index, slot].round().int().clamp_min(0).tolist()
        patch = frames.images[index, y : y + h, x : x + w].float()
        assert patch.numel() and patch.std() > 1


def test_visible_joints_are_inside_the_picture(frames):
    inside = ((frames.joints_px >= -0.5) & (frames.joints_px <= frames.areas[:, None, None] - 0.5)).all(-1)
    assert (inside | ~frames.visible).all()
    assert not frames.visible[~frames.there].any()


def test_beyond_the_picture_frames_are_black(frames):
    for image, (width, height) in zip(frames.images, frames.areas.int().tolist(), strict=True):
        assert not image[height:].any() and not image[:, width:].any()
        assert image[:height, :width].any()


def test_people_stand_where_they_are_put(renderer):
    draws = Draws(8, seeded(renderer.device, 1))
    turn = rotation((1.0, 0.0, 0.0), draws.uniform(-0.2, 0.6)) @ torch.tensor(CAMERA_FROM_BODY)
    up = turn @ torch.tensor(UP)
    foot = draws.normal(0.5, 3) + torch.tensor([0.0, 1.0, 5.0])
    people = render(renderer.bodies[0], draws, 48, 0.5, stand=Stand(turn @ rotation(UP, draws.uniform(0, 6)), foot, up))
    lowest = (up * foot).sum(-1)
    assert (people.ground_m <= lowest + 1e-3).all() and (people.ground_m > lowest - 0.31).all()
    assert ((people.ground_m - lowest).abs() < 1e-3).any()
    x, y, width, height = people.box.T
    assert (x > 0).all() and (y > 0).all() and (x + width < 47).all() and (y + height < 47).all()
    torch.testing.assert_close(people.light, up)
