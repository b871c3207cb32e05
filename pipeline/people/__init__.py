"""People in a frame: their boxes, from the people detector, from the last poses, or given, and their track ids. May import
numpy, cv2 and the packages to the left.

A `PeopleFinder` is the interface for detectors and trackers. Before the network runs it proposes the boxes of a frame.
Afterwards it assigns the poses that the network found there to people.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Protocol

from convnextpose.crop import Box
from pipeline.stages import RelativePose, TrackedBox
from pipeline.timeline import Stopwatch
from pipeline.types import Frame, TrackEvent

MIN_SCORE = 0.51
"""Mean joint score from which a person counts as found: the lowest hundredth from which the default weights take something
else for a person in at most one in a hundred pictures without people (2 of 252): docs/people.md."""


@dataclass(frozen=True)
class Identified:
    """Who was in a frame.

    Attributes:
        poses: the people, each with a track id of its own.
        events: what happened to their tracks.
        look_again: whether the same frame is to be given to `find` again: that answer then counts.
    """

    poses: tuple[RelativePose, ...]
    events: tuple[TrackEvent, ...] = ()
    look_again: bool = False


class PeopleFinder(Protocol):
    """Names the people of each frame of one source. Frames come in order, one at a time."""

    def find(self, frame: Frame, stopwatch: Stopwatch) -> tuple[TrackedBox, ...]:
        """The places of a frame where somebody may be; what it takes to find them is timed by the stopwatch.

        Their track ids are the finder's own until `identify` has said who is there.
        """
        ...

    def identify(self, poses: Sequence[RelativePose]) -> Identified:
        """Who the poses are that were read in the places that the last `find` named; nobody's are left out."""
        ...


class WholePicture:
    """One person who fills every picture: for benchmarks with random weights, which find nobody."""

    def find(self, frame: Frame, stopwatch: Stopwatch) -> tuple[TrackedBox, ...]:
        """The whole picture's box."""
        return (TrackedBox(0, Box(0, 0, frame.width, frame.height)),)

    def identify(self, poses: Sequence[RelativePose]) -> Identified:
        """The poses as they are: nobody is followed."""
        return Identified(tuple(poses))
