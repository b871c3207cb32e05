"""The outcome of a run, for programs: `summary.json` contains what the console prints at the end."""

from __future__ import annotations

import json
import os
from pathlib import Path
from typing import Any

import numpy as np

from convnextpose.errors import OutputExistsError
from convnextpose.files import write_file
from pipeline.formats.base import written_files
from pipeline.ledger import LedgerCounts, Reasons
from pipeline.stream import Stream
from pipeline.streams import Pipeline
from pipeline.timeline import TimingTable

NAME = "summary.json"
FORMAT = "convnextpose-summary-1"


def summary_record(pipeline: Pipeline, out: Path) -> dict[str, Any]:
    """A run's summary as plain JSON values; paths are relative to the folder `out`."""
    return {
        "format": FORMAT,
        "error": None if pipeline.error is None else str(pipeline.error),
        "detector": pipeline.detector,
        "sources": [
            source_record(stream, stream.ledger.counts(), stream.timing) | {"files": _file_records(stream, out)}
            for stream in pipeline.streams
        ],
        "views": [
            {"name": view_thread.view.name, "shown": view_thread.shown, "error": view_thread.error}
            for view_thread in pipeline.view_threads
        ],
    }


def check_summary(out: Path, *, overwrite: bool) -> None:
    """Refuse a summary that could not be written at the end of a run.

    Raises:
        OutputExistsError: it exists already and may not be replaced.
    """
    if not overwrite and os.path.lexists(out / NAME):
        raise OutputExistsError(f"{out / NAME} exists already: choose another folder, or replace it with --overwrite")


def write_summary(pipeline: Pipeline, out: Path, *, overwrite: bool) -> Path:
    """Write the summary of a run that has ended; returns its path.

    Raises:
        SinkError: it cannot be written.
        OutputExistsError: it exists already and may not be replaced.
    """
    text = json.dumps(summary_record(pipeline, out), indent=2, allow_nan=False) + "\n"
    write_file(out / NAME, text.encode(), overwrite=overwrite)
    return out / NAME


def source_record(stream: Stream, counts: LedgerCounts, timing: TimingTable) -> dict[str, Any]:
    """The outcome of one source's frames, as plain JSON values; also during the run.

    Args:
        stream: the source's stream.
        counts: the counts of its frames at one moment.
        timing: the times of all frames, or of the newest.
    """
    ages_ns = list(stream.ages_ns)
    return {
        "name": stream.header.source,
        "error": None if stream.error is None else str(stream.error),
        "ledger": _ledger_record(counts),
        "missed": {name: count for name, count in stream.missed.items() if count},
        "states": [{"utc": state.utc, "state": state.state, "cause": state.cause} for state in stream.states],
        "stages": [
            {
                "stage": row.stage,
                "frames": row.frames,
                "p50_ms": round(row.p50_ms, 3),
                "p95_ms": round(row.p95_ms, 3),
                "p99_ms": round(row.p99_ms, 3),
                "wait_p50_ms": round(row.wait_p50_ms, 3),
                "share": round(row.share, 4),
            }
            for row in timing.statistics()
        ],
        "frames_per_second": round(timing.frames_per_second, 3),
        "latency_ms": _percentiles([timing.latency_ms(p) for p in (50, 95, 99)]) if counts.posed else None,
        "age_ms": _percentiles(np.percentile(ages_ns, [50, 95, 99]) / 1e6) if ages_ns else None,
        "world": None if stream.world is None else stream.world.record(),
        "people": {
            "frames_with_a_pose": counts.with_person,
            "tracks": len(stream.people.all()),
            "seen": [
                {
                    "track_id": person.track_id,
                    "first_s": round(person.first_s, 6),
                    "last_s": round(person.last_s, 6),
                    "poses": person.poses,
                    "gaps": person.gaps,
                }
                for person in stream.people.all()
            ],
        },
    }


def _file_records(stream: Stream, out: Path) -> list[dict[str, Any]]:
    return [
        {"path": file.path.relative_to(out).as_posix(), "frames": file.frames, "bytes": file.size_bytes}
        for file in written_files(stream.recorders)
    ]


def _ledger_record(counts: LedgerCounts) -> dict[str, Any]:
    def reasons(values: Reasons) -> list[dict[str, Any]]:
        return [{"reason": reason, "count": count} for reason, count in values]

    return {
        "received": counts.received,
        "posed": counts.posed,
        "dropped": counts.dropped,
        "failed": counts.failed,
        "drop_reasons": reasons(counts.drop_reasons),
        "failures": reasons(counts.failures),
        "without_a_pose": reasons(counts.problems),
    }


def _percentiles(values: Any) -> dict[str, float]:  # noqa: ANN401
    return {name: round(float(value), 3) for name, value in zip(("p50", "p95", "p99"), values, strict=True)}
