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
from analysis.style import BLACK, COLUMN_WIDTH, DARK, styled
from robuq.ampn.table import SensitivityTable
from robuq.config import BLOCK_ROLES

MEASURES = {  # column -> (title, unit)
    "loss": ("loss increase", "MSE per pixel"),
    "output_error": ("output error", "noise / signal"),
    "second_order": ("second order", "MSE per pixel"),
}
SHOWN = 4  # bits that are drawn; wider layers lose next to nothing
DECADES = 4.0  # that the colours span
ERRORS = 2.0  # standard errors below which an increase is marked as noise
ROW = 0.105  # inches
DOT: dict[str, Any] = {"ls": "", "marker": "o", "ms": 2.2, "mfc": "white", "mec": BLACK, "mew": 0.4}  # on any blue


def sensitivity_data(table: SensitivityTable, bits: Sequence[int] | None = None) -> pd.DataFrame:
    """Columns `block`, `role`, `bits`, `loss`, `loss_se`, `output_error`, `sqnr_db`, `second_order`, `above_noise`
    (the loss increase exceeds two standard errors).

    `bits`: which candidates, all of them unless told.

    Raises:
        ValueError: `bits` are no candidates.
    """
    chosen = list(table.candidates if bits is None else bits)
    if unknown := sorted(set(chosen) - set(table.candidates)):
        raise ValueError(f"no sensitivity for {unknown[0]} bits: candidates are {list(table.candidates)}")
    data = pd.DataFrame(table.rows())
    data = data[data["bits"].isin(chosen)].reset_index(drop=True)
    return data.assign(above_noise=data["loss"] > ERRORS * data["loss_se"])


def drawn_bits(data: pd.DataFrame) -> list[int]:
    """The widths up to four bits, or all if there are none."""
    widths = sorted(int(width) for width in data["bits"].unique())
    return [width for width in widths if width <= SHOWN] or widths


def drawn_text(data: pd.DataFrame) -> str:
    """Which widths are drawn, for captions: `Drawn: 1 to 4 bits; 5 to 8 were measured, too, and are in the data.`"""
    drawn = drawn_bits(data)
    rest = sorted(int(width) for width in set(data["bits"]) - set(drawn))
    more = f"; {_span(rest)} {'were' if len(rest) > 1 else 'was'} measured, too, and in the data" if rest else ""
    return f"Drawn: {_span(drawn)} bits{more}."


def _span(widths: Sequence[int]) -> str:
    """`1 to 4`, or `1, 2, 4` where one is left out between them."""
    whole = len(widths) > 2 and widths[-1] - widths[0] == len(widths) - 1
    return f"{widths[0]} to {widths[-1]}" if whole else ", ".join(map(str, widths))


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
        cbar=False,
        linewidths=0.15 if deep else 0.4,
        linecolor="white",
    )
    if measure == "loss":
        rows, columns = np.nonzero(_is_noise(data, order).to_numpy())
        ax.plot(columns + 0.5, rows + 0.5, **DOT)
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
    """Panels side by side, or below one another for deep networks, of the widths of `drawn_bits`."""
    data = data[data["bits"].isin(drawn_bits(data))]
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


def _is_noise(data: pd.DataFrame, order: pd.MultiIndex) -> pd.DataFrame:
    """Cells whose increase is above zero, but not above its noise."""
    marked = data.assign(noise=(data["loss"] > 0) & ~data["above_noise"])
    return marked.pivot(index=["bits", "role"], columns="block", values="noise").reindex(order)


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
