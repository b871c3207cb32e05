"""The people detector on any session: frames in, boxes with scores out.

This project's detectors have the layout `boxes and scores`: input `frames` uint8 [N, H, W, 3] in OpenCV's BGR order, H and W
multiples of 16; outputs `boxes` float32 [N, K, 4] = (x, y, width, height, px of the frame) and `scores` float32 [N, K] in 0..1,
the best first. A person may have several boxes: `non_maximum_suppression` keeps the best. `engines.layouts` has the layouts of
other detectors.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from types import TracebackType

import numpy as np
from numpy.typing import NDArray

from convnextpose.errors import GeometryError, ModelError
from convnextpose.files import show
from engines.layouts import DetectedBoxes, Network, Reading, class_names, person_class, recognise, unknown
from engines.onnx_file import free_sides
from engines.session import Arrays, ArraySpec, Session, SessionDescription

OVERLAP = 0.5
"""If the intersection over union of two boxes is larger than this, the one with the lower score is left out."""


SIDE_STEP, LEAST_SIDE = 16, 64
"""Sides of the frames that this project's detector reads: multiples of the first, at least the second, px."""

_OURS = "convnextpose.detector"

TOLD = (_OURS, "imgsz", "names", "description")
"""The metadata of a file that opening a detector needs."""


@dataclass(frozen=True)
class DetectorInfo:
    """The description of a people detector, used in place of its ONNX file.

    Attributes:
        name: its name: `detector` for the package's own, otherwise its file's name.
        file_sha256: hash of the ONNX file that it was made from, hexadecimal.
        width, height: size of its frames, px.
        layout: name of its layout in `engines.layouts.LAYOUTS`.
        person: the class of people; None if it detects only people.
        metadata: the entries of its file's metadata that are in TOLD.
        stem: number of input channels of its first convolution; None if unknown.
        precision: its precision.
    """

    name: str
    file_sha256: str
    width: int
    height: int
    layout: str
    person: int | None = None
    metadata: Mapping[str, str] = field(default_factory=dict)
    stem: int | None = None
    precision: str = "fp32"

    def __post_init__(self) -> None:
        """Check the precision, which is part of file names.

        Raises:
            ModelError: there is no such precision.
        """
        if self.precision != "fp32":
            raise ModelError(f"expected precision fp32 of a people detector, received {show(self.precision)}")


def people_specs(count: int) -> tuple[tuple[ArraySpec, ...], tuple[ArraySpec, ...]]:
    """The inputs and outputs of this project's detector.

    Args:
        count: number of boxes for each frame.
    """
    return (
        (ArraySpec("frames", "uint8", (None, None, None, 3)),),
        (ArraySpec("boxes", "float32", (None, count, 4)), ArraySpec("scores", "float32", (None, count))),
    )


def people_metadata(frame_size: int) -> dict[str, str]:
    """The metadata of this project's detector: its kind, and the longer side of its frames, px."""
    return {_OURS: "2", "imgsz": f"[{frame_size}, {frame_size}]"}


class PeopleDetector:
    """A people detector in a session, which it closes. Like the session, it may be called from any thread. A context manager.

    Opening it runs a black frame: this warms the library up, and the network's layout is recognised from the outputs.

    Args:
        session: runs the network.
        metadata: its file's metadata.
        stem: number of input channels of its first convolution, if known.
        person: the class of people, by name or number; None for the one that the file states, or else the layout's own.
        name: the detector's name.

    Attributes:
        name: its name.
        layout: its layout.
        frame_size: width and height of its frames, px; the largest if `frame_for` gives smaller ones.
        picture: the network's input for frames.
        person: the class of people; None if it detects only people.
        about: its layout, frame size and class in a few words.

    Raises:
        ModelError: the network has no known layout, or its outputs do not follow it; the session is closed.
    """

    def __init__(
        self,
        session: Session,
        *,
        metadata: Mapping[str, str] | None = None,
        stem: int | None = None,
        person: str | None = None,
        name: str = "the people detector",
    ) -> None:
        self._session = session
        self.name = name
        try:
            told = metadata or {}
            self.picture = next((spec for spec in session.inputs if _channels(spec) is not None), None) or session.inputs[0]
            if not self._takes_pictures():
                raise unknown(", ".join(map(str, (*session.inputs, *session.outputs))))
            self._first = _channels(self.picture) == 1
            self.frame_size = _frame_size(self.picture, told, first=self._first)
            width, height = self.frame_size
            self._any_sides = _OURS in told and self.picture.shape[1:3] == (None, None)
            self._frames = ArraySpec("frames", "uint8", (None, *((None, None) if self._any_sides else (height, width)), 3))
            black = np.zeros((1, *((LEAST_SIDE, LEAST_SIDE) if self._any_sides else (height, width)), 3), np.uint8)
            outputs = session.run(self._feed(black.astype(self.picture.dtype)))
            network = Network(session.inputs, outputs, self.frame_size, told, stem)
            self.layout = recognise(network)
            self._reading = Reading(self.frame_size, person_class(self.layout, network, person))
            self.person = None if self.layout.person is None else self._reading.person
            self._check(outputs)
            called = class_names(told).get(self._reading.person)
            who = f", people are class {self.person}{f' ({called})' if called else ''}"
            most = "up to " if self._any_sides else ""
            self.about = f"{self.layout.name}, {most}{width}x{height} px{'' if self.person is None else who}"
        except BaseException:
            session.close()
            raise

    def frame_for(self, width: int, height: int) -> tuple[int, int]:
        """Width and height of the frame for a picture of a given size, px.

        This is `frame_size`; or, if the network takes frames of any size, only the part of it that the picture fills: for a
        picture of 16:9 the rest would be 44 % of the frame.
        """
        if not self._any_sides:
            return self.frame_size
        scale = min(whole / side for whole, side in zip(self.frame_size, (width, height), strict=True))
        across, down = (max(LEAST_SIDE, -(-round(side * scale) // SIDE_STEP) * SIDE_STEP) for side in (width, height))
        return across, down

    def run(self, frames: NDArray[np.uint8]) -> DetectedBoxes:
        """Frames [N, height, width, 3] uint8 BGR, of a size that `frame_for` returns, to boxes and scores; N may be 0.

        Raises:
            GeometryError: the frames have another shape or type.
            ModelError: the library could not run the network.
            RuntimeUnavailableError: the session is closed.
        """
        self._frames.check(frames)
        if self._any_sides and any(side < LEAST_SIDE or side % SIDE_STEP for side in frames.shape[1:3]):
            raise GeometryError(
                f"expected frames with sides of {LEAST_SIDE} px or more, in multiples of {SIDE_STEP}, "
                f"received {list(frames.shape)}"
            )
        if len(frames) == 0:
            return DetectedBoxes(np.zeros((0, 0, 4), np.float32), np.zeros((0, 0), np.float32))
        if self.picture.shape[0] == 1 and len(frames) > 1:
            return _together([self.run(frame[None]) for frame in frames])
        return self.layout.read(self._session.run(self._feed(self._prepared(frames))), self._reading)

    def describe(self) -> SessionDescription:
        """What runs the network."""
        return self._session.describe()

    def close(self) -> None:
        """Close the session; calling it again does nothing."""
        self._session.close()

    def __enter__(self) -> PeopleDetector:
        """The detector itself."""
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None) -> None:
        """Close it."""
        self.close()

    def _takes_pictures(self) -> bool:
        """Whether the inputs are frames, one or any number at once, and at most a second input with their sizes."""
        others = [spec for spec in self._session.inputs if spec.name != self.picture.name]
        sizes = all(len(spec.shape) == 2 and spec.shape[1] == 2 for spec in others)
        return _channels(self.picture) is not None and self.picture.shape[0] in (None, 1) and len(others) <= 1 and sizes

    def _prepared(self, frames: NDArray[np.uint8]) -> NDArray[np.generic]:
        """Frames in the network's colours, scale and type, channels last."""
        how = self.layout.preparation
        colours = frames[..., ::-1] if how.rgb else frames
        if self.picture.dtype == "uint8":
            return colours
        scaled = (colours - np.array(how.mean, np.float32)) / np.array(how.std, np.float32)
        return np.asarray(scaled.astype(self.picture.dtype))

    def _feed(self, prepared: NDArray[np.generic]) -> Arrays:
        """All inputs of the network."""
        arrays: Arrays = {self.picture.name: prepared.transpose(0, 3, 1, 2) if self._first else prepared}
        for spec in self._session.inputs:
            if spec.name != self.picture.name:
                arrays[spec.name] = np.tile(np.array(self.frame_size, spec.dtype), (len(prepared), 1))
        return arrays

    def _check(self, outputs: Arrays) -> None:
        """Refuse a network whose outputs for one black frame do not follow its layout."""
        try:
            found = self.layout.read(outputs, self._reading)
        except GeometryError as error:
            raise ModelError(f"the people detector breaks its contract: {error}") from error
        if len(found.boxes) != 1 or not (np.isfinite(found.boxes).all() and np.isfinite(found.scores).all()):
            raise ModelError(
                f"expected finite boxes [1, K, 4] and scores [1, K] from the people detector, received "
                f"{list(found.boxes.shape)} and {list(found.scores.shape)}"
            )


TYPES = ("uint8", "float16", "float32")
"""The allowed types of a network's frames."""


def _channels(spec: ArraySpec) -> int | None:
    """The axis of an input's three colour channels, 1 or 3; None if it is no input for frames."""
    if len(spec.shape) != 4 or spec.dtype not in TYPES:
        return None
    return next((axis for axis in (3, 1) if spec.shape[axis] == 3), None)


def with_sides(spec: ArraySpec, width: int, height: int) -> ArraySpec:
    """The spec of an input for frames with fixed sides, px."""
    sides = (3, height, width) if _channels(spec) == 1 else (height, width, 3)
    return ArraySpec(spec.name, spec.dtype, (spec.shape[0], *sides))


def _frame_size(spec: ArraySpec, metadata: Mapping[str, str], *, first: bool) -> tuple[int, int]:
    """Width and height of the frames: those of the input, or those of `free_sides` if they are variable."""
    height, width = spec.shape[2:] if first else spec.shape[1:3]
    free = free_sides(metadata)
    size = width or free[1], height or free[0]
    if not all(32 <= side <= 4096 for side in size):
        raise ModelError(f"expected a people detector of frames of 32 to 4096 px, received one of {size[0]}x{size[1]} px")
    return size


def _together(found: list[DetectedBoxes]) -> DetectedBoxes:
    """The boxes of several frames together, padded with boxes of score 0."""
    most = max(boxes.scores.shape[1] for boxes in found)
    fill = [most - boxes.scores.shape[1] for boxes in found]
    return DetectedBoxes(
        np.concatenate([np.pad(b.boxes, ((0, 0), (0, n), (0, 0))) for b, n in zip(found, fill, strict=True)]),
        np.concatenate([np.pad(b.scores, ((0, 0), (0, n))) for b, n in zip(found, fill, strict=True)]),
    )


def non_maximum_suppression(
    boxes: NDArray[np.floating], scores: NDArray[np.floating], min_score: float, overlap: float = OVERLAP
) -> NDArray[np.intp]:
    """Non-maximum suppression of one frame's boxes.

    Args:
        boxes: [K, 4] x, y, width, height, px.
        scores: [K].
        min_score: boxes with a lower score are left out.
        overlap: smallest intersection over union at which two boxes count as the same person.

    Returns:
        Indices of the boxes that are left, the best first.
    """
    order = np.argsort(-scores, kind="stable")
    left = order[scores[order] >= min_score]
    kept = []
    while len(left):
        kept.append(left[0])
        shared = overlaps(boxes[left[:1]], boxes[left[1:]])[0]
        left = left[1:][shared < overlap]
    return np.array(kept, np.intp)


def shared_areas(first: NDArray[np.floating], second: NDArray[np.floating]) -> NDArray[np.float64]:
    """Areas that boxes [A, 4] have in common with boxes [B, 4] (x, y, width, height, px): [A, B] px²."""
    a, b = np.asarray(first, np.float64)[:, None], np.asarray(second, np.float64)[None]
    low = np.maximum(a[..., :2], b[..., :2])
    high = np.minimum(a[..., :2] + a[..., 2:], b[..., :2] + b[..., 2:])
    return np.asarray((high - low).clip(0).prod(-1))


def overlaps(first: NDArray[np.floating], second: NDArray[np.floating]) -> NDArray[np.float64]:
    """Intersection over union of boxes [A, 4] with boxes [B, 4] (x, y, width, height): [A, B]."""
    a, b = (np.asarray(boxes, np.float64)[:, 2:].prod(-1) for boxes in (first, second))
    shared = shared_areas(first, second)
    return np.asarray(shared / np.maximum(a[:, None] + b[None] - shared, 1e-12))
