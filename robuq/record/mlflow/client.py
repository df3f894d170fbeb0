"""MLflow's client: opened, asked, and its errors turned into ours. It is imported only when it is used."""

from __future__ import annotations

import logging
import os
import sqlite3
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from robuq.addresses import address_fault
from robuq.config import Config
from robuq.messages import redacted
from robuq.storage_fault import StorageFault, is_half_made, is_locked_out, is_no_database, storage_fault

BATCH = 1000  # metrics, parameters and tags in one request: MLflow's limit
PAGE = 5000  # runs in one search request
SOURCE = {"mlflow.source.type": "LOCAL", "mlflow.source.name": "robuq"}  # tags of every run
SQLITE = "sqlite:///"
DATABASES = ("postgresql", "mysql")  # beginnings of the URIs of database servers
CONNECT_SECONDS = 10  # for a database server to take a connection
DATABASE_LOGS = ("mlflow.store.db.utils", "psycopg")
SETTINGS = {  # of MLflow, unless the environment has others
    "MLFLOW_DISABLE_TELEMETRY": "true",
    "MLFLOW_HTTP_REQUEST_TIMEOUT": "30",  # seconds; the default, 120, holds the end of a sweep up
    "MLFLOW_ENABLE_ARTIFACTS_PROGRESS_BAR": "false",
}
# Always none: a request to make a run, whose answer was lost, would make a second. What fails is sent again by us,
# after looking at what the server has.
RETRIES = "MLFLOW_HTTP_REQUEST_MAX_RETRIES"
REFUSALS = ("INVALID_PARAMETER_VALUE", "BAD_REQUEST")  # error codes that trying again does not cure


class TrackingUnavailable(RuntimeError):
    """The tracking server cannot be used now. The record is not lost: keep it and send it again later.

    `fault`: what the disk has against it, where that is the reason.
    """

    def __init__(self, tracking_uri: str, reason: str, fault: StorageFault | None = None) -> None:
        super().__init__(f"tracking server {redacted(tracking_uri)} is not available ({reason})")
        self.fault = fault


class TrackingRefused(ValueError):
    """The tracking server understands but refuses what is asked, or cannot be used as it is named: no later attempt
    will do better."""


def sqlite_uri(file: Path) -> str:
    """The tracking URI of an SQLite file; absolute, because a relative one follows the working directory."""
    return f"{SQLITE}{file.resolve()}"


def sqlite_file(tracking_uri: str) -> Path | None:
    """None where the URI names no plain file: a server, a database in memory, settings behind a question mark."""
    name = tracking_uri.removeprefix(SQLITE)
    plain = tracking_uri.startswith(SQLITE) and name not in ("", ":memory:") and "?" not in name
    return Path(name) if plain else None


def connect(tracking_uri: str) -> Any:
    """An MlflowClient that gives up soon, keeps its start-up messages to itself and reports to nobody.

    Raises:
        TrackingUnavailable: the store cannot be opened.
        TrackingRefused: the URI names no store that can be used.
    """
    for name, value in SETTINGS.items():
        os.environ.setdefault(name, value)
    os.environ[RETRIES] = "0"
    if "://" in tracking_uri and (fault := address_fault(tracking_uri)):
        raise TrackingRefused(fault)
    with errors_of(tracking_uri):
        if tracking_uri.startswith(DATABASES):
            _check_that_it_answers(tracking_uri)
        from mlflow import MlflowClient

        return MlflowClient(tracking_uri)


def _check_that_it_answers(database: str) -> None:
    """MLflow itself tries for minutes before it gives up."""
    from sqlalchemy import create_engine
    from sqlalchemy.pool import NullPool

    create_engine(database, poolclass=NullPool, connect_args={"connect_timeout": CONNECT_SECONDS}).connect().close()


@contextmanager
def errors_of(tracking_uri: str) -> Iterator[None]:
    """Turn MLflow's errors into ours. Their text is dropped: it quotes the URI with its password."""
    from mlflow.exceptions import MlflowException
    from sqlalchemy.exc import SQLAlchemyError

    try:
        with _quiet(*DATABASE_LOGS):
            yield
    except MlflowException as error:
        if error.error_code in REFUSALS and not _is_lost_connection(error.__cause__):
            raise TrackingRefused(f"{redacted(tracking_uri)} refused the request: {error.error_code}") from None
        raise _unavailable(tracking_uri, error, str(error.error_code)) from None
    except ModuleNotFoundError as error:  # of a database's driver
        raise TrackingRefused(f"{redacted(tracking_uri)} needs the package {error.name}: install it") from None
    except (SQLAlchemyError, sqlite3.Error, OSError) as error:  # OSError: connections, and the artefacts' disk
        raise _unavailable(tracking_uri, error, type(error).__name__) from None


def _unavailable(tracking_uri: str, error: Exception, reason: str) -> TrackingUnavailable:
    fault = storage_fault(error, place_of(tracking_uri))
    if is_locked_out(error):
        reason = "another program has locked it: end that program, or wait until it is done"
    if is_no_database(error):
        reason = "it is damaged, or no SQLite database: restore it, or move it away and all records are sent anew"
    if isinstance(error, sqlite3.Error) and getattr(error, "sqlite_errorcode", 0) == sqlite3.SQLITE_CANTOPEN:
        reason = "it cannot be opened: look after its folder and its permissions"
    if is_half_made(error):
        reason = "its tables are half-made: end what makes them, or move it away and all records are sent anew"
    return TrackingUnavailable(tracking_uri, reason if fault is None else str(fault), fault)


def _is_lost_connection(error: BaseException | None) -> bool:
    """Of a database: MLflow calls some of these a bad request."""
    from sqlalchemy.exc import DBAPIError, InterfaceError

    return isinstance(error, InterfaceError) or (isinstance(error, DBAPIError) and error.connection_invalidated)


def place_of(tracking_uri: str) -> Path:
    """The folder of an SQLite store; elsewhere that of temporary files, which is all that is written here."""
    if tracking_uri.startswith(SQLITE):
        return Path(tracking_uri.removeprefix(SQLITE)).parent
    return Path(tempfile.gettempdir())


@contextmanager
def _quiet(*names: str) -> Iterator[None]:
    """Nothing from these loggers: a new store announces each of its tables, a lost one writes a traceback, and what of
    it matters is in the error."""
    before = [(log := logging.getLogger(name), log.level) for name in names]
    for log, _ in before:
        log.setLevel(logging.CRITICAL + 1)
    try:
        yield
    finally:
        for log, level in before:
            log.setLevel(level)


def search_runs(client: Any, experiment: str, condition: str = "") -> Iterator[Any]:
    """Runs that are not deleted, oldest first."""
    token = None
    while True:
        page = client.search_runs(
            [experiment], condition, max_results=PAGE, order_by=["attributes.start_time ASC"], page_token=token
        )
        yield from page
        token = page.token
        if not token:
            return


def find_run(client: Any, experiment: str, tag: str, value: str) -> Any:
    return next(search_runs(client, experiment, f"tags.`{tag}` = '{value}'"), None)


def experiment_id(client: Any, tracking_uri: str, name: str) -> str:
    """Raises ValueError: the server has no such experiment; the line names those that it has."""
    found = client.get_experiment_by_name(name)
    if found is None:
        names = sorted({e.name for e in client.search_experiments(max_results=100)} - {"Default"})  # MLflow's own
        known = f"there are {', '.join(names)}" if names else "it has none yet"
        raise ValueError(f"no experiment {name!r} on {redacted(tracking_uri)}: {known}")
    return str(found.experiment_id)


def points_of(client: Any, run: Any) -> dict[tuple[str, int], float]:
    """{(metric, step): value} of what the run has."""
    names = run.data.metrics if run is not None else {}
    return {
        (point.key, point.step): point.value
        for name in names
        for point in client.get_metric_history(run.info.run_id, name)
    }


def digest_of(value: Config) -> str:
    """16 hex digits: equal values only have equal ones."""
    return value.digest()[:16]
