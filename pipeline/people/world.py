"""Estimates the up direction and the floor from the people themselves, for a camera that does not move.

The up direction follows from two facts. People who stand or walk are upright on average, from the ankles to the neck. And
people on one floor look smaller the nearer their feet are to the horizon: with each person's depth from the lengths of the
bones, the feet of people who walk around lie in a plane. Both are weighted by their standard deviations and fitted together
(iteratively reweighted least squares with Cauchy's weights), so that people who sit, bend, lie or jump are outvoted. The
camera's height follows from the size in the picture of people who stand. It assumes adults of usual height: each person's size
is an unknown of the fit, and the spread of adults' sizes is part of the height's error.

Sources: the relation of a foot's position in the picture to its distance is the horizon geometry of Criminisi, Reid and
Zisserman, "Single view metrology" (IJCV 2000); the weights are Cauchy's as in Huber's "Robust Statistics".
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass, field, replace

import numpy as np
from numpy.typing import NDArray

from convnextpose.camera import Intrinsics, root_depth_from_bones_mm
from convnextpose.skeleton import JointSet
from convnextpose.world import GivenWorld, World, WorldOrigin, up_of
from pipeline.types import Pose, TrackEvent, TrackEventKind

Array = NDArray[np.float64]

ANKLE_MM = 85.0
"""Height of the ankle joint above the floor for a standing foot with a shoe, mm: 83 on average for 14 dressed walkers of the
training data (`python -m benchmarks.world --bodies 14`), 85 for 14 others. With a bare foot it is 55 mm."""

UPRIGHT_MM = 1280.0
"""From the midpoint of the ankles to the neck of a walking adult, for bones as long as in BONE_LENGTHS_MM, mm. By the same
command it is 1270 mm for a walk, in which the swinging foot lifts the midpoint, and 1360 mm for people who only stand."""

SAMPLE_S = 0.2
"""Time between two samples of a person, s: samples at shorter distances contain the same information."""

MAX_SAMPLES = 600
"""Largest number of samples; when there are more, every second one of each track is removed."""

FIT_S, FIT_SHARE, MAX_FIT_S = 0.5, 0.1, 10.0
"""The world is fitted again after this time, or this share of the time since the first fit, but at least this often, s."""

MIN_JOINT_SCORE = 0.3
"""Joints below this score are ignored."""

MIN_UPRIGHT_COSINE = math.cos(math.radians(35.0))
"""Cosine of the largest bend, at the hips or at both knees, at which a body is used for the up direction."""

# Standard deviations. The body's direction, rad: of one sample, of one person, and of all people together, because the
# network's depths are too shallow (bodies seen from 20 degrees above look as from 13). To the side depths do not matter, so it
# is smaller.
_SAMPLE_SIGMA, _PERSON_SIGMA = math.radians(8), math.radians(4)
_COMMON_SIGMA, _COMMON_SIDE_SIGMA = math.radians(7), math.radians(1.5)
_PRIOR_SIGMA, _PRIOR_SIDE_SIGMA = math.radians(30), math.radians(12)
# The logarithm of a depth: of one sample (which is not independent of the next), and of a person, because it depends on the
# size.
_DEPTH_SIGMA, _SIZE_SIGMA = 0.12, 0.08
_FIELD_OF_VIEW_SIGMA = 0.15
_PRIOR_HEIGHT_MM, _PRIOR_HEIGHT_SIGMA = 2000.0, 1.5  # of the logarithm: anything from a table's edge to a lamp post

_NEAREST_MM = 300.0
_MAX_STEPS, _TOLERANCE = 12, 1e-6
_MIN_SLOPE = 0.02  # a foot is at least this far below the horizon, as a slope

SCALE_S = 1.0
"""Time constant of a person's size, s: jumps are shorter."""

SCALES = (0.7, 1.4)
"""The smallest and largest factor that puts a person's feet on the floor: beyond this the person stands on something else."""

FORGET_S = 10.0
"""How long the size of a person who is out of sight is remembered, s."""

MAX_WEIGHT_S = 10.0
"""A track's weight for the height is its duration, but at most this, s. So a person with several tracks does not count several
times, and a person who stays for long does not outvote everybody who passes."""


@dataclass(frozen=True)
class _Sample:
    """The measurements of one person in one frame.

    Attributes:
        track_id: the person.
        axis: [3] the unit direction from the ankles to the neck, or NaN if the body is bent.
        ray: [3] the lower ankle's direction in camera axes, z = 1, or NaN if it is not visible.
        log_depth: the natural logarithm of that ankle's depth from bone lengths, mm.
        ends: [2, 3] directions in camera axes, z = 1, of the middle of the ankles and of the neck.
        behind_mm: how much farther away that ankle is than the middle of the ankles.
        count: number of samples that it represents: itself and dropped ones of its track.
    """

    track_id: int
    axis: Array
    ray: Array
    log_depth: float
    ends: Array
    behind_mm: float
    count: int = 1


@dataclass
class _Size:
    """The factor between a person's depth and the depth at which the feet stand.

    Attributes:
        log_scale: smoothed logarithm of the factor.
        time_s: time of the last frame that showed it.
    """

    log_scale: float
    time_s: float


@dataclass
class WorldEstimator:
    """Estimates the world of one source. Frames come in order.

    Args:
        joint_set: the joints' names.
        given: known values; only the rest is estimated.
        true_camera: whether the intrinsics are true: with an assumed field of view the height's error is larger.
    """

    joint_set: JointSet
    given: GivenWorld = field(default_factory=GivenWorld)
    true_camera: bool = True

    def __post_init__(self) -> None:
        """Find the joints that are used."""
        index = {name: i for i, name in enumerate(self.joint_set.joints)}
        self._neck = index["Neck"] if "Neck" in index else index["Thorax"]
        self._legs = [[index[f"{side}_{joint}"] for joint in ("Hip", "Knee", "Ankle")] for side in "LR"]
        self._needed = [self._neck, self.joint_set.root, *self._legs[0], *self._legs[1]]
        self._begin()

    def _begin(self) -> None:
        self._samples: list[_Sample] = []
        self._sampled: dict[int, float] = {}
        self._sizes: dict[int, _Size] = {}
        self._first_s: float | None = None
        self._fitted_s = -math.inf
        self._seen_s = -math.inf
        self._lowest: float | None = None
        self._world = self._assumed_world()

    def step(
        self, time_s: float, camera: Intrinsics, poses: Sequence[Pose], events: Sequence[TrackEvent] = ()
    ) -> tuple[World, dict[int, float]]:
        """Update the estimate with a frame.

        Returns:
            The world as known at this frame, and for each track in the frame the factor on its root depth that puts the
            person's feet on the floor: 1 if they have not been seen.
        """
        if time_s < self._seen_s or any(event.kind is TrackEventKind.CUT for event in events):
            self._begin()  # another take: the camera may be anywhere
        self._seen_s = time_s
        seen = [pose for pose in poses if not pose.cut_by_edge and pose.scores[self._needed].min() >= MIN_JOINT_SCORE]
        for pose in seen:
            if time_s - self._sampled.get(pose.track_id, -math.inf) < SAMPLE_S - 1e-6:
                continue
            self._sampled[pose.track_id] = time_s
            if (sample := self._sample(pose, camera)) is not None:
                self._samples.append(sample)
        if len(self._samples) > MAX_SAMPLES:
            self._samples = _thin_out(self._samples)
            self._sampled = {track_id: at for track_id, at in self._sampled.items() if time_s - at < FORGET_S}
        if self._samples:
            self._first_s = time_s if self._first_s is None else self._first_s
            wait_s = min(max(FIT_S, FIT_SHARE * (time_s - self._first_s)), MAX_FIT_S)
            if time_s - self._fitted_s >= wait_s:
                self._fitted_s = time_s
                self._world = self._fit()
        elif poses:
            self._lower_floor(poses)
        self._update_sizes(time_s, seen)
        return self._world, {p.track_id: math.exp(s.log_scale) if (s := self._sizes.get(p.track_id)) else 1.0 for p in poses}

    # One person.

    def _sample(self, pose: Pose, camera: Intrinsics) -> _Sample | None:
        """The measurements from a pose with visible feet, or None if it has no reliable depth."""
        relative = np.column_stack([pose.joints_px, pose.joints_mm[:, 2] - pose.joints_mm[self.joint_set.root, 2]])
        depth_mm = root_depth_from_bones_mm(camera, relative, np.ones(len(relative), np.bool_), self.joint_set)
        if depth_mm is None:
            return None
        relative[:, 2] += depth_mm
        if relative[:, 2].min() <= 0:
            return None
        joints = camera.unproject(relative)
        left, right = joints[self._legs[0]], joints[self._legs[1]]
        ankles = (left[2] + right[2]) / 2
        trunk, below = joints[self._neck] - joints[self.joint_set.root], joints[self.joint_set.root] - ankles
        straight = max(_cosine(leg[0] - leg[1], leg[1] - leg[2]) for leg in (left, right))
        upright = min(straight, _cosine(trunk, below)) >= MIN_UPRIGHT_COSINE
        axis = _unit(joints[self._neck] - ankles) if upright else np.full(3, np.nan)
        up = self._world.up
        foot = min(left[2], right[2], key=lambda place: float(place @ up))
        ends = np.stack([ankles / ankles[2], joints[self._neck] / joints[self._neck, 2]])
        return _Sample(pose.track_id, axis, foot / foot[2], math.log(foot[2]), ends, float(foot[2] - ankles[2]))

    def _update_sizes(self, time_s: float, poses: Sequence[Pose]) -> None:
        """Update the sizes of the people whose feet are visible."""
        up, ankle_mm = self._world.up, self._world.height_mm - ANKLE_MM
        for pose in poses if ankle_mm > 0 else ():
            root_mm = float(pose.joints_mm[self.joint_set.root, 2])
            foot = min((pose.joints_mm[leg[2]] for leg in self._legs), key=lambda place: float(place @ up))
            below_mm, foot_mm = -float(up @ foot), float(foot[2])
            if below_mm <= _MIN_SLOPE * foot_mm:
                continue
            # The depth at which the foot's line of sight meets the plane of standing ankles, less the foot's depth from the
            # pelvis.
            depth_mm = ankle_mm * foot_mm / below_mm - (foot_mm - root_mm)
            wanted = math.log(min(max(depth_mm / root_mm, SCALES[0]), SCALES[1]))
            size = self._sizes.get(pose.track_id)
            if size is None:
                self._sizes[pose.track_id] = _Size(wanted, time_s)
            else:
                size.log_scale += (1 - math.exp(-(time_s - size.time_s) / SCALE_S)) * (wanted - size.log_scale)
                size.time_s = time_s
        self._sizes = {track_id: size for track_id, size in self._sizes.items() if time_s - size.time_s <= FORGET_S}

    # All people.

    def _assumed_world(self) -> World:
        """The world before any feet have been seen."""
        given = self.given
        if given.world is not None:
            return given.world
        world = World.level() if self._lowest is None else World.level(self._lowest)
        return World.of(
            world.up if given.up is None else given.up,
            world.height_mm if given.height_mm is None else given.height_mm,
            WorldOrigin.LEVEL if given.up is None else WorldOrigin.GIVEN,
            WorldOrigin.LEVEL if given.height_mm is None else WorldOrigin.GIVEN,
        )

    def _lower_floor(self, poses: Sequence[Pose]) -> None:
        """Assume the floor under the lowest joint of the people, who are all cut by the edge or hardly visible."""
        up = self._world.up
        lowest = max(float((-pose.joints_mm @ up).max()) for pose in poses)
        if lowest > (self._lowest or 0.0):
            self._lowest = lowest
            self._world = self._assumed_world()

    def _fit(self) -> World:
        """The world that fits the samples."""
        given = self.given
        if given.world is not None:
            return given.world
        if given.up is not None and given.height_mm is not None:
            return World.of(given.up, given.height_mm, WorldOrigin.GIVEN, WorldOrigin.GIVEN)
        fit = _Fit(self._samples, given.up, None if given.height_mm is None else given.height_mm - ANKLE_MM)
        height_error = math.hypot(fit.log_error, 0.0 if self.true_camera else _FIELD_OF_VIEW_SIGMA)
        return World.of(
            fit.up,
            fit.height_mm + ANKLE_MM,
            WorldOrigin.ESTIMATED if given.up is None else WorldOrigin.GIVEN,
            WorldOrigin.ESTIMATED if given.height_mm is None else WorldOrigin.GIVEN,
            tilt_error_degrees=math.degrees(fit.tilt_error) if given.up is None else None,
            height_error_mm=fit.height_mm * height_error if given.height_mm is None else None,
        )


class _Fit:
    """The up direction, and the height above the plane of the ankles, that fit samples best.

    Args:
        samples: the measurements.
        up: the up direction, if known.
        height_mm: the height, if known.

    Attributes:
        up: [3] the up direction in camera axes.
        height_mm: the height above the plane of standing ankles.
        tilt_error: standard deviation of `up`, rad.
        log_error: standard deviation of the height's logarithm.
    """

    def __init__(self, samples: Sequence[_Sample], up: Array | None, height_mm: float | None) -> None:
        self._axes = np.array([sample.axis for sample in samples])
        self._rays = np.array([sample.ray for sample in samples])
        self._depths = np.array([sample.log_depth for sample in samples])
        self._ends = np.array([sample.ends for sample in samples])
        self._behind = np.array([sample.behind_mm for sample in samples])
        self._counts = np.array([sample.count for sample in samples])
        ids = np.array([sample.track_id for sample in samples])
        self._tracks = np.unique(ids, return_inverse=True)[1].ravel()
        self._people = int(self._tracks.max()) + 1
        self._axes_seen = np.isfinite(self._axes[:, 0])
        self._free = np.array([up is None, up is None, height_mm is None])
        self.up = up_of(0.0, 0.0) if up is None else _unit(up)
        self._sizes = np.zeros(self._people)
        if up is None and self._axes_seen.any():
            self.up = self._median_axis()
        slopes = np.maximum(-self._rays @ self.up, _MIN_SLOPE)
        self.height_mm = float(np.exp(np.median(self._depths + np.log(slopes)))) if height_mm is None else height_mm
        for _ in range(_MAX_STEPS):
            if self._step() < _TOLERANCE:
                break
        if height_mm is None:
            self._measure_height()

    def _median_axis(self) -> Array:
        """The median of the bodies' directions, which is close to most of them."""
        axes = self._axes[self._axes_seen]
        middle = _unit(np.median(axes, axis=0))
        return middle if middle @ up_of(0.0, 0.0) > 0.2 else up_of(0.0, 0.0)

    def _measure_height(self) -> None:
        """Compute the height from the sizes in the picture of bodies that are not bent, assuming that they stand along `up`.

        In views from above, bone lengths place people too far away, because the network's depths are too shallow. As this is
        much the same for all feet, it changes the height but not the direction.
        """
        ankles, necks = self._ends[:, 0], self._ends[:, 1]
        a, b, c = (ankles**2).sum(axis=1), (necks**2).sum(axis=1), (ankles * necks).sum(axis=1)
        # Points on two lines of sight that are a body's length apart along `up`, as closely as possible: the least-squares
        # solution.
        apart = np.maximum(a * b - c * c, 1e-9)
        depths = UPRIGHT_MM * (c * (necks @ self.up) - b * (ankles @ self.up)) / apart + self._behind
        slopes = -self._rays @ self.up
        usable = self._axes_seen & (apart > 1e-4) & (depths > _NEAREST_MM) & (slopes > _MIN_SLOPE)
        heights, tracks = np.log(depths[usable] * slopes[usable]), self._tracks[usable]
        if len(heights):
            seen, counts = np.unique(tracks), np.bincount(tracks, self._counts[usable])
            medians = [np.median(heights[tracks == track]) for track in seen]
            self.height_mm = math.exp(float(np.average(medians, weights=np.minimum(counts[seen], MAX_WEIGHT_S / SAMPLE_S))))

    def _step(self) -> float:
        """One Gauss-Newton step, with weights from the residuals; also sets the errors.

        Returns:
            Size of the step: the largest of the changes of `up`, rad, and of the height's logarithm.
        """
        basis = _orthogonal_basis(self.up)  # [2, 3]: to the side, and along the line of sight
        hessian, gradient = np.zeros((3, 3)), np.zeros(3)
        level = up_of(0.0, 0.0)
        for k, deviation in enumerate((_PRIOR_SIDE_SIGMA, _PRIOR_SIGMA)):
            hessian[k, k] += 1 / deviation**2
            gradient[k] += float(basis[k] @ (self.up - level)) / deviation**2
        self._add_axes(basis, hessian, gradient)
        self._add_feet(basis, hessian, gradient)
        hessian[2, 2] += 1 / _PRIOR_HEIGHT_SIGMA**2
        gradient[2] += math.log(self.height_mm / _PRIOR_HEIGHT_MM) / _PRIOR_HEIGHT_SIGMA**2
        free = np.flatnonzero(self._free)
        covariance = np.linalg.inv(hessian[np.ix_(free, free)])
        step = np.zeros(3)
        step[free] = -covariance @ gradient[free]
        step *= min(1.0, 0.3 / max(float(np.abs(step).max()), 1e-9))
        self.up = _unit(self.up + step[:2] @ basis)
        self.height_mm *= math.exp(step[2])
        self.tilt_error = math.sqrt(float(np.linalg.eigvalsh(covariance[:2, :2])[-1])) if self._free[0] else 0.0
        self.log_error = math.sqrt(float(covariance[-1, -1])) if self._free[2] else 0.0
        return float(np.abs(step).max())

    def _add_axes(self, basis: Array, hessian: Array, gradient: Array) -> None:
        """Add the measurement that bodies are upright on average: all of them together are one measurement."""
        if not self._axes_seen.any():
            return
        axes, tracks = self._axes[self._axes_seen], self._tracks[self._axes_seen]
        off = (axes - self.up) @ basis.T
        weights = 1 / (1 + (off**2).sum(axis=1) / (2 * _SAMPLE_SIGMA) ** 2)
        behind = axes @ self.up <= 0
        weights[behind] = 0
        of_person = np.bincount(tracks, weights, self._people)
        # So that a person counts once, however long they stay.
        weights /= 1 + of_person[tracks] * (_PERSON_SIGMA / _SAMPLE_SIGMA) ** 2
        total = float(weights.sum())
        if total <= 0:
            return
        mean = weights @ off / total
        for k, alike in enumerate((_COMMON_SIDE_SIGMA, _COMMON_SIGMA)):
            variance = _SAMPLE_SIGMA**2 / total + alike**2
            hessian[k, k] += 1 / variance
            gradient[k] -= mean[k] / variance

    def _add_feet(self, basis: Array, hessian: Array, gradient: Array) -> None:
        """Add the ankles, which are in a plane: log depth + log size + log slope = log height; the people's sizes are
        eliminated."""
        slopes = -self._rays @ self.up
        usable = slopes > _MIN_SLOPE
        if not usable.any():
            return
        rays, slopes, tracks = self._rays[usable], slopes[usable], self._tracks[usable]
        off = self._depths[usable] + np.log(slopes) - math.log(self.height_mm)
        weights = 1 / (1 + ((off + self._sizes[tracks]) / (2 * _DEPTH_SIGMA)) ** 2) / _DEPTH_SIGMA**2
        jacobian = np.column_stack([-(rays @ basis.T) / slopes[:, None], -np.ones(len(rays))])
        of_size = np.bincount(tracks, weights, self._people) + 1 / _SIZE_SIGMA**2
        mixed = np.stack([np.bincount(tracks, weights * column, self._people) for column in jacobian.T])
        pull = np.bincount(tracks, weights * off, self._people)
        self._sizes = -pull / of_size
        hessian += (jacobian * weights[:, None]).T @ jacobian - (mixed / of_size) @ mixed.T
        gradient += jacobian.T @ (weights * off) - (mixed / of_size) @ pull


def _thin_out(samples: Sequence[_Sample]) -> list[_Sample]:
    """Drop every second sample of each track, adding its count to the one before it, and the oldest beyond the limit."""
    kept: list[_Sample] = []
    waiting: dict[int, int] = {}  # by track, index of the kept sample to which no dropped one has been added yet
    for sample in samples:
        place = waiting.pop(sample.track_id, None)
        if place is None:
            waiting[sample.track_id] = len(kept)
            kept.append(sample)
        else:
            kept[place] = replace(kept[place], count=kept[place].count + sample.count)
    return kept[-MAX_SAMPLES:]


def _unit(vector: Array) -> Array:
    unit: Array = vector / max(float(np.linalg.norm(vector)), 1e-9)
    return unit


def _cosine(a: Array, b: Array) -> float:
    return float(_unit(a) @ _unit(b))


def _orthogonal_basis(up: Array) -> Array:
    """[2, 3] unit directions across `up` in camera axes: to the side, and along the line of sight."""
    side = np.array([1.0, 0.0, 0.0]) - up[0] * up
    side /= np.linalg.norm(side)
    (a, b, c), (x, y, z) = side, up
    return np.array([side, (b * z - c * y, c * x - a * z, a * y - b * x)])
