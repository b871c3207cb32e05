"""Arrays: every pose of every frame, the same as in the lines of JSON."""

import json
from dataclasses import replace

import numpy as np
import pytest

from convnextpose.camera import Intrinsics
from convnextpose.errors import OutputExistsError
from convnextpose.skeleton import HUMAN36M
from pipeline.formats.ndjson import NdjsonRecorder
from pipeline.formats.npz import NpzRecorder, pose_arrays
from pipeline.formats.records import read_poses
from tests.pipeline.formats.samples import CAMERA, HEADER, names, pose, posed, write


def test_arrays_hold_every_pose_of_every_frame(tmp_path):
    other = Intrinsics.assumed(200, 100)
    people = [(pose(0), pose(1, track_id=2)), (), (pose(2, track_id=2),)]
    frames = [posed(i + 5, poses=p, camera=other if i == 1 else CAMERA) for i, p in enumerate(people)]
    with np.load(write(NpzRecorder(tmp_path / "poses.npz", HEADER), frames), allow_pickle=False) as results:
        assert results["frame_index"].tolist() == [5, 6, 7]
        assert np.allclose(results["time_s"], [5 / 25, 6 / 25, 7 / 25])
        assert results["camera"][:, 0].tolist() == [CAMERA.fx, other.fx, CAMERA.fx]
        assert results["pose_frame"].tolist() == [0, 0, 2]
        assert results["track_id"].tolist() == [1, 2, 2]
        assert results["root_depth_source"].tolist() == ["assumed_fov"] * 3
        assert np.allclose(results["root_depth_mm"], 4321.5)
        assert np.allclose(results["box"], [[10.5, -3.25, 40, 50.125]] * 3)
        flat = [p for of_frame in people for p in of_frame]
        for name, shape in (("joints_px", (3, 18, 2)), ("joints_mm", (3, 18, 3)), ("scores", (3, 18))):
            assert results[name].shape == shape
            assert np.allclose(results[name], [getattr(p, name) for p in flat], atol=1e-3)
        assert json.loads(str(results["header"]))["joints"] == list(HUMAN36M.joints)
        assert not results["random_weights"]
    assert names(tmp_path) == ["poses.npz"]


def test_arrays_say_when_a_camera_took_each_picture(tmp_path):
    taken = [1795728950_123456789, None, 1795728951_000000000]
    clocks = ["sender", None, "arrival"]
    frames = [
        replace(posed(i), frame=replace(posed(i).frame, captured_ns=ns, clock=clock))
        for i, (ns, clock) in enumerate(zip(taken, clocks, strict=True))
    ]
    with np.load(write(NpzRecorder(tmp_path / "poses.npz", HEADER), frames), allow_pickle=False) as results:
        assert results["utc"].astype(np.int64)[[0, 2]].tolist() == [ns // 1000 for ns in taken if ns]
        assert np.isnat(results["utc"]).tolist() == [False, True, False]
        assert results["clock"].tolist() == ["sender", "", "arrival"]


def test_arrays_of_nobody_keep_their_shapes(tmp_path):
    with np.load(write(NpzRecorder(tmp_path / "poses.npz", HEADER), [posed(0, poses=()), posed(1, poses=())])) as results:
        assert results["joints_mm"].shape == (0, 18, 3) and results["box"].shape == (0, 4)
        assert results["frame_index"].tolist() == [0, 1]


def test_random_weights_are_told(tmp_path):
    header = replace(HEADER, model=replace(HEADER.model, random=True))
    with np.load(write(NpzRecorder(tmp_path / "poses.npz", header), [posed(0)])) as results:
        assert results["random_weights"] and json.loads(str(results["header"]))["model"]["random"] is True


@pytest.mark.parametrize("people", [[], [0], [2, 0, 1]])
@pytest.mark.parametrize("live", [False, True])
def test_lines_become_the_same_arrays(tmp_path, people, live):
    """The arrays that a killed run lacks can be made from its lines."""
    frames = [posed(i, poses=tuple(pose(10 * i + k, track_id=k) for k in range(n))) for i, n in enumerate(people)]
    if live:
        frames = [
            replace(f, frame=replace(f.frame, captured_ns=1795728950_123456789 + f.frame.index, clock="kernel")) for f in frames
        ]
    lines = write(NdjsonRecorder(tmp_path / "poses.ndjson", HEADER), [*frames, posed(9)])
    made = pose_arrays(read_poses(lines))
    with np.load(write(NpzRecorder(tmp_path / "poses.npz", HEADER), [*frames, posed(9)])) as written:
        assert set(made) == set(written)
        for name, values in written.items():
            assert (made[name].dtype, made[name].shape) == (values.dtype, values.shape)
            assert (
                np.allclose(made[name], values, atol=0.0051, equal_nan=True)
                if values.dtype.kind == "f"
                else np.array_equal(made[name], values, equal_nan=values.dtype.kind == "M")
            )


def test_arrays_that_appear_during_the_run_are_not_touched(tmp_path):
    recorder = NpzRecorder(tmp_path / "poses.npz", HEADER)
    recorder.write(posed(0))
    recorder.path.write_bytes(b"another run's")
    with pytest.raises(OutputExistsError):
        recorder.close()
    assert recorder.path.read_bytes() == b"another run's" and names(tmp_path) == ["poses.npz"]


def test_a_file_system_without_hard_links_replaces_nothing_either(tmp_path, monkeypatch):
    def refuse(*_):
        raise PermissionError(1, "Operation not permitted")

    monkeypatch.setattr("os.link", refuse)
    assert len(np.load(write(NpzRecorder(tmp_path / "poses.npz", HEADER), [posed(0)]))["frame_index"]) == 1
    recorder = NpzRecorder(tmp_path / "other.npz", HEADER)
    recorder.write(posed(0))
    recorder.path.write_bytes(b"another run's")
    with pytest.raises(OutputExistsError):
        recorder.close()
    assert recorder.path.read_bytes() == b"another run's" and names(tmp_path) == ["other.npz", "poses.npz"]


def test_a_file_has_the_permissions_of_its_neighbours(tmp_path):
    (tmp_path / "neighbour").write_bytes(b"")
    path = write(NpzRecorder(tmp_path / "poses.npz", HEADER), [posed(0)])
    assert path.stat().st_mode == (tmp_path / "neighbour").stat().st_mode
