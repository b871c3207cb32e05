"""How close the threaded pipeline comes to the bound of the machine's cores, and the gain of the threads.

    python benchmarks/pipeline_speed.py [--clip CLIP] [--rounds 5] [--json FILE] [--precision fp32] [--formats mp4,ndjson,npz]
    python benchmarks/pipeline_speed.py --people 1,2,4,8,16 [--rounds 5]

Everything is on: decoding, detecting and tracking the person, the network, lifting, drawing, MP4, NDJSON and NPZ. Each round
runs the same pipeline twice: once in its threads, and once with its source, estimator, renderer and recorders called one after
another in one thread. The bound on a frame's time is the larger of two figures from the run in one thread: the work of the
slowest thread of the pipeline, and the CPU time of the whole process divided by the number of cores. Ratios are computed in
each round; the result is their median.

With --people it measures the cost of a number of people in one picture instead, alternating: their crops and the network, in
one batch, and one run of the people detector, in wall time and in CPU time of all threads.
"""

from __future__ import annotations

import argparse
import json
import statistics
import sys
import tempfile
import time
from dataclasses import dataclass, replace
from pathlib import Path

from convnextpose import weights
from convnextpose.crop import Box
from engines.session import usable_cores
from pipeline.formats.table import DEFAULT_FORMATS
from pipeline.models import open_detector, open_model
from pipeline.people.detection import DETECTION_SCORE, detect
from pipeline.run import RunConfig, open_pipeline
from pipeline.sources import open_source
from pipeline.stages import TrackedBox, predict
from pipeline.timeline import STAGES, Stopwatch, Timeline
from pipeline.types import Frame

sys.path.insert(0, str(Path(__file__).parent.parent))  # for `benchmarks`, which is not installed

from benchmarks.rounds import by_turns, in_words, ratios


@dataclass(frozen=True)
class Speed:
    """A run of a clip.

    Attributes:
        frames: number of processed frames.
        wall_s: time of the whole run with the completion of its files, but without opening its model, s.
        cpu_s: CPU time of the process, with all threads of all libraries, s.
    """

    frames: int
    wall_s: float
    cpu_s: float


@dataclass(frozen=True)
class SpeedAlone(Speed):
    """A run in one thread.

    Attributes:
        thread_s: time of the work that each thread of the pipeline would do, by thread, s.
        timelines: the timeline of each frame.
    """

    thread_s: dict[str, float]
    timelines: tuple[Timeline, ...]

    def stage_ms(self) -> dict[str, list[float]]:
        """Times of each stage and each written format, for each frame that it processed, ms."""
        taken: dict[str, list[float]] = {}
        for timeline in self.timelines:
            of_frame: dict[str, float] = {}
            for span in timeline.spans:
                name = f"{span.stage} {span.part}" if span.part else span.stage
                of_frame[name] = of_frame.get(name, 0.0) + span.work_ns / 1e6
            for name, value in of_frame.items():
                taken.setdefault(name, []).append(value)
        return dict(sorted(taken.items(), key=lambda item: STAGES.index(item[0].split()[0])))


def run_alone(config: RunConfig) -> SpeedAlone:
    """Run a config's one source in this thread."""
    pipeline = open_pipeline(config)
    (stream,) = pipeline.streams
    thread_s: dict[str, float] = {}
    timelines = []
    begin, begin_cpu = time.perf_counter(), time.process_time()

    def note(thread: str, start: float) -> float:
        now = time.perf_counter()
        thread_s[thread] = thread_s.get(thread, 0.0) + now - start
        return now

    with pipeline:
        frames, now = iter(stream.source), begin
        while True:
            stopwatch = Stopwatch()
            with stopwatch.span("capture"):
                frame = next(frames, None)
            now = note("reader", now)
            if frame is None:
                break
            if not isinstance(frame, Frame):  # an unreadable frame
                continue
            posed = stream.estimator.step(frame, stopwatch)
            now = note("estimator", now)
            if stream.renderer is not None:
                with stopwatch.span("render"):
                    picture = stream.renderer.render(frame, posed.poses, posed.camera, posed.world, caption=stream.caption)
                posed = replace(posed, picture=picture)
                now = note("renderer", now)
            for recorder in stream.recorders:
                with stopwatch.span("write", part=recorder.path.suffix.removeprefix(".")):
                    recorder.write(posed)
                now = note(recorder.path.name, now)
            timelines.append(stopwatch.timeline(frame.source_id, frame.index))
    wall_s, cpu_s = time.perf_counter() - begin, time.process_time() - begin_cpu
    return SpeedAlone(len(timelines), wall_s, cpu_s, thread_s, tuple(timelines))


def run_threaded(config: RunConfig) -> Speed:
    """Run a config's one source through the pipeline."""
    pipeline = open_pipeline(config)
    begin, begin_cpu = time.perf_counter(), time.process_time()
    with pipeline:
        count = sum(1 for _ in pipeline)
    return Speed(count, time.perf_counter() - begin, time.process_time() - begin_cpu)


def bound_ms(alone: SpeedAlone, cores: int) -> tuple[float, str]:
    """The lower bound of a frame's time in the pipeline on a number of cores, ms, and the name of its cause."""
    slowest = max(alone.thread_s, key=lambda thread: alone.thread_s[thread])
    bounds = {f"the {slowest}'s work": alone.thread_s[slowest], f"all CPU time over {cores} cores": alone.cpu_s / cores}
    what = max(bounds, key=lambda name: bounds[name])
    return 1e3 * bounds[what] / alone.frames, what


def cost_of_people(arguments: argparse.Namespace) -> None:
    """Print the cost of people in one picture: the demo clip's person in many boxes, each some px beside the last."""
    counts = [int(word) for word in arguments.people.split(",")]
    with open_source(arguments.clip) as source:
        image = next(frame.image for frame in source if isinstance(frame, Frame))
    height, width = image.shape[:2]
    boxes = [TrackedBox(n, Box(7.0 * n, 0.2 * height, 0.15 * width, 0.4 * height)) for n in range(max(counts))]
    with (
        open_model(arguments.model, arguments.runtime, precision=arguments.precision, threads=arguments.threads) as model,
        open_detector(arguments.runtime, threads=arguments.threads) as detector,
    ):
        print(f"poses in {model.describe()}, the detector in {detector.describe()}; {arguments.rounds} rounds, medians, ms")
        spent: dict[int, list[tuple[float, float]]] = {count: [] for count in (0, *counts)}
        predict(model, image, boxes[:2])  # libraries prepare separately for batches
        for _, count in by_turns((0, *counts), arguments.rounds):
            wall_s, cpu_s = time.perf_counter(), time.process_time()
            if count:
                predict(model, image, boxes[:count])
            else:
                detect(detector, image, DETECTION_SCORE)
            spent[count].append((1e3 * (time.perf_counter() - wall_s), 1e3 * (time.process_time() - cpu_s)))
    print(f"{'':14s}  {'wall':>7s}  {'CPU':>7s}  {'CPU a person':>12s}")
    for count, times in spent.items():
        wall, cpu = (statistics.median(column) for column in zip(*times, strict=True))
        each = f"{cpu / count:12.1f}" if count else ""
        print(f"{f'{count} people' if count else 'detector, once':14s}  {wall:7.1f}  {cpu:7.1f}  {each}")


def main() -> None:
    """Run the rounds and print the table."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--clip", type=Path, default=weights.DEMO_CLIP)
    parser.add_argument("--model", default="xs")
    parser.add_argument("--runtime", default="auto")
    parser.add_argument("--precision", default="auto")
    parser.add_argument("--threads", type=int)
    parser.add_argument("--formats", default=",".join(DEFAULT_FORMATS))
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--people", help="how many people, such as 1,2,4,8,16: tells what they cost, and nothing else")
    parser.add_argument("--json", type=Path, help="also write the figures to this file")
    arguments = parser.parse_args()
    if arguments.people:
        cost_of_people(arguments)
        return
    cores = usable_cores()
    alone: list[SpeedAlone] = []
    threaded: list[Speed] = []
    with tempfile.TemporaryDirectory() as folder:
        config = RunConfig(
            arguments.clip,
            model=arguments.model,
            runtime=arguments.runtime,
            precision=arguments.precision,
            threads=arguments.threads,
            formats=tuple(arguments.formats.split(",")),
            out=Path(folder) / "results",
            overwrite=True,
        )
        for _, in_one_thread in by_turns((True, False), arguments.rounds):
            if in_one_thread:
                alone.append(run_alone(config))
            else:
                threaded.append(run_threaded(config))
    bounds = [bound_ms(run, cores) for run in alone]
    threaded_ms = [1e3 * run.wall_s / run.frames for run in threaded]
    alone_ms = [1e3 * run.wall_s / run.frames for run in alone]
    of_frame = {  # a stage that skips a frame takes no time for it
        name: statistics.median(sum(run.stage_ms().get(name, [])) / run.frames for run in alone) for name in alone[0].stage_ms()
    }
    figures = {
        "pipeline": statistics.median(threaded_ms),
        "pipeline, CPU over cores": statistics.median(1e3 * run.cpu_s / cores / run.frames for run in threaded),
        "one thread": statistics.median(alone_ms),
        "one thread, CPU over cores": statistics.median(1e3 * run.cpu_s / cores / run.frames for run in alone),
        **{
            f"one thread, {thread}": statistics.median(1e3 * run.thread_s[thread] / run.frames for run in alone)
            for thread in alone[0].thread_s
        },
        "bound": statistics.median(value for value, _ in bounds),
        **{f"stage {name}": value for name, value in of_frame.items()},
    }
    print(f"{arguments.clip.name}, {alone[0].frames} frames, {cores} cores, {arguments.rounds} rounds; ms a frame, medians")
    for name, value in figures.items():
        print(f"  {name:28s} {value:8.2f}")
    of_bound = ratios([value for value, _ in bounds], threaded_ms)
    gain = ratios(alone_ms, threaded_ms)
    print(f"{1e3 / figures['pipeline']:.1f} frames a second; the bound is {bounds[0][1]}")
    print(f"speed over the bound's     {in_words(of_bound)}")
    print(f"speed over one thread's    {in_words(gain)}")
    if arguments.json:
        record = {"cores": cores, "ms_a_frame": figures, "of_bound": of_bound, "gain": gain}
        arguments.json.write_text(json.dumps(record, indent=2) + "\n", encoding="utf-8")


if __name__ == "__main__":
    main()
