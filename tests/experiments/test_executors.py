"""One contract for every executor, and what Ray adds: a killed worker."""

from __future__ import annotations

import os
import signal
import threading
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
from toy_stages import ToyError, executed, tell_folder, toy, work

from experiments.attempts import attempt
from experiments.executors import Executor, LocalExecutor, Outcome, RayExecutor, one_line, run_stage, start_ray
from experiments.fence import take_fence
from experiments.launch import Job, Sweep, launch
from robuq.config import ConfigError, RunConfig
from robuq.stages import Stage, StageStore

WORKERS = 2
Make = Callable[[Path], Executor]


@pytest.fixture(scope="module")
def ray_cluster() -> Iterator[None]:
    """One small real cluster for all tests here; its workers find the toy stages. Where none was asked for, another
    cluster's address is not taken."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("PYTHONPATH", str(Path(__file__).parent), prepend=os.pathsep)
        patch.setenv("RAY_ADDRESS", "127.0.0.1:1")
        session = start_ray(None, WORKERS, 1, 0)
    assert session is not None
    yield
    session.close()


@pytest.fixture(params=["local", "ray"])
def make(request: pytest.FixtureRequest) -> Iterator[Make]:
    made: list[Executor] = []
    if request.param == "ray":
        request.getfixturevalue("ray_cluster")

    def build(root: Path) -> Executor:
        local = request.param == "local"
        executor = LocalExecutor(root, "cpu", work) if local else RayExecutor(root, "cpu", WORKERS, function=work)
        made.append(executor)
        return executor

    yield build
    for executor in made:
        executor.close()


def run_all(executor: Executor, stages: list[Stage]) -> list[Outcome]:
    waiting, outcomes = list(stages), []
    for _ in range(1000):
        while waiting and executor.free():
            executor.submit(waiting.pop(0))
        outcomes += executor.wait(1.0)
        if len(outcomes) == len(stages):
            return outcomes
    raise AssertionError(f"{len(outcomes)} of {len(stages)} stages ended")


def test_every_stage_ends_once_and_leaves_its_result(make: Make, tmp_path: Path) -> None:
    stages = [toy("qat", number=number) for number in range(7)]
    outcomes = run_all(make(tmp_path), stages)
    assert sorted(outcome.stage.key for outcome in outcomes) == sorted(stage.key for stage in stages)
    assert {outcome.status for outcome in outcomes} == {"done"}
    assert [StageStore(tmp_path).result(stage.id)["value"] for stage in stages] == list(range(7))
    assert sorted(executed(tmp_path)) == sorted(stage.id for stage in stages)


def test_a_failure_is_data_and_the_worker_goes_on(make: Make, tmp_path: Path) -> None:
    bad, good = toy("qat", fail="loss is\nnan"), toy("qat", number=1)
    outcomes = {outcome.stage.id: outcome for outcome in run_all(make(tmp_path), [bad, bad, good])}
    assert outcomes[bad.id].status == "failed"
    assert outcomes[bad.id].reason == "toy_stages.ToyError: loss is nan"
    assert outcomes[good.id].status == "done"
    failure = StageStore(tmp_path).failure(bad)
    assert failure is not None
    assert "toy_stages.py" in failure["error"]  # the traceback


def test_a_failure_is_data_while_another_attempt_clears_the_folder(tmp_path: Path) -> None:
    """As after a lost node, whose worker lives on: the first attempt says why it failed while a second one begins."""
    stage, store, left = toy("qat", fail="nan"), StageStore(tmp_path), threading.Event()
    begun = [0]

    def begin_again_and_again() -> None:
        while not left.is_set():
            store.open_work(stage)
            begun[0] += 1

    def fail(stage: Stage, root: Path, device: str) -> dict[str, Any]:
        raise ToyError("nan")

    store.open_work(stage)
    second = threading.Thread(target=begin_again_and_again)
    second.start()
    outcomes: set[tuple[str, str]] = set()
    while not outcomes or (second.is_alive() and begun[0] < 100):
        outcome = attempt(fail, stage, tmp_path, "cpu")
        outcomes.add((outcome.status, outcome.reason))
    left.set()
    second.join()
    assert outcomes == {("failed", "toy_stages.ToyError: nan")}


def test_waiting_for_nothing_returns_at_once(make: Make, tmp_path: Path) -> None:
    executor = make(tmp_path)
    run_all(executor, [toy("qat", number=1)])
    while isinstance(executor, RayExecutor) and executor.free() < WORKERS:
        assert executor.wait(60.0) == []  # the second worker's start
    assert executor.wait(60.0) == []


def test_equal_stages_give_equal_results_on_every_executor(ray_cluster: None, tmp_path: Path) -> None:
    parent = toy("full_precision", number=3)
    child = toy("qat", {"full_precision": parent}, number=4)
    for name, executor in {
        "local": LocalExecutor(tmp_path / "local", "cpu", work),
        "ray": RayExecutor(tmp_path / "ray", "cpu", 1, function=work),
    }.items():
        (tmp_path / name).mkdir()
        run_all(executor, [parent])
        run_all(executor, [child])
        executor.close()
    results = [StageStore(tmp_path / name).result(child.id) for name in ("local", "ray")]
    assert results[0] == results[1]
    assert results[0]["value"] == 7


def kill_the_worker_of(executor: RayExecutor, root: Path, stage: Stage, attempt: int) -> None:
    """Wait until the stage has begun its attempt, then kill its process."""
    file = StageStore(root).work_folder(stage) / "pid"
    for _ in range(600):
        if file.exists() and executed(root).count(stage.id) == attempt:
            pid = int(file.read_text() or 0)
            if pid:  # written to its end
                file.unlink()
                os.kill(pid, signal.SIGKILL)
                return
        assert executor.wait(0.1) == []
    raise AssertionError("the stage has not begun")


def test_a_killed_workers_stage_is_lost_and_can_be_done_by_its_successor(ray_cluster: None, tmp_path: Path) -> None:
    executor = RayExecutor(tmp_path, "cpu", 1, function=work)
    stage = toy("qat", number=1, hang=1)
    while not executor.free():
        executor.wait(60.0)
    executor.submit(stage)
    kill_the_worker_of(executor, tmp_path, stage, 1)
    (outcome,) = executor.wait(60.0)
    assert outcome.status == "lost"
    assert run_all(executor, [stage])[0].status == "done"
    executor.close()
    assert executed(tmp_path) == [stage.id, stage.id]


class Killer:
    """An observer that kills the worker of one stage whenever it is started, as often as it hangs."""

    def __init__(self, executor: RayExecutor, root: Path, stage: Stage) -> None:
        self._executor, self._root, self._stage = executor, root, stage
        self.outcomes: list[Outcome] = []
        self._started = 0

    def stage_started(self, stage: Stage) -> None:
        if stage.id == self._stage.id:
            self._started += 1
            if self._started <= stage.config["hang"]:
                kill_the_worker_of(self._executor, self._root, stage, self._started)

    def stage_ended(self, outcome: Outcome) -> None:
        self.outcomes.append(outcome)

    def job_ended(self, end: object) -> None:
        """Not needed here."""


@pytest.mark.parametrize(("kills", "failure"), [(1, False), (3, True)])
def test_a_launch_retries_a_lost_stage_a_bounded_number_of_times(
    ray_cluster: None, tmp_path: Path, kills: int, failure: bool
) -> None:
    stage = toy("qat", number=5, hang=kills)
    job = Job(RunConfig(variant="a"), (stage,))
    executor = RayExecutor(tmp_path, "cpu", 1, function=work)
    killer = Killer(executor, tmp_path, stage)
    (end,) = launch(Sweep([job], StageStore(tmp_path), lambda s: 1.0), executor, lambda e: None, [killer])
    executor.close()
    assert (end.failure is not None) is failure
    assert "lost its worker 3 times" in (end.failure or "lost its worker 3 times")
    assert [outcome.status for outcome in killer.outcomes] == ["lost"] * kills + ([] if failure else ["done"])


def test_a_worker_of_another_command_is_lost_and_runs_nothing(ray_cluster: None, tmp_path: Path) -> None:
    executor = RayExecutor(tmp_path, "cpu", 1, function=work)
    take_fence(tmp_path)  # as the next command would, had this one been killed
    (outcome,) = run_all(executor, [toy("qat", number=1)])
    executor.close()
    assert outcome.status == "lost"
    assert executed(tmp_path) == []


def test_relative_paths_begin_where_the_command_was_given(
    ray_cluster: None, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A cluster's workers are started elsewhere, and a data set's path may be relative."""
    monkeypatch.chdir(tmp_path)
    executor, stage = RayExecutor(tmp_path / "stages", "cpu", 1, function=tell_folder), toy("qat")
    run_all(executor, [stage])
    executor.close()
    assert StageStore(tmp_path / "stages").result(stage.id)["cwd"] == str(tmp_path)


def test_no_cluster_at_the_address_is_one_line() -> None:
    import ray

    if ray.is_initialized():
        ray.shutdown()
    with pytest.raises(ConfigError, match=r"no Ray cluster at '127\.0\.0\.1:1'") as caught:
        start_ray("127.0.0.1:1", 1, 1, 0)
    assert "\n" not in str(caught.value)


def test_one_line_keeps_our_own_messages_short() -> None:
    assert one_line(ValueError("a\n  b")) == "ValueError: a b"


def test_a_stage_has_one_thread_in_every_library(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Two threads add in another order, and a run on Ray (one thread) would not be reproduced in process."""
    import torch
    from threadpoolctl import threadpool_info

    from robuq import pipeline

    seen: dict[str, int] = {}

    def look(stage: Stage, store: StageStore, device: str) -> dict[str, Any]:
        seen.update({pool["filepath"]: pool["num_threads"] for pool in threadpool_info()})
        seen["torch"] = torch.get_num_threads()
        return {}

    monkeypatch.setattr(pipeline, "run_stage", look)
    run_stage(Stage("qat", "0" * 16, {}), tmp_path, "cpu")
    assert len(seen) > 1
    assert set(seen.values()) == {1}
