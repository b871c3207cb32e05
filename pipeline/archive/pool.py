"""Workers as processes of this machine: each has its own models, and if one dies the others continue."""

from __future__ import annotations

import contextlib
import multiprocessing
import os
import signal
import threading
from collections.abc import Callable
from dataclasses import dataclass, replace
from multiprocessing.connection import Connection, wait
from multiprocessing.process import BaseProcess
from pathlib import Path
from typing import Protocol

from convnextpose.errors import PoseError, RuntimeUnavailableError
from engines.manifest import is_engine
from engines.session import usable_cores
from pipeline.archive.worker import Job, Outcome, Worker
from pipeline.run import RunConfig

JOIN_TIMEOUT_S = 5.0
MAX_IDLE_DEATHS = 10


@dataclass(frozen=True)
class LostJob:
    """A job whose worker died.

    Attributes:
        job: the job.
        reason: why it died, if known.
    """

    job: Job
    reason: str


class WorkerPool(Protocol):
    """Several workers that process jobs."""

    @property
    def free_slots(self) -> int:
        """How many jobs can be started now."""
        ...

    @property
    def running(self) -> dict[int, float]:
        """The jobs in progress by number, and the finished share of each if known, 0..1."""
        ...

    def submit(self, job: Job) -> None:
        """Give a job to a worker; there must be a free slot."""
        ...

    def wait(self, timeout_s: float) -> list[Outcome | LostJob]:
        """The outcomes of finished jobs, as soon as there are any, or an empty list after some time.

        Raises:
            PoseError: the models cannot be opened.
        """
        ...

    def close(self) -> None:
        """End the workers, also those in the middle of a job."""
        ...


def local_pool(workers: int | None = None) -> Callable[[RunConfig, int], WorkerPool]:
    """A function that opens a pool on this machine, for `ArchiveRun`.

    Args:
        workers: how many; None for half of the cores, or one for an engine, because more do not make a GPU faster. The cores
            are divided among them, unless the config says how many threads each has.
    """

    def open_pool(config: RunConfig, most: int) -> WorkerPool:
        cores = usable_cores()
        count = min(workers or (1 if config.has_engine else max(1, cores // 2)), most)
        threads = None if is_engine(Path(config.model)) else config.threads or max(1, cores // count)
        return LocalPool(replace(config, threads=threads), count)

    return open_pool


@dataclass
class _Member:
    process: BaseProcess
    connection: Connection
    job: Job | None = None
    share: float = 0.0


class LocalPool:
    """A `WorkerPool` of processes on this machine. Programs that use it need the guard `if __name__ == "__main__"`.

    Args:
        config: the configuration for each file.
        count: how many workers.
    """

    def __init__(self, config: RunConfig, count: int) -> None:
        self._config = config
        self._idle_deaths = 0
        self._context = multiprocessing.get_context("spawn")  # libraries with threads do not survive a fork
        self._members = [self._start_worker() for _ in range(count)]

    @property
    def free_slots(self) -> int:
        """How many jobs can be started now; a job waits until its worker's models are open."""
        return sum(member.job is None for member in self._members)

    @property
    def running(self) -> dict[int, float]:
        """The jobs in progress by number, and the finished share of each if known, 0..1."""
        return {member.job.number: member.share for member in self._members if member.job is not None}

    def submit(self, job: Job) -> None:
        """Give a job to a worker; there must be a free slot."""
        member = next(member for member in self._members if member.job is None)
        member.job, member.share = job, 0.0
        with contextlib.suppress(OSError):  # the worker has died: `wait` reports it
            member.connection.send(job)

    def wait(self, timeout_s: float) -> list[Outcome | LostJob]:
        """The outcomes of finished jobs, as soon as there are any, or an empty list after some time.

        Raises:
            PoseError: the models cannot be opened.
        """
        results: list[Outcome | LostJob] = []
        ready = wait([member.connection for member in self._members], timeout_s)
        for member in [member for member in self._members if member.connection in ready]:
            try:
                message = member.connection.recv()
            except (EOFError, OSError):
                lost = self._replace(member)
                results += [lost] if lost is not None else []
                continue
            if isinstance(message, float):
                member.share = message
            elif isinstance(message, Outcome):
                member.job = None
                results.append(message)
            else:
                kind, text = message
                raise kind(text)
        return results

    def close(self) -> None:
        """End the workers, also those in the middle of a job."""
        for member in self._members:
            member.process.kill()
            member.connection.close()
        for member in self._members:
            member.process.join(JOIN_TIMEOUT_S)
        self._members.clear()

    def _start_worker(self) -> _Member:
        ours, theirs = self._context.Pipe()
        process = self._context.Process(target=_work, args=(theirs, self._config), name="archive worker", daemon=True)
        process.start()
        theirs.close()
        return _Member(process, ours)

    def _replace(self, member: _Member) -> LostJob | None:
        """Replace a worker that died with a new one; returns the job that was lost, if any."""
        member.process.join(JOIN_TIMEOUT_S)
        code = member.process.exitcode
        reason = f"its worker ended with exit code {code}"
        if code is not None and code < 0:
            name = signal.Signals(-code).name if -code in set(signal.Signals) else f"signal {-code}"
            reason = f"its worker was killed by {name}"
            if name == "SIGKILL":
                reason += ", as the system does when memory runs out"
        member.connection.close()
        job = member.job
        if job is None:
            self._idle_deaths += 1
            if self._idle_deaths > MAX_IDLE_DEATHS:
                raise RuntimeUnavailableError(f"expected idle workers to stay alive, but again and again {reason}")
        fresh = self._start_worker()
        member.process, member.connection, member.job, member.share = fresh.process, fresh.connection, None, 0.0
        return None if job is None else LostJob(job, reason)


def _work(connection: Connection, config: RunConfig) -> None:
    """A worker's process: receives jobs, and sends finished shares and outcomes, until the coordinator ends."""
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # the coordinator handles Ctrl-C
    threading.Thread(target=_end_with_the_coordinator, daemon=True).start()
    try:
        worker = Worker(config)
    except PoseError as error:
        connection.send((type(error), str(error)))
        return
    with contextlib.suppress(EOFError, OSError):
        while True:
            connection.send(worker.do(connection.recv(), connection.send))


def _end_with_the_coordinator() -> None:
    """End at once when the coordinator ends, for whatever reason: nobody would use this worker's results."""
    parent = multiprocessing.parent_process()
    if parent is not None:
        wait([parent.sentinel])
        os._exit(1)
