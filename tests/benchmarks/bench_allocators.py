"""Allocators on 112 decisions x 8 candidates: their time, their gap to the optimum, and what the policy space is worth.

Problems: mean bits by MACs at most 2, 2.5, 3 or 4; damage s_l 4^-b with log-normal s_l, each entry then multiplied by
log-normal noise. The peer of the exact allocator is a dynamic program over whole units of weight x bits, which only
serves because the weights of a DiT's MACs are 3, 1, 4, 4; it is the reference of the gap, too.

Run: OMP_NUM_THREADS=1 python tests/benchmarks/bench_allocators.py
Writes allocators.md beside this file. A report, not a test.
"""

from __future__ import annotations

import platform
import statistics
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import numpy as np
import scipy

from robuq.ampn.allocate import ALLOCATORS, exact, uniform
from robuq.ampn.policy import NEWTON_STEPS, PolicySpace, Space, make_space
from robuq.ampn.problem import Problem
from robuq.config import BLOCK_ROLES, Budget, SpaceName, decision_name

BLOCKS, CANDIDATES = 28, tuple(range(1, 9))
MACS = np.tile([3, 1, 4, 4], BLOCKS)
LIMITS, SEEDS, ROUNDS, DRAWS = (2.0, 2.5, 3.0, 4.0), 10, 3, 120
SPACES: tuple[SpaceName, ...] = ("policy", "block", "layer")
KIND, DEPTH = np.tile(np.arange(4), BLOCKS), np.repeat(np.linspace(-0.5, 0.5, BLOCKS), 4)


def problem_of(damage: np.ndarray, limit: float) -> Problem:
    decisions = tuple(decision_name(block, role) for block in range(BLOCKS) for role in BLOCK_ROLES)
    cost = np.outer(MACS / MACS.sum(), CANDIDATES)
    return Problem(decisions, CANDIDATES, damage, cost, limit, Budget(limit=limit, weights="macs"))


def noisy(sensitivity: np.ndarray, noise: float, rng: np.random.Generator) -> np.ndarray:
    damage = np.outer(sensitivity, 4.0 ** -np.array(CANDIDATES))
    return damage * np.exp(noise * rng.normal(size=damage.shape))


def timing_problems() -> Iterator[Problem]:
    for seed in range(SEEDS):
        rng = np.random.default_rng(seed)
        damage = noisy(rng.lognormal(0, 1, size=len(MACS)), 0.4, rng)
        yield from (problem_of(damage, limit) for limit in LIMITS)


def dynamic_program(problem: Problem) -> float:
    """The least damage. best[u] is that of all decisions so far that cost u units together."""
    units = int(problem.limit * MACS.sum() + 1e-6)
    best = np.full(units + 1, np.inf)
    best[0] = 0.0
    for row, weight in zip(problem.damage, MACS, strict=True):
        after = np.full(units + 1, np.inf)
        for bits, increase in zip(problem.candidates, row, strict=True):
            step = int(weight) * bits
            after[step:] = np.minimum(after[step:], best[: units + 1 - step] + increase)
        best = after
    return float(best.min())


def seconds(function: Callable[[Problem], object], problem: Problem) -> float:
    """CPU seconds, which other processes disturb least; median of the rounds."""
    times = []
    for _ in range(ROUNDS):
        start = time.process_time()
        function(problem)
        times.append(time.process_time() - start)
    return statistics.median(times)


def allocator_rows(problems: list[Problem]) -> Iterator[str]:
    least = [dynamic_program(problem) for problem in problems]
    peer = [seconds(dynamic_program, problem) for problem in problems]
    for name, allocator in ALLOCATORS.items():
        own = [seconds(allocator, problem) for problem in problems]
        gaps = [allocator(problem).damage / best - 1 for problem, best in zip(problems, least, strict=True)]
        ratio = statistics.median(a / b for a, b in zip(own, peer, strict=True))
        yield (
            f"| {name} | {1e3 * statistics.median(own):.2f} | {1e3 * max(own):.2f} | {ratio:.2f} "
            f"| {100 * statistics.median(gaps):.3f} | {100 * max(gaps):.3f} |"
        )
    yield f"| dynamic program (peer) | {1e3 * statistics.median(peer):.2f} | {1e3 * max(peer):.2f} | 1 | 0 | 0 |"


def mistaken(seed: int, bias: float, noise: float) -> tuple[Problem, Problem]:
    """(true, measured) with a mean of 2 bits: mistakes by kind and along the depth, and noise of each decision."""
    rng = np.random.default_rng(seed)
    true = rng.normal(0, 0.7, 4)[KIND] + rng.normal(0, 1, 4)[KIND] * DEPTH + rng.normal(0, 0.5, len(MACS))
    wrong = rng.normal(0, bias, 4)[KIND] + 2 * rng.normal(0, bias, 4)[KIND] * DEPTH
    measured = true + wrong + rng.normal(0, noise, len(MACS))
    return problem_of(noisy(np.exp(true), 0, rng), 2.0), problem_of(noisy(np.exp(measured), noise / 2, rng), 2.0)


def random_values(space: Space, rng: np.random.Generator) -> dict[str, float]:
    """One draw; a sampler would learn from the ones before, this is what the space is worth without."""
    values: dict[str, float] = {}
    for name, p in space.parameters().items():
        if p.integer:
            values[name] = int(rng.integers(int(p.low), int(p.high) + 1))
        else:
            values[name] = float(
                np.exp(rng.uniform(np.log(p.low), np.log(p.high))) if p.log else rng.uniform(p.low, p.high)
            )
    return values


def best_of_draws(space: Space, true: Problem, seed: int) -> float:
    rng = np.random.default_rng(1000 + seed)
    return min(true.damage_of(space.decode(random_values(space, rng))) for _ in range(DRAWS))


def space_row(label: str, bias: float, noise: float) -> str:
    """Medians over the problems of the true damage over the exact allocation's of the true sensitivities."""
    ratios: dict[str, list[float]] = {}
    for seed in range(SEEDS):
        true, measured = mistaken(seed, bias, noise)
        policy = PolicySpace(measured)
        trend = policy.decode({**dict.fromkeys(policy.parameters(), 1.0), "trust": 0.0})
        found = {
            "uniform": true.damage_of(uniform(measured).bits),
            "exact": true.damage_of(exact(measured).bits),
            "trend": true.damage_of(trend),
            **{name: best_of_draws(make_space(name, measured), true, seed) for name in SPACES},
        }
        for name, damage in found.items():
            ratios.setdefault(name, []).append(damage / exact(true).damage)
    return f"| {label} | " + " | ".join(f"{statistics.median(values):.3f}" for values in ratios.values()) + " |"


def main() -> None:
    problems = list(timing_problems())
    decode = [seconds(lambda p: PolicySpace(p).encode(uniform(p).bits), p) / NEWTON_STEPS for p in problems[::4]]
    lines = [
        f"# Allocators on {len(MACS)} decisions x {len(CANDIDATES)} candidates",
        "",
        f"One thread, {len(problems)} problems ({SEEDS} seeds, mean bits by MACs "
        f"{', '.join(f'{x:g}' for x in LIMITS)}), CPU time as the median of {ROUNDS} rounds each.",
        f"numpy {np.__version__}, scipy {scipy.__version__}, {platform.machine()}. "
        "Written by `OMP_NUM_THREADS=1 python tests/benchmarks/bench_allocators.py`.",
        "",
        "Gap: damage over the least there is, by a dynamic program in whole units, minus one.",
        "",
        "| allocator | median, ms | slowest problem, ms | time / peer's | median gap, % | largest gap, % |",
        "|-|-|-|-|-|-|",
        *allocator_rows(problems),
        "",
        f"Decoding one policy: {1e3 * statistics.median(decode):.1f} ms (median).",
        "",
        "## What mistaken sensitivities cost, and what a space can repair",
        "",
        f"True damage over that of the exact allocation of the true sensitivities, median of {SEEDS} problems "
        "at a mean of 2 bits.",
        "`exact` and `uniform` see the measured ones; `trend` is the policy at no trust, all else 1; the spaces: "
        f"the best\nof {DRAWS} independent random draws, without the help of a sampler or of known allocations.",
        "",
        "| mistakes (standard deviations of logarithms) | uniform | exact | trend | policy | block | layer |",
        "|-|-|-|-|-|-|-|",
        space_row("none", 0.0, 0.0),
        space_row("by kind and depth 0.5", 0.5, 0.0),
        space_row("of each decision 0.5", 0.0, 0.5),
        space_row("both 0.5", 0.5, 0.5),
    ]
    Path(__file__).with_name("allocators.md").write_text("\n".join(lines) + "\n")


if __name__ == "__main__":
    main()
