"""Every method of one or several plans in one ranked list: mean and interval over seeds of each metric."""

from __future__ import annotations

from typing import Any

import pandas as pd

from analysis.load import PRIMARY, finished
from analysis.methods import method_name
from analysis.render import TextTable, number, with_half_width
from analysis.stats import estimate_columns, estimate_of, mean_interval
from analysis.tables.components import METRICS, PAIRS

ALIKE = ["plan", "dataset", "protocol", "variant", "label"]  # what the runs of one row share, and the row shows
SETTINGS = ["lr", "steps", "batch_size", "width", "num_layers"]  # shared too; shown where they tell rows apart
CAPTION = (
    "Means over n runs, one per seed, ± half the width of the 95 % t interval. Held-out loss: mean squared error per "
    "pixel. FD, precision, recall and score are taken in the features of a small classifier of this data set (FD is no "
    "FID). Rows are ordered by held-out loss; an order within overlapping intervals is no finding."
)


def filtered(runs: pd.DataFrame, dataset: str = "", label: str = "", protocol: str = "") -> pd.DataFrame:
    """Finished runs; an empty filter lets everything through."""
    kept = finished(runs)
    for column, wanted in (("dataset", dataset), ("label", label), ("protocol", protocol)):
        kept = kept[kept[column] == wanted] if wanted else kept
    return kept


def cells(runs: pd.DataFrame) -> dict[str, pd.DataFrame]:
    """{name: finished runs that differ in their seeds alone}, as far as their records say.

    A name is `robuq_uniform W1.58A2`, with the plan and the settings that tell it from others of that name. Runs of
    one seed that still cannot be told apart are rows of their own, named by their keys.
    """
    done = finished(runs)
    parts: dict[str, pd.DataFrame] = {}
    for _, same in done.groupby(["variant", "label"], sort=True):
        told = [name for name in ["plan", "protocol", *SETTINGS] if same[name].nunique(dropna=False) > 1]
        for _, part in same.groupby(told or ["variant"], dropna=False):
            first = part.iloc[0]
            name = " ".join([first["variant"], first["label"], *(_setting(column, first[column]) for column in told)])
            if part.duplicated(PAIRS).any():
                parts |= {f"{name} run {row['key'].iloc[0][:8]}": row for _, row in part.groupby("key")}
            else:
                parts[name] = part
    return parts


def _setting(column: str, value: Any) -> str:
    return f"{column} {value:g}" if isinstance(value, float) else f"{column} {value}"


def leaderboard_data(runs: pd.DataFrame) -> pd.DataFrame:
    """One row a cell, the best held-out loss first. Columns: name, plan, dataset, protocol, variant, label, settings,
    n, for each metric its mean with `_low`, `_high` and `_n`, and the runs' keys separated by spaces."""
    rows = []
    for name, part in cells(runs).items():
        own = {column: part[column].iloc[0] for column in [*ALIKE, *SETTINGS]}
        row = {"name": name, **own, "n": len(part)}
        for metric in METRICS:
            row |= estimate_columns(metric, mean_interval(part[metric]))
        rows.append(row | {"keys": " ".join(sorted(part["key"]))})
    data = pd.DataFrame(rows)
    return data.sort_values([PRIMARY, "name"], ignore_index=True) if len(data) else data


def leaderboard_table(data: pd.DataFrame) -> TextTable:
    """The data as text; settings have a column only where rows differ in them."""
    told = [column for column in ["plan", "dataset", *SETTINGS] if data[column].nunique(dropna=False) > 1]
    cells = pd.DataFrame([_text(row, told) for _, row in data.iterrows()])
    marks = pd.DataFrame("", index=cells.index, columns=cells.columns)
    return TextTable(cells, marks, words=("Method", "W/A", "plan", "dataset"), caption=CAPTION)


def _text(row: pd.Series[Any], told: list[str]) -> dict[str, str]:
    text = {"Method": method_name(row["variant"]), "W/A": row["label"]}
    text |= {column: f"{row[column]:g}" if isinstance(row[column], float) else str(row[column]) for column in told}
    for metric, (header, digits, _) in METRICS.items():
        text[header] = with_half_width(estimate_of(row, metric), digits)
    return text | {"n": number(row["n"], 0)}
