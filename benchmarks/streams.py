"""The cost and the latency of many cameras on one model.

    python benchmarks/streams.py [--sources 1,4,16] [--seconds 10] [--model xs] [--page] [--json FILE]

Each source gives the demo clip's pictures from memory, 30 a second, through all steps of a camera except decoding. One person
is posed in each frame, in a given box. Without --model the session only waits 2 ms for each batch, like a GPU, so that the
machine's cores do only the pipeline's own work. The first second does not count.

It prints the frames that were posed and dropped; the age of a frame, from its source to its poses; the process's CPU time for
each posed frame, with all threads of all libraries; and the fairness: the smallest number of posed frames of a source divided
by the largest. With --page a client of the live page runs as well: each picture contains its time of capture, which the client
reads from the JPEG and then acknowledges.
"""

from __future__ import annotations

import argparse
import contextlib
import itertools
import json
import struct
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
from pipeline.status import RunStatus
from pipeline.stream import Stream
from pipeline.streams import Pipeline
from pipeline.timeline import Stopwatch
from pipeline.types import Frame, RunHeader
from pipeline.views.base import Endpoint
from pipeline.views.web import WebView

RATE = 30
WAIT_S = 0.002
WARM_UP_S = 1.0
KEPT_PICTURES = 60


class WaitingSession:
    """Replaces a GPU: takes 2 ms for a batch of any size and no CPU time; its poses mean nothing."""

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
        """A description that says that no network runs."""
        return SessionDescription("waiting", "1", "nothing", "none", 0)

    def close(self) -> None:
        """Nothing to free."""


def stamped(image: NDArray[np.uint8], unix_ns: int) -> NDArray[np.uint8]:
    """A picture with a time painted into its upper edge: 32 bits of 0.1 ms, black or white squares of 16 px."""
    bits = unix_ns // 100_000 >> np.arange(32) & 1
    copy = image.copy()
    copy[:16, : 32 * 16] = np.repeat(bits * 255, 16).astype(np.uint8)[None, :, None]
    return copy


def age_of_stamp_ms(image: NDArray[np.uint8], unix_ns: int) -> float:
    """Age of the time that `stamped` painted, ms."""
    bits = image[4:12, : 32 * 16].reshape(8, 32, 16, 3)[:, :, 4:12].mean(axis=(0, 2, 3)) > 127
    then = int(bits @ (1 << np.arange(32)))
    return ((unix_ns // 100_000 - then) % 2**32) / 10


class PageClient:
    """Reads the page's socket as a browser does, and measures the age of the pictures."""

    def __init__(self, address: str) -> None:
        self.ages_ms: list[float] = []
        self._address = address.replace("http://", "ws://") + "socket"
        self._thread = threading.Thread(target=self._run, daemon=True)
        self._thread.start()

    def _run(self) -> None:
        import cv2
        from websockets.exceptions import ConnectionClosed
        from websockets.sync.client import connect

        with contextlib.suppress(ConnectionClosed), connect(self._address, compression=None, max_size=None) as opened:
            opened.recv()
            while True:
                data = opened.recv(decode=False)
                (length,) = struct.unpack_from(">I", data)
                at = 4 + length
                for record in json.loads(data[4:at])["frames"]:
                    jpeg = np.frombuffer(data[at : at + record["jpeg_bytes"]], np.uint8)
                    at += record["jpeg_bytes"]
                    image = np.asarray(cv2.imdecode(jpeg, cv2.IMREAD_COLOR), np.uint8)
                    self.ages_ms.append(age_of_stamp_ms(image, time.time_ns()))
                opened.send("ack")


class OneBox(WholePicture):
    """A people finder that takes one box in every frame."""

    def find(self, frame: Frame, stopwatch: Stopwatch) -> tuple[TrackedBox, ...]:
        """A box in the middle."""
        return (TrackedBox(0, Box(frame.width * 0.35, frame.height * 0.15, frame.width * 0.3, frame.height * 0.8)),)


class FromMemory:
    """A connection that sends the same pictures again and again; see `pipeline.sources.live.Connection`."""

    paced, frame_rate, description = True, float(RATE), "from memory"

    def __init__(self, images: Sequence[NDArray[np.uint8]], phase: float, *, stamped: bool = False) -> None:
        self._images, self._phase, self._stamped = images, phase, stamped

    def __iter__(self) -> Iterator[Picture]:
        """The pictures, at their times."""
        time.sleep(self._phase / RATE)  # cameras do not take their pictures at the same moment
        began = time.monotonic()
        for number, image in enumerate(itertools.cycle(self._images)):
            if self._stamped:
                time.sleep(max(0.0, began + number / RATE - time.monotonic()))  # so that its time is that of its release
                image = stamped(image, time.time_ns())
            yield Picture(image, number / RATE, time.time_ns(), "arrival")

    def abort(self) -> None:
        """Nothing to stop."""

    def close(self) -> None:
        """Nothing to free."""


@dataclass(frozen=True)
class Result:
    """The figures for a number of sources.

    Attributes:
        sources: number of sources.
        received, posed, dropped: number of frames of all sources during the measurement.
        age_p50_ms, age_p99_ms: ages of posed frames, ms.
        host_ms: CPU time of the process for each posed frame, ms.
        fairness: smallest number of posed frames of a source divided by the largest.
        batch: mean number of crops in a batch; None if unknown.
        page_p50_ms, page_p99_ms: from the capture to a decoded picture in a client of the page, ms, or None.
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
    page_p50_ms: float | None = None
    page_p99_ms: float | None = None


def measure(
    count: int, seconds: float, images: Sequence[NDArray[np.uint8]], model_name: str | None, *, page: bool = False
) -> Result:
    """Run a number of sources and measure."""
    waiting = WaitingSession()
    if model_name is None:
        info = ModelInfo("waiting", Variant.XS, HUMAN36M, "0" * 64, random=True)
        model = PoseModel(Batcher(waiting, MAX_BATCH), info)
    else:
        model = open_model(model_name, max_batch=MAX_BATCH)
    streams = []
    for number in range(count):
        source = LiveSource(
            f"camera {number}", lambda timeouts, number=number: FromMemory(images, number / count, stamped=page)
        )
        header = RunHeader(
            source.info.id, None, None, None, None, None, RootDepthSource.ASSUMED_FOV, model.info, model.describe()
        )
        streams.append(Stream(source, Estimator(model, OneBox()), header))
    views = [WebView(Endpoint("127.0.0.1", 0), RunStatus(streams))] if page else []
    pipeline = Pipeline(streams, models=[model.close], views=views)
    runner = threading.Thread(target=pipeline.run)
    runner.start()
    client = PageClient(views[0].address) if views else None
    time.sleep(WARM_UP_S)
    if client is not None:
        client.ages_ms.clear()
    before = [stream.ledger.counts() for stream in streams]
    for stream in streams:
        stream.ages_ns.clear()
    cpu, batches, crops = time.process_time(), waiting.batches, waiting.crops
    time.sleep(seconds)
    after = [stream.ledger.counts() for stream in streams]
    cpu = time.process_time() - cpu
    ages = np.concatenate([np.array(stream.ages_ns) for stream in streams]) / 1e6
    batches, crops = waiting.batches - batches, waiting.crops - crops
    seen_ms = list(client.ages_ms) if client is not None else []
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
        page_p50_ms=float(np.percentile(seen_ms, 50)) if seen_ms else None,
        page_p99_ms=float(np.percentile(seen_ms, 99)) if seen_ms else None,
    )


def main() -> None:
    """Measure and print."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--sources", default="1,4,16")
    parser.add_argument("--seconds", type=float, default=10.0)
    parser.add_argument("--model", help="a real model in place of the session that waits, such as xs")
    parser.add_argument("--page", action="store_true", help="with a client of the page")
    parser.add_argument("--json", type=Path)
    arguments = parser.parse_args()
    with open_source(weights.DEMO_CLIP) as clip:
        images = [frame.image for frame in itertools.islice(clip, KEPT_PICTURES) if isinstance(frame, Frame)]
    print("sources  received  posed  dropped  age p50  p99 ms  host ms a frame  fairness  batch")
    results = []
    for count in map(int, arguments.sources.split(",")):
        result = measure(count, arguments.seconds, images, arguments.model, page=arguments.page)
        results.append(result)
        batch = "" if result.batch is None else f"{result.batch:5.2f}"
        print(
            f"{result.sources:7}  {result.received:8}  {result.posed:5}  {result.dropped:7}  {result.age_p50_ms:7.1f}  "
            f"{result.age_p99_ms:6.1f}  {result.host_ms:15.2f}  {result.fairness:8.2f}  {batch}"
        )
        if result.page_p50_ms is not None:
            print(f"         on the page: {result.page_p50_ms:.1f} ms after the capture, p99 {result.page_p99_ms:.1f} ms")
    if arguments.json is not None:
        arguments.json.write_text(json.dumps([asdict(result) for result in results], indent=2) + "\n", encoding="utf-8")


if __name__ == "__main__":
    main()
