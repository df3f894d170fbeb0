"""Records out of a tracking server: all runs of an experiment by one search, all of one run from its artefacts."""

from __future__ import annotations

import functools
import gc
import json
from collections.abc import Hashable, Iterable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any
from urllib.parse import unquote, urlsplit

from robuq.messages import redacted
from robuq.record.artifact_files import read_lines
from robuq.record.layout import FAILURE, config_of, metrics_of, seconds_of
from robuq.record.mlflow.client import BATCH, errors_of, experiment_id, find_run, search_runs
from robuq.record.mlflow.store_file import connect_existing
from robuq.record.mlflow.tables import Look, TrackedRow, look_in_file, names_in_file
from robuq.record.run_record import RunRecord
from robuq.record.search_layout import RECORD_FILE, SEARCH
from robuq.record.search_record import SearchRecord


def read_runs(tracking_uri: str, experiment: str) -> list[RunRecord]:
    """Every run that keeps a record, oldest first, from searches alone: neither the report nor runs of other makers.

    `config` holds only the settings that are parameters, `history` and `layers` are empty, and `artifacts` maps
    file names to locations for `fetch_artifact`; `read_record` gives all of one run.

    Raises:
        ValueError: no such experiment.
        TrackingUnavailable: the server does not answer.
    """
    return list(read_changed(tracking_uri, experiment, NO_RUNS).records.values())


@dataclass(frozen=True)
class KnownRuns:
    """The records of an experiment as `read_runs` gives them, by MLflow's id of the run, and the stamps of all runs, by
    which `read_changed` knows those that it need not read again."""

    records: Mapping[str, RunRecord]
    stamps: Mapping[str, Hashable]

    @functools.cached_property
    def by_key(self) -> Mapping[str, RunRecord]:
        return {record.key: record for record in self.records.values()}

    @functools.cached_property
    def fingerprint(self) -> int:
        """Of all runs: another one whenever any of them has changed. It holds in this process alone."""
        return hash(tuple(self.stamps.items()))

    def fingerprint_of(self, keys: Iterable[str]) -> int:
        """Of the runs with these keys, as far as they are there."""
        return hash(tuple((run, self.stamps[run]) for key in keys if (run := self._runs.get(key)) is not None))

    @functools.cached_property
    def _runs(self) -> Mapping[str, str]:
        return {record.key: run for run, record in self.records.items()}


NO_RUNS = KnownRuns({}, {})


def read_changed(tracking_uri: str, experiment: str, known: KnownRuns) -> KnownRuns:
    """What `read_runs` would give; records of runs that have not changed since `known` are taken from there. The very
    same object where none has.

    Raises:
        ValueError: no such experiment.
        TrackingUnavailable: the server does not answer.
    """
    with _collector_paused():
        look = look_in_file(tracking_uri, experiment, known.stamps)
        look = look or _asked(tracking_uri, experiment, known.stamps)
        if list(look.stamps.items()) == list(known.stamps.items()):
            return known
        fresh = {run: _light_record(row) for run, row in look.rows.items() if "robuq.identity" in row.tags}
        found = {run: record for run, record in known.records.items() if run not in look.rows} | fresh
        return KnownRuns({run: found[run] for run in look.stamps if run in found}, look.stamps)


def _asked(tracking_uri: str, experiment: str, known: Mapping[str, Hashable]) -> Look:
    """As `look_in_file`, by the client, which always sends all of all runs."""
    with errors_of(tracking_uri):
        client = connect_existing(tracking_uri)
        found = experiment_id(client, tracking_uri, experiment)
        rows = [_row_of(run) for run in search_runs(client, found)]
    stamps = {row.run: _stamp_of(row) for row in rows}
    return Look(stamps, {row.run: row for row in rows if known.get(row.run) != stamps[row.run]})


def _row_of(run: Any) -> TrackedRow:
    info, data = run.info, run.data
    return TrackedRow(
        info.run_id, info.artifact_uri, info.start_time, info.end_time, data.tags, data.params, data.metrics
    )


def _stamp_of(row: TrackedRow) -> Hashable:
    """Numbers as text: "not a number" differs from itself."""
    numbers = {name: repr(value) for name, value in row.metrics.items()}
    parts = (frozenset(part.items()) for part in (row.tags, row.params, numbers))
    return row.root, row.started, row.finished, hash(tuple(parts))


def experiment_names(tracking_uri: str) -> list[str]:
    """Of all plans and searches that the server has, sorted.

    Raises:
        TrackingUnavailable: the server does not answer.
    """
    names = names_in_file(tracking_uri)
    return sorted(set(_asked_names(tracking_uri) if names is None else names) - {"Default"})  # MLflow's own


def _asked_names(tracking_uri: str) -> list[str]:
    with errors_of(tracking_uri):
        client, token = connect_existing(tracking_uri), None
        names: list[str] = []
        while True:
            page = client.search_experiments(max_results=BATCH, page_token=token)
            names += [found.name for found in page]
            token = page.token
            if not token:
                return names


def read_record(tracking_uri: str, light: RunRecord) -> RunRecord:
    """All of a record that `read_runs` gave, from record.json; `artifacts` keep their locations."""
    text = fetch_artifact(tracking_uri, light.artifacts["record.json"]).read_text()
    return RunRecord.parse(json.loads(text)).updated(artifacts=light.artifacts)


def read_search(tracking_uri: str, name: str) -> SearchRecord:
    """The search of an experiment, whole, from search.json.

    Raises:
        ValueError: no such experiment, or it holds no search.
        TrackingUnavailable: the server does not answer.
        FileNotFoundError: its artefact is gone.
    """
    with errors_of(tracking_uri):
        client = connect_existing(tracking_uri)
        run = find_run(client, experiment_id(client, tracking_uri, name), SEARCH, name)
        if run is None:
            raise ValueError(f"experiment {name!r} on {redacted(tracking_uri)} holds no search")
        location = f"{run.info.artifact_uri}/{RECORD_FILE}"
    return SearchRecord.parse(json.loads(fetch_artifact(tracking_uri, location).read_text()), RECORD_FILE)


def read_history(tracking_uri: str, location: str) -> list[dict[str, Any]]:
    """The rows of a history.jsonl or layers.jsonl artefact."""
    return read_lines(fetch_artifact(tracking_uri, location))


def fetch_artifact(tracking_uri: str, location: str) -> Path:
    """A local file for a location from `RunRecord.artifacts`; downloaded only if it is not on this machine.

    Raises:
        FileNotFoundError: a local artefact that is gone.
    """
    parts = urlsplit(location)
    if parts.scheme in ("", "file"):
        file = Path(unquote(parts.path))
        if not file.is_file():
            raise FileNotFoundError(f"artefact {file} is gone: restore it, or send the records to a new tracking store")
        return file
    with errors_of(tracking_uri):
        from mlflow.artifacts import download_artifacts

        return Path(download_artifacts(artifact_uri=location, tracking_uri=tracking_uri))


def _light_record(row: TrackedRow) -> RunRecord:
    tags: Mapping[str, Any] = row.tags
    return RunRecord(
        **json.loads(tags["robuq.identity"]),
        status=tags["robuq.status"],
        failure=tags.get(FAILURE),
        config=config_of(row.params),
        stages=json.loads(tags["robuq.stages"]),
        seconds=seconds_of(row.metrics),
        metrics=metrics_of(row.metrics),
        artifacts={name: f"{row.root}/{name}" for name in _parsed(tags["robuq.files"])},
        git={key: tags[name] for key in ("commit", "dirty") if (name := f"mlflow.source.git.{key}") in tags},
        versions=_parsed(tags["robuq.versions"]),
        started=(row.started or 0) / 1000,
        finished=(row.finished or 0) / 1000,
    )


@functools.lru_cache(maxsize=64)
def _parsed(text: str) -> Any:
    """Of texts that most runs of a plan share. What is made of it is a copy."""
    return json.loads(text)


@contextmanager
def _collector_paused() -> Iterator[None]:
    """Without Python's garbage collector: thousands of runs are millions of objects with hardly a cycle among them,
    which it would visit again and again. Reference counts free what is no longer used all the same."""
    was_on = gc.isenabled()
    gc.disable()
    try:
        yield
    finally:
        if was_on:
            gc.enable()
