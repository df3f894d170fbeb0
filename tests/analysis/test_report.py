from __future__ import annotations

import json
import re
from collections.abc import Callable
from pathlib import Path

import pandas as pd
import pytest
from PIL import Image

from analysis.load import runs_frame
from analysis.report import write_report
from robuq.record.run_record import RunRecord

Maker = Callable[..., RunRecord]

NAMES = {
    "report.md", "manifest.json", "components.md", "components.tex", "components.html", "components.csv",
    *(f"{figure}.{form}" for figure in ("distributions", "samples", "curves") for form in ("pdf", "png", "tex", "csv")),
}  # fmt: skip


@pytest.fixture(scope="module")
def report(runs: pd.DataFrame, recorded: str, tmp_path_factory: pytest.TempPathFactory) -> list[Path]:
    folder = tmp_path_factory.mktemp("report")
    return write_report("digits_components", runs, folder, description="Synthetic.", tracking_uri=recorded)


@pytest.fixture(scope="module")
def page(report: list[Path]) -> str:
    return report[0].read_text(encoding="utf-8")


def test_all_files_are_written_and_named(report: list[Path]) -> None:
    assert report[0].name == "report.md"
    assert {file.name for file in report} == NAMES == {file.name for file in report[0].parent.iterdir()}


def test_equal_runs_give_equal_bytes(report: list[Path], runs: pd.DataFrame, recorded: str, tmp_path: Path) -> None:
    shuffled = runs.sample(frac=1, random_state=1)
    again = write_report("digits_components", shuffled, tmp_path, description="Synthetic.", tracking_uri=recorded)
    assert [file.name for file in again] == [file.name for file in report]
    different = [a.name for a, b in zip(report, again, strict=True) if a.read_bytes() != b.read_bytes()]
    assert different == []


def test_figures_are_one_column_wide_with_embedded_fonts(report: list[Path]) -> None:
    folder = report[0].parent
    for name in ("distributions", "samples", "curves"):
        with Image.open(folder / f"{name}.png") as image:
            assert image.width == 990  # 3.3 inches at 300 dpi
        assert b"/Type3" not in (folder / f"{name}.pdf").read_bytes()


def test_every_link_leads_somewhere(report: list[Path], page: str) -> None:
    links = re.findall(r"\]\(([^)]+)\)", page)
    assert len(links) >= 12
    assert [link for link in links if not (report[0].parent / link).is_file()] == []


def test_the_page_says_what_was_run_and_what_failed(page: str) -> None:
    assert "24 finished runs, 1 failed: 6 variants at A4, A2" in page
    assert "lsq W1.58A2 seed 0" in page
    assert "loss is not finite at step 120" in page
    assert "protocol `aaaaaaaaaaaa`" in page
    assert "one learning rate (0.001); it was not tuned" in page
    assert "its floor, 1000 held-out real images in place of drawn ones, is 1.50" in page
    assert "all of them start from one pre-trained network" in page


def page_of(records: list[RunRecord], folder: Path) -> str:
    return write_report("rates", runs_frame(records), folder)[0].read_text(encoding="utf-8")


def test_the_page_says_how_learning_rates_were_chosen(make_record: Maker, tmp_path: Path) -> None:
    slow, fast, other = (
        make_record(name, 2, 0, lr=lr) for name, lr in (("minmax", 1e-3), ("minmax", 2e-3), ("robuq_uniform", 2e-3))
    )
    slow = slow.updated(metrics={**slow.metrics, "validation_loss": 0.01})
    text = page_of([slow, fast, other], tmp_path)
    assert "Learning rates 0.001, 0.002 were tried; a row shows the one with its lowest mean loss on validation" in text
    assert "(minmax W1.58A2: 0.001, robuq_uniform W1.58A2: 0.002)" in text
    text = page_of([slow, other], tmp_path)
    assert "one learning rate, not all with the same; none was tuned (minmax W1.58A2: 0.001, robuq_uniform" in text


def test_figures_show_the_tables_runs(make_record: Maker, tokens_file: Path, tmp_path: Path) -> None:
    """The tokens of the rate that lost, which would come first, are gone."""
    kept, lost = (make_record("baseline", 2, 0, lr=lr) for lr in (2e-3, 1e-3))
    kept = kept.updated(metrics={**kept.metrics, "validation_loss": 0.01}, artifacts={"tokens.npz": str(tokens_file)})
    lost = lost.updated(artifacts={"tokens.npz": str(tmp_path / "gone.npz")})
    page_of([kept, lost], tmp_path)
    assert (tmp_path / "distributions.csv").is_file()


def test_the_manifest_names_every_run_once(report: list[Path], runs: pd.DataFrame) -> None:
    manifest = json.loads((report[0].parent / "manifest.json").read_text())
    named = [key for row in manifest["rows"] for key in row["runs"]] + manifest["failed"]
    assert sorted(named) == sorted(runs["key"])
    assert manifest["protocol"] == "aaaaaaaaaaaa"


def test_the_table_as_csv_has_full_precision(report: list[Path], runs: pd.DataFrame) -> None:
    data = pd.read_csv(report[0].parent / "components.csv", float_precision="round_trip")
    own = runs[(runs["variant"] == "minmax") & (runs["act_bits"] == 4)]
    row = data[(data["variant"] == "minmax") & (data["bits"] == 4)].iloc[0]
    assert row["held_out_loss"] == pytest.approx(own["held_out_loss"].mean(), rel=1e-15)


def test_without_artefacts_the_table_remains(runs: pd.DataFrame, tmp_path: Path) -> None:
    nothing = pd.Series([None] * len(runs), dtype="str")
    bare = runs.assign(samples=nothing, tokens=nothing, history=nothing)
    files = write_report("bare", bare, tmp_path)
    assert {file.suffix for file in files} == {".md", ".tex", ".html", ".csv", ".json"}
    assert "these figures need: distributions, samples, curves" in files[0].read_text(encoding="utf-8")


def test_nothing_finished_is_an_error_of_one_line(runs: pd.DataFrame, tmp_path: Path) -> None:
    for nothing in (runs[runs["status"] == "failed"], runs_frame([])):
        with pytest.raises(ValueError, match=r"^no finished runs.*$"):
            write_report("none", nothing, tmp_path)
