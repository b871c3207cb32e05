"""Laws of all recorders: they report what is in their file, touch nothing too early, and survive every fault."""

import json
import os
import signal
import subprocess
import sys
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from convnextpose.errors import OutputExistsError, SinkError, SourceError
from pipeline.formats.records import read_poses
from pipeline.formats.table import FORMATS, open_recorders
from pipeline.sources import open_source
from tests.cases import fast_first
from tests.pipeline.formats.samples import CASES, HEADER, names, noise, pose, posed, write

ROOT = Path(__file__).parents[3]

every_case = pytest.mark.parametrize("case", CASES.values(), ids=CASES)
# Recorders with a file for each person are tested for the same laws in test_motion.py.
WHOLE = {name: FORMATS[name] for name in CASES if name in FORMATS}
every_format = pytest.mark.parametrize("kind", WHOLE.values(), ids=WHOLE)


@every_case
def test_written_is_what_a_reader_finds(tmp_path, case):
    for count in (1, 2, 5):
        recorder = case.make(tmp_path / f"{count}")
        assert recorder.written == 0 and not recorder.begun
        for index in range(count):
            recorder.write(case.item(index))
            assert recorder.begun
            assert index <= recorder.written <= index + 1 if case.at_once else recorder.written == 0
            if recorder.written:
                assert recorder.written == case.count(recorder.path)
        for _ in range(2):
            recorder.close()
            assert recorder.written == count == case.count(recorder.path)
        with pytest.raises(SinkError, match="closed"):
            recorder.write(case.item(count))
        assert recorder.written == count == case.count(recorder.path)
    assert names(tmp_path) == ["1", "2", "5"]


@every_case
def test_nothing_is_touched_before_the_first_frame(tmp_path, case):
    path = tmp_path / case.file_name
    case.make(path).close()
    assert names(tmp_path) == []
    path.write_bytes(b"yesterday's")
    case.make(path, overwrite=True).close()
    assert path.read_bytes() == b"yesterday's"


@every_case
def test_old_results_are_replaced_only_if_that_is_allowed(tmp_path, case):
    path = tmp_path / case.file_name
    path.write_bytes(b"yesterday's")
    with pytest.raises(OutputExistsError, match="--overwrite"):
        case.make(path)
    assert path.read_bytes() == b"yesterday's"
    with path.open("rb") as reader:
        write(case.make(path, overwrite=True), [case.item(0)])
        assert reader.read() == b"yesterday's", "a program that is reading the old file keeps it"
    assert case.count(path) == 1 and names(tmp_path) == [case.file_name]


@every_case
def test_what_appears_meanwhile_is_not_replaced(tmp_path, case):
    recorder = case.make(tmp_path / case.file_name)
    recorder.path.write_bytes(b"another run's")
    with pytest.raises(OutputExistsError):
        recorder.write(case.item(0))
    with pytest.raises(SinkError, match="before"):
        recorder.write(case.item(1))
    recorder.close()
    assert recorder.path.read_bytes() == b"another run's" and names(tmp_path) == [case.file_name]
    assert recorder.written == 0


@every_case
@pytest.mark.parametrize("overwrite", [False, True])
def test_what_is_no_file_is_found_before_the_first_frame(tmp_path, case, overwrite):
    (tmp_path / "folder").mkdir()
    os.mkfifo(tmp_path / "pipe")
    for path in (tmp_path / "folder", tmp_path / "pipe", Path("/dev/null")):
        with pytest.raises(SinkError, match=f"expected a file.*{path}"):
            case.make(path, overwrite=overwrite)


@every_case
@pytest.mark.parametrize("target", ["nowhere", "notes.txt"])
def test_links_are_replaced_not_followed(tmp_path, case, target):
    (tmp_path / "notes.txt").write_bytes(b"precious")
    path = tmp_path / case.file_name
    path.symlink_to(target)
    with pytest.raises(OutputExistsError):
        case.make(path)
    write(case.make(path, overwrite=True), [case.item(0)])
    assert not path.is_symlink() and case.count(path) == 1
    assert names(tmp_path) == sorted(["notes.txt", case.file_name]) and (tmp_path / "notes.txt").read_bytes() == b"precious"


@every_case
def test_a_folder_that_goes_away_is_told(tmp_path, case):
    (tmp_path / "out").mkdir()
    recorder = case.make(tmp_path / "out" / case.file_name)
    (tmp_path / "out").rmdir()
    with pytest.raises(SinkError, match=rf"{case.file_name} cannot be written: No such file"):
        recorder.write(case.item(0))
    recorder.close()
    assert recorder.written == 0


BAD_POSES = {
    "an id of 2^63": (replace(pose(), track_id=2**63), "below 2\\^63"),
    "an id of -2^63": (replace(pose(), track_id=-(2**63)), "below 2\\^63"),
    "depth NaN": (replace(pose(), root_depth_mm=float("nan")), "finite"),
    "a score of infinity": (replace(pose(), scores=np.full(18, np.inf)), "finite"),
    "joints past 32 bits": (replace(pose(), joints_mm=np.full((18, 3), 1e39)), "finite"),
    "21 joints": (pose(joints=21), "18 joints"),
}


@every_format
@pytest.mark.parametrize("bad", BAD_POSES)
def test_every_format_refuses_the_same_poses_when_they_are_written(tmp_path, kind, bad):
    wrong, reason = BAD_POSES[bad]
    case = next(c for c in CASES.values() if c.file_name == kind.file_name)
    recorder = case.make(tmp_path / kind.file_name)
    for index in range(3):
        with pytest.raises(SinkError, match=rf"{reason}.*{kind.file_name}|{kind.file_name}.*{reason}") as caught:
            recorder.write(posed(index, poses=(pose(), wrong), size=(16, 16)))
        assert "\n" not in str(caught.value)
        assert names(tmp_path) == [] or index
        recorder.write(case.item(index))
    recorder.close()
    assert recorder.written == case.count(recorder.path) == 3


@every_format
def test_a_time_stamp_that_is_none_is_refused(tmp_path, kind):
    recorder = kind.recorder(tmp_path / kind.file_name, HEADER)
    with pytest.raises(SinkError, match="finite time"):
        recorder.write(posed(0, float("nan")))
    recorder.close()
    assert names(tmp_path) == []


@every_format
@settings(max_examples=10, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(data=st.data())
def test_what_was_taken_comes_back(tmp_path, kind, data):
    """Ids and numbers up to the limits: either refused, or in the file."""
    case = next(c for c in CASES.values() if c.file_name == kind.file_name)
    recorder = case.make(tmp_path / kind.file_name, overwrite=True)
    taken = 0
    for index in range(4):
        extreme = replace(
            pose(index),
            track_id=data.draw(st.integers(-(2**65), 2**65)),
            root_depth_mm=data.draw(st.floats()),
            scores=np.full(18, data.draw(st.floats())),
        )
        try:
            recorder.write(posed(index, poses=(extreme,), size=(16, 16)))
            taken += 1
        except SinkError:
            pass
    recorder.close()
    assert recorder.written == taken == case.count(recorder.path)
    recorder.path.unlink(missing_ok=True)


# Faults.

FULL = """
import collections, json, resource, sys
from pathlib import Path
from convnextpose.errors import SinkError
from tests.pipeline.formats.samples import CASES, names
case, out, stride = CASES[sys.argv[1]], Path(sys.argv[2]), int(sys.argv[3])
soft, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
items = [case.item(index) for index in range(3)]
seen = collections.Counter()
for size in range(0, 10**6, stride):
    recorder, errors = case.make(out / case.file_name), []
    resource.setrlimit(resource.RLIMIT_FSIZE, (size, hard))
    try:
        for item in items:
            recorder.write(item)
    except SinkError as error:
        errors.append(str(error))
    for _ in range(2):
        try:
            recorder.close()
        except SinkError as error:
            errors.append(str(error))
    resource.setrlimit(resource.RLIMIT_FSIZE, (soft, hard))
    found = case.count(recorder.path)
    assert recorder.written == found, (size, recorder.written, found)
    assert names(out) == ([case.file_name] if found else []), (size, names(out))
    assert found == 3 or errors, size
    for error in errors:
        assert error == f"{recorder.path} cannot be written: File too large", error
    seen[found] += 1
    recorder.path.unlink(missing_ok=True)
    if not errors:
        break
print(json.dumps(seen))
"""


@pytest.mark.parametrize(("name", "stride"), [("mp4", 17), ("ndjson", 11), ("npz", 53), ("trace", 7)])
def test_a_full_disk_at_any_byte_leaves_whole_frames_and_is_told(tmp_path, name, stride):
    """A limit on the file's size simulates the disk; in a separate process, because libraries have crashed here."""
    result = subprocess.run(
        [sys.executable, "-c", FULL, name, str(tmp_path), str(stride)], capture_output=True, text=True, cwd=ROOT, check=False
    )
    assert result.returncode == 0, result.stderr
    assert result.stderr == ""
    seen = {int(count): times for count, times in json.loads(result.stdout).items()}
    assert set(seen) == ({0, 1, 2, 3} if CASES[name].at_once else {0, 3})


KILLED = """
import sys
from pathlib import Path
from pipeline.formats.table import DEFAULT_FORMATS, open_recorders
from tests.pipeline.formats.samples import HEADER, noise
recorders = open_recorders(Path(sys.argv[1]), DEFAULT_FORMATS, HEADER)
for index in range(10**6):
    for recorder in recorders:
        recorder.write(noise(index))
    print(index, flush=True)
"""


@pytest.mark.parametrize("last", fast_first([40, 1]))
def test_a_killed_run_leaves_whole_lines_and_a_video_that_plays(tmp_path, last):
    with subprocess.Popen(
        [sys.executable, "-c", KILLED, str(tmp_path)], stdout=subprocess.PIPE, text=True, cwd=ROOT
    ) as process:
        for line in process.stdout:
            if int(line) == last:
                break
        process.send_signal(signal.SIGKILL)
    result = read_poses(tmp_path / "poses.ndjson")
    written = len(result.frames)
    assert written > last and not result.cut_off
    assert [f.index for f in result.frames] == list(range(written))
    frames = []
    with open_source(tmp_path / "poses.mp4") as source:
        try:
            frames.extend(source)
        except SourceError as error:  # killed during a write
            assert f"broke at frame {len(frames)}" in str(error)
    assert written - 1 <= len(frames) <= written + 1, "only the last frame is not in the video yet"
    assert np.allclose([f.time_s for f in frames], np.arange(len(frames)) / 25, atol=1e-3)
    assert names(tmp_path) == ["poses.mp4", "poses.ndjson"]


KILLED_AT_THE_END = """
import os, signal, sys
from pathlib import Path
from pipeline.formats.table import open_recorders
from tests.pipeline.formats.samples import HEADER, noise
os.link = lambda *_: os.kill(os.getpid(), signal.SIGKILL)
(recorder,) = open_recorders(Path(sys.argv[1]), [sys.argv[2]], HEADER)
for index in range(3):
    recorder.write(noise(index))
recorder.close()
"""


@pytest.mark.parametrize("name", ["npz", "trc"])
def test_what_a_run_left_that_was_killed_while_it_wrote_its_end_is_removed_by_the_next(tmp_path, name):
    subprocess.run([sys.executable, "-c", KILLED_AT_THE_END, str(tmp_path), name], cwd=ROOT, check=False)
    (left,) = names(tmp_path)
    assert left.endswith(".part")
    (recorder,) = open_recorders(tmp_path, [name], HEADER)
    for index in range(3):
        recorder.write(noise(index))
    recorder.close()
    assert names(tmp_path) and not any(found.endswith(".part") for found in names(tmp_path))
