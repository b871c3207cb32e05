"""The current state of a run: the live form of `summary.json`, and the numbers that a terminal shows."""

from __future__ import annotations

import threading
import time
from collections import deque
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from pipeline.ledger import LedgerCounts
from pipeline.stream import Stream
from pipeline.summary import source_record
from pipeline.types import RunHeader, State

FORMAT = "convnextpose-status-1"

RATE_WINDOW_S = 3.0
"""Frames a second are counted over this time, s, or since the last request if that is longer ago."""

NEWEST_FRAMES = 250
"""Number of the newest frames that the stage times are computed from."""

RECORD_LIFE_S = 0.5
"""A record is reused for this time, s, however many clients request it."""


@dataclass(frozen=True)
class SourceStatus:
    """The status of one source.

    Attributes:
        source: its name.
        live: whether it is a live source.
        state: its current state.
        counts: the counts of its frames so far.
        fps_in, fps_out: recent rates of frames received and posed, frames a second.
        age_ms: age of the newest posed frame when it had reached every recorder, ms; None for files.
        clock: what measured that age; None for files.
        frame_count: declared number of frames, or None.
    """

    source: str
    live: bool
    state: State
    counts: LedgerCounts
    fps_in: float
    fps_out: float
    age_ms: float | None
    clock: str | None
    frame_count: int | None


class RunStatus:
    """The status of a run's streams. Any thread may ask.

    Args:
        streams: one for each source.
    """

    def __init__(self, streams: Sequence[Stream]) -> None:
        self._streams = list(streams)
        self._lock = threading.Lock()
        start = time.monotonic()
        self._samples = [deque([(start, 0, 0)]) for _ in self._streams]
        self._record: dict[str, Any] = {}
        self._made_at = -RECORD_LIFE_S

    @property
    def headers(self) -> dict[str, RunHeader]:
        """The run's header for each source, by its name, as far as it is known so far."""
        return {stream.header.source: stream.header for stream in self._streams}

    def sources(self) -> list[SourceStatus]:
        """Each source's status now."""
        with self._lock:
            return self._sources()

    def _sources(self) -> list[SourceStatus]:
        now, statuses = time.monotonic(), []
        for stream, samples in zip(self._streams, self._samples, strict=True):
            counts, age_ns = stream.ledger.counts(), stream.ages_ns[-1] if stream.ages_ns else None
            while len(samples) > 1 and samples[1][0] <= now - RATE_WINDOW_S:
                samples.popleft()
            then, received, posed = samples[0]
            elapsed_s = max(now - then, 1e-3)
            if now - samples[-1][0] > RATE_WINDOW_S / 20:
                samples.append((now, counts.received, counts.posed))
            statuses.append(
                SourceStatus(
                    source=stream.header.source,
                    live=stream.source.info.live,
                    state=stream.states[-1],
                    counts=counts,
                    fps_in=(counts.received - received) / elapsed_s,
                    fps_out=(counts.posed - posed) / elapsed_s,
                    age_ms=None if age_ns is None else age_ns / 1e6,
                    clock=stream.clock,
                    frame_count=stream.header.frame_count,
                )
            )
        return statuses

    def record(self) -> dict[str, Any]:
        """The status as plain JSON values: each source as in `summary.json`, with its current status under `now`.

        It is made at most twice a second; calls in between return the same object, which must not be changed.
        """
        with self._lock:
            if time.monotonic() - self._made_at >= RECORD_LIFE_S:
                self._record = {
                    "format": FORMAT,
                    "sources": [
                        source_record(stream, status.counts, stream.timing.newest(NEWEST_FRAMES)) | {"now": _now_record(status)}
                        for stream, status in zip(self._streams, self._sources(), strict=True)
                    ],
                }
                self._made_at = time.monotonic()
            return self._record


def _now_record(status: SourceStatus) -> dict[str, Any]:
    return {
        "live": status.live,
        "state": status.state.state,
        "cause": status.state.cause,
        "since": status.state.utc,
        "fps_in": round(status.fps_in, 2),
        "fps_out": round(status.fps_out, 2),
        "age_ms": None if status.age_ms is None else round(status.age_ms, 1),
        "clock": status.clock,
        "in_flight": status.counts.in_flight,
        "frame_count": status.frame_count,
    }
