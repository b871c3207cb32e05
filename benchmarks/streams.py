"""What many cameras on one model cost and how late their poses are.

    python benchmarks/streams.py [--sources 1,4,16] [--seconds 10] [--model xs] [--json FILE]

Sources give the demo clip's pictures from memory, 30 a second each, through everything that a camera goes through but the
decoding. One person is posed in each frame, in a box that is given. Without --model the session only waits, 2 ms a batch, in a
GPU's place, so that the machine's cores do nothing but our own work. The first second doesn't count.

Printed are the frames that were posed and dropped; the age of a frame, from the moment at which its source gave it to the one
at which its poses are there; the process's CPU time for each posed frame, all threads of all libraries; and the fairness: the
fewest frames posed of one source over the most.
"""

from __future__ import annotations

import argparse
import itertools
import json
import threading
import time
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from convnextpose import weights
from convnextpose.camera import RootDepthSource
from convnextpose.crop import Box
from convnextpose.skeleton import HUMAN36M
from convnextpose.variants import Variant
from engines.batcher import Batcher
from engines.pose import CROPS, ModelInfo, PoseModel, predicts
from engines.session import Arrays, ArraySpec, SessionDescription
from pipeline.estimator import Estimator
from pipeline.models import MAX_BATCH, open_model
from pipeline.people import WholePicture
from pipeline.sources import open_source
from pipeline.sources.live import LiveSource, Picture
from pipeline.stages import TrackedBox
from pipeline.streams import Pipeline, Stream
from pipeline.timeline import Stopwatch
from pipeline.types import Frame, RunHeader

RATE = 30
WAIT_S = 0.002
WARM_UP_S = 1.0
KEPT_PICTURES = 60


class WaitingSession:
    """In a GPU's place: takes 2 ms for a batch of any size and no processor time; its poses mean nothing."""

    inputs: tuple[ArraySpec, ...] = (CROPS,)
    outputs: tuple[ArraySpec, ...] = predicts(len(HUMAN36M))

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._joints = np.full((1, len(HUMAN36M), 3), 128, np.float32)
        self.batches = self.crops = 0

    def run(self, arrays: Mapping[str, NDArray[Any]]) -> Arrays:
        """Wait."""
        count = len(arrays["crops"])
        with self._lock:
            self.batches += 1
            self.crops += count
            time.sleep(WAIT_S)
        return {"joints": np.repeat(self._joints, count, 0), "scores": np.ones((count, len(HUMAN36M)), np.float32)}

    def describe(self) -> SessionDescription:
        """Nothing runs."""
        return SessionDescription("waiting", "1", "nothing", "none", 0)

    def close(self) -> None:
        """Nothing to give back."""


class OneBox(WholePicture):
    """A people finder that takes one box in every frame."""

    def find(self, frame: Frame, stopwatch: Stopwatch) -> tuple[TrackedBox, ...]:
        """A box in the middle."""
        return (TrackedBox(0, Box(frame.width * 0.35, frame.height * 0.15, frame.width * 0.3, frame.height * 0.8)),)


class FromMemory:
    """A connection that gives pictures over and over; see `pipeline.sources.live.Connection`."""

    paced, frame_rate, description = True, float(RATE), "from memory"

    def __init__(self, images: Sequence[NDArray[np.uint8]], phase: float) -> None:
        self._images, self._phase = images, phase

    def __iter__(self) -> Iterator[Picture]:
        """The pictures, at their times."""
        time.sleep(self._phase / RATE)  # cameras do not take their pictures at one moment
        for number, image in enumerate(itertools.cycle(self._images)):
            yield Picture(image, number / RATE, time.time_ns(), "arrival")

    def abort(self) -> None:
        """Nothing to end."""

    def close(self) -> None:
        """Nothing to give back."""


@dataclass(frozen=True)
class Result:
    """What a number of sources came to.

    Attributes:
        sources: how many.
        received, posed, dropped: frames of all of them while it was measured.
        age_p50_ms, age_p99_ms: ages of the posed ones, ms.
        host_ms: CPU time of the process for each posed frame, ms.
        fairness: the fewest frames posed of one source over the most.
        batch: mean crops in a batch, or None where it is not known.
    """

    sources: int
    received: int
    posed: int
    dropped: int
    age_p50_ms: float
    age_p99_ms: float
    host_ms: float
    fairness: float
    batch: float | None


def measure(count: int, seconds: float, images: Sequence[NDArray[np.uint8]], model_name: str | None) -> Result:
    """Run a number of sources."""
    waiting = WaitingSession()
    if model_name is None:
        info = ModelInfo("waiting", Variant.XS, HUMAN36M, "0" * 64, random=True)
        model = PoseModel(Batcher(waiting, MAX_BATCH), info)
    else:
        model = open_model(model_name, max_batch=MAX_BATCH)
    streams = []
    for number in range(count):
        source = LiveSource(f"camera {number}", lambda patience, number=number: FromMemory(images, number / count))
        header = RunHeader(
            source.info.id, None, None, None, None, None, RootDepthSource.ASSUMED_FOV, model.info, model.describe()
        )
        streams.append(Stream(source, Estimator(model, OneBox()), header))
    pipeline = Pipeline(streams, models=[model.close])
    runner = threading.Thread(target=pipeline.run)
    runner.start()
    time.sleep(WARM_UP_S)
    before = [stream.ledger.counts() for stream in streams]
    for stream in streams:
        stream.ages_ns.clear()
    cpu, batches, crops = time.process_time(), waiting.batches, waiting.crops
    time.sleep(seconds)
    after = [stream.ledger.counts() for stream in streams]
    cpu = time.process_time() - cpu
    ages = np.concatenate([np.array(stream.ages_ns) for stream in streams]) / 1e6
    batches, crops = waiting.batches - batches, waiting.crops - crops
    pipeline.stop()
    runner.join()
    posed = [b.posed - a.posed for a, b in zip(before, after, strict=True)]
    return Result(
        sources=count,
        received=sum(b.received - a.received for a, b in zip(before, after, strict=True)),
        posed=sum(posed),
        dropped=sum(b.dropped - a.dropped for a, b in zip(before, after, strict=True)),
        age_p50_ms=float(np.percentile(ages, 50)),
        age_p99_ms=float(np.percentile(ages, 99)),
        host_ms=cpu * 1e3 / max(1, sum(posed)),
        fairness=min(posed) / max(1, *posed),
        batch=crops / batches if batches else None,
    )


def main() -> None:
    """Measure and print."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--sources", default="1,4,16")
    parser.add_argument("--seconds", type=float, default=10.0)
    parser.add_argument("--model", help="a real model in place of the session that waits, such as xs")
    parser.add_argument("--json", type=Path)
    arguments = parser.parse_args()
    with open_source(weights.DEMO_CLIP) as clip:
        images = [frame.image for frame in itertools.islice(clip, KEPT_PICTURES) if isinstance(frame, Frame)]
    print("sources  received  posed  dropped  age p50  p99 ms  host ms a frame  fairness  batch")
    results = []
    for count in map(int, arguments.sources.split(",")):
        result = measure(count, arguments.seconds, images, arguments.model)
        results.append(result)
        batch = "" if result.batch is None else f"{result.batch:5.2f}"
        print(
            f"{result.sources:7}  {result.received:8}  {result.posed:5}  {result.dropped:7}  {result.age_p50_ms:7.1f}  "
            f"{result.age_p99_ms:6.1f}  {result.host_ms:15.2f}  {result.fairness:8.2f}  {batch}"
        )
    if arguments.json is not None:
        arguments.json.write_text(json.dumps([asdict(result) for result in results], indent=2) + "\n", encoding="utf-8")


if __name__ == "__main__":
    main()
