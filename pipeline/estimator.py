"""One source's frames to poses, one plain function after another: boxes, crops, predictions, lift, tracks.

It knows no thread. A run, the calibration, the benchmarks and the tests call the very same `Estimator.step`. All that is
remembered from frame to frame of a source lives in its people finder.
"""

from __future__ import annotations

from convnextpose.camera import Intrinsics, RootDepthSource
from convnextpose.errors import GeometryError
from engines.pose import PoseModel
from pipeline.people import PeopleFinder
from pipeline.stages import lift, predict
from pipeline.timeline import Stopwatch
from pipeline.types import Frame, PosedFrame


class Estimator:
    """Makes the poses of one source's frames. Frames come in order, one at a time.

    Args:
        model: reads the poses; several estimators may share it.
        people: names the boxes of each frame.
        camera: the true intrinsics for pictures of the first one's size, or None to assume a field of view for each picture's
            size. They are made to fit pictures of another size; for other proportions a field of view is assumed.
    """

    def __init__(self, model: PoseModel, people: PeopleFinder, *, camera: Intrinsics | None = None) -> None:
        self._model = model
        self._people = people
        self._camera = camera
        self._size: tuple[int, int] | None = None  # of the first picture

    def step(self, frame: Frame, stopwatch: Stopwatch | None = None) -> PosedFrame:
        """The poses of a frame; where its time went is added to the stopwatch.

        Raises:
            GeometryError: the frame cannot be worked on; the next one can.
        """
        stopwatch = stopwatch or Stopwatch()
        size, problems = (frame.width, frame.height), []
        boxes = []
        for tracked in self._people.find(frame, stopwatch):
            try:
                tracked.box.clip(*size)
            except GeometryError as error:  # one person: the others of the frame still have poses
                problems.append(str(error))
            else:
                boxes.append(tracked)
        try:
            read = predict(self._model, frame.image, boxes, stopwatch)
        except GeometryError:
            self._people.observe(())
            raise
        seen = tuple(pose for pose in read if pose.score >= self._people.min_score)
        self._size = self._size or size
        given = self._camera.resized(self._size, size) if self._camera else None
        camera = given or Intrinsics.assumed(*size)
        source = RootDepthSource.INTRINSICS if given else RootDepthSource.ASSUMED_FOV
        poses = []
        with stopwatch.span("lift"):
            for pose in seen:
                try:
                    poses.append(lift(pose, size, camera, source, self._model.info.joint_set))
                except GeometryError as error:
                    problems.append(str(error))
        with stopwatch.span("track"):
            self._people.observe(seen)
        return PosedFrame(frame, tuple(poses), camera, problems=tuple(problems))
