"""The families of poses, written by hand: each draws the joint angles that matter to it (rad; `poses.ANGLES` names them).

Flexion is forward (knees: backward), abduction away from the body, twist inward. One-sided movements use the right side here:
`poses.sample` mirrors half of all people. No motion capture.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass

import torch
import torch.nn.functional as F  # noqa: N812
from torch import Tensor

from training.draws import Draws

Angles = dict[str, Tensor]

ARMS = (
    (0.38, (-0.2, 0.3), (0.03, 0.3), (-0.3, 0.5), (0.0, 0.5)),  # hanging
    (0.17, (-0.3, 1.0), (0.0, 0.5), (0.0, 1.2), (0.6, 2.3)),  # bent in front
    (0.11, (0.8, 3.0), (-0.2, 0.6), (-0.5, 0.5), (0.0, 0.7)),  # raised to the front or overhead
    (0.10, (-0.3, 0.3), (0.6, 2.8), (-0.6, 0.6), (0.0, 0.7)),  # raised to the side or overhead
    (0.08, (-0.3, 0.5), (0.6, 1.8), (-1.8, -0.9), (0.7, 2.3)),  # forearm up
    (0.09, (-0.6, 2.8), (-0.2, 1.7), (-1.2, 1.2), (0.0, 2.4)),  # anywhere
    (0.07, (-0.8, -0.1), (0.2, 0.8), (0.3, 1.2), (0.6, 1.9)),  # hands on hips or behind
)
"""Arms for families that do not set them: share, then ranges of flexion, abduction, twist and elbow."""


def _legs(draws: Draws, **ranges: tuple[float, float]) -> Angles:
    """The same ranges for both legs, drawn separately."""
    return {f"{s}.{name}": draws.uniform(*span) for name, span in ranges.items() for s in "RL"}


def _trunk(d: Draws, scale: float) -> Angles:
    """The trunk, turned and bent a little, for families that do not set it."""
    spread = {"root_lean": 0.05, "root_roll": 0.05, "spine_flex": 0.1, "spine_side": 0.08, "spine_twist": 0.15}
    spread |= {"neck_flex": 0.2, "neck_side": 0.12, "neck_twist": 0.3}
    return {name: d.normal(deviation * (1 + scale)) for name, deviation in spread.items()}


def _arms(d: Draws) -> Angles:
    """Both arms from `ARMS`; often alike."""
    first = d.choice([kind[0] for kind in ARMS])
    kinds = (first, torch.where(d.chance(0.35), first, d.choice([kind[0] for kind in ARMS])))
    table = torch.tensor([kind[1:] for kind in ARMS], device=d.device)
    same = d.chance(0.4)[:, None]
    at = d.uniform(0, 1, 4)
    result: Angles = {}
    for side, kind in zip("RL", kinds, strict=True):
        at = torch.where(same, at, d.uniform(0, 1, 4))
        low, high = table[kind].unbind(-1)
        values = low + (high - low) * at
        result |= {f"{side}.{name}": values[:, i] for i, name in enumerate(("arm_flex", "arm_abd", "arm_twist", "elbow"))}
    return result


def relaxed(d: Draws) -> Angles:
    """The pose of every person before the family changes it."""
    free = _legs(d, leg_abd=(0, 0.15), leg_twist=(-0.3, 0.1), knee=(0, 0.1), ankle=(-0.15, 0.15), foot_turn=(-0.2, 0.2))
    return {
        **_trunk(d, 0),
        **_arms(d),
        **free,
        **_legs(d, leg_flex=(-0.1, 0.1), wrist_flex=(-0.3, 0.5), wrist_side=(-0.2, 0.2)),
    }


def stand(d: Draws) -> Angles:
    slack = d.uniform(0, 0.35) * d.chance(0.45)
    return {
        **_legs(d, leg_flex=(-0.12, 0.15), leg_abd=(0, 0.2), leg_twist=(-0.35, 0.1)),
        "R.knee": slack,
        "R.leg_flex": 0.6 * slack + d.normal(0.06),
        "L.knee": d.uniform(0, 0.08),
        "spine_flex": d.uniform(-0.1, 0.2),
    }


def gait(d: Draws) -> Angles:
    """Walking and running, 0.4 to 6 m/s, at any phase; arms swing against the legs, elbows bend with the speed."""
    phase, speed = d.uniform(0, 2 * math.pi), d.uniform(0, 1) ** 1.4
    swing = (0.22 + 0.42 * speed) * d.uniform(0.8, 1.25)
    arm_swing, elbow = swing * d.uniform(0.5, 1.3), 0.15 + 1.35 * speed * d.uniform(0.7, 1.1)

    def leg(side: str, p: Tensor) -> Angles:
        knee = 0.08 + 0.12 * speed + (0.8 + 0.95 * speed) * F.relu(torch.cos(p + 0.5)) ** 1.3
        toe_off = -(0.3 + 0.3 * speed) * F.relu(-torch.sin(p)) ** 2 + 0.1
        return {
            f"{side}.leg_flex": swing * torch.sin(p) + 0.06 + 0.18 * speed,
            f"{side}.knee": knee,
            f"{side}.ankle": toe_off,
            f"{side}.arm_flex": -arm_swing * torch.sin(p),
            f"{side}.elbow": elbow - 0.25 * torch.sin(p).clamp(0, 1),
        }

    both = {**leg("R", phase), **leg("L", phase + math.pi), **_legs(d, leg_abd=(-0.05, 0.1), arm_abd=(0.03, 0.25))}
    both |= _legs(d, arm_twist=(-0.1, 0.45), leg_twist=(-0.2, 0.1))
    busy, arms = d.chance(0.25), _arms(d)  # carrying, phoning, pointing
    both |= {name: torch.where(busy, value, both.get(name, value)) for name, value in arms.items()}
    twist = 0.12 * torch.sin(phase) * (1 + speed)
    return {
        **both,
        "root_lean": 0.03 + 0.22 * speed + d.normal(0.04),
        "spine_twist": twist,
        "neck_twist": -twist + d.normal(0.2),
    }


def reach(d: Draws) -> Angles:
    lean = d.uniform(0, 0.5)
    return {
        **stand(d),
        "R.arm_flex": d.uniform(0.7, 3.0),
        "R.arm_abd": d.uniform(-0.2, 0.6),
        "R.elbow": d.uniform(0, 0.6),
        "R.arm_twist": d.uniform(-0.5, 0.5),
        "root_lean": lean,
        "R.leg_flex": lean + d.normal(0.1),
        "L.leg_flex": lean + d.normal(0.1),
        "spine_flex": d.uniform(-0.1, 0.5),
        "spine_twist": d.uniform(-0.1, 0.5),
    }


def wave(d: Draws) -> Angles:
    return {
        **stand(d),
        "R.arm_flex": d.uniform(-0.3, 0.6),
        "R.arm_abd": d.uniform(0.7, 2.0),
        "R.arm_twist": d.uniform(-1.8, -0.9),
        "R.elbow": d.uniform(0.5, 2.2),
        "R.wrist_flex": d.uniform(-0.5, 0.5),
    }


def squat(d: Draws) -> Angles:
    depth = d.uniform(0.4, 2.1)
    shared = {f"{s}.leg_flex": depth + d.normal(0.08) for s in "RL"} | {f"{s}.knee": depth * 1.1 + d.normal(0.1) for s in "RL"}
    return {
        **shared,
        **_legs(d, leg_abd=(0.05, 0.6), leg_twist=(-0.6, 0), ankle=(0, 0.4)),
        "root_lean": depth * d.uniform(0.05, 0.35),
        "spine_flex": depth * d.uniform(0, 0.3),
    }


def lunge(d: Draws) -> Angles:
    return {
        **_legs(d, leg_abd=(0, 0.2), leg_twist=(-0.3, 0.1)),
        "R.leg_flex": d.uniform(0.5, 1.6),
        "R.knee": d.uniform(0.4, 1.7),
        "L.leg_flex": d.uniform(-0.5, 0.1),
        "L.knee": d.uniform(0.05, 1.6),
        "L.ankle": d.uniform(-0.3, 0.3),
        "root_lean": d.uniform(-0.05, 0.45),
        "spine_flex": d.uniform(-0.1, 0.3),
    }


def sit(d: Draws) -> Angles:
    """On a chair."""
    return {
        **_legs(d, leg_flex=(1.2, 1.75), leg_abd=(-0.1, 0.45), leg_twist=(-0.5, 0.2), knee=(0.5, 2.1)),
        "root_lean": d.uniform(-0.3, 0.25),
        "spine_flex": d.uniform(-0.1, 0.5),
    }


def sit_on_floor(d: Draws) -> Angles:
    """Legs stretched, drawn up, or crossed."""
    crossed = d.chance(0.4)
    legs: Angles = {}
    for s in "RL":
        legs[f"{s}.knee"] = torch.where(crossed, d.uniform(1.9, 2.4), d.uniform(0, 2.2))
        legs[f"{s}.leg_flex"] = torch.where(crossed, d.uniform(1.5, 1.9), 1.45 + 0.3 * legs[f"{s}.knee"])
        legs[f"{s}.leg_abd"] = torch.where(crossed, d.uniform(0.7, 1.1), d.uniform(0, 0.5))
        legs[f"{s}.leg_twist"] = torch.where(crossed, d.uniform(-0.8, -0.4), d.uniform(-0.3, 0.1))
    return {**legs, "root_lean": d.uniform(-0.45, 0.3), "spine_flex": d.uniform(0, 0.7)}


def kneel(d: Draws) -> Angles:
    """On one knee or on both."""
    one = d.chance(0.45)
    return {
        **_legs(d, leg_abd=(0, 0.3), leg_twist=(-0.2, 0.1), ankle=(-0.8, -0.2)),
        "R.leg_flex": torch.where(one, d.uniform(1.2, 1.8), d.uniform(-0.1, 0.6)),
        "R.knee": d.uniform(1.3, 2.3),
        "L.leg_flex": d.uniform(-0.1, 0.5),
        "L.knee": d.uniform(1.3, 2.3),
        "R.ankle": torch.where(one, 0.1, -0.5),
        "root_lean": d.uniform(-0.1, 0.4),
        "spine_flex": d.uniform(-0.1, 0.4),
    }


def crawl(d: Draws) -> Angles:
    swing = d.uniform(-0.45, 0.45)
    return {
        **_legs(
            d, leg_abd=(0, 0.25), knee=(1.2, 1.9), arm_abd=(0, 0.3), elbow=(0, 0.5), wrist_flex=(-1.2, -0.6), ankle=(-0.8, 0)
        ),
        "R.leg_flex": 1.45 + swing,
        "L.leg_flex": 1.45 - swing,
        "R.arm_flex": 1.5 - swing,
        "L.arm_flex": 1.5 + swing,
        "root_lean": d.uniform(1.15, 1.6),
        "spine_flex": d.uniform(-0.2, 0.3),
        "neck_flex": d.uniform(-0.9, 0.2),
    }


def lie(d: Draws) -> Angles:
    """On the back, the front or a side."""
    where = d.integers(3)
    side = where == 2
    lean = torch.where(where == 0, -1.0, 1.0) * d.uniform(1.35, 1.75)
    curl = d.uniform(0, 1) ** 2 * (where != 1)
    legs = {f"{s}.leg_flex": curl * d.uniform(0.5, 2) + d.normal(0.08) for s in "RL"}
    legs |= {f"{s}.knee": curl * d.uniform(0.3, 2.2) + d.uniform(0, 0.3) for s in "RL"}
    return {
        **legs,
        **_legs(d, leg_abd=(-0.1, 0.4), leg_twist=(-0.6, 0.1), ankle=(-0.7, 0)),
        "root_lean": torch.where(side, d.normal(0.2), lean),
        "root_roll": torch.where(side, d.sign() * 1.5, d.normal(0.15)),
    }


def kick(d: Draws) -> Angles:
    sideways = d.chance(0.35)
    return {
        **_legs(d, leg_twist=(-0.4, 0.1)),
        "R.leg_flex": torch.where(sideways, d.normal(0.2), d.uniform(0.4, 2.0)),
        "R.leg_abd": torch.where(sideways, d.uniform(0.4, 1.2), d.uniform(0, 0.3)),
        "R.knee": d.uniform(0, 1) ** 1.5 * 1.9,
        "L.leg_flex": d.normal(0.1),
        "L.leg_abd": d.uniform(0, 0.15),
        "L.knee": d.uniform(0, 0.4),
        "R.ankle": d.uniform(-0.7, 0.2),
        "root_lean": d.normal(0.18) - 0.08,
    }


def punch(d: Draws) -> Angles:
    return {
        **_legs(d, leg_abd=(0.05, 0.3), knee=(0.05, 0.5)),
        "R.leg_flex": d.uniform(-0.4, 0.1),
        "L.leg_flex": d.uniform(0.1, 0.6),
        "R.arm_flex": d.uniform(1.1, 1.8),
        "R.arm_abd": d.uniform(-0.3, 0.4),
        "R.elbow": d.uniform(0, 0.7),
        "R.arm_twist": d.uniform(0, 1.2),
        "L.arm_flex": d.uniform(0.4, 1.2),
        "L.arm_abd": d.uniform(-0.1, 0.4),
        "L.elbow": d.uniform(1.6, 2.5),
        "L.arm_twist": d.uniform(0, 0.8),
        "spine_twist": d.uniform(0.1, 0.7),
        "root_lean": d.uniform(0, 0.3),
    }


def throw(d: Draws) -> Angles:
    """From the wind-up behind the head to the follow-through."""
    t = d.uniform(0, 1)
    return {
        "R.leg_flex": 0.3 - 0.6 * t + d.normal(0.15),
        "L.leg_flex": -0.2 + 0.9 * t + d.normal(0.15),
        **_legs(d, knee=(0.05, 0.7)),
        "R.arm_abd": 1.5 - 0.8 * t + d.normal(0.2),
        "R.arm_flex": 2.2 * t + d.normal(0.2),
        "R.arm_twist": -1.6 + 2 * t,
        "R.elbow": 1.7 - 1.5 * t + d.uniform(0, 0.5),
        "L.arm_flex": 1.3 - 1.2 * t + d.normal(0.3),
        "L.arm_abd": d.uniform(0, 0.9),
        "spine_twist": -0.6 + 1.3 * t,
        "root_lean": -0.15 + 0.5 * t,
        "spine_flex": -0.2 + 0.6 * t,
    }


def dance(d: Draws) -> Angles:
    beat = d.uniform(0, 2 * math.pi)
    arms = _legs(d, arm_flex=(-0.5, 2.6), arm_abd=(0, 2.3), arm_twist=(-1.4, 1), elbow=(0, 2.2), wrist_flex=(-0.9, 0.9))
    return {
        **arms,
        **_legs(d, leg_abd=(0, 0.5), leg_twist=(-0.7, 0.4), knee=(0, 0.9)),
        "R.leg_flex": 0.4 * torch.sin(beat) + 0.3,
        "L.leg_flex": -0.4 * torch.sin(beat) + 0.2,
        "spine_side": 0.4 * torch.cos(beat),
        "spine_twist": 0.5 * torch.sin(beat),
        "root_roll": -0.2 * torch.cos(beat),
        "neck_side": d.normal(0.25),
    }


def bend(d: Draws) -> Angles:
    """Picking something up."""
    lean = d.uniform(0.2, 1.2)
    legs = {f"{s}.leg_flex": lean + d.normal(0.1) for s in "RL"}
    return {
        **legs,
        **_legs(d, leg_abd=(0, 0.25), knee=(0, 0.7), arm_flex=(0.2, 1.9), arm_abd=(-0.1, 0.4), elbow=(0, 0.7)),
        "root_lean": lean,
        "spine_flex": d.uniform(0.2, 1.1),
    }


def jump(d: Draws) -> Angles:
    tuck = d.uniform(0, 1)
    return {
        **_legs(d, leg_abd=(0, 0.7), ankle=(-0.8, -0.1), arm_flex=(-0.3, 3.0), arm_abd=(0.1, 1.2)),
        "R.leg_flex": tuck * 1.6 + d.normal(0.3),
        "L.leg_flex": tuck * 1.3 + d.normal(0.3),
        "R.knee": tuck * 1.9 + d.uniform(0, 0.5),
        "L.knee": tuck * 1.7 + d.uniform(0, 0.6),
        "spine_flex": d.uniform(-0.4, 0.4),
    }


def anything(d: Draws) -> Angles:
    """Limbs in any position that a joint reaches with ease."""
    arms = _legs(d, arm_flex=(-0.8, 2.9), arm_abd=(-0.2, 2.6), arm_twist=(-1.6, 1.3), elbow=(0, 2.4), wrist_flex=(-1, 1))
    legs = _legs(d, leg_flex=(-0.5, 2), leg_abd=(-0.2, 1), leg_twist=(-0.7, 0.6), knee=(0, 2.3), ankle=(-0.7, 0.4))
    return {**arms, **legs, **_trunk(d, 1.0)}


def climb(d: Draws) -> Angles:
    return {
        **_legs(d, leg_abd=(0.2, 0.8), leg_twist=(-0.7, 0), arm_abd=(0, 0.7)),
        "R.leg_flex": d.uniform(1.2, 2.1),
        "R.knee": d.uniform(1.2, 2.2),
        "L.leg_flex": d.uniform(0, 0.4),
        "L.knee": d.uniform(0, 0.5),
        "L.arm_flex": d.uniform(2.3, 3.1),
        "L.elbow": d.uniform(0, 0.8),
        "R.arm_flex": d.uniform(1.4, 2.2),
        "R.elbow": d.uniform(0.8, 2),
        "neck_flex": d.uniform(-0.8, 0),
    }


def stretch(d: Draws) -> Angles:
    return {
        **_legs(d, leg_abd=(0.2, 0.7), knee=(0, 0.15)),
        "spine_side": d.uniform(0.3, 0.6),
        "root_roll": d.uniform(0.1, 0.3),
        "L.arm_abd": d.uniform(2.3, 3.0),
        "L.arm_flex": d.normal(0.1),
        "L.elbow": d.uniform(0, 0.5),
        "R.arm_abd": d.uniform(0, 0.4),
        "R.arm_flex": d.uniform(-0.2, 0.3),
        "R.elbow": d.uniform(0, 1.4),
    }


def balance(d: Draws) -> Angles:
    """On one leg, the other behind and the trunk tipped forward."""
    tip = d.uniform(0.5, 1.4)
    return {
        "root_lean": tip,
        "L.leg_flex": tip + d.normal(0.08),
        "L.knee": d.uniform(0, 0.2),
        "R.leg_flex": d.uniform(-0.4, 0.2),
        "R.knee": d.uniform(0, 0.5),
        "R.ankle": d.uniform(-0.8, -0.2),
        **_legs(d, arm_abd=(0.8, 1.8), elbow=(0, 0.4)),
        **_legs(d, arm_flex=(-0.4, 0.9)),
        "neck_flex": d.uniform(-0.9, -0.1),
        "spine_flex": d.uniform(-0.4, 0.1),
    }


@dataclass(frozen=True)
class Family:
    """A family of poses and its share of the people: at difficulty 0, at difficulty 1, and in the never-trained set."""

    draw: Callable[[Draws], Angles]
    easy: float = 0.0
    hard: float = 0.0
    never: float = 0.0


FAMILIES = (
    Family(stand, 0.26, 0.12), Family(gait, 0.22, 0.17), Family(reach, 0.07, 0.07), Family(wave, 0.07, 0.04),
    Family(squat, 0.06, 0.07), Family(lunge, 0.05, 0.06), Family(sit, 0.07, 0.08), Family(sit_on_floor, 0.01, 0.04),
    Family(kneel, 0.02, 0.04), Family(crawl, 0.0, 0.02), Family(lie, 0.0, 0.03), Family(kick, 0.04, 0.05),
    Family(punch, 0.03, 0.04), Family(throw, 0.02, 0.03), Family(dance, 0.02, 0.05), Family(bend, 0.02, 0.03),
    Family(jump, 0.02, 0.03), Family(anything, 0.02, 0.08),
    Family(climb, never=0.34), Family(stretch, never=0.33), Family(balance, never=0.33),
)  # fmt: skip
