"""Times of runs on the host and on the GPU, and their percentiles."""

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
    """The time of a run as its caller sees it, and the GPU's own times for it.

    Attributes:
        host_ms: time that the caller waits, from the call to the results.
        copy_in_ms, inference_ms, copy_out_ms: the GPU's times by CUDA events, summed over the batches of the run.
        batches: number of batches that the crops were run in.
        replayed: number of batches that replayed a CUDA graph.
    """

    host_ms: float
    copy_in_ms: float
    inference_ms: float
    copy_out_ms: float
    batches: int
    replayed: int

    @property
    def gpu_ms(self) -> float:
        """The GPU's time for the whole run."""
        return self.copy_in_ms + self.inference_ms + self.copy_out_ms


class TimedSession(Protocol):
    """A session on a GPU that reports the times of its latest run."""

    @property
    def times(self) -> RunTimes:
        """Times of the latest run."""
        ...

    def run(self, arrays: Mapping[str, NDArray[Any]]) -> Arrays:
        """As for a `Session`."""
        ...


@dataclass(frozen=True)
class Percentiles:
    """Percentiles of some times, ms: the 50th, 95th and 99th."""

    p50: float
    p95: float
    p99: float

    @classmethod
    def of(cls, milliseconds: Sequence[float]) -> Percentiles:
        """From at least one time."""
        return cls(*(float(value) for value in np.percentile(milliseconds, (50, 95, 99))))


@dataclass(frozen=True)
class Latency:
    """The speed of a session for a number of crops.

    Attributes:
        runtime: name of the session.
        crops: number of crops at once.
        rounds: number of timed runs.
        host: time from the call to the results, ms.
        gpu: the GPU's time for copies and inference, ms.
        inference: the GPU's time for the inference alone, ms.
        crops_per_s: crops per second of the host's time, one run after the other.
        replayed: number of runs that only replayed CUDA graphs.
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
    """Run the same crops through all sessions in turn, so that a GPU that slows down does so for all of them.

    Args:
        sessions: sessions of pose networks, by name.
        crops: uint8 [N, 256, 256, 3] BGR, at least one.
        rounds: number of timed runs of each session, at least one.
        warm_up: number of runs of each session before them.
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
