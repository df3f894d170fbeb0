"""Bits per layer: one heat map of kind by depth for each allocation, the bit-width in every cell."""

from __future__ import annotations

import math
import textwrap
from collections.abc import Mapping

import pandas as pd
import seaborn as sns
from matplotlib.axes import Axes
from matplotlib.figure import Figure

from analysis.methods import WEIGHTINGS
from analysis.style import COLUMN_WIDTH, styled
from robuq.ampn.table import split_decision
from robuq.config import BLOCK_ROLES

WIDE = 8  # blocks; deeper networks have one panel a row
LABELS = 14  # block numbers along an axis
CELL = 0.125  # inches, height


def bits_data(
    allocations: Mapping[str, Mapping[str, int]], means: Mapping[str, float], weights: str = "macs"
) -> pd.DataFrame:
    """Columns `allocation` (as it is to be named), `block`, `role`, `bits`, `mean_bits` of the allocation and their
    `weights`; one row a decision. `allocations`: {name: {decision: bits}}; `means`: {name: mean bits by `weights`}."""
    rows = []
    for name, bits in allocations.items():
        for decision, width in bits.items():
            block, role = split_decision(decision)
            own = {"block": block, "role": role, "bits": width}
            rows.append({"allocation": name, **own, "mean_bits": means[name], "weights": weights})
    return pd.DataFrame(rows, columns=["allocation", "block", "role", "bits", "mean_bits", "weights"])


def kind_by_depth(data: pd.DataFrame, column: str) -> pd.DataFrame:
    """(R, B): `column` of tidy rows with `role` and `block`, roles in the order of the forward pass."""
    table = data.pivot(index="role", columns="block", values=column)
    return table.reindex([role for role in BLOCK_ROLES if role in table.index])


def label_blocks(ax: Axes, blocks: list[int]) -> None:
    """Numbers under the columns, as many as have room."""
    every = math.ceil(len(blocks) / LABELS)
    shown = range(0, len(blocks), every)
    ax.set_xticks([place + 0.5 for place in shown], [str(blocks[place]) for place in shown], rotation=0)


def plot_bits(data: pd.DataFrame, ax: Axes, low: int, high: int) -> None:
    """One allocation; the colours run from `low` to `high` bits."""
    table = kind_by_depth(data, "bits")
    size = 7 if table.shape[1] <= WIDE else 6 if table.shape[1] <= 2 * LABELS else 5
    sns.heatmap(
        table,
        ax=ax,
        cmap="Blues",
        vmin=low - 0.5,
        vmax=high + 1.5,  # the darkest blue stays unused: numbers are read on it
        annot=True,
        fmt="d",
        annot_kws={"fontsize": size},
        cbar=False,
        linewidths=0.4,
        linecolor="white",
    )
    label_blocks(ax, [int(block) for block in table.columns])
    ax.set(xlabel="block", ylabel="")
    ax.tick_params(length=0, rotation=0)


def bits_figure(data: pd.DataFrame) -> Figure:
    """One panel an allocation, in the order of the data, under one scale of colours."""
    groups = [(str(name), part) for name, part in data.groupby("allocation", sort=False)]
    blocks, kinds = data["block"].nunique(), data["role"].nunique()
    columns = min(2 if blocks <= WIDE else 1, len(groups))
    titles = [_title(name, part, 26 if columns == 2 else 54) for name, part in groups]
    rows = math.ceil(len(groups) / columns)
    lines = max(title.count("\n") + 1 for title in titles)
    with styled():
        height = 0.35 + rows * (kinds * CELL + 0.155 * lines + 0.14)
        figure = Figure(figsize=(COLUMN_WIDTH, height))
        axes = figure.subplots(rows, columns, squeeze=False)
        for place, ax in enumerate(axes.ravel()):
            ax.set_visible(place < len(groups))
            if place >= len(groups):
                continue
            plot_bits(groups[place][1], ax, int(data["bits"].min()), int(data["bits"].max()))
            ax.set_title(titles[place], loc="left")
            ax.set_xlabel("")
            if place + columns < len(groups):
                ax.set_xticks([])
            if place % columns:
                ax.set_yticks([])
        figure.supxlabel("block", fontsize=8)
    return figure


def _title(name: str, part: pd.DataFrame, width: int) -> str:
    mean = f"{part['mean_bits'].iloc[0]:.2f} bits by {WEIGHTINGS[part['weights'].iloc[0]]}"
    text = f"{name}: {mean}"
    return text if len(text) <= width else "\n".join([*textwrap.wrap(name, width), mean])
