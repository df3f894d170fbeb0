"""Figure 2's twin: score against cost, one line a method, above images that the methods draw from the same noise."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
from matplotlib.axes import Axes
from matplotlib.figure import Figure

from analysis.figures.labels import Label, place_labels
from analysis.figures.samples import samples_data, tile
from analysis.load import finished
from analysis.methods import bits_group
from analysis.stats import estimate_columns, mean_interval
from analysis.style import BLACK, COLUMN_WIDTH, LIGHT, LOOKS, styled
from robuq.config import BitAllocation, RunConfig
from robuq.cost import layer_costs, paper_gflops
from robuq.record.run_record import RunRecord

SCORE = "classifier_score"
REFERENCE, OTHERS = "full_precision", ("bitnet_v2", "binarydm", "baseline", "robuq_uniform")
AMPN = ("robuq_to_4", "robuq")  # the paper's widths, 1 to 4, or, where no such run is recorded, 1 to 8
IMAGES = 3  # rows of the grid
DODGE = 0.022  # of the costs' range, between methods of one cost
NEAR = 0.01  # of the costs' range: points of one width that are no farther apart stand side by side
PANEL, LEGEND = 1.5, 0.35  # inches
AXES = {
    "gflops": r"$10^6$ FLOPs of one image, as the paper draws",
    "bops": r"$10^9$ bit operations of one image",
}
UNITS = {"gflops": 1e-3, "bops": 1e9}  # of the data in the axis' unit


def shown_variants(runs: pd.DataFrame) -> tuple[str, ...]:
    """Full precision, other methods, RobuQ, and one row with AMPN."""
    recorded = set(finished(runs)["variant"])
    return (REFERENCE, *OTHERS, next((name for name in AMPN if name in recorded), AMPN[0]))


def score_cost_data(runs: pd.DataFrame, full_record: Callable[[str], RunRecord]) -> pd.DataFrame:
    """One row a method and width: bits (NaN: full precision), variant, gflops (by `paper_gflops`, mean over runs; NaN
    for weights that have no count there), bops, `classifier_score` with its interval and n, keys.

    `full_record` gives the whole record of a run's key.
    """
    done = finished(runs).assign(bits=lambda rows: rows["act_bits"].map(bits_group))
    rows = []
    for name in (name for name in shown_variants(runs) if name in set(done["variant"])):
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


def placed(data: pd.DataFrame, cost: str) -> pd.DataFrame:
    """The points that have this cost, with `x`, in the axis' unit, and `group`, a number that points of one width and
    nearly one cost share: these are set side by side."""
    points = data[(data["variant"] != REFERENCE) & data[cost].notna()].sort_values(["bits", cost], kind="stable")
    span = float(np.ptp(points[cost])) if len(points) else 0.0
    apart = (points[cost].diff() > NEAR * span) | (points["bits"].diff() != 0)
    points = points.assign(group=apart.cumsum()).sort_index()
    rank, count = points.groupby("group").cumcount(), points["group"].map(points["group"].value_counts())
    return points.assign(x=(points[cost] + DODGE * span * (rank - (count - 1) / 2)) / UNITS[cost])


def plot_score_cost(points: pd.DataFrame, reference: pd.DataFrame, ax: Axes, names: Mapping[str, str]) -> None:
    """Lines over the widths of `placed`; full precision, far to the right, is a level with its interval as a band."""
    for name in points["variant"].drop_duplicates():
        part, look = points[points["variant"] == name].sort_values("x"), LOOKS[name]
        reach = part[f"{SCORE}_high"].fillna(part[SCORE]) - part[SCORE]
        drawn: dict[str, Any] = {"color": look.color, "ls": look.linestyle, "marker": look.marker}
        ax.errorbar(
            part["x"], part[SCORE], yerr=reach, capsize=1.5, elinewidth=0.6, label=names.get(name, name), **drawn
        )
    for _, row in reference.iterrows():
        ax.axhline(row[SCORE], color=BLACK, lw=0.8, label=names.get(REFERENCE, REFERENCE), zorder=0)
        if not math.isnan(row[f"{SCORE}_low"]):
            ax.axhspan(row[f"{SCORE}_low"], row[f"{SCORE}_high"], color=LIGHT, alpha=0.4, lw=0, zorder=-1)
    ax.margins(x=0.08, y=0.12)


def name_widths(points: pd.DataFrame, reference: pd.DataFrame, ax: Axes) -> None:
    """`A2` beside each method's points, once for those that stand side by side. After the layout, on which it rests."""
    labels = [_label(part) for _, part in points.groupby("group")]
    lines = [part.sort_values("x")[["x", SCORE]].to_numpy(np.float64) for _, part in points.groupby("variant")]
    levels = reference[[SCORE, f"{SCORE}_low", f"{SCORE}_high"]].to_numpy(np.float64).ravel()
    place_labels(ax, labels, lines + [np.array([[x, y] for x in ax.get_xlim()]) for y in levels if not math.isnan(y)])


def _label(part: pd.DataFrame) -> Label:
    low, high = (part[f"{SCORE}_{end}"].fillna(part[SCORE]).to_numpy(np.float64) for end in ("low", "high"))
    color = LOOKS[str(part["variant"].iloc[0])].color if len(part) == 1 else BLACK
    return Label(f"A{part['bits'].iloc[0]:g}", part[["x", SCORE]].to_numpy(np.float64), low, high, color)


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
    for end in (" ", "-"):
        if end in name:
            return name.replace(end, f"{end.strip()}\n", 1)
    return f"{name}\n "


def score_cost_figure(data: pd.DataFrame, samples: pd.DataFrame, names: Mapping[str, str]) -> Figure:
    """Two panels, one above the other, of one score over two costs, and the grid below; without samples the panels
    alone."""
    with styled():
        grid = 0.0 if samples.empty else _grid_height(samples)
        heights = [2 * PANEL + LEGEND, *([grid] if grid else [])]
        figure = Figure(figsize=(COLUMN_WIDTH, sum(heights)))
        upper, *lower = np.ravel(np.asarray(figure.subfigures(len(heights), 1, height_ratios=heights)))
        axes = upper.subplots(2, 1, sharey=True)
        reference = data[data["variant"] == REFERENCE]
        points = {cost: placed(data, cost) for cost in AXES}
        for ax, cost in zip(axes, AXES, strict=True):
            plot_score_cost(points[cost], reference, ax, names)
            ax.set_xlabel(AXES[cost])
        upper.supylabel("classifier score", fontsize=8)
        handles, labels = axes[1].get_legend_handles_labels()
        upper.legend(handles, labels, loc="outside upper center", ncols=3, columnspacing=0.8, handlelength=1.8)
        for below in lower:
            plot_columns(samples, below.subplots(), names)
        figure.draw_without_rendering()
        for ax, cost in zip(axes, AXES, strict=True):
            name_widths(points[cost], reference, ax)
    return figure


def _grid_height(samples: pd.DataFrame) -> float:
    """inches"""
    columns, rows = samples["variant"].nunique(), min(IMAGES, samples["index"].nunique())
    height, width = samples["pixels"].iloc[0].shape[:2]
    return float(0.35 + COLUMN_WIDTH * rows / columns * height / width)


def grid_data(runs: pd.DataFrame, open_file: Callable[[str], Path]) -> pd.DataFrame:
    """`samples_data` of the shown methods at the fewest bits that most of them have, full precision first."""
    shown = shown_variants(runs)
    own = runs[runs["variant"].isin(shown)]
    widths = own["act_bits"].map(bits_group)
    data = samples_data(own[widths.isna() | (widths == widths.min())], open_file)
    return data.sort_values("variant", key=lambda names: names.map(shown.index), kind="stable") if len(data) else data


def csv_of(data: pd.DataFrame, samples: pd.DataFrame) -> pd.DataFrame:
    """The points; and which run drew each column, as `drawn_by`."""
    drawn: dict[Any, Any] = dict(samples.groupby("variant")["key"].first()) if len(samples) else {}
    return data.assign(drawn_by=data["variant"].map(drawn))
