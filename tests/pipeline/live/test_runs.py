"""Runs of live sources: counts that are exact whatever happens, many cameras on one model, segments, full disks."""

import itertools
import json
import threading
import time
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest

from convnextpose.camera import Intrinsics, RootDepthSource
from convnextpose.crop import Box
from convnextpose.errors import SinkError, SourceError, StageError
from pipeline.estimator import Estimator
from pipeline.formats.base import written_files
from pipeline.formats.ndjson import NdjsonRecorder
from pipeline.formats.npz import NpzRecorder
from pipeline.formats.records import read_poses
from pipeline.formats.segments import Segments
from pipeline.formats.table import open_recorders
from pipeline.people import WholePicture
from pipeline.run import RunConfig, SourceEntry, open_pipeline, read_sources, source_names
from pipeline.sources import Timeouts, open_source
from pipeline.sources.live import LiveSource
from pipeline.stages import TrackedBox
from pipeline.stream import Stream
from pipeline.streams import Pipeline
from pipeline.types import Frame, PosedFrame, RunHeader, SourceInfo
from tests.pipeline.blob import BlobModel
from tests.pipeline.live.servers import Mjpeg, MuteServer, WebServer, jpeg
from tests.pipeline.live.test_live import QUICK, ConnectionLost, endless, scripted, shown, then

SIZE = (160, 120)


class Everywhere(WholePicture):
    """A people finder that takes one box in every frame."""

    def find(self, frame, stopwatch):
        return (TrackedBox(0, Box(40, 20, 60, 90)),)


def header_of(source, model):
    return RunHeader(source.info.id, None, None, None, None, None, RootDepthSource.ASSUMED_FOV, model.info, model.describe())


def stream(source, recorders=lambda header: [], model=None):
    model = model or BlobModel()
    header = header_of(source, model)
    return Stream(source, Estimator(model, Everywhere()), header, recorders=recorders(header))


def run_for(pipeline, until, within_s=60.0):
    """Run a pipeline until a condition holds; returns its frames."""
    frames = []
    done = threading.Event()

    def stop():
        end = time.monotonic() + within_s
        while not until() and time.monotonic() < end and not done.is_set():
            time.sleep(0.01)
        pipeline.stop()

    watch = threading.Thread(target=stop, daemon=True)
    watch.start()
    try:
        for frame in pipeline:
            frames.append(frame)
    finally:
        done.set()
        watch.join()
    assert until(), "the condition was not reached"
    return frames


def exact(stream):
    account = stream.ledger.counts()
    assert account.in_flight == 0 and account.received == account.posed + account.dropped + account.failed
    return account


def pictures(size):
    def connection(self):
        while not self.aborted.is_set():
            yield shown(120, size)
            time.sleep(0.005)
        raise ConnectionLost("aborted")

    return connection


def test_the_header_is_completed_by_the_first_frame_also_of_a_camera_that_returns_at_another_size(tmp_path):
    def first(connection):
        for _ in range(5):
            yield shown(120, SIZE)
            time.sleep(0.01)
        raise ConnectionLost("away")

    source = LiveSource("camera", scripted(ConnectionLost("refused"), first, pictures((320, 240))), timeouts=QUICK)
    one = stream(source, lambda header: [NdjsonRecorder(tmp_path / "poses.ndjson", header)])
    assert one.header.width is None and one.header.camera is None
    frames = run_for(Pipeline([one]), lambda: exact_enough(one, 320))
    assert (one.header.width, one.header.height) == SIZE and one.header.camera == Intrinsics.assumed(*SIZE)
    account = exact(one)
    read = read_poses(tmp_path / "poses.ndjson")
    assert (read.header.width, read.header.height) == SIZE and read.header.camera == Intrinsics.assumed(*SIZE)
    assert len(read.frames) + one.missed["poses.ndjson"] == account.posed
    assert {frame.camera for frame in read.frames} == {Intrinsics.assumed(*SIZE), Intrinsics.assumed(320, 240)}
    assert [state.state for state in one.states][:6] == ["open", "connecting", "lost", "live", "lost", "live"]
    assert one.states[-1].state == "stopped"
    assert [f.frame.captured_ns is not None for f in frames] == [True] * len(frames)


def test_given_intrinsics_follow_a_camera_to_another_size():
    """With another aspect ratio they do not apply, and a field of view is assumed."""
    sizes = [(160, 120), (320, 240), (320, 180)]
    estimator = Estimator(BlobModel(), Everywhere(), camera=Intrinsics(150, 160, 79.5, 59.5))
    posed = [estimator.step(Frame(shown(120, size).image, "camera", n, n, 1, "arrival")) for n, size in enumerate(sizes)]
    assert [frame.camera for frame in posed] == [
        Intrinsics(150, 160, 79.5, 59.5), Intrinsics(300, 320, 159.5, 119.5), Intrinsics.assumed(320, 180),
    ]  # fmt: skip
    depths = [frame.poses[0].root_depth_source for frame in posed]
    assert depths == [RootDepthSource.INTRINSICS] * 2 + [RootDepthSource.ASSUMED_FOV]


def exact_enough(stream, width):
    return stream.source.info.width == width and stream.ledger.counts().posed > 10


def test_the_time_that_a_camera_takes_to_decode_is_its_capture_and_what_follows_is_waiting():
    def connection(self):
        while not self.aborted.is_set():
            yield replace(shown(120, SIZE), decode_ns=5_000_000)
            time.sleep(0.01)
        raise ConnectionLost("aborted")

    one = stream(LiveSource("camera", scripted(connection), timeouts=QUICK))
    frames = run_for(Pipeline([one]), lambda: one.ledger.counts().posed > 5)
    for frame in frames:
        capture, following = frame.timeline.spans[:2]
        assert (capture.stage, capture.end_ns - capture.start_ns) == ("capture", 5_000_000)
        assert following.enter_ns == capture.end_ns
    (row,) = [row for row in one.timing.statistics() if row.stage == "capture"]
    assert row.p50_ms == 5


def test_every_record_says_when_its_picture_was_taken_and_by_which_clock(tmp_path):
    before = time.time_ns()
    one = stream(
        LiveSource("camera", scripted(pictures(SIZE)), timeouts=QUICK),
        lambda header: [NdjsonRecorder(tmp_path / "poses.ndjson", header)],
    )
    frames = run_for(Pipeline([one]), lambda: one.ledger.counts().posed > 5)
    lines = [json.loads(line) for line in (tmp_path / "poses.ndjson").read_text().splitlines()[1:]]
    assert {line["clock"] for line in lines} == {"arrival"}
    moments = {frame.frame.index: frame.frame.captured_ns // 1000 for frame in frames}
    in_both = [line for line in lines if line["index"] in moments]
    assert len(in_both) > 2, "a busy machine may miss a few in each"
    for line in in_both:
        moment = np.datetime64(line["utc"].removesuffix("+00:00"), "us").astype(int)
        assert moment == moments[line["index"]] >= before // 1000
    read = read_poses(tmp_path / "poses.ndjson")
    assert [frame.utc for frame in read.frames] == [line["utc"] for line in lines]
    assert {frame.clock for frame in read.frames} == {"arrival"}


def test_ultralytics_10257_a_camera_that_is_absent_stops_no_other():
    absent = stream(LiveSource("absent", scripted(ConnectionLost("refused")), timeouts=QUICK))
    flapping = stream(LiveSource("flapping", scripted(then(2, ConnectionLost("closed"))), timeouts=QUICK))
    there = stream(LiveSource("there", scripted(endless), timeouts=QUICK))
    run_for(Pipeline([absent, flapping, there]), lambda: there.ledger.counts().posed > 30)
    assert exact(absent).received == 0 and absent.states[2].state == "lost"
    assert exact(flapping).received > 2 and exact(there).posed > 30


def test_deepstream_yolo_667_ultralytics_4493_every_camera_gets_poses_and_a_flooding_one_takes_no_share():
    """Also ultralytics#4493: no stream stops after a few frames."""

    class Waits(BlobModel):
        def run(self, crops):
            time.sleep(0.004)
            return super().run(crops)

    def flood(connection):
        while not connection.aborted.is_set():
            yield shown(120, SIZE)
        raise ConnectionLost("aborted")

    model = Waits()
    cameras = [stream(LiveSource(f"camera {n}", scripted(pictures(SIZE)), timeouts=QUICK), model=model) for n in range(3)]
    flooding = stream(LiveSource("flooding", scripted(flood), timeouts=QUICK), model=model)
    streams = [*cameras, flooding]
    frames = run_for(Pipeline(streams), lambda: all(s.ledger.counts().posed > 15 for s in streams))
    for each in streams:
        exact(each)
        mine = [f for f in frames if f.frame.source_id == each.header.source]
        assert mine and all(len(f.poses) == 1 for f in mine)
        assert each.ledger.counts().failed == 0, "frames that nobody had time for are dropped, not failed"
    assert exact(flooding).dropped > 0


def test_ultralytics_3559_no_frame_comes_twice_and_none_is_left_out_of_the_account():
    one = stream(LiveSource("camera", scripted(then(7, ConnectionLost("closed"))), timeouts=QUICK))
    frames = run_for(Pipeline([one]), lambda: one.ledger.counts().received > 60)
    indices = [f.frame.index for f in frames]
    assert indices == sorted(set(indices))
    account = exact(one)
    assert len(frames) + one.missed["caller"] == account.posed


@pytest.mark.parametrize("number", [1, 4])
def test_closing_takes_no_longer_for_cameras_that_are_mute(number):
    with MuteServer() as server:
        sources = [open_source(f"http://127.0.0.1:{server.port}/{n}", timeouts=Timeouts(open_s=5)) for n in range(number)]
        pipeline = Pipeline([stream(source) for source in sources])
        runner = threading.Thread(target=pipeline.run, daemon=True)
        runner.start()
        time.sleep(0.3)
        pipeline.stop()
        runner.join(3)
        assert not runner.is_alive()


def test_a_pipeline_of_cameras_ends_when_it_is_stopped_from_a_timer():
    one = stream(LiveSource("camera", scripted(ConnectionLost("refused"))))
    pipeline = Pipeline([one])
    timer = threading.Timer(0.2, pipeline.stop)
    timer.start()
    pipeline.run()
    timer.join()
    assert one.states[-1].state == "stopped" and exact(one).received == 0


# Segments.


def posed(taken_ns, index, size=SIZE):
    image = np.zeros((size[1], size[0], 3), np.uint8)
    frame = Frame(image, "camera", index, index / 25, taken_ns, "arrival")
    return PosedFrame(frame, (), Intrinsics.assumed(*size), picture=image)


BEGIN = 1_700_000_003 * 10**9  # 2023-11-14 22:13:23 UTC


def test_segments_are_whole_and_named_by_the_time_at_which_they_begin(tmp_path):
    model = BlobModel()
    header = header_of(LiveSource("camera", scripted(endless)), model)
    recorders = open_recorders(tmp_path, ("mp4", "ndjson", "npz"), header, segments=Segments(10, BEGIN))
    for index in range(30):
        for recorder in recorders:
            recorder.write(posed(BEGIN + index * 10**9, index))
    for recorder in recorders:
        recorder.close()
    folders = sorted(path.name for path in tmp_path.iterdir())
    assert folders == ["2023-11-14T22-13-23Z", "2023-11-14T22-13-30Z", "2023-11-14T22-13-40Z", "2023-11-14T22-13-50Z"]
    counts = []
    for folder in folders:
        read = read_poses(tmp_path / folder / "poses.ndjson")
        with open_source(tmp_path / folder / "poses.mp4") as video, np.load(tmp_path / folder / "poses.npz") as arrays:
            assert len(list(video)) == len(read.frames) == len(arrays["frame_index"])
        assert read.header.width == SIZE[0] and not read.cut_off
        counts.append(len(read.frames))
    assert counts == [7, 10, 10, 3]
    assert [recorder.written for recorder in recorders] == [30, 30, 30]
    assert len(written_files(recorders)) == 12


def test_a_clock_that_goes_back_does_not_open_a_segment_again(tmp_path):
    header = header_of(LiveSource("camera", scripted(endless)), BlobModel())
    (recorder,) = open_recorders(tmp_path, ("ndjson",), header, segments=Segments(10, BEGIN))
    for index, second in enumerate([0, 8, 6, 9, -20, 30]):
        recorder.write(posed(BEGIN + second * 10**9, index))
    recorder.close()
    assert [file.frames for file in recorder.files] == [1, 4, 1]


def test_every_segment_has_the_size_of_its_own_first_picture(tmp_path):
    header = header_of(LiveSource("camera", scripted(endless)), BlobModel())
    (recorder,) = open_recorders(tmp_path, ("ndjson",), header, segments=Segments(10, BEGIN))
    recorder.write(posed(BEGIN, 0))
    recorder.write(posed(BEGIN + 20 * 10**9, 1, size=(320, 240)))
    recorder.close()
    assert [read_poses(file.path).header.width for file in recorder.files] == [160, 320]


def test_a_segment_that_is_there_already_is_not_touched(tmp_path):
    header = header_of(LiveSource("camera", scripted(endless)), BlobModel())
    (tmp_path / "2023-11-14T22-13-23Z").mkdir()
    theirs = tmp_path / "2023-11-14T22-13-23Z" / "poses.ndjson"
    theirs.write_text("theirs")
    (recorder,) = open_recorders(tmp_path, ("ndjson",), header, segments=Segments(10, BEGIN))
    with pytest.raises(SinkError, match="exists already"):
        recorder.write(posed(BEGIN, 0))
    recorder.write(posed(BEGIN + 9 * 10**9, 1))
    recorder.close()
    assert theirs.read_text() == "theirs" and recorder.written == 1


@pytest.mark.parametrize("length", [0, 0.5, -1, float("nan")])
def test_segments_that_are_too_short_are_refused(length):
    with pytest.raises(ValueError, match="at least 1 s"):
        Segments(length, BEGIN)


def test_a_disk_that_fills_up_is_told_and_the_live_part_goes_on(tmp_path, monkeypatch):
    full = threading.Event()
    append = NpzRecorder._add

    def add(self, item):
        if full.is_set():
            raise OSError(28, "No space left on device")
        append(self, item)

    monkeypatch.setattr(NpzRecorder, "_add", add)

    def recorders(header):
        return open_recorders(tmp_path, ("ndjson", "npz"), header, segments=Segments(1, time.time_ns()))

    one = stream(LiveSource("camera", scripted(pictures(SIZE)), timeouts=QUICK), recorders)
    pipeline = Pipeline([one])
    begin = time.monotonic()

    def disk():
        after = time.monotonic() - begin
        full.set() if 0.3 < after < 1.5 else full.clear()
        return after > 3.2

    with pytest.raises(StageError, match=r"stage write: .*poses\.npz cannot be written: No space left on device"):
        run_for(pipeline, disk)
    account = exact(one)
    lines, arrays = one.recorders
    assert lines.written + one.missed["poses.ndjson"] == account.posed == arrays.written + one.missed["poses.npz"]
    assert one.missed["poses.npz"] > 5, "frames that could not be written are counted"
    assert len(arrays.files) >= 2, "recording is tried again with the next segment"
    assert one.states[-1].state == "stopped", "the camera was read to the end"


# Configurations.


def test_sources_are_read_from_a_file(tmp_path):
    path = tmp_path / "cameras.txt"
    path.write_text("# the hall\n\ndoor  rtsp://u:p@10.0.0.7/live#transport=udp\n  yard 0?size=640x480   600,600,320,240\n")
    assert read_sources(path) == (
        SourceEntry("rtsp://u:p@10.0.0.7/live#transport=udp", "door"),
        SourceEntry("0?size=640x480", "yard", Intrinsics(600, 600, 320, 240)),
    )


@pytest.mark.parametrize(
    ("text", "told"),
    [
        ("", "has none"),
        ("door", "received 1 words in line 1"),
        ("\nrtsp://admin:hunter2@h/x 1,2,3,4", "received a URI first in line 2"),
        ("door rtsp://admin:hunter2@h/x 1,2,3", "expected a camera as fx,fy,cx,cy"),
        ("door rtsp://admin:hunter2@h/x\nDoor 0", "received Door again in line 2"),
        ("a b c d", "received 4 words"),
    ],
)
def test_a_file_of_sources_with_a_fault_is_told_by_its_line(tmp_path, text, told):
    path = tmp_path / "cameras.txt"
    path.write_text(text)
    with pytest.raises(SourceError) as caught:
        read_sources(path)
    assert told in str(caught.value) and "hunter2" not in str(caught.value)


@pytest.mark.parametrize(
    ("path", "told"),
    [("/dev/zero", "a device"), (".", "the folder"), ("nothing", "no such file")],
)
def test_what_is_no_file_of_sources_is_refused(path, told):
    with pytest.raises(SourceError, match=told):
        read_sources(Path(path))


def test_a_file_of_sources_is_small_text(tmp_path):
    path = tmp_path / "cameras.txt"
    for content, told in ((b"a 0\n" * 2**19, "at most"), (b"d\xf6r 0\n", "UTF-8")):
        path.write_bytes(content)
        with pytest.raises(SourceError, match=told):
            read_sources(path)


def test_results_of_cameras_are_named_by_their_addresses():
    ids = ["rtsp://10.0.0.7:554/live.sdp", "rtsp://10.0.0.8/live?channel=1", "/dev/video0", "test://", "clip.v2.mp4"]
    infos = [SourceInfo(each, not each.endswith("mp4"), None, None, None, None) for each in ids]
    assert source_names(infos) == ["10.0.0.7_554_live.sdp", "10.0.0.8_live", "dev_video0", "test", "clip.v2"]


def test_cameras_from_python_with_the_models_of_the_package(tmp_path):
    """Two at once, one of them with a name and intrinsics; the counts of page and recorder agree."""
    camera = Mjpeg(rate=5)
    with WebServer(camera) as server:
        entries = [SourceEntry(f"{server.uri}/?user=a&pwd=hunter2", "door", Intrinsics(150, 150, 80, 60)), "test://"]
        config = RunConfig(entries, out=tmp_path / "out", formats=("ndjson",), segment_s=60)
        pipeline = open_pipeline(config)
        door, test = pipeline.streams
        run_for(pipeline, lambda: door.ledger.counts().posed > 2 and test.ledger.counts().posed > 2, within_s=60)
        camera.stop.set()
    assert door.header.source == "door" and door.header.camera == Intrinsics(150, 150, 80, 60)
    for each in pipeline.streams:
        assert exact(each).posed == each.recorders[0].written + each.missed["poses.ndjson"]
    written = [path for path in (tmp_path / "out").rglob("*") if path.is_file()]
    assert {path.parts[len((tmp_path / "out").parts)] for path in written} == {"door", "test", "summary.json"}
    assert all("hunter2" not in path.read_text() for path in written)


def test_a_file_plays_as_a_camera_in_real_time_and_over_and_over(tmp_path):
    folder = tmp_path / "pictures"
    folder.mkdir()
    for number in range(2):
        (folder / f"{number}.jpg").write_bytes(jpeg(number))
    with open_source(folder, loop=True) as source:
        frames = [item for item in itertools.islice(source, 5) if isinstance(item, Frame)]
    assert source.info.live and [f.index for f in frames] == [0, 1, 2]
    assert np.allclose([f.time_s for f in frames], [0, 1, 2], atol=1e-6)
    with open_source(folder, live=True) as source:
        assert len([item for item in source if isinstance(item, Frame)]) == 2
    with pytest.raises(SourceError, match="there is no"):
        open_source(tmp_path / "nothing.mp4", live=True)
