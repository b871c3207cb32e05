"""What people look like: skin, hair, clothes and their folds, drawn at random for each point of the surface."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from training.body import Surface
from training.draws import Draws
from training.fabric import Fabric

SKIN = ((0.96, 0.82, 0.74), (0.88, 0.69, 0.58), (0.74, 0.54, 0.42), (0.52, 0.35, 0.25), (0.29, 0.19, 0.14))
HAIR = ((0.06, 0.05, 0.05), (0.1, 0.08, 0.07), (0.16, 0.1, 0.07), (0.2, 0.13, 0.09), (0.32, 0.2, 0.12), (0.6, 0.45, 0.25),
        (0.45, 0.2, 0.1), (0.6, 0.6, 0.6))  # fmt: skip


@dataclass(frozen=True)
class Appearance:
    """Colours [N, P, 3] in 0..1 RGB, distance of cloth and hair from the skin [N, P] (m), and a bend of the normals [N, P, 3]
    that shades like folds."""

    colours: Tensor
    thickness_m: Tensor
    folds: Tensor


def random_colour(draws: Draws, difficulty: float = 1.0, saturation: float = 0.9, darkest: float = 0.05) -> Tensor:
    """[N, 3] RGB: any hue; mostly muted, like dyed cloth, and more so at a high difficulty."""
    hue, value = draws.uniform(0, 6), draws.uniform(darkest + 0.2 * (1 - difficulty), 1)
    strength = draws.uniform(0, 1) ** (0.5 + 1.3 * difficulty) * saturation
    channel = (torch.tensor([5.0, 3.0, 1.0], device=draws.device) + hue[:, None]) % 6
    drop = torch.minimum(channel, 4 - channel).clamp(0, 1)
    return value[:, None] * (1 - strength[:, None] * drop)


def dress_up(
    draws: Draws,
    surface: Surface,
    difficulty: float,
    coats: float = 0.0,
    bare: float = 0.0,
    cloth: float = 0.0,
    fabric: Fabric | None = None,
) -> Appearance:
    """An appearance for each person.

    A share `bare` of them has bare arms and legs, as in sport; a share `coats` wears a jacket or a coat over the rest. A share
    `cloth` of the garments is made of real `fabric`.
    """
    wardrobe = _Wardrobe(draws, surface, difficulty)
    wardrobe.skin()
    wardrobe.clothes()
    if bare:
        wardrobe.undress(bare)
    if coats:
        wardrobe.coat(coats)
    wardrobe.head()
    return wardrobe.finish(cloth, fabric)


class _Wardrobe:
    """Layers put on one after the other; each mask is [N, P] or broadcasts to it.

    Until the end a point has only the number of its material, the share of the material's second colour and its brightness:
    three numbers are cheaper to move than colours.
    """

    def __init__(self, draws: Draws, surface: Surface, difficulty: float) -> None:
        self.draws, self.surface, self.difficulty = draws, surface, difficulty
        shape = (draws.count, len(surface.mean))
        self.on_trunk = (surface.along_arm < -5) & (surface.along_leg < -5) & ~surface.parts["head"]
        self.palette: list[tuple[Tensor, Tensor]] = []
        self.garments: dict[int, str] = {}
        self.material = torch.zeros(shape, dtype=torch.uint8, device=draws.device)
        self.mix = torch.zeros(shape, device=draws.device)
        self.shade = torch.ones(shape, device=draws.device)
        self.thickness_m = torch.zeros(shape, device=draws.device)
        self.folds = torch.zeros(*shape, 3, device=draws.device)

    def paint(
        self,
        mask: Tensor,
        colour: Tensor,
        thickness_m: Tensor | float | None = None,
        pattern: tuple[Tensor, Tensor] | None = None,
        shade: Tensor | float = 1.0,
        garment: str | None = None,
    ) -> None:
        """Colour [N, 3]; thickness [N, 1] or [N, P], m; a pattern is a second colour [N, 3] and its share, [N, P].

        With the name of a garment (from `fabric.WORN_AS`) it can be made of real cloth.
        """
        if garment is not None:
            self.garments[len(self.palette)] = garment
        second, mix = pattern if pattern is not None else (colour, 0.0)
        self.palette.append((colour, second))
        self.material = torch.where(mask, torch.tensor(len(self.palette) - 1, dtype=torch.uint8), self.material)
        self.mix = torch.where(mask, mix, self.mix)
        self.shade = torch.where(mask, shade, self.shade)
        if thickness_m is not None:
            self.thickness_m = torch.where(mask, thickness_m, self.thickness_m)

    def finish(self, cloth: float, fabric: Fabric | None) -> Appearance:
        first, second = (torch.stack(colours, 1) for colours in zip(*self.palette, strict=True))
        chosen = self.material.long()[..., None].expand(-1, -1, 3)
        base = first.gather(1, chosen)
        colours = torch.addcmul(base, second.gather(1, chosen) - base, self.mix[..., None])
        if cloth and fabric is not None:
            for number, garment in self.garments.items():
                worn = (self.material == number) & self.maybe(cloth)
                colours = torch.where(
                    worn[..., None], fabric.lay(self.draws, garment, self.surface.mean, self.surface.normals), colours
                )
        colours = colours * self.shade[..., None]
        return Appearance(colours.clamp(0, 1), self.thickness_m, self.folds)

    def each(self, low: float, high: float) -> Tensor:
        """[N, 1] uniform."""
        return self.draws.uniform(low, high, 1)

    def maybe(self, probability: float) -> Tensor:
        """[N, 1] bool."""
        return self.draws.chance(probability, 1)

    def waves(self, count: int, frequency: Tensor | float) -> Tensor:
        """[N, P, count] sines over the body at rest, in random directions; `frequency` in rad/m."""
        direction = self.draws.normal(1.0, 3, count) * frequency
        return torch.sin(torch.matmul(self.surface.mean, direction) + self.draws.uniform(0, 6.3, 1, count))

    def skin(self) -> None:
        parts, draws = self.surface.parts, self.draws
        table = torch.tensor(SKIN, device=draws.device)
        tone = draws.uniform(0, 1) * (len(SKIN) - 1.001)
        skin = torch.lerp(table[tone.long()], table[tone.long() + 1], tone.frac()[:, None])
        self.skin_colour = (skin * (1 + draws.normal(0.05, 3))).clamp(0, 1)
        everywhere = torch.ones(1, len(self.surface.mean), dtype=torch.bool, device=draws.device)
        self.paint(everywhere, self.skin_colour, shade=1 + 0.04 * self.waves(1, 40.0)[..., 0])
        self.paint(parts["lips"][None], self.skin_colour * torch.tensor([0.85, 0.6, 0.6], device=draws.device))
        self.paint(parts["eye"][None], torch.full_like(skin, 0.85))

    def pattern(self, waves: Tensor) -> tuple[Tensor, Tensor]:
        """A second colour [N, 3] and its share [N, P]: plain, stripes, checks, mottled; sometimes a print on the chest."""
        surface, draws = self.surface, self.draws
        stripes = (waves[..., 0] > draws.uniform(-0.6, 0.6, 1)).float()
        checks = ((waves[..., 0] > 0).float() + (waves[..., 1] > 0).float()) / 2
        mottled = torch.sigmoid(3 * waves.sum(-1))
        kind = draws.uniform(0, 1, 1)
        mask = torch.where(kind < 0.55, 0.0, torch.where(kind < 0.72, stripes, torch.where(kind < 0.84, checks, mottled)))
        near = (surface.trunk - self.each(0.55, 0.75)).abs() < self.each(0.05, 0.2)
        chest = near & (surface.mean[:, 0].abs() < self.each(0.05, 0.12)) & (surface.mean[:, 1] < 0) & self.maybe(0.25)
        mask = torch.where(chest, (waves[..., 2] > 0).float(), mask)
        mask = mask * self.each(0.3, 1) * self.maybe(0.35 + 0.65 * self.difficulty)
        return random_colour(draws, self.difficulty), mask

    def clothes(self) -> None:
        surface, draws, difficulty = self.surface, self.draws, self.difficulty
        arm, leg, trunk, parts = surface.along_arm, surface.along_leg, surface.trunk, surface.parts
        frequency = draws.log_uniform(12, 180, 1, 1)
        upper, lower = self.waves(4, frequency), self.waves(4, draws.log_uniform(12, 180, 1, 1))

        kind = draws.uniform(0, 1, 1)
        hem = torch.where(
            kind < 0.6, self.each(1.75, 2.05), torch.where(kind < 0.85, self.each(0.35, 1.2), self.each(0.1, 0.4))
        )
        waist = self.each(-0.12, 0.25)
        trousers = ((leg > -5) & (leg < hem) & ~parts["foot"]) | (self.on_trunk & (trunk < waist + 0.02))
        dark = torch.where(self.maybe(0.55), 0.45, 1.0)
        flare = self.each(0, 0.05) * self.maybe(0.35) * (leg - 0.6).clamp(0, 1.4)
        loose = self.each(0.003, 0.02) * (1 + 0.2 * lower[..., 3])
        self.paint(
            trousers, random_colour(draws, difficulty, 0.7) * dark, loose + flare, self.pattern(lower), garment="trousers"
        )

        kind = draws.uniform(0, 1, 1)
        sleeve = torch.where(
            kind < 0.45, self.each(1.7, 2.02), torch.where(kind < 0.85, self.each(0.3, 0.9), self.each(-0.1, 0.2))
        )
        neckline = self.each(0.93, 1.1) - 0.12 * self.maybe(0.3)
        top = ((arm > -5) & (arm < sleeve)) | (self.on_trunk & (trunk > waist) & (trunk < neckline))
        top &= ~parts["hand"] | ((sleeve > 1.9) & (arm < 1.98))
        top &= ~self.maybe(0.05 * difficulty)
        top |= self.maybe(0.08) & (leg > -5) & (leg < self.each(0.3, 1.6))
        loose = self.each(0.003, 0.025) * (1 + 0.2 * upper[..., 3]) * (1 + self.maybe(0.25) * (1.2 - trunk).clamp(0, 1))
        self.paint(top, random_colour(draws, difficulty), loose, self.pattern(upper), garment="top")

        socks = (leg > self.each(1.3, 2)) & ~parts["foot"] & ~trousers & self.maybe(0.4)
        self.paint(socks, random_colour(draws, difficulty, 0.3, 0.3))
        shoes = parts["foot"][None] & self.maybe(0.88)
        self.paint(shoes, random_colour(draws, difficulty, 0.6), self.each(0.004, 0.015))
        self.paint(shoes & (surface.mean[:, 2] < surface.mean[:, 2].min() + 0.022), random_colour(draws, difficulty, 0.2))
        bend = torch.stack([upper[..., 1], lower[..., 2], upper[..., 0]], -1)
        self.folds = bend * ((top | trousers) * self.each(0, 0.22))[..., None]

    def undress(self, share: float) -> None:
        """Show skin in place of sleeves and trouser legs, often on the trunk as well, and sometimes on the feet."""
        surface, parts = self.surface, self.surface.parts
        arm, leg, trunk = surface.along_arm, surface.along_leg, surface.trunk
        topless = self.maybe(0.45)
        arms = (arm > -5) & (topless | (arm > self.each(-0.2, 0.6)))
        legs = (leg > self.each(0.05, 1.1)) & (~parts["foot"] | self.maybe(0.5))
        chest = self.on_trunk & (trunk > self.each(-0.05, 0.3)) & topless
        bare = (arms | legs | chest) & self.maybe(share)
        shade = 1 + 0.06 * self.waves(1, self.draws.log_uniform(20, 120, 1, 1))[..., 0]
        self.paint(bare, self.skin_colour, 0.0, shade=shade)
        self.folds = torch.where(bare[..., None], 0.0, self.folds)

    def coat(self, share: float) -> None:
        """Put a coat over the rest, mostly thick and dark: the outline is no longer the body's."""
        surface, draws = self.surface, self.draws
        arm, leg, trunk, parts = surface.along_arm, surface.along_leg, surface.trunk, surface.parts
        short = self.maybe(0.6)
        on_trunk = self.on_trunk & (trunk > torch.where(short, self.each(-0.1, 0.15), -1.0)) & (trunk < self.each(1.0, 1.2))
        sleeves = (arm > -5) & (arm < self.each(1.75, 2.02)) & ~parts["hand"]
        skirts = ~short & (leg > -5) & (leg < self.each(0.15, 1.1))
        worn = (on_trunk | sleeves | skirts) & self.maybe(share)
        waves = self.waves(4, draws.log_uniform(10, 90, 1, 1))
        opened = (surface.mean[:, 1] < 0) & (surface.mean[:, 0].abs() < self.each(0.02, 0.07)) & (arm < -5) & self.maybe(0.3)
        worn = worn & ~opened
        thick = self.each(0.012, 0.055) * (1 + 0.25 * waves[..., 3]) * torch.where(arm > -5, 0.7, 1.0)
        dark = torch.where(self.maybe(0.6), self.each(0.15, 0.5), 1.0)
        self.paint(worn, random_colour(draws, self.difficulty, 0.7) * dark, thick, self.pattern(waves), garment="coat")
        self.folds = torch.where(worn[..., None], waves[..., :3] * self.each(0.05, 0.35)[..., None], self.folds)

    def head(self) -> None:
        surface, draws, difficulty = self.surface, self.draws, self.difficulty
        parts, height, depth = surface.parts, surface.head_height, surface.head_depth
        table = torch.tensor(HAIR, device=draws.device)
        colour = (table[draws.integers(len(HAIR))] * (1 + draws.normal(0.15, 1))).clamp(0, 1)
        self.paint(parts["brow"][None], colour * 0.8)
        self.paint(parts["iris"][None], colour * 0.4)
        beard = parts["head"] & (height < -0.55 - self.each(0, 0.1)) & (depth < 0.9) & ~parts["lips"] & self.maybe(0.18)
        self.paint(beard, 0.9 * colour + 0.1 * self.skin_colour)

        bald, long = self.maybe(0.07 * difficulty), self.maybe(0.4)
        hair = parts["head"] & (height > surface.hairline + draws.normal(0.12, 1)) & ~parts["ear"]
        behind = parts["head"] & (depth > 0.9 + self.each(0, 0.3))
        nape = parts["neck"] & (depth > 0.95)
        back = (surface.trunk > self.each(0.7, 1.05)) & (surface.trunk < 1.25) & (surface.mean[:, 1] > 0)
        back = back & (surface.mean[:, 0].abs() < 0.085) & (surface.along_arm < -5)
        hair = (hair | (long & ~parts["ear"] & (behind | nape | back))) & ~bald
        strands = self.waves(2, draws.log_uniform(60, 200, 1, 1))
        depth_m = torch.where(long, self.each(0.015, 0.045), self.each(0.004, 0.03)) * (1 + 0.2 * strands[..., 1])
        self.paint(hair, colour, depth_m, shade=1 + 0.25 * strands[..., 0])
        hat = self.maybe(0.08 * difficulty) & parts["head"] & (height > torch.where(depth < 0.3, 0.55, 0.35))
        self.paint(hat, random_colour(draws, difficulty), 0.02)
        glasses = self.maybe(0.1) & parts["head"] & (height.abs() < 0.12) & (depth < 0.25)
        glasses = glasses & (surface.mean[:, 0].abs() > 0.012) & (surface.mean[:, 0].abs() < 0.055)
        self.paint(glasses, torch.full_like(colour, 0.06))
