"""Every container gives the same tensors; damage and malice give a one-sentence error, run nothing and leave nothing behind."""

from __future__ import annotations

import gzip
import io
import os
import pickle
import shutil
import sys
import tarfile
import tempfile
import zipfile
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from convnextpose.archives import MAX_MEMBERS
from convnextpose.containers import MAX_BYTES, MAX_DEPTH, read_container
from convnextpose.errors import CheckpointError
from convnextpose.pickles import StoredTensor

torch = pytest.importorskip("torch")

TREE = {"network": {"a.weight": torch.arange(12.0).reshape(3, 4), "b": torch.tensor(7)}, "epoch": 68}
HUGE = MAX_BYTES + 1


@pytest.fixture(autouse=True)
def _no_temporary_files(tmp_path, monkeypatch):
    folder = tmp_path / "temporary"
    folder.mkdir()
    monkeypatch.setattr(tempfile, "tempdir", str(folder))
    yield
    assert not list(folder.iterdir())


def save(path, tree=TREE, legacy=False):
    torch.save(tree, path, _use_new_zipfile_serialization=not legacy)
    return path


def unpack(file, folder):
    with zipfile.ZipFile(file) as archive:
        archive.extractall(folder)
    return folder


def zip_of(folder, path, compression=zipfile.ZIP_DEFLATED):
    with zipfile.ZipFile(path, "w", compression) as archive:
        for file in sorted(folder.rglob("*")):
            archive.write(file, file.relative_to(folder))
    return path


def tar_of(source, path, name=None):
    with tarfile.open(path, "w") as archive:
        archive.add(source, name or source.name)
    return path


def tensors_of(tree):
    """The tensors in nested dictionaries."""
    values = tree.values() if isinstance(tree, dict) else ()
    return [value for value in values if isinstance(value, StoredTensor)] + [t for v in values for t in tensors_of(v)]


def saved(tmp_path):
    return save(tmp_path / "snapshot_68.pth")


def folder(tmp_path):
    return unpack(saved(tmp_path), tmp_path / "unpacked")


CONTAINERS = {
    "torch.save under another name": lambda t: save(t / "ConvNeXtPose_M (1).tar"),
    "legacy": lambda t: save(t / "ConvNeXtPose_M.tar", legacy=True),
    "unpacked folder": lambda t: folder(t) / "snapshot_68",
    "folder around the unpacked folder": folder,
    "folder with the file": lambda t: (t / "holder").mkdir() or save(t / "holder" / "m.pth").parent,
    "re-zipped": lambda t: zip_of(folder(t), t / "again.zip"),
    "re-zipped without a folder": lambda t: zip_of(folder(t) / "snapshot_68", t / "again.zip", zipfile.ZIP_STORED),
    "zip of the file": lambda t: zip_of(save((t / "holder").mkdir() or t / "holder" / "m.pth").parent, t / "again.zip"),
    "tar of the file": lambda t: tar_of(saved(t), t / "real.tar"),
    "tar of the legacy file": lambda t: tar_of(save(t / "m.pth", legacy=True), t / "real.tar"),
    "tar of the folder": lambda t: tar_of(folder(t), t / "real.tar", "."),
    "tar of a zip of the folder": lambda t: tar_of(zip_of(folder(t), t / "again.zip"), t / "real.tar"),
}


@pytest.mark.parametrize("make", CONTAINERS.values(), ids=CONTAINERS.keys())
def test_every_container_gives_the_same_tensors(make, tmp_path):
    tree = read_container(make(tmp_path)).tree
    assert tree["epoch"] == 68
    assert tree["network"].keys() == TREE["network"].keys()
    assert all(np.array_equal(tree["network"][name].numpy(), tensor.numpy()) for name, tensor in TREE["network"].items())


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16, torch.float32])
def test_safetensors(dtype, tmp_path):
    from safetensors.torch import save_file

    tensor = TREE["network"]["a.weight"].to(dtype)
    save_file({"a.weight": tensor}, tmp_path / "weights.bin")
    assert np.array_equal(read_container(tmp_path / "weights.bin").tree["a.weight"].numpy(), tensor.float().numpy())


def test_what_other_programs_leave_in_folders_and_archives_does_no_harm(tmp_path):
    unpacked = folder(tmp_path)
    (unpacked / "snapshot_68" / ".DS_Store").write_bytes(b"\0\0\0\1Bud1")
    (unpacked / "__MACOSX").mkdir()
    (unpacked / "__MACOSX" / "._data.pkl").write_bytes(b"\0\5\x16\7")
    (unpacked / "README.txt").write_text("weights")
    (unpacked / "snapshot_68" / "version").unlink()
    for path in (unpacked, zip_of(unpacked, tmp_path / "again.zip"), tar_of(unpacked, tmp_path / "real.tar")):
        assert read_container(path).tree["epoch"] == 68


def test_backslashes_in_a_zip(tmp_path):
    with zipfile.ZipFile(saved(tmp_path)) as source, zipfile.ZipFile(tmp_path / "windows.zip", "w") as target:
        for info in source.infolist():
            target.writestr(info.filename.replace("/", "\\"), source.read(info))
    assert read_container(tmp_path / "windows.zip").tree["epoch"] == 68


def test_the_hash_of_a_folder_is_of_names_and_bytes(tmp_path):
    first = read_container(folder(tmp_path)).sha256
    copy = shutil.copytree(tmp_path / "unpacked", tmp_path / "copy")
    assert read_container(copy).sha256 == first
    (copy / "snapshot_68" / "byteorder").rename(copy / "snapshot_68" / "order")
    assert read_container(copy).sha256 != first


# Malice


class Hostile:
    def __init__(self, marker):
        self.marker = marker

    def __reduce__(self):
        return os.system, (f"touch {self.marker}",)


HOSTILE_CONTAINERS = {
    "zip": lambda t, tree: save(t / "m.pth", tree),
    "legacy": lambda t, tree: save(t / "m.pth", tree, legacy=True),
    "folder": lambda t, tree: unpack(save(t / "m.pth", tree), t / "unpacked"),
    "tar": lambda t, tree: tar_of(unpack(save(t / "m.pth", tree), t / "unpacked"), t / "real.tar"),
}


@pytest.mark.parametrize("make", HOSTILE_CONTAINERS.values(), ids=HOSTILE_CONTAINERS.keys())
def test_a_pickle_that_would_run_code_is_refused_and_runs_nothing(make, tmp_path, monkeypatch):
    monkeypatch.setenv("TORCH_FORCE_NO_WEIGHTS_ONLY_LOAD", "1")
    marker = tmp_path / "ran"
    path = make(tmp_path, {"network": dict(TREE["network"]), "epoch": Hostile(marker)})
    with pytest.raises(CheckpointError, match=r"expected weights only, received a pickle that asks for \w+\.system"):
        read_container(path)
    assert not marker.exists()


@pytest.mark.parametrize("legacy", [False, True])
def test_the_hostile_file_would_have_run(legacy, tmp_path):
    marker = tmp_path / "ran"
    torch.load(save(tmp_path / "m.pth", Hostile(marker), legacy), weights_only=False)
    assert marker.exists()


@pytest.mark.parametrize(
    "function",
    ["builtins eval", "builtins exec", "os system", "subprocess Popen", "torch.serialization load", "torch.hub load",
     "torch load", "torch._C _load_for_lite_interpreter", "functools partial", "numpy.core.multiarray _reconstruct",
     "runpy run_path", "webbrowser open"],
)  # fmt: skip
def test_a_pickle_that_calls_anything_else_is_refused(function, tmp_path):
    call = b"\x80\x02c" + function.replace(" ", "\n").encode() + b"\nX\x04\x00\x00\x00true\x85R."
    (tmp_path / "unpacked").mkdir()
    (tmp_path / "unpacked" / "data.pkl").write_bytes(call)
    with pytest.raises(CheckpointError, match=f"asks for {function.replace(' ', '.')}: refused"):
        read_container(tmp_path / "unpacked")


def test_numpy_objects_are_refused(tmp_path):
    with pytest.raises(CheckpointError, match="asks for numpy"):
        read_container(save(tmp_path / "m.pth", {"network": {"a": np.arange(3)}}))


def test_a_program_is_refused(tmp_path):
    with pytest.warns(DeprecationWarning):
        torch.jit.script(torch.nn.Linear(2, 2)).save(str(tmp_path / "script.pt"))
    with pytest.raises(CheckpointError, match="expected weights only"):
        read_container(tmp_path / "script.pt")


def test_nothing_in_an_archive_reaches_the_disk(tmp_path):
    inside = tmp_path / "inside"
    inside.mkdir()
    data = save(tmp_path / "m.pth").read_bytes()
    with tarfile.open(inside / "real.tar", "w") as archive:
        for name in ("../escaped.pth", str(tmp_path / "absolute.pth")):
            member = tarfile.TarInfo(name)
            member.size = len(data)
            archive.addfile(member, io.BytesIO(data))
        link = tarfile.TarInfo("link.pth")
        link.type, link.linkname = tarfile.SYMTYPE, "../m.pth"
        archive.addfile(link)
    before = sorted(tmp_path.rglob("*"))
    with pytest.raises(CheckpointError, match=r"received 2 of them"):
        read_container(inside / "real.tar")
    assert sorted(tmp_path.rglob("*")) == before


def test_control_characters_in_names_are_not_printed(tmp_path):
    for name in ("\x1b[2Ja", "b"):
        unpack(saved(tmp_path), tmp_path / "several" / name)
    with pytest.raises(CheckpointError) as error:
        read_container(zip_of(tmp_path / "several", tmp_path / "several.zip"))
    assert "\x1b" not in str(error.value)


# Size


def sparse(path):
    with path.open("wb") as file:
        file.write(b"PK\x03\x04")
        file.truncate(HUGE)
    return path


def forged_zip(path):
    """A small file whose directory claims that it unpacks to 4 GB."""
    with zipfile.ZipFile(path, "w", zipfile.ZIP_DEFLATED) as archive:
        archive.writestr("data.pkl", b"\0" * 1000)
    data = bytearray(path.read_bytes())
    size = data.index(b"PK\x01\x02") + 24
    data[size : size + 4] = (0xF0000000).to_bytes(4, "little")
    path.write_bytes(data)
    return path


def forged_tar(path):
    member = tarfile.TarInfo("data.pkl")
    member.size = HUGE
    path.write_bytes(member.tobuf() + b"\0" * 10240)
    return path


@pytest.mark.parametrize(
    "make",
    [lambda t: sparse(t / "huge.pth"), lambda t: sparse((t / "f").mkdir() or t / "f" / "0").parent,
     lambda t: forged_zip(t / "bomb.zip"), lambda t: forged_tar(t / "bomb.tar")],
    ids=["file", "folder", "zip", "tar"],
)  # fmt: skip
def test_what_is_too_large_is_refused_before_it_is_read(make, tmp_path):
    with pytest.raises(CheckpointError, match=r"expected .*at most .*, received (.* )?(536\.9 MB|4\.0 GB)"):
        read_container(make(tmp_path))


def test_too_many_members(tmp_path):
    with zipfile.ZipFile(tmp_path / "many.zip", "w") as archive:
        for index in range(MAX_MEMBERS + 1):
            archive.writestr(f"data/{index}", b"")
    with pytest.raises(CheckpointError, match="more than 10,000 files"):
        read_container(tmp_path / "many.zip")


def test_too_deep(tmp_path):
    path = save(tmp_path / "m.pth")
    for depth in range(MAX_DEPTH - 1):
        path = tar_of(path, tmp_path / f"{depth}.tar")
        assert read_container(path).tree["epoch"] == 68
    with pytest.raises(CheckpointError, match="expected at most 3 nested containers"):
        read_container(tar_of(path, tmp_path / "last.tar"))


# Damage


def test_several_checkpoints_are_named(tmp_path):
    for name in ("snapshot_68", "snapshot_69"):
        save(tmp_path / f"{name}.pth")
        unpack(tmp_path / f"{name}.pth", tmp_path / "several")
    for path in (tmp_path / "several", zip_of(tmp_path / "several", tmp_path / "several.zip")):
        with pytest.raises(CheckpointError, match=r"received 2 of them \(snapshot_68/data.pkl, snapshot_69/data.pkl\)"):
            read_container(path)


@pytest.mark.parametrize("name", ["nothing.pth", "no\0thing.pth", "nothing/m.pth"])
def test_no_file(name, tmp_path):
    with pytest.raises(CheckpointError, match="there is no such file"):
        read_container(tmp_path / name)


@pytest.mark.parametrize(
    ("data", "sentence"),
    [
        (b"", "received an empty file"),
        (b"<!DOCTYPE html><html>", "starts with b'<!DOCTYPE html"),
        (b"PK\5\6" + b"\0" * 18, "starts with b'PK"),
        (b"cos\nsystem\n(S'true'\ntR.", "starts with b.cos"),
        (b"\x80\x04N.", "received a plain pickle: save it with torch.save"),
        (b"\x80\x02", "cut short or damaged"),
        (gzip.compress(b"weights", mtime=0), "starts with b'"),
    ],
)
def test_what_is_no_checkpoint_is_refused(data, sentence, tmp_path):
    (tmp_path / "m.pth").write_bytes(data)
    with pytest.raises(CheckpointError, match=sentence) as error:
        read_container(tmp_path / "m.pth")
    assert "\n" not in str(error.value)


def test_a_folder_without_a_checkpoint(tmp_path):
    (tmp_path / "f").mkdir()
    (tmp_path / "f" / "README.txt").write_text("nothing here")
    with pytest.raises(CheckpointError, match="received 1 other files"):
        read_container(tmp_path / "f")


@pytest.mark.skipif(not hasattr(os, "mkfifo"), reason="no named pipes on this system")
def test_a_pipe_is_refused_and_not_waited_for(tmp_path):
    os.mkfifo(tmp_path / "pipe")
    with pytest.raises(CheckpointError, match="which is a device, a pipe or a socket"):
        read_container(tmp_path / "pipe")


def test_an_archive_with_a_password(tmp_path):
    data = bytearray(zip_of(folder(tmp_path), tmp_path / "again.zip").read_bytes())
    data[data.rindex(b"PK\x01\x02") + 8] |= 1  # the flag in the last member's directory entry
    (tmp_path / "locked.zip").write_bytes(data)
    with pytest.raises(CheckpointError, match="an archive without a password"):
        read_container(tmp_path / "locked.zip")


def test_a_folder_without_one_of_its_files(tmp_path):
    unpacked = folder(tmp_path)
    (unpacked / "snapshot_68" / "data" / "0").unlink()
    with pytest.raises(CheckpointError, match="cut short or damaged"):
        read_container(unpacked)


def test_a_folder_with_a_file_cut_short(tmp_path):
    unpacked = folder(tmp_path)
    part = unpacked / "snapshot_68" / "data" / "0"
    part.write_bytes(part.read_bytes()[:8])
    with pytest.raises(CheckpointError, match="cut short or damaged"):
        read_container(unpacked)


@pytest.fixture(scope="module")
def whole(tmp_path_factory):
    """The bytes of each format."""
    from safetensors.torch import save_file

    folder = tmp_path_factory.mktemp("whole")
    save_file(TREE["network"], folder / "safe")
    files = {
        "zip": save(folder / "zip"),
        "legacy": save(folder / "legacy", legacy=True),
        "tar": tar_of(folder / "zip", folder / "tar"),
        "safetensors": folder / "safe",
    }
    return {kind: path.read_bytes() for kind, path in files.items()}


@pytest.mark.parametrize("kind", ["zip", "legacy", "safetensors"])
def test_a_file_cut_anywhere_is_refused(kind, whole, tmp_path):
    path = tmp_path / "cut.pth"
    for length in range(len(whole[kind])):
        path.write_bytes(whole[kind][:length])
        with pytest.raises(CheckpointError):
            read_container(path)


def test_a_tar_cut_anywhere_is_refused_or_whole(whole, tmp_path):
    path = tmp_path / "cut.tar"
    refused = 0
    for length in range(0, len(whole["tar"]), 7):
        path.write_bytes(whole["tar"][:length])
        try:
            assert np.array_equal(read_container(path).tree["network"]["a.weight"].numpy(), TREE["network"]["a.weight"].numpy())
        except CheckpointError:
            refused += 7
    # A tar may lose only the zeros that fill its last block.
    assert refused >= len(whole["tar"].rstrip(b"\0"))


@pytest.mark.parametrize("kind", ["zip", "legacy", "tar", "safetensors"])
@given(data=st.data())
def test_damaged_bytes_give_a_tree_or_one_sentence(kind, whole, tmp_path_factory, data):
    damaged = bytearray(whole[kind])
    for _ in range(data.draw(st.integers(1, 4))):
        damaged[data.draw(st.integers(0, len(damaged) - 1))] = data.draw(st.integers(0, 255))
    path = Path(tmp_path_factory.getbasetemp(), f"damaged.{kind}")
    path.write_bytes(damaged)
    try:
        for tensor in tensors_of(read_container(path).tree):
            tensor.numpy()
    except CheckpointError as error:
        assert "\n" not in str(error)


# The libraries


def test_no_library_that_runs_pickles_is_needed(whole, tmp_path, monkeypatch):
    for module in [name for name in sys.modules if name == "safetensors" or name.startswith("safetensors.")]:
        monkeypatch.delitem(sys.modules, module)
    for name in ("torch", "safetensors"):
        monkeypatch.setitem(sys.modules, name, None)
    monkeypatch.setattr(pickle, "Unpickler", None)
    for kind, data in whole.items():
        (tmp_path / kind).write_bytes(data)
        tree = read_container(tmp_path / kind).tree
        assert np.array_equal(tree.get("network", tree)["a.weight"].numpy(), np.arange(12.0, dtype=np.float32).reshape(3, 4))
