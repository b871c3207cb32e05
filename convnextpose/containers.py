"""Checkpoint containers: from a file or a folder to the objects in it. The content decides the kind, never the name.

    torch.save's ZIP    under any file name
    re-zipped folder    an archive with one `data.pkl` somewhere in it
    unpacked folder     the same, as files (`data.pkl`, `data/0`, ...)
    tar                 with one of these, or with one checkpoint file, inside
    legacy              the format of torch.save before its ZIP format
    safetensors         no pickle at all

Everything happens in memory; nothing is unpacked to disk. Declared sizes are checked before anything is allocated, and a
tensor's numbers are read only when they are needed. No pickle is executed: `convnextpose.pickles` parses it.
"""

from __future__ import annotations

import hashlib
import io
import math
import os
import tarfile
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from types import ModuleType
from typing import IO, Any

from convnextpose.archives import MAX_MEMBERS, open_zip, unpacked_limit
from convnextpose.errors import CheckpointError, RuntimeUnavailableError, install_command
from convnextpose.files import MAX_JSON_BYTES, LimitError, parse_json, read_file, show, size_text
from convnextpose.pickles import (
    ITEM_SIZES,
    MAX_DIMENSIONS,
    ForbiddenGlobalError,
    Storage,
    StoredTensor,
    read_pickle,
    storage_type,
)

MAX_BYTES = 512 * 1024**2
"""The largest file or folder that is read. The largest variant with Adam's moments has 67 MB."""

MAX_DEPTH = 3
"""How many containers may be nested, including the outermost."""

MAX_PICKLE_BYTES = 1024**2
"""The longest pickle: it describes the tensors and does not contain them. The largest variant's with Adam has 56 kB."""

_HEAD_BYTES = 512
"""Number of a file's first bytes that show which container it is."""

_MAGIC = 0x1950A86A20F9469CFC6C
"""The number that the legacy format begins with, as a pickle: MAGIC_NUMBER in PyTorch's `torch/serialization.py`."""

_SAFETENSORS_TYPES = {
    "F64": "float64", "F32": "float32", "F16": "float16", "BF16": "bfloat16", "I64": "int64", "I32": "int32", "I16": "int16",
    "I8": "int8", "U64": "uint64", "U32": "uint32", "U16": "uint16", "U8": "uint8", "BOOL": "bool", "F8_E4M3": "float8_e4m3fn",
    "F8_E5M2": "float8_e5m2",
}  # fmt: skip


@dataclass(frozen=True)
class Contents:
    """The contents of a container.

    Attributes:
        tree: dictionaries, lists and numbers as they were saved, and each tensor as a `StoredTensor`, whose numbers are read
            when they are needed; it then raises CheckpointError if they are damaged.
        sha256: hash, hexadecimal. For a file: of its bytes. For a folder: of every file in the order of the names (UTF-8,
            relative to the folder, `/` between parts): its name, a zero byte, the length as 8 bytes little-endian, and the
            bytes.
    """

    tree: object
    sha256: str


@dataclass(frozen=True)
class _Members:
    """The files in an archive or a folder.

    Attributes:
        sizes: size of each file, bytes, by its name with `/` between the parts.
        open: opens a file as a stream of its bytes.
    """

    sizes: Mapping[str, int]
    open: Callable[[str], IO[bytes]]

    def read(self, name: str, most: int = -1) -> bytes:
        """The bytes of a file, or the first of them."""
        with self.open(name) as file:
            return file.read(most)


def read_container(path: Path) -> Contents:
    """Read a checkpoint file or an unpacked checkpoint folder.

    Raises:
        CheckpointError: it is missing, too large, truncated or damaged, has no or several checkpoints, or would run code.
    """
    try:
        is_folder = path.is_dir()
    except (OSError, ValueError):  # a name that no file can have: reported below
        is_folder = False
    if is_folder:
        files = _folder_files(path)
        members = _Members({name: len(data) for name, data in files.items()}, lambda name: io.BytesIO(files[name]))
        reader = _Reader(str(path), unpacked_limit(sum(members.sizes.values())))
        return Contents(reader.open_members(members, 1), _hash_files(files))
    data = read_file(path, MAX_BYTES, CheckpointError, "a checkpoint")
    return Contents(_Reader(str(path), unpacked_limit(len(data))).open(data, 1), hashlib.sha256(data).hexdigest())


def require_torch() -> ModuleType:
    """PyTorch, which the base install does not include.

    Raises:
        RuntimeUnavailableError: it is not installed, or the working directory was deleted.
    """
    try:
        Path.cwd()
    except OSError as error:  # PyTorch's libraries would end the process there, without a helpful message
        raise RuntimeUnavailableError(
            "PyTorch cannot be loaded in a working directory that was deleted: change to another with `cd`"
        ) from error
    try:
        import torch
    except ImportError:
        raise RuntimeUnavailableError(
            f"reading a checkpoint needs PyTorch, which is not installed: {install_command('build')}"
        ) from None
    return torch


def _folder_files(folder: Path) -> dict[str, bytes]:
    files: dict[str, Path] = {}
    total = 0
    try:
        for parent, _, names in os.walk(folder):
            for name in names:
                file = Path(parent, name)
                if file.is_file():
                    files[file.relative_to(folder).as_posix()] = file
                    total += file.stat().st_size
                    _check_total(total, MAX_BYTES, str(folder))
                    _check_count(len(files), str(folder))
    except OSError as error:
        raise CheckpointError(f"{folder}: expected a readable checkpoint, received: {error.strerror or error}") from error
    found = {}
    for name in sorted(files):
        found[name] = read_file(files[name], MAX_BYTES, CheckpointError, "a checkpoint's part")
        total -= len(found[name])
    if total < 0:
        raise CheckpointError(f"{folder}: expected a checkpoint, received one that grew while it was read: read it again")
    return found


def _hash_files(files: Mapping[str, bytes]) -> str:
    digest = hashlib.sha256()
    for name, data in files.items():
        digest.update(name.encode("utf-8", "surrogateescape") + b"\0" + len(data).to_bytes(8, "little"))
        digest.update(data)
    return digest.hexdigest()


class _Reader:
    """Opens containers inside each other.

    Args:
        source: name of the outermost container, and of the one inside it, for messages.
        limit: largest size that archives in it may unpack to, bytes.
    """

    def __init__(self, source: str, limit: int) -> None:
        self._source = source
        self._limit = limit

    def open(self, data: bytes, depth: int) -> object:
        """The contents of a container's bytes; `depth` counts the containers around them, including this one."""
        source = self._source
        if depth > MAX_DEPTH:
            raise CheckpointError(
                f"{source}: expected at most {MAX_DEPTH} nested containers, received more: unpack the checkpoint"
            )
        kind = _kind(data[:_HEAD_BYTES])
        if kind == "zip":
            return self.open_members(self._zip_members(data), depth)
        if kind == "tar":
            return self.open_members(self._tar_members(data), depth)
        if kind == "legacy":
            return self._read_legacy(data)
        if kind == "safetensors":
            return self._read_safetensors(data)
        received = f"a file that starts with {data[:16]!r}" if data else "an empty file"
        raise CheckpointError(
            f"{source}: expected a checkpoint (torch.save's ZIP or legacy format, a ZIP or tar or folder with one in it, "
            f"safetensors), received {received}"
        )

    def open_members(self, members: _Members, depth: int) -> object:
        """The contents of the only checkpoint in an archive or a folder."""
        pickles = [name for name in members.sizes if f"/{name}".endswith("/data.pkl")]
        with self._damage_named("archive"):
            files = pickles or [name for name in members.sizes if _kind(members.read(name, _HEAD_BYTES))]
        if len(files) != 1:
            found = ", ".join(map(show, sorted(files)[:5])) + (", ..." if len(files) > 5 else "")
            received = f"{len(files)} of them ({found}): give one" if files else f"{len(members.sizes)} other files"
            raise CheckpointError(f"{self._source}: expected one checkpoint in it, received {received}")
        if not pickles:
            with self._damage_named("archive"):
                data = members.read(files[0])
            return _Reader(f"{self._source}/{show(files[0])}", self._limit).open(data, depth + 1)
        return self._read_records(members, files[0].removesuffix("data.pkl"))

    def _zip_members(self, data: bytes) -> _Members:
        with self._damage_named("ZIP"):
            archive = open_zip(data, self._limit)
        infos = {info.filename.replace("\\", "/"): info for info in archive.infolist() if not info.is_dir()}
        return _Members({name: info.file_size for name, info in infos.items()}, lambda name: archive.open(infos[name]))

    def _tar_members(self, data: bytes) -> _Members:
        spans: dict[str, tuple[int, int]] = {}
        total = 0
        with self._damage_named("tar"), tarfile.open(fileobj=io.BytesIO(data), mode="r:") as archive:
            # One header at a time: a size is checked before it is used to find the next header.
            for count, member in enumerate(archive, start=1):
                if member.size < 0:
                    raise CheckpointError(
                        f"{self._source}: expected a tar, received one whose member {show(member.name)} has no size"
                    )
                total += member.size
                _check_count(count, self._source)
                _check_total(total, MAX_BYTES, self._source)
                if member.isreg() and not member.issparse():
                    if member.offset_data + member.size > len(data):
                        raise ValueError("unexpected end of data")
                    spans[member.name] = (member.offset_data, member.size)

        def opened(name: str) -> IO[bytes]:
            begin, size = spans[name]
            return io.BytesIO(data[begin : begin + size])

        return _Members({name: size for name, (_, size) in spans.items()}, opened)

    def _read_records(self, members: _Members, prefix: str) -> object:
        """The tree of torch.save's format: `data.pkl`, and a record `data/KEY` for each storage."""
        with self._damage_named("checkpoint"):
            if members.sizes[f"{prefix}data.pkl"] > MAX_PICKLE_BYTES:
                raise LimitError(
                    f"expected a pickle of at most {size_text(MAX_PICKLE_BYTES)}, received "
                    f"{size_text(members.sizes[f'{prefix}data.pkl'])}"
                )
            order = members.read(f"{prefix}byteorder", 6) if f"{prefix}byteorder" in members.sizes else b"little"
            storages: dict[str, Storage] = {}

            def storage(told: tuple[Any, ...]) -> Storage:
                dtype, key, count = _storage_facts(told)
                name = f"{prefix}data/{key}"
                if key not in storages:
                    size = count * (1 if dtype is None else ITEM_SIZES[dtype])
                    if members.sizes.get(name, -1) < size:
                        raise ValueError(f"{show(name)} should have {size} bytes and has {members.sizes.get(name, 'none')}")
                    storages[key] = Storage(dtype, size, lambda: self._read(members, name))
                return storages[key]

            data = members.read(f"{prefix}data.pkl")
            return read_pickle(io.BytesIO(data), storage, big_endian=order == b"big")

    def _read(self, members: _Members, name: str) -> bytes:
        with self._damage_named("checkpoint"):
            return members.read(name)

    def _read_legacy(self, data: bytes) -> object:
        """The tree of the format before torch.save's ZIP: pickles, then the storages in the order listed by the last pickle."""
        with self._damage_named("checkpoint"):
            stream = io.BytesIO(data[:MAX_PICKLE_BYTES])
            if read_pickle(stream, _no_storage) != _MAGIC:
                raise CheckpointError(
                    f"{self._source}: expected a checkpoint written by torch.save, received a plain pickle: save it with "
                    "torch.save"
                )
            if read_pickle(stream, _no_storage) != 1001:
                raise ValueError("an unknown version of the format")
            read_pickle(stream, _no_storage)  # facts on the machine that wrote it; numbers are little-endian in any case
            storages: dict[object, Storage] = {}
            places: dict[object, tuple[int, int]] = {}

            def storage(told: tuple[Any, ...]) -> object:
                if told[0] == "module":  # a module's source code: the module itself is refused
                    return told[1]
                dtype, key, count = _storage_facts(told)
                if dtype is None or (len(told) > 5 and told[5] is not None):
                    raise ValueError("a kind of storage that is no longer written: save it with a newer PyTorch")
                if key not in storages:
                    storages[key] = Storage(dtype, count * ITEM_SIZES[dtype], lambda: memoryview(data)[slice(*places[key])])
                return storages[key]

            tree = read_pickle(stream, storage)
            keys = read_pickle(stream, _no_storage)
            position = stream.tell()
            if not isinstance(keys, list) or set(storages) != set(keys):
                raise ValueError("its tensors are not those that it lists")
            for key in keys:
                begin, size = position + 8, storages[key].size
                count = int.from_bytes(data[position:begin], "little")
                if count * ITEM_SIZES[storages[key].dtype or "uint8"] != size or begin + size > len(data):
                    raise ValueError("unexpected end of data")
                places[key] = (begin, begin + size)
                position = begin + size
            return tree

    def _read_safetensors(self, data: bytes) -> object:
        with self._damage_named("safetensors file"):
            begin = 8 + int.from_bytes(data[:8], "little")
            header = parse_json(data[8:begin])
            if begin > len(data) or not isinstance(header, dict):
                raise ValueError("unexpected end of the header")
            header.pop("__metadata__", None)
            tree, end = {}, begin
            for name, told in header.items():
                tree[name] = _safetensor(told, memoryview(data)[begin:])
                end = max(end, begin + told["data_offsets"][1])
            if end != len(data):
                raise ValueError(f"{len(data)} bytes where its header says {end}")
            return tree

    @contextmanager
    def _damage_named(self, what: str) -> Iterator[None]:
        """Turn any error of a parser of foreign bytes into one sentence."""
        try:
            yield
        except CheckpointError:
            raise
        except LimitError as error:
            raise CheckpointError(f"{self._source}: {error}") from error
        except ForbiddenGlobalError as error:
            raise CheckpointError(
                f"{self._source}: expected weights only, received a pickle that asks for {error.name}: refused, as it could "
                "run code; none of it was run"
            ) from error
        except Exception as error:  # parsers of damaged bytes raise almost anything
            reason = show(str(error).strip().partition("\n")[0] or type(error).__name__)
            raise CheckpointError(
                f"{self._source}: expected a whole {what}, received one that is cut short or damaged ({reason}): get it again"
            ) from error


def _kind(head: bytes) -> str | None:
    """The kind of container that begins with these bytes, or None."""
    if head.startswith(b"PK\x03\x04"):
        return "zip"
    if head[8:9] == b"{" and int.from_bytes(head[:8], "little") <= MAX_JSON_BYTES:
        return "safetensors"
    if head[257:262] == b"ustar":
        return "tar"
    if head[:1] == b"\x80" and head[1:2] in (b"\x02", b"\x03", b"\x04", b"\x05"):  # a pickle and its protocol
        return "legacy"
    return None


def _storage_facts(told: tuple[Any, ...]) -> tuple[str | None, str, int]:
    """Type, key and number of values (or bytes) of a storage, from ("storage", type, key, device, count, ...)."""
    kind, named, key, _, count = told[:5]
    if kind != "storage" or not isinstance(key, str) or type(count) is not int or count < 0:
        raise ValueError("a tensor without a storage")
    return storage_type(named), key, count


def _no_storage(told: tuple[Any, ...]) -> Storage:
    raise ValueError("a tensor where none belongs")


def _safetensor(told: Any, buffer: memoryview) -> StoredTensor:  # noqa: ANN401 (JSON's types)
    """A tensor from its entry in a safetensors header: `{"dtype": "F32", "shape": [2, 3], "data_offsets": [0, 24]}`."""
    begin, end = told["data_offsets"]
    dtype, shape = _SAFETENSORS_TYPES[told["dtype"]], tuple(told["shape"])
    # The types are checked before anything is multiplied: a text times a number is a long text.
    if len(shape) > MAX_DIMENSIONS or not all(type(number) is int and 0 <= number < 2**62 for number in (*shape, begin, end)):
        raise ValueError("a tensor's shape and offsets are not a few whole numbers")
    strides = tuple(math.prod(shape[axis + 1 :]) for axis in range(len(shape)))
    if not 0 <= begin <= end <= len(buffer) or math.prod(shape) * ITEM_SIZES[dtype] != end - begin:
        raise ValueError("unexpected end of data")
    return StoredTensor(Storage(dtype, end - begin, lambda: buffer[begin:end]), dtype, shape, strides)


def _check_total(size: int, limit: int, source: str) -> None:
    if size > limit:
        raise CheckpointError(
            f"{source}: expected at most {size_text(limit)}, received {size_text(size)}: no ConvNeXtPose has that much"
        )


def _check_count(count: int, source: str) -> None:
    if count > MAX_MEMBERS:
        raise CheckpointError(f"{source}: expected one checkpoint, received more than {MAX_MEMBERS:,} files")
