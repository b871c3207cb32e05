"""Skirts, dresses and coats: a tube of points around both legs, because points of the skin cannot represent it."""

from __future__ import annotations

import torch
import torch.nn.functional as F  # noqa: N812
from torch import Tensor

from training.appearance import random_colour
from training.body import Surface
from training.draws import Draws

SHARE = 0.12
"""Share of people who wear one."""

_WAIST = 0.35
"""How far it begins above the hips, in the unit of `along`: thigh lengths."""


def drape(
    draws: Draws, surface: Surface, rest: Tensor, joints: Tensor, count: int, difficulty: float
) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """A skirt for each person.

    Args:
        draws: random numbers for the people.
        surface: where the points of `rest` are on the body.
        rest: [N, P, 3] the clothed surface at rest, m.
        joints: [N, 18, 3] the posed joints in body axes, m.
        count: points of a skirt.
        difficulty: 0..1.

    Returns:
        Points, unit normals, colours [N, count, 3], and whether each person wears it [N].
    """
    step = (torch.arange(count, device=draws.device) + 0.5) / count
    around = (torch.arange(count, device=draws.device) * 0.6180339887) % 1 * 2 * torch.pi  # golden ratio: an even spiral
    hem = draws.uniform(0.45, 1.9, 1)
    along = -_WAIST + (hem + _WAIST) * step  # [N, count] 0 hip, 1 knee, 2 ankle
    hips = (surface.trunk.abs() < 0.12) & (surface.along_arm < -5)
    wide = rest[:, hips, 0].abs().amax(1, keepdim=True) - (joints[:, 1] - joints[:, 4]).norm(dim=-1, keepdim=True) / 2
    deep = (rest[:, hips, 1].amax(1, keepdim=True) - rest[:, hips, 1].amin(1, keepdim=True)) / 2
    loose = draws.uniform(0.0, 0.12, 1) * along.clamp_min(0) + draws.uniform(0.005, 0.02, 1)

    right, down = _leg(joints[:, 1:4], joints[:, 7], along)
    left, other_down = _leg(joints[:, 4:7], joints[:, 7], along)
    across = right - left
    sideways = F.normalize(across, dim=-1)
    ahead = F.normalize(torch.linalg.cross(down + other_down, across), dim=-1)
    folds = 1 + draws.uniform(0, 0.12, 1) * along.clamp_min(0) * torch.sin(
        around * draws.integers(9, 1) + draws.uniform(0, 6, 1)
    )
    half_width = (across.norm(dim=-1) / 2 + wide.clamp_min(0.04) + loose) * folds
    half_depth = (deep + loose) * folds
    cosine, sine = around.cos()[:, None], around.sin()[:, None]
    points = (right + left) / 2 + half_width[..., None] * cosine * sideways + half_depth[..., None] * sine * ahead
    normals = F.normalize(cosine * sideways / half_width[..., None] + sine * ahead / half_depth[..., None], dim=-1)
    stripes = torch.sin(along * draws.uniform(2, 60, 1)) * draws.uniform(0, 0.3, 1) * draws.chance(0.4, 1)
    colours = random_colour(draws, difficulty)[:, None] * (folds.square() * (1 + stripes))[..., None]
    trunk = F.normalize(joints[:, :1] - joints[:, 7:8], dim=-1)
    hanging = (F.normalize(joints[:, [2, 5]] - joints[:, [1, 4]], dim=-1) * trunk).sum(-1).amin(1) > 0.1
    return points, normals, colours.clamp(0, 1), draws.chance(SHARE) & hanging  # otherwise a seat would fold it


def _leg(leg: Tensor, torso: Tensor, along: Tensor) -> tuple[Tensor, Tensor]:
    """Points on a leg's axis (hip, knee, ankle: [N, 3, 3]), extended upward toward the torso, and its direction there."""
    hip, knee, ankle = leg[:, None].unbind(2)
    up = F.normalize(torso[:, None] - hip, dim=-1) * (knee - hip).norm(dim=-1, keepdim=True)
    t = along[..., None]
    place = hip + torch.where(t < 0, -t * up, t.clamp(0, 1) * (knee - hip) + (t - 1).clamp_min(0) * (ankle - knee))
    return place, torch.where(t < 0, -up, torch.where(t < 1, knee - hip, ankle - knee))
