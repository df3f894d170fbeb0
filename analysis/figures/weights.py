"""What a ternary quantizer makes of the latent weights: their distribution, its two thresholds and three levels."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import numpy as np
import pandas as pd
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from numpy.typing import NDArray
from scipy import stats

from analysis.style import BLACK, BLUE, COLUMN_WIDTH, GREY, RED, styled

Arrays = Mapping[str, NDArray[Any]]  # of distributions.npz
SHOWN = 8.0  # thresholds to either side


def weights_data(arrays: Arrays) -> pd.DataFrame:
    """Columns `role`, `curve`, `x`, `y`, all in units of the threshold; a role's layers are taken together.

    curve "histogram": x a bin's centre, y the density. "normal": the density of a normal variable with the weights'
    mean square. "threshold": x. "level": x (mean over output channels), y the share of weights that take it. "count":
    y the number of weights. "branch": y the low-rank branch's share of the latent weights' energy. Roles without
    ternary weights are left out.
    """
    parts = [_role(arrays, role) for role in dict.fromkeys(arrays["role"].tolist())]
    parts = [part for part in parts if len(part)]
    return pd.concat(parts, ignore_index=True) if parts else pd.DataFrame(columns=["role", "curve", "x", "y"])


def _role(arrays: Arrays, role: str) -> pd.DataFrame:
    own = (arrays["role"] == role) & (arrays["num_weights"] > 0)
    if not own.any():
        return pd.DataFrame()
    counts = arrays["num_weights"][own].astype(np.float64)
    edges, histogram = arrays["weight_edges"], arrays["weight_histogram"][own].sum(0)
    shares = np.average(arrays["weight_codes"][own], axis=0, weights=counts)
    rms = np.sqrt(np.average(arrays["weight_rms"][own].astype(np.float64) ** 2, weights=counts))
    level = float(np.average(arrays["weight_level"][own], weights=counts))
    branch = float(np.average(arrays["branch_share"][own], weights=counts))
    x = np.linspace(-SHOWN, SHOWN, 161)
    curves: dict[str, tuple[Any, Any]] = {
        "histogram": ((edges[:-1] + edges[1:]) / 2, histogram / (counts.sum() * np.diff(edges))),
        "normal": (x, stats.norm.pdf(x, scale=rms)),
        "threshold": ([-1.0, 1.0], [0.0, 0.0]),
        "level": ([-level, 0.0, level], shares),
        "count": ([0.0], [counts.sum()]),
        "branch": ([0.0], [branch]),
    }
    frames = [pd.DataFrame({"role": role, "curve": name, "x": xs, "y": ys}) for name, (xs, ys) in curves.items()]
    return pd.concat(frames, ignore_index=True)


def plot_weights(data: pd.DataFrame, ax: Axes) -> None:
    """One role: weights that become zero are pale, those that become a level +-1 are darker."""
    curves = {str(name): part for name, part in data.groupby("curve", sort=False)}
    x, y = (curves["histogram"][name].to_numpy() for name in ("x", "y"))
    edges = np.append(x, 2 * x[-1] - x[-2]) - (x[1] - x[0]) / 2  # of equal bins
    zero = np.abs(x) < 1
    ax.stairs(y * zero, edges, fill=True, color=BLUE, alpha=0.25, lw=0, label="becomes 0")
    ax.stairs(y * ~zero, edges, fill=True, color=BLUE, alpha=0.6, lw=0, label="becomes ± level")
    ax.plot(curves["normal"]["x"], curves["normal"]["y"], color=BLACK, ls="--", lw=0.9, label="normal")
    for place, threshold in enumerate(curves["threshold"]["x"]):
        ax.axvline(threshold, color=GREY, ls=":", lw=0.9, label="thresholds" if place == 0 else None)
    levels = curves["level"]
    ax.plot(levels["x"], np.zeros(3), ls="", marker="^", ms=4, color=RED, clip_on=False, zorder=4, label="levels")
    for level, share in zip(levels["x"], levels["y"], strict=True):
        ax.annotate(f"{share:.0%}", (level, 0), (0, 4), textcoords="offset points", ha="center", fontsize=6.5)
    ax.set_xlim(-SHOWN, SHOWN)
    ax.set_ylim(0, 1.1 * y.max())


def weights_figure(data: pd.DataFrame) -> Figure:
    """A panel a role.

    Raises:
        ValueError: no role has ternary weights.
    """
    roles = list(dict.fromkeys(data["role"]))
    if not roles:
        raise ValueError("no layer has ternary weights: show a network of a ternary variant")
    columns = min(2, len(roles))
    with styled():
        figure = Figure(figsize=(COLUMN_WIDTH, 0.55 + 1.1 * -(-len(roles) // columns)))
        axes = figure.subplots(-(-len(roles) // columns), columns, sharex=True, sharey=True, squeeze=False).ravel()
        for ax in axes[len(roles) :]:
            ax.set_visible(False)
        for role, ax in zip(roles, axes, strict=False):
            own = data[data["role"] == role]
            plot_weights(own, ax)
            ax.set_title(f"{role}, n = {int(own.loc[own['curve'] == 'count', 'y'].iloc[0]):,}", loc="left")
        figure.supxlabel("latent weight / ternary threshold", fontsize=8)
        figure.supylabel("density", fontsize=8)
        handles = axes[0].get_legend_handles_labels()
        figure.legend(*handles, loc="outside upper center", ncols=3, columnspacing=1.0)
    return figure
