"""The tables of an SQLite file, read directly: exactly what MLflow's client says, at once, and without a trace."""

from __future__ import annotations

import sqlite3
import subprocess
import sys
from collections.abc import Callable, Hashable, Mapping
from contextlib import closing
from pathlib import Path
from typing import Any

import pytest

from robuq.config import RunConfig
from robuq.record.mlflow import (
    NO_RUNS,
    MlflowRecorder,
    connect,
    experiment_names,
    read_changed,
    read_runs,
    reader,
    sqlite_uri,
    tables,
)
from robuq.record.mlflow.tables import KNOWN, look_in_file, names_in_file
from robuq.record.run_record import RunRecord
from robuq.variants import variant

PLAN = "table's plan"
Change = Callable[[Any, str], None]


def record(seed: int, **changes: Any) -> RunRecord:
    config = RunConfig(variant="minmax", precision=variant("minmax", 2), seed=seed)
    values: dict[str, Any] = {
        "plan": PLAN,
        "key": config.key(),
        "variant": config.variant,
        "label": config.label,
        "act_bits": 2.0,
        "seed": seed,
        "pretrain_seed": 0,
        "status": "finished",
        "protocol": "aaaaaaaaaaaa",
        "dataset": "digits",
        "config": config.model_dump(mode="json"),
        "stages": {"qat": f"{seed:016x}"},
        "seconds": {"qat": 1 / 3},
        "metrics": {"held_out_loss": 0.1 + 0.2 + seed, "macs": 1e300 / 3, "kd_classifier": -1e-300 / 3},
        "history": [{"step": 1.0, "loss": 2 / 3}],
        "versions": {"torch": "2.13.0"},
        "started": 1_700_000_000.25 - seed % 3,  # neither in the order of recording nor all different
        "finished": 1_700_000_060.5,
    }
    return RunRecord(**(values | changes))


@pytest.fixture
def file(tmp_path: Path) -> Path:
    """Five finished runs, a failed one, one of another plan, and one that somebody else made."""
    file = tmp_path / "a store's folder, 100 %" / "mlflow.db"
    file.parent.mkdir()
    recorder = MlflowRecorder(sqlite_uri(file))
    for seed in range(5):
        recorder.record(record(seed))
    recorder.record(record(5, status="failed", failure='"lost" its worker: ü\n3 times', metrics={}, history=[]))
    recorder.record(record(6, plan="another"))
    client = connect(sqlite_uri(file))
    client.create_run(client.get_experiment_by_name(PLAN).experiment_id, tags={"made": "by hand"})
    return file


def asked(file: Path) -> list[str]:
    """What the client says of all runs; as text, since NaN differs from itself."""
    return [text(row) for row in reader._asked(sqlite_uri(file), PLAN, {}).rows.values()]


def text(row: tables.TrackedRow) -> str:
    return str([row.root, row.started, row.finished, *(sorted(part.items()) for part in _parts(row))])


def look(file: Path, known: Mapping[str, Hashable]) -> tables.Look:
    seen = look_in_file(sqlite_uri(file), PLAN, known)
    assert seen is not None
    return seen


def _parts(row: tables.TrackedRow) -> tuple[Any, ...]:
    return row.tags, row.params, row.metrics


def found(file: Path) -> list[str]:
    return [text(row) for row in look(file, {}).rows.values()]


def test_all_runs_as_the_client_gives_them(file: Path) -> None:
    assert found(file) == asked(file)
    assert len(found(file)) == 7
    assert experiment_names(sqlite_uri(file)) == ["another", PLAN]


def test_records_are_the_same_either_way(file: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    direct = read_runs(sqlite_uri(file), PLAN)
    monkeypatch.setattr(reader, "look_in_file", lambda uri, experiment, known: None)
    assert direct == read_runs(sqlite_uri(file), PLAN)
    assert {one.seed: one.metrics for one in direct}[3] == record(3).metrics  # to the last bit
    assert [one.status for one in direct].count("failed") == 1


CHANGES: dict[str, Change] = {
    "a metric by hand": lambda client, run: client.log_metric(run, "mine", 0.1),
    "another value": lambda client, run: client.log_metric(run, "evaluate/held_out_loss", 7.25),
    "another value at the same moment": lambda client, run: client.log_metric(
        run, "evaluate/held_out_loss", 7.25, timestamp=1_700_000_060_500, step=0
    ),
    "not a number": lambda client, run: client.log_metric(run, "mine", float("nan")),
    "a parameter": lambda client, run: client.log_param(run, "mine", "1"),
    "a tag": lambda client, run: client.set_tag(run, "robuq.status", "failed"),
    "a tag less": lambda client, run: client.delete_tag(run, "robuq.versions"),
    "deleted": lambda client, run: client.delete_run(run),
    "ended later": lambda client, run: client.set_terminated(run, end_time=1_700_000_099_000),
}


@pytest.mark.parametrize("name", CHANGES)
def test_every_change_is_seen_at_once_and_only_it_is_read(name: str, file: Path) -> None:
    before = found(file)
    client = connect(sqlite_uri(file))
    run = next(run for run in client.search_runs(["1"]) if run.data.tags.get("robuq.key") == record(2).key)
    known = look(file, {})
    CHANGES[name](client, run.info.run_id)
    assert found(file) != before
    assert found(file) == asked(file)
    changed = look(file, known.stamps)
    assert set(changed.rows) == {run.info.run_id} & set(changed.stamps)
    merged = {**known.rows, **changed.rows}
    assert [text(merged[run]) for run in changed.stamps] == asked(file)


def test_a_new_run_is_seen_at_once_and_a_restored_one(file: Path) -> None:
    before = read_runs(sqlite_uri(file), PLAN)
    MlflowRecorder(sqlite_uri(file)).record(record(9))
    assert {one.seed for one in read_runs(sqlite_uri(file), PLAN)} == {one.seed for one in before} | {9}
    client = connect(sqlite_uri(file))
    run = client.search_runs(["1"], filter_string=f"tags.`robuq.key` = '{record(9).key}'")[0].info.run_id
    client.delete_run(run)
    assert read_runs(sqlite_uri(file), PLAN) == before
    client.restore_run(run)
    assert found(file) == asked(file)


@pytest.mark.parametrize("as_of_a_server", [False, True])
def test_records_read_again_are_those_of_a_full_read(
    as_of_a_server: bool, file: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """After each of: nothing, a run of another plan, a new run, one sent again with other numbers, one that failed and
    then finished, and one deleted. What has not changed stays the very same object."""
    if as_of_a_server:
        monkeypatch.setattr(reader, "look_in_file", lambda uri, experiment, known: None)
    uri, recorder = sqlite_uri(file), MlflowRecorder(sqlite_uri(file))
    client = connect(uri)
    known = read_changed(uri, PLAN, NO_RUNS)
    assert list(known.records.values()) == read_runs(uri, PLAN)
    gone = next(run for run, one in known.records.items() if one.key == record(2).key)
    changes: list[tuple[int, Callable[[], Any]]] = [
        (0, lambda: None),
        (0, lambda: recorder.record(record(7, plan="another"))),
        (1, lambda: recorder.record(record(8))),
        (1, lambda: recorder.record(record(3, metrics={"held_out_loss": 5.5}))),
        (1, lambda: recorder.record(record(5))),
        (0, lambda: client.delete_run(gone)),
    ]
    for count, change in changes:
        change()
        now = read_changed(uri, PLAN, known)
        assert list(now.records.values()) == read_runs(uri, PLAN)
        assert sum(one is not known.records.get(run) for run, one in now.records.items()) == count
        assert (now is known) == (now.fingerprint == known.fingerprint) == (now.stamps == known.stamps)
        known = now
    assert known.by_key[record(3).key].metrics == {"held_out_loss": 5.5}
    assert known.by_key[record(5).key].status == "finished"


def test_a_deleted_plan_has_no_name(file: Path) -> None:
    client = connect(sqlite_uri(file))
    client.delete_experiment(client.get_experiment_by_name("another").experiment_id)
    assert experiment_names(sqlite_uri(file)) == [PLAN]


def test_a_plan_that_is_not_there_is_the_clients_error(file: Path) -> None:
    assert look_in_file(sqlite_uri(file), "nothing", {}) is None
    with pytest.raises(ValueError, match="no experiment 'nothing'"):
        read_runs(sqlite_uri(file), "nothing")


def test_the_tables_of_this_mlflow_are_known(file: Path) -> None:
    """If not: see whether the questions still fit the new tables, and add their revision to KNOWN."""
    with closing(sqlite3.connect(file)) as database:
        assert database.execute("SELECT version_num FROM alembic_version").fetchall() == [(KNOWN[-1],)]


def test_tables_of_another_make_are_left_to_the_client(file: Path) -> None:
    with closing(sqlite3.connect(file)) as database, database:
        database.execute("UPDATE alembic_version SET version_num = 'from the future'")
    assert look_in_file(sqlite_uri(file), PLAN, {}) is None
    assert names_in_file(sqlite_uri(file)) is None


def test_what_cannot_be_read_is_left_to_the_client(tmp_path: Path) -> None:
    (tmp_path / "damaged.db").write_text("this is no database, " * 100)
    uris = [sqlite_uri(tmp_path / name) for name in ("missing.db", "damaged.db")]
    for uri in [*uris, "http://127.0.0.1:9", "postgresql://u:p@h/d"]:
        assert look_in_file(uri, PLAN, {}) is None
        assert names_in_file(uri) is None
    assert [file.name for file in tmp_path.iterdir()] == ["damaged.db"]  # nothing is made


def test_a_file_that_another_program_holds_is_left_to_the_client(file: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(tables, "WAIT", 0.0)
    with closing(sqlite3.connect(file, isolation_level=None)) as other:
        other.execute("BEGIN EXCLUSIVE")
        assert look_in_file(sqlite_uri(file), PLAN, {}) is None
    assert found(file) == asked(file)


def test_reading_leaves_no_trace_and_needs_no_mlflow(file: Path) -> None:
    before = {path.name: path.read_bytes() for path in file.parent.iterdir() if path.is_file()}
    code = (
        "import sys; from robuq.record.mlflow import read_runs, experiment_names;"
        "print(len(read_runs(*sys.argv[1:])), len(experiment_names(sys.argv[1])), 'mlflow' in sys.modules)"
    )
    words = [sys.executable, "-c", code, sqlite_uri(file), PLAN]
    done = subprocess.run(words, capture_output=True, text=True, check=True)
    assert done.stdout.split() == ["6", "2", "False"]
    assert {path.name: path.read_bytes() for path in file.parent.iterdir() if path.is_file()} == before
