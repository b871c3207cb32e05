"""A file is either complete or absent, no file is replaced unasked, and nothing is read beyond its limit."""

from __future__ import annotations

import contextlib
import io
import os
import subprocess
import sys
import tracemalloc
import zipfile
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from convnextpose import files
from convnextpose.archives import open_zip, read_npz
from convnextpose.errors import DeviceMemoryError, ModelError, OutputExistsError, SinkError, SourceError, StageError
from convnextpose.files import LimitError, child, parse_json, read_file, write_file, write_files

# Writing


@pytest.fixture(params=["hard links", "no hard links"])
def any_file_system(request, monkeypatch):
    if request.param == "no hard links":

        def link(source, target):
            raise PermissionError(1, "Operation not permitted", source)

        monkeypatch.setattr(os, "link", link)


def names(folder):
    return sorted(path.name for path in folder.iterdir())


@pytest.mark.usefixtures("any_file_system")
def test_a_file_is_written_and_nothing_beside_it(tmp_path):
    write_file(tmp_path / "a", b"new")
    assert (tmp_path / "a").read_bytes() == b"new"
    assert names(tmp_path) == ["a"]


@pytest.mark.usefixtures("any_file_system")
def test_a_file_is_replaced_only_where_that_is_allowed(tmp_path):
    (tmp_path / "a").write_bytes(b"old")
    with pytest.raises(OutputExistsError, match=r"exists already: .*--overwrite"):
        write_file(tmp_path / "a", b"new")
    assert (tmp_path / "a").read_bytes() == b"old"
    write_file(tmp_path / "a", b"new", overwrite=True)
    assert (tmp_path / "a").read_bytes() == b"new"
    assert names(tmp_path) == ["a"]


@pytest.mark.usefixtures("any_file_system")
def test_a_file_that_appears_meanwhile_stays(tmp_path, monkeypatch):
    """Another program writes the file after the check, while this one waits for the disk."""
    monkeypatch.setattr(os, "fsync", lambda _: (tmp_path / "b").write_bytes(b"another's"))
    with pytest.raises(OutputExistsError, match="b exists already"):
        write_files({tmp_path / "a": b"new", tmp_path / "b": b"new"})
    assert names(tmp_path) == ["b"], "either all files are written or none"
    assert (tmp_path / "b").read_bytes() == b"another's"


def test_a_broken_link_is_there_already(tmp_path):
    (tmp_path / "a").symlink_to(tmp_path / "nothing")
    with pytest.raises(OutputExistsError):
        write_file(tmp_path / "a", b"new")
    assert names(tmp_path) == ["a"]


@pytest.mark.parametrize("overwrite", [False, True])
def test_a_full_disk_leaves_nothing(overwrite, tmp_path, monkeypatch):
    (tmp_path / "old").write_bytes(b"old")

    def full(_):
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(os, "fsync", full)
    with pytest.raises(SinkError, match="No space left on device"):
        write_file(tmp_path / ("old" if overwrite else "new"), b"new", overwrite=overwrite)
    assert names(tmp_path) == ["old"]
    assert (tmp_path / "old").read_bytes() == b"old"


KILLED = """
import os, signal, sys
from pathlib import Path
from convnextpose.files import write_file
os.fsync = lambda _: os.kill(os.getpid(), signal.SIGKILL)
write_file(Path(sys.argv[1]), b"half")
"""


@pytest.mark.skipif(sys.platform == "win32", reason="no signals and no locks there")
def test_what_a_killed_process_left_is_removed_by_the_next_and_what_a_living_one_writes_is_not(tmp_path):
    subprocess.run([sys.executable, "-c", KILLED, str(tmp_path / "a")], check=False)
    assert len(names(tmp_path)) == 1, "it was killed before the file was put in place"
    with files.partial_file(tmp_path) as (living, _):
        write_file(tmp_path / "b", b"new")
        assert names(tmp_path) == sorted([living.name, "b"])
    assert names(tmp_path) == ["b"]


@pytest.mark.parametrize(
    ("make", "sentence"),
    [
        (lambda t: t, "but a folder is there"),
        (lambda t: t / "nothing" / "a", "a folder that exists"),
        (lambda t: t / ("a" * 300), "cannot write"),
        (lambda t: t / "a\0b", "cannot write"),
        (lambda t: Path(), "but a folder is there"),
        (lambda t: os.mkfifo(t / "pipe") or t / "pipe", "a pipe, a socket or a device"),
    ],
)
def test_what_is_no_place_for_a_file(make, sentence, tmp_path):
    with pytest.raises(SinkError, match=sentence):
        write_file(make(tmp_path), b"new", overwrite=True)


# Names


@pytest.mark.parametrize("name", ["", ".", "..", "../a", "/a", "a/b", "a/", "a\0b", "a\nb", "\x1b[2J", "a" * 300])
def test_a_name_that_leads_out_of_its_folder_is_refused(name):
    with pytest.raises(ValueError, match=r"expected a .*name"):
        child(Path("folder"), name)


@settings(deadline=None)
@given(st.text(max_size=300))
def test_any_name_is_refused_or_a_file_in_the_folder(name):
    try:
        path = child(Path("folder"), name)
    except ValueError as error:
        assert str(error).isprintable()
    else:
        assert (path.parent, path.name) == (Path("folder"), name)


# Reading


def read(path, limit=100):
    return read_file(path, limit, ModelError, "a model")


def test_an_ordinary_file_is_read(tmp_path):
    (tmp_path / "a").write_bytes(b"x" * 100)
    assert read(tmp_path / "a") == b"x" * 100
    with pytest.raises(ModelError, match=r"expected a model of at most 1 kB, received .* of 1 kB"):
        read(tmp_path / "a", 99)


@pytest.mark.parametrize(
    ("make", "sentence"),
    [
        (lambda t: t, "expected a model, received the folder"),
        (lambda t: Path(), "expected a model, received the folder"),
        (lambda t: t / "nothing", "there is no such file"),
        (lambda t: t / "a\0b", "there is no such file"),
        (lambda t: t / ("a" * 300), "cannot be read"),
        (lambda t: os.mkfifo(t / "pipe") or t / "pipe", "a device, a pipe or a socket"),
        (lambda t: Path("/dev/zero"), "a device, a pipe or a socket"),
    ],
)
def test_what_is_no_ordinary_file_is_refused(make, sentence, tmp_path):
    with pytest.raises(ModelError, match=sentence):
        read(make(tmp_path))


@pytest.mark.parametrize("text", ["[" * 100_000, '{"a":' * 100_000, "NaN", "[1e999, Infinity]", "{", "\udcff", "1" * 10_000])
def test_json_that_breaks_parsers_is_a_value_error(text):
    with pytest.raises(ValueError):
        parse_json(text.encode("utf-8", "surrogatepass"))


# Arrays


def npz(path, member, compression=zipfile.ZIP_DEFLATED):
    with zipfile.ZipFile(path, "w", compression) as archive:
        archive.writestr("a.npy", member)
    return path.read_bytes()


def npy(shape, descr, data=b""):
    buffer = io.BytesIO()
    np.lib.format.write_array_header_1_0(buffer, {"shape": shape, "fortran_order": False, "descr": descr})
    return buffer.getvalue() + data


@pytest.mark.parametrize("order", ["C", "F"])
def test_arrays_come_back_as_they_were_saved(order, tmp_path):
    arrays = {"a": np.asarray(np.arange(12.0).reshape(3, 4), order=order), "text": np.array("né"), "none": np.zeros((0, 3))}
    np.savez_compressed(tmp_path / "a.npz", **arrays)
    found = read_npz((tmp_path / "a.npz").read_bytes(), dict.fromkeys(arrays, 1000))
    for name, array in arrays.items():
        assert found[name].dtype == array.dtype
        assert np.array_equal(found[name], array)


@pytest.mark.parametrize(
    ("member", "kind"),
    [
        (npy((2**40,), "<f8"), ValueError),
        (npy((-1, -8), "|u1", b"\0" * 8), ValueError),
        (npy((1,), "|O", b"\0" * 8), ValueError),
        (npy((9,), "|u1", b"\0" * 8), ValueError),
        (b"\0" * 400_000_000, LimitError),
    ],
    ids=["huge", "negative", "objects", "cut short", "400 MB of zeros"],
)
def test_an_array_that_claims_more_than_it_has_or_may_is_refused(member, kind, tmp_path):
    data = npz(tmp_path / "a.npz", member)
    tracemalloc.start()
    try:
        with pytest.raises(kind):
            read_npz(data, {"a": 1000})
        assert tracemalloc.get_traced_memory()[1] < 10e6
    finally:
        tracemalloc.stop()


HEADERS = ["(3,", "(1 2)", "('a', 1", "{", "\0", "lambda: 0", "(99999999999999999999,)", "()(", "'" * 999]


@pytest.mark.parametrize("shape", HEADERS)
def test_a_header_that_numpys_parser_chokes_on_is_a_value_error(shape):
    head = f"{{'descr': '|u1', 'fortran_order': False, 'shape': {shape}}}\n".encode()
    buffer = io.BytesIO()
    with zipfile.ZipFile(buffer, "w") as archive:
        archive.writestr("a.npy", b"\x93NUMPY\1\0" + len(head).to_bytes(2, "little") + head + bytes(3))
    with pytest.raises(ValueError, match=r"\w"):
        read_npz(buffer.getvalue(), {"a": 1000})


@pytest.mark.parametrize("at", range(60, 90, 3))
def test_a_damaged_compressed_array_is_a_value_error(at):
    buffer = io.BytesIO()
    np.savez_compressed(buffer, a=np.arange(100, dtype=np.uint8))
    data = bytearray(buffer.getvalue())
    data[at] ^= 255
    with contextlib.suppress(ValueError, KeyError, zipfile.BadZipFile):
        read_npz(bytes(data), {"a": 1000})


def test_a_file_without_a_name_in_an_archive_is_refused():
    buffer = io.BytesIO()
    with zipfile.ZipFile(buffer, "w") as archive:
        archive.writestr("a", b"1")
    data = bytearray(buffer.getvalue())
    at = data.index(b"PK\1\2") + 28
    data[at : at + 4] = b"\0\0\1\0"  # an empty name, whose only letter belongs to the next field
    with pytest.raises(LimitError, match="expected a name for every file"):
        open_zip(bytes(data), 1000)


@pytest.mark.parametrize("text", ["a\nb", "\x1b[2Ja", "x" * 10_000, "\u202eabc"])
def test_every_error_is_one_line_of_a_bounded_length(text):
    for kind in (SourceError, SinkError, ModelError, DeviceMemoryError, OutputExistsError):
        told = str(kind(f"expected a file, received {text}: name another"))
        assert told.isprintable()
        assert len(told) < 1300
        assert told.startswith("expected a file, received")
        assert told.endswith(": name another")
    assert "stage" in str(StageError("write", text))
