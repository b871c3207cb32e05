"""The threads of one source: a reader, an estimator and subscribers, each in its own thread.

    reader --frame--> estimator --posed frame--> recorders, each in a thread of its own --> the caller
                                      |\\--> renderer --drawn frame--> recorders that want the picture
                                       \\--> views

A recording waits: its next frame is read only if the frames in flight leave room, in frames and in bytes, so that every
recorder gets every frame. A live source never waits: only its newest frame is kept for the estimator, and a recorder that falls
behind misses frames, which are counted. A recorder that cannot write, as on a full disk, misses frames, too; the run continues.

An exception in a thread ends the stream. If a source breaks off, the frames before that are finished first. A GeometryError
concerns one frame or one person in it: that frame fails, or that person has no pose, and the stream continues.
"""

from __future__ import annotations

import logging
import threading
import time
from collections import deque
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from functools import partial

from convnextpose.errors import GeometryError, PoseError, SinkError, StageError
from convnextpose.world import World
from pipeline.draw import PoseRenderer
from pipeline.estimator import Estimator
from pipeline.formats.base import Recorder
from pipeline.inbox import Closed, Inbox, InFlight
from pipeline.ledger import FrameLedger
from pipeline.people.appearances import Appearances
from pipeline.sources import Source
from pipeline.timeline import Stopwatch, Timeline, TimingTable
from pipeline.types import Frame, PosedFrame, RunHeader, State, UnreadableFrame

_log = logging.getLogger("convnextpose.streams")

MAX_QUEUED_LIVE_FRAMES = 8
"""Largest number of a live source's frames that wait for a recorder or the caller; one more removes the oldest."""

KEPT_AGES = 20_000
"""Number of ages of live frames that are kept for the percentiles: the newest ones."""

KEPT_STATES = 1000
"""Number of a source's states that are kept: the newest ones, because a camera may reconnect for days."""

REPLACED_BY_NEWER = "a newer frame came before it was processed"

CALLER = "caller"

DRAWN_SHARE = 1.6
"""Size of the drawn picture and its encoding, relative to the frame's size."""


class _Flight:
    """A posed frame on its way to the recorders that must have it."""

    def __init__(self, posed: PosedFrame, stopwatch: Stopwatch, size: int, recorders: int) -> None:
        self.posed = posed
        self.stopwatch = stopwatch
        self.size = size
        self.entered_ns = time.perf_counter_ns()
        self._left = recorders
        self._lock = threading.Lock()

    def arrive(self) -> bool:
        """One recorder has the frame; returns whether it was the last."""
        with self._lock:
            self._left -= 1
            return self._left == 0


@dataclass(frozen=True)
class _Taken:
    """A frame that was read, and the stopwatch with its times so far."""

    frame: Frame
    stopwatch: Stopwatch
    size: int


class Stream:
    """One source with its estimator and its recorders. A `Pipeline` runs it.

    Args:
        source: gives the frames.
        estimator: makes their poses.
        header: the run's header.
        recorders: these get every posed frame of a recording, and as many frames of a live source as they can write.
        renderer: draws the pictures if a recorder needs them, or None.
        caption: written on every picture.

    Attributes:
        header: the run's header.
        source, estimator, renderer, caption: as given.
        ledger: the counts of the frames.
        timing: the times of the stages.
        recorders: the recorders.
        missed: how many frames of a live source each recorder missed, by its file's name; `caller` is the pipeline's iteration.
        ages_ns: ages of the newest posed frames of a live source when they had reached every recorder, ns.
        clock: the clock of the newest of these ages, as in `Frame`; None before there is one.
        finished: posed frames for the pipeline's iteration.
        states: the source's newest states, at most KEPT_STATES.
        people: the people seen so far.
        world: the up direction and the floor, as known at the newest frame; None before the first.
        error: why the stream ended early, or which result of a live source could not be written; None without an error.
    """

    def __init__(
        self,
        source: Source,
        estimator: Estimator,
        header: RunHeader,
        *,
        recorders: Sequence[Recorder] = (),
        renderer: PoseRenderer | None = None,
        caption: str | None = None,
    ) -> None:
        self.header = header
        self.ledger = FrameLedger(header.source)
        self.timing = TimingTable()
        self.recorders = list(recorders)
        self.missed = {recorder.path.name: 0 for recorder in recorders} | {CALLER: 0}
        self.ages_ns: deque[int] = deque(maxlen=KEPT_AGES)
        self.clock: str | None = None
        self.states: deque[State] = deque(maxlen=KEPT_STATES)
        self.people = Appearances()
        self.world: World | None = None
        self.error: StageError | None = None
        self.source = source
        self.estimator = estimator
        self.renderer = renderer
        self.caption = caption
        self._live = source.info.live
        self._draws = renderer is not None and any(recorder.needs_picture for recorder in recorders)
        self._stopping = threading.Event()
        self._in_flight = InFlight()
        self._lock = threading.Lock()
        self._ready: Callable[[], object] | None = None
        self._ended: Callable[[], None] = lambda: None
        self._trace: Callable[[Timeline], None] = lambda timeline: None
        self._show: Callable[[PosedFrame], None] | None = None
        self._taken: Inbox[_Taken] = Inbox(1 if self._live else None)
        waiting = MAX_QUEUED_LIVE_FRAMES if self._live else None
        self.finished: Inbox[_Flight] = Inbox(waiting)
        self._inboxes: list[Inbox[_Flight]] = [Inbox(waiting) for _ in recorders]
        self._to_draw: Inbox[_Flight] = Inbox(waiting)
        work: list[tuple[str, Callable[[], None]]] = [("reader", self._read), ("estimator", self._estimate)]
        work += [("renderer", self._draw)] if self._draws else []
        for recorder, inbox in zip(self.recorders, self._inboxes, strict=True):
            work.append((recorder.path.name, partial(self._record, recorder, inbox)))
        self._left = len(work)
        name = header.source
        self.threads = [
            threading.Thread(target=self._run, args=(target,), name=f"{name}: {what}", daemon=True) for what, target in work
        ]
        self._note(State.now("open"))

    # Called by the pipeline.

    def start(
        self,
        ready: Callable[[], object] | None,
        ended: Callable[[], None],
        trace: Callable[[Timeline], None],
        show: Callable[[PosedFrame], None] | None = None,
    ) -> None:
        """Start the threads.

        Args:
            ready: called when there is one more frame in `finished`; None if nobody takes frames from it.
            ended: called once, when the last thread ends.
            trace: called with the timeline of each finished frame.
            show: called with each posed frame for the views, before the recorders get it; None without views.
        """
        self._ready, self._ended, self._trace, self._show = ready, ended, trace, show
        if not self._live:  # a live source reports its own states
            self._note(State.now("running"))
        for thread in self.threads:
            thread.start()

    @property
    def started(self) -> bool:
        """Whether its threads have been started."""
        return self.threads[0].ident is not None

    def stop(self) -> None:
        """Read no more frames; frames in flight are still finished. Safe to call from a signal handler."""
        self._stopping.set()
        if self._live:  # its reader may be waiting for an absent camera
            self.source.close()

    def wake(self) -> None:
        """Wake a reader that waits for room, so that it can stop."""
        self._in_flight.wake()

    def release(self, size: int) -> None:
        """A finished frame was given to the caller, or discarded."""
        self._in_flight.leave(size)

    def abort(self) -> None:
        """Discard the frames in flight."""
        self.stop()
        self.wake()
        self._taken.abort()
        for inbox in (self._to_draw, *self._inboxes):
            inbox.abort()

    def fail(self, stage: str, error: Exception) -> None:
        """Record why the stream ends early; the first reason counts."""
        self._note_error(stage, error)
        self.stop()
        self.wake()

    def _note_error(self, stage: str, error: Exception) -> None:
        with self._lock:
            if self.error is None:
                message = str(error) if isinstance(error, PoseError) else f"{type(error).__name__}: {error}"
                self.error = StageError(stage, message)
                self.error.__cause__ = error
                _log.error("%s: %s", self.header.source, self.error)

    def settle(self) -> None:
        """Close the ledger: frames in flight count as failed."""
        if self.error is None:
            self.ledger.fail_rest("the run was stopped")
        else:
            self.ledger.fail_rest(f"stage {self.error.stage} stopped the run")

    # Run by the threads.

    def _run(self, target: Callable[[], None]) -> None:
        try:
            target()
        finally:
            with self._lock:
                self._left -= 1
                last = self._left == 0
            if last:
                self._ended()

    def _read(self) -> None:
        try:
            items, expected_size = iter(self.source), self._size_of(self.header.width, self.header.height)
            while self._live or self._in_flight.wait_for_room(expected_size, self._stopping.is_set):
                if self._stopping.is_set():
                    break
                stopwatch = Stopwatch()
                with stopwatch.span("capture"):
                    item = next(items, None)
                if item is None:
                    break
                if isinstance(item, State):
                    self._note(item)
                    continue
                if self._live:  # time before this was spent waiting for the camera's thread, which decoded the frame
                    stopwatch, now_ns = Stopwatch(), time.perf_counter_ns()
                    decoded_ns = item.decoded_ns if isinstance(item, Frame) else None
                    stopwatch.add("capture", *(decoded_ns or (now_ns, now_ns)))
                if item.source_id != self.header.source:  # several files with the same name
                    item = replace(item, source_id=self.header.source)
                self.ledger.receive(item.index)
                if isinstance(item, UnreadableFrame):
                    if item.given_up:
                        self.ledger.drop(item.index, item.reason)
                    else:
                        self.ledger.fail(item.index, f"capture: {item.reason}")
                    continue
                expected_size = self._size_of(item.width, item.height)
                self._in_flight.enter(expected_size)
                pushed_out = self._taken.put(_Taken(item, stopwatch, expected_size))
                if pushed_out is not None:
                    self.ledger.drop(pushed_out.frame.index, REPLACED_BY_NEWER)
                    self._in_flight.leave(pushed_out.size)
            self._note(State.now("stopped" if self._stopping.is_set() else "ended"))
        except Closed:  # by the estimator, because it failed
            self._note(State.now("stopped"))
        except Exception as error:  # noqa: BLE001  # a thread's top level: the caller gets it
            self._note(State.now("broken", str(error)))
            self.fail("capture", error)
        finally:
            self._taken.close()

    def _size_of(self, width: int | None, height: int | None) -> int:
        """Size of a frame and of everything made from it, bytes."""
        frame = 3 * (width or 0) * (height or 0)
        return round(frame * (1 + DRAWN_SHARE)) if self._draws else frame

    def _estimate(self) -> None:
        stopwatch = Stopwatch()
        try:
            while True:
                taken = self._taken.get()
                stopwatch = taken.stopwatch
                try:
                    posed = self.estimator.step(taken.frame, stopwatch)
                except GeometryError as error:
                    self.ledger.fail(taken.frame.index, f"{stopwatch.stage}: {error}")
                    self._in_flight.leave(taken.size)
                    continue
                self.header = self.header.completed(posed)
                self.people.add(posed)
                self.world = posed.world
                self._publish(_Flight(posed, stopwatch, taken.size, len(self.recorders)))
        except Closed:
            pass
        except Exception as error:  # noqa: BLE001  # a thread's top level: the caller gets it
            self.fail(stopwatch.stage, error)
            self._taken.abort()
        finally:
            self._to_draw.close()
            for recorder, inbox in zip(self.recorders, self._inboxes, strict=True):
                if not (self._draws and recorder.needs_picture):
                    inbox.close()

    def _publish(self, flight: _Flight) -> None:
        if self._show is not None:
            posed = flight.posed
            self._show(replace(posed, timeline=flight.stopwatch.timeline(posed.frame.source_id, posed.frame.index)))
        if not self.recorders:
            self._finish(flight)
            return
        if self._draws:
            self._offer(self._to_draw, flight, [r for r in self.recorders if r.needs_picture])
        for recorder, inbox in zip(self.recorders, self._inboxes, strict=True):
            if not (self._draws and recorder.needs_picture):
                self._offer(inbox, flight, [recorder])

    def _offer(self, inbox: Inbox[_Flight], flight: _Flight, recorders: Sequence[Recorder]) -> None:
        """Put a frame into an inbox. A full inbox of a live source loses its oldest frame, which its recorders then miss."""
        missed = inbox.put(flight)
        if missed is not None:
            for recorder in recorders:
                self.missed[recorder.path.name] += 1
                if missed.arrive():
                    self._finish(missed)

    def _draw(self) -> None:
        renderer, inbox = self.renderer, self._to_draw
        assert renderer is not None
        targets = [(r, i) for r, i in zip(self.recorders, self._inboxes, strict=True) if r.needs_picture]
        try:
            while True:
                flight = inbox.get()
                posed = flight.posed
                with flight.stopwatch.span("render", enter_ns=flight.entered_ns):
                    picture = renderer.render(posed.frame, posed.poses, posed.camera, posed.world, caption=self.caption)
                flight.posed = replace(posed, picture=picture)
                for recorder, target in targets:
                    self._offer(target, flight, [recorder])
        except Closed:
            pass
        except Exception as error:  # noqa: BLE001  # a thread's top level: the caller gets it
            self.fail("render", error)
            self.abort()
        finally:
            for _, target in targets:
                target.close()

    def _record(self, recorder: Recorder, inbox: Inbox[_Flight]) -> None:
        part = recorder.path.suffix.removeprefix(".")
        try:
            while True:
                flight = inbox.get()
                try:
                    with flight.stopwatch.span("write", enter_ns=flight.entered_ns, part=part):
                        recorder.write(flight.posed)
                except SinkError as error:
                    if not self._live:
                        raise
                    self.missed[recorder.path.name] += 1
                    self._note_error("write", error)
                if flight.arrive():
                    self._finish(flight)
        except Closed:
            pass
        except Exception as error:  # noqa: BLE001  # a thread's top level: the caller gets it
            self.fail("write", error)
            self._taken.abort()  # no later frame can count as posed; those that this recorder has are still finished
            inbox.abort()
        finally:
            try:
                recorder.close()
            except Exception as error:  # noqa: BLE001
                self.fail("write", error)

    def _finish(self, flight: _Flight) -> None:
        """Finish a frame that every recorder that must have it has. Called once for each frame, in the frames' order."""
        posed = flight.posed
        timeline = flight.stopwatch.timeline(posed.frame.source_id, posed.frame.index)
        self.timing.add(timeline)
        self.ledger.pose(posed.frame.index, with_person=bool(posed.poses), problems=posed.problems)
        if posed.frame.captured_ns is not None:
            self.ages_ns.append(time.time_ns() - posed.frame.captured_ns)
            self.clock = posed.frame.clock
        self._trace(timeline)
        if self._ready is None:
            self.release(flight.size)
            return
        flight.posed = replace(posed, timeline=timeline)
        pushed_out = self.finished.put(flight)
        if pushed_out is None:
            self._ready()
        else:
            self.missed[CALLER] += 1
            self.release(pushed_out.size)

    def _note(self, state: State) -> None:
        self.states.append(state)
        _log.info("%s: %s%s", self.header.source, state.state, f" ({state.cause})" if state.cause else "")
