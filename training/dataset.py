"""Labelled crops of rendered people, to train and evaluate the network on."""

from __future__ import annotations

from dataclasses import dataclass, fields
from functools import cached_property
from pathlib import Path

import torch
import torch.nn.functional as F  # noqa: N812
from torch import Tensor

from convnextpose.skeleton import HUMAN36M
from convnextpose.variants import INPUT_SIZE
from training.avatars import Avatars
from training.background import add_shape, background, in_its_light
from training.body import Body
from training.draws import Draws
from training.fabric import Fabric
from training.mocap import Mocap
from training.pictures import Pictures
from training.render import People, render

POINTS = 40960
"""Points on a body for a picture of 256 px; smaller pictures need fewer."""

OUTSIDE_PX = -1e4
"""Position of joints that are in no picture."""

HIDDEN_MM = 200.0
"""A joint is hidden if a surface is at least this much nearer to the camera: joints are inside the body."""


@dataclass(frozen=True)
class Crops:
    """Crops of people with their ground truth.

    Attributes:
        images: [N, S, S, 3] uint8, BGR.
        joints: [N, 18, 3] float32: x px, y px in the crop (pixel centres at whole numbers), z mm from the pelvis.
        camera_mm: [N, 18, 3] float32, the same joints in camera space.
        intrinsics: [N, 4] float32: fx, fy, cx, cy of the crop, px.
        boxes: [N, 4] float32: x, y, width, height of the whole person in the crop, px.
        visible: [N, 18] bool: inside the crop and not hidden by the body, another person or an object.
    """

    images: Tensor
    joints: Tensor
    camera_mm: Tensor
    intrinsics: Tensor
    boxes: Tensor
    visible: Tensor

    def __len__(self) -> int:
        """How many crops."""
        return len(self.images)

    def __getitem__(self, index: Tensor | slice) -> Crops:
        """Some of the crops."""
        return Crops(*(getattr(self, f.name)[index] for f in fields(self)))

    def to(self, device: torch.device | str) -> Crops:
        """The crops on a device."""
        return Crops(*(getattr(self, f.name).to(device) for f in fields(self)))

    @staticmethod
    def join(parts: list[Crops]) -> Crops:
        """All crops of several parts."""
        return Crops(*(torch.cat([getattr(p, f.name) for p in parts]) for f in fields(Crops)))


def mirror(images: Tensor, joints: Tensor) -> tuple[Tensor, Tensor]:
    """Mirror images [N, S, S, 3] and joints [N, 18, 3]: left and right are exchanged."""
    mirrored = joints[:, list(HUMAN36M.flip_order)].clone()
    mirrored[..., 0] = images.shape[2] - 1 - mirrored[..., 0]
    return images.flip(2), mirrored


def recolour(images: Tensor, left: Tensor, gamma: Tensor) -> Tensor:
    """Change the colours and tones of pictures.

    Args:
        images: [N, S, S, 3] in 0..255.
        left: [N, 1, 1, 1] share of their colour that is kept; 0 makes them grey.
        gamma: [N, 1, 1, 3] each channel's exponent; under 1 brightens.

    Returns:
        [N, S, S, 3] in 0..255.
    """
    return 255 * (torch.lerp(images.mean(3, keepdim=True), images, left) / 255).clamp(0, 1) ** gamma


def turn(images: Tensor, joints: Tensor, angles: Tensor, zoom: Tensor) -> tuple[Tensor, Tensor]:
    """Rotate pictures in their plane and enlarge them, about their middle; areas beyond an edge are filled by mirroring.

    This is what a camera rolled about its axis sees, so the depths of the joints stay true. Joints that were outside the
    picture are moved far outside, because mirrored areas do not show them.

    Args:
        images: [N, S, S, 3] float.
        joints: [N, 18, 3], px, px, mm.
        angles: [N] rad, clockwise in the picture.
        zoom: [N] above 1 enlarges.

    Returns:
        Images [N, S, S, 3] and joints [N, 18, 3].
    """
    cos, sin = angles.cos(), angles.sin()
    middle = (images.shape[2] - 1) / 2
    turned_from_image = torch.stack([cos, -sin, sin, cos], 1).unflatten(1, (2, 2)) * zoom[:, None, None]
    places = (joints[..., :2] - middle) @ turned_from_image.mT + middle
    inside = ((joints[..., :2] >= 0) & (joints[..., :2] < images.shape[2])).all(-1, keepdim=True)
    places = torch.where(inside, places, OUTSIDE_PX)
    image_from_turned = F.pad(torch.linalg.inv(turned_from_image), (0, 1))
    grid = F.affine_grid(image_from_turned, [len(images), 3, *images.shape[1:3]], align_corners=True)
    turned = F.grid_sample(images.permute(0, 3, 1, 2), grid, padding_mode="reflection", align_corners=True)
    return turned.permute(0, 2, 3, 1), torch.cat([places, joints[..., 2:]], -1)


def seeded(device: torch.device, *seeds: int) -> torch.Generator:
    """A generator on a device for a tuple of seeds."""
    number = 0
    for seed in seeds:  # splitmix64's mixing, so that neighbouring seeds are unrelated
        number = (number + seed + 0x9E3779B97F4A7C15) & (2**64 - 1)
        number = ((number ^ (number >> 30)) * 0xBF58476D1CE4E5B9) & (2**64 - 1)
        number = ((number ^ (number >> 27)) * 0x94D049BB133111EB) & (2**64 - 1)
        number ^= number >> 31
    return torch.Generator(device=device).manual_seed(number >> 1)


class Renderer:
    """Makes crops on a device; the same generator state gives the same crops."""

    def __init__(
        self, device: torch.device | str = "cpu", size: int = INPUT_SIZE, points: int | None = None, data: Path | None = None
    ) -> None:
        """Crops of `size` px and bodies of `points` points; README.md describes the data folder with motion capture."""
        self.size, self.data = size, data
        self.body = Body(points or max(4096, POINTS * size * size // INPUT_SIZE**2), device)

    def generator(self, *seeds: int) -> torch.Generator:
        """A generator on the device for a tuple of seeds."""
        return seeded(self.body.device, *seeds)

    @cached_property
    def pictures(self) -> Pictures:
        """The pictures used in training."""
        return Pictures(self.body.device)

    @cached_property
    def held_out_pictures(self) -> Pictures:
        """The pictures that are never used in training."""
        return Pictures(self.body.device, held_out=True)

    @cached_property
    def captured(self) -> Mocap:
        """Poses of motion capture, from the data folder."""
        if self.data is None:
            raise ValueError("expected a data folder for poses of motion capture, received none: name one")
        return Mocap(self.data / "mocap_poses.npz", self.body.device)

    @cached_property
    def fabric(self) -> Fabric:
        """Patches of real cloth, from the data folder."""
        if self.data is None:
            raise ValueError("expected a data folder for patches of cloth, received none: name one")
        return Fabric(self.data / "fabric_patches_cc0.zip", self.body.device)

    @cached_property
    def avatars(self) -> Avatars:
        """Modelled people, from the data folder."""
        if self.data is None:
            raise ValueError("expected a data folder for avatars, received none: name one")
        return Avatars(self.data / "avatars", len(self.body.surface.mean), self.body.device)

    @torch.no_grad()
    def batch(
        self,
        count: int,
        difficulty: float,
        generator: torch.Generator,
        never: bool = False,
        pictures: float = 0.0,
        held_out_pictures: bool = False,
        wide: float = 0.0,
        far: float = 0.0,
        coats: float = 0.0,
        bare: float = 0.0,
        clutter: float = 0.0,
        mocap: float = 0.0,
        cloth: float = 0.0,
        avatars: float = 0.0,
    ) -> Crops:
        """`count` crops of a difficulty in 0..1.

        Args:
            count: number of crops.
            difficulty: 0..1.
            generator: determines everything else.
            never: draw bodies, poses and procedural backgrounds that are held out from training.
            pictures: share of the people in front of a real picture. With 0, crops are as they were before pictures were
                added, so that the older held-out sets do not change. Above 0, all crops also have the other fixes made at that
                time.
            held_out_pictures: use the pictures that are held out from training.
            wide: share of the people who are moved far from their family's pose.
            far: share of the people who are seen from far away and above, in few pixels, as by a camera on a pole.
            coats: share of the people who wear a jacket or a coat.
            bare: share of the people with bare arms and legs, as in sport.
            clutter: share of the people in front of many objects.
            mocap: share of the people in poses of motion capture, except people far away.
            cloth: share of the garments made of real cloth.
            avatars: share of the people who are avatars.
        """
        draws = Draws(count, generator)
        distant = draws.chance(far) if far else None
        people = render(
            self.body,
            draws,
            self.size,
            difficulty,
            never,
            closed=pictures > 0,
            wide=wide,
            far=distant,
            coats=coats,
            bare=bare,
            mocap=mocap,
            captured=self.captured if mocap else None,
            cloth=cloth,
            fabric=self.fabric if cloth else None,
            modelled=avatars,
            avatars=self.avatars if avatars else None,
        )
        if pictures:
            album = self.held_out_pictures if held_out_pictures else self.pictures
            picture = background(draws, people, self.size, difficulty, never, album, pictures, clutter)
            people = in_its_light(draws, people, picture)
        else:
            picture = background(draws, people, self.size, difficulty, never, clutter=clutter)
        picture, _ = _neighbour(draws, people, picture, 0.35 * difficulty, (0.4, 1.2))
        picture, _ = _neighbour(draws, people, picture, 0.2 * difficulty, (0.5, 1.3))
        picture = torch.lerp(picture, people.rgb, people.alpha)
        picture, hidden = _neighbour(draws, people, picture, 0.14 * difficulty, (0.8, 1.2))
        for _ in range(2):
            picture, mask = add_shape(draws, picture, 0.25 * max(0.0, difficulty - 0.1), 0.7)
            hidden = torch.maximum(hidden, mask)
        picture = damage(draws, picture, difficulty)
        if distant is not None:
            picture = _few_pixels(draws, picture, distant)
        picture, outside = _picture_edge(draws, picture, 0.15 * difficulty)
        hidden = torch.maximum(hidden, outside)
        relative = people.joints_m[..., 2:] - people.joints_m[:, :1, 2:]
        images = (picture.flip(1).permute(0, 2, 3, 1) * 255).round().to(torch.uint8).contiguous()
        return Crops(
            images=images,
            joints=torch.cat([people.joints_px, relative * 1000], -1),
            camera_mm=people.joints_m * 1000,
            intrinsics=torch.cat([people.focal[:, None].expand(-1, 2), people.center], -1),
            boxes=people.box,
            visible=_visible(people, hidden),
        )


def _visible(people: People, hidden: Tensor) -> Tensor:
    size = hidden.shape[-1]
    nearest = people.joints_px.round()
    inside = ((nearest >= 0) & (nearest < size)).all(-1)
    cell = nearest.clamp(0, size - 1).long()
    cell = cell[..., 1] * size + cell[..., 0]
    surface_m = people.depth_m.flatten(1).gather(1, cell)
    free = hidden.flatten(1).gather(1, cell) < 0.5
    return inside & free & (surface_m > people.joints_m[..., 2] - HIDDEN_MM / 1000)


def _neighbour(
    draws: Draws, people: People, picture: Tensor, probability: float, reach: tuple[float, float]
) -> tuple[Tensor, Tensor]:
    """Put another person of the batch over the picture, to the left or right; also returns the mask, [N, 1, S, S]."""
    size = picture.shape[-1]
    covered = torch.zeros_like(picture[:, :1])
    chosen = (draws.chance(probability) & (draws.count > 1)).nonzero()[:, 0]
    if not len(chosen):
        return picture, covered
    some = draws.of(len(chosen))
    other = (chosen + 1 + some.integers(draws.count - 1)) % draws.count
    zoom, mirrored, side = some.log_uniform(0.75, 1.8), some.sign(), some.sign()
    move = torch.zeros(len(chosen), 2, 3, device=draws.device)
    move[:, 0, 0], move[:, 1, 1] = zoom * mirrored, zoom
    move[:, 0, 2] = -side * some.uniform(*reach) * zoom * mirrored
    move[:, 1, 2] = -some.uniform(-0.4, 0.5) * zoom
    source = torch.cat([people.rgb * people.alpha, people.alpha], 1)[other]
    layer = F.grid_sample(source, F.affine_grid(move, [len(chosen), 4, size, size], align_corners=False), align_corners=False)
    picture, covered = picture.clone(), covered.clone()
    picture[chosen] = picture[chosen] * (1 - layer[:, 3:]) + layer[:, :3] * some.uniform(0.6, 1.1, 1, 1, 1)
    covered[chosen] = layer[:, 3:]
    return picture.clamp(0, 1), covered


FEW_PIXELS = (56, 80, 112, 160)
"""Sides of the crops, in the camera's own pixels, of people far away: they are 45 to 130 px tall."""


def _few_pixels(draws: Draws, picture: Tensor, chosen: Tensor) -> Tensor:
    """Some of the pictures as they look when such a small part of a camera's picture is enlarged."""
    size, which, result = picture.shape[-1], draws.integers(len(FEW_PIXELS)), picture
    for number, pixels in enumerate(FEW_PIXELS):
        some = (chosen & (which == number)).nonzero()[:, 0]
        if len(some) and pixels < size:
            small = F.interpolate(picture[some], size=(pixels, pixels), mode="bilinear", antialias=True)
            small = _by_a_camera(draws.of(len(some)), small)
            result = result.index_copy(0, some, F.interpolate(small, size=(size, size), mode="bilinear"))
    return result


def _by_a_camera(draws: Draws, picture: Tensor) -> Tensor:
    """Colour at half the resolution, as in video, and edges sharpened by the camera, with bright rims."""
    size = picture.shape[-1]
    grey = picture.mean(1, keepdim=True)
    colour = F.interpolate(F.avg_pool2d(picture - grey, 2), size=(size, size), mode="bilinear")
    smooth = F.avg_pool2d(F.pad(grey, (1, 1, 1, 1), mode="replicate"), 3, 1)
    sharper = draws.uniform(0, 1.8, 1, 1, 1) * draws.chance(0.6, 1, 1, 1)
    return (grey + colour + sharper * (grey - smooth)).clamp(0, 1)


def _picture_edge(draws: Draws, picture: Tensor, probability: float) -> tuple[Tensor, Tensor]:
    """Black beyond one edge, as when a crop extends beyond its picture; also returns the mask, [N, 1, S, S]."""
    size = picture.shape[-1]
    line = torch.arange(size, device=draws.device) < draws.uniform(0.03, 0.2, 1) * size
    side = draws.integers(4)[:, None, None]
    band = torch.where(side % 2 == 0, line[:, None, :], line[:, :, None]).expand(-1, size, size)
    band = torch.where(side < 2, band, band.flip(1, 2)) & draws.chance(probability, 1, 1)
    outside = band[:, None].float()
    return picture * (1 - outside), outside


def damage(draws: Draws, picture: Tensor, difficulty: float) -> Tensor:
    """Blur, low resolution, exposure, colour cast, grey pictures, noise and blocks, stronger with the difficulty."""
    size, strength = picture.shape[-1], 0.35 + 0.65 * difficulty

    def reduced(factor: int) -> Tensor:
        small = F.avg_pool2d(picture, factor)
        return F.interpolate(small, size=(size, size), mode="bilinear", align_corners=False)

    kind = draws.uniform(0, 1, 1, 1, 1)
    smooth = F.avg_pool2d(F.pad(picture, (1, 1, 1, 1), mode="replicate"), 3, 1)
    result = torch.where(kind < 0.25, smooth, torch.lerp(picture, smooth, 0.3))
    result = torch.where((kind > 0.25) & (kind < 0.25 + 0.2 * difficulty), reduced(2), result)
    result = torch.where(kind > 1 - 0.08 * difficulty, reduced(4), result)
    result = result * draws.normal(0.2 * strength, 1, 1, 1).exp() * (1 + draws.normal(0.05 * strength, 3, 1, 1))
    mean = result.mean((1, 2, 3), keepdim=True)
    result = (result - mean) * (1 + draws.uniform(-0.35, 0.3, 1, 1, 1) * strength) + mean
    grey = result.mean(1, keepdim=True)
    colourful = (1 + draws.uniform(-0.6, 0.3, 1, 1, 1) * strength) * ~draws.chance(0.06 * difficulty, 1, 1, 1)
    result = grey + (result - grey) * colourful
    result = result + draws.normal(0.06 * difficulty, 3, size, size) * draws.uniform(0, 1, 1, 1, 1) ** 3
    blocks = F.interpolate(F.avg_pool2d(result, 8), scale_factor=8.0, mode="nearest")
    detail = (result - blocks) / (step := draws.uniform(0.02, 0.12, 1, 1, 1))
    coarse = blocks + detail.round() * step
    return torch.where(draws.chance(0.25 * difficulty, 1, 1, 1), coarse, result).clamp(0, 1)
