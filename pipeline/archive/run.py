"""The coordinator of an archive: it assigns jobs, puts complete results in place, and is the only writer of the ledger.

A file's results are made in a folder in `.partial`, and moved to their place in one step when they are complete. Then the line
is written to the ledger. If the run is killed before the move, the job is done again. If it is killed between move and line,
the results are found in their place, with a description of their input, and only the line is added. So nothing is lost and
nothing is done twice.
"""

from __future__ import annotations

import hashlib
import itertools
import json
import math
import shutil
import threading
import time
from collections import Counter, deque
from collections.abc import Callable
from concurrent.futures import Future, ThreadPoolExecutor, wait
from dataclasses import asdict, dataclass, field, fields, replace
from datetime import datetime, timezone
from enum import Enum
from pathlib import Path
from typing import Any

from convnextpose import weights
from convnextpose.errors import ModelError, SinkError
from engines.sessions.triton import is_served
from pipeline.archive.ledger import DONE, FAILED, SAME, UNREADABLE, JobLedger, JobRecord
from pipeline.archive.pool import LostJob, WorkerPool, local_pool
from pipeline.archive.videos import FoundVideos, Video, content_hash, find_videos
from pipeline.archive.worker import JOB_NAME, Job, Outcome
from pipeline.formats.files import make_folder
from pipeline.models import detector_file, open_model
from pipeline.run import RunConfig

PARTIAL = ".partial"
MAX_ATTEMPTS = 2
"""How often a file whose worker dies is tried."""

HASHED_AHEAD = 4
"""Number of files that are hashed before a worker is free for them."""

NOT_SETTINGS = (
    "sources", "model", "out", "overwrite", "trace", "threads", "views", "live", "loop", "segment_s", "timeouts", "boxes",
    "random_weights",
)  # fmt: skip
"""Fields of a `RunConfig` that do not change an archive's results, or that it refuses."""


@dataclass
class Progress:
    """The progress of an archive; its run updates it.

    Attributes:
        files: how many there are.
        finished_before: how many were finished by earlier runs.
        counts: how many files this run has finished, by status.
        frames: frames with results of this run.
        remaining_bytes: total size of the files that are not finished.
        done_bytes: total size of the files that workers have finished.
        in_progress: how many files are in progress.
        in_progress_bytes: size of the finished part of these, if known.
        began: when the first job was assigned, by `time.monotonic`, s; None before.
    """

    files: int = 0
    finished_before: int = 0
    counts: Counter[str] = field(default_factory=Counter)
    frames: int = 0
    remaining_bytes: int = 0
    done_bytes: int = 0
    in_progress: int = 0
    in_progress_bytes: float = 0.0
    began: float | None = None

    @property
    def finished(self) -> int:
        """How many files are finished."""
        return self.finished_before + self.counts.total()

    @property
    def remaining_s(self) -> float | None:
        """The estimated remaining time, s, from the bytes processed so far; None before there are any."""
        worked = self.done_bytes + self.in_progress_bytes
        if self.began is None or not worked:
            return None
        return (time.monotonic() - self.began) * max(0.0, self.remaining_bytes - self.in_progress_bytes) / worked


@dataclass(frozen=True)
class ArchiveSummary:
    """The outcome of an archive's run.

    Attributes:
        found: the files that were found.
        progress: the counts.
        problems: the records of this run and of earlier ones that are not DONE, except SAME.
        same: how many files have the same content as another.
        seconds: how long the run took.
    """

    found: FoundVideos
    progress: Progress
    problems: tuple[JobRecord, ...]
    same: int
    seconds: float


class ArchiveRun:
    """An archive's run. Call `run` once.

    Args:
        config: its `sources` are the folders, and `out` is the folder for all results; the rest applies to each file.
        open_pool: makes the workers, given the config and the number of files; None for processes of this machine.

    Attributes:
        progress: the progress so far.

    Raises:
        ValueError: the config has settings that an archive does not support: boxes, views, live sources, a trace.
        SinkError: it has no folder for the results.
        ModelError: there is no such model.
    """

    def __init__(self, config: RunConfig, open_pool: Callable[[RunConfig, int], WorkerPool] | None = None) -> None:
        if config.boxes or config.views or config.live or config.loop or config.trace or config.random_weights:
            raise ValueError("expected an archive's config without boxes, views, live sources, a trace or random weights")
        if config.out is None:
            raise SinkError("expected a folder for the results of the archive, received none")
        self.progress = Progress()
        self._out = config.out.resolve()
        self._folders = [Path(entry.uri) for entry in config.source_list]
        self._head = {"model": model_record(config), "settings": settings_record(config)}
        self._config = replace(config, overwrite=True)  # a partial folder contains nothing that needs protection
        self._open_pool = open_pool or local_pool()
        self._numbers = itertools.count()
        self._jobs: dict[int, tuple[Video, str, str]] = {}
        self._waiting: dict[str, list[Video]] = {}
        self._tries: Counter[Path] = Counter()
        self._processed: set[Path] = set()

    def run(self, on_progress: Callable[[Progress], None] = lambda progress: None) -> ArchiveSummary:
        """Process the files that are not finished yet.

        Args:
            on_progress: called several times a second with the progress.

        Raises:
            SourceError: a folder does not exist.
            SinkError: results or ledger cannot be written, belong to other settings, or are being written by another run.
            PoseError: the models cannot be opened.
        """
        began = time.monotonic()
        found = find_videos(self._folders, exclude=self._out)
        make_folder(self._out, "the results")
        self._ledger = JobLedger(self._out, self._head, settings_record(RunConfig("")))
        try:
            shutil.rmtree(self._out / PARTIAL, ignore_errors=True)
            self.progress.files = self.progress.finished_before = len(found.videos)
            while todo := [v for v in found.videos if v.path not in self._processed and not self._is_settled(v)]:
                self._processed.update(video.path for video in todo)
                self.progress.finished_before -= len(todo)
                self.progress.remaining_bytes = sum(video.size_bytes for video in todo)
                # A file may replace another file's results, so the ledger is read again afterwards.
                self._work_off(deque(todo), on_progress)
            on_progress(self.progress)
            records = [r for video in found.videos if (r := self._ledger.record_of(video.path)) is not None]
        finally:
            self._ledger.close()
            shutil.rmtree(self._out / PARTIAL, ignore_errors=True)
        return ArchiveSummary(
            found,
            self.progress,
            tuple(record for record in records if record.status not in (DONE, SAME)),
            sum(record.status == SAME for record in records),
            time.monotonic() - began,
        )

    def _work_off(self, todo: deque[Video], on_progress: Callable[[Progress], None]) -> None:
        ahead: deque[tuple[Video, Future[str]]] = deque()
        pool = self._open_pool(self._config, len(todo))
        hasher, stopped = ThreadPoolExecutor(1, thread_name_prefix="hash"), threading.Event()
        try:
            while todo or ahead or self._jobs:
                while todo and len(ahead) < HASHED_AHEAD:
                    video = todo.popleft()
                    ahead.append((video, hasher.submit(content_hash, video.path, stopped.is_set)))
                while ahead and pool.free_slots and ahead[0][1].done():
                    self._begin(*ahead.popleft(), pool)
                if self._jobs or not pool.free_slots:  # no slot is free while all workers of a cluster are opening their models
                    for message in pool.wait(0.02 if ahead and pool.free_slots else 0.5):
                        todo.extendleft(self._end(message))
                elif ahead:
                    wait([ahead[0][1]], 0.5)
                self._note_progress(pool)
                on_progress(self.progress)
        finally:
            stopped.set()
            pool.close()
            hasher.shutdown(cancel_futures=True)

    def _begin(self, video: Video, hashed: Future[str], pool: WorkerPool) -> None:
        """Start a file's job, unless its content is settled or in progress already."""
        try:
            sha256 = hashed.result()
        except OSError as error:
            self._settle(video, "", Outcome(-1, FAILED, f"{video.path} cannot be read: {error.strerror}"), "")
            return
        known = self._ledger.results_of(sha256)
        if known is not None and known.file != str(video.path) and self._has_results(known):
            self._settle_same(video, known)
            return
        if sha256 in self._waiting:
            self._waiting[sha256].append(video)
            return
        place = self._place_of(video)
        if (whole := _read_job(self._out / place)) is not None and whole.get("sha256") == sha256:
            self._settle(video, sha256, _outcome_of(whole), place)  # a run was killed before it could write the line
            return
        partial = self._out / PARTIAL / f"{next(self._numbers)}-{time.time_ns():x}"
        job = Job(int(partial.name.partition("-")[0]), video.path, video.size_bytes, video.mtime_ns, sha256, partial)
        self._jobs[job.number] = video, sha256, place
        self._waiting[sha256] = []
        self._tries[video.path] += 1
        self.progress.began = self.progress.began or time.monotonic()
        pool.submit(job)

    def _end(self, message: Outcome | LostJob) -> list[Video]:
        """Record the outcome of a job; returns the files that must be tried again."""
        number = message.job.number if isinstance(message, LostJob) else message.number
        video, sha256, place = self._jobs.pop(number)
        waiting = self._waiting.pop(sha256)
        partial = next(iter((self._out / PARTIAL).glob(f"{number}-*")), None)
        if isinstance(message, LostJob):
            if partial is not None:
                shutil.rmtree(partial, ignore_errors=True)
            if self._tries[video.path] < MAX_ATTEMPTS:
                return [*waiting, video]
            message = Outcome(number, FAILED, f"{message.reason}, {self._tries[video.path]} times")
        elif message.status not in (FAILED, UNREADABLE):
            message = self._put_in_place(message, partial, place)
        if partial is not None:
            shutil.rmtree(partial, ignore_errors=True)
        self.progress.done_bytes += video.size_bytes
        self._settle(video, sha256, message, place)
        if message.status == FAILED:
            return waiting
        known = self._ledger.results_of(sha256)
        assert known is not None
        for other in waiting:
            self._settle_same(other, known)
        return []

    def _put_in_place(self, outcome: Outcome, partial: Path | None, place: str) -> Outcome:
        """Move complete results to their place; older results there were made from an earlier content of the same file."""
        target = self._out / place
        if partial is None or not (partial / JOB_NAME).is_file():
            return replace(outcome, status=FAILED, reason=f"its results are not in {self._out}, which all workers must share")
        try:
            if target.exists():
                target.rename(partial.with_name(f"{partial.name}-old"))
            target.parent.mkdir(parents=True, exist_ok=True)
            partial.rename(target)
            shutil.rmtree(partial.with_name(f"{partial.name}-old"), ignore_errors=True)
        except OSError as error:
            return replace(outcome, status=FAILED, reason=f"its results cannot be put into {target}: {error.strerror}")
        return outcome

    def _settle(self, video: Video, sha256: str, outcome: Outcome, place: str) -> None:
        has_results = outcome.status not in (FAILED, UNREADABLE)
        self._add(
            video,
            JobRecord(
                str(video.path),
                video.size_bytes,
                video.mtime_ns,
                sha256,
                outcome.status,
                place if has_results else "",
                outcome.reason,
                outcome.frames if has_results else 0,
                outcome.frames_with_a_pose if has_results else 0,
                outcome.tracks if has_results else 0,
                outcome.seconds,
            ),
        )
        self.progress.frames += outcome.frames if has_results else 0

    def _settle_same(self, video: Video, known: JobRecord) -> None:
        told = f"the same content as {known.file}"
        self._add(video, JobRecord(str(video.path), video.size_bytes, video.mtime_ns, known.sha256, SAME, known.place, told))

    def _add(self, video: Video, record: JobRecord) -> None:
        now = datetime.now(timezone.utc).isoformat(timespec="seconds")
        self._ledger.add(replace(record, utc=now))
        self.progress.counts[record.status] += 1
        self.progress.remaining_bytes -= video.size_bytes

    def _is_settled(self, video: Video) -> bool:
        """Whether an earlier run has settled a file, the file is unchanged, and its results still exist."""
        record = self._ledger.record_of(video.path)
        if record is None or not record.is_final:
            return False
        if (record.size_bytes, record.mtime_ns) != (video.size_bytes, video.mtime_ns):
            return False
        known = self._ledger.results_of(record.sha256)
        return known is not None and self._has_results(known)

    def _has_results(self, record: JobRecord) -> bool:
        return not record.has_results or (self._out / record.place / JOB_NAME).is_file()

    def _place_of(self, video: Video) -> str:
        """The folder of a file's results: the preferred one, with a number if it belongs to another file."""
        record = self._ledger.record_of(video.path)
        if record is not None and record.has_results:
            return record.place
        taken = {place.casefold() for owner, _, place in self._jobs.values() if owner.path != video.path}
        place = video.place
        for number in itertools.count(2):
            if self._ledger.owner_of(place) in (None, str(video.path)) and place.casefold() not in taken:
                return place
            place = f"{video.place}-{number}"
        raise AssertionError("unreachable")

    def _note_progress(self, pool: WorkerPool) -> None:
        running = pool.running
        self.progress.in_progress = len(running)
        self.progress.in_progress_bytes = sum(
            share * self._jobs[number][0].size_bytes for number, share in running.items() if number in self._jobs
        )


def model_record(config: RunConfig) -> dict[str, str]:
    """The networks that made the results: the model's name, and one hash over its files and the people detector's.

    For a served model, the hash covers its checkpoint's hash instead of files.

    Raises:
        ModelError: there is no such model or people detector.
        CheckpointError: a file of the package was changed.
        RuntimeUnavailableError: the server of a served model cannot be reached.
    """
    model, detector = config.model, detector_file(config.detector)
    if not detector.exists():
        raise ModelError(f"expected a people detector: {weights.DETECTOR_NAME} or a file, received {config.detector!r}")
    if is_served(config.runtime):
        with open_model(model, config.runtime) as served:
            told = f"{served.info.checkpoint_sha256} {served.info.precision} {content_hash(detector)}"
        return {"name": served.info.name, "sha256": hashlib.sha256(told.encode()).hexdigest()}
    if model.lower() in weights.names():
        files = [weights.load(model.lower()).safetensors]
    else:
        path = Path(model)
        if not path.exists():
            raise ModelError(
                f"expected a model: one of the default weights ({', '.join(weights.names())}) or a file, received {model!r}"
            )
        files = sorted(p for p in path.rglob("*") if p.is_file()) if path.is_dir() else [path]
    digest = hashlib.sha256()
    for file in (*files, detector):
        digest.update(content_hash(file).encode())
    return {"name": Path(model).name, "sha256": digest.hexdigest()}


def settings_record(config: RunConfig) -> dict[str, Any]:
    """The settings that the results depend on, as JSON values."""
    return {f.name: _plain(getattr(config, f.name)) for f in fields(config) if f.name not in NOT_SETTINGS}


def _plain(value: Any) -> Any:  # noqa: ANN401 (JSON's types)
    if isinstance(value, Enum):
        return value.value
    if isinstance(value, (str, bool, int, type(None))) or (isinstance(value, float) and math.isfinite(value)):
        return value
    if isinstance(value, (tuple, list)):
        return [_plain(item) for item in value]
    return asdict(value) if hasattr(value, "__dataclass_fields__") else str(value)


def _read_job(folder: Path) -> dict[str, Any] | None:
    """The description of the input in a folder of complete results; None if there is none."""
    try:
        found = json.loads((folder / JOB_NAME).read_text(encoding="utf-8"))
    except (OSError, ValueError):
        return None
    return found if isinstance(found, dict) else None


def _outcome_of(job: dict[str, Any]) -> Outcome:
    return Outcome(-1, job["status"], job["reason"], job["frames"], job["frames_with_a_pose"], job["tracks"])
