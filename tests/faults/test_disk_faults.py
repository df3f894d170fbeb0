"""Disks that are full or read-only: one line that names the folder, exit code 1, and the same command goes on."""

from __future__ import annotations

import errno
import os
import re
import sqlite3
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest
import torch
from fault_commands import Ended, Fault, FaultCommands, Tally, Undisturbed, make_room, mounted_read_only, unmount
from fault_spawner import BALLAST, fill
from safetensors import SafetensorError
from safetensors.torch import save_file

from experiments.executors import LocalExecutor
from experiments.launch import Job, Sweep, launch
from experiments.output import Output
from robuq.config import ConfigError, RunConfig
from robuq.record.mlflow import MlflowRecorder, TrackingUnavailable, sqlite_uri
from robuq.stages import Stage, StageStore, make_stage
from robuq.storage_fault import StorageFault, storage_fault

FULL = r"robuq: cannot write to (\S+) \(No space left on device\): make room there; the same command continues"
READ_ONLY = r"robuq: cannot write to (\S+) \(Read-only file system\): make it writable, or choose another place; "
# What is being written when the disk is full: the name in a file's path, at which operation on such files, and which.
OF_SWEEPS: dict[str, tuple[str, int, str]] = {
    "a checkpoint": ("timing.jsonl", 4, ""),
    "a stage folder": ("result.json", 5, ""),
    "a run's record": ("/runs/", 3, ""),
    "MLflow's artefacts": ("/artifacts/", 6, ""),
    "MLflow's database": ("robuq-record-", 1, "shutil.rmtree"),
}
OF_SEARCHES: dict[str, tuple[str, int, str]] = {
    "the Optuna journal": ("study.journal", 12, ""),
    "the search's record": ("search.json", 3, ""),
}


def said(ended: Ended, pattern: str, folder: Path) -> list[str]:
    """Problems with how a command ended: exit code 1, and as its last line the pattern with a place in the folder."""
    found = re.match(pattern, ended.last_line)
    place = [] if found and Path(found[1]).is_relative_to(folder) else [f"says {ended.last_line!r}"]
    return ended.problems(1) + place


@pytest.mark.slow
@pytest.mark.parametrize(("verb", "faults"), [("sweep", OF_SWEEPS), ("search", OF_SEARCHES)])
def test_a_full_disk(
    commands: FaultCommands,
    undisturbed: Undisturbed,
    disk: Path,
    tally: Tally,
    verb: str,
    faults: dict[str, tuple[str, int, str]],
) -> None:
    output, problems = undisturbed.output(disk / "out"), []
    for what, (name, nth, event) in faults.items():
        ended = commands(*commands.words(verb, output), fault=Fault(name, nth, "fill", disk, event))
        assert (disk / BALLAST).exists(), f"{what} was not written: {ended.text}"
        make_room(disk)
        problems += tally(f"disk full, while writing {what}", said(ended, FULL, disk))
    ended = commands(*commands.words(verb, output))
    assert problems + ended.problems(0) + undisturbed.differences(verb, output) == []


@pytest.mark.slow
def test_a_full_disk_at_the_start(commands: FaultCommands, disk: Path, tally: Tally) -> None:
    fill(disk)
    for verb in ("sweep", "search"):
        ended = commands(*commands.words(verb, disk / "out"))
        assert tally("disk full, before it begins", said(ended, FULL, disk)) == []
        assert len(ended.text.splitlines()) == 1


@pytest.mark.slow
def test_a_folder_that_becomes_read_only(
    commands: FaultCommands, undisturbed: Undisturbed, disk: Path, tally: Tally
) -> None:
    output, problems = undisturbed.output(disk / "out"), []
    (output / "stages").mkdir()
    for what, name, nth in (("training", "history.jsonl", 3), ("finishing a stage", "result.json", 5)):
        fault = Fault(name, nth, "make_read_only", output / "stages")
        ended = commands(*commands.words("sweep", output), fault=fault)
        unmount(output / "stages")
        problems += tally(f"read-only, while {what}", said(ended, READ_ONLY, disk))
    with mounted_read_only(output):
        ended = commands(*commands.words("sweep", output))
        problems += tally("read-only, before it begins", said(ended, READ_ONLY, disk))
        assert len(ended.text.splitlines()) == 1
    ended = commands(*commands.words("sweep", output))
    assert problems + ended.problems(0) + undisturbed.differences("sweep", output) == []
    with mounted_read_only(output):
        for words in (["status", commands.folder / "sweep.yaml"], ["doctor"]):
            assert tally("read-only, while reading", commands(*words, "--output", output).problems(0)) == []
        ended = commands("report", commands.folder / "sweep.yaml", "--output", output)
        assert tally("read-only, while writing a report", said(ended, READ_ONLY, disk)) == []


# --- what the libraries say -----------------------------------------------------------------------------------


def test_each_library_says_it_its_way(disk: Path) -> None:
    database = sqlite3.connect(disk / "store.db", isolation_level=None)
    database.execute("CREATE TABLE filler (content)")
    fill(disk)
    with pytest.raises(SafetensorError) as by_safetensors:
        save_file({"weight": torch.zeros(10000)}, disk / "model.safetensors")
    with pytest.raises(sqlite3.OperationalError) as by_sqlite:
        database.execute("INSERT INTO filler VALUES (zeroblob(100000))")
    with pytest.raises(OSError, match="No space left") as by_python:
        (disk / "text").write_text("x" * 10000)
    database.close()
    for caught in (by_safetensors, by_sqlite, by_python):
        fault = storage_fault(caught.value, disk)
        assert str(fault) == f"cannot write to {disk} (No space left on device): make room there"


def test_the_place_is_the_folder_or_the_one_that_the_error_names(tmp_path: Path) -> None:
    here, elsewhere = str(tmp_path / "stages" / "x"), str(tmp_path.parent / "elsewhere" / "y")
    for names, place in (((), tmp_path), ((here,), tmp_path), ((elsewhere,), Path(elsewhere).parent)):
        fault = storage_fault(OSError(errno.EROFS, "read-only", *names), tmp_path)
        assert str(fault).startswith(f"cannot write to {place} (")
    copied = OSError(errno.ENOSPC, "full", here, None, elsewhere)
    assert str(storage_fault(copied, tmp_path)).startswith(f"cannot write to {Path(elsewhere).parent} (")


@pytest.mark.parametrize("error", [OSError(errno.ENOENT, "gone"), ValueError("No space left on device"), KeyError()])
def test_other_errors_are_no_faults_of_a_disk(error: Exception, tmp_path: Path) -> None:
    assert storage_fault(error, tmp_path) is None


def test_it_is_found_in_what_an_error_came_from(tmp_path: Path) -> None:
    with pytest.raises(RuntimeError) as caught, not_possessed(), (tmp_path / "lock").open("w"):
        raise OSError(errno.EDQUOT, os.strerror(errno.EDQUOT))
    assert "have the quota raised" in str(storage_fault(caught.value, tmp_path))


@contextmanager
def not_possessed() -> Iterator[None]:
    """As Optuna's lock, which fails to be released where the disk failed."""
    try:
        yield
    finally:
        raise RuntimeError("did not possess lock")


# --- in one process -------------------------------------------------------------------------------------------


def test_a_stage_that_cannot_write_halts_the_launch_and_has_not_failed(disk: Path) -> None:
    """The next launch begins where it was; nobody tried the other stages on the full disk."""
    attempts: list[str] = []

    def work(stage: Stage, root: Path, device: str) -> dict[str, object]:
        attempts.append(stage.key)
        (StageStore(root).open_work(stage) / "weights").write_bytes(bytes(100_000))
        StageStore(root).commit(stage, {"seconds": 0.0, "metrics": {}})
        return {}

    jobs = [Job(RunConfig(variant="a", seed=s), (make_stage("qat", {"n": s}, "x", {}),)) for s in range(2)]
    (disk / "stages" / "qat").mkdir(parents=True)
    store = StageStore(disk / "stages")

    def launched() -> list[str | None]:
        sweep = Sweep(jobs, store, lambda stage: 1.0)
        return [end.failure for end in launch(sweep, LocalExecutor(store.root, "cpu", work), lambda end: None)]

    fill(disk)
    with pytest.raises(StorageFault, match=re.escape(f"cannot write to {store.root} (No space left on device)")):
        launched()
    assert len(attempts) == 1
    make_room(disk)
    assert launched() == [None, None]


def test_a_tracking_store_on_a_full_disk_is_unavailable_and_says_where(undisturbed_store: Path, disk: Path) -> None:
    store = disk / "mlflow.db"
    store.write_bytes(undisturbed_store.read_bytes())
    recorder = MlflowRecorder(sqlite_uri(store))
    fill(disk)
    with pytest.raises(TrackingUnavailable, match=re.escape(f"cannot write to {disk} (No space left on device)")) as e:
        recorder.attach_report("plan", [])
    assert e.value.fault is not None


@pytest.fixture
def undisturbed_store(undisturbed: Undisturbed, tmp_path: Path) -> Path:
    return undisturbed.output(tmp_path / "template") / "mlflow.db"


def test_a_folder_that_cannot_be_is_a_mistake_of_the_user(tmp_path: Path) -> None:
    (tmp_path / "file").touch()
    with pytest.raises(ConfigError, match="choose another --output"):
        Output(tmp_path / "file" / "out").ensure_writable()
