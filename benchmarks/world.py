"""The errors of the camera's pitch and height as estimated from two people who walk for 10 s, at several pitches.

    python -m benchmarks.world [--seeds 8]              # simulated readings: without errors, and with errors like the network's
    python -m benchmarks.world --rendered [--seeds 2]   # rendered clips through the default weights; needs the extra `train`
    python -m benchmarks.world --bodies 14              # the lengths of bodies that the estimator assumes

Every seed is another pair of bodies (of the 64 that the tests draw, or of the held-out people) and other errors of the joints.
Each line is a pitch: the mean and the largest error of the up direction and of the camera's height, and how many of the runs
are within the goals, 3 degrees and 5 %. Rendered clips have a second table: the same frames and tracks with the true joints
instead of the network's, which separates the network's errors from the estimator's.
"""

from __future__ import annotations

import argparse
import json
import math
import tempfile
from collections.abc import Callable, Iterator, Sequence
from dataclasses import replace
from functools import cache
from pathlib import Path

import av
import numpy as np
import torch
from numpy.typing import NDArray

from convnextpose.camera import Intrinsics
from convnextpose.skeleton import HUMAN36M
from convnextpose.world import World, up_of
from pipeline.people.world import WorldEstimator
from pipeline.run import RunConfig, open_pipeline
from pipeline.types import Pose
from tests.pipeline.people import actors
from training.clip import FOCAL_PX, HEIGHT, SCRIPTS, SPEED_M_S, STEPS_HZ, WIDTH, Moment, Scene, walking
from training.poses import ANGLES

SECONDS, RATE = 10.0, 10
GOAL_DEGREES, GOAL_SHARE = 3.0, 0.05

CAMERAS = {-10: (1.3, 8.5), 0: (1.4, 6.0), 15: (2.2, 6.0), 30: (3.5, 5.5), 45: (5.0, 4.8)}
"""By pitch, degrees: the camera's height and, in the rendered clips, the first person's distance from it, m."""

RADII_M = (1.2, 1.8)
"""Radii of the ellipse that each person walks: to the right and away from the camera."""


def simulated(pitch: int, seed: int, **errors: float) -> tuple[World, float]:
    """The world estimated from two simulated people, of other sizes for each seed; and their size, relative to 1."""
    height_mm = 1000 * CAMERAS[pitch][0]
    far = actors.scene(pitch, height_mm)
    bodies = np.random.default_rng(1000 + seed).choice(64, 2, replace=False).tolist()
    pair = [actors.Actor(bodies[0], (-700, -far)), actors.Actor(bodies[1], (800, -far - 500), phase=2.5)]
    estimator = WorldEstimator(HUMAN36M)
    world = World.level()
    for time_s, poses in actors.film(pair, pitch, height_mm=height_mm, seconds=SECONDS, rate=RATE, seed=seed, **errors):
        world, _ = estimator.step(time_s, actors.CAMERA, poses)
    return world, math.exp(np.mean([math.log(actors.size_of(body)) for body in bodies]))


def walk(number: int, far_m: float, time_s: float) -> Moment:
    """The walk of a rendered clip's first or second person: around an ellipse."""
    phase = 2.5 * number
    way = SPEED_M_S / max(RADII_M) * time_s + phase
    right, away = RADII_M[0] * math.cos(way), RADII_M[1] * math.sin(way)
    heading = math.atan2(-RADII_M[0] * math.sin(way), -RADII_M[1] * math.cos(way))
    angles = stride(2 * math.pi * STEPS_HZ * time_s + phase)
    return Moment(angles, heading, (right + (-0.7, 0.8)[number], away + (0.0, 0.5)[number] + far_m))


def stride(phase: float) -> torch.Tensor:
    """[A] the angles of a walk at a phase, rad."""
    angles = walking(phase)
    return torch.tensor([angles.get(name, 0.0) for name in ANGLES])


def scene_of(pitch: int) -> Scene:
    """The camera and background of a rendered clip."""
    return Scene(replace(SCRIPTS["yard"], pan=0.0, camera_m=(0.0, 0.0, CAMERAS[pitch][0]), down=float(pitch)))


def cast(scene: Scene, seed: int, number: int) -> None:
    """Put a pair's first or second person into the scene."""
    scene.script = replace(scene.script, seed=100 + 2 * seed + number)


def frames(pitch: int, seed: int) -> Iterator[tuple[NDArray[np.uint8], NDArray[np.float64]]]:
    """The pictures [H, W, 3] BGR of a rendered clip, and the joints [2, J, 3] of its people, mm, camera axes."""
    far_m = CAMERAS[pitch][1]
    scene = scene_of(pitch)
    camera = scene.camera(0.5)
    view, ground = scene.behind(camera)
    noise = np.random.default_rng(seed)
    for index in range(round(SECONDS * RATE)):
        people = [(number, walk(number, far_m, index / RATE)) for number in (0, 1)]
        picture, joints_mm = view[0].permute(1, 2, 0).numpy(), np.empty((2, len(HUMAN36M), 3))
        for number, moment in sorted(people, key=lambda person: -person[1].place_m[1]):
            cast(scene, seed, number)
            layer, joints = scene.layer(moment, camera, view)
            joints_mm[number] = 1000 * joints.double().numpy()
            picture = picture * (1 - 0.45 * layer[..., 4:] * ground[0, 0, :, :, None].numpy())
            picture = picture * (1 - layer[..., 3:4]) + layer[..., :3]
        grain = noise.normal(0, 1.2, picture.shape[:2])[..., None]
        yield (picture[..., ::-1] * 255 + grain).clip(0, 255).astype(np.uint8), joints_mm


@cache
def rendered(pitch: int, seed: int, folder: Path) -> tuple[World, World, float]:
    """The world from a run on a rendered clip, that from the found people's true joints, and the pair's size, relative to 1."""
    path = folder / f"pitch{pitch}-{seed}.mp4"
    truth = path.with_suffix(".json")
    if not truth.exists():
        joints_mm = []
        with av.open(str(path), "w") as file:
            stream = file.add_stream("libx264", rate=RATE, options={"crf": "20"})
            stream.width, stream.height, stream.pix_fmt = WIDTH, HEIGHT, "yuv420p"
            for picture, joints in frames(pitch, seed):
                file.mux(stream.encode(av.VideoFrame.from_ndarray(picture, format="bgr24")))
                joints_mm.append(joints.round(1).tolist())
            file.mux(stream.encode())
        truth.write_text(json.dumps(joints_mm), encoding="utf-8")
    people = np.array(json.loads(truth.read_text(encoding="utf-8")))
    camera = Intrinsics(FOCAL_PX, FOCAL_PX, (WIDTH - 1) / 2, (HEIGHT - 1) / 2)
    estimator, by_network, by_truth = WorldEstimator(HUMAN36M), None, World.level()
    with open_pipeline(RunConfig(path, camera=camera)) as pipeline:
        for posed in pipeline:
            poses = [as_it_is(pose, people[posed.frame.index], camera) for pose in posed.poses]
            by_truth, _ = estimator.step(posed.frame.time_s, camera, poses)
            by_network = posed.world
    assert by_network is not None
    return by_network, by_truth, math.sqrt(actors.size_in(people[0, 0]) * actors.size_in(people[0, 1]))


def as_it_is(pose: Pose, people: Sequence[NDArray[np.float64]], camera: Intrinsics) -> Pose:
    """A pose with the true joints of its person, who is one of `people`, [J, 3] each, mm."""
    seen = [camera.project(joints) for joints in people]
    who = min(range(len(seen)), key=lambda number: float(np.abs(seen[number][:, :2] - pose.joints_px).mean()))
    depth_mm = float(people[who][HUMAN36M.root, 2])
    return replace(pose, joints_px=seen[who][:, :2], joints_mm=people[who], root_depth_mm=depth_mm)


def bodies(count: int) -> None:
    """Print the lengths that are the source of ANKLE_MM and UPRIGHT_MM in `pipeline.people.world`."""
    phases = [2 * math.pi * step / 12 for step in range(12)]
    scene, up, ankles = scene_of(0), up_of(0.0, 0.0), []
    camera = scene.camera(0.5)
    view, _ = scene.behind(camera)
    for number in range(count):
        scene.script = replace(scene.script, seed=100 + number)
        walk_m = [scene.layer(Moment(stride(phase), 0.0, (0.0, 6.0)), camera, view)[1].double().numpy() for phase in phases]
        ankles.append(1000 * (CAMERAS[0][0] + min(float((joints[[3, 6]] @ up).min()) for joints in walk_m)))
    print(f"{count} dressed walkers: a standing ankle is {np.mean(ankles):.0f} mm over the floor, sd {np.std(ankles):.0f}")
    lengths = []
    for body in range(64):
        sizes = []
        for angles in ({}, *map(walking, phases)):
            joints = actors.joints_of(body, angles)
            sizes.append(float(joints[8, 1] - joints[[3, 6], 1].mean()) / actors.size_of(body))
        lengths.append((sizes[0], np.median(sizes[1:])))
    standing, walks = np.mean(lengths, axis=0)
    print(f"64 bodies, scaled to the usual bones: ankles to neck {standing:.0f} mm standing, {walks:.0f} mm in a walk")


def measure(what: str, seeds: int, estimate: Callable[[int, int], tuple[World, float]]) -> None:
    """Print a line for each pitch."""
    print(f"{what}, {seeds} runs at each pitch")
    for pitch, (height_m, _) in CAMERAS.items():
        tilts, heights, sized, said = [], [], [], []
        for seed in range(seeds):
            world, size = estimate(pitch, seed)
            tilts.append(math.degrees(math.acos(min(1.0, float(world.up @ up_of(pitch, 0.0))))))
            heights.append(world.height_mm / (1000 * height_m) - 1)
            sized.append((heights[-1] + 1) * size - 1)
            said.append((world.tilt_error_degrees or math.nan, (world.height_error_mm or math.nan) / world.height_mm))
        off = np.abs(heights)
        kept = sum(a <= GOAL_DEGREES and b <= GOAL_SHARE for a, b in zip(tilts, off, strict=True))
        print(
            f"  pitch {pitch:3d}, {height_m} m: tilt off by {np.mean(tilts):.1f} degrees, at most {max(tilts):.1f} (said "
            f"{np.mean([a for a, _ in said]):.1f}); height by {np.mean(off):.1%}, at most {max(off):.1%}, on average "
            f"{np.mean(heights):+.1%} (said {np.mean([b for _, b in said]):.1%}), had one known the pair's size by "
            f"{np.mean(np.abs(sized)):.1%}, on average {np.mean(sized):+.1%}; within the goals {kept} of {seeds}",
            flush=True,
        )


def main() -> None:
    """Read the command line."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--seeds", type=int, default=8)
    parser.add_argument("--rendered", action="store_true", help="rendered clips through the default weights")
    parser.add_argument("--clips", type=Path, help="folder that keeps the rendered clips")
    parser.add_argument("--bodies", type=int, metavar="COUNT", help="lengths of so many dressed people, and of the 64 bodies")
    arguments = parser.parse_args()
    if arguments.rendered:
        with tempfile.TemporaryDirectory() as temporary:
            folder = arguments.clips or Path(temporary)
            folder.mkdir(parents=True, exist_ok=True)
            measure("rendered clips", arguments.seeds, lambda pitch, seed: rendered(pitch, seed, folder)[::2])
            measure("the same with true joints", arguments.seeds, lambda pitch, seed: rendered(pitch, seed, folder)[1:])
        return
    if arguments.bodies:
        bodies(arguments.bodies)
        return
    measure("true poses", arguments.seeds, lambda pitch, seed: simulated(pitch, seed, picture=0.0, depth_mm=0.0, shallow=1.0))
    measure("errors like the network's", arguments.seeds, simulated)


if __name__ == "__main__":
    main()
