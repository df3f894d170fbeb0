"""Damaged files of finished stages: found when they are used, said, set aside, and made anew; nothing else is."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from toy_stages import executed, log, toy

from experiments.executors import LocalExecutor, Outcome
from experiments.launch import Job, JobEnd, Sweep, launch
from robuq.config import RunConfig
from robuq.stages import QUARANTINE, Stage, StageStore


def work(stage: Stage, root: Path, device: str) -> dict[str, Any]:
    store = StageStore(root)
    store.check_inputs(stage)
    log(root, stage)
    (store.open_work(stage) / "model.bin").write_bytes(stage.key.encode())
    store.commit(stage, {"metrics": {}, "seconds": 0.0})
    return {}


FIRST = toy("full_precision")
SECOND = toy("qat", {"full_precision": FIRST})
THIRD = toy("evaluate", {"qat": SECOND})
JOB = Job(RunConfig(variant="a"), (FIRST, SECOND, THIRD))


class Listener:
    def __init__(self) -> None:
        self.outcomes: list[Outcome] = []

    def stage_started(self, stage: Stage) -> None:
        """Nothing to note."""

    def stage_ended(self, outcome: Outcome) -> None:
        self.outcomes.append(outcome)

    def job_ended(self, end: JobEnd) -> None:
        """Nothing to note."""


def launched(root: Path) -> tuple[list[str], list[Outcome], Sweep]:
    """Stages that were executed, in order, how they ended, and the sweep. The run finishes."""
    (root / "log.txt").unlink(missing_ok=True)
    listener, sweep = Listener(), Sweep([JOB], StageStore(root), lambda stage: 1.0)
    (end,) = launch(sweep, LocalExecutor(root, "cpu", work), lambda e: None, [listener])
    assert end.failure is None
    assert all(StageStore(root).damage(stage.id) is None for stage in JOB.stages)
    return executed(root), listener.outcomes, sweep


def remove(root: Path, stage: Stage) -> None:
    StageStore(root).folder(stage.id).rename(root / f"removed-{stage.key}")


def flip(file: Path) -> None:
    content = file.read_bytes()
    file.write_bytes(bytes([content[0] ^ 4]) + content[1:])


def truncate(file: Path) -> None:
    file.write_bytes(file.read_bytes()[: file.stat().st_size // 2])


@pytest.fixture
def root(tmp_path: Path) -> Path:
    assert launched(tmp_path)[0] == [stage.id for stage in JOB.stages]
    return tmp_path


def test_nothing_is_done_again_without_need(root: Path) -> None:
    assert launched(root)[0] == []


def test_a_flipped_bit_is_found_when_the_file_is_used(root: Path) -> None:
    remove(root, THIRD)
    flip(StageStore(root).folder(SECOND.id) / "model.bin")
    done, outcomes, _ = launched(root)
    assert done == [SECOND.id, THIRD.id]
    assert [outcome.status for outcome in outcomes] == ["damaged", "done", "done"]
    line = f"{SECOND.id}: model.bin does not have its checksum; it was set aside and is made anew"
    assert outcomes[0].reason == line
    assert (root / QUARANTINE / SECOND.id / "model.bin").is_file()


@pytest.mark.parametrize("name", ["model.bin", "result.json", "stage.json"])
@pytest.mark.parametrize("damage", [truncate, Path.unlink])
def test_what_a_glance_shows_is_found_at_the_start(root: Path, name: str, damage: Callable[[Path], None]) -> None:
    damage(StageStore(root).folder(SECOND.id) / name)
    done, outcomes, sweep = launched(root)
    assert done == [SECOND.id]
    assert [outcome.status for outcome in outcomes] == ["done"]
    assert len(sweep.repaired) == 1
    assert name in sweep.repaired[0]


def test_a_damaged_ancestor_is_found_by_the_stage_that_uses_it(root: Path) -> None:
    for stage in (SECOND, THIRD):
        remove(root, stage)
    flip(StageStore(root).folder(FIRST.id) / "stage.json")
    assert launched(root)[0] == [stage.id for stage in JOB.stages]


def test_a_metric_that_changed_is_not_believed(root: Path) -> None:
    file = StageStore(root).folder(THIRD.id) / "result.json"
    file.write_text(file.read_text().replace('"seconds": 0.0', '"seconds": 1.0'))
    assert launched(root)[0] == [THIRD.id]


def test_a_second_quarantine_keeps_the_first(root: Path) -> None:
    for _ in range(2):
        truncate(StageStore(root).folder(THIRD.id) / "model.bin")
        launched(root)
    assert len(list((root / QUARANTINE / "evaluate").iterdir())) == 2


def test_what_is_whole_is_not_set_aside(root: Path) -> None:
    assert StageStore(root).set_aside(FIRST.id) is None
    assert StageStore(root).set_aside("qat/0000000000000000") is None


def test_a_stage_from_before_there_were_seals_is_taken_as_it_is(root: Path) -> None:
    file = StageStore(root).folder(SECOND.id) / "result.json"
    file.write_text('{"metrics": {}, "seconds": 0.0}')
    remove(root, THIRD)
    assert launched(root)[0] == [THIRD.id]


def test_what_a_kill_at_the_very_end_left_is_cleaned_up(root: Path) -> None:
    folder = StageStore(root).folder(SECOND.id)
    for name in ("checkpoint-00000001.json", "progress.json", ".progress.json.12", "checkpoint-1.partial"):
        (folder / name).write_text("{}")
    launched(root)
    assert sorted(file.name for file in folder.iterdir()) == ["model.bin", "result.json", "stage.json"]


def test_what_killed_writers_left_does_not_enter_a_stage(tmp_path: Path) -> None:
    store = StageStore(tmp_path)
    work_folder = store.open_work(FIRST)
    for name in (".progress.json.12", "model.partial"):
        (work_folder / name).write_text("{")
    store.open_work(FIRST)
    final = store.commit(FIRST, {})
    assert sorted(file.name for file in final.iterdir()) == ["result.json", "stage.json"]
