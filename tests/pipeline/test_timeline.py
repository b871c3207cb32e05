"""Spans, percentiles and the trace file."""

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from pipeline.timeline import STAGES, Span, Stopwatch, Timeline, TimingTable

durations = st.lists(st.tuples(st.integers(0, 10**8), st.integers(0, 10**8)), min_size=1, max_size=len(STAGES))


def timeline(index, waits_and_works, start=10**12):
    spans, now = [], start
    for stage, (wait, work) in zip(STAGES, waits_and_works, strict=False):
        spans.append(Span(stage, now, now + wait, now + wait + work))
        now += wait + work
    return Timeline("clip.mp4", index, tuple(spans))


@given(durations)
def test_waiting_and_working_make_up_the_latency(parts):
    line = timeline(0, parts)
    first_wait = line.spans[0].wait_ns
    assert sum(s.wait_ns + s.work_ns for s in line.spans) - first_wait == line.latency_ns


@given(st.lists(durations, min_size=1, max_size=20))
def test_percentiles_are_those_of_the_spans_and_shares_add_up(frames):
    table = TimingTable()
    for index, parts in enumerate(frames):
        table.add(timeline(index, parts))
    rows = table.statistics()
    assert [r.stage for r in rows] == list(STAGES[: max(map(len, frames))])
    for number, row in enumerate(rows):
        works = [parts[number][1] for parts in frames if number < len(parts)]
        assert row.p50_ms == pytest.approx(np.percentile(works, 50) / 1e6)
        assert row.p50_ms <= row.p95_ms <= row.p99_ms
    total = sum(work for parts in frames for _, work in parts)
    assert sum(r.share for r in rows) == pytest.approx(1 if total else 0)


def test_throughput_is_frames_over_the_whole_time():
    table = TimingTable()
    assert table.frames_per_second == 0 and np.isnan(table.latency_ms(50))
    for index in range(10):
        table.add(timeline(index, [(0, 10**8)], start=10**12 + index * 10**8))
    assert table.elapsed_s == pytest.approx(1.0)
    assert table.frames_per_second == pytest.approx(10.0)


def test_a_stopwatch_times_what_happens_also_if_it_fails():
    stopwatch = Stopwatch()
    with stopwatch.span("detect"):
        pass
    with pytest.raises(KeyError), stopwatch.span("infer"):
        raise KeyError
    with stopwatch.span("write", enter_ns=0, part="mp4"):
        pass
    timeline = stopwatch.timeline("clip.mp4", 7)
    assert [(s.stage, s.part) for s in timeline.spans] == [("detect", ""), ("infer", ""), ("write", "mp4")]
    first, second, third = timeline.spans
    assert second.enter_ns == first.end_ns and third.enter_ns == 0 and stopwatch.stage == "write"


def test_spans_do_not_run_backwards():
    with pytest.raises(ValueError, match="enter <= start <= end"):
        Span("infer", 5, 4, 6)
