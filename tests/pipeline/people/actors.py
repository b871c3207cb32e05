"""People with the training's bodies who walk, stand, sit or jump in a world with a known camera, and the poses read from them.

These poses have errors like those of the default weights on rendered clips: joints are off by 2 % of a person's height in the
picture and 60 mm in depth, half of it for about a second, and depths are too shallow by a third. Boxes and root depths are the
pipeline's.
"""

import math
from dataclasses import dataclass
from functools import lru_cache

import numpy as np
import torch

from convnextpose.camera import BONE_LENGTHS_MM, Intrinsics, RootDepthSource
from convnextpose.crop import crop_region
from convnextpose.skeleton import HUMAN36M
from convnextpose.world import rotation_of, up_of
from pipeline.people.track import box_from_joints
from pipeline.stages import RelativePose, lift
from training.body import Body
from training.clip import STEPS_HZ, walking
from training.poses import ANGLES, move_skeleton, orient

WIDTH, HEIGHT, FOCAL = 1280, 720, 1100.0
CAMERA = Intrinsics(FOCAL, FOCAL, (WIDTH - 1) / 2, (HEIGHT - 1) / 2)
SPEED_MM_S = 1250.0
SHOES_MM = 30.0  # how much the shoes of the dressed bodies raise the ankle joint (`benchmarks.world --bodies`)


@lru_cache(1)
def _bodies():
    body = Body(2000)
    generator = torch.Generator().manual_seed(5)
    points, rest = body.shaped(body.sample_shapes(64, generator))
    return rest, points[:, :, 2].amin(1)


def joints_of(body, angles):
    """[18, 3] joints, mm, from the pelvis: y up; a person who looks along z has the left hand at +x."""
    rest, _ = _bodies()
    vector = torch.tensor([[angles.get(name, 0.0) for name in ANGLES]])
    _, joints = move_skeleton(orient(vector), rest[body : body + 1])
    x, y, z = (1000 * joints[0].double().numpy()).T
    return np.stack([x, z, -y], axis=1)


def size_of(body):
    """The size of a body relative to the average adult."""
    return size_in(joints_of(body, {}))


def size_in(joints):
    """The size of a person relative to the average adult, from the bones used for depths, of joints [18, 3], mm."""
    index = {name: number for number, name in enumerate(HUMAN36M.joints)}
    found = {
        (a, b): np.linalg.norm(joints[index[f"L_{a}"]] - joints[index[f"R_{b}" if a == b else f"L_{b}"]])
        for a, b in BONE_LENGTHS_MM
    }
    return sum(found.values()) / sum(BONE_LENGTHS_MM.values())


def standing_height_mm(body):
    """Height of the pelvis above the ankle, and of the ankle above the sole, of a standing person, mm."""
    rest, soles = _bodies()
    joints = joints_of(body, {})
    hips = 1000 * (rest[body, 16, 2] + rest[body, 20, 2]) / 2
    ankle = joints[[3, 6], 1].min()
    return -ankle, float(hips + ankle - 1000 * soles[body])


@dataclass(frozen=True)
class Actor:
    """A person in the world.

    Attributes:
        body: which of the bodies.
        centre: [x, z] mm in the world: the centre of the ellipse on which the person walks, or the person's position.
        radii: radii of the ellipse, mm; 0 stays in place.
        does: `walk`, `stand`, `sit`, `jump` or `lie`.
        phase: start on the ellipse, or heading of a person who stays in place, rad.
    """

    body: int
    centre: tuple[float, float]
    radii: tuple[float, float] = (1200.0, 1800.0)
    does: str = "walk"
    phase: float = 0.0

    @lru_cache(4096)  # noqa: B019 - the same people are filmed repeatedly, and an actor is only a few numbers
    def joints(self, time_s):
        """[18, 3] in the world, mm; not to be written to."""
        angles = {"walk": walking(2 * math.pi * STEPS_HZ * time_s + self.phase)}.get(self.does, {})
        if self.does == "sit":
            angles = {"root_lean": 0.25} | {f"{s}.leg_flex": 1.5 for s in "LR"} | {f"{s}.knee": 1.5 for s in "LR"}
        joints = joints_of(self.body, angles)
        way = SPEED_MM_S / max(self.radii) * time_s + self.phase if max(self.radii) else 0.0
        x, z = self.centre[0] + self.radii[0] * math.cos(way), self.centre[1] + self.radii[1] * math.sin(way)
        heading = math.atan2(-self.radii[0] * math.sin(way), self.radii[1] * math.cos(way)) if max(self.radii) else self.phase
        ankle = standing_height_mm(self.body)[1] + SHOES_MM
        joints[:, 1] += ankle - joints[[3, 6], 1].min()  # the lower foot stands on the floor
        if self.does == "jump":
            joints[:, 1] += 350 * max(0.0, math.sin(2 * math.pi * 0.8 * time_s + self.phase))
        if self.does == "lie":
            joints = np.stack([joints[:, 1] - 800, 150 + joints[:, 2] * 0, joints[:, 0]], axis=1)
        c, s = math.cos(heading), math.sin(heading)
        turn = np.array([[c, 0, s], [0, 1, 0], [-s, 0, c]])
        return joints @ turn.T + (x, 0, z)


def camera_from_world(pitch_degrees, roll_degrees, height_mm):
    """Rotation [3, 3] and position [3] of the camera, mm: camera = rotation.T @ (world - position)."""
    return rotation_of(up_of(pitch_degrees, roll_degrees)), np.array([0.0, height_mm, 0.0])


class Reader:
    """Reads people's poses as the network would, with errors that depend only on the seed."""

    def __init__(self, seed=0, picture=0.02, depth_mm=60.0, shallow=0.65, camera=CAMERA):
        self.rng = np.random.default_rng(seed)
        self.picture, self.depth_mm, self.shallow, self.camera = picture, depth_mm, shallow, camera
        self.slow = {}

    def read(self, number, joints_mm, time_s):
        """The pose for joints in camera space [18, 3], or None if they are not all in the picture."""
        true = self.camera.project(joints_mm)
        if joints_mm[:, 2].min() < 300 or not ((true[:, :2] > 8) & (true[:, :2] < (WIDTH - 9, HEIGHT - 9))).all():
            return None
        size = np.ptp(true[:, :2], axis=0).max()
        slow = self.slow.get(number, np.zeros((18, 3)))
        slow = 0.9 * slow + math.sqrt(1 - 0.81) * self.rng.normal(size=(18, 3))
        self.slow[number] = slow
        noise = 0.7 * (slow + self.rng.normal(size=(18, 3))) * (self.picture * size, self.picture * size, self.depth_mm)
        joints = np.column_stack([true[:, :2], self.shallow * (true[:, 2] - true[0, 2])]) + noise
        joints[:, 2] -= joints[0, 2]
        box = box_from_joints(joints[:, :2])
        pose = RelativePose(number, box, joints, np.full(18, 0.7), crop_region(box, WIDTH, HEIGHT))
        return lift(pose, (WIDTH, HEIGHT), self.camera, RootDepthSource.INTRINSICS, HUMAN36M)


def scene(pitch, height_mm):
    """Distance at which people are completely in the picture of a camera with this pitch and height, mm."""
    if pitch < 0:  # just above the lower edge
        return 11500.0
    return float(np.clip(height_mm / math.tan(math.radians(max(pitch, 9.0))), 4200.0, 6500.0))


def film(actors, pitch, roll=0.0, height_mm=2000.0, seconds=10.0, rate=10.0, **errors):
    """(time s, poses) of each frame."""
    rotation, place = camera_from_world(pitch, roll, height_mm)
    reader = Reader(**errors)
    for index in range(round(seconds * rate)):
        time_s = index / rate
        poses = []
        for number, actor in enumerate(actors):
            pose = reader.read(number, (actor.joints(time_s) - place) @ rotation, time_s)
            if pose is not None:
                poses.append(pose)
        yield time_s, tuple(poses)
