"""The tracker: identities that last at any frame rate, and the faults that other trackers had."""

import math
from collections import Counter
from random import Random

import numpy as np
import pytest
from hypothesis import example, given, settings
from hypothesis import strategies as st

from convnextpose.crop import Box
from convnextpose.skeleton import HUMAN36M
from pipeline.people import MIN_SCORE, PICTURE_MIN_SCORE
from pipeline.people.detection import SURE_DETECTION
from pipeline.people.schedule import FULL_INTERVAL_S
from pipeline.people.tracker import KEEP_FRACTION, UNSURE_S, PeopleTracker
from pipeline.types import TrackEventKind
from tests.cases import fast_first
from tests.pipeline.people.world import Walker, World, film, line, steady

RATES = (5, 30, 10, 120)

at_each_rate = pytest.mark.parametrize("rate", fast_first(RATES, fast=2))

few = settings(max_examples=settings().max_examples // 3)
"""A film takes longer than usual Hypothesis examples."""


def crossing():
    """Two people who walk past each other, one in front of the other, and a third who stands aside."""
    return World([
        Walker(line((200, 600), (150, 0))),
        Walker(line((1000, 560), (-130, 0))),
        Walker(line((640, 300), (4, 2)), height=180),
    ])  # fmt: skip


def kinds(result):
    return Counter(event.kind.value for event in result.events)


def check_laws(result):
    """Ids are unique within a frame, and contiguous from 0 in order of appearance; events agree with the frames."""
    appeared, known = [], set()
    for _, ids in result.frames:
        assert len(set(ids)) == len(ids), "nobody appears twice"
        appeared += sorted(set(ids) - known)
        known |= set(ids)
    assert appeared == list(range(len(appeared)))
    born = [event.track_id for event in result.events if event.kind is TrackEventKind.BORN]
    assert born == list(range(len(born))) and set(appeared) <= set(born)
    ended = set()
    for event in result.events:
        assert event.reason and "\n" not in event.reason
        if event.kind in (TrackEventKind.MERGED, TrackEventKind.CUT):
            ended.add(event.track_id)
        else:
            assert event.track_id not in ended


# Laws.

speeds = st.floats(-220, 220)
walkers = st.builds(
    lambda x, y, vx, vy, height: Walker(line((x, y), (vx, vy)), height=height),
    st.floats(60, 1220), st.floats(330, 700), speeds, st.floats(-20, 20), st.floats(150, 320),
)  # fmt: skip


@few
@given(st.lists(walkers, min_size=1, max_size=5), st.lists(st.floats(0.01, 0.3), min_size=5, max_size=30))
def test_ids_are_unique_contiguous_and_never_used_again(people, gaps):
    world = World(people)
    check_laws(film(world, np.cumsum(gaps)))


@few
@given(st.lists(walkers, min_size=2, max_size=4), st.randoms(use_true_random=False))
def test_the_order_of_detections_and_poses_changes_nothing(people, random):
    times = steady(8, 3)
    once = film(World(people), times)
    again = film(World(people, order=lambda items: random.sample(items, len(items))), times)
    assert once.ids == again.ids and once.events == again.events


def one_after_the_other(rows):
    """People who come one after another, each walking along a separate lane of the picture."""
    return [
        Walker(line((640 - 2 * speed, 250 + 220 * lane), (speed, 0)), height=200 * size, from_s=0.65 * lane)
        for lane, (speed, size) in enumerate(rows)
    ]


lanes = st.lists(st.tuples(speeds, st.floats(0.6, 1.0)), min_size=1, max_size=3).map(one_after_the_other)


@settings(max_examples=settings().max_examples // 10)
@given(lanes, st.integers(0, 2**32))
def test_the_same_motion_gives_the_same_identities_at_every_frame_rate(people, seed):
    random, variable = Random(seed), [0.0]
    while variable[-1] < 4:
        variable.append(variable[-1] + random.uniform(0.01, 0.25))
    dropped = [t for t in steady(30, 4) if random.random() < 0.5]
    paused = [t for t in steady(30, 4) if not 2.0 < t < 3.2]
    for times in (*(steady(rate, 4) for rate in RATES), variable, dropped, paused):
        result = film(World(people), times)
        assert [result.of(who) for who in range(len(people))] == [[who] for who in range(len(people))]


@at_each_rate
def test_people_who_cross_keep_their_ids(rate):
    result = film(crossing(), steady(rate, 5))
    assert all(len(result.of(who)) == 1 for who in range(3)), [result.of(who) for who in range(3)]
    check_laws(result)


@at_each_rate
def test_a_newcomer_has_a_pose_within_half_a_second(rate):
    for entry in np.linspace(1.0, 1.3, 7):
        world = World([Walker(line((300, 600), (40, 0))), Walker(line((900, 600), (-60, 0)), from_s=entry)])
        first = min(t for t, who in film(world, steady(rate, 2)).ids if who == 1)
        assert first - entry <= 0.5


@few
@example(5.25, 1.5625, 1)  # frames a little less than 0.2 s apart
@given(st.floats(5, 60), st.floats(1.0, 2.0), st.sampled_from([1, 3]))
def test_a_newcomer_is_in_time_at_any_rate_whether_or_not_somebody_is_there(rate, entry, others):
    aside = [Walker(line((150 + 180 * n, 600), (5, 0))) for n in range(others)]
    newcomer = Walker(line((900, 600), (-60, 0)), from_s=entry)
    for people in ([*aside, newcomer], [newcomer]):
        times = [t for t in steady(rate, 2.7) if t < entry + 0.6]
        first = min(t for t, who in film(World(people), times).ids if who == len(people) - 1)
        assert first - entry <= 0.5 + 1e-6


def searches_of(world, **options):
    film(world, steady(30, 10), **options)
    return len(world.searches)


def test_the_detector_looks_less_often_while_nothing_changes():
    walker = Walker(line((300, 600), (20, 0)))
    hidden = Walker(walker.feet, hidden=((2.0, 9.0),))
    quiet, busy = (searches_of(World([who]), keep_lost_s=10) for who in (walker, hidden))
    alone = searches_of(World([walker]), max_people=1)
    assert alone < 0.5 * quiet and quiet < 0.8 * busy <= 0.8 * 51


def test_what_showed_nobody_is_not_read_at_each_look():
    things = [Box(600, 200, 80, 200), Box(900, 200, 90, 90)]
    plain, with_things = World([Walker(line((300, 600), (20, 0)))]), World([Walker(line((300, 600), (20, 0)))], things=things)
    for world in (plain, with_things):
        film(world, steady(30, 10))
    assert len(with_things.searches) == len(plain.searches)
    assert 8 * 2 <= with_things.looks - plain.looks <= 11 * 2, "each thing about once a second"


def test_somebody_who_steps_before_a_thing_has_a_pose_in_time():
    newcomer = Walker(line((900, 600), (-60, 0)), from_s=1.1)
    lower_half = Box(870, 450, 60, 150)
    first = min(t for t, who in film(World([newcomer], things=[lower_half]), steady(30, 2)).ids)
    assert first - 1.1 <= 0.5


@at_each_rate
def test_who_is_hidden_for_a_while_is_found_again(rate):
    world = World([Walker(line((200, 600), (160, 0)), hidden=((1.5, 2.6),)), Walker(line((900, 600), (10, 0)))])
    result = film(world, steady(rate, 4))
    assert result.of(0) == [0] and kinds(result) == {"born": 2, "lost": 1, "found_again": 1}


@at_each_rate
def test_who_is_hidden_for_longer_than_that_is_somebody_new(rate):
    world = World([Walker(line((200, 600), (100, 0)), hidden=((1.5, 4.0),))])
    result = film(world, steady(rate, 5))
    assert result.of(0) == [0, 1]
    result = film(world, steady(rate, 5), keep_lost_s=4.0)
    assert result.of(0) == [0]


def test_nobody_is_invented():
    """Nobody is found where the pose network sees nobody, and no pose is invented for hidden people."""
    world = World([Walker(line((200, 600), (100, 0)), hidden=((1.0, 2.0),))], score=lambda who, time_s: 0.3)
    assert not film(world, steady(10, 3)).ids
    world.score = lambda who, time_s: 0.6
    assert not [t for t, _ in film(world, steady(10, 3)).ids if 1.0 <= t < 2.0]


def test_a_jump_in_time_ends_all_tracks():
    times = [*steady(10, 2), *(30 + t for t in steady(10, 2)), *(10 + t for t in steady(10, 1))]
    standing = World([Walker(lambda time_s: (400, 600)), Walker(lambda time_s: (800, 600))])
    result = film(standing, times)
    assert sorted(result.of(0)) == [0, 2, 4] and sorted(result.of(1)) == [1, 3, 5]
    assert kinds(result) == {"born": 6, "cut": 4}
    check_laws(result)


@pytest.mark.parametrize("most", [1, 2, 4])
def test_of_more_people_the_nearest_are_followed_without_flicker(most):
    sizes = (120, 300, 180, 250, 150)
    people = [Walker(lambda t, x=150 + 230 * n: (x + 8 * math.sin(3 * t + x), 650), height=s) for n, s in enumerate(sizes)]
    result = film(World(people, jitter=0.02), steady(10, 6), max_people=most)
    assert all(len(ids) <= most for _, ids in result.frames)
    nearest = sorted(range(5), key=lambda who: -sizes[who])[:most]
    assert {who for t, who in result.ids if t > 1} == set(nearest)
    assert kinds(result)["born"] == most
    check_laws(result)


def test_a_nearer_newcomer_takes_the_farthest_ones_place():
    people = [Walker(line((200 + 300 * n, 500), (0, 0)), height=h) for n, h in enumerate((150, 200))]
    people.append(Walker(line((900, 650), (0, 0)), height=320, from_s=2))
    result = film(World(people), steady(10, 4), max_people=2)
    assert {who for t, who in result.ids if t < 2} == {0, 1} and {who for t, who in result.ids if t > 3} == {1, 2}
    assert all(len(ids) <= 2 for _, ids in result.frames)


def test_each_frame_costs_a_look_for_each_person_and_few_more():
    world = World([Walker(line((150 + 120 * n, 600), (5, 0)), height=200) for n in range(9)])
    film(world, steady(10, 10))
    assert world.looks <= 9 * 100 * 1.1


def test_whoever_is_no_nearer_than_those_who_are_wanted_costs_little():
    """Also people with unsure poses, who would never get an id but would keep the detector busy."""
    people = [Walker(line((150 + 120 * n, 600), (5, 0)), height=190 if n else 200) for n in range(8)]
    world = World(people, score=lambda who, _: (MIN_SCORE + 0.1) if who == 0 else 0.9 * MIN_SCORE)
    film(world, steady(10, 10), max_people=1)
    assert world.looks <= 100 * 2 and len(world.searches) <= 10 / FULL_INTERVAL_S + 2


# Faults that other trackers had.


def test_rtmlib_74_ids_do_not_explode_when_somebody_leaves():
    """It happened there when a newcomer came after somebody had left: ids with a gap were used as indices."""
    people = [Walker(line((200 + 200 * n, 600), (0, 0)), until_s=2.0 if n == 1 else math.inf) for n in range(5)]
    people.append(Walker(line((700, 350), (0, 0)), from_s=4.0))
    result = film(World(people), steady(30, 6))
    assert kinds(result) == {"born": 6, "lost": 1}
    assert [result.of(who) for who in range(6)] == [[0], [1], [2], [3], [4], [5]]


def test_pose2sim_131_people_do_not_swap_when_one_is_missed():
    """Two people side by side; one of them is not seen in single frames."""
    score = lambda who, time_s: 0.2 if who == 0 and round(time_s * 30) % 4 == 0 else 0.6  # noqa: E731
    result = film(World([Walker(line((500, 600), (60, 0))), Walker(line((590, 600), (60, 0)))], score=score), steady(30, 5))
    assert {*result.of(0)} == {1} and {*result.of(1)} == {0}, "the person who is missed at first gets an id later"


def test_supervision_1355_ids_are_not_skipped_by_people_who_are_seen_once():
    """Things that look like people in a single frame get no id."""
    score = lambda who, time_s: 0.6 if who == 0 or round(time_s * 10) % 4 == 2 else 0.1  # noqa: E731
    ghosts = [Walker(line((300 + 150 * n, 600), (0, 0))) for n in range(5)]
    late = Walker(line((200, 300), (40, 0)), height=150, from_s=3)
    world = World([Walker(line((150, 600), (0, 0))), *ghosts, late], score=lambda w, t: 0.6 if w == 6 else score(w, t))
    result = film(world, steady(10, 5))
    assert result.of(0) == [0] and result.of(6) == [1]


def test_supervision_789_ids_do_not_leak_into_the_next_video():
    first, second = (film(crossing(), steady(10, 5)) for _ in range(2))
    assert first.ids == second.ids and first.events == second.events


def test_supervision_1720_ids_do_not_swap_when_people_meet_and_turn_back():
    """They approach each other, stop half a body apart and turn back; then again, with one of them unseen for a while."""
    there_and_back = lambda a, b: lambda t: (a + (b - a) * (1 - abs(1 - min(t, 6) / 3)), 600)  # noqa: E731
    walkers = [Walker(there_and_back(300, 590)), Walker(there_and_back(1000, 710))]
    unseen = lambda who, time_s: 0.1 if who == 1 and 2.5 < time_s < 3.3 else 0.6  # noqa: E731
    for world in (World(walkers), World(walkers, score=unseen)):
        result = film(world, steady(10, 6))
        assert result.of(0) == [0] and result.of(1) == [1]


@pytest.mark.parametrize("rate", [1, 2, 3])
def test_trackers_420_people_are_kept_at_low_frame_rates(rate):
    """A buffer counted in frames was rounded to none at low rates."""
    world = World([Walker(line((300, 600), (15, 0))), Walker(line((900, 600), (-15, 0)))])
    result = film(world, steady(rate, 12))
    assert result.of(0) == [0] and result.of(1) == [1]
    missed = film(World(world.walkers, score=lambda w, t: 0.1 if w == 0 and 5 <= t < 5 + 1 / rate else 0.6), steady(rate, 12))
    assert missed.of(0) == [0]


@at_each_rate
def test_bytetrack_394_one_missed_frame_makes_no_new_id(rate):
    missed = {round(1.5 * rate), round(2.5 * rate)}
    world = World(
        [Walker(line((300, 600), (60, 0)))], score=lambda who, time_s: 0.05 if round(time_s * rate) in missed else 0.6
    )
    result = film(world, steady(rate, 4))
    assert result.of(0) == [0] and kinds(result) == {"born": 1}


def test_one_person_whom_the_detector_boxes_twice_has_one_track():
    result = film(World([Walker(line((300, 600), (60, 0)))], twice=True), steady(10, 4))
    assert result.of(0) == [0] and kinds(result) == {"born": 1}


def test_people_of_whom_the_detector_is_unsure_are_followed_by_their_poses():
    world = World([Walker(line((300, 600), (60, 0)))], detection_score=lambda who, time_s: 0.8 if time_s < 0.5 else 0.1)
    result = film(world, steady(10, 6))
    assert result.of(0) == [0] and len(result.ids) >= 58


def test_an_unsure_pose_keeps_a_track_but_begins_none():
    world = World([Walker(line((300, 600), (60, 0)))], score=lambda who, time_s: 0.6 if time_s < 1 else 0.4)
    assert len(film(world, steady(10, 4)).ids) >= 38
    assert not film(World(world.walkers, score=lambda who, time_s: 0.4), steady(10, 4)).ids


@few
@given(pose=st.floats(0, 0.6), detection=st.floats(0.3, 1))
@example(pose=0.4, detection=SURE_DETECTION)
@example(pose=0.4, detection=SURE_DETECTION - 0.01)
@example(pose=0.36, detection=1)
@example(pose=MIN_SCORE, detection=0.3)
@example(pose=PICTURE_MIN_SCORE, detection=0.3)
def test_where_the_detector_is_sure_an_unsure_pose_is_enough_in_a_picture_but_not_in_a_stream(pose, detection):
    walkers = [Walker(line((300, 600), (20, 0)))]
    world = World(walkers, score=lambda who, time_s: pose, detection_score=lambda who, time_s: detection)
    assert bool(film(world, steady(10, 2)).ids) == (pose >= MIN_SCORE)
    enough = PICTURE_MIN_SCORE * (KEEP_FRACTION if detection >= SURE_DETECTION else 1)
    assert bool(film(world, [0], sequential=False).ids) == (pose >= enough)


@at_each_rate
def test_what_no_pose_and_no_look_is_sure_of_is_not_followed_for_long(rate):
    walkers, score = [Walker(line((300, 600), (20, 0)))], lambda who, time_s: 0.6 if time_s < 1 else 0.4
    unseen = World(walkers, score=score, detection_score=lambda who, time_s: 0.8 if time_s < 1 else 0.1)
    result = film(unseen, steady(rate, 10))
    (lost,) = [event for event in result.events if event.kind is TrackEventKind.LOST]
    assert lost.reason == "no confident pose for 3 s"
    assert UNSURE_S <= lost.time_s - 1 <= UNSURE_S + 0.5
    assert max(time_s for time_s, ids in result.frames if ids) <= 1 + UNSURE_S
    seen = film(World(walkers, score=score), steady(rate, 10))
    assert seen.of(0) == [0] and kinds(seen) == {"born": 1}


def test_pictures_that_do_not_follow_each_other_are_each_searched():
    world = World([Walker(line((300, 600), (0, 0))), Walker(line((800, 600), (0, 0)))])
    result = film(world, [0, 1, 2], sequential=False)
    assert [ids for _, ids in result.frames] == [(0, 1), (2, 3), (4, 5)]
    assert film(world, [0], tracker=PeopleTracker(world.detect, HUMAN36M, sequential=False, max_people=1)).frames == [(0, (0,))]
