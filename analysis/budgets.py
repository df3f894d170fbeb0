"""What another budget would buy: allocations solved anew from a recorded sensitivity, without torch."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, Literal, get_args

import numpy as np
import pandas as pd
from matplotlib.figure import Figure

from analysis.figures.bits import bits_data
from analysis.methods import WEIGHTINGS, short_name
from analysis.render import TextTable, number
from analysis.style import COLUMN_WIDTH, GREY, looks, styled
from robuq.ampn.allocate import allocate
from robuq.ampn.problem import Allocation, Problem, make_problem
from robuq.ampn.table import SensitivityTable
from robuq.config import Allocator, BitAllocation, Budget, Measure, RunConfig, Weighting
from robuq.cost import average_bits, layer_costs

ALLOCATORS: tuple[Allocator, ...] = ("exact", "greedy", "uniform", "paper")
MEASURES: tuple[Measure, ...] = get_args(Measure)
MEANS: tuple[Literal["layers", "macs", "elements"], ...] = ("layers", "macs", "elements")  # by which mean bits are told
SUMMARY_CAPTION = (
    "Predicted damage of each allocation within one budget: the sum over layers of what its bits were measured to do. "
    "Cost is in the budget's unit."
)
UNLIMITED = 1e15  # in any budget's unit: only to ask what can be reached at all
POINTS = 33  # budgets of a curve
Config = Mapping[str, Any]  # a resolved RunConfig


@dataclass(frozen=True)
class Solved:
    """One budget's allocations: `bits` as `figures.bits_data` has them, and one row an allocator of `summary`."""

    bits: pd.DataFrame
    summary: pd.DataFrame


def reachable(table: SensitivityTable, config: Config, weights: Weighting) -> tuple[float, float]:
    """The least budget that some allocation keeps to, and the largest that any can spend, in the budget's unit."""
    return _problem(table, config, UNLIMITED, weights, "loss").reachable


def solved(
    table: SensitivityTable,
    config: Config,
    limit: float,
    weights: Weighting = "macs",
    measure: Measure = "loss",
    allocators: tuple[Allocator, ...] = ("exact", "uniform"),
) -> Solved:
    """Allocations within `limit`, each allocator's.

    `summary` has the columns allocator, damage (in the measure's unit, summed over layers), cost (in the budget's
    unit), mean bits by layers, macs and elements, and whether it is proven to be the best.

    Raises:
        ConfigError: the budget cannot be reached, or the table is another network's.
    """
    problem, run = _problem(table, config, limit, weights, measure), RunConfig.parse(dict(config))
    found = {name: allocate(problem, name) for name in allocators}
    named = {short_name(name): _named(problem, allocation) for name, allocation in found.items()}
    means = {name: mean_bits(run, bits) for name, bits in named.items()}
    shown: Weighting = "macs" if weights == "bops" else weights
    rows = [
        {
            "allocator": short,
            "damage": allocation.damage,
            "cost": allocation.cost,
            **{f"bits_{by}": mean for by, mean in means[short].items()},
            "proven": bool(allocation.optimal),
        }
        for short, allocation in zip(named, found.values(), strict=True)
    ]
    return Solved(bits_data(named, {name: means[name][shown] for name in named}, shown), pd.DataFrame(rows))


def summary_table(summary: pd.DataFrame, unit: str) -> TextTable:
    """`Solved.summary` as text; `unit`: of the damage."""
    rows = [
        {
            "Allocator": row["allocator"],
            f"Damage ({unit})": number(row["damage"], 5),
            "Cost": number(row["cost"], 4),
            **{f"Bits by {WEIGHTINGS[by]}": number(row[f"bits_{by}"], 2) for by in MEANS},
            "Proven best": "yes" if row["proven"] else "no",
        }
        for _, row in summary.iterrows()
    ]
    cells = pd.DataFrame(rows)
    marks = pd.DataFrame("", index=cells.index, columns=cells.columns)
    return TextTable(cells, marks, words=("Allocator", "Proven best"), caption=SUMMARY_CAPTION)


def mean_bits(run: RunConfig, bits: Mapping[str, int]) -> dict[str, float]:
    """Mean activation bits of the block linears by layers, macs and elements."""
    costs = layer_costs(run.model, run.precision, BitAllocation(bits=dict(bits)))
    return {by: average_bits(costs, by) or float("nan") for by in MEANS}


def recorded_bits(config: Config, bits: Mapping[str, int], name: str) -> pd.DataFrame:
    """A run's own allocation, as `figures.bits_data` has it."""
    return bits_data({name: bits}, {name: mean_bits(RunConfig.parse(dict(config)), bits)["macs"]}, "macs")


def _problem(table: SensitivityTable, config: Config, limit: float, weights: Weighting, measure: Measure) -> Problem:
    run = RunConfig.parse(dict(config))
    return make_problem(table, run.model, run.precision, Budget(limit=limit, weights=weights), measure)


def _named(problem: Problem, allocation: Allocation) -> dict[str, int]:
    return dict(zip(problem.decisions, allocation.bits, strict=True))


# --- damage over the budget ---------------------------------------------------------------------------------------


def curve_data(
    table: SensitivityTable, config: Config, weights: Weighting = "macs", measure: Measure = "loss"
) -> pd.DataFrame:
    """One row a budget and allocator (exact, uniform): limit, allocator, damage; budgets evenly over what can be
    reached."""
    low, high = reachable(table, config, weights)
    rows = []
    for limit in np.linspace(low, high, POINTS):
        problem = _problem(table, config, float(limit), weights, measure)
        for name in ("exact", "uniform"):
            found = allocate(problem, name)
            rows.append({"limit": float(limit), "allocator": name, "damage": found.damage})
    return pd.DataFrame(rows)


def curve_figure(data: pd.DataFrame, limit: float, weights: Weighting, unit: str) -> Figure:
    """Predicted damage over the budget; the vertical line is the budget that is looked at."""
    names = list(dict.fromkeys(data["allocator"]))
    with styled():
        figure = Figure(figsize=(COLUMN_WIDTH, 2.1))
        ax = figure.subplots()
        for name, look in looks(names).items():
            part = data[data["allocator"] == name]
            ax.step(part["limit"], part["damage"], where="post", color=look.color, ls=look.linestyle, label=name)
        ax.axvline(limit, color=GREY, lw=0.8)
        ax.set_xlabel(r"$10^9$ bit operations" if weights == "bops" else f"mean bits by {WEIGHTINGS[weights]}")
        ax.set_ylabel(f"predicted damage\n({unit})")
        figure.legend(*ax.get_legend_handles_labels(), loc="outside lower center", ncols=2)
    return figure
