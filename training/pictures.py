"""Real pictures without people, as backgrounds: views into panoramas, crops of photographs, surfaces for walls and floors.

They are in data/pictures; LICENSES.md has a line for each, and `training.bake_pictures` made them. Those in `held_out/` are
never used in training.
"""

from __future__ import annotations

from pathlib import Path

import cv2
import numpy as np
import torch
import torch.nn.functional as F  # noqa: N812
from torch import Tensor

from training.draws import Draws

FOLDER = Path(__file__).parent / "data" / "pictures"

DETAIL_PX = 256
"""Views are sampled at least this finely, so that smaller ones are averages of the pixels and not single samples."""

LARGE_PX = 600
"""A photograph larger than this is stored a second time at half its size, so that a crop can show most of it."""

BLURS_PX = (2, 4, 8)
"""Out of focus: means over squares of this many px of 256, with smooth transitions."""


class Pictures:
    """All pictures of a folder on a device, their pixels in one list, so that a batch can sample many at once.

    Attributes:
        names: names of the first pictures, which have a file.
        pixels: [T, 3] uint8 RGB: row after row, picture after picture.
        first: [K] where each picture begins in `pixels`.
        height, width: [K] px.
        sun: [K] the azimuth of a panorama's brightest part, rad.
        panoramas, flats: indices of the pictures of each kind.
    """

    def __init__(self, device: torch.device | str = "cpu", held_out: bool = False) -> None:
        """Decode the pictures used in training, or the held-out ones."""
        paths = sorted((FOLDER / "held_out" if held_out else FOLDER).glob("*.jpg"))
        if not paths:
            raise FileNotFoundError(f"expected pictures in {FOLDER}, found none: python -m training.bake_pictures makes them")
        pictures = [_read(path) for path in paths]
        around = [path.name.startswith("panorama-") for path in paths]
        large = [p for p, a in zip(pictures, around, strict=True) if not a and max(p.shape) > LARGE_PX]
        pictures += [cv2.resize(p, None, fx=0.5, fy=0.5, interpolation=cv2.INTER_AREA) for p in large]
        around += [False] * len(large)
        sizes = torch.tensor([picture.shape[:2] for picture in pictures], device=device)
        self.pixels = torch.as_tensor(np.concatenate([picture.reshape(-1, 3) for picture in pictures]), device=device)
        self.names = [path.stem for path in paths]
        self.height, self.width = sizes.unbind(1)
        self.first = sizes.prod(1).cumsum(0) - sizes.prod(1)
        self.sun = torch.tensor([_sun(p) if a else 0.0 for p, a in zip(pictures, around, strict=True)], device=device)
        self.panoramas = torch.tensor([k for k, a in enumerate(around) if a], device=device)
        self.flats = torch.tensor([k for k, a in enumerate(around) if not a], device=device)

    def sample(self, which: Tensor, x: Tensor, y: Tensor) -> Tensor:
        """[N, 3, H, W] in 0..1: pictures [N] at x, y [N, H, W] (px, centres at whole numbers), with bilinear interpolation.

        Horizontally a picture repeats; beyond the top and bottom its first and last rows repeat.
        """
        first, height, width = (t[which, None, None] for t in (self.first, self.height, self.width))
        left, top = x.floor(), y.floor()
        across, down = (x - left)[..., None], (y - top)[..., None]
        left, right = left.long() % width, (left.long() + 1) % width
        upper, lower = (first + row.clamp_min(0).minimum(height - 1) * width for row in (top.long(), top.long() + 1))
        above, below = (
            torch.lerp(self.pixels[row + left].float(), self.pixels[row + right].float(), across) for row in (upper, lower)
        )
        return torch.lerp(above, below, down).permute(0, 3, 1, 2) / 255

    def around(self, draws: Draws, rays: Tensor, up: Tensor, light: Tensor, size: int) -> Tensor:
        """[N, 3, S, S]: what a camera sees of a panorama, with a level horizon and the sun roughly where the light comes from.

        Args:
            draws: random numbers for N views.
            rays: [N, S, S, 2] x and y of the directions through the pixels at z = 1, camera axes.
            up: [N, 3] the world's up in camera axes.
            light: [N, 3] toward the light, camera axes.
            size: S, px.
        """
        which = self.panoramas[draws.integers(len(self.panoramas))]
        narrowest = 0.8 * (1024 / self.width[which]) ** 0.7  # rad; a narrow view of a coarse panorama shows no detail
        angle = narrowest + (1.9 - narrowest) * draws.uniform(0, 1)
        wider = (2 * torch.tan(angle / 2) / (rays[:, 0, -1, 0] - rays[:, 0, 0, 0])).clamp_min(1)
        forward = torch.tensor([0.0, 0.0, 1.0], device=draws.device) - up * up[:, 2:]
        forward = F.normalize(forward, dim=-1)
        axes = torch.stack([torch.linalg.cross(forward, up), forward, up], -1)  # world from camera, transposed
        seen = F.pad(rays * wider[:, None, None, None], (0, 1), value=1.0).flatten(1, 2) @ axes
        towards = (light[:, None] @ axes)[:, 0]
        turn = draws.sign()
        heading = self.sun[which] - turn * torch.atan2(towards[:, 0], towards[:, 1]) + draws.normal(0.4)
        heading = torch.where(draws.chance(0.7), heading, draws.uniform(0, 2 * torch.pi))
        azimuth = turn[:, None] * torch.atan2(seen[..., 0], seen[..., 1]) + heading[:, None]
        height = torch.atan2(seen[..., 2], torch.hypot(seen[..., 0], seen[..., 1]))
        return self.toward(which, azimuth.unflatten(1, (size, size)), height.unflatten(1, (size, size)))

    def toward(self, which: Tensor, azimuth: Tensor, height: Tensor) -> Tensor:
        """[N, 3, H, W]: what panoramas [N] show in directions [N, H, W] (rad, clockwise and above the horizon)."""
        x = (azimuth / (2 * torch.pi) + 0.5) * self.width[which, None, None] - 0.5
        y = (0.5 - height / torch.pi) * self.height[which, None, None] - 0.5
        return self.sample(which, x, y)

    def across(self, draws: Draws, size: int) -> Tensor:
        """[N, 3, S, S]: crops of photographs and surfaces, rotated, nearer or farther, some seen from the side."""
        line = torch.linspace(-0.5, 0.5, size, device=draws.device)
        v, u = torch.meshgrid(line, line, indexing="ij")
        slant = draws.normal(0.35, 2, 1, 1) * draws.chance(0.6, 1, 1, 1)
        away = (1 + slant[:, 0] * u + slant[:, 1] * v).clamp_min(0.35)
        angle = draws.normal(0.1, 1, 1) + draws.chance(0.12, 1, 1) * draws.sign(1, 1) * torch.pi / 2
        x = (u * angle.cos() - v * angle.sin()) / away * draws.sign(1, 1)
        y = (v * angle.cos() + u * angle.sin()) / away
        which = self.flats[draws.integers(len(self.flats))]
        shape = torch.stack([self.width[which], self.height[which]], 1).float()[..., None, None]
        extent = DETAIL_PX * draws.log_uniform(0.4, 1.6, 1, 1)  # in the picture's own pixels
        extent = torch.minimum(extent, 1.3 * shape.amax(1))
        margin = torch.minimum(0.5 * extent[:, None], 0.5 * shape)  # within the picture if it is large enough
        start = margin + draws.uniform(0, 1, 2, 1, 1) * (shape - 2 * margin)
        return self.mirrored(which, x * extent + start[:, 0], y * extent + start[:, 1])

    def floor(self, draws: Draws, across_m: Tensor, along_m: Tensor) -> Tensor:
        """[N, 3, S, S]: surfaces laid on the floor, which the pixels show at `across_m` and `along_m` [N, S, S]."""
        which = self.flats[draws.integers(len(self.flats))]
        pixels = DETAIL_PX / draws.log_uniform(0.5, 2.5, 1, 1)  # for each metre
        return self.mirrored(which, across_m * pixels, along_m * pixels)

    def mirrored(self, which: Tensor, x: Tensor, y: Tensor) -> Tensor:
        """As `sample`, but mirrored beyond its edges."""
        shape = (self.width[which, None, None] - 1, self.height[which, None, None] - 1)
        x, y = (last - (last - p.abs() % (2 * last)).abs() for p, last in zip((x, y), shape, strict=True))
        return self.sample(which, x, y)


def _read(path: Path) -> np.ndarray:
    """[H, W, 3] uint8 RGB."""
    picture = cv2.imread(str(path), cv2.IMREAD_COLOR)
    if picture is None:
        raise ValueError(
            f"expected a picture in {path}, received what OpenCV cannot decode: take the file from the repository again"
        )
    return cv2.cvtColor(picture, cv2.COLOR_BGR2RGB)


def _sun(picture: np.ndarray) -> float:
    """The azimuth (rad) from which the light comes in an equirectangular picture [H, W, 3]."""
    light = (picture[: picture.shape[0] // 2].astype(np.float64).mean(2) / 255) ** 8
    azimuth = ((np.arange(picture.shape[1]) + 0.5) / picture.shape[1] - 0.5) * 2 * np.pi
    columns = light.sum(0)
    return float(np.arctan2((columns * np.sin(azimuth)).sum(), (columns * np.cos(azimuth)).sum()))


def developed(draws: Draws, picture: Tensor) -> Tensor:
    """Pictures [N, 3, S, S] with other exposure, colours and contrast, some out of focus."""
    gain = draws.normal(0.25, 1, 1, 1).exp() * (1 + draws.normal(0.06, 3, 1, 1))
    grey = picture.mean(1, keepdim=True)
    picture = torch.lerp(grey, picture, draws.uniform(0.3, 1.3, 1, 1, 1)) * gain
    middle = picture.mean((1, 2, 3), keepdim=True)
    picture = middle + (picture - middle) * draws.uniform(0.6, 1.15, 1, 1, 1)
    kind = draws.integers(3 * len(BLURS_PX))
    size = picture.shape[-1]
    for number, side in enumerate(BLURS_PX):
        if (cells := size * side // DETAIL_PX) > 1 and len(some := (kind == number).nonzero()[:, 0]):
            small = F.avg_pool2d(picture[some], cells)
            small = F.avg_pool2d(F.pad(small, (1, 1, 1, 1), mode="replicate"), 3, 1)
            picture[some] = F.interpolate(small, size=(size, size), mode="bilinear", align_corners=False)
    return picture.clamp(0, 1)
