"""The plan of a training run, fixed before its first step: every number that its result depends on."""

from __future__ import annotations

import math
from dataclasses import dataclass

FROM_DATA = {"mocap": 0.5, "cloth": 0.5, "avatars": 0.35}
"""For runs with a data folder: shares of people and garments for which its motion capture, cloth and avatars are used."""


@dataclass(frozen=True)
class Plan:
    """The numbers of a run.

    Attributes:
        variant: XS, S, M or L.
        seed: determines crops, batches and initial weights.
        size: side of the crops, px: 128 to begin cheaply, 256 in the end.
        steps: total number of updates, over which the learning rate falls to its final value.
        batch: crops in an update.
        rate: highest learning rate.
        last_rate: the final learning rate, as a share of `rate`.
        warmup: steps in which the rate rises.
        decay: weight decay, on weights of convolutions only.
        clip: largest norm of the gradient.
        average: decay of the moving average of weights and batch-norm statistics, for each step.
        reuse: how often a rendered crop is used, on average.
        chunk: crops rendered at a time.
        kept: chunks kept at a time.
        filled: chunks rendered before the first step.
        first_difficulty, last_difficulty: highest difficulty at the start, and after `ramp` of the run.
        ramp: share of the run in which the difficulty rises.
        pictures: share of the crops with a real picture as background.
        wide: share of the people who are moved far from their family's pose, all over the ranges of motion.
        far: share of the people who are seen from far away and above, in few pixels.
        coats: share of the people who wear a jacket or a coat.
        bare: share of the people with bare arms and legs, as in sport.
        clutter: share of the people in front of many objects.
        turned: share of a batch's crops that are rotated in their plane and zoomed a little, differently each time.
        mocap: share of the people in poses of motion capture.
        cloth: share of the garments made of real cloth.
        avatars: share of the people who are avatars.
        real: share of a batch's crops that show people in real pictures.
        recoloured: share of a batch's crops that lose colour, three in eight of them all of it; the same share, drawn
            separately, gets other tones.
    """

    variant: str = "XS"
    seed: int = 1
    size: int = 256
    steps: int = 100_000
    batch: int = 16
    rate: float = 2e-3
    last_rate: float = 0.02
    warmup: int = 200
    decay: float = 0.01
    clip: float = 5.0
    average: float = 0.998
    reuse: float = 3.6
    chunk: int = 32
    kept: int = 64
    filled: int = 16
    first_difficulty: float = 0.12
    last_difficulty: float = 0.95
    ramp: float = 0.5
    pictures: float = 0.6
    wide: float = 0.35
    far: float = 0.3
    coats: float = 0.35
    bare: float = 0.25
    clutter: float = 0.3
    mocap: float = 0.0
    cloth: float = 0.0
    avatars: float = 0.0
    real: float = 0.0
    turned: float = 0.5
    recoloured: float = 0.5

    def __post_init__(self) -> None:
        """Check values that would otherwise fail late or silently."""
        if not 0 < self.filled <= self.kept or self.reuse <= 0 or self.size % 32 or self.seed >= 2**40:
            raise ValueError(f"expected 0 < filled <= kept, reuse > 0, a size in 32s and a seed under 2**40, received {self}")
        shares = {**self.shares(), "real": self.real, "turned": self.turned, "recoloured": self.recoloured}
        if not all(0 <= share <= 1 for share in shares.values()):
            raise ValueError(f"expected shares in 0..1, received {shares}")
        if self.real and self.batch == self.real_crops:
            raise ValueError(
                f"expected a rendered crop in a batch of {self.batch}, received the share {self.real} of real ones"
            )

    @property
    def real_crops(self) -> int:
        """Crops of a batch that show people in real pictures."""
        return round(self.batch * self.real)

    @property
    def needs_data(self) -> bool:
        """Whether a share needs the data folder."""
        return any((self.real, self.mocap, self.cloth, self.avatars))

    def shares(self) -> dict[str, float]:
        """The arguments of `Renderer.batch` about the people, by name."""
        return {
            "pictures": self.pictures,
            "wide": self.wide,
            "far": self.far,
            "coats": self.coats,
            "bare": self.bare,
            "clutter": self.clutter,
            "mocap": self.mocap,
            "cloth": self.cloth,
            "avatars": self.avatars,
        }

    def chunks_before(self, step: int) -> int:
        """Chunks rendered before a step."""
        return self.filled + int(step * (self.batch - self.real_crops) / self.reuse / self.chunk)

    def hardest(self, chunk: int) -> float:
        """The highest difficulty of a chunk."""
        progress = min(1.0, chunk / max(1.0, self.ramp * self.chunks_before(self.steps)))
        return self.first_difficulty + (self.last_difficulty - self.first_difficulty) * progress

    def rate_at(self, step: int) -> float:
        """The learning rate: a linear rise, then half a cosine."""
        fall = 0.5 * (1 + math.cos(math.pi * min(1.0, step / self.steps)))
        return self.rate * min(1.0, (step + 1) / self.warmup) * (self.last_rate + (1 - self.last_rate) * fall)
