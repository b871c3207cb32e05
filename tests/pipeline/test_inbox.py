"""Inboxes keep the order and lose only what they should; frames in flight stay within their limits."""

import threading

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from pipeline.inbox import Closed, Inbox, InFlight, LatestItems


def emptied(inbox):
    items = []
    while True:
        try:
            items.append(inbox.get())
        except Closed:
            return items


@given(st.lists(st.integers()), st.one_of(st.none(), st.integers(1, 5)))
def test_what_goes_in_comes_out_in_order_or_is_pushed_out(items, capacity):
    inbox = Inbox(capacity)
    pushed_out = [old for item in items if (old := inbox.put((item,))) is not None]
    inbox.close()
    left = emptied(inbox)
    assert pushed_out + left == [(item,) for item in items]
    assert capacity is None or len(left) <= capacity
    assert capacity is not None or not pushed_out


def test_a_receiver_gets_what_another_thread_sends():
    inbox, received = Inbox(), []
    receiver = threading.Thread(target=lambda: received.extend(emptied(inbox)))
    receiver.start()
    for number in range(1000):
        inbox.put(number)
    inbox.close()
    receiver.join(10)
    assert received == list(range(1000))


def test_a_closed_inbox_takes_nothing_and_an_aborted_one_gives_nothing():
    inbox = Inbox()
    inbox.put(1)
    inbox.close()
    with pytest.raises(Closed):
        inbox.put(2)
    inbox.abort()
    assert emptied(inbox) == []


def test_an_inbox_without_room_is_refused():
    with pytest.raises(ValueError, match="at least 1, received 0"):
        Inbox(0)


@settings(deadline=None)
@given(st.lists(st.integers(1, 120), min_size=1, max_size=40), st.integers(1, 5), st.integers(50, 200))
def test_what_is_in_flight_stays_in_its_bounds(sizes, max_frames, max_bytes):
    flight, inside = InFlight(max_frames, max_bytes), []
    for size in sizes:
        if inside and (len(inside) >= max_frames or sum(inside) + size > max_bytes):
            entered = threading.Event()
            waiter = threading.Thread(target=lambda size=size, e=entered: flight.wait_for_room(size, lambda: False) and e.set())
            waiter.start()
            assert not entered.wait(0.002), "there is no room yet"
            while inside and (len(inside) >= max_frames or sum(inside) + size > max_bytes):
                flight.leave(inside.pop())
            assert entered.wait(10), "now there is"
            waiter.join(10)
        assert flight.wait_for_room(size, lambda: False)
        flight.enter(size)
        inside.append(size)


def test_a_waiting_reader_is_told_to_stop():
    flight, stopped = InFlight(1, 10), threading.Event()
    flight.enter(5)
    answers = []
    reader = threading.Thread(target=lambda: answers.append(flight.wait_for_room(5, stopped.is_set)))
    reader.start()
    stopped.set()
    flight.wake()
    reader.join(10)
    assert answers == [False]


@given(st.lists(st.one_of(st.none(), st.sampled_from("abc"))))
def test_a_reader_of_a_board_gets_the_newest_of_each_sender_and_nothing_twice(actions):
    """A letter is a new item of that sender, None a read."""
    latest, seen, posted, unseen = LatestItems(), {}, {}, set()
    for action in actions:
        if action is None:
            read = latest.read(seen, 0.0)
            assert {sender: numbered.item for sender, numbered in read.items()} == {s: posted[s] for s in unseen}
            assert all(numbered.number == numbered.item for numbered in read.values())
            seen |= {sender: numbered.number for sender, numbered in read.items()}
            unseen.clear()
        else:
            posted[action] = posted.get(action, 0) + 1
            latest.put(action, posted[action])
            unseen.add(action)
    latest.close()
    latest.put("a", 0)
    for sender in unseen:
        assert latest.read({s: n for s, n in seen.items() if s == sender} | {s: posted[s] for s in posted if s != sender})
    with pytest.raises(Closed):
        latest.read(posted)


def test_readers_of_a_board_wait_for_a_post_and_each_gets_it():
    latest, got = LatestItems(), []
    readers = [threading.Thread(target=lambda: got.append(latest.read({})["a"].item)) for _ in range(5)]
    for reader in readers:
        reader.start()
    latest.put("a", 7)
    for reader in readers:
        reader.join(10)
    assert got == [7] * 5


def test_an_aborted_board_is_empty():
    latest = LatestItems()
    latest.put("a", 1)
    latest.abort()
    with pytest.raises(Closed):
        latest.read({})
