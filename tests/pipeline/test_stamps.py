"""Laws of the times of pictures: they increase, they are the stamps if those are possible, and invented times overtake none."""

import itertools
from fractions import Fraction

import numpy as np
from hypothesis import assume, given
from hypothesis import strategies as st

from pipeline.sources.stamps import PresentationClock

STEP, SECOND = Fraction(40), Fraction(1000)
STAMPS = st.none() | st.integers(-50_000, 200_000)
AHEAD = 32


def times_of(stamps, *, packets=None, bidirectional=None):
    """The times of pictures whose packets are known up to AHEAD pictures in advance."""
    clock = PresentationClock(STEP, SECOND)
    packets = list(stamps if packets is None else packets)
    times = []
    for index, stamp in enumerate(stamps):
        while packets and len(packets) > len(stamps) - index - AHEAD:
            announced = packets.pop(0)
            if announced is not None:
                clock.announce(announced)
        shown_early = bidirectional is not None and bidirectional[index]
        times.append(clock.show(stamp, key=index == 0, bidirectional=shown_early))
    return times


@given(st.lists(STAMPS, max_size=60), st.lists(st.booleans(), min_size=60, max_size=60))
def test_times_grow_whatever_the_stamps_are(stamps, bidirectional):
    times = times_of(stamps, bidirectional=bidirectional)
    assert all(earlier < later for earlier, later in itertools.pairwise(times))


@given(st.lists(st.integers(1, 5000), min_size=1, max_size=60), st.data())
def test_true_stamps_are_kept_and_missing_ones_lie_between_them(gaps, data):
    """Even if every other stamp is missing or duplicated."""
    truth = [int(t) for t in np.cumsum(gaps)]
    wrong = data.draw(st.lists(st.sampled_from(["", "", "missing", "doubled"]), min_size=len(truth), max_size=len(truth)))
    stamps: list[int | None] = []
    for stamp, how in zip(truth, wrong, strict=True):
        doubled = next((earlier for earlier in reversed(stamps) if earlier is not None), None)
        stamps.append(None if how == "missing" else doubled if how == "doubled" else stamp)
    times = times_of(stamps)
    seen = set()
    for stamp, time in zip(stamps, times, strict=True):
        if stamp is not None and stamp not in seen:
            assert time == stamp
            seen.add(stamp)
    assert all(earlier < later for earlier, later in itertools.pairwise(times))


@given(st.lists(st.integers(1, 900), min_size=2, max_size=40), st.integers(1, 4))
def test_stamps_in_the_order_of_decoding_are_put_in_order(gaps, between):
    """Groups of B-frames after the picture that they need, with stamps that number the packets."""
    times = [int(t) for t in np.cumsum(gaps)]
    decoded = [0]
    while decoded[-1] + 1 < len(times) or len(decoded) < len(times):
        first = max(decoded) + 1
        last = min(first + between, len(times) - 1)
        decoded += [last, *range(first, last)]
        if last == len(times) - 1:
            break
    assume(sorted(decoded) == list(range(len(times))))
    stamp_of = {shown: times[place] for place, shown in enumerate(decoded)}  # as in a container without presentation times
    early = [any(later > shown for later in decoded[: decoded.index(shown)]) for shown in range(len(times))]
    stamps = [stamp_of[shown] for shown in range(len(times))]
    assert times_of(stamps, packets=times, bidirectional=early) == times


@given(st.lists(st.lists(st.integers(1, 900), min_size=2, max_size=12), min_size=2, max_size=4))
def test_recordings_put_together_go_on_one_step_later(parts):
    """If a part is long enough to distinguish its beginning from a picture that is out of order."""
    stamps, truth, at = [], [], 0
    for gaps in parts:
        part = [int(t) for t in np.cumsum([0, *gaps])]
        part.append(part[-1] + 1000)
        truth += [at + stamp for stamp in part]
        at = truth[-1] + int(STEP)
        stamps += [5000 + stamp for stamp in part]
    assert times_of(stamps) == [5000 + t for t in truth]


def test_without_any_stamp_pictures_come_one_step_apart():
    assert np.allclose(np.diff([float(t) for t in times_of([None] * 5)]), 40)
