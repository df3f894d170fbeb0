"""Search spaces: a few numbers in, an allocation out that keeps to the budget, whatever the numbers. Free of torch.

`policy` re-weighs the measured damage and lets the exact allocator decide; `block` and `layer` name widths, which are
repaired to the budget; `blind` draws at random.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Protocol

import numpy as np
from numpy.typing import NDArray

from robuq.ampn.allocate import exact, spend
from robuq.ampn.problem import Bits, Choice, Problem
from robuq.ampn.table import split_decision
from robuq.config import BLOCK_ROLES
from robuq.config.search import SpaceName

Values = Mapping[str, float]
Vector = NDArray[np.float64]  # (L,)

REACH = 8.0  # a multiplier is within 1/8 ... 8
DRAWS = 2**31  # of the blind space
DEEP = 8  # networks of more blocks are grouped by thirds of their depth
ONE_BIT = 4.0  # a bit more divides the error's power by about four: 6.02 dB
NEWTON_STEPS = 4


@dataclass(frozen=True)
class Parameter:
    """One dimension: both ends are allowed."""

    low: float
    high: float
    log: bool = False
    integer: bool = False


class Space(Protocol):
    """Every decoded allocation is feasible. Names and ranges depend on the problem's shape alone, not on its budget."""

    def parameters(self) -> dict[str, Parameter]: ...

    def decode(self, values: Values) -> Bits: ...

    def encode(self, bits: Sequence[int]) -> dict[str, float]:
        """Values whose allocation is near `bits`."""
        ...


def make_space(name: SpaceName, problem: Problem) -> Space:
    return SPACES[name](problem)


def repair(problem: Problem, bits: Sequence[int]) -> Bits:
    """Lower bits, by least damage per cost saved, until they keep to the budget; then spend what is left.

    Feasible bits are only ever raised, and only where that lowers the damage; what it returns it leaves alone.
    """
    choice, rows = problem.choice_of(bits), np.arange(len(bits))
    while (cost := problem.cost[rows, choice]).sum() > problem.ceiling:
        lost, freed = problem.damage - problem.damage[rows, choice][:, None], cost[:, None] - problem.cost
        rate = np.divide(lost, freed, out=np.full(lost.shape, np.inf), where=freed > 0)
        row, column = np.unravel_index(np.argmin(rate), rate.shape)
        choice[row] = column
    return spend(problem, problem.bits_of(choice))


def random_allocation(problem: Problem, rng: np.random.Generator) -> Bits:
    """A feasible allocation near the budget that owes nothing to the damage, so that it can judge measures of it.

    Every decision's width is uniform over the candidates; then random decisions are lowered by one width each until the
    budget holds, and in random order each is raised as far as it holds.
    """
    rows, columns = problem.damage.shape
    choice: Choice = rng.integers(columns, size=(rows,), dtype=np.intp)
    while problem.cost[np.arange(rows), choice].sum() > problem.ceiling:
        choice[rng.choice(np.flatnonzero(choice > 0))] -= 1
    for row in map(int, rng.permutation(rows)):
        choice[row] = _highest_that_fits(problem, choice, row)
    return problem.bits_of(choice)


def _highest_that_fits(problem: Problem, choice: Choice, row: int) -> int:
    others = problem.cost[np.arange(len(choice)), choice].sum() - problem.cost[row, choice[row]]
    return int(np.flatnonzero(others + problem.cost[row] <= problem.ceiling)[-1])


class PolicySpace:
    """A few doubts about the measured damage; the exact allocator does the rest. With all values 1 it is `exact`.

    - `weight.fc1` multiplies the damage of every fc1, and so on. The first kind has no weight of its own: weights
      that are all alike change nothing.
    - `tilt.fc1` is how many times more the last block's fc1 weighs than the first's, geometrically in between.
    - `trust` below 1 draws the size of each decision's damage towards the trend over the depth of its kind, on which it
      is at 0: what the measurement says of single decisions is noise in part.
    """

    def __init__(self, problem: Problem) -> None:
        self.problem = problem
        blocks, roles = _places(problem)
        self._depth = _centred(blocks)
        self._kinds = {role: np.array([own == role for own in roles]) for role in BLOCK_ROLES if role in roles}
        self._trend = self._towards_trend()

    def parameters(self) -> dict[str, Parameter]:
        first, *others = self._kinds
        names = [f"weight.{role}" for role in others] + [f"tilt.{role}" for role in (first, *others)]
        return {**dict.fromkeys(names, Parameter(1 / REACH, REACH, log=True)), "trust": Parameter(0.0, 1.0)}

    def decode(self, values: Values) -> Bits:
        factors = self._trend ** (1 - values["trust"])
        for role, here in self._kinds.items():
            factors[here] *= values.get(f"weight.{role}", 1.0) * values[f"tilt.{role}"] ** self._depth[here]
        return exact(self.problem.with_damage(self.problem.damage * factors[:, None])).bits

    def encode(self, bits: Sequence[int]) -> dict[str, float]:
        """By a few Newton steps: where a bit divides damage by four, b more bits on average come of 4^b the weight."""
        values = dict.fromkeys(self.parameters(), 1.0)
        best, least = values, np.inf
        for _ in range(NEWTON_STEPS):
            missing = np.subtract(bits, self.decode(values), dtype=np.float64)
            if (distance := float(np.abs(missing).sum())) < least:
                best, least = values, distance
            values = self._stepped(values, missing)
        return best

    def _stepped(self, values: Values, missing: Vector) -> dict[str, float]:
        wanted = {"trust": 0.0}  # bits, of what each value stands for
        first = next(iter(self._kinds.values()))
        for role, here in self._kinds.items():
            depth, short = self._depth[here], missing[here]
            wanted[f"weight.{role}"] = float(short.mean() - missing[first].mean())
            wanted[f"tilt.{role}"] = float(depth @ short / ((depth @ depth) or 1.0))
        return {
            name: float(np.clip(value * ONE_BIT ** wanted[name], 1 / REACH, REACH)) for name, value in values.items()
        }

    def _towards_trend(self) -> Vector:
        """(L,): what takes the size of each decision's damage to the log-linear trend of its kind over the depth."""
        damage = self.problem.damage
        size = np.linalg.norm(damage - damage.min(axis=1, keepdims=True), axis=1)
        factors = np.ones(len(size))
        for here in self._kinds.values():
            known = here & (size > 0)  # a decision whose bits all cost the same stays as it is
            if known.any():
                factors[known] = np.exp(_line(self._depth[known], np.log(size[known])) - np.log(size[known]))
        return factors


class GroupSpace:
    """One width for each group of decisions, repaired to the budget."""

    def __init__(self, problem: Problem, groups: Sequence[str]) -> None:
        self.problem = problem
        self._groups = groups  # of each decision
        self._names = list(dict.fromkeys(groups))

    def parameters(self) -> dict[str, Parameter]:
        ends = Parameter(self.problem.candidates[0], self.problem.candidates[-1], integer=True)
        return dict.fromkeys(self._names, ends)

    def decode(self, values: Values) -> Bits:
        widths = {name: _nearest(self.problem.candidates, values[name]) for name in self._names}
        return repair(self.problem, [widths[group] for group in self._groups])

    def encode(self, bits: Sequence[int]) -> dict[str, float]:
        """The mean of each group, rounded."""
        members = {name: [b for b, g in zip(bits, self._groups, strict=True) if g == name] for name in self._names}
        return {name: _nearest(self.problem.candidates, sum(own) / len(own)) for name, own in members.items()}


def block_space(problem: Problem) -> GroupSpace:
    """A width for attention (qkv, proj) and one for the MLP (fc1, fc2) of each block; of deep networks, for each kind
    in each third of the depth."""
    blocks, roles = _places(problem)
    count = len(set(blocks))
    if count <= DEEP:
        parts = {"qkv": "attention", "proj": "attention", "fc1": "mlp", "fc2": "mlp"}
        return GroupSpace(problem, [f"block{block}.{parts[role]}" for block, role in zip(blocks, roles, strict=True)])
    thirds = ("early", "middle", "late")
    ranks = {block: rank for rank, block in enumerate(sorted(set(blocks)))}
    groups = [f"{thirds[3 * ranks[block] // count]}.{role}" for block, role in zip(blocks, roles, strict=True)]
    return GroupSpace(problem, groups)


def layer_space(problem: Problem) -> GroupSpace:
    """A width for each decision."""
    return GroupSpace(problem, problem.decisions)


class BlindSpace:
    """Random allocations by the number of the draw: they owe nothing to the damage, so that they can judge measures of
    it. There is nothing in it for a sampler to learn."""

    def __init__(self, problem: Problem) -> None:
        self.problem = problem

    def parameters(self) -> dict[str, Parameter]:
        return {"draw": Parameter(0, DRAWS - 1, integer=True)}

    def decode(self, values: Values) -> Bits:
        return random_allocation(self.problem, np.random.default_rng(int(values["draw"])))

    def encode(self, bits: Sequence[int]) -> dict[str, float]:
        """No draw is near another."""
        return {"draw": 0}


def _places(problem: Problem) -> tuple[list[int], list[str]]:
    """Block and role of each decision."""
    places = [split_decision(decision) for decision in problem.decisions]
    return [block for block, _ in places], [role for _, role in places]


def _centred(blocks: Sequence[int]) -> Vector:
    """-1/2 for the first block, 1/2 for the last."""
    first, last = min(blocks), max(blocks)
    return (np.array(blocks) - first) / max(last - first, 1) - (0.5 if last > first else 0.0)


def _line(x: Vector, y: Vector) -> Vector:
    """The least-squares line's values at x; their mean where x does not vary."""
    x = x - x.mean()
    return np.asarray(y.mean() + x * ((x @ y) / ((x @ x) or 1.0)))


def _nearest(candidates: Sequence[int], value: float) -> int:
    """Between two equally near, the lower."""
    return min(candidates, key=lambda bits: (abs(bits - value), bits))


SPACES: dict[SpaceName, Callable[[Problem], Space]] = {
    "policy": PolicySpace,
    "block": block_space,
    "layer": layer_space,
    "blind": BlindSpace,
}
