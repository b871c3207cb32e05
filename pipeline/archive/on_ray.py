"""Workers as actors of a Ray cluster. Ray places and starts them; only the ledger records which files are done.

The nodes need this project, installed with the `ray` extra, and the folders of videos and results under the same paths. An
actor requests as many CPUs as it has threads, one GPU if the model or the detector is an engine, and WORKER_BYTES of memory, so
that Ray does not put too many of them on a node.
"""

from __future__ import annotations

import socket
from collections.abc import Callable
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from convnextpose.errors import PoseError, RuntimeUnavailableError, install_command
from engines.manifest import is_engine
from pipeline.archive.pool import LostJob, WorkerPool
from pipeline.archive.worker import Job, Outcome, Worker
from pipeline.run import RunConfig

WORKER_BYTES = 1 << 30
"""Memory that a worker requests from the cluster, bytes. With the default weights it needs 0.4 GB at 640x480 px
(docs/archives.md)."""

THREADS = 2
"""Default number of threads of a worker's runtime, and of CPUs that it requests."""

LOCAL = "local"
"""The address that starts a cluster on this machine only, for this run."""

REACHABLE_TIMEOUT_S = 5.0
_OPENED = "opened"


class _Actor:
    """The actor on a node: its worker is opened by a call, so that errors come back as results."""

    def __init__(self, config: RunConfig) -> None:
        self._config = config
        self._worker: Worker | None = None

    def open(self) -> tuple[type[PoseError], str] | str:
        try:
            self._worker = Worker(self._config)
        except PoseError as error:
            return type(error), str(error)
        return _OPENED

    def do(self, job: Job) -> Outcome:
        assert self._worker is not None
        return self._worker.do(job)


@dataclass
class _Member:
    actor: Any
    task: Any  # its current call: `open` at first, then a job; None while it waits for a job
    job: Job | None = None


def _check_reachable(address: str) -> None:
    """Check whether anything listens at HOST:PORT: Ray itself would try for minutes.

    Raises:
        OSError: nothing does.
    """
    host, _, port = address.rpartition("://")[2].rpartition(":")
    if host and port.isdigit():
        socket.create_connection((host.strip("[]"), int(port)), REACHABLE_TIMEOUT_S).close()


def ray_pool(address: str, workers: int | None = None) -> Callable[[RunConfig, int], WorkerPool]:
    """A function that opens a pool on a cluster, for `ArchiveRun`.

    Args:
        address: as `ray.init` takes it, or LOCAL.
        workers: how many; None for as many as the cluster has room for.
    """

    def open_pool(config: RunConfig, most: int) -> WorkerPool:
        return RayPool(config, address, most, workers)

    return open_pool


class RayPool:
    """A `WorkerPool` of actors in a cluster.

    Args:
        config: the configuration for each file.
        address: as `ray.init` takes it, or LOCAL; if this process has already joined a cluster, that cluster is used.
        most: the largest number of workers: that of the files.
        workers: how many; None for as many as the cluster has room for.

    Raises:
        RuntimeUnavailableError: Ray is not installed, there is no such cluster, or it has no room for a single worker.
    """

    def __init__(self, config: RunConfig, address: str, most: int, workers: int | None = None) -> None:
        try:
            import ray
        except ImportError as error:
            raise RuntimeUnavailableError(f"--ray needs Ray: {error}; {install_command('ray')}") from error
        self._ray = ray
        self._began_ray = not ray.is_initialized()
        if self._began_ray:
            try:
                _check_reachable(address)
                ray.init(address=None if address == LOCAL else address, log_to_driver=False, include_dashboard=False)
            except (OSError, ValueError, RuntimeError) as error:
                reason = " ".join(str(error).split())
                raise RuntimeUnavailableError(
                    f"expected a Ray cluster at {address}, but it cannot be joined: {reason}"
                ) from error
        threads = None if is_engine(Path(config.model)) else config.threads or THREADS
        self._config = replace(config, threads=threads)
        self._needs = {"num_cpus": threads or 1, "num_gpus": int(config.has_engine), "memory": WORKER_BYTES}
        self._class = ray.remote(max_restarts=0, **self._needs)(_Actor)
        count = workers or self._fitting()
        if count < 1:
            told = f"expected a cluster with room for a worker ({self._needs_text()}), received one with {self._resources()}"
            self._leave()
            raise RuntimeUnavailableError(told)
        self._members = [self._start_worker() for _ in range(min(count, most))]

    @property
    def free_slots(self) -> int:
        """How many jobs can be started now."""
        return sum(member.task is None for member in self._members)

    @property
    def running(self) -> dict[int, float]:
        """The jobs in progress by number; their finished shares are not known here."""
        return {member.job.number: 0.0 for member in self._members if member.job is not None}

    def submit(self, job: Job) -> None:
        """Give a job to a worker; there must be a free slot."""
        member = next(member for member in self._members if member.task is None)
        member.job, member.task = job, member.actor.do.remote(job)

    def wait(self, timeout_s: float) -> list[Outcome | LostJob]:
        """The outcomes of finished jobs, as soon as there are any, or an empty list after some time.

        Raises:
            PoseError: the models cannot be opened.
        """
        tasks = {member.task: member for member in self._members if member.task is not None}
        done, _ = self._ray.wait(list(tasks), num_returns=1, timeout=timeout_s) if tasks else ([], [])
        results: list[Outcome | LostJob] = []
        for task in done:
            member = tasks[task]
            job, member.task, member.job = member.job, None, None
            try:
                message = self._ray.get(task)
            except self._ray.exceptions.RayError as error:
                fresh = self._start_worker()
                member.actor, member.task = fresh.actor, fresh.task
                if job is not None:
                    results.append(LostJob(job, f"its worker was lost ({type(error).__name__})"))
                continue
            if isinstance(message, Outcome):
                results.append(message)
            elif message != _OPENED:
                kind, text = message
                raise kind(text)
        return results

    def close(self) -> None:
        """End the workers, and leave the cluster."""
        for member in self._members:
            self._ray.kill(member.actor)
        self._members.clear()
        self._leave()

    def _start_worker(self) -> _Member:
        actor = self._class.remote(self._config)
        return _Member(actor, actor.open.remote())

    def _fitting(self) -> int:
        """How many workers fit on the nodes, counted for each node separately."""
        names = {"num_cpus": "CPU", "num_gpus": "GPU", "memory": "memory"}
        nodes = [node["Resources"] for node in self._ray.nodes() if node["Alive"]]
        return sum(
            min(int(node.get(names[what], 0) // count) for what, count in self._needs.items() if count) for node in nodes
        )

    def _resources(self) -> str:
        found = self._ray.cluster_resources()
        return f"{found.get('CPU', 0):g} CPUs, {found.get('GPU', 0):g} GPUs and {found.get('memory', 0) / 1e9:.1f} GB in all"

    def _needs_text(self) -> str:
        gpu = " and a GPU" if self._needs["num_gpus"] else ""
        return f"{self._needs['num_cpus']} CPUs{gpu} and {WORKER_BYTES / 1e9:.1f} GB on one node"

    def _leave(self) -> None:
        if self._began_ray:
            self._ray.shutdown()
