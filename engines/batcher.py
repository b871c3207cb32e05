"""Many callers, one session: what they ask for at the same time runs in shared batches.

It has no thread of its own and no timer. The caller that finds the session free leads: it takes what waits, up to the largest
batch, runs it, and hands each caller its part; once its own request is done, another caller leads. So a caller alone never
waits, and the busier the session is, the fuller are its batches.
"""

from __future__ import annotations

import threading
from collections import deque
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

import numpy as np
from numpy.typing import NDArray

from convnextpose.errors import ModelError, RuntimeUnavailableError
from engines.session import Arrays, ArraySpec, Session, SessionDescription, check_arrays


@dataclass(eq=False)
class _Request:
    """What a caller asks for.

    Attributes:
        arrays: its inputs.
        count: how many items they have.
        given: how many of them have been given to the session, from the first on.
        done: how many of them have results.
        results: the outputs so far.
        error: why there will be no results.
    """

    arrays: Mapping[str, NDArray[Any]]
    count: int
    given: int = 0
    done: int = 0
    results: Arrays = field(default_factory=dict)
    error: Exception | None = None

    @property
    def settled(self) -> bool:
        """Whether its caller may go."""
        return self.error is not None or self.done == self.count


@dataclass(frozen=True)
class _Share:
    """The items of a request, `begin` to `end`, that are in a batch."""

    request: _Request
    begin: int
    end: int


class Batcher:
    """A `Session` in front of another one, which it closes, for any number of threads that call it at the same time.

    Batches are shared out item by item, to one caller after the other: while two callers wait, neither gets ahead of the other
    by more than one item. If running a batch fails, the callers that have items in it get the error, and no others.

    Args:
        session: runs the network.
        max_batch: the most items in a batch; one or more.

    Raises:
        ModelError: the network does not take any number of items along axis 0, or something else in its shapes is free.
    """

    def __init__(self, session: Session, max_batch: int) -> None:
        if max_batch < 1:
            raise ModelError(f"expected a largest batch of 1 or more, received {max_batch}")
        if wrong := _unfit(session):
            raise ModelError(f"expected a network in which the batch alone is free, received one with {wrong[0]}")
        self._session = session
        self._max_batch = max_batch
        self._changed = threading.Condition()
        self._requests: list[_Request] = []
        """Those whose callers have not left."""
        self._waiting: deque[_Request] = deque()
        """Those with items that have not been given to the session, in the order of their turns."""
        self._leader: _Request | None = None
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

    def run(self, arrays: Mapping[str, NDArray[Any]]) -> Arrays:
        """The outputs by name, as the session's `run`. Returns once the last of them is there.

        Raises:
            GeometryError: the arrays are not those of `inputs`.
            ModelError: the library failed at running a batch with items of this caller.
            RuntimeUnavailableError: the batcher is closed.
        """
        request = _Request(arrays, check_arrays(arrays, self.inputs))
        try:
            with self._changed:
                if not self._open:
                    raise _closed()
                self._requests.append(request)
                self._waiting.append(request)
            while self._leads(request):
                self._run_batch()
        finally:
            self._leave(request)
        if request.error is not None:
            raise request.error
        return request.results

    def close(self) -> None:
        """Close the session, once a batch in progress has ended; who waits gets an error. Calling it again does nothing."""
        with self._changed:
            self._open = False
            self._refuse_waiting()
            self._changed.notify_all()
        self._session.close()

    def _leads(self, request: _Request) -> bool:
        """Wait until a request is settled, or nobody leads: then its caller does, which is told by True."""
        with self._changed:
            self._changed.wait_for(lambda: request.settled or self._leader in (None, request))
            if request.settled:
                return False
            self._leader = request
            return True

    def _run_batch(self) -> None:
        """Run the next batch; what it gives, results or an error, is its requests'."""
        with self._changed:
            batch = self._take()
        try:
            outputs = self._infer(batch)
            with self._changed:
                self._hand_out(batch, outputs)
        except Exception as error:  # noqa: BLE001 - whatever it is, those who wait for this batch must hear of it
            with self._changed:
                self._fail(batch, error)

    def _take(self) -> list[_Share]:
        """The next batch: one item of each request in turn, until the batch is full or nothing waits."""
        shares: dict[_Request, int] = {}
        room = self._max_batch
        while room and self._waiting:
            request = self._waiting.popleft()
            shares[request] = shares.get(request, 0) + 1
            room -= 1
            if request.given + shares[request] < request.count:
                self._waiting.append(request)
        batch = []
        for request, count in shares.items():
            batch.append(_Share(request, request.given, request.given + count))
            request.given += count
        return batch

    def _infer(self, batch: list[_Share]) -> Arrays:
        arrays = {}
        for spec in self.inputs:
            parts = [share.request.arrays[spec.name][share.begin : share.end] for share in batch]
            arrays[spec.name] = parts[0] if len(parts) == 1 else np.concatenate(parts)
        return self._session.run(arrays)

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
        self._changed.notify_all()

    def _fail(self, batch: list[_Share], error: Exception) -> None:
        for share in batch:
            share.request.error = error
            if share.request in self._waiting:
                self._waiting.remove(share.request)
        self._changed.notify_all()

    def _leave(self, request: _Request) -> None:
        """Forget a request whose caller goes. One that is interrupted while it leads takes no other with it."""
        with self._changed:
            if request in self._requests:
                self._requests.remove(request)
            if self._leader is request:
                self._leader = None
                if not request.settled:  # the batch that it ran is lost: its items are given again
                    self._waiting = deque(other for other in self._requests if not other.settled)
                    for other in self._waiting:
                        other.given = other.done
                    if not self._open:
                        self._refuse_waiting()
            if request in self._waiting:
                self._waiting.remove(request)
            self._changed.notify_all()

    def _refuse_waiting(self) -> None:
        for request in self._waiting:
            request.error = _closed()
        self._waiting.clear()


def can_batch(session: Session) -> bool:
    """Whether a network takes any number of items of one shape, so that a `Batcher` may stand in front of it."""
    return not _unfit(session)


def _unfit(session: Session) -> list[ArraySpec]:
    return [
        spec
        for spec in (*session.inputs, *session.outputs)
        if spec.shape[:1] != (None,) or (spec in session.inputs and None in spec.shape[1:])
    ]


def _closed() -> RuntimeUnavailableError:
    return RuntimeUnavailableError("the session is closed; open it again to run it")
