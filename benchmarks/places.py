"""The errors of people's positions and of the distances between them, with a surveyed camera.

    python -m benchmarks.places View_001.xml RESULTS/poses.ndjson ...      the errors of a run
    python -m benchmarks.places View_001.xml --camera-pose FILE            write the camera's position; print the run's --camera

View_001.xml is a calibration after Tsai (1987), as the PETS 2009 data set has it for the scene that OpenCV ships as
`vtest.avi`. The run must use its intrinsics. A person's true position is the point where the lower ankle's line of sight, after
correction of the lens distortion, meets the plane of standing ankles. So this measures depths, not the accuracy of the ankles.
People who are cut off by the picture's edge, or have an ankle with a score under 0.4, do not count.
"""

from __future__ import annotations

import argparse
import json
import xml.etree.ElementTree as ElementTree
from dataclasses import dataclass
from itertools import combinations
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from convnextpose.skeleton import HUMAN36M
from pipeline.formats.records import read_poses
from pipeline.people.world import ANKLE_MM

Array = NDArray[np.float64]
LEAST_SCORE = 0.4
APART_MM = 500.0
"""Smallest distance of a pair: relative errors of closer pairs mean little."""


@dataclass(frozen=True)
class TsaiCamera:
    """A camera after Tsai, "A versatile camera calibration technique", IEEE Journal of Robotics and Automation 3 (1987).

    Attributes:
        rotation: [3, 3] camera_from_world; the world's third axis is up, its floor at 0.
        translation_mm: [3].
        fx, fy, cx, cy: px.
        kappa: coefficient of the radial distortion, per mm squared on the sensor.
        focal_mm: the focal length, mm.
    """

    rotation: Array
    translation_mm: Array
    fx: float
    fy: float
    cx: float
    cy: float
    kappa: float
    focal_mm: float

    @classmethod
    def read(cls, path: Path) -> TsaiCamera:
        """Read the XML of a calibration."""
        root = ElementTree.parse(path).getroot()  # the user's own file, so it is trusted
        part = {child.tag: {k: float(v) for k, v in child.attrib.items()} for child in root}
        sensor, lens, place = part["Geometry"], part["Intrinsic"], part["Extrinsic"]
        (sa, ca), (sb, cb), (sg, cg) = ((np.sin(place[name]), np.cos(place[name])) for name in ("rx", "ry", "rz"))
        about_x, about_y = [[1, 0, 0], [0, ca, -sa], [0, sa, ca]], [[cb, 0, sb], [0, 1, 0], [-sb, 0, cb]]
        about_z = [[cg, -sg, 0], [sg, cg, 0], [0, 0, 1]]
        fx, fy = lens["sx"] * lens["focal"] / sensor["dpx"], lens["focal"] / sensor["dpy"]
        return cls(
            np.array(about_z) @ about_y @ about_x, np.array([place["tx"], place["ty"], place["tz"]]),
            fx, fy, lens["cx"], lens["cy"], lens["kappa1"], lens["focal"],
        )  # fmt: skip

    def on_plane_mm(self, point_px: Array, height_mm: float) -> Array:
        """[2] where the line of sight of a point [2] in the picture meets the plane at this height above the floor."""
        x, y = (point_px[0] - self.cx) / self.fx, (point_px[1] - self.cy) / self.fy
        undistorted = 1 + self.kappa * (x * x + y * y) * self.focal_mm**2
        ray = np.array([x * undistorted, y * undistorted, 1.0]) @ self.rotation
        place: Array = self.centre_mm + ray * (height_mm - self.centre_mm[2]) / ray[2]
        return place[:2]

    def in_world_mm(self, points_mm: Array) -> Array:
        """Convert points [..., 3] from camera axes to the world."""
        return np.asarray((points_mm - self.translation_mm) @ self.rotation)

    @property
    def centre_mm(self) -> Array:
        """[3] the camera's position in the world."""
        return np.asarray(-self.translation_mm @ self.rotation)

    def world_from_camera(self) -> Array:
        """[3, 4] the camera's pose with y up, as for `--camera-pose`."""
        place = np.column_stack([self.rotation.T, self.centre_mm])
        return np.stack([place[0], place[2], -place[1]])


def errors_mm(camera: TsaiCamera, path: Path) -> dict[str, tuple[Array, Array]]:
    """The errors of people's positions, by their root depth, and with their feet on the run's floor.

    Returns:
        For each of the two: the errors, mm, and the relative errors of the distances between people in one frame.
    """
    ankles = [HUMAN36M.joints.index(f"{side}_Ankle") for side in "LR"]
    off: dict[str, list[float]] = {"root depth": [], "feet on the floor": []}
    apart: dict[str, list[float]] = {name: [] for name in off}
    for frame in read_poses(path).frames:
        found = []
        for pose in frame.poses:
            if pose.cut_by_edge or pose.scores[ankles].min() < LEAST_SCORE:
                continue
            feet = pose.joints_px[ankles]
            true = camera.on_plane_mm(np.array([feet[:, 0].mean(), feet[:, 1].max()]), ANKLE_MM)
            root = pose.joints_mm[HUMAN36M.root].astype(np.float64)
            told = dict(zip(off, (camera.in_world_mm(root * scale)[:2] for scale in (1.0, pose.depth_scale)), strict=True))
            found.append((true, told))
            for name, place in told.items():
                off[name].append(float(np.hypot(*(place - true))))
        for (true, told), (other, told_other) in combinations(found, 2):
            if (distance := float(np.hypot(*(true - other)))) >= APART_MM:
                for name in off:
                    apart[name].append(abs(float(np.hypot(*(told[name] - told_other[name]))) / distance - 1))
    return {name: (np.array(off[name]), np.array(apart[name])) for name in off}


def main() -> None:
    """Read the command line."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("camera", type=Path)
    parser.add_argument("poses", type=Path, nargs="*")
    parser.add_argument("--camera-pose", type=Path)
    options = parser.parse_args()
    camera = TsaiCamera.read(options.camera)
    if options.camera_pose:
        options.camera_pose.write_text(json.dumps({"world_from_camera": camera.world_from_camera().tolist()}))
        print(f"--camera {camera.fx:.2f},{camera.fy:.2f},{camera.cx:.2f},{camera.cy:.2f} --camera-pose {options.camera_pose}")
    for path in options.poses:
        for name, (off, apart) in errors_mm(camera, path).items():
            shares = f", distances between people {np.median(apart):.1%} off" if len(apart) else ""
            print(
                f"{path}, by the {name}: {len(off)} places, median {np.median(off) / 1000:.2f} m off, 90 % under "
                f"{np.percentile(off, 90) / 1000:.2f} m{shares}"
            )


if __name__ == "__main__":
    main()
