"""Lines of JSON: poses are read back as they were written, and other files are refused."""

import json
from dataclasses import replace

import numpy as np
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from hypothesis.extra.numpy import arrays

from convnextpose.camera import Intrinsics, RootDepthSource
from convnextpose.crop import Box
from convnextpose.errors import SourceError
from convnextpose.skeleton import HUMAN36M, MUCO
from convnextpose.variants import Variant
from pipeline.formats.ndjson import NdjsonRecorder
from pipeline.formats.npz import pose_arrays
from pipeline.formats.records import read_poses
from pipeline.types import Pose, TrackEvent, TrackEventKind
from tests.pipeline.formats.samples import CAMERA, HEADER, pose, posed, write

finite = st.floats(-1e5, 1e5)


@st.composite
def pose_strategy(draw, joints):
    return Pose(
        draw(st.integers(-(2**62), 2**63 - 1)),
        Box(draw(finite), draw(finite), draw(st.floats(1e-3, 1e5)), draw(st.floats(1e-3, 1e5))),
        draw(arrays(np.float64, (joints, 2), elements=finite)),
        draw(arrays(np.float64, (joints, 3), elements=finite)),
        draw(arrays(np.float64, (joints,), elements=st.floats(0, 1))),
        draw(st.floats(0, 1e5)),
        draw(st.sampled_from(RootDepthSource)),
    )


@settings(suppress_health_check=[HealthCheck.function_scoped_fixture, HealthCheck.too_slow])
@given(data=st.data())
def test_poses_come_back_as_they_were_written(tmp_path, data):
    joint_set = data.draw(st.sampled_from([HUMAN36M, MUCO]))
    cameras = st.builds(Intrinsics, st.floats(1, 1e4), st.floats(1, 1e4), finite, finite)
    header = replace(
        HEADER,
        source=data.draw(st.text(st.characters(exclude_categories=["Cs"]))),
        frame_rate=data.draw(st.none() | st.floats(1, 240)),
        frame_count=data.draw(st.none() | st.integers(1, 10**6)),
        camera=data.draw(cameras),
        root_depth_source=data.draw(st.sampled_from(RootDepthSource)),
        model=replace(
            HEADER.model, variant=data.draw(st.sampled_from(Variant)), joint_set=joint_set, random=data.draw(st.booleans())
        ),
    )
    frames = [
        posed(
            index,
            data.draw(st.floats(0, 1e5)),
            tuple(data.draw(st.lists(pose_strategy(len(joint_set)), max_size=2))),
            camera=data.draw(st.just(header.camera) | cameras),
        )
        for index in range(data.draw(st.integers(1, 3)))
    ]
    path = write(NdjsonRecorder(tmp_path / "poses.ndjson", header, overwrite=True), frames)
    result = read_poses(path)
    assert result.header == header and not result.cut_off
    for ours, theirs in zip(result.frames, frames, strict=True):
        assert (ours.index, ours.camera) == (theirs.frame.index, theirs.camera)
        assert ours.time_s == pytest.approx(theirs.frame.time_s, abs=1e-6)
        for a, b in zip(ours.poses, theirs.poses, strict=True):
            assert (a.track_id, a.root_depth_source) == (b.track_id, b.root_depth_source)
            assert np.abs(a.joints_px - b.joints_px).max() <= 0.00051
            assert np.abs(a.joints_mm - b.joints_mm).max() <= 0.0051
            assert np.abs(a.scores - b.scores).max() <= 0.000051
            assert a.root_depth_mm == pytest.approx(b.root_depth_mm, abs=0.0051)
            assert np.allclose(
                [a.box.x, a.box.y, a.box.width, a.box.height], [b.box.x, b.box.y, b.box.width, b.box.height], atol=6e-4
            )


def test_the_header_tells_what_the_numbers_are(tmp_path):
    path = write(NdjsonRecorder(tmp_path / "poses.ndjson", HEADER), [posed(0)])
    header, frame = (json.loads(line) for line in path.read_text().splitlines())
    assert header["type"] == "header" and header["format"] == "convnextpose/1"
    assert header["axes"] == "x right, y down, z forward"
    assert header["units"]["joints_mm"] == "mm" and header["units"]["joints_px"] == "px" and header["units"]["time_s"] == "s"
    assert header["joints"] == list(HUMAN36M.joints)
    assert header["bones"] == [list(bone) for bone in HUMAN36M.bones]
    assert header["camera"] == {"fx": CAMERA.fx, "fy": CAMERA.fy, "cx": CAMERA.cx, "cy": CAMERA.cy}
    assert header["root_depth_source"] == "assumed_fov"
    assert header["model"] == {
        "name": "xs", "variant": "XS", "joint_set": "human36m", "checkpoint_sha256": "ab" * 32, "random": False,
    }  # fmt: skip
    assert header["runtime"] == {
        "name": "onnxruntime",
        "version": "1.17",
        "device": "CPU",
        "precision": "fp32",
        "threads": 2,
        "crops": "cpu",
    }
    assert header["source"] == {"name": "walk.mp4", "width": 96, "height": 64, "frame_rate": 25.0, "frame_count": 250}
    assert set(frame) == {"type", "index", "time_s", "poses"}
    assert set(frame["poses"][0]) == {
        "track_id", "box", "joints_px", "joints_mm", "scores", "root_depth_mm", "root_depth_source", "cut_by_edge",
        "depth_scale",
    }  # fmt: skip


def test_a_frame_names_its_camera_where_it_is_another(tmp_path):
    other = Intrinsics.assumed(200, 100)
    path = write(NdjsonRecorder(tmp_path / "poses.ndjson", HEADER), [posed(0), posed(1, camera=other)])
    lines = [json.loads(line) for line in path.read_text().splitlines()]
    assert "camera" not in lines[1] and lines[2]["camera"]["fx"] == other.fx


def test_random_weights_are_stamped_on_every_line(tmp_path):
    header = replace(HEADER, model=replace(HEADER.model, random=True))
    lines = write(NdjsonRecorder(tmp_path / "poses.ndjson", header), [posed(0), posed(1)]).read_text().splitlines()
    assert json.loads(lines[0])["model"]["random"] is True
    assert all(json.loads(line)["random_weights"] is True for line in lines[1:])


def test_a_line_cut_off_is_left_out_and_told(tmp_path):
    path = write(NdjsonRecorder(tmp_path / "poses.ndjson", HEADER), [posed(i) for i in range(3)])
    whole = path.read_bytes()
    path.write_bytes(whole[:-40])
    result = read_poses(path)
    assert result.cut_off and [f.index for f in result.frames] == [0, 1]


@pytest.mark.parametrize("path", ["/dev/zero", "."])
def test_a_device_or_a_folder_is_no_file_of_poses(path):
    with pytest.raises(SourceError, match="expected a file of poses"):
        read_poses(path)


@pytest.mark.parametrize(
    "content",
    [
        b"",
        b"\n",
        b"no json\n",
        b"\xff\xfe\x00",
        b"[1, 2]\n",
        b'{"type":"header"}\n',
        b'{"type":"frame","index":0}\n',
        b'{"type":"header","format":"convnextpose/99"}\n',
        b"GOOD\n{}\n",
        b"GOOD\nnull\n",
        b'GOOD\n{"type":"frame","index":0,"time_s":0,"poses":[{}]}\n',
        b'GOOD\n{"type":"frame","index":0,"time_s":0,"poses":7}\n',
    ],
)
def test_what_is_no_file_of_poses_is_refused_in_one_sentence(tmp_path, content):
    path = write(NdjsonRecorder(tmp_path / "poses.ndjson", HEADER), [posed(0)])
    path.write_bytes(content.replace(b"GOOD", path.read_bytes().splitlines()[0]))
    with pytest.raises(SourceError, match=r"poses\.ndjson") as caught:
        read_poses(path)
    assert "\n" not in str(caught.value)


def test_a_box_of_next_to_nothing_comes_back(tmp_path):
    path = write(
        NdjsonRecorder(tmp_path / "poses.ndjson", HEADER), [posed(0, poses=(replace(pose(), box=Box(1, 2, 1e-5, 1e-4)),))]
    )
    box = read_poses(path).frames[0].poses[0].box
    assert 0 < box.width <= 0.001 and 0 < box.height <= 0.001


def test_poses_of_another_joint_set_are_refused(tmp_path):
    path = write(NdjsonRecorder(tmp_path / "poses.ndjson", HEADER), [posed(0)])
    header, frame = (json.loads(line) for line in path.read_text().splitlines())
    (of_frame,) = frame["poses"]
    for name in ("joints_px", "joints_mm", "scores"):
        of_frame[name] += of_frame[name][:3]
    path.write_text(f"{json.dumps(header)}\n{json.dumps(frame)}\n")
    with pytest.raises(SourceError, match=r"18 joints, received one of 21"):
        read_poses(path)


def test_a_file_of_poses_that_is_not_there_is_refused(tmp_path):
    with pytest.raises(SourceError, match="nothing"):
        read_poses(tmp_path / "nothing.ndjson")


def test_events_and_smoothed_poses_come_back(tmp_path):
    events = (
        TrackEvent(TrackEventKind.BORN, 0.04, 1, "first seen at 0.000 s"),
        TrackEvent(TrackEventKind.MERGED, 0.04, 3, "the same person as 1", 1),
        TrackEvent(TrackEventKind.CUT, 0.04, None, "a hard cut"),
    )
    smoothed = replace(pose(), smoothed_mm=pose().joints_mm + 1)
    frame = replace(posed(0, poses=(smoothed,)), events=events)
    for smooth in (True, False):
        folder = tmp_path / str(smooth)
        folder.mkdir()
        path = write(NdjsonRecorder(folder / "poses.ndjson", replace(HEADER, smooth=smooth)), [frame])
        back = read_poses(path)
        (again,) = back.frames
        assert again.events == events and back.header.smooth is smooth
        kept = again.poses[0].smoothed_mm
        assert np.allclose(kept, smoothed.smoothed_mm, atol=0.01) if smooth else kept is None
        arrays = pose_arrays(back)
        assert ("smoothed_mm" in arrays) is smooth
        assert not smooth or np.allclose(arrays["smoothed_mm"][0], smoothed.smoothed_mm, atol=0.01)
