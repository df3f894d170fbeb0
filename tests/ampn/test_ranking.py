"""Successive halving's rule and the Pareto front, against counting by hand."""

from __future__ import annotations

import numpy as np
import pytest

from robuq.ampn.ranking import is_among_best, pareto_front


@pytest.mark.parametrize(
    ("value", "others", "keep", "expected"),
    [
        (1.0, [], 0.1, True),  # alone
        (2.0, [1.0], 0.5, False),  # 1 < 1
        (1.0, [1.0], 0.5, True),  # a tie is not lower
        (3.0, [1.0, 2.0], 0.5, False),  # 2 < 1.5
        (2.0, [1.0, 3.0], 0.5, True),  # 1 < 1.5
        (9.0, [1.0, 2.0, 3.0], 1.0, True),  # all are kept
        (4.0, [1.0, 2.0, 3.0, 5.0, 6.0, 7.0, 8.0, 9.0, 10.0], 0.3, False),  # 3 < 3
        (3.0, [1.0, 2.0, 4.0, 5.0, 6.0, 7.0, 8.0, 9.0, 10.0], 0.3, True),  # 2 < 3
    ],
)
def test_fewer_than_keep_times_n_are_lower(value: float, others: list[float], keep: float, expected: bool) -> None:
    assert is_among_best(value, others, keep) is expected


@pytest.mark.parametrize("objectives", [1, 2, 3])
@pytest.mark.parametrize("count", [0, 1, 2, 40])
def test_front_against_brute_force(count: int, objectives: int) -> None:
    points = np.random.default_rng(count).integers(0, 6, size=(count, objectives)).tolist()  # with ties

    def dominated(i: int) -> bool:
        pairs = [list(zip(p, points[i], strict=True)) for p in points]
        return any(all(a <= b for a, b in pair) and any(a < b for a, b in pair) for pair in pairs)

    assert pareto_front(points) == [i for i in range(count) if not dominated(i)]
