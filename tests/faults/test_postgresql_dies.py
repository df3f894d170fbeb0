"""PostgreSQL killed by SIGKILL in the middle of a transaction that a command has begun, and started again: records wait
and are sent later, none twice; a search goes on by the same command."""

from __future__ import annotations

import os
import re
import signal
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import optuna
import pytest
from fault_commands import FaultCommands, Tally, Undisturbed
from postgresql_server import PostgresServer
from test_server_faults import record, search_record, tracked_once

from experiments.output import Output
from experiments.recording import Recording
from robuq.messages import redacted
from robuq.record.mlflow import MlflowRecorder

GIVE_UP = 300.0  # seconds, on a busy machine; a send that hangs is a failure, not a wait
# In the order in which a record that is new to the server is written to them.
TABLES = ("experiments", "runs", "tags", "metrics", "params")


@pytest.fixture(scope="module")
def template(postgres: PostgresServer) -> str:
    """A database with MLflow's tables: making them takes seconds, and is a writing of its own."""
    MlflowRecorder(postgres.uri("mlflow"))
    return "mlflow"


@pytest.fixture
def tracking(postgres: PostgresServer, template: str, request: pytest.FixtureRequest) -> str:
    """Of a store of the test's own."""
    return postgres.copy(template, re.sub(r"\W+", "_", request.node.name))


@pytest.fixture
def study(postgres: PostgresServer, request: pytest.FixtureRequest) -> str:
    """The same for Optuna."""
    uri = postgres.copy("template0", re.sub(r"\W+", "_", request.node.name))
    optuna.storages.RDBStorage(uri).engine.dispose()
    return uri


@pytest.mark.slow
@pytest.mark.parametrize("table", TABLES)
def test_a_record_that_was_being_sent_is_sent_again_and_once(
    postgres: PostgresServer, tracking: str, tmp_path: Path, tally: Tally, table: str
) -> None:
    output, plan = Output(tmp_path), f"dies-{table}"
    output.save(record(plan, 0))
    recording = Recording(plan, output, tracking)
    recording.open()
    with ThreadPoolExecutor(1) as sender, postgres.locked(tracking, table) as watcher:
        sent = sender.submit(recording.send_waiting)
        postgres.kill_while_written_to(watcher)
        problems = [] if sent.result(GIVE_UP) == 1 else ["it counts as sent"]
    problem = recording.problem or "nothing is said"
    problems += [] if problem.startswith(f"tracking server {redacted(tracking)} is not available (") else [problem]
    output.save(record(plan, 1))
    problems += [] if recording.send_waiting() == 2 else ["what comes while it is away counts as sent"]
    postgres.start()
    problems += [] if recording.send_waiting() == 0 else [f"it waits: {recording.problem}"]
    assert tally("PostgreSQL killed, while a record is sent", problems + tracked_once(tracking, plan, 2)) == []


@pytest.mark.slow
@pytest.mark.parametrize("table", ["tags", "params"])
def test_a_search_that_was_being_sent(
    postgres: PostgresServer, tracking: str, tmp_path: Path, tally: Tally, table: str
) -> None:
    output, name = Output(tmp_path), f"search-dies-{table}"
    output.save_search(found := search_record(name))
    recording = Recording(name, output, tracking)
    recording.open()
    with ThreadPoolExecutor(1) as sender, postgres.locked(tracking, table) as watcher:
        sent = sender.submit(recording.send_search, found)
        postgres.kill_while_written_to(watcher)
        problems = ["it counts as sent"] if sent.result(GIVE_UP) else []
    postgres.start()
    problems += [] if recording.send_search(found) else [f"it waits: {recording.problem}"]
    problems += tracked_once(tracking, name, 3)
    assert tally("PostgreSQL killed, while a search is sent", problems) == []


@pytest.mark.slow
@pytest.mark.parametrize("back", ["before the sweep ends", "after it"])
def test_a_sweep(
    commands: FaultCommands,
    undisturbed: Undisturbed,
    postgres: PostgresServer,
    tracking: str,
    tmp_path: Path,
    tally: Tally,
    back: str,
) -> None:
    words = commands.words("sweep", tmp_path / "out", "--tracking-uri", tracking)
    with postgres.locked(tracking, "metrics") as watcher:
        process = commands.start(*words)
        postgres.kill_while_written_to(watcher)
    if back != "after it":
        os.kill(process, signal.SIGSTOP)  # or it may end before the server is there
        postgres.start()
        os.kill(process, signal.SIGCONT)
    ended = commands.wait(process)
    if back == "after it":
        waits = f"2 records wait on the disk: tracking server {redacted(tracking)} is not available ("
        problems = ended.problems(0, waits, "; the next sweep sends them")
        problems += [] if ended.text.count("not available") == 1 else ["it is said more than once"]
        postgres.start()
        ended = commands(*words)
    else:
        problems = []
    problems += ended.problems(0)
    problems += ["a library speaks"] if "psycopg" in ended.text else []
    problems += ["records wait, though it is back"] if "wait on the disk" in ended.text else []
    problems += undisturbed.differences("sweep", tmp_path / "out", tracking)
    assert tally(f"PostgreSQL killed during a sweep, back {back}", problems) == []


@pytest.mark.slow
@pytest.mark.parametrize("table", ["trials", "trial_values"])
def test_a_search_whose_study_it_has(
    commands: FaultCommands,
    undisturbed: Undisturbed,
    postgres: PostgresServer,
    study: str,
    tmp_path: Path,
    tally: Tally,
    table: str,
) -> None:
    """Killed while a trial is entered, and while one ends."""
    output = undisturbed.output(tmp_path / "out")
    words = commands.words("search", output, "--set", f"search.storage={study}")
    with postgres.locked(study, table) as watcher:
        process = commands.start(*words)
        postgres.kill_while_written_to(watcher)
    ended = commands.wait(process)
    problems = ended.problems(1, f"robuq: the study's database {redacted(study)} is not available (")
    problems += [] if ended.text.count("not available") == 1 else ["it is said more than once"]
    problems += ["a library speaks"] if "psycopg" in ended.text else []
    postgres.start()
    problems += commands(*words).problems(0)
    problems += undisturbed.differences("search", output, study=study)
    assert tally("PostgreSQL killed, while a study is written", problems) == []
