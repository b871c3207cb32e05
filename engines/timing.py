"""How long runs take: the host's time and the GPU's, and their percentiles."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Protocol

import numpy as np
from numpy.typing import NDArray

from engines.pose import CROPS
from engines.session import Arrays


@dataclass(frozen=True)
class RunTimes:
    """How long a run took, beside what the GPU says that it worked on it.

    Attributes:
        host_ms: from the call to the results, as the caller waits.
        copy_in_ms, inference_ms, copy_out_ms: the GPU's own time, by events, added over the batches of the run.
        batches: how many batches the crops were given in.
        replayed: how many of those were CUDA graphs.
    """

    host_ms: float
    copy_in_ms: float
    inference_ms: float
    copy_out_ms: float
    batches: int
    replayed: int

    @property
    def gpu_ms(self) -> float:
        """The GPU's time for all of it."""
        return self.copy_in_ms + self.inference_ms + self.copy_out_ms


class TimedSession(Protocol):
    """A session on a GPU that tells how long its latest run took."""

    @property
    def times(self) -> RunTimes:
        """Of the latest run."""
        ...

    def run(self, arrays: Mapping[str, NDArray[Any]]) -> Arrays:
        """As a `Session`'s."""
        ...


@dataclass(frozen=True)
class Percentiles:
    """Of some times, ms: half, 95 and 99 of 100 are no longer than this."""

    p50: float
    p95: float
    p99: float

    @classmethod
    def of(cls, milliseconds: Sequence[float]) -> Percentiles:
        """Of one time or more."""
        return cls(*(float(value) for value in np.percentile(milliseconds, (50, 95, 99))))


@dataclass(frozen=True)
class Latency:
    """How fast a session is at a number of crops.

    Attributes:
        runtime: what ran.
        crops: how many at once.
        rounds: how many runs were timed.
        host: from the call to the results, ms.
        gpu: the GPU's time for copies and inference, ms.
        inference: the GPU's time for the inference alone, ms.
        crops_per_s: crops over the host's time, one run after the other.
        replayed: how many of the runs were CUDA graphs throughout.
    """

    runtime: str
    crops: int
    rounds: int
    host: Percentiles
    gpu: Percentiles
    inference: Percentiles
    crops_per_s: float
    replayed: int


def measure(sessions: Mapping[str, TimedSession], crops: NDArray[np.uint8], rounds: int, warm_up: int) -> list[Latency]:
    """Run the same crops through all sessions in turn, so that a GPU that slows down does so for each of them.

    Args:
        sessions: of pose networks, by name.
        crops: uint8 [N, 256, 256, 3] BGR, one or more.
        rounds: how many runs of each are timed, one or more.
        warm_up: how many runs of each go before them.
    """
    times: dict[str, list[RunTimes]] = {name: [] for name in sessions}
    for turn in range(warm_up + rounds):
        for name, session in sessions.items():
            session.run({CROPS.name: crops})
            if turn >= warm_up:
                times[name].append(session.times)
    return [
        Latency(
            runtime=name,
            crops=len(crops),
            rounds=rounds,
            host=Percentiles.of([run.host_ms for run in runs]),
            gpu=Percentiles.of([run.gpu_ms for run in runs]),
            inference=Percentiles.of([run.inference_ms for run in runs]),
            crops_per_s=1e3 * len(crops) * rounds / sum(run.host_ms for run in runs),
            replayed=sum(run.replayed == run.batches for run in runs),
        )
        for name, runs in times.items()
    ]
