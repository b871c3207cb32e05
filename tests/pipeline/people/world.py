"""A world of simulated people for a tracker: their positions, the detector's boxes and the pose network's results.

Time is continuous: the same world can be filmed at any frame rate. People behind another person or a wall are not seen.
Everything that looks random depends only on the person and the time, so that a test gives the same result every time.
"""

import math
from collections.abc import Callable
from dataclasses import dataclass, field

import numpy as np

from convnextpose.crop import Box
from convnextpose.skeleton import HUMAN36M
from pipeline.people.detection import Detection
from pipeline.people.track import box_from_joints
from pipeline.people.tracker import PeopleTracker
from pipeline.stages import RelativePose
from pipeline.timeline import Stopwatch
from pipeline.types import Frame

WIDTH, HEIGHT = 1280, 720

STANDING = np.array(
    [(0, -0.52), (-0.06, -0.52), (-0.06, -0.28), (-0.07, -0.04), (0.06, -0.52), (0.06, -0.28), (0.07, -0.04), (0, -0.66),
     (0, -0.82), (0, -0.88), (0, -0.96), (0.1, -0.8), (0.13, -0.63), (0.12, -0.48), (-0.1, -0.8), (-0.13, -0.63),
     (-0.12, -0.48), (0, -0.8)]
)  # fmt: skip
"""[18, 2] joints of a standing person, relative to the point between the feet, in body heights."""

SWING = np.zeros((18, 2))
SWING[[2, 3, 5, 6, 12, 13, 15, 16], 0] = (0.06, 0.14, -0.06, -0.14, -0.05, -0.12, 0.05, 0.12)
"""How far the limbs of a walking person swing, in body heights."""


@dataclass(frozen=True)
class Walker:
    """A person in the world.

    Attributes:
        feet: maps time, s, to the point between the feet (x, y), px; people lower in the picture are nearer.
        height: px.
        from_s, until_s: when the person is there.
        hidden: the times (from, until) at which the person is behind something.
    """

    feet: Callable[[float], tuple[float, float]]
    height: float = 300.0
    from_s: float = 0.0
    until_s: float = math.inf
    hidden: tuple[tuple[float, float], ...] = ()

    def joints(self, time_s: float) -> np.ndarray:
        """[18, 2] px."""
        return np.array(self.feet(time_s)) + self.height * (STANDING + math.sin(2 * math.pi * 0.9 * time_s) * SWING)


def line(start: tuple[float, float], velocity: tuple[float, float]) -> Callable[[float], tuple[float, float]]:
    """Walks in a straight line, px and px a second."""
    return lambda time_s: (start[0] + velocity[0] * time_s, start[1] + velocity[1] * time_s)


@dataclass
class World:
    """The people, and how good the detector and the network are.

    Attributes:
        walkers: the people.
        jitter: noise of the joints that the network reads, in body heights.
        score: score of the poses of fully visible people.
        detection_score: the detector's score, by person and time.
        twice: whether the detector returns two boxes for each person.
        order: the order of detections and poses.
        looks: how many crops were read.
        things: boxes of things that the detector, but not the network, takes for people.
        searches: the times at which the detector ran.
    """

    walkers: list[Walker]
    jitter: float = 0.004
    score: Callable[[int, float], float] = lambda who, time_s: 0.6
    detection_score: Callable[[int, float], float] = lambda who, time_s: 0.8
    twice: bool = False
    order: Callable[[list], list] = list
    looks: int = 0
    things: list[Box] = field(default_factory=list)
    searches: list[float] = field(default_factory=list)
    _last: dict = field(default_factory=dict)

    def seen(self, time_s: float) -> dict[int, np.ndarray]:
        """The joints of all visible people."""
        if time_s not in self._last:
            self._last = {time_s: self._seen(time_s)}
        return self._last[time_s]

    def _seen(self, time_s):
        there = {}
        for who, walker in enumerate(self.walkers):
            if walker.from_s <= time_s < walker.until_s and not any(a <= time_s < b for a, b in walker.hidden):
                joints = walker.joints(time_s)
                x, y = joints.mean(0)
                if 0 <= x < WIDTH and 0 <= y < HEIGHT:
                    there[who] = joints
        boxes = {who: box_from_joints(joints) for who, joints in there.items()}
        nearness = {who: (self.walkers[who].feet(time_s)[1], who) for who in there}

        def covered(who):
            own = boxes[who]
            return any(
                nearness[other] > nearness[who] and _shared(own, box) > 0.65 * own.area
                for other, box in boxes.items()
                if other != who
            )

        return {who: joints for who, joints in there.items() if not covered(who)}

    def detect(self, frame: Frame) -> list[Detection]:
        found = [Detection(box, 0.5) for box in self.things]
        self.searches.append(frame.time_s)
        for who, joints in self.seen(frame.time_s).items():
            noise = self._noise(who, frame.time_s, 1)[:4, 0] * self.walkers[who].height
            box = box_from_joints(joints)
            score = self.detection_score(who, frame.time_s)
            for part in (1.0, 0.85) if self.twice else (1.0,):
                w, h = box.width * part, box.height * part
                found.append(Detection(Box(box.x + noise[0], box.y + noise[1], w, h).clip(WIDTH, HEIGHT), score * part))
        return self.order([d for d in found if d.score >= 0.3])

    def read(self, frame: Frame, number: int, box: Box) -> RelativePose:
        """The pose that the network reads in a box: that of the person who fills it best."""
        self.looks += 1
        region = box.square()
        seen = self.seen(frame.time_s)
        who = max(seen, key=lambda who: box_from_joints(seen[who]).iou(box), default=None)
        joints, score = np.zeros((18, 3)), 0.1
        joints[:, :2] = (box.x, box.y) + np.random.default_rng(number).random((18, 2)) * (box.width, box.height)
        if who is not None and (overlap := box_from_joints(seen[who]).iou(box)) > 0.15:
            joints[:, :2] = seen[who] + self._noise(who, frame.time_s, 2) * self.walkers[who].height
            score = self.score(who, frame.time_s) * (1.0 if overlap > 0.4 else 0.8)
        return RelativePose(number, box, joints, np.full(18, score), region)

    def _noise(self, who, time_s, salt):
        return np.random.default_rng([who, round(time_s * 1e6), salt]).normal(0, self.jitter, (18, 2))


def _shared(a, b):
    w = min(a.x + a.width, b.x + b.width) - max(a.x, b.x)
    h = min(a.y + a.height, b.y + b.height) - max(a.y, b.y)
    return max(0.0, w) * max(0.0, h)


@dataclass
class Film:
    """A tracker's results in a world.

    Attributes:
        ids: maps time and person to the track id of the person's pose.
        events: all events.
        frames: time and ids of each frame.
        tracker: the tracker.
    """

    ids: dict[tuple[float, int], int]
    events: list
    frames: list[tuple[float, tuple[int, ...]]]
    tracker: PeopleTracker

    def of(self, who):
        """A person's ids in order, without consecutive repetitions."""
        result = []
        for (_, person), track_id in self.ids.items():
            if person == who and (not result or result[-1] != track_id):
                result.append(track_id)
        return result


STILL = np.zeros((HEIGHT, WIDTH, 3), np.uint8)


def film(world, times, tracker=None, **options):
    """Track the people of a world at some times."""
    tracker = tracker or PeopleTracker(world.detect, HUMAN36M, **options)
    ids, events, frames = {}, [], []
    for index, time_s in enumerate(times):
        frame = Frame(STILL, "world", index, float(time_s))
        again = True
        while again:
            boxes = tracker.find(frame, Stopwatch())
            known = tracker.identify(world.order([world.read(frame, b.track_id, b.box) for b in boxes]))
            events += known.events
            again = known.look_again
        frames.append((time_s, tuple(pose.track_id for pose in known.poses)))
        seen = world.seen(time_s)
        for pose in known.poses:
            who = min(seen, key=lambda who: np.abs(seen[who] - pose.joints[:, :2]).mean())
            ids[time_s, who] = pose.track_id
    return Film(ids, events, frames, tracker)


def steady(rate, seconds):
    """The times of frames at a constant rate."""
    return [i / rate for i in range(round(rate * seconds))]
