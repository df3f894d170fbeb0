"""An SQLite store's file, looked at before MLflow gets it: MLflow tries one that it cannot open for minutes, without a
word, and makes folders, a file and tables where there are none, also for those who only read."""

from __future__ import annotations

import sqlite3
from contextlib import closing
from pathlib import Path
from typing import Any
from urllib.parse import quote

from robuq.messages import redacted
from robuq.record.mlflow.client import TrackingRefused, TrackingUnavailable, connect, errors_of, sqlite_file

WAIT = 5.0  # seconds for another program's lock
TABLES = "SELECT name FROM sqlite_master WHERE type = 'table'"
NEEDED = "experiments"  # the table that all reading begins with


def check_opens(tracking_uri: str) -> None:
    """Nothing where the URI names no SQLite file, or one that is not there yet.

    Raises:
        TrackingUnavailable: the file cannot be opened, is locked or damaged.
        TrackingRefused: there is something else than a file.
    """
    file = sqlite_file(tracking_uri)
    if file is not None and file.exists():
        _tables(tracking_uri, file)


def connect_existing(tracking_uri: str) -> Any:
    """As `connect`, of a store that is there: nothing is made.

    Raises:
        TrackingUnavailable, TrackingRefused: as `connect` and `check_opens`; or there is no such file, or it is not a
            tracking store.
    """
    file = sqlite_file(tracking_uri)
    if file is not None:
        with errors_of(tracking_uri):
            there = file.exists()
        if not there:
            raise TrackingUnavailable(tracking_uri, "there is no such file: the commands that record make it")
        if NEEDED not in _tables(tracking_uri, file):
            raise TrackingUnavailable(tracking_uri, "it is no tracking store: nothing was recorded there")
    return connect(tracking_uri)


def _tables(tracking_uri: str, file: Path) -> list[str]:
    with errors_of(tracking_uri):
        if not file.is_file():
            kind = "a folder" if file.is_dir() else "no file"
            raise TrackingRefused(f"{redacted(tracking_uri)} is {kind}, where an SQLite file is needed")
        with closing(sqlite3.connect(f"file:{quote(str(file))}?mode=rw", uri=True, timeout=WAIT)) as database:
            return [name for (name,) in database.execute(TABLES)]
