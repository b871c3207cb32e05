"""The live output of a pipeline: messages for the page, and lines of JSON for programs.

A message for the page is 4 bytes with the length of its head (big-endian), the head as JSON, and the JPEG of each frame that
the head lists, in that order. So a picture and its poses always arrive together.
"""

from __future__ import annotations

import json
import struct
import threading
import time
from collections.abc import Sequence
from dataclasses import asdict, replace
from typing import Any

import cv2

from convnextpose.world import World
from pipeline.draw import as_shown
from pipeline.formats.records import frame_record, header_record, to_line
from pipeline.labels import PEOPLE_BGR
from pipeline.sources.uri import without_password
from pipeline.types import PosedFrame, RunHeader

MAX_SIDE_PX = 1280
"""Longest side of the pictures for the page, px: several larger ones would not fit on a screen."""

JPEG_QUALITY = 80


def without_passwords(value: Any) -> Any:  # noqa: ANN401  # any JSON value
    """A JSON value without passwords: `without_password` is applied to every URI in its strings."""
    if isinstance(value, dict):
        return {key: without_passwords(item) for key, item in value.items()}
    if isinstance(value, (list, tuple)):
        return [without_passwords(item) for item in value]
    if isinstance(value, str) and "://" in value:
        return " ".join(without_password(word) for word in value.split(" "))
    return value


def page_record(header: RunHeader) -> dict[str, Any]:
    """The description of a source that the page needs before the first frame, as plain JSON values."""
    joints = header.joint_set
    record: dict[str, Any] = without_passwords(
        {
            "source": {"name": header.source},
            "joints": joints.joints,
            "bones": joints.bones,
            "root": joints.root,
            "people_rgb": [bgr[::-1] for bgr in PEOPLE_BGR],
            "model": {"name": header.model.name, "random": header.model.random},
            "runtime": asdict(header.runtime),
            "root_depth_source": header.root_depth_source.value,
        }
    )
    return record


def live_record(posed: PosedFrame, header: RunHeader) -> dict[str, Any]:
    """A frame as in `poses.ndjson`, with its source, and always with its world."""
    stood = replace(posed, world=posed.world or World.level())
    return frame_record(stood, header) | {"source": without_passwords(header.source)}


class FrameMessage:
    """A posed frame for clients: its picture is encoded once for all of them, when the first client needs it."""

    def __init__(self, posed: PosedFrame, header: RunHeader) -> None:
        self._posed = posed
        self._header = header
        self._lock = threading.Lock()
        self._encoded: tuple[dict[str, Any], bytes] | None = None

    def header_line(self) -> bytes:
        """The header of the frame's source as a line of JSON."""
        return to_line(without_passwords(header_record(self._header)))

    def line(self) -> bytes:
        """The frame as a line of JSON."""
        return to_line(live_record(self._posed, self._header))

    def part(self) -> tuple[dict[str, Any], bytes]:
        """Its record, and its picture as JPEG.

        The record is that of `live_record`, with joints smoothed over time as in pictures. In addition it has the frame's
        `width` and `height`, px, which the joints refer to; `latency_ms` from its capture to its poses; `jpeg_bytes`; and for a
        live source `age_ms`, the frame's current age.
        """
        with self._lock:
            if self._encoded is None:
                self._encoded = self._encode()
            record, jpeg = self._encoded
        captured_ns = self._posed.frame.captured_ns
        if captured_ns is not None:
            record = record | {"age_ms": round((time.time_ns() - captured_ns) / 1e6, 1)}
        return record, jpeg

    def _encode(self) -> tuple[dict[str, Any], bytes]:
        frame, timeline = self._posed.frame, self._posed.timeline
        shrink = min(1.0, MAX_SIDE_PX / max(frame.width, frame.height))
        size = (max(1, round(frame.width * shrink)), max(1, round(frame.height * shrink)))
        image = frame.image if shrink == 1 else cv2.resize(frame.image, size, interpolation=cv2.INTER_AREA)
        jpeg = cv2.imencode(".jpg", image, [cv2.IMWRITE_JPEG_QUALITY, JPEG_QUALITY])[1].tobytes()
        poses = tuple(as_shown(pose, self._posed.camera) for pose in self._posed.poses)
        record = live_record(replace(self._posed, poses=poses), self._header) | {
            "width": frame.width,
            "height": frame.height,
            "latency_ms": None if timeline is None else round(timeline.latency_ns / 1e6, 2),
            "jpeg_bytes": len(jpeg),
        }
        return record, jpeg


def page_message(messages: Sequence[FrameMessage], status: dict[str, Any] | None) -> bytes:
    """One message for the page: frames of different sources, and from time to time the run's status."""
    parts = [message.part() for message in messages]
    head = {"type": "frames", "frames": [record for record, _ in parts], "status": status}
    text = json.dumps(head, separators=(",", ":"), allow_nan=False).encode()
    return b"".join([struct.pack(">I", len(text)), text, *(jpeg for _, jpeg in parts)])
