"""A table of text cells -> LaTeX (booktabs), Markdown, HTML. Numbers stay in the data, which goes to CSV as it is."""

from __future__ import annotations

import math
import re
from collections.abc import Callable, Hashable
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

import pandas as pd

from analysis.stats import Estimate

Format = Literal["markdown", "latex", "html"]
MINUS, NONE = "−", "–"
LETTERS = (("Δ", "Delta"), ("ρ", "rho"), ("σ", "sigma"), ("μ", "mu"))
SIGNS = (("×", "times"), ("≤", "le"), ("≥", "ge"), ("↓", "downarrow"), ("↑", "uparrow"), ("→", "rightarrow"))
LATEX = {
    **{character: rf"$\{name}$" for character, name in (*LETTERS, *SIGNS, ("△", "triangle"))},
    MINUS: "$-$",
    NONE: "--",
}

# \width is the table's own width: a narrow one is not stretched.
FIT = r"\resizebox{\ifdim\width>\textwidth\textwidth\else\width\fi}{!}{%"


@dataclass(frozen=True)
class TextTable:
    """Cells as text with marks of the same shape (`best`, `second` or empty). A rule stands before each row of
    `rules`. Columns whose name is in `words` are set to the left. The caption begins with the `title`; `label` is what
    LaTeX refers to."""

    cells: pd.DataFrame
    marks: pd.DataFrame
    rules: tuple[int, ...] = ()
    words: tuple[str, ...] = ()
    caption: str = ""
    title: str = ""
    label: str = ""

    @property
    def full_caption(self) -> str:
        return captioned(self.title, self.caption)


def captioned(title: str, caption: str) -> str:
    return f"{title}. {caption}" if title and caption else title or caption


def number(value: float, digits: int) -> str:
    """`−0.0090`; a dash for NaN. A value that rounds to zero has no sign."""
    if math.isnan(value):
        return NONE
    text = f"{value:.{digits}f}"
    text = text.lstrip("-") if float(text) == 0 else text
    return text.replace("-", MINUS)


def with_half_width(estimate: Estimate, digits: int) -> str:
    """`0.1075 ± 0.0005`; without the second part where n < 2 gives no interval."""
    if math.isnan(estimate.half_width):
        return number(estimate.mean, digits)
    return f"{number(estimate.mean, digits)} ± {number(estimate.half_width, digits)}"


def render(table: TextTable, form: Format) -> str:
    """The table as text that ends with a line feed.

    Raises:
        ValueError: unknown format, or marks that do not fit the cells.
    """
    forms: dict[str, Callable[[TextTable], str]] = {"markdown": _markdown, "latex": _latex, "html": _html}
    if form not in forms:
        raise ValueError(f"unknown format {form!r}: allowed are {', '.join(forms)}")
    if table.cells.shape != table.marks.shape:
        raise ValueError(f"marks of shape {table.marks.shape} do not fit cells of shape {table.cells.shape}")
    return forms[form](table)


def _markdown(table: TextTable) -> str:
    """Rules between groups do not exist in Markdown: an empty row stands for each."""
    names = list(table.cells.columns)
    lines = [_row(names), _row([":--" if name in table.words else "--:" for name in names])]
    for index in range(len(table.cells)):
        if index in table.rules:
            lines.append(_row([" "] * len(names)))
        cells, marks = table.cells.iloc[index], table.marks.iloc[index]
        lines.append(_row([_markdown_cell(cell, mark) for cell, mark in zip(cells, marks, strict=True)]))
    return "\n".join(lines) + "\n"


def _row(cells: list[str]) -> str:
    return f"| {' | '.join(cells)} |"


def _markdown_cell(text: str, mark: str) -> str:
    text = text.replace("|", r"\|")
    return {"best": f"**{text}**", "second": f"<u>{text}</u>"}.get(mark, text)


def _latex(table: TextTable) -> str:
    """For the width of two columns: narrow gaps, half-widths set small, and what is wider still is shrunk to it.

    Needs the packages booktabs and graphicx.
    """
    props = {"best": "textbf: --rwrap;", "second": "underline: --rwrap;"}
    styler = table.cells.style.hide(axis="index").format(escape="latex").format_index(escape="latex", axis=1)
    styler = styler.apply(lambda _: table.marks.map(lambda mark: props.get(mark, "")), axis=None)
    columns = "".join("l" if name in table.words else "r" for name in table.cells.columns)
    text = str(
        styler.to_latex(
            hrules=True,
            column_format=columns,
            caption=_tex(table.full_caption) or None,
            label=table.label or None,
            environment="table*",
            position_float="centering",
        )
    )
    text = text.replace(
        r"\begin{tabular}", f"\\footnotesize\n\\setlength{{\\tabcolsep}}{{3pt}}\n{FIT}\n\\begin{{tabular}}"
    )
    text = text.replace(r"\end{tabular}", "\\end{tabular}}")
    return _with_midrules(_ascii(re.sub(r" ± ([0-9.]+)", r" {\\scriptsize$\\pm$\1}", text)), table.rules)


def latex_figure(picture: Path, caption: str, label: str) -> str:
    """A figure of one column that shows the file `picture`, which lies beside it. Needs the package graphicx."""
    lines = [r"\begin{figure}", r"\centering", rf"\includegraphics[width=\columnwidth]{{{picture.name}}}"]
    lines += [rf"\caption{{{_ascii(_tex(caption))}}}", rf"\label{{{label}}}", r"\end{figure}"]
    return "\n".join(lines) + "\n"


def _tex(text: str) -> str:
    """Caption text, which is Markdown; Styler escapes cells but not this."""
    text = re.sub(r"\[([^\]]+)\]\([^)]+\.\w+\)", r"\1", text)  # a link to a file of the report
    for character in "&%$#_{}":
        text = text.replace(character, "\\" + character)
    text = re.sub(r"`([^`]*)`", r"\\texttt{\1}", text)
    text = re.sub(r"(\d+)\^(\d+)", r"$\1^{\2}$", text)
    return re.sub(r"([<>])", r"$\1$", text)


def _ascii(text: str) -> str:
    text = text.replace("±", r"$\pm$")
    for character, command in LATEX.items():
        text = text.replace(character, command)
    return text


def _with_midrules(text: str, rules: tuple[int, ...]) -> str:
    lines = text.splitlines()
    body = lines.index(r"\midrule") + 1
    for row in sorted(rules, reverse=True):
        lines.insert(body + row, r"\midrule")
    return "\n".join(lines) + "\n"


def _html(table: TextTable) -> str:
    props = {"best": "font-weight: bold", "second": "text-decoration: underline"}
    rules = [
        {"selector": "td, th", "props": "padding: 2px 8px; text-align: right; white-space: nowrap"},
        {"selector": "caption", "props": "text-align: left"},
        *({"selector": f"tbody tr:nth-child({row + 1}) td", "props": "border-top: 1px solid"} for row in table.rules),
    ]
    styler = table.cells.style.hide(axis="index").format(escape="html").set_table_styles(rules)  # type: ignore[arg-type]
    styler = styler.apply(lambda _: table.marks.map(lambda mark: props.get(mark, "")), axis=None)
    left: list[Hashable] = [name for name in table.cells.columns if name in table.words]
    styler = styler.set_properties(subset=left, **{"text-align": "left"}).set_caption(table.full_caption)
    return str(styler.to_html(table_uuid="table", cell_ids=False)) + "\n"
