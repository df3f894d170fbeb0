"""Allocators: from a problem to one feasible allocation. One signature; `ALLOCATORS` has them all. Free of torch."""

from __future__ import annotations

import ctypes
import os
from collections import defaultdict
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from math import floor

import numpy as np
from numpy.typing import NDArray
from scipy import sparse
from scipy.optimize import Bounds, LinearConstraint, milp

from robuq.ampn.problem import SLACK, Allocation, Bits, Choice, Matrix, Problem, allocation_of
from robuq.ampn.table import split_decision
from robuq.config import Allocator

__all__ = ["ALLOCATORS", "Allocation", "allocate", "allocation_of", "spend"]

# The paper's mean bits of each kind at an average of 2 and of 3 bits.
PUBLISHED_BITS = {"qkv": (2.21, 2.96), "proj": (2.75, 3.89), "fc1": (2.00, 3.04), "fc2": (1.64, 2.31)}

# The integer program's numbers are scaled, because HiGHS's tolerances are absolute, 10^-6 of cost and of damage.
COST_SCALE = 1e4
OBJECTIVE_SCALE = 1e7
TIE = 1e-8  # of the damage's range: the weight of all cost together
ROUNDING = 1e-12  # of the damage's range


def allocate(problem: Problem, name: Allocator) -> Allocation:
    return ALLOCATORS[name](problem)


def uniform(problem: Problem) -> Allocation:
    """The largest width that fits everywhere."""
    fits = np.flatnonzero(problem.cost.sum(axis=0) <= problem.ceiling)
    return allocation_of(problem, (problem.candidates[fits[-1]],) * len(problem.decisions))


def greedy(problem: Problem) -> Allocation:
    """From the cheapest: again and again the change that lowers damage most per cost, while one fits.

    Every width above the present one is looked at, not the next alone, so that a bump in a noisy row is stepped over.
    The same is tried from the uniform allocation, and the better kept: it is never worse than uniform.
    """
    cheapest = (problem.candidates[0],) * len(problem.decisions)
    tries = [allocation_of(problem, spend(problem, start)) for start in (cheapest, uniform(problem).bits)]
    return min(tries, key=lambda allocation: (allocation.damage, allocation.cost))


def spend(problem: Problem, bits: Sequence[int]) -> Bits:
    """Raise bits of a feasible allocation, by most damage saved per cost, until nothing that helps fits."""
    return problem.bits_of(_spent(problem.damage, problem.cost, problem.ceiling, problem.choice_of(bits)))


def _spent(damage: Matrix, cost: Matrix, room: float, choice: Choice) -> Choice:
    choice = choice.copy()
    while True:
        now, paid = _chosen(damage, choice)[:, None], _chosen(cost, choice)[:, None]
        saved, extra = now - damage, cost - paid
        useful = (saved > 0) & (extra > 0) & (paid.sum() + extra <= room)
        if not useful.any():
            return choice
        rate = np.divide(saved, extra, out=np.full(saved.shape, -np.inf), where=useful)
        row, column = np.unravel_index(np.argmax(rate), rate.shape)
        choice[row] = column


def _chosen(values: Matrix, choice: Choice) -> Matrix:
    """(L, C) -> (L,)"""
    picked: Matrix = values[np.arange(len(choice)), choice]
    return picked


def exact(problem: Problem) -> Allocation:
    """The least damage there is: a multiple-choice knapsack, solved by HiGHS as an integer program and proven.

    minimise sum_lc d_lc x_lc  such that  sum_c x_lc = 1 for all l,  sum_lc c_lc x_lc <= limit,  x binary.
    Between equal damages the lower cost; damages that differ by less than 10^-8 of the range count as equal.
    """
    cost = problem.cost - problem.cost[:, :1]
    # Half of the slack: the other half is for the solver's own tolerance, so that what it finds is feasible here.
    room = max(problem.limit * (1 + SLACK / 2) - float(problem.cost[:, 0].sum()), 0.0)
    damage = problem.damage - problem.damage.min(axis=1, keepdims=True)
    damage = damage / (damage.max() or 1.0) + cost * (TIE / (cost[:, -1].sum() or 1.0))
    choice, possible = _reduce(damage, cost, room)
    undecided = possible.sum(axis=1) > 1
    optimal = True
    if undecided.any():
        room -= float(_chosen(cost, choice)[~undecided].sum())
        choice[undecided], optimal = _solve(damage[undecided], cost[undecided], possible[undecided], room)
    return allocation_of(problem, problem.bits_of(choice), optimal)


def _reduce(damage: Matrix, cost: Matrix, room: float) -> tuple[Choice, NDArray[np.bool_]]:
    """A good choice, and which entries an optimal one can have: few, and mostly one a row. (L,), (L, C)

    For a price p >= 0 of cost no allocation has less damage than B = sum_l min_c (d + p c) - p room, and none that has
    entry (l, c) less than B + (d + p c)_lc - min_c (d + p c): above what a known choice has, the entry is out.
    """
    price = _price(damage, cost, room)
    priced = damage + price * cost
    choice = priced.argmin(axis=1)
    above = priced - priced.min(axis=1, keepdims=True)
    bound = float(priced.min(axis=1).sum()) - price * room
    known = _spent(damage, cost, room, choice)
    gap = max(float(_chosen(damage, known).sum()) - bound, 0.0)
    return known, (above <= gap + ROUNDING) & (cost <= room)


def _price(damage: Matrix, cost: Matrix, room: float) -> float:
    """The least price of cost, to rounding, at which the cheapest priced choices fit."""

    def fits(price: float) -> bool:
        return float(_chosen(cost, (damage + price * cost).argmin(axis=1)).sum()) <= room

    if fits(0.0):
        return 0.0
    slopes = (damage[:, :1] - damage[:, 1:]) / cost[:, 1:]
    low, high = 0.0, 2 * float(slopes.max())  # where everything is at its cheapest
    while high - low > 1e-12 * high:
        middle = (low + high) / 2
        low, high = (low, middle) if fits(middle) else (middle, high)
    return high


def _solve(damage: Matrix, cost: Matrix, possible: NDArray[np.bool_], room: float) -> tuple[Choice, bool]:
    """One possible column for each row, and whether it is proven to be the best."""
    rows, _ = np.nonzero(possible)
    scale = COST_SCALE / max(room, float(cost[possible].max()))
    ones = sparse.csr_array((np.ones(len(rows)), (rows, np.arange(len(rows)))), shape=(len(damage), len(rows)))
    with _stdout_is_stderr():
        found = milp(
            damage[possible] * (OBJECTIVE_SCALE / (damage[possible].max() or 1.0)),
            integrality=np.ones(len(rows)),
            bounds=Bounds(0, 1),
            constraints=[
                LinearConstraint(ones, 1, 1),
                LinearConstraint(cost[possible][None] * scale, -np.inf, room * scale),
            ],
            options={"mip_rel_gap": 0.0},
        )
    if found.x is None:
        raise RuntimeError(f"the integer program of a feasible problem was not solved: {found.message}")
    taken = np.zeros(damage.shape)
    taken[possible] = found.x
    return taken.argmax(axis=1), found.status == 0


@contextmanager
def _stdout_is_stderr() -> Iterator[None]:
    """HiGHS has a forgotten printf, met about once in a thousand solves, which would land in the middle of `--json`."""
    kept = os.dup(1)
    try:
        os.dup2(2, 1)
        yield
        ctypes.CDLL(None).fflush(None)  # C's buffer, before the descriptor is ours again
    finally:
        os.dup2(kept, 1)
        os.close(kept)


def paper(problem: Problem) -> Allocation:
    """The published mean bits by kind, scaled to the budget, whatever was measured here.

    Paper: mean bits of each kind at an average of 2 and of 3, later blocks get more; no more is known. We: a line
    through the two figures, m(t) = m_2 + (t - 2) (m_3 - m_2), with the largest t that fits; within a kind the two
    neighbouring widths, the larger in the later blocks, so many that the mean is m(t), because that needs no number
    of our own. Damage is not looked at: what is left, less than one change of width, stays.
    """
    low, high = _line_ends(problem.candidates)
    best = _published(problem, low)
    for _ in range(64):  # halvings: to the last bit of t
        middle = (low + high) / 2
        bits = _published(problem, middle)
        if problem.is_feasible(bits):
            low, best = middle, bits
        else:
            high = middle
    return allocation_of(problem, best)


def _line_ends(candidates: Sequence[int]) -> tuple[float, float]:
    """Values of t at which every kind has the least, and the most bits."""
    ends = [[2 + (b - two) / (three - two) for two, three in PUBLISHED_BITS.values()] for b in candidates]
    return min(ends[0]), max(ends[-1]) + 1


def _published(problem: Problem, t: float) -> Bits:
    kinds: defaultdict[str, list[int]] = defaultdict(list)
    for index, decision in enumerate(problem.decisions):
        kinds[split_decision(decision)[1]].append(index)  # blocks ascend
    bits = [0] * len(problem.decisions)
    for role, indices in kinds.items():
        two, three = PUBLISHED_BITS[role]
        widths = _later_more(two + (t - 2) * (three - two), len(indices), problem.candidates)
        for index, width in zip(indices, widths, strict=True):
            bits[index] = width
    return tuple(bits)


def _later_more(mean: float, count: int, candidates: Sequence[int]) -> list[int]:
    """`count` ascending bit-widths with this mean as nearly as two neighbouring candidates make it."""
    mean = min(max(mean, candidates[0]), candidates[-1])
    low = max(b for b in candidates if b <= mean)
    high = min((b for b in candidates if b > mean), default=low)
    more = floor(count * (mean - low) / (high - low) + 0.5) if high > low else 0
    return [low] * (count - more) + [high] * more


ALLOCATORS: dict[Allocator, Callable[[Problem], Allocation]] = {
    "uniform": uniform,
    "greedy": greedy,
    "exact": exact,
    "paper": paper,
}
