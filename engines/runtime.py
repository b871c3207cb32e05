"""What a runtime is: crops in, joints and scores out, whatever runs the network and on whatever device.

Every exported model has one contract: input `crops` uint8 [N, 256, 256, 3] in OpenCV's BGR order; outputs `joints` float32
[N, J, 3] = (x px in the crop, y px in the crop, z mm relative to the pelvis) and `scores` float32 [N, J] in 0..1.
"""

from __future__ import annotations

import os
from dataclasses import dataclass
from types import TracebackType
from typing import Protocol

import numpy as np
from numpy.typing import NDArray

from convnextpose.errors import GeometryError, ModelError, RuntimeUnavailableError
from convnextpose.files import show
from convnextpose.skeleton import JointSet
from convnextpose.variants import INPUT_SIZE, Variant

PRECISIONS = ("fp32", "fp16", "int8")
"""The precisions that an exported model comes in."""


@dataclass(frozen=True)
class ModelInfo:
    """Which model it is.

    Attributes:
        name: what people call it: `xs` for the package's default weights, otherwise a file's name.
        variant: XS, S, M or L.
        joint_set: order and names of its joints.
        checkpoint_sha256: hash of the checkpoint that it was made from, hexadecimal.
        random: whether its weights are random numbers, so that its poses mean nothing.
        precision: the types that its graph asks for: `fp32`, `fp16`, or `int8` (the rest of it in FP16).
        calibration_sha256: hash of the crops that an INT8 graph was calibrated on, None for the others.
    """

    name: str
    variant: Variant
    joint_set: JointSet
    checkpoint_sha256: str
    random: bool = False
    precision: str = "fp32"
    calibration_sha256: str | None = None

    def __post_init__(self) -> None:
        """Check the precision, which chooses limits and names of files.

        Raises:
            ModelError: there is no such precision.
        """
        if self.precision not in PRECISIONS:
            raise ModelError(f"expected precision {', '.join(PRECISIONS)}, received {show(self.precision)}")


@dataclass(frozen=True)
class RuntimeDescription:
    """What runs the model, as results and reports record it.

    Attributes:
        name: `torch`, `onnxruntime`, `openvino`.
        version: the library's version.
        device: the device's name, e.g. `CPU`.
        precision: `fp32`, `bf16`, ...: what the convolutions really compute in.
        threads: how many threads it computes on.
    """

    name: str
    version: str
    device: str
    precision: str
    threads: int

    def __str__(self) -> str:
        """One line for people."""
        return f"{self.name} {self.version} ({self.precision} on {self.device}, {self.threads} threads)"


@dataclass(frozen=True)
class Predictions:
    """What a runtime gives for N crops.

    Attributes:
        joints: float32 [N, J, 3]: x px and y px in the crop, z mm relative to the pelvis.
        scores: float32 [N, J], 0..1.
    """

    joints: NDArray[np.float32]
    scores: NDArray[np.float32]

    def __post_init__(self) -> None:
        """Check that the shapes fit each other."""
        if self.joints.ndim != 3 or self.joints.shape[2] != 3 or self.scores.shape != self.joints.shape[:2]:
            raise GeometryError(
                f"expected joints [N, J, 3] and scores [N, J], received {self.joints.shape} and {self.scores.shape}"
            )


MIN_MOST_THREADS = 64
"""As many threads may be asked for on any machine: some more than cores do no harm."""

PICTURE_SLACK_PX, SCORE_SLACK, MAX_DEPTH_MM = 1.0, 1e-3, 10_000.0
"""How far a prediction may be outside its range. A joint is a mean over the crop's pixels, so that only rounding leads out of
it; depths are within 1,000 mm of the pelvis for every variant, and within ten times that for any body."""


def usable_cores() -> int:
    """How many CPU cores this process may use."""
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1


def check_threads(threads: int | None) -> None:
    """Refuse a number of threads that a library would fail at, or take minutes to start; None is its own choice.

    Raises:
        RuntimeUnavailableError: saying how many there may be.
    """
    most = max(MIN_MOST_THREADS, usable_cores())
    if threads is not None and not 1 <= threads <= most:
        raise RuntimeUnavailableError(
            f"expected 1 to {most} threads, received {threads}: this machine has {usable_cores()} cores to run them on"
        )


class Runtime(Protocol):
    """Something that runs one model; a context manager. `run` may be called from any thread, one at a time."""

    @property
    def model(self) -> ModelInfo:
        """The model that it runs."""
        ...

    def run(self, crops: NDArray[np.uint8]) -> Predictions:
        """Crops [N, 256, 256, 3] uint8 BGR to predictions; N may be 0.

        Raises:
            GeometryError: the crops have another shape or type.
        """
        ...

    def describe(self) -> RuntimeDescription:
        """What runs the model."""
        ...

    def close(self) -> None:
        """Give back what it holds; calling it again does nothing."""
        ...

    def __enter__(self) -> Runtime:
        """The runtime itself."""
        ...

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None) -> None:
        """Close it."""
        ...


def check_first(model: ModelInfo, first: Predictions) -> None:
    """Refuse a model whose predictions of its first crop, a black one, break the contract.

    Args:
        model: what it says about itself.
        first: predictions of one crop.

    Raises:
        ModelError: other shapes, NaN, scores outside 0..1, or joints outside the crop.
    """
    joints, scores, count = first.joints, first.scores, len(model.joint_set)
    if joints.shape != (1, count, 3) or joints.dtype != np.float32 or scores.dtype != np.float32:
        raise ModelError(
            f"expected joints float32 [1, {count}, 3] from model {show(model.name)} ({model.joint_set.name}), received "
            f"{joints.dtype} {list(joints.shape)}"
        )
    if not (np.isfinite(joints).all() and np.isfinite(scores).all()):
        raise ModelError(f"expected finite joints and scores from model {show(model.name)}, received NaN or infinity")
    if scores.min() < -SCORE_SLACK or scores.max() > 1 + SCORE_SLACK:
        raise ModelError(
            f"expected scores in 0..1 from model {show(model.name)}, received {scores.min():g} to {scores.max():g}: export it "
            "again with `convnextpose export`"
        )
    picture, depths = joints[..., :2], np.abs(joints[..., 2])
    low, high = -PICTURE_SLACK_PX, INPUT_SIZE + PICTURE_SLACK_PX
    if picture.min() < low or picture.max() > high or depths.max() > MAX_DEPTH_MM:
        raise ModelError(
            f"expected joints within the crop (0 to {INPUT_SIZE} px) and {MAX_DEPTH_MM:g} mm from model {show(model.name)}, "
            f"received {picture.min():g} to {picture.max():g} px and up to {depths.max():g} mm: export it again with "
            "`convnextpose export`"
        )


def check_crops(crops: NDArray[np.uint8]) -> None:
    """Refuse crops that break the contract.

    Raises:
        GeometryError: saying what was expected and what came.
    """
    if crops.dtype != np.uint8 or crops.ndim != 4 or crops.shape[1:] != (INPUT_SIZE, INPUT_SIZE, 3):
        raise GeometryError(
            f"expected crops uint8 [N, {INPUT_SIZE}, {INPUT_SIZE}, 3] in BGR order, received {crops.dtype} {list(crops.shape)}"
        )
