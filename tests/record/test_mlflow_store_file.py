"""SQLite stores that are not there, cannot be opened or are something else: said at once, and nothing is made."""

from __future__ import annotations

import sqlite3
from collections.abc import Callable
from contextlib import closing
from pathlib import Path

import pytest

from robuq.record.audit import delete_run, end_run, tracked_runs
from robuq.record.mlflow import (
    MlflowRecorder,
    TrackingRefused,
    TrackingUnavailable,
    experiment_names,
    read_runs,
    read_search,
    sqlite_uri,
    store_file,
)

READERS: dict[str, Callable[[str], object]] = {
    "names": experiment_names,
    "runs": lambda uri: read_runs(uri, "p"),
    "search": lambda uri: read_search(uri, "p"),
    "audit": tracked_runs,
    "end": lambda uri: end_run(uri, "x"),
    "delete": lambda uri: delete_run(uri, "x"),
}


@pytest.mark.parametrize("read", READERS.values(), ids=READERS)
def test_readers_make_nothing(tmp_path: Path, read: Callable[[str], object]) -> None:
    for file in (tmp_path / "x.db", tmp_path / "nowhere" / "x.db"):
        with pytest.raises(TrackingUnavailable, match=f"{file} is not available .there is no such file"):
            read(sqlite_uri(file))
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize("read", READERS.values(), ids=READERS)
def test_readers_leave_other_programs_databases_alone(tmp_path: Path, read: Callable[[str], object]) -> None:
    file = tmp_path / "music.db"
    with closing(sqlite3.connect(file)) as database, database:
        database.execute("create table songs (name text)")
    before = file.read_bytes()
    with pytest.raises(TrackingUnavailable, match="it is no tracking store"):
        read(sqlite_uri(file))
    assert (list(tmp_path.iterdir()), file.read_bytes()) == ([file], before)


@pytest.mark.parametrize("use", [MlflowRecorder, *READERS.values()], ids=["recorder", *READERS])
def test_a_folder_is_no_store(tmp_path: Path, use: Callable[[str], object]) -> None:
    with pytest.raises(TrackingRefused, match=f"sqlite:///{tmp_path} is a folder, where an SQLite file is needed"):
        use(sqlite_uri(tmp_path))
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize("use", [MlflowRecorder, tracked_runs], ids=["recorder", "audit"])
def test_what_is_no_database_or_locked(
    tmp_path: Path, use: Callable[[str], object], monkeypatch: pytest.MonkeyPatch
) -> None:
    (damaged := tmp_path / "damaged.db").write_bytes(b"no database" * 1000)
    with pytest.raises(TrackingUnavailable, match="it is damaged, or no SQLite database"):
        use(sqlite_uri(damaged))
    monkeypatch.setattr(store_file, "WAIT", 0.05)
    with closing(sqlite3.connect(tmp_path / "locked.db", isolation_level=None)) as other:
        other.execute("create table experiments (name text)")
        other.execute("begin exclusive")
        with pytest.raises(TrackingUnavailable, match="another program has locked it"):
            use(sqlite_uri(tmp_path / "locked.db"))


def test_what_cannot_be_opened(tmp_path: Path) -> None:
    """A database whose journal is a folder: SQLite may not read it before it has looked there."""
    file = tmp_path / "x.db"
    with closing(sqlite3.connect(file)) as database:
        database.execute("pragma journal_mode = wal")
        database.execute("create table experiments (name text)")
    (tmp_path / "x.db-wal").mkdir()
    with pytest.raises(TrackingUnavailable, match="it cannot be opened: look after its folder"):
        tracked_runs(sqlite_uri(file))
