"""The tracker: finds everybody in the picture and gives each person a lasting id.

Boxes come from the people detector, a few times a second, and in every frame from the tracked people, whose positions are
predicted with constant velocity. The pose network reads all these boxes in one batch, and the poses are matched to the tracked
people. All times are those of the stream, in seconds: the number of frames between them does not matter.
"""

from __future__ import annotations

import logging
import math
from collections.abc import Callable, Collection, Mapping, Sequence
from dataclasses import replace

import numpy as np
from numpy.typing import NDArray

from convnextpose.crop import Box
from convnextpose.errors import GeometryError
from convnextpose.skeleton import JointSet
from engines.people import overlaps
from pipeline.people import MIN_SCORE, PICTURE_MIN_SCORE, Identified
from pipeline.people.assignment import assign
from pipeline.people.clothes import Clothes
from pipeline.people.cuts import CutDetector
from pipeline.people.detection import SURE_DETECTION, Detection
from pipeline.people.schedule import BORN_AFTER_S, DetectionSchedule
from pipeline.people.similarity import PoseSimilarity
from pipeline.people.track import MAX_COST, Observation, Track, box_from_joints
from pipeline.stages import RelativePose, TrackedBox
from pipeline.timeline import Stopwatch
from pipeline.types import Frame, TrackEvent, TrackEventKind

_log = logging.getLogger("convnextpose.people")

MAX_PEOPLE = 10
"""Default number of people who are tracked at once."""

KEEP_LOST_S = 1.5
"""Default time for which a person who is out of sight keeps the track id, s."""

KEEP_FRACTION = 2 / 3
"""A pose whose score is at least this fraction of the minimum score counts as unsure; below it there is no pose. An unsure pose
continues a track but begins none, except in single pictures if the detector's score is high (SURE_DETECTION)."""

DETECTION_IOU = 0.4
"""Smallest intersection over union of a detected box and the box of the pose in it, if a person is there."""

EXPLAINED_IOU = 0.5
"""Smallest intersection over union at which a detected box belongs to a tracked person."""

MAX_CANDIDATES = 8
"""Largest number of detected boxes that are read in a frame, those with the highest scores."""

BORN_WITHIN_S = 0.5
"""Longest time between the first observation and the one that confirms it, s; the shortest is BORN_AFTER_S. In the first frame
of a take, further readings of the same frame confirm it."""

MAX_READINGS = 3
"""Largest number of readings of the first frame of a take: each time in the boxes of the last poses."""

LOST_AFTER_S = 0.25
"""A person who is out of sight for this time counts as lost, s."""

UNSURE_S = 3.0
"""How long a person is tracked with only unsure poses and without confirmation by the detector, s. In `vtest.avi` people went
at most 2.0 s without a sure pose, but a signpost that had been taken for a person went 48 s."""

SAME_PERSON_OKS = 0.5
"""Smallest object keypoint similarity at which two poses of a frame are of the same person."""

APART_OKS = 0.2
"""If the object keypoint similarity of two tracks' poses is below this, they are two people."""

NEARER_RATIO = 1.2
"""A newcomer replaces the smallest of `max_people` tracked people if larger by this factor."""


class PeopleTracker:
    """Finds and tracks everybody in the frames of one source.

    Args:
        detect: finds the people in a frame, without duplicates.
        joint_set: the joints' names.
        min_score: lowest mean joint score that counts as a person; a tracked person needs KEEP_FRACTION of it. None for
            MIN_SCORE, or PICTURE_MIN_SCORE if the frames do not follow each other.
        max_people: largest number of people tracked at once; if there are more, the nearest.
        keep_lost_s: how long a person who is out of sight keeps the track id, s.
        sequential: whether the frames follow each other in time. If not, as in a folder of pictures, each is searched
            independently, and an unsure pose is enough if the detector's score is high (SURE_DETECTION), because no later
            frame can bring a sure one.
    """

    def __init__(
        self,
        detect: Callable[[Frame], Sequence[Detection]],
        joint_set: JointSet,
        *,
        min_score: float | None = None,
        max_people: int = MAX_PEOPLE,
        keep_lost_s: float = KEEP_LOST_S,
        sequential: bool = True,
    ) -> None:
        self._detect = detect
        self._similarity = PoseSimilarity(joint_set)
        self._clothes = Clothes(joint_set)
        if min_score is None:
            min_score = MIN_SCORE if sequential else PICTURE_MIN_SCORE
        self._min_score, self._keep_score = min_score, min_score * KEEP_FRACTION
        self._max_people = max_people
        self._keep_lost_s = keep_lost_s
        self._sequential = sequential
        self._sure_detection = math.inf if sequential else SURE_DETECTION
        self._cuts = CutDetector()
        self._tracks: list[Track] = []
        self._next_id = 0
        self._frame: Frame | None = None
        self._begins = True
        self._readings = 0
        self._schedule = DetectionSchedule()
        self._proposed: list[Track | Detection] = []
        self._events: list[TrackEvent] = []

    def find(self, frame: Frame, stopwatch: Stopwatch) -> tuple[TrackedBox, ...]:
        """The boxes that may contain a person: those of all tracked people, and other boxes of the detector.

        If it is called again with the same frame, it returns the boxes for a further reading.
        """
        again = frame is self._frame
        self._frame, self._events = frame, []
        self._readings = self._readings + 1 if again else 1
        if not again:
            self._begin(frame)
        sought: list[tuple[Track | Detection, Box]] = []
        for track in self._tracks:
            try:
                sought.append((track, track.expected(frame.time_s).clip(frame.width, frame.height)))
            except GeometryError:  # outside the picture
                continue
        busy = any(track.track_id is None or track.missed_s is not None for track in self._tracks)
        smallest = self._smallest()
        if not again and self._schedule.due(frame.time_s, busy=busy, full=smallest > 0):
            with stopwatch.span("detect"):
                detections = self._detect(frame)
            sought += self._unexplained(detections, sought, smallest)
        self._proposed = [who for who, _ in sought]
        return tuple(TrackedBox(number, box) for number, (_, box) in enumerate(sought))

    def _begin(self, frame: Frame) -> None:
        """Remove the tracks of an earlier take, and of people who have been out of sight for too long."""
        reason = self._cuts.begins_take(frame)
        if reason is not None and self._sequential:
            ids: list[int | None] = [track.track_id for track in self._tracks if track.track_id is not None]
            for track_id in ids or [None]:
                self._add_event(TrackEventKind.CUT, track_id, reason)
        self._begins = reason is not None or not self._sequential or not self._schedule.has_run
        if self._begins:
            self._tracks = []
            self._schedule.reset()

        def kept(track: Track) -> bool:
            if track.track_id is None:
                return frame.time_s - track.seen_s <= LOST_AFTER_S and frame.time_s - track.first_s <= BORN_WITHIN_S
            return track.missed_s is None or frame.time_s - track.missed_s <= self._keep_lost_s

        self._tracks = [track for track in self._tracks if kept(track)]

    def _smallest(self) -> float:
        """The size of the smallest tracked person, px, if `max_people` are tracked and all of them were just seen. Otherwise 0:
        there is room for more, or a detected box may show a person who was out of sight."""
        known = [track for track in self._tracks if track.track_id is not None]
        if len(known) < self._max_people or any(track.missed_s is not None for track in known):
            return 0.0
        return min(track.size for track in known)

    def _unexplained(
        self, detections: Sequence[Detection], expected: Sequence[tuple[Track | Detection, Box]], smallest: float
    ) -> list[tuple[Track | Detection, Box]]:
        """The detections with the highest scores that belong to no tracked person and are at least `smallest` px in size.
        Detections that belong to a track confirm it."""
        assert self._frame is not None
        shared = overlaps(_array([d.box for d in detections]), _array([box for _, box in expected]))
        explained = dict(assign(1 - shared, 1 - EXPLAINED_IOU))
        for column in explained.values():
            who, _ = expected[column]
            if isinstance(who, Track):
                who.confirmed_s = self._frame.time_s
        new = [d for row, d in enumerate(detections) if row not in explained and math.sqrt(d.box.area) >= smallest]
        new = self._schedule.without_rejected(new, self._frame.time_s)
        new.sort(key=lambda d: (-d.score, d.box.x, d.box.y, d.box.width, d.box.height))
        return [(detection, detection.box) for detection in new[:MAX_CANDIDATES]]

    def identify(self, poses: Sequence[RelativePose]) -> Identified:
        """Assign the poses that were read in the boxes of the last `find` to people."""
        assert self._frame is not None
        now = self._frame.time_s
        observations, at_expected = self._observations(poses)
        known = [track for track in self._tracks if track.track_id is not None]
        sure = [s for s in observations if s.sure]
        matches = self._match(known, sure, now)
        rest = [
            track
            for track in known
            if track not in matches
            and (track.missed_s is None or now - track.seen_s <= LOST_AFTER_S)
            and now - track.confirmed_s <= UNSURE_S
        ]
        taken = set(map(id, matches.values()))
        matches |= self._match(rest, [s for s in observations if id(s) not in taken], now)
        taken = set(map(id, matches.values()))
        unborn = [track for track in self._tracks if track.track_id is None]
        matches |= self._match(unborn, [s for s in observations if id(s) not in taken], now)
        taken = set(map(id, matches.values()))

        found_again = {track: now - track.seen_s for track in matches if track.reported_lost}
        for track, observation in matches.items():
            track.update(observation, now)
        self._merge(matches, at_expected, now)
        for track in self._tracks:
            if track not in matches:
                self._miss(track, at_expected, matches, now)
        self._admit(matches, found_again, now)
        new = [o for o in observations if o.detected and id(o) not in taken and self._is_apart(o, matches, now)]
        room = NEARER_RATIO * self._smallest()  # smaller newcomers would not be admitted
        self._tracks += [Track.begin(observation, now) for observation in new if observation.size > room]
        poses_now = [
            replace(observation.pose, track_id=track.track_id)
            for track, observation in matches.items()
            if track.track_id is not None and track in self._tracks
        ]
        poses_now.sort(key=lambda pose: pose.track_id)
        unsure = any(track.track_id is None for track in self._tracks)
        return Identified(
            tuple(poses_now), tuple(self._events), look_again=self._begins and unsure and self._readings < MAX_READINGS
        )

    def _observations(self, poses: Sequence[RelativePose]) -> tuple[list[Observation], dict[Track, Observation]]:
        """One observation for each visible person, and the observation at each track's predicted position."""
        assert self._frame is not None
        found = []
        for pose in poses:
            who = self._proposed[pose.track_id]
            if isinstance(who, Detection):
                self._schedule.record_score(who, pose.score, self._frame.time_s)
            if pose.score < self._keep_score:
                continue
            try:
                box = box_from_joints(pose.joints)
                box.clip(self._frame.width, self._frame.height)
            except GeometryError:  # the joints enclose no area or are outside the picture: no person
                continue
            if isinstance(who, Detection) and box.iou(who.box) < DETECTION_IOU:
                continue
            expected_by = [who] if isinstance(who, Track) else []
            place = pose.joints[:, :2].mean(axis=0)
            size, detected = math.sqrt(box.area), who.score if isinstance(who, Detection) else 0.0
            sure = pose.score >= self._min_score or detected >= self._sure_detection
            clothes = self._clothes.read(self._frame.image, pose.joints, size)
            found.append(Observation(pose, box, place, size, clothes, sure, detected, expected_by))
        found.sort(key=lambda s: (-s.pose.score, s.box.x, s.box.y, s.box.width, s.box.height))
        apart: list[Observation] = []
        for observation in found:
            for other in apart:
                size = max(observation.size, other.size)
                if self._similarity(observation.pose.joints, other.pose.joints, size) >= SAME_PERSON_OKS:
                    other.detected = max(other.detected, observation.detected)
                    other.sure |= observation.sure
                    other.expected_by += observation.expected_by
                    break
            else:
                apart.append(observation)
        return apart, {track: observation for observation in apart for track in observation.expected_by}

    def _match(self, tracks: Sequence[Track], observations: Sequence[Observation], now: float) -> dict[Track, Observation]:
        """The most likely assignment of the observations to the tracks."""
        if not tracks or not observations:
            return {}
        costs = np.array([track.costs(observations, now, self._similarity) for track in tracks])
        return {tracks[row]: observations[column] for row, column in assign(costs, MAX_COST)}

    def _merge(self, matches: dict[Track, Observation], at_expected: dict[Track, Observation], now: float) -> None:
        """Merge two tracks of one person into the older one."""
        for track, observation in at_expected.items():
            other = next((t for t, s in matches.items() if s is observation), None)
            if other is None or track in matches or track not in self._tracks or None in (track.track_id, other.track_id):
                continue
            first, second = sorted((track, other), key=lambda t: t.track_id or 0)
            if first not in second.together:
                continue  # two people, one behind the other
            self._add_event(TrackEventKind.MERGED, second.track_id, f"the same person as {first.track_id}", first.track_id)
            if second is other:  # the older track takes over the younger one's observation
                matches[first] = matches.pop(second)
                first.update(observation, now)
            self._tracks.remove(second)

    def _miss(self, track: Track, at_expected: dict[Track, Observation], matches: dict[Track, Observation], now: float) -> None:
        """Record that a track's person is not seen in this frame."""
        if track.missed_s is None:
            track.missed_s = now
        if track.track_id is None or track.reported_lost or now - track.seen_s < LOST_AFTER_S:
            return
        track.reported_lost = True
        self._add_event(TrackEventKind.LOST, track.track_id, self._why(track, at_expected.get(track), matches, now))

    def _why(self, track: Track, seen: Observation | None, matches: dict[Track, Observation], now: float) -> str:
        assert self._frame is not None
        expected = track.expected(now)
        try:
            inside = expected.clip(self._frame.width, self._frame.height).area / expected.area
        except GeometryError:
            inside = 0.0
        if inside < 0.6:
            return "out of the picture"
        for other, observation in matches.items():
            if other.track_id is not None and (observation is seen or observation.box.iou(expected) > 0.3):
                return f"person {other.track_id} is there"
        if seen is not None and now - track.confirmed_s > UNSURE_S:
            return f"no confident pose for {UNSURE_S:g} s"
        return "nobody is seen there"

    def _is_apart(self, observation: Observation, matches: Mapping[Track, Observation], now: float) -> bool:
        """Whether an observation clearly shows a person other than those of all known tracks."""
        for track in self._tracks:
            if track.track_id is not None and matches.get(track) is not observation:
                joints = matches[track].pose.joints if track in matches else track.expected_joints(now)
                if self._similarity(observation.pose.joints, joints, max(observation.size, track.size)) > APART_OKS:
                    return False
        return True

    def _admit(self, matches: dict[Track, Observation], found_again: Mapping[Track, float], now: float) -> None:
        """Give track ids to newcomers that a second observation confirms; if there are too many, to the nearest."""
        born = {
            track
            for track, observation in matches.items()
            if track.track_id is None
            and (observation.sure or track.detected >= self._sure_detection)
            and (self._begins or now - track.first_s >= BORN_AFTER_S)
            and self._is_apart(observation, matches, now)
        }
        there = [t for t in self._tracks if t in born or (t.track_id is not None and not t.reported_lost)]
        there.sort(key=lambda t: -t.size * (1.0 if t in born or t in found_again else NEARER_RATIO))
        for track in there[self._max_people :]:
            if track.track_id is not None and track not in found_again:
                self._add_event(TrackEventKind.LOST, track.track_id, f"{self._max_people} people are nearer")
            self._tracks.remove(track)
        for track, gap_s in found_again.items():
            if track in self._tracks:
                self._add_event(TrackEventKind.FOUND_AGAIN, track.track_id, f"out of sight for {gap_s:.2f} s")
        born &= set(self._tracks)
        for track in sorted(born, key=lambda t: (t.first_s, matches[t].box.x, matches[t].box.y, matches[t].size)):
            track.track_id, self._next_id = self._next_id, self._next_id + 1
            self._add_event(TrackEventKind.BORN, track.track_id, f"first seen at {track.first_s:.3f} s")
        self._note_together(born, now)

    def _note_together(self, born: Collection[Track], now: float) -> None:
        """Record which people were never seen apart."""
        joints = {track: track.expected_joints(now) for track in self._tracks if track.track_id is not None}
        for track, own in joints.items():
            others = joints.keys() - {track} if track in born else joints.keys() & track.together
            track.together = {o for o in others if self._similarity(own, joints[o], max(track.size, o.size)) > APART_OKS}

    def _add_event(self, kind: TrackEventKind, track_id: int | None, reason: str, other_id: int | None = None) -> None:
        assert self._frame is not None
        event = TrackEvent(kind, self._frame.time_s, track_id, reason, other_id)
        self._events.append(event)
        _log.info("%s: %s", self._frame.source_id, event)


def _array(boxes: Sequence[Box]) -> NDArray[np.float64]:
    return np.array([(b.x, b.y, b.width, b.height) for b in boxes], np.float64).reshape(-1, 4)
