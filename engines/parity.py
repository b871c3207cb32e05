"""The proof that a model or a detector agrees with the reference: both read the same pictures, and the results are compared.

For each joint, `px` is the distance between the two predictions in the crop, px, and `mm` the difference of their depths, mm.
"""

from __future__ import annotations

import json
import math
from dataclasses import asdict, dataclass, fields
from itertools import product
from typing import Protocol

import numpy as np
from numpy.typing import NDArray

from convnextpose.errors import ModelError, ParityError
from convnextpose.files import parse_json
from convnextpose.variants import INPUT_SIZE
from convnextpose.weights import Deviation
from engines.layouts import DetectedBoxes
from engines.pose import PosePredictor
from engines.session import SessionDescription
from engines.typed_json import decode


@dataclass(frozen=True)
class ParityLimits:
    """Limits of the deviation of a model from the reference; each positive.

    Attributes:
        mean_px, max_px: mean and largest distance in the crop, px.
        mean_mm, max_mm: mean and largest difference of depth, mm.
        max_score: largest difference of a score (0..1).
    """

    mean_px: float
    max_px: float
    mean_mm: float
    max_mm: float
    max_score: float = 0.05

    def __post_init__(self) -> None:
        """Check that each is a positive number."""
        for field in fields(self):
            value = getattr(self, field.name)
            if not (math.isfinite(value) and value > 0):
                raise ParityError(f"expected a positive {field.name}, received {value}")

    def hold(self, found: Deviation) -> bool:
        """Whether a deviation is within all limits; NaN is not."""
        return all(getattr(found, field.name) <= getattr(self, field.name) for field in fields(self))


FRAMES = 4
"""Largest number of frames for the proof of a detector: a large detector must run them at once with little memory."""

FP32_LIMITS = ParityLimits(mean_px=1e-3, max_px=1e-2, mean_mm=1e-2, max_mm=1e-1, max_score=1e-3)
"""Limits for a model in FP32: only the order of its sums may differ."""

LIMITS = {
    "fp32": FP32_LIMITS,
    "fp16": ParityLimits(mean_px=0.1, max_px=1.0, mean_mm=0.5, max_mm=5.0, max_score=0.02),
    "bf16": ParityLimits(mean_px=0.1, max_px=2.0, mean_mm=1.0, max_mm=10.0, max_score=0.02),
    "int8": ParityLimits(mean_px=0.5, max_px=5.0, mean_mm=5.0, max_mm=50.0, max_score=0.1),
}
"""Limits by precision. A px of the crop is about 10 mm for a person of 2 m who fills it."""


@dataclass(frozen=True)
class Differences:
    """Mean, 95th percentile and maximum of some differences, in the unit that their name states."""

    mean: float
    p95: float
    max: float

    @classmethod
    def of(cls, values: NDArray[np.floating]) -> Differences:
        """From all values of an array."""
        return cls(float(values.mean()), float(np.percentile(values, 95)), float(values.max()))


@dataclass(frozen=True)
class JointParity:
    """One joint's differences.

    Attributes:
        joint: its name.
        px: distances in the crop, px.
        mm: differences of depth, mm.
    """

    joint: str
    px: Differences
    mm: Differences


@dataclass(frozen=True)
class ParityReport:
    """The comparison of a model with the reference.

    Attributes:
        model: the model's name.
        checkpoint_sha256: hash of the checkpoint that both run.
        reference: the reference's runtime.
        candidate: the runtime that was compared with it.
        crops: number of crops.
        limits: the limits for the candidate.
        px: distances in the crop over all joints, px.
        mm: differences of depth over all joints, mm.
        max_score: the largest difference of a score.
        joints: the same for each joint, in the model's order.
    """

    model: str
    checkpoint_sha256: str
    reference: SessionDescription
    candidate: SessionDescription
    crops: int
    limits: ParityLimits
    px: Differences
    mm: Differences
    max_score: float
    joints: tuple[JointParity, ...]

    @property
    def passed(self) -> bool:
        """Whether everything is within the limits."""
        return self.limits.hold(self.deviation)

    @property
    def deviation(self) -> Deviation:
        """The candidate's deviation over all joints."""
        found = (self.px.mean, self.px.max, self.mm.mean, self.mm.max, self.max_score)
        return Deviation(*found, self.crops, runtime=self.candidate.name)

    @property
    def worst(self) -> tuple[JointParity, ...]:
        """The joints, the one that exceeds the limits most (or comes closest to them) first."""
        return tuple(
            sorted(self.joints, key=lambda j: max(j.px.max / self.limits.max_px, j.mm.max / self.limits.max_mm), reverse=True)
        )

    def check(self) -> None:
        """Refuse differences beyond the limits.

        Raises:
            ParityError: names the worst joints.
        """
        if not self.passed:
            worst = ", ".join(f"{j.joint} ({j.px.max:.3g} px, {j.mm.max:.3g} mm)" for j in self.worst[:3])
            raise ParityError(f"{self}; worst joints: {worst}")

    def __str__(self) -> str:
        """One readable line."""
        limits = self.limits
        return (
            f"{self.candidate.name} ({self.candidate.precision}) {'agrees' if self.passed else 'disagrees'} with "
            f"{self.reference.name} on {self.crops} crops: mean {self.px.mean:.2g} px and {self.mm.mean:.2g} mm, largest "
            f"{self.px.max:.2g} px and {self.mm.max:.2g} mm, scores within {self.max_score:.2g} (limits: mean "
            f"{limits.mean_px:g} px and {limits.mean_mm:g} mm, largest {limits.max_px:g} px and {limits.max_mm:g} mm, scores "
            f"{limits.max_score:g})"
        )

    def to_json(self) -> str:
        """The report as JSON."""
        return json.dumps(asdict(self), indent=2)

    @classmethod
    def from_json(cls, text: str) -> ParityReport:
        """The report that `to_json` wrote.

        Raises:
            ParityError: the text is no such report.
        """
        try:
            return decode(cls, parse_json(text))
        except ValueError as error:
            raise ParityError(f"expected a parity report in JSON, received something else: {error}") from error


@dataclass(frozen=True)
class LayerSensitivity:
    """The effect of a single layer in INT8 on the poses, while all others stay in FP16.

    Attributes:
        layer: its name.
        mean_px: mean distance in the crop to the reference, px.
        mean_mm: mean difference of depth to the reference, mm.
    """

    layer: str
    mean_px: float
    mean_mm: float

    def __str__(self) -> str:
        """In readable form."""
        return f"{self.layer} ({self.mean_px:.2g} px, {self.mean_mm:.2g} mm)"


def compare(
    reference: PosePredictor, candidate: PosePredictor, crops: NDArray[np.uint8], limits: ParityLimits = FP32_LIMITS
) -> ParityReport:
    """Run the same crops [N, 256, 256, 3] (uint8 BGR) through both.

    Raises:
        ModelError: they run different models.
        ParityError: there are no crops, or predictions are not finite.
    """
    if (reference.info.checkpoint_sha256, reference.info.joint_set) != (
        candidate.info.checkpoint_sha256,
        candidate.info.joint_set,
    ):
        raise ModelError(
            f"expected two models of one checkpoint, received {reference.info.name} "
            f"({reference.info.checkpoint_sha256[:12]}) and {candidate.info.name} ({candidate.info.checkpoint_sha256[:12]})"
        )
    if len(crops) == 0:
        raise ParityError("expected one crop or more to compare models on, received none")
    expected, found = reference.run(crops), candidate.run(crops)
    for model, predictions in ((reference, expected), (candidate, found)):
        if not (np.isfinite(predictions.joints).all() and np.isfinite(predictions.scores).all()):
            raise ParityError(f"expected finite predictions from {model.describe()}, received NaN or infinity")
    difference = found.joints.astype(np.float64) - expected.joints
    px, mm = np.hypot(difference[..., 0], difference[..., 1]), np.abs(difference[..., 2])
    return ParityReport(
        model=candidate.info.name,
        checkpoint_sha256=candidate.info.checkpoint_sha256,
        reference=reference.describe(),
        candidate=candidate.describe(),
        crops=len(crops),
        limits=limits,
        px=Differences.of(px),
        mm=Differences.of(mm),
        max_score=float(np.abs(found.scores.astype(np.float64) - expected.scores).max()),
        joints=tuple(
            JointParity(name, Differences.of(px[:, j]), Differences.of(mm[:, j]))
            for j, name in enumerate(candidate.info.joint_set.joints)
        ),
    )


def noise_crops(count: int, seed: int = 0) -> NDArray[np.uint8]:
    """Crops [count, 256, 256, 3] of coloured noise, from single pixels to large blocks, the same for the same seed.

    For checks without pictures of people.
    """
    rng = np.random.default_rng(seed)
    crops = np.empty((count, INPUT_SIZE, INPUT_SIZE, 3), np.uint8)
    for index in range(count):
        block = 2 ** (index % 8)
        cells = rng.integers(0, 256, (INPUT_SIZE // block, INPUT_SIZE // block, 3), np.uint8)
        crops[index] = cells.repeat(block, axis=0).repeat(block, axis=1)
    return crops


MAX_SCORE_ERROR, MAX_BOX_ERROR_PX = 1e-3, 0.1
"""Limits of the deviation of a detector in FP32 from the reference: only the order of its sums may differ."""


@dataclass(frozen=True)
class DetectorParity:
    """The comparison of a people detector with the reference.

    Attributes:
        reference: the reference's runtime.
        candidate: the runtime that was compared with it.
        frames: number of frames.
        boxes: number of compared boxes: those whose rank by score is unambiguous.
        score: the largest difference of the sorted scores.
        box_px: the largest difference of a box's corner, width or height, px of the frame.
    """

    reference: SessionDescription
    candidate: SessionDescription
    frames: int
    boxes: int
    score: float
    box_px: float

    @property
    def passed(self) -> bool:
        """Whether rounding explains all differences."""
        return self.score <= MAX_SCORE_ERROR and self.box_px <= MAX_BOX_ERROR_PX

    def check(self) -> None:
        """Refuse differences that rounding does not explain.

        Raises:
            ParityError: names them.
        """
        if not self.passed:
            raise ParityError(str(self))

    def __str__(self) -> str:
        """One readable line."""
        return (
            f"{self.candidate.name} ({self.candidate.precision}) {'agrees' if self.passed else 'disagrees'} with "
            f"{self.reference.name} on {self.boxes} boxes in {self.frames} frames: scores within {self.score:.2g}, boxes "
            f"within {self.box_px:.2g} px (limits: {MAX_SCORE_ERROR:g} and {MAX_BOX_ERROR_PX:g} px)"
        )


class FrameReader(Protocol):
    """A source of boxes for frames: a `PeopleDetector`, or recorded boxes."""

    def run(self, frames: NDArray[np.uint8]) -> DetectedBoxes:
        """Frames [N, height, width, 3] uint8 BGR to boxes and scores."""
        ...

    def describe(self) -> SessionDescription:
        """The detector that finds or found them."""
        ...


def compare_detectors(reference: FrameReader, candidate: FrameReader, frames: NDArray[np.uint8]) -> DetectorParity:
    """Run the same frames [N, H, W, 3] (uint8 BGR) through both.

    Raises:
        ParityError: the two return different numbers of boxes for a frame.
    """
    expected, found = reference.run(frames), candidate.run(frames)
    if found.boxes.shape != expected.boxes.shape:
        told = " and ".join(str(list(each.boxes.shape)) for each in (expected, found))
        raise ParityError(f"expected as many boxes from {candidate.describe()} as from {reference.describe()}, received {told}")
    # The order of two nearly equal scores may change, so their boxes cannot be compared.
    gap = np.pad(-np.diff(expected.scores, axis=1), ((0, 0), (1, 1)), constant_values=1.0)
    certain = (np.minimum(gap[:, 1:], gap[:, :-1]) > 2 * MAX_SCORE_ERROR) & (expected.scores > 2 * MAX_SCORE_ERROR)
    return DetectorParity(
        reference.describe(),
        candidate.describe(),
        len(frames),
        int(certain.sum()),
        score=float(np.abs(found.scores - expected.scores).max()),
        box_px=float(np.abs(found.boxes - expected.boxes)[certain].max(initial=0.0)),
    )


def frames_of(crops: NDArray[np.uint8], width: int, height: int) -> NDArray[np.uint8]:
    """Frames [M, height, width, 3] uint8 composed of crops of people [N, 256, 256, 3], at most FRAMES.

    In every other frame the crops are halved, so that people have two sizes; those at the right and the lower edge are cut.
    """
    frames = np.zeros((min(len(crops), FRAMES), height, width, 3), np.uint8)
    small = crops.reshape(len(crops), INPUT_SIZE // 2, 2, INPUT_SIZE // 2, 2, 3).mean((2, 4)).astype(np.uint8)
    for number, frame in enumerate(frames):
        parts = small if number % 2 else crops
        side = parts.shape[1]
        places = product(range(0, height, side), range(0, width, side))
        for index, (top, left) in enumerate(places, number):
            place = frame[top : top + side, left : left + side]
            place[:] = parts[index % len(parts), : place.shape[0], : place.shape[1]]
    return frames


def noise_frames(count: int, size: int) -> NDArray[np.uint8]:
    """Frames [N, size, size, 3] uint8 of noise in blocks of many sizes, the same each time; `size` a multiple of 96."""
    rng = np.random.default_rng(0)
    total = np.zeros((count, size, size, 3))
    for cells in (3, 6, 24, 96):
        block = size // cells
        total += rng.normal(128 / 4, 40, (count, cells, cells, 3)).repeat(block, 1).repeat(block, 2)
    return total.clip(0, 255).astype(np.uint8)
