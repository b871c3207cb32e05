"""The record of who appeared."""

from itertools import pairwise

from hypothesis import given, settings
from hypothesis import strategies as st

from pipeline.people.appearances import Appearances
from tests.pipeline.formats.samples import pose, posed


@settings(deadline=None)
@given(st.lists(st.sets(st.integers(0, 3)), max_size=20))
def test_the_account_is_that_of_the_frames(frames):
    account = Appearances()
    for index, ids in enumerate(frames):
        account.add(posed(index, poses=tuple(pose(track_id=i) for i in ids)))
    people = {person.track_id: person for person in account.all()}
    assert set(people) == set().union(*frames)
    for track_id, person in people.items():
        there = [index for index, ids in enumerate(frames) if track_id in ids]
        assert person.poses == len(there)
        assert person.gaps == sum(b - a > 1 for a, b in pairwise(there))
        assert (person.first_s, person.last_s) == tuple(posed(i).frame.time_s for i in (there[0], there[-1]))
