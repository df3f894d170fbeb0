"""What enters a quantizer: a layer's tokens before and after the rotation, against the normal density."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from typing import Any

import numpy as np
import pandas as pd
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from numpy.typing import NDArray
from scipy import stats

from analysis.style import BLACK, BLUE, COLUMN_WIDTH, GREY, RED, styled

STATES = {"raw": ("before rotation", BLUE, "o"), "rotated": ("after rotation", RED, "^")}
REACH = 6.0  # standard deviations that the histogram shows
BINS = 72
FLOOR = 1e-4  # the least density shown
QUANTILES = 61  # points of the Q-Q panel
ROLES = {"qkv": "query, key, value", "proj": "attention output", "fc1": "first MLP layer", "fc2": "second MLP layer"}
Tokens = Mapping[str, NDArray[np.float32]]  # of tokens.npz: the middle block's
Arrays = Mapping[str, NDArray[Any]]  # of distributions.npz: every block linear's, by timestep


def standardised(tokens: NDArray[np.float32]) -> NDArray[np.float64]:
    """(T, D) -> (n,): each token by its own mean and standard deviation, as a per-token quantizer sees it.

    Constant tokens have no scale and are left out.
    """
    x = tokens.astype(np.float64)
    spread = x.std(axis=1, keepdims=True)
    kept = spread[:, 0] > 0
    z: NDArray[np.float64] = (x - x.mean(axis=1, keepdims=True))[kept] / spread[kept]
    return z.ravel()


def distributions_data(tokens: Tokens, role: str) -> pd.DataFrame:
    """Columns `role`, `state` (raw, rotated), `curve`, `x`, `y`, all in units of the token's standard deviation.

    curve "histogram": x is the bin's centre, y the density. "normal": the density of N(0, 1), to which every
    standardised token is fitted. "qq": x is the normal quantile, y the tokens'. "level": x is a quantization level.

    Raises:
        ValueError: the tokens have no such role.
    """
    if f"{role}.raw" not in tokens:
        known = sorted({name.partition(".")[0] for name in tokens})
        raise ValueError(f"no tokens of role {role!r}: there are {', '.join(known)}")
    parts = []
    for state in STATES:
        if f"{role}.{state}" in tokens:
            z = standardised(tokens[f"{role}.{state}"])
            parts += [_part(role, state, "histogram", *_histogram(z)), _part(role, state, "qq", *_quantiles(z))]
    x = np.linspace(-REACH, REACH, 201)
    parts.append(_part(role, "", "normal", x, stats.norm.pdf(x)))
    if f"{role}.levels" in tokens:
        levels = np.sort(tokens[f"{role}.levels"].astype(np.float64).ravel())
        parts.append(_part(role, "rotated", "level", levels, np.zeros_like(levels)))
    return pd.concat(parts, ignore_index=True)


def distribution_summary(tokens: Tokens) -> pd.DataFrame:
    """One row per role and state: `excess_kurtosis`, `largest` (|z|), `tokens` and `width`."""
    rows = []
    for role in ROLES:
        for state in STATES:
            if (name := f"{role}.{state}") in tokens:
                z = standardised(tokens[name])
                count, width = tokens[name].shape
                shape = {"excess_kurtosis": float(stats.kurtosis(z)), "largest": float(np.abs(z).max())}
                rows.append({"role": role, "state": state, **shape, "tokens": count, "width": width})
    return pd.DataFrame(rows)


def _part(role: str, state: str, curve: str, x: NDArray[np.float64], y: NDArray[np.float64]) -> pd.DataFrame:
    return pd.DataFrame({"role": role, "state": state, "curve": curve, "x": x, "y": y})


def _histogram(z: NDArray[np.float64]) -> tuple[NDArray[np.float64], NDArray[np.float64]]:
    """The density of all values, also of those beyond the bins."""
    counts, edges = np.histogram(z, bins=BINS, range=(-REACH, REACH))
    return (edges[:-1] + edges[1:]) / 2, counts / (z.size * (edges[1] - edges[0]))


def _quantiles(z: NDArray[np.float64]) -> tuple[NDArray[np.float64], NDArray[np.float64]]:
    """Spread evenly over the normal's axis between both extremes, at Hazen's plotting positions (i - 1/2) / n."""
    reach = stats.norm.isf(0.5 / z.size)
    x = np.linspace(-reach, reach, QUANTILES)
    return x, np.quantile(z, stats.norm.cdf(x), method="hazen")


# --- any layer at any timestep, from its recorded histogram -------------------------------------------------------


def layer_data(arrays: Arrays, role: str, block: int, bins: Iterable[int]) -> pd.DataFrame:
    """The columns of `distributions_data` of one layer, its tokens from the given bins of timesteps together.

    Quantiles are read off the histogram, linearly within a bin; levels are means over the bins of timesteps.

    Raises:
        ValueError: there is no such layer.
    """
    found = np.flatnonzero(_layers(arrays, role, block))
    if not len(found):
        roles, blocks = sorted(set(arrays["role"].tolist())), arrays["block"]
        raise ValueError(f"no {role!r} in block {block}: there are {', '.join(roles)} in {blocks.min()}-{blocks.max()}")
    layer, bins = int(found[0]), list(bins)
    parts = []
    for place, state in enumerate(STATES):
        counts = arrays["histogram"][layer, bins, place].sum(0).astype(np.float64)
        if counts.sum():
            parts.append(_part(role, state, "histogram", *_density(counts, arrays["edges"])))
            parts.append(_part(role, state, "qq", *_quantiles_of(counts, arrays["edges"])))
    x = np.linspace(-REACH, REACH, 201)
    parts.append(_part(role, "", "normal", x, stats.norm.pdf(x)))
    levels = arrays["levels"][layer, bins].astype(np.float64).mean(0)
    levels = levels[~np.isnan(levels)]
    return pd.concat([*parts, _part(role, "rotated", "level", levels, np.zeros_like(levels))], ignore_index=True)


def by_role_data(arrays: Arrays, block: int) -> pd.DataFrame:
    """`layer_data` of each role of a block over all timesteps, one `panel` a role."""
    bins = range(arrays["histogram"].shape[1])
    roles = [role for role in ROLES if _layers(arrays, role, block).any()]
    return pd.concat([layer_data(arrays, role, block, bins).assign(panel=role) for role in roles], ignore_index=True)


def by_timestep_data(arrays: Arrays, role: str, block: int) -> pd.DataFrame:
    """`layer_data` of the bins of timesteps with the least, a middling and the most noise, one `panel` each."""
    edges = arrays["timestep_edges"]
    parts = [
        layer_data(arrays, role, block, [place]).assign(panel=f"t = {edges[place]:g} to {edges[place + 1]:g}")
        for place in _shown_bins(arrays)
    ]
    return pd.concat(parts, ignore_index=True)


def tokens_by_role(arrays: Arrays, block: int) -> list[int]:
    """How many tokens each panel of `by_role_data` has; before and after the rotation they are the same."""
    return [int(count) for count in arrays["num_tokens"][arrays["block"] == block, :, 0].sum(1)]


def tokens_by_timestep(arrays: Arrays, role: str, block: int) -> list[int]:
    """Of each panel of `by_timestep_data`."""
    return [int(count) for count in arrays["num_tokens"][_layers(arrays, role, block)][0, _shown_bins(arrays), 0]]


def _layers(arrays: Arrays, role: str, block: int) -> NDArray[np.bool_]:
    found: NDArray[np.bool_] = (arrays["role"] == role) & (arrays["block"] == block)
    return found


def _shown_bins(arrays: Arrays) -> list[int]:
    count = arrays["histogram"].shape[1]
    return sorted({0, count // 2, count - 1})


def _density(
    counts: NDArray[np.float64], edges: NDArray[np.float64]
) -> tuple[NDArray[np.float64], NDArray[np.float64]]:
    return (edges[:-1] + edges[1:]) / 2, counts / (counts.sum() * np.diff(edges))


def _quantiles_of(
    counts: NDArray[np.float64], edges: NDArray[np.float64]
) -> tuple[NDArray[np.float64], NDArray[np.float64]]:
    """As `_quantiles`; those before the first and after the last value are the ends of the bins that hold these."""
    reach = stats.norm.isf(0.5 / counts.sum())
    x = np.linspace(-reach, reach, QUANTILES)
    below = np.concatenate([[0.0], np.cumsum(counts)]) / counts.sum()
    return x, np.interp(stats.norm.cdf(x), below, edges)


# --- drawing ------------------------------------------------------------------------------------------------------


def plot_histogram(data: pd.DataFrame, ax: Axes) -> None:
    """Densities on a logarithmic axis, where tails can be seen; levels as ticks at the foot."""
    normal = data[data["curve"] == "normal"]
    ax.plot(normal["x"], normal["y"], color=BLACK, ls="--", label="N(0, 1)", zorder=3)
    for state, (label, color, _) in STATES.items():  # filled and outlined: told apart without colour
        part = data[(data["curve"] == "histogram") & (data["state"] == state)]
        x, y = part["x"].to_numpy(), np.maximum(part["y"].to_numpy(), FLOOR / 10)
        if state == "raw" and len(part):
            look = {"fill": True, "color": color, "alpha": 0.35, "lw": 0}
            ax.stairs(y, _between(x), baseline=FLOOR / 10, label=label, **look)
        elif len(part):
            ax.plot(x, y, drawstyle="steps-mid", color=color, lw=1.0, label=label)
    levels = data.loc[data["curve"] == "level", "x"].to_numpy()
    for place, level in enumerate(levels):
        ax.axvline(level, color=GREY, lw=0.7, ls=":", label="quantizer levels" if place == 0 else None, zorder=1)
    ax.set_yscale("log")
    ax.set_ylim(bottom=FLOOR)
    ax.set_xlim(-REACH, REACH)
    ax.set_xlabel("activation / token sd")
    ax.set_ylabel("density")


def _between(x: NDArray[np.float64]) -> NDArray[np.float64]:
    """Edges (n + 1,) half-way between the centres (n,) of bins."""
    middle = (x[:-1] + x[1:]) / 2
    return np.concatenate([[2 * x[0] - middle[0]], middle, [2 * x[-1] - middle[-1]]])


def plot_qq(data: pd.DataFrame, ax: Axes) -> None:
    """Quantiles of the tokens over those of the normal; normal tokens lie on the line."""
    part = data[data["curve"] == "qq"]
    reach = float(part["x"].abs().max())
    ax.plot([-reach, reach], [-reach, reach], color=BLACK, ls="--")
    for state, (_, color, marker) in STATES.items():
        own = part[part["state"] == state]
        ax.plot(own["x"], own["y"], color=color, marker=marker, ls="", ms=2.8, mew=0, alpha=0.8)
    ax.set_xlabel("normal quantile")
    ax.set_ylabel("token quantile")


def distributions_figure(data: pd.DataFrame) -> Figure:
    """Histogram and Q-Q panel of one role."""
    role = str(data["role"].iloc[0])
    with styled():
        figure = Figure(figsize=(COLUMN_WIDTH, 1.95))
        left, right = figure.subplots(1, 2)
        plot_histogram(data, left)
        plot_qq(data, right)
        figure.suptitle(f"Input of {role} ({ROLES.get(role, role)})", fontsize=8)
        figure.legend(
            *left.get_legend_handles_labels(), loc="outside lower center", ncols=4, columnspacing=0.8, handlelength=1.6
        )
    return figure


def panels_figure(data: pd.DataFrame, title: str = "") -> Figure:
    """A row a `panel`, of `by_role_data` or `by_timestep_data`: histogram and Q-Q panel."""
    names = list(dict.fromkeys(data["panel"]))
    with styled():
        figure = Figure(figsize=(COLUMN_WIDTH, 0.65 + 1.05 * len(names)))
        axes = figure.subplots(len(names), 2, sharex="col", squeeze=False)
        for name, (left, right) in zip(names, axes, strict=True):
            own = data[data["panel"] == name]
            plot_histogram(own, left)
            plot_qq(own, right)
            left.set_title(name, loc="left")
            if name != names[-1]:
                left.set_xlabel("")
                right.set_xlabel("")
        figure.suptitle(title, fontsize=8)
        figure.legend(
            *axes[0, 0].get_legend_handles_labels(),
            loc="outside lower center",
            ncols=4,
            columnspacing=0.8,
            handlelength=1.6,
        )
    return figure
