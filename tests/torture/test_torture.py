"""The short form of the torture: a few kills, seeded. `make torture N=...` does hundreds."""

from __future__ import annotations

import os
import random
import select
import shutil
import signal
import tempfile
import threading
from collections.abc import Callable, Iterator
from contextlib import closing
from pathlib import Path

import pytest
from kills import COMMAND, FAULTS, NODE, OF_RECORDS, OF_SEARCHES, OF_STAGES, WORKER, Kill, Tally
from moments import announce, arm
from torture import CLUSTER, LOCAL, RAY, TARGETS, Torture
from torture_commands import spawned
from tortured_ray import PATIENCE, Gate, TorturedCluster, seconds_until_gone

TOO_LONG = 0.009 * PATIENCE  # seconds: they are gone, and were not waited for in vain


@pytest.fixture(scope="module")
def torture() -> Iterator[Torture]:
    folder = Path(tempfile.mkdtemp(prefix="t-"))  # the names of Ray's sockets have to be short
    with spawned(folder) as commands:
        yield Torture(folder, 0, commands)
    shutil.rmtree(folder, ignore_errors=True)


@pytest.mark.slow
@pytest.mark.parametrize(("verb", "kills"), [("sweep", 2), ("search", 2)])
def test_killed_commands_end_as_undisturbed_ones(torture: Torture, verb: str, kills: int) -> None:
    before = torture.tally.kills.total()
    assert torture.round(0, LOCAL, verb, kills) == []
    assert torture.tally.kills.total() > before, "no kill came: nothing was survived"


@pytest.mark.slow
def test_a_fault_is_a_real_kill(torture: Torture, tmp_path: Path) -> None:
    faults = [{"name": "result.json", "nth": 1, "delay": 0.0, "gate": ""}]
    assert torture.commands(*torture.words(LOCAL, "sweep", tmp_path), faults=faults) == -signal.SIGKILL
    assert not list(tmp_path.glob("stages/*/*/result.json"))


@pytest.fixture(scope="module")
def cluster(torture: Torture) -> Iterator[TorturedCluster]:
    with closing(TorturedCluster(torture.folder)) as cluster:
        torture.cluster = cluster
        yield cluster
    torture.cluster = None


@pytest.mark.slow
def test_a_sweep_on_ray_survives_a_worker_a_node_and_its_command(torture: Torture, cluster: TorturedCluster) -> None:
    starts = [
        [Kill(WORKER, "training", 2), Kill(COMMAND, "renaming a stage folder", 40)],
        [Kill(NODE, "finishing a stage folder", 1)],
    ]
    wanted = torture.undisturbed_locally("sweep")
    assert torture.survive("short", CLUSTER, "sweep", starts, wanted) == []
    assert sum(torture.tally.kills[CLUSTER, *kill.label] for start in starts for kill in start) == 3
    assert seconds_until_gone(cluster.workers()) < TOO_LONG


@pytest.mark.slow
@pytest.mark.parametrize("times", [1, 2])
def test_a_command_that_is_told_to_end_leaves_no_worker_on_the_cluster(
    torture: Torture, cluster: TorturedCluster, tmp_path: Path, times: int
) -> None:
    def tell(command: int) -> None:
        wait_until(lambda: bool(list(tmp_path.glob("stages/full_precision/*.work/checkpoint-*"))))
        workers.extend(cluster.workers())
        os.kill(command, signal.SIGTERM)
        if times == 2:
            wait_until(lambda: log.read_text()[begun:].count("once more stops at once") == 1)
            os.kill(command, signal.SIGTERM)

    workers: list[int] = []
    log = torture.commands.log
    begun = len(log.read_text()) if log.exists() else 0
    cluster.complete()
    words = [*torture.words(CLUSTER, "sweep", tmp_path), "--set", "pretrain.steps=100000"]
    code = torture.commands(*words, begun=lambda command: threading.Thread(target=tell, args=[command]).start())
    assert code == 128 + signal.SIGTERM
    assert workers
    assert seconds_until_gone([*workers, *cluster.workers()]) < TOO_LONG


def wait_until(condition: Callable[[], bool]) -> None:
    for _ in range(10 * PATIENCE):
        if condition():
            return
        select.select([], [], [], 0.02)
    raise AssertionError("it does not come to that")


def test_every_fault_names_a_file_that_commands_write() -> None:
    assert all(most > 0 and delay >= 0 and name for name, most, delay in FAULTS.values())
    assert sorted(FAULTS) == sorted([*OF_STAGES, *OF_RECORDS, *OF_SEARCHES])


def test_kills_are_drawn_by_the_seed_and_hit_everything() -> None:
    def drawn(executor: str, verb: str) -> list[Kill]:
        dice = random.Random(1)
        return [Kill.drawn(dice, TARGETS[executor], verb, 10.0) for _ in range(300)]

    assert drawn(CLUSTER, "search") == drawn(CLUSTER, "search")
    labels = {(kill.target, kill.moment) for kill in drawn(CLUSTER, "search")}
    assert len(labels) == len(TARGETS[CLUSTER]) * (len(FAULTS) + 1)
    assert {kill.target for kill in drawn(LOCAL, "sweep")} == {COMMAND}
    assert not {kill.moment for kill in drawn(RAY, "sweep")} & set(OF_SEARCHES)


def test_of_the_starts_of_a_round_only_the_last_lets_the_command_live() -> None:
    for seed in range(50):
        starts = Kill.drawn_round(random.Random(seed), TARGETS[CLUSTER], "sweep", 10.0, 4)
        assert sum(map(len, starts)) == 4
        assert all(start[-1].target == COMMAND for start in starts[:-1])
        assert all(sum(kill.target != COMMAND for kill in start) <= 2 for start in starts)


def test_only_rounds_without_problems_are_survived() -> None:
    tally, kill = Tally(), Kill(WORKER, "training", 1)
    tally.add(CLUSTER, "sweep", [kill], [])
    tally.add(CLUSTER, "sweep", [kill], ["a metric differs"])
    assert f"| {CLUSTER} | {WORKER} | training | 2 | 1 |" in tally.table()
    assert "| together | | | 2 | 1 |" in tally.table()


def test_a_moment_is_the_nth_operation_on_a_file_of_that_name(tmp_path: Path) -> None:
    seen: list[int] = []
    arm("wanted", 2, 0.0, lambda: seen.append(len(list(tmp_path.iterdir()))))
    for name in ("wanted-1", "other", "wanted-2", "wanted-3"):
        (tmp_path / name).touch()
    assert seen == [2]  # before the second of them was made


def test_a_process_at_the_gate_stands_still_until_the_kill_is_done(tmp_path: Path) -> None:
    done: list[tuple[int, int]] = []
    folder = Path(tempfile.mkdtemp(prefix="t-"))
    with closing(Gate(folder / "gate", lambda kill, process: done.append((kill, process)))):
        announce(str(folder / "gate"), 3)
        assert done == [(3, os.getpid())]
    announce(str(folder / "gate"), 4)  # nobody is there: the process goes on
    assert len(done) == 1
    shutil.rmtree(folder)
