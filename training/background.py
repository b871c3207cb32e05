"""Backgrounds: procedural rooms, streets and fields with a floor in true perspective, or real pictures (pictures.py)."""

from __future__ import annotations

from dataclasses import dataclass, replace

import torch
import torch.nn.functional as F  # noqa: N812
from torch import Tensor

from training.appearance import random_colour
from training.draws import Draws
from training.pictures import DETAIL_PX, Pictures, developed
from training.render import People

THINGS = 14
"""Largest number of boxes, bars and ellipses in a cluttered background: edges that do not belong to limbs."""


def pixel_grid(size: int, device: torch.device) -> tuple[Tensor, Tensor]:
    """Rows and columns [S, S], px."""
    line = torch.arange(size, dtype=torch.float32, device=device)
    return torch.meshgrid(line, line, indexing="ij")


def noise(draws: Draws, size: int, channels: int, coarsest: int, finest: int) -> Tensor:
    """[N, C, S, S] in 0..1: sums of smooth random fields with 2**coarsest to 2**finest cells across."""
    total = torch.zeros(draws.count, channels, size, size, device=draws.device)
    fall = draws.uniform(0.45, 0.95, 1, 1, 1)
    for level in range(coarsest, finest + 1):
        if 2**level <= size:
            field = draws.normal(1.0, channels, 2**level, 2**level)
            field = F.interpolate(field, size=(size, size), mode="bilinear", align_corners=False)
            total = torch.addcmul(total, field, fall ** (level - coarsest))
    return torch.sigmoid(total * draws.uniform(0.7, 1.8, 1, 1, 1))


def _colour(draws: Draws, difficulty: float, saturation: float = 0.9) -> Tensor:
    return random_colour(draws, difficulty, saturation, 0.25)[:, :, None, None]


def _blend(draws: Draws, amount: Tensor, difficulty: float, saturation: float) -> Tensor:
    """[N, 3, S, S] between two random colours by `amount` [N, 1, S, S]."""
    first = _colour(draws, difficulty, saturation)
    near = (first * draws.uniform(0.5, 1.5, 1, 1, 1)).clamp(0, 1)
    second = torch.where(draws.chance(0.6)[:, None, None, None], near, _colour(draws, difficulty, saturation))
    return torch.lerp(first, second, amount)


def _pattern(draws: Draws, across: Tensor, along: Tensor) -> Tensor:
    """[N, 1, S, S] in 0..1: tiles, planks, stripes or a chequerboard over coordinates [N, S, S] in m."""
    scale = draws.log_uniform(0.8, 8, 1, 1)
    u, v = across * scale, along * scale * draws.log_uniform(0.3, 1, 1, 1)
    kind = draws.uniform(0, 1, 1, 1)
    v = v + torch.where(kind < 0.5, 0.37 * u.floor(), 0.0)
    gap = draws.uniform(0.02, 0.12, 1, 1)
    joints = torch.maximum((u.frac().abs() < gap).float(), (v.frac().abs() < gap).float())
    board = ((u.floor() + v.floor()) % 2).abs()
    hashed = (torch.sin(u.floor() * 12.9898 + v.floor() * 78.233) * 43758.5453).frac().abs()
    stripes = (u.frac().abs() < 0.5).float()
    tiles = (0.75 * hashed + 0.25 * joints).clamp(0, 1)
    choice = torch.where(kind < 0.6, tiles, torch.where(kind < 0.75, board, torch.where(kind < 0.87, stripes, joints)))
    return choice[:, None]


def _cells(draws: Draws, size: int) -> Tensor:
    """[N, 1, S, S] in 0..1: cells around random points, with rings. Only for people who are never used in training."""
    rows, columns = pixel_grid(size, draws.device)
    centers = draws.uniform(-0.2 * size, 1.2 * size, 24, 2)
    distances = torch.hypot(columns - centers[..., :1, None], rows - centers[..., 1:, None])
    nearest, which = distances.min(1, keepdim=True)
    tone = draws.uniform(0, 1, 24).gather(1, which.flatten(1)).unflatten(1, which.shape[1:])
    return (0.7 * tone + 0.3 * torch.sin(nearest * draws.uniform(0.05, 0.5, 1, 1, 1)).square()).clamp(0, 1)


def _wall(draws: Draws, size: int, difficulty: float, never: bool) -> Tensor:
    rows, columns = pixel_grid(size, draws.device)
    if never:
        return _blend(draws, _cells(draws, size), difficulty, 0.8)
    metres = draws.uniform(1.5, 6, 1, 1) / size
    kind = draws.uniform(0, 1, 1, 1, 1)
    plain = (
        draws.uniform(-0.5, 0.5, 1, 1, 1) * (rows / size - 0.5)
        + draws.uniform(-0.3, 0.3, 1, 1, 1) * (columns / size - 0.5)
        + 0.3
    )
    amount = torch.where(kind < 0.35, plain, noise(draws, size, 1, 1, 4))
    amount = torch.where(kind > 1 - 0.4 * difficulty, _pattern(draws, columns * metres, rows * metres), amount)
    amount = torch.where((kind > 0.35) & (kind < 0.35 + 0.25 * difficulty), noise(draws, size, 1, 3, 7), amount)
    wall = _blend(draws, amount.clamp(0, 1), difficulty, 0.7)
    return wall + (noise(draws, size, 3, 1, 6) - 0.5) * draws.uniform(0, 0.05 + 0.25 * difficulty, 1, 1, 1)


@dataclass(frozen=True)
class _Ground:
    """The ground as a camera sees it: where each pixel's ray meets it, [N, S, S] m, and where it is visible, [N, 1, S, S]."""

    across_m: Tensor
    along_m: Tensor
    depth_m: Tensor
    shows: Tensor


def _ground(draws: Draws, people: People, size: int) -> _Ground:
    """The ground up to a wall or to the horizon, in random axes."""
    rows, columns = pixel_grid(size, draws.device)
    x = (columns - people.center[:, 0, None, None]) / people.focal[:, None, None]
    y = (rows - people.center[:, 1, None, None]) / people.focal[:, None, None]
    up = people.up[:, :, None, None]
    slope = up[:, 0] * x + up[:, 1] * y + up[:, 2]
    depth = people.ground_m[:, None, None] / slope.clamp_max(-1e-4)
    reach = people.joints_m[:, 0, 2, None, None] + draws.log_uniform(0.6, 40, 1, 1)
    shows = (slope < -1e-4) & (depth > 0) & (depth < reach) & draws.chance(0.8, 1, 1)
    angle = draws.uniform(0, 3.2, 1, 1)
    across, along = depth * x, depth
    across, along = across * angle.cos() + along * angle.sin(), along * angle.cos() - across * angle.sin()
    return _Ground(across, along, depth, shows[:, None].float())


def _floor(draws: Draws, ground: _Ground, difficulty: float) -> Tensor:
    """The ground's colours [N, 3, S, S]."""
    fade = (4 / ground.depth_m.clamp_min(0.5)).clamp(0, 1)[:, None]
    texture = _pattern(draws, ground.across_m, ground.along_m) * fade * (draws.chance(0.3 + 0.4 * difficulty, 1, 1, 1))
    grain = (noise(draws, fade.shape[-1], 1, 3, 7) - 0.5) * draws.uniform(0, 0.15 + 0.35 * difficulty, 1, 1, 1)
    return _blend(draws, (texture + 0.3).clamp(0, 1), difficulty, 0.55) * (1 + grain)


def add_shape(
    draws: Draws, picture: Tensor, probability: float, scale: float = 1.0, upright: float = 0.6
) -> tuple[Tensor, Tensor]:
    """Put a box, bar or ellipse over each picture [N, 3, S, S] with a probability; also returns its mask [N, 1, S, S]."""
    size = picture.shape[-1]
    rows, columns = pixel_grid(size, draws.device)
    center, half = draws.uniform(-0.1, 1.1, 2, 1, 1) * size, draws.log_uniform(0.02, 0.3, 2, 1, 1) * size * scale
    angle = draws.uniform(-1.6, 1.6, 1, 1) * draws.chance(1 - upright, 1, 1)
    dx, dy = columns - center[:, 0], rows - center[:, 1]
    u = (dx * angle.cos() + dy * angle.sin()) / half[:, 0]
    v = (dy * angle.cos() - dx * angle.sin()) / half[:, 1]
    inside = torch.where(draws.chance(0.65, 1, 1), torch.maximum(u.abs(), v.abs()), u * u + v * v) < 1
    mask = (inside & draws.chance(probability, 1, 1))[:, None].float()
    shading = 1 - 0.5 * draws.uniform(0, 1, 1, 1) * (u * draws.uniform(-1, 1, 1, 1) + 0.5).clamp(0, 1)
    colour = _colour(draws, 1.0, 0.8) * shading[:, None]
    window = picture.roll(1, 0).flip(3) * draws.uniform(0.5, 1.1, 1, 1, 1)  # looks like another picture
    colour = torch.where(draws.chance(0.3, 1, 1, 1), window, colour)
    return torch.lerp(picture, colour, mask), mask


def background(
    draws: Draws,
    people: People,
    size: int,
    difficulty: float,
    never: bool = False,
    pictures: Pictures | None = None,
    share: float = 0.0,
    clutter: float = 0.0,
) -> Tensor:
    """[N, 3, S, S] in 0..1: wall, floor and objects, or a real picture, with the people's shadows on the ground.

    With `pictures`, a share of the people stands in front of one of them; without, no random numbers are drawn for them. A
    share `clutter` has many more objects around.
    """
    if pictures is None:
        picture, level = _by_procedure(draws, people, size, difficulty, never)
    else:
        real = draws.chance(share)
        picture, level = torch.empty_like(people.rgb), torch.empty_like(people.alpha)
        if len(some := (~real).nonzero()[:, 0]):
            picture[some], level[some] = _by_procedure(draws.of(len(some)), people[some], size, difficulty, never)
        if len(some := real.nonzero()[:, 0]):
            picture[some], level[some] = _real(draws.of(len(some)), people[some], size, difficulty, pictures)
    if clutter and len(some := draws.chance(clutter).nonzero()[:, 0]):
        full, things = draws.of(len(some)), picture[some]
        many = full.uniform(0.2, 1.0, 1, 1)
        for _ in range(THINGS):
            things, thing = add_shape(full, things, many, 1.3)
            level[some] = level[some] * (1 - thing)
        picture[some] = things
    darkness = draws.uniform(0.15, 0.6, 1, 1, 1) * people.ground_shadow * (0.35 + 0.65 * level)
    return (picture * (1 - darkness)).clamp(0, 1)


def _by_procedure(draws: Draws, people: People, size: int, difficulty: float, never: bool) -> tuple[Tensor, Tensor]:
    """Pictures [N, 3, S, S] made of noise and shapes, and where the ground is visible in them, [N, 1, S, S]."""
    picture = _wall(draws, size, difficulty, never)
    for _ in range(round(4 * difficulty)):
        picture, _ = add_shape(draws, picture, 0.55)
    ground = _ground(draws, people, size)
    picture = torch.lerp(picture, _floor(draws, ground, difficulty), ground.shows)
    for _ in range(round(2 * difficulty)):
        picture, _ = add_shape(draws, picture, 0.35, 0.7)
    return picture, ground.shows


def _real(draws: Draws, people: People, size: int, difficulty: float, pictures: Pictures) -> tuple[Tensor, Tensor]:
    """Views [N, 3, S, S] of real pictures, some with a floor in front of them, and where the ground is visible,
    [N, 1, S, S]."""
    finer = max(1, DETAIL_PX // size)
    line = (torch.arange(size * finer, device=draws.device) + 0.5) / finer - 0.5
    rows, columns = torch.meshgrid(line, line, indexing="ij")
    view, level = torch.empty_like(people.rgb), torch.zeros_like(people.alpha)
    around = draws.chance(0.6)
    if len(some := around.nonzero()[:, 0]):
        focal, center, up = people.focal[some, None, None], people.center[some, :, None, None], people.up[some]
        rays = torch.stack([(columns - center[:, 0]) / focal, (rows - center[:, 1]) / focal], -1)
        seen = pictures.around(draws.of(len(some)), rays, up, people.light[some], size * finer)
        below = (rays @ up[:, None, :2, None])[..., 0] + up[:, None, None, 2] < 0
        view[some], level[some] = _coarser(seen, finer), _coarser(below[:, None].float(), finer)
    if len(some := (~around).nonzero()[:, 0]):
        view[some] = _coarser(pictures.across(draws.of(len(some)), size * finer), finer)
    view = developed(draws, view)
    if len(some := draws.chance(torch.where(around, 0.12, 0.6)).nonzero()[:, 0]):
        each = draws.of(len(some))
        ground = _ground(each, people[some], size)
        laid = pictures.floor(each, ground.across_m, ground.along_m)
        far = (ground.depth_m / 12).clamp(0, 1)[:, None]  # here the surface's pixels are too fine to be visible
        plain = laid.mean((2, 3), keepdim=True)
        laid = developed(each, torch.lerp(laid, plain, far.maximum(each.chance(0.25, 1, 1, 1).float())))
        view[some] = torch.lerp(view[some], laid, ground.shows)
        level[some] = level[some].maximum(ground.shows)
    view, thing = add_shape(draws, view, 0.3 * difficulty, 0.7)
    return view, level * (1 - thing)


def _coarser(picture: Tensor, times: int) -> Tensor:
    return F.avg_pool2d(picture, times) if times > 1 else picture


def in_its_light(draws: Draws, people: People, picture: Tensor) -> People:
    """The people as a camera sees them in the pictures [N, 3, S, S]: with some of the pictures' colour and brightness, in less
    gaudy clothes, with softer outlines."""
    colour = picture.mean((2, 3), keepdim=True).clamp_min(0.03)
    level = colour.mean(1, keepdim=True)
    tint = (colour / level) ** draws.uniform(0, 0.6, 1, 1, 1)
    gain = ((level / 0.42) ** draws.uniform(0, 0.6, 1, 1, 1)).clamp(0.45, 1.3)
    grey = people.rgb.mean(1, keepdim=True)
    muted = torch.lerp(grey, people.rgb, draws.uniform(0.65, 1.05, 1, 1, 1))
    softest = 2 * people.alpha - (people.alpha > 0.5).float()  # the mean of the mask around each pixel: see render
    alpha = torch.lerp(people.alpha, softest, draws.uniform(0, 1, 1, 1, 1))
    return replace(people, rgb=(muted * tint * gain).clamp(0, 1), alpha=alpha)
