from __future__ import annotations

import math
import re
from dataclasses import replace
from pathlib import Path
from xml.etree import ElementTree

import pandas as pd
import pytest

from analysis.render import TextTable, latex_figure, number, render, with_half_width
from analysis.stats import Estimate

CELLS = pd.DataFrame({"Method": ["a_b", "c & d", "e|f"], "Loss ↓": ["0.1 ± 0.2", "−0.5", "–"], "n": ["3", "3", "1"]})
MARKS = pd.DataFrame({"Method": ["", "", ""], "Loss ↓": ["best", "second", ""], "n": ["", "", ""]})
TABLE = TextTable(CELLS, MARKS, rules=(1,), words=("Method",), caption="95 % of a_b")


@pytest.mark.parametrize(
    ("value", "digits", "text"),
    [(-0.009, 4, "−0.0090"), (-0.00001, 2, "0.00"), (12.345, 1, "12.3"), (math.nan, 2, "–")],
)
def test_numbers(value: float, digits: int, text: str) -> None:
    assert number(value, digits) == text


def test_half_width_is_shown_only_where_there_is_one() -> None:
    assert with_half_width(Estimate(0.1075, 0.1070, 0.1080, 3), 4) == "0.1075 ± 0.0005"
    assert with_half_width(Estimate(0.1075, math.nan, math.nan, 1), 4) == "0.1075"


def test_markdown_golden() -> None:
    assert render(TABLE, "markdown") == (
        "| Method | Loss ↓ | n |\n"
        "| :-- | --: | --: |\n"
        "| a_b | **0.1 ± 0.2** | 3 |\n"
        "|   |   |   |\n"
        "| c & d | <u>−0.5</u> | 3 |\n"
        "| e\\|f | – | 1 |\n"
    )


def test_latex_golden() -> None:
    assert render(TABLE, "latex") == (
        "\\begin{table*}\n\\centering\n\\caption{95 \\% of a\\_b}\n\\footnotesize\n\\setlength{\\tabcolsep}{3pt}\n"
        "\\resizebox{\\ifdim\\width>\\textwidth\\textwidth\\else\\width\\fi}{!}{%\n"
        "\\begin{tabular}{lrr}\n\\toprule\nMethod & Loss $\\downarrow$ & n \\\\\n\\midrule\n"
        "a\\_b & \\textbf{0.1 {\\scriptsize$\\pm$0.2}} & 3 \\\\\n\\midrule\n"
        "c \\& d & \\underline{$-$0.5} & 3 \\\\\ne|f & -- & 1 \\\\\n"
        "\\bottomrule\n\\end{tabular}}\n\\end{table*}\n"
    )


def test_a_title_begins_the_caption_and_a_label_ends_it() -> None:
    table = replace(TABLE, title="Costs, digits", label="tab:costs_digits")
    assert "\\caption{Costs, digits. 95 \\% of a\\_b}\n\\label{tab:costs_digits}\n" in render(table, "latex")
    assert "<caption>Costs, digits. 95 % of a_b</caption>" in render(table, "html")
    assert "Costs" not in render(table, "markdown")


def test_a_figures_caption_is_latex() -> None:
    caption = "`robuq_to_4` at 5 % < 2^14 values, −1 ± 2; as numbers: [correlations](correlations.csv); [−0.5, 1]."
    assert latex_figure(Path("out/rungs.pdf"), caption, "fig:rungs") == (
        "\\begin{figure}\n\\centering\n\\includegraphics[width=\\columnwidth]{rungs.pdf}\n"
        "\\caption{\\texttt{robuq\\_to\\_4} at 5 \\% $<$ $2^{14}$ values, $-$1 $\\pm$ 2; as numbers: correlations; "
        "[$-$0.5, 1].}\n\\label{fig:rungs}\n\\end{figure}\n"
    )


def test_html_is_well_formed_escaped_and_the_same_each_time() -> None:
    html = render(TABLE, "html")
    table = ElementTree.fromstring(html[html.index("<table") :])
    cells = ["".join(cell.itertext()).strip() for cell in table.iter("td")]
    assert cells == CELLS.to_numpy().ravel().tolist()
    assert re.search(r"c &amp; d", html)
    assert "font-weight: bold" in html
    assert html == render(TABLE, "html")


def test_misuse_is_refused() -> None:
    with pytest.raises(ValueError, match="unknown format 'pdf': allowed are markdown"):
        render(TABLE, "pdf")  # type: ignore[arg-type]
    with pytest.raises(ValueError, match="do not fit"):
        render(TextTable(CELLS, MARKS.iloc[:1]), "html")
