"""Renders a video clip of one person with the true pose of every frame, on which a whole run is evaluated.

    python -m training.clip FILE.mp4 [--script yard]      # writes FILE.mp4 and FILE.json

A script is a list of acts: the person walks, or moves smoothly through poses of a family (families.py). Person and background
are held out from training. The ground truth is written in the format that `benchmarks/accuracy.py` reads.
"""

from __future__ import annotations

import argparse
import json
import math
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path

import av
import cv2
import numpy as np
import torch
import torch.nn.functional as F  # noqa: N812
from numpy.typing import NDArray
from torch import Tensor

from convnextpose.skeleton import HUMAN36M
from training import families
from training.background import in_its_light
from training.body import UP, Body, rotation
from training.dataset import seeded
from training.draws import Draws
from training.pictures import Pictures
from training.poses import ANGLES, LIMITS
from training.render import CAMERA_FROM_BODY, MAX_POINTS, People, Stand, render

WIDTH, HEIGHT, RATE = 640, 480, 25
LAYER_PX = 512
"""Side of the picture that the person is rendered in before it is placed in the frame."""

STEPS_HZ, SPEED_M_S = 0.9, 1.25
"""Walking: double steps a second, and walking speed."""

NOTE = (
    "box = [x, y, width, height] px of the silhouette; camera axes: x right, y down, z forward, mm; "
    "px with pixel centres at whole numbers"
)


@dataclass(frozen=True)
class Act:
    """What the person does for some time.

    Attributes:
        family: draws the poses; None means walking.
        seconds: duration.
        heading: where the person looks at its end, degrees; 0 toward the camera, 90 to the right in the picture.
        poses: number of poses of the family.
    """

    family: Callable[[Draws], families.Angles] | None
    seconds: float
    heading: float
    poses: int = 1


@dataclass(frozen=True)
class Script:
    """A clip.

    Attributes:
        seed: determines the person and the poses.
        acts: in this order.
        start_m: where the person starts: right and away from the middle of the scene.
        picture: the panorama in the background.
        facing: the direction in it that the camera faces, degrees.
        pan: how far the camera turns to the right in the whole clip, degrees.
        camera_m: the camera's position: right, away and up, m.
        down: how far it looks down, degrees.
    """

    seed: int
    acts: tuple[Act, ...]
    start_m: tuple[float, float]
    picture: str
    facing: float
    pan: float
    camera_m: tuple[float, float, float] = (0.0, -4.4, 1.45)
    down: float = 7.0


SCRIPTS = {
    "yard": Script(
        seed=15,
        acts=(
            Act(None, 2.2, 80),
            Act(families.stand, 0.5, 20),
            Act(families.reach, 1.3, -10, poses=2),
            Act(families.wave, 1.4, 0, poses=4),
            Act(families.squat, 1.1, -60),
            Act(families.sit_on_floor, 1.3, -30),
            Act(families.stand, 0.8, -90),
            Act(None, 1.4, -95),
        ),
        start_m=(-2.1, 0.4),
        picture="panorama-blender-courtyard",
        facing=-135,
        pan=3,
    ),
}

FOCAL_PX = 600.0
"""The camera's focal length."""

WIDER = 1.6
"""The panorama is shown as through a lens wider by this factor, because it has few pixels."""


def walking(phase: float) -> dict[str, float]:
    """Angles (rad) of a walk at a phase (rad)."""
    angles = {"root_lean": 0.05, "spine_twist": 0.12 * math.sin(phase), "neck_twist": -0.12 * math.sin(phase)}
    for side, p in (("R", phase), ("L", phase + math.pi)):
        angles |= {
            f"{side}.leg_flex": 0.42 * math.sin(p) + 0.08,
            f"{side}.knee": 0.1 + 0.85 * max(0.0, math.cos(p + 0.5)) ** 1.3,
            f"{side}.ankle": 0.1 - 0.35 * max(0.0, -math.sin(p)) ** 2,
            f"{side}.arm_flex": -0.38 * math.sin(p),
            f"{side}.arm_abd": 0.12,
            f"{side}.elbow": 0.35 - 0.15 * math.sin(p),
        }
    return angles


def _vector(angles: dict[str, float]) -> Tensor:
    return torch.tensor([angles.get(name, 0.0) for name in ANGLES])


@dataclass(frozen=True)
class Moment:
    """The person at one time: angles [A] (rad), heading (rad, 0 toward the camera), position on the ground (m, right and
    away)."""

    angles: Tensor
    heading: float
    place_m: tuple[float, float]


def motion(script: Script) -> Iterator[Moment]:
    """The person in every frame: moves smoothly from pose to pose, and forward when walking."""
    draws = Draws(1, seeded(torch.device("cpu"), script.seed, 1))
    keys: list[tuple[float, Tensor | None, float]] = [(0.0, None, script.acts[0].heading)]
    end = 0.0
    for act in script.acts:
        first: Tensor | None = None
        for number in range(1, act.poses + 1):
            drawn = families.relaxed(draws) | act.family(draws) if act.family else {}
            pose = _vector({name: float(angle) for name, angle in drawn.items()}) if drawn else None
            if first is not None and pose is not None:
                pose = torch.lerp(first, pose, 0.4)  # another pose, but similar to the first
            first = pose if first is None else first
            keys.append((end + act.seconds * number / act.poses, pose, act.heading))
        end += act.seconds
    x, y = script.start_m
    key = 0
    for frame in range(round(end * RATE)):
        time_s = frame / RATE
        while key + 2 < len(keys) and keys[key + 1][0] <= time_s:
            key += 1
        (begin, before, turned), (until, after, turning) = keys[key], keys[key + 1]
        share = (time_s - begin) / (until - begin)
        eased = share * share * (3 - 2 * share)
        heading = math.radians(turned + (turning - turned) * eased)
        stride = _vector(walking(2 * math.pi * STEPS_HZ * time_s))
        angles = torch.lerp(stride if before is None else before, stride if after is None else after, eased)
        walks = (before is None) * (1 - eased) + (after is None) * eased
        yield Moment(angles.clamp(LIMITS[:, 0], LIMITS[:, 1]), heading, (x, y))
        x += math.sin(heading) * SPEED_M_S * walks / RATE
        y -= math.cos(heading) * SPEED_M_S * walks / RATE


class Scene:
    """A script's camera, background and person."""

    def __init__(self, script: Script) -> None:
        self.script = script
        self.body = Body(MAX_POINTS * 9 // 10)
        self.album = Pictures(held_out=True)
        if script.picture not in self.album.names:
            known = ", ".join(name for name in self.album.names if name.startswith("panorama"))
            raise ValueError(f"expected a held-out panorama ({known}), received {script.picture}")
        self.which = torch.tensor([self.album.names.index(script.picture)])

    def camera(self, share: float) -> Tensor:
        """[3, 3] camera-from-world rotation after a share of the clip."""
        pan = torch.tensor(math.radians(self.script.pan * (share - 0.5)))
        down = torch.tensor(math.radians(self.script.down))
        return rotation((1.0, 0.0, 0.0), down) @ torch.tensor(CAMERA_FROM_BODY) @ rotation(UP, pan)

    def behind(self, camera: Tensor) -> tuple[Tensor, Tensor]:
        """The background [1, 3, H, W], and the mask of the ground [1, 1, H, W]."""
        rows, columns = torch.meshgrid(
            torch.arange(HEIGHT) - (HEIGHT - 1) / 2, torch.arange(WIDTH) - (WIDTH - 1) / 2, indexing="ij"
        )
        rays = torch.stack([columns * WIDER, rows * WIDER, torch.full_like(rows, FOCAL_PX)], -1) @ camera  # world axes
        azimuth = torch.atan2(rays[..., 0], rays[..., 1]) + math.radians(self.script.facing)
        height = torch.atan2(rays[..., 2], rays[..., :2].norm(dim=-1))
        return self.album.toward(self.which, azimuth[None], height[None]), (height < 0).float()[None, None]

    def light(self, camera: Tensor) -> Tensor:
        """[1, 3] toward the sun of the panorama, half-way up the sky, camera axes."""
        azimuth = float(self.album.sun[self.which]) - math.radians(self.script.facing)
        return F.normalize(torch.tensor([[math.sin(azimuth), math.cos(azimuth), 1.2]]), dim=-1) @ camera.T

    @torch.no_grad()
    def layer(self, moment: Moment, camera: Tensor, view: Tensor) -> tuple[NDArray[np.float32], Tensor]:
        """The person's layer in the frame [H, W, 5], as from `_laid`, and the joints [J, 3], m, camera axes."""
        place = camera @ (torch.tensor([*moment.place_m, 0.0]) - torch.tensor(self.script.camera_m))
        turn = camera @ rotation(UP, torch.tensor(moment.heading))
        stand = Stand(turn[None], place[None], self.light(camera), moment.angles[None])
        generator = seeded(torch.device("cpu"), self.script.seed, 2)  # for each frame, so that the person stays the same
        people = render(self.body, Draws(1, generator), LAYER_PX, 0.4, never=True, stand=stand, closed=True)
        people = in_its_light(Draws(1, generator), people, view)
        return _laid(people), people.joints_m[0]

    @torch.no_grad()
    def shot(self, moment: Moment, share: float) -> tuple[NDArray[np.uint8], dict[str, object]]:
        """A frame [H, W, 3] uint8 BGR and its ground truth."""
        camera = self.camera(share)
        view, ground = self.behind(camera)
        layer, joints = self.layer(moment, camera, view)
        alpha, shadow = layer[..., 3:4], layer[..., 4:]
        picture = view[0].permute(1, 2, 0).numpy() * (1 - 0.45 * shadow * ground[0, 0, :, :, None].numpy())
        picture = (picture * (1 - alpha) + layer[..., :3])[..., ::-1]
        rows, columns = (np.nonzero((alpha[..., 0] > 0.5).any(axis))[0] for axis in (1, 0))
        joints_px = joints[:, :2] / joints[:, 2:] * FOCAL_PX + torch.tensor([(WIDTH - 1) / 2, (HEIGHT - 1) / 2])
        box = [columns[0] - 0.5, rows[0] - 0.5, columns[-1] - columns[0] + 1, rows[-1] - rows[0] + 1]
        facts: dict[str, object] = {
            "box": [float(value) for value in box],
            "joints_cam_mm": (joints * 1000).double().round(decimals=1).tolist(),
            "joints_px": joints_px.double().round(decimals=2).tolist(),
            "cam_R": camera.double().round(decimals=6).tolist(),
            "cam_pos_mm": [1000 * value for value in self.script.camera_m],
        }
        return (picture.clip(0, 1) * 255).round().astype(np.uint8), facts


def _laid(people: People) -> NDArray[np.float32]:
    """[H, W, 5] colours times alpha, alpha, and the shadow on the ground: a rendered person's layer in the frame."""
    layer = torch.cat([people.rgb * people.alpha, people.alpha, people.ground_shadow], 1)[0].permute(1, 2, 0).numpy()
    scale = FOCAL_PX / float(people.focal)
    x, y = ((side - 1) / 2 - scale * float(c) for side, c in zip((WIDTH, HEIGHT), people.center[0], strict=True))
    if scale < 0.7:  # so that no pixel is left out
        layer = cv2.blur(layer, (2, 2), anchor=(0, 0))
        x, y = x + scale / 2, y + scale / 2
    move = np.array([[scale, 0, x], [0, scale, y]])
    return cv2.warpAffine(layer, move, (WIDTH, HEIGHT), flags=cv2.INTER_LINEAR)


def film(script: Script, path: Path, quality: int = 20) -> None:
    """Write a script's clip, and its ground truth beside it as JSON; `quality` is H.264's constant rate factor."""
    scene, frames = Scene(script), []
    noise = np.random.default_rng(script.seed)
    moments = list(motion(script))
    with av.open(str(path), "w", options={"movflags": "faststart"}) as file:
        stream = file.add_stream("libx264", rate=RATE, options={"crf": str(quality), "preset": "slow"})
        stream.width, stream.height, stream.pix_fmt = WIDTH, HEIGHT, "yuv420p"
        for number, moment in enumerate(moments):
            picture, facts = scene.shot(moment, number / len(moments))
            frames.append({"frame": number, **facts})
            grain = noise.normal(0, 1.2, picture.shape[:2])[..., None]
            picture = (picture + grain).clip(0, 255).astype(np.uint8)
            file.mux(stream.encode(av.VideoFrame.from_ndarray(picture, format="bgr24")))
        file.mux(stream.encode())
    center = {"cx": (WIDTH - 1) / 2, "cy": (HEIGHT - 1) / 2}
    facts = {"width": WIDTH, "height": HEIGHT, "fps": RATE, "fx": FOCAL_PX, "fy": FOCAL_PX, **center}
    facts |= {"joint_names": list(HUMAN36M.joints), "note": NOTE, "frames": frames}
    path.with_suffix(".json").write_text(json.dumps(facts, separators=(",", ":")) + "\n", encoding="utf-8")


def main() -> None:
    """Read the command line."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("file", type=Path)
    parser.add_argument("--script", choices=sorted(SCRIPTS), default="yard")
    parser.add_argument("--quality", type=int, default=20, help="H.264's constant rate factor: lower is better and larger")
    arguments = parser.parse_args()
    film(SCRIPTS[arguments.script], arguments.file, arguments.quality)
    print(f"{arguments.file}: {arguments.file.stat().st_size / 1e6:.2f} MB")


if __name__ == "__main__":
    main()
