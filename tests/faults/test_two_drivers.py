"""Two commands in one folder: the second says so and leaves. A lock of a killed one is nobody's."""

from __future__ import annotations

import sqlite3
import subprocess
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest
from fault_commands import PATIENCE, Fault, FaultCommands, Tally, Undisturbed
from test_server_faults import record

from experiments.output import Output
from experiments.recording import Recording

HOLDER = """
import sqlite3, sys
store = sqlite3.connect(sys.argv[1], isolation_level=None)
store.execute(sys.argv[2])
print("locked", flush=True)
sys.stdin.read()
"""


def wait_for(file: Path) -> None:
    for _ in range(PATIENCE):
        if file.exists():
            return
        time.sleep(0.01)
    raise AssertionError(f"{file.name} is not there")


@pytest.mark.slow
def test_a_second_driver_leaves_and_harms_nothing(
    commands: FaultCommands, undisturbed: Undisturbed, tmp_path: Path, tally: Tally
) -> None:
    output = undisturbed.output(tmp_path / "out")
    first = commands.start(*commands.words("sweep", output), fault=Fault("history.jsonl", 3, "hold", tmp_path))
    wait_for(tmp_path / "held")
    for verb in ("sweep", "search"):
        ended = commands(*commands.words(verb, output))
        said = f"robuq: another robuq command (process {first} on "
        problems = ended.problems(2, said, f") is writing to {output}: wait, or use --output")
        problems += [ended.text] if len(ended.text.splitlines()) > 1 else []
        assert tally(f"two drivers: a {verb} beside a sweep", problems) == []
    for words in (["train", "minmax", "--preset", "nano"], ["doctor", "--fix"]):
        ended = commands(*words, "--output", output)
        assert tally("two drivers: others beside a sweep", ended.problems(2, "another robuq command")) == []
    looked = commands("doctor", "--output", output)
    assert tally("two drivers: the doctor beside a sweep", looked.problems(0, "a command is writing")) == []
    (tmp_path / "go").touch()
    problems = commands.wait(first).problems(0) + undisturbed.differences("sweep", output)
    assert tally("two drivers: the first goes on", problems) == []


@pytest.mark.slow
def test_a_search_holds_the_folder_too_and_a_killed_one_does_not(
    commands: FaultCommands, undisturbed: Undisturbed, tmp_path: Path, tally: Tally
) -> None:
    output = undisturbed.output(tmp_path / "out")
    first = commands.start(*commands.words("search", output), fault=Fault("study.journal", 3, "hold", tmp_path))
    wait_for(tmp_path / "held")
    problems = commands(*commands.words("sweep", output)).problems(2, "another robuq command")
    assert tally("two drivers: a sweep beside a search", problems) == []
    subprocess.run(["kill", "-9", str(first)], check=True)
    assert commands.wait(first).code == -9
    assert (output / "sweep.lock").read_text().startswith(f"process {first} on ")
    problems = commands(*commands.words("sweep", output)).problems(0)
    problems += [
        line
        for line in undisturbed.differences("sweep", output)
        if not line.startswith(("stages", "doctor", "searches"))
    ]
    assert tally("lock of a killed driver", problems) == []


# --- SQLite, locked by another program ------------------------------------------------------------------------


@contextmanager
def locked(store: Path, how: str) -> Iterator[None]:
    """By another process, as a backup or a database browser would."""
    holder = subprocess.Popen(
        [sys.executable, "-c", HOLDER, str(store), how], stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True
    )
    assert holder.stdout is not None
    assert holder.stdin is not None
    assert holder.stdout.readline() == "locked\n"
    try:
        yield
    finally:
        holder.stdin.close()
        holder.wait()
        holder.stdout.close()


LOCKED = "is not available (another program has locked it: end that program, or wait until it is done)"


@pytest.mark.slow
def test_a_store_that_another_program_has_locked(
    commands: FaultCommands, undisturbed: Undisturbed, tmp_path: Path, tally: Tally
) -> None:
    output = undisturbed.output(tmp_path / "out")
    with locked(output / "mlflow.db", "BEGIN EXCLUSIVE"):
        ended = commands(*commands.words("sweep", output))
        waits = f"2 records wait on the disk: tracking server sqlite:///{output}/mlflow.db {LOCKED}; the next sweep"
        first = f"records will wait on the disk: tracking server sqlite:///{output}/mlflow.db {LOCKED}"
        assert tally("SQLite locked: a sweep", ended.problems(0, first, waits)) == []
        ended = commands("doctor", "--fix", "--output", output)
        assert tally("SQLite locked: the doctor", ended.problems(1, "nothing more was repaired", LOCKED)) == []
    ended = commands("doctor", "--fix", "--output", output)
    problems = ended.problems(0, "repaired: waiting record") + undisturbed.differences("sweep", output)
    assert tally("SQLite locked: sent later", problems) == []


@pytest.mark.slow
def test_a_store_that_can_be_read_but_not_written(undisturbed: Undisturbed, tmp_path: Path, tally: Tally) -> None:
    """MLflow itself waits 20 seconds for the lock."""
    output = Output(undisturbed.output(tmp_path / "out"))
    output.save(record("plan"))
    recording = Recording("plan", output, output.tracking_uri())
    recording.open()
    with locked(output.tracking_file, "BEGIN IMMEDIATE"):
        problems = [] if recording.send_waiting() == 1 else ["it counts as sent"]
        problems += [] if LOCKED in str(recording.problem) else [str(recording.problem)]
    problems += [] if recording.send_waiting() == 0 else ["it still waits"]
    with sqlite3.connect(output.tracking_file) as store:
        runs = store.execute("SELECT count(*) FROM runs").fetchone()[0]
    store.close()
    assert tally("SQLite locked: for writing", [*problems, *([f"{runs} runs"] if runs != 1 else [])]) == []
