"""The host's work for a frame outside inference, and whether memory stays constant.

    python benchmarks/host_work.py [--frames 250] [--flat 10000]

The demo clip is enlarged to 1280x720 first. Times are medians over frames of each stage, and of each format that is written,
called one after another in one thread, as in `pipeline_speed.py`. For memory, a video that repeats the demo clip goes through
the whole pipeline with everything on, and the resident memory of the process is printed.
"""

from __future__ import annotations

import argparse
import statistics
import sys
import tempfile
from itertools import islice
from pathlib import Path

import av

from convnextpose import weights
from pipeline.run import RunConfig, open_pipeline

sys.path.insert(0, str(Path(__file__).parent.parent))  # for `benchmarks`, which is not installed

from benchmarks.pipeline_speed import run_alone

WIDTH, HEIGHT = 1280, 720

ON_THE_HOST = ("capture", "preprocess", "lift", "track", "render", "write")
"""The stages outside inference."""


def enlarge(clip: Path, out: Path, frames: int) -> None:
    """Write a clip's first frames as a video of WIDTH x HEIGHT px."""
    with av.open(str(clip)) as source, av.open(str(out), "w") as target:
        stream = target.add_stream("libx264", rate=source.streams.video[0].average_rate)
        stream.width, stream.height, stream.pix_fmt = WIDTH, HEIGHT, "yuv420p"
        for frame in islice(source.decode(video=0), frames):
            target.mux(stream.encode(frame.reformat(WIDTH, HEIGHT, "yuv420p")))
        target.mux(stream.encode(None))


def repeat(clip: Path, out: Path, times: int) -> None:
    """Write a video that shows a clip several times, without encoding it again."""
    with av.open(str(clip)) as source, av.open(str(out), "w") as target:
        (shown,) = source.streams.video
        stream = target.add_stream_from_template(shown)
        for number in range(times):
            source.seek(0)
            for packet in source.demux(shown):
                if packet.pts is not None and packet.dts is not None:  # the last one is empty
                    packet.pts += number * shown.duration
                    packet.dts += number * shown.duration
                    packet.stream = stream
                    target.mux(packet)


def resident_mib() -> float:
    """Resident memory of this process, MiB (Linux)."""
    for line in Path("/proc/self/status").read_text(encoding="ascii").splitlines():
        if line.startswith("VmRSS"):
            return int(line.split()[1]) / 1024
    raise OSError("expected VmRSS in /proc/self/status, found none")


def main() -> None:
    """Print the figures."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--frames", type=int, default=250, help="frames to time each stage on")
    parser.add_argument("--flat", type=int, default=10_000, help="frames of the memory run, in whole clips; 0 leaves it out")
    arguments = parser.parse_args()
    with tempfile.TemporaryDirectory() as folder:
        large = Path(folder) / "large.mp4"
        enlarge(weights.DEMO_CLIP, large, arguments.frames)
        alone = run_alone(RunConfig(large, out=Path(folder) / "large"))
        print(f"host work for a {WIDTH}x{HEIGHT} frame with one person, median of {alone.frames} frames, ms")
        for name, values in alone.stage_ms().items():
            if name.split()[0] in ON_THE_HOST:
                print(f"  {name:14s} {statistics.median(values):6.2f}")
        if arguments.flat:
            long, marks = Path(folder) / "long.mp4", dict[int, float]()
            with av.open(str(weights.DEMO_CLIP)) as clip:
                times = -(-arguments.flat // clip.streams.video[0].frames)
            repeat(weights.DEMO_CLIP, long, times)
            with open_pipeline(RunConfig(long, out=Path(folder) / "long")) as pipeline:
                total = pipeline.header.frame_count or arguments.flat
                for posed in pipeline:
                    if (posed.frame.index + 1) % (total // 10) == 0:
                        marks[posed.frame.index + 1] = resident_mib()
            print(f"resident memory over {total} frames, MiB")
            print("  " + "  ".join(f"{frames}: {mib:.0f}" for frames, mib in marks.items()))


if __name__ == "__main__":
    main()
