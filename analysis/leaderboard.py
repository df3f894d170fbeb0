"""Every method of one or several plans in one ranked list: mean and interval over seeds of each metric."""

from __future__ import annotations

from typing import Any

import pandas as pd

from analysis.configurations import Configurations
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
SHORT = 8  # hex digits of a key that are shown
ONE_RUN = " Rows of one name differ in settings that have no column here: `run` is the key of their lowest seed's run."


def filtered(runs: pd.DataFrame, dataset: str = "", label: str = "", protocol: str = "") -> pd.DataFrame:
    """Finished runs; an empty filter lets everything through."""
    kept = finished(runs)
    for column, wanted in (("dataset", dataset), ("label", label), ("protocol", protocol)):
        kept = kept[kept[column] == wanted] if wanted else kept
    return kept


def cells(runs: pd.DataFrame, configurations: Configurations) -> dict[str, pd.DataFrame]:
    """{name: finished runs that differ in their seeds alone, the lowest seed first}.

    A name is `robuq_uniform W1.58A2`, with the plan and the settings that tell it from others of that name, and with
    a run's key where these do not. What would be a second run of one seed is a cell of its own.
    """
    done = finished(runs).sort_values(PAIRS, kind="stable")
    parts: dict[str, pd.DataFrame] = {}
    for _, same in done.groupby(["variant", "label"], sort=True):
        told = [name for name in ["plan", "protocol", *SETTINGS] if same[name].nunique(dropna=False) > 1]
        for _, part in same.groupby(told or ["variant"], dropna=False):
            first = part.iloc[0]
            name = " ".join([first["variant"], first["label"], *(_setting(column, first[column]) for column in told)])
            parts |= _named(name, _alike(part, configurations))
    return parts


def _named(name: str, alike: list[pd.DataFrame]) -> dict[str, pd.DataFrame]:
    """With a key where there are several: as much of it as tells them apart."""
    if len(alike) == 1:
        return {name: alike[0]}
    keys = [str(part["key"].iloc[0]) for part in alike]
    short = len({key[:SHORT] for key in keys}) == len(keys)
    return {f"{name} run {key[:SHORT] if short else key}": part for key, part in zip(keys, alike, strict=True)}


def _alike(part: pd.DataFrame, configurations: Configurations) -> list[pd.DataFrame]:
    """Its runs by configuration; each for itself where a configuration has two of one seed, which no sweep makes."""
    if len(part) == 1:
        return [part]
    names = configurations.of(part)
    groups = [part] if names.nunique() == 1 else [own for _, own in part.groupby(names, sort=False)]
    return [
        each
        for own in groups
        for each in ([one for _, one in own.groupby("key")] if len(own) > 1 and own.duplicated(PAIRS).any() else [own])
    ]


def _setting(column: str, value: Any) -> str:
    return f"{column} {value:g}" if isinstance(value, float) else f"{column} {value}"


def leaderboard_data(runs: pd.DataFrame, configurations: Configurations) -> pd.DataFrame:
    """One row a cell, the best held-out loss first. Columns: name, plan, dataset, protocol, variant, label, settings,
    run (the beginning of the lowest seed's key), n, for each metric its mean with `_low`, `_high` and `_n`, and the
    runs' keys separated by spaces."""
    rows = []
    for name, part in cells(runs, configurations).items():
        own = {column: part[column].iloc[0] for column in [*ALIKE, *SETTINGS]}
        row = {"name": name, **own, "run": str(part["key"].iloc[0])[:SHORT], "n": len(part)}
        for metric in METRICS:
            row |= estimate_columns(metric, mean_interval(part[metric]))
        rows.append(row | {"keys": " ".join(sorted(part["key"]))})
    data = pd.DataFrame(rows)
    return data.sort_values([PRIMARY, "name"], ignore_index=True) if len(data) else data


def leaderboard_table(data: pd.DataFrame) -> TextTable:
    """The data as text; settings have a column only where rows differ in them, and keys of runs where rows could not
    be told apart."""
    told = [column for column in ["plan", "dataset", *SETTINGS] if data[column].nunique(dropna=False) > 1]
    named = data.assign(variant=data["variant"].map(method_name))
    again = named.duplicated(["variant", "label", *told], keep=False)
    if again.any():
        data, told = data.assign(run=data["run"].where(again, "")), [*told, "run"]
    cells = pd.DataFrame([_text(row, told) for _, row in data.iterrows()])
    marks = pd.DataFrame("", index=cells.index, columns=cells.columns)
    caption = CAPTION + ONE_RUN if again.any() else CAPTION
    return TextTable(cells, marks, words=("Method", "W/A", "plan", "dataset", "run"), caption=caption)


def _text(row: pd.Series[Any], told: list[str]) -> dict[str, str]:
    text = {"Method": method_name(row["variant"]), "W/A": row["label"]}
    text |= {column: f"{row[column]:g}" if isinstance(row[column], float) else str(row[column]) for column in told}
    for metric, (header, digits, _) in METRICS.items():
        text[header] = with_half_width(estimate_of(row, metric), digits)
    return text | {"n": number(row["n"], 0)}
