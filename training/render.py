"""Renders people from points on skin and clothes with a pinhole camera, a z-buffer and light with cast shadows. Pure torch.

Camera axes: x right, y down, z forward, metres. Pixels: centres at whole numbers.
"""

from __future__ import annotations

from dataclasses import dataclass, fields

import torch
import torch.nn.functional as F  # noqa: N812
from torch import Tensor

from training import poses
from training.appearance import dress_up
from training.avatars import Avatars
from training.body import UP, Body, Surface, rotation, skin
from training.draws import Draws
from training.fabric import Fabric
from training.mocap import Mocap
from training.skirt import drape

DEPTH_STEPS = 32768
DEPTH_RANGE_M = 4.0
"""The z-buffer's depth: 15 bits over 4 m around the pelvis, packed above a point's 16-bit index."""

SKIRT_POINTS = 1 / 8
"""Points of a skirt for each point of the skin. This leaves holes in large skirts, so `closed` doubles it."""

MAX_POINTS = 58000
"""Largest number of points on the skin: with a skirt they must fit into 16 bits. With `closed` it is nine tenths of this."""

PASSING_SHARE = 0.5
"""Share of the people seen from far away who walk or stand, as people in front of such cameras mostly do."""

EMPTY = 2**31 - 1
SHADOW_CELLS = 96
SHADOW_EXTENT_M = 2.4

CAMERA_FROM_BODY = ((1.0, 0.0, 0.0), (0.0, 0.0, -1.0), (0.0, 1.0, 0.0))
_UPPER_BODY = (0, 8, 9, 10, 11, 12, 14, 15)


@dataclass(frozen=True)
class People:
    """One rendered person per picture, without a background.

    Attributes:
        rgb: [N, 3, S, S] in 0..1, also a little beyond the outline.
        alpha: [N, 1, S, S] in 0..1.
        depth_m: [N, S, S] depth of the surface; infinity outside it.
        ground_shadow: [N, 1, S, S] share of the light that the person blocks from the ground, 0..1.
        joints_m: [N, 18, 3] in camera space.
        joints_px: [N, 18, 2] in the picture.
        box: [N, 4] x, y, width, height of the whole person, px.
        focal: [N] focal length of the picture, px.
        center: [N, 2] its principal point, px.
        up: [N, 3] the world's up in camera axes.
        ground_m: [N] the ground: points with `up . point = ground_m`.
        light: [N, 3] toward the brightest light, in camera axes.
    """

    rgb: Tensor
    alpha: Tensor
    depth_m: Tensor
    ground_shadow: Tensor
    joints_m: Tensor
    joints_px: Tensor
    box: Tensor
    focal: Tensor
    center: Tensor
    up: Tensor
    ground_m: Tensor
    light: Tensor

    def __getitem__(self, index: Tensor | slice) -> People:
        """Some of the people."""
        return People(*(getattr(self, f.name)[index] for f in fields(self)))


@dataclass(frozen=True)
class Stand:
    """Positions of N people in scenes that have their own cameras.

    Attributes:
        turn: [N, 3, 3] camera-from-body rotations.
        foot_m: [N, 3] where their lowest point touches the ground, below the pelvis, in camera space.
        light: [N, 3] toward the brightest light, unit length, camera axes.
        angles: [N, A] their poses, rad; random by default.
    """

    turn: Tensor
    foot_m: Tensor
    light: Tensor
    angles: Tensor | None = None


def render(
    body: Body,
    draws: Draws,
    size: int,
    difficulty: float,
    never: bool = False,
    stand: Stand | None = None,
    closed: bool = False,
    wide: float = 0.0,
    far: Tensor | None = None,
    coats: float = 0.0,
    bare: float = 0.0,
    mocap: float = 0.0,
    captured: Mocap | None = None,
    cloth: float = 0.0,
    fabric: Fabric | None = None,
    modelled: float = 0.0,
    avatars: Avatars | None = None,
) -> People:
    """People of random shape, pose and looks in pictures of `size` px.

    Light and camera are also random, unless `stand` gives each person's position; the pictures are then just large enough for
    the whole person. With `closed`, skirts have enough points to leave no holes. `wide` is the share of the people who are
    moved far from their family's pose, `mocap` of those in a pose of `captured` (except people far away), `coats` of those who
    wear one, `bare` of those with bare arms and legs; a share `cloth` of the garments is made of `fabric`, and a share
    `modelled` of the people are `avatars`. Where `far` [N] is true, the camera is far away and above.
    """
    surface = body.surface
    limit = MAX_POINTS * 9 // 10 if closed else MAX_POINTS
    if len(surface.mean) > limit:
        raise ValueError(f"expected at most {limit} points on the body, received {len(surface.mean)}")
    rest, skeleton = body.shaped(body.sample_shapes(draws.count, draws.generator, held_out=never))
    angles = stand.angles if stand is not None else None
    passing = None
    if angles is None:
        passing = None if far is None else far & draws.chance(PASSING_SHARE)
        angles = poses.sample(draws, difficulty, never, wide, passing)
    orientations = poses.orient(angles)
    if mocap and captured is not None:
        moved = draws.chance(mocap) if passing is None else draws.chance(mocap) & ~passing
        orientations = torch.where(moved[:, None, None, None], captured.sample(draws), orientations)
    spacing_m = torch.full([draws.count], surface.spacing_m, device=draws.device)
    some, worn = torch.zeros(0, dtype=torch.long, device=draws.device), None
    if modelled and avatars is not None and len(some := draws.chance(modelled).nonzero()[:, 0]):
        worn, spacing_m[some] = avatars.sample(draws.of(len(some)), held_out=never)
        skeleton[some] = worn.skeleton
    motion, joints = poses.move_skeleton(orientations, skeleton)
    looks = dress_up(draws, surface, difficulty, coats, bare, cloth, fabric)
    rest = torch.addcmul(rest, surface.normals, looks.thickness_m[..., None])
    points, normals = skin(rest, F.normalize(surface.normals + looks.folds, dim=-1), surface.weights, motion)
    if worn is not None:
        points[some], normals[some] = worn.posed(motion[some])
        looks.colours[some] = worn.colours
    skirt = int(points.shape[1] * SKIRT_POINTS) * (2 if closed else 1)
    points, normals, colours = _dress(draws, surface, rest, joints, points, normals, looks.colours, difficulty, skirt, some)

    pelvis = joints[:, :1]
    if stand is None:
        turn, place = _camera(draws, difficulty, far)
    else:
        turn = stand.turn
        lowest = (points[:, : len(surface.mean) : 3] - pelvis)[..., 2].amin(1, keepdim=True)
        place = (stand.foot_m - turn @ torch.tensor(UP, device=draws.device) * lowest)[:, None]
    points = (points - pelvis) @ turn.mT + place
    joints = (joints - pelvis) @ turn.mT + place
    normals = normals @ turn.mT
    if worn is not None:  # hair is visible from both sides
        away = (normals[some, : len(surface.mean)] * points[some, : len(surface.mean)]).sum(-1) > 0
        normals[some, : len(surface.mean)] *= torch.where(worn.thin & away, -1.0, 1.0)[..., None]
    up = turn @ torch.tensor(UP, device=draws.device)
    ground = (points[:, : len(surface.mean) : 3] @ up[..., None]).amin((1, 2)) - draws.uniform(0, 0.3) * draws.chance(0.05)

    flat, flat_joints = (p[..., :2] / p[..., 2:].clamp_min(0.3) for p in (points, joints))
    focal, center, box = _frame(draws, flat, flat_joints, size, difficulty) if stand is None else _whole(flat, size)
    pixels = flat * focal[:, None, None] + center[:, None]
    packed = _z_buffer(points, normals, pixels, place[:, :, 2], size)
    packed = _fill(packed, spacing_m * focal / place[:, 0, 2])

    light = F.normalize(draws.normal(0.6, 3) + up * draws.uniform(0.4, 1.6, 1), dim=-1)
    light = torch.where((light * up).sum(-1, keepdim=True) > 0.15, light, up) if stand is None else stand.light
    lit = torch.where(draws.chance(0.7)[:, None], _lit(points, light), 1.0)
    covered = packed != EMPTY
    index = (packed & 0xFFFF).clamp_max(points.shape[1] - 1).long().flatten(1)
    seen = torch.cat([colours, normals, lit[..., None]], -1).gather(1, index[..., None].expand(-1, -1, 7))
    rgb = _shade(draws, seen, light, up, difficulty).mT.unflatten(2, (size, size))
    depth = place[:, 0, 2, None, None] + ((packed >> 16).float() / DEPTH_STEPS - 0.5) * DEPTH_RANGE_M
    rgb, alpha = _soften(rgb, covered)
    return People(
        rgb=rgb,
        alpha=alpha,
        depth_m=torch.where(covered, depth, torch.inf),
        ground_shadow=_ground_shadow(points[:, ::2], light, up, ground, focal, center, size),
        joints_m=joints,
        joints_px=flat_joints * focal[:, None, None] + center[:, None],
        box=torch.cat([box[0], box[1] - box[0]], -1) * focal[:, None] + F.pad(center, (0, 2)),
        focal=focal,
        center=center,
        up=up,
        ground_m=ground,
        light=light,
    )


def _dress(
    draws: Draws,
    surface: Surface,
    rest: Tensor,
    joints: Tensor,
    points: Tensor,
    normals: Tensor,
    colours: Tensor,
    difficulty: float,
    count: int,
    never: Tensor,
) -> tuple[Tensor, Tensor, Tensor]:
    """Points, normals and colours, with `count` added points of a skirt; without a skirt these repeat some of the skin's. The
    people `never` [M] wear none."""
    *skirt, worn = drape(draws, surface, rest, joints, count, difficulty)
    worn[never] = False
    every = points.shape[1] // count
    skin_too = (points, normals, colours)
    kept = (torch.where(worn[:, None, None], s, p[:, ::every][:, :count]) for s, p in zip(skirt, skin_too, strict=True))
    dressed = [torch.cat([p, s], 1) for p, s in zip(skin_too, kept, strict=True)]
    return dressed[0], dressed[1], dressed[2]


def _camera(draws: Draws, difficulty: float, far: Tensor | None) -> tuple[Tensor, Tensor]:
    """Camera-from-body rotations [N, 3, 3] and the position of the pelvis [N, 1, 3], m; cameras on poles where `far` [N]."""
    yaw = draws.uniform(0, 2 * torch.pi)
    pitch = (draws.normal(0.1 + 0.14 * difficulty) + 0.1).clamp(-0.5, 1.0)
    if far is not None:
        pitch = torch.where(far, draws.uniform(0.1, 0.8), pitch)
    roll = draws.normal(0.07 + 0.05 * difficulty) + draws.normal(0.6) * draws.chance(0.06 * difficulty)
    base = torch.tensor(CAMERA_FROM_BODY, device=draws.device)
    turn = rotation((0.0, 0.0, 1.0), roll) @ rotation((1.0, 0.0, 0.0), pitch) @ base @ rotation(UP, yaw)
    distance = draws.log_uniform(3.2 - 0.8 * difficulty, 9.0)
    if far is not None:
        distance = torch.where(far, draws.log_uniform(8.0, 30.0), distance)
    place = torch.stack([draws.normal(0.15) * distance, draws.normal(0.08) * distance, distance], -1)
    return turn, place[:, None]


def _frame(
    draws: Draws, flat: Tensor, joints: Tensor, size: int, difficulty: float
) -> tuple[Tensor, Tensor, tuple[Tensor, Tensor]]:
    """Focal lengths [N] and principal points [N, 2] (px) that place the person in the picture as a person's box does."""
    box = flat[:, ::5].amin(1), flat[:, ::5].amax(1)
    low, high = box
    upper = joints[:, list(_UPPER_BODY)]
    margin = (high - low).amax(1, keepdim=True) * 0.06
    cut = draws.chance(0.16 * max(0.0, difficulty - 0.25))[:, None]
    low = torch.where(cut, upper.amin(1) - margin, low)
    high = torch.where(cut, upper.amax(1) + margin, high)
    side = (high - low).amax(1) * 1.25 * draws.normal(0.07 + 0.06 * difficulty).clamp(-0.25, 0.3).exp()
    middle = (low + high) / 2 + draws.normal(0.03 + 0.015 * difficulty, 2) * side[:, None]
    focal = size / side
    return focal, (size - 1) / 2 - middle * focal[:, None], box


def _whole(flat: Tensor, size: int) -> tuple[Tensor, Tensor, tuple[Tensor, Tensor]]:
    """As `_frame`, for pictures that hold just the person and a small margin."""
    low, high = flat[:, ::2].amin(1), flat[:, ::2].amax(1)
    focal = size / ((high - low).amax(1) * 1.12)
    return focal, (size - 1) / 2 - (low + high) / 2 * focal[:, None], (low, high)


def _z_buffer(points: Tensor, normals: Tensor, pixels: Tensor, middle_m: Tensor, size: int) -> Tensor:
    """[N, S, S] int32: the nearest front-facing point of each pixel, its depth above its index; EMPTY if there is none."""
    steps = (((points[..., 2] - middle_m) / DEPTH_RANGE_M + 0.5).clamp(0, 0.9999) * DEPTH_STEPS).int()
    column, row = (pixels + 0.5).floor().long().unbind(-1)
    inside = (column >= 0) & (column < size) & (row >= 0) & (row < size) & (points[..., 2] > 0.3)
    inside &= (normals * points).sum(-1) < 0
    key = (steps << 16) | torch.arange(points.shape[1], device=points.device, dtype=torch.int32)
    target = torch.where(inside, row * size + column, size * size)
    buffer = torch.full((len(points), size * size + 1), EMPTY, dtype=torch.int32, device=points.device)
    buffer.scatter_reduce_(1, target, key, "amin", include_self=True)
    return buffer[:, :-1].unflatten(1, (size, size))


def _window_min(packed: Tensor, before: int, after: int) -> Tensor:
    """The nearest point among the pixels from `before` left and above to `after` right and below."""
    size = packed.shape[-1]
    padded = F.pad(packed, (before, after, before, after), value=EMPTY)
    rows = padded[:, :size]
    for k in range(1, before + after + 1):
        rows = torch.minimum(rows, padded[:, k : k + size])
    result = rows[..., :size]
    for k in range(1, before + after + 1):
        result = torch.minimum(result, rows[..., k : k + size])
    return result


def _fill(packed: Tensor, spacing_px: Tensor) -> Tensor:
    """Grow each point to the distance of its neighbours, then close the remaining gaps."""
    small, large = _window_min(packed, 1, 0), _window_min(packed, 1, 1)
    spacing = spacing_px[:, None, None]
    packed = torch.where(spacing > 1.1, large, small)
    if bool((spacing > 1.9).any()):
        packed = torch.where(spacing > 1.9, _window_min(large, 1, 0), packed)
    covered = (packed != EMPTY).float()
    grown = F.max_pool2d(covered, 5, 1, 2)
    gaps = (1 - F.max_pool2d(1 - grown, 5, 1, 2) > 0) & (covered == 0)
    packed = torch.where(gaps, _window_min(packed, 2, 2), packed)
    behind = int(0.04 / DEPTH_RANGE_M * DEPTH_STEPS) << 16
    for _ in range(2):  # a pixel in front of which most neighbours pass is a hole in them
        around, size = F.pad(packed, (1, 1, 1, 1), value=EMPTY), packed.shape[-1]
        others = [around[:, a : a + size, b : b + size] for a in range(3) for b in range(3) if (a, b) != (1, 1)]
        limit = packed - behind
        nearer = sum((other < limit).to(torch.int8) for other in others)
        packed = torch.where(nearer >= 5, _window_min(packed, 1, 1), packed)
    return packed


def _lit(points: Tensor, light: Tensor) -> Tensor:
    """[N, P] 1 where no part of the body is between a point and the light, by a depth map from the light's view."""
    helper = torch.where(light[:, :1].abs() < 0.8, torch.eye(3, device=points.device)[0], torch.eye(3, device=points.device)[1])
    across = F.normalize(torch.linalg.cross(light, helper), dim=-1)
    axes = torch.stack([across, torch.linalg.cross(light, across), light], -1)
    seen = (points - points.mean(1, keepdim=True)) @ axes
    cell = ((seen[..., :2] / SHADOW_EXTENT_M + 0.5) * SHADOW_CELLS).clamp(0, SHADOW_CELLS - 1).long()
    target = cell[..., 1] * SHADOW_CELLS + cell[..., 0]
    nearest = torch.full((len(points), SHADOW_CELLS**2), -torch.inf, device=points.device)
    nearest.scatter_reduce_(1, target, seen[..., 2], "amax", include_self=True)
    return (seen[..., 2] > nearest.gather(1, target) - 0.06).float()


def _shade(draws: Draws, seen: Tensor, light: Tensor, up: Tensor, difficulty: float) -> Tensor:
    """[N, S * S, 3] colours under one light, a weaker second one, the sky and ambient light."""
    colours, normals, lit = seen[..., :3], seen[..., 3:6], seen[..., 6:]
    second = F.normalize(draws.normal(1.0, 1, 3), dim=-1)
    tint = 1 + draws.normal(0.07, 1, 3)
    ambient = draws.uniform(0.55 - 0.2 * difficulty, 0.85, 1, 1)
    direct = (normals @ light[..., None]).clamp_min(0) * lit
    brightness = ambient * (0.8 + 0.2 * (normals @ up[..., None]))
    brightness = brightness + draws.uniform(0.3, 0.9, 1, 1) * direct * tint
    brightness = brightness + draws.uniform(0, 0.25, 1, 1) * (normals * second).sum(-1, keepdim=True).clamp_min(0)
    return (colours * brightness * (0.78 + 0.22 * (-normals[..., 2:]).clamp(0, 1))).clamp(0, 1)


def _soften(rgb: Tensor, covered: Tensor) -> tuple[Tensor, Tensor]:
    """Colours spread one pixel beyond the outline, and an anti-aliased outline."""
    mask = covered[:, None].float()
    near = F.avg_pool2d(mask, 3, 1, 1)
    spread = F.avg_pool2d(rgb * mask, 3, 1, 1) / near.clamp_min(1e-3)
    return torch.where(mask > 0, rgb, spread), 0.5 * mask + 0.5 * near


def _ground_shadow(
    points: Tensor, light: Tensor, up: Tensor, ground: Tensor, focal: Tensor, center: Tensor, size: int
) -> Tensor:
    """[N, 1, S, S] the shadow of the person on the ground, blurred, 0..1."""
    height = points @ up[..., None] - ground[:, None, None]
    fallen = points - light[:, None] * (height / (light * up).sum(-1).clamp_min(0.15)[:, None, None])
    pixels = fallen[..., :2] / fallen[..., 2:].clamp_min(0.3) * focal[:, None, None] + center[:, None]
    cells = size // 2
    column, row = (pixels / 2).floor().long().unbind(-1)
    inside = (column >= 0) & (column < cells) & (row >= 0) & (row < cells) & (fallen[..., 2] > 0.3)
    target = torch.where(inside, row * cells + column, cells * cells)
    shadow = torch.zeros(len(points), cells * cells + 1, device=points.device)
    shadow.scatter_(1, target, 1.0)
    shadow = shadow[:, None, :-1].unflatten(2, (cells, cells))
    shadow = F.avg_pool2d(F.max_pool2d(shadow, 3, 1, 1), 5, 1, 2)
    return F.interpolate(shadow, size=(size, size), mode="bilinear", align_corners=False)
