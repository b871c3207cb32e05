"""The benchmarks of speed: their counts, comparisons and runs."""

import json
import subprocess
import sys
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from benchmarks.compare import agreement, check_imports, checked_out, name_of
from benchmarks.host_work import HEIGHT, WIDTH, enlarge, repeat
from benchmarks.peers import measure
from benchmarks.pipeline_speed import SpeedAlone, bound_ms, run_alone, run_threaded
from benchmarks.rounds import by_turns, in_words, ratios, run_process
from convnextpose.weights import DEMO_CLIP
from pipeline.run import RunConfig
from pipeline.sources import open_source
from pipeline.timeline import Span, Timeline

JOINTS = ["Pelvis", "Head", "Neck"]


def write_poses(path: Path, frames: dict[int, list], joints=tuple(JOINTS)) -> Path:
    lines = [{"type": "header", "joints": list(joints)}]
    for index, people in frames.items():
        poses = [{"joints_px": np.asarray(person, float).tolist()} for person in people]
        lines.append({"type": "frame", "index": index, "poses": poses})
    path.write_text("\n".join(map(json.dumps, lines)) + "\n", encoding="utf-8")
    return path


def git(folder, *words):
    who = ["-c", "user.name=someone", "-c", "user.email=someone@example.org"]
    subprocess.run(["git", *who, *words], cwd=folder, check=True, capture_output=True)


@given(st.lists(st.text(), min_size=1, max_size=4, unique=True), st.integers(0, 7))
def test_each_thing_has_one_turn_a_round_and_every_other_round_goes_backwards(things, rounds):
    turns = list(by_turns(things, rounds))
    assert len(turns) == rounds * len(things)
    for number in range(rounds):
        of_round = [thing for turn, thing in turns if turn == number]
        assert of_round == (things[::-1] if number % 2 else things)


def test_ratios_are_of_one_round_each():
    assert ratios([2, 9], [1, 3]) == [2, 3]
    assert in_words([2.0, 9.0, 3.0]) == "3.00  (each round: 2.00, 9.00, 3.00)"
    assert in_words([2.0]) == "2.00"


def test_a_process_gets_variables_and_a_folder_and_its_failure_is_told(tmp_path):
    code = "import os; print(os.environ['WHAT'], os.getcwd())"
    done = run_process([sys.executable, "-c", code], tmp_path, {"WHAT": "this"})
    assert done.output.split() == ["this", str(tmp_path.resolve())]
    with pytest.raises(RuntimeError, match="exit code is 3:\nbecause"):
        run_process([sys.executable, "-c", "print('because'); raise SystemExit(3)"], tmp_path)


@given(st.dictionaries(st.text(min_size=1), st.floats(0.01, 10), min_size=1), st.floats(0.01, 40), st.integers(1, 8))
def test_no_thread_and_no_set_of_cores_is_faster_than_the_bound(thread_s, cpu_s, cores):
    bound, what = bound_ms(SpeedAlone(10, 1.0, cpu_s, thread_s, ()), cores)
    times = [1e3 * seconds / 10 for seconds in (*thread_s.values(), cpu_s / cores)]
    assert bound == pytest.approx(max(times))
    assert what


def test_a_stage_that_happens_twice_to_a_frame_is_added_up_and_formats_are_told_apart():
    first = Timeline("a", 0, (Span("write", 0, 0, 1_000_000, "mp4"), Span("infer", 0, 0, 2_000_000)))
    second = Timeline("a", 1, (Span("infer", 0, 0, 1_000_000), Span("infer", 0, 2_000_000, 4_000_000)))
    assert SpeedAlone(2, 1, 1, {}, (first, second)).stage_ms() == {"infer": [2.0, 3.0], "write mp4": [1.0]}


@pytest.mark.slow
def test_one_thread_and_the_pipeline_write_the_same_results(tmp_path):
    enlarge(DEMO_CLIP, tmp_path / "clip.mp4", 8)
    config = RunConfig(tmp_path / "clip.mp4", out=tmp_path / "alone")
    alone = run_alone(config)
    threaded = run_threaded(replace(config, out=tmp_path / "threaded"))
    assert alone.frames == threaded.frames == 8
    assert set(alone.thread_s) == {"reader", "estimator", "renderer", "poses.mp4", "poses.ndjson", "poses.npz"}
    assert all(len(values) <= 8 for values in alone.stage_ms().values())
    for name in ("poses.ndjson", "poses.mp4"):
        assert (tmp_path / "alone" / name).read_bytes() == (tmp_path / "threaded" / name).read_bytes()
    assert agreement(tmp_path / "alone/poses.ndjson", tmp_path / "threaded/poses.ndjson").frames == 8


def test_clips_are_enlarged_and_repeated_without_gaps(tmp_path):
    enlarge(DEMO_CLIP, tmp_path / "large.mp4", 5)
    repeat(tmp_path / "large.mp4", tmp_path / "long.mp4", 3)
    with open_source(tmp_path / "long.mp4") as source:
        frames = list(source)
    assert [frame.index for frame in frames] == list(range(15))
    assert {frame.image.shape for frame in frames} == {(HEIGHT, WIDTH, 3)}
    steps = np.diff([frame.time_s for frame in frames])
    assert steps == pytest.approx(np.full(14, steps[0]), abs=1e-3)
    assert np.array_equal(frames[1].image, frames[11].image)


def test_the_same_poses_agree_in_any_order_of_people_and_joints(tmp_path):
    one, other = np.arange(6).reshape(3, 2), 100 + np.arange(6).reshape(3, 2)
    first = write_poses(tmp_path / "a", {0: [one, other], 1: []})
    turned = write_poses(tmp_path / "b", {0: [other[::-1], one[::-1]], 1: []}, JOINTS[::-1])
    agreed = agreement(first, turned)
    assert (agreed.frames, agreed.poses, agreed.unpaired, agreed.joints, agreed.max_px) == (1, 2, 0, 3, 0)


def test_what_differs_is_told(tmp_path):
    pose, moved = np.zeros((3, 2)), np.zeros((3, 2))
    moved[1, 0] = 0.5
    first = write_poses(tmp_path / "a", {0: [pose], 1: [pose], 2: [pose]})
    second = write_poses(tmp_path / "b", {0: [moved, pose + 50], 3: [pose]})
    agreed = agreement(first, second)
    assert (agreed.frames, agreed.only_first, agreed.only_second, agreed.unpaired) == (1, 2, 1, 1)
    assert agreed.max_px == 0.5
    assert agreed.mean_px == pytest.approx(0.5 / 6)
    assert np.isnan(agreement(first, write_poses(tmp_path / "c", {7: [pose]})).max_px)


def test_a_file_without_poses_is_refused_by_its_line(tmp_path):
    good = write_poses(tmp_path / "a", {})
    (tmp_path / "b").write_text('{"type": "header", "joints": []}\n{"poses": 3}\n', encoding="utf-8")
    with pytest.raises(ValueError, match="line 2"):
        agreement(good, tmp_path / "b")


def test_a_commit_is_checked_out_and_leaves_nothing(tmp_path):
    git(tmp_path, "init", "-q")
    file = tmp_path / "file"
    for text in ("old", "new"):
        file.write_text(text)
        git(tmp_path, "add", "file")
        git(tmp_path, "commit", "-qm", text)
    file.write_text("newest")
    with checked_out("HEAD~1", tmp_path) as tree:
        assert (tree / "file").read_text() == "old"
        assert name_of(tree) != name_of(tmp_path)
        assert name_of(tmp_path).endswith(" and changes")
        assert not name_of(tree).endswith("changes")
    assert not tree.exists()
    worktrees = subprocess.run(["git", "worktree", "list"], cwd=tmp_path, capture_output=True, text=True, check=True).stdout
    assert len(worktrees.splitlines()) == 1
    with pytest.raises(ValueError, match="nowhere"), checked_out("nowhere", tmp_path):
        pass


def test_packages_come_from_the_tree_that_is_run(tmp_path):
    check_imports(Path(__file__).parents[2])
    with pytest.raises(RuntimeError):
        check_imports(tmp_path)  # it has no packages: they come from this project's installation, or are not found


def test_a_peer_counts_every_frame_and_those_with_people():
    told = measure(iter([1, 0, 2, 0]), started_s=0.0)
    assert (told.frames, told.with_person, told.poses) == (4, 2, 3)
