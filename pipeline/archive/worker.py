"""One worker: it opens its models once, then processes one file after another into a partial folder."""

from __future__ import annotations

import json
import os
import time
from collections.abc import Callable
from dataclasses import asdict, dataclass, replace
from pathlib import Path

from convnextpose.errors import PoseError, SourceError, StageError
from pipeline.archive.ledger import DAMAGED, DONE, FAILED, UNREADABLE
from pipeline.models import Models, open_models
from pipeline.run import RunConfig, open_pipeline
from pipeline.streams import Pipeline

JOB_NAME = "job.json"
"""Name of the file in each folder of results that says what they were made from. A folder that has it is complete."""

PROGRESS_INTERVAL_S = 1.0


@dataclass(frozen=True)
class Job:
    """A file to work on.

    Attributes:
        number: number of this attempt within the run.
        path: the file.
        size_bytes, mtime_ns: its size and modification time when it was hashed.
        sha256: hash of its content, hexadecimal.
        partial: the folder that its results go to; nothing else is in it.
    """

    number: int
    path: Path
    size_bytes: int
    mtime_ns: int
    sha256: str
    partial: Path


@dataclass(frozen=True)
class Outcome:
    """The outcome of a job.

    Attributes:
        number: the job's number.
        status: DONE, DAMAGED, UNREADABLE or FAILED.
        reason: what is wrong; empty if nothing is.
        frames, frames_with_a_pose, tracks: the numbers of these in its results.
        seconds: how long it took.
    """

    number: int
    status: str
    reason: str = ""
    frames: int = 0
    frames_with_a_pose: int = 0
    tracks: int = 0
    seconds: float = 0.0


class Worker:
    """Works on jobs, one after another, with the same models.

    Args:
        config: the configuration for each file; sources and folder come from the jobs.

    Raises:
        PoseError: the models cannot be opened.
    """

    def __init__(self, config: RunConfig) -> None:
        self._config = config
        self._models: Models = open_models(
            config.model,
            config.runtime,
            precision=config.precision,
            threads=config.threads,
            detector=config.detector,
            person=config.detector_class,
        )

    def do(self, job: Job, on_progress: Callable[[float], None] = lambda share: None) -> Outcome:
        """Process one file. Errors of the file are in the outcome.

        Args:
            job: the file.
            on_progress: called about once a second with the finished share of its frames, 0..1, if their number is known.
        """
        began = time.monotonic()
        try:
            outcome = self._pose(job, on_progress)
        except Exception as error:  # noqa: BLE001  # a worker's top level: one bad file never stops the others
            reason = str(error) if isinstance(error, PoseError) else f"{type(error).__name__}: {error}"
            outcome = Outcome(job.number, FAILED, reason)
        return replace(outcome, seconds=round(time.monotonic() - began, 3))

    def close(self) -> None:
        """Close the models."""
        self._models.close()

    def _pose(self, job: Job, on_progress: Callable[[float], None]) -> Outcome:
        try:
            pipeline = open_pipeline(replace(self._config, sources=job.path, out=job.partial), self._models)
        except SourceError as error:
            return Outcome(job.number, UNREADABLE, str(error))
        ended_by = _run(pipeline, on_progress)
        (stream,) = pipeline.streams
        counts = stream.ledger.counts()
        outcome = Outcome(
            job.number,
            DONE,
            frames=counts.posed,
            frames_with_a_pose=counts.with_person,
            tracks=len(stream.people.all()),
        )
        if ended_by is not None and not isinstance(ended_by.__cause__, SourceError):
            return replace(outcome, status=FAILED, reason=str(ended_by))
        state = job.path.stat()
        if (state.st_size, state.st_mtime_ns) != (job.size_bytes, job.mtime_ns):
            return replace(outcome, status=FAILED, reason="it changed while it was read: is it still being recorded?")
        reasons = [] if ended_by is None else [str(ended_by.__cause__)]
        reasons += [f"{count} frames: {reason}" for reason, count in counts.failures]
        if reasons:
            outcome = replace(outcome, status=DAMAGED if counts.posed else UNREADABLE, reason="; ".join(reasons[:3]))
        elif not counts.posed:
            return replace(outcome, status=UNREADABLE, reason="it has no frames")
        if outcome.status != UNREADABLE:
            record = {"source": str(job.path), "sha256": job.sha256, **asdict(outcome)}
            del record["number"], record["seconds"]
            (job.partial / JOB_NAME).write_text(json.dumps(record, indent=2) + "\n", encoding="utf-8")
            _flush(job.partial)
        return outcome


def _run(pipeline: Pipeline, on_progress: Callable[[float], None]) -> StageError | None:
    """Run a pipeline to its end; returns the error that ended it early, or None."""
    total = pipeline.header.frame_count
    told = time.monotonic()
    with pipeline:
        try:
            for done, _ in enumerate(pipeline, 1):
                if total and time.monotonic() - told >= PROGRESS_INTERVAL_S:
                    told = time.monotonic()
                    on_progress(min(1.0, done / total))
        except StageError as error:
            return error
    return pipeline.error


def _flush(folder: Path) -> None:
    """Flush everything in a folder to the disk, so that a power cut cannot leave a complete folder of empty files."""
    for path in (*(p for p in folder.rglob("*") if p.is_file()), folder):
        try:
            opened = os.open(path, os.O_RDONLY)
        except OSError:  # Windows does not open folders
            continue
        try:
            os.fsync(opened)
        except OSError:  # nor does it flush files that are open for reading
            pass
        finally:
            os.close(opened)
