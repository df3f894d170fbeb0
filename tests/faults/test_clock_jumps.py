"""A clock that is set back or forward while a command runs, and between two: nothing lost, no negative durations."""

from __future__ import annotations

import json
import os
import time
from collections.abc import Iterator
from pathlib import Path

import pytest
from fault_commands import PATIENCE, Fault, FaultCommands, Tally, Undisturbed

from experiments.output import Output
from robuq.record.mlflow import connect, sqlite_uri

YEARS = {"before": "2035-01-01 00:00:00", "meanwhile": "2005-06-01 00:00:00", "after": "2001-01-01 00:00:00"}


@pytest.fixture
def clock(tmp_path: Path) -> Path:
    """The file that the faked clock follows."""
    (tmp_path / "clock").write_text(f"@{YEARS['before']}\n")
    return tmp_path / "clock"


@pytest.fixture
def commands_of_that_clock(clock: Path, tmp_path: Path) -> Iterator[FaultCommands]:
    library = next(Path("/usr/lib").glob("*/faketime/libfaketimeMT.so.1"), None)
    if library is None:
        pytest.skip("Debian's package libfaketime is not installed")
    (folder := tmp_path / "commands").mkdir()
    fake = {"LD_PRELOAD": str(library), "FAKETIME_TIMESTAMP_FILE": str(clock), "FAKETIME_CACHE_DURATION": "1"}
    # What measures durations goes on as it does when a clock is set; files have the machine's own times.
    started = FaultCommands(folder, {**fake, "FAKETIME_DONT_FAKE_MONOTONIC": "1", "NO_FAKE_STAT": "1"})
    yield started
    started.close()


def wait_until_it_sees(year: int, held: Path) -> None:
    """The command that stands still there, and whose clock may be a second behind the file that it follows."""
    seen = 0
    for _ in range(PATIENCE):
        seen = time.gmtime(float(held.read_text())).tm_year if held.exists() else 0
        if seen == year:
            return
        time.sleep(0.01)
    raise AssertionError(f"the command sees {seen}, not {year}")


def wait_for(file: Path) -> None:
    for _ in range(PATIENCE):
        if file.exists():
            return
        time.sleep(0.01)
    raise AssertionError(f"{file.name} is not there")


@pytest.mark.slow
def test_a_clock_that_is_set_back_during_a_search_and_between_two(
    commands_of_that_clock: FaultCommands, undisturbed: Undisturbed, clock: Path, tmp_path: Path, tally: Tally
) -> None:
    commands, output = commands_of_that_clock, undisturbed.output(tmp_path / "out")
    process = commands.start(*commands.words("search", output), fault=Fault("search.json", 3, "hold", tmp_path))
    wait_until_it_sees(2035, tmp_path / "held")
    clock.write_text(f"@{YEARS['meanwhile']}\n")
    wait_until_it_sees(2005, tmp_path / "held")
    (tmp_path / "go").touch()
    problems = commands.wait(process).problems(0) + undisturbed.differences("search", output)
    record = Output(output).search("faulty_search")
    assert record is not None
    assert time.gmtime(record.started).tm_year == 2035
    problems += [] if record.finished == record.started else [f"began {record.started}, ended {record.finished}"]
    problems += negative_durations(output)
    assert tally("clock set back during a search", problems) == []

    clock.write_text(f"@{YEARS['after']}\n")
    kept = (output / "searches" / "faulty_search" / "search.json").read_bytes()
    (again := tmp_path / "again").mkdir()
    process = commands.start(*commands.words("search", output), fault=Fault("search.json", 1, "hold", again))
    wait_until_it_sees(2001, again / "held")
    (again / "go").touch()
    problems = commands.wait(process).problems(0) + undisturbed.differences("search", output)
    problems += [] if (output / "searches" / "faulty_search" / "search.json").read_bytes() == kept else ["rewritten"]
    assert tally("clock set back between two searches", problems) == []


@pytest.mark.slow
def test_stages_that_began_in_the_future(
    commands: FaultCommands, undisturbed: Undisturbed, tmp_path: Path, tally: Tally
) -> None:
    """The clock was ahead when training was begun, and behind when it ended: the times of the files say so."""
    output, ahead, behind = undisturbed.output(tmp_path / "out"), 4e9, 1e6
    process = commands.start(*commands.words("sweep", output), fault=Fault("/runs/", 1, "hold", tmp_path))
    wait_for(tmp_path / "held")
    for file in output.glob("stages/*/*/*.json"):
        time_of = ahead if file.name == "stage.json" else behind
        os.utime(file, (time_of, time_of))
    (tmp_path / "go").touch()
    problems = commands.wait(process).problems(0) + undisturbed.differences("sweep", output)
    records = Output(output).records()
    early = [record for record in records if record.started == ahead]
    assert early
    problems += [f"run {r.key}: {r.started} to {r.finished}" for r in early if r.finished != r.started]
    assert tally("clock ahead while a sweep trained", problems + negative_durations(output)) == []


def negative_durations(output: Path) -> list[str]:
    """Of runs in MLflow, and of all numbers of seconds in the records."""
    client, lines = connect(sqlite_uri(output / "mlflow.db")), []
    for experiment in client.search_experiments():
        for run in client.search_runs([experiment.experiment_id]):
            if (run.info.end_time or 0) < run.info.start_time:
                lines.append(f"{run.info.run_name}: {run.info.start_time} to {run.info.end_time}")
            lines += [f"{name} {value}" for name, value in run.data.metrics.items() if "seconds" in name and value < 0]
    for file in output.glob("searches/*/search.json"):
        record = json.loads(file.read_text())
        lines += [f"seconds of {name}: {value}" for name, value in record["seconds"].items() if value < 0]
        lines += [f"evaluation {e['number']}" for e in record["evaluations"] if e["seconds"] < 0]
    return lines
