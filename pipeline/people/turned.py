"""Finds out whether people appear only in the rotated picture, as with a camera that hangs upside down."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import replace

import numpy as np

from convnextpose.errors import GeometryError
from engines.pose import PoseModel
from pipeline.people import MIN_SCORE
from pipeline.people.detection import Detection
from pipeline.people.tracker import PeopleTracker
from pipeline.sources.orientation import FLIPS
from pipeline.stages import predict
from pipeline.timeline import Stopwatch
from pipeline.types import Frame

INTERVAL_S = 5.0
"""Between two looks at a picture that is turned, s: a second's frames cost more than all looks at a picture."""

MOST_LOOKS = 12
"""Frames that are looked at, at most: where nobody is, something else looks like a person sooner or later."""

TURNS = ("180", "90", "270")
"""How pictures are turned, by names of `FLIPS`, in the order of how often cameras hang so."""


class TurnedPeople:
    """Looks, now and then and until somebody was found, whether people show when the picture is turned.

    The networks know people who stand: of those who are upside down they see nobody.

    Args:
        detect: the people whom the detector sees in a frame, as for `PeopleTracker`.
        model: reads their poses.
        min_score: mean joint score from which a person counts as found.
        follows: whether the frames follow each other in time, as for `PeopleTracker`: who is told of here must be found there.
    """

    def __init__(
        self,
        detect: Callable[[Frame], Sequence[Detection]],
        model: PoseModel,
        *,
        min_score: float = MIN_SCORE,
        follows: bool = True,
    ) -> None:
        self._detect = detect
        self._model = model
        self._min_score = min_score
        self._follows = follows
        self._next_s = -math.inf
        self._looks = 0

    def look(self, frame: Frame) -> str | None:
        """One sentence about people who show when a frame without people is turned, or None. Most frames are not looked at."""
        if self._looks == MOST_LOOKS or self._next_s - INTERVAL_S <= frame.time_s < self._next_s:
            return None
        self._next_s, self._looks = frame.time_s + INTERVAL_S, self._looks + 1
        for name in TURNS:
            image = np.ascontiguousarray(FLIPS[name].apply(frame.image))
            if self._finds(replace(frame, image=image)):
                return f"people were found in the picture rotated by {name} degrees: use --flip {name}"
        return None

    def _finds(self, frame: Frame) -> bool:
        joints = self._model.info.joint_set
        people = PeopleTracker(self._detect, joints, min_score=self._min_score, follows=self._follows)
        while True:
            try:
                boxes = people.find(frame, Stopwatch())
                known = people.identify(predict(self._model, frame.image, boxes, Stopwatch()))
            except GeometryError:
                return False
            if not known.look_again:
                return bool(known.poses)
