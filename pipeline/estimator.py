"""From one source's frames to poses, in a sequence of plain calls: boxes, crops, predictions, ids, lift, world, smoothing.

It uses no threads. Runs, calibration, benchmarks and tests call the same `Estimator.step`. The state of a source between its
frames is in its people finder, its world and its smoother.
"""

from __future__ import annotations

from dataclasses import replace

from convnextpose.camera import Intrinsics, RootDepthSource
from convnextpose.errors import GeometryError
from convnextpose.world import GivenWorld
from engines.pose import PoseModel
from pipeline.people import PeopleFinder
from pipeline.people.rotation import RotationCheck
from pipeline.people.smoothing import PoseSmoother
from pipeline.people.world import WorldEstimator
from pipeline.stages import lift, predict
from pipeline.timeline import Stopwatch
from pipeline.types import Frame, PosedFrame, TrackEvent


class Estimator:
    """Makes the poses of one source's frames. Frames come in order, one at a time.

    Args:
        model: reads the poses; several estimators may share it.
        people: proposes the boxes of each frame, and assigns the poses to people.
        camera: the true intrinsics for pictures of the first one's size, or None to assume a field of view for each picture
            size. They are scaled for pictures of another size; for another aspect ratio a field of view is assumed.
        rotation_check: searches frames without people in rotated pictures, until a person is found, to report pictures that
            are not upright; None to skip this.
        world: what is known of the camera's position; the rest is estimated from the people.
    """

    def __init__(
        self,
        model: PoseModel,
        people: PeopleFinder,
        *,
        camera: Intrinsics | None = None,
        rotation_check: RotationCheck | None = None,
        world: GivenWorld | None = None,
    ) -> None:
        self._model = model
        self._people = people
        self._camera = camera
        self._rotation_check = rotation_check
        self._size: tuple[int, int] | None = None  # size of the first picture
        self._smoother = PoseSmoother(model.info.joint_set.root)
        self._world = WorldEstimator(model.info.joint_set, world or GivenWorld(), true_camera=camera is not None)

    def step(self, frame: Frame, stopwatch: Stopwatch | None = None) -> PosedFrame:
        """Compute the poses of a frame; the time of each stage is added to the stopwatch.

        Raises:
            GeometryError: the frame cannot be processed; the next one can.
        """
        stopwatch = stopwatch or Stopwatch()
        size = frame.width, frame.height
        events: list[TrackEvent] = []
        with self._model.hold(frame.image) as held:
            while True:
                boxes, problems = [], []
                for tracked in self._people.find(frame, stopwatch):
                    try:
                        tracked.box.clip(*size)
                    except GeometryError as error:  # concerns one person: the others in the frame still have poses
                        problems.append(str(error))
                    else:
                        boxes.append(tracked)
                try:
                    read = predict(self._model, frame.image, boxes, stopwatch, held)
                except GeometryError:  # the tracked people count as not seen in this frame
                    self._people.identify(())
                    raise
                with stopwatch.span("track"):
                    known = self._people.identify(read)
                events += known.events
                if not known.look_again:
                    break
        self._size = self._size or size
        given = self._camera.resized(self._size, size) if self._camera else None
        camera = given or Intrinsics.assumed(*size)
        source = RootDepthSource.INTRINSICS if given else RootDepthSource.ASSUMED_FOV
        poses = []
        with stopwatch.span("lift"):
            for pose in known.poses:
                try:
                    poses.append(lift(pose, size, camera, source, self._model.info.joint_set))
                except GeometryError as error:
                    problems.append(str(error))
            world, scales = self._world.step(frame.time_s, camera, poses, events)
            smoothed = self._smoother.step(frame.time_s, poses)
            placed = tuple(
                replace(pose, smoothed_mm=joints_mm, depth_scale=scales[pose.track_id])
                for pose, joints_mm in zip(poses, smoothed, strict=True)
            )
        if known.poses:
            self._rotation_check = None
        elif self._rotation_check is not None:
            with stopwatch.span("detect", part="turned"):
                told = self._rotation_check.check(frame)
            problems += [told] if told else []
        return PosedFrame(frame, placed, camera, problems=tuple(problems), events=tuple(events), world=world)
