from __future__ import annotations

import math
from collections.abc import Callable

import pandas as pd
import pytest

from analysis.evaluations import (
    PREDICTED,
    allocation_name,
    budget_name,
    confirmed_means,
    evaluations_data,
    mean_bits,
    named_allocations,
    rung_pairs,
    rung_values,
    weighting,
)
from robuq.config import Budget
from robuq.record.search_record import SearchRecord

SearchMaker = Callable[..., SearchRecord]


@pytest.fixture(scope="module")
def record(make_search: SearchMaker) -> SearchRecord:
    return make_search(4, 24)


def test_one_row_an_evaluation_with_its_bits_and_values(record: SearchRecord) -> None:
    data = evaluations_data(record)
    assert data["number"].to_list() == list(range(24))
    one = record.evaluations[7]
    row = data.iloc[7]
    assert {name: row[name] for name in one.bits} == one.bits
    assert row["value_0"] == one.values["0"]
    assert data["winner"].sum() == 1
    assert data.loc[data["winner"], "number"].item() == record.winner
    unreached = data.loc[data["state"] == "pruned", "value_300"]
    assert len(unreached)
    assert unreached.isna().all()


def test_the_winner_is_among_the_named_allocations(record: SearchRecord) -> None:
    named = named_allocations(record)
    assert list(named) == ["uniform", "greedy", "exact", "paper", "search"]
    assert named["search"] == record.evaluations[record.winner or 0].bits
    assert "search" not in named_allocations(record.updated(winner=None))


def test_a_winner_that_is_a_baseline_says_so(record: SearchRecord) -> None:
    assert allocation_name(record, "search") == "Search"
    assert allocation_name(record.updated(equal_to=["exact"]), "search") == "Search (= Exact)"


def test_means_are_weighted(record: SearchRecord) -> None:
    """qkv 3 D, proj 1 D, fc1 4 D, fc2 4 D multiply-accumulates of D inputs; fc2 takes 4 D elements, the others D."""
    means = mean_bits(record, record.baselines["exact"])  # qkv 1, proj 1, fc1 3, fc2 3
    assert means["layers"] == pytest.approx(2)
    assert means["macs"] == pytest.approx((3 + 1 + 4 * 3 + 4 * 3) / 12)
    assert means["elements"] == pytest.approx((1 + 1 + 3 + 4 * 3) / 7)


def test_training_longer_has_the_bits_of_exact(record: SearchRecord) -> None:
    confirmed = record.updated(confirmed={"exact": ["a"], "exact_longer": ["b"], "elsewhere": ["c"]})
    means = confirmed_means(confirmed)
    assert means["exact"] == means["exact_longer"]
    assert set(means) == {"exact", "exact_longer"}


def test_values_at_a_rung_and_the_best_so_far(record: SearchRecord) -> None:
    data = rung_values(record)
    for steps, part in data.groupby("steps"):
        values = [one.values[str(steps)] for one in record.evaluations if str(steps) in one.values]
        assert part["value"].to_list() == values
        assert part["best"].to_list() == [min(values[: i + 1]) for i in range(len(values))]
    stopped = set(data.loc[~data["goes_on"], "number"])
    assert stopped == {one.number for one in record.evaluations if one.state == "pruned"}
    assert data[data["number"].isin(stopped)].groupby("number")["goes_on"].apply(lambda rows: (~rows).sum()).eq(1).all()


def test_a_failure_stands_at_the_rung_where_it_happened(record: SearchRecord) -> None:
    one = record.evaluations[6]
    failed = one.updated(state="failed", values={"0": 0.125}, failure="diverged")
    data = rung_values(record.updated(evaluations=[failed.model_dump(mode="json")]))
    assert data["steps"].to_list() == [0, 60]
    assert data["value"].to_list()[0] == 0.125
    assert math.isnan(data["value"].to_list()[1])


def test_pairs_are_of_those_that_reached_the_last_rung(record: SearchRecord) -> None:
    pairs = rung_pairs(record)
    reached = {one.number for one in record.evaluations if "300" in one.values}
    assert set(pairs["low"]) == {PREDICTED, 0, 60}
    assert all(set(part["number"]) == reached for _, part in pairs.groupby("low"))
    row = pairs[(pairs["low"] == PREDICTED) & (pairs["number"] == 2)].iloc[0]
    assert (row["x"], row["y"]) == (record.evaluations[2].predicted, record.evaluations[2].values["300"])


def test_without_evaluations_the_frames_are_empty(record: SearchRecord) -> None:
    nothing = record.updated(evaluations=[], winner=None)
    for data in (evaluations_data(nothing), rung_values(nothing), rung_pairs(nothing)):
        assert isinstance(data, pd.DataFrame)
        assert data.empty


@pytest.mark.parametrize(
    ("budget", "name", "weights"),
    [
        (Budget(limit=2.0), "2 bits on average by MACs", "macs"),
        (Budget(limit=2.5, weights="elements"), "2.5 bits on average by activation elements", "elements"),
        (
            Budget(limit=3.0, weights="bops"),
            "3 x 10^9 bit operations per image and forward pass, block linears",
            "macs",
        ),
    ],
)
def test_budgets_name_their_weighting(record: SearchRecord, budget: Budget, name: str, weights: str) -> None:
    own = record.updated(budget=budget.model_dump(mode="json"))
    assert budget_name(own) == name
    assert weighting(own) == weights
