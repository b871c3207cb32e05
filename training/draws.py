"""Random numbers for a batch, all from one generator, so that the seed determines everything on a given device."""

from __future__ import annotations

import math

import torch
from torch import Tensor


class Draws:
    """Draws for `count` items at once; every result is [count, *shape] on the generator's device."""

    def __init__(self, count: int, generator: torch.Generator) -> None:
        self.count = count
        self.generator = generator
        self.device = generator.device

    def uniform(self, low: float | Tensor, high: float | Tensor, *shape: int) -> Tensor:
        return low + (high - low) * torch.rand(self.count, *shape, generator=self.generator, device=self.device)

    def normal(self, deviation: float | Tensor, *shape: int) -> Tensor:
        return deviation * torch.randn(self.count, *shape, generator=self.generator, device=self.device)

    def chance(self, probability: float | Tensor, *shape: int) -> Tensor:
        """True with the given probability."""
        return torch.rand(self.count, *shape, generator=self.generator, device=self.device) < probability

    def sign(self, *shape: int) -> Tensor:
        """-1 or 1."""
        return self.chance(0.5, *shape).float() * 2 - 1

    def integers(self, below: int, *shape: int) -> Tensor:
        return torch.randint(0, below, (self.count, *shape), generator=self.generator, device=self.device)

    def log_uniform(self, low: float, high: float, *shape: int) -> Tensor:
        return self.uniform(math.log(low), math.log(high), *shape).exp()

    def choice(self, shares: list[float]) -> Tensor:
        """[count] indices, drawn with these probabilities."""
        table = torch.tensor(shares, device=self.device)
        return torch.multinomial(table, self.count, replacement=True, generator=self.generator)

    def of(self, count: int) -> Draws:
        """Draws from the same generator for another number of items."""
        return Draws(count, self.generator)
