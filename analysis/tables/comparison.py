"""Tables that compare the rows of one plan: the numbers of `components_data`, with own names, order and ranking."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, replace
from typing import Any, Literal

import pandas as pd

from analysis.load import check_runs, finished
from analysis.methods import method_name
from analysis.render import TextTable, number
from analysis.stats import rank_marks
from analysis.tables.components import METRICS, PAIRS, components_data, components_table

DELTA = "Δ to baseline"  # the header in `components_table`


@dataclass(frozen=True)
class Extra:
    """A column that is no result: the mean over a row's runs of one recorded metric, in units of `unit`."""

    header: str
    unit: float
    digits: int


@dataclass(frozen=True)
class Comparison:
    """How one table shows its rows. `names`: variant -> name, in the order of the rows; others follow by name.

    Rows are ranked among those of equal activation bits, or of equal weight and activation bits (`label`).
    """

    names: Mapping[str, str]
    baseline: str
    caption: str
    rank_by: Literal["bits", "label"] = "bits"
    delta: str = DELTA
    extras: Mapping[str, Extra] | None = None  # metric -> column, before n


def comparison_data(runs: pd.DataFrame, layout: Comparison) -> pd.DataFrame:
    """The columns of `components_data` and, for each extra, its mean; from many bits to few, in the layout's order.

    Raises:
        ValueError: what `components_data` refuses: several protocols, or two runs for one cell and seed.
    """
    data = components_data(runs, layout.baseline)
    done = finished(check_runs(runs)).set_index("key")
    parts = [done.loc[keys.split()] for keys in data["keys"]]
    for metric in layout.extras or {}:
        data[metric] = [part[metric].mean() if metric in part else float("nan") for part in parts]
    if layout.rank_by == "label":
        data = _ranked_by_label(data, parts)
    places = {name: place for place, name in enumerate(layout.names)}
    order = data["variant"].map(lambda name: places.get(name, len(places)))
    data = data.assign(_place=order).sort_values(["bits", "_place"], ascending=[False, True], na_position="first")
    return data.drop(columns="_place").reset_index(drop=True)


def comparison_table(data: pd.DataFrame, layout: Comparison) -> TextTable:
    """The data as text, a rule between widths."""
    table = components_table(data)
    cells, marks = table.cells.copy(), table.marks.copy()
    cells["Method"] = [layout.names.get(name, method_name(name)) for name in data["variant"]]
    for metric, extra in (layout.extras or {}).items():
        place = cells.columns.get_loc("n")
        assert isinstance(place, int)
        texts = [number(value / extra.unit, extra.digits) for value in data[metric]]
        cells.insert(place, extra.header, texts)
        marks.insert(place, extra.header, "")
    names = {DELTA: layout.delta}
    return replace(table, cells=cells.rename(columns=names), marks=marks.rename(columns=names), caption=layout.caption)


def comparison_cells(data: pd.DataFrame, layout: Comparison) -> list[dict[str, Any]]:
    """Which runs are behind each cell: `row`, `columns` of the CSV, `keys`. A difference rests on the baseline, too."""
    base = {row["bits"]: row["keys"].split() for _, row in data.iterrows() if row["variant"] == layout.baseline}
    cells: list[dict[str, Any]] = []
    for _, row in data.iterrows():
        name, keys = f"{row['variant']} {row['label']}", row["keys"].split()
        columns = [*METRICS, *(layout.extras or {})]
        cells.append({"row": name, "columns": columns, "keys": keys})
        if row["difference_n"]:
            cells.append({"row": name, "columns": ["difference"], "keys": [*keys, *base[row["bits"]]]})
    return cells


def _ranked_by_label(data: pd.DataFrame, parts: list[pd.DataFrame]) -> pd.DataFrame:
    """Marks among rows of equal W/A; none where activations are in full precision."""
    series = [part.set_index(PAIRS).sort_index() for part in parts]
    changes: dict[str, list[str]] = {}
    for metric, (_, _, lower_is_better) in METRICS.items():
        marks = [""] * len(data)
        for _, group in data[data["bits"].notna()].groupby("label"):
            own = {str(place): series[int(place)][metric] for place in group.index}
            for place, mark in rank_marks(own, lower_is_better).items():
                marks[int(place)] = mark
        changes[f"{metric}_mark"] = marks
    return data.assign(**changes)
