"""Real workers: processes with models, on real files; and the command line."""

import contextlib
import json
import multiprocessing
import random
import shutil
import signal
import subprocess
import sys
import time
from itertools import islice
from pathlib import Path

import av
import pytest

from convnextpose import weights
from convnextpose.errors import ModelError, RuntimeUnavailableError
from pipeline.archive.ledger import DAMAGED, DONE, FAILED
from pipeline.archive.on_ray import ray_pool
from pipeline.archive.pool import local_pool
from pipeline.archive.run import ArchiveRun
from pipeline.archive.worker import Job, Worker
from pipeline.formats.records import read_poses
from pipeline.run import RunConfig
from tests.engines.detectors import detector

ROOT = Path(__file__).parents[3]


def demo_clip(path, frames, first=0):
    """A small part of the demo clip; every frame is a key frame, so that damage affects few."""
    with av.open(str(weights.DEMO_CLIP)) as source, av.open(str(path), "w") as target:
        stream = target.add_stream("libx264", rate=25, options={"g": "1"})
        stream.width, stream.height, stream.pix_fmt = 160, 120, "yuv420p"
        for frame in islice(source.decode(video=0), first, first + frames):
            picture = frame.reformat(160, 120, "yuv420p")
            picture.pts = None
            target.mux(stream.encode(picture))
        target.mux(stream.encode(None))
    return path


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    folder = tmp_path_factory.mktemp("videos") / "videos"
    (folder / "day 2").mkdir(parents=True)
    demo_clip(folder / "a.mp4", 3)
    demo_clip(folder / "day 2" / "[b].mkv", 2, first=40)
    shutil.copy(folder / "a.mp4", folder / "day 2" / "copy.mp4")
    damaged = demo_clip(folder / "damaged.avi", 12)
    data = damaged.read_bytes()
    damaged.write_bytes(data[: len(data) * 2 // 3])
    (folder / "empty.mp4").write_bytes(b"")
    (folder / "text.mp4").write_text("no video")
    return folder


def archive_command(*arguments):
    command = [sys.executable, "-m", "tools.main", "archive", *map(str, arguments)]
    return subprocess.run(command, capture_output=True, text=True, cwd=ROOT, check=False, timeout=240)


def test_the_command_makes_a_folder_of_results_and_goes_on_where_it_was(folder, tmp_path, cli):
    out = tmp_path / "out"
    result = archive_command(folder, "--out", out, "--workers", "1", "--threads", "1")
    assert result.returncode == 0 and result.stderr == "", result.stderr
    frames = {p.parent.relative_to(out).as_posix(): len(read_poses(p).frames) for p in out.rglob("poses.ndjson")}
    some = frames.pop("videos/damaged.avi")
    assert 0 < some < 12 and frames == {"videos/a.mp4": 3, "videos/day 2/[b].mkv": 2}
    for words in ("2  complete", "1  damaged", "2  unreadable", "1  the same content", "6  in all", "empty.mp4 is empty"):
        assert words in result.stdout, result.stdout
    job = json.loads((out / "videos" / "damaged.avi" / "job.json").read_text())
    assert job["status"] == DAMAGED and "cut short" in job["reason"] and job["frames"] == some
    ledger = (out / "ledger.ndjson").read_bytes()
    code, told, _ = cli("archive", folder, "--out", out)
    assert code == 0 and "6  finished by earlier runs" in told
    assert (out / "ledger.ndjson").read_bytes() == ledger
    code, _, error = cli("archive", folder, "--out", out, "--smooth")
    assert code == 1 and "smooth true" in error and error.count("\n") == 1


def test_a_worker_that_is_killed_costs_one_file_at_most(folder, tmp_path):
    small = tmp_path / "in"
    small.mkdir()
    for name in ("a.mp4", "empty.mp4"):
        shutil.copy(folder / name, small / name)
    demo_clip(small / "0 killer.mp4", 250)  # long enough to be killed during its work, by callbacks every half second
    pools, killed = [], []

    def open_pool(config, most):
        pools.append(local_pool(1)(config, most))
        return pools[0]

    def kill_who_works_on_the_killer(progress):
        (member,) = pools[0]._members or [None]
        if member and member.job and member.job.path.name == "0 killer.mp4" and member.process.pid not in killed:
            killed.append(member.process.pid)
            member.process.kill()

    run = ArchiveRun(RunConfig(sources=small, out=tmp_path / "out", threads=1), open_pool)
    summary = run.run(kill_who_works_on_the_killer)
    assert len(killed) == 2
    assert summary.progress.counts == {FAILED: 1, DONE: 1, "unreadable": 1}
    (failed,) = (record for record in summary.problems if record.status == FAILED)
    assert failed.file.endswith("0 killer.mp4") and "killed by SIGKILL" in failed.reason and "2 times" in failed.reason
    assert not multiprocessing.active_children()


def test_without_ray_its_option_is_told_in_a_sentence(folder, tmp_path, monkeypatch):
    monkeypatch.setitem(sys.modules, "ray", None)  # as if it were not installed
    with pytest.raises(RuntimeUnavailableError, match="--ray needs Ray"):
        ArchiveRun(RunConfig(sources=folder, out=tmp_path / "out"), ray_pool("local")).run()


def session_of(process):
    """The processes of a session that are still running; known only on Linux."""
    found = []
    for stat in Path("/proc").glob("[0-9]*/stat"):
        with contextlib.suppress(OSError):
            state, _, _, session = stat.read_text().rpartition(")")[2].split()[:4]
            found += [int(stat.parent.name)] if session == str(process.pid) and state != "Z" else []
    return found


@pytest.mark.slow
@pytest.mark.skipif(not Path("/proc/self/stat").exists(), reason="needs Linux's /proc")
def test_the_command_killed_at_random_moments_goes_on_and_leaves_no_worker(tmp_path):
    folder, out = tmp_path / "in", tmp_path / "out"
    folder.mkdir()
    for number in range(60):  # enough that a quick machine is not done before the last kill
        demo_clip(folder / f"{number}.mp4", 8, first=4 * number)
    chance = random.Random(0)
    command = [
        sys.executable,
        "-m",
        "tools.main",
        "archive",
        str(folder),
        "--out",
        str(out),
        "--workers",
        "2",
        "--threads",
        "1",
    ]
    kills, result = 0, None
    while result is None:
        lines = count_lines(out)
        process = subprocess.Popen(command, cwd=ROOT, start_new_session=True, stdout=subprocess.DEVNULL)
        while process.poll() is None and count_lines(out) <= lines and chance.random() > 0.003:
            time.sleep(0.05)
        if kills < 8:
            time.sleep(chance.uniform(0, 1))
            process.kill()
            kills += 1
        result = process.wait() if kills == 8 and process.poll() is None else process.returncode
        result = None if result == -signal.SIGKILL else result
        deadline = time.monotonic() + 60
        while session_of(process) and time.monotonic() < deadline:
            time.sleep(0.1)
        assert session_of(process) == [], "its workers ended with it"
    assert result == 0 and kills == 8
    records = [json.loads(line) for line in (out / "ledger.ndjson").read_text().splitlines()[1:]]
    assert sorted(record["file"] for record in records) == sorted(str(path) for path in folder.iterdir()), "each file once"
    assert {record["status"] for record in records} == {DONE}
    assert all(len(read_poses(out / "in" / f"{n}.mp4" / "poses.ndjson").frames) == 8 for n in range(60))
    assert not (out / ".partial").exists()


def count_lines(out):
    return (out / "ledger.ndjson").read_bytes().count(b"\n") if (out / "ledger.ndjson").exists() else 0


def test_the_detector_and_the_turn_that_were_asked_for_are_taken(folder, tmp_path):
    pytest.importorskip("onnx")
    finder = tmp_path / "finder.onnx"
    finder.write_bytes(detector("YOLOX"))
    config = RunConfig(
        sources=folder, out=tmp_path, formats=("ndjson",), detector=str(finder), camera_options=(("flip", "90"),), threads=1
    )
    worker, clip, partial = Worker(config), folder / "a.mp4", tmp_path / "partial"
    partial.mkdir()
    try:
        state = clip.stat()
        outcome = worker.do(Job(0, clip, state.st_size, state.st_mtime_ns, "0" * 64, partial))
    finally:
        worker.close()
    assert outcome.status == DONE and outcome.frames == 3, outcome
    assert json.loads((partial / "summary.json").read_text())["detector"].startswith("finder.onnx (YOLOX")
    header = read_poses(partial / "poses.ndjson").header
    assert (header.width, header.height) == (120, 160)


def test_models_that_cannot_be_opened_end_the_run_with_their_sentence(folder, tmp_path):
    (tmp_path / "bad.onnx").write_bytes(b"no model")
    run = ArchiveRun(RunConfig(sources=folder, out=tmp_path / "out", model=str(tmp_path / "bad.onnx")), local_pool(1))
    with pytest.raises(ModelError, match=r"bad\.onnx"):
        run.run()
    assert not multiprocessing.active_children()
