"""What a frame costs the host outside inference, and whether memory stays flat.

    python benchmarks/host_work.py [--frames 250] [--flat 10000]

The demo clip is enlarged to 1280x720 first. Times are the median over frames of each step called alone in one thread, ms;
for the encoder its CPU time too, in case it has threads of its own. Memory: the clip's frames over and over through the whole
pipeline with NDJSON and MP4, the process's resident memory noted on the way.
"""

from __future__ import annotations

import argparse
import itertools
import statistics
import tempfile
import time
from collections.abc import Callable, Iterator
from dataclasses import replace
from pathlib import Path
from typing import TypeVar

import cv2
import numpy as np

from convnextpose import weights
from convnextpose.camera import Intrinsics, RootDepthSource
from convnextpose.crop import crop_region
from pipeline.draw import PoseRenderer
from pipeline.formats.mp4 import Mp4Recorder
from pipeline.formats.ndjson import NdjsonRecorder
from pipeline.people import SinglePerson, see, warp_crop
from pipeline.run import open_model
from pipeline.sources import open_source
from pipeline.stages import lift
from pipeline.threads import Pipeline
from pipeline.types import Frame, PosedFrame, RunHeader, SourceInfo

T = TypeVar("T")
WIDTH, HEIGHT = 1280, 720


class Repeated:
    """A source that gives the same frames over and over, `count` in all."""

    def __init__(self, frames: list[Frame], count: int) -> None:
        self.info = SourceInfo("repeated", False, frames[0].width, frames[0].height, frame_rate=25.0, frame_count=count)
        self._frames = frames

    def __iter__(self) -> Iterator[Frame]:
        """The frames, with running numbers and times."""
        for index, frame in zip(range(self.info.frame_count or 0), itertools.cycle(self._frames), strict=False):
            yield replace(frame, index=index, time_s=index / 25)

    def close(self) -> None:
        """Nothing to give back."""


def timed(steps: dict[str, list[float]], name: str, function: Callable[[], T]) -> T:
    """Call `function` and note its time, ms."""
    begin = time.perf_counter()
    result = function()
    steps.setdefault(name, []).append(1e3 * (time.perf_counter() - begin))
    return result


def resident_mib() -> float:
    """Resident memory of this process, MiB (Linux)."""
    for line in Path("/proc/self/status").read_text(encoding="ascii").splitlines():
        if line.startswith("VmRSS"):
            return int(line.split()[1]) / 1024
    raise OSError("expected VmRSS in /proc/self/status, found none")


def main() -> None:
    """Print the figures."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--frames", type=int, default=250, help="frames to time each step on")
    parser.add_argument("--flat", type=int, default=10_000, help="frames of the memory run; 0 leaves it out")
    arguments = parser.parse_args()
    with tempfile.TemporaryDirectory() as folder, open_model("xs", "auto") as model:
        with open_source(weights.DEMO_CLIP) as source:
            small = list(source)
        large = [
            replace(frame, image=np.asarray(cv2.resize(frame.image, (WIDTH, HEIGHT)), np.uint8))
            for frame in itertools.islice(small, arguments.frames)
        ]
        header = RunHeader(
            "bench", WIDTH, HEIGHT, 25.0, len(large), Intrinsics.assumed(WIDTH, HEIGHT), RootDepthSource.ASSUMED_FOV,
            model.info, model.describe(),
        )  # fmt: skip
        clip = Path(folder) / "clip.mp4"
        sink = Mp4Recorder(clip, header)
        for frame in large:
            sink.write(PosedFrame(frame, (), header.camera, frame.image))
        sink.close()

        steps: dict[str, list[float]] = {}
        finder, renderer = SinglePerson(model), PoseRenderer(model.info.joint_set)
        wide = PosedFrame(large[0], (), header.camera)
        first = renderer.render(wide.frame, (), wide.camera)
        out = Mp4Recorder(Path(folder) / "out.mp4", replace(header, width=first.shape[1], height=first.shape[0]))
        encode_cpu = 0.0
        with open_source(clip) as source:
            frames = iter(source)
            while (frame := timed(steps, "decode", lambda frames=frames: next(frames, None))) is not None:
                people = finder.find(frame)
                sightings = tuple(s for s in see(model, frame.image, people) if s.score >= finder.min_score)
                finder.observe(sightings)
                for person, sighting in zip(people, sightings, strict=False):
                    region = crop_region(person.box, WIDTH, HEIGHT)
                    timed(steps, "crop", lambda image=frame.image, region=region: warp_crop(image, region))
                    timed(steps, "decode of joints", lambda s=sighting: lift(s, header.camera, header.root_depth_source))
                poses = tuple(lift(s, header.camera, header.root_depth_source) for s in sightings)
                picture = timed(steps, "drawing", lambda frame=frame, poses=poses: renderer.render(frame, poses, header.camera))
                posed = PosedFrame(frame, poses, header.camera, picture)
                begin_cpu = time.process_time()
                timed(steps, "encode", lambda posed=posed: out.write(posed))
                encode_cpu += time.process_time() - begin_cpu
        out.close()
        print(f"host work for a {WIDTH}x{HEIGHT} frame with one person, median of {len(large)} frames, ms")
        for name, values in steps.items():
            extra = f"   (CPU, all its threads: {1e3 * encode_cpu / len(values):.2f})" if name == "encode" else ""
            print(f"  {name:18s} {statistics.median(values):6.2f}{extra}")

        if arguments.flat:
            repeated = Repeated(small, arguments.flat)
            sinks = [NdjsonRecorder(Path(folder) / "flat.ndjson", header), Mp4Recorder(Path(folder) / "flat.mp4", header)]
            marks: dict[int, float] = {}
            with Pipeline(
                repeated, model, SinglePerson(model), header=header,
                renderer=PoseRenderer(model.info.joint_set), sinks=sinks,
            ) as pipeline:  # fmt: skip
                for posed in pipeline:
                    if posed.frame.index % (arguments.flat // 10) == arguments.flat // 10 - 1:
                        marks[posed.frame.index + 1] = resident_mib()
            print(f"resident memory over {arguments.flat} frames, MiB")
            print("  " + "  ".join(f"{frames}: {mib:.0f}" for frames, mib in marks.items()))


if __name__ == "__main__":
    main()
