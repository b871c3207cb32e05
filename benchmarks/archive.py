"""The overhead of an archive: the time for each clip in addition to finding and posing its people.

    python benchmarks/archive.py [--clips 1000] [--frames 2]

It makes short grey clips of 64x48 px, all with different contents. There are no people in them, so the networks take little of
the time: the people detector runs on the first frame, upright and in three rotations, and not on the second. The poses alone
are `open_source` and the `Estimator.step` of a run for every frame of every clip, in one thread of one process, with open
models, so both sides make the same inferences. The archive is `convnextpose archive` with one worker of one thread, minus the
time of a run over a single clip, which is its start. Wall time and CPU time of all its processes are printed.
"""

from __future__ import annotations

import argparse
import resource
import subprocess
import sys
import tempfile
import time
from pathlib import Path

import av
import numpy as np

sys.path.insert(0, str(Path(__file__).parent.parent))

from pipeline.models import open_models
from pipeline.run import RunConfig, open_estimator
from pipeline.sources import open_source

WIDTH, HEIGHT = 64, 48


def write_clip(path: Path, frames: int, number: int) -> None:
    """A grey clip; its title makes the file different for each number."""
    picture = np.full((HEIGHT, WIDTH, 3), 128, np.uint8)
    with av.open(str(path), "w") as container:
        container.metadata["title"] = f"clip {number}"
        stream = container.add_stream("libx264", rate=25, options={"preset": "ultrafast"})
        stream.width, stream.height, stream.pix_fmt = WIDTH, HEIGHT, "yuv420p"
        stream.codec_context.thread_count = 1
        for _ in range(frames):
            container.mux(stream.encode(av.VideoFrame.from_ndarray(picture, format="bgr24")))
        container.mux(stream.encode(None))


def pose_alone(clips: list[Path]) -> tuple[float, float]:
    """Wall and CPU seconds of the poses alone."""
    models = open_models("xs", threads=1)
    wall, cpu = time.perf_counter(), time.process_time()
    for clip in clips:
        with open_source(clip) as source:
            estimator = open_estimator(RunConfig(clip), models, source.info)
            for frame in source:
                estimator.step(frame)
    spent = time.perf_counter() - wall, time.process_time() - cpu
    models.close()
    return spent


def archive(folder: Path, out: Path) -> tuple[float, float]:
    """Wall and CPU seconds of `convnextpose archive` over a folder, with one worker of one thread."""
    command = [
        sys.executable,
        "-m",
        "tools.main",
        "archive",
        str(folder),
        "--out",
        str(out),
        "--workers",
        "1",
        "--threads",
        "1",
    ]
    before, wall = resource.getrusage(resource.RUSAGE_CHILDREN), time.perf_counter()
    subprocess.run(command, check=True, cwd=Path(__file__).parent.parent, stdout=subprocess.DEVNULL)
    after = resource.getrusage(resource.RUSAGE_CHILDREN)
    return time.perf_counter() - wall, after.ru_utime + after.ru_stime - before.ru_utime - before.ru_stime


def main() -> None:
    """Measure and print."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--clips", type=int, default=1000)
    parser.add_argument("--frames", type=int, default=2)
    chosen = parser.parse_args()
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        (folder / "one").mkdir()
        (folder / "all").mkdir()
        write_clip(folder / "one" / "clip.mp4", chosen.frames, chosen.clips)
        clips = [folder / "all" / f"{number}.mp4" for number in range(chosen.clips)]
        for number, clip in enumerate(clips):
            write_clip(clip, chosen.frames, number)
        start = archive(folder / "one", folder / "out-one")
        alone = pose_alone(clips)
        whole = archive(folder / "all", folder / "out-all")
        again = archive(folder / "all", folder / "out-all")
    print(f"{chosen.clips} clips of {chosen.frames} frames      wall, s      CPU, s")
    for what, (wall, cpu) in {"start": start, "poses alone": alone, "archive": whole, "again": again}.items():
        print(f"{what:<28}{wall:>9.1f}{cpu:>12.1f}")
    wall, cpu = (1e3 * (w - s - a) / chosen.clips for w, s, a in zip(whole, start, alone, strict=True))
    print(f"beyond the poses, ms a clip {wall:>9.1f}{cpu:>12.1f}")


if __name__ == "__main__":
    main()
