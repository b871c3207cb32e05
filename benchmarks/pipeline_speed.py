"""How near the threaded pipeline comes to what the machine's cores allow, and what the threads gain.

    python benchmarks/pipeline_speed.py [--clip CLIP] [--rounds 5] [--json FILE]

Everything is on: decoding, finding the person, the network, lifting, drawing, MP4, NDJSON and NPZ. Each round runs the clip
once with the stages called one after another in one thread and once through the pipeline, in turn, so that a machine that
drifts does so for both. The bound on a frame's time is the larger of two figures of the round's run in one thread: the slowest
stage's time, and the CPU time of the whole process over the number of cores. Ratios are taken in each round; the median counts.
"""

from __future__ import annotations

import argparse
import json
import statistics
import tempfile
import time
from dataclasses import dataclass
from pathlib import Path

from convnextpose import weights
from convnextpose.camera import Intrinsics, RootDepthSource
from engines.runtimes.base import usable_cores
from pipeline.draw import PoseRenderer
from pipeline.formats.table import DEFAULT_FORMATS, open_recorders
from pipeline.people import SinglePerson
from pipeline.run import RunConfig, open_model, open_pipeline
from pipeline.sources import open_source
from pipeline.stages import infer, lift
from pipeline.timeline import STAGES
from pipeline.types import PosedFrame, RunHeader


@dataclass(frozen=True)
class Alone:
    """The stages called one after another in one thread.

    Attributes:
        frames: frames that went through.
        wall_s: the whole run, s.
        cpu_s: CPU time of the process, all threads of all libraries, s.
        stage_s: each stage's time, s.
    """

    frames: int
    wall_s: float
    cpu_s: float
    stage_s: dict[str, float]


def run_alone(config: RunConfig, out: Path) -> Alone:
    """Run the clip in this thread."""
    stage_s = dict.fromkeys(STAGES, 0.0)
    with open_model(config.model, config.runtime, threads=config.threads) as runtime, open_source(config.source) as source:
        info = source.info
        camera = config.camera or Intrinsics.assumed(info.width, info.height)
        depth_source = RootDepthSource.INTRINSICS if config.camera else RootDepthSource.ASSUMED_FOV
        header = RunHeader(
            info.id, info.width, info.height, info.frame_rate, info.frame_count, camera, depth_source,
            runtime.model, runtime.describe(),
        )  # fmt: skip
        finder, renderer = SinglePerson(runtime), PoseRenderer(runtime.model.joint_set)
        sinks = open_recorders(out, DEFAULT_FORMATS, header, overwrite=True)
        frames = iter(source)
        count = 0
        begin, begin_cpu = time.perf_counter(), time.process_time()
        while True:
            marks = [time.perf_counter()]
            frame = next(frames, None)
            if frame is None:
                break
            marks.append(time.perf_counter())
            people = finder.find(frame)
            marks.append(time.perf_counter())
            sightings = infer(runtime, frame, people, finder.min_score)
            finder.observe(sightings)
            marks.append(time.perf_counter())
            poses = tuple(lift(s, camera, depth_source) for s in sightings)
            marks.append(time.perf_counter())
            picture = renderer.render(frame, poses, camera)
            marks.append(time.perf_counter())
            for sink in sinks:
                sink.write(PosedFrame(frame, poses, camera, picture))
            marks.append(time.perf_counter())
            for stage, start, end in zip(STAGES, marks[:-1], marks[1:], strict=True):
                stage_s[stage] += end - start
            count += 1
        for sink in sinks:
            sink.close()
        return Alone(count, time.perf_counter() - begin, time.process_time() - begin_cpu, stage_s)


def run_threaded(config: RunConfig) -> tuple[int, float, float]:
    """Run the clip through the pipeline; returns frames, wall time and CPU time, s."""
    pipeline = open_pipeline(config)
    begin, begin_cpu = time.perf_counter(), time.process_time()
    with pipeline:
        count = sum(1 for _ in pipeline)
    return count, time.perf_counter() - begin, time.process_time() - begin_cpu


def main() -> None:
    """Run the rounds and print the table."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--clip", type=Path, default=weights.DEMO_CLIP)
    parser.add_argument("--model", default="xs")
    parser.add_argument("--runtime", default="auto")
    parser.add_argument("--threads", type=int)
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--json", type=Path, help="also write the figures to this file")
    arguments = parser.parse_args()
    cores = usable_cores()
    rows = []
    for _ in range(arguments.rounds):
        with tempfile.TemporaryDirectory() as folder:
            config = RunConfig(
                arguments.clip,
                model=arguments.model,
                runtime=arguments.runtime,
                threads=arguments.threads,
                out=Path(folder) / "threaded",
            )
            alone = run_alone(config, Path(folder) / "alone")
            frames, wall_s, cpu_s = run_threaded(config)
        slowest = max(alone.stage_s, key=lambda stage: alone.stage_s[stage])
        slowest_ms, cpu_ms = 1e3 * alone.stage_s[slowest] / alone.frames, 1e3 * alone.cpu_s / cores / alone.frames
        rows.append(
            {
                "alone_ms": 1e3 * alone.wall_s / alone.frames,
                "threaded_ms": 1e3 * wall_s / frames,
                "slowest_stage_ms": slowest_ms,
                "cpu_over_cores_ms": cpu_ms,
                "threaded_cpu_over_cores_ms": 1e3 * cpu_s / cores / frames,
                "bound_ms": max(slowest_ms, cpu_ms),
                **{f"{stage}_ms": 1e3 * s / alone.frames for stage, s in alone.stage_s.items()},
            }
        )
    figures = {key: statistics.median(row[key] for row in rows) for key in rows[0]}
    figures["of_bound"] = statistics.median(row["bound_ms"] / row["threaded_ms"] for row in rows)
    figures["gain"] = statistics.median(row["alone_ms"] / row["threaded_ms"] for row in rows)
    for key, value in figures.items():
        print(f"{key:28s} {value:8.2f}")
    print(f"{cores} cores, {arguments.rounds} rounds: {1e3 / figures['threaded_ms']:.1f} frames a second, ", end="")
    print(f"{figures['of_bound']:.2f} of the bound, {figures['gain']:.2f} times the speed of one thread")
    if arguments.json:
        arguments.json.write_text(json.dumps({"cores": cores, "rounds": rows, "median": figures}, indent=2) + "\n")


if __name__ == "__main__":
    main()
