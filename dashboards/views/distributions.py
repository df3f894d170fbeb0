"""Distributions: what enters one layer's quantizer, against the normal density and against any grid."""

from __future__ import annotations

from typing import Any

import pandas as pd
import streamlit as st

from analysis.figures.distributions import ROLES, distributions_data, distributions_figure, layer_data
from analysis.figures.normality import kurtosis_map_figure, normality_data, tokens_a_cell
from analysis.layer_view import BITS, GRIDS, RECORDED, errors_table, grid_errors, layers_of, timestep_bins, with_grid
from analysis.pictures import Picture, draw
from dashboards import show
from dashboards.cached import arrays, kept, plan_names, plan_runs
from dashboards.controls import choice
from dashboards.settings import Settings

TRANSFORMS = {
    "before and after rotation": ("raw", "rotated"),
    "before rotation": ("raw",),
    "after rotation": ("rotated",),
}
FULL, TOKENS = "distributions", "tokens"  # columns of the runs: every layer by timestep, or one block's tokens
CAPTION = (
    "Each token divided by its own standard deviation, as a per-token quantizer sees it. Left: densities on a "
    "logarithmic axis, with the levels of the grid as dotted lines. Right: quantiles against the normal's."
)


def page(settings: Settings) -> None:
    found = _runs(settings)
    if not found:
        show.empty("No finished run has recorded tokens yet.", settings.command("sweep smoke"))
        return
    with st.container(border=True):
        plan = choice("Plan", list(found), "plan", settings.default_of(list(found)))
        runs = found[plan]
        run = runs[choice("Run", list(runs), "run")]
        if pd.notna(run[FULL]):
            recorded = arrays(settings.source, plan, run["key"], run[FULL])
            data, title = _from_histograms(recorded)
        else:
            recorded = None
            data, title = _from_tokens(arrays(settings.source, plan, run["key"], run[TOKENS]))
        view, name = _gridded(data)
    st.subheader(title)
    show.picture(draw("distribution", lambda: (distributions_figure(view), view, CAPTION), _words(title, name)))
    _errors(view)
    if recorded is not None:
        _map(settings, plan, run, recorded)


def _runs(settings: Settings) -> dict[str, dict[str, Any]]:
    """{plan: {title: run}} of finished runs with tokens."""
    found: dict[str, dict[str, Any]] = {}
    for plan in plan_names(settings.source):
        runs = plan_runs(settings.source, plan)
        own = runs[(runs["status"] == "finished") & (runs[FULL].notna() | runs[TOKENS].notna())]
        titles = {
            f"{run['variant']} {run['label']} seed {run['seed']} ({run['key'][:6]})": run for _, run in own.iterrows()
        }
        if titles:
            found[plan] = titles
    return found


def _from_histograms(recorded: dict[str, Any]) -> tuple[pd.DataFrame, str]:
    layers, bins = layers_of(recorded), timestep_bins(recorded)
    left, right = st.columns(2)
    with left:
        layer = choice("Layer", list(layers), "layer", show=lambda name: f"block {name.replace('.', ', ')}")
    with right:
        when = choice("Timestep", list(bins), "t")
    role, block = layers[layer]
    return layer_data(recorded, role, block, bins[when]), f"Input of {role} in block {block}, {when}"


def _from_tokens(tokens: dict[str, Any]) -> tuple[pd.DataFrame, str]:
    roles = [role for role in ROLES if f"{role}.raw" in tokens]
    role = choice("Layer", roles, "layer", show=lambda name: f"middle block, {name}")
    return distributions_data(tokens, role), f"Input of {role} in the middle block, mixed timesteps"


def _gridded(data: pd.DataFrame) -> tuple[pd.DataFrame, str]:
    left, middle, right = st.columns(3)
    with left:
        states = TRANSFORMS[choice("Transform", list(TRANSFORMS), "transform")]
    with middle:
        grid = choice("Quantizer", list(GRIDS), "grid", show=lambda name: name.replace("_", " "))
    with right:
        bits = RECORDED
        if grid != RECORDED:
            bits = choice("Bits", [str(count) for count in BITS], "bits", "2")
    levels = "the run's own levels" if grid == RECORDED else f"a {grid.replace('_', '-')} grid of {bits} bits"
    return with_grid(data, states, grid, 0 if grid == RECORDED else int(bits)), levels


def _words(title: str, levels: str) -> str:
    return f"{title}: histogram beside the normal density, with {levels}, and quantile-quantile plot"


def _errors(view: pd.DataFrame) -> None:
    data = grid_errors(view)
    if data.empty:
        st.write("This run's activations are not quantized here: it has no levels of its own.")
        return
    table = errors_table(data)
    st.caption(table.caption)
    columns = {
        "error": st.column_config.NumberColumn("error", format="%.4f"),
        "sqnr_db": st.column_config.NumberColumn("SQNR (dB)", format="%.2f"),
        "normal_error": st.column_config.NumberColumn("on N(0, 1)", format="%.4f"),
    }
    show.numbers(data, "grid_errors", "Error of the grid on these tokens", columns, table)


def _map(settings: Settings, plan: str, run: Any, recorded: dict[str, Any]) -> None:
    st.subheader("Kurtosis by depth and timestep")
    data = normality_data(recorded)
    caption = f"Excess kurtosis of every block linear's input; 0 is the normal's. {tokens_a_cell(data)} a cell."

    def make() -> Picture:
        return draw("kurtosis", lambda: (kurtosis_map_figure(data), data, caption))

    show.picture(kept(settings.source, [plan], ("kurtosis",), make, keys=[run["key"]]))
