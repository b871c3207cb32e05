"""A test of a camera over some seconds: the time to open it, the jitter of its frames, and their age."""

from __future__ import annotations

import itertools
import threading
import time
from dataclasses import dataclass

import numpy as np

from pipeline.sources.live import LIVE, STALLED
from pipeline.sources.source import Source
from pipeline.types import Frame, State, UnreadableFrame


@dataclass(frozen=True)
class CameraReport:
    """The results of a camera's test.

    Attributes:
        opened_s: time to its first frame, s; None without a frame.
        description: size and codec.
        frames: number of frames.
        unreadable: number of frames that could not be read.
        rate: frames a second from the first to the last one; None with fewer than two.
        jitter_ms: deviation of the times between frames from their median, 95th percentile, ms.
        longest_gap_ms: longest time between two frames, ms.
        stalls: how often it was connected but sent nothing.
        clock: what measures its frames' ages at the end: `kernel`, `sender` or `arrival`.
        age_p50_ms, age_p99_ms: age of frames when they can be processed, by that clock, ms.
        offset_ms: upper limit of how far the sender's clock is behind ours, ms: the age of the youngest frame, which includes
            the network's delay; None if the clock is not the sender's.
        states: its states, in order.
    """

    opened_s: float | None
    description: str
    frames: int
    unreadable: int
    rate: float | None
    jitter_ms: float | None
    longest_gap_ms: float | None
    stalls: int
    clock: str | None
    age_p50_ms: float | None
    age_p99_ms: float | None
    offset_ms: float | None
    states: tuple[State, ...]


def probe(source: Source, seconds: float) -> CameraReport:
    """Test a live source for some seconds, then close it."""
    begin = time.monotonic()
    timer = threading.Timer(seconds, source.close)
    timer.daemon = True
    timer.start()
    states: list[State] = []
    arrivals: list[float] = []
    ages: dict[str, list[float]] = {}
    unreadable = 0
    clock = None
    try:
        for item in source:
            if isinstance(item, State):
                states.append(item)
            elif isinstance(item, UnreadableFrame):
                unreadable += 1
            elif isinstance(item, Frame):
                arrivals.append(time.monotonic())
                if item.captured_ns is not None and item.clock is not None:
                    clock = item.clock
                    ages.setdefault(clock, []).append((time.time_ns() - item.captured_ns) / 1e6)
    finally:
        timer.cancel()
        source.close()
    gaps = np.array([after - before for before, after in itertools.pairwise(arrivals)]) * 1e3
    mine = np.array(ages.get(clock or "", []))
    return CameraReport(
        opened_s=arrivals[0] - begin if arrivals else None,
        description=next((state.cause for state in reversed(states) if state.state == LIVE), ""),
        frames=len(arrivals),
        unreadable=unreadable,
        rate=len(gaps) / (arrivals[-1] - arrivals[0]) if len(gaps) else None,
        jitter_ms=float(np.percentile(np.abs(gaps - np.median(gaps)), 95)) if len(gaps) else None,
        longest_gap_ms=float(gaps.max()) if len(gaps) else None,
        stalls=sum(state.state == STALLED for state in states),
        clock=clock,
        age_p50_ms=float(np.percentile(mine, 50)) if len(mine) else None,
        age_p99_ms=float(np.percentile(mine, 99)) if len(mine) else None,
        offset_ms=float(mine.min()) if clock == "sender" and len(mine) else None,
        states=tuple(states),
    )
