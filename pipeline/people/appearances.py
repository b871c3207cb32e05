"""The people of a run for its summary: from when to when each was seen, and with how many gaps."""

from __future__ import annotations

from dataclasses import dataclass

from pipeline.types import PosedFrame


@dataclass
class Appearance:
    """When a person was seen.

    Attributes:
        track_id: the person.
        first_s, last_s: time stamps of the first and the last frame with a pose, s.
        poses: number of frames with a pose.
        gaps: number of gaps of one frame or more in between.
    """

    track_id: int
    first_s: float
    last_s: float
    poses: int = 0
    gaps: int = 0


class Appearances:
    """Collects the appearances of people in the posed frames of one source, which are given in order."""

    def __init__(self) -> None:
        self._people: dict[int, Appearance] = {}
        self._seen_last: frozenset[int] = frozenset()

    def add(self, posed: PosedFrame) -> None:
        """Add the people of a frame."""
        time_s = posed.frame.time_s
        for pose in posed.poses:
            person = self._people.setdefault(pose.track_id, Appearance(pose.track_id, time_s, time_s))
            person.gaps += person.poses > 0 and pose.track_id not in self._seen_last
            person.poses += 1
            person.last_s = time_s
        self._seen_last = frozenset(pose.track_id for pose in posed.poses)

    def all(self) -> list[Appearance]:
        """Everybody, by track id."""
        return [self._people[track_id] for track_id in sorted(self._people)]
