"""The status in Prometheus' text format, version 0.0.4: https://prometheus.io/docs/instrumenting/exposition_formats/."""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any

CONTENT_TYPE = "text/plain; version=0.0.4"

Sample = tuple[dict[str, str], float]


def metrics_text(status: dict[str, Any]) -> str:
    """The metrics of a status record (`pipeline.status.RunStatus.record`)."""
    sources: list[dict[str, Any]] = status["sources"]
    families: list[tuple[str, str, str, Iterable[Sample]]] = [
        (
            "convnextpose_frames_total",
            "counter",
            "Frames by outcome: received = posed + dropped + failed + frames in flight.",
            [
                ({"source": s["name"], "result": result}, s["ledger"][result])
                for s in sources
                for result in ("received", "posed", "dropped", "failed")
            ],
        ),
        (
            "convnextpose_dropped_frames_total",
            "counter",
            "Dropped frames by reason.",
            [
                ({"source": s["name"], "reason": drop["reason"]}, drop["count"])
                for s in sources
                for drop in s["ledger"]["drop_reasons"]
            ],
        ),
        (
            "convnextpose_missed_frames_total",
            "counter",
            "Posed frames that a recorder, or the caller, was too slow for.",
            [({"source": s["name"], "by": by}, count) for s in sources for by, count in s["missed"].items()],
        ),
        (
            "convnextpose_frames_with_person_total",
            "counter",
            "Posed frames that show at least one pose.",
            [({"source": s["name"]}, s["people"]["frames_with_a_pose"]) for s in sources],
        ),
        (
            "convnextpose_frames_per_second",
            "gauge",
            "Frames received (in) and posed (out) in a second, recently.",
            [({"source": s["name"], "way": way}, s["now"][f"fps_{way}"]) for s in sources for way in ("in", "out")],
        ),
        (
            "convnextpose_frame_age_seconds",
            "gauge",
            "Age of the newest posed frame of a live source when it was done, by clock.",
            [
                ({"source": s["name"], "clock": s["now"]["clock"]}, s["now"]["age_ms"] / 1e3)
                for s in sources
                if s["now"]["age_ms"] is not None
            ],
        ),
        (
            "convnextpose_source_state",
            "gauge",
            "1 for the state that a source is in.",
            [({"source": s["name"], "state": s["now"]["state"]}, 1) for s in sources],
        ),
        (
            "convnextpose_stage_seconds",
            "gauge",
            "Time that a stage worked on one frame, over the newest frames.",
            [
                ({"source": s["name"], "stage": row["stage"], "quantile": quantile}, row[key] / 1e3)
                for s in sources
                for row in s["stages"]
                for quantile, key in (("0.5", "p50_ms"), ("0.95", "p95_ms"), ("0.99", "p99_ms"))
            ],
        ),
    ]
    lines = []
    for name, kind, help_text, samples in families:
        lines += [f"# HELP {name} {help_text}", f"# TYPE {name} {kind}"]
        lines += [f"{name}{{{_labels(labels)}}} {value:.15g}" for labels, value in samples]
    return "\n".join(lines) + "\n"


def _labels(labels: dict[str, str]) -> str:
    return ",".join(f'{name}="{_escaped(value)}"' for name, value in labels.items())


def _escaped(value: str) -> str:
    return value.replace("\\", "\\\\").replace('"', '\\"').replace("\n", "\\n")
