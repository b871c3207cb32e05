"""Runs cases in child processes, each within limits of time and memory.

A process that has imported everything forks, so that a case costs milliseconds. It starts no thread before that: a child would
lack it. A child runs several cases one after the other, each within its own limits; if it ends early, its current case is the
cause, and another child continues after it. A fault is tried again in a separate child; if there is none there, its outcome
says so.

    python -m tests.fuzz.zygote KIND SEED CASE    runs one case again, in this process, with its output and any traceback
"""

from __future__ import annotations

import gc
import json
import os
import resource
import select
import shutil
import signal
import subprocess
import sys
import tempfile
import time
import traceback
from collections.abc import Callable, Iterator
from contextlib import suppress
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from random import Random
from types import TracebackType

ROOT = Path(__file__).parents[2]

MEMORY = 1536 * 1024**2
"""Largest memory of a case, bytes, including that of the warm process."""

CPU_S, WALL_S = 20, 120
"""Limits of a case's CPU time, s, and of its wall time, s, during which other programs may use the CPU."""

TOGETHER = 100
"""Largest number of cases for a child: forking, and the first write to each page, cost more than most cases."""

LONGEST_SENTENCE = 1500
"""Limit of an error's length, characters, with the text that a command puts before it."""


@dataclass(frozen=True)
class Outcome:
    """The outcome of a case.

    Attributes:
        kind, seed, case: the case.
        end: `accepted`, `refused` (in words), or a fault: `traceback`, `speechless`, `exit code`, `crash`, `hang`, `memory`.
        told: its message.
        memory: its peak memory, bytes.
        cpu_s: CPU time, s.
    """

    kind: str
    seed: int
    case: int
    end: str
    told: str
    memory: int
    cpu_s: float

    @property
    def is_fault(self) -> bool:
        """Whether it is anything but an input that was read, or refused in words."""
        return self.end not in ("accepted", "refused")

    def __str__(self) -> str:
        """The fault, and the command that runs it again."""
        again = f"python -m tests.fuzz.zygote {self.kind} {self.seed} {self.case}"
        return f"{self.end} ({self.cpu_s:.1f} s, {self.memory / 1e6:.0f} MB): {self.told[-600:]}\n    {again}"


def judged(action: Callable[[], object], output: Callable[[], str]) -> tuple[str, str]:
    """Run a part of the project; returns how it ended, and its message.

    Args:
        action: a function, or the command line, which ends with `SystemExit`.
        output: returns the text on stdout and stderr.
    """
    from convnextpose.errors import PoseError

    try:
        action()
    except PoseError as error:
        told = str(error)
        return ("refused" if _is_sentence(told) else "speechless"), told
    except SystemExit as stop:
        told = output()
        if stop.code in (None, 0):
            end = "accepted"
        elif stop.code == 1:
            end = "refused" if any(_is_sentence(line) for line in told.splitlines()) else "speechless"
        elif stop.code == 2:
            end = "refused" if "Error" in told or "Usage" in told else "speechless"
        else:
            end, told = "exit code", f"{stop.code}: {told}"
    except BaseException:  # noqa: BLE001  # whatever else comes is a fault
        return "traceback", traceback.format_exc()
    else:
        end, told = "accepted", output()
    return ("traceback", told) if "Traceback (most recent call last)" in told else (end, told)


def _is_sentence(text: str) -> bool:
    return 10 < len(text.strip()) < LONGEST_SENTENCE and "\n" not in text


def run_case(kind: str, seed: int, case: int, folder: Path) -> object:
    """Make a case's input in an empty folder and let the project read it."""
    from tests.fuzz.kinds import KINDS

    return KINDS[kind].read(Random(f"{kind} {seed} {case}"), folder)


def _child(kind: str, seed: int, cases: range, scratch: Path) -> None:
    os.setsid()
    resource.setrlimit(resource.RLIMIT_CORE, (0, 0))
    resource.setrlimit(resource.RLIMIT_DATA, (_memory("VmData") + MEMORY, resource.RLIM_INFINITY))
    said = os.open(scratch / "said", os.O_RDWR | os.O_CREAT | os.O_APPEND, 0o600)
    os.dup2(os.open(os.devnull, os.O_RDONLY), 0)
    os.dup2(said, 1)
    os.dup2(said, 2)

    def output() -> str:
        sys.stdout.flush()
        sys.stderr.flush()
        return (scratch / "said").read_text(encoding="utf-8", errors="replace")

    most_s = resource.getrlimit(resource.RLIMIT_CPU)[1]
    with (scratch / "ends").open("w", buffering=1) as ends:
        for case in cases:
            folder = scratch / f"case {case}"
            folder.mkdir()
            os.chdir(folder)
            begun = time.process_time()
            resource.setrlimit(resource.RLIMIT_CPU, (int(begun) + CPU_S, most_s))
            Path("/proc/self/clear_refs").write_text("5")  # reset the peak memory to the current value
            end, told = judged(lambda: run_case(kind, seed, case, folder), output)  # noqa: B023  # called at once
            output()
            os.ftruncate(said, 0)
            memory = _memory("VmHWM")
            ends.write(json.dumps([end, told[-4000:], memory, time.process_time() - begun]) + "\n")


def _memory(name: str) -> int:
    """A line of /proc/self/status, bytes."""
    for line in Path("/proc/self/status").read_text().splitlines():
        if line.startswith(f"{name}:"):
            return int(line.split()[1]) * 1024
    return 0


def _run(kind: str, seed: int, cases: range, scratch: Path) -> Iterator[Outcome]:
    """The outcomes of cases, run by one child after the other."""
    while cases:
        done = _run_together(kind, seed, cases[:TOGETHER], scratch)
        for outcome in done:
            if not outcome.is_fault or outcome.case == cases[0]:
                yield outcome
                continue
            (alone,) = _run_together(kind, seed, range(outcome.case, outcome.case + 1), scratch)
            after = f"{outcome.told} (not alone, but after the cases from {cases[0]} on)"
            yield alone if alone.is_fault else replace(outcome, told=after)
        cases = cases[len(done) :]


def _run_together(kind: str, seed: int, cases: range, scratch: Path) -> list[Outcome]:
    """The outcomes of the first cases: all of them, or those up to the one that ended the child."""
    scratch.mkdir()
    child = os.fork()
    if child == 0:
        try:
            _child(kind, seed, cases, scratch)
        finally:
            os._exit(0)

    def ends() -> list[str]:
        path = scratch / "ends"
        return path.read_text().splitlines() if path.exists() else []

    watch, before, timely = os.pidfd_open(child), -1, True
    while not select.select([watch], [], [], WALL_S)[0]:
        ended = len(ends())
        if ended == before:  # no case has ended during this time
            timely = False
            os.kill(child, signal.SIGKILL)
        before = ended
    os.close(watch)
    _, status, usage = os.wait4(child, 0)
    with suppress(ProcessLookupError):
        os.killpg(child, signal.SIGKILL)  # processes that it started and left behind
    outcomes = []
    for case, (end, told, memory, cpu_s) in zip(cases, map(json.loads, ends()), strict=False):
        too_much = memory > MEMORY or "MemoryError" in told
        outcomes.append(Outcome(kind, seed, case, "memory" if too_much else end, told, memory, cpu_s))
    if len(outcomes) < len(cases):
        said = (scratch / "said").read_text(errors="replace") if (scratch / "said").exists() else ""
        late = not timely or (os.WIFSIGNALED(status) and os.WTERMSIG(status) in (signal.SIGXCPU, signal.SIGKILL))
        cpu_s = usage.ru_utime + usage.ru_stime - sum(outcome.cpu_s for outcome in outcomes)
        told, memory = f"wait status {status}: {said}", usage.ru_maxrss * 1024
        outcomes.append(Outcome(kind, seed, cases[len(outcomes)], "hang" if late else "crash", told, memory, cpu_s))
    shutil.rmtree(scratch, ignore_errors=True)
    return outcomes


def _serve() -> None:
    """Answer each line [kind, seed, first case, cases] on stdin with a line for each outcome on stdout."""
    from tests.fuzz.base import import_all
    from tests.fuzz.kinds import KINDS

    answers = os.fdopen(os.dup(1), "w")
    os.dup2(2, 1)  # a library's output must not mix with the answers
    with tempfile.TemporaryDirectory(prefix="fuzz-") as place:
        import_all()
        answers.write(json.dumps({name: kind.prepare() for name, kind in KINDS.items()}) + "\n")
        answers.flush()
        gc.collect()
        gc.freeze()
        for line in sys.stdin:
            kind, seed, first, cases = json.loads(line)
            for outcome in _run(kind, seed, range(first, first + cases), Path(place, "scratch")):
                answers.write(json.dumps(asdict(outcome)) + "\n")
            answers.flush()


class Zygote:
    """The warm process, which runs cases and returns their outcomes. A context manager.

    Attributes:
        lacks: for each kind, the reason why it cannot be run here, or None.
    """

    def __init__(self) -> None:
        one = {name: "1" for name in ("OMP_NUM_THREADS", "OPENBLAS_NUM_THREADS", "MKL_NUM_THREADS")}
        self._process = subprocess.Popen(
            [sys.executable, "-m", "tests.fuzz.zygote"],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            text=True,
            cwd=ROOT,
            env={**os.environ, **one, "TERM": "dumb", "COLUMNS": "200"},
        )
        self.lacks: dict[str, str | None] = json.loads(self._answer())

    def run(self, kind: str, seed: int, first: int = 0, cases: int = 1) -> list[Outcome]:
        """Run a number of cases of a kind, starting with `first`."""
        assert self._process.stdin is not None
        self._process.stdin.write(json.dumps([kind, seed, first, cases]) + "\n")
        self._process.stdin.flush()
        return [Outcome(**json.loads(self._answer())) for _ in range(cases)]

    def _answer(self) -> str:
        assert self._process.stdout is not None
        line = self._process.stdout.readline()
        if not line:
            raise RuntimeError(f"the process that forks ended: exit code {self._process.wait()}")
        return line

    def __enter__(self) -> Zygote:
        """Itself."""
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None) -> None:
        """End the process."""
        assert self._process.stdin is not None and self._process.stdout is not None
        self._process.stdin.close()
        self._process.wait()
        self._process.stdout.close()


if __name__ == "__main__":
    if len(sys.argv) == 4:
        with tempfile.TemporaryDirectory(prefix="fuzz-") as place:
            os.chdir(place)
            from tests.fuzz.kinds import KINDS

            KINDS[sys.argv[1]].prepare()
            run_case(sys.argv[1], int(sys.argv[2]), int(sys.argv[3]), Path(place))
    else:
        _serve()
