"""Random allocation problems, and solvers that share nothing with the allocators."""

from __future__ import annotations

from itertools import product

import numpy as np
from hypothesis import strategies as st

from robuq.ampn.problem import Problem
from robuq.config import BLOCK_ROLES, Budget, decision_name

MAC_WEIGHTS = {"qkv": 3, "proj": 1, "fc1": 4, "fc2": 4}


def decisions_of(num_blocks: int) -> tuple[str, ...]:
    return tuple(decision_name(block, role) for block in range(num_blocks) for role in BLOCK_ROLES)


@st.composite
def problems(draw: st.DrawFn, max_decisions: int = 12, max_candidates: int = 8) -> Problem:
    """Rows that fall, that are noise, and that are full of ties; mean bits and BOPs with a fixed part; budgets from
    the cheapest allocation to beyond the dearest."""
    rows = draw(st.integers(1, max_decisions))
    candidates = sorted(draw(st.sets(st.integers(1, 8), min_size=1, max_size=max_candidates)))
    rng = np.random.default_rng(draw(st.integers(0, 2**32 - 1)))
    damage = {
        "ties": lambda: rng.integers(-2, 4, size=(rows, len(candidates))).astype(float),
        "noise": lambda: rng.normal(size=(rows, len(candidates))),
        "falling": lambda: np.outer(rng.lognormal(size=rows), 4.0 ** -np.array(candidates)),
        "tiny and noisy": lambda: (
            1e-6 * (np.outer(rng.lognormal(size=rows), 4.0 ** -np.array(candidates)))
            + 1e-8 * rng.normal(size=(rows, len(candidates)))
        ),
    }[draw(st.sampled_from(["ties", "noise", "falling", "tiny and noisy"]))]()
    weights = rng.integers(1, 6, size=rows).astype(float)
    bops = draw(st.booleans())
    cost = 7.3e-3 * np.outer(weights, candidates) + 0.31 if bops else np.outer(weights / weights.sum(), candidates)
    low, high = cost[:, 0].sum(), cost[:, -1].sum()
    share = draw(st.one_of(st.sampled_from([0.0, 0.5, 1.0, 1.3]), st.floats(0, 1)))
    limit = float(low + share * (high - low))
    budget = Budget(limit=limit, weights="bops", count_fixed=True) if bops else Budget(limit=limit, weights="macs")
    return Problem(decisions_of(3)[:rows], tuple(candidates), damage, cost, limit, budget)


def network_problem(damage: np.ndarray, limit: float, candidates: tuple[int, ...] = tuple(range(1, 9))) -> Problem:
    """Mean bits by MACs of a DiT with a row of damage for each decision."""
    decisions = decisions_of(len(damage) // 4)
    weights = np.tile(list(MAC_WEIGHTS.values()), len(damage) // 4)
    cost = np.outer(weights / weights.sum(), candidates)
    return Problem(decisions, candidates, damage, cost, limit, Budget(limit=limit, weights="macs"))


def brute_force(problem: Problem) -> float:
    """The least damage of all allocations that keep to the budget."""
    return min(
        sum(problem.damage[row, column] for row, column in enumerate(choice))
        for choice in product(range(len(problem.candidates)), repeat=len(problem.decisions))
        if sum(problem.cost[row, column] for row, column in enumerate(choice)) <= problem.limit * (1 + 1e-9)
    )


def dynamic_program(damage: np.ndarray, weights: np.ndarray, candidates: tuple[int, ...], units: int) -> np.ndarray:
    """(units + 1,): least damage for every cost in units of weight x bits; infinite where nothing costs that."""
    best = np.full(units + 1, np.inf)
    best[0] = 0.0
    for row, weight in zip(damage, weights, strict=True):
        after = np.full(units + 1, np.inf)
        for bits, increase in zip(candidates, row, strict=True):
            step = int(weight) * bits
            if step <= units:
                after[step:] = np.minimum(after[step:], best[: units + 1 - step] + increase)
        best = after
    return best
