"""Budgets: what an allocation costs is what robuq.cost says of the same network."""

from __future__ import annotations

import numpy as np
import pytest
from ampn_problems import decisions_of
from hypothesis import given, settings
from hypothesis import strategies as st

from robuq.ampn.problem import Problem, make_problem
from robuq.ampn.table import SensitivityTable
from robuq.config import (
    BLOCK_ROLES,
    MODEL_PRESETS,
    BitAllocation,
    Budget,
    ConfigError,
    ModelConfig,
    PrecisionMap,
    Weighting,
)
from robuq.cost import average_bits, layer_costs, summarise
from robuq.variants import VARIANTS

MODEL = ModelConfig(width=64, num_layers=3)
ROBUQ = VARIANTS["robuq_uniform"](2)
DAMAGE = np.outer(np.arange(1.0, 13.0), 4.0 ** -np.arange(1, 9))
MEANS: list[Weighting] = ["layers", "macs", "elements"]

some_bits = st.lists(st.integers(1, 8), min_size=12, max_size=12)


def problem_of(budget: Budget, precision: PrecisionMap = ROBUQ) -> Problem:
    return make_problem(DAMAGE, MODEL, precision, budget)


def named(bits: list[int]) -> BitAllocation:
    return BitAllocation(bits=dict(zip(decisions_of(3), bits, strict=True)))


@pytest.mark.parametrize("weights", MEANS)
@given(bits=some_bits)
@settings(max_examples=25)
def test_mean_bits_are_the_cost_models(weights: Weighting, bits: list[int]) -> None:
    problem = problem_of(Budget(limit=2.0, weights=weights))
    costs = layer_costs(MODEL, ROBUQ, named(bits))
    assert problem.cost_of(bits) == pytest.approx(average_bits(costs, weights), rel=1e-12)


@given(bits=some_bits)
@settings(max_examples=25)
def test_bops_are_the_cost_models(bits: list[int]) -> None:
    whole = problem_of(Budget(limit=10.0, weights="bops", count_fixed=True))
    costs = layer_costs(MODEL, ROBUQ, named(bits))
    assert whole.cost_of(bits) == pytest.approx(summarise(costs).bops / 1e9, rel=1e-12)
    linears = problem_of(Budget(limit=10.0, weights="bops"))
    products = sum(cost.macs * cost.weight_bits * cost.act_bits for cost in costs if cost.role in BLOCK_ROLES)
    assert linears.cost_of(bits) == pytest.approx(products / 1e9, rel=1e-12)


@pytest.mark.parametrize("weights", MEANS)
@pytest.mark.parametrize("name", ["nano", "digits", "fashion", "DiT-XL/2"])
def test_the_same_width_everywhere_is_that_mean_in_spite_of_rounding(name: str, weights: Weighting) -> None:
    model = MODEL_PRESETS[name]
    damage = np.zeros((4 * model.num_layers, 8))
    for width in range(1, 9):
        problem = make_problem(damage, model, ROBUQ, Budget(limit=float(width), weights=weights))
        assert problem.is_feasible((width,) * len(damage))
        if width < 8:
            assert not problem.is_feasible((width + 1, *(width,) * (len(damage) - 1)))


def test_decisions_are_in_the_order_of_the_network() -> None:
    problem = problem_of(Budget(limit=2.0))
    assert problem.decisions == decisions_of(3)


def test_damage_is_summed_over_the_decisions() -> None:
    problem = problem_of(Budget(limit=8.0))
    assert problem.damage_of((1,) * 11 + (2,)) == pytest.approx(sum(range(1, 12)) / 4 + 12 / 16)


class TestInfeasible:
    @pytest.mark.parametrize("weights", MEANS)
    def test_mean_bits_say_what_can_be_reached(self, weights: Weighting) -> None:
        with pytest.raises(ConfigError) as caught:
            problem_of(Budget(limit=0.5, weights=weights))
        assert str(caught.value) == f"budget 0.5 mean bits by {weights} cannot be reached: from 1 to 8 can"

    @pytest.mark.parametrize("count_fixed", [False, True])
    def test_bops_say_what_can_be_reached_and_it_can(self, count_fixed: bool) -> None:
        with pytest.raises(ConfigError) as caught:
            problem_of(Budget(limit=1e-4, weights="bops", count_fixed=count_fixed))
        words = str(caught.value).split()
        assert "\n" not in str(caught.value)
        low = float(words[words.index("from") + 1])
        problem = problem_of(Budget(limit=low, weights="bops", count_fixed=count_fixed))
        assert problem.reachable[0] <= low <= problem.reachable[0] * 1.001

    def test_just_below_the_cheapest_is_refused_and_the_cheapest_is_not(self) -> None:
        assert problem_of(Budget(limit=1.0)).is_feasible((1,) * 12)
        with pytest.raises(ConfigError, match="from 1 to 8 can"):
            problem_of(Budget(limit=1.0 - 1e-6))

    def test_another_limit_is_checked_too(self) -> None:
        problem = problem_of(Budget(limit=2.0))
        assert problem.with_limit(3.5).budget == Budget(limit=3.5)
        with pytest.raises(ConfigError, match=r"budget 0\.9 mean bits by macs"):
            problem.with_limit(0.9)


class TestRefused:
    @pytest.mark.parametrize("bits", [(2,) * 11, (2,) * 13, (9,) * 12, (0,) * 12])
    def test_bits_that_are_no_allocation(self, bits: tuple[int, ...]) -> None:
        with pytest.raises(ValueError, match=r"need 12 out of \[1, 2, 3, 4, 5, 6, 7, 8\]"):
            problem_of(Budget(limit=2.0)).cost_of(bits)

    def test_decisions_without_activation_bits(self) -> None:
        precision = ROBUQ.updated(fc2=None)
        with pytest.raises(ConfigError, match=r"activations of transformer_blocks\.0\.fc2 alone"):
            make_problem(DAMAGE, MODEL, precision, Budget(limit=2.0))

    def test_another_networks_table(self, table: SensitivityTable) -> None:
        with pytest.raises(ConfigError, match="has 4 decisions, the model 12"):
            make_problem(table, MODEL, ROBUQ, Budget(limit=2.0))

    def test_damage_that_is_not_finite(self) -> None:
        damage = DAMAGE.copy()
        damage[3, 4] = np.nan
        with pytest.raises(ConfigError, match="finite"):
            make_problem(damage, MODEL, ROBUQ, Budget(limit=2.0))

    @pytest.mark.parametrize("cost", [[[-1.0, 1.0]], [[2.0, 1.0]], [[1.0, 1.0]]])
    def test_costs_that_are_negative_or_do_not_rise(self, cost: list[list[float]]) -> None:
        with pytest.raises(ConfigError, match="cost must not be negative and must rise"):
            Problem(("transformer_blocks.0.qkv",), (1, 2), np.zeros((1, 2)), np.array(cost), 2.0, Budget(limit=2.0))


def test_the_table_gives_damage_and_candidates(table: SensitivityTable) -> None:
    model = ModelConfig(width=64, num_layers=1)
    problem = make_problem(table, model, ROBUQ, Budget(limit=3.0), "output_error")
    assert problem.candidates == table.candidates
    assert problem.damage.tolist() == [list(row) for row in table.output_error]
