"""Which tracker keeps people's ids: this project's tracker, SORT and ByteTrack, on clips whose people are known.

    python -m training.crowd FOLDER                  # renders six clips with truth (needs the extra `train`)
    python benchmarks/tracking.py follow FOLDER      # the detector's boxes in every frame, and the poses of a run
    python benchmarks/tracking.py score FOLDER       # in an environment of its own: pip install trackers==2.6.1

The peers are those of Roboflow's `trackers`. They get the boxes of the same people detector in every frame (a run uses it less
often), and in a second row the boxes of this project's poses without their ids, so that only the assignment of ids differs.
Their thresholds fit other detectors, so the best of a grid is used for each kind of boxes, over all clips together. People of
whom less than a quarter is visible are ignored. A box is right if its intersection over union is at least 0.5.
"""

from __future__ import annotations

import argparse
import json
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from itertools import product
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

LOST_S = 1.5
"""How long every tracker remembers people who are out of sight, s."""

IOU = 0.5

Boxes = NDArray[np.float64]


@dataclass(frozen=True)
class Frame:
    """A tracker's result for a frame: ids [N] and boxes [N, 4] (x, y, width, height, px)."""

    ids: NDArray[np.int64]
    boxes: Boxes


def follow(folder: Path, model: str) -> None:
    """Write the detector's boxes and a run's poses for each clip of a folder."""
    from pipeline.estimator import Estimator
    from pipeline.models import open_detector, open_model
    from pipeline.people.detection import detections_of
    from pipeline.people.track import box_from_joints
    from pipeline.people.tracker import PeopleTracker
    from pipeline.sources import open_source
    from pipeline.types import Frame as VideoFrame

    with open_model(model) as poses, open_detector() as detector:
        detect = detections_of(detector)
        for path in sorted(folder.glob("*.mp4")):
            estimator = Estimator(poses, PeopleTracker(detect, poses.info.joint_set, keep_lost_s=LOST_S))
            frames, spent_s = [], 0.0
            with open_source(path) as source:
                for frame in source:
                    if not isinstance(frame, VideoFrame):
                        continue
                    began = time.perf_counter()
                    posed = estimator.step(frame)
                    spent_s += time.perf_counter() - began
                    people = []
                    for pose in posed.poses:
                        box = box_from_joints(pose.joints_px).clip(frame.width, frame.height)
                        people.append([pose.track_id, box.x, box.y, box.width, box.height, float(pose.scores.mean())])
                    detections = [[d.box.x, d.box.y, d.box.width, d.box.height, d.score] for d in detect(frame)]
                    events = [str(event) for event in posed.events]
                    frames.append({"time_s": frame.time_s, "people": people, "detections": detections, "events": events})
            path.with_suffix(".tracks.json").write_text(json.dumps(frames), encoding="utf-8")
            print(f"{path.name}: {len(frames)} frames, {1000 * spent_s / max(1, len(frames)):.0f} ms each", flush=True)


def overlaps(first: Boxes, second: Boxes) -> Boxes:
    """Intersection over union of boxes [A, 4] with boxes [B, 4]."""
    a, b = first[:, None], second[None]
    shared = (
        (np.minimum(a[..., :2] + a[..., 2:], b[..., :2] + b[..., 2:]) - np.maximum(a[..., :2], b[..., :2])).clip(0).prod(-1)
    )
    return np.asarray(shared / (a[..., 2:].prod(-1) + b[..., 2:].prod(-1) - shared).clip(1e-9))


def ours(frames: list[dict[str, Any]], rate: float) -> list[Frame]:
    """The run's own tracks."""
    rows = [np.array(frame["people"], np.float64).reshape(-1, 6) for frame in frames]
    return [Frame(row[:, 0].astype(np.int64), row[:, 1:5]) for row in rows]


def peer(tracker: Any, boxes: list[Boxes]) -> list[Frame]:  # noqa: ANN401
    """The tracks of one of the `trackers` for each frame's boxes [N, 5] (with the score)."""
    import supervision as sv

    result = []
    for row in boxes:
        corners = np.concatenate([row[:, :2], row[:, :2] + row[:, 2:4]], axis=1)
        seen = sv.Detections(xyxy=corners, confidence=row[:, 4], class_id=np.zeros(len(row), int))
        found = tracker.update(seen)
        ids = np.asarray(found.tracker_id if found.tracker_id is not None else np.full(len(found), -1), np.int64)
        xyxy = np.asarray(found.xyxy, np.float64).reshape(-1, 4)
        keep = ids >= 0
        result.append(Frame(ids[keep], np.concatenate([xyxy[:, :2], xyxy[:, 2:] - xyxy[:, :2]], axis=1)[keep]))
    return result


def peers(rate: float) -> Iterator[tuple[str, str, Callable[[], Any]]]:
    """Name, settings and constructor of each peer: lost people are kept as long as this project keeps them."""
    from trackers import ByteTrackTracker, SORTTracker

    keep = {"lost_track_buffer": round(LOST_S * 30), "frame_rate": rate}
    for start, count in product((0.25, 0.4, 0.5), (1, 2, 3)):
        yield (
            "SORT",
            f"from {start}, {count} frames",
            lambda s=start, c=count: SORTTracker(track_activation_threshold=s, minimum_consecutive_frames=c, **keep),
        )
    for (start, high), count, iou in product(((0.7, 0.6), (0.6, 0.5), (0.5, 0.4), (0.4, 0.35)), (1, 2), (0.1, 0.2)):
        yield (
            "ByteTrack",
            f"from {start}, sure {high}, {count} frames, IoU {iou}",
            lambda s=start, h=high, c=count, i=iou: ByteTrackTracker(
                track_activation_threshold=s,
                high_conf_det_threshold=h,
                minimum_consecutive_frames=c,
                minimum_iou_threshold=i,
                **keep,
            ),
        )


def measure(truth: dict[str, Any], frames: list[Frame]) -> dict[str, float]:
    """Counts and scores of one clip."""
    from trackers.eval import compute_clear_metrics, compute_hota_metrics, compute_identity_metrics

    known, found, alike = [], [], []
    for facts, frame in zip(truth["frames"], frames, strict=True):
        there = [p for p in facts["people"] if p["shows"] >= truth["visible_from"]]
        hidden = np.array([p["box"] for p in facts["people"] if p["shows"] < truth["visible_from"]], np.float64).reshape(-1, 4)
        boxes = np.array([p["box"] for p in there], np.float64).reshape(-1, 4)
        shared = overlaps(boxes, frame.boxes)
        right = (shared >= IOU).any(0) if len(boxes) else np.zeros(len(frame.boxes), bool)
        ignored = ~right & ((overlaps(hidden, frame.boxes) >= 0.3).any(0) if len(hidden) else False)
        known.append(np.array([p["id"] for p in there], np.int64))
        found.append(frame.ids[~ignored])
        alike.append(shared[:, ~ignored])
    clear = compute_clear_metrics(known, found, alike, IOU)
    identity, hota = compute_identity_metrics(known, found, alike, IOU), compute_hota_metrics(known, found, alike)
    return {
        "HOTA": hota["HOTA"], "IDF1": identity["IDF1"], "MOTA": clear["MOTA"], "switches": clear["IDSW"],
        "recall": clear["CLR_Re"], "precision": clear["CLR_Pr"], "ids": len(set(np.concatenate(found).tolist())),
        "people": len(set(np.concatenate(known).tolist())),
    }  # fmt: skip


def score(folder: Path) -> None:
    """Print a table."""
    clips = {
        path.name.removesuffix(".tracks.json"): json.loads(path.read_text()) for path in sorted(folder.glob("*.tracks.json"))
    }
    truths = {name: json.loads((folder / f"{name}.json").read_text()) for name in clips}
    boxes = {
        "detector": {n: [np.array(f["detections"], np.float64).reshape(-1, 5) for f in frames] for n, frames in clips.items()},
        "poses": {n: [np.array(f["people"], np.float64).reshape(-1, 6)[:, 1:] for f in frames] for n, frames in clips.items()},
    }
    rows = {"this project": {name: measure(truths[name], ours(frames, truths[name]["fps"])) for name, frames in clips.items()}}
    for kind in boxes:
        best: dict[str, tuple[float, str, dict[str, dict[str, float]]]] = {}
        for name, settings, make in peers(next(iter(truths.values()))["fps"]):
            results = {clip: measure(truths[clip], peer(make(), boxes[kind][clip])) for clip in clips}
            total = float(np.mean([r["IDF1"] for r in results.values()]))
            if name not in best or total > best[name][0]:
                best[name] = total, settings, results
        for name, (_, settings, results) in best.items():
            rows[
                f"{name} on {kind}' boxes ({settings})" if kind == "poses" else f"{name} on the {kind}'s boxes ({settings})"
            ] = results
    print(
        "| clip | people | tracker | HOTA | IDF1 | MOTA | switches | ids | recall | precision |\n"
        "|---|---|---|---|---|---|---|---|---|---|"
    )
    for clip in [*clips, "all"]:
        for tracker, results in rows.items():
            each = list(results.values()) if clip == "all" else [results[clip]]
            mean = {key: float(np.mean([r[key] for r in each])) for key in ("HOTA", "IDF1", "MOTA", "recall", "precision")}
            total = {key: int(sum(r[key] for r in each)) for key in ("switches", "ids", "people")}
            print(
                f"| {clip} | {total['people']} | {tracker} | {mean['HOTA']:.3f} | {mean['IDF1']:.3f} | {mean['MOTA']:.3f} | "
                f"{total['switches']} | {total['ids']} | {mean['recall']:.3f} | {mean['precision']:.3f} |"
            )


def main() -> None:
    """Read the command line."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("what", choices=("follow", "score"))
    parser.add_argument("folder", type=Path)
    parser.add_argument("--model", default="xs")
    arguments = parser.parse_args()
    if not any(arguments.folder.glob("*.mp4")):
        parser.error(f"expected clips in {arguments.folder}, found none: make them with python -m training.crowd")
    if arguments.what == "follow":
        follow(arguments.folder, arguments.model)
    else:
        score(arguments.folder)


if __name__ == "__main__":
    main()
