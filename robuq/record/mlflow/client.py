"""MLflow's client: opened, asked, and its errors turned into ours. It is imported only when it is used."""

from __future__ import annotations

import logging
import os
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

from robuq.config import Config

BATCH = 1000  # metrics, parameters and tags in one request: MLflow's limit
PAGE = 5000  # runs in one search request
SOURCE = {"mlflow.source.type": "LOCAL", "mlflow.source.name": "robuq"}  # tags of every run
REFUSALS = ("INVALID_PARAMETER_VALUE", "BAD_REQUEST")  # error codes that trying again does not cure


class TrackingUnavailable(RuntimeError):
    """The tracking server cannot be used now. The record is not lost: keep it and send it again later."""

    def __init__(self, tracking_uri: str, reason: str) -> None:
        super().__init__(f"tracking server {redacted(tracking_uri)} is not available ({reason})")


class TrackingRefused(ValueError):
    """The tracking server understands but refuses what is asked, or cannot be used as it is named: no later attempt
    will do better."""


def redacted(uri: str) -> str:
    """The URI without user, password, query and fragment."""
    parts = urlsplit(uri)
    host = f"***@{parts.netloc.rpartition('@')[2]}" if "@" in parts.netloc else parts.netloc
    return f"{parts.scheme}://{host}{parts.path}" if parts.scheme else parts.path


def sqlite_uri(file: Path) -> str:
    """The tracking URI of an SQLite file; absolute, because a relative one follows the working directory."""
    return f"sqlite:///{file.resolve()}"


def connect(tracking_uri: str) -> Any:
    """An MlflowClient that gives up soon, keeps its start-up messages to itself and reports to nobody.

    Raises:
        TrackingUnavailable: the store cannot be opened.
        TrackingRefused: the URI names no store that can be used.
    """
    for name, value in {
        "MLFLOW_DISABLE_TELEMETRY": "true",
        "MLFLOW_HTTP_REQUEST_MAX_RETRIES": "1",  # the default, 7 with growing pauses, takes minutes
        "MLFLOW_HTTP_REQUEST_TIMEOUT": "30",
        "MLFLOW_ENABLE_ARTIFACTS_PROGRESS_BAR": "false",
    }.items():
        os.environ.setdefault(name, value)
    with errors_of(tracking_uri), _quiet("mlflow.store.db.utils"):
        from mlflow import MlflowClient

        return MlflowClient(tracking_uri)


@contextmanager
def errors_of(tracking_uri: str) -> Iterator[None]:
    """Turn MLflow's errors into ours. Their text is dropped: it quotes the URI with its password."""
    from mlflow.exceptions import MlflowException
    from sqlalchemy.exc import SQLAlchemyError

    try:
        yield
    except MlflowException as error:
        if error.error_code in REFUSALS:
            raise TrackingRefused(f"{redacted(tracking_uri)} refused the request: {error.error_code}") from None
        raise TrackingUnavailable(tracking_uri, str(error.error_code)) from None
    except ModuleNotFoundError as error:  # of a database's driver
        raise TrackingRefused(f"{redacted(tracking_uri)} needs the package {error.name}: install it") from None
    except (SQLAlchemyError, OSError) as error:  # OSError: connections, and the disk that artefacts go to
        raise TrackingUnavailable(tracking_uri, type(error).__name__) from None


@contextmanager
def _quiet(logger: str) -> Iterator[None]:
    """Only errors from this logger: a new store announces each of its tables, a lost one each attempt."""
    log = logging.getLogger(logger)
    before = log.level
    log.setLevel(logging.ERROR)
    try:
        yield
    finally:
        log.setLevel(before)


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
