"""Many callers share one session: requests that arrive at the same time run in shared batches.

It has no thread and no timer. The caller that finds the session free takes all waiting requests, up to the largest batch, and
gives them to the session. One of the callers with items in that batch waits for it and hands each caller its part. So a single
caller never waits, and the busier the session is, the fuller its batches are. A `TicketSession` has several batches in flight:
one is filled while another runs.
"""

from __future__ import annotations

import threading
from collections import deque
from collections.abc import Mapping
from contextlib import AbstractContextManager
from dataclasses import dataclass, field
from typing import Any

import numpy as np
from numpy.typing import NDArray

from convnextpose.errors import ModelError, RuntimeUnavailableError
from engines.session import (
    Arrays,
    ArraySpec,
    FrameSession,
    HeldFrame,
    Session,
    SessionDescription,
    TicketSession,
    check_given,
)


@dataclass(eq=False)
class _Request:
    """A caller's request.

    Attributes:
        arrays: its inputs.
        count: number of items in them.
        given: number of items that are in batches, from the first on.
        done: number of items that have results.
        results: the outputs so far.
        error: the reason why there will be no results.
        roused: wakes its caller, which waits on it while `asleep`.
    """

    arrays: Mapping[str, NDArray[Any]]
    count: int
    roused: threading.Condition
    asleep: bool = False
    given: int = 0
    done: int = 0
    results: Arrays = field(default_factory=dict)
    error: Exception | None = None

    @property
    def settled(self) -> bool:
        """Whether its caller can return: all results are there, or an error."""
        return self.error is not None or self.done == self.count


@dataclass(frozen=True)
class _Share:
    """The items of a request, `begin` to `end`, that are in a batch."""

    request: _Request
    begin: int
    end: int


@dataclass(eq=False)
class _Flight:
    """A batch in flight.

    Attributes:
        shares: the requests' items in it, in order.
        taken: whether a caller is working on it.
        ticket: the session's ticket; None before the batch is submitted, or if the session has no tickets.
    """

    shares: list[_Share]
    taken: bool = True
    ticket: Any = None


class Batcher:
    """A `Session` in front of another one, which it closes, for any number of threads that call it at the same time.

    Batches are filled item by item, one caller after the other: while two callers wait, neither gets ahead of the other by more
    than one item. If a batch fails, only the callers with items in it get the error.

    Args:
        session: runs the network.
        max_batch: largest number of items in a batch, at least one. A `TicketSession` may have a smaller limit.

    Raises:
        ModelError: the network has a fixed batch size (axis 0), or another axis has a variable length.
    """

    def __init__(self, session: Session, max_batch: int) -> None:
        if max_batch < 1:
            raise ModelError(f"expected a largest batch of 1 or more, received {max_batch}")
        if wrong := _unfit(session):
            raise ModelError(f"expected a network in which only the batch varies, received one with {wrong[0]}")
        self._session = session
        self._tickets = session if isinstance(session, TicketSession) else None
        self._makes_crops = session if isinstance(session, FrameSession) else None
        self._most_flights = self._tickets.slots if self._tickets else 1
        self._max_batch = min(max_batch, self._tickets.limit) if self._tickets else max_batch
        self._lock = threading.RLock()
        self._changed = threading.Condition(self._lock)
        """For `close`; each caller has its own condition, so that only callers with something to do are woken."""
        self._requests: list[_Request] = []
        """Requests whose callers have not left."""
        self._waiting: deque[_Request] = deque()
        """Requests with items that are in no batch yet, in the order of their turns."""
        self._flights: list[_Flight] = []
        """Batches in flight, the oldest first."""
        self._open = True

    @property
    def inputs(self) -> tuple[ArraySpec, ...]:
        """The session's."""
        return self._session.inputs

    @property
    def outputs(self) -> tuple[ArraySpec, ...]:
        """The session's."""
        return self._session.outputs

    def describe(self) -> SessionDescription:
        """What runs the network."""
        return self._session.describe()

    @property
    def takes_frames(self) -> bool:
        """Whether the session makes crops itself."""
        return self._makes_crops is not None and self._makes_crops.takes_frames

    def hold(self, picture: Any) -> AbstractContextManager[HeldFrame]:  # noqa: ANN401
        """Hold a frame on the session's GPU, as the session's `hold` does."""
        assert self._makes_crops is not None
        return self._makes_crops.hold(picture)

    def run(self, arrays: Mapping[str, NDArray[Any]]) -> Arrays:
        """The outputs by name, as from the session's `run`. Returns when all of them are there.

        Raises:
            GeometryError: the arrays are not those of `inputs`.
            ModelError: the library could not run a batch with items of this caller.
            RuntimeUnavailableError: the batcher is closed.
        """
        request = _Request(arrays, check_given(arrays, self._session), threading.Condition(self._lock))
        try:
            with self._lock:
                if not self._open:
                    raise _closed()
                self._requests.append(request)
                self._waiting.append(request)
            while (flight := self._next(request)) is not None:
                self._advance(flight)
        finally:
            self._leave(request)
        if request.error is not None:
            raise request.error
        return request.results

    def close(self) -> None:
        """Close the session when running batches have ended; waiting callers get an error. Calling it again does nothing."""
        with self._changed:
            self._open = False
            for request in self._waiting:
                request.error = _closed()
            self._waiting.clear()
            self._wake_waiting()
            self._changed.wait_for(lambda: not any(map(self._is_wanted, self._flights)))
        self._session.close()

    def _next(self, request: _Request) -> _Flight | None:
        """Wait until a request's caller has something to do; the batch to do it for, or None when the caller may return."""
        with self._lock:
            while True:
                if found := self._job(request):
                    self._wake_waiting()  # there may be room for another batch
                    return found
                if request.settled:
                    return None
                request.asleep = True
                try:
                    request.roused.wait()
                finally:
                    request.asleep = False

    def _job(self, request: _Request) -> _Flight | None:
        """A new batch if the session has room and requests wait; else one with items of the request, or an abandoned one.

        A failed request leaves no batch behind in which only it has items: such a batch would occupy a slot.
        """
        if self._has_room() and not request.settled:
            flight = _Flight(self._take())
            self._flights.append(flight)
            return flight
        for flight in self._flights:
            if not flight.taken and self._may_advance(request, flight):
                flight.taken = True
                return flight
        return None

    def _has_room(self) -> bool:
        """Whether a new batch can be made."""
        return bool(self._waiting) and len(self._flights) < self._most_flights

    def _may_advance(self, request: _Request, flight: _Flight) -> bool:
        """Whether the request's caller may advance a batch: it has items in it, or nobody waits for the batch any more."""
        if not request.settled and any(share.request is request for share in flight.shares):
            return True
        return not any(share.request in self._requests and not share.request.settled for share in flight.shares)

    def _wake_waiting(self) -> None:
        """Wake the callers that have something to do; if several could do the same thing, only one. Called under the lock."""
        for request in self._requests:
            if request.settled:
                self._wake(request)
        if self._has_room():
            self._wake(next((request for request in self._waiting if request.asleep), None))
        for flight in self._flights:
            if not flight.taken:
                able = (request for request in self._requests if request.asleep and self._may_advance(request, flight))
                self._wake(next(able, None))
        self._changed.notify_all()

    def _wake(self, request: _Request | None) -> None:
        if request is not None and request.asleep:
            request.asleep = False
            request.roused.notify()

    def _is_wanted(self, flight: _Flight) -> bool:
        """Whether a caller waits for a batch: all callers with items in it may have been interrupted."""
        return any(share.request in self._requests for share in flight.shares)

    def _advance(self, flight: _Flight) -> None:
        """Submit a batch, or wait for it if it is submitted, and pass its results or its error to its requests."""
        try:
            if self._tickets is not None and flight.ticket is None:
                flight.ticket = self._tickets.submit(self._gather(flight))
                with self._lock:
                    flight.taken = False
                    self._wake_waiting()
                return
            outputs = self._session.run(self._gather(flight)) if self._tickets is None else self._tickets.collect(flight.ticket)
            with self._lock:
                self._hand_out(flight.shares, outputs)
                self._flights.remove(flight)
                self._wake_waiting()
        except Exception as error:  # noqa: BLE001 - whatever it is, those who wait for this batch must hear of it
            with self._lock:
                self._fail(flight.shares, error)
                self._flights.remove(flight)
                self._wake_waiting()
        except BaseException:
            with self._lock:  # its caller was interrupted: another one takes over
                flight.taken = False
                self._wake_waiting()
            raise

    def _take(self) -> list[_Share]:
        """The next batch: one item of each request in turn, until the batch is full or nothing waits.

        A batch has either crops or their origins, as the first request has; requests of the other kind wait for the next one.
        """
        shares: dict[_Request, int] = {}
        room, kind = self._max_batch, self._waiting[0].arrays.keys()
        others = [request for request in self._waiting if request.arrays.keys() != kind]
        waiting = deque(request for request in self._waiting if request.arrays.keys() == kind)
        while room and waiting:
            request = waiting.popleft()
            shares[request] = shares.get(request, 0) + 1
            room -= 1
            if request.given + shares[request] < request.count:
                waiting.append(request)
        self._waiting = deque([*others, *waiting])
        batch = []
        for request, count in shares.items():
            batch.append(_Share(request, request.given, request.given + count))
            request.given += count
        return batch

    def _gather(self, flight: _Flight) -> Arrays:
        arrays = {}
        for name in flight.shares[0].request.arrays:
            parts = [share.request.arrays[name][share.begin : share.end] for share in flight.shares]
            arrays[name] = parts[0] if len(parts) == 1 else np.concatenate(parts)
        return arrays

    def _hand_out(self, batch: list[_Share], outputs: Arrays) -> None:
        begin = 0
        for share in batch:
            request, count = share.request, share.end - share.begin
            if len(batch) == 1 and count == request.count:
                request.results = outputs
            else:
                for name, values in outputs.items():
                    if name not in request.results:
                        request.results[name] = np.empty((request.count, *values.shape[1:]), values.dtype)
                    request.results[name][share.begin : share.end] = values[begin : begin + count]
            request.done += count
            begin += count

    def _fail(self, batch: list[_Share], error: Exception) -> None:
        for share in batch:
            share.request.error = error
            if share.request in self._waiting:
                self._waiting.remove(share.request)

    def _leave(self, request: _Request) -> None:
        """Forget a request whose caller leaves."""
        with self._lock:
            if request in self._requests:
                self._requests.remove(request)
            if request in self._waiting:
                self._waiting.remove(request)
            self._wake_waiting()


def can_batch(session: Session) -> bool:
    """Whether a network accepts any number of items of one shape, so that it can be used with a `Batcher`."""
    return not _unfit(session)


def _unfit(session: Session) -> list[ArraySpec]:
    return [
        spec
        for spec in (*session.inputs, *session.outputs)
        if spec.shape[:1] != (None,) or (spec in session.inputs and None in spec.shape[1:])
    ]


def _closed() -> RuntimeUnavailableError:
    return RuntimeUnavailableError("the session is closed; open it again to run it")
