"""How far each parameter of a search's space decides the loss, at every rung that enough evaluations reached."""

from __future__ import annotations

import numpy as np
import pandas as pd
from matplotlib.axes import Axes
from matplotlib.figure import Figure

from analysis.evaluations import rung_steps
from analysis.figures.search import rung_name
from analysis.style import BLUE, COLUMN_WIDTH, GREY, styled
from robuq.record.search_record import SearchRecord

LEAST = 10  # evaluations of a rung
RESAMPLES = 30
RANGE = (0.1, 0.9)  # quantiles of the resamples
SHOWN = 12  # parameters
COLUMNS = ("steps", "parameter", "importance", "low", "high", "n")
Trials = list[tuple[dict[str, float], float]]


def importance_data(record: SearchRecord, rng: np.random.Generator) -> pd.DataFrame:
    """One row a rung and parameter: `COLUMNS`, rungs from the cheapest, in each the most important first.

    importance: the parameter's share in all n evaluations of the rung that have parameters; low, high: the middle
    80 % of its share in `RESAMPLES` resamples of them. Empty for spaces of fewer than two parameters, and without
    rungs that `LEAST` such evaluations with two different losses reached.
    """
    space = record.sampler_settings.get("parameters", {})
    rows = []
    for steps in rung_steps(record) if len(space) > 1 else ():
        trials = _trials(record, set(space), str(steps))
        if len(trials) >= LEAST and len({value for _, value in trials}) > 1:
            rows += _rung_rows(steps, space, trials, rng)
    return pd.DataFrame(rows, columns=list(COLUMNS))


def _trials(record: SearchRecord, names: set[str], rung: str) -> Trials:
    """Allocations that were asked for as they are have no parameters where the space cannot express them."""
    reached = [one for one in record.evaluations if rung in one.values and set(one.params) == names]
    return [(dict(one.params), one.values[rung]) for one in reached]


def _rung_rows(
    steps: int, space: dict[str, str], trials: Trials, rng: np.random.Generator
) -> list[dict[str, float | str]]:
    from robuq.ampn.search import importances  # Optuna takes a second to import: only here is it needed

    n = len(trials)
    own = importances(space, trials)
    again = pd.DataFrame(
        [importances(space, [trials[place] for place in rng.integers(0, n, n)]) for _ in range(RESAMPLES)]
    )
    bounds = again.quantile(list(RANGE))
    return [
        {
            "steps": steps,
            "parameter": name,
            "importance": own[name],
            "low": float(bounds[name].iloc[0]),
            "high": float(bounds[name].iloc[1]),
            "n": n,
        }
        for name in sorted(own, key=lambda name: (-own[name], name))
    ]


def plot_importance(data: pd.DataFrame, names: list[str], ax: Axes) -> None:
    """One rung: a dot a parameter, from the top; a line over the range of the resamples."""
    rows = data.set_index("parameter").loc[names]
    heights = np.arange(len(names))[::-1]
    ax.hlines(heights, rows["low"], rows["high"], color=GREY, lw=1.4, zorder=1)
    ax.plot(rows["importance"], heights, "o", ms=4, mfc=BLUE, mec="white", mew=0.5, zorder=2)
    ax.set_yticks(heights, names)
    ax.set_ylim(-0.7, len(names) - 0.3)
    ax.locator_params(axis="x", nbins=4)


def importance_figure(data: pd.DataFrame) -> Figure:
    """A panel a rung, side by side, the parameters in the order of the last rung's importance.

    Raises:
        ValueError: `data` is empty.
    """
    if data.empty:
        raise ValueError("no rung has enough evaluations: there is no importance to draw")
    rungs = sorted(data["steps"].unique())
    names = list(data.loc[data["steps"] == rungs[-1], "parameter"])[:SHOWN]
    with styled():
        figure = Figure(figsize=(COLUMN_WIDTH, 0.75 + 0.17 * len(names)))
        axes = figure.subplots(1, len(rungs), sharex=True, sharey=True, squeeze=False).ravel()
        for ax, steps in zip(axes, rungs, strict=True):
            part = data[data["steps"] == steps]
            plot_importance(part, names, ax)
            ax.set_title(f"{_short(int(steps))}\nn = {part['n'].iloc[0]}", loc="left")
        axes[0].set_xlim(0, 1.05 * float(data[["importance", "high"]].to_numpy().max()))
        figure.supxlabel("share of importance", fontsize=8)
    return figure


def _short(steps: int) -> str:
    return "no training" if steps == 0 else f"after {steps} steps"


def rungs_text(data: pd.DataFrame) -> str:
    """`28 (warmed-up network, no training), 12 (after 100 steps of QAT)`."""
    counts = data.groupby("steps")["n"].first()
    return ", ".join(f"{n} ({rung_name(int(steps))})" for steps, n in counts.items())  # type: ignore[call-overload]
