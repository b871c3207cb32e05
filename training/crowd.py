"""Renders clips of several people who cross, are hidden, leave and come back, with everybody's true box in every frame.

    python -m training.crowd FOLDER [--only NAME...]      # writes NAME.mp4 and NAME.json for each clip

Each person is rendered once for some phases of a walk and four headings (clip.py), and placed in the frames along the person's
path, scaled by the distance, farthest first. People and background are held out from training.
"""

from __future__ import annotations

import argparse
import json
import math
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from functools import lru_cache
from pathlib import Path

import av
import cv2
import numpy as np
import torch
from numpy.typing import NDArray

from training.clip import FOCAL_PX, HEIGHT, SCRIPTS, WIDTH, Moment, Scene, walking
from training.poses import ANGLES

RATE = 10
PHASES = 8
"""Rendered phases of a walk; one more shows the person standing."""

STEPS_HZ = 0.9
RENDERED_M = (0.0, -1.0)
"""Where a person is rendered: right and away from the middle of the scene, m."""

VISIBLE = 0.25
"""A person counts as present if this share of the box is in the picture and not hidden by others."""

Picture = NDArray[np.uint8]


@dataclass(frozen=True)
class Actor:
    """A person in a clip.

    Attributes:
        person: determines body and clothes.
        path: points (time s, right m, away m), joined by straight lines; absent before the first and after the last.
    """

    person: int
    path: tuple[tuple[float, float, float], ...]

    def place(self, time_s: float) -> tuple[float, float] | None:
        """Where the person is at a time, m, or None."""
        times, right, away = zip(*self.path, strict=True)
        if not times[0] <= time_s <= times[-1]:
            return None
        return float(np.interp(time_s, times, right)), float(np.interp(time_s, times, away))

    def looks(self, time_s: float) -> tuple[int, int | None]:
        """The heading of the person, degrees (0 toward the camera, 90 to the right), and the phase of the walk, or None."""
        before, after = self.place(max(self.path[0][0], time_s - 0.05)), self.place(min(self.path[-1][0], time_s + 0.05))
        assert before is not None
        assert after is not None
        right, away = after[0] - before[0], after[1] - before[1]
        if math.hypot(right, away) < 0.01:
            return 0, None
        phase = round(time_s * STEPS_HZ * PHASES + 3 * self.person) % PHASES
        if abs(right) >= abs(away):
            return (90 if right > 0 else -90), phase
        return (180 if away > 0 else 0), phase


@dataclass(frozen=True)
class Clip:
    """A clip.

    Attributes:
        seconds: duration.
        actors: the people, numbered in this order.
        pillar: right m, away m and width m of an object that hides people, or None.
    """

    seconds: float
    actors: tuple[Actor, ...]
    pillar: tuple[float, float, float] | None = None


def _passers(count: int, seconds: float, seed: int) -> tuple[Actor, ...]:
    """People who walk through the scene at random."""
    draw = np.random.default_rng(seed)
    actors = []
    for person in range(count):
        side, away, begin = int(draw.choice((-1, 1))), draw.uniform(-0.5, 4.0), draw.uniform(0, seconds / 2)
        reach = (away + 4.4) * 0.62
        takes = 2 * reach / draw.uniform(0.9, 1.6)
        half_way, across = begin + takes * draw.uniform(0.4, 0.6), draw.uniform(-1, 1)
        then = float(np.clip(away + draw.uniform(-0.8, 0.8), -0.7, 4.2))
        leaves = int(draw.choice((-1, 1)))
        path = ((begin, side * reach, away), (half_way, across, then), (begin + takes, leaves * reach, then))
        actors.append(Actor(person, path))
    return tuple(actors)


CLIPS = {
    "pair": Clip(8, (Actor(0, ((0, -1.9, 0.0), (8, 3.4, 0.0))), Actor(1, ((0, 2.6, 0.9), (8, -4.0, 0.9))))),
    "meet": Clip(  # two walk up to each other, stand, and walk back; a third passes behind
        10,
        (
            Actor(2, ((0, -1.8, 0.2), (3, -0.35, 0.2), (5, -0.35, 0.2), (8, -1.9, 0.2), (10, -1.9, 0.2))),
            Actor(3, ((0, 2.0, 0.2), (3, 0.35, 0.2), (5, 0.35, 0.2), (9, 2.4, 0.2), (10, 2.4, 0.2))),
            Actor(4, ((1, 4.5, 2.2), (9, -5.0, 2.2))),
        ),
    ),
    "pillar": Clip(
        9,
        (
            Actor(5, ((0, -2.6, 0.6), (7, 4.0, 0.6))),
            Actor(6, ((0, 2.8, 1.4), (8, -4.6, 1.4))),
            Actor(7, ((1, -4.5, 2.6), (9, 4.5, 2.6))),
        ),
        pillar=(0.1, -0.2, 0.55),
    ),
    "return": Clip(  # out of the picture and back, twice
        12,
        (
            Actor(8, ((0, 0.5, 0.0), (2.0, 3.1, 0.0), (2.6, 3.1, 0.0), (5.0, 0.5, 0.0), (9, -1.8, 0.0), (12, -1.8, 0.0))),
            Actor(9, ((0, -1.2, 1.5), (12, 1.4, 1.5))),
            Actor(10, ((3, 5.0, 3.2), (12, -5.0, 2.6))),
        ),
    ),
    "six": Clip(10, _passers(6, 10, 3)),
    "twelve": Clip(12, _passers(12, 12, 5)),
}


@dataclass(frozen=True)
class Sprite:
    """A rendered person.

    Attributes:
        layer: [h, w, 4] float32: colours (BGR) times alpha, and alpha.
        feet: [2] where the person stands in it, px.
        depth_m: distance from the camera.
    """

    layer: NDArray[np.float32]
    feet: NDArray[np.float64]
    depth_m: float


class Cast:
    """Renders each person once for each phase and heading."""

    def __init__(self) -> None:
        self._scene = Scene(replace(SCRIPTS["yard"], pan=0.0))
        self.camera = self._scene.camera(0.5)
        view, _ = self._scene.behind(self.camera)
        self.background = view[0].permute(1, 2, 0).numpy()[..., ::-1].copy()
        self.sprite = lru_cache(maxsize=None)(self._sprite)

    def project(self, right_m: float, away_m: float) -> tuple[NDArray[np.float64], float]:
        """The position in the picture of a point on the ground, px, and its distance from the camera, m."""
        x, y, z = (self.camera @ (torch.tensor([right_m, away_m, 0.0]) - torch.tensor(self._scene.script.camera_m))).tolist()
        return np.array([FOCAL_PX * x / z + (WIDTH - 1) / 2, FOCAL_PX * y / z + (HEIGHT - 1) / 2]), z

    def _sprite(self, person: int, heading: int, phase: int | None) -> Sprite:
        angles = {"L.arm_abd": 0.12, "R.arm_abd": 0.12} if phase is None else walking(2 * math.pi * phase / PHASES)
        moment = Moment(torch.tensor([angles.get(name, 0.0) for name in ANGLES]), math.radians(heading), RENDERED_M)
        scene = self._scene
        scene.script = replace(scene.script, seed=100 + person)
        layer = scene.layer(moment, scene.camera(0.5), scene.behind(scene.camera(0.5))[0])[0][..., [2, 1, 0, 3]]
        rows, columns = (np.nonzero((layer[..., 3] > 0.02).any(axis))[0] for axis in (1, 0))
        feet, depth_m = self.project(*RENDERED_M)
        corner = np.array([columns[0], rows[0]])
        return Sprite(layer[rows[0] : rows[-1] + 1, columns[0] : columns[-1] + 1].copy(), feet - corner, depth_m)


def shoot(clip: Clip, cast: Cast) -> Iterator[tuple[Picture, list[dict[str, object]]]]:
    """Each frame [H, W, 3] uint8 BGR, and the people in it: id, box x, y, width, height (px), and the visible share."""
    for number in range(round(clip.seconds * RATE)):
        time_s = number / RATE
        layers: list[tuple[float, int, NDArray[np.float32]]] = []
        whole: dict[int, float] = {}  # pixels of each whole person, inside the picture or not
        for who, actor in enumerate(clip.actors):
            place = actor.place(time_s)
            if place is None:
                continue
            sprite = cast.sprite(actor.person, *actor.looks(time_s))
            feet, depth_m = cast.project(*place)
            layers.append((depth_m, who, _placed(sprite, feet, depth_m)))
            whole[who] = float((sprite.layer[..., 3] > 0.5).sum()) * (sprite.depth_m / depth_m) ** 2
        if clip.pillar is not None:
            right, away, wide = clip.pillar
            foot, depth_m = cast.project(right, away)
            half = FOCAL_PX * wide / depth_m / 2
            pillar = np.zeros((HEIGHT, WIDTH, 4), np.float32)
            pillar[: round(foot[1]), round(foot[0] - half) : round(foot[0] + half)] = (0.28, 0.32, 0.35, 1.0)
            layers.append((depth_m, -1, pillar))
        picture, truth = cast.background.copy(), []
        covered = np.zeros((HEIGHT, WIDTH), np.float32)
        for _, who, layer in sorted(layers, key=lambda entry: entry[0]):  # nearest first: the people behind are less visible
            mask = layer[..., 3] > 0.5
            if who >= 0 and mask.any():
                rows, columns = (np.nonzero(mask.any(axis))[0] for axis in (1, 0))
                box = [columns[0] - 0.5, rows[0] - 0.5, columns[-1] - columns[0] + 1, rows[-1] - rows[0] + 1]
                shows = float((mask & (covered < 0.5)).sum()) / max(1.0, whole[who])
                truth.append({"id": who, "box": [float(v) for v in box], "shows": round(min(1.0, shows), 3)})
            covered = np.maximum(covered, layer[..., 3])
        for _, _, layer in sorted(layers, key=lambda entry: -entry[0]):
            picture = picture * (1 - layer[..., 3:]) + layer[..., :3]
        grain = np.random.default_rng(number).normal(0, 1.2, (HEIGHT, WIDTH, 1))
        yield (picture * 255 + grain).clip(0, 255).astype(np.uint8), truth


def _placed(sprite: Sprite, feet: NDArray[np.float64], depth_m: float) -> NDArray[np.float32]:
    """A person's layer in the frame [H, W, 4]."""
    scale = sprite.depth_m / depth_m
    layer = sprite.layer
    if scale < 0.7:  # so that no pixel is left out
        layer = cv2.blur(layer, (2, 2))
    move = np.array([[scale, 0, feet[0] - scale * sprite.feet[0]], [0, scale, feet[1] - scale * sprite.feet[1]]])
    return np.asarray(cv2.warpAffine(layer, move, (WIDTH, HEIGHT), flags=cv2.INTER_LINEAR), np.float32)


def write(clip: Clip, cast: Cast, path: Path) -> None:
    """Write a clip, and its ground truth beside it as JSON."""
    frames = []
    with av.open(str(path), "w", options={"movflags": "faststart"}) as file:
        stream = file.add_stream("libx264", rate=RATE, options={"crf": "20", "preset": "medium"})
        stream.width, stream.height, stream.pix_fmt = WIDTH, HEIGHT, "yuv420p"
        for number, (picture, truth) in enumerate(shoot(clip, cast)):
            frames.append({"frame": number, "time_s": number / RATE, "people": truth})
            file.mux(stream.encode(av.VideoFrame.from_ndarray(picture, format="bgr24")))
        file.mux(stream.encode())
    facts = {"width": WIDTH, "height": HEIGHT, "fps": RATE, "fx": FOCAL_PX, "visible_from": VISIBLE, "frames": frames}
    path.with_suffix(".json").write_text(json.dumps(facts, separators=(",", ":")) + "\n", encoding="utf-8")


def main(arguments: Sequence[str] | None = None) -> None:
    """Read the command line."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("folder", type=Path)
    parser.add_argument("--only", nargs="+", choices=CLIPS, default=list(CLIPS))
    options = parser.parse_args(arguments)
    options.folder.mkdir(parents=True, exist_ok=True)
    cast = Cast()
    for name in options.only:
        write(CLIPS[name], cast, options.folder / f"{name}.mp4")
        print(f"{name}: {len(CLIPS[name].actors)} people, {CLIPS[name].seconds:g} s", flush=True)


if __name__ == "__main__":
    main()
