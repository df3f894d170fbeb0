"""A plan's report: its runs out of the tracking store, into analysis, and what that writes back into the store."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

from analysis.load import load_runs
from analysis.report import write_report
from experiments.output import Output
from experiments.plan import Plan
from robuq.config import ConfigError
from robuq.record.mlflow import MlflowRecorder, TrackingRefused, TrackingUnavailable


def write_plan_report(plan: Plan, output: Output, tracking_uri: str) -> list[Path]:
    """The files, report.md first. Runs that were recorded under other settings of the plan are left out.

    Raises:
        ConfigError: nothing of the plan was recorded, what was cannot share a table, an artefact is gone, or the
            tracking server cannot be used.
    """
    if tracking_uri == output.tracking_uri() and not output.tracking_file.exists():  # reading would make it
        raise ConfigError(f"nothing is recorded in {output.folder} yet: robuq sweep {plan.name}")
    try:
        runs = load_runs(tracking_uri, plan.name)
        runs = runs[runs["key"].isin([run.key() for run in plan.runs])].reset_index(drop=True)
        output.ensure_writable()
        if runs.empty:
            raise ConfigError(f"none of the plan's {len(plan.runs)} runs is recorded: robuq sweep {plan.name}")
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


def attach_plan_report(plan: Plan, files: Sequence[Path], tracking_uri: str) -> str | None:
    """Keep the report beside the plan's runs, too. None, or in one line why the server does not have it: the files
    on the disk are the report all the same."""
    try:
        MlflowRecorder(tracking_uri).attach_report(plan.name, files)
    except (TrackingUnavailable, TrackingRefused) as error:
        return f"the report lies on the disk only: {error}; the same command sends it"
    return None
