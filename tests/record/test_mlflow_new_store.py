"""A new SQLite store is there whole or not at all, whenever the process that makes it is killed."""

from __future__ import annotations

import os
import signal
import sqlite3
import subprocess
import sys
import time
from contextlib import closing
from pathlib import Path

import pytest

from experiments.output import Output
from robuq.record.mlflow import MlflowRecorder, TrackingUnavailable, experiment_names, sqlite_uri
from robuq.record.mlflow.new_store import make_store
from robuq.scratch import remove_abandoned

MAKE = "import sys; from robuq.record.mlflow import MlflowRecorder; MlflowRecorder(sys.argv[1])"
PATIENCE = 6000  # looks of 10 ms


def size_of_tables(*folders: Path) -> int:
    """Bytes of the largest SQLite file under these folders; files come and go meanwhile."""
    sizes = [0]
    for file in (file for folder in folders for file in folder.rglob("*mlflow.db*")):
        try:
            sizes.append(file.stat().st_size)
        except FileNotFoundError:
            continue
    return max(sizes)


@pytest.mark.slow
@pytest.mark.parametrize("size", [1, 200_000])
def test_a_kill_while_tables_are_made_leaves_none(size: int, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    temporary, file = tmp_path / "t", tmp_path / "out" / "mlflow.db"
    temporary.mkdir()
    file.parent.mkdir()
    process = subprocess.Popen(
        [sys.executable, "-c", MAKE, sqlite_uri(file)], env=os.environ | {"TMPDIR": str(temporary)}
    )
    for _ in range(PATIENCE):
        if process.poll() is not None or size_of_tables(temporary, file.parent) >= size:
            break
        time.sleep(0.01)
    process.kill()
    assert process.wait() == -signal.SIGKILL
    assert not file.exists()
    monkeypatch.setattr("tempfile.tempdir", str(temporary))
    assert len(remove_abandoned()) == 1
    MlflowRecorder(sqlite_uri(file))
    assert sorted(path.name for path in file.parent.iterdir()) == ["mlflow.db"]
    assert list(temporary.glob("robuq-*")) == []


def test_what_is_there_is_left_alone(tmp_path: Path) -> None:
    file = tmp_path / "mlflow.db"
    file.write_bytes(b"another's")
    make_store(file)
    assert file.read_bytes() == b"another's"


@pytest.mark.slow
def test_of_several_that_make_it_at_once_one_does(tmp_path: Path) -> None:
    """And what each of them records is in it."""
    uri = sqlite_uri(tmp_path / "mlflow.db")
    words = [[sys.executable, "-c", f"{MAKE}.attach_report(sys.argv[2], [])", uri, f"plan_{n}"] for n in range(3)]
    for process in [subprocess.Popen(each) for each in words]:
        assert process.wait() == 0
    assert experiment_names(uri) == ["plan_0", "plan_1", "plan_2"]
    assert list(tmp_path.glob(".*")) == []


def test_a_half_made_store_is_said_to_be_one(tmp_path: Path) -> None:
    """As a kill left it before stores were made whole: a table of a late step, and not all of the early ones."""
    file = tmp_path / "mlflow.db"
    with closing(sqlite3.connect(file)) as database:
        database.execute("create table experiment_tags (key text)")
    with pytest.raises(TrackingUnavailable, match=r"half-made: .* move it away and all records are sent anew"):
        MlflowRecorder(sqlite_uri(file))


def test_a_half_copied_store_is_a_temporary_file(tmp_path: Path) -> None:
    left = tmp_path / ".mlflow.db.4711"
    left.write_bytes(b"half of it")
    output = Output(tmp_path)
    assert output.temporaries() == [left]
    with output.sweeping():
        assert not left.exists()
