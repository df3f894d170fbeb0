"""Two methods against each other: the difference of every seed that both have, and what tells their settings apart."""

from __future__ import annotations

import json
import math
from collections.abc import Mapping
from typing import Any

import numpy as np
import pandas as pd
from matplotlib.axes import Axes
from matplotlib.figure import Figure

from analysis.provenance import flat
from analysis.render import NONE, TextTable, number, with_half_width
from analysis.stats import PairedDifference, estimate_columns, paired_difference
from analysis.style import BLACK, BLUE, COLUMN_WIDTH, GREY, RED, styled
from analysis.tables.allocations import p_text
from analysis.tables.components import METRICS, PAIRS

CAPTION = (
    "A minus B over the seeds that both have: mean, ± half the width of the paired 95 % t interval, and the two-sided "
    "p-value of the paired t-test, not corrected for the number of metrics."
)
IGNORED = ("seed", "pretrain_seed", "variant")  # of a configuration: they differ by construction


def pairs_data(a: pd.DataFrame, b: pd.DataFrame, metric: str) -> pd.DataFrame:
    """One row a pair of seeds that both have the metric for: seed, pretrain_seed, a, b, difference (a - b), key_a,
    key_b."""
    left, right = (part.set_index(PAIRS)[[metric, "key"]] for part in (a, b))
    both = left.join(right, how="inner", lsuffix="_left", rsuffix="_right").sort_index().reset_index()
    both.columns = pd.Index([*PAIRS, "a", "key_a", "b", "key_b"])
    both["difference"] = both["a"] - both["b"]
    return both[both["difference"].notna()].reset_index(drop=True)


def differences_data(a: pd.DataFrame, b: pd.DataFrame) -> pd.DataFrame:
    """One row a metric: metric, `difference` with `_low`, `_high` and `_n`, p, effect."""
    rows = []
    for metric in METRICS:
        found = _difference(pairs_data(a, b, metric))
        rows.append({"metric": metric, **estimate_columns("difference", found), "p": found.p, "effect": found.effect})
    return pd.DataFrame(rows)


def _difference(pairs: pd.DataFrame) -> PairedDifference:
    own = pairs.set_index(PAIRS)
    return paired_difference(own["a"], own["b"])


def differences_table(data: pd.DataFrame) -> TextTable:
    rows = []
    for _, row in data.iterrows():
        header, digits, _ = METRICS[row["metric"]]
        low, high, count = row["difference_low"], row["difference_high"], int(row["difference_n"])
        found = PairedDifference(row["difference"], low, high, count, row["p"], row["effect"])
        text = with_half_width(found, digits + 1) if count else NONE
        rows.append({"Metric": header, "A − B": text, "p": p_text(row["p"]), "n": str(count)})
    cells = pd.DataFrame(rows)
    marks = pd.DataFrame("", index=cells.index, columns=cells.columns)
    return TextTable(cells, marks, words=("Metric",), caption=CAPTION)


def verdict(pairs: pd.DataFrame, metric: str) -> str:
    """One line: what the paired difference shows of this metric, and on how many seeds."""
    header, digits, lower = METRICS[metric]
    if pairs.empty:
        return f"{header}: A and B share no seed"
    found = _difference(pairs)
    text = f"{header}: A − B = {with_half_width(found, digits + 1)} (n = {found.n})"
    if math.isnan(found.half_width):
        return f"{text}; one pair gives no interval"
    if not found.excludes_zero:
        return f"{text}; the interval has zero in it: no difference is shown"
    return f"{text}; A is {'better' if (found.mean < 0) == lower else 'worse'}, by the 95 % interval"


# --- drawing ------------------------------------------------------------------------------------------------------


def plot_pairs(pairs: pd.DataFrame, ax: Axes) -> None:
    """A dot a pair; the line is the mean, the band its 95 % interval."""
    found = _difference(pairs)
    x = np.arange(len(pairs))
    if not math.isnan(found.half_width):
        ax.axhspan(found.low, found.high, color=BLUE, alpha=0.15, lw=0, label="95 % interval")
    ax.axhline(found.mean, color=BLUE, ls="--", label="mean")
    ax.axhline(0, color=GREY, lw=0.8)
    ax.plot(x, pairs["difference"], "o", color=BLACK, ms=4, label="pair of runs")
    one = pairs["pretrain_seed"].nunique() == 1
    names = [str(s) if one else f"{s}\n({p})" for s, p in zip(pairs["seed"], pairs["pretrain_seed"], strict=True)]
    ax.set_xticks(x, names)
    ax.set_xlim(-0.6, len(pairs) - 0.4)
    ax.set_xlabel("seed" if one else "seed (of pre-training)")


def pairs_figure(pairs: pd.DataFrame, metric: str) -> Figure:
    """Differences of one metric by seed.

    Raises:
        ValueError: there is no pair.
    """
    if pairs.empty:
        raise ValueError("no seed is shared: there is no difference to draw")
    with styled():
        figure = Figure(figsize=(COLUMN_WIDTH, 2.2))
        ax = figure.subplots()
        plot_pairs(pairs, ax)
        ax.set_ylabel(f"A − B, {METRICS[metric][0].rstrip(' ↓↑').lower()}")
        figure.legend(*ax.get_legend_handles_labels(), loc="outside lower center", ncols=3, columnspacing=1.0)
    return figure


def pairs_text(pairs: pd.DataFrame) -> str:
    """The figure in words."""
    values = "; ".join(f"seed {row['seed']}: {number(row['difference'], 5)}" for _, row in pairs.iterrows())
    return f"Difference A minus B of each seed. {values}."


def plot_losses(curves: pd.DataFrame, names: tuple[str, str], ax: Axes) -> None:
    """Lines are means over seeds, bands their lowest and highest; `curves`: of `figures.curves.curves_data`."""
    for name, color, linestyle in zip(names, (RED, BLUE), ("-", "--"), strict=True):
        curve = curves[curves["variant"] == name]
        x, low, high = (curve[column].to_numpy() for column in ("step", "low", "high"))
        ax.fill_between(x, low, high, color=color, alpha=0.2, lw=0)
        count = f" (n = {int(curve['n'].max())})" if len(curve) else ""
        ax.plot(x, curve["loss"].to_numpy(), color=color, ls=linestyle, label=f"{name}{count}")


def losses_figure(curves: pd.DataFrame, names: tuple[str, str]) -> Figure:
    with styled():
        figure = Figure(figsize=(COLUMN_WIDTH, 2.3))
        ax = figure.subplots()
        plot_losses(curves, names, ax)
        ax.set(xlabel="QAT step", ylabel="training loss\n(MSE per pixel, smoothed)")
        figure.legend(*ax.get_legend_handles_labels(), loc="outside lower center", ncols=1)
    return figure


# --- settings -----------------------------------------------------------------------------------------------------


def config_differences(a: Mapping[str, Any], b: Mapping[str, Any]) -> pd.DataFrame:
    """One row a setting that two resolved configurations do not share: setting, a, b, as JSON; seeds and names left
    out."""
    left, right = flat(a), flat(b)
    names = [name for name in dict.fromkeys([*left, *right]) if name.partition(".")[0] not in IGNORED]
    rows = [
        {"setting": name, "a": _value(left, name), "b": _value(right, name)}
        for name in names
        if left.get(name, NONE) != right.get(name, NONE)
    ]
    return pd.DataFrame(rows, columns=["setting", "a", "b"])


def _value(settings: Mapping[str, Any], name: str) -> str:
    return json.dumps(settings[name]) if name in settings else NONE
