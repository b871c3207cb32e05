"""The coordinator's laws, with workers without models: nothing is lost and nothing is done twice, whichever process dies."""

import json
import os
import random
import signal
import subprocess
import sys
import time
from collections import Counter
from pathlib import Path
from unittest import mock

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from convnextpose.errors import ModelError, SinkError, SourceError
from pipeline.archive.ledger import DAMAGED, DONE, FAILED, SAME, UNREADABLE, JobLedger, JobRecord
from pipeline.archive.run import ArchiveRun
from pipeline.archive.videos import find_videos
from pipeline.run import RunConfig
from tests.pipeline.archive.stand_in import StandIn, archive, whole_results

PROGRAM = Path(__file__).parent / "stand_in.py"


def fill(folder, files):
    for name, text in files.items():
        path = folder / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(text)
    return folder


def statuses(out):
    """The last status of each file by its name, and the number of its lines in the ledger."""
    lines = [json.loads(line) for line in (out / "ledger.ndjson").read_text().splitlines()[1:]]
    return {Path(r["file"]).name: r["status"] for r in lines}, Counter(Path(r["file"]).name for r in lines)


# Files that are found


def test_videos_are_found_once_and_results_are_not_looked_into(tmp_path):
    folder = fill(tmp_path / "a", {
        "clip2.mp4": "x", "clip10.MP4": "x", "b/c.mkv": "x", ".hidden.mp4": "x", ".git/d.mp4": "x", "notes.txt": "x",
        "out/a/clip2.mp4/poses.mp4": "a result",
    })  # fmt: skip
    (folder / "b" / "again.mp4").symlink_to(folder / "clip2.mp4")
    (folder / "b" / "gone.mp4").symlink_to(folder / "nothing")
    (folder / "b" / "up").symlink_to(folder)
    found = find_videos([folder, folder / "b", folder / "b" / "c.mkv"], exclude=folder / "out")
    assert [video.place for video in found.videos] == ["a/clip2.mp4", "a/clip10.MP4", "a/b/c.mkv"]
    assert found.skipped == {".txt": 1}
    assert any("gone.mp4" in reason for reason in found.unreadable)
    with pytest.raises(SourceError, match="there is no"):
        find_videos([tmp_path / "nowhere"])


def test_folders_of_the_same_name_have_places_of_their_own(tmp_path):
    one, two = fill(tmp_path / "1" / "cam", {"a.mp4": "done"}), fill(tmp_path / "2" / "cam", {"a.mp4": "done too"})
    assert [v.place for v in find_videos([one, two]).videos] == ["cam/a.mp4", "cam-2/a.mp4"]
    archive(two, tmp_path / "out")  # then the other folder, whose file prefers the same place
    run = ArchiveRun(RunConfig(sources=(one, two), out=tmp_path / "out"), StandIn())
    assert run.run().progress.finished_before == 1
    assert whole_results(tmp_path / "out") == {"cam/a.mp4": ["done", "too"], "cam/a.mp4-2": ["done"]}


# Outcomes of files


def test_each_file_is_settled_and_the_second_run_starts_no_worker(tmp_path):
    folder, out = tmp_path / "in", tmp_path / "out"
    fill(folder, {
        "a.mp4": "done one", "b.mp4": "damaged", "c.mp4": "unreadable", "d.mp4": "lost for ever", "e.mp4": "lost once",
        "f.mp4": "done one", "g.mp4": "failed", "h.mp4": "unreadable",
    })  # fmt: skip
    pool, summary = archive(folder, out)
    expected = {
        "a.mp4": DONE, "b.mp4": DAMAGED, "c.mp4": UNREADABLE, "d.mp4": FAILED, "e.mp4": DONE, "f.mp4": SAME, "g.mp4": FAILED,
        "h.mp4": SAME,
    }  # fmt: skip
    assert statuses(out) == (expected, Counter(list(expected)))
    assert Counter(pool.started) == {"a.mp4": 1, "b.mp4": 1, "c.mp4": 1, "d.mp4": 2, "e.mp4": 2, "g.mp4": 1}
    assert pool.closed and not (out / ".partial").exists()
    assert whole_results(out).keys() == {"in/a.mp4", "in/b.mp4", "in/e.mp4"}
    progress = summary.progress
    assert progress.finished == progress.files == 8 and progress.remaining_bytes == 0 and progress.finished_before == 0
    assert {Path(r.file).name for r in summary.problems} == {"b.mp4", "c.mp4", "d.mp4", "g.mp4"} and summary.same == 2
    again, summary = archive(folder, out)
    assert Counter(again.started) == {"d.mp4": 2, "g.mp4": 1}, "only what failed is tried again"
    assert summary.progress.finished_before == 6
    (folder / "d.mp4").unlink()
    (folder / "g.mp4").unlink()

    def no_pool(config, most):
        raise AssertionError("nothing is left to do")

    assert archive(folder, out, no_pool)[1].progress.finished_before == 6


def test_changed_moved_and_removed_files_are_done_again_where_needed(tmp_path):
    folder, out = tmp_path / "in", tmp_path / "out"
    fill(folder, {"a.mp4": "done one", "b.mp4": "done one", "c.mp4": "done three"})
    archive(folder, out)
    (folder / "c.mp4").rename(folder / "z.mp4")
    pool, _ = archive(folder, out)
    assert pool.started == [] and statuses(out)[0]["z.mp4"] == SAME, "its content is known"
    (folder / "a.mp4").write_text("done anew")  # its results were also those of b
    pool, _ = archive(folder, out)
    assert pool.started == ["a.mp4", "b.mp4"]
    assert whole_results(out) == {"in/a.mp4": ["done", "anew"], "in/b.mp4": ["done", "one"], "in/c.mp4": ["done", "three"]}
    for path in (out / "in" / "b.mp4").iterdir():
        path.unlink()
    pool, _ = archive(folder, out)
    assert pool.started == ["b.mp4"], "its results were missing"
    os.utime(folder / "a.mp4", ns=(0, 0))
    pool, _ = archive(folder, out)
    assert pool.started == [], "it was touched, but its content is the same and its results exist"


def test_results_that_are_not_in_the_shared_folder_fail(tmp_path):
    class Elsewhere(StandIn):
        def wait(self, timeout_s):
            told = super().wait(timeout_s)
            next((tmp_path / "out" / ".partial").glob("*/job.json")).unlink()
            return told

    fill(tmp_path / "in", {"a.mp4": "done"})
    _, summary = archive(tmp_path / "in", tmp_path / "out", Elsewhere())
    assert summary.progress.counts == {FAILED: 1} and "all workers must share" in summary.problems[0].reason


def test_an_estimate_of_the_time_left_comes_with_the_first_bytes(tmp_path):
    fill(tmp_path / "in", {f"{i}.mp4": f"done {i}" for i in range(6)})
    seen = []
    run = ArchiveRun(RunConfig(sources=tmp_path / "in", out=tmp_path / "out"), StandIn(1, 0.01))
    assert run.progress.remaining_s is None
    run.run(lambda progress: seen.append((progress.finished, progress.remaining_s)))
    assert all(left is not None and left > 0 for done, left in seen if 0 < done < 6)
    assert seen[-1] == (6, 0.0)


# Who may write results


def test_other_settings_another_model_and_a_second_writer_are_refused(tmp_path):
    folder, out = fill(tmp_path / "in", {"a.mp4": "done"}), tmp_path / "out"

    class Meanwhile(StandIn):
        def wait(self, timeout_s):
            with pytest.raises(SinkError, match="only run that writes"):
                archive(folder, out)
            return super().wait(timeout_s)

    archive(folder, out, Meanwhile())
    with pytest.raises(SinkError, match=r"min_score 0.3 .* are with the default"):
        ArchiveRun(RunConfig(sources=folder, out=out, min_score=0.3), StandIn()).run()
    (tmp_path / "other.onnx").write_bytes(b"another model")
    with pytest.raises(SinkError, match=r"of the model other\.onnx"):
        ArchiveRun(RunConfig(sources=folder, out=out, model=str(tmp_path / "other.onnx")), StandIn()).run()
    with pytest.raises(ModelError, match="default weights"):
        ArchiveRun(RunConfig(sources=folder, out=out, model="none.tar"), StandIn())
    detector = tmp_path / "detector.onnx"
    with pytest.raises(ModelError, match="people detector: xs or a file"):
        ArchiveRun(RunConfig(sources=folder, out=out, detector=str(detector)), StandIn())
    for content in (b"one detector", b"another under its name"):
        detector.write_bytes(content)
        config = RunConfig(sources=folder, out=tmp_path / "with detector", detector=str(detector))
        if content == b"one detector":
            ArchiveRun(config, StandIn()).run()
        else:
            with pytest.raises(SinkError, match="of the model xs"):
                ArchiveRun(config, StandIn()).run()
    with pytest.raises(ValueError, match="without boxes"):
        ArchiveRun(RunConfig(sources=folder, out=out, live=True), StandIn())
    head, *lines = (out / "ledger.ndjson").read_text().splitlines(keepends=True)
    for damaged in (["{}\n"], ['{"format": "mine"}\n'], [head, '{"file": 3}\n'], [head, "[]\n"], [head, *lines, "no\n"]):
        (out / "ledger.ndjson").write_text("".join(damaged))
        with pytest.raises(SinkError, match=f"line {len(damaged)} of"):
            archive(folder, out)


def test_a_setting_that_came_later_had_its_default_before(tmp_path):
    head = {"model": {"sha256": "1"}, "settings": {"a": 1}}
    JobLedger(tmp_path, head, {"a": 0}).close()
    newer = {"model": {"sha256": "1"}, "settings": {"a": 1, "b": 2}}
    JobLedger(tmp_path, newer, {"a": 0, "b": 2}).close()
    with pytest.raises(SinkError, match="with b 3"):
        JobLedger(tmp_path, {**newer, "settings": {"a": 1, "b": 3}}, {"a": 0, "b": 2})


records = st.builds(
    JobRecord,
    file=st.text(min_size=1),
    size_bytes=st.integers(0, 2**60),
    mtime_ns=st.integers(0, 2**62),
    sha256=st.sampled_from(["a" * 64, "b" * 64]),
    status=st.sampled_from([DONE, DAMAGED, UNREADABLE, SAME, FAILED]),
    place=st.text(),
    reason=st.text(),
    frames=st.integers(0, 10**9),
    seconds=st.floats(0, 1e9),
)


@settings(max_examples=25, deadline=None)
@given(written=st.lists(records, min_size=1, max_size=5), more=records, share=st.floats(0, 1))
def test_a_ledger_cut_anywhere_keeps_its_whole_lines(tmp_path_factory, written, more, share):
    with mock.patch("os.fsync"):  # a hundred calls take long on a busy disk
        cut_and_go_on(tmp_path_factory, written, more, share)


def cut_and_go_on(tmp_path_factory, written, more, share):
    folder = tmp_path_factory.mktemp("ledger")
    head = {"model": {}, "settings": {}}
    ledger = JobLedger(folder, head, {})
    for record in written:
        ledger.add(record)
    ledger.close()
    data = ledger.path.read_bytes()
    data = data[: round(share * len(data))]
    ledger.path.write_bytes(data)
    kept = {record.file: record for record in written[: max(0, data.count(b"\n") - 1)]}
    ledger = JobLedger(folder, head, {})
    assert all(ledger.record_of(file) == record for file, record in kept.items())
    ledger.add(more)
    ledger.close()
    ledger = JobLedger(folder, head, {})
    assert all(ledger.record_of(file) == record for file, record in (kept | {more.file: more}).items())
    ledger.close()


# Killed runs


@pytest.mark.parametrize("kills", [3, pytest.param(20, marks=pytest.mark.slow)])
def test_killed_at_random_moments_it_loses_nothing_and_does_nothing_twice(tmp_path, kills):
    folder, out = tmp_path / "in", tmp_path / "out"
    files = {f"{i:02}.mp4": f"done {i} " + "word " * (i % 5) for i in range(10 * kills)}
    fill(folder, {**files, "zz.mp4": files["03.mp4"]})
    chance = random.Random(kills)
    killed = 0
    while not (out / "ended").exists():
        lines = len((out / "ledger.ndjson").read_bytes().split(b"\n")) if (out / "ledger.ndjson").exists() else 0
        process = subprocess.Popen([sys.executable, PROGRAM, folder, out])
        if killed < kills:
            while process.poll() is None and chance.random() > 0.02:  # sometimes while it starts
                if (out / "ledger.ndjson").exists() and len((out / "ledger.ndjson").read_bytes().split(b"\n")) > lines:
                    break
                time.sleep(0.02)
            time.sleep(chance.uniform(0, 0.1))
            process.send_signal(signal.SIGKILL)
            killed += 1
        process.wait()
        done = whole_results_so_far(out)
        assert all(done[place] == files[Path(place).name].split() for place in done), "results in place are complete"
    assert killed == kills, "it was killed as often as intended"
    assert whole_results(out) == {f"in/{name}": text.split() for name, text in files.items()}
    found, lines = statuses(out)
    assert found == {**dict.fromkeys(files, DONE), "zz.mp4": SAME}
    assert set(lines.values()) == {1}, "each file was settled once"
    begun = Counter((folder / "begun.txt").read_text().split())
    assert begun.total() <= len(files) + 2 * kills, "only jobs in progress at a kill were begun again"


def whole_results_so_far(out):
    found = {}
    for job in out.rglob("job.json"):
        if ".partial" not in job.parts:
            found[job.parent.relative_to(out).as_posix()] = (job.parent / "poses.ndjson").read_text().split()
    return found
