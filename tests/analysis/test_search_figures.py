from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
from matplotlib.colors import to_hex
from PIL import Image

from analysis.evaluations import named_allocations, sensitivity_table
from analysis.figures.bits import bits_data, bits_figure
from analysis.figures.search import (
    history_data,
    history_figure,
    pareto_data,
    pareto_figure,
    rung_correlations,
    rungs_data,
    rungs_figure,
    spread,
)
from analysis.figures.sensitivity import drawn_bits, drawn_text, sensitivity_data, sensitivity_figure
from analysis.search_figures import pareto_caption
from analysis.style import LOOKS, save_figure
from robuq.ampn.table import SensitivityTable
from robuq.config import BLOCK_ROLES
from robuq.record.search_record import SearchRecord

SearchMaker = Callable[..., SearchRecord]


@pytest.fixture(scope="module")
def record(make_search: SearchMaker) -> SearchRecord:
    return make_search(4, 24)


def bits_of(record: SearchRecord) -> pd.DataFrame:
    named = named_allocations(record)
    return bits_data(named, dict.fromkeys(named, 2.0), "macs")


# --- bits ---------------------------------------------------------------------------------------------------------


def test_bits_are_one_row_a_decision(record: SearchRecord) -> None:
    data = bits_of(record)
    assert len(data) == 5 * 16
    row = data[(data["allocation"] == "exact") & (data["block"] == 3) & (data["role"] == "fc2")].iloc[0]
    assert row["bits"] == record.baselines["exact"]["transformer_blocks.3.fc2"]


@pytest.mark.parametrize("blocks", [1, 4, 28])
def test_every_cell_shows_its_bits(make_search: SearchMaker, blocks: int) -> None:
    data = bits_of(make_search(blocks, 24))
    figure = bits_figure(data)
    panels = [ax for ax in figure.axes if ax.get_visible()]
    assert len(panels) == 5
    for ax, (name, part) in zip(panels, data.groupby("allocation", sort=False), strict=True):
        assert ax.get_title("left") == f"{name}: 2.00 bits by MACs"
        table = part.pivot(index="role", columns="block", values="bits").loc[list(BLOCK_ROLES)]
        assert [int(text.get_text()) for text in ax.texts] == table.to_numpy().ravel().tolist()


def test_more_bits_are_darker_also_in_grey(record: SearchRecord) -> None:
    figure = bits_figure(bits_of(record))
    search = figure.axes[4]
    mesh = search.collections[0]
    figure.canvas.draw()
    grey = {
        int(text.get_text()): sum(w * c for w, c in zip((0.299, 0.587, 0.114), color, strict=False))
        for text, color in zip(search.texts, mesh.get_facecolors(), strict=True)
    }
    assert [grey[bits] for bits in sorted(grey)] == sorted(grey.values(), reverse=True)
    assert len({round(value, 2) for value in grey.values()}) == len(grey) >= 3


def test_a_long_name_is_wrapped_and_keeps_its_mean(record: SearchRecord, tmp_path: Path) -> None:
    name = "exact by the output error around a reference of two bits after a thousand steps"
    figure = bits_figure(bits_data({name: record.baselines["exact"]}, {name: 2.0}, "elements"))
    title = figure.axes[0].get_title("left")
    assert title.replace("\n", " ") == f"{name} 2.00 bits by activation elements"
    save_figure(figure, tmp_path, "long")
    with Image.open(tmp_path / "long.png") as image:
        assert image.width == 990  # 3.3 inches at 300 dpi


# --- sensitivity --------------------------------------------------------------------------------------------------


def table_of(record: SearchRecord) -> SensitivityTable:
    table = sensitivity_table(record)
    assert table is not None
    return table


def test_sensitivity_draws_few_bits_and_keeps_all(record: SearchRecord) -> None:
    table = table_of(record)
    assert set(sensitivity_data(table, [2])["bits"]) == {2}
    wide = table.updated(candidates=[3, 4, 6, 7], reference=7)
    data = sensitivity_data(wide)
    assert set(data["bits"]) == {3, 4, 6, 7}
    panel = sensitivity_figure(data).axes[0]
    assert len(panel.get_yticks()) == 2 * 4
    assert drawn_text(data) == "Drawn: 3, 4 bits; 6, 7 were measured, too, and in the data."
    assert drawn_text(sensitivity_data(table)) == "Drawn: 1 to 4 bits."
    assert drawn_bits(data.assign(bits=data["bits"] + 2)) == [5, 6, 8, 9]  # none is narrow
    with pytest.raises(ValueError, match=r"^no sensitivity for 6 bits: candidates are \[1, 2, 3, 4\]$"):
        sensitivity_data(table, [6])


def test_what_two_standard_errors_cover_is_marked(record: SearchRecord) -> None:
    data = sensitivity_data(table_of(record))
    assert (data["above_noise"] == (data["loss"] > 2 * data["loss_se"])).all()
    panel = sensitivity_figure(data).axes[0]
    (dots,) = (line for line in panel.lines if line.get_marker() == "o")
    noisy = data[(data["loss"] > 0) & ~data["above_noise"]]
    rows = [
        list(BLOCK_ROLES).index(role) + 4 * (bits - 1) for role, bits in zip(noisy["role"], noisy["bits"], strict=True)
    ]
    drawn = {(x - 0.5, y - 0.5) for x, y in zip(dots.get_xdata(), dots.get_ydata(), strict=True)}
    assert drawn == set(zip(noisy["block"], rows, strict=True)) != set()


@pytest.mark.parametrize("blocks", [1, 28])
def test_sensitivity_has_a_panel_and_a_scale_for_each_measure(make_search: SearchMaker, blocks: int) -> None:
    figure = sensitivity_figure(sensitivity_data(table_of(make_search(blocks, 5))))
    panels = [ax for ax in figure.axes if ax.get_title("left")]
    assert [ax.get_title("left") for ax in panels] == ["loss increase", "output error", "second order"]
    scales = [ax.get_xlabel() or ax.get_ylabel() for ax in figure.axes if ax not in panels]
    assert scales == ["MSE per pixel", "noise / signal", "MSE per pixel"]
    tops = [ax.collections[0].norm.vmax for ax in panels]  # type: ignore[union-attr]
    assert all(top > 0 for top in tops)


def test_a_table_without_any_damage_can_be_drawn(record: SearchRecord) -> None:
    table = table_of(record)
    zeros = np.zeros((16, 4)).tolist()
    data = sensitivity_data(table.updated(loss=zeros, second_order=zeros, output_error=zeros))
    panels = sensitivity_figure(data).axes[:3]
    assert all(np.ma.getmaskarray(ax.collections[0].get_array()).all() for ax in panels)  # all white


# --- history ------------------------------------------------------------------------------------------------------


def test_history_has_a_panel_a_rung(record: SearchRecord) -> None:
    data = history_data(record)
    figure = history_figure(data)
    reached = [(data["steps"] == steps).sum() for steps in (0, 60, 300)]
    titles = ["warmed-up network, no training", "after 60 steps of QAT", "after 300 steps of QAT"]
    expected = [f"{title}, n = {n}" for title, n in zip(titles, reached, strict=True)]
    assert [ax.get_title("left") for ax in figure.axes] == expected
    for ax in figure.axes:
        assert sorted(text.get_text() for text in ax.texts) == ["Exact", "Greedy", "Paper", "Uniform"]


def test_stopped_evaluations_are_hollow(record: SearchRecord) -> None:
    data = history_data(record)
    ax = history_figure(data).axes[0]
    hollow = [line for line in ax.lines if line.get_marker() == "o" and line.get_markerfacecolor() == "none"]
    filled = [line for line in ax.lines if line.get_marker() == "o" and line.get_markerfacecolor() != "none"]
    part = data[(data["steps"] == 0) & (data["names"] == "")]
    assert list(hollow[0].get_xdata()) == part.loc[~part["goes_on"], "number"].to_list()
    assert list(filled[0].get_xdata()) == part.loc[part["goes_on"], "number"].to_list()


def test_equal_baselines_share_a_line(record: SearchRecord) -> None:
    same = record.updated(baselines=record.baselines | {"greedy": record.baselines["exact"]})
    names = [text.get_text() for text in history_figure(history_data(same)).axes[0].texts]
    assert sorted(names) == ["Greedy, Exact", "Paper", "Uniform"]


def test_a_far_value_leaves_the_panel_and_is_said(record: SearchRecord) -> None:
    far = [one.model_dump(mode="json") for one in record.evaluations]
    far[9]["values"]["0"] = 7.0
    ax = history_figure(history_data(record.updated(evaluations=far))).axes[0]
    assert ax.get_ylim()[1] < 0.2
    above = [line for line in ax.lines if line.get_marker() == "^" and line.get_markerfacecolor() == "none"]
    assert list(above[0].get_xdata()) == [9]


def test_a_baseline_never_leaves_the_panel(record: SearchRecord) -> None:
    far = [one.model_dump(mode="json") for one in record.evaluations]
    far[0]["values"]["0"] = 7.0
    ax = history_figure(history_data(record.updated(evaluations=far))).axes[0]
    assert ax.get_ylim()[1] > 7
    assert "Uniform" in [text.get_text() for text in ax.texts]


def test_without_values_there_is_no_history(make_search: SearchMaker) -> None:
    with pytest.raises(ValueError, match="no evaluation has a value"):
        history_figure(history_data(make_search(4, 6, state="failed")))


def test_one_evaluation_is_enough(record: SearchRecord) -> None:
    one = record.updated(evaluations=[record.evaluations[0].model_dump(mode="json")], winner=0)
    assert len(history_figure(history_data(one)).axes) == 3


def test_labels_move_apart_as_little_as_it_takes() -> None:
    assert spread([0.1, 0.5, 0.9], 0.1) == pytest.approx([0.1, 0.5, 0.9])
    assert spread([0.5, 0.5], 0.1) == pytest.approx([0.45, 0.55])
    assert spread([0.0, 0.0, 0.02], 0.1) == pytest.approx([0.0, 0.1, 0.2])  # not below the panel
    rng = np.random.default_rng(0)
    for _ in range(50):
        heights = sorted(rng.uniform(size=5))
        moved = spread(heights, 0.1)
        assert min(np.diff(moved)) >= 0.1 - 1e-12
        assert 0 <= moved[0] <= moved[-1] <= 1 + 1e-12
    assert spread([], 0.1) == []


# --- Pareto front, rungs ------------------------------------------------------------------------------------------


def test_the_front_is_the_records(make_search: SearchMaker) -> None:
    record = make_search(4, 12, rungs=(60,), objectives=("loss", "average_bits"), front=[0, 5, 7])
    data = pareto_data(record)
    assert data.loc[data["front"], "number"].to_list() == [0, 5, 7]
    assert set(data["unit"]) == {"macs"}
    ax = pareto_figure(data).axes[0]
    assert ax.get_xlabel() == "mean activation bits by MACs"
    filled = [line for line in ax.lines if line.get_marker() == "o" and line.get_markerfacecolor() != "none"]
    assert [to_hex(line.get_markerfacecolor()) for line in filled] == [LOOKS["search"].color]
    legend = [text.get_text() for text in pareto_figure(data).legends[0].get_texts()]
    assert legend[:2] == ["front", "beaten"]
    caption = pareto_caption(record, data)
    assert "after 60 steps of QAT against cost of n = 12 allocations" in caption
    assert "LR" not in caption


def test_costs_in_bit_operations(make_search: SearchMaker) -> None:
    record = make_search(4, 12, rungs=(60,), objectives=("loss", "bops"), front=[0, 5])
    data = pareto_data(record)
    assert data["cost"].to_list() == [one.bops for one in record.evaluations]
    assert pareto_figure(data).axes[0].get_xlabel() == "$10^9$ bit operations per image"


def test_rungs_are_drawn_with_their_correlation(record: SearchRecord) -> None:
    pairs = rungs_data(record)
    correlations = rung_correlations(pairs, 0)
    assert correlations["low"].to_list() == [-1, 0, 60]
    expected = pairs[pairs["low"] == 60][["x", "y"]].corr("spearman").iloc[0, 1]
    assert correlations["spearman"].iloc[2] == pytest.approx(expected, abs=1e-12)
    panels = [ax for ax in rungs_figure(pairs, correlations).axes if ax.get_visible()]
    assert [ax.get_xlabel() for ax in panels] == [
        "additive prediction",
        "loss untrained (rung 0)",
        "loss after 60 steps",
    ]
    row = correlations.iloc[2]
    bounds = f"[{row['spearman_low']:.2f}, {row['spearman_high']:.2f}]".replace("-", "−")
    assert panels[2].get_title("left") == f"ρ = {row['spearman']:.2f} {bounds}\nn = {row['n']:.0f}"


def test_allocations_of_equal_bits_share_a_mark_and_both_names(record: SearchRecord) -> None:
    same = record.updated(baselines=record.baselines | {"greedy": record.baselines["exact"]})
    pairs = rungs_data(same)
    legend = rungs_figure(pairs, rung_correlations(pairs, 0)).legends[0]
    names = [text.get_text() for text in legend.get_texts()]
    assert [name for name in names if "Exact" in name] == ["Greedy, Exact"]


def test_far_values_stand_at_the_edge_of_their_panel(record: SearchRecord) -> None:
    pairs = rungs_data(record)
    worst = (pairs["low"] == 0) & (pairs["number"] == 6)
    pairs.loc[worst, "x"] = 9.0
    ax = rungs_figure(pairs, rung_correlations(pairs, 0)).axes[1]
    assert ax.get_xlim()[1] < 0.2
    edge = [line for line in ax.lines if line.get_marker() == "^" and line.get_markerfacecolor() == "none"]
    assert list(edge[0].get_ydata()) == pairs.loc[worst, "y"].to_list()
    assert edge[0].get_xdata()[0] < ax.get_xlim()[1]


def test_two_evaluations_have_a_count_only(record: SearchRecord) -> None:
    two = record.updated(evaluations=[one.model_dump(mode="json") for one in record.evaluations[:2]], winner=0)
    pairs = rungs_data(two)
    figure = rungs_figure(pairs, rung_correlations(pairs, 0))
    assert figure.axes[0].get_title("left") == "n = 2"


def test_without_pairs_there_is_nothing_to_compare(make_search: SearchMaker) -> None:
    pairs = rungs_data(make_search(4, 6, state="failed"))
    with pytest.raises(ValueError, match="no evaluation reached the last rung"):
        rungs_figure(pairs, rung_correlations(pairs, 0))
