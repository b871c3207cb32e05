"""Callers that share a session get the results that each would get alone, in fair turns, and nobody waits for ever."""

from __future__ import annotations

import threading
from collections import Counter

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from convnextpose.errors import GeometryError, ModelError, RuntimeUnavailableError
from engines.batcher import Batcher
from engines.pose import ModelInfo, PoseModel
from engines.session import ArraySpec, SessionDescription
from engines.sessions.base import LockedSession

LONG = 30.0
"""Seconds after which a thread that has not ended is considered to wait for ever."""

NUMBERS = (ArraySpec("x", "int64", (None,)), ArraySpec("rows", "float32", (None, 2)))
RESULTS = (ArraySpec("twice", "int64", (None,)), ArraySpec("sum", "float32", (None, 3)))


class BrokenError(Exception):
    """The error of the session below."""


class Numbers(LockedSession):
    """Computes with each item alone, records the items of each batch, and fails on some items."""

    def __init__(self, broken=frozenset(), gate=None, inputs=NUMBERS, outputs=RESULTS):
        super().__init__("numbers", inputs, outputs, SessionDescription("numpy", "1", "CPU", "exact", 1))
        self.broken, self.gate = broken, gate
        self.entered = threading.Event()
        self.batches = []

    def _infer(self, arrays, count):
        self.batches.append(arrays["x"].tolist())
        self.entered.set()
        if self.gate is not None:
            assert self.gate.wait(LONG)
        if set(self.batches[-1]) & self.broken:
            raise BrokenError(str(self.batches[-1]))
        sums = arrays["rows"].sum(axis=1, keepdims=True) + np.arange(3)
        return {"twice": 2 * arrays["x"], "sum": sums.astype(np.float32)}

    def _release(self):
        pass


class Ticketed(Numbers):
    """The same with tickets: submitting a batch returns at once; it is computed when somebody waits for it."""

    slots, limit = 3, 6

    def __init__(self, *arguments, **named):
        super().__init__(*arguments, **named)
        self.flying, self.most = set(), 0
        self.submitted, self.book = [], threading.Lock()

    def submit(self, arrays):
        assert len(arrays["x"]) <= self.limit
        ticket = {name: array.copy() for name, array in arrays.items()}
        with self.book:  # not the lock that is held while a batch is computed
            self._check_open()
            self.submitted.append(arrays["x"].tolist())
            self.flying.add(id(ticket))
            self.most = max(self.most, len(self.flying))
            assert self.most <= self.slots
        return ticket

    def collect(self, ticket):
        try:
            found = self.run(ticket)
        except Exception:
            self.flying.remove(id(ticket))
            raise
        self.flying.remove(id(ticket))  # if interrupted before this, it may be collected again
        return found


BOTH = pytest.mark.parametrize("kind", [Numbers, Ticketed])


def items(caller, count):
    """Arrays whose numbers identify the caller and the item."""
    x = 1000 * caller + np.arange(count)
    return {"x": x, "rows": np.stack([x, -x * 0.5], axis=1).astype(np.float32)}


def start(work, *arguments):
    """A thread, and the list that will contain what it returned or raised."""
    told = []

    def run():
        try:
            told.append(work(*arguments))
        except BaseException as error:  # noqa: BLE001
            told.append(error)

    thread = threading.Thread(target=run, daemon=True)
    thread.start()
    return thread, told


def finish(started):
    """What the threads returned or raised; all must end within LONG."""
    for thread, _ in started:
        thread.join(LONG)
        assert not thread.is_alive(), "a caller waits for ever"
    return [told for _, (told,) in started]


def waiting(batcher, count):
    """Wait until `count` requests wait in the batcher."""
    for _ in range(int(LONG * 1000)):
        with batcher._changed:
            if len(batcher._waiting) >= count:
                return
        threading.Event().wait(0.001)
    raise AssertionError("the callers did not come")


def assert_equal(found, expected):
    assert found.keys() == expected.keys()
    for name, array in expected.items():
        assert found[name].dtype == array.dtype
        np.testing.assert_array_equal(found[name], array)


def assert_fair(batches):
    """Neither of two waiting callers gets ahead by more than one item, in each batch for which both certainly waited."""
    shares = [Counter(x // 1000 for x in batch) for batch in batches]
    first = {caller: min(i for i, share in enumerate(shares) if caller in share) for share in shares for caller in share}
    last = {caller: max(i for i, share in enumerate(shares) if caller in share) for share in shares for caller in share}
    for one in first:
        for other in first:
            both = range(max(first[one], first[other]) + 1, min(last[one], last[other]))
            ahead = sum(shares[i][one] - shares[i][other] for i in both)
            assert abs(ahead) <= 1


@BOTH
@given(
    calls=st.lists(st.lists(st.integers(1, 12), min_size=1, max_size=4), min_size=1, max_size=6),
    max_batch=st.integers(1, 9),
    broken=st.sets(st.tuples(st.integers(0, 5), st.integers(0, 11)), max_size=3),
)
def test_each_caller_gets_what_it_gets_alone(kind, calls, max_batch, broken):
    """Threads that call repeatedly get the same results; nothing is lost or done twice; errors only if an item fails."""
    marked = frozenset(1000 * caller + item for caller, item in broken)
    alone = Numbers()
    session = kind(marked)
    batcher = Batcher(session, max_batch)

    def work(caller, counts):
        found = []
        for count in counts:
            try:
                found.append(batcher.run(items(caller, count)))
            except BrokenError as error:
                found.append(error)
        return found

    found = finish([start(work, caller, counts) for caller, counts in enumerate(calls)])
    failed = [batch for batch in session.batches if set(batch) & marked]
    for caller, (counts, results) in enumerate(zip(calls, found, strict=True)):
        for count, result in zip(counts, results, strict=True):
            own = set(items(caller, count)["x"].tolist())
            if isinstance(result, BrokenError):
                assert any(own & set(batch) for batch in failed)
            else:
                assert not own & marked
                assert_equal(result, alone.run(items(caller, count)))
    assert all(len(batch) <= max_batch for batch in session.batches)
    if not marked:
        given_items = Counter(x for batch in session.batches for x in batch)
        asked = Counter(
            x for caller, counts in enumerate(calls) for count in counts for x in items(caller, count)["x"].tolist()
        )
        assert given_items == asked
    assert not batcher._requests and not batcher._waiting and not batcher._flights
    assert kind is Numbers or not session.flying


@given(st.lists(st.integers(1, 40), min_size=2, max_size=7), st.integers(1, 8))
def test_callers_that_wait_together_advance_together(counts, max_batch):
    gate = threading.Event()
    session = Numbers(gate=gate)
    batcher = Batcher(session, max_batch)
    started = [start(batcher.run, items(99, 1))]
    assert session.entered.wait(LONG)
    for caller, count in enumerate(counts):  # one after the other, for a known order
        started.append(start(batcher.run, items(caller, count)))
        waiting(batcher, caller + 1)
    gate.set()
    finish(started)
    batches = session.batches[1:]
    assert_fair(batches)
    # They all waited from the first batch on: a caller with many items cannot delay one with few.
    for caller, count in enumerate(counts):
        before = sum(min(other, count) for other in counts)
        done = next(
            index for index in range(len(batches)) if sum(x // 1000 == caller for b in batches[: index + 1] for x in b) == count
        )
        assert done < -(-before // max_batch)
    assert [len(batch) for batch in batches[:-1]] == [max_batch] * (len(batches) - 1)  # batches are full


def test_a_hundred_crops_do_not_starve_one():
    gate = threading.Event()
    session = Numbers(gate=gate)
    batcher = Batcher(session, 8)
    many = start(batcher.run, items(0, 100))
    assert session.entered.wait(LONG)
    one = start(batcher.run, items(1, 1))
    waiting(batcher, 2)
    gate.set()
    finish([many, one])
    assert 1000 in session.batches[1]


def test_a_caller_alone_does_not_wait_and_its_arrays_are_not_copied():
    class Same(Numbers):
        def _infer(self, arrays, count):
            self.seen = arrays["x"]
            return super()._infer(arrays, count)

    session, own = Same(), items(3, 5)
    threads = threading.active_count()
    assert_equal(Batcher(session, 8).run(own), Numbers().run(own))
    assert np.shares_memory(session.seen, own["x"])
    assert threading.active_count() == threads


def test_an_error_concerns_the_callers_of_its_batch_alone():
    gate = threading.Event()
    session = Numbers(broken={1003}, gate=gate)
    batcher = Batcher(session, 4)
    started = [start(batcher.run, items(9, 1))]
    assert session.entered.wait(LONG)
    for caller, count in ((1, 4), (2, 2), (3, 3)):
        started.append(start(batcher.run, items(caller, count)))
        waiting(batcher, caller)
    gate.set()
    first, broken, second, third = finish(started)
    # Turns: 1 2 3 1 | 2 3 1 3 | 1: the last item of caller 1 fails in a batch of its own.
    assert isinstance(broken, BrokenError)
    for caller, count, found in ((9, 1, first), (2, 2, second), (3, 3, third)):
        assert_equal(found, Numbers().run(items(caller, count)))
    assert_equal(batcher.run(items(4, 2)), Numbers().run(items(4, 2)))


def test_results_that_do_not_fit_are_an_error_and_not_a_wait():
    class Short(Numbers):
        def _infer(self, arrays, count):
            return {name: array[:-1] for name, array in super()._infer(arrays, count).items()}

    gate = threading.Event()
    session = Short(gate=gate)
    batcher = Batcher(session, 8)
    started = [start(batcher.run, items(caller, 9)) for caller in range(3)]
    gate.set()
    assert all(isinstance(told, ValueError) for told in finish(started))


@BOTH
@pytest.mark.parametrize("count", [1, 3, 9])
def test_an_interrupted_caller_takes_nobody_with_it(kind, count):
    class Interrupted(kind):
        interrupts = True

        def _infer(self, arrays, count):
            found = super()._infer(arrays, count)
            if self.interrupts and len(self.batches) == 2:
                self.interrupts = False
                raise KeyboardInterrupt
            return found

    gate = threading.Event()
    session = Interrupted(gate=gate)
    batcher = Batcher(session, 4)
    started = [start(batcher.run, items(9, 1))]
    assert session.entered.wait(LONG)
    for caller in range(3):
        started.append(start(batcher.run, items(caller, count)))
        if kind is Numbers:
            waiting(batcher, caller + 1)
    gate.set()
    told = finish(started)
    assert sum(isinstance(result, KeyboardInterrupt) for result in told) == 1
    for caller, result in zip((9, 0, 1, 2), told, strict=True):
        if not isinstance(result, KeyboardInterrupt):
            assert_equal(result, Numbers().run(items(caller, 1 if caller == 9 else count)))


def test_closing_wakes_who_waits_and_keeps_what_is_in_flight():
    gate = threading.Event()
    session = Numbers(gate=gate)
    batcher = Batcher(session, 4)
    whole = start(batcher.run, items(0, 4))
    assert session.entered.wait(LONG)
    others = [start(batcher.run, items(caller, 2)) for caller in (1, 2, 3)]
    waiting(batcher, 3)
    closer = start(batcher.close)
    for told in finish(others):  # before the batch in flight has ended
        assert isinstance(told, RuntimeUnavailableError)
        assert "closed" in str(told)
    gate.set()
    found, nothing = finish([whole, closer])
    assert_equal(found, Numbers().run(items(0, 4)))
    assert nothing is None
    batcher.close()
    with pytest.raises(RuntimeUnavailableError, match="closed"):
        batcher.run(items(0, 1))
    with pytest.raises(RuntimeUnavailableError, match="closed"):
        session.run(items(0, 1))


@BOTH
@given(counts=st.lists(st.integers(1, 20), min_size=1, max_size=6), max_batch=st.integers(1, 5), closed_after=st.integers(1, 6))
def test_whenever_it_is_closed_everybody_comes_back(kind, counts, max_batch, closed_after):
    class Closes(kind):
        def _infer(self, arrays, count):
            if len(self.batches) == closed_after:
                closers.append(start(batcher.close))
            return super()._infer(arrays, count)

    closers = []
    batcher = Batcher(Closes(), max_batch)

    def work(caller, count):
        try:
            return batcher.run(items(caller, count))
        except RuntimeUnavailableError as error:
            return error

    for caller, result in enumerate(finish([start(work, caller, count) for caller, count in enumerate(counts)])):
        if not isinstance(result, RuntimeUnavailableError):
            assert_equal(result, Numbers().run(items(caller, counts[caller])))
    finish(closers)


def test_with_tickets_one_batch_is_filled_while_another_runs():
    gate = threading.Event()
    session = Ticketed(gate=gate)
    batcher = Batcher(session, 4)
    started = [start(batcher.run, items(caller, 4)) for caller in range(2)]
    for _ in range(int(LONG * 1000)):
        if len(session.submitted) == 2:
            break
        threading.Event().wait(0.001)
    assert len(session.submitted) == 2  # although the first has not ended
    assert len(session.batches) <= 2
    gate.set()
    for caller, found in enumerate(finish(started)):
        assert_equal(found, Numbers().run(items(caller, 4)))


def test_with_tickets_a_caller_alone_overlaps_its_own_batches_within_the_slots_and_the_limit():
    session = Ticketed()
    assert_equal(Batcher(session, 100).run(items(1, 40)), Numbers().run(items(1, 40)))
    assert session.most == session.slots
    assert [len(batch) for batch in session.submitted] == [6, 6, 6, 6, 6, 6, 4]


def test_closing_with_tickets_keeps_what_is_in_flight():
    gate = threading.Event()
    session = Ticketed(gate=gate)
    batcher = Batcher(session, 4)
    first = start(batcher.run, items(0, 4))
    assert session.entered.wait(LONG)
    many = start(batcher.run, items(1, 100))
    for _ in range(int(LONG * 1000)):
        if len(session.submitted) == session.slots:
            break
        threading.Event().wait(0.001)
    closer = start(batcher.close)
    for _ in range(int(LONG * 1000)):
        if not batcher._open:
            break
        threading.Event().wait(0.001)
    gate.set()
    found, refused, nothing = finish([first, many, closer])
    assert isinstance(refused, RuntimeUnavailableError)
    assert not session.flying
    assert_equal(found, Numbers().run(items(0, 4)))
    assert nothing is None


def test_wrong_arrays_are_their_caller_s_own_affair():
    batcher = Batcher(Numbers(), 4)
    right = items(0, 2)
    for wrong in ({}, {"x": right["x"]}, {**right, "more": right["x"]}, {**right, "x": right["x"][:1]}):
        with pytest.raises(GeometryError, match="expected"):
            batcher.run(wrong)
    with pytest.raises(GeometryError, match=r"expected rows float32 \[N, 2\], received float64 \[2, 2\]"):
        batcher.run({**right, "rows": right["rows"].astype(np.float64)})
    with pytest.raises(GeometryError, match="one item or more"):
        batcher.run(items(0, 0))
    assert_equal(batcher.run(right), Numbers().run(right))


@pytest.mark.parametrize(
    ("inputs", "outputs", "max_batch"),
    [
        (NUMBERS, RESULTS, 0),
        ((ArraySpec("x", "int64", (4,)),), RESULTS, 2),
        ((ArraySpec("x", "int64", (None, None)),), RESULTS, 2),
        (NUMBERS, (ArraySpec("sum", "float32", (3,)),), 2),
        (NUMBERS, (ArraySpec("sum", "float32", ()),), 2),
    ],
)
def test_a_network_without_a_batch_is_refused(inputs, outputs, max_batch):
    with pytest.raises(ModelError, match="expected"):
        Batcher(Numbers(inputs=inputs, outputs=outputs), max_batch)


def test_a_pose_model_over_it_is_the_pose_model(onnx_bytes, crops):
    from engines.opening import open_pose_model

    with open_pose_model(onnx_bytes, threads=1) as alone, open_pose_model(onnx_bytes, threads=1, max_batch=4) as shared:
        assert (shared.info, shared.describe()) == (alone.info, alone.describe())
        assert isinstance(shared.info, ModelInfo) and isinstance(shared, PoseModel)
        found = finish([start(shared.run, crops[: 1 + caller]) for caller in range(5)])
        for caller, predictions in enumerate(found):
            expected = alone.run(crops[: 1 + caller])
            np.testing.assert_allclose(predictions.joints, expected.joints, rtol=0, atol=1e-2)
            np.testing.assert_allclose(predictions.scores, expected.scores, rtol=0, atol=1e-5)
