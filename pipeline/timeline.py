"""The time that each frame spends in each stage: spans and their percentiles."""

from __future__ import annotations

import threading
import time
from collections import deque
from contextlib import AbstractContextManager
from dataclasses import dataclass

import numpy as np

STAGES = ("capture", "detect", "preprocess", "infer", "lift", "track", "render", "write")
"""The stages of a frame in order. A frame has no span for a stage that it skipped."""

KEPT_FRAMES = 20_000
"""Number of timelines that are kept for the percentiles: the newest ones, so that memory stays bounded."""


@dataclass(frozen=True, slots=True)
class Span:
    """One stage's part of a frame's time, all in perf_counter_ns.

    Attributes:
        stage: one of STAGES.
        enter_ns: when the frame reached the stage.
        start_ns: when the stage began to work on it; until then it waited.
        end_ns: when the stage had finished it.
        part: distinguishes parallel work of one stage, e.g. the format that is written; empty if there is only one.
    """

    stage: str
    enter_ns: int
    start_ns: int
    end_ns: int
    part: str = ""

    def __post_init__(self) -> None:
        """Refuse spans that run backwards."""
        if not self.enter_ns <= self.start_ns <= self.end_ns:
            raise ValueError(f"expected enter <= start <= end in stage {self.stage}, received {self}")

    @property
    def work_ns(self) -> int:
        """Working time, ns."""
        return self.end_ns - self.start_ns

    @property
    def wait_ns(self) -> int:
        """Waiting time before the work, ns."""
        return self.start_ns - self.enter_ns


class Stopwatch:
    """Collects the spans of one frame. Any thread may use it.

    Attributes:
        stage: the stage that began last.
        last_ns: when the last work ended, perf_counter_ns.
    """

    def __init__(self) -> None:
        self.stage = STAGES[0]
        self._spans: list[Span] = []
        self.last_ns = time.perf_counter_ns()

    def span(self, stage: str, *, enter_ns: int | None = None, part: str = "") -> AbstractContextManager[None]:
        """Time a stage's work, also if it fails.

        Args:
            stage: one of STAGES.
            enter_ns: when the frame reached the stage, perf_counter_ns; None for the end of the previous span.
            part: as in `Span`.
        """
        return _Running(self, stage, enter_ns, part)

    def add(self, stage: str, start_ns: int, end_ns: int, *, enter_ns: int | None = None, part: str = "") -> None:
        """Add finished work, perf_counter_ns; without `enter_ns` the frame did not wait before it."""
        self._spans.append(Span(stage, start_ns if enter_ns is None else enter_ns, start_ns, end_ns, part))
        self.last_ns = end_ns

    def timeline(self, source_id: str, index: int) -> Timeline:
        """The spans taken so far, as a frame's timeline."""
        return Timeline(source_id, index, tuple(self._spans))


class _Running:
    """Times a stage's work. A class, because `contextlib.contextmanager` is half as fast, and each frame needs several."""

    __slots__ = ("_enter_ns", "_part", "_stage", "_start_ns", "_stopwatch")

    def __init__(self, stopwatch: Stopwatch, stage: str, enter_ns: int | None, part: str) -> None:
        self._stopwatch, self._stage, self._enter_ns, self._part = stopwatch, stage, enter_ns, part

    def __enter__(self) -> None:
        self._stopwatch.stage = self._stage
        self._start_ns = time.perf_counter_ns()

    def __exit__(self, *error: object) -> None:
        stopwatch, end_ns = self._stopwatch, time.perf_counter_ns()
        enter_ns = stopwatch.last_ns if self._enter_ns is None else self._enter_ns
        stopwatch.add(self._stage, self._start_ns, end_ns, enter_ns=enter_ns, part=self._part)


@dataclass(frozen=True, slots=True)
class Timeline:
    """A frame's spans, in the order in which they ended.

    Attributes:
        source_id: the frame's source.
        index: the frame's number in its source.
        spans: one or more for each stage that the frame went through.
    """

    source_id: str
    index: int
    spans: tuple[Span, ...]

    @property
    def latency_ns(self) -> int:
        """Time from the start of its capture to the end of its last stage, ns."""
        return max(span.end_ns for span in self.spans) - self.spans[0].start_ns


@dataclass(frozen=True)
class StageStatistics:
    """The times of one stage over many frames.

    Attributes:
        stage: its name.
        frames: how many frames went through it.
        p50_ms, p95_ms, p99_ms: percentiles of the working time of one of these frames, ms.
        wait_p50_ms: median of the time that a frame waited before the stage, ms.
        share: the stage's share of the work of all stages, 0..1.
    """

    stage: str
    frames: int
    p50_ms: float
    p95_ms: float
    p99_ms: float
    wait_p50_ms: float
    share: float


class TimingTable:
    """The timelines of a source, and their percentiles. Any thread may use it."""

    def __init__(self) -> None:
        self._timelines: deque[Timeline] = deque(maxlen=KEPT_FRAMES)
        self._lock = threading.Lock()
        self._first_ns: int | None = None
        self._last_ns = 0
        self._count = 0

    def add(self, timeline: Timeline) -> None:
        """Add a finished frame."""
        with self._lock:
            self._timelines.append(timeline)
            start = timeline.spans[0].start_ns
            self._first_ns = start if self._first_ns is None else min(self._first_ns, start)
            self._last_ns = max(self._last_ns, *(span.end_ns for span in timeline.spans))
            self._count += 1

    def newest(self, count: int) -> TimingTable:
        """A table of only the newest `count` frames."""
        table = TimingTable()
        for timeline in self._kept()[-count:]:
            table.add(timeline)
        return table

    @property
    def frames_per_second(self) -> float:
        """Finished frames divided by the time from the first frame's capture to the last one's end; 0 before there are any."""
        return self._count / self.elapsed_s if self._count else 0.0

    @property
    def elapsed_s(self) -> float:
        """Time from the first frame's capture to the last finished frame's end, s."""
        return (self._last_ns - self._first_ns) / 1e9 if self._first_ns is not None else 0.0

    def latency_ms(self, percentile: float) -> float:
        """A percentile of the frames' latency, ms; NaN before any frame is finished."""
        values = [t.latency_ns for t in self._kept()]
        return float(np.percentile(values, percentile)) / 1e6 if values else float("nan")

    def statistics(self) -> list[StageStatistics]:
        """One row for each stage that any frame went through, in the order of STAGES."""
        work: dict[str, list[int]] = {}
        wait: dict[str, list[int]] = {}
        for timeline in self._kept():
            worked: dict[str, int] = {}
            for span in timeline.spans:
                worked[span.stage] = worked.get(span.stage, 0) + span.work_ns
                wait.setdefault(span.stage, []).append(span.wait_ns)
            for stage, value in worked.items():
                work.setdefault(stage, []).append(value)
        total = sum(sum(values) for values in work.values()) or 1
        rows = []
        for stage, values in sorted(work.items(), key=lambda item: STAGES.index(item[0])):
            p50, p95, p99 = (float(value) for value in np.percentile(values, [50, 95, 99]) / 1e6)
            waited = float(np.median(wait[stage])) / 1e6
            rows.append(StageStatistics(stage, len(values), p50, p95, p99, waited, sum(values) / total))
        return rows

    def _kept(self) -> tuple[Timeline, ...]:
        with self._lock:
            return tuple(self._timelines)
