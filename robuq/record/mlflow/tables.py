"""MLflow's tables in an SQLite file, read as they are: what a search by its client gives, about ten times as fast.

The client has no question whose answer is less than all tags, parameters and metrics of a run, made into one object
each; nor one that tells which runs have changed, so that nothing could be kept. Only tables of a known make are read,
and nothing is ever written: every other store, and a file that another program holds, is left to the client.
"""

from __future__ import annotations

import json
import math
import sqlite3
import sys
from collections.abc import Iterator, Mapping
from contextlib import closing, contextmanager
from dataclasses import dataclass
from pathlib import Path
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
OF_RUNS = """
    FROM {table} WHERE run_uuid IN (SELECT run_uuid FROM runs WHERE experiment_id = ? AND lifecycle_stage = 'active')
"""
# One row a run, {key: value} as JSON, takes half the time of single values.
TEXTS = f"SELECT run_uuid, json_group_object(key, value) {OF_RUNS} GROUP BY run_uuid"
NUMBERS = f"SELECT run_uuid, key, value, is_nan {OF_RUNS}"  # not as JSON, where SQLite writes 15 digits only


@dataclass(frozen=True)
class TrackedRow:
    """A run that is not deleted, with its last values; times in milliseconds."""

    root: str  # of its artefacts
    started: int | None
    finished: int | None
    tags: Mapping[str, str]
    params: Mapping[str, str]
    metrics: Mapping[str, float]


def names_in_file(tracking_uri: str) -> list[str] | None:
    """Of all experiments; None: ask the client."""
    try:
        with _opened(tracking_uri) as database:
            return [name for (name,) in database.execute(NAMES)] if database else None
    except sqlite3.Error:
        return None


def rows_in_file(tracking_uri: str, experiment: str) -> list[TrackedRow] | None:
    """The runs of an experiment, oldest first; None: ask the client, also where there is no such experiment."""
    try:
        with _opened(tracking_uri) as database:
            found = database.execute(EXPERIMENT, (experiment,)).fetchall() if database else []
            return _rows(database, found[0][0]) if database and found else None
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


def _rows(database: sqlite3.Connection, experiment: int) -> list[TrackedRow]:
    tags, params = (_texts(database, experiment, table) for table in ("tags", "params"))
    metrics = _numbers(database, experiment)
    return [
        TrackedRow(root, started, finished, _parsed(tags, run), _parsed(params, run), metrics.get(run, {}))
        for run, root, started, finished in database.execute(RUNS, (experiment,))
    ]


def _texts(database: sqlite3.Connection, experiment: int, table: str) -> dict[str, str]:
    return dict(database.execute(TEXTS.format(table=table), (experiment,)).fetchall())


def _numbers(database: sqlite3.Connection, experiment: int) -> dict[str, dict[str, float]]:
    found: dict[str, dict[str, float]] = {}
    for run, name, value, is_nan in database.execute(NUMBERS.format(table="latest_metrics"), (experiment,)):
        found.setdefault(run, {})[sys.intern(name)] = math.nan if is_nan else value
    return found


def _parsed(texts: Mapping[str, str], run: str) -> dict[str, str]:
    values: dict[str, str] = json.loads(texts[run]) if run in texts else {}
    return values
