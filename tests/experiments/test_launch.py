"""Launching: order, sharing, failure, resume; with real stages of a few lines."""

from __future__ import annotations

import threading
from pathlib import Path

import pytest
from toy_stages import executed, toy, work

from experiments.executors import LocalExecutor, Outcome
from experiments.launch import Job, JobEnd, Sweep, jobs_of, launch, missing
from experiments.plan import load_plan
from robuq.config import RunConfig
from robuq.stages import Stage, StageStore, stages_of


def job(name: str, *stages: Stage) -> Job:
    return Job(RunConfig(variant=name), stages)


def chain(name: str, shared: Stage, number: int, **more: str) -> Job:
    qat = toy("qat", {"full_precision": shared}, number=number, **more)
    return job(name, shared, qat, toy("evaluate", {"qat": qat}, number=0))


def run(root: Path, jobs: list[Job]) -> list[JobEnd]:
    recorded: list[JobEnd] = []
    ends = launch(Sweep(jobs, StageStore(root), lambda s: 1.0), LocalExecutor(root, "cpu", work), recorded.append)
    assert recorded == ends
    return ends


SHARED = toy("full_precision", number=100)


def test_shared_stages_run_once_and_values_flow_along(tmp_path: Path) -> None:
    jobs = [chain(str(number), SHARED, number) for number in range(5)]
    assert [end.failure for end in run(tmp_path, jobs)] == [None] * 5
    assert executed(tmp_path).count(SHARED.id) == 1
    assert len(executed(tmp_path)) == 1 + 5 * 2
    values = [StageStore(tmp_path).result(job.stages[-1].id)["value"] for job in jobs]
    assert values == [100, 101, 102, 103, 104]


def test_a_stage_never_starts_before_its_inputs_are_done(tmp_path: Path) -> None:
    jobs = [chain(str(number), SHARED, number) for number in range(3)]
    run(tmp_path, list(reversed(jobs)))
    order = executed(tmp_path)
    for stage in {stage.id: stage for job in jobs for stage in job.stages}.values():
        assert all(order.index(parent) < order.index(stage.id) for parent in stage.inputs.values())


def test_launching_again_executes_nothing(tmp_path: Path) -> None:
    jobs = [chain(str(number), SHARED, number) for number in range(3)]
    run(tmp_path, jobs)
    before = executed(tmp_path)
    assert len(run(tmp_path, jobs)) == 3
    assert executed(tmp_path) == before
    assert missing(jobs, StageStore(tmp_path)) == {}


def test_adding_a_run_executes_only_what_is_its_own(tmp_path: Path) -> None:
    run(tmp_path, [chain("0", SHARED, 0)])
    before = len(executed(tmp_path))
    added = chain("1", SHARED, 1)
    run(tmp_path, [chain("0", SHARED, 0), added])
    assert executed(tmp_path)[before:] == [stage.id for stage in added.stages[1:]]


def test_a_failure_fails_what_depends_on_it_and_the_sweep_goes_on(tmp_path: Path) -> None:
    bad = chain("bad", SHARED, 1, fail="loss is nan")
    good = [chain(str(number), SHARED, number) for number in range(2)]
    ends = {end.job.run.variant: end.failure for end in run(tmp_path, [bad, *good])}
    assert ends["0"] is None
    assert ends["1"] is None
    assert ends["bad"] == f"qat {bad.stages[1].key}: toy_stages.ToyError: loss is nan"
    assert bad.stages[2].id not in executed(tmp_path)


def test_a_failed_shared_stage_fails_all_its_runs_and_nothing_is_done_for_them(tmp_path: Path) -> None:
    shared, other = toy("full_precision", fail="no data"), toy("features", number=1)
    jobs = [chain(str(number), shared, number) for number in range(3)]
    jobs = [Job(j.run, (*j.stages[:2], other, j.stages[2])) for j in jobs]
    ends = run(tmp_path, jobs)
    assert [end.failure for end in ends] == [f"full_precision {shared.key}: toy_stages.ToyError: no data"] * 3
    assert executed(tmp_path) == [shared.id]


def test_a_failed_stage_is_tried_again_by_the_next_launch(tmp_path: Path) -> None:
    bad = chain("bad", SHARED, 1, fail="nan")
    run(tmp_path, [bad])
    run(tmp_path, [bad])
    assert executed(tmp_path) == [SHARED.id, bad.stages[1].id, bad.stages[1].id]


def test_longest_remaining_path_first(tmp_path: Path) -> None:
    """Two chains of three stages and one short job: the short one, listed first, waits."""
    short = job("short", toy("qat", number=1))
    long = [chain(str(number), toy("full_precision", number=number), number) for number in (1, 2)]
    sweep = Sweep([short, *long], StageStore(tmp_path), lambda s: 1.0)
    assert [stage.id for stage in sweep.ready()] == [long[0].stages[0].id, long[1].stages[0].id, short.stages[0].id]


def test_estimates_decide_between_equally_long_chains(tmp_path: Path) -> None:
    jobs = [job(str(number), toy("qat", number=number)) for number in (1, 3, 2)]
    sweep = Sweep(jobs, StageStore(tmp_path), lambda stage: float(stage.config["number"]))
    assert [stage.config["number"] for stage in sweep.ready()] == [3, 2, 1]
    assert sweep.seconds_left(2) == pytest.approx(3.0)


def test_runs_end_along_the_way_while_there_is_plenty_to_do(tmp_path: Path) -> None:
    jobs = [chain(str(number), SHARED, number) for number in range(8)]
    run(tmp_path, jobs)
    kinds = [stage_id.split("/")[0] for stage_id in executed(tmp_path)]
    assert kinds[:5] == ["full_precision", "qat", "evaluate", "qat", "evaluate"]


def test_a_lost_stage_is_retried_twice_and_then_failed(tmp_path: Path) -> None:
    stage = toy("qat", number=1)
    sweep = Sweep([job("a", stage)], StageStore(tmp_path), lambda s: 1.0)
    for _ in range(2):
        sweep.start(stage)
        sweep.settle(Outcome(stage, "lost", "gone"))
        assert [ready.id for ready in sweep.ready()] == [stage.id]
        assert sweep.ended_jobs() == []
    sweep.start(stage)
    sweep.settle(Outcome(stage, "lost", "gone"))
    (end,) = sweep.ended_jobs()
    assert end.failure == f"qat {stage.key}: lost its worker 3 times: gone"
    assert sweep.is_over()


def test_recording_has_a_thread_of_its_own_and_its_errors_are_not_swallowed(tmp_path: Path) -> None:
    threads = []

    def record(end: JobEnd) -> None:
        threads.append(threading.current_thread())
        raise OSError("disk is full")

    sweep = Sweep([chain("0", SHARED, 0)], StageStore(tmp_path), lambda s: 1.0)
    with pytest.raises(OSError, match="disk is full"):
        launch(sweep, LocalExecutor(tmp_path, "cpu", work), record)
    assert threads[0] is not threading.main_thread()


def test_jobs_that_come_in_see_how_earlier_ones_ended(tmp_path: Path) -> None:
    """Each job's number is the value that the one before ended with; one at a time, because one worker is free."""
    ended: list[int] = []

    class Watcher:
        def stage_started(self, stage: Stage) -> None: ...

        def stage_ended(self, outcome: Outcome) -> None: ...

        def job_ended(self, end: JobEnd) -> None:
            ended.append(StageStore(tmp_path).result(end.job.stages[-1].id)["value"])

    def more(free: int) -> list[Job]:
        """Room for none while a stage of the job before is ready."""
        return [chain(str(len(ended)), SHARED, 1 + sum(ended))] if free and len(ended) < 3 else []

    sweep = Sweep([], StageStore(tmp_path), lambda s: 1.0)
    ends = launch(sweep, LocalExecutor(tmp_path, "cpu", work), lambda end: None, [Watcher()], more)
    assert ended == [101, 202, 404]
    assert len(ends) == 3
    assert executed(tmp_path).count(SHARED.id) == 1


def test_jobs_that_come_in_finished_are_passed_through(tmp_path: Path) -> None:
    jobs = [chain(str(number), SHARED, number) for number in range(3)]
    run(tmp_path, jobs)
    before, left = executed(tmp_path), list(jobs)
    sweep = Sweep([], StageStore(tmp_path), lambda s: 1.0)
    executor = LocalExecutor(tmp_path, "cpu", work)
    ends = launch(sweep, executor, lambda end: None, [], lambda free: [left.pop()] if left else [])
    assert [end.failure for end in ends] == [None] * 3
    assert executed(tmp_path) == before


def test_jobs_have_the_stages_of_their_runs() -> None:
    runs = load_plan("smoke").runs
    jobs = jobs_of(runs)
    assert [job.stages for job in jobs] == [stages_of(job.run, job.data) for job in jobs]
    kinds = [stage.kind for stage in {stage.id: stage for job in jobs for stage in job.stages}.values()]
    assert kinds.count("full_precision") == kinds.count("features") == 1
    assert kinds.count("qat") == kinds.count("evaluate") == len(runs)
