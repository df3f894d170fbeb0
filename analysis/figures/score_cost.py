"""Figure 2's twin: score against cost, one line a method, over images that the methods draw from the same noise."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
from matplotlib.axes import Axes
from matplotlib.figure import Figure

from analysis.figures.samples import samples_data, tile
from analysis.load import finished
from analysis.methods import bits_group
from analysis.stats import estimate_columns, mean_interval
from analysis.style import BLACK, COLUMN_WIDTH, GREY, LOOKS, styled
from robuq.config import BitAllocation, RunConfig
from robuq.cost import layer_costs, paper_gflops
from robuq.record.run_record import RunRecord

SCORE = "classifier_score"
SHOWN = ("full_precision", "bitnet_v2", "binarydm", "baseline", "robuq_uniform", "robuq")
REFERENCE = "full_precision"
IMAGES = 4  # rows of the grid
DODGE = 0.012  # of the costs' range, between methods of one cost
NEAR = 0.06  # of the costs' range: points of one width that are no farther apart have one label
LABEL = (0.13, 0.095)  # of the panel, that a label takes
AXES = {"gflops": r"$10^6$ FLOPs, as the paper draws", "bops": r"$10^9$ bit operations"}
UNITS = {"gflops": 1e-3, "bops": 1e9}  # of the data in the axis' unit


def score_cost_data(runs: pd.DataFrame, full_record: Callable[[str], RunRecord]) -> pd.DataFrame:
    """One row a method and width: bits (NaN: full precision), variant, gflops (by `paper_gflops`, mean over runs; NaN
    for weights that have no count there), bops, `classifier_score` with its interval and n, keys.

    `full_record` gives the whole record of a run's key.
    """
    done = finished(runs)
    done = done[done["variant"].isin(SHOWN)].assign(bits=lambda rows: rows["act_bits"].map(bits_group))
    rows = []
    for name in (name for name in SHOWN if name in set(done["variant"])):
        own = done[done["variant"] == name]
        for bits, part in own.groupby("bits", dropna=False):
            gflops = [drawn_gflops(full_record(key)) for key in part["key"]]
            cost = {"gflops": float(np.mean(gflops)), "bops": float(part["bops"].mean())}
            score = estimate_columns(SCORE, mean_interval(part[SCORE]))
            rows.append({"bits": bits, "variant": name, **cost, **score, "keys": " ".join(part["key"])})
    return pd.DataFrame(rows)


def drawn_gflops(record: RunRecord) -> float:
    """10^9, in the convention of `robuq.cost.paper_gflops`; NaN where it has none."""
    run = RunConfig.parse(record.config)
    found = BitAllocation(bits=record.allocation) if record.allocation else run.allocation
    try:
        return sum(paper_gflops(layer_costs(run.model, run.precision, found)).values())
    except ValueError:
        return math.nan


def plot_score_cost(data: pd.DataFrame, cost: str, ax: Axes, names: Mapping[str, str]) -> None:
    """Lines over the widths; full precision, far to the right, is a level. Methods of equal cost stand side by side."""
    points = data[(data["variant"] != REFERENCE) & data[cost].notna()]
    shown = [name for name in SHOWN if name in set(points["variant"])]
    gap = DODGE * float(np.ptp(points[cost])) / UNITS[cost] if len(points) else 0.0
    for place, name in enumerate(shown):
        part, look = points[points["variant"] == name].sort_values(cost), LOOKS[name]
        x = part[cost].to_numpy() / UNITS[cost] + gap * (place - (len(shown) - 1) / 2)
        reach = (part[f"{SCORE}_high"] - part[f"{SCORE}_low"]).fillna(0).to_numpy() / 2
        drawn: dict[str, Any] = {"color": look.color, "ls": look.linestyle, "marker": look.marker}
        ax.errorbar(x, part[SCORE], yerr=reach, capsize=1.5, elinewidth=0.6, label=names.get(name, name), **drawn)
    reference = data.loc[data["variant"] == REFERENCE, SCORE]
    if len(reference):
        ax.axhline(float(reference.iloc[0]), color=BLACK, lw=0.8, label=names.get(REFERENCE, REFERENCE), zorder=0)
    ax.set_xlabel(AXES[cost])
    ax.margins(x=0.12, y=0.2)


def name_widths(data: pd.DataFrame, cost: str, ax: Axes) -> float:
    """`A2` once above all points of one width and nearly one cost; what would touch another label stands above it, and
    a line leads down to its points. After everything is drawn, because it is placed by the panel's limits.

    Returns the upper end of the highest label, as a score.
    """
    points = data[(data["variant"] != REFERENCE) & data[cost].notna()]
    ax.autoscale_view()
    top = points[[SCORE, f"{SCORE}_high"]].max(axis=1)
    steps = (points[cost] / float(np.ptp(points[cost]) or 1) / NEAR).round()
    inside = ax.transData + ax.transAxes.inverted()  # the panel is one wide and one high
    taken: list[tuple[float, float]] = []
    for (bits, _), part in points.assign(top=top).groupby(["bits", steps]):
        below = (float(part[cost].mean()) / UNITS[cost], float(part["top"].max()))
        x, start = inside.transform(below)
        y = start
        while any(abs(x - other) < LABEL[0] and abs(y - at) < LABEL[1] for other, at in taken):
            y += LABEL[1] / 2
        taken.append((x, y))
        right, up = inside.inverted().transform((x, y))
        if y > start:
            ax.plot([below[0], right], [below[1], up], color=GREY, lw=0.4, zorder=0)
        ax.annotate(f"A{bits:g}", (right, up), (0, 2), textcoords="offset points", ha="center", fontsize=6)
    highest = max((y for _, y in taken), default=0.0) + LABEL[1]
    return float(inside.inverted().transform((0, highest))[1])


def plot_columns(samples: pd.DataFrame, ax: Axes, names: Mapping[str, str]) -> None:
    """One column a method, one row an image index: the same noise and label along a row."""
    groups = [part for _, part in samples.groupby("variant", sort=False)]
    shown = samples["index"].drop_duplicates().to_list()[:IMAGES]
    rows = [[part.set_index("index").loc[i, "pixels"] for part in groups] for i in shown]
    canvas = tile([[np.asarray(pixels) for pixels in row] for row in rows], [])
    ax.imshow(canvas[..., 0] if canvas.shape[-1] == 1 else canvas, cmap="gray", vmin=0, vmax=255)
    width = np.asarray(rows[0][0]).shape[1]
    titles = [_two_lines(names.get(name, name)) for name in (str(part["variant"].iloc[0]) for part in groups)]
    ax.set_xticks([(width + 1) * i + width / 2 for i in range(len(titles))], titles, fontsize=6)
    ax.set_yticks([])
    ax.tick_params(length=0)
    for spine in ax.spines.values():
        spine.set_visible(False)


def _two_lines(name: str) -> str:
    """All names are two lines high, so that their first lines are level."""
    return name.replace(" ", "\n", 1) if " " in name else f"{name}\n "


def score_cost_figure(data: pd.DataFrame, samples: pd.DataFrame, names: Mapping[str, str]) -> Figure:
    """Two panels of one score over two costs, and the grid below; without samples the panels alone."""
    with styled():
        grid = 0.0 if samples.empty else _grid_height(samples)
        figure = Figure(figsize=(COLUMN_WIDTH, 2.1 + grid))
        parts = (
            [figure]
            if samples.empty
            else list(np.ravel(np.asarray(figure.subfigures(2, 1, height_ratios=[2.1, grid]))))
        )
        upper = parts[0]
        left, right = upper.subplots(1, 2, sharey=True)
        plot_score_cost(data, "gflops", left, names)
        plot_score_cost(data, "bops", right, names)
        highest = max(name_widths(data, cost, ax) for cost, ax in (("gflops", left), ("bops", right)))
        left.set_ylim(top=max(highest, left.get_ylim()[1]))
        left.set_ylabel("classifier score")
        handles, labels = right.get_legend_handles_labels()
        upper.legend(handles, labels, loc="outside upper center", ncols=3, columnspacing=0.8, handlelength=1.8)
        if len(parts) > 1:
            plot_columns(samples, parts[1].subplots(), names)
    return figure


def _grid_height(samples: pd.DataFrame) -> float:
    """inches"""
    columns, rows = samples["variant"].nunique(), min(IMAGES, samples["index"].nunique())
    height, width = samples["pixels"].iloc[0].shape[:2]
    return float(0.35 + COLUMN_WIDTH * rows / columns * height / width)


def grid_data(runs: pd.DataFrame, open_file: Callable[[str], Path]) -> pd.DataFrame:
    """`samples_data` of the shown methods at the fewest bits that most of them have, full precision first."""
    own = runs[runs["variant"].isin(SHOWN)]
    widths = own["act_bits"].map(bits_group)
    data = samples_data(own[widths.isna() | (widths == widths.min())], open_file)
    return data.sort_values("variant", key=lambda names: names.map(SHOWN.index), kind="stable") if len(data) else data


def csv_of(data: pd.DataFrame, samples: pd.DataFrame) -> pd.DataFrame:
    """The points; and which run drew each column, as `drawn_by`."""
    drawn: dict[Any, Any] = dict(samples.groupby("variant")["key"].first()) if len(samples) else {}
    return data.assign(drawn_by=data["variant"].map(drawn))
