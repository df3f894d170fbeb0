"""What `robuq paper`, `table`, `figure` and `provenance` do: recorded runs of the paper's plans in, artefacts out."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import pandas as pd

from analysis.paper import ARTEFACTS, paper_plans, paper_searches
from analysis.paper_folder import Built, Recorded, build_all, gap_lines
from analysis.provenance import Config, provenance, provenance_lines
from analysis.render import render
from analysis.report_files import write_csv, write_text
from analysis.side_by_side import side_by_side, side_by_side_table
from experiments.output import Output
from experiments.plan import load_plan
from robuq.config import ConfigError, did_you_mean
from robuq.record.mlflow import TrackingRefused, TrackingUnavailable, read_runs, read_search
from robuq.record.run_record import RunRecord
from robuq.record.search_record import SearchRecord

FOLDER = "paper"  # under the output folder


def write_paper(
    output: Output,
    tracking_uri: str,
    ids: Sequence[str] = (),
    settings: Sequence[str] = (),
    folder: Path | None = None,
) -> Built:
    """Build the artefacts `ids`, or all, from what was recorded. `settings` override the paper's plans, as `--set`
    does: runs that were recorded under other settings are left out.

    Raises:
        ConfigError: an unknown id, an artefact's file that is gone, or a tracking server that cannot be used.
    """
    for name in ids:
        if name not in ARTEFACTS:
            raise ConfigError(f"no artefact {name!r}{did_you_mean(name, list(ARTEFACTS))}")
    try:
        found = recorded(output, tracking_uri, ids, settings)
        output.ensure_writable()
        with output.writing():
            return build_all(folder or output.folder / FOLDER, found, ids)
    except (FileNotFoundError, TrackingUnavailable, TrackingRefused) as error:
        raise ConfigError(str(error)) from None


def recorded(output: Output, tracking_uri: str, ids: Sequence[str] = (), settings: Sequence[str] = ()) -> Recorded:
    """What the tracking store has of the plans and searches that the artefacts need."""
    wanted = [ARTEFACTS[name] for name in ids] or list(ARTEFACTS.values())
    plans = {name: load_plan(name, list(settings)) for name in paper_plans() if any(name in a.plans for a in wanted)}
    searches = [name for name in paper_searches() if any(name in a.searches for a in wanted)]
    empty = tracking_uri == output.tracking_uri() and not output.tracking_file.exists()  # reading would make it
    runs: dict[str, list[RunRecord]] = {}
    for name, plan in plans.items():
        keys = {run.key() for run in plan.runs}
        runs[name] = [] if empty else [record for record in _runs(tracking_uri, name) if record.key in keys]
    found = {name: record for name in searches if not empty and (record := _search(output, tracking_uri, name))}
    planned = {name: len(plan.runs) for name, plan in plans.items()}
    return Recorded(runs, planned, found, tracking_uri)


def _runs(tracking_uri: str, plan: str) -> list[RunRecord]:
    try:
        return read_runs(tracking_uri, plan)
    except TrackingRefused:
        raise
    except ValueError:  # no such experiment: nothing of the plan was recorded
        return []


def _search(output: Output, tracking_uri: str, name: str) -> SearchRecord | None:
    try:
        return read_search(tracking_uri, name)
    except TrackingRefused:
        raise
    except ValueError:
        return output.search(name)


def check_paper(built: Built, folder: Path) -> tuple[str, list[Path]]:
    """Ours, the published value and the difference side by side: as text for people, and as files in `folder`.

    Raises:
        ConfigError: the record of a run whose bits are shown is gone.
    """
    try:
        data: pd.DataFrame = side_by_side(built.products)
    except (FileNotFoundError, TrackingUnavailable) as error:
        raise ConfigError(str(error)) from None
    text = render(side_by_side_table(data), "markdown")
    page = f"# Ours and the published numbers, side by side\n\n{text}"
    return text, [write_text(folder / "check.md", page), write_csv(data, folder / "check.csv")]


def missing_lines(built: Built) -> list[str]:
    """One line a plan or search that artefacts lack, or have in part, with the command that makes it."""
    return gap_lines(built.gaps)


def provenance_of(file: Path, output: Output, row: str = "", column: str = "") -> list[str]:
    """Lines: the runs behind a file of the paper's folder, or behind one of its rows or cells.

    Raises:
        ConfigError: it has no provenance, or no such row or column.
    """

    def config_of(plan: str, key: str) -> Config | None:
        record = output.record(plan, key)
        return None if record is None else record.config

    try:
        return provenance_lines(provenance(file, row, column), config_of)
    except ValueError as error:
        raise ConfigError(str(error)) from None


def artefact_lines() -> list[str]:
    """The ids, for help and errors."""
    return [f"{artefact.id:20} {artefact.kind:7} {artefact.title}" for artefact in ARTEFACTS.values()]
