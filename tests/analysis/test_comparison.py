from __future__ import annotations

import math
from collections.abc import Callable

import pandas as pd
import pytest
from scipy import stats

from analysis.gaussian_grids import grid_error
from analysis.load import runs_frame
from analysis.tables.comparison import Comparison, Extra, comparison_cells, comparison_data, comparison_table
from analysis.tables.main import CONDITIONAL
from analysis.tables.quantizers import QUANTIZERS, quantizers_data
from robuq.record.run_record import RunRecord

Maker = Callable[..., RunRecord]
LAYOUT = Comparison(
    {"full_precision": "FP", "qdit": "Q", "baseline": "B", "robuq_uniform": "R"},
    "baseline",
    "Caption.",
    rank_by="label",
    delta="Δ to B",
    extras={"bops": Extra("BOPs (G)", 1e9, 2)},
)


@pytest.fixture(scope="module")
def runs(make_record: Maker) -> pd.DataFrame:
    """qdit, with 4-bit weights, is the best of all at 2 bits."""
    rows = [("full_precision", 2), ("baseline", 2), ("robuq_uniform", 2), ("qdit", 2), ("baseline", 4), ("lsq", 4)]
    records = [make_record(name, bits, seed) for name, bits in rows for seed in (0, 1, 2)]
    records = [r.updated(metrics={**r.metrics, "bops": 2.5e9 + r.seed * 1e9}) for r in records]
    best = [
        r.updated(metrics={**r.metrics, "held_out_loss": 0.01 + 1e-3 * r.seed}) for r in records if r.variant == "qdit"
    ]
    return runs_frame([*(r for r in records if r.variant != "qdit"), *best])


@pytest.fixture(scope="module")
def data(runs: pd.DataFrame) -> pd.DataFrame:
    return comparison_data(runs, LAYOUT)


def test_rows_come_in_the_layouts_order_and_others_after(data: pd.DataFrame) -> None:
    assert data["variant"].to_list() == ["full_precision", "baseline", "lsq", "qdit", "baseline", "robuq_uniform"]
    assert data["bits"].fillna(0).to_list() == [0, 4, 4, 2, 2, 2]


def test_other_weights_are_not_ranked_with_ours(data: pd.DataFrame) -> None:
    marks = data.set_index(["variant", "bits"])["held_out_loss_mark"]
    assert marks["qdit", 2.0] == ""  # alone among W4A2, however good
    assert marks["robuq_uniform", 2.0] == "best"
    assert marks["baseline", 2.0] == "second"


def test_ranked_by_bits_alone_it_would_be_the_best(runs: pd.DataFrame) -> None:
    layout = Comparison(LAYOUT.names, "baseline", "", rank_by="bits")
    marks = comparison_data(runs, layout).set_index(["variant", "bits"])["held_out_loss_mark"]
    assert marks["qdit", 2.0] == "best"


def test_full_precision_is_never_ranked(data: pd.DataFrame) -> None:
    row = data[data["variant"] == "full_precision"].iloc[0]
    assert [row[f"{m}_mark"] for m in ("held_out_loss", "fd_classifier", "precision", "recall")] == [""] * 4


def test_the_difference_is_paired_within_the_width(data: pd.DataFrame, runs: pd.DataFrame) -> None:
    own, base = (
        runs[(runs["variant"] == name) & (runs["act_bits"] == 2)].sort_values("seed")["held_out_loss"].to_numpy()
        for name in ("robuq_uniform", "baseline")
    )
    row = data[(data["variant"] == "robuq_uniform")].iloc[0]
    assert row["difference"] == pytest.approx((own - base).mean(), rel=1e-12)
    assert row["difference_p"] == pytest.approx(stats.ttest_rel(own, base).pvalue, rel=1e-9)


def test_an_extra_is_the_mean_in_its_unit(data: pd.DataFrame) -> None:
    table = comparison_table(data, LAYOUT)
    assert table.cells["BOPs (G)"].to_list() == ["3.50"] * 6
    assert list(table.cells.columns)[-2:] == ["BOPs (G)", "n"]
    assert table.cells["Method"].to_list() == ["FP", "B", "LSQ-style", "Q", "B", "R"]
    assert "Δ to B" in table.cells
    assert table.cells.shape == table.marks.shape
    assert table.rules == (1, 3)


def test_a_metric_that_no_run_has_is_a_dash(runs: pd.DataFrame) -> None:
    layout = Comparison({}, "baseline", "", extras={"nowhere": Extra("N", 1, 1)})
    assert set(comparison_table(comparison_data(runs, layout), layout).cells["N"]) == {"–"}


def test_cells_name_the_runs_and_differences_the_baselines_too(data: pd.DataFrame, runs: pd.DataFrame) -> None:
    cells = comparison_cells(data, LAYOUT)
    keys = {
        (name, bits): set(part["key"])
        for (name, bits), part in runs.groupby([runs["variant"], runs["act_bits"].fillna(0)])
    }
    own = {(cell["row"], cell["columns"][0]): set(cell["keys"]) for cell in cells}
    assert own["robuq_uniform W1.58A2", "held_out_loss"] == keys["robuq_uniform", 2]
    assert own["robuq_uniform W1.58A2", "difference"] == keys["robuq_uniform", 2] | keys["baseline", 2]
    assert ("full_precision W32A32", "difference") not in own


def test_other_protocols_are_refused(make_record: Maker) -> None:
    mixed = runs_frame([make_record(seed=0), make_record(seed=1, protocol="bbbbbbbbbbbb")])
    with pytest.raises(ValueError, match="cannot share a table"):
        comparison_data(mixed, CONDITIONAL)


def test_quantizers_show_the_grids_theory_where_there_is_one(make_record: Maker) -> None:
    records = [make_record(name, bits, 0) for name in ("robuq_uniform", "baseline") for bits in (4, 2)]
    tread = make_record("robuq_uniform", 2, 0).updated(variant="robuq_mid_tread", key="f" * 16)
    data = quantizers_data(runs_frame([*records, tread])).set_index(["variant", "bits"])
    assert data.loc[("robuq_uniform", 2.0), "normal_mse"] == grid_error("mid_rise", 2)
    assert data.loc[("robuq_mid_tread", 2.0), "normal_mse"] == grid_error("mid_tread", 2)
    assert math.isnan(data.loc[("baseline", 2.0), "normal_mse"])
    text = comparison_table(data.reset_index(), QUANTIZERS).cells
    assert text["MSE"].to_list() == ["0.0115", "–", "0.1188", "0.1494", "–"]
