"""Procedural poses: joint angles within the joint limits, and the skeleton that they move.

A pose is a vector of angles (rad) named by `ANGLES`. Each family of `families.py` draws its angles; `sample` adds a little
noise to each, mirrors half of them and clamps all to `LIMITS`. `orient` converts angles to orientations of the body's
segments, which motion capture (`mocap.py`) provides directly, and `move_skeleton` applies these to any body.
"""

from __future__ import annotations

import math

import torch
from torch import Tensor

from training.body import FORWARD, PARENTS, RIGHT, SEGMENT, SEGMENTS, UP, align, rotation
from training.draws import Draws
from training.families import FAMILIES, gait, relaxed, stand

TRUNK = ("root_lean", "root_roll", "spine_flex", "spine_side", "spine_twist", "neck_flex", "neck_side", "neck_twist")
LIMB = ("arm_flex", "arm_abd", "arm_twist", "elbow", "wrist_flex", "wrist_side",
        "leg_flex", "leg_abd", "leg_twist", "knee", "ankle", "foot_turn")  # fmt: skip
ANGLES = TRUNK + tuple(f"{side}.{name}" for side in "RL" for name in LIMB)
INDEX = {name: i for i, name in enumerate(ANGLES)}

RANGE_OF_MOTION = {
    "spine_flex": (-0.5, 1.3), "spine_side": (-0.6, 0.6), "spine_twist": (-0.8, 0.8),
    "neck_flex": (-0.9, 0.8), "neck_side": (-0.7, 0.7), "neck_twist": (-1.3, 1.3),
    "arm_flex": (-1.0, 3.1), "arm_abd": (-0.4, 3.0), "arm_twist": (-1.8, 1.4), "elbow": (0.0, 2.55),
    "wrist_flex": (-1.2, 1.3), "wrist_side": (-0.4, 0.5),
    "leg_flex": (-0.55, 2.2), "leg_abd": (-0.4, 1.2), "leg_twist": (-0.8, 0.7), "knee": (0.0, 2.5),
    "ankle": (-0.85, 0.45), "foot_turn": (-0.4, 0.4),
}  # fmt: skip
"""Joint limits, rad: the usual clinical ranges of healthy adults (shoulder 180/60 degrees, elbow 150, hip 120/30, knee 140,
ankle 50/20), rounded up where sport goes further."""

LIMITS = torch.tensor([RANGE_OF_MOTION.get(n.split(".")[-1], (-math.pi, math.pi)) for n in ANGLES])

_SWAPPED = [n.replace("R.", "l.").replace("L.", "R.").replace("l.", "L.") for n in ANGLES]
_MIRROR_ORDER = [INDEX[n] for n in _SWAPPED]
_MIRRORED_SEGMENTS = [SEGMENT[n[:-1] + {"R": "L", "L": "R"}[n[-1]] if n[-1] in "RL" else n] for n in SEGMENTS]
_MIRROR_SIGN = [-1.0 if n.endswith(("_roll", "spine_side", "spine_twist", "neck_side", "neck_twist")) else 1.0 for n in ANGLES]


WIDE_LIMB, WIDE_SPINE, WIDE_ROOT = 0.3, 0.25, 0.6
"""Standard deviations, rad, of the angles that move people far from their family's pose."""


PASSING_FAMILIES = {gait: 0.6, stand: 0.4}
"""Poses of people who just pass by, and their shares."""


def sample(draws: Draws, difficulty: float, never: bool = False, wide: float = 0.0, passing: Tensor | None = None) -> Tensor:
    """[N, A] poses, rad, from the families by their shares at this difficulty (0..1), or from the held-out ones.

    A share `wide` of them is moved far from its family, over the full ranges of motion: with the families alone trunks stay
    upright, and a network trained only on these fails when a person tips over. The people in `passing` [N] walk or stand.
    """
    shares = [f.never if never else (1 - difficulty) * f.easy + difficulty * f.hard for f in FAMILIES]
    chosen = draws.choice(shares)
    if passing is not None:
        chosen = torch.where(passing, draws.choice([PASSING_FAMILIES.get(f.draw, 0.0) for f in FAMILIES]), chosen)
    angles = torch.empty(draws.count, len(ANGLES), device=draws.device)
    for number, family in enumerate(FAMILIES):
        members = (chosen == number).nonzero()[:, 0]
        if len(members):
            some = draws.of(len(members))
            drawn = relaxed(some) | family.draw(some)
            angles[members] = torch.stack([drawn[name].expand(len(members)) for name in ANGLES], 1)
    angles = angles + draws.normal(0.04 + 0.04 * difficulty, len(ANGLES))
    if wide:
        spread = [WIDE_ROOT if "root" in n else WIDE_SPINE if n in TRUNK else WIDE_LIMB for n in ANGLES]
        far = draws.normal(torch.tensor(spread, device=draws.device), len(ANGLES)) * draws.uniform(0.3, 1.4, 1)
        moved = draws.chance(wide) if passing is None else draws.chance(wide) & ~passing
        angles = angles + far * moved[:, None]
    angles = torch.where(draws.chance(0.5)[:, None], mirror(angles), angles)
    limits = LIMITS.to(draws.device)
    return angles.clamp(limits[:, 0], limits[:, 1])


def mirror(angles: Tensor) -> Tensor:
    """The pose [..., A] of the mirrored person."""
    return angles[..., _MIRROR_ORDER] * torch.tensor(_MIRROR_SIGN, device=angles.device)


_ALONG = {f"{segment}{side}": (f"{start}{side}", f"{end}{side}") for side in "RL" for segment, start, end in (
    ("uarm", "uarm", "larm"), ("larm", "larm", "hand"), ("hand", "larm", "hand"), ("fing", "larm", "hand"),
    ("thigh", "thigh", "shank"), ("shank", "shank", "foot"),
)}  # fmt: skip
"""The segments of limbs, each with two segments whose heads are the ends of a bone that hangs straight down at orientation
1."""


def orient(angles: Tensor) -> Tensor:
    """[N, 24, 3, 3] orientations of the segments for angles [N, A] (rad), relative to standing upright with the limbs hanging
    straight down."""

    def angle(name: str) -> Tensor:
        return angles[:, INDEX[name]]

    def trunk(part: str, share: float) -> Tensor:
        turn = rotation(UP, share * angle(f"{part}_twist"))
        return rotation(RIGHT, -share * angle(f"{part}_flex")) @ rotation(FORWARD, share * angle(f"{part}_side")) @ turn

    turns: dict[str, Tensor] = {}
    root = rotation(RIGHT, -angle("root_lean")) @ rotation(FORWARD, angle("root_roll"))
    turns["pelvis"] = root
    turns |= {name: root @ trunk("spine", share) for name, share in (("sp1", 0.35), ("sp2", 0.7), ("chest", 1.0))}
    chest = turns["chest"]
    turns |= {"neck": chest @ trunk("neck", 0.5), "head": chest @ trunk("neck", 1.0)}
    for side, sign in (("R", 1.0), ("L", -1.0)):

        def limb(kind: str, base: Tensor, side: str = side, sign: float = sign) -> Tensor:
            out = rotation(FORWARD, -sign * angle(f"{side}.{kind}_abd"))
            return (
                base @ out @ rotation(RIGHT, angle(f"{side}.{kind}_flex")) @ rotation(UP, sign * angle(f"{side}.{kind}_twist"))
            )

        lift = torch.maximum(angle(f"{side}.arm_flex"), angle(f"{side}.arm_abd")).clamp_min(0)
        turns["clav" + side] = chest @ rotation(FORWARD, -sign * 0.15 * lift)
        upper = limb("arm", chest)
        lower = upper @ rotation(RIGHT, angle(f"{side}.elbow"))
        turns["uarm" + side], turns["larm" + side] = upper, lower
        wrist = rotation(FORWARD, sign * angle(f"{side}.wrist_flex")) @ rotation(RIGHT, angle(f"{side}.wrist_side"))
        turns["hand" + side] = lower @ wrist
        curl = rotation(FORWARD, sign * (0.2 + 0.5 * angle(f"{side}.wrist_flex").abs()))
        turns["fing" + side] = lower @ wrist @ curl
        upper = limb("leg", root)
        lower = upper @ rotation(RIGHT, -angle(f"{side}.knee"))
        turns["thigh" + side], turns["shank" + side] = upper, lower
        foot = rotation(RIGHT, angle(f"{side}.ankle")) @ rotation(UP, sign * angle(f"{side}.foot_turn"))
        turns["foot" + side] = turns["toes" + side] = lower @ foot

    return torch.stack([turns[name] for name in SEGMENTS], 1)


def mirror_orientations(orientations: Tensor) -> Tensor:
    """The orientations [N, 24, 3, 3] of the mirrored person."""
    across = torch.tensor([-1.0, 1.0, 1.0], device=orientations.device)
    return orientations[:, _MIRRORED_SEGMENTS] * across[:, None] * across


def move_skeleton(orientations: Tensor, rest: Tensor) -> tuple[Tensor, Tensor]:
    """Forward kinematics.

    Args:
        orientations: [N, 24, 3, 3] as from `orient`.
        rest: [N, 26, 3] the skeleton at rest as from `Body.shaped`, m.

    Returns:
        Each segment's rigid motion from rest [N, 24, 3, 4], and the 18 Human3.6M joints [N, 18, 3], m.
    """
    down = -torch.tensor(UP, device=rest.device).expand(len(rest), 3)
    bones = {b: torch.nn.functional.normalize(rest[:, SEGMENT[b[1]]] - rest[:, SEGMENT[b[0]]], dim=-1) for b in _ALONG.values()}
    hang = {bone: align(direction, down) for bone, direction in bones.items()}
    every = [orientations[:, k] @ hang[_ALONG[n]] if n in _ALONG else orientations[:, k] for n, k in SEGMENT.items()]
    turned = torch.stack(every, 1)
    places: list[Tensor] = []
    for index, parent in enumerate(PARENTS):
        if index == 0:
            places.append(torch.zeros_like(down))
        else:
            places.append(places[parent] + _turn(turned[:, parent], rest[:, index] - rest[:, parent]))
    heads = torch.stack(places, 1)
    shift = heads - _turn(turned, rest[:, : len(SEGMENTS)])
    skull = SEGMENT["head"]
    nose, crown = (heads[:, skull] + _turn(turned[:, skull], rest[:, len(SEGMENTS) + k] - rest[:, skull]) for k in (0, 1))
    at = {name: heads[:, i] for name, i in SEGMENT.items()}
    hips, shoulders = (at["thighR"] + at["thighL"]) / 2, (at["uarmR"] + at["uarmL"]) / 2
    legs = [at[name + side] for side in "RL" for name in ("thigh", "shank", "foot")]
    arms = [at[name + side] for side in "LR" for name in ("uarm", "larm", "hand")]
    joints = torch.stack([hips, *legs, at["sp2"], at["neck"], nose, crown, *arms, shoulders], 1)
    return torch.cat([turned, shift[..., None]], -1), joints


def _turn(rotations: Tensor, vectors: Tensor) -> Tensor:
    return (rotations @ vectors[..., None])[..., 0]
