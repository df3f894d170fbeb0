"""LaTeX tables compile with what `render` says they need, and are ASCII."""

from __future__ import annotations

import re
import shutil
import subprocess
from collections.abc import Callable
from pathlib import Path

import pandas as pd
import pytest

from analysis.load import runs_frame
from analysis.published import load_published, published, published_table
from analysis.render import render
from analysis.search_report import write_search_report
from analysis.tables.allocations import allocations_data, allocations_table
from analysis.tables.components import components_data, components_table
from analysis.tables.cost import cost_data, cost_table
from analysis.tables.predictors import predictors_data, predictors_table
from robuq.record.search_record import SearchRecord

Made = tuple[SearchRecord, pd.DataFrame]
DOCUMENT = r"\documentclass[twocolumn]{article}\usepackage{booktabs,graphicx}\begin{document}%s\end{document}"


@pytest.fixture(scope="module")
def tables(runs: pd.DataFrame, make_search: Callable[..., SearchRecord], confirm: Callable[..., Made]) -> list[str]:
    """A sweep's, a search's two, the costs, and every published one."""
    search, confirmed = confirm(make_search(2, 24), seeds=(0, 1, 2))
    made = [
        components_table(components_data(runs)),
        allocations_table(allocations_data(confirmed, search.confirmed)),
        predictors_table(predictors_data(search, 0)),
        cost_table(cost_data()),
    ]
    data = load_published()
    named = [published_table(published(name, data)) for name in data["artefact"].unique()]
    return [render(table, "latex") for table in (*made, *named)]


def test_tables_are_ascii(tables: list[str]) -> None:
    assert len(tables) > 8
    assert {character for table in tables for character in table if not character.isascii()} == set()


@pytest.fixture(scope="module")
def figures(tmp_path_factory: pytest.TempPathFactory, make_search: Callable[..., SearchRecord]) -> Path:
    """The folder of a search's report, whose captions have every sign that captions have."""
    folder = tmp_path_factory.mktemp("search")
    write_search_report(make_search(2, 24), runs_frame([]), folder)
    return folder


@pytest.mark.skipif(shutil.which("pdflatex") is None, reason="needs pdflatex: install texlive-latex-recommended")
def test_tables_compile(tables: list[str], tmp_path: Path) -> None:
    assert f"({len(tables)} pages" in compiled(tables, tmp_path)


@pytest.mark.skipif(shutil.which("pdflatex") is None, reason="needs pdflatex: install texlive-latex-recommended")
def test_a_report_compiles_and_its_labels_are_its_own(figures: Path) -> None:
    parts = [file.read_text(encoding="ascii") for file in sorted(figures.glob("*.tex"))]
    labels = re.findall(r"\\label\{(\w+:\w+)\}", "".join(parts))
    assert len(parts) == len(labels) == len(set(labels)) == 5
    assert {"fig:rungs_digits_search", "tab:predictors_digits_search"} <= set(labels)
    text = "\n".join([*parts, *(rf"See \ref{{{label}}}." for label in labels)])
    compiled([text], figures)
    assert "undefined" not in compiled([text], figures)


def compiled(parts: list[str], folder: Path) -> str:
    """What LaTeX says of a document that has each of `parts` on pages of its own."""
    (folder / "all.tex").write_text(DOCUMENT % "\n\\clearpage\n".join(parts), encoding="ascii")
    command = ["pdflatex", "-interaction=nonstopmode", "-halt-on-error", "all.tex"]
    done = subprocess.run(command, cwd=folder, capture_output=True, text=True, errors="replace", check=False)
    assert done.returncode == 0, done.stdout[-1500:]
    assert "Overfull" not in done.stdout
    return done.stdout
