"""Files: read up to a limit, and written completely or not at all; names and JSON from untrusted files.

Nothing in a file is trusted before it is checked: a size may be wrong, and a name may lead elsewhere.
"""

from __future__ import annotations

import json
import os
import secrets
import stat
from collections.abc import Collection, Iterator, Mapping
from contextlib import ExitStack, contextmanager, suppress
from pathlib import Path
from types import ModuleType
from typing import Any, BinaryIO

from convnextpose.errors import OutputExistsError, PoseError, SinkError

fcntl: ModuleType | None
try:
    import fcntl
except ImportError:  # Windows
    fcntl = None

MAX_JSON_BYTES = 1024**2
"""The longest JSON text that is parsed: a manifest has 10 kB, the header of the largest variant's tensors 26 kB."""

MAX_NAME_BYTES = 255
"""The longest file name that common file systems allow."""

_PARTIAL = ".convnextpose-{}.part"


class LimitError(ValueError):
    """A file is intact but beyond this project's limits: it needs too much memory, for example. The message is a sentence."""


def show(name: object) -> str:
    """A name from an untrusted file, shortened and without control characters."""
    text = name if isinstance(name, str) and name.isprintable() else ascii(name)
    return text if len(text) <= 100 else f"{text[:97]}..."


def size_text(count: int) -> str:
    """A number of bytes in readable form: `1.1 GB`, `4.2 MB`, `17 kB`."""
    for unit, factor in (("GB", 10**9), ("MB", 10**6)):
        if count >= factor:
            return f"{count / factor:.1f} {unit}"
    return f"{-(-count // 1000)} kB"


# Reading


def read_file(path: Path, limit: int, error: type[PoseError], what: str) -> bytes:
    """Read the bytes of an ordinary file.

    Args:
        path: the file.
        limit: its largest size, bytes; checked before anything is read.
        error: the error to raise.
        what: what the file should be, for messages: `an engine`.

    Raises:
        error: it is missing, a folder, a device or a pipe, too large, or cannot be read.
    """
    try:
        # Checked before it is opened, as opening a device may have an effect; and again afterwards, as it may have changed.
        _check_ordinary(path.stat(), path, limit, error, what)
        with os.fdopen(os.open(path, os.O_RDONLY | getattr(os, "O_NONBLOCK", 0) | getattr(os, "O_BINARY", 0)), "rb") as file:
            found = os.fstat(file.fileno())
            _check_ordinary(found, path, limit, error, what)
            data = file.read(found.st_size + 1)  # read() allocates all that is asked for, however small the file is
    except (FileNotFoundError, NotADirectoryError, ValueError) as cause:  # ValueError: a zero byte in the path
        if isinstance(cause, error):
            raise
        raise error(f"expected {what} at {show(str(path))}, but there is no such file") from None
    except OSError as cause:
        if isinstance(cause, error):
            raise
        raise error(f"expected {what} at {path}, but it cannot be read: {cause.strerror or cause}") from cause
    if len(data) > found.st_size:
        raise error(f"expected {what} at {path} to be whole, but it grew while it was read: read it again")
    return data


def _check_ordinary(found: os.stat_result, path: Path, limit: int, error: type[PoseError], what: str) -> None:
    if stat.S_ISDIR(found.st_mode):
        raise error(f"expected {what}, received the folder {path}")
    if not stat.S_ISREG(found.st_mode):
        raise error(f"expected {what}, received {path}, which is a device, a pipe or a socket: give an ordinary file")
    if found.st_size > limit:
        raise error(f"expected {what} of at most {size_text(limit)}, received {path} of {size_text(found.st_size)}")


def parse_json(text: bytes | str) -> Any:  # noqa: ANN401 (JSON's types)
    """Parse a JSON text.

    Raises:
        ValueError: it is no JSON in UTF-8, is too long or too deeply nested, or contains NaN or infinity.
    """
    if len(text) > MAX_JSON_BYTES:
        raise LimitError(f"expected at most {size_text(MAX_JSON_BYTES)} of JSON, received {size_text(len(text))}")
    try:
        return json.loads(text, parse_constant=_no_constant)
    except RecursionError:
        raise ValueError("expected JSON, received lists or objects that are nested too deeply") from None


def _no_constant(name: str) -> float:
    raise ValueError(f"expected finite numbers in JSON, received {name}")


# Writing


def child(folder: Path, name: str) -> Path:
    """Path of a file directly in a folder, for a name from an untrusted place.

    Raises:
        ValueError: the name is empty, has control characters, is too long, or leads out of the folder.
    """
    path = folder / name
    if not name or not name.isprintable() or name in (".", "..") or path.name != name or path.parent != folder:
        raise ValueError(f"expected a name that a file can have in {folder}, received {show(name)!r}: rename the model")
    if len(os.fsencode(name)) > MAX_NAME_BYTES:
        raise ValueError(f"expected a file's name of at most {MAX_NAME_BYTES} bytes, received {show(name)!r}: shorten it")
    return path


def check_free(path: Path, *, overwrite: bool) -> None:
    """Check that a file may be written to a path, without touching anything. Its folder need not exist yet.

    A symbolic link counts as a file: it is replaced, never followed.

    Raises:
        OutputExistsError: a file exists already and may not be replaced.
        SinkError: the path exists and is not a file: a folder, a pipe, a device.
        OSError: the path cannot be checked.
    """
    try:
        mode = path.lstat().st_mode
    except (FileNotFoundError, NotADirectoryError):
        return
    if not (stat.S_ISREG(mode) or stat.S_ISLNK(mode)):
        kind = "a folder" if stat.S_ISDIR(mode) else "a pipe, a socket or a device"
        raise SinkError(f"expected a file, or nothing yet, at {path}, but {kind} is there: remove it, or choose another place")
    if not overwrite:
        raise already_there(path)


def already_there(path: Path) -> OutputExistsError:
    """The error for a file that may not be replaced."""
    return OutputExistsError(f"{path} exists already: choose another place, or replace it with --overwrite")


def check_place(out: Path, *, overwrite: bool) -> None:
    """Refuse a path that `write_files` would refuse, before the work whose result is to be written there.

    Raises:
        OutputExistsError: a file exists already and may not be replaced.
        SinkError: it is not a path for a file in an existing folder.
    """
    try:
        check_free(out, overwrite=overwrite)
    except PoseError:
        raise
    except (OSError, ValueError) as error:
        raise SinkError(f"cannot write {show(str(out))}: {getattr(error, 'strerror', None) or error}") from error
    if not out.name or not out.parent.is_dir():
        raise SinkError(f"expected a file in a folder that exists, received {out}")


def write_file(out: Path, data: bytes, *, overwrite: bool = False) -> None:
    """Write one file, as `write_files` does."""
    write_files({out: data}, (out,) if overwrite else ())


def write_files(contents: Mapping[Path, bytes], replacing: Collection[Path] = ()) -> None:
    """Write files completely or not at all: first under temporary names beside their places, then each is moved in one step.

    A file that is not in `replacing` never replaces another one, not even one that appears meanwhile. Temporary files that
    killed processes left are removed.

    Args:
        contents: the bytes of each file; they are put in place in this order.
        replacing: the files that may replace existing ones.

    Raises:
        OutputExistsError: a file exists already and may not be replaced; none was written.
        SinkError: a file cannot be written; no incomplete file is left.
    """
    for out in contents:
        check_place(out, overwrite=out in replacing)
    placed: list[Path] = []
    try:
        with ExitStack() as opened:
            partials = {}
            for out, data in contents.items():
                partials[out] = partial, file = opened.enter_context(partial_file(out.parent))
                file.write(data)
                file.flush()
                os.fsync(file.fileno())
            for out, (partial, file) in partials.items():
                put_in_place(partial, file, out, overwrite=out in replacing)
                if out not in replacing:
                    placed.append(out)
            placed.clear()
    except OutputExistsError:
        raise
    except OSError as error:
        raise SinkError(f"cannot write {', '.join(map(str, contents))}: {error.strerror or error}") from error
    finally:
        for out in placed:  # either all files are written or none
            out.unlink(missing_ok=True)


def put_in_place(partial: Path, file: BinaryIO, out: Path, *, overwrite: bool) -> None:
    """Move a file of `partial_file` to its place in one step; without `overwrite` a file that appeared meanwhile stays.

    Raises:
        OutputExistsError: a file exists already and may not be replaced.
        OSError: it cannot be moved.
    """
    file.flush()
    if fcntl is None:
        file.close()  # Windows cannot move an open file
    if overwrite:
        partial.replace(out)
        return
    try:
        try:
            os.link(partial, out)  # unlike a rename, it fails if the file exists
            partial.unlink()
        except FileExistsError:
            raise
        except OSError:  # a file system without hard links: an empty file reserves the name first
            os.close(os.open(out, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o666))
            partial.replace(out)
    except FileExistsError as error:
        raise already_there(out) from error


@contextmanager
def partial_file(folder: Path) -> Iterator[tuple[Path, BinaryIO]]:
    """A new temporary file in a folder, locked while it is written: an unlocked one was left by a process that died.

    Such leftovers are removed first. Whatever happens, the file is gone at the end, unless `put_in_place` took it.
    """
    _remove_leftovers(folder)
    while True:
        partial = folder / _PARTIAL.format(secrets.token_hex(8))
        flags = os.O_WRONLY | os.O_CREAT | os.O_EXCL | getattr(os, "O_BINARY", 0)
        file = os.fdopen(os.open(partial, flags, 0o666), "wb")
        if fcntl is not None:
            with suppress(OSError):  # a file system without locks
                fcntl.flock(file, fcntl.LOCK_EX)
            if os.fstat(file.fileno()).st_nlink == 0:  # removed as a leftover between its creation and its lock
                file.close()
                continue
        break
    try:
        with file:
            yield partial, file
    finally:
        partial.unlink(missing_ok=True)


def _remove_leftovers(folder: Path) -> None:
    if fcntl is None:
        return
    for partial in folder.glob(_PARTIAL.format("*")):
        with suppress(OSError), partial.open("rb") as file:
            fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
            partial.unlink()
