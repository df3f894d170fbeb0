"""A plan's report: its runs out of the tracking store, into analysis, and what that writes back into the store."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

from analysis.load import load_runs
from analysis.report import write_report
from experiments.output import Output
from experiments.plan import Plan
from experiments.search_file import Search
from robuq.config import ConfigError
from robuq.record.mlflow import MlflowRecorder, TrackingRefused, TrackingUnavailable, read_search


def write_plan_report(plan: Plan, output: Output, tracking_uri: str) -> list[Path]:
    """The files, report.md first. Runs that were recorded under other settings of the plan are left out.

    Raises:
        ConfigError: nothing of the plan was recorded, what was cannot share a table, an artefact is gone, or the
            tracking server cannot be used.
    """
    _check_there(output, tracking_uri, f"robuq sweep {plan.name}")
    try:
        runs = load_runs(tracking_uri, plan.name)
        runs = runs[runs["key"].isin([run.key() for run in plan.runs])].reset_index(drop=True)
        output.check_plan(plan.name)
        output.ensure_writable()
        if runs.empty:
            raise ConfigError(f"none of the plan's {len(plan.runs)} runs is recorded: robuq sweep {plan.name}")
        with output.writing():
            return write_report(
                plan.name,
                runs,
                output.report_folder(plan.name),
                description=plan.description,
                baseline=plan.report.baseline,
                tracking_uri=tracking_uri,
            )
    except (ValueError, FileNotFoundError, TrackingUnavailable) as error:
        raise ConfigError(f"{plan.name}: {error}") from None


def write_search_report(search: Search, output: Output, tracking_uri: str) -> list[Path]:
    """The files, report.md first, from the search's record and the runs that confirm it.

    Raises:
        ConfigError: the search is not recorded, an artefact is gone, or the tracking server cannot be used.
    """
    _check_there(output, tracking_uri, f"robuq search {search.name}")
    from analysis import search_report

    try:
        record, runs = read_search(tracking_uri, search.name), load_runs(tracking_uri, search.name)
        confirmed = {key for row in record.confirmed.values() for key in row}
        runs = runs[runs["key"].isin(confirmed)].reset_index(drop=True)
        output.check_plan(search.name)
        output.ensure_writable()
        with output.writing():
            return search_report.write_search_report(record, runs, output.report_folder(search.name))
    except (ValueError, FileNotFoundError, TrackingUnavailable) as error:
        raise ConfigError(f"{search.name}: {error}") from None


def _check_there(output: Output, tracking_uri: str, command: str) -> None:
    """Reading would make the output folder's own store."""
    if tracking_uri == output.tracking_uri() and not output.tracking_file.exists():
        raise ConfigError(f"nothing is recorded in {output.folder} yet: {command}")


def attach_report(name: str, files: Sequence[Path], tracking_uri: str) -> str | None:
    """Keep the report of a plan or a search beside its runs, too. None, or in one line why the server does not have it:
    the files on the disk are the report all the same."""
    try:
        MlflowRecorder(tracking_uri).attach_report(name, files)
    except (TrackingUnavailable, TrackingRefused) as error:
        return f"the report lies on the disk only: {error}; the same command sends it"
    return None
