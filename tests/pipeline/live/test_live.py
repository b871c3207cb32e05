"""The behaviour of all live sources, tested by connections with exact faults; and the clocks."""

import threading
import time
from dataclasses import replace

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from pipeline.sources.clocks import LEAST_STEP_S, LiveClock, of_monotonic, of_sender
from pipeline.sources.live import (
    MAX_HUNG_WORKERS,
    MAX_QUEUED_FRAMES,
    REPLACED_BY_NEWER,
    ConnectionLost,
    LiveSource,
    Picture,
    StreamEnded,
)
from pipeline.sources.timeouts import Backoff, Timeouts
from pipeline.types import Frame, State, UnreadableFrame
from tests.pipeline.live.servers import Watcher

QUICK = Timeouts(open_s=0.2, read_s=0.2, stalled_s=20, first_wait_s=0.01, longest_wait_s=0.05)
"""Reconnects soon, and does not report a camera as stalled on a busy machine."""


def shown(number=0, size=(8, 6), stream_s=None):
    return Picture(np.full((*size[::-1], 3), number % 256, np.uint8), stream_s, time.time_ns(), "arrival")


class Scripted:
    """A connection that runs a generator; records what is done with it."""

    paced, frame_rate, description = False, 25.0, "scripted"

    def __init__(self, pictures, paced=False):
        self.pictures, self.paced = pictures, paced
        self.closed, self.aborted = threading.Event(), threading.Event()

    def __iter__(self):
        return self.pictures(self) if callable(self.pictures) else iter(self.pictures)

    def abort(self):
        self.aborted.set()

    def close(self):
        self.closed.set()


def scripted(*tries):
    """A connect function: each try is an exception, or the pictures of a connection; the last try is repeated for ever."""
    left, made = list(tries), []

    def connect(timeouts):
        this = left.pop(0) if len(left) > 1 else left[0]
        if isinstance(this, Exception):
            raise this
        if isinstance(this, Scripted):
            made.append(this)
            return this
        made.append(Scripted(this))
        return made[-1]

    connect.made = made
    return connect


def endless(connection):
    number = 0
    while not connection.aborted.is_set():
        yield shown(number)
        number += 1
        time.sleep(0.005)
    raise ConnectionLost("aborted")


def then(count, error):
    def pictures(connection):
        for number in range(count):
            yield shown(number)
        raise error

    return pictures


def states(source_or_watcher):
    return [state.state for state in source_or_watcher.states]


def test_a_camera_that_comes_and_goes_and_comes_at_another_size():
    def larger(connection):
        while not connection.aborted.is_set():
            yield shown(size=(16, 12))
            time.sleep(0.005)

    connect = scripted(ConnectionLost("refused: nobody listens"), then(5, ConnectionLost("the connection was closed")), larger)
    source = LiveSource("camera", connect, timeouts=QUICK)
    assert source.info.live and source.info.width is None
    with Watcher(source) as watcher:
        watcher.until(lambda w: len(w.frames) > 10)
    assert states(watcher)[:5] == ["connecting", "lost", "live", "lost", "live"]
    assert [s.cause for s in watcher.states][1:4] == ["refused: nobody listens", "scripted", "the connection was closed"]
    assert {f.image.shape for f in watcher.frames} == {(6, 8, 3), (12, 16, 3)}
    assert (source.info.width, source.info.height) == (16, 12)
    assert all(connection.closed.wait(2) for connection in connect.made), "every connection is closed"


def test_a_cause_is_told_once_however_often_it_is_tried():
    source = LiveSource("camera", scripted(ConnectionLost("refused")), timeouts=QUICK)
    with Watcher(source) as watcher:
        watcher.until_state("lost")
        time.sleep(0.4)
    assert states(watcher) == ["connecting", "lost"]


def test_a_stalled_camera_is_told_and_lives_on():
    gate = threading.Event()

    def pauses(connection):
        yield shown(1)
        gate.wait(5)
        yield from endless(connection)

    timeouts = Timeouts(open_s=5, read_s=5, stalled_s=0.1)
    with Watcher(LiveSource("camera", scripted(pauses), timeouts=timeouts)) as watcher:
        watcher.until_state("stalled", "no picture has come for 0.1 s")
        gate.set()
        watcher.until_state("live", count=2)
    assert states(watcher)[:4] == ["connecting", "live", "stalled", "live"]


def test_opencv_22677_a_camera_that_hangs_while_it_is_opened_is_given_up(monkeypatch):
    """Also jetson-utils#148 and Savant#859: it comes back, whatever its fault was."""
    monkeypatch.setattr("pipeline.sources.live.HANG_GRACE_S", 0.1)
    gate, tries = threading.Event(), []

    def others(connection):
        while not connection.aborted.is_set():
            yield shown(size=(16, 12))

    late = Scripted(others)

    def connect(timeouts):
        tries.append(1)
        if len(tries) == 1:
            gate.wait(10)
            return late
        return Scripted(endless)

    with Watcher(LiveSource("camera", connect, timeouts=QUICK)) as watcher:
        watcher.until_state("lost", "opening it hangs")
        watcher.until_frames(3)
        gate.set()
        assert late.closed.wait(10), "a connection that comes too late is closed"
        watcher.until_frames(20)
    assert {frame.image.shape for frame in watcher.frames} == {(6, 8, 3)}, "and its pictures are ignored"


def test_a_read_that_hangs_is_given_up_and_the_next_connection_is_read(monkeypatch):
    monkeypatch.setattr("pipeline.sources.live.HANG_GRACE_S", 0.1)
    gate = threading.Event()

    def hangs(connection):
        yield shown(1)
        gate.wait(10)

    connect = scripted(hangs, endless)
    with Watcher(LiveSource("camera", connect, timeouts=replace(QUICK, stalled_s=0.1))) as watcher:
        watcher.until_state("lost", "reading it hangs")
        watcher.until_frames(5)
        assert connect.made[0].aborted.is_set()
        gate.set()


def test_a_second_opening_that_hangs_is_given_up_too(monkeypatch):
    monkeypatch.setattr("pipeline.sources.live.HANG_GRACE_S", 0.1)
    gate, tries = threading.Event(), []

    def connect(timeouts):
        tries.append(1)
        if len(tries) == 2:
            gate.wait(10)
        return Scripted(then(1, ConnectionLost("closed")) if len(tries) == 1 else endless)

    with Watcher(LiveSource("camera", connect, timeouts=QUICK)) as watcher:
        watcher.until_state("lost", "opening it hangs")
        watcher.until_frames(5)
        gate.set()


def test_a_paced_camera_that_stalls_is_told():
    def pauses(connection):
        for number in range(3):
            yield shown(number, stream_s=number / 50)
        connection.aborted.wait(10)

    timeouts = Timeouts(open_s=5, read_s=5, stalled_s=0.1)
    with Watcher(LiveSource("camera", scripted(Scripted(pauses, paced=True)), timeouts=timeouts)) as watcher:
        watcher.until_state("stalled")


def test_no_more_than_a_few_workers_hang_at_once(monkeypatch):
    monkeypatch.setattr("pipeline.sources.live.HANG_GRACE_S", 0.01)
    gate, tries = threading.Event(), []

    def connect(timeouts):
        tries.append(1)
        gate.wait(20)
        return Scripted(endless)

    timeouts = Timeouts(open_s=0.02, read_s=0.02, stalled_s=0.02, first_wait_s=0.01, longest_wait_s=0.05)
    with Watcher(LiveSource("camera", connect, timeouts=timeouts)) as watcher:
        watcher.until(lambda _: len(tries) == MAX_HUNG_WORKERS + 1)
        time.sleep(0.3)
        assert len(tries) == MAX_HUNG_WORKERS + 1
        gate.set()
        watcher.until_frames(3)


def test_inference_685_a_source_that_never_opened_can_be_stopped():
    gate = threading.Event()

    def connect(timeouts):
        gate.wait(10)
        raise ConnectionLost("too late")

    with Watcher(LiveSource("camera", connect)) as watcher:
        watcher.until_state("connecting")
    gate.set()


def test_frames_that_nobody_takes_are_given_up_in_the_middle_and_told():
    sent = threading.Event()

    def burst(connection):
        for number in range(50):
            yield shown(number)
        sent.set()
        connection.aborted.wait(10)

    source = LiveSource("camera", scripted(burst))
    taken = [next(source) for _ in range(2)]
    assert sent.wait(5)
    while len(taken) < 52:
        taken.append(next(source))
    frames = [item for item in taken if isinstance(item, Frame)]
    given_up = [item for item in taken if isinstance(item, UnreadableFrame)]
    assert sorted([f.index for f in frames] + [g.index for g in given_up]) == list(range(50))
    assert [f.index for f in frames][-MAX_QUEUED_FRAMES:] == list(range(50 - MAX_QUEUED_FRAMES, 50)), "the newest are kept"
    assert {(g.reason, g.given_up) for g in given_up} == {(REPLACED_BY_NEWER, True)}
    source.close()
    assert next(source, None) is None


def test_what_has_an_end_ends():
    source = LiveSource("camera", scripted(then(3, StreamEnded())))
    assert [item.index for item in source if isinstance(item, Frame)] == [0, 1, 2]


def test_a_bug_reaches_whoever_iterates_once():
    source = LiveSource("camera", scripted(then(1, KeyError("lost"))))
    with pytest.raises(KeyError, match="lost"):
        list(source)
    assert list(source) == []


def test_what_cannot_be_read_takes_a_number():
    source = LiveSource("camera", scripted([shown(), "its data is damaged", shown()]), timeouts=QUICK)
    items = [next(source) for _ in range(5)]
    source.close()
    assert [type(item) for item in items] == [State, State, Frame, UnreadableFrame, Frame]
    assert [item.index for item in items[2:]] == [0, 1, 2] and items[3].reason == "its data is damaged"


def test_a_source_that_is_closed_before_it_begins_starts_nothing():
    source = LiveSource("camera", scripted(endless))
    source.close()
    assert list(source) == []


def test_inference_1160_bursts_are_given_at_the_times_that_their_stamps_say():
    def burst(connection):
        for number in range(20):
            yield shown(number, stream_s=100 + number / 50)
        raise StreamEnded

    source = LiveSource("camera", scripted(Scripted(burst, paced=True)))
    frames = [(time.monotonic(), item) for item in source if isinstance(item, Frame)]
    assert [frame.index for _, frame in frames] == list(range(20)), "none is skipped"
    assert frames[-1][0] - frames[0][0] > 0.3, "20 pictures of 20 ms each within 38 ms would be the burst"
    assert np.allclose([frame.time_s for _, frame in frames], np.arange(20) / 50, atol=1e-6)


# Timeouts.


@given(
    first=st.floats(0.01, 5),
    longest=st.floats(5, 60),
    jitter=st.floats(0, 0.9),
    lives=st.lists(st.floats(0, 1000), max_size=30),
)
def test_waits_are_bounded_and_the_first_retry_is_at_once(first, longest, jitter, lives):
    backoff = Backoff(Timeouts(first_wait_s=first, longest_wait_s=longest, jitter=jitter))
    waits = [backoff.after(lived) for lived in [0.0, *lives]]
    assert waits[0] == 0.0
    assert all(0 <= wait <= longest for wait in waits)
    for before, after, lived in zip(waits, waits[1:], lives, strict=False):
        if lived > longest:
            assert after == 0.0, "after a stable connection the next try is made at once"
        elif lived == 0:
            assert after >= first * (1 - jitter) * 0.999, f"no second try without a pause ({before})"


def test_waits_grow_to_the_longest():
    backoff = Backoff(Timeouts(first_wait_s=1, longest_wait_s=30, jitter=0))
    assert [backoff.after(0) for _ in range(8)] == [0, 1, 2, 4, 8, 16, 30, 30]


@pytest.mark.parametrize("wrong", [{"open_s": 0}, {"read_s": -1}, {"jitter": 1}, {"longest_wait_s": float("nan")}])
def test_impossible_timeouts_are_refused(wrong):
    with pytest.raises(ValueError, match="expected times above 0 s"):
        Timeouts(**wrong)


# Clocks.

STEPS = st.lists(
    st.tuples(st.one_of(st.none(), st.floats(-1e5, 1e6)), st.floats(0, 100), st.booleans()), min_size=1, max_size=40
)


@given(steps=STEPS)
def test_times_begin_at_0_and_grow_whatever_the_stream_says(steps):
    clock, arrived, last = LiveClock(), 1000.0, -1.0
    for number, (stream_s, pause, again) in enumerate(steps):
        arrived += pause
        if again:
            clock.connect()
        time_s = clock.time_s(stream_s, arrived)
        assert time_s > last and (number or time_s == 0.0)
        last = time_s


@given(rate=st.floats(5, 100), late=st.lists(st.floats(0, 0.3), min_size=2, max_size=50), start=st.floats(0, 1e5))
def test_the_streams_own_steps_are_kept_however_late_its_pictures_come(rate, late, start):
    clock = LiveClock()
    clock.connect()
    times = [clock.time_s(start + n / rate, 50 + n / rate + delay) for n, delay in enumerate(late)]
    assert np.allclose(np.diff(times), 1 / rate, atol=1e-6)


def test_time_that_a_camera_is_away_passes():
    clock = LiveClock()
    clock.connect()
    assert clock.time_s(7.0, 100.0) == 0.0
    clock.connect()
    assert clock.time_s(0.0, 160.0) == pytest.approx(60.0)
    assert clock.time_s(0.04, 160.1) == pytest.approx(60.04)


def test_a_clock_that_is_set_while_it_runs_is_followed():
    clock = LiveClock()
    clock.connect()
    clock.time_s(0.0, 100.0)
    assert clock.time_s(86400.0, 100.04) == pytest.approx(0.04)
    assert clock.time_s(86400.04, 100.08) == pytest.approx(0.08)
    assert clock.time_s(5.0, 100.12) == pytest.approx(0.12)
    assert clock.time_s(5.0, 100.12) == pytest.approx(0.12 + LEAST_STEP_S)


def test_clocks_that_are_not_set_are_not_believed():
    assert of_sender(round(time.time() * 1e6)) is not None
    assert of_sender(0) is None and of_sender(round((time.time() + 60) * 1e6)) is None
    now = of_monotonic(time.monotonic())
    assert now is not None and abs(now - time.time_ns()) < 1e9
    assert of_monotonic(0.0) is None or time.monotonic() < 10
