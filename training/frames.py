"""Whole frames with several people, one camera, one ground and one light, to train and evaluate a people detector on.

    python -m training.frames FILE.jpg [--columns 6] [--rows 4] [--size 384] [--difficulty 0.85] [--pictures 0.5] [--seed 1]

Each person is rendered as a separate layer with the frame's camera, in a picture just large enough, and placed in the frame;
nearer people cover farther ones. The command draws a sheet to look at.
"""

from __future__ import annotations

import argparse
from dataclasses import dataclass, fields
from functools import cached_property
from pathlib import Path

import cv2
import numpy as np
import torch
import torch.nn.functional as F  # noqa: N812
from torch import Tensor

from convnextpose.variants import INPUT_SIZE
from training.avatars import Avatars
from training.background import add_shape, background, in_its_light
from training.body import UP, Body, rotation
from training.dataset import HIDDEN_MM, POINTS, damage, seeded
from training.draws import Draws
from training.fabric import Fabric
from training.mocap import Mocap
from training.pictures import Pictures
from training.plan import FROM_DATA
from training.render import CAMERA_FROM_BODY, People, Stand, render

COUNTS = (0.16, 0.25, 0.2, 0.14, 0.1, 0.08, 0.07)
"""Shares of the frames with 0, 1, 2, ... people."""

MAX_PEOPLE = len(COUNTS) - 1

SMALLEST_PX, LARGEST = 18.0, 1.5
"""Height of the people: px, and a multiple of the frame's side."""

STATURE_M = 1.65

LAYERS = ((0.3, 3 / 8), (float("inf"), 3 / 4))
"""Side of a person's layer for people up to a given height, both as shares of the frame's side."""

ASPECTS = (1.0, 4 / 3, 3 / 2, 16 / 9, 3 / 4, 9 / 16)
"""Width over height of the pictures; the rest of the square frame is black."""

TRIES = 12


@dataclass(frozen=True)
class Frames:
    """Frames of N pictures with up to P people each, and their ground truth. Absent people have zeros.

    Attributes:
        images: [N, S, S, 3] uint8, BGR: the picture in the top left, black beyond it.
        areas: [N, 2] float32 width and height of the picture in the frame, px.
        there: [N, P] bool, which of the people are present.
        boxes: [N, P, 4] float32: x, y, width, height of the whole person, px; may reach out of the picture.
        shown: [N, P] float32: the visible share of the person's outline, 0..1.
        joints_px: [N, P, 18, 2] float32 (pixel centres at whole numbers).
        camera_mm: [N, P, 18, 3] float32, the same joints in camera space.
        visible: [N, P, 18] bool: inside the picture and not hidden by the body, another person or an object.
        intrinsics: [N, 4] float32: fx, fy, cx, cy, px.
    """

    images: Tensor
    areas: Tensor
    there: Tensor
    boxes: Tensor
    shown: Tensor
    joints_px: Tensor
    camera_mm: Tensor
    visible: Tensor
    intrinsics: Tensor

    def __len__(self) -> int:
        """How many frames."""
        return len(self.images)

    def __getitem__(self, index: Tensor | slice) -> Frames:
        """Some of the frames."""
        return Frames(*(getattr(self, f.name)[index] for f in fields(self)))

    @staticmethod
    def join(parts: list[Frames]) -> Frames:
        """All frames of several parts."""
        return Frames(*(torch.cat([getattr(p, f.name) for p in parts]) for f in fields(Frames)))


@dataclass(frozen=True)
class _Scene:
    """N cameras and the positions of each one's people.

    Attributes:
        turn: [N, 3, 3] camera-from-world rotations.
        focal, center: [N], [N, 2] px.
        light: [N, 3] toward the light, camera axes.
        ground_m: [N] the ground: points with `up . point = ground_m`.
        there: [N, P] bool.
        foot_m: [N, P, 3] where the people stand, camera space.
        height_px: [N, P] their approximate height in the frame.
        areas: [N, 2] width and height of the picture, px.
    """

    turn: Tensor
    focal: Tensor
    center: Tensor
    light: Tensor
    ground_m: Tensor
    there: Tensor
    foot_m: Tensor
    height_px: Tensor
    areas: Tensor

    @property
    def up(self) -> Tensor:
        """[N, 3] the world's up in camera axes."""
        return self.turn @ torch.tensor(UP, device=self.turn.device)


class FrameRenderer:
    """Makes frames of `size` px on a device; the same generator state gives the same frames."""

    def __init__(self, device: torch.device | str = "cpu", size: int = 384, data: Path | None = None) -> None:
        """`data` is the folder with motion capture, cloth and avatars."""
        self.size, self.data = size, data
        self.layers = [(limit * size, round(share * size / 8) * 8) for limit, share in LAYERS]
        self.bodies = [Body(max(4096, POINTS * side**2 // INPUT_SIZE**2), device) for _, side in self.layers]
        self.device = torch.device(device)
        self.album: dict[bool, Pictures] = {}

    @cached_property
    def captured(self) -> Mocap:
        """Poses of motion capture, from the data folder."""
        return Mocap(self._folder / "mocap_poses.npz", self.device)

    @cached_property
    def fabric(self) -> Fabric:
        """Patches of real cloth, from the data folder."""
        return Fabric(self._folder / "fabric_patches_cc0.zip", self.device)

    @cached_property
    def avatars(self) -> list[Avatars]:
        """Modelled people from the data folder, with as many points as each of `bodies`."""
        return [Avatars(self._folder / "avatars", len(body.surface.mean), self.device) for body in self.bodies]

    @property
    def _folder(self) -> Path:
        if self.data is None:
            raise ValueError("expected a data folder for motion capture, cloth or avatars, received none: name one")
        return self.data

    def pictures(self, held_out: bool) -> Pictures:
        """The real pictures used in training, or the held-out ones."""
        if held_out not in self.album:
            self.album[held_out] = Pictures(self.device, held_out=held_out)
        return self.album[held_out]

    @torch.no_grad()
    def batch(
        self,
        count: int,
        difficulty: float,
        generator: torch.Generator,
        never: bool = False,
        pictures: float = 0.5,
        clutter: float = 0.0,
        mocap: float = 0.0,
        cloth: float = 0.0,
        avatars: float = 0.0,
    ) -> Frames:
        """`count` frames of a difficulty in 0..1.

        Args:
            count: number of frames.
            difficulty: 0..1.
            generator: determines everything else.
            never: draw bodies, poses, procedural backgrounds and real pictures that are held out from training.
            pictures: share of the frames with a real picture as background.
            clutter: share of the frames with many objects behind the people.
            mocap: share of the people in poses of motion capture.
            cloth: share of the garments made of real cloth.
            avatars: share of the people who are avatars.
        """
        draws, size = Draws(count, generator), self.size
        scene = _scene(draws, size, difficulty)
        layers = self._layers(draws, scene, difficulty, never, mocap, cloth, avatars)
        order = scene.foot_m[..., 2].masked_fill(~scene.there, torch.inf).argsort(1)
        rgb = torch.zeros(count, 3, size, size, device=self.device)
        free = torch.ones(count, 1, size, size, device=self.device)
        before = torch.zeros(count, MAX_PEOPLE, size, size, device=self.device)
        for rank in range(MAX_PEOPLE):  # nearest first
            slot = order[:, rank]
            each = torch.arange(count, device=self.device)
            layer = layers.rgba[each, slot]
            rgb += layer[:, :3] * free
            before[each, slot] = free[:, 0]
            free = free * (1 - layer[:, 3:])
        people = _stand_in(scene, rgb, 1 - free, layers.shadow.amax(1))
        picture = background(draws, people, size, difficulty, never, self.pictures(never), pictures, clutter)
        people = in_its_light(draws, people, picture)
        picture = people.rgb + free * picture
        covered = torch.zeros_like(free)
        for _ in range(2):
            picture, mask = add_shape(draws, picture, 0.3 * difficulty, 0.6)
            covered = torch.maximum(covered, mask)
        rows, columns = (torch.arange(size, device=self.device).view(shape) for shape in ((1, size, 1), (1, 1, size)))
        inside = (columns < scene.areas[:, 0, None, None]) & (rows < scene.areas[:, 1, None, None])
        picture = damage(draws, picture, difficulty) * inside[:, None]
        open_ = before * (1 - covered) * inside[:, None]
        shown = (layers.rgba[:, :, 3] * open_).sum((2, 3)) / layers.area_px.clamp_min(1)
        images = (picture.flip(1).permute(0, 2, 3, 1) * 255).round().to(torch.uint8).contiguous()
        return Frames(
            images=images,
            areas=scene.areas,
            there=scene.there,
            boxes=layers.boxes,
            shown=shown.clamp(0, 1),
            joints_px=layers.joints_px,
            camera_mm=layers.joints_m * 1000,
            visible=layers.unhidden & _at_joints(layers.joints_px, open_),
            intrinsics=torch.cat([scene.focal[:, None].expand(-1, 2), scene.center], 1),
        )

    def _layers(
        self, draws: Draws, scene: _Scene, difficulty: float, never: bool, mocap: float, cloth: float, avatars: float
    ) -> _Layers:
        """Every person of every frame, as if alone in the frame."""
        result = _Layers.empty(draws.count, self.size, self.device)
        done = torch.zeros_like(scene.there)
        for number, (body, (limit, side)) in enumerate(zip(self.bodies, self.layers, strict=True)):
            chosen = scene.there & ~done & (scene.height_px <= limit)
            done |= chosen
            frame, slot = chosen.nonzero(as_tuple=True)
            if not len(frame):
                continue
            some = draws.of(len(frame))
            yaw = rotation(UP, some.uniform(0, 2 * torch.pi))
            stand = Stand(scene.turn[frame] @ yaw, scene.foot_m[frame, slot], scene.light[frame])
            people = render(
                body,
                some,
                side,
                difficulty,
                never,
                stand,
                mocap=mocap,
                captured=self.captured if mocap else None,
                cloth=cloth,
                fabric=self.fabric if cloth else None,
                modelled=avatars,
                avatars=self.avatars[number] if avatars else None,
            )
            _lay(result, people, scene, frame, slot)
        return result


@dataclass(frozen=True)
class _Layers:
    """People placed in N frames, P in each: colours times alpha and alpha [N, P, 4, S, S], shadows on the ground [N, P, 1, S,
    S], px of the whole outline [N, P], and the values of `Frames` for each."""

    rgba: Tensor
    shadow: Tensor
    area_px: Tensor
    boxes: Tensor
    joints_px: Tensor
    joints_m: Tensor
    unhidden: Tensor

    @staticmethod
    def empty(count: int, size: int, device: torch.device) -> _Layers:
        shapes = ((4, size, size), (1, size, size), (), (4,), (18, 2), (18, 3))
        zeros = [torch.zeros(count, MAX_PEOPLE, *shape, device=device) for shape in shapes]
        return _Layers(*zeros, torch.zeros(count, MAX_PEOPLE, 18, dtype=torch.bool, device=device))


def _lay(layers: _Layers, people: People, scene: _Scene, frame: Tensor, slot: Tensor) -> None:
    """Place rendered people in their frames. The camera is the same; only focal length and centre differ."""
    size, side = layers.rgba.shape[-1], people.rgb.shape[-1]
    finer = people.focal / scene.focal[frame]  # px of the layer for each of the frame
    edge = torch.ones(side, side, device=frame.device)
    edge[[0, -1]], edge[:, [0, -1]] = 0, 0  # beyond its edge a layer is empty
    source = torch.cat([people.rgb * people.alpha, people.alpha, people.ground_shadow], 1) * edge
    level = finer.log2().round().clamp(0, 4).long()
    line = torch.arange(size, dtype=torch.float32, device=frame.device)
    for k in level.unique().tolist():
        some = (level == k).nonzero()[:, 0]
        of, where = frame[some], slot[some]
        x, y = (
            ((line - scene.center[of, axis, None]) * finer[some, None] + people.center[some, axis, None]) * 2 / (side - 1) - 1
            for axis in (0, 1)
        )
        grid = torch.stack([x[:, None].expand(-1, size, -1), y[:, :, None].expand(-1, -1, size)], -1)
        small = F.avg_pool2d(source[some], 2**k, ceil_mode=True, count_include_pad=False) if k else source[some]
        grid = ((grid + 1) * (side - 1) / 2 + 0.5) / 2**k / small.shape[-1] * 2 - 1
        laid = F.grid_sample(small, grid, align_corners=False)
        layers.rgba[of, where], layers.shadow[of, where] = laid[:, :4], laid[:, 4:]
    coarser = 1 / finer[:, None]
    move = scene.center[frame] - people.center * coarser
    layers.area_px[frame, slot] = people.alpha.sum((1, 2, 3)) * coarser[:, 0] ** 2
    layers.boxes[frame, slot] = people.box * coarser + F.pad(move, (0, 2))
    layers.joints_px[frame, slot] = people.joints_px * coarser[..., None] + move[:, None]
    layers.joints_m[frame, slot] = people.joints_m
    cell = people.joints_px.round().clamp(0, side - 1).long()
    surface_m = people.depth_m.flatten(1).gather(1, cell[..., 1] * side + cell[..., 0])
    layers.unhidden[frame, slot] = surface_m > people.joints_m[..., 2] - HIDDEN_MM / 1000


def _at_joints(joints_px: Tensor, open_: Tensor) -> Tensor:
    """[N, P, 18] bool: joints [N, P, 18, 2] at which `open_` [N, P, S, S] is not covered, inside the frame."""
    size = open_.shape[-1]
    nearest = joints_px.round()
    inside = ((nearest >= 0) & (nearest < size)).all(-1)
    cell = nearest.clamp(0, size - 1).long()
    return inside & (open_.flatten(2).gather(2, cell[..., 1] * size + cell[..., 0]) > 0.5)


def _stand_in(scene: _Scene, rgb: Tensor, alpha: Tensor, shadow: Tensor) -> People:
    """All people of each frame combined into one, as a background needs it."""
    count, size = len(rgb), rgb.shape[-1]
    farthest = scene.foot_m[..., 2].masked_fill(~scene.there, 4.0).amax(1)
    place = torch.zeros(count, 18, 3, device=rgb.device)
    place[..., 2] = farthest[:, None]
    return People(
        rgb=rgb,
        alpha=alpha,
        depth_m=torch.full((count, size, size), torch.inf, device=rgb.device),
        ground_shadow=shadow,
        joints_m=place,
        joints_px=torch.zeros(count, 18, 2, device=rgb.device),
        box=torch.zeros(count, 4, device=rgb.device),
        focal=scene.focal,
        center=scene.center,
        up=scene.up,
        ground_m=scene.ground_m,
        light=scene.light,
    )


def _scene(draws: Draws, size: int, difficulty: float) -> _Scene:
    """Cameras over a ground, and up to MAX_PEOPLE people at places in view, some not on that ground."""
    device, count = draws.device, MAX_PEOPLE
    aspect = torch.tensor(ASPECTS, device=device)[draws.integers(len(ASPECTS))]
    areas = torch.stack([aspect.clamp_max(1), (1 / aspect).clamp_max(1)], 1) * size
    areas = areas.round()
    center = (areas - 1) / 2 + draws.normal(0.02, 2) * size
    focal = areas.amax(1) * draws.log_uniform(0.6, 2.0)
    height = draws.log_uniform(0.5, 5.0)
    pitch = (draws.normal(0.1) + 0.06 * height).clamp(-0.35, 0.8)
    roll = draws.normal(0.03 + 0.04 * difficulty)
    base = torch.tensor(CAMERA_FROM_BODY, device=device)
    turn = rotation((0.0, 0.0, 1.0), roll) @ rotation((1.0, 0.0, 0.0), pitch) @ base
    up = turn @ torch.tensor(UP, device=device)
    light = F.normalize(draws.normal(0.6, 3) + up * draws.uniform(0.4, 1.6, 1), dim=-1)
    light = torch.where((light * up).sum(-1, keepdim=True) > 0.15, light, up)

    there = torch.arange(count, device=device) < draws.choice(list(COUNTS))[:, None]
    # Several tries for each person: the first whose middle is in view counts.
    tall = torch.log(areas[:, 1] * LARGEST)[:, None, None]
    lowest = torch.log(torch.tensor(SMALLEST_PX, device=device))
    tall = (lowest + (tall - lowest) * draws.uniform(0, 1, count, TRIES)).exp()
    depth = focal[:, None, None] * STATURE_M / tall
    column = draws.uniform(-0.05, 1.05, count, TRIES) * areas[:, :1, None]
    crowd = draws.chance(0.35, 1, 1)  # close together, one in front of the other
    column = torch.where(crowd, column[:, :1] + draws.normal(0.12, count, TRIES) * size, column)
    depth = torch.where(crowd, depth[:, :1] * draws.normal(0.2, count, TRIES).exp(), depth).clamp_min(1.2)
    x = (column - center[:, :1, None]) / focal[:, None, None] * depth
    u = up[:, :, None, None]
    on_ground = (-height[:, None, None] - u[:, 0] * x - u[:, 2] * depth) / u[:, 1]
    row = draws.uniform(-0.05, 1.05, count, TRIES) * areas[:, 1:, None]
    floating = (row - center[:, 1:, None]) / focal[:, None, None] * depth + STATURE_M / 2
    y = torch.where(draws.chance(0.3, 1, 1), floating, on_ground)
    foot = torch.stack([x, y, depth], -1)
    middle = foot + up[:, None, None] * STATURE_M / 2
    seen = middle[..., :2] / middle[..., 2:].clamp_min(0.3) * focal[:, None, None, None] + center[:, None, None]
    good = ((seen > -0.05 * size) & (seen < areas[:, None, None] + 0.05 * size)).all(-1) & (middle[..., 2] > 1.0)
    first = good.float().argmax(2, keepdim=True)  # the first that is good
    foot = foot.gather(2, first[..., None].expand(-1, -1, -1, 3))[:, :, 0]
    return _Scene(
        turn=turn,
        focal=focal,
        center=center,
        light=light,
        ground_m=-height,
        there=there & good.any(2),
        foot_m=foot,
        height_px=focal[:, None] * STATURE_M / foot[..., 2],
        areas=areas,
    )


def draw(frames: Frames, index: int) -> np.ndarray:
    """One frame with its boxes (green; orange if little of the person is visible) and joints (hidden ones hollow)."""
    picture = frames.images[index].cpu().numpy().copy()
    for slot in frames.there[index].nonzero()[:, 0].tolist():
        x, y, width, height = (round(v) for v in frames.boxes[index, slot].tolist())
        colour = (60, 220, 60) if frames.shown[index, slot] > 0.25 else (0, 140, 255)
        cv2.rectangle(picture, (x, y), (x + width, y + height), colour, 1)
        for point, visible in zip(frames.joints_px[index, slot].tolist(), frames.visible[index, slot].tolist(), strict=True):
            cv2.circle(picture, (round(point[0]), round(point[1])), 2, (0, 230, 255), -1 if visible else 1)
    return picture


def main() -> None:
    """Read the command line."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("file", type=Path)
    parser.add_argument("--columns", type=int, default=6)
    parser.add_argument("--rows", type=int, default=4)
    parser.add_argument("--size", type=int, default=384)
    parser.add_argument("--difficulty", type=float, default=0.85)
    parser.add_argument("--pictures", type=float, default=0.5, help="share with a real picture as background")
    parser.add_argument("--never", action="store_true", help="only what is held out from training")
    parser.add_argument("--seed", type=int, default=1)
    parser.add_argument("--data", type=Path, help="data folder, to use its poses, cloth and avatars as well")
    arguments = parser.parse_args()
    renderer, lines = FrameRenderer(size=arguments.size, data=arguments.data), []
    shares = FROM_DATA if arguments.data else {}
    for row in range(arguments.rows):
        generator = seeded(renderer.device, arguments.seed, row)
        frames = renderer.batch(
            arguments.columns, arguments.difficulty, generator, arguments.never, arguments.pictures, **shares
        )
        drawn = [draw(frames, k) if (k + row) % 2 else frames.images[k].numpy() for k in range(arguments.columns)]
        lines.append(np.concatenate(drawn, 1))
    if not cv2.imwrite(str(arguments.file), np.concatenate(lines), [cv2.IMWRITE_JPEG_QUALITY, 85]):
        parser.error(f"cannot write {arguments.file}: give a name that ends in .jpg or .png, in a folder that exists")


if __name__ == "__main__":
    main()
