"""Who is where in a frame: boxes from the people detector, from the last poses, or given. May import numpy, cv2 and the
packages to the left.

A `PeopleFinder` is the seam for detectors and trackers: it names the boxes of a frame before the network reads them, and learns
afterwards what the network made of them.
"""

from __future__ import annotations

from typing import Protocol

from convnextpose.crop import Box
from pipeline.stages import RelativePose, TrackedBox
from pipeline.timeline import Stopwatch
from pipeline.types import Frame

MIN_SCORE = 0.51
"""Mean joint score from which a person counts as found: the lowest hundredth from which the default weights take something
else for a person in at most one in a hundred pictures without people (1 of 143): docs/people.md."""


class PeopleFinder(Protocol):
    """Names the people of each frame of one source. Frames come in order, one at a time."""

    min_score: float
    """Poses with a lower mean score are nobody."""

    def find(self, frame: Frame, stopwatch: Stopwatch) -> tuple[TrackedBox, ...]:
        """The people of a frame, none where nobody is; what it takes to find them is timed by the stopwatch."""
        ...

    def observe(self, poses: tuple[RelativePose, ...]) -> None:
        """What became of the boxes that the last `find` named; poses below `min_score` are left out."""
        ...


class WholePicture:
    """One person who fills every picture: for benchmarks with random weights, which find nobody."""

    min_score = 0.0

    def find(self, frame: Frame, stopwatch: Stopwatch) -> tuple[TrackedBox, ...]:
        """The whole picture's box."""
        return (TrackedBox(0, Box(0, 0, frame.width, frame.height)),)

    def observe(self, poses: tuple[RelativePose, ...]) -> None:
        """Nothing to learn: nobody is followed."""
