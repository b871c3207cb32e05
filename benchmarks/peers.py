"""Compares this project with MediaPipe's full pose model, alternating, each from a video file to poses in memory.

    python benchmarks/peers.py [CLIP...] [--rounds 5] [--max-people 1] [--precision auto]
        [--mediapipe reference-env/bin/python] [--json FILE]

Without clips it uses the demo clip; `vtest.avi` is in Debian's package `opencv-doc`. MediaPipe has its own environment, see
`benchmarks/reference.py`. Each round runs both on each clip, each in its own process. MediaPipe runs in its video mode: it
tracks one person and smooths the pose; its video is decoded in threads of its own. So this project also tracks one person,
unless `--max-people` says otherwise.

Start-up is from the start of the process to the first frame's poses; the speed is that of the frames after it. CPU time is that
of all threads of the process, for the same frames.
"""

from __future__ import annotations

import argparse
import json
import statistics
import sys
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path

sys.path.insert(0, str(Path(__file__).parent.parent))  # for what is not installed: everything in MediaPipe's environment

from benchmarks.rounds import by_turns, in_words, ratios, run_process

ROOT = Path(__file__).parent.parent


@dataclass(frozen=True)
class PeerResult:
    """A peer's results for a clip.

    Attributes:
        frames: number of frames in the clip.
        with_person: number of frames with a pose.
        poses: number of poses in all of them.
        startup_s: from the start of the process to the first frame's poses, s.
        frames_per_second: speed for the frames after the first.
        cpu_ms: CPU time of all threads for one of these frames, ms.
    """

    frames: int
    with_person: int
    poses: int
    startup_s: float
    frames_per_second: float
    cpu_ms: float


def with_convnextpose(clip: Path, max_people: int, precision: str) -> Iterator[int]:
    """Number of people with a pose, frame by frame."""
    from pipeline.run import RunConfig, open_pipeline

    with open_pipeline(RunConfig(clip, max_people=max_people, precision=precision)) as pipeline:
        for posed in pipeline:
            yield len(posed.poses)


def with_mediapipe(clip: Path, _max_people: int, _precision: str) -> Iterator[int]:
    """Number of people with a pose, frame by frame: at most one, in its own precision."""
    import av
    import mediapipe

    pose = mediapipe.solutions.pose.Pose(static_image_mode=False, model_complexity=1)
    with av.open(str(clip)) as container:
        container.streams.video[0].thread_type = "AUTO"
        for frame in container.decode(video=0):
            found = pose.process(frame.to_ndarray(format="rgb24"))
            yield int(found.pose_landmarks is not None)


PEERS: dict[str, Callable[[Path, int, str], Iterator[int]]] = {"convnextpose": with_convnextpose, "mediapipe": with_mediapipe}
"""The peers that are compared, by name."""


def measure(people: Iterator[int], started_s: float) -> PeerResult:
    """Go through a peer's frames.

    Args:
        people: number of people with a pose, frame by frame; at least two frames.
        started_s: start of the process, by `time.monotonic`.
    """
    poses = next(people)
    with_person = int(poses > 0)
    first_s, first_cpu_s = time.monotonic(), time.process_time()
    frames = 1
    for count in people:
        frames += 1
        with_person += count > 0
        poses += count
    wall_s, cpu_s = time.monotonic() - first_s, time.process_time() - first_cpu_s
    return PeerResult(frames, with_person, poses, first_s - started_s, (frames - 1) / wall_s, 1e3 * cpu_s / (frames - 1))


def run_peer(name: str, python: Path, clip: Path, options: Sequence[str]) -> PeerResult:
    """Run a peer in its own process, with some options of this command line.

    Raises:
        RuntimeError: it failed.
    """
    started = repr(time.monotonic())  # all processes of a machine share this clock
    command = [python, Path(__file__).resolve(), clip, *options, "--peer", name, "--started", started]
    return PeerResult(**json.loads(run_process(command, ROOT).output.splitlines()[-1]))


def compare(
    clips: list[Path], pythons: dict[str, Path], rounds: int, options: Sequence[str]
) -> dict[str, dict[str, list[PeerResult]]]:
    """Run all peers on all clips, alternating; the results by clip and peer.

    Raises:
        RuntimeError: a peer failed.
    """
    results: dict[str, dict[str, list[PeerResult]]] = {clip.name: {name: [] for name in pythons} for clip in clips}
    for _, (clip, name) in by_turns([(clip, name) for clip in clips for name in pythons], rounds):
        results[clip.name][name].append(run_peer(name, pythons[name], clip.resolve(), options))
    return results


def main() -> None:
    """Run the rounds and print a table for each clip."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("clips", nargs="*", type=Path, default=[ROOT / "convnextpose/weights/demo.mp4"])
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--max-people", type=int, default=1, help="how many people this project follows")
    parser.add_argument("--precision", default="auto", help="what this project's networks compute in")
    parser.add_argument("--mediapipe", type=Path, default=Path("reference-env/bin/python"), help="Python that has MediaPipe")
    parser.add_argument("--json", type=Path, help="also write the figures to this file")
    parser.add_argument("--peer", choices=PEERS, help=argparse.SUPPRESS)
    parser.add_argument("--started", type=float, help=argparse.SUPPRESS)
    arguments = parser.parse_args()
    if arguments.peer:
        people = PEERS[arguments.peer](arguments.clips[0], arguments.max_people, arguments.precision)
        print(json.dumps(asdict(measure(people, arguments.started))))
        return
    if not arguments.mediapipe.exists():
        parser.error(f"expected a Python with MediaPipe at {arguments.mediapipe}: benchmarks/reference.py says how to make one")
    # The path is not resolved: a virtual environment's Python is a link to another one.
    pythons = {"convnextpose": Path(sys.executable), "mediapipe": arguments.mediapipe.absolute()}
    options = ["--max-people", str(arguments.max_people), "--precision", arguments.precision]
    try:
        results = compare(arguments.clips, pythons, arguments.rounds, options)
    except RuntimeError as error:
        parser.error(str(error))
    faster = {}
    for clip, peers in results.items():
        frames = next(iter(peers.values()))[0].frames
        print(f"{clip}, {frames} frames, {arguments.rounds} rounds, medians")
        headings = ("frames a second", "CPU ms a frame", "start-up s", "frames with a person", "poses")
        print(f"{'':14s}" + "".join(f"{heading:>{len(heading) + 3}s}" for heading in headings))
        for name, runs in peers.items():
            keys = ("frames_per_second", "cpu_ms", "startup_s", "with_person", "poses")
            speed, cpu_ms, startup_s, people, poses = (statistics.median(getattr(run, key) for run in runs) for key in keys)
            print(f"{name:14s}{speed:18.1f}{cpu_ms:17.2f}{startup_s:13.2f}{people:23.0f}{poses:8.0f}")
        faster[clip] = ratios(*([run.frames_per_second for run in peers[name]] for name in PEERS))
        print(f"speed over MediaPipe's: {in_words(faster[clip])}")
    if arguments.json:
        rounds = {
            clip: {name: [asdict(run) for run in runs] for name, runs in peers.items()} for clip, peers in results.items()
        }
        arguments.json.write_text(json.dumps({"rounds": rounds, "faster": faster}, indent=2) + "\n", encoding="utf-8")


if __name__ == "__main__":
    main()
