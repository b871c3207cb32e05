"""The threaded pipeline: order, accounts, feedback, and every way in which a run can end."""

import contextlib
import threading
import time
from pathlib import Path

import numpy as np
import pytest

from convnextpose.camera import Intrinsics, RootDepthSource
from convnextpose.crop import Box
from convnextpose.errors import GeometryError, SinkError, SourceError, StageError
from pipeline.channels import DropPolicy
from pipeline.draw import PoseRenderer
from pipeline.people import GivenBoxes, Person, SinglePerson
from pipeline.threads import CHANNEL_CAPACITY, Pipeline
from pipeline.timeline import STAGES
from pipeline.types import Frame, RunHeader
from tests.pipeline.blob import BlobRuntime, picture

BOX = (200, 100, 80, 220)


class Pictures:
    """A source of pictures with a blob in each; can break, and can be slow to follow a live rate."""

    name, width, height, frame_rate = "pictures", 640, 480, 25.0

    def __init__(self, count, breaks_at=None, pause_s=0.0):
        self.frame_count = count
        self.breaks_at = breaks_at
        self.pause_s = pause_s
        self.closed = 0

    def __iter__(self):
        for index in range(self.frame_count):
            if index == self.breaks_at:
                raise SourceError(f"broke at frame {index}")
            time.sleep(self.pause_s)
            yield Frame(picture(640, 480, (BOX[0] + index % 40, *BOX[1:])), self.name, index, index / 25)

    def close(self):
        self.closed += 1


class Collect:
    """A sink that keeps what it is given; can fail, and can be slow."""

    path, begun = Path("collected"), True

    def __init__(self, fails_at=None, pause_s=0.0, wait_for=None):
        self.frames, self.closed = [], 0
        self.fails_at, self.pause_s, self.wait_for = fails_at, pause_s, wait_for

    def write(self, posed):
        if self.wait_for is not None:
            self.wait_for.wait(10)
        time.sleep(self.pause_s)
        if posed.frame.index == self.fails_at:
            raise SinkError("the disk is full")
        self.frames.append(posed)

    def close(self):
        self.closed += 1


def make(source, finder=None, sinks=(), **options):
    runtime = BlobRuntime()
    header = RunHeader(
        source.name, 640, 480, 25.0, source.frame_count, Intrinsics.assumed(640, 480), RootDepthSource.ASSUMED_FOV,
        runtime.info, runtime.describe(),
    )  # fmt: skip
    return Pipeline(source, runtime, finder or SinglePerson(runtime), header=header, sinks=sinks, **options), runtime


def pipeline_threads():
    return [t for t in threading.enumerate() if t.name in STAGES]


@pytest.fixture(autouse=True)
def no_thread_is_left():
    yield
    deadline = time.monotonic() + 5
    while pipeline_threads() and time.monotonic() < deadline:
        time.sleep(0.01)
    assert not pipeline_threads()


def test_every_frame_comes_out_once_in_order_with_its_pose_and_timeline():
    source, sink = Pictures(60), Collect()
    pipeline, runtime = make(source, sinks=[sink], renderer=PoseRenderer(BlobRuntime.info.joint_set))
    frames = list(pipeline)
    assert [f.frame.index for f in frames] == list(range(60)) == [f.frame.index for f in sink.frames]
    assert all(len(f.poses) == 1 for f in frames)
    assert all(f.picture is not None and f.picture.shape[0] == 480 for f in frames)
    for frame in frames:
        assert [s.stage for s in frame.timeline.spans] == list(STAGES)
        ends = [s.end_ns for s in frame.timeline.spans]
        assert ends == sorted(ends)
    counts = pipeline.ledger.counts()
    assert (counts.captured, counts.processed, counts.dropped, counts.failed) == (60, 60, 0, 0)
    assert (source.closed, sink.closed, runtime.closed) == (1, 1, 1)


def test_threads_change_nothing_about_the_poses():
    """The same poses as with the stages called one after another, and the same in every run."""
    runs = [[f.poses[0] for f in make(Pictures(40))[0]] for _ in range(2)]
    runtime = BlobRuntime()
    finder = SinglePerson(runtime)
    from pipeline.stages import infer, lift

    camera = Intrinsics.assumed(640, 480)
    alone = []
    for frame in Pictures(40):
        sightings = infer(runtime, frame, finder.find(frame), finder.min_score)
        finder.observe(sightings)
        alone.append(lift(sightings[0], camera, RootDepthSource.ASSUMED_FOV))
    for poses in runs:
        for a, b in zip(poses, alone, strict=True):
            assert np.array_equal(a.joints_mm, b.joints_mm) and a.box == b.box and a.track_id == b.track_id


def test_a_stream_that_breaks_keeps_what_came_before_it():
    sink = Collect()
    pipeline, _ = make(Pictures(40, breaks_at=23), sinks=[sink])
    seen = []
    with pytest.raises(StageError, match="stage capture: broke at frame 23") as caught:
        seen.extend(iter(pipeline))
    assert isinstance(caught.value.__cause__, SourceError)
    assert caught.value.stage == "capture"
    assert len(sink.frames) == 23
    counts = pipeline.ledger.counts()
    assert (counts.captured, counts.processed, counts.failed) == (23, 23, 0)
    assert sink.closed == 1


def test_a_failing_sink_reaches_the_caller_and_the_accounts_close():
    good, bad = Collect(), Collect(fails_at=7)
    pipeline, _ = make(Pictures(500), sinks=[good, bad])
    seen = []
    with pytest.raises(StageError, match="stage sinks: the disk is full"):
        for frame in pipeline:
            seen.append(frame.frame.index)
    assert seen == list(range(7))
    counts = pipeline.ledger.counts()
    assert counts.captured == counts.processed + counts.dropped + counts.failed
    assert counts.processed == 7
    assert counts.captured < 500
    assert (good.closed, bad.closed) == (1, 1)


def test_a_bug_in_a_stage_is_told_with_its_stage_and_kind():
    class Broken(BlobRuntime):
        def run(self, crops):
            raise KeyError("lost")

    pipeline, _ = make(Pictures(30), finder=GivenBoxes({i: (Person(0, Box(*BOX)),) for i in range(30)}))
    pipeline._model = Broken()
    with pytest.raises(StageError, match="stage infer: KeyError: 'lost'"):
        list(pipeline)
    counts = pipeline.ledger.counts()
    assert counts.captured == counts.failed


def test_a_person_outside_the_picture_has_no_pose_and_costs_nobody_theirs():
    boxes = {i: (Person(0, Box(*BOX)),) for i in range(20)}
    boxes[11] = (Person(7, Box(5000, 0, 10, 10)), Person(0, Box(*BOX)))
    pipeline, _ = make(Pictures(20), finder=GivenBoxes(boxes))
    assert [[p.track_id for p in f.poses] for f in pipeline] == [[0]] * 20
    counts = pipeline.ledger.counts()
    assert (counts.captured, counts.processed, counts.failed) == (20, 20, 0)
    ((reason, times),) = counts.problems
    assert times == 1 and reason.startswith("expected a box that overlaps the 640x480 px picture")


def test_a_camera_that_cannot_be_is_told_for_every_person():
    boxes = {i: (Person(0, Box(*BOX)),) for i in range(5)}
    pipeline, _ = make(Pictures(5), finder=GivenBoxes(boxes), camera=Intrinsics(0.01, 0.01, 320, 240))

    class Deep(BlobRuntime):
        def run(self, crops):
            predictions = super().run(crops)
            predictions.joints[:, 3, 2] = -900
            return predictions

    pipeline._model = Deep()
    assert [f.poses for f in pipeline] == [()] * 5
    ((reason, times),) = pipeline.ledger.counts().problems
    assert times == 5 and "in front of the camera" in reason


def test_a_stuck_sink_is_given_up_and_told(monkeypatch):
    monkeypatch.setattr("pipeline.threads.CLOSING_TIME_S", 0.5)
    gate = threading.Event()
    stuck = Collect(wait_for=gate)
    pipeline, _ = make(Pictures(50), sinks=[stuck])

    def take():
        with contextlib.suppress(StageError):
            next(iter(pipeline), None)

    next_frame = threading.Thread(target=take, daemon=True)
    next_frame.start()
    time.sleep(0.2)
    with pytest.raises(StageError, match=r"stage sinks: TimeoutError: it did not end within 0\.5 s"):
        pipeline.close()
    counts = pipeline.ledger.counts()
    assert counts.captured == counts.processed + counts.dropped + counts.failed
    assert stuck.closed == 0, "a close would wait for the write that hangs"
    gate.set()
    next_frame.join(5)


def test_a_close_that_was_interrupted_goes_on_when_called_again():
    class Interrupted(Collect):
        def close(self):
            super().close()
            if self.closed == 1:
                raise KeyboardInterrupt

    first, second = Interrupted(), Collect()
    pipeline, runtime = make(Pictures(5), sinks=[first, second])
    with pytest.raises(KeyboardInterrupt):
        list(pipeline)
    assert second.closed == 0
    pipeline.close()
    pipeline.close()
    assert (first.closed, second.closed, runtime.closed) == (2, 1, 1)


def test_a_source_that_cannot_begin_is_told():
    class CannotBegin(Pictures):
        def __iter__(self):
            raise SourceError("it went away")

    with pytest.raises(StageError, match="stage capture: it went away"):
        list(make(CannotBegin(5))[0])


def test_a_failing_frame_does_not_stop_following():
    class FailsOnce(BlobRuntime):
        def run(self, crops):
            if len(crops) == 1 and self.crops > 400:
                self.crops = -(10**6)
                raise GeometryError("this crop is odd")
            return super().run(crops)

    runtime = FailsOnce()
    source = Pictures(400)
    pipeline, _ = make(source, finder=SinglePerson(runtime))
    pipeline._model = runtime
    frames = list(pipeline)
    counts = pipeline.ledger.counts()
    assert counts.failed == 1 and len(frames) == 399
    assert frames[-1].poses, "found again after the failure"


def test_a_caller_who_leaves_ends_the_run_in_bounded_time():
    source, sink = Pictures(10**6), Collect()
    with make(source, sinks=[sink])[0] as pipeline:
        for frame in pipeline:
            if frame.frame.index == 5:
                break
    counts = pipeline.ledger.counts()
    assert counts.captured == counts.processed + counts.dropped + counts.failed < 200
    assert len(sink.frames) == counts.processed, "frames on their way were finished"
    pipeline.close()
    assert (source.closed, sink.closed) == (1, 1)
    with pytest.raises(ValueError, match="has ended"):
        list(pipeline)


def test_an_interrupt_in_the_caller_drains_and_closes():
    sink = Collect()
    pipeline, _ = make(Pictures(10**6), sinks=[sink])
    with pytest.raises(KeyboardInterrupt), pipeline:
        for frame in pipeline:
            if frame.frame.index == 10:
                raise KeyboardInterrupt
    counts = pipeline.ledger.counts()
    assert counts.in_flight == 0 and counts.failed == 0
    assert [f.frame.index for f in sink.frames] == list(range(counts.processed))


def test_a_run_that_was_never_started_closes():
    source = Pictures(5)
    pipeline, _ = make(source)
    pipeline.close()
    assert source.closed == 1 and pipeline.ledger.counts().captured == 0


def test_a_sink_that_cannot_finish_is_told():
    class CannotFinish(Collect):
        def close(self):
            super().close()
            raise SinkError("no space for the end")

    other = Collect()
    pipeline, _ = make(Pictures(5), sinks=[CannotFinish(), other])
    with pytest.raises(StageError, match="no space for the end"):
        list(pipeline)
    assert other.closed == 1


def test_a_live_source_drops_the_oldest_and_counts_them():
    gate = threading.Event()
    sink = Collect(wait_for=gate)
    pipeline, _ = make(Pictures(200), sinks=[sink], policy=DropPolicy.LATEST)
    threading.Timer(0.5, gate.set).start()
    frames = list(pipeline)
    counts = pipeline.ledger.counts()
    assert counts.captured == 200 == counts.processed + counts.dropped
    assert counts.dropped > 0 and counts.failed == 0
    assert frames[-1].frame.index == 199, "the newest frame is never the one to go"
    assert len(frames) >= CHANNEL_CAPACITY
    assert [f.frame.index for f in frames] == sorted(f.frame.index for f in frames)


def test_an_empty_source_ends():
    pipeline, _ = make(Pictures(0))
    assert list(pipeline) == []
    assert str(pipeline.ledger.counts()) == "captured 0 = processed 0 + dropped 0 + failed 0"
