"""Search spaces: feasible whatever is asked, and the same names tomorrow; repair and random allocations."""

from __future__ import annotations

import json
from itertools import pairwise
from typing import Any

import numpy as np
import pytest
from ampn_problems import network_problem, problems
from hypothesis import given, settings
from hypothesis import strategies as st

from robuq.ampn.allocate import ALLOCATORS, exact, spend, uniform
from robuq.ampn.policy import DEEP, SPACES, Parameter, Space, make_space, random_allocation, repair
from robuq.ampn.problem import Problem
from robuq.config import Allocator, SpaceName

NAMES: list[SpaceName] = ["policy", "block", "layer", "blind"]
WIDTHS = np.arange(1, 9)


def falling(num_blocks: int, seed: int = 0, noise: float = 0.3) -> np.ndarray:
    rng = np.random.default_rng(seed)
    rows = 4 * num_blocks
    return np.outer(rng.lognormal(size=rows), 4.0**-WIDTHS) * rng.lognormal(0, noise, size=(rows, len(WIDTHS)))


def drawn(parameters: dict[str, Parameter], rng: np.random.Generator) -> dict[str, float]:
    """Values of every kind: inside, and at both ends."""
    values = {}
    for name, p in parameters.items():
        inside = np.exp(rng.uniform(np.log(p.low), np.log(p.high))) if p.log else rng.uniform(p.low, p.high)
        value = rng.choice([p.low, p.high, inside], p=[0.1, 0.1, 0.8])
        values[name] = round(float(value)) if p.integer else float(np.clip(value, p.low, p.high))
    return values


def test_every_name_of_the_configuration_has_a_space() -> None:
    assert list(SPACES) == NAMES


@pytest.mark.parametrize("name", NAMES)
class TestSpace:
    @given(problem=problems(), seed=st.integers(0, 2**32 - 1))
    @settings(max_examples=60)
    def test_whatever_is_decoded_keeps_to_the_budget(self, name: SpaceName, problem: Problem, seed: int) -> None:
        space, rng = make_space(name, problem), np.random.default_rng(seed)
        for _ in range(3):
            bits = space.decode(drawn(space.parameters(), rng))
            assert len(bits) == len(problem.decisions)
            assert problem.is_feasible(bits)

    @pytest.mark.parametrize(("num_blocks", "count"), [(4, 1000), (DEEP + 1, 200)])
    def test_a_thousand_values_keep_to_the_budget(self, name: SpaceName, num_blocks: int, count: int) -> None:
        problem = network_problem(falling(num_blocks), 2.0)
        space, rng = make_space(name, problem), np.random.default_rng(1)
        found = [space.decode(drawn(space.parameters(), rng)) for _ in range(count)]
        assert all(problem.is_feasible(bits) for bits in found)
        assert len(set(found)) > count / 4  # and the values matter

    @given(problem=problems(), seed=st.integers(0, 2**32 - 1))
    @settings(max_examples=40)
    def test_whatever_is_encoded_is_a_value(self, name: SpaceName, problem: Problem, seed: int) -> None:
        space = make_space(name, problem)
        bits = random_allocation(problem, np.random.default_rng(seed))
        values, parameters = space.encode(bits), space.parameters()
        assert list(values) == list(parameters)
        for key, value in values.items():
            assert parameters[key].low <= value <= parameters[key].high
            assert isinstance(value, int) or not parameters[key].integer

    @given(problem=problems())
    @settings(max_examples=40)
    def test_the_budget_changes_no_parameter(self, name: SpaceName, problem: Problem) -> None:
        wide = problem.with_limit(2 * problem.limit)
        assert make_space(name, wide).parameters() == make_space(name, problem).parameters()

    def test_is_deterministic(self, name: SpaceName) -> None:
        problem = network_problem(falling(4), 2.0)
        values = drawn(make_space(name, problem).parameters(), np.random.default_rng(0))
        assert make_space(name, problem).decode(values) == make_space(name, problem).decode(values)


WEIGHT = {"low": 0.125, "high": 8.0, "log": True, "integer": False}
WIDTH = {"low": 1, "high": 8, "log": False, "integer": True}


@pytest.mark.parametrize(
    ("name", "num_blocks", "expected"),
    [
        (
            "policy",
            2,
            {
                **dict.fromkeys(["weight.proj", "weight.fc1", "weight.fc2"], WEIGHT),
                **dict.fromkeys(["tilt.qkv", "tilt.proj", "tilt.fc1", "tilt.fc2"], WEIGHT),
                "trust": {"low": 0.0, "high": 1.0, "log": False, "integer": False},
            },
        ),
        ("block", 2, dict.fromkeys(["block0.attention", "block0.mlp", "block1.attention", "block1.mlp"], WIDTH)),
        (
            "block",
            DEEP + 1,
            {
                f"{third}.{role}": WIDTH
                for third in ("early", "middle", "late")
                for role in ("qkv", "proj", "fc1", "fc2")
            },
        ),
        ("blind", 1, {"draw": {"low": 0, "high": 2**31 - 1, "log": False, "integer": True}}),
        ("layer", 1, {f"transformer_blocks.0.{role}": WIDTH for role in ("qkv", "proj", "fc1", "fc2")}),
    ],
)
def test_names_and_ranges_are_what_stored_studies_hold(
    name: SpaceName, num_blocks: int, expected: dict[str, Any]
) -> None:
    parameters = make_space(name, network_problem(falling(num_blocks), 2.0)).parameters()
    assert json.dumps({key: vars(p) for key, p in parameters.items()}) == json.dumps(expected)


class TestPolicy:
    @given(problem=problems())
    @settings(max_examples=60)
    def test_all_ones_are_the_exact_allocation(self, problem: Problem) -> None:
        space = make_space("policy", problem)
        assert space.decode(dict.fromkeys(space.parameters(), 1.0)) == exact(problem).bits

    @pytest.mark.parametrize("role", ["proj", "fc1", "fc2"])
    def test_more_weight_gives_a_kind_more_bits(self, role: str) -> None:
        problem = network_problem(falling(8), 3.0)
        space = make_space("policy", problem)
        own = [index for index, decision in enumerate(problem.decisions) if decision.endswith(role)]
        means = []
        for weight in (1 / 8, 1.0, 8.0):
            values = {**dict.fromkeys(space.parameters(), 1.0), f"weight.{role}": weight}
            means.append(np.mean([space.decode(values)[index] for index in own]))
        # 64 times the weight is three bits of 6.02 dB; the budget takes some of them back.
        assert means[0] + 1 < means[2]
        assert means[0] <= means[1] <= means[2]

    def test_tilt_moves_bits_to_later_blocks(self) -> None:
        problem = network_problem(np.outer(np.ones(32), 4.0**-WIDTHS), 3.0)
        space = make_space("policy", problem)
        values = dict.fromkeys(space.parameters(), 1.0) | {f"tilt.{r}": 8.0 for r in ("qkv", "proj", "fc1", "fc2")}
        bits = np.array(space.decode(values)).reshape(8, 4)
        assert bits[:4].sum() < bits[4:].sum()
        assert (np.diff(bits[:, 2]) >= 0).all()

    def test_without_trust_the_noise_of_single_decisions_is_gone(self) -> None:
        """Truth: a size that falls with depth; measured: the same with noise. At no trust the order is the truth's."""
        rng = np.random.default_rng(0)
        truth = np.exp(-0.1 * np.repeat(np.arange(28), 4))
        measured = network_problem(np.outer(truth * rng.lognormal(0, 0.5, size=112), 4.0**-WIDTHS), 2.5)
        space = make_space("policy", measured)
        ones = dict.fromkeys(space.parameters(), 1.0)
        smooth = np.array(space.decode({**ones, "trust": 0.0})).reshape(28, 4)
        assert (np.diff(smooth, axis=0) <= 0).mean() > 0.97  # the last units of the budget go where they fit
        actual = measured.with_damage(np.outer(truth, 4.0**-WIDTHS))
        assert actual.damage_of(smooth.ravel().tolist()) < actual.damage_of(space.decode(ones))

    def test_rows_without_a_difference_do_no_harm(self) -> None:
        damage = falling(4)
        damage[5] = 0.7
        space = make_space("policy", network_problem(damage, 2.0))
        assert space.decode({**dict.fromkeys(space.parameters(), 1.0), "trust": 0.2})[5] == 1

    def test_the_exact_allocation_is_encoded_exactly(self) -> None:
        problem = network_problem(falling(4), 2.0)
        space = make_space("policy", problem)
        assert set(space.encode(exact(problem).bits).values()) == {1.0}

    @pytest.mark.parametrize("name", ["uniform", "paper"])
    def test_encoding_comes_nearer_than_all_ones(self, name: Allocator) -> None:
        problem = network_problem(falling(8, noise=0.0), 2.5)
        space = make_space("policy", problem)
        wanted = np.array(ALLOCATORS[name](problem).bits)
        near = np.abs(np.subtract(space.decode(space.encode(wanted.tolist())), wanted)).sum()
        assert near < np.abs(np.subtract(exact(problem).bits, wanted)).sum()


class TestGroups:
    @pytest.mark.parametrize("name", ["block", "layer"])
    def test_a_uniform_allocation_survives(self, name: SpaceName) -> None:
        problem = network_problem(falling(4), 2.0)
        space: Space = make_space(name, problem)
        assert space.decode(space.encode((2,) * 16)) == (2,) * 16

    @given(problem=problems(), seed=st.integers(0, 2**32 - 1))
    @settings(max_examples=40)
    def test_layers_give_back_what_has_spent_its_budget(self, problem: Problem, seed: int) -> None:
        bits = spend(problem, random_allocation(problem, np.random.default_rng(seed)))
        space = make_space("layer", problem)
        assert space.decode(space.encode(bits)) == bits

    def test_widths_that_are_no_candidates_go_to_the_nearest(self) -> None:
        problem = network_problem(falling(1)[:, :3], 8.0, candidates=(2, 4, 8))
        space = make_space("layer", problem)
        values = dict(zip(problem.decisions, (2, 3, 5, 7), strict=True))
        asked = (2, 2, 4, 8)
        assert all(got >= bits for got, bits in zip(space.decode(values), asked, strict=True))
        frozen = problem.with_damage(np.zeros((4, 3)))  # nothing to gain by raising
        assert make_space("layer", frozen).decode(values) == asked


class TestRepair:
    @given(problem=problems(), data=st.data())
    @settings(max_examples=100)
    def test_keeps_to_the_budget_leaves_nothing_useful_and_is_idempotent(
        self, problem: Problem, data: st.DataObject
    ) -> None:
        asked = data.draw(
            st.lists(
                st.sampled_from(problem.candidates), min_size=len(problem.decisions), max_size=len(problem.decisions)
            )
        )
        bits = repair(problem, asked)
        assert problem.is_feasible(bits)
        assert repair(problem, bits) == bits
        assert repair(problem, asked) == bits
        if problem.is_feasible(asked):
            assert problem.damage_of(bits) <= problem.damage_of(asked)
            assert all(after >= before for before, after in zip(asked, bits, strict=True))
        for row, now in enumerate(bits):
            for wider in (b for b in problem.candidates if b > now):
                changed = (*bits[:row], wider, *bits[row + 1 :])
                column, was = problem.candidates.index(wider), problem.candidates.index(now)
                helps = problem.damage[row, column] < problem.damage[row, was]
                # A change that fits to the last digit may be judged either way by sums in another order.
                assert not helps or problem.cost_of(changed) > problem.limit * (1 + 0.999e-9)

    def test_takes_first_where_it_costs_least(self) -> None:
        """A bit of proj saves 2 at a twelfth of the budget's unit, one of fc1 6 at four twelfths: proj goes last."""
        damage = np.array([[10.0, 0.0], [2.0, 0.0], [6.0, 0.0], [10.0, 0.0]])
        assert repair(network_problem(damage, 1.7, (1, 2)), (2, 2, 2, 2)) == (2, 2, 1, 2)


class TestRandomAllocation:
    @given(problem=problems(), seed=st.integers(0, 2**32 - 1))
    @settings(max_examples=100)
    def test_is_feasible_and_nothing_wider_fits(self, problem: Problem, seed: int) -> None:
        bits = random_allocation(problem, np.random.default_rng(seed))
        assert problem.is_feasible(bits)
        for row, now in enumerate(bits):
            for _, wider in (pair for pair in pairwise(problem.candidates) if pair[0] == now):
                changed = (*bits[:row], wider, *bits[row + 1 :])
                assert problem.cost_of(changed) > problem.limit * (1 + 0.999e-9)

    def test_depends_on_the_generator_alone(self) -> None:
        problem = network_problem(falling(4), 2.0)
        other = problem.with_damage(-problem.damage)
        first = [random_allocation(problem, np.random.default_rng(seed)) for seed in range(40)]
        assert first == [random_allocation(other, np.random.default_rng(seed)) for seed in range(40)]
        assert len(set(first)) == 40

    def test_is_near_the_budget_and_favours_no_decision(self) -> None:
        problem = network_problem(falling(4), 2.0)
        rng = np.random.default_rng(0)
        found = np.array([random_allocation(problem, rng) for _ in range(400)])
        costs = [problem.cost_of(bits) for bits in found.tolist()]
        assert min(costs) > 2.0 - 1 / 12 / 4 - 1e-9  # less than one bit of the smallest decision is left
        # Decisions of one kind are alike: their means differ by the noise of 400 draws, five standard errors of it.
        for role in range(4):
            own = found[:, role::4]
            assert np.ptp(own.mean(axis=0)) < 5 * own.std() / 20 * 2**0.5


def test_uniform_is_in_reach_of_every_space() -> None:
    problem = network_problem(falling(4), 2.0)
    for name in NAMES:
        space = make_space(name, problem)
        assert problem.is_feasible(space.decode(space.encode(uniform(problem).bits)))
