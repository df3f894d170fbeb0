"""The allocations table: what uniform, greedy, exact, published and searched bits give after full training."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from typing import Any

import pandas as pd

from analysis.load import PRIMARY, check_runs, finished, one_protocol
from analysis.methods import in_order, method_name
from analysis.render import NONE, TextTable, number, with_half_width
from analysis.stats import (
    PairedDifference,
    estimate_columns,
    estimate_of,
    holm,
    mean_interval,
    paired_difference,
    rank_marks,
)
from analysis.tables.components import PAIRS

METRICS = {PRIMARY: ("Held-out loss ↓", 4), "fd_classifier": ("FD ↓", 2)}  # column -> (name, digits); lower is better
BASES = {"uniform": "Δ to uniform", "exact": "Δ to exact"}  # columns of the text
LONGER = "exact_longer"  # trained for as many steps more as the search took: compared with the search, not ranked
EQUAL_COMPUTE = ("search", LONGER)
CAPTION = (
    "Bits of the block linears' activations by allocation, trained alike. Bits: means weighted by MACs and by "
    "layers. Means over n runs, ± half the width of the 95 % t interval. Δ: the row minus uniform, or minus exact, "
    "over shared seeds, ± half the width of its paired 95 % t interval, with the p-value of the paired t-test after "
    "Holm's correction over all differences of the metric. Best in bold with all that a paired t-test, "
    "Holm-corrected, cannot tell from it, second underlined; what was trained longer is not ranked. FD is taken in "
    "the features of a small classifier of this data set (it is no FID)."
)
Cells = dict[str, pd.DataFrame]


def allocations_data(
    runs: pd.DataFrame,
    confirmed: Mapping[str, Sequence[str]] | None = None,
    means: Mapping[str, Mapping[str, float]] | None = None,
) -> pd.DataFrame:
    """One row per (metric, allocation), numbers only; failed runs are left out, and metrics that no run has.

    `confirmed`: {allocation: keys of its runs}, by default the variants of `runs`; equal allocations may share runs.
    `means`: {allocation: {"macs": mean bits, "layers": ...}}.

    Columns: metric, allocation, n, steps, bits_macs, bits_layers, `mean` with `_low`, `_high`, `_n`; mark; for each
    base (uniform, exact, and exact_longer for search alone) `to_<base>` with `_low`, `_high`, `_n`, `_p`, `_p_holm`
    (over the metric's differences, each pair once) and `_effect`; `keys` of the runs, separated by spaces.

    Raises:
        ValueError: several protocols, or two runs of one allocation and seed.
    """
    runs = finished(check_runs(runs))
    one_protocol(runs)
    cells = _cells(runs, confirmed)
    parts = [_metric_rows(metric, cells, means or {}) for metric in METRICS if runs[metric].notna().any()]
    return pd.concat(parts, ignore_index=True)


def allocations_table(data: pd.DataFrame, names: Mapping[str, str] | None = None) -> TextTable:
    """The data as text, a rule between metrics. `names`: how allocations are to be called, where not as usual."""
    rows = [row for _, row in data.iterrows()]
    cells = pd.DataFrame([_text(row, names or {}) for row in rows])
    if data["steps"].nunique() <= 1:
        cells = cells.drop(columns="Steps")
    marks = pd.DataFrame("", index=cells.index, columns=cells.columns)
    marks["Mean"] = data["mark"].to_numpy()
    metrics = data["metric"].to_list()
    rules = tuple(i for i in range(1, len(metrics)) if metrics[i] != metrics[i - 1])
    return TextTable(cells, marks, rules, words=("Metric", "Allocation"), caption=CAPTION)


def _cells(runs: pd.DataFrame, confirmed: Mapping[str, Sequence[str]] | None) -> Cells:
    """{allocation: its runs, indexed by seed}, in the tables' order; those without a run are left out."""
    if confirmed is None:
        confirmed = {str(name): part["key"].to_list() for name, part in runs.groupby("variant")}
    cells = {name: runs[runs["key"].isin(confirmed[name])] for name in in_order(confirmed)}
    for name, cell in cells.items():
        if (again := cell.duplicated(PAIRS, keep=False)).any():
            first, second = cell.loc[again, "key"].iloc[:2]
            raise ValueError(
                f"runs {first} and {second} are both {name} with one seed: report each budget and setting apart"
            )
    return {name: cell.set_index(PAIRS).sort_index() for name, cell in cells.items() if len(cell)}


def _metric_rows(metric: str, cells: Cells, means: Mapping[str, Mapping[str, float]]) -> pd.DataFrame:
    differences = _differences(metric, cells)
    pairs = {frozenset(pair): difference.p for pair, difference in differences.items()}  # each once: Holm counts them
    corrected = dict(zip(pairs, holm(list(pairs.values())), strict=True))
    ranked = {name: cell[metric] for name, cell in cells.items() if name != LONGER}
    marks = {LONGER: ""} | rank_marks(ranked, lower_is_better=True)
    rows = []
    for name, cell in cells.items():
        own = means.get(name, {})
        row: dict[str, Any] = {"metric": metric, "allocation": name, "n": len(cell), "steps": cell["steps"].max()}
        row |= {f"bits_{by}": own.get(by, math.nan) for by in ("macs", "layers")}
        row |= {**estimate_columns("mean", mean_interval(cell[metric])), "mark": marks[name]}
        for base in (*BASES, LONGER):
            difference = differences.get((name, base), _nothing())
            row |= estimate_columns(f"to_{base}", difference)
            p_holm = corrected.get(frozenset((name, base)), math.nan) if (name, base) in differences else math.nan
            row |= {f"to_{base}_p": difference.p, f"to_{base}_p_holm": p_holm, f"to_{base}_effect": difference.effect}
        rows.append(row | {"keys": " ".join(cell["key"])})
    return pd.DataFrame(rows)


def _differences(metric: str, cells: Cells) -> dict[tuple[str, str], PairedDifference]:
    """{(allocation, base): difference} of all that are asked for and can be had."""
    wanted = [(name, base) for base in BASES for name in cells if name != base]
    found = [pair for pair in [*wanted, EQUAL_COMPUTE] if pair[0] in cells and pair[1] in cells]
    return {(a, b): paired_difference(cells[a][metric], cells[b][metric]) for a, b in found}


def _nothing() -> PairedDifference:
    return PairedDifference(math.nan, math.nan, math.nan, 0, p=math.nan, effect=math.nan)


def _text(row: pd.Series[Any], names: Mapping[str, str]) -> dict[str, str]:
    metric, digits = METRICS[row["metric"]]
    name = row["allocation"]
    text = {"Metric": metric, "Allocation": names.get(name, method_name(name)), "n": number(row["n"], 0)}
    text |= {"Steps": number(row["steps"], 0), "Bits (MACs)": number(row["bits_macs"], 2)}
    text |= {"Bits (layers)": number(row["bits_layers"], 2), "Mean": with_half_width(estimate_of(row, "mean"), digits)}
    for base, header in BASES.items():
        difference = estimate_of(row, f"to_{base}")
        text[header] = with_half_width(difference, digits) if difference.n else NONE
        text[f"p ({base})"] = p_text(row[f"to_{base}_p_holm"])
    return text


def p_text(p: float) -> str:
    return "< 0.001" if p < 0.001 else number(p, 3)
