"""What a report's folder holds: text, numbers as CSV, tables in every form, figures with their data."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path
from typing import Any

import pandas as pd
from matplotlib.figure import Figure

from analysis.render import TextTable, captioned, latex_figure, render
from analysis.style import save_figure

DATASETS = {"fashion_mnist": "Fashion-MNIST"}  # as readers know them
Built = tuple[Figure, pd.DataFrame, str]  # a figure, the data for its CSV, its caption


def write_text(file: Path, text: str) -> Path:
    file.write_text(text, encoding="utf-8")
    return file


def write_csv(data: pd.DataFrame, file: Path) -> Path:
    data.to_csv(file, index=False, lineterminator="\n")
    return file


def write_json(data: dict[str, Any], file: Path) -> Path:
    return write_text(file, json.dumps(data, indent=1) + "\n")


def write_table(
    table: TextTable, data: pd.DataFrame, folder: Path, name: str, *, title: str = "", label: str = ""
) -> list[Path]:
    """`name.md`, `.tex`, `.html` of the text, `name.csv` of the numbers.

    `title`: what the caption begins with; `label`: LaTeX's, after `tab:`, the name if there is none.
    """
    table = replace(table, title=title or table.title, label=f"tab:{label or name}")
    return [
        write_text(folder / f"{name}.md", render(table, "markdown")),
        write_text(folder / f"{name}.tex", render(table, "latex")),
        write_text(folder / f"{name}.html", render(table, "html")),
        write_csv(data, folder / f"{name}.csv"),
    ]


def write_figure(built: Built, folder: Path, name: str, *, title: str = "", label: str = "") -> list[Path]:
    """`name.pdf`, `name.png`, `name.tex` with the caption, and `name.csv` of what they draw.

    `title`, `label`: as of `write_table`, after `fig:`.
    """
    figure, data, caption = built
    pdf, png = save_figure(figure, folder, name)
    text = latex_figure(pdf, captioned(title, caption), f"fig:{label or name}")
    return [pdf, png, write_text(folder / f"{name}.tex", text), write_csv(data, folder / f"{name}.csv")]


def figure_section(name: str, caption: str, title: str = "") -> list[str]:
    """The paragraphs of a page that show the figure `name`."""
    links = f"[PDF]({name}.pdf), [LaTeX]({name}.tex), [data]({name}.csv)"
    return [f"## {title or name.capitalize()}", f"![{name}]({name}.png)", f"{caption} {links}"]


def table_links(name: str) -> str:
    return f"As [LaTeX]({name}.tex), [HTML]({name}.html), and [numbers]({name}.csv)."


def dataset_name(dataset: str) -> str:
    return DATASETS.get(dataset, dataset)


def listed(values: pd.Series[Any]) -> str:
    """`0, 1, 2`: the distinct values, sorted."""
    known = sorted(values.dropna().unique())
    return ", ".join(f"{value:g}" if isinstance(value, float) else str(value) for value in known) or "not recorded"
