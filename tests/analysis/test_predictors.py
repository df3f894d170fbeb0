from __future__ import annotations

import math
from collections.abc import Callable

import pytest
from scipy import stats

from analysis.figures.search import rung_correlations, rungs_data
from analysis.render import render
from analysis.stats import rank_interval
from analysis.tables.predictors import JOINT, predictors_data, predictors_table
from robuq.record.search_record import Predictor, SearchRecord

SearchMaker = Callable[..., SearchRecord]


@pytest.fixture(scope="module")
def record(make_search: SearchMaker) -> SearchRecord:
    return make_search(4, 60)


def test_a_row_a_predictor_and_the_joint_loss(record: SearchRecord) -> None:
    data = predictors_data(record, 0)
    assert len(data) == 7
    assert data["measure"].to_list()[-1] == JOINT
    reached = [one for one in record.evaluations if "300" in one.values]
    assert set(data["spearman_n"]) == {len(reached)}
    last = [one.values["300"] for one in reached]
    joint = stats.spearmanr([one.values["0"] for one in reached], last).statistic
    assert data["spearman"].iloc[-1] == pytest.approx(joint, abs=1e-12)
    first = [record.predictors[0].predicted[str(one.number)] for one in reached]
    assert data["spearman"].iloc[0] == pytest.approx(stats.spearmanr(first, last).statistic, abs=1e-12)


def test_one_coefficient_has_one_interval(record: SearchRecord) -> None:
    """The joint loss is a cheap rung, too, and the searched measure the additive prediction."""
    columns = ["spearman", "spearman_low", "spearman_high"]
    predictors, rungs = predictors_data(record, 0), rung_correlations(rungs_data(record), 0).set_index("low")
    assert predictors.iloc[-1][columns].to_list() == rungs.loc[0, columns].to_list()
    again = predictors_data(
        record.updated(predictors=[one.model_dump(mode="json") for one in record.predictors[1:]]), 0
    )
    assert again.iloc[0][columns].to_list() == predictors.iloc[1][columns].to_list()


def test_the_best_and_what_cannot_be_told_from_it_are_marked(record: SearchRecord) -> None:
    """One predictor is the result itself, one its opposite."""
    last = {str(one.number): one.values["300"] for one in record.evaluations if "300" in one.values}
    perfect, opposite = (
        record.predictors[place].updated(predicted={n: sign * value for n, value in last.items()})
        for place, sign in ((0, 1.0), (1, -1.0))
    )
    own = record.updated(predictors=[one.model_dump(mode="json") for one in (opposite, perfect)])
    data = predictors_data(own, 0)
    assert data["spearman"].to_list()[:2] == pytest.approx([-1, 1])
    assert data["mark"].to_list() == ["", "best", ""]
    twice = own.updated(predictors=[perfect.model_dump(mode="json")] * 2)
    assert predictors_data(twice, 0)["mark"].to_list()[:2] == ["best", "best"]


def test_without_predictions_the_interval_comes_from_rho_and_n(record: SearchRecord) -> None:
    bare = Predictor(warm_up_steps=0, reference=2, measure="loss", spearman=0.6, n=44)
    data = predictors_data(record.updated(predictors=[bare.model_dump(mode="json")]), 0)
    row = data.iloc[0]
    expected = rank_interval(0.6, 44)
    assert (row["spearman_low"], row["spearman_high"]) == (expected.low, expected.high)
    assert row["interval"] == "Bonett-Wright"
    assert (data["mark"] == "").all()


def test_without_a_rung_zero_there_is_no_joint_loss(make_search: SearchMaker) -> None:
    assert JOINT not in set(predictors_data(make_search(4, 12, rungs=(60, 300)), 0)["measure"])
    assert JOINT not in set(predictors_data(make_search(4, 12, rungs=(0,)), 0)["measure"])


def test_nothing_known_is_an_empty_table(make_search: SearchMaker) -> None:
    record = make_search(4, 12, rungs=(300,), predictors=[])
    data = predictors_data(record, 0)
    assert data.empty
    assert {"measure", "spearman", "mark"} <= set(data.columns)


def test_failed_evaluations_leave_dashes(make_search: SearchMaker) -> None:
    data = predictors_data(make_search(4, 8, state="failed"), 0)
    assert data["spearman"].isna().all()
    text = render(predictors_table(data), "markdown")
    assert "nan" not in text


def test_the_table_is_sorted_and_names_the_one_that_was_used(record: SearchRecord) -> None:
    data = predictors_data(record, 0)
    cells = predictors_table(data).cells
    shown = [float(text.replace("−", "-")) for text in cells["ρ"]]
    assert shown == sorted(shown, reverse=True)
    assert [text for text in cells["Measure"] if text.endswith(" *")] == ["Loss increase, summed *"]
    assert not any(math.isnan(value) for value in shown)
