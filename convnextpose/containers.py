"""Checkpoint containers: from a file or a folder, whatever it is called, to the objects that it holds.

    torch.save's ZIP    under any name: the content decides, never the name
    re-zipped folder    an archive with one `data.pkl` somewhere in it
    unpacked folder     the same, as files (`data.pkl`, `data/0`, ...)
    tar                 with either of these, or with one checkpoint file, inside
    legacy              the format of torch.save before its ZIP
    safetensors         no pickle at all

Everything happens in memory, nothing is unpacked to disk. Pickles are read weights only: one that asks for anything that
could run code is refused before it does.
"""

from __future__ import annotations

import hashlib
import io
import os
import pickle
import re
import tarfile
import warnings
import zipfile
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from types import ModuleType

from convnextpose.errors import CheckpointError, RuntimeUnavailableError, install_command

MAX_BYTES = 2 * 1024**3
"""The largest file, and the largest sum of unpacked members, that is read. The largest published checkpoint has 0.1 GB."""

MAX_MEMBERS = 10_000
"""The most files in an archive or a folder. A checkpoint with Adam's state has about 800."""

MAX_DEPTH = 3
"""How many containers may lie inside each other, the outermost counted."""

SAFE_TORCH = (2, 10)
"""The first PyTorch whose weights-only reader holds against crafted pickles (CVE-2025-32434, CVE-2026-24747)."""

MAX_SAFETENSORS_HEADER = 100_000_000
"""The longest header that the safetensors format allows, bytes."""


@dataclass(frozen=True)
class Contents:
    """What a container holds.

    Attributes:
        tree: dictionaries, lists, numbers and tensors, as they were saved.
        sha256: hash, hexadecimal. For a file: of its bytes. For a folder: of, for every file in the order of their names
            (UTF-8, relative to the folder, `/` between parts), the name, a zero byte, the length as 8 bytes little-endian,
            and the bytes.
    """

    tree: object
    sha256: str


def read_container(path: Path) -> Contents:
    """Read a checkpoint file or an unpacked checkpoint folder, weights only.

    Raises:
        CheckpointError: it is missing, too large, cut short, damaged, holds no or several checkpoints, or would run code.
        RuntimeUnavailableError: PyTorch or safetensors is not installed, or PyTorch is too old to read a pickle safely.
    """
    try:
        if path.is_dir():
            members = _folder_members(path)
            return Contents(_open_members(members, str(path), 1), _hash_members(members))
        data = _read_file(path)
    except OSError as error:
        raise CheckpointError(f"{path}: expected a readable checkpoint, received: {error.strerror or error}") from error
    return Contents(_open(data, str(path), 1), hashlib.sha256(data).hexdigest())


def require_torch() -> ModuleType:
    """PyTorch, which the base install does not bring.

    Raises:
        RuntimeUnavailableError: it is not installed.
    """
    try:
        import torch
    except ImportError:
        raise RuntimeUnavailableError(
            f"reading a checkpoint needs PyTorch, which is not installed: {install_command('build')}"
        ) from None
    return torch


def show(name: object) -> str:
    """A name out of a file that nobody vouches for, short and without control characters."""
    text = name if isinstance(name, str) and name.isprintable() else ascii(name)
    return text if len(text) <= 100 else f"{text[:97]}..."


def _read_file(path: Path) -> bytes:
    if not path.exists():
        raise CheckpointError(f"{path}: expected a checkpoint, but there is no such file")
    if not path.is_file():
        raise CheckpointError(f"{path}: expected a file or a folder, received neither (a device, a pipe or a socket)")
    with path.open("rb") as file:
        _check_total(os.fstat(file.fileno()).st_size, str(path))
        data = file.read(MAX_BYTES + 1)  # the file may have grown since
    _check_total(len(data), str(path))
    return data


def _folder_members(folder: Path) -> dict[str, bytes]:
    files: dict[str, Path] = {}
    total = 0
    for parent, _, names in os.walk(folder):
        for name in names:
            file = Path(parent, name)
            if file.is_file():
                files[file.relative_to(folder).as_posix()] = file
                total += file.stat().st_size
                _check_total(total, str(folder))
                _check_count(len(files), str(folder))
    return {name: _read_file(files[name]) for name in sorted(files)}


def _hash_members(members: Mapping[str, bytes]) -> str:
    digest = hashlib.sha256()
    for name, data in members.items():
        digest.update(name.encode("utf-8", "surrogateescape") + b"\0" + len(data).to_bytes(8, "little") + data)
    return digest.hexdigest()


def _zip_members(data: bytes, source: str) -> dict[str, bytes]:
    with _damage_named(source, "ZIP"), zipfile.ZipFile(io.BytesIO(data)) as archive:
        infos = [info for info in archive.infolist() if not info.is_dir()]
        _check_count(len(infos), source)
        _check_total(sum(info.file_size for info in infos), source)
        if any(info.flag_bits & 0x1 for info in infos):
            raise CheckpointError(f"{source}: expected a checkpoint, received an archive with a password: unpack it first")
        return {info.filename.replace("\\", "/"): archive.read(info) for info in infos}


def _tar_members(data: bytes, source: str) -> dict[str, bytes]:
    members: dict[str, bytes] = {}
    total = 0
    with _damage_named(source, "tar"), tarfile.open(fileobj=io.BytesIO(data), mode="r:") as archive:
        # One header at a time: the sizes are checked before the next one is looked for, where an absurd size would lead.
        for count, member in enumerate(archive, start=1):
            if member.size < 0:
                raise CheckpointError(f"{source}: expected a tar, received one whose member {show(member.name)} has no size")
            total += member.size
            _check_count(count, source)
            _check_total(total, source)
            file = archive.extractfile(member) if member.isreg() else None
            if file is not None:
                members[member.name] = file.read()
    return members


def _open(data: bytes, source: str, depth: int) -> object:
    """What the bytes of a container hold; `depth` counts the containers that they lie in, themselves included."""
    if depth > MAX_DEPTH:
        raise CheckpointError(f"{source}: expected at most {MAX_DEPTH} containers inside each other, received more: unpack it")
    kind = _kind(data)
    if kind == "zip":
        return _open_members(_zip_members(data, source), source, depth)
    if kind == "tar":
        return _open_members(_tar_members(data, source), source, depth)
    if kind == "legacy":
        return _unpickle(io.BytesIO(data), source)
    if kind == "safetensors":
        return _read_safetensors(data, source)
    received = f"a file that starts with {data[:16]!r}" if data else "an empty file"
    raise CheckpointError(
        f"{source}: expected a checkpoint (torch.save's ZIP or legacy format, a ZIP or tar or folder with one in it, "
        f"safetensors), received {received}"
    )


def _kind(data: bytes) -> str | None:
    """Which container the bytes begin, or None."""
    if data.startswith(b"PK\x03\x04"):
        return "zip"
    if data[8:9] == b"{" and int.from_bytes(data[:8], "little") <= MAX_SAFETENSORS_HEADER:
        return "safetensors"
    if data[257:262] == b"ustar":
        return "tar"
    if data[:1] == b"\x80" and data[1:2] in (b"\x02", b"\x03", b"\x04", b"\x05"):  # a pickle and its protocol
        return "legacy"
    return None


def _open_members(members: Mapping[str, bytes], source: str, depth: int) -> object:
    pickles = [name for name in members if f"/{name}".endswith("/data.pkl")]
    files = pickles or [name for name, data in members.items() if _kind(data)]
    if len(files) != 1:
        found = ", ".join(map(show, sorted(files)[:5])) + (", ..." if len(files) > 5 else "")
        received = f"{len(files)} of them ({found}): give one" if files else f"{len(members)} other files"
        raise CheckpointError(f"{source}: expected one checkpoint in it, received {received}")
    if not pickles:
        return _open(members[files[0]], f"{source}/{show(files[0])}", depth + 1)
    prefix = files[0].removesuffix("data.pkl")
    return _unpickle(_pack({n.removeprefix(prefix): data for n, data in members.items() if n.startswith(prefix)}), source)


def _pack(records: Mapping[str, bytes]) -> io.BytesIO:
    """The records of an unpacked checkpoint as torch.load takes them: an uncompressed ZIP with one folder."""
    packed = io.BytesIO()
    with zipfile.ZipFile(packed, "w") as archive:
        for name, data in {"version": b"3\n", **records}.items():
            # Nothing else is passed on: `constants.pkl` or `code/` would make it a program.
            if name in ("data.pkl", "version", "byteorder") or name.startswith("data/"):
                archive.writestr(zipfile.ZipInfo(f"checkpoint/{name}"), data)
    packed.seek(0)
    return packed


def _unpickle(stream: io.BytesIO, source: str) -> object:
    torch = require_torch()
    if torch.__version__ < SAFE_TORCH:
        raise RuntimeUnavailableError(
            f"reading a pickled checkpoint safely needs PyTorch {SAFE_TORCH[0]}.{SAFE_TORCH[1]} or newer, found "
            f"{torch.__version__}: pip install --upgrade torch, or give a .safetensors file"
        )
    with _damage_named(source, "checkpoint"):
        try:
            with warnings.catch_warnings():
                warnings.simplefilter("ignore")  # PyTorch warns of pickle protocols; the tensors are checked either way
                return torch.load(stream, map_location="cpu", weights_only=True)
        except pickle.UnpicklingError as error:
            wanted = re.search(r"GLOBAL (\S+)", str(error))
            what = f"that asks for {show(wanted[1])}" if wanted else "that is damaged or asks for more than tensors"
            raise CheckpointError(
                f"{source}: expected weights only, received a pickle {what}: refused, as it could run code; none of it was run"
            ) from error


def _read_safetensors(data: bytes, source: str) -> object:
    require_torch()
    try:
        from safetensors.torch import load
    except ImportError:
        raise RuntimeUnavailableError(
            f"reading a .safetensors file needs safetensors, which is not installed: {install_command('build')}"
        ) from None
    with _damage_named(source, "safetensors file"):
        return load(data)


@contextmanager
def _damage_named(source: str, what: str) -> Iterator[None]:
    """Turn whatever a parser raises on foreign bytes into one sentence."""
    try:
        yield
    except CheckpointError:
        raise
    except Exception as error:  # parsers of damaged bytes raise almost anything
        reason = show(str(error).strip().partition("\n")[0] or type(error).__name__)
        raise CheckpointError(
            f"{source}: expected a whole {what}, received one that is cut short or damaged ({reason}): get it again"
        ) from error


def _check_total(size: int, source: str) -> None:
    if size > MAX_BYTES:
        raise CheckpointError(
            f"{source}: expected at most {MAX_BYTES / 1e9:.1f} GB, received {size / 1e9:.1f} GB: no ConvNeXtPose has that much"
        )


def _check_count(count: int, source: str) -> None:
    if count > MAX_MEMBERS:
        raise CheckpointError(f"{source}: expected one checkpoint, received more than {MAX_MEMBERS:,} files")
