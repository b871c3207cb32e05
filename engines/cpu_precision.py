"""The precisions of a model on the CPU: each one's deviation, for the model's card, and its speed on this machine."""

from __future__ import annotations

import statistics
import time
from collections.abc import Mapping
from contextlib import ExitStack
from dataclasses import dataclass
from typing import TYPE_CHECKING

from convnextpose import weights
from convnextpose.errors import ModelError, RuntimeUnavailableError
from convnextpose.weights import Deviation
from engines.calibration import CalibrationSet
from engines.opening import choose_precision, open_pose_model, pose_reference
from engines.parity import LIMITS, compare, noise_crops
from engines.pose import ModelInfo, PoseModel
from engines.precision import int8_within_limits
from engines.sessions.openvino import cpu_precisions
from engines.sessions.registry import choose_runtime
from engines.sessions.torch import TorchGpuSession

if TYPE_CHECKING:
    from convnextpose.checkpoint import VerifiedCheckpoint

PRECISIONS = ("fp32", "bf16", "int8")
"""The precisions that `doctor` measures."""

BATCH = 8
"""Number of crops in the larger of the two batches that are timed."""

ROUNDS, FEWEST_ROUNDS, BUDGET_S = 15, 3, 1.5
"""Number of timed runs for each number of crops; the smallest number, if this time limit is reached; the time limit, s."""


@dataclass(frozen=True)
class CpuPrecisions:
    """The precisions of a model on the CPU, for its card.

    Attributes:
        int8: the model's INT8 graph.
        deviations: by precision, `bf16` and `int8`: the deviation from FP32, and the runtime in which it was measured.
    """

    int8: bytes
    deviations: Mapping[str, Deviation]


def prove_precisions(checkpoint: VerifiedCheckpoint, onnx: bytes, calibration: CalibrationSet) -> CpuPrecisions:
    """Make a model's INT8 graph, and measure it and BF16 against FP32 PyTorch.

    They are measured in OpenVINO, which runs them; but BF16 in PyTorch if this CPU does not have it.

    Args:
        checkpoint: the model.
        onnx: the model exported in FP32.
        calibration: crops of people: most calibrate the INT8 graph, the others measure.

    Raises:
        ParityError: INT8 exceeds its limits, by its own types or in OpenVINO. If BF16 does, `auto` does not choose it.
        CalibrationError, ExportError, RuntimeUnavailableError: a library or the crops are missing; says which.
    """
    crops = calibration.split()
    deviations = {}
    with open_pose_model(checkpoint, "torch") as reference:
        int8 = int8_within_limits(onnx, crops.calibration, reference, crops.proof).onnx
        for precision, graph in (("bf16", onnx), ("int8", int8)):
            native = precision == "int8" or precision in cpu_precisions()
            with (
                open_pose_model(graph, "openvino", precision=precision) if native else bf16_in_torch(checkpoint, reference.info)
            ) as candidate:
                report = compare(reference, candidate, crops.proof, LIMITS[precision])
            if precision == "int8":
                report.check()
            deviations[precision] = report.deviation
    return CpuPrecisions(int8, deviations)


def bf16_in_torch(checkpoint: VerifiedCheckpoint, info: ModelInfo) -> PoseModel:
    """A checkpoint in BF16 up to its logits on any CPU, slower than FP32: only to measure the deviation of BF16.

    Args:
        checkpoint: the model.
        info: the model's description.
    """
    network = pose_reference(checkpoint, "bf16")
    return PoseModel(TorchGpuSession(network, f"model {info.name}", precision="bf16", device="cpu"), info)


@dataclass(frozen=True)
class PrecisionSpeed:
    """The speed of a precision on this machine.

    Attributes:
        precision: its name in `--precision`.
        runs_in: the type in which the convolutions actually compute.
        alone_ms: time of one crop, ms.
        batch_ms: time of each crop in a batch of BATCH, ms.
        is_default: whether it is what `auto` chooses.
    """

    precision: str
    runs_in: str
    alone_ms: float
    batch_ms: float
    is_default: bool


def measure_precisions(name: str = "xs") -> list[PrecisionSpeed]:
    """Time one of the package's models in every precision of this machine; takes a few seconds.

    Their runs alternate, so that other load on the machine affects all of them in the same way.

    Args:
        name: the model's name.

    Raises:
        RuntimeUnavailableError: there is no runtime.
        CheckpointError: the package's file was modified.
    """
    runtime = choose_runtime().name
    onnx = weights.load(name).onnx
    with ExitStack() as opened:
        models = {}
        for precision in PRECISIONS:
            try:
                models[precision] = opened.enter_context(open_pose_model(onnx, runtime, precision=precision))
            except (RuntimeUnavailableError, ModelError):
                continue  # not available on this machine or for this model
        default = choose_precision("auto", runtime, models["fp32"].info).name
        times: dict[tuple[str, int], list[float]] = {}
        for count in (1, BATCH):
            crops, began = noise_crops(count), time.perf_counter()
            for turn in range(1 + ROUNDS):
                if turn > FEWEST_ROUNDS and time.perf_counter() - began > BUDGET_S:
                    break
                for precision, model in models.items():
                    begun = time.perf_counter()
                    model.run(crops)
                    times.setdefault((precision, count), []).append((time.perf_counter() - begun) * 1e3 / count)
        return [
            PrecisionSpeed(
                precision,
                model.describe().precision,
                statistics.median(times[precision, 1][1:]),  # the first warms up
                statistics.median(times[precision, BATCH][1:]),
                precision == default,
            )
            for precision, model in models.items()
        ]
