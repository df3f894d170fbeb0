"""Published numbers: data with a source, beside ours in every artefact and never ranked with ours.

`reference/*.csv` holds one number a row. They were measured on other networks, other data and other metrics than a
small sweep's: `analysis.side_by_side` says row by row what can be compared.
"""

from __future__ import annotations

import functools
from collections.abc import Iterable
from pathlib import Path
from typing import Any

import pandas as pd

from analysis.render import NONE, TextTable

REFERENCE = Path(__file__).parent / "reference"
SOURCES = {
    "A": "the paper's abstract (arXiv 2509.23582)",
    "K": "third-party reading notes on the paper's first version",
    "M": "a third-party review",
    "G": "a public deployment repository by a co-author of follow-up work",
    "J": "the first author's comparison tables for the later paper JustQuant (arXiv 2609.33601)",
    "S": "read off the paper's figure 2, so approximate",
    "Q": "QuEST's authors, in the code of their paper (arXiv 2502.05003), rounded to five decimals",
    "C": "computed here, and derived again by the tests",
}
TYPES = {
    "artefact": "str",  # what it is shown beside
    "method": "str",  # as published
    "variant": "str",  # our row for it; missing where we have none
    "label": "str",  # W1.58A2; missing where it is not said
    "act_bits": "float64",
    "dataset": "str",  # or the network, or the distribution, that the number is about
    "metric": "str",
    "value": "float64",
    "uncertainty": "float64",  # half-width, of what was read off a figure
    "training_steps": "float64",  # 0: post-training
    "images": "float64",  # that the metric was taken on
    "sampling_steps": "float64",
    "guidance": "float64",
    "source": "str",  # of SOURCES
    "place": "str",  # where in the collected facts
    "reading": "str",  # how it was read, and what is not known about it
}
NEEDED = ("artefact", "method", "dataset", "metric", "source", "place", "reading")
PROTOCOL = ["training_steps", "images", "sampling_steps", "guidance"]
IDENTITY = ["artefact", "method", "label", "act_bits", "dataset", "metric", *PROTOCOL]
RANGES = {  # metric -> what it can be; others are counts, sizes and times above zero
    "FID": (0.0, 500.0),
    "sFID": (0.0, 500.0),
    "IS": (1.0, 1000.0),
    "MSE": (0.0, 1.0),
    "step": (0.0, 4.0),
    "clip": (0.0, 8.0),
}
CAPTION = (
    "Published numbers, with the letter of their source. They are not measured by this project, stand beside its "
    "numbers and are never ranked with them."
)


def load_published(folder: Path = REFERENCE) -> pd.DataFrame:
    """All published numbers in the order of the files' names; `file` is the file's name, `decimals` how many places the
    number was published with.

    Raises:
        ValueError: one line: a file's columns, a type, a range or a repetition is wrong.
    """
    return _load(folder).copy()


@functools.cache
def _load(folder: Path) -> pd.DataFrame:
    parts = [_read(file) for file in sorted(folder.glob("*.csv"))]
    if not parts:
        raise ValueError(f"no published numbers in {folder}: *.csv is needed")
    data = pd.concat(parts, ignore_index=True)
    if (again := data.duplicated(IDENTITY)).any():
        raise ValueError(f"{_where(data[again].iloc[0])} comes twice: give each number once")
    return data


def published(artefact: str, data: pd.DataFrame | None = None) -> pd.DataFrame:
    """What was published of one artefact; no rows where nothing was."""
    data = load_published() if data is None else data
    return data[data["artefact"] == artefact].reset_index(drop=True)


def _read(file: Path) -> pd.DataFrame:
    raw = pd.read_csv(file, dtype=str, keep_default_na=False)
    if list(raw.columns) != list(TYPES):
        raise ValueError(f"{file.name}: columns are {', '.join(raw.columns)}; needed are {', '.join(TYPES)}")
    data = pd.DataFrame({name: _typed(raw[name], kind, file) for name, kind in TYPES.items()})
    data = data.assign(file=file.name, decimals=raw["value"].str.partition(".")[2].str.len())
    for _, row in data.iterrows():
        _check(row)
    return data


def _typed(texts: pd.Series[str], kind: str, file: Path) -> pd.Series[Any]:
    filled = texts.where(texts != "", None)
    if kind == "str":
        return filled.astype("str")
    try:
        return filled.astype("float64")
    except ValueError as error:
        raise ValueError(f"{file.name}: column {texts.name}: {error}") from None


def _check(row: pd.Series[Any]) -> None:
    if empty := [name for name in (*NEEDED, "value") if pd.isna(row[name])]:
        raise ValueError(f"{_where(row)} has no {empty[0]}: every number needs one")
    if row["source"] not in SOURCES:
        raise ValueError(f"{_where(row)} has source {row['source']!r}: sources are {', '.join(SOURCES)}")
    low, high = RANGES.get(row["metric"], (0.0, float("inf")))
    if not low <= row["value"] <= high or row["value"] <= 0:
        raise ValueError(f"{_where(row)} is {row['value']:g}: {row['metric']} lies from {low:g} to {high:g}")
    if row["act_bits"] < 1 or row["act_bits"] > 32:
        raise ValueError(f"{_where(row)} has act_bits {row['act_bits']:g}: from 1 to 32 are allowed")
    if (row[PROTOCOL].astype("float64") < 0).any() or row["uncertainty"] <= 0:
        raise ValueError(
            f"{_where(row)}: steps, images and guidance are no less than 0, and an uncertainty is above it"
        )


def _where(row: pd.Series[Any]) -> str:
    return f"{row['file']}: {row['metric']} of {row['method']}"


# --- shown --------------------------------------------------------------------------------------------------------

OPTIONAL = ("W/A", "Bits", "Trained", "Protocol")  # columns that are left out where nothing is known of any row
GROUPS = ["method", "label", "act_bits", "dataset", *PROTOCOL, "source"]


def published_table(data: pd.DataFrame) -> TextTable:
    """One row a method, width, subject and protocol, one column a metric, or one row a number where all are of one
    method; nothing is marked."""
    rows = _long(data) if data["method"].nunique() == 1 else _wide(data)
    cells = pd.DataFrame(rows)
    cells = cells.loc[:, [name for name in cells if not (name in OPTIONAL and (cells[name] == NONE).all())]]
    marks = pd.DataFrame("", index=cells.index, columns=cells.columns)
    words = ("Published", "W/A", "About", "Protocol", "Metric", "Source")
    return TextTable(cells, marks, words=words, caption=f"{CAPTION} {sources_note(data['source'])}")


def _long(data: pd.DataFrame) -> list[dict[str, str]]:
    return [
        _subject(row) | {"Metric": row["metric"], "Value": published_text(row), "Source": row["source"]}
        for _, row in data.iterrows()
    ]


def _wide(data: pd.DataFrame) -> list[dict[str, str]]:
    metrics = list(dict.fromkeys(data["metric"]))
    parts = [part for _, part in data.groupby(GROUPS, dropna=False, sort=False)]
    return [
        _subject(part.iloc[0])
        | {metric: _value(part, metric) for metric in metrics}
        | {"Source": part["source"].iloc[0]}
        for part in parts
    ]


def _subject(row: pd.Series[Any]) -> dict[str, str]:
    bits = NONE if pd.notna(row["label"]) or pd.isna(row["act_bits"]) else f"{row['act_bits']:g}"
    return {
        "Published": row["method"],
        "W/A": row["label"] if pd.notna(row["label"]) else NONE,
        "Bits": bits,
        "About": row["dataset"],
        "Trained": NONE if pd.isna(row["training_steps"]) else f"{row['training_steps']:,.0f}",
        "Protocol": protocol_name(row),
    }


def protocol_name(row: pd.Series[Any]) -> str:
    """`50,000 images, 250 steps, guidance 1.5`; a dash where nothing is said."""
    parts = [
        f"{row['images']:,.0f} images" if pd.notna(row["images"]) else "",
        f"{row['sampling_steps']:g} steps" if pd.notna(row["sampling_steps"]) else "",
        f"guidance {row['guidance']:g}" if pd.notna(row["guidance"]) else "",
    ]
    return ", ".join(part for part in parts if part) or NONE


def _value(part: pd.DataFrame, metric: str) -> str:
    found = part[part["metric"] == metric]
    return published_text(found.iloc[0]) if len(found) else NONE


def published_text(row: pd.Series[Any]) -> str:
    """`20.5 ± 1.5`, with the decimals it was published with."""
    text = f"{row['value']:.{row['decimals']}f}"
    return text if pd.isna(row["uncertainty"]) else f"{text} ± {row['uncertainty']:g}"


def sources_note(letters: Iterable[str]) -> str:
    """`J: the first author's ...; S: read off ...`"""
    return "; ".join(f"{letter}: {SOURCES[letter]}" for letter in sorted(set(letters))) + "."
