"""The ledger of jobs: the outcome of each file, as lines of JSON beside the results.

The first line has the model and the settings of the results. Every other line is the outcome of one file; if a file has several
lines, the last one counts. Only the coordinator writes the ledger, in complete lines, and holds a lock on it. An incomplete
line of a killed process is cut off when the ledger is opened again.
"""

from __future__ import annotations

import json
import os
from collections.abc import Mapping
from dataclasses import asdict, dataclass, fields
from pathlib import Path
from types import ModuleType
from typing import Any

from convnextpose.errors import SinkError

fcntl: ModuleType | None
try:
    import fcntl
except ImportError:  # Windows
    fcntl = None

NAME = "ledger.ndjson"
FORMAT = "convnextpose-archive/1"

DONE, DAMAGED, UNREADABLE, SAME, FAILED = "done", "damaged", "unreadable", "same", "failed"
"""The status of a file: it is complete; it has poses up to or around the damage; nothing in it can be read; another file has
the same content and the results; or an error that does not come from the file, so that the next run tries it again."""

STATUSES = (DONE, DAMAGED, UNREADABLE, SAME, FAILED)


@dataclass(frozen=True)
class JobRecord:
    """The outcome of one file.

    Attributes:
        file: its absolute path.
        size_bytes, mtime_ns: its size and modification time; a file with the same path, size and time is not hashed again.
        sha256: hash of its content, hexadecimal; empty if it could not be read at all.
        status: one of STATUSES.
        place: the folder of its results relative to that of all results; empty if it has none.
        reason: what is wrong, or for SAME the file that the results were made from.
        frames: frames with results.
        frames_with_a_pose: frames with at least one pose.
        tracks: number of tracked people.
        seconds: how long it took.
        utc: when it was finished, ISO 8601.
    """

    file: str
    size_bytes: int
    mtime_ns: int
    sha256: str
    status: str
    place: str = ""
    reason: str = ""
    frames: int = 0
    frames_with_a_pose: int = 0
    tracks: int = 0
    seconds: float = 0.0
    utc: str = ""

    @property
    def is_final(self) -> bool:
        """Whether later runs skip it."""
        return self.status != FAILED

    @property
    def has_results(self) -> bool:
        """Whether results were made from it; not for SAME, whose results are another file's."""
        return self.status in (DONE, DAMAGED)


_FIELDS = {field.name: field.type for field in fields(JobRecord)}
_TYPES: dict[str, tuple[type, ...]] = {"str": (str,), "int": (int,), "float": (int, float)}


class JobLedger:
    """The ledger of one folder of results. One process at a time has it open.

    Args:
        out: the folder of all results.
        head: the model and the settings of the results, as JSON values.
        defaults: the settings' defaults, for ledgers that are older than a setting.

    Raises:
        SinkError: it has another model or other settings, another run has it open, or it cannot be read or written.
    """

    def __init__(self, out: Path, head: Mapping[str, Any], defaults: Mapping[str, Any]) -> None:
        self.path = out / NAME
        self._by_file: dict[str, JobRecord] = {}
        self._by_content: dict[str, JobRecord] = {}
        self._places: dict[str, str] = {}
        try:
            flags = os.O_RDWR | os.O_CREAT | getattr(os, "O_BINARY", 0)
            self._file = os.fdopen(os.open(self.path, flags, 0o666), "r+b", buffering=0)
        except OSError as error:
            raise SinkError(f"expected a ledger of jobs at {self.path}, but it cannot be opened: {error.strerror}") from error
        try:
            self._lock()
            self._read(dict(head), defaults)
        except BaseException:
            self._file.close()
            raise

    def record_of(self, file: Path) -> JobRecord | None:
        """The last outcome of a file."""
        return self._by_file.get(str(file))

    def results_of(self, sha256: str) -> JobRecord | None:
        """The final outcome of a content, with or without results; None if there is none yet."""
        return self._by_content.get(sha256)

    def owner_of(self, place: str) -> str | None:
        """The file whose results are in a place; places that differ only in case count as equal."""
        return self._places.get(place.casefold())

    def add(self, record: JobRecord) -> None:
        """Write an outcome; it is on the disk when this returns.

        Raises:
            SinkError: it cannot be written.
        """
        self._write(asdict(record))
        self._keep(record)

    def close(self) -> None:
        """Close it, which releases the lock."""
        self._file.close()

    def _lock(self) -> None:
        if fcntl is None:
            return
        try:
            fcntl.flock(self._file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            raise SinkError(
                f"expected to be the only run that writes to {self.path.parent}, but another one does: wait for it, or choose "
                "another folder"
            ) from None
        except OSError:  # a file system without locks
            pass

    def _read(self, head: dict[str, Any], defaults: Mapping[str, Any]) -> None:
        *lines, rest = self._file.read().split(b"\n")
        if rest:  # an incomplete line of a process that was killed while writing
            self._file.truncate(self._file.tell() - len(rest))
            self._file.seek(0, os.SEEK_END)
        if not lines:
            self._write({"format": FORMAT, **head})
            return
        number = 1
        try:
            found = json.loads(lines[0])
            if found.pop("format", None) != FORMAT:
                raise ValueError(f"expected a header of {FORMAT}")
            for number, line in enumerate(lines[1:], 2):  # noqa: B007  # used in the error message
                self._keep(_parse(json.loads(line)))
        except (ValueError, KeyError, TypeError, AttributeError, RecursionError) as error:
            raise SinkError(
                f"expected a ledger of jobs that this project wrote, but line {number} of {self.path} is not one of its "
                f"lines: {error}; choose another folder for the results"
            ) from error
        self._compare(found, head, defaults)

    def _compare(self, found: dict[str, Any], head: dict[str, Any], defaults: Mapping[str, Any]) -> None:
        wanted = json.loads(json.dumps(head))
        if found.get("model") != wanted.get("model"):
            raise SinkError(
                f"expected results of the model {_short(wanted.get('model'))} in {self.path.parent}, but those there are of "
                f"{_short(found.get('model'))}: choose another folder"
            )
        before, now = {**json.loads(json.dumps(dict(defaults))), **found.get("settings", {})}, wanted.get("settings", {})
        for name in sorted(before.keys() | now.keys()):
            if before.get(name) != now.get(name):
                raise SinkError(
                    f"expected results with {name} {_value(now.get(name))} in {self.path.parent}, but those there are with "
                    f"{_value(before.get(name))}: choose another folder, or the same settings"
                )

    def _write(self, values: Mapping[str, Any]) -> None:
        line = json.dumps(values, separators=(",", ":"), allow_nan=False).encode() + b"\n"
        try:
            left = memoryview(line)
            while left:
                left = left[self._file.write(left) :]
            os.fsync(self._file.fileno())
        except OSError as error:
            raise SinkError(f"{self.path} cannot be written: {error.strerror}") from error

    def _keep(self, record: JobRecord) -> None:
        before = self._by_file.get(record.file)
        if before is not None and before.has_results:  # its content changed, or its results were missing
            self._by_content.pop(before.sha256, None)
        self._by_file[record.file] = record
        if record.has_results or (record.status == UNREADABLE and record.sha256):
            self._by_content[record.sha256] = record
        if record.has_results:
            self._places[record.place.casefold()] = record.file


def _parse(values: dict[str, Any]) -> JobRecord:
    for name, value in values.items():
        if name not in _FIELDS or not isinstance(value, _TYPES[str(_FIELDS[name])]) or isinstance(value, bool):
            raise ValueError(f"{name} is {value!r}")
    record = JobRecord(**values)
    if record.status not in STATUSES:
        raise ValueError(f"status is {record.status!r}")
    return record


def _value(setting: Any) -> str:  # noqa: ANN401 - any JSON
    """A setting as messages show it."""
    return "the default" if setting is None else json.dumps(setting)


def _short(model: object) -> str:
    if not isinstance(model, dict):
        return "an unknown model"
    return f"{model.get('name')} ({str(model.get('sha256'))[:12]})"
