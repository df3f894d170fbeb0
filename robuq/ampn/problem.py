"""A bit-allocation problem: what every choice damages, what it costs, and what all together may cost. Free of torch.

Everything is a matrix (L, C) of L decisions by C candidate bit-widths. An allocation is the tuple of L bit-widths, in
the order of the decisions: blocks ascending, qkv, proj, fc1, fc2 within a block.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from math import ceil, floor, log10
from typing import Any

import numpy as np
from numpy.typing import NDArray

from robuq.ampn.table import SensitivityTable
from robuq.config import (
    BLOCK_ROLES,
    Budget,
    ConfigError,
    Measure,
    ModelConfig,
    PrecisionMap,
    Weighting,
    decision_name,
)
from robuq.cost import FULL, LayerCost, layer_costs

Matrix = NDArray[np.float64]
Choice = NDArray[np.intp]  # (L,): columns
Bits = tuple[int, ...]

# A sum of L shares may exceed the limit by rounding: two bits everywhere is within a mean of two bits. Relative.
SLACK = 1e-9


@dataclass(frozen=True, eq=False)
class Problem:
    """Minimise the summed damage such that the summed cost is at most `limit`. Some allocation always does.

    `damage` may be negative and need not fall with the bits: it is measured. `cost` rises with the bits; summed, it is
    in the budget's unit, what is fixed included where the budget counts it.
    """

    decisions: tuple[str, ...]
    candidates: tuple[int, ...]  # ascending
    damage: Matrix  # (L, C)
    cost: Matrix  # (L, C)
    limit: float
    budget: Budget

    def __post_init__(self) -> None:
        shape = (len(self.decisions), len(self.candidates))
        if 0 in shape or list(self.candidates) != sorted(set(self.candidates)):
            raise ConfigError(f"{shape[0]} decisions with candidates {list(self.candidates)}: these must ascend")
        for name, values in (("damage", self.damage), ("cost", self.cost)):
            if values.shape != shape or not np.isfinite(values).all():
                raise ConfigError(f"{name} must be {shape[0]} x {shape[1]} finite numbers, got {_describe(values)}")
        if (self.cost < 0).any() or (np.diff(self.cost, axis=1) <= 0).any():
            raise ConfigError("cost must not be negative and must rise with the bits")
        if not self.is_feasible(self.bits_of(np.zeros(shape[0], dtype=np.intp))):
            low, high = self.reachable
            raise ConfigError(
                f"budget {self.limit:g} {unit(self.budget)} cannot be reached: from {_up(low)} to {high:.4g} can"
            )

    @property
    def reachable(self) -> tuple[float, float]:
        """Cost of the cheapest and of the dearest allocation."""
        return float(self.cost[:, 0].sum()), float(self.cost[:, -1].sum())

    def choice_of(self, bits: Sequence[int]) -> Choice:
        """(L,): columns of the bit-widths.

        Raises:
            ValueError: not one candidate for each decision.
        """
        unknown = sorted(set(bits) - set(self.candidates))
        if unknown or len(bits) != len(self.decisions):
            got = f"{unknown[0]} bits" if unknown else f"{len(bits)} bit-widths"
            raise ValueError(f"got {got}: need {len(self.decisions)} out of {list(self.candidates)}")
        return np.searchsorted(self.candidates, bits)

    def bits_of(self, choice: Choice) -> Bits:
        return tuple(self.candidates[column] for column in choice)

    def cost_of(self, bits: Sequence[int]) -> float:
        """In the budget's unit."""
        return _total(self.cost, self.choice_of(bits))

    def damage_of(self, bits: Sequence[int]) -> float:
        return _total(self.damage, self.choice_of(bits))

    def is_feasible(self, bits: Sequence[int]) -> bool:
        return self.cost_of(bits) <= self.ceiling

    @property
    def ceiling(self) -> float:
        """The limit with room for rounding."""
        return self.limit * (1 + SLACK)

    def with_damage(self, damage: Matrix) -> Problem:
        return replace(self, damage=damage)

    def with_limit(self, limit: float) -> Problem:
        """The same under another budget of the same kind.

        Raises:
            ConfigError: it cannot be reached.
        """
        return replace(self, limit=limit, budget=self.budget.updated(limit=limit))


@dataclass(frozen=True)
class Allocation:
    """Bits in the order of the decisions, with the damage and cost that the problem gives them."""

    bits: Bits
    damage: float
    cost: float
    optimal: bool  # proven


def allocation_of(problem: Problem, bits: Sequence[int], optimal: bool = False) -> Allocation:
    return Allocation(tuple(bits), problem.damage_of(bits), problem.cost_of(bits), optimal)


def make_problem(
    damage: SensitivityTable | Matrix,
    model: ModelConfig,
    precision: PrecisionMap,
    budget: Budget,
    measure: Measure = "loss",
) -> Problem:
    """The problem of a network: damage as measured, cost by the budget's weighting.

    A plain matrix (L, C) has the candidates 1 ... C, and `measure` has no meaning for it.

    Raises:
        ConfigError: the table is another network's, the precision map leaves a decision's activations alone, or no
            allocation keeps to the budget.
    """
    decisions = tuple(decision_name(block, role) for block in range(model.num_layers) for role in BLOCK_ROLES)
    if isinstance(damage, SensitivityTable):
        _check_decisions(damage.decisions, decisions)
        candidates, matrix = damage.candidates, damage.matrix(measure)
    else:
        candidates, matrix = tuple(range(1, damage.shape[-1] + 1)), damage
    cost = budget_cost(layer_costs(model, precision), decisions, candidates, budget)
    return Problem(decisions, candidates, matrix, cost, budget.limit, budget)


def budget_cost(costs: list[LayerCost], decisions: Sequence[str], candidates: Sequence[int], budget: Budget) -> Matrix:
    """(L, C): each decision's share of the budget at each bit-width.

    layers, macs, elements: weight / sum of weights x bits. bops: MACs x weight bits x bits / 10^9; what is fixed is
    spread evenly over the decisions where it counts, so that sums are of the whole network.

    Raises:
        ConfigError: the precision map leaves a decision's activations alone.
    """
    by_name = {cost.name: cost for cost in costs}
    layers = [by_name[decision] for decision in decisions]
    for layer in layers:
        if layer.act_bits == FULL:
            raise ConfigError(
                f"the precision map leaves the activations of {layer.name} alone: it has no bits to choose"
            )
    weights = np.array([_weight(layer, budget.weights) for layer in layers], dtype=np.float64)
    if budget.weights != "bops":
        return np.outer(weights / weights.sum(), candidates)
    fixed = sum(cost.bops for cost in costs) - sum(_weight(layer, "bops") * layer.act_bits for layer in layers)
    shared = fixed / len(layers) if budget.count_fixed else 0.0
    return (np.outer(weights, candidates) + shared) / 1e9


def _weight(layer: LayerCost, weights: Weighting) -> float:
    """What one activation bit of the layer counts."""
    return {
        "layers": 1.0,
        "macs": float(layer.macs),
        "elements": float(layer.act_elements),
        "bops": layer.macs * layer.weight_bits,
    }[weights]


def unit(budget: Budget) -> str:
    """What the budget's limit counts, for people."""
    if budget.weights != "bops":
        return f"mean bits by {budget.weights}"
    return f"x 10^9 BOPs of the {'whole network' if budget.count_fixed else 'block linears'}"


def _check_decisions(got: tuple[str, ...], wanted: tuple[str, ...]) -> None:
    if got != wanted:
        odd = next((name for name in (*got, *wanted) if name not in got or name not in wanted), "another order")
        raise ConfigError(f"the sensitivity table has {len(got)} decisions, the model {len(wanted)}: see {odd}")


def _total(values: Matrix, choice: Choice) -> float:
    return float(values[np.arange(len(choice)), choice].sum())


def _up(value: float) -> str:
    """Four digits, rounded up: what is printed can be reached."""
    digit = 10.0 ** (floor(log10(value)) - 3) if value > 0 else 1.0
    return f"{ceil(value / digit * (1 - SLACK)) * digit:.4g}"


def _describe(values: Any) -> str:
    shape = " x ".join(map(str, values.shape))
    return f"{shape} with {int((~np.isfinite(values)).sum())} that are not finite"
