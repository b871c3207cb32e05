"""Spans, percentiles and the trace file."""

import json

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from convnextpose.errors import OutputExistsError, SinkError
from pipeline.timeline import STAGES, Span, Timeline, TimingTable, TraceWriter

durations = st.lists(st.tuples(st.integers(0, 10**8), st.integers(0, 10**8)), min_size=1, max_size=len(STAGES))


def timeline(index, waits_and_works, start=10**12):
    spans, now = [], start
    for stage, (wait, work) in zip(STAGES, waits_and_works, strict=False):
        spans.append(Span(stage, now, now + wait, now + wait + work))
        now += wait + work
    return Timeline(index, tuple(spans))


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


def test_spans_do_not_run_backwards():
    with pytest.raises(ValueError, match="enter <= start <= end"):
        Span("infer", 5, 4, 6)


def test_a_trace_holds_every_span_in_microseconds(tmp_path):
    lines = [timeline(i, [(1000, 2000)] * len(STAGES)) for i in range(3)]
    with TraceWriter(tmp_path / "trace.json") as writer:
        for line in lines:
            writer.add(line)
    writer.close()
    events = json.loads((tmp_path / "trace.json").read_text())
    names = {e["tid"]: e["args"]["name"] for e in events if e["ph"] == "M"}
    assert list(names.values()) == list(STAGES)
    spans = [e for e in events if e["ph"] == "X"]
    assert len(spans) == 3 * len(STAGES)
    for event, (index, span) in zip(spans, [(t.index, s) for t in lines for s in t.spans], strict=True):
        assert names[event["tid"]] == event["name"] == span.stage
        assert event["args"]["frame"] == index
        assert (event["ts"], event["dur"]) == (span.start_ns / 1e3, span.work_ns / 1e3)


def test_a_trace_is_not_overwritten_unless_allowed(tmp_path):
    path = tmp_path / "trace.json"
    path.write_text("precious")
    with pytest.raises(OutputExistsError, match="--overwrite"):
        TraceWriter(path)
    assert path.read_text() == "precious"
    TraceWriter(path, overwrite=True).close()
    assert path.read_text() == "precious", "nothing is touched before the first frame"
    with TraceWriter(path, overwrite=True) as writer:
        writer.add(timeline(0, [(1, 1)]))
    assert json.loads(path.read_text())
    with pytest.raises(SinkError, match="cannot"):
        TraceWriter(path / "trace.json")
