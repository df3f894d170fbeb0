"""How normal the tokens of every block linear are: by depth, by timestep and from token to token."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from typing import Any

import numpy as np
import pandas as pd
from matplotlib.axes import Axes
from matplotlib.colors import SymLogNorm
from matplotlib.figure import Figure
from matplotlib.image import AxesImage
from matplotlib.ticker import LogLocator, MaxNLocator
from numpy.typing import NDArray

from analysis.figures.distributions import STATES
from analysis.style import COLUMN_WIDTH, GREY, styled

Arrays = Mapping[str, NDArray[Any]]  # of distributions.npz
LINEAR = 1.0  # excess kurtosis up to which the map's scale is linear
LEAST = -2.0  # of any excess kurtosis
DOTTED = -0.05  # cells below have a dot: in grey, the two ends of the scale look alike


def normality_data(arrays: Arrays) -> pd.DataFrame:
    """One row a layer, bin of timesteps and state (raw, rotated).

    Columns: `role`, `block`, `width`, `bin`, `first_timestep` and `end_timestep`, `state`, `tokens` (how many),
    `kurtosis` (excess), `kl` (nats) and `kl_floor` (what as many normal values would show), and the quantiles
    `kurtosis_10`, `kurtosis_50`, `kurtosis_90` over tokens of each token's own excess kurtosis.
    """
    layers, bins, states = np.indices(arrays["kurtosis"].shape).reshape(3, -1)
    edges = arrays["timestep_edges"]
    values = {"kurtosis": "kurtosis", "kl": "kl", "kl_floor": "kl_floor", "tokens": "num_tokens"}
    quantiles = arrays["token_kurtosis"].reshape(-1, 3).T
    return pd.DataFrame(
        {
            "role": arrays["role"][layers],
            "block": arrays["block"][layers],
            "width": arrays["width"][layers, bins],
            "bin": bins,
            "first_timestep": edges[bins],
            "end_timestep": edges[bins + 1],
            "state": np.array(list(STATES))[states],
            **{column: arrays[name].ravel() for column, name in values.items()},
            **dict(zip(("kurtosis_10", "kurtosis_50", "kurtosis_90"), quantiles, strict=True)),
        }
    )


def tokens_a_cell(data: pd.DataFrame) -> str:
    """`128 to 512 tokens`, for captions."""
    return tokens_text(data["tokens"])


def tokens_text(counts: Iterable[int]) -> str:
    counts = [int(count) for count in counts]
    low, high = min(counts), max(counts)
    return f"{low} tokens" if low == high else f"{low} to {high} tokens"


# --- kurtosis over depth and timestep ------------------------------------------------------------------------------


def plot_kurtosis_map(data: pd.DataFrame, ax: Axes, norm: SymLogNorm) -> AxesImage:
    """One role and state: blocks downwards, timesteps to the right."""
    cells = data.pivot(index="block", columns="bin", values="kurtosis")
    first, last = data["first_timestep"].min(), data["end_timestep"].max()
    extent = (first, last, cells.index.max() + 0.5, cells.index.min() - 0.5)
    image = ax.imshow(cells.to_numpy(), cmap="PuOr_r", norm=norm, extent=extent, aspect="auto")
    low = data[data["kurtosis"] < DOTTED]
    ax.plot((low["first_timestep"] + low["end_timestep"]) / 2, low["block"], ls="", marker=".", ms=1.2, color="black")
    ax.set_xticks([first, (first + last) / 2, last])
    ax.yaxis.set_major_locator(MaxNLocator(3, integer=True))
    return image


def kurtosis_map_figure(data: pd.DataFrame) -> Figure:
    """A row a role, a column a state, one colour scale: 0, the normal's, is white."""
    roles = list(dict.fromkeys(data["role"]))
    reach = max(LINEAR, float(data["kurtosis"].abs().max()))
    norm = SymLogNorm(LINEAR, vmin=-reach, vmax=reach)
    with styled():
        figure = Figure(figsize=(COLUMN_WIDTH, 0.75 + 0.68 * len(roles)))
        axes = figure.subplots(len(roles), len(STATES), sharex=True, sharey=True, squeeze=False)
        for row, role in zip(axes, roles, strict=True):
            for ax, (state, (name, _, _)) in zip(row, STATES.items(), strict=True):
                part = data[(data["role"] == role) & (data["state"] == state)]
                image = plot_kurtosis_map(part, ax, norm)
                ax.set_title(name if role == roles[0] else "")
            row[0].set_ylabel(f"{role}\nblock")
        for ax in axes[-1]:
            ax.set_xlabel("timestep")
        bar = figure.colorbar(image, ax=axes, shrink=0.8, aspect=28, label=f"excess kurtosis (dot: below −{-DOTTED:g})")
        bar.ax.set_ylim(LEAST, reach)
        bar.set_ticks([tick for tick in symmetric_ticks(reach) if tick >= LEAST])
        bar.ax.minorticks_off()
        bar.ax.yaxis.set_major_formatter("{x:g}")
    return figure


def symmetric_ticks(reach: float) -> list[float]:
    """0, +-1 and +-1, 3, 10, 30, ... within `reach`."""
    steps = [float(f"{factor}e{power}") for power in range(9) for factor in (1, 3)]
    ticks = [step for step in steps if step <= reach]
    return [*(-tick for tick in reversed(ticks)), 0.0, *ticks]


# --- distance to the normal by depth -------------------------------------------------------------------------------


def depth_data(data: pd.DataFrame) -> pd.DataFrame:
    """Columns `role`, `block`, `state`, `kl` (mean over bins of timesteps), `low` and `high` over them, `floor`, `bins`
    (how many)."""
    rows = data.groupby(["role", "block", "state"], sort=False)
    return rows.agg(
        kl=("kl", "mean"), low=("kl", "min"), high=("kl", "max"), floor=("kl_floor", "mean"), bins=("bin", "size")
    ).reset_index()


def depth_figure(data: pd.DataFrame) -> Figure:
    """A panel a role. `data`: of `depth_data`."""
    with styled():
        figure, panels = _role_panels(data)
        for role, ax in panels.items():
            part = data[data["role"] == role]
            for state in STATES:
                own = part[part["state"] == state]
                _plot_band(ax, own["block"], own["kl"], own["low"], own["high"], state)
            floor = part[part["state"] == "rotated"]
            ax.plot(floor["block"], floor["floor"], color=GREY, ls=":", lw=0.9, label="normal sample")
            ax.set_yscale("log")
            ax.yaxis.set_major_locator(LogLocator(numticks=9))
            ax.xaxis.set_major_locator(MaxNLocator(4, integer=True))
        _finish(figure, panels, "block", "KL to the normal (nats)")
    return figure


# --- from token to token -------------------------------------------------------------------------------------------


def token_spread_figure(data: pd.DataFrame, block: int) -> Figure:
    """A panel a role of one block: the excess kurtosis of single tokens over timesteps. `data`: `normality_data`."""
    shown = data[data["block"] == block]
    low, high = float(shown["kurtosis_10"].min()), float(shown["kurtosis_90"].max())
    ticks = [tick for tick in symmetric_ticks(10 * high) if low - 0.5 < tick < 1.5 * high]
    with styled():
        figure, panels = _role_panels(data)
        for role, ax in panels.items():
            part = shown[shown["role"] == role]
            ax.axhline(0, color=GREY, ls=":", lw=0.9, label="normal")
            for state in STATES:
                own = part[part["state"] == state]
                middle = (own["first_timestep"] + own["end_timestep"]) / 2
                _plot_band(ax, middle, own["kurtosis_50"], own["kurtosis_10"], own["kurtosis_90"], state)
            ax.set_yscale("symlog", linthresh=LINEAR)
            ax.set_yticks(ticks)
            ax.minorticks_off()
            ax.yaxis.set_major_formatter("{x:g}")
        _finish(figure, panels, "timestep", "excess kurtosis of a token")
    return figure


def _role_panels(data: pd.DataFrame) -> tuple[Figure, dict[str, Axes]]:
    roles = list(dict.fromkeys(data["role"]))
    columns = min(2, len(roles))
    figure = Figure(figsize=(COLUMN_WIDTH, 0.45 + 1.1 * -(-len(roles) // columns)))
    axes = figure.subplots(-(-len(roles) // columns), columns, sharex=True, sharey=True, squeeze=False).ravel()
    for ax in axes[len(roles) :]:
        ax.set_visible(False)
    return figure, dict(zip(roles, axes, strict=False))


def _plot_band(
    ax: Axes, x: pd.Series[Any], y: pd.Series[Any], low: pd.Series[Any], high: pd.Series[Any], state: str
) -> None:
    label, color, marker = STATES[state]
    ax.plot(x, y, color=color, marker=marker, ms=2.8, ls="-" if state == "raw" else "--", label=label)
    ax.fill_between(x, low, high, color=color, alpha=0.2, lw=0)


def _finish(figure: Figure, panels: Mapping[str, Axes], x: str, y: str) -> None:
    for role, ax in panels.items():
        ax.set_title(role, loc="left")
    figure.supxlabel(x, fontsize=8)
    figure.supylabel(y, fontsize=8)
    first = next(iter(panels.values()))
    figure.legend(*first.get_legend_handles_labels(), loc="outside upper center", ncols=3, columnspacing=1.0)
