from __future__ import annotations

import json
import re
from collections.abc import Callable
from pathlib import Path

import pandas as pd
import pytest
from PIL import Image

from analysis.load import runs_frame
from analysis.search_report import write_search_report
from robuq.record.search_record import SearchRecord

SearchMaker = Callable[..., SearchRecord]
Confirm = Callable[..., tuple[SearchRecord, pd.DataFrame]]
FIGURES = ("bits", "history", "rungs", "sensitivity")
NAMES = {
    "report.md", "manifest.json", "evaluations.csv", "correlations.csv",
    *(f"{table}.{form}" for table in ("allocations", "predictors") for form in ("md", "tex", "html", "csv")),
    *(f"{figure}.{form}" for figure in FIGURES for form in ("pdf", "png", "tex", "csv")),
}  # fmt: skip


@pytest.fixture(scope="module")
def confirmed(make_search: SearchMaker, confirm: Confirm) -> tuple[SearchRecord, pd.DataFrame]:
    return confirm(make_search(2, 24), seeds=(0, 1, 2, 3, 4))


@pytest.fixture(scope="module")
def report(confirmed: tuple[SearchRecord, pd.DataFrame], tmp_path_factory: pytest.TempPathFactory) -> list[Path]:
    return write_search_report(*confirmed, tmp_path_factory.mktemp("search"))


@pytest.fixture(scope="module")
def page(report: list[Path]) -> str:
    return report[0].read_text(encoding="utf-8")


def test_all_files_are_written_and_named(report: list[Path]) -> None:
    assert report[0].name == "report.md"
    assert {file.name for file in report} == NAMES == {file.name for file in report[0].parent.iterdir()}


def test_equal_records_give_equal_bytes(
    report: list[Path], confirmed: tuple[SearchRecord, pd.DataFrame], tmp_path: Path
) -> None:
    record, runs = confirmed
    again = write_search_report(record, runs.sample(frac=1, random_state=1), tmp_path)
    assert [a.name for a, b in zip(report, again, strict=True) if a.read_bytes() != b.read_bytes()] == []


def test_figures_are_one_column_wide_with_embedded_fonts(report: list[Path]) -> None:
    for name in FIGURES:
        with Image.open(report[0].parent / f"{name}.png") as image:
            assert image.width == 990  # 3.3 inches at 300 dpi
        assert b"/Type3" not in (report[0].parent / f"{name}.pdf").read_bytes()


def test_every_link_leads_somewhere(report: list[Path], page: str) -> None:
    links = re.findall(r"\]\(([^)]+)\)", page)
    assert len(links) >= 18
    assert [link for link in links if not (report[0].parent / link).is_file()] == []


def test_the_page_says_what_was_run(page: str) -> None:
    assert "budget: 2 bits on average by MACs" in page
    assert "space `policy`; sampler TPE, seed 0 (n_startup_trials 10, multivariate True)" in page
    assert "rungs: warmed-up network, no training; after 60 steps of QAT; after 300 steps of QAT" in page
    assert re.search(r"24 of 24 evaluations: \d+ finished, \d+ pruned", page)
    assert "measuring the sensitivity took 6 s (loss 4 s, output_error 0.5 s, second_order 1.5 s): 16.7 %" in page
    assert "confirmed by 25 runs, seeds 0, 1, 2, 3, 4" in page


def test_the_page_says_what_came_out(page: str) -> None:
    lines = [line for line in page.splitlines() if line.startswith("- Held-out loss, ")]
    names = [line.partition(", ")[2].partition(":")[0] for line in lines]
    assert names[:3] == ["Search minus exact", "Search minus uniform", "Search minus exact trained longer"]
    assert re.search(r"Search minus uniform: −0\.00\d\d ± 0\.000\d \(n = 5, p .* after Holm\): better", page)


def test_no_number_is_written_as_nan(page: str) -> None:
    assert not re.search(r"\bnan\b", page)


def test_the_manifest_names_the_confirmed_runs(
    report: list[Path], confirmed: tuple[SearchRecord, pd.DataFrame]
) -> None:
    record, _ = confirmed
    manifest = json.loads((report[0].parent / "manifest.json").read_text())
    assert manifest["runs"] == record.confirmed
    assert manifest["not_finished"] == []
    assert manifest["protocol"] == "aaaaaaaaaaaa"


def test_evaluations_as_csv_have_full_precision(
    report: list[Path], confirmed: tuple[SearchRecord, pd.DataFrame]
) -> None:
    record, _ = confirmed
    data = pd.read_csv(report[0].parent / "evaluations.csv", float_precision="round_trip")
    assert data["predicted"].to_list() == [one.predicted for one in record.evaluations]


def begun(make_search: SearchMaker) -> SearchRecord:
    """Without evaluations, and so with few figures."""
    return make_search(1, 6, sensitivity={}, predictors=[]).updated(evaluations=[], winner=None)


def bare(record: SearchRecord, folder: Path, runs: pd.DataFrame | None = None) -> str:
    files = write_search_report(record, runs_frame([]) if runs is None else runs, folder)
    links = re.findall(r"\]\(([^)]+)\)", text := files[0].read_text(encoding="utf-8"))
    assert [link for link in links if not (folder / link).is_file()] == []
    assert not re.search(r"\bnan\b", text)
    return text


def test_without_confirmed_runs_nothing_is_claimed(make_search: SearchMaker, tmp_path: Path) -> None:
    text = bare(begun(make_search).updated(confirmed={"exact": ["a" * 16]}), tmp_path)
    assert "No run confirms this search yet." in text
    assert "allocations.csv" not in text
    assert json.loads((tmp_path / "manifest.json").read_text())["not_finished"] == ["a" * 16]


def test_all_failed_evaluations_are_a_report_of_failures(make_search: SearchMaker, tmp_path: Path) -> None:
    text = bare(make_search(1, 6, state="failed"), tmp_path)
    assert "6 of 6 evaluations: 6 failed" in text
    assert "there is no winner" in text
    assert text.count("loss is not finite at step 3") == 6
    assert (
        "nothing to draw for: history of the search, importance of the parameters, what a cheap rung says of the last"
        in text
    )


def test_a_search_that_only_began_has_a_report(make_search: SearchMaker, tmp_path: Path) -> None:
    text = bare(begun(make_search), tmp_path)
    assert "0 of 6 evaluations" in text


def test_two_objectives_have_a_front_in_place_of_a_history(
    make_search: SearchMaker, confirm: Confirm, tmp_path: Path
) -> None:
    record = make_search(1, 8, rungs=(60,), objectives=("loss", "average_bits"), front=[0, 1], sensitivity={})
    text = bare(*reversed_arguments(confirm(record, seeds=(0,)), tmp_path))
    assert "## Pareto front" in text
    assert "## History" not in text
    assert "(n = 1): one pair of runs gives no interval" in text


def reversed_arguments(
    made: tuple[SearchRecord, pd.DataFrame], folder: Path
) -> tuple[SearchRecord, Path, pd.DataFrame]:
    record, runs = made
    return record, folder, runs


def test_a_winner_that_is_a_baseline_is_called_so(make_search: SearchMaker, confirm: Confirm, tmp_path: Path) -> None:
    record, runs = confirm(make_search(1, 4, predictors=[], sensitivity={}), seeds=(0, 1, 2))
    same = record.updated(
        winner=2, equal_to=["exact"], confirmed=record.confirmed | {"search": record.confirmed["exact"]}
    )
    text = bare(same, tmp_path, runs)
    assert "its bits are those of Exact" in text
    assert "Search (= Exact)" in text
    assert "Search minus exact:" not in text  # there is nothing to tell apart
    assert "Search minus uniform:" in text


def test_a_failed_confirmation_is_said(make_search: SearchMaker, confirm: Confirm, tmp_path: Path) -> None:
    record, runs = confirm(begun(make_search), seeds=(0, 1))
    broken = runs["variant"].eq("search") & runs["seed"].eq(1)
    runs = runs.assign(
        status=runs["status"].mask(broken, "failed"), failure=runs["failure"].mask(broken, "loss is not finite")
    )
    text = bare(record, tmp_path, runs)
    assert "- search seed 1 (`" in text
    assert "confirmed by 9 runs" in text
