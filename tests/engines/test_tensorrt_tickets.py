"""Batches that are submitted and collected separately: each ticket has its own, in any order, on a simulated GPU."""

import threading
from concurrent.futures import ThreadPoolExecutor

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from convnextpose.errors import GeometryError, RuntimeUnavailableError
from engines.batcher import Batcher
from tests.engines.test_tensorrt_session import CROPS, DEVICES, JOINTS, Bench, assert_is, give, take


@given(
    plan=st.lists(st.tuples(st.integers(0, 16), st.integers(1, 8), st.integers(0, 2)), min_size=1, max_size=8),
    binding=st.sampled_from(sorted(DEVICES)),
    seed=st.integers(0, 99),
)
def test_tickets_give_their_own_batch_in_whatever_order_they_are_collected(plan, binding, seed):
    bench, flying = Bench(binding, seed=seed), []
    with bench.open() as runtime:
        for first, count, choice in plan:
            if len(flying) == runtime.slots:
                take(runtime, *flying.pop(choice % len(flying)))
            crops = CROPS[first : first + count].copy()
            ticket = runtime.submit({"crops": crops})
            crops[:] = 0  # their owner may reuse them
            flying.append((ticket, first, count))
        while flying:
            take(runtime, *flying.pop())
    bench.check()


def test_a_batch_is_given_while_another_one_is_waited_for():
    """No lock is held during a wait: a thread that waits for the GPU blocks nobody."""
    bench = Bench()
    entered, gate = threading.Event(), threading.Event()
    with bench.open() as runtime:
        first = give(runtime, 0, 2)
        stream, synchronise = first.slot._stream, first.slot._stream.synchronize

        def held():
            entered.set()
            assert gate.wait(30)
            synchronise()

        stream.synchronize = held
        waiter = threading.Thread(target=take, args=(runtime, first, 0, 2))
        waiter.start()
        assert entered.wait(30)
        take(runtime, give(runtime, 3, 4), 3, 4)
        assert_is(runtime.run(CROPS[:9]), 0, 9)
        gate.set()
        waiter.join()
        stream.synchronize = synchronise
    bench.check()


def test_who_submits_more_than_there_are_slots_waits_for_one():
    bench = Bench()
    with bench.open() as runtime:
        tickets = [give(runtime, index, 1) for index in range(3)]
        fourth = []
        waiter = threading.Thread(target=lambda: fourth.append(give(runtime, 7, 1)))
        waiter.start()
        waiter.join(0.05)
        assert waiter.is_alive()
        take(runtime, tickets[1], 1, 1)
        waiter.join()
        for ticket, first in ((tickets[0], 0), (tickets[2], 2), (fourth[0], 7)):
            take(runtime, ticket, first, 1)
    bench.check()


def test_a_ticket_is_good_once_and_not_after_closing():
    bench = Bench()
    runtime = bench.open()
    ticket = give(runtime, 0, 1)
    take(runtime, ticket, 0, 1)
    with pytest.raises(RuntimeUnavailableError, match="expected a ticket that was not collected"):
        runtime.collect(ticket)
    with pytest.raises(GeometryError, match="expected at most 8 items in one batch, received 9"):
        give(runtime, 0, 9)
    left = give(runtime, 0, 1)
    runtime.close()
    with pytest.raises(RuntimeUnavailableError, match="closed"):
        runtime.collect(left)
    bench.check()


def test_many_callers_through_a_batcher_get_what_each_gets_alone():
    bench = Bench()
    runtime = bench.open()
    batcher = Batcher(runtime._session, 100)

    def work(index):
        for turn in range(8):
            count = 1 + (index * 3 + turn) % 12
            found = batcher.run({"crops": CROPS[index : index + count]})
            assert np.array_equal(found["joints"], JOINTS[index : index + count])

    with ThreadPoolExecutor(6) as pool:
        list(pool.map(work, range(6)))
    batcher.close()
    bench.check()
