"""Sinks on real files: what was written comes back, nothing is overwritten by surprise, and a killed run leaves what it can."""

import json
import os
import resource
import signal
import subprocess
import sys
from dataclasses import replace
from pathlib import Path

import av
import cv2
import numpy as np
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from hypothesis.extra.numpy import arrays

from convnextpose.camera import Intrinsics, RootDepthSource
from convnextpose.crop import Box
from convnextpose.errors import OutputExistsError, SinkError, SourceError
from convnextpose.skeleton import HUMAN36M, MUCO
from convnextpose.variants import Variant
from engines.pose import ModelInfo
from engines.session import SessionDescription
from pipeline.records import read_poses
from pipeline.sinks import MAX_SIDE, NdjsonSink, NpzSink, VideoSink, open_sinks
from pipeline.sources import open_source
from pipeline.types import Frame, Pose, PosedFrame, RunHeader

ROOT = Path(__file__).parents[2]
CAMERA = Intrinsics.assumed(96, 64)
HEADER = RunHeader(
    "walk.mp4", 96, 64, 25.0, 250, CAMERA, RootDepthSource.ASSUMED_FOV,
    ModelInfo("xs", Variant.XS, HUMAN36M, "ab" * 32),
    SessionDescription("onnxruntime", "1.17", "CPU", "fp32", 2),
)  # fmt: skip
NAMES = ["poses.mp4", "poses.ndjson", "poses.npz"]


def pose(seed=0, joints=18, track_id=1):
    rng = np.random.default_rng(seed)
    return Pose(
        track_id, Box(10.5, -3.25, 40, 50.125), rng.uniform(-50, 200, (joints, 2)), rng.uniform(-3000, 5000, (joints, 3)),
        rng.uniform(0, 1, joints), 4321.5, RootDepthSource.ASSUMED_FOV,
    )  # fmt: skip


def posed(index, time_s=None, poses=None, size=(96, 64), camera=CAMERA, drawn=True):
    """A frame whose grey level tells its index, with one pose."""
    width, height = size
    image = np.full((height, width, 3), 40 + index * 7 % 180, np.uint8)
    poses = (pose(index),) if poses is None else poses
    return PosedFrame(
        Frame(image, "walk.mp4", index, index / 25 if time_s is None else time_s), poses, camera, image if drawn else None
    )


def write(sink, frames):
    with sink:
        for frame in frames:
            sink.write(frame)
    return sink.path


def names(folder):
    return sorted(path.name for path in folder.iterdir())


def noise(index, width=320, height=240):
    image = np.random.default_rng(index).integers(0, 256, (height, width, 3), np.uint8)
    return replace(posed(index), picture=image)


# Records.

finite = st.floats(-1e5, 1e5)


@st.composite
def pose_strategy(draw, joints):
    return Pose(
        draw(st.integers(0, 2**31)),
        Box(draw(finite), draw(finite), draw(st.floats(1e-3, 1e5)), draw(st.floats(1e-3, 1e5))),
        draw(arrays(np.float64, (joints, 2), elements=finite)),
        draw(arrays(np.float64, (joints, 3), elements=finite)),
        draw(arrays(np.float64, (joints,), elements=st.floats(0, 1))),
        draw(st.floats(0, 1e5)),
        draw(st.sampled_from(RootDepthSource)),
    )


@settings(max_examples=40, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture, HealthCheck.too_slow])
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
    path = write(NdjsonSink(tmp_path / "poses.ndjson", header, overwrite=True), frames)
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
    path = write(NdjsonSink(tmp_path / "poses.ndjson", HEADER), [posed(0)])
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
    assert header["runtime"] == {"name": "onnxruntime", "version": "1.17", "device": "CPU", "precision": "fp32", "threads": 2}
    assert header["source"] == {"name": "walk.mp4", "width": 96, "height": 64, "frame_rate": 25.0, "frame_count": 250}
    assert set(frame) == {"type", "index", "time_s", "poses"}
    assert set(frame["poses"][0]) == {
        "track_id", "box", "joints_px", "joints_mm", "scores", "root_depth_mm", "root_depth_source",
    }  # fmt: skip


def test_a_frame_names_its_camera_where_it_is_another(tmp_path):
    other = Intrinsics.assumed(200, 100)
    path = write(NdjsonSink(tmp_path / "poses.ndjson", HEADER), [posed(0), posed(1, camera=other)])
    lines = [json.loads(line) for line in path.read_text().splitlines()]
    assert "camera" not in lines[1] and lines[2]["camera"]["fx"] == other.fx


def test_random_weights_are_stamped_on_every_result(tmp_path):
    header = replace(HEADER, model=replace(HEADER.model, random=True))
    lines = write(NdjsonSink(tmp_path / "poses.ndjson", header), [posed(0), posed(1)]).read_text().splitlines()
    assert json.loads(lines[0])["model"]["random"] is True
    assert all(json.loads(line)["random_weights"] is True for line in lines[1:])
    with np.load(write(NpzSink(tmp_path / "poses.npz", header), [posed(0)])) as results:
        assert results["random_weights"] and json.loads(str(results["header"]))["model"]["random"] is True


def test_lines_are_there_as_soon_as_they_are_written(tmp_path):
    sink = NdjsonSink(tmp_path / "poses.ndjson", HEADER)
    for index in range(3):
        sink.write(posed(index))
        assert len(read_poses(sink.path).frames) == index + 1
    sink.close()


def test_a_line_cut_off_is_left_out_and_told(tmp_path):
    path = write(NdjsonSink(tmp_path / "poses.ndjson", HEADER), [posed(i) for i in range(3)])
    whole = path.read_bytes()
    path.write_bytes(whole[:-40])
    result = read_poses(path)
    assert result.cut_off and [f.index for f in result.frames] == [0, 1]


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
    path = write(NdjsonSink(tmp_path / "poses.ndjson", HEADER), [posed(0)])
    path.write_bytes(content.replace(b"GOOD", path.read_bytes().splitlines()[0]))
    with pytest.raises(SourceError, match=r"poses\.ndjson") as caught:
        read_poses(path)
    assert "\n" not in str(caught.value)


def test_a_box_of_next_to_nothing_comes_back(tmp_path):
    path = write(NdjsonSink(tmp_path / "poses.ndjson", HEADER), [posed(0, poses=(replace(pose(), box=Box(1, 2, 1e-5, 1e-4)),))])
    box = read_poses(path).frames[0].poses[0].box
    assert 0 < box.width <= 0.001 and 0 < box.height <= 0.001


def test_poses_of_another_joint_set_are_refused(tmp_path):
    path = write(NdjsonSink(tmp_path / "poses.ndjson", HEADER), [posed(0, poses=(pose(0, joints=21),))])
    with pytest.raises(SourceError, match="18 joints"):
        read_poses(path)


def test_a_file_of_poses_that_is_not_there_is_refused(tmp_path):
    with pytest.raises(SourceError, match="nothing"):
        read_poses(tmp_path / "nothing.ndjson")


# Arrays.


def test_arrays_hold_every_pose_of_every_frame(tmp_path):
    other = Intrinsics.assumed(200, 100)
    people = [(pose(0), pose(1, track_id=2)), (), (pose(2, track_id=2),)]
    frames = [posed(i + 5, poses=p, camera=other if i == 1 else CAMERA) for i, p in enumerate(people)]
    with np.load(write(NpzSink(tmp_path / "poses.npz", HEADER), frames), allow_pickle=False) as results:
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


def test_arrays_of_nobody_keep_their_shapes(tmp_path):
    with np.load(write(NpzSink(tmp_path / "poses.npz", HEADER), [posed(0, poses=()), posed(1, poses=())])) as results:
        assert results["joints_mm"].shape == (0, 18, 3) and results["box"].shape == (0, 4)
        assert results["frame_index"].tolist() == [0, 1]


# Video.


@settings(max_examples=10, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(gaps=st.lists(st.floats(0.002, 2.0), min_size=1, max_size=40), start=st.sampled_from([0.0, 0.013, 7.25]))
def test_every_picture_has_its_time(tmp_path, gaps, start):
    times = start + np.concatenate([[0.0], np.cumsum(gaps)])
    path = write(VideoSink(tmp_path / "poses.mp4", HEADER, overwrite=True), [posed(i, t) for i, t in enumerate(times)])
    with av.open(str(path)) as container:
        stream = container.streams.video[0]
        assert stream.codec_context.name == "h264" and stream.codec_context.pix_fmt == "yuv420p"
        assert stream.frames == len(times), "a finished video is an ordinary MP4, which counts its frames"
        pictures = list(container.decode(stream))
        duration = float(stream.duration * stream.time_base)
    assert times[-1] - times[0] < duration < times[-1] - times[0] + 1, "it ends with its last picture"
    written = np.array([float(p.pts * p.time_base) for p in pictures])
    assert np.abs(written - (times - times[0])).max() < 1e-3
    levels = [p.to_ndarray(format="bgr24").mean() for p in pictures]
    assert np.allclose(levels, [40 + i * 7 % 180 for i in range(len(times))], atol=4)


def test_a_source_reads_the_video_with_the_same_times(tmp_path):
    path = write(VideoSink(tmp_path / "poses.mp4", HEADER), [posed(i) for i in range(50)])
    with open_source(path) as source:
        assert source.info.frame_rate == pytest.approx(25)
        assert np.allclose([f.time_s for f in source], np.arange(50) / 25, atol=1e-3)


def test_colours_stay_what_they_are(tmp_path):
    image = np.zeros((720, 1280, 3), np.uint8)
    colours = [(255, 0, 0), (0, 255, 0), (0, 0, 255), (30, 200, 250)]
    for column, colour in enumerate(colours):
        image[:, column * 320 : (column + 1) * 320] = colour
    path = write(VideoSink(tmp_path / "poses.mp4", HEADER), [replace(posed(0), picture=image)])
    with open_source(path) as source:
        (frame,) = source
    with av.open(str(path)) as container:
        assert next(container.decode(video=0)).colorspace == 6, "told, as players take high definition for BT.709"
    for column, colour in enumerate(colours):
        assert np.abs(frame.image[360, column * 320 + 160].astype(int) - colour).max() < 8


@pytest.mark.parametrize(
    ("size", "becomes"), [((97, 64), (98, 64)), ((96, 63), (96, 64)), ((1, 1), (2, 2)), ((33, 51), (34, 52))]
)
def test_odd_sizes_gain_a_pixel(tmp_path, size, becomes):
    path = write(VideoSink(tmp_path / "poses.mp4", HEADER), [posed(0, size=size), posed(1, size=size)])
    with open_source(path) as source:
        assert (source.info.width, source.info.height) == becomes
        for frame in source:
            assert np.ptp(frame.image) < 10, "the edge is repeated, not black"


def test_pictures_of_other_sizes_are_fitted_between_black_borders(tmp_path):
    frames = [posed(0, size=(96, 64)), posed(1, size=(64, 96)), posed(2, size=(400, 100)), posed(3, size=(96, 64))]
    with open_source(write(VideoSink(tmp_path / "poses.mp4", HEADER), frames)) as source:
        first, tall, wide, last = source
    assert {(f.width, f.height) for f in (first, tall, wide, last)} == {(96, 64)}
    for frame in (first, last):
        assert frame.image.min() > 30
    assert tall.image[:, :20].max() < 12 and tall.image[:, -20:].max() < 12 and tall.image[5:-5, 40:56].min() > 30
    assert wide.image[:16].max() < 12 and wide.image[-16:].max() < 12 and wide.image[28:36, 5:-5].min() > 30


def test_time_stamps_that_do_not_grow_are_refused(tmp_path):
    sink = VideoSink(tmp_path / "poses.mp4", HEADER)
    sink.write(posed(0, 1.0))
    with pytest.raises(SinkError, match="grow"):
        sink.write(posed(1, 1.0))
    sink.close()
    with open_source(sink.path) as source:
        assert len(list(source)) == 1


def test_a_video_needs_drawn_pictures(tmp_path):
    with pytest.raises(SinkError, match="draw"), VideoSink(tmp_path / "poses.mp4", HEADER) as sink:
        sink.write(posed(0, drawn=False))
    assert names(tmp_path) == []


# A folder of results.


def test_a_folder_holds_all_three(tmp_path):
    out = tmp_path / "new" / "folder"
    sinks = open_sinks(out, HEADER, overwrite=False)
    assert [s.path for s in sinks] == [out / name for name in NAMES]
    assert names(out) == [], "nothing is written before the first frame"
    for index in range(4):
        for sink in sinks:
            sink.write(posed(index))
    for sink in sinks:
        sink.close()
        sink.close()
    assert names(out) == NAMES
    with pytest.raises(SinkError, match="closed"):
        sinks[0].write(posed(9))


@pytest.mark.parametrize("name", NAMES)
def test_results_that_are_there_are_not_touched(tmp_path, name):
    (tmp_path / name).write_bytes(b"yesterday's")
    with pytest.raises(OutputExistsError, match="--overwrite") as caught:
        open_sinks(tmp_path, HEADER, overwrite=False)
    assert isinstance(caught.value, FileExistsError) and name in str(caught.value)
    assert names(tmp_path) == [name] and (tmp_path / name).read_bytes() == b"yesterday's"


def test_results_that_appear_meanwhile_are_not_touched_either(tmp_path):
    sinks = open_sinks(tmp_path, HEADER, overwrite=False)
    for name in NAMES:
        (tmp_path / name).write_bytes(b"another run's")
    for sink in sinks:
        with pytest.raises(OutputExistsError):
            sink.write(posed(0))
        sink.close()
    assert all((tmp_path / name).read_bytes() == b"another run's" for name in NAMES)


def test_arrays_that_appear_during_the_run_are_not_touched(tmp_path):
    sink = NpzSink(tmp_path / "poses.npz", HEADER)
    sink.write(posed(0))
    sink.path.write_bytes(b"another run's")
    with pytest.raises(OutputExistsError):
        sink.close()
    assert sink.path.read_bytes() == b"another run's" and names(tmp_path) == ["poses.npz"]


def test_old_results_survive_a_run_that_does_not_start(tmp_path):
    for name in [*NAMES, "notes.txt"]:
        (tmp_path / name).write_bytes(b"yesterday's")
    for sink in open_sinks(tmp_path, HEADER, overwrite=True):
        sink.close()
    assert all((tmp_path / name).read_bytes() == b"yesterday's" for name in [*NAMES, "notes.txt"])


def test_overwriting_replaces_results_and_nothing_else(tmp_path):
    for name in [*NAMES, "notes.txt"]:
        (tmp_path / name).write_bytes(b"yesterday's")
    sinks = open_sinks(tmp_path, HEADER, overwrite=True)
    for sink in sinks:
        sink.write(posed(0))
    assert not (tmp_path / "poses.npz").exists(), "old arrays don't stand beside a new video"
    for sink in sinks:
        sink.close()
    assert (tmp_path / "notes.txt").read_bytes() == b"yesterday's"
    assert len(read_poses(tmp_path / "poses.ndjson").frames) == 1
    with np.load(tmp_path / "poses.npz") as results:
        assert len(results["frame_index"]) == 1
    with open_source(tmp_path / "poses.mp4") as source:
        assert len(list(source)) == 1


def test_a_run_may_overwrite_the_video_that_it_reads(tmp_path):
    path = write(VideoSink(tmp_path / "poses.mp4", HEADER), [noise(i) for i in range(30)])
    with open_source(path) as source, VideoSink(path, HEADER, overwrite=True) as sink:
        count = 0
        for frame in source:
            sink.write(PosedFrame(frame, (), CAMERA, frame.image))
            count += 1
    assert count == 30
    with open_source(path) as source:
        assert len(list(source)) == 30


def test_a_folder_that_cannot_be_one_is_refused(tmp_path):
    (tmp_path / "file").write_text("no folder")
    for out in (tmp_path / "file", tmp_path / "file" / "inner"):
        with pytest.raises(SinkError, match="file"):
            open_sinks(out, HEADER, overwrite=True)


# Faults.


@pytest.fixture
def small_disk():
    """No file may grow beyond 40,000 bytes: to a sink, a full disk."""
    soft, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (40_000, hard))
    yield
    resource.setrlimit(resource.RLIMIT_FSIZE, (soft, hard))


@pytest.mark.parametrize("make", [VideoSink, NdjsonSink, NpzSink])
def test_a_full_disk_is_told_in_one_sentence(tmp_path, small_disk, make):
    sink = make(tmp_path / "poses", HEADER)
    with pytest.raises(SinkError, match="poses") as caught:  # arrays fail when closed, the others before
        for index in range(200):
            sink.write(noise(index))
        sink.close()
    assert "\n" not in str(caught.value) and "large" in str(caught.value)
    try:
        sink.close()
    except SinkError:
        sink.close()
    assert set(names(tmp_path)) <= {"poses"}, "nothing half finished lies about"
    if make is NdjsonSink:
        result = read_poses(sink.path)
        assert result.cut_off and len(result.frames) > 5
    if make is NpzSink:
        assert not sink.path.exists()


def test_numbers_that_json_has_no_word_for_are_refused(tmp_path):
    sink = NdjsonSink(tmp_path / "poses.ndjson", HEADER)
    sink.write(posed(0))
    with pytest.raises(SinkError, match=r"poses\.ndjson"):
        sink.write(posed(1, poses=(replace(pose(), root_depth_mm=float("nan")),)))
    sink.close()
    assert len(read_poses(sink.path).frames) == 1


KILLED = """
import sys
from pathlib import Path
from pipeline.sinks import open_sinks
from tests.pipeline.test_sinks import HEADER, noise
sinks = open_sinks(Path(sys.argv[1]), HEADER, overwrite=True)
for index in range(10**6):
    for sink in sinks:
        sink.write(noise(index))
    print(index, flush=True)
"""


def test_a_killed_run_leaves_whole_lines_and_a_video_that_plays(tmp_path):
    environment = {**os.environ, "PYTHONPATH": os.pathsep.join([str(ROOT), *sys.path])}
    with subprocess.Popen(
        [sys.executable, "-c", KILLED, str(tmp_path)], stdout=subprocess.PIPE, text=True, env=environment, cwd=ROOT
    ) as process:
        for line in process.stdout:
            if int(line) == 80:
                break
        process.send_signal(signal.SIGKILL)
    lines = (tmp_path / "poses.ndjson").read_bytes()
    result = read_poses(tmp_path / "poses.ndjson")
    written = len(result.frames)
    assert written >= 81
    assert lines.endswith(b"\n") and not result.cut_off
    assert [f.index for f in result.frames] == list(range(written))
    frames = []
    with open_source(tmp_path / "poses.mp4") as source:
        try:
            frames.extend(source)
        except SourceError as error:
            assert f"broke at frame {len(frames)}" in str(error)
    assert written - 51 <= len(frames) <= written + 1, "at most the last second or two is lost"
    assert np.allclose([f.time_s for f in frames], np.arange(len(frames)) / 25, atol=1e-3)
    assert not (tmp_path / "poses.npz").exists()


def test_an_encoder_with_more_threads_writes_the_same_times(tmp_path):
    path = write(VideoSink(tmp_path / "poses.mp4", HEADER, threads=2), [noise(i) for i in range(30)])
    with open_source(path) as source:
        frames = list(source)
    assert np.allclose([f.time_s for f in frames], np.arange(30) / 25, atol=1e-3)
    small = cv2.resize(noise(29).picture, (32, 24), interpolation=cv2.INTER_AREA).astype(int)
    assert np.abs(small - cv2.resize(frames[29].image, (32, 24), interpolation=cv2.INTER_AREA)).mean() < 8


def test_pictures_that_h264_cannot_hold_are_made_smaller(tmp_path):
    write(VideoSink(tmp_path / "wide.mp4", HEADER), [posed(0, size=(20_000, 40))])
    with av.open(str(tmp_path / "wide.mp4")) as container:
        (frame,) = container.decode(video=0)
    assert frame.width == MAX_SIDE
