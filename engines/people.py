"""The people detector's face over any session: frames in, boxes with scores out.

What this project exports has the layout `boxes and scores`: input `frames` uint8 [N, S, S, 3] in OpenCV's BGR order; outputs
`boxes` float32 [N, K, 4] = (x, y, width, height, px of the frame) and `scores` float32 [N, K] in 0..1, the best first. Several
boxes of one person are possible: `without_duplicates` leaves the best of them.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from types import TracebackType

import numpy as np
from numpy.typing import NDArray

from convnextpose.errors import GeometryError, ModelError
from engines.session import Arrays, ArraySpec, Session, SessionDescription

OVERLAP = 0.5
"""Of two boxes that share more than this part of their union, the one with the lower score is left out."""


def people_specs(frame_size: int, count: int) -> tuple[tuple[ArraySpec, ...], tuple[ArraySpec, ...]]:
    """What a detector of the layout `boxes and scores` takes and gives.

    Args:
        frame_size: side of its frames, px.
        count: how many boxes it gives for each frame.
    """
    return (
        (ArraySpec("frames", "uint8", (None, frame_size, frame_size, 3)),),
        (ArraySpec("boxes", "float32", (None, count, 4)), ArraySpec("scores", "float32", (None, count))),
    )


@dataclass(frozen=True)
class DetectedBoxes:
    """What a detector gives for N frames.

    Attributes:
        boxes: float32 [N, K, 4]: x, y, width, height, px of the frame.
        scores: float32 [N, K], 0..1, the best first.
    """

    boxes: NDArray[np.float32]
    scores: NDArray[np.float32]

    def __post_init__(self) -> None:
        """Check that the shapes fit each other."""
        if self.boxes.ndim != 3 or self.boxes.shape[2] != 4 or self.scores.shape != self.boxes.shape[:2]:
            raise GeometryError(
                f"expected boxes [N, K, 4] and scores [N, K], received {list(self.boxes.shape)} and {list(self.scores.shape)}"
            )


@dataclass(frozen=True)
class Layout:
    """How a kind of detector takes frames and gives boxes.

    Attributes:
        name: what people call it.
        inputs, outputs: its arrays; the frames' side is free here and fixed in a detector.
        read: what its outputs say.
    """

    name: str
    inputs: tuple[ArraySpec, ...]
    outputs: tuple[ArraySpec, ...]
    read: Callable[[Arrays], DetectedBoxes]

    def fits(self, session: Session) -> bool:
        """Whether a session's network has this layout."""
        ours, theirs = (*self.inputs, *self.outputs), (*session.inputs, *session.outputs)
        named = {spec.name: spec for spec in theirs}
        return named.keys() == {spec.name for spec in ours} and all(spec.fits(named[spec.name]) for spec in ours)


LAYOUTS = (
    Layout(
        "boxes and scores",
        (ArraySpec("frames", "uint8", (None, None, None, 3)),),
        (ArraySpec("boxes", "float32", (None, None, 4)), ArraySpec("scores", "float32", (None, None))),
        lambda outputs: DetectedBoxes(outputs["boxes"], outputs["scores"]),
    ),
)
"""The layouts that a detector is recognised by."""


class PeopleDetector:
    """A people detector in a session, which it closes. Any thread may call it, as the session. A context manager.

    Opening it runs a black frame: that warms the library up and shows that the network keeps its layout.

    Args:
        session: runs the network.

    Attributes:
        layout: how its network takes frames and gives boxes.
        frame_size: side of the square frames that it reads, px.

    Raises:
        ModelError: the network has no known layout, or does not keep it; the session is closed.
    """

    def __init__(self, session: Session) -> None:
        self._session = session
        try:
            self.layout = self._recognise()
            self._frames = session.inputs[0]
            side = self._frames.shape[1]
            if side is None or side != self._frames.shape[2]:
                raise ModelError(f"expected a people detector of square frames, received one of {self._frames}")
            self.frame_size = side
            self._check()
        except BaseException:
            session.close()
            raise

    def run(self, frames: NDArray[np.uint8]) -> DetectedBoxes:
        """Frames [N, S, S, 3] uint8 BGR, where S is `frame_size`, to boxes and scores; N may be 0.

        Raises:
            GeometryError: the frames have another shape or type.
            ModelError: the library failed at running the network.
            RuntimeUnavailableError: the session is closed.
        """
        self._frames.check(frames)
        if len(frames) == 0:
            return DetectedBoxes(np.zeros((0, 0, 4), np.float32), np.zeros((0, 0), np.float32))
        return self.layout.read(self._session.run({self._frames.name: frames}))

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

    def _recognise(self) -> Layout:
        for layout in LAYOUTS:
            if layout.fits(self._session):
                return layout
        known = "; ".join(f"{', '.join(map(str, (*layout.inputs, *layout.outputs)))}" for layout in LAYOUTS)
        found = ", ".join(map(str, (*self._session.inputs, *self._session.outputs)))
        raise ModelError(f"expected a people detector of a known layout ({known}), received a network of {found}")

    def _check(self) -> None:
        try:
            found = self.run(np.zeros((1, self.frame_size, self.frame_size, 3), np.uint8))
        except GeometryError as error:
            raise ModelError(f"the people detector breaks its contract: {error}") from error
        if len(found.boxes) != 1 or not (np.isfinite(found.boxes).all() and np.isfinite(found.scores).all()):
            raise ModelError(
                f"expected finite boxes [1, K, 4] and scores [1, K] from the people detector, received "
                f"{list(found.boxes.shape)} and {list(found.scores.shape)}"
            )


def without_duplicates(
    boxes: NDArray[np.floating], scores: NDArray[np.floating], min_score: float, overlap: float = OVERLAP
) -> NDArray[np.intp]:
    """Non-maximum suppression of one frame's boxes.

    Args:
        boxes: [K, 4] x, y, width, height, px.
        scores: [K].
        min_score: boxes with a lower score are left out.
        overlap: intersection over union from which two boxes are taken for the same person.

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


def overlaps(first: NDArray[np.floating], second: NDArray[np.floating]) -> NDArray[np.float64]:
    """Intersection over union of boxes [A, 4] with boxes [B, 4] (x, y, width, height): [A, B]."""
    a, b = np.asarray(first, np.float64)[:, None], np.asarray(second, np.float64)[None]
    low = np.maximum(a[..., :2], b[..., :2])
    high = np.minimum(a[..., :2] + a[..., 2:], b[..., :2] + b[..., 2:])
    shared = (high - low).clip(0).prod(-1)
    union = a[..., 2:].prod(-1) + b[..., 2:].prod(-1) - shared
    return np.asarray(shared / np.maximum(union, 1e-12))
