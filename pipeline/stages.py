"""What the stages do, as plain functions that know no thread: infer and lift.

People are named by `people.py`, pictures drawn by `draw.py`, results written by `sinks.py`.
"""

from __future__ import annotations

import numpy as np

from convnextpose.camera import Intrinsics, RootDepthSource
from convnextpose.errors import GeometryError
from engines.pose import PoseModel
from pipeline.people import Person, Sighting, see
from pipeline.types import Frame, Pose


def infer(model: PoseModel, frame: Frame, people: tuple[Person, ...], min_score: float) -> tuple[Sighting, ...]:
    """Read the people of a frame; those whose mean score is under `min_score` are nobody and left out.

    Raises:
        GeometryError: a box lies outside the picture.
    """
    return tuple(s for s in see(model, frame.image, people) if s.score >= min_score)


def in_picture(frame: Frame, people: tuple[Person, ...], problems: list[str]) -> tuple[Person, ...]:
    """The people whose boxes overlap the picture; why the others can't be read is added to `problems`."""
    seen = []
    for person in people:
        try:
            person.box.clip(frame.width, frame.height)
        except GeometryError as error:
            problems.append(str(error))
        else:
            seen.append(person)
    return tuple(seen)


def lift(sighting: Sighting, camera: Intrinsics, source: RootDepthSource) -> Pose:
    """A sighting to a pose in camera space, with the root depth estimated from the region that the network read.

    Raises:
        GeometryError: a joint would lie behind the camera, so that the camera and the box cannot both be right.
    """
    root_depth_mm = camera.estimate_root_depth_mm(sighting.region.area)
    points = sighting.joints.copy()
    points[:, 2] += root_depth_mm
    if points[:, 2].min() <= 0:
        raise GeometryError(
            f"expected a person wholly in front of the camera, received a root depth of {root_depth_mm:.0f} mm with a joint "
            f"at {points[:, 2].min():.0f} mm: check the camera's intrinsics and the box"
        )
    return Pose(
        track_id=sighting.person.track_id,
        box=sighting.person.box,
        joints_px=np.ascontiguousarray(points[:, :2]),
        joints_mm=camera.unproject(points),
        scores=sighting.scores,
        root_depth_mm=root_depth_mm,
        root_depth_source=source,
    )
