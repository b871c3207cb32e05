"""Crops repeat from a seed, and their labels say where the people in them are."""

from __future__ import annotations

import math

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

torch = pytest.importorskip("torch")
from convnextpose.camera import Intrinsics  # noqa: E402
from convnextpose.crop import encode_bins  # noqa: E402
from convnextpose.skeleton import HUMAN36M  # noqa: E402
from convnextpose.variants import Variant  # noqa: E402
from training import losses  # noqa: E402
from training.appearance import dress_up  # noqa: E402
from training.background import background  # noqa: E402
from training.dataset import Crops, mirror, recolour, turn  # noqa: E402
from training.draws import Draws  # noqa: E402
from training.render import MAX_POINTS, render  # noqa: E402


def test_a_seed_decides_everything(renderer):
    first, again, other = (renderer.batch(4, 0.9, renderer.generator(5, k)) for k in (1, 1, 2))
    for name in Crops.__dataclass_fields__:
        assert torch.equal(getattr(first, name), getattr(again, name)), name
    assert not torch.equal(first.images, other.images)
    assert not torch.equal(renderer.batch(4, 0.9, renderer.generator(5, 1), never=True).images, first.images)


def test_shapes_and_types(crops, renderer):
    size = renderer.size
    assert crops.images.shape == (16, size, size, 3) and crops.images.dtype == torch.uint8
    assert crops.joints.shape == crops.camera_mm.shape == (16, 18, 3)
    assert crops.intrinsics.shape == crops.boxes.shape == (16, 4)
    assert crops.visible.shape == (16, 18) and crops.visible.dtype == torch.bool
    assert len(crops[crops.visible[:, 0]]) == int(crops.visible[:, 0].sum())


def test_labels_agree_with_projection(crops):
    for joints, camera, intrinsics in zip(crops.joints, crops.camera_mm, crops.intrinsics, strict=True):
        projected = Intrinsics(*intrinsics.tolist()).project(camera.numpy())
        np.testing.assert_allclose(joints[:, :2], projected[:, :2], atol=0.02)
        np.testing.assert_allclose(joints[:, 2], projected[:, 2] - projected[0, 2], atol=0.2)


def test_joints_lie_on_the_rendered_person(renderer):
    """The pictures themselves, not the labels' own arithmetic: each joint in the picture has the person's surface at it."""
    people = render(renderer.body, Draws(32, renderer.generator(11)), renderer.size, 0.3)
    place = people.joints_px.round().long()
    inside = ((place >= 0) & (place < renderer.size)).all(-1)
    who, which = inside.nonzero().T
    x, y = place[who, which].T
    gap = people.joints_m[who, which, 2] - people.depth_m[who, y, x]
    on = torch.isfinite(gap)
    assert on.float().mean() > 0.97  # the crown may fall on the pixel beside
    assert (gap[on] > -0.06).float().mean() > 0.97  # the surface is in front of the joint
    limbs = on & torch.tensor([k in (2, 3, 5, 6, 12, 13, 15, 16) for k in which.tolist()])
    assert gap[limbs].median() < 0.12  # by no more than a limb's radius


def test_visible_joints_are_inside(crops, renderer):
    inside = ((crops.joints[..., :2] >= -0.5) & (crops.joints[..., :2] <= renderer.size - 0.5)).all(-1)
    assert (inside | ~crops.visible).all()
    assert 0.4 < crops.visible.float().mean() < 1


def test_boxes_enclose_the_joints(crops):
    x, y, width, height = (crops.boxes[:, None, k] for k in range(4))
    u, v = crops.joints[..., 0], crops.joints[..., 1]
    slack = 3
    assert ((u > x - slack) & (u < x + width + slack) & (v > y - slack) & (v < y + height + slack)).all()


def test_mirroring_twice_changes_nothing_and_agrees_with_the_joint_set(crops):
    images, joints = mirror(crops.images, crops.joints)
    np.testing.assert_array_equal(images.numpy(), crops.images.numpy()[:, :, ::-1])
    expected = HUMAN36M.mirror(crops.joints.numpy(), crops.images.shape[2])
    np.testing.assert_allclose(joints.numpy(), expected, atol=1e-4)
    back = mirror(images, joints)
    assert torch.equal(back[0], crops.images) and torch.allclose(back[1], crops.joints, atol=1e-4)


@given(st.floats(-3.2, 3.2), st.floats(0.9, 1.5), st.floats(24, 40), st.floats(24, 40))
def test_what_lies_at_a_joint_turns_with_it(angle, zoom, x, y):
    rows, columns = torch.meshgrid(torch.arange(64.0), torch.arange(64.0), indexing="ij")
    spot = torch.exp(-((columns - x) ** 2 + (rows - y) ** 2) / 8)[None, ..., None].expand(1, 64, 64, 3)
    joints = torch.tensor([[[x, y, 123.0]]])
    image, moved = turn(spot, joints, torch.tensor([angle]), torch.tensor([zoom]))
    weight = image[0, ..., 0] / image[0, ..., 0].sum()
    assert torch.allclose(torch.stack([(weight * columns).sum(), (weight * rows).sum()]), moved[0, 0, :2], atol=0.1)
    assert moved[0, 0, 2] == 123


@given(st.floats(-3.2, 3.2), st.floats(0.5, 2.0))
@settings(max_examples=20, deadline=None)
def test_turning_back_brings_the_joints_back(crops, angle, zoom):
    angles, zooms = torch.full((16,), angle), torch.full((16,), zoom)
    images, joints = turn(crops.images.float(), crops.joints, angles, zooms)
    _, back = turn(images, joints, -angles, 1 / zooms)
    size = crops.images.shape[2]
    stayed = ((joints[..., :2] >= 0) & (joints[..., :2] < size) & in_picture(crops)).all(-1)
    assert stayed.any() and torch.allclose(back[stayed], crops.joints[stayed], atol=0.01)


def in_picture(crops):
    """[N, 18, 1] joints inside their crops."""
    return ((crops.joints[..., :2] >= 0) & (crops.joints[..., :2] < crops.images.shape[2])).all(-1, keepdim=True)


@pytest.mark.slow
def test_no_turn_brings_in_a_joint_that_was_outside(renderer):
    crops = renderer.batch(64, 1.0, renderer.generator(17))
    outside = ~in_picture(crops)[..., 0]
    _, joints = turn(crops.images.float(), crops.joints, torch.full((64,), 0.5), torch.full((64,), 0.7))
    assert outside.any() and (joints[outside][:, :2] < 0).all()


def test_no_turn_changes_nothing(crops):
    images, joints = turn(crops.images.float(), crops.joints, torch.zeros(16), torch.ones(16))
    inside = in_picture(crops)[..., 0]
    assert torch.allclose(images, crops.images.float(), atol=0.01)
    assert torch.allclose(joints[inside], crops.joints[inside], atol=1e-4)


def test_a_turned_picture_is_what_a_rolled_camera_sees(crops):
    """Turned about the middle of a crop, not its principal point: still a pinhole's picture, with the depths of before."""
    angle = 0.4
    _, joints = turn(crops.images.float(), crops.joints, torch.full((16,), angle), torch.ones(16))
    roll = torch.tensor([[math.cos(angle), -math.sin(angle)], [math.sin(angle), math.cos(angle)]])
    middle = (crops.images.shape[2] - 1) / 2
    rolled = torch.cat([crops.camera_mm[..., :2] @ roll.T, crops.camera_mm[..., 2:]], -1)
    center = (crops.intrinsics[:, 2:] - middle) @ roll.T + middle
    pixels = rolled[..., :2] / rolled[..., 2:] * crops.intrinsics[:, None, :2] + center[:, None]
    inside = in_picture(crops)[..., 0]
    assert torch.allclose(joints[inside][:, :2], pixels[inside], atol=0.05)
    assert torch.equal(joints[..., 2], crops.joints[..., 2])


@given(st.floats(0, 1), st.floats(0.4, 2.5))
@settings(max_examples=20, deadline=None)
def test_other_colours_keep_the_order_of_brightness(crops, left, gamma):
    images = crops.images[:4].float()
    changed = recolour(images, torch.full((4, 1, 1, 1), left), torch.full((4, 1, 1, 3), gamma))
    assert changed.min() >= 0 and changed.max() <= 255
    grey = recolour(images, torch.zeros(4, 1, 1, 1), torch.full((4, 1, 1, 3), gamma))
    assert torch.equal(grey[..., 0], grey[..., 2])
    assert (grey[..., 0].flatten()[images.mean(3).flatten().argsort()].diff() >= -1e-3).all()
    same = recolour(images, torch.ones(4, 1, 1, 1), torch.ones(4, 1, 1, 3))
    assert torch.allclose(same, images, atol=0.01)


@pytest.mark.slow
def test_hard_crops_hide_more_than_easy_ones(renderer):
    easy, hard = (renderer.batch(48, h, renderer.generator(2)).visible.float().mean() for h in (0.0, 1.0))
    assert easy > hard


def test_people_far_off_are_seen_from_above_in_few_pixels(renderer):
    near, far = (renderer.batch(16, 0.4, renderer.generator(13), far=share) for share in (0.0, 1.0))
    assert (far.camera_mm[:, 0, 2] > 8000).all()
    axis_m = (far.camera_mm[:, 17] - far.camera_mm[:, 0]).mean(0)
    assert axis_m[2] < 0  # the camera looks down: heads are nearer to it than hips
    detail = [(c.images.float().diff(dim=2).abs().mean() / c.images.float().std()).item() for c in (near, far)]
    assert detail[1] < detail[0]
    test_labels_agree_with_projection(far)


def test_bare_arms_and_legs_are_of_the_faces_skin(renderer):
    surface = renderer.body.surface
    dressed, bare = (dress_up(Draws(64, renderer.generator(15)), surface, 0.2, bare=share) for share in (0.0, 1.0))
    forearm = (surface.along_arm > 1.1) & (surface.along_arm < 1.7)
    shin = (surface.along_leg > 1.2) & (surface.along_leg < 1.8)
    for part in (forearm, shin):
        assert (bare.thickness_m[:, part] == 0).all() and (bare.folds[:, part] == 0).all()
        assert dressed.thickness_m[:, part].mean() > 0.003
    apart = (bare.colours[:, forearm].mean(1) - bare.colours[:, shin].mean(1)).abs().mean()
    assert apart < 0.2 * (dressed.colours[:, forearm].mean(1) - dressed.colours[:, shin].mean(1)).abs().mean()


@pytest.mark.slow
def test_things_stand_behind_people_and_hide_nobody(renderer):
    plain, full = (renderer.batch(16, 0.4, renderer.generator(16), clutter=share) for share in (0.0, 1.0))
    assert torch.equal(full.camera_mm, plain.camera_mm)
    assert torch.equal(full.visible, plain.visible)
    people = render(renderer.body, Draws(16, renderer.generator(18)), renderer.size, 0.4)
    plain, full = (background(Draws(16, renderer.generator(19)), people, renderer.size, 0.4, clutter=c) for c in (0.0, 1.0))
    edges = [picture.diff(dim=3).abs().gt(0.1).float().mean().item() for picture in (plain, full)]
    assert edges[1] > 1.5 * edges[0]


def test_coats_stand_off_the_body_and_leave_head_and_hands_alone(renderer):
    surface = renderer.body.surface
    bare, coated = (dress_up(Draws(32, renderer.generator(14)), surface, 0.5, coats=share) for share in (0.0, 1.0))
    chest = (surface.trunk > 0.4) & (surface.trunk < 0.9) & (surface.mean[:, 1] > 0) & (surface.along_arm < -5)
    assert coated.thickness_m[:, chest].mean() > bare.thickness_m[:, chest].mean() + 0.01
    assert coated.thickness_m[:, chest].max() < 0.1
    for part in ("hand", "lips", "eye"):
        assert torch.equal(coated.thickness_m[:, surface.parts[part]], bare.thickness_m[:, surface.parts[part]])
    some = dress_up(Draws(150, renderer.generator(15)), surface, 0.5, coats=0.3).thickness_m
    none = dress_up(Draws(150, renderer.generator(15)), surface, 0.5, coats=1e-9).thickness_m
    assert 0.2 < (some != none)[:, surface.trunk > 0.5].any(1).float().mean() < 0.4


def test_too_many_points_are_refused(renderer):
    from training.dataset import Renderer

    crowded = Renderer("cpu", 64, points=MAX_POINTS + 1)
    with pytest.raises(ValueError, match=str(MAX_POINTS)):
        crowded.batch(1, 0.5, crowded.generator(0))


def test_shares_agree_with_the_decoding_of_bins(renderer):
    joints = torch.rand(2, 18, 3, generator=torch.Generator().manual_seed(0)) * 200
    bins = encode_bins(joints.numpy(), Variant.XS) / Variant.XS.spec.heatmap_size
    np.testing.assert_allclose(losses.shares_from_joints(joints, 256), bins, atol=1e-6)
    np.testing.assert_allclose(losses.joints_from_shares(losses.shares_from_joints(joints, 256), 256), joints, atol=1e-3)
