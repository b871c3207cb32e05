"""Laws of the bounded channel and the frame ledger, under real threads."""

import threading

import pytest
from hypothesis import given
from hypothesis import strategies as st

from pipeline.channels import Channel, Closed, DropPolicy
from pipeline.ledger import FrameLedger


def receive_all(channel, into):
    try:
        while True:
            into.append(channel.get())
    except Closed:
        pass


@given(st.lists(st.integers(), max_size=60), st.integers(1, 5))
def test_a_blocking_channel_loses_and_reorders_nothing(items, capacity):
    channel, received = Channel(capacity), []
    reader = threading.Thread(target=receive_all, args=(channel, received))
    reader.start()
    for item in items:
        assert channel.put(item) is None
    channel.close()
    reader.join(5)
    assert received == items


@given(st.lists(st.integers(), max_size=60), st.integers(1, 5))
def test_a_latest_channel_keeps_the_newest_and_names_what_it_dropped(items, capacity):
    channel, dropped, received = Channel(capacity, DropPolicy.LATEST), [], []
    for index, item in enumerate(items):
        gone = channel.put((index, item))
        if gone is not None:
            dropped.append(gone)
    channel.close()
    receive_all(channel, received)
    assert dropped + received == list(enumerate(items))
    assert len(received) == min(capacity, len(items))


@pytest.mark.parametrize("end", ["close", "abort"])
def test_ending_wakes_senders_and_receivers(end):
    full, empty = Channel(1), Channel(1)
    full.put(0)
    woken = []

    def send():
        with pytest.raises(Closed):
            full.put(1)
        woken.append("sender")

    def receive():
        with pytest.raises(Closed):
            empty.get()
        woken.append("receiver")

    threads = [threading.Thread(target=f) for f in (send, receive)]
    for thread in threads:
        thread.start()
    for channel in (full, empty):
        getattr(channel, end)()
        getattr(channel, end)()
    for thread in threads:
        thread.join(5)
    assert sorted(woken) == ["receiver", "sender"]
    left = []
    receive_all(full, left)
    assert left == ([0] if end == "close" else [])


def test_a_channel_needs_room():
    with pytest.raises(ValueError, match="at least 1"):
        Channel(0)


@given(st.lists(st.sampled_from(["process", "drop", "fail", "leave"]), max_size=40))
def test_every_captured_frame_is_accounted_for(fates):
    ledger = FrameLedger()
    for index, fate in enumerate(fates):
        ledger.capture(index)
        if fate == "fail":
            ledger.fail(index, "a reason")
        elif fate != "leave":
            getattr(ledger, fate)(index)
    counts = ledger.counts()
    assert counts.in_flight == fates.count("leave")
    ledger.fail_rest("stopped")
    counts = ledger.counts()
    assert counts.captured == counts.processed + counts.dropped + counts.failed == len(fates)
    assert counts.in_flight == 0
    assert dict(counts.reasons).get("a reason", 0) == fates.count("fail")


def test_a_frame_ends_once():
    ledger = FrameLedger()
    ledger.capture(3)
    with pytest.raises(ValueError, match="captured twice"):
        ledger.capture(3)
    ledger.process(3)
    for end in (ledger.process, ledger.drop, lambda i: ledger.fail(i, "why")):
        with pytest.raises(ValueError, match="ended twice"):
            end(3)
