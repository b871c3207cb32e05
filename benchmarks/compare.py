"""Compares this commit with another one, alternating on one machine: their speed, and whether their poses agree.

    python benchmarks/compare.py COMMIT [--clip CLIP] [--rounds 5] [--same-weights] [--this=OPTION]... [-- OPTION...]

The other commit is checked out into a temporary folder; this one is the working tree. Each round runs
`python -m tools.main run CLIP --out FOLDER` of both, each in its own process, with this interpreter and its packages. Options
after `--` are for both; `--this=OPTION`, once for each word, is for this commit only (`--this=--precision=fp32`). With
`--same-weights` both run the other commit's default weights.

Both trees are compiled to byte code first, like an installed package. Wall time and CPU time are those of the whole process.
The speed is the one that the run reports: from its first frame's capture to its last frame's end. Poses are compared in the
last round's `poses.ndjson`.
"""

from __future__ import annotations

import argparse
import json
import re
import statistics
import subprocess
import sys
import tempfile
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from convnextpose import weights

sys.path.insert(0, str(Path(__file__).parent.parent))  # for `benchmarks`, which is not installed

from benchmarks.rounds import by_turns, in_words, ratios, run_process

ROOT = Path(__file__).parent.parent

XS = "convnextpose/weights/xs.onnx"

PACKAGES = ("convnextpose", "engines", "pipeline", "tools")


@dataclass(frozen=True)
class Run:
    """One run of a commit.

    Attributes:
        wall_s: from the start of its process to its end, s.
        cpu_s: CPU time of all its threads, s.
        frames_per_second: the speed that it reports.
    """

    wall_s: float
    cpu_s: float
    frames_per_second: float


@dataclass(frozen=True)
class Agreement:
    """The difference between the poses of two runs.

    Attributes:
        frames: number of frames with a pose in both.
        only_first, only_second: number of frames with a pose in only one of them.
        poses: number of compared poses: in each frame, each pose of the run with fewer with the nearest one of the other.
        unpaired: number of poses in those frames that were not compared.
        joints: joints that both runs have, by name.
        max_px, mean_px: largest and mean distance of such a joint along x or y, px; NaN if nothing was compared.
    """

    frames: int
    only_first: int
    only_second: int
    poses: int
    unpaired: int
    joints: int
    max_px: float
    mean_px: float


def read_joints(path: Path) -> tuple[list[str], dict[int, NDArray[np.float64]]]:
    """Read a `poses.ndjson` of any commit: the joints' names [J] and, for each frame with a pose, the joints [P, J, 2], px.

    Raises:
        ValueError: it contains something else.
    """
    names: list[str] = []
    frames: dict[int, NDArray[np.float64]] = {}
    for number, line in enumerate(path.read_text(encoding="utf-8").splitlines(), 1):
        try:
            record: dict[str, Any] = json.loads(line)
            if record["type"] == "header":
                names = record["joints"]
            elif record["poses"]:
                joints = np.array([pose["joints_px"] for pose in record["poses"]], np.float64)
                frames[record["index"]] = joints.reshape(-1, len(names), 2)
        except (ValueError, KeyError, TypeError) as error:
            raise ValueError(f"expected a header and frames with poses, line {number} of {path} is neither: {error}") from error
    return names, frames


def agreement(first: Path, second: Path) -> Agreement:
    """Compare two files of poses.

    Raises:
        ValueError: one of them is not such a file.
    """
    (first_names, a), (second_names, b) = read_joints(first), read_joints(second)
    common = [name for name in first_names if name in second_names]
    a_columns, b_columns = ([names.index(name) for name in common] for names in (first_names, second_names))
    both = sorted(a.keys() & b.keys())
    differences, unpaired = [], 0
    for index in both:
        fewer, more = sorted((a[index][:, a_columns], b[index][:, b_columns]), key=len)
        left = list(range(len(more)))
        for pose in fewer:
            nearest = min(left, key=lambda number: float(np.abs(more[number] - pose).mean()))
            left.remove(nearest)
            differences.append(np.abs(more[nearest] - pose))
        unpaired += len(left)
    values = np.array(differences)
    return Agreement(
        frames=len(both),
        only_first=len(a.keys() - b.keys()),
        only_second=len(b.keys() - a.keys()),
        poses=len(differences),
        unpaired=unpaired,
        joints=len(common),
        max_px=float(values.max()) if values.size else float("nan"),
        mean_px=float(values.mean()) if values.size else float("nan"),
    )


@contextmanager
def checked_out(commit: str, root: Path = ROOT) -> Iterator[Path]:
    """The tree of a commit, in a temporary folder.

    Raises:
        ValueError: git knows no such commit.
    """
    with tempfile.TemporaryDirectory() as folder:
        tree = Path(folder) / "tree"
        try:
            _git(root, "worktree", "add", "--detach", str(tree), commit)
            yield tree
        finally:
            subprocess.run(
                ["git", "-C", str(root), "worktree", "remove", "--force", str(tree)], capture_output=True, check=False
            )


def name_of(tree: Path) -> str:
    """The commit of a tree, and whether its files were changed."""
    changed = _git(tree, "status", "--porcelain", "--untracked-files=no")
    return _git(tree, "rev-parse", "--short", "HEAD") + (" and changes" if changed else "")


def check_imports(tree: Path) -> None:
    """Refuse a tree whose packages Python imports from elsewhere.

    Raises:
        RuntimeError: names the place.
    """
    code = f"import {', '.join(PACKAGES)}; print(*(m.__file__ for m in ({', '.join(PACKAGES)})), sep='\\n')"
    for place in run_process([sys.executable, "-c", code], tree, {"PYTHONPATH": str(tree)}).output.splitlines():
        if not Path(place).resolve().is_relative_to(tree.resolve()):
            raise RuntimeError(f"expected the packages of {tree}, received {place}")


def run_commit(tree: Path, clip: Path, out: Path, options: Sequence[str]) -> Run:
    """Run a tree's own command line in its own process.

    Raises:
        RuntimeError: it failed, or does not report its speed.
    """
    command = [sys.executable, "-m", "tools.main", "run", str(clip), "--out", str(out), "--overwrite", *options]
    done = run_process(command, tree, {"PYTHONPATH": str(tree)})
    told = re.search(r"([\d.]+) frames a second", done.output)
    if told is None:
        raise RuntimeError(f"expected `{' '.join(command)}` to say how many frames a second it did, it printed:\n{done.output}")
    return Run(done.wall_s, done.cpu_s, float(told[1]))


def _git(root: Path, *words: str) -> str:
    done = subprocess.run(["git", "-C", str(root), *words], capture_output=True, text=True, check=False)
    if done.returncode:
        raise ValueError(f"expected `git {' '.join(words)}` to succeed, it says: {done.stderr.strip()}")
    return done.stdout.strip()


def main() -> None:
    """Read the command line; exit code 2 if something cannot be run."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("commit", help="anything that git takes for a commit")
    parser.add_argument("--clip", type=Path, default=weights.DEMO_CLIP)
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--same-weights", action="store_true", help="both run the other commit's default weights")
    parser.add_argument("--this", action="append", default=[], metavar="OPTION", help="for this commit alone")
    parser.add_argument("--json", type=Path, help="also write the figures to this file")
    parser.add_argument("options", nargs="*", help="behind `--`: options of `run` for both")
    arguments = parser.parse_intermixed_args()  # our own options may come between the commit and `--`
    try:
        compare(arguments)
    except (ValueError, RuntimeError) as error:
        parser.error(str(error))


def compare(arguments: argparse.Namespace) -> None:
    """Run the rounds and print the tables.

    Raises:
        ValueError: git knows no such commit.
        RuntimeError: a run failed.
    """
    clip = arguments.clip.resolve()
    with checked_out(arguments.commit) as other, tempfile.TemporaryDirectory() as folder:
        options = [*(["--model", str(other / XS)] if arguments.same_weights else []), *arguments.options]
        trees = {"this": (ROOT, [*options, *arguments.this]), "other": (other, options)}
        runs: dict[str, list[Run]] = {name: [] for name in trees}
        for tree, _ in trees.values():
            check_imports(tree)
            run_process([sys.executable, "-m", "compileall", "-q", *PACKAGES], tree)
        for _, name in by_turns(tuple(trees), arguments.rounds):
            tree, words = trees[name]
            runs[name].append(run_commit(tree, clip, Path(folder) / name, words))
        names = {name: f"{name} ({name_of(tree)})" for name, (tree, _) in trees.items()}
        agreed = agreement(*(Path(folder) / name / "poses.ndjson" for name in trees))
    print(f"{clip.name}, {arguments.rounds} rounds, medians")
    width = max(map(len, names.values()))
    print(f"{'':{width}s}  {'wall s':>8s}  {'CPU s':>8s}  {'frames a second':>15s}")
    for name, done in runs.items():
        wall, cpu, speed = (statistics.median(getattr(run, key) for run in done) for key in Run.__dataclass_fields__)
        print(f"{names[name]:{width}s}  {wall:8.2f}  {cpu:8.2f}  {speed:15.1f}")
    of_other = {
        "speed": ratios(*([run.frames_per_second for run in runs[name]] for name in ("this", "other"))),
        "wall time": ratios(*([run.wall_s for run in runs[name]] for name in ("this", "other"))),
        "CPU time": ratios(*([run.cpu_s for run in runs[name]] for name in ("this", "other"))),
    }
    for what, values in of_other.items():
        print(f"{what} over the other's: {in_words(values)}")
    print(
        f"poses: {agreed.frames} frames have one in both, {agreed.only_first} in this alone, {agreed.only_second} in the other "
        f"alone; {agreed.poses} compared, {agreed.unpaired} without a counterpart; {agreed.joints} joints differ by "
        f"{agreed.max_px:.3f} px at most, {agreed.mean_px:.4f} px on average"
    )
    if arguments.json:
        record = {
            "clip": clip.name,
            "commits": names,
            "rounds": {name: [asdict(run) for run in done] for name, done in runs.items()},
            "over_other": of_other,
            "poses": asdict(agreed),
        }
        arguments.json.write_text(json.dumps(record, indent=2) + "\n", encoding="utf-8")


if __name__ == "__main__":
    main()
