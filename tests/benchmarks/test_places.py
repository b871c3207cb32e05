"""The benchmark of people's positions: true poses have no error, and a wrong depth gives exactly its error."""

import numpy as np
import pytest

from benchmarks.places import TsaiCamera, errors_mm
from convnextpose.crop import Box
from convnextpose.skeleton import HUMAN36M
from pipeline.formats.ndjson import NdjsonRecorder
from pipeline.people.world import ANKLE_MM
from pipeline.types import Frame, Pose, PosedFrame
from tests.pipeline.formats.samples import HEADER

CALIBRATION = """<Camera><Geometry dpx="0.005" dpy="0.005"/><Intrinsic focal="5" kappa1="{kappa}" cx="320" cy="240" sx="1"/>
<Extrinsic tx="0" ty="0" tz="12000" rx="2.0" ry="0.3" rz="0.1"/></Camera>"""


def camera_of(folder, kappa=0.0):
    path = folder / "camera.xml"
    path.write_text(CALIBRATION.format(kappa=kappa))
    return TsaiCamera.read(path)


def standing(camera, track_id, x_mm, y_mm, farther=1.0):
    """Somebody whose ankles are together at a point of the floor; all depths are `farther` times the true ones."""
    world_mm = np.tile([x_mm, y_mm, 900.0], (len(HUMAN36M), 1))
    world_mm[[HUMAN36M.joints.index("L_Ankle"), HUMAN36M.joints.index("R_Ankle")], 2] = ANKLE_MM
    joints_mm = world_mm @ camera.rotation.T + camera.translation_mm
    joints_px = joints_mm[:, :2] / joints_mm[:, 2:] * (camera.fx, camera.fy) + (camera.cx, camera.cy)
    depth_mm = float(joints_mm[HUMAN36M.root, 2] * farther)
    return Pose(
        track_id, Box(0, 0, 10, 20), joints_px, joints_mm * farther, np.ones(len(HUMAN36M)), depth_mm, HEADER.root_depth_source,
        depth_scale=1 / farther,
    )  # fmt: skip


@pytest.mark.parametrize("farther", [1.0, 1.1])
def test_places_are_off_by_what_their_depths_are_off(tmp_path, farther):
    camera = camera_of(tmp_path)
    poses = tuple(standing(camera, n, x, y, farther) for n, (x, y) in enumerate([(0, 0), (900, -400), (-1200, 700)]))
    recorder = NdjsonRecorder(tmp_path / "poses.ndjson", HEADER)
    recorder.write(PosedFrame(Frame(np.zeros((64, 96, 3), np.uint8), "walk.mp4", 0, 0.0), poses, HEADER.camera))
    recorder.close()
    told = errors_mm(camera, tmp_path / "poses.ndjson")
    roots = np.array([pose.joints_mm[HUMAN36M.root] for pose in poses])
    moved = np.linalg.norm((camera.in_world_mm(roots) - camera.in_world_mm(roots / farther))[:, :2], axis=1)
    assert np.allclose(told["root depth"][0], moved, atol=1) and np.allclose(told["feet on the floor"][0], 0, atol=1)
    assert len(told["root depth"][1]) == 3 and np.allclose(told["feet on the floor"][1], 0, atol=1e-3)
    assert (told["root depth"][1] > 0.03).all() == (farther > 1)


def test_distortion_is_undone(tmp_path):
    bent, plain = camera_of(tmp_path, 0.01), camera_of(tmp_path)
    point = np.array([600.0, 420.0])
    x, y = (point[0] - 320) / 1000, (point[1] - 240) / 1000
    grown = 1 + 0.01 * ((5 * x) ** 2 + (5 * y) ** 2)
    straight = np.array([320 + 1000 * x * grown, 240 + 1000 * y * grown])
    assert np.allclose(bent.on_plane_mm(point, 0.0), plain.on_plane_mm(straight, 0.0))


def test_the_cameras_place_is_one_that_a_run_takes(tmp_path):
    camera = camera_of(tmp_path)
    place = camera.world_from_camera()
    assert np.allclose(place[:, :3] @ place[:, :3].T, np.eye(3)) and np.linalg.det(place[:, :3]) == pytest.approx(1)
    assert place[1, 3] == pytest.approx(camera.centre_mm[2])
