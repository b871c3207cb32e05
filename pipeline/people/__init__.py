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
"""Lowest mean joint score that counts as a person in a stream, where a second confident pose has to confirm a newcomer."""

PICTURE_MIN_SCORE = 0.55
"""The same for single pictures: the smallest value (in hundredths) at which the default weights have at most one false alarm in
a hundred pictures without people (3 of 355): docs/people.md."""


@dataclass(frozen=True)
class Identified:
    """The people in a frame.

    Attributes:
        poses: their poses, each with a different track id.
        events: what happened to their tracks.
        look_again: whether the same frame has to be given to `find` again; the last answer counts.
    """

    poses: tuple[RelativePose, ...]
    events: tuple[TrackEvent, ...] = ()
    look_again: bool = False


class PeopleFinder(Protocol):
    """Finds and identifies the people in each frame of one source. Frames come in order, one at a time."""

    def find(self, frame: Frame, stopwatch: Stopwatch) -> tuple[TrackedBox, ...]:
        """The boxes of a frame that may contain a person. The time of the detector is added to the stopwatch.

        Their track ids are temporary until `identify` has assigned the final ones.
        """
        ...

    def identify(self, poses: Sequence[RelativePose]) -> Identified:
        """Assign track ids to the poses that were read in the boxes of the last `find`; poses of nobody are left out."""
        ...


class WholePicture:
    """One person who fills every picture: for benchmarks with random weights, which cannot find people."""

    def find(self, frame: Frame, stopwatch: Stopwatch) -> tuple[TrackedBox, ...]:
        """The whole picture's box."""
        return (TrackedBox(0, Box(0, 0, frame.width, frame.height)),)

    def identify(self, poses: Sequence[RelativePose]) -> Identified:
        """The unchanged poses: nobody is tracked."""
        return Identified(tuple(poses))
