"""Poses of motion capture: orientations of the body's segments, from any skeleton that rests in a T-pose.

Lengths are those of the rendered body. Directions of the limbs and rotations are taken from the capture, so that twists are
also right. README.md describes the file.
"""

from __future__ import annotations

from pathlib import Path

import numpy as np
import torch
import torch.nn.functional as F  # noqa: N812
from torch import Tensor

from training.body import FORWARD, SEGMENT, SEGMENTS, UP, align, rotation
from training.draws import Draws
from training.files import described
from training.poses import mirror_orientations

COUNT = 20_000
"""Number of poses used. They are sorted by variety; each of the rest differs by under 36 mm from an earlier one."""

HAND, FOOT, HEAD = 1.3, 0.9, 1.3
"""Largest rotation of these relative to the forearm, the shank and the chest, rad: captures are least reliable there."""

CURL = 0.3
"""How far fingers are bent, rad; the capture does not have this."""

BODY_FROM_CAPTURE = ((1.0, 0.0, 0.0), (0.0, 0.0, -1.0), (0.0, 1.0, 0.0))
"""From x to the left, y up, z forward."""

_SIDED = ("Collar", "Shldr", "ForeArm", "Hand", "Buttock", "Thigh", "Shin", "Foot")
NAMES = {"hip", "abdomen", "chest", "neck", "head", *(side + part for side in "rl" for part in _SIDED)}
"""The joints that the file must have, in any order."""


class Mocap:
    """The poses on a device.

    Attributes:
        orientations: [P, 24, 3, 3] as from `poses.orient`, facing forward.
    """

    def __init__(self, path: Path, device: torch.device | str = "cpu") -> None:
        """Read the first poses of a file.

        Raises:
            SourceError: it is missing or not what README.md describes.
        """
        with described(path):
            with np.load(path, allow_pickle=False) as data:
                names, parents = data["names"].tolist(), data["parents"].tolist()
                turns = torch.from_numpy(data["rotvec"][:COUNT].astype(np.float32) / 32767 * np.float32(np.pi))
                offsets = torch.from_numpy(data["offsets"].astype(np.float32))
                yaw = torch.from_numpy(data["yaw"][:COUNT].astype(np.float32) / 32767 * np.float32(np.pi))
            if set(names) != NAMES or turns.shape[1:] != (len(NAMES), 3) or not 0 < len(turns) == len(yaw):
                raise ValueError(f"poses {tuple(turns.shape)} of {names}")
            self.orientations = _orientations(names, parents, turns, offsets, yaw).to(device)

    def sample(self, draws: Draws) -> Tensor:
        """[N, 24, 3, 3] orientations of poses drawn at random, half of them mirrored."""
        drawn = self.orientations[draws.integers(len(self.orientations))]
        return torch.where(draws.chance(0.5, 1, 1, 1), mirror_orientations(drawn), drawn)


def _orientations(names: list[str], parents: list[int], turns: Tensor, offsets: Tensor, yaw: Tensor) -> Tensor:
    at = {name: index for index, name in enumerate(names)}
    basis = torch.tensor(BODY_FROM_CAPTURE)
    local = exponential(turns)
    whole: list[Tensor] = []
    for index, parent in enumerate(parents):
        whole.append(whole[parent] @ local[:, index] if parent >= 0 else rotation((0.0, 1.0, 0.0), -yaw) @ local[:, index])
    turned = {name: basis @ whole[index] @ basis.T for name, index in at.items()}  # from the T-pose, in the body's axes
    down = -torch.tensor(UP)

    def hanging(start: str, end: str) -> Tensor:
        """The rotation from a hanging limb to the T-pose."""
        assert parents[at[end]] == at[start]
        return align(down, F.normalize(basis @ offsets[at[end]], dim=0))

    spine = logarithm(turned["hip"].mT @ turned["chest"])
    nod = limited(turned["chest"].mT @ turned["head"], HEAD)
    result = {"pelvis": turned["hip"], "chest": turned["chest"]}
    result |= {name: turned["hip"] @ exponential(share * spine) for name, share in (("sp1", 0.35), ("sp2", 0.7))}
    result |= {name: turned["chest"] @ exponential(share * logarithm(nod)) for name, share in (("neck", 0.5), ("head", 1.0))}
    for side, sign in (("R", 1.0), ("L", -1.0)):
        arm, fore, hand, thigh, shin, foot = (
            f"{side.lower()}{part}" for part in ("Shldr", "ForeArm", "Hand", "Thigh", "Shin", "Foot")
        )
        result["clav" + side] = turned[f"{side.lower()}Collar"]
        result["uarm" + side] = turned[arm] @ hanging(arm, fore)
        result["larm" + side] = turned[fore] @ hanging(fore, hand)
        result["hand" + side] = turned[fore] @ limited(turned[fore].mT @ turned[hand], HAND) @ hanging(fore, hand)
        result["fing" + side] = result["hand" + side] @ rotation(FORWARD, torch.tensor(sign * CURL))
        result["thigh" + side] = turned[thigh] @ hanging(thigh, shin)
        result["shank" + side] = turned[shin] @ hanging(shin, foot)
        result["foot" + side] = result["toes" + side] = turned[shin] @ limited(turned[shin].mT @ turned[foot], FOOT)
    assert result.keys() == SEGMENT.keys()
    return torch.stack([result[name] for name in SEGMENTS], 1)


def exponential(vectors: Tensor) -> Tensor:
    """Rotations [..., 3, 3] about vectors [..., 3] by their lengths (rad). Source: Rodrigues' formula."""
    angle = vectors.norm(dim=-1)[..., None, None]
    x, y, z = vectors.unbind(-1)
    zero = torch.zeros_like(x)
    cross = torch.stack([zero, -z, y, z, zero, -x, -y, x, zero], -1).unflatten(-1, (3, 3))
    bend = (angle / (2 * torch.pi)).sinc()  # sin(a / 2) / (a / 2), without a division by 0
    return torch.eye(3) + (angle / torch.pi).sinc() * cross + 0.5 * bend.square() * (cross @ cross)


def logarithm(rotations: Tensor) -> Tensor:
    """The inverse of `exponential`, for angles under a half turn."""
    twice = rotations - rotations.mT
    axis = torch.stack([twice[..., 2, 1], twice[..., 0, 2], twice[..., 1, 0]], -1) / 2  # sin(a) times the unit axis
    sine, cosine = axis.norm(dim=-1), (rotations.diagonal(dim1=-2, dim2=-1).sum(-1) - 1) / 2
    angle = torch.atan2(sine, cosine)
    return axis / (angle / torch.pi).sinc().clamp_min(1e-4)[..., None]


def limited(rotations: Tensor, most: float) -> Tensor:
    """Rotations [..., 3, 3], reduced to at most the angle `most` (rad) about the same axis."""
    vectors = logarithm(rotations)
    return exponential(vectors * (most / vectors.norm(dim=-1, keepdim=True).clamp_min(1e-9)).clamp_max(1))
