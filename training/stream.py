"""Rendered pictures for training: chunk k depends only on the plan and k, so that an interrupted run can resume exactly by
rendering the last chunks again."""

from __future__ import annotations

import signal
from concurrent.futures import Future, ProcessPoolExecutor
from multiprocessing import get_context
from pathlib import Path
from typing import Protocol

import torch
from torch import Tensor

from training.dataset import Renderer, seeded
from training.plan import Plan


class Chunks(Protocol):
    """Renders the chunks for one kind of training; made from a device, the side of the pictures (px) and the data folder."""

    label_shape: tuple[int, ...]
    """Shape of a picture's labels."""

    def __init__(self, device: torch.device | str, size: int, data: Path | None = None) -> None: ...

    def render(self, plan: Plan, number: int) -> tuple[Tensor, Tensor]:
        """Images [C, S, S, 3] uint8 and labels [C, *label_shape] of a chunk."""
        ...


class PoseChunks:
    """Crops and their joints."""

    label_shape: tuple[int, ...] = (18, 3)

    def __init__(self, device: torch.device | str, size: int, data: Path | None = None) -> None:
        self._renderer = Renderer(device, size, data=data)

    def render(self, plan: Plan, number: int) -> tuple[Tensor, Tensor]:
        """Images [C, S, S, 3] uint8 and joints [C, 18, 3] of a chunk."""
        return render_chunk(self._renderer, plan, number)


def render_chunk(renderer: Renderer, plan: Plan, number: int) -> tuple[Tensor, Tensor]:
    """Images [C, S, S, 3] uint8 and joints [C, 18, 3] of a chunk."""
    generator, share = seeds_of(renderer.body.device, plan, number)
    crops = renderer.batch(plan.chunk, share * plan.hardest(number), generator, **plan.shares())
    return crops.images, crops.joints


def seeds_of(device: torch.device, plan: Plan, number: int) -> tuple[torch.Generator, float]:
    """A chunk's generator and its share of the hardest difficulty."""
    share = torch.rand(1, generator=seeded(device, plan.seed, 1, number), device=device).item()
    return seeded(device, plan.seed, 0, number), share


_chunks: Chunks | None = None
"""In a worker process: the renderer of its chunks."""


def _start_worker(kind: type[Chunks], size: int, data: Path | None) -> None:
    global _chunks
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # the parent handles Ctrl-C
    torch.set_num_threads(1)
    _chunks = kind("cpu", size, data)


def _work(plan: Plan, number: int) -> tuple:
    assert _chunks is not None
    return tuple(tensor.numpy() for tensor in _chunks.render(plan, number))


class Stream:
    """The newest chunks, in a ring on the training device; a context manager."""

    def __init__(
        self,
        plan: Plan,
        device: torch.device,
        workers: int = 0,
        kind: type[Chunks] = PoseChunks,
        data: Path | None = None,
    ) -> None:
        """Render on the device itself, or with `workers` processes of one thread each on the CPU."""
        self.plan, self.device = plan, device
        self.images = torch.empty(plan.kept * plan.chunk, plan.size, plan.size, 3, dtype=torch.uint8, device=device)
        self.labels = torch.empty(plan.kept * plan.chunk, *kind.label_shape, device=device)
        self.rendered = 0
        self._pending: dict[int, Future] = {}
        self._workers = workers
        self._chunks = None if workers else kind(device, plan.size, data)
        spawn = get_context("spawn")
        self._pool = ProcessPoolExecutor(workers, spawn, _start_worker, (kind, plan.size, data)) if workers else None

    def __enter__(self) -> Stream:
        return self

    def __exit__(self, *_: object) -> None:
        if self._pool is not None:
            self._pool.shutdown(wait=True, cancel_futures=True)

    def advance(self, chunks: int) -> None:
        """Keep the newest of the first `chunks` chunks."""
        first = max(self.rendered, chunks - self.plan.kept)
        for number in range(first, chunks):
            images, labels = self._chunk(number)
            start = number % self.plan.kept * self.plan.chunk
            self.images[start : start + self.plan.chunk] = images.to(self.device)
            self.labels[start : start + self.plan.chunk] = labels.to(self.device)
        self.rendered = max(self.rendered, chunks)

    def __len__(self) -> int:
        """Number of pictures kept."""
        return min(self.rendered, self.plan.kept) * self.plan.chunk

    def _chunk(self, number: int) -> tuple[Tensor, Tensor]:
        if self._pool is None:
            assert self._chunks is not None
            return self._chunks.render(self.plan, number)
        for ahead in range(number, number + 1 + 2 * self._workers):
            if ahead not in self._pending:
                self._pending[ahead] = self._pool.submit(_work, self.plan, ahead)
        images, labels = self._pending.pop(number).result()
        return torch.from_numpy(images), torch.from_numpy(labels)
