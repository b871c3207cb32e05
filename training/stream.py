"""Rendered crops for training: chunk k is a function of the plan and k alone, so that an interrupted run can be resumed
exactly by rendering the last chunks again."""

from __future__ import annotations

import signal
from concurrent.futures import Future, ProcessPoolExecutor
from multiprocessing import get_context

import torch
from torch import Tensor

from training.dataset import Renderer
from training.plan import Plan

_renderer: Renderer | None = None
"""In a worker process: its renderer."""


def render_chunk(renderer: Renderer, plan: Plan, number: int) -> tuple[Tensor, Tensor]:
    """Images [C, S, S, 3] uint8 and joints [C, 18, 3] of a chunk."""
    generator = renderer.generator(plan.seed, 0, number)
    share = torch.rand(1, generator=renderer.generator(plan.seed, 1, number), device=generator.device).item()
    crops = renderer.batch(plan.chunk, share * plan.hardest(number), generator)
    return crops.images, crops.joints


def _start_worker(size: int) -> None:
    global _renderer
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # Ctrl-C is the parent's to answer
    torch.set_num_threads(1)
    _renderer = Renderer("cpu", size)


def _work(plan: Plan, number: int) -> tuple:
    assert _renderer is not None
    return tuple(tensor.numpy() for tensor in render_chunk(_renderer, plan, number))


class Stream:
    """The newest chunks, in a ring on the training device; a context manager."""

    def __init__(self, plan: Plan, device: torch.device, workers: int = 0) -> None:
        """Render on the device itself, or with `workers` processes of one thread each on the CPU."""
        self.plan, self.device = plan, device
        self.images = torch.empty(plan.kept * plan.chunk, plan.size, plan.size, 3, dtype=torch.uint8, device=device)
        self.joints = torch.empty(plan.kept * plan.chunk, 18, 3, device=device)
        self.rendered = 0
        self._pending: dict[int, Future] = {}
        self._workers = workers
        self._renderer = None if workers else Renderer(device, plan.size)
        spawn = get_context("spawn")
        self._pool = ProcessPoolExecutor(workers, spawn, _start_worker, (plan.size,)) if workers else None

    def __enter__(self) -> Stream:
        return self

    def __exit__(self, *_: object) -> None:
        if self._pool is not None:
            self._pool.shutdown(wait=True, cancel_futures=True)

    def advance(self, chunks: int) -> None:
        """Hold the newest of the first `chunks` chunks."""
        first = max(self.rendered, chunks - self.plan.kept)
        for number in range(first, chunks):
            images, joints = self._chunk(number)
            start = number % self.plan.kept * self.plan.chunk
            self.images[start : start + self.plan.chunk] = images.to(self.device)
            self.joints[start : start + self.plan.chunk] = joints.to(self.device)
        self.rendered = max(self.rendered, chunks)

    def __len__(self) -> int:
        """Crops held."""
        return min(self.rendered, self.plan.kept) * self.plan.chunk

    def _chunk(self, number: int) -> tuple[Tensor, Tensor]:
        if self._pool is None:
            assert self._renderer is not None
            return render_chunk(self._renderer, self.plan, number)
        for ahead in range(number, number + 1 + 2 * self._workers):
            if ahead not in self._pending:
                self._pending[ahead] = self._pool.submit(_work, self.plan, ahead)
        images, joints = self._pending.pop(number).result()
        return torch.from_numpy(images), torch.from_numpy(joints)
