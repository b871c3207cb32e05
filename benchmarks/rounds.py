"""Shared code of benchmarks with alternating runs: the order of rounds, ratios of figures, and timed processes."""

from __future__ import annotations

import os
import resource
import statistics
import subprocess
import time
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TypeVar

T = TypeVar("T")


@dataclass(frozen=True)
class Finished:
    """A process that has finished.

    Attributes:
        wall_s: from its start to its end, s.
        cpu_s: CPU time of all its threads, and of the processes that it waited for, s.
        output: its output.
    """

    wall_s: float
    cpu_s: float
    output: str


def by_turns(things: Sequence[T], rounds: int) -> Iterator[tuple[int, T]]:
    """Each thing once in each round, in every other round in reverse order, so that a machine's drift affects all alike."""
    for number in range(rounds):
        yield from ((number, thing) for thing in (reversed(things) if number % 2 else things))


def ratios(of: Sequence[float], to: Sequence[float]) -> list[float]:
    """The first figure divided by the second, in each round."""
    return [a / b for a, b in zip(of, to, strict=True)]


def in_words(values: Sequence[float]) -> str:
    """Ratios as text: their median and, for several rounds, each of them."""
    each = f"  (each round: {', '.join(f'{value:.2f}' for value in values)})" if len(values) > 1 else ""
    return f"{statistics.median(values):.2f}{each}"


def run_process(command: Sequence[str | Path], folder: Path, variables: Mapping[str, str] | None = None) -> Finished:
    """Run a command in a folder, with more environment variables. Only one at a time: CPU time is that of all children.

    Raises:
        RuntimeError: it failed; has the end of its output.
    """
    before, begin = resource.getrusage(resource.RUSAGE_CHILDREN), time.perf_counter()
    done = subprocess.run(
        [*map(str, command)], cwd=folder, env={**os.environ, **(variables or {})}, capture_output=True, text=True, check=False
    )
    wall_s, after = time.perf_counter() - begin, resource.getrusage(resource.RUSAGE_CHILDREN)
    if done.returncode:
        told = "\n".join((done.stdout + done.stderr).strip().splitlines()[-5:])
        raise RuntimeError(f"expected `{' '.join(map(str, command))}` to succeed, its exit code is {done.returncode}:\n{told}")
    cpu_s = after.ru_utime + after.ru_stime - before.ru_utime - before.ru_stime
    return Finished(wall_s, cpu_s, done.stdout)
