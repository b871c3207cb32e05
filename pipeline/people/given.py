"""People whose boxes are given: a CSV table, MOTChallenge's text format or the `poses.ndjson` of an earlier run."""

from __future__ import annotations

import csv
import math
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path

from convnextpose.crop import Box
from convnextpose.errors import SourceError
from pipeline.formats.records import read_poses
from pipeline.people import Identified
from pipeline.stages import RelativePose, TrackedBox
from pipeline.timeline import Stopwatch
from pipeline.types import Frame

MAX_BYTES = 2**30
"""Largest file of boxes, bytes: over a million frames with ten people each."""

MAX_TRACK_ID = 2**53
"""Largest track id, which every format of results can represent exactly."""

_CORNERS_SHARE = 0.5
"""If more than this share of the boxes extend beyond the picture, they may be corners."""


class GivenBoxes:
    """People whose boxes are given for each frame; a frame without boxes has nobody.

    Args:
        boxes: frame number to its people.
    """

    def __init__(self, boxes: Mapping[int, tuple[TrackedBox, ...]]) -> None:
        self._boxes = boxes

    def find(self, frame: Frame, stopwatch: Stopwatch) -> tuple[TrackedBox, ...]:
        """The boxes given for this frame."""
        return self._boxes.get(frame.index, ())

    def identify(self, poses: Sequence[RelativePose]) -> Identified:
        """The unchanged poses: the boxes are given."""
        return Identified(tuple(poses))

    def check(self, path: Path, width: int, height: int) -> None:
        """Refuse corners (x1, y1, x2, y2) that were given as x, y, width and height.

        Most such boxes extend beyond the `width` x `height` px picture, but none does if its last two numbers are a corner.

        Raises:
            SourceError: the boxes of `path` are like this.
        """
        boxes = [tracked.box for people in self._boxes.values() for tracked in people]
        outside = [b for b in boxes if b.x + b.width > 1.02 * width or b.y + b.height > 1.02 * height]
        corners = all(b.x < b.width <= 1.02 * width and b.y < b.height <= 1.02 * height for b in boxes)
        if len(outside) > _CORNERS_SHARE * len(boxes) and corners:
            raise SourceError(
                f"expected boxes as x,y,width,height, but {len(outside)} of the {len(boxes)} in {path} extend "
                f"beyond the {width}x{height} px picture, and none does as x1,y1,x2,y2: give corners in the columns "
                "frame,x1,y1,x2,y2"
            )

    @classmethod
    def read(cls, path: Path) -> GivenBoxes:
        """Read boxes from a file.

        A CSV table's first line names its columns: `frame,x,y,width,height`, or `frame,x1,y1,x2,y2` for corners, and
        optionally `track_id`; without it the people of each frame are numbered from 0. Frames count from 0. In MOTChallenge's
        lines (`frame,id,left,top,width,height,...` without a heading) frames and px count from 1. Boxes are in px.

        Raises:
            SourceError: the file has none of these formats; names the line.
        """
        people: dict[int, list[TrackedBox]] = {}
        line = 0
        try:
            _check_file(path)
            with path.open(encoding="utf-8-sig", newline="") as file:
                first = file.read(1)
                if first == "{":
                    frames = read_poses(path).frames
                    boxes = {f.index: tuple(TrackedBox(_track_id(p.track_id), p.box) for p in f.poses) for f in frames}
                    return cls(boxes)
                file.seek(0)
                rows = _mot_boxes(file) if first.isdecimal() else _csv_boxes(file)
                for line, frame, tracked in rows:  # noqa: B007  # `line` is used in the error message
                    people.setdefault(frame, []).append(tracked)
        except SourceError:
            raise
        except OSError as error:
            raise SourceError(f"expected a file of boxes, but {path} cannot be read: {error.strerror}") from error
        except (ValueError, KeyError, TypeError, OverflowError, RecursionError, csv.Error) as error:
            what = f"the column {error}" if isinstance(error, KeyError) else str(error)
            raise SourceError(
                f"expected boxes as CSV with the columns frame,x,y,width,height[,track_id], as MOTChallenge's lines or a "
                f"poses.ndjson, but {path} cannot be read beyond line {line}: {what}"
            ) from error
        return cls({frame: tuple(persons) for frame, persons in people.items()})


def _check_file(path: Path) -> None:
    """Refuse paths that are not files, and files that would fill the memory."""
    if not path.exists():
        raise SourceError(f"expected a file of boxes, but {path} cannot be read: No such file or directory")
    if not path.is_file():
        raise SourceError(f"expected a file of boxes, but {path} is a folder, a device or a pipe")
    if (size := path.stat().st_size) > MAX_BYTES:
        raise SourceError(f"expected a file of boxes of at most {MAX_BYTES} bytes, but {path} has {size}: split the video")


def _csv_boxes(file: Iterator[str]) -> Iterator[tuple[int, int, TrackedBox]]:
    reader = csv.DictReader(file, skipinitialspace=True)
    if reader.fieldnames is None:
        raise ValueError("it is empty")
    corners = {"x1", "y1", "x2", "y2"} <= set(reader.fieldnames)
    names = ("x1", "y1", "x2", "y2") if corners else ("x", "y", "width", "height")
    ids: dict[int, set[int]] = {}
    for row in reader:
        columns = {name: row[name] for name in ("frame", *names)}
        if missing := [name for name, text in columns.items() if not text]:
            raise ValueError(f"line {reader.line_num} has no {missing[0]}")
        frame = int(columns["frame"])
        taken = ids.setdefault(frame, set())
        track_id = _take(taken, row.get("track_id") or len(taken), frame, reader.line_num)
        a, b, c, d = (float(columns[name]) for name in names)
        yield reader.line_num, frame, TrackedBox(track_id, Box(a, b, c - a, d - b) if corners else Box(a, b, c, d))


def _mot_boxes(file: Iterator[str]) -> Iterator[tuple[int, int, TrackedBox]]:
    """Source of the format: MOTChallenge's results, `frame,id,left,top,width,height,...`, frames and pixels counted from 1."""
    ids: dict[int, set[int]] = {}
    for number, row in enumerate(csv.reader(file), 1):
        if not row:
            continue
        if len(row) < 6:
            raise ValueError(f"line {number} has {len(row)} columns instead of frame,id,left,top,width,height")
        frame = int(row[0]) - 1
        taken = ids.setdefault(frame, set())
        given = _track_id(row[1])
        track_id = _take(taken, len(taken) if given == -1 else given, frame, number)  # -1: a detector's boxes without ids
        left, top, width, height = (float(text) for text in row[2:6])
        yield number, frame, TrackedBox(track_id, Box(left - 1, top - 1, width, height))


def _take(taken: set[int], value: object, frame: int, line: int) -> int:
    track_id = _track_id(value)
    if track_id in taken:
        raise ValueError(f"line {line} names person {track_id} of frame {frame} again")
    taken.add(track_id)
    return track_id


def _track_id(value: object) -> int:
    """A track id that every format can represent."""
    number = value if isinstance(value, int) and not isinstance(value, bool) else float(str(value))
    if not (math.isfinite(number) and number == int(number) and abs(number) <= MAX_TRACK_ID):
        raise ValueError(f"expected a track id that is a whole number of at most {MAX_TRACK_ID}, received {value!r}")
    return int(number)
