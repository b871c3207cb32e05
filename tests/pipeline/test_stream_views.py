"""Views of a run: order, newest frames only, and every way in which a view can fail."""

import threading

import pytest

from pipeline.streams import Pipeline
from tests.pipeline.test_streams import Collect, Pictures, no_thread_is_left, stream  # noqa: F401


class Watch:
    """A view that keeps the frames that it is shown; can fail, and can wait."""

    name, address = "watch", "nowhere"

    def __init__(self, fails_at=None, wait_for=None, fails_to_close=False):
        self.frames, self.closed = [], 0
        self.fails_at, self.wait_for, self.fails_to_close = fails_at, wait_for, fails_to_close

    def show(self, posed):
        if len(self.frames) == self.fails_at:
            raise ConnectionResetError("nobody listens")
        self.frames.append(posed)
        if self.wait_for is not None:
            self.wait_for.wait(10)

    def close(self):
        self.closed += 1
        if self.fails_to_close:
            raise OSError("no way out")


def test_a_view_sees_frames_in_order_up_to_the_last_with_their_stages_so_far():
    recorder, view = Collect(), Watch()
    pipeline = Pipeline([stream(Pictures(30), [recorder])], views=[view])
    pipeline.run()
    indices = [posed.frame.index for posed in view.frames]
    assert indices == sorted(set(indices)) and indices[-1] == 29
    for posed in view.frames:
        stages = {span.stage for span in posed.timeline.spans}
        assert len(posed.poses) == 1 and {"infer", "lift", "track"} <= stages and "write" not in stages
    assert (view.closed, pipeline.view_threads[0].shown, pipeline.view_threads[0].error) == (1, len(indices), None)
    assert len(recorder.frames) == 30


def test_a_slow_view_holds_nothing_up_and_sees_the_newest_of_each_source():
    go_on = threading.Event()
    view, other, recorder = Watch(wait_for=go_on), Watch(), Collect()
    pipeline = Pipeline([stream(Pictures(20, "a"), [recorder]), stream(Pictures(20, "b"))], views=[view, other])
    frames = iter(pipeline)
    for _ in range(40):
        next(frames)
    assert len(recorder.frames) == 20 and len(view.frames) == 1
    go_on.set()
    assert list(frames) == []
    newest = {posed.frame.source_id: posed.frame.index for posed in view.frames}
    assert newest == {"a": 19, "b": 19}
    assert len(view.frames) <= 4, "it skipped the frames between its first and the newest"
    assert {posed.frame.source_id for posed in other.frames} == {"a", "b"}


@pytest.mark.parametrize("fails_at", [0, 3])
def test_a_view_that_breaks_is_closed_and_told_of_and_harms_nobody(fails_at):
    recorder, broken, sound = Collect(), Watch(fails_at=fails_at), Watch()
    pipeline = Pipeline([stream(Pictures(40, pause_s=0.005), [recorder])], views=[broken, sound])
    pipeline.run()
    assert len(recorder.frames) == 40 and sound.frames[-1].frame.index == 39
    assert (len(broken.frames), broken.closed) == (fails_at, 1)
    assert pipeline.view_threads[0].error == "ConnectionResetError: nobody listens" and pipeline.view_threads[1].error is None
    assert pipeline.error is None


def test_a_view_that_hangs_is_given_up_at_the_end_and_told_of(monkeypatch):
    monkeypatch.setattr("pipeline.streams.VIEW_CLOSING_TIME_S", 0.3)
    go_on = threading.Event()
    view, recorder = Watch(wait_for=go_on), Collect()
    pipeline = Pipeline([stream(Pictures(10), [recorder])], views=[view])
    pipeline.run()
    assert len(recorder.frames) == 10 and "did not end" in pipeline.view_threads[0].error
    go_on.set()


def test_a_view_that_cannot_be_closed_is_told_of():
    pipeline = Pipeline([stream(Pictures(3))], views=[Watch(fails_to_close=True)])
    pipeline.run()
    assert pipeline.view_threads[0].error == "OSError: no way out"


def test_views_of_a_run_that_never_began_are_closed():
    view = Watch()
    Pipeline([stream(Pictures(3))], views=[view]).close()
    assert (view.closed, view.frames) == (1, [])
