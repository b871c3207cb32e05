"""A tracked person: position, appearance, and the likelihood that an observed pose is theirs."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass, field

import numpy as np
from numpy.typing import NDArray

from convnextpose.crop import Box
from pipeline.people.clothes import difference
from pipeline.people.motion import Motion
from pipeline.people.similarity import PoseSimilarity
from pipeline.stages import RelativePose

MAX_COST = 4.0
"""Largest cost of a match; above it, track and observation are more likely to be of different people."""

TAIL = 4.0
"""Degrees of freedom of Student's distribution of positions: it allows for sudden moves of a person or the camera."""

SIZE_SPREAD, SIZE_CHANGE = 0.12, 0.25
"""Standard deviation of the size of a person's poses (logarithm), and its increase for each second between them."""

SHAPE_SPREAD, SHAPE_CHANGE, SHAPE_SPREAD_MOST = 0.1, 0.5, 0.3
"""Standard deviation of joints relative to the body's centre (share of its size), its increase each second, and its maximum."""

SHAPE_WEIGHT = 4.0
"""Effective number of independent coordinates of a pose's shape: joints move together."""

CLOTHES_SPREAD, CLOTHES_WEIGHT = 20.0, 1.5
"""Standard deviation of the colours of a person's clothes, grey levels, and their weight: they count less than the position of
a person who was just seen, more than that of a person who has been out of sight."""

CLOTHES_S = 1.0
"""Time constant of the average of a person's clothes, s."""

SMOOTHING_S = 0.15
"""Time constant of a person's size and box, s."""

MARGIN_SIDE, MARGIN_TOP, MARGIN_BOTTOM = 0.04, 0.02, 0.095
"""Margins of a person's outline around the joints, as fractions of the joints' height: measured on the demo clip's truth."""


def box_from_joints(joints: NDArray[np.floating]) -> Box:
    """The box of a person from the joints [J, 2 or more] (px): the joints' box with the margins of an outline.

    Raises:
        GeometryError: the joints enclose no area.
    """
    box = Box.around(joints)
    extent = max(box.height, box.width)
    return Box(
        box.x - MARGIN_SIDE * extent,
        box.y - MARGIN_TOP * box.height,
        box.width + 2 * MARGIN_SIDE * extent,
        box.height * (1 + MARGIN_TOP + MARGIN_BOTTOM),
    )


@dataclass(eq=False)
class Observation:
    """An observed person in a frame.

    Attributes:
        pose: the pose.
        box: its box, px; it may extend beyond the picture.
        place: [2] the centre of its joints, px.
        size: square root of the box's area, px.
        clothes: [3, 3] their colours, BGR.
        sure: whether the pose has a high score, or, in a single picture, the detection has one.
        detected: the detector's score there, 0 if it found nobody.
        expected_by: the tracks in whose predicted boxes the pose was found.
    """

    pose: RelativePose
    box: Box
    place: NDArray[np.float64]
    size: float
    clothes: NDArray[np.float64]
    sure: bool
    detected: float
    expected_by: list[Track]


@dataclass(eq=False)
class Track:
    """A tracked person.

    Attributes:
        motion: the filter of the person's path.
        joints: [J, 2] relative to their centre when last seen, px.
        corners: [4] left, top, right and bottom of the box, relative to the centre of the joints, px.
        size: square root of the box's area, px.
        clothes: [3, 3] their colours, BGR.
        detected: the detector's score at the first observation.
        first_s, seen_s: times of the first and of the last observation.
        confirmed_s: when a pose last had a high score, or the detector last found a person there.
        missed_s: time of the first frame since then without the person, or None.
        track_id: None until a second observation agrees with the first.
        reported_lost: whether `lost` was reported since the last observation.
        together: the people who were never seen apart from this one.
    """

    motion: Motion
    joints: NDArray[np.float64]
    corners: NDArray[np.float64]
    size: float
    clothes: NDArray[np.float64]
    detected: float
    first_s: float
    seen_s: float
    confirmed_s: float
    missed_s: float | None = None
    track_id: int | None = None
    reported_lost: bool = False
    together: set[Track] = field(default_factory=set)

    @classmethod
    def begin(cls, observation: Observation, time_s: float) -> Track:
        """The track of a person who was just seen for the first time."""
        motion = Motion(time_s, observation.place, observation.size)
        shape = _centred(observation), _corners(observation), observation.size
        return cls(motion, *shape, observation.clothes, observation.detected, time_s, time_s, time_s)

    def expected(self, time_s: float) -> Box:
        """The person's predicted box, px."""
        (x, y), _ = self.motion.predict(time_s, self.size)
        left, top, right, bottom = self.corners.tolist()
        return Box(float(x) + left, float(y) + top, right - left, bottom - top)

    def expected_joints(self, time_s: float) -> NDArray[np.float64]:
        """[J, 2] the person's predicted joints, if the posture has not changed, px."""
        return self.joints + self.motion.predict(time_s, self.size)[0]

    def update(self, observation: Observation, time_s: float) -> None:
        """Update the track with an observation."""
        elapsed_s = time_s - self.seen_s
        # A second reading of the same picture replaces the first.
        share = 1 - math.exp(-elapsed_s / SMOOTHING_S) if elapsed_s > 0 else 1.0
        self.motion.update(time_s, observation.place, self.size)
        self.joints = _centred(observation)
        self.corners = self.corners + share * (_corners(observation) - self.corners)
        self.size += share * (observation.size - self.size)
        if observation.sure:
            learnt = self.clothes + (1 - math.exp(-elapsed_s / CLOTHES_S)) * (observation.clothes - self.clothes)
            self.clothes = np.where(np.isfinite(learnt), learnt, observation.clothes)
            self.confirmed_s = time_s
        self.seen_s, self.missed_s, self.reported_lost = time_s, None, False

    def costs(self, observations: Sequence[Observation], time_s: float, alike: PoseSimilarity) -> NDArray[np.float64]:
        """[S]: the cost of matching this person to each observation (negative logarithm of the likelihood).

        If position and size alone cost MAX_COST or more, pose and clothes are not compared: they can only add to the cost.
        """
        elapsed_s = max(0.0, time_s - self.seen_s)
        place, spread_px = self.motion.predict(time_s, self.size)
        places, sizes = np.array([o.place for o in observations]), np.array([o.size for o in observations])
        away = (TAIL + 2) * np.log1p(((places - place) ** 2).sum(-1) / spread_px**2 / TAIL)
        larger = (np.log(sizes / self.size) / math.hypot(SIZE_SPREAD, SIZE_CHANGE * elapsed_s)) ** 2
        # The last term normalises the likelihood: if a person could be anywhere, no single position is likely. It is at most
        # that of a newcomer.
        costs = np.asarray((away + larger) / 2 + 2 * math.log(min(1.0, spread_px / self.size)))
        limit = min(math.hypot(SHAPE_SPREAD, SHAPE_CHANGE * elapsed_s), SHAPE_SPREAD_MOST)
        for number, seen in enumerate(observations):
            if costs[number] >= MAX_COST:
                continue
            changed = SHAPE_WEIGHT * alike.distance(_centred(seen), self.joints) / (self.size * limit) ** 2
            dressed = CLOTHES_WEIGHT * math.log1p(difference(seen.clothes, self.clothes) / CLOTHES_SPREAD**2)
            costs[number] += changed / 2 + dressed
        return costs


def _centred(observation: Observation) -> NDArray[np.float64]:
    return observation.pose.joints[:, :2] - observation.place


def _corners(observation: Observation) -> NDArray[np.float64]:
    box, (x, y) = observation.box, observation.place
    return np.array([box.x - x, box.y - y, box.x + box.width - x, box.y + box.height - y])
