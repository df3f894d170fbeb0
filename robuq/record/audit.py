"""What a tracking server holds, as plain rows, to be compared with what lies in the output folder."""

from __future__ import annotations

import shutil
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from robuq.record.mlflow import PAGE, connect_existing, errors_of, sqlite_uri
from robuq.record.search_layout import EVALUATION, SEARCH
from robuq.storage_fault import reading


@dataclass(frozen=True)
class TrackedRun:
    """One run that is not deleted. `identity`: what may be there once in its experiment; none of other makers' runs."""

    experiment: str
    run_id: str
    status: str
    identity: tuple[str, ...] | None  # ("run", key), ("search", name), ("evaluation", search, number), ("report", plan)


def snapshot(file: Path, folder: Path) -> str:
    """The URI of a copy of an SQLite store in `folder`: reading the original might write, if only to finish what a
    killed process began."""
    for part in file.parent.glob(f"{file.name}*"):
        with reading(part):
            shutil.copyfile(part, folder / part.name)
    return sqlite_uri(folder / file.name)


def tracked_runs(tracking_uri: str) -> list[TrackedRun]:
    """Oldest first in each experiment.

    Raises:
        TrackingUnavailable: the server does not answer, or the store cannot be read.
        TrackingRefused: the URI names no store that can be used.
    """
    with errors_of(tracking_uri):
        client = connect_existing(tracking_uri)
        return [
            TrackedRun(experiment.name, str(run.info.run_id), str(run.info.status), _identity(run.data.tags))
            for experiment in _pages(client.search_experiments, 1000)
            for run in _pages(
                client.search_runs, PAGE, [experiment.experiment_id], order_by=["attributes.start_time ASC"]
            )
        ]


def _pages(ask: Any, size: int, *arguments: Any, **settings: Any) -> Iterator[Any]:
    token = None
    while True:
        page = ask(*arguments, max_results=size, page_token=token, **settings)
        yield from page
        token = page.token
        if not token:
            return


def _identity(tags: dict[str, str]) -> tuple[str, ...] | None:
    if "robuq.key" in tags:
        return "run", tags["robuq.key"]
    if EVALUATION in tags:
        return "evaluation", tags.get(f"{SEARCH}.of", ""), tags[EVALUATION]
    if SEARCH in tags:
        return "search", tags[SEARCH]
    return ("report", tags["robuq.report"]) if "robuq.report" in tags else None


def end_run(tracking_uri: str, run_id: str) -> None:
    """Mark a run that nobody works on as KILLED."""
    with errors_of(tracking_uri):
        connect_existing(tracking_uri).set_terminated(run_id, "KILLED")


def delete_run(tracking_uri: str, run_id: str) -> None:
    """MLflow can undo it."""
    with errors_of(tracking_uri):
        connect_existing(tracking_uri).delete_run(run_id)
