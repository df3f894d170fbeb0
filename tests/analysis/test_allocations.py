from __future__ import annotations

import math
from collections.abc import Callable

import pandas as pd
import pytest
from scipy import stats

from analysis.load import runs_frame
from analysis.render import render
from analysis.tables.allocations import METRICS, allocations_data, allocations_table
from robuq.record.run_record import RunRecord
from robuq.record.search_record import SearchRecord

Confirm = Callable[..., tuple[SearchRecord, pd.DataFrame]]
SearchMaker = Callable[..., SearchRecord]
NAMES = ["uniform", "greedy", "exact", "search", "exact_longer"]


@pytest.fixture(scope="module")
def confirmed(make_search: SearchMaker, confirm: Confirm) -> tuple[SearchRecord, pd.DataFrame]:
    return confirm(make_search(4, 8), seeds=(0, 1, 2, 3, 4))


@pytest.fixture(scope="module")
def data(confirmed: tuple[SearchRecord, pd.DataFrame]) -> pd.DataFrame:
    return allocations_data(confirmed[1], means={"uniform": {"macs": 2.0, "layers": 2.0}})


def losses(runs: pd.DataFrame, name: str) -> pd.Series[float]:
    return runs[runs["variant"] == name].sort_values("seed")["held_out_loss"]


def test_rows_are_allocations_in_order_for_each_metric(data: pd.DataFrame) -> None:
    assert data["metric"].to_list() == ["held_out_loss"] * 5 + ["fd_classifier"] * 5
    assert data["allocation"].to_list() == NAMES * 2
    assert set(data["n"]) == {5}
    assert data["bits_macs"].to_list()[:2] == [2.0, pytest.approx(math.nan, nan_ok=True)]


def test_differences_are_scipys_paired_t_test(data: pd.DataFrame, confirmed: tuple[SearchRecord, pd.DataFrame]) -> None:
    row = data[(data["allocation"] == "search") & (data["metric"] == "held_out_loss")].iloc[0]
    for base in ("uniform", "exact", "exact_longer"):
        test = stats.ttest_rel(losses(confirmed[1], "search"), losses(confirmed[1], base))
        assert row[f"to_{base}_p"] == pytest.approx(test.pvalue, rel=1e-9)
        assert row[f"to_{base}_low"] == pytest.approx(test.confidence_interval().low, rel=1e-9)


def test_holm_counts_each_pair_once(data: pd.DataFrame) -> None:
    """uniform: 4 pairs; exact: 3 more; search and exact_longer: 1. The least p is multiplied by 8."""
    rows = data[data["metric"] == "held_out_loss"].set_index("allocation")
    columns = ("uniform", "exact", "exact_longer")
    p = pd.concat([rows[f"to_{base}_p"] for base in columns])
    corrected = pd.concat([rows[f"to_{base}_p_holm"] for base in columns])
    assert corrected.min() == pytest.approx(8 * p.min(), rel=1e-12)
    assert rows.loc["uniform", "to_exact_p_holm"] == rows.loc["exact", "to_uniform_p_holm"]
    assert rows["to_exact_longer_n"].to_dict() == dict.fromkeys(NAMES, 0) | {"search": 5}


def test_training_longer_is_not_ranked(data: pd.DataFrame) -> None:
    rows = data[data["metric"] == "held_out_loss"].set_index("allocation")
    assert rows["mean"].idxmin() == "exact_longer"
    assert rows.loc["exact_longer", "mark"] == ""
    assert rows.loc["search", "mark"] == "best"


def test_equal_allocations_may_share_their_runs(confirmed: tuple[SearchRecord, pd.DataFrame]) -> None:
    record, runs = confirmed
    keys = record.confirmed["exact"]
    data = allocations_data(runs, {"uniform": record.confirmed["uniform"], "exact": keys, "search": keys})
    row = data[(data["allocation"] == "search") & (data["metric"] == "held_out_loss")].iloc[0]
    assert (row["to_exact"], row["to_exact_low"], row["to_exact_high"]) == (0, 0, 0)
    assert math.isnan(row["to_exact_p"])
    assert set(row["keys"].split()) == set(keys)


def test_other_names_follow(make_record: Callable[..., RunRecord]) -> None:
    records = [
        make_record("robuq_uniform", 2, seed, variant=name, key=f"{name}{seed}")
        for name in ("by_second_order", "exact", "uniform")
        for seed in (0, 1)
    ]
    data = allocations_data(runs_frame(records))
    assert data["allocation"].to_list()[:3] == ["uniform", "exact", "by_second_order"]
    assert "by second order" in render(allocations_table(data), "markdown")


def test_one_seed_has_means_and_no_intervals(make_search: SearchMaker, confirm: Confirm) -> None:
    data = allocations_data(confirm(make_search(4, 8), seeds=(0,))[1])
    text = render(allocations_table(data), "markdown")
    assert "±" not in text
    assert "**" not in text
    assert data["to_uniform_p_holm"].isna().all()


def test_metrics_that_nobody_has_are_left_out(confirmed: tuple[SearchRecord, pd.DataFrame]) -> None:
    bare = confirmed[1].assign(fd_classifier=math.nan)
    assert set(allocations_data(bare)["metric"]) == {"held_out_loss"}


def test_two_runs_of_one_allocation_and_seed_are_refused(confirmed: tuple[SearchRecord, pd.DataFrame]) -> None:
    runs = confirmed[1]
    again = pd.concat([runs, runs.iloc[:1].assign(key="f" * 16)], ignore_index=True)
    with pytest.raises(ValueError, match=r"^runs \w+ and f{16} are both \w+ with one seed: report each budget.*$"):
        allocations_data(again)


def test_steps_are_shown_where_they_differ(data: pd.DataFrame) -> None:
    assert "Steps" not in allocations_table(data).cells
    longer = data.assign(steps=data["steps"].where(data["allocation"] != "exact_longer", 9000.0))
    assert allocations_table(longer).cells["Steps"].to_list()[4] == "9000"


def test_the_table_in_every_form(data: pd.DataFrame) -> None:
    table = allocations_table(data, {"search": "Search (= Exact)"})
    assert table.rules == (5,)
    assert [header for header, _ in METRICS.values()] == list(dict.fromkeys(table.cells["Metric"]))
    assert "Search (= Exact)" in render(table, "html")
    latex = render(table, "latex")
    assert latex.count(r"\midrule") == 2
    assert "Bits (MACs)" in latex
