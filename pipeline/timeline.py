"""Where each frame's time went: spans and their percentiles."""

from __future__ import annotations

from collections import deque
from dataclasses import dataclass

import numpy as np

STAGES = ("capture", "people", "infer", "lift", "render", "sinks")
"""The pipeline's stages in order."""

KEPT_FRAMES = 20_000
"""Timelines that percentiles are taken over: the newest ones, so that a stream of days stays in bounded memory."""


@dataclass(frozen=True, slots=True)
class Span:
    """One stage's part of a frame's time, all in perf_counter_ns.

    Attributes:
        stage: one of STAGES.
        enter_ns: when the frame came to the stage.
        start_ns: when the stage began to work on it; until then it waited.
        end_ns: when the stage was done with it.
    """

    stage: str
    enter_ns: int
    start_ns: int
    end_ns: int

    def __post_init__(self) -> None:
        """Refuse spans that run backwards."""
        if not self.enter_ns <= self.start_ns <= self.end_ns:
            raise ValueError(f"expected enter <= start <= end in stage {self.stage}, received {self}")

    @property
    def work_ns(self) -> int:
        """Time worked, ns."""
        return self.end_ns - self.start_ns

    @property
    def wait_ns(self) -> int:
        """Time waited before the work, ns."""
        return self.start_ns - self.enter_ns


@dataclass(frozen=True, slots=True)
class Timeline:
    """A frame's spans, in the order in which they happened.

    Attributes:
        index: the frame's number in its source.
        spans: one for each stage that the frame went through.
    """

    index: int
    spans: tuple[Span, ...]

    @property
    def latency_ns(self) -> int:
        """From the start of its capture to the end of its last stage, ns."""
        return self.spans[-1].end_ns - self.spans[0].start_ns


@dataclass(frozen=True)
class StageStatistics:
    """What one stage took over many frames.

    Attributes:
        stage: its name.
        p50_ms, p95_ms, p99_ms: percentiles of the time worked on one frame, ms.
        wait_p50_ms: median of the time that a frame waited before the stage, ms.
        share: the stage's part of the time that all stages worked, 0..1.
    """

    stage: str
    p50_ms: float
    p95_ms: float
    p99_ms: float
    wait_p50_ms: float
    share: float


class TimingTable:
    """The timelines of a run, reduced to percentiles when asked."""

    def __init__(self) -> None:
        self._timelines: deque[Timeline] = deque(maxlen=KEPT_FRAMES)
        self._first_ns: int | None = None
        self._last_ns = 0
        self._count = 0

    def add(self, timeline: Timeline) -> None:
        """Take in one finished frame."""
        self._timelines.append(timeline)
        start = timeline.spans[0].start_ns
        self._first_ns = start if self._first_ns is None else min(self._first_ns, start)
        self._last_ns = max(self._last_ns, timeline.spans[-1].end_ns)
        self._count += 1

    @property
    def frames_per_second(self) -> float:
        """Frames finished over the time from the first frame's capture to the last one's end; 0 before any is."""
        return self._count / self.elapsed_s if self._count else 0.0

    @property
    def elapsed_s(self) -> float:
        """From the first frame's capture to the last finished frame's end, s."""
        return (self._last_ns - self._first_ns) / 1e9 if self._first_ns is not None else 0.0

    def latency_ms(self, percentile: float) -> float:
        """A percentile of the frames' latency, ms; NaN before any frame is finished."""
        values = [t.latency_ns for t in tuple(self._timelines)]
        return float(np.percentile(values, percentile)) / 1e6 if values else float("nan")

    def statistics(self) -> list[StageStatistics]:
        """One row for each stage that any frame went through, in the pipeline's order."""
        work: dict[str, list[int]] = {}
        wait: dict[str, list[int]] = {}
        for span in (s for t in tuple(self._timelines) for s in t.spans):  # a copy: the pipeline may be adding to it
            work.setdefault(span.stage, []).append(span.work_ns)
            wait.setdefault(span.stage, []).append(span.wait_ns)
        total = sum(sum(values) for values in work.values()) or 1
        rows = []
        for stage, values in sorted(work.items(), key=lambda item: STAGES.index(item[0])):
            p50, p95, p99 = np.percentile(values, [50, 95, 99]) / 1e6
            waited = float(np.median(wait[stage])) / 1e6
            rows.append(StageStatistics(stage, float(p50), float(p95), float(p99), waited, sum(values) / total))
        return rows
