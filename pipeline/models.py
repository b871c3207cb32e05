"""The networks of a run, named by default weights or by the path of a checkpoint, an exported file or an engine."""

from __future__ import annotations

import logging
from dataclasses import dataclass
from functools import partial
from pathlib import Path

from convnextpose import weights
from convnextpose.checkpoint import VerifiedCheckpoint, verify, verify_state
from convnextpose.errors import CheckpointError, ModelError, RuntimeUnavailableError, install_command
from convnextpose.variants import Variant
from engines.manifest import is_engine
from engines.opening import open_people_detector, open_pose_model, open_served_model
from engines.people import PeopleDetector
from engines.pose import PoseModel
from engines.sessions.registry import EXPORTED, RUNTIMES
from engines.sessions.triton import is_served

_log = logging.getLogger("convnextpose.models")

MAX_BATCH = 16
"""Largest batch of crops from several sources."""


@dataclass(frozen=True)
class Models:
    """The networks of a run; consecutive runs may share them.

    Attributes:
        pose: the pose model.
        people: the people detector; None if boxes are given, or the weights are random.
    """

    pose: PoseModel
    people: PeopleDetector | None

    def close(self) -> None:
        """Close both."""
        self.pose.close()
        if self.people is not None:
            self.people.close()


def open_models(
    model: str,
    runtime: str = "auto",
    *,
    precision: str = "auto",
    random_weights: bool = False,
    threads: int | None = None,
    max_batch: int | None = None,
    detector: str | None = weights.DETECTOR_NAME,
    person: str | None = None,
) -> Models:
    """Open the networks of a run.

    Args:
        model, runtime, precision, random_weights, threads, max_batch: as for `open_model`.
        detector, person: as for `open_detector`; None for no detector. Random weights never have one.

    Raises:
        CheckpointError, ModelError, RuntimeUnavailableError: they cannot be opened.
    """
    poses = open_model(model, runtime, precision=precision, random_weights=random_weights, threads=threads, max_batch=max_batch)
    _log.info("model %s (%s) runs in %s", poses.info.name, poses.info.variant.name, poses.describe())
    if detector is None or random_weights:
        return Models(poses, None)
    try:
        people = open_detector(runtime, detector=detector, person=person, threads=threads, max_batch=max_batch)
        _log.info("people detector %s (%s) runs in %s", people.name, people.about, people.describe())
        return Models(poses, people)
    except BaseException:
        poses.close()
        raise


def open_model(
    model: str,
    runtime: str = "auto",
    *,
    precision: str = "auto",
    random_weights: bool = False,
    threads: int | None = None,
    max_batch: int | None = None,
) -> PoseModel:
    """Open a model by the name of default weights, or by the path of a checkpoint, an exported file or an engine.

    Args:
        model, runtime, precision, random_weights, threads: as in `RunConfig`.
        max_batch: largest batch of crops of several callers; None for a single caller.

    Raises:
        CheckpointError, ModelError: it is none of these, or not a ConvNeXtPose model.
        RuntimeUnavailableError: the runtime cannot start here.
    """
    if is_served(runtime):
        if random_weights:
            raise RuntimeUnavailableError(f"expected a model with replaceable weights, received {runtime}, which is served")
        return open_served_model(runtime, precision=precision, max_batch=max_batch)
    opened = partial(open_pose_model, runtime=runtime, precision=precision, threads=threads, max_batch=max_batch)
    if random_weights:
        return opened(_random_checkpoint(model), name=f"{model.lower()}-random", random=True)
    if model.lower() in weights.names():
        shipped = weights.load(model.lower())
        what: Path | VerifiedCheckpoint = verify(shipped.safetensors) if runtime == "torch" else shipped.onnx
        return opened(what, name=shipped.name)
    path = Path(model)
    if not path.exists():
        raise ModelError(
            f"expected a model: one of the default weights ({', '.join(weights.names())}), a checkpoint, an .onnx or an "
            f".engine file; received {model!r}, which is none of them"
        )
    if is_engine(path):  # its manifest contains the model's name
        return opened(path)
    return opened(path if path.suffix == ".onnx" else verify(path), name=path.name)


def _random_checkpoint(variant: str) -> VerifiedCheckpoint:
    if variant.upper() not in Variant.__members__:
        known = ", ".join(v.name.lower() for v in Variant)
        raise CheckpointError(f"expected one of {known} as the model of random weights, received {variant!r}")
    try:
        from convnextpose.network import random_state  # imports torch, an extra that nothing else here needs
    except ImportError as error:
        raise RuntimeUnavailableError(f"random weights need torch: {error}; {install_command('build')}") from error

    return verify_state(random_state(Variant[variant.upper()]), source=f"{variant.lower()}-random")


def detector_file(detector: str) -> Path:
    """The file that a `RunConfig.detector` names."""
    return weights.detector() if detector == weights.DETECTOR_NAME else Path(detector)


def open_detector(
    runtime: str = "auto",
    *,
    detector: str = weights.DETECTOR_NAME,
    person: str | None = None,
    threads: int | None = None,
    max_batch: int | None = None,
) -> PeopleDetector:
    """Open a people detector, in the runtime of the pose network if that can run it.

    Args:
        runtime, threads: as in `RunConfig`.
        detector, person: as `detector` and `detector_class` in `RunConfig`.
        max_batch: largest batch of frames of several callers; None for a single caller.

    Raises:
        CheckpointError, ModelError, RuntimeUnavailableError: it cannot be opened.
    """
    path = detector_file(detector)
    opened = partial(open_people_detector, max_batch=max_batch, person=person, name=Path(detector).name)
    if is_engine(path):
        return opened(path)
    if path.suffix != ".onnx" or not path.exists():
        raise ModelError(
            f"expected a people detector: {weights.DETECTOR_NAME}, an .onnx or an .engine file; received {detector!r}, which "
            "is none of them"
        )
    fits = runtime in RUNTIMES and RUNTIMES[runtime].runs == EXPORTED
    return opened(path, runtime if fits else "auto", threads=threads)
