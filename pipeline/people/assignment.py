"""The assignment problem: pairs of two sets with the smallest total cost. Own code: docs/decisions/0012."""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray


def assign(costs: NDArray[np.floating], limit: float) -> list[tuple[int, int]]:
    """The pairs (row, column) with the smallest sum of costs [A, B], where each row without a pair costs `limit`.

    Every row and every column is in at most one pair; pairs that cost `limit` or more, including infinite ones, are not made.
    Source: the Hungarian method by shortest augmenting paths (Jonker and Volgenant 1987), O(A B min(A, B)).
    """
    gains = np.minimum(np.asarray(costs, np.float64) - limit, 0.0)  # 0: the pair gains nothing, so it is as good as none
    if 0 in gains.shape:
        return []
    wins = gains < 0
    if wins.sum(axis=0).max() <= 1 and wins.sum(axis=1).max() <= 1:  # unambiguous, as nearly always
        return [(int(row), int(column)) for row, column in np.argwhere(wins)]
    swapped = gains.shape[0] > gains.shape[1]
    if swapped:
        gains = gains.T
    rows, columns = gains.shape
    row_price, column_price = np.zeros(rows), np.zeros(columns)
    row_of = np.full(columns, -1)
    for start in range(rows):
        # The shortest path from a new row to a free column, through existing pairs that are reassigned.
        distance, before = np.full(columns, np.inf), np.full(columns, -1)
        reached = np.zeros(columns, bool)
        row, column, travelled = start, -1, 0.0
        while True:
            reduced = travelled + gains[row] - row_price[row] - column_price
            shorter = ~reached & (reduced < distance)
            distance[shorter], before[shorter] = reduced[shorter], column
            column = int(np.where(reached, np.inf, distance).argmin())
            reached[column], travelled = True, distance[column]
            if row_of[column] < 0:
                break
            row = row_of[column]
        row_price[start] += travelled
        passed = reached.copy()
        passed[column] = False
        row_price[row_of[passed]] += travelled - distance[passed]
        column_price[passed] -= travelled - distance[passed]
        while column >= 0:
            previous = before[column]
            row_of[column] = start if previous < 0 else row_of[previous]
            column = previous
    pairs = [(int(row_of[column]), column) for column in range(columns) if row_of[column] >= 0]
    pairs = [(row, column) for row, column in pairs if gains[row, column] < 0]
    return sorted((column, row) for row, column in pairs) if swapped else sorted(pairs)
