"""MLflow's tables in an SQLite file, read as they are: what a search by its client gives, about ten times as fast.

The client has no question whose answer is less than all tags, parameters and metrics of a run, made into one object
each; nor one that tells which runs have changed, which `look_in_file` does. Only tables of a known make are read, and
nothing is ever written: every other store, and a file that another program holds, is left to the client.
"""

from __future__ import annotations

import json
import math
import sqlite3
import sys
from collections.abc import Hashable, Iterator, Mapping
from contextlib import closing, contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any
from urllib.parse import quote

from robuq.record.mlflow.client import SQLITE

KNOWN = ("dc11669786a5",)  # makes of the tables (MLflow's schema revisions) that the questions below were written for
WAIT = 5.0  # seconds for a program that writes

EXPERIMENT = "SELECT experiment_id FROM experiments WHERE name = ? AND workspace = 'default'"
NAMES = "SELECT name FROM experiments WHERE lifecycle_stage = 'active' AND workspace = 'default'"
RUNS = """
    SELECT run_uuid, artifact_uri, start_time, end_time FROM runs
    WHERE experiment_id = ? AND lifecycle_stage = 'active'
    ORDER BY start_time IS NULL, start_time, run_uuid
"""
ALL = "run_uuid IN (SELECT run_uuid FROM runs WHERE experiment_id = ? AND lifecycle_stage = 'active')"
SOME = "run_uuid IN (SELECT value FROM json_each(?))"
# One row a run, {key: value} as JSON, takes half the time of single values.
TEXTS = "SELECT run_uuid, json_group_object(key, value) FROM {table} WHERE {which} GROUP BY run_uuid"
# Not as JSON, where SQLite writes 15 digits only.
NUMBERS = f"SELECT run_uuid, key, value, is_nan FROM latest_metrics WHERE {ALL}"
# A parameter keeps the value that it was given first.
COUNTS = f"SELECT run_uuid, count(*) FROM params WHERE {ALL} GROUP BY run_uuid"


@dataclass(frozen=True)
class TrackedRow:
    """A run that is not deleted, with its last values; times in milliseconds."""

    run: str  # MLflow's id
    root: str  # of its artefacts
    started: int | None
    finished: int | None
    tags: Mapping[str, str]
    params: Mapping[str, str]
    metrics: Mapping[str, float]


@dataclass(frozen=True)
class Look:
    """The runs of an experiment at one moment, oldest first, by MLflow's id. `stamps`: of all of them; a run whose
    stamp is another one has changed. `rows`: of those that were not known with the stamp that they have."""

    stamps: Mapping[str, Hashable]
    rows: Mapping[str, TrackedRow]


def names_in_file(tracking_uri: str) -> list[str] | None:
    """Of all experiments; None: ask the client."""
    try:
        with _opened(tracking_uri) as database:
            return [name for (name,) in database.execute(NAMES)] if database else None
    except sqlite3.Error:
        return None


def look_in_file(tracking_uri: str, experiment: str, known: Mapping[str, Hashable]) -> Look | None:
    """`known`: the stamps of an earlier look. None: ask the client, also where there is no such experiment."""
    try:
        with _opened(tracking_uri) as database:
            found = database.execute(EXPERIMENT, (experiment,)).fetchall() if database else []
            return _look(database, found[0][0], known) if database and found else None
    except sqlite3.Error:
        return None


@contextmanager
def _opened(tracking_uri: str) -> Iterator[sqlite3.Connection | None]:
    """In one transaction: all that is read is of one moment. None: no file of a known make."""
    file = Path(tracking_uri.removeprefix(SQLITE))
    if not tracking_uri.startswith(SQLITE) or not file.is_file():
        yield None
        return
    with closing(sqlite3.connect(f"file:{quote(str(file))}?mode=ro", uri=True, timeout=WAIT)) as database:
        database.isolation_level = None
        database.execute("BEGIN")
        makes = [make for (make,) in database.execute("SELECT version_num FROM alembic_version")]
        yield database if len(makes) == 1 and makes[0] in KNOWN else None


def _look(database: sqlite3.Connection, experiment: int, known: Mapping[str, Hashable]) -> Look:
    tags = _texts(database, "tags", ALL, experiment)
    counts = dict(database.execute(COUNTS, (experiment,)).fetchall())
    metrics = _numbers(database, experiment)
    runs: dict[str, tuple[str, int | None, int | None]] = {
        run: (root, started, finished) for run, root, started, finished in database.execute(RUNS, (experiment,))
    }
    stamps = {
        run: (*own, hash((tags.get(run), counts.get(run), frozenset(metrics.get(run, {}).items()))))
        for run, own in runs.items()
    }
    changed = [run for run, stamp in stamps.items() if known.get(run) != stamp]
    which: tuple[str, Any] = (ALL, experiment) if len(changed) == len(stamps) else (SOME, json.dumps(changed))
    params = _texts(database, "params", *which)
    rows = [
        TrackedRow(run, *runs[run], _parsed(tags, run), _parsed(params, run), metrics.get(run, {})) for run in changed
    ]
    return Look(stamps, {row.run: row for row in rows})


def _texts(database: sqlite3.Connection, table: str, which: str, value: Any) -> dict[str, str]:
    return dict(database.execute(TEXTS.format(table=table, which=which), (value,)).fetchall())


def _numbers(database: sqlite3.Connection, experiment: int) -> dict[str, dict[str, float]]:
    """The one `nan` of Python's, which is equal to itself in collections and has one hash."""
    found: dict[str, dict[str, float]] = {}
    for run, name, number, is_nan in database.execute(NUMBERS, (experiment,)):
        found.setdefault(run, {})[sys.intern(name)] = math.nan if is_nan else number
    return found


def _parsed(texts: Mapping[str, str], run: str) -> dict[str, str]:
    values: dict[str, str] = json.loads(texts[run]) if run in texts else {}
    return values
