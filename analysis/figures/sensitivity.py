"""The sensitivity table as heat maps: kind by depth for each bit-width, one panel a measure, logarithmic colours."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any

import numpy as np
import pandas as pd
import seaborn as sns
from matplotlib.axes import Axes
from matplotlib.cm import ScalarMappable
from matplotlib.colors import LogNorm
from matplotlib.figure import Figure

from analysis.figures.bits import WIDE, label_blocks
from analysis.style import COLUMN_WIDTH, DARK, styled
from robuq.ampn.table import SensitivityTable
from robuq.config import BLOCK_ROLES

MEASURES = {  # column -> (title, unit)
    "loss": ("loss increase", "MSE per pixel"),
    "output_error": ("output error", "noise / signal"),
    "second_order": ("second order", "MSE per pixel"),
}
SHOWN = 4  # bits; wider layers lose next to nothing
DECADES = 4.0  # that the colours span
ERRORS = 2.0  # standard errors below which an increase is marked as noise
ROW = 0.105  # inches


def sensitivity_data(table: SensitivityTable, bits: Sequence[int] | None = None) -> pd.DataFrame:
    """Columns `block`, `role`, `bits`, `loss`, `loss_se`, `output_error`, `sqnr_db`, `second_order`, `above_noise`
    (the loss increase exceeds two standard errors).

    `bits`: which candidates; those up to four bits, or all if there are none.

    Raises:
        ValueError: `bits` are no candidates.
    """
    chosen = [b for b in table.candidates if b <= SHOWN] or list(table.candidates) if bits is None else list(bits)
    if unknown := sorted(set(chosen) - set(table.candidates)):
        raise ValueError(f"no sensitivity for {unknown[0]} bits: candidates are {list(table.candidates)}")
    data = pd.DataFrame(table.rows())
    data = data[data["bits"].isin(chosen)].reset_index(drop=True)
    return data.assign(above_noise=data["loss"] > ERRORS * data["loss_se"])


def plot_sensitivity(data: pd.DataFrame, measure: str, ax: Axes) -> LogNorm:
    """One measure: rows are kinds, grouped by bits; what is not above zero stays white. The scale of the colours."""
    widths = sorted(data["bits"].unique())
    roles = [role for role in BLOCK_ROLES if role in set(data["role"])]
    order = pd.MultiIndex.from_product([widths, roles])
    table = data.pivot(index=["bits", "role"], columns="block", values=measure).reindex(order)
    norm = _norm(table.to_numpy(dtype=np.float64))
    deep = table.shape[1] > WIDE
    sns.heatmap(
        table.where(table > 0),
        ax=ax,
        cmap="Blues",
        norm=norm,
        vmin=norm.vmin,  # else taken from the values, of which there may be none
        vmax=norm.vmax,
        annot=_dots(data, order) if measure == "loss" else None,
        fmt="",
        annot_kws={"fontsize": 6},
        cbar=False,
        linewidths=0.15 if deep else 0.4,
        linecolor="white",
    )
    for place in range(len(widths) + 1):
        ax.axhline(place * len(roles), color=DARK, lw=0.5)
    for place, width in enumerate(widths):
        if (table.loc[width].to_numpy() == 0).all():
            middle = (table.shape[1] / 2, (place + 0.5) * len(roles))
            ax.text(*middle, "reference: 0", fontsize=6, ha="center", va="center")
    for side in ("left", "right"):
        ax.spines[side].set(visible=True, color=DARK, lw=0.5)
    ax.set_yticks([i + 0.5 for i in range(len(order))], [role for _, role in order], rotation=0, fontsize=6)
    label_blocks(ax, [int(block) for block in table.columns])
    ax.set(xlabel="block", ylabel="")
    ax.tick_params(length=0)
    return norm


def sensitivity_figure(data: pd.DataFrame) -> Figure:
    """Panels side by side, or below one another for deep networks."""
    blocks, widths = data["block"].nunique(), sorted(data["bits"].unique())
    deep = blocks > WIDE
    rows = len(widths) * data["role"].nunique()
    panels = (len(MEASURES), 1) if deep else (1, len(MEASURES))
    height = len(MEASURES) * (rows * ROW + 0.2) + 0.3 if deep else rows * ROW + 0.95
    with styled():
        figure = Figure(figsize=(COLUMN_WIDTH, height))
        axes = figure.subplots(*panels, squeeze=False).ravel()
        for place, (ax, (measure, (title, unit))) in enumerate(zip(axes, MEASURES.items(), strict=True)):
            norm = plot_sensitivity(data, measure, ax)
            _add_scale(figure, ax, norm, unit, deep)
            ax.set_title(title, loc="left")
            if deep and place < len(MEASURES) - 1:
                ax.set(xticks=[], xlabel="")
            if deep or place == 0:
                _name_widths(ax, [int(width) for width in widths], rows // len(widths))
            else:
                ax.set_yticks([])
    return figure


def _norm(values: np.ndarray[tuple[int, ...], np.dtype[np.float64]]) -> LogNorm:
    """From the least value above zero, at most four decades below the largest, and over two powers of ten at least;
    anything where none is above zero."""
    positive = values[values > 0]
    if not positive.size:
        return LogNorm(0.1, 1.0)
    high = float(positive.max())
    low = max(float(positive.min()), high / 10**DECADES)
    if math.floor(math.log10(high)) - math.ceil(math.log10(low)) < 1:  # fewer than two powers of ten to label
        low = 10.0 ** math.floor(math.log10(low))
    if math.floor(math.log10(high)) - math.ceil(math.log10(low)) < 1:
        high = 10.0 * low
    return LogNorm(low, high)


def _dots(data: pd.DataFrame, order: pd.MultiIndex) -> pd.DataFrame:
    """A dot in every cell whose increase is above zero, but not above its noise."""
    noisy = (data["loss"] > 0) & ~data["above_noise"]
    marked = data.assign(dot=np.where(noisy, "·", ""))
    return marked.pivot(index=["bits", "role"], columns="block", values="dot").reindex(order)


def _add_scale(figure: Figure, ax: Axes, norm: LogNorm, unit: str, deep: bool) -> None:
    place: dict[str, Any] = {"location": "right", "aspect": 18} if deep else {"location": "bottom", "aspect": 9}
    bar = figure.colorbar(ScalarMappable(norm, "Blues"), ax=ax, pad=0.03, shrink=0.95, **place)
    bar.set_label(unit, fontsize=7)
    bar.ax.tick_params(labelsize=6)
    bar.ax.minorticks_off()
    bar.outline.set_linewidth(0.4)


def _name_widths(ax: Axes, widths: list[int], kinds: int) -> None:
    """`2 bits` to the left of the group's kinds."""
    for place, width in enumerate(widths):
        ax.annotate(
            "1 bit" if width == 1 else f"{width} bits",
            xy=(0, (place + 0.5) * kinds),
            xycoords=("axes fraction", "data"),
            xytext=(-20, 0),
            textcoords="offset points",
            rotation=90,
            ha="right",
            va="center",
            fontsize=7,
        )
