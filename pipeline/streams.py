"""The one file that starts and joins a run's threads: a reader, an estimator and subscribers for each source.

    reader --frame--> estimator --posed frame--> recorders, each in a thread of its own --> the caller
                                      |\\--> renderer --drawn frame--> recorders that want the picture
                                       \\--> views, each in a thread of its own: the newest frame of each source

A recorded source waits: the next frame is taken from it when what is in flight leaves room, in frames and in bytes, so that
every recorder has every frame. A live source never waits: only its newest frame is kept for the estimator, and a recorder that
falls behind misses frames, which are counted. So does one that cannot write, as on a full disk: the live part goes on. A view
never holds anything up: it sees the newest frame of each source when it has time for one, and a view that fails is closed and
told of, while everything else goes on.

An exception in a thread ends its source's stream, not those of other sources, and reaches the caller as a StageError when all
streams have ended. A source that breaks off half way is gentler: what came before it goes through every stage first. A
GeometryError concerns one frame or one person in it: that frame fails, or that person has no pose, and the stream goes on.
"""

from __future__ import annotations

import logging
import threading
import time
from collections import deque
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path
from types import TracebackType

import cv2

from convnextpose.errors import GeometryError, PoseError, SinkError, StageError
from convnextpose.world import World
from pipeline.draw import PoseRenderer
from pipeline.estimator import Estimator
from pipeline.formats.base import Recorder, WrittenFile, written_files
from pipeline.formats.trace import TraceRecorder
from pipeline.inbox import Board, Closed, Inbox, InFlight
from pipeline.ledger import FrameLedger
from pipeline.people.appearances import Appearances
from pipeline.sources import Source
from pipeline.timeline import Stopwatch, Timeline, TimingTable
from pipeline.types import Frame, PosedFrame, RunHeader, State, UnreadableFrame
from pipeline.views.base import View

_log = logging.getLogger("convnextpose.streams")

CLOSING_TIME_S = 10.0
"""How long `Pipeline.close` waits for the frames that are on their way before it gives them up, s."""

VIEW_CLOSING_TIME_S = 2.0
"""How long `Pipeline.close` waits for a view before it gives it up, s."""

LIVE_WAITING_FRAMES = 8
"""Frames of a live source that wait for a recorder, or for the caller, at most; one more pushes the oldest out."""

KEPT_AGES = 20_000
"""Ages of live frames that percentiles are taken over: the newest ones."""

KEPT_STATES = 1000
"""States of a source that are kept: the newest ones, as a camera may come and go for days."""

NEWER_CAME = "a newer frame came before it was its turn"

CALLER = "caller"

DRAWN_SHARE = 1.6
"""How many bytes the drawn picture and its encoding take for a byte of the frame."""


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
        """One recorder less to wait for; whether it was the last."""
        with self._lock:
            self._left -= 1
            return self._left == 0


@dataclass(frozen=True)
class _Taken:
    """A frame that was read, and where its time went so far."""

    frame: Frame
    stopwatch: Stopwatch
    size: int


class Stream:
    """One source on its way to its recorders. A `Pipeline` runs it.

    Args:
        source: gives the frames.
        estimator: makes their poses.
        header: what the run is.
        recorders: take every posed frame of a recorded source; of a live one as many as they can.
        renderer: draws the pictures where a recorder wants them, or None.
        caption: stamped on every picture.

    Attributes:
        header: what the run is.
        source, estimator, renderer, caption: as they were given.
        ledger: what became of the frames.
        timing: where their time went.
        recorders: what takes the results.
        missed: how many frames of a live source each recorder missed, by its file's name, and `caller` for who iterates.
        ages_ns: of the newest posed frames of a live source, how old they were when every recorder had them.
        clock: what the newest of these ages is by, as in `Frame`; None before there is one.
        finished: posed frames for whoever iterates over the pipeline.
        states: what the source was doing, the newest KEPT_STATES.
        people: who was seen so far.
        world: where up and the floor are, as the newest frame knows it; None before there is one.
        error: why the stream ended early, or what could not be written of a live source; None if nothing went wrong.
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
        self._ready: Callable[[], object] = lambda: None
        self._ended: Callable[[], None] = lambda: None
        self._trace: Callable[[Timeline], None] = lambda timeline: None
        self._show: Callable[[PosedFrame], None] | None = None
        self._taken: Inbox[_Taken] = Inbox(1 if self._live else None)
        waiting = LIVE_WAITING_FRAMES if self._live else None
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

    # What the pipeline calls.

    def start(
        self,
        ready: Callable[[], object],
        ended: Callable[[], None],
        trace: Callable[[Timeline], None],
        show: Callable[[PosedFrame], None] | None = None,
    ) -> None:
        """Start the threads.

        Args:
            ready: is called when there is one frame more in `finished`.
            ended: is called once, when the last thread ends.
            trace: takes the timeline of each such frame.
            show: takes each posed frame for the views, before the recorders have it; None where there are no views.
        """
        self._ready, self._ended, self._trace, self._show = ready, ended, trace, show
        if not self._live:  # a live source says what it does
            self._note(State.now("running"))
        for thread in self.threads:
            thread.start()

    @property
    def started(self) -> bool:
        """Whether its threads have been started."""
        return self.threads[0].ident is not None

    def stop(self) -> None:
        """Take no more frames; those on their way are still finished. Safe to call from a signal handler."""
        self._stopping.set()
        if self._live:  # its reader may be waiting for a camera that is not there
            self.source.close()

    def wake(self) -> None:
        """Let a reader that waits for room see that it is to stop."""
        self._in_flight.wake()

    def release(self, size: int) -> None:
        """A finished frame has been handed to the caller, or thrown away."""
        self._in_flight.leave(size)

    def abort(self) -> None:
        """Give up what is on its way."""
        self.stop()
        self.wake()
        self._taken.abort()
        for inbox in (self._to_draw, *self._inboxes):
            inbox.abort()

    def fail(self, stage: str, error: Exception) -> None:
        """Note why the stream ends early; the first reason counts."""
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
        """Close the accounts: what is still open failed."""
        if self.error is None:
            self.ledger.fail_rest("the run was stopped")
        else:
            self.ledger.fail_rest(f"stage {self.error.stage} stopped the run")

    # What the threads run.

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
                if self._live:  # until now it waited for the camera, whose own thread decoded the frame
                    stopwatch, now_ns = Stopwatch(), time.perf_counter_ns()
                    decoded_ns = item.decoded_ns if isinstance(item, Frame) else None
                    stopwatch.add("capture", *(decoded_ns or (now_ns, now_ns)))
                if item.source_id != self.header.source:  # two files of one name
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
                    self.ledger.drop(pushed_out.frame.index, NEWER_CAME)
                    self._in_flight.leave(pushed_out.size)
            self._note(State.now("stopped" if self._stopping.is_set() else "ended"))
        except Closed:  # the estimator gave up
            self._note(State.now("stopped"))
        except Exception as error:  # noqa: BLE001  # a thread's edge: the caller gets it
            self._note(State.now("broken", str(error)))
            self.fail("capture", error)
        finally:
            self._taken.close()

    def _size_of(self, width: int | None, height: int | None) -> int:
        """Bytes that a frame and what is made of it take."""
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
        except Exception as error:  # noqa: BLE001  # a thread's edge: the caller gets it
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
        """Put a frame into an inbox. Of a live source a full one loses its oldest: the recorders behind it miss that frame."""
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
        except Exception as error:  # noqa: BLE001  # a thread's edge: the caller gets it
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
        except Exception as error:  # noqa: BLE001  # a thread's edge: the caller gets it
            self.fail("write", error)
            self._taken.abort()  # no later frame can count as posed; those that this recorder has are still finished
            inbox.abort()
        finally:
            try:
                recorder.close()
            except Exception as error:  # noqa: BLE001
                self.fail("write", error)

    def _finish(self, flight: _Flight) -> None:
        """Every recorder that must have a frame has it. For each frame this runs once, and in the frames' order."""
        posed = flight.posed
        timeline = flight.stopwatch.timeline(posed.frame.source_id, posed.frame.index)
        self.timing.add(timeline)
        self.ledger.pose(posed.frame.index, with_person=bool(posed.poses), problems=posed.problems)
        if posed.frame.captured_ns is not None:
            self.ages_ns.append(time.time_ns() - posed.frame.captured_ns)
            self.clock = posed.frame.clock
        self._trace(timeline)
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


class Viewing:
    """A view in a thread of its own: it shows the newest posed frame of each source. A `Pipeline` runs it.

    Args:
        view: what shows the frames; it is closed at the end, or when it fails.
        board: the newest frame of each source.

    Attributes:
        shown: how many frames the view took.
        error: why it stopped before the run's end, or None.
    """

    def __init__(self, view: View, board: Board[PosedFrame]) -> None:
        self.view = view
        self.shown = 0
        self.error: str | None = None
        self._board = board
        self._thread = threading.Thread(target=self._run, name=f"view: {view.name}", daemon=True)

    def start(self) -> None:
        """Start the thread."""
        self._thread.start()

    def close(self) -> None:
        """Close the view, once the board is closed; one that hangs is given up after VIEW_CLOSING_TIME_S."""
        if self._thread.ident is None:
            self._close()
            return
        self._thread.join(VIEW_CLOSING_TIME_S)
        if self._thread.is_alive():
            self._fail(f"it did not end within {VIEW_CLOSING_TIME_S:g} s and was given up")

    def _run(self) -> None:
        seen: dict[str, int] = {}
        try:
            while True:
                for source, posting in self._board.read(seen).items():
                    seen[source] = posting.number
                    self.view.show(posting.item)
                    self.shown += 1
        except Closed:
            pass
        except Exception as error:  # noqa: BLE001  # a thread's edge: a view that breaks harms nobody
            self._fail(str(error) if isinstance(error, PoseError) else f"{type(error).__name__}: {error}")
        finally:
            self._close()

    def _close(self) -> None:
        try:
            self.view.close()
        except Exception as error:  # noqa: BLE001
            self._fail(f"{type(error).__name__}: {error}")

    def _fail(self, reason: str) -> None:
        if self.error is None:
            self.error = reason
            _log.warning("view %s stopped: %s", self.view.name, reason)


class Pipeline:
    """Streams that run side by side: iterate over it for the posed frames, or use it as a context manager.

    It closes everything that it was given: sources, models, recorders, views and trace.
    Starting it sets OpenCV's threads to one, for the whole process.

    Args:
        streams: one for each source.
        models: what is closed when the last stream has ended.
        detector: what finds the people, for people to read; None where nothing does.
        views: show the newest frames while it runs.
        trace: takes every timeline, or None.
        at_end: is called when all is closed; writes the summary and returns its path.

    Attributes:
        streams: one for each source.
        detector: what finds the people, or None.
        viewings: one for each view.
        summary: the summary's path, once it is there.
    """

    def __init__(
        self,
        streams: Sequence[Stream],
        *,
        models: Sequence[Callable[[], None]] = (),
        detector: str | None = None,
        views: Sequence[View] = (),
        trace: TraceRecorder | None = None,
        at_end: Callable[[Pipeline], Path] | None = None,
    ) -> None:
        self.streams = list(streams)
        self.detector = detector
        self._trace = trace
        self._trace_lock = threading.Lock()
        self._board: Board[PosedFrame] = Board()
        self.viewings = [Viewing(view, self._board) for view in views]
        self._late_error: StageError | None = None
        self._at_end = at_end
        self.summary: Path | None = None
        self._running = len(self.streams)
        self._lock = threading.Lock()
        self._outbox: Inbox[Stream] = Inbox()  # a stream for each frame that it has finished
        self._closers: list[Callable[[], None]] = [stream.source.close for stream in self.streams] + list(models)
        self._closed = False

    @property
    def headers(self) -> list[RunHeader]:
        """What the run is, for each source."""
        return [stream.header for stream in self.streams]

    @property
    def header(self) -> RunHeader:
        """What the run is, for the first source."""
        return self.streams[0].header

    @property
    def error(self) -> StageError | None:
        """The first reason why a stream ended early."""
        errors = [stream.error for stream in self.streams] + [self._late_error]
        return next((error for error in errors if error is not None), None)

    @property
    def outputs(self) -> list[WrittenFile]:
        """The files that are there by now, of the recorders and the trace."""
        recorders = [recorder for stream in self.streams for recorder in stream.recorders]
        return written_files([*recorders, *([self._trace] if self._trace else [])])

    def __iter__(self) -> Iterator[PosedFrame]:
        """Start the threads, if they are not running, and give every posed frame that all its recorders have.

        Raises:
            StageError: a stage failed, after the frames that were finished before it.
        """
        if self._closed:
            raise ValueError("expected a pipeline that is not closed, received one that has ended; make a new one")
        if not any(stream.started for stream in self.streams):
            cv2.setNumThreads(1)  # all cores have work of ours, and threads of OpenCV's own burn CPU time while they wait
            for viewing in self.viewings:
                viewing.start()
        show = self._show if self.viewings else None
        for stream in self.streams:
            if not stream.started:
                stream.start(partial(self._outbox.put, stream), self._stream_ended, self._add_trace, show)
        while True:
            try:
                stream = self._outbox.get()
                flight = stream.finished.get()
            except Closed:
                break
            yield flight.posed
            stream.release(flight.size)
        self.close()

    def run(self) -> None:
        """Run it to its end.

        Raises:
            StageError: a stage failed.
        """
        for _ in self:
            pass

    def stop(self) -> None:
        """Take no more frames; those on their way are still finished. Safe to call from a signal handler."""
        for stream in self.streams:
            stream.stop()

    def close(self) -> None:
        """Stop, finish the frames on their way within CLOSING_TIME_S, join the threads, close what it was given.

        Calling it again does nothing; calling it after it was interrupted goes on with the rest.

        Raises:
            StageError: a stage failed during the run or while closing.
        """
        if self._closed:
            return
        self.stop()
        deadline = time.monotonic() + CLOSING_TIME_S
        started = [stream for stream in self.streams if stream.started]
        for stream in started:
            stream.wake()
        self._drain(started, deadline)
        for stream in started:
            stream.abort()
            for thread in stream.threads:
                thread.join(max(0.1, deadline - time.monotonic()))
            if stuck := [thread.name for thread in stream.threads if thread.is_alive()]:
                message = f"{', '.join(stuck)} did not end within {CLOSING_TIME_S:g} s and was given up"
                stream.fail("write", TimeoutError(message))
        for stream in self.streams:
            stream.settle()
            if not stream.started:
                for recorder in stream.recorders:
                    recorder.close()
        self._board.close()
        for viewing in self.viewings:
            viewing.close()
        while self._closers:  # one by one, so that an interrupted close can be called again for the rest
            self._closers[0]()
            del self._closers[0]
        if self._trace is not None:
            try:
                self._trace.close()
            except PoseError as error:
                self._fail("trace", error)
        self._closed = True
        if self._at_end is not None:
            try:
                self.summary = self._at_end(self)
            except PoseError as error:
                self._fail("summary", error)
        if self.error is not None:
            raise self.error

    def __enter__(self) -> Pipeline:
        """The pipeline itself."""
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None) -> None:
        """Close it; an error of its own does not hide the one that is on its way."""
        try:
            self.close()
        except PoseError:
            if error is None:
                raise

    def _drain(self, started: Sequence[Stream], deadline: float) -> None:
        """Throw finished frames away, so that nothing waits for a caller who has left, until the last stream ends."""
        if not started:
            return
        leaving = threading.Timer(max(0.0, deadline - time.monotonic()), self._outbox.abort)
        leaving.daemon = True
        leaving.start()
        try:
            while True:
                stream = self._outbox.get()
                stream.release(stream.finished.get().size)
        except Closed:
            pass
        finally:
            leaving.cancel()

    def _stream_ended(self) -> None:
        with self._lock:
            self._running -= 1
            if not self._running:
                self._outbox.close()

    def _show(self, posed: PosedFrame) -> None:
        self._board.post(posed.frame.source_id, posed)

    def _add_trace(self, timeline: Timeline) -> None:
        if self._trace is None or self._late_error is not None:
            return
        with self._trace_lock:
            try:
                self._trace.write(timeline)
            except PoseError as error:  # the results go on without it, and the run says so at its end
                self._fail("trace", error)

    def _fail(self, what: str, error: PoseError) -> None:
        if self._late_error is None:
            self._late_error = StageError(what, str(error))
            self._late_error.__cause__ = error
