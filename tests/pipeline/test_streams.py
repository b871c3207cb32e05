"""Streams: order, counts, several sources, live sources, limits, and every way in which a run can end."""

import contextlib
import threading
import time
from pathlib import Path

import numpy as np
import pytest

from convnextpose.camera import Intrinsics, RootDepthSource
from convnextpose.crop import Box
from convnextpose.errors import GeometryError, SinkError, SourceError, StageError
from pipeline.draw import PoseRenderer
from pipeline.estimator import Estimator
from pipeline.inbox import MAX_FRAMES_IN_FLIGHT
from pipeline.people.detection import detections_of
from pipeline.people.given import GivenBoxes
from pipeline.people.tracker import PeopleTracker
from pipeline.stages import TrackedBox
from pipeline.stream import MAX_QUEUED_LIVE_FRAMES, REPLACED_BY_NEWER, Stream
from pipeline.streams import Pipeline
from pipeline.timeline import STAGES
from pipeline.types import Frame, RunHeader, SourceInfo, UnreadableFrame
from tests.pipeline.blob import BlobDetector, BlobModel, picture

BOX = (200, 100, 80, 220)


class Pictures:
    """A source of pictures with a blob in each; can break, can be live, and can be slow."""

    def __init__(self, count, name="pictures", breaks_at=None, unreadable=(), live=False, pause_s=0.0, size=(640, 480)):
        self.info = SourceInfo(name, live, *size, 25.0, count)
        self.count, self.breaks_at, self.unreadable, self.pause_s = count, breaks_at, unreadable, pause_s
        self.taken = self.closed = 0

    def __iter__(self):
        for index in range(self.count):
            if index == self.breaks_at:
                raise SourceError(f"broke at frame {index}")
            time.sleep(self.pause_s)
            self.taken += 1
            if index in self.unreadable:
                yield UnreadableFrame(self.info.id, index, "it is damaged")
                continue
            image = picture(self.info.width, self.info.height, (BOX[0] + index % 40, *BOX[1:]))
            now = {"captured_ns": time.time_ns(), "clock": "arrival"} if self.info.live else {}
            yield Frame(image, self.info.id, index, index / 25, **now)

    def close(self):
        self.closed += 1


class Collect:
    """A recorder that keeps its frames; can fail, and can be slow."""

    begun, written = True, 0

    def __init__(self, name="collected.all", needs_picture=False, fails_at=None, wait_for=None, failure=None):
        self.path, self.needs_picture = Path(name), needs_picture
        self.frames, self.closed = [], 0
        self.fails_at, self.wait_for = fails_at, wait_for
        self.failure = failure or SinkError("the disk is full")

    def write(self, posed):
        if self.wait_for is not None:
            self.wait_for.wait(10)
        if posed.frame.index == self.fails_at:
            raise self.failure
        self.frames.append(posed)

    def close(self):
        self.closed += 1


def tracker(model):
    return PeopleTracker(detections_of(BlobDetector()), model.info.joint_set)


def stream(source, recorders=(), people=None, model=None, camera=None):
    model = model or BlobModel()
    header = RunHeader(
        source.info.id, 640, 480, 25.0, source.count, Intrinsics.assumed(640, 480), RootDepthSource.ASSUMED_FOV,
        model.info, model.describe(),
    )  # fmt: skip
    people = people or tracker(model)
    estimator, renderer = Estimator(model, people, camera=camera), PoseRenderer(model.info.joint_set)
    return Stream(source, estimator, header, recorders=recorders, renderer=renderer)


def make(source, recorders=(), **options):
    return Pipeline([stream(source, recorders, **options)])


def counts(pipeline, number=0):
    return pipeline.streams[number].ledger.counts()


def balanced(account):
    return account.in_flight == 0 and account.received == account.posed + account.dropped + account.failed


def everywhere(count):
    return GivenBoxes({index: (TrackedBox(0, Box(*BOX)),) for index in range(count)})


@pytest.fixture(autouse=True)
def no_thread_is_left():
    before = set(threading.enumerate())
    yield
    deadline = time.monotonic() + 60
    while (left := set(threading.enumerate()) - before) and time.monotonic() < deadline:
        time.sleep(0.01)
    assert not left


def test_every_frame_comes_out_once_in_order_with_its_pose_and_timeline():
    source, plain, drawn = Pictures(60), Collect(), Collect("drawn.mp4", needs_picture=True)
    model = BlobModel()
    pipeline = Pipeline([stream(source, [plain, drawn], model=model)], models=[model.close])
    frames = list(pipeline)
    assert [f.frame.index for f in frames] == list(range(60))
    assert [f.frame.index for f in plain.frames] == [f.frame.index for f in drawn.frames] == list(range(60))
    assert all(len(f.poses) == 1 for f in frames)
    assert all(f.picture is not None and f.picture.shape[0] == 480 for f in drawn.frames)
    for frame in frames:
        timeline = frame.timeline
        assert {s.stage for s in timeline.spans} | {"detect"} == set(STAGES)
        assert {s.part for s in timeline.spans if s.stage == "write"} == {"all", "mp4"}
        assert (timeline.source_id, timeline.index) == ("pictures", frame.frame.index)
    detected = [f.frame.index for f in frames if "detect" in {s.stage for s in f.timeline.spans}]
    assert detected == list(range(0, 60, 9)), "just often enough for a newcomer to have a pose within half a second"
    account = counts(pipeline)
    assert (account.received, account.posed, account.dropped, account.failed) == (60, 60, 0, 0)
    assert (source.closed, plain.closed, drawn.closed, model.closed) == (1, 1, 1, 1)


def test_nothing_is_drawn_where_nobody_wants_pictures():
    recorder = Collect()
    frames = list(make(Pictures(5), [recorder]))
    assert all(f.picture is None for f in [*frames, *recorder.frames])
    assert all("render" not in {s.stage for s in f.timeline.spans} for f in frames)


def test_threads_change_nothing_about_the_poses():
    """The poses equal those of `Estimator.step` in one thread, and are the same in every run."""
    runs = [[f.poses[0] for f in make(Pictures(40), [Collect()])] for _ in range(2)]
    model = BlobModel()
    estimator = Estimator(model, tracker(model))
    alone = [estimator.step(frame).poses[0] for frame in Pictures(40)]
    for poses in runs:
        for a, b in zip(poses, alone, strict=True):
            assert np.array_equal(a.joints_mm, b.joints_mm) and a.box == b.box and a.track_id == b.track_id


def test_several_sources_give_what_each_gives_alone():
    alone = [[f.poses[0].joints_mm for f in make(Pictures(n, f"source {n}"))] for n in (5, 30, 12)]
    model = BlobModel()
    recorders = [Collect(f"{n}.all") for n in (5, 30, 12)]
    streams = [stream(Pictures(n, f"source {n}"), [r], model=model) for n, r in zip((5, 30, 12), recorders, strict=True)]
    pipeline = Pipeline(streams)
    frames = list(pipeline)
    for number, (count, wanted) in enumerate(zip((5, 30, 12), alone, strict=True)):
        mine = [f for f in frames if f.frame.source_id == f"source {count}"]
        assert [f.frame.index for f in mine] == list(range(count)) == [f.frame.index for f in recorders[number].frames]
        assert all(np.array_equal(f.poses[0].joints_mm, joints) for f, joints in zip(mine, wanted, strict=True))
        assert counts(pipeline, number).posed == count


def test_two_sources_of_one_name_are_told_apart():
    streams = [stream(Pictures(4, "clip.mp4")) for _ in range(2)]
    streams[1].header = RunHeader(**{**vars(streams[1].header), "source": "clip.mp4 (2)"})
    ids = sorted((f.frame.source_id, f.timeline.source_id) for f in Pipeline(streams))
    assert ids == [("clip.mp4", "clip.mp4")] * 4 + [("clip.mp4 (2)", "clip.mp4 (2)")] * 4


def test_a_source_that_breaks_does_not_end_the_others():
    recorders = [Collect("a.all"), Collect("b.all")]
    streams = [stream(Pictures(40, "a", breaks_at=3), recorders[:1]), stream(Pictures(40, "b"), recorders[1:])]
    pipeline = Pipeline(streams)
    with pytest.raises(StageError, match="stage capture: broke at frame 3"):
        pipeline.run()
    assert [len(r.frames) for r in recorders] == [3, 40]
    assert all(balanced(counts(pipeline, n)) for n in (0, 1))
    assert streams[0].states[-1].state == "broken" and streams[1].states[-1].state == "ended"


def test_a_stream_that_breaks_keeps_what_came_before_it():
    recorder = Collect()
    pipeline = make(Pictures(40, breaks_at=23), [recorder])
    with pytest.raises(StageError, match="stage capture: broke at frame 23") as caught:
        pipeline.run()
    assert isinstance(caught.value.__cause__, SourceError)
    assert caught.value.stage == "capture"
    assert len(recorder.frames) == 23
    assert (counts(pipeline).received, counts(pipeline).posed, counts(pipeline).failed) == (23, 23, 0)
    assert recorder.closed == 1


def test_a_frame_that_cannot_be_read_fails_and_the_others_go_on():
    recorder = Collect()
    pipeline = make(Pictures(20, unreadable={0, 7, 19}), [recorder])
    pipeline.run()
    account = counts(pipeline)
    assert (account.received, account.posed, account.failed) == (20, 17, 3)
    assert account.failures == (("capture: it is damaged", 3),)
    assert [f.frame.index for f in recorder.frames] == [i for i in range(20) if i not in {0, 7, 19}]


@pytest.mark.parametrize("failure", [SinkError("the disk is full"), MemoryError("no more"), KeyError("lost")])
def test_a_failing_recorder_reaches_the_caller_and_the_accounts_close(failure):
    good, bad = Collect(), Collect("bad.all", fails_at=7, failure=failure)
    pipeline = make(Pictures(500), [good, bad])
    seen = []
    with pytest.raises(StageError, match="stage write: "):
        seen.extend(f.frame.index for f in pipeline)
    assert seen == list(range(7))
    account = counts(pipeline)
    assert balanced(account) and account.posed == 7 and account.received < 500
    assert (good.closed, bad.closed) == (1, 1)


def test_a_bug_in_a_stage_is_told_with_its_stage_and_kind():
    class Broken(BlobModel):
        def run(self, crops):
            raise KeyError("lost")

    pipeline = make(Pictures(30), people=everywhere(30), model=Broken())
    with pytest.raises(StageError, match="stage infer: KeyError: 'lost'"):
        pipeline.run()
    assert balanced(counts(pipeline)) and counts(pipeline).failed == counts(pipeline).received


def test_a_person_outside_the_picture_has_no_pose_and_costs_nobody_theirs():
    boxes = {i: (TrackedBox(0, Box(*BOX)),) for i in range(20)}
    boxes[11] = (TrackedBox(7, Box(5000, 0, 10, 10)), TrackedBox(0, Box(*BOX)))
    pipeline = make(Pictures(20), people=GivenBoxes(boxes))
    assert [[p.track_id for p in f.poses] for f in pipeline] == [[0]] * 20
    account = counts(pipeline)
    assert (account.received, account.posed, account.failed) == (20, 20, 0)
    ((reason, times),) = account.problems
    assert times == 1 and reason.startswith("expected a box that overlaps the 640x480 px picture")


def test_a_camera_that_cannot_be_is_told_for_every_person():
    class Deep(BlobModel):
        def run(self, crops):
            predictions = super().run(crops)
            predictions.joints[:, 3, 2] = -900
            return predictions

    pipeline = make(Pictures(5), people=everywhere(5), model=Deep(), camera=Intrinsics(0.01, 0.01, 320, 240))
    assert [f.poses for f in pipeline] == [()] * 5
    ((reason, times),) = counts(pipeline).problems
    assert times == 5 and "in front of the camera" in reason


def test_a_stuck_recorder_is_given_up_and_told(monkeypatch):
    monkeypatch.setattr("pipeline.streams.CLOSING_TIME_S", 0.5)
    gate = threading.Event()
    stuck = Collect("stuck.all", wait_for=gate)
    pipeline = make(Pictures(50), [stuck])

    def take():
        with contextlib.suppress(StageError):
            next(iter(pipeline), None)

    next_frame = threading.Thread(target=take, daemon=True)
    next_frame.start()
    time.sleep(0.2)
    with pytest.raises(StageError, match=r"stuck\.all did not end within 0\.5 s and was given up"):
        pipeline.close()
    assert balanced(counts(pipeline))
    assert stuck.closed == 0, "closing it would wait for the write that hangs"
    gate.set()
    next_frame.join(5)


def test_a_close_that_was_interrupted_goes_on_when_called_again():
    closed = []

    def interrupted():
        closed.append("first")
        if len(closed) == 1:
            raise KeyboardInterrupt

    recorder = Collect()
    pipeline = Pipeline([stream(Pictures(5), [recorder])], models=[interrupted, lambda: closed.append("second")])
    with pytest.raises(KeyboardInterrupt):
        pipeline.run()
    assert closed == ["first"]
    pipeline.close()
    pipeline.close()
    assert closed == ["first", "first", "second"] and recorder.closed == 1


def test_a_source_that_cannot_begin_is_told():
    class CannotBegin(Pictures):
        def __iter__(self):
            raise SourceError("it went away")

    with pytest.raises(StageError, match="stage capture: it went away"):
        make(CannotBegin(5)).run()


def test_a_failing_frame_does_not_stop_following():
    class FailsOnce(BlobModel):
        def run(self, crops):
            if len(crops) == 1 and self.crops > 30:
                self.crops = -(10**6)
                raise GeometryError("this crop is odd")
            return super().run(crops)

    pipeline = make(Pictures(100), model=FailsOnce())
    frames = list(pipeline)
    assert counts(pipeline).failed == 1 and len(frames) == 99
    assert frames[-1].poses, "found again after the failure"


def test_a_caller_who_leaves_ends_the_run_in_bounded_time():
    source, recorder = Pictures(10**6), Collect()
    with make(source, [recorder]) as pipeline:
        for frame in pipeline:
            if frame.frame.index == 5:
                break
    account = counts(pipeline)
    assert balanced(account) and account.received < 200
    assert len(recorder.frames) == account.posed, "frames in flight were finished"
    pipeline.close()
    assert (source.closed, recorder.closed) == (1, 1)
    with pytest.raises(ValueError, match="has ended"):
        pipeline.run()


def test_an_interrupt_in_the_caller_drains_and_closes():
    recorder = Collect()
    pipeline = make(Pictures(10**6), [recorder])
    with pytest.raises(KeyboardInterrupt), pipeline:
        for frame in pipeline:
            if frame.frame.index == 10:
                raise KeyboardInterrupt
    account = counts(pipeline)
    assert account.in_flight == 0 and account.failed == 0
    assert [f.frame.index for f in recorder.frames] == list(range(account.posed))


def test_a_run_that_was_never_started_closes():
    source, recorder = Pictures(5), Collect()
    pipeline = make(source, [recorder])
    pipeline.close()
    assert (source.closed, recorder.closed) == (1, 1) and counts(pipeline).received == 0


def test_a_recorder_that_cannot_finish_is_told():
    class CannotFinish(Collect):
        def close(self):
            super().close()
            raise SinkError("no space for the end")

    other = Collect()
    with pytest.raises(StageError, match="no space for the end"):
        make(Pictures(5), [CannotFinish("bad.all"), other]).run()
    assert other.closed == 1


def test_an_empty_source_ends():
    pipeline = make(Pictures(0))
    assert list(pipeline) == []
    assert str(counts(pipeline)) == "received 0 = posed 0 + dropped 0 + failed 0"


def test_frames_are_not_taken_before_there_is_room_for_them():
    """A caller who takes no results stops the source after a limited number of frames."""
    source = Pictures(1000)
    pipeline = make(source, [Collect()])
    first = next(iter(pipeline))
    time.sleep(0.3)
    assert first.frame.index == 0 and source.taken <= MAX_FRAMES_IN_FLIGHT + 2
    pipeline.close()


def test_large_frames_are_bounded_by_their_bytes(monkeypatch):
    source = Pictures(1000)
    one = stream(source, [Collect()])
    one._in_flight._max_bytes = 3 * 640 * 480 * 3
    pipeline = Pipeline([one])
    next(iter(pipeline))
    time.sleep(0.3)
    assert source.taken <= 4
    pipeline.close()


def test_a_live_source_keeps_the_newest_frame_and_counts_what_it_drops():
    class Slow(BlobModel):
        def run(self, crops):
            time.sleep(0.02)
            return super().run(crops)

    recorder = Collect()
    pipeline = make(Pictures(200, live=True, pause_s=0.001), [recorder], people=everywhere(200), model=Slow())
    frames = list(pipeline)
    account = counts(pipeline)
    assert balanced(account) and account.received == 200 and account.failed == 0
    assert account.drop_reasons == ((REPLACED_BY_NEWER, account.dropped),) and account.dropped > 50
    assert frames[-1].frame.index == 199, "the newest frame is never dropped"
    missed = pipeline.streams[0].missed
    for taken, who in ((recorder.frames, "collected.all"), (frames, "caller")):
        indices = [f.frame.index for f in taken]
        assert indices == sorted(set(indices)) and len(indices) + missed[who] == account.posed
    assert len(pipeline.streams[0].ages_ns) == account.posed


class Paced(Pictures):
    """A live source whose next frame comes once `follower` has the previous one; at its end it opens `gate`."""

    def __init__(self, count, follower, gate):
        super().__init__(count, live=True)
        self.follower, self.gate = follower, gate

    def __iter__(self):
        for frame in super().__iter__():
            yield frame
            for _ in range(1000):
                if len(self.follower.frames) == self.taken:
                    break
                time.sleep(0.01)
            else:
                raise SourceError(f"{self.follower.path} is held up")
        self.gate.set()


def test_a_slow_recorder_of_a_live_source_misses_frames_and_holds_nobody_up():
    gate = threading.Event()
    slow, quick = Collect("slow.all", wait_for=gate), Collect("quick.all")
    pipeline = make(Paced(60, quick, gate), [slow, quick], people=everywhere(60))
    list(pipeline)
    account, missed = counts(pipeline), pipeline.streams[0].missed
    assert balanced(account) and account.received == account.posed == 60
    assert len(quick.frames) == 60 and missed["quick.all"] == 0
    assert len(slow.frames) + missed["slow.all"] == 60
    assert missed["slow.all"] > 20 and len(slow.frames) >= MAX_QUEUED_LIVE_FRAMES
