"""Regret of every search space and sampler on synthetic problems whose best allocation is known.

112 decisions (28 blocks), 1 to 4 bits, mean bits at most 2, 120 evaluations, separable loss sum_l s_l 4^(1 - b_l).
The search sees measured sensitivities s_l n_l; the oracle is the exact allocation of the true s_l.

Run: OMP_NUM_THREADS=1 python tests/benchmarks/bench_search.py
Writes search_synthetic.md beside this file. A report, not a test.
"""

from __future__ import annotations

import platform
import time
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from scipy import stats

from robuq.ampn.allocate import allocate
from robuq.ampn.problem import Bits, Problem
from robuq.ampn.search import BitSearch
from robuq.config import BLOCK_ROLES, Allocator, Budget, SamplerName, SearchConfig, SpaceName, decision_name

BLOCKS, CANDIDATES, LIMIT, EVALUATIONS = 28, (1, 2, 3, 4), 2.0, 120
KNOWN: tuple[Allocator, ...] = ("uniform", "greedy", "exact", "paper")
SAMPLERS: tuple[SamplerName, ...] = ("random", "tpe", "nsga2", "cmaes")
PROBLEMS: dict[SpaceName, int] = {"policy": 20, "block": 8, "layer": 4}  # the first so many; a layer search is slow


@dataclass(frozen=True)
class Error:
    """Standard deviations of the logarithm of a measured over the true sensitivity."""

    name: str
    kind: float  # of each kind's mean, and of its trend from the first block to the last in units of half of it
    decision: float  # of each decision by itself


MIXED, INDEPENDENT = Error("by kind and depth", 0.7, 0.3), Error("independent", 0.0, 0.5)


def synthetic(seed: int, error: Error) -> tuple[Problem, Problem]:
    """(true, measured) problem."""
    rng = np.random.default_rng(seed)
    kind = np.tile(np.arange(len(BLOCK_ROLES)), BLOCKS)
    depth = np.repeat(np.linspace(-0.5, 0.5, BLOCKS), len(BLOCK_ROLES))
    true = rng.normal(0, 1, 4)[kind] + rng.normal(0, 1, 4)[kind] * depth + rng.normal(0, 0.5, kind.size)
    drawn = rng.normal(0, error.kind, 4)[kind] + 2 * rng.normal(0, error.kind, 4)[kind] * depth
    wrong = drawn + rng.normal(0, error.decision, kind.size)
    return _problem(np.exp(true)), _problem(np.exp(true + wrong))


def _problem(sensitivity: np.ndarray) -> Problem:
    decisions = tuple(decision_name(block, role) for block in range(BLOCKS) for role in BLOCK_ROLES)
    damage = sensitivity[:, None] * 4.0 ** (1 - np.array(CANDIDATES))
    cost = np.outer(np.full(len(decisions), 1 / len(decisions)), CANDIDATES)
    return Problem(decisions, CANDIDATES, damage, cost, LIMIT, Budget(limit=LIMIT, weights="layers"))


def best_after(seed: int, error: Error, space: SpaceName, sampler: SamplerName) -> list[float]:
    """Best loss over the oracle's after 1, 2, ... evaluations."""
    true, measured = synthetic(seed, error)
    known: dict[str, Bits] = {name: allocate(measured, name).bits for name in KNOWN}
    config = SearchConfig(space=space, sampler=sampler, evaluations=EVALUATIONS, seed=seed)
    search = BitSearch(measured, config, storage=None, study_name="synthetic", known=known)
    while (proposal := search.ask()) is not None:
        search.finish(proposal.number, true.damage_of(proposal.bits))
    oracle = allocate(true, "exact").damage
    return [row["best"] / oracle for row in search.history()]


def allocator_ratios(name: Allocator, error: Error, count: int) -> list[float]:
    problems = [synthetic(seed, error) for seed in range(count)]
    return [
        true.damage_of(allocate(measured, name).bits) / allocate(true, "exact").damage for true, measured in problems
    ]


def row(error: Error, what: str, by: str, ratios: list[float], early: list[float] | None, seconds: float | None) -> str:
    """Mean with the 95 % interval of Student's t over problems."""
    half = stats.sem(ratios) * stats.t.ppf(0.975, len(ratios) - 1)
    mean = float(np.mean(ratios))
    forty = f"{np.mean(early):.3f}" if early else ""
    spent = f"{seconds:.1f}" if seconds is not None else ""
    return (
        f"| {error.name} | {what} | {by} | {len(ratios)} | {mean:.3f} [{mean - half:.3f}, {mean + half:.3f}] "
        f"| {np.median(ratios):.3f} | {max(ratios):.3f} | {forty} | {spent} |"
    )


def search_row(error: Error, space: SpaceName, sampler: SamplerName) -> str:
    start = time.process_time()
    count = PROBLEMS[space]
    curves = [best_after(seed, error, space, sampler) for seed in range(count)]
    seconds = (time.process_time() - start) / count
    return row(error, space, sampler, [c[-1] for c in curves], [c[39] for c in curves], seconds)


def rows() -> Iterator[str]:
    for name in KNOWN:
        yield row(MIXED, "allocator", name, allocator_ratios(name, MIXED, PROBLEMS["policy"]), None, None)
    for space in PROBLEMS:
        for sampler in SAMPLERS:
            yield search_row(MIXED, space, sampler)
    for name in ("uniform", "exact"):
        yield row(INDEPENDENT, "allocator", name, allocator_ratios(name, INDEPENDENT, PROBLEMS["policy"]), None, None)
    yield search_row(INDEPENDENT, "policy", "tpe")
    yield search_row(INDEPENDENT, "policy", "cmaes")


HEAD = """# Search on synthetic problems with a known optimum

{decisions} decisions, 1 to 4 bits, mean at most 2, {evaluations} evaluations of which the first four are uniform,
greedy, exact and paper. Loss: sum of s 4^(1 - bits). All allocators and searches see sensitivities that are wrong by a
log-normal factor; the oracle, 1.000, is the exact allocation of the true ones. Greedy equals exact here, because the
rows are convex and every bit costs the same.
*by kind and depth*: standard deviation (of the logarithm) 0.7 for each kind, 1.4 for each kind's trend from the first
block to the last, 0.3 for each decision. *independent*: 0.5 for each decision, nothing else.

Loss over the oracle's: mean over n problems with its 95 % interval, median, worst; the mean after 40 evaluations.
Seconds are of proposing alone, per search, on one thread of {machine}, the study in memory.
The rows of a space see the same problems, which are the first of those of the row above with more. The samplers'
settings were chosen on twelve other problems. `python tests/benchmarks/bench_search.py` writes this file.

| error of the sensitivities | space | sampler | n | mean | median | worst | after 40 | s |
|-|-|-|-|-|-|-|-|-|
"""


def main() -> None:
    head = HEAD.format(
        decisions=BLOCKS * len(BLOCK_ROLES),
        evaluations=EVALUATIONS,
        machine=f"{platform.machine()} {platform.system()}",
    )
    lines = []
    for line in rows():
        print(line, flush=True)
        lines.append(line)
    Path(__file__).with_name("search_synthetic.md").write_text(head + "\n".join(lines) + "\n", encoding="utf-8")


if __name__ == "__main__":
    main()
