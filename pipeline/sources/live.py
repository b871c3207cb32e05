"""The base class of live sources: it connects, reports its state, notices silence, and reconnects by itself.

A worker thread opens and reads the camera; the thread that iterates over the source checks how long the worker has been silent.
A call into a library or a driver may hang for ever and cannot be interrupted. Then the worker is abandoned and replaced. So no
camera blocks the iteration, and closing takes no time.
"""

from __future__ import annotations

import threading
import time
from collections import deque
from collections.abc import Callable, Iterator
from dataclasses import dataclass, replace
from types import TracebackType
from typing import Literal, Protocol

import numpy as np
from numpy.typing import NDArray

from pipeline.sources.clocks import LiveClock
from pipeline.sources.source import Source
from pipeline.sources.timeouts import DEFAULT_TIMEOUTS, Backoff, Timeouts
from pipeline.types import Frame, SourceInfo, State, UnreadableFrame

CONNECTING, LIVE, STALLED, LOST = "connecting", "live", "stalled", "lost"

MAX_QUEUED_FRAMES = 8
"""Largest number of frames that wait for the iteration; if there are more, the oldest are dropped."""

REPLACED_BY_NEWER = "newer frames came before it was taken"

HANG_GRACE_S = 2.0
"""A worker that is silent for this much longer than its own timeouts is abandoned, s."""

MAX_HUNG_WORKERS = 3
"""Largest number of hanging workers: no further one is started until one of them ends."""

MAX_LAG_S = 1.0
"""A paced stream that is later than this does not catch up but continues from there, s."""


class ConnectionLost(Exception):  # noqa: N818  # a signal: the connection is tried again
    """A camera cannot be opened, or its connection broke; the message is the cause in one sentence, and what to do."""


class StreamEnded(Exception):  # noqa: N818  # a signal
    """A recording that plays as a camera has ended."""


@dataclass(frozen=True)
class Picture:
    """A picture from a connection.

    Attributes:
        image: BGR uint8 [H, W, 3], upright.
        stream_s: its time by the stream's own clock, s; None without a reliable one.
        taken_ns: when it was taken, or arrived, ns since 1970.
        clock: the clock of `taken_ns`.
        decode_ns: how long it took to decode, ns.
    """

    image: NDArray[np.uint8]
    stream_s: float | None
    taken_ns: int
    clock: Literal["kernel", "sender", "arrival"]
    decode_ns: int = 0


class Connection(Protocol):
    """An open camera.

    Attributes:
        paced: whether its pictures arrive in bursts and are delivered at the times of their stamps.
        description: size and codec, as text.
        frame_rate: nominal frames a second, or None if unknown.
    """

    paced: bool
    description: str
    frame_rate: float | None

    def __iter__(self) -> Iterator[Picture | str]:
        """The pictures; in place of one that cannot be read, the reason.

        Raises:
            ConnectionLost: the connection broke.
            StreamEnded: there will be no more pictures.
        """
        ...

    def abort(self) -> None:
        """End a read in progress, if that is possible from another thread."""
        ...

    def close(self) -> None:
        """Release its resources; called by the thread that reads."""
        ...


Connect = Callable[[Timeouts], Connection]
"""Opens a camera; raises ConnectionLost."""


class _Worker:
    """A thread that opens and reads a camera; records what it is doing, and since when."""

    def __init__(self, target: Callable[[_Worker], None], name: str) -> None:
        self.doing = "opening"  # or reading, waiting
        self.since = time.monotonic()
        self.connection: Connection | None = None
        self.retired = threading.Event()
        self.thread = threading.Thread(target=target, args=(self,), name=name, daemon=True)

    def does(self, what: str) -> None:
        """Record what it is doing now, or that it is still alive."""
        self.doing, self.since = what, time.monotonic()


class _Retired(Exception):  # noqa: N818  # a signal
    """The worker has been replaced, or the source is closed."""


class LiveSource(Source):
    """A camera: iterating gives its frames and its changes of state, until it is closed.

    The camera may be absent at the start, and may reconnect at any time with pictures of another size or codec. It is opened
    only when the iteration begins.
    """

    def __init__(
        self, source_id: str, connect: Connect, *, timeouts: Timeouts | None = None, notes: tuple[str, ...] = ()
    ) -> None:
        """`connect` opens the camera; `source_id` must not contain a password."""
        self.info = SourceInfo(source_id, True, None, None, None, None, notes)
        self._connect = connect
        self._timeouts = timeouts or DEFAULT_TIMEOUTS
        self._backoff = Backoff(self._timeouts)
        self._clock = LiveClock()
        self._changed = threading.Condition()
        self._items: deque[Frame | UnreadableFrame | State] = deque()
        self._waiting = self._arrived = self._given = 0  # frames: waiting, received so far, handed out so far
        self._state = ("", "")
        self._closed = self._ended = False
        self._error: Exception | None = None
        self._worker: _Worker | None = None
        self._hanging: list[_Worker] = []

    def __iter__(self) -> Iterator[Frame | UnreadableFrame | State]:
        """The source itself."""
        return self

    def __next__(self) -> Frame | UnreadableFrame | State:
        """The next frame, or the next state."""
        with self._changed:
            if self._worker is None and not self._closed:
                self._set_state(CONNECTING)
                self._start_worker()
            while not self._closed:
                if self._items:
                    return self._take()
                if self._error is not None:
                    error, self._error, self._ended = self._error, None, True
                    raise error
                if self._ended:
                    break
                pause_s = self._watch()
                if not self._items:
                    self._changed.wait(pause_s)
            raise StopIteration

    def close(self) -> None:
        """End the frames at once. A worker inside a library call ends when that call returns, at its timeout at the latest."""
        with self._changed:
            self._closed = True
            workers = [*self._hanging, *([self._worker] if self._worker else [])]
            self._changed.notify_all()
        for worker in workers:
            _retire(worker)

    def __enter__(self) -> Source:
        """The source itself."""
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None) -> None:
        """Close it."""
        self.close()

    # Called by the iterating thread, under the lock.

    def _take(self) -> Frame | UnreadableFrame | State:
        item = self._items[0]
        if not isinstance(item, State):
            self._given += 1
            if item.index >= self._given:  # the frames before it were dropped
                return UnreadableFrame(self.info.id, self._given - 1, REPLACED_BY_NEWER, given_up=True)
            self._waiting -= 1
        return self._items.popleft()

    def _watch(self) -> float:
        """Check for silence; returns the time until the next check, s."""
        worker, timeouts = self._worker, self._timeouts
        assert worker is not None
        if worker.doing == "waiting":
            return timeouts.stalled_s
        silent = time.monotonic() - worker.since
        reading = worker.doing == "reading"
        if reading and self._state[0] == LIVE and silent > timeouts.stalled_s:
            self._set_state(
                STALLED, f"connected, but no picture has come for {timeouts.stalled_s:g} s: check whether it is frozen"
            )
        limit = HANG_GRACE_S + (timeouts.read_s if reading else 2 * timeouts.open_s)
        if silent > limit:
            what = "reading" if reading else "opening"
            self._set_state(LOST, f"{what} it hangs, for longer than {limit:g} s: unplug it or start it again")
            self._hanging = [hanging for hanging in self._hanging if hanging.thread.is_alive()]
            if len(self._hanging) < MAX_HUNG_WORKERS:
                self._hanging.append(worker)
                _retire(worker)
                self._start_worker()
            return limit
        return max(0.01, (timeouts.stalled_s if reading and silent < timeouts.stalled_s else limit) - silent + 0.01)

    def _start_worker(self) -> None:
        self._worker = _Worker(self._work, f"{self.info.id}: camera")
        self._worker.thread.start()

    def _set_state(self, state: str, cause: str = "") -> None:
        if self._state != (state, cause):
            self._state = (state, cause)
            self._items.append(State.now(state, cause))
            self._changed.notify_all()

    # Called by the worker's thread.

    def _work(self, worker: _Worker) -> None:
        try:
            while True:
                lived_s = self._connect_once(worker)
                wait_s = self._backoff.after(lived_s)
                worker.does("waiting")
                if worker.retired.wait(wait_s):
                    return
                worker.does("opening")
        except _Retired:
            pass
        except StreamEnded:
            with self._changed:
                self._ended = True
                self._changed.notify_all()
        except Exception as error:  # noqa: BLE001  # a thread's top level: the iterating thread raises it
            with self._changed:
                if worker is self._worker:
                    self._error = error
                    self._changed.notify_all()

    def _connect_once(self, worker: _Worker) -> float:
        """Open the camera and read it until it is lost; returns how long it delivered pictures, s."""
        first: float | None = None
        try:
            connection = self._connect(self._timeouts)
            worker.connection = connection
            try:
                with self._changed:
                    self._check(worker)
                    self._clock.connect()
                worker.does("reading")
                pace = _Pace() if connection.paced else None
                for picture in connection:
                    now = time.monotonic()
                    first = first or now
                    if isinstance(picture, Picture):
                        if pace is not None and picture.stream_s is not None:
                            worker.does("waiting")
                            if worker.retired.wait(pace.until(picture.stream_s)):
                                raise _Retired
                            picture = replace(picture, taken_ns=time.time_ns())
                        self._give(worker, connection, picture)
                    else:
                        self._give_reason(worker, picture)
                    worker.does("reading")
            finally:
                worker.connection = None
                connection.close()
            raise ConnectionLost("the connection ended without a reason")
        except ConnectionLost as lost:
            with self._changed:
                self._check(worker)
                self._set_state(LOST, str(lost))
        return 0.0 if first is None else time.monotonic() - first

    def _check(self, worker: _Worker) -> None:
        if self._closed or worker.retired.is_set():
            raise _Retired

    def _give(self, worker: _Worker, connection: Connection, picture: Picture) -> None:
        height, width = picture.image.shape[:2]
        with self._changed:
            self._check(worker)
            time_s = self._clock.time_s(picture.stream_s, time.monotonic())
            now_ns = time.perf_counter_ns()
            decoded_ns = now_ns - picture.decode_ns, now_ns
            frame = Frame(picture.image, self.info.id, self._arrived, time_s, picture.taken_ns, picture.clock, decoded_ns)
            if self._state[0] != LIVE:
                self.info = replace(self.info, width=width, height=height, frame_rate=connection.frame_rate)
                self._set_state(LIVE, connection.description)
            self._put(frame)

    def _give_reason(self, worker: _Worker, reason: str) -> None:
        with self._changed:
            self._check(worker)
            self._put(UnreadableFrame(self.info.id, self._arrived, reason))

    def _put(self, item: Frame | UnreadableFrame) -> None:
        if self._waiting >= MAX_QUEUED_FRAMES:
            oldest = next(at for at, waiting in enumerate(self._items) if not isinstance(waiting, State))
            del self._items[oldest]
        else:
            self._waiting += 1
        self._arrived += 1
        self._items.append(item)
        self._changed.notify_all()


def _retire(worker: _Worker) -> None:
    worker.retired.set()
    connection = worker.connection
    if connection is not None:
        connection.abort()


class _Pace:
    """The times at which pictures that arrive in bursts are due."""

    def __init__(self) -> None:
        self._offset: float | None = None  # from the stream's clock to ours

    def until(self, stream_s: float) -> float:
        """How long to wait before a picture with this time stamp is delivered, s."""
        now = time.monotonic()
        if self._offset is None or stream_s + self._offset < now - MAX_LAG_S:
            self._offset = now - stream_s
        return max(0.0, stream_s + self._offset - now)
