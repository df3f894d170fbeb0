"""Which evaluations are good enough: successive halving's rule, and the Pareto front. Free of torch."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np


def is_among_best(value: float, others: Sequence[float], keep: float) -> bool:
    """Whether a loss is in the best `keep` of n, itself and the others: fewer than keep * n are lower.

    The best always is. Equal losses stand or fall together, as far as they have been seen.
    """
    lower, seen = sum(other < value for other in others), len(others) + 1
    return lower < keep * seen


def pareto_front(points: Sequence[Sequence[float]]) -> list[int]:
    """Indices of the points (n, m) that no other dominates, being nowhere higher and somewhere lower. Equals stay."""
    if not points:
        return []
    values = np.array(points, dtype=np.float64)
    nowhere_higher = (values[None] <= values[:, None]).all(axis=-1)  # [i, j]: j against i
    somewhere_lower = (values[None] < values[:, None]).any(axis=-1)
    dominated = np.logical_and(nowhere_higher, somewhere_lower).sum(axis=1) > 0
    return [index for index, beaten in enumerate(dominated) if not beaten]
