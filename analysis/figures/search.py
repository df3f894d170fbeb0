"""A search: its history at every rung, its Pareto front, and each cheap rung against the last."""

from __future__ import annotations

import math
from typing import Any

import numpy as np
import pandas as pd
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.lines import Line2D
from matplotlib.ticker import MaxNLocator

from analysis.evaluations import PREDICTED, evaluations_data, rung_pairs, rung_steps, rung_values
from analysis.methods import WEIGHTINGS, in_order, short_name
from analysis.stats import rank_correlation
from analysis.style import BLACK, COLUMN_WIDTH, GREY, LOOKS, Look, looks, styled
from robuq.record.search_record import SearchRecord

SEARCH = LOOKS["search"]
FENCE = 3.0  # interquartile ranges above the third quartile: Tukey's far-out values leave the panel
LABEL = 0.095  # of a panel's height, between the labels of two lines
EDGE: dict[str, Any] = {"ms": 3, "mfc": "none", "mec": BLACK, "mew": 0.5, "ls": ""}  # of what lies beyond the panel
LOSS = "validation loss (MSE per pixel)"


# --- history ------------------------------------------------------------------------------------------------------


def history_data(record: SearchRecord) -> pd.DataFrame:
    """`rung_values`, and `winner`."""
    data = rung_values(record)
    return data.assign(winner=data["number"] == record.winner)


def plot_history(data: pd.DataFrame, ax: Axes) -> None:
    """One rung: every evaluation a dot, hollow where it was stopped; the best so far; baselines as labelled lines."""
    known = data[data["value"].notna()]
    low, high = _limits(known["value"], known["names"] != "")
    inside = known[known["value"] <= high]
    for goes_on, part in inside[inside["names"] == ""].groupby("goes_on"):
        fill = GREY if goes_on else "none"
        ax.plot(part["number"], part["value"], "o", ms=3, mfc=fill, mec=BLACK, mew=0.5, zorder=2)
    above, failed = known[known["value"] > high], data[data["value"].isna()]
    top, foot = ax.get_xaxis_transform(), ax.get_xaxis_transform()
    ax.plot(above["number"], np.full(len(above), 0.975), "^", transform=top, **EDGE)
    ax.plot(failed["number"], np.full(len(failed), 0.03), "x", ms=3, mec=BLACK, mew=0.7, transform=foot)
    ax.step(known["number"], known["best"], where="post", color=SEARCH.color, ls="-", lw=1.4, zorder=1.5)
    ax.set_ylim(low, high)
    _plot_baselines(inside, ax)
    best = inside[inside["winner"]]
    ax.plot(best["number"], best["value"], SEARCH.marker, ms=8, mfc=SEARCH.color, mec=BLACK, mew=0.5, zorder=4)


def _plot_baselines(data: pd.DataFrame, ax: Axes) -> None:
    """Dashed lines through the baselines' values, named at the right edge, names pushed apart where lines meet."""
    rows = data[data["names"] != ""].sort_values("value")
    low, high = ax.get_ylim()
    heights = spread([(value - low) / (high - low) for value in rows["value"]], LABEL)
    for (_, row), height in zip(rows.iterrows(), heights, strict=True):
        names = in_order(row["names"].split())
        look = looks(names)[names[0]]
        ax.axhline(row["value"], color=look.color, ls=look.linestyle, lw=0.9, zorder=1)
        ax.plot(row["number"], row["value"], look.marker, ms=4, mfc=look.color, mec=BLACK, mew=0.4, zorder=3)
        text = ", ".join(short_name(name) for name in names)
        ax.text(1.02, height, text, transform=ax.transAxes, color=look.color, fontsize=7, va="center")


def spread(heights: list[float], gap: float) -> list[float]:
    """Ascending positions in [0, 1], moved as little as it takes to lie `gap` apart: neighbours that meet share their
    mean position and are set around it."""
    groups: list[list[float]] = []
    for height in heights:
        groups.append([height])
        while len(groups) > 1 and _edges(groups[-2], gap)[1] + gap > _edges(groups[-1], gap)[0]:
            last = groups.pop()
            groups[-1] += last
    return [_edges(group, gap)[0] + place * gap for group in groups for place in range(len(group))]


def _edges(group: list[float], gap: float) -> tuple[float, float]:
    half = gap * (len(group) - 1) / 2
    centre = min(max(sum(group) / len(group), half), 1 - half)
    return centre - half, centre + half


def _limits(values: pd.Series[float], kept: pd.Series[bool]) -> tuple[float, float]:
    """Around all values but those far above the rest; those of `kept` always stay."""
    first, third = values.quantile(0.25), values.quantile(0.75)
    fence = third + FENCE * (third - first)
    high = float(values[(values <= fence) | kept].max()) if third > first else float(values.max())
    low = float(values.min())
    margin = 0.08 * (high - low) or 0.01 * abs(high) or 1.0
    return low - margin, high + margin


def history_figure(data: pd.DataFrame) -> Figure:
    """One panel a rung, from the cheapest to the last, over one axis of evaluations.

    Raises:
        ValueError: no evaluation has a value.
    """
    rungs = sorted(data.loc[data["value"].notna(), "steps"].unique())
    if not rungs:
        raise ValueError("no evaluation has a value: there is no history to draw")
    with styled():
        figure = Figure(figsize=(COLUMN_WIDTH, 0.75 + 1.3 * len(rungs)))
        axes = figure.subplots(len(rungs), 1, sharex=True, squeeze=False).ravel()
        for ax, steps in zip(axes, rungs, strict=True):
            part = data[data["steps"] == steps]
            plot_history(part, ax)
            ax.set_title(f"{rung_name(int(steps))}, n = {part['value'].notna().sum()}", loc="left")
        axes[-1].set_xlabel("evaluation (in the order of asking)")
        axes[-1].xaxis.set_major_locator(MaxNLocator(integer=True, steps=[1, 2, 5, 10], min_n_ticks=1))
        last = int(data["number"].max())
        axes[-1].set_xlim(-0.03 * last - 0.5, 1.03 * last + 0.5)
        figure.supylabel(LOSS, fontsize=8)
        handles = _history_handles(data)
        figure.legend(
            handles=handles, loc="outside lower center", ncols=min(4, len(handles)), columnspacing=0.8, handlelength=1.4
        )
    return figure


def rung_name(steps: int) -> str:
    if steps == PREDICTED:
        return "additive prediction"
    return "warmed-up network, no training" if steps == 0 else f"after {steps} steps of QAT"


def _history_handles(data: pd.DataFrame) -> list[Line2D]:
    """What the figure has, and no more."""
    dot: dict[str, Any] = {"ls": "", "marker": "o", "mec": BLACK, "mew": 0.5, "ms": 3}
    known = data["value"].notna()
    own = known & (data["names"] == "")
    handles = [
        (True, Line2D([], [], color=SEARCH.color, lw=1.4, label="best so far")),
        ((own & data["goes_on"]).any(), Line2D([], [], mfc=GREY, label="proposal", **dot)),
        ((own & ~data["goes_on"]).any(), Line2D([], [], mfc="none", label="stopped here", **dot)),
        ((known & data["winner"]).any(), _mark(SEARCH, "winner", 7)),
        ((~known).any(), Line2D([], [], ls="", marker="x", mec=BLACK, mew=0.7, ms=3, label="failed")),
    ]
    return [handle for shown, handle in handles if shown]


def _mark(look: Look, label: str, size: float = 4) -> Line2D:
    return Line2D([], [], ls="", marker=look.marker, mfc=look.color, mec=BLACK, mew=0.4, ms=size, label=label)


# --- Pareto front --------------------------------------------------------------------------------------------------


def pareto_data(record: SearchRecord) -> pd.DataFrame:
    """Evaluations with a value at the last rung: number, names, cost, unit of the cost, value, front.

    The cost is the search's second objective, the budget's own where it has one objective.
    """
    data = evaluations_data(record)
    objectives, weights = record.search["objectives"], str(record.budget["weights"])
    second = objectives[1] if len(objectives) > 1 else "bops" if weights == "bops" else "average_bits"
    weights = "macs" if weights == "bops" else weights
    column, unit = ("bops", "bops") if second == "bops" else (f"bits_{weights}", weights)
    columns = ["number", "names", "cost", "value", "front"]
    if data.empty:
        return pd.DataFrame(columns=[*columns, "unit"])
    data = data.assign(cost=data[column], value=data[f"value_{rung_steps(record)[-1]}"])
    return data.loc[data["value"].notna(), columns].assign(unit=unit).reset_index(drop=True)


def plot_pareto(data: pd.DataFrame, ax: Axes) -> None:
    """Every evaluation a dot, the front a staircase through filled ones, baselines with their own markers."""
    own = data[data["names"].map(lambda names: names in ("", "search"))]
    for on_front, part in own.groupby("front"):
        fill = SEARCH.color if on_front else "none"
        ax.plot(part["cost"], part["value"], "o", ms=3.2, mfc=fill, mec=BLACK, mew=0.5, zorder=3)
    front = data[data["front"]].sort_values("cost")
    ax.step(front["cost"], front["value"], where="post", color=SEARCH.color, lw=1.4, zorder=1)
    for names, part in data[~data.index.isin(own.index)].groupby("names"):
        look = LOOKS[in_order(str(names).split())[0]]
        ax.plot(part["cost"], part["value"], look.marker, ms=4.5, mfc=look.color, mec=BLACK, mew=0.4, ls="", zorder=4)
    unit = str(data["unit"].iloc[0])
    bops = r"$10^9$ bit operations per image"
    ax.set_xlabel(bops if unit == "bops" else f"mean activation bits by {WEIGHTINGS[unit]}")
    ax.set_ylabel(LOSS)
    low, high = _pareto_limits(data)
    above = data[data["value"] > high]
    ax.plot(above["cost"], np.full(len(above), 0.98), "^", transform=ax.get_xaxis_transform(), **EDGE)
    ax.set_ylim(low, high)


def _pareto_limits(data: pd.DataFrame) -> tuple[float, float]:
    return _limits(data["value"], data["front"] | (data["names"] != ""))


def beyond(data: pd.DataFrame) -> bool:
    """Whether a value lies above the panel of the front."""
    return bool((data["value"] > _pareto_limits(data)[1]).any())


def pareto_figure(data: pd.DataFrame) -> Figure:
    with styled():
        figure = Figure(figsize=(COLUMN_WIDTH, 2.5))
        ax = figure.subplots()
        plot_pareto(data, ax)
        dot: dict[str, Any] = {"marker": "o", "mec": BLACK, "mew": 0.5, "ms": 3.2}
        handles = [Line2D([], [], color=SEARCH.color, mfc=SEARCH.color, label="front", **dot)]
        if (~data["front"] & data["names"].isin(("", "search"))).any():
            handles.append(Line2D([], [], ls="", mfc="none", label="beaten", **dot))
        names = [in_order(names.split()) for names in data["names"].unique() if names not in ("", "search")]
        shown = {group[0]: ", ".join(short_name(n) for n in group if n != "search") for group in names}
        handles += [_mark(LOOKS[name], shown[name]) for name in in_order(shown)]
        figure.legend(handles=handles, loc="outside lower center", ncols=3, columnspacing=1.0)
    return figure


# --- rung against rung ---------------------------------------------------------------------------------------------


def rungs_data(record: SearchRecord) -> pd.DataFrame:
    """`rung_pairs`: what was known of an evaluation cheaply (x) and its value at the last rung (y)."""
    return rung_pairs(record)


def rung_correlations(pairs: pd.DataFrame, seed: int) -> pd.DataFrame:
    """One row a cheap rung: low, high (steps), spearman, spearman_low, spearman_high (95 % bootstrap), n.

    `seed` of each row's resamples: equal pairs have one interval wherever it is shown.
    """
    rows = []
    for (low, high), part in pairs.groupby(["low", "high"]):
        found = rank_correlation(part["x"], part["y"], np.random.default_rng(seed))
        bounds = {"spearman": found.mean, "spearman_low": found.low, "spearman_high": found.high, "n": found.n}
        rows.append({"low": low, "high": high, **bounds})
    return pd.DataFrame(rows, columns=["low", "high", "spearman", "spearman_low", "spearman_high", "n"])


def plot_rungs(data: pd.DataFrame, ax: Axes) -> None:
    """One cheap rung against the last; baselines with their own markers, far values as hollow ones at the edge."""
    own = data[data["names"] == ""]
    ax.plot(own["x"], own["y"], "o", ms=3, mfc=GREY, mec=BLACK, mew=0.4)
    for _, row in data[data["names"] != ""].iterrows():
        look = LOOKS[in_order(row["names"].split())[0]]
        ax.plot(row["x"], row["y"], look.marker, ms=4.5, mfc=look.color, mec=BLACK, mew=0.4, zorder=3)
    ax.locator_params(axis="x", nbins=4)
    named = data["names"] != ""
    (left, right), (low, high) = _limits(data["x"], named), _limits(data["y"], named)
    far = data[(data["x"] > right) | (data["y"] > high)]
    far = far.assign(
        x=far["x"].clip(upper=right - 0.02 * (right - left)), y=far["y"].clip(upper=high - 0.02 * (high - low))
    )
    ax.plot(far["x"], far["y"], "^", **EDGE)
    ax.set(xlim=(left, right), ylim=(low, high))


def rungs_figure(data: pd.DataFrame, correlations: pd.DataFrame) -> Figure:
    """One panel a cheap rung, the additive prediction first, with Spearman's coefficient, its interval and n.

    Raises:
        ValueError: there are no pairs.
    """
    groups = [(row, data[data["low"] == row["low"]]) for _, row in correlations.iterrows()]
    if not groups:
        raise ValueError("no evaluation reached the last rung: there is nothing to compare")
    columns = min(2, len(groups))
    rows = math.ceil(len(groups) / columns)
    with styled():
        figure = Figure(figsize=(COLUMN_WIDTH, 0.5 + 1.65 * rows))
        axes = figure.subplots(rows, columns, sharey=True, squeeze=False).ravel()
        for place, ax in enumerate(axes):
            ax.set_visible(place < len(groups))
            if place < len(groups):
                found, part = groups[place]
                plot_rungs(part, ax)
                ax.set_xlabel(_axis(int(found["low"])))
                ax.set_title(_correlation(found), loc="left")
        figure.supylabel(f"loss after {data['high'].iloc[0]} steps (MSE per pixel)", fontsize=8)
        groups_of = [in_order(names.split()) for names in data["names"].unique() if names]
        shown = {group[0]: ", ".join(short_name(name) for name in group) for group in groups_of}
        dot = Line2D([], [], ls="", marker="o", mfc=GREY, mec=BLACK, mew=0.4, ms=3, label="proposal")
        handles = [dot] if (data["names"] == "").any() else []
        handles += [_mark(LOOKS[name], shown[name]) for name in in_order(shown)]
        figure.legend(handles=handles, loc="outside lower center", ncols=3, columnspacing=1.0)
    return figure


def _axis(steps: int) -> str:
    if steps == PREDICTED:
        return "additive prediction"
    return "loss untrained (rung 0)" if steps == 0 else f"loss after {steps} steps"


def _correlation(row: pd.Series[float]) -> str:
    """Two lines, so that they fit a panel of half a column."""
    if math.isnan(row["spearman"]):
        return f"n = {row['n']:.0f}"
    bounds = "" if math.isnan(row["spearman_low"]) else f" [{row['spearman_low']:.2f}, {row['spearman_high']:.2f}]"
    return f"ρ = {row['spearman']:.2f}{bounds}\nn = {row['n']:.0f}".replace("-", "−")
