"""A run: parallel streams, each with its own threads, and a thread for each view.

A view never blocks anything: it reads the newest frame of each source when it has time. A view that fails is closed and its
error is reported, while everything else continues. If a stream fails, the others continue: the caller gets its error as a
StageError when all streams have ended.
"""

from __future__ import annotations

import logging
import threading
import time
from collections.abc import Callable, Iterator, Sequence
from functools import partial
from pathlib import Path
from types import TracebackType

import cv2

from convnextpose.errors import PoseError, StageError
from pipeline.formats.base import WrittenFile, written_files
from pipeline.formats.trace import TraceRecorder
from pipeline.inbox import Closed, Inbox, LatestItems
from pipeline.stream import Stream
from pipeline.timeline import Timeline
from pipeline.types import PosedFrame, RunHeader
from pipeline.views.base import View

_log = logging.getLogger("convnextpose.streams")

CLOSING_TIME_S = 10.0
"""How long `Pipeline.close` waits for the frames in flight before it abandons them, s."""

VIEW_CLOSING_TIME_S = 2.0
"""How long `Pipeline.close` waits for a view before it abandons it, s."""


class ViewThread:
    """A view in a thread of its own: it shows the newest posed frame of each source. A `Pipeline` runs it.

    Args:
        view: shows the frames; it is closed at the end, or when it fails.
        latest: the newest frame of each source.

    Attributes:
        shown: how many frames the view has shown.
        error: why it stopped before the run's end, or None.
    """

    def __init__(self, view: View, latest: LatestItems[PosedFrame]) -> None:
        self.view = view
        self.shown = 0
        self.error: str | None = None
        self._latest = latest
        self._thread = threading.Thread(target=self._run, name=f"view: {view.name}", daemon=True)

    def start(self) -> None:
        """Start the thread."""
        self._thread.start()

    def close(self) -> None:
        """Close the view, after `latest` was closed; a view that hangs is abandoned after VIEW_CLOSING_TIME_S."""
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
                for source, numbered in self._latest.read(seen).items():
                    seen[source] = numbered.number
                    self.view.show(numbered.item)
                    self.shown += 1
        except Closed:
            pass
        except Exception as error:  # noqa: BLE001  # a thread's top level: a broken view must not affect the run
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
    """The parallel streams of a run: iterate over it to get the posed frames, or use it as a context manager.

    It closes everything that it was given: sources, models, recorders, views and trace.
    Starting it sets OpenCV's threads to one, for the whole process.

    Args:
        streams: one for each source.
        models: closed when the last stream has ended.
        detector: description of the people detector, or None without one.
        views: show the newest frames during the run.
        trace: receives every timeline, or None.
        at_end: called when everything is closed; writes the summary and returns its path.

    Attributes:
        streams: one for each source.
        detector: description of the people detector, or None.
        view_threads: one for each view.
        summary: the summary's path, once it is written.
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
        self._latest: LatestItems[PosedFrame] = LatestItems()
        self.view_threads = [ViewThread(view, self._latest) for view in views]
        self._late_error: StageError | None = None
        self._at_end = at_end
        self.summary: Path | None = None
        self._running = len(self.streams)
        self._lock = threading.Lock()
        self._outbox: Inbox[Stream] = Inbox()  # contains a stream once for each frame that it has finished
        self._closers: list[Callable[[], None]] = [stream.source.close for stream in self.streams] + list(models)
        self._closed = False

    @property
    def headers(self) -> list[RunHeader]:
        """The run's header for each source."""
        return [stream.header for stream in self.streams]

    @property
    def header(self) -> RunHeader:
        """The run's header for the first source."""
        return self.streams[0].header

    @property
    def error(self) -> StageError | None:
        """The first reason why a stream ended early."""
        errors = [stream.error for stream in self.streams] + [self._late_error]
        return next((error for error in errors if error is not None), None)

    @property
    def outputs(self) -> list[WrittenFile]:
        """The files of the recorders and the trace that exist so far."""
        recorders = [recorder for stream in self.streams for recorder in stream.recorders]
        return written_files([*recorders, *([self._trace] if self._trace else [])])

    def __iter__(self) -> Iterator[PosedFrame]:
        """Start the threads, if they are not running, and give every posed frame when all its recorders have it.

        Raises:
            StageError: a stage failed, after the frames that were finished before it.
        """
        self._start(wanted=True)
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
        """Run the pipeline to its end.

        Raises:
            StageError: a stage failed.
        """
        self._start(wanted=False)
        for _ in self:
            pass

    def stop(self) -> None:
        """Read no more frames; frames in flight are still finished. Safe to call from a signal handler."""
        for stream in self.streams:
            stream.stop()

    def close(self) -> None:
        """Stop, finish the frames in flight within CLOSING_TIME_S, join the threads, and close everything that it was given.

        Calling it again does nothing; calling it after an interruption closes the rest.

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
        self._latest.close()
        for view_thread in self.view_threads:
            view_thread.close()
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
        """Close it; an error while closing does not hide one that is being raised."""
        try:
            self.close()
        except PoseError:
            if error is None:
                raise

    def _start(self, *, wanted: bool) -> None:
        """Start the threads that are not running; `wanted` says whether the caller takes the posed frames."""
        if self._closed:
            raise ValueError("expected a pipeline that is not closed, received one that has ended; make a new one")
        if not any(stream.started for stream in self.streams):
            cv2.setNumThreads(1)  # our threads keep all cores busy, and OpenCV's own use CPU time while they wait
            for view_thread in self.view_threads:
                view_thread.start()
        show = self._show if self.view_threads else None
        for stream in self.streams:
            if not stream.started:
                ready = partial(self._outbox.put, stream) if wanted else None
                stream.start(ready, self._stream_ended, self._add_trace, show)

    def _drain(self, started: Sequence[Stream], deadline: float) -> None:
        """Discard finished frames until the last stream ends, so that nothing waits for a caller who has left."""
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
        self._latest.put(posed.frame.source_id, posed)

    def _add_trace(self, timeline: Timeline) -> None:
        if self._trace is None or self._late_error is not None:
            return
        with self._trace_lock:
            try:
                self._trace.write(timeline)
            except PoseError as error:  # the results are still written, and the run reports the error at its end
                self._fail("trace", error)

    def _fail(self, what: str, error: PoseError) -> None:
        if self._late_error is None:
            self._late_error = StageError(what, str(error))
            self._late_error.__cause__ = error
