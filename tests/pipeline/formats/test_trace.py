"""The trace: every span of every timeline, as the viewers read it."""

import json

import pytest

from convnextpose.errors import SinkError
from pipeline.formats.trace import TraceRecorder
from pipeline.timeline import STAGES
from tests.pipeline.formats.samples import timeline, write


def test_a_trace_holds_every_span_in_microseconds(tmp_path):
    lines = [timeline(i) for i in range(3)]
    path = write(TraceRecorder(tmp_path / "trace.json"), lines)
    events = json.loads(path.read_text())
    stages = {e["tid"]: e["args"]["name"] for e in events if e["name"] == "thread_name"}
    assert list(stages.values()) == list(STAGES)
    assert [e["args"]["name"] for e in events if e["name"] == "process_name"] == ["clip.mp4"]
    spans = [e for e in events if e["ph"] == "X"]
    for event, (index, span) in zip(spans, [(t.index, s) for t in lines for s in t.spans], strict=True):
        assert stages[event["tid"]] == event["name"] == span.stage
        assert event["args"] == {"frame": index, "wait_us": span.wait_ns / 1e3}
        assert (event["ts"], event["dur"]) == (span.start_ns / 1e3, span.work_ns / 1e3)


def test_its_folder_is_made_or_refused(tmp_path):
    path = write(TraceRecorder(tmp_path / "new" / "folder" / "trace.json"), [timeline(0)])
    with pytest.raises(SinkError, match=r"folder for inner\.json, but .*trace\.json cannot be one"):
        TraceRecorder(path / "inner.json")
