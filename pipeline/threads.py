"""The one file that starts and joins threads: a thread for each stage, joined by bounded channels.

    capture -> people -> infer -> lift -> render -> sinks -> the caller
                 ^---------|
            what was seen, where people are followed

An exception in a worker stops the run and reaches the caller as a StageError. A source that breaks off half way is gentler:
what came before it goes through every stage first. A GeometryError concerns one frame or one person in it: that frame fails,
or that person has no pose, and the run goes on.
"""

from __future__ import annotations

import threading
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from types import TracebackType

from convnextpose.camera import Intrinsics, RootDepthSource
from convnextpose.errors import GeometryError, PoseError, StageError
from engines.pose import PoseModel
from pipeline.channels import Channel, Closed, DropPolicy
from pipeline.draw import PoseRenderer
from pipeline.ledger import FrameLedger
from pipeline.people import PeopleFinder, Person, Sighting
from pipeline.sinks import Sink
from pipeline.sources import Source
from pipeline.stages import in_picture, infer, lift
from pipeline.timeline import Span, Timeline, TimingTable, TraceWriter
from pipeline.types import Frame, PosedFrame, RunHeader

CHANNEL_CAPACITY = 4
"""Frames that wait between two stages at most: enough to level out uneven stages, few enough for 4K pictures."""

CLOSING_TIME_S = 10.0
"""How long `close` waits for the frames that are on their way before it gives them up, s."""


@dataclass
class _Item:
    """A frame on its way; each stage fills in its part."""

    frame: Frame
    enter_ns: int
    spans: list[Span] = field(default_factory=list)
    people: tuple[Person, ...] = ()
    sightings: tuple[Sighting, ...] = ()
    posed: PosedFrame | None = None
    problems: list[str] = field(default_factory=list)

    def leave(self, stage: str, start_ns: int) -> None:
        """Note that a stage is done with it; it enters the next one at the same moment."""
        end_ns = time.perf_counter_ns()
        self.spans.append(Span(stage, self.enter_ns, start_ns, end_ns))
        self.enter_ns = end_ns


class Pipeline:
    """A running pipeline: iterate over it for the posed frames, or use it as a context manager to be sure that it ends.

    It closes everything that it was given: source, model, sinks and trace.

    Args:
        source: gives the frames.
        model: reads the poses.
        finder: names the people of each frame.
        header: what the run is.
        camera: the true intrinsics, or None to assume a field of view for each picture's size.
        renderer: draws the pictures, or None to draw nothing.
        sinks: take every posed frame.
        trace: takes every timeline, or None.
        policy: what a full channel does.
        caption: stamped on every picture.

    Attributes:
        header: what the run is.
        ledger: what became of the frames.
        timing: where their time went.
    """

    def __init__(
        self,
        source: Source,
        model: PoseModel,
        finder: PeopleFinder,
        *,
        header: RunHeader,
        camera: Intrinsics | None = None,
        renderer: PoseRenderer | None = None,
        sinks: Sequence[Sink] = (),
        trace: TraceWriter | None = None,
        policy: DropPolicy = DropPolicy.BLOCK,
        caption: str | None = None,
    ) -> None:
        self.header = header
        self.ledger = FrameLedger()
        self.timing = TimingTable()
        self._source = source
        self._model = model
        self._finder = finder
        self._camera = camera
        self._renderer = renderer
        self._sinks = list(sinks)
        self._trace = trace
        self._caption = caption
        self._feedback: Channel[tuple[Sighting, ...]] = Channel(1)
        self._feedback_due = False
        self._stopping = threading.Event()
        self._error: StageError | None = None
        self._error_lock = threading.Lock()
        self._closed = False
        self._closers: list[tuple[str, Callable[[], None]]] = [("capture", source.close), ("infer", model.close)]
        self._closers += [("sinks", sink.close) for sink in sinks]
        self._closers += [("sinks", trace.close)] if trace else []
        stages: list[tuple[str, Callable[[_Item], None], Callable[[], None] | None]] = [
            ("people", self._people, self._await_feedback),
            ("infer", self._infer, None),
            ("lift", self._lift, None),
            ("render", self._render, None),
            ("sinks", self._sink, None),
        ]
        self._channels: list[Channel[_Item]] = [Channel(CHANNEL_CAPACITY, policy) for _ in stages]
        # The caller is never dropped on: what went through the sinks is processed.
        self._channels.append(Channel(CHANNEL_CAPACITY))
        self._threads = [threading.Thread(target=self._capture, args=(self._channels[0],), name="capture", daemon=True)]
        for (name, function, prepare), inlet, outlet in zip(stages, self._channels[:-1], self._channels[1:], strict=True):
            arguments = (name, function, prepare, inlet, outlet)
            self._threads.append(threading.Thread(target=self._work, args=arguments, name=name, daemon=True))

    @property
    def outputs(self) -> list[Path]:
        """The files that it has begun to write."""
        begun = [sink.path for sink in self._sinks if sink.begun]
        return begun + ([self._trace.path] if self._trace and self._trace.begun else [])

    def __iter__(self) -> Iterator[PosedFrame]:
        """Start the threads, if they are not running, and give every frame that went through all stages.

        Raises:
            StageError: a stage failed, after the frames that were finished before it.
        """
        if self._closed:
            raise ValueError("expected a pipeline that is not closed, received one that has ended; make a new one")
        for thread in self._threads:
            if thread.ident is None:
                thread.start()
        while True:
            try:
                item = self._channels[-1].get()
            except Closed:
                break
            if item.posed is not None:
                yield item.posed
        self.close()

    def stop(self) -> None:
        """Capture no more frames; those on their way are still finished. Safe to call from a signal handler."""
        self._stopping.set()

    def close(self) -> None:
        """Stop, finish the frames on their way within CLOSING_TIME_S, join the threads, close what it was given.

        Calling it again does nothing.

        Raises:
            StageError: a stage failed during the run or while closing.
        """
        if self._closed:
            return
        self.stop()
        deadline = time.monotonic() + CLOSING_TIME_S
        self._drain(deadline)
        self._abort(self._channels)
        for thread in self._threads:
            if thread.ident is not None:
                thread.join(max(0.1, deadline - time.monotonic()))
        stuck = [thread.name for thread in self._threads if thread.is_alive()]
        if stuck:
            self._fail(stuck[0], TimeoutError(f"it did not end within {CLOSING_TIME_S:g} s and was given up"))
        self.ledger.fail_rest("the run was stopped" if self._error is None else f"stage {self._error.stage} stopped the run")
        while self._closers:  # one by one, so that an interrupted close can be called again for the rest
            stage, close = self._closers[0]
            if stage not in stuck:  # what a stuck stage holds would wait for it
                try:
                    close()
                except PoseError as error:
                    self._fail(stage, error)
            del self._closers[0]
        self._closed = True
        if self._error is not None:
            raise self._error

    def __enter__(self) -> Pipeline:
        """The pipeline itself."""
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None) -> None:
        """Close it; an error of its own does not hide the one that is on its way."""
        try:
            self.close()
        except StageError:
            if error is None:
                raise

    def _drain(self, deadline: float) -> None:
        """Throw finished frames away, so that no stage waits for a caller who has left, until the last stage ends."""
        if self._threads[-1].ident is None:
            return
        leaving = threading.Timer(max(0.0, deadline - time.monotonic()), self._channels[-1].abort)
        leaving.daemon = True
        leaving.start()
        try:
            while True:
                self._channels[-1].get()
        except Closed:
            leaving.cancel()

    # What each thread runs.

    def _capture(self, outlet: Channel[_Item]) -> None:
        try:
            frames = iter(self._source)
            while not self._stopping.is_set():
                start_ns = time.perf_counter_ns()
                frame = next(frames, None)
                if frame is None:
                    break
                item = _Item(frame, start_ns)
                item.leave("capture", start_ns)
                self.ledger.capture(frame.index)
                self._pass_on(item, outlet)
        except Closed:
            pass
        except Exception as error:  # noqa: BLE001  # a thread's edge: the caller gets it
            self._fail("capture", error)
        finally:
            outlet.close()

    def _work(
        self,
        name: str,
        function: Callable[[_Item], None],
        prepare: Callable[[], None] | None,
        inlet: Channel[_Item],
        outlet: Channel[_Item],
    ) -> None:
        try:
            while True:
                item = inlet.get()
                try:
                    if prepare is not None:
                        prepare()
                    start_ns = time.perf_counter_ns()
                    function(item)
                except GeometryError as error:
                    self.ledger.fail(item.frame.index, f"{name}: {error}")
                    continue
                item.leave(name, start_ns)
                if outlet is self._channels[-1]:
                    self._finish(item)
                self._pass_on(item, outlet)
        except Closed:
            pass
        except Exception as error:  # noqa: BLE001  # a thread's edge: the caller gets it
            self._fail(name, error)
            self._abort(self._channels[:-1])  # what is finished already still reaches the caller
        finally:
            outlet.close()
            if name == "infer":
                self._feedback.close()

    def _pass_on(self, item: _Item, outlet: Channel[_Item]) -> None:
        dropped = outlet.put(item)
        if dropped is not None:
            self.ledger.drop(dropped.frame.index)

    def _abort(self, channels: Sequence[Channel[_Item]]) -> None:
        for channel in channels:
            channel.abort()
        self._feedback.abort()

    def _fail(self, stage: str, error: Exception) -> None:
        with self._error_lock:
            if self._error is None:
                message = str(error) if isinstance(error, PoseError) else f"{type(error).__name__}: {error}"
                self._error = StageError(stage, message)
                self._error.__cause__ = error
        self._stopping.set()

    # The stages.

    def _await_feedback(self) -> None:
        if self._feedback_due:
            sightings = self._feedback.get()
            self._feedback_due = False
            self._finder.observe(sightings)

    def _people(self, item: _Item) -> None:
        item.people = self._finder.find(item.frame)
        self._feedback_due = self._finder.follows

    def _infer(self, item: _Item) -> None:
        try:
            people = in_picture(item.frame, item.people, item.problems)
            item.sightings = infer(self._model, item.frame, people, self._finder.min_score)
        finally:
            if self._finder.follows:
                self._feedback.put(item.sightings)

    def _lift(self, item: _Item) -> None:
        frame = item.frame
        camera = self._camera or Intrinsics.assumed(frame.width, frame.height)
        source = RootDepthSource.INTRINSICS if self._camera else RootDepthSource.ASSUMED_FOV
        poses = []
        for sighting in item.sightings:
            try:
                poses.append(lift(sighting, camera, source))
            except GeometryError as error:  # one person: the others of the frame still have poses
                item.problems.append(str(error))
        item.posed = PosedFrame(frame, tuple(poses), camera)

    def _render(self, item: _Item) -> None:
        if item.posed is not None and self._renderer is not None:
            posed = item.posed
            picture = self._renderer.render(posed.frame, posed.poses, posed.camera, caption=self._caption)
            item.posed = replace(posed, picture=picture)

    def _sink(self, item: _Item) -> None:
        if item.posed is not None:
            for sink in self._sinks:
                sink.write(item.posed)

    def _finish(self, item: _Item) -> None:
        timeline = Timeline(item.frame.index, tuple(item.spans))
        self.timing.add(timeline)
        if self._trace is not None:
            self._trace.add(timeline)
        self.ledger.process(item.frame.index, with_person=bool(item.posed and item.posed.poses), problems=item.problems)
        if item.posed is not None:
            item.posed = replace(item.posed, timeline=timeline)
