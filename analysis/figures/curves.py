"""Training curves: mean loss of each variant over seeds, one panel per activation width."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import numpy as np
import pandas as pd
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.lines import Line2D
from numpy.typing import NDArray

from analysis.load import finished
from analysis.methods import bits_group, bits_name, in_order, short_name
from analysis.style import COLUMN_WIDTH, looks, styled

WINDOW = 0.1  # of the logged points, averaged into each point
HEADROOM = 0.2  # the part of training, from its start, that may leave the panel at the top
COLUMNS = ("bits", "variant", "step", "loss", "low", "high", "n")
Rows = Sequence[Mapping[str, Any]]


def curves_data(runs: pd.DataFrame, read_rows: Callable[[str], Rows]) -> pd.DataFrame:
    """Columns `bits` (NaN: not quantized), `variant`, `step`, `loss`, `low`, `high`, `n`.

    `loss` is the mean over seeds of the smoothed curves, `low` and `high` are the lowest and highest of them.
    `read_rows` gives the rows of a history.jsonl from its location; runs without one, or with other steps than the
    first of their variant, are left out.
    """
    runs = finished(runs)
    runs = runs[runs["history"].notna()].assign(bits=lambda rows: rows["act_bits"].map(bits_group))
    parts = []
    for _, part in runs.sort_values("seed").groupby(["bits", "variant"], dropna=False):
        histories = [read_rows(location) for location in part["history"]]
        parts.append(_curve(part["bits"].iloc[0], part["variant"].iloc[0], histories))
    parts = [part for part in parts if len(part)]
    return pd.concat(parts, ignore_index=True) if parts else pd.DataFrame(columns=list(COLUMNS))


def smooth(values: NDArray[np.float64], window: int) -> NDArray[np.float64]:
    """Centred running mean (n,) -> (n,); the window is cut at both ends, never shifted."""
    sums = np.concatenate([[0.0], np.cumsum(values)])
    index = np.arange(len(values))
    left, right = np.maximum(index - window // 2, 0), np.minimum(index + window // 2 + 1, len(values))
    means: NDArray[np.float64] = (sums[right] - sums[left]) / (right - left)
    return means


def window_of(points: int) -> int:
    """Odd number of logged points in a running mean."""
    return 2 * round(WINDOW * points / 2) + 1


def _curve(bits: float, name: str, histories: Sequence[Rows]) -> pd.DataFrame:
    steps = [[row["step"] for row in rows if "loss" in row] for rows in histories]
    first = next((s for s in steps if s), [])
    losses = [
        smooth(np.array([row["loss"] for row in rows if "loss" in row], dtype=np.float64), window_of(len(first)))
        for rows, own in zip(histories, steps, strict=True)
        if first and own == first
    ]
    if not losses:
        return pd.DataFrame(columns=list(COLUMNS))
    stack = np.stack(losses)
    values = {"step": first, "loss": stack.mean(0), "low": stack.min(0), "high": stack.max(0)}
    return pd.DataFrame({"bits": bits, "variant": name, **values, "n": len(losses)})[list(COLUMNS)]


def plot_curves(data: pd.DataFrame, ax: Axes) -> None:
    """One panel: all rows of `data` are drawn."""
    names = in_order(data["variant"])
    for place, (name, look) in enumerate(looks(names).items()):
        curve = data[data["variant"] == name]
        every = max(1, len(curve) // 6)
        marks = (place * every // max(len(names), 1), every)  # shifted, so that markers of close curves do not meet
        steps, loss = curve["step"].to_numpy(), curve["loss"].to_numpy()
        label = short_name(name)
        ax.plot(
            steps,
            loss,
            color=look.color,
            ls=look.linestyle,
            marker=look.marker or None,
            ms=2.8,
            markevery=marks,
            label=label,
        )
        ax.fill_between(steps, curve["low"].to_numpy(), curve["high"].to_numpy(), color=look.color, alpha=0.2, lw=0)
    ax.set_xlabel("QAT step")


def curves_figure(data: pd.DataFrame) -> Figure:
    """Panels with common axes, from full-precision activations to the fewest bits; full precision is in each."""
    reference = data[data["variant"] == "full_precision"]
    others = data[data["variant"] != "full_precision"]
    groups = [part for _, part in others.groupby("bits", dropna=False)]
    groups = sorted(groups, key=lambda part: -np.nan_to_num(part["bits"].iloc[0], nan=math.inf)) or [reference]
    columns, names = min(2, len(groups)), in_order(data["variant"])
    rows = math.ceil(len(groups) / columns)
    with styled():
        figure = Figure(figsize=(COLUMN_WIDTH, 0.5 + 1.35 * rows + 0.13 * math.ceil(len(names) / 2)))
        axes = figure.subplots(rows, columns, sharex=True, sharey=True, squeeze=False).ravel()
        for ax, part in zip(axes, groups, strict=False):
            plot_curves(part if part is reference else pd.concat([reference, part]), ax)
            ax.set_title(_title(part), loc="left")
        for place, ax in enumerate(axes):
            ax.set_visible(place < len(groups))
            lowest = place + columns >= len(groups)  # also above a place that stays empty
            ax.tick_params(labelbottom=lowest)
            ax.set_xlabel("QAT step" if lowest else "")
        axes[0].set_ylim(*_limits(data))
        figure.supylabel("training loss (MSE per pixel, smoothed)", fontsize=8)
        figure.legend(handles=_handles(names), loc="outside lower center", ncols=2, columnspacing=1.0)
    return figure


def _title(part: pd.DataFrame) -> str:
    fewest, most = int(part["n"].min()), int(part["n"].max())
    seeds = str(most) if fewest == most else f"{fewest} to {most}"
    return f"{bits_name(float(part['bits'].iloc[0]))}, n = {seeds}"


def _limits(data: pd.DataFrame) -> tuple[float, float]:
    late = data[data["step"] >= HEADROOM * data["step"].max()]
    low, high = float(late["low"].min()), float(late["high"].max())
    return low - 0.05 * (high - low), high + 0.05 * (high - low)


def _handles(names: list[str]) -> list[Line2D]:
    return [
        Line2D([], [], color=look.color, ls=look.linestyle, marker=look.marker or None, label=short_name(name))
        for name, look in looks(names).items()
    ]
