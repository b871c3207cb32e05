"""A folder of results: it gets the requested formats, and no protected file is touched."""

import pytest

from convnextpose.errors import OutputExistsError, SinkError
from pipeline.formats.base import WrittenFile, written_files
from pipeline.formats.table import DEFAULT_FORMATS, FORMATS, open_recorders
from tests.pipeline.formats.samples import CASES, HEADER, names, posed

NAMES = [FORMATS[name].file_name for name in DEFAULT_FORMATS]


def test_a_folder_holds_what_was_asked_for(tmp_path):
    for number, formats in enumerate([DEFAULT_FORMATS, ("npz", "ndjson"), ("mp4", "mp4"), ()]):
        out = tmp_path / f"new{number}" / "folder"
        recorders = open_recorders(out, formats, HEADER)
        expected = [FORMATS[name].file_name for name in dict.fromkeys(formats)]
        assert [r.path for r in recorders] == [out / name for name in expected]
        assert [r.needs_picture for r in recorders] == [name == "poses.mp4" for name in expected]
        assert names(out) == [], "nothing is written before the first frame"
        for index in range(4):
            for recorder in recorders:
                recorder.write(posed(index))
        for recorder in recorders:
            recorder.close()
        assert names(out) == sorted(expected)


def test_a_format_that_is_not_known_is_refused(tmp_path):
    with pytest.raises(SinkError, match=r"expected formats among mp4, ndjson, npz, trc, .*; received 'avi'"):
        open_recorders(tmp_path / "out", ["ndjson", "avi"], HEADER)
    assert names(tmp_path) == []


@pytest.mark.parametrize("name", NAMES)
def test_results_that_are_there_are_not_touched(tmp_path, name):
    (tmp_path / name).write_bytes(b"yesterday's")
    with pytest.raises(OutputExistsError, match="--overwrite") as caught:
        open_recorders(tmp_path, DEFAULT_FORMATS, HEADER)
    assert isinstance(caught.value, FileExistsError) and name in str(caught.value)
    assert names(tmp_path) == [name] and (tmp_path / name).read_bytes() == b"yesterday's"


def test_overwriting_replaces_results_and_nothing_else(tmp_path):
    for name in [*NAMES, "notes.txt"]:
        (tmp_path / name).write_bytes(b"yesterday's")
    recorders = open_recorders(tmp_path, DEFAULT_FORMATS, HEADER, overwrite=True)
    for recorder in recorders:
        recorder.write(posed(0))
    assert not (tmp_path / "poses.npz").exists(), "no old arrays remain beside a new video"
    for recorder in recorders:
        recorder.close()
    assert (tmp_path / "notes.txt").read_bytes() == b"yesterday's"
    assert [CASES[name].count(r.path) for name, r in zip(DEFAULT_FORMATS, recorders, strict=True)] == [1, 1, 1]


def test_only_files_that_are_there_are_told(tmp_path):
    recorders = open_recorders(tmp_path, DEFAULT_FORMATS, HEADER)
    assert written_files(recorders) == []
    for index in range(3):
        for recorder in recorders:
            recorder.write(posed(index))
    video, lines, arrays = (r.path for r in recorders)
    assert written_files(recorders) == [
        WrittenFile(video, 2, video.stat().st_size), WrittenFile(lines, 3, lines.stat().st_size),
    ]  # fmt: skip
    lines.unlink()
    for recorder in recorders:
        recorder.close()
    assert written_files(recorders) == [
        WrittenFile(video, 3, video.stat().st_size), WrittenFile(arrays, 3, arrays.stat().st_size),
    ]  # fmt: skip


def test_a_folder_that_cannot_be_one_is_refused(tmp_path):
    (tmp_path / "file").write_text("no folder")
    for out in (tmp_path / "file", tmp_path / "file" / "inner"):
        with pytest.raises(SinkError, match=f"{out} cannot be one"):
            open_recorders(out, DEFAULT_FORMATS, HEADER, overwrite=True)
