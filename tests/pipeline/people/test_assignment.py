"""The assignment, compared with every possible one."""

from itertools import permutations

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra import numpy as arrays

from pipeline.people.assignment import assign

values = st.floats(-50, 50) | st.just(float("inf"))
costs = arrays.arrays(np.float64, arrays.array_shapes(min_dims=2, max_dims=2, min_side=0, max_side=5), elements=values)


def price(matrix, pairs, limit):
    return sum(matrix[pair] - limit for pair in pairs)


@settings(deadline=None)
@given(costs, st.floats(-20, 60))
def test_no_other_assignment_costs_less(matrix, limit):
    rows, columns = matrix.shape
    pairs = assign(matrix, limit)
    assert len({row for row, _ in pairs}) == len({column for _, column in pairs}) == len(pairs)
    assert all(matrix[pair] < limit for pair in pairs)
    wide = matrix if rows <= columns else matrix.T
    best = min(
        sum(min(wide[row, column] - limit, 0) for row, column in enumerate(order))
        for order in permutations(range(wide.shape[1]), wide.shape[0])
    )
    assert price(matrix, pairs, limit) == pytest.approx(best, abs=1e-9)


@settings(deadline=None)
@given(st.integers(1, 30), st.integers(1, 30), st.randoms(use_true_random=False))
def test_large_ones_do_not_hang_on_the_order(rows, columns, random):
    matrix = np.random.default_rng(random.randrange(2**32)).normal(size=(rows, columns))
    order = np.array(random.sample(range(rows), rows))
    once, again = assign(matrix, 0.5), assign(matrix[order], 0.5)
    assert once == sorted((int(order[row]), column) for row, column in again)
