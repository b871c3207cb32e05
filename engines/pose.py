"""The pose network's contract, and the pose model on any session: crops in, joints and scores out.

Every exported pose network has one contract: input `crops` uint8 [N, 256, 256, 3] in OpenCV's BGR order; outputs `joints`
float32 [N, J, 3] = (x px in the crop, y px in the crop, z mm relative to the pelvis) and `scores` float32 [N, J] in 0..1.
"""

from __future__ import annotations

from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass
from types import TracebackType
from typing import Any, Protocol

import numpy as np
from numpy.typing import NDArray

from convnextpose.errors import GeometryError, ModelError
from convnextpose.files import show
from convnextpose.skeleton import JointSet
from convnextpose.variants import INPUT_SIZE, Variant
from engines.session import ORIGINS, ArraySpec, FrameSession, HeldFrame, Session, SessionDescription

PRECISIONS = ("fp32", "fp16", "int8")
"""The precisions that an exported model comes in."""

CROPS = ArraySpec("crops", "uint8", (None, INPUT_SIZE, INPUT_SIZE, 3))
"""The input of a pose network: crops in BGR order."""


def predicts(joint_count: int) -> tuple[ArraySpec, ArraySpec]:
    """The outputs of a pose network."""
    return ArraySpec("joints", "float32", (None, joint_count, 3)), ArraySpec("scores", "float32", (None, joint_count))


@dataclass(frozen=True)
class ModelInfo:
    """The description of a pose model.

    Attributes:
        name: its name: `xs` for the package's default weights, otherwise a file's name.
        variant: XS, S, M or L.
        joint_set: order and names of its joints.
        checkpoint_sha256: hash of the checkpoint that it was made from, hexadecimal.
        random: whether its weights are random, so that its poses mean nothing.
        precision: the types of its graph: `fp32`, `fp16`, or `int8` (the rest of it in FP16).
        calibration_sha256: hash of the crops that an INT8 graph was calibrated on; None for other precisions.
    """

    name: str
    variant: Variant
    joint_set: JointSet
    checkpoint_sha256: str
    random: bool = False
    precision: str = "fp32"
    calibration_sha256: str | None = None

    def __post_init__(self) -> None:
        """Check the precision, which determines limits and file names.

        Raises:
            ModelError: there is no such precision.
        """
        if self.precision not in PRECISIONS:
            raise ModelError(f"expected precision {', '.join(PRECISIONS)}, received {show(self.precision)}")


@dataclass(frozen=True)
class Predictions:
    """A pose network's predictions for N crops.

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


class PosePredictor(Protocol):
    """A source of predictions for crops: a `PoseModel`, or recorded predictions."""

    @property
    def info(self) -> ModelInfo:
        """The model."""
        ...

    def run(self, crops: NDArray[np.uint8]) -> Predictions:
        """Crops [N, 256, 256, 3] uint8 BGR to predictions."""
        ...

    def describe(self) -> SessionDescription:
        """The model that predicts or predicted."""
        ...


class PoseModel:
    """A pose network in a session, which it closes. Like the session, it may be called from any thread. A context manager.

    Opening it runs a black crop: this warms the library up and checks that the network follows the contract.

    Args:
        session: runs the network.
        info: the model's description.

    Raises:
        ModelError: the network does not follow the contract; the session is closed.
    """

    def __init__(self, session: Session, info: ModelInfo) -> None:
        self.info = info
        self._session = session
        self._makes_crops = session if isinstance(session, FrameSession) else None  # too slow to check for each frame
        try:
            self._check()
        except BaseException:
            session.close()
            raise

    def hold(self, picture: Any) -> AbstractContextManager[HeldFrame | None]:  # noqa: ANN401
        """Hold a frame while its people are read; None if the session takes only crops.

        Args:
            picture: uint8 [H, W, 3] BGR, or an `engines.kernels.blocks.DeviceFrame`.
        """
        if self._makes_crops is not None and self._makes_crops.takes_frames:
            return self._makes_crops.hold(picture)
        return nullcontext()

    def run(self, crops: NDArray[np.uint8]) -> Predictions:
        """Crops [N, 256, 256, 3] uint8 BGR to predictions; N may be 0.

        Args:
            crops: the crops, or the result of a held frame's `origins` for them.

        Raises:
            GeometryError: the crops have another shape or type.
            ModelError: the library could not run the network.
            RuntimeUnavailableError: the session is closed.
        """
        origins = crops.shape[1:] == ORIGINS.shape[1:]
        (ORIGINS if origins else CROPS).check(crops)
        if len(crops) == 0:
            joint_count = len(self.info.joint_set)
            return Predictions(np.zeros((0, joint_count, 3), np.float32), np.zeros((0, joint_count), np.float32))
        found = self._session.run({(ORIGINS if origins else CROPS).name: crops})
        return Predictions(found["joints"], found["scores"])

    def describe(self) -> SessionDescription:
        """What runs the network."""
        return self._session.describe()

    def close(self) -> None:
        """Close the session; calling it again does nothing."""
        self._session.close()

    def __enter__(self) -> PoseModel:
        """The model itself."""
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None) -> None:
        """Close it."""
        self.close()

    def _check(self) -> None:
        wanted = (CROPS, *predicts(len(self.info.joint_set)))
        found = {spec.name: spec for spec in (*self._session.inputs, *self._session.outputs)}
        if found.keys() != {spec.name for spec in wanted} or not all(spec.fits(found[spec.name]) for spec in wanted):
            raise ModelError(
                f"expected {', '.join(map(str, wanted))} of model {self.info.name} ({self.info.joint_set.name}), received "
                f"{', '.join(map(str, found.values()))}"
            )
        try:
            predicted = self.run(np.zeros((1, INPUT_SIZE, INPUT_SIZE, 3), np.uint8))
            for spec, array in zip(wanted[1:], (predicted.joints, predicted.scores), strict=True):
                spec.check(array)
        except GeometryError as error:
            raise ModelError(f"model {self.info.name} breaks the contract: {error}") from error
        if len(predicted.joints) != 1:
            raise ModelError(f"expected one pose of one crop from model {self.info.name}, received {len(predicted.joints)}")
        _check_ranges(self.info.name, predicted)


PICTURE_SLACK_PX, SCORE_SLACK, MAX_DEPTH_MM = 1.0, 1e-3, 10_000.0
"""Tolerances for the ranges of predictions. A joint is a mean over the crop's pixels, so only rounding can put it outside the
crop; depths are within 1,000 mm of the pelvis for every variant, and within ten times that for any body."""


def _check_ranges(name: str, predicted: Predictions) -> None:
    """Refuse predictions for a first, black crop that no model of this project makes.

    Raises:
        ModelError: NaN, scores outside 0..1, or joints outside the crop.
    """
    joints, scores = predicted.joints, predicted.scores
    if not (np.isfinite(joints).all() and np.isfinite(scores).all()):
        raise ModelError(f"expected finite joints and scores from model {show(name)}, received NaN or infinity")
    if scores.min() < -SCORE_SLACK or scores.max() > 1 + SCORE_SLACK:
        raise ModelError(
            f"expected scores in 0..1 from model {show(name)}, received {scores.min():g} to {scores.max():g}: export it again "
            "with `convnextpose export`"
        )
    picture, depths = joints[..., :2], np.abs(joints[..., 2])
    low, high = -PICTURE_SLACK_PX, INPUT_SIZE + PICTURE_SLACK_PX
    if picture.min() < low or picture.max() > high or depths.max() > MAX_DEPTH_MM:
        raise ModelError(
            f"expected joints within the crop (0 to {INPUT_SIZE} px) and {MAX_DEPTH_MM:g} mm from model {show(name)}, received "
            f"{picture.min():g} to {picture.max():g} px and {depths.max():g} mm: export it again with `convnextpose export`"
        )


def check_crops(crops: NDArray[np.uint8]) -> None:
    """Refuse crops that break the contract.

    Raises:
        GeometryError: says what was expected and what was received.
    """
    CROPS.check(crops)
