"""What a report's folder holds: text, numbers as CSV, tables in every form, figures with their data."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pandas as pd
from matplotlib.figure import Figure

from analysis.render import TextTable, render
from analysis.style import save_figure

Built = tuple[Figure, pd.DataFrame, str]  # a figure, the data for its CSV, its caption


def write_text(file: Path, text: str) -> Path:
    file.write_text(text, encoding="utf-8")
    return file


def write_csv(data: pd.DataFrame, file: Path) -> Path:
    data.to_csv(file, index=False, lineterminator="\n")
    return file


def write_json(data: dict[str, Any], file: Path) -> Path:
    return write_text(file, json.dumps(data, indent=1) + "\n")


def write_table(table: TextTable, data: pd.DataFrame, folder: Path, name: str) -> list[Path]:
    """`name.md`, `.tex`, `.html` of the text, `name.csv` of the numbers."""
    return [
        write_text(folder / f"{name}.md", render(table, "markdown")),
        write_text(folder / f"{name}.tex", render(table, "latex")),
        write_text(folder / f"{name}.html", render(table, "html")),
        write_csv(data, folder / f"{name}.csv"),
    ]


def write_figure(built: Built, folder: Path, name: str) -> list[Path]:
    """`name.pdf`, `name.png`, and `name.csv` of what they draw."""
    figure, data, _ = built
    return [*save_figure(figure, folder, name), write_csv(data, folder / f"{name}.csv")]


def figure_section(name: str, caption: str, title: str = "") -> list[str]:
    """The paragraphs of a page that show the figure `name`."""
    links = f"[PDF]({name}.pdf), [data]({name}.csv)"
    return [f"## {title or name.capitalize()}", f"![{name}]({name}.png)", f"{caption} {links}"]


def table_links(name: str) -> str:
    return f"As [LaTeX]({name}.tex), [HTML]({name}.html), and [numbers]({name}.csv)."


def listed(values: pd.Series[Any]) -> str:
    """`0, 1, 2`: the distinct values, sorted."""
    known = sorted(values.dropna().unique())
    return ", ".join(f"{value:g}" if isinstance(value, float) else str(value) for value in known) or "not recorded"
