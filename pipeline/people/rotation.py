"""Checks whether people are found only after the picture is rotated, as with a camera that hangs upside down."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import replace

import numpy as np

from convnextpose.errors import GeometryError
from engines.pose import PoseModel
from pipeline.people.detection import Detection
from pipeline.people.tracker import PeopleTracker
from pipeline.sources.orientation import FLIPS
from pipeline.stages import predict
from pipeline.timeline import Stopwatch
from pipeline.types import Frame

INTERVAL_S = 5.0
"""Time between two searches of rotated pictures, s: one search costs less than a second of frames."""

MAX_CHECKS = 12
"""Largest number of frames that are searched: without people, some object is taken for a person sooner or later."""

ROTATIONS = ("180", "90", "270")
"""The rotations to try, by names of `FLIPS`, most frequent first."""


class RotationCheck:
    """Searches rotated pictures from time to time, until a person is found.

    The networks were trained on upright people, and do not find people who are upside down.

    Args:
        detect: finds the people in a frame, as for `PeopleTracker`.
        model: reads their poses.
        min_score: lowest mean joint score that counts as a person; None as for `PeopleTracker`.
        sequential: whether the frames follow each other in time, as for `PeopleTracker`, so that both find the same people.
    """

    def __init__(
        self,
        detect: Callable[[Frame], Sequence[Detection]],
        model: PoseModel,
        *,
        min_score: float | None = None,
        sequential: bool = True,
    ) -> None:
        self._detect = detect
        self._model = model
        self._min_score = min_score
        self._sequential = sequential
        self._next_s = -math.inf
        self._checks = 0

    def check(self, frame: Frame) -> str | None:
        """For a frame without people: one sentence if a rotated picture shows some, else None. Most frames are not searched."""
        if self._checks == MAX_CHECKS or self._next_s - INTERVAL_S <= frame.time_s < self._next_s:
            return None
        self._next_s, self._checks = frame.time_s + INTERVAL_S, self._checks + 1
        for name in ROTATIONS:
            image = np.ascontiguousarray(FLIPS[name].apply(frame.image))
            if self._finds(replace(frame, image=image)):
                return f"people were found in the picture rotated by {name} degrees: use --flip {name}"
        return None

    def _finds(self, frame: Frame) -> bool:
        joints = self._model.info.joint_set
        people = PeopleTracker(self._detect, joints, min_score=self._min_score, sequential=self._sequential)
        while True:
            try:
                boxes = people.find(frame, Stopwatch())
                known = people.identify(predict(self._model, frame.image, boxes, Stopwatch()))
            except GeometryError:
                return False
            if not known.look_again:
                return bool(known.poses)
