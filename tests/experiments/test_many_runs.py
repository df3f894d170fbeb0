"""Plans of hundreds of runs: shared parts change nothing, the tables stay short, a continued sweep reads what it must
and notices what has changed."""

from __future__ import annotations

import io
import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import pytest
from rich.console import Console

from experiments.estimate import LEARNT_FROM, Estimator, rough_seconds
from experiments.executors import LocalExecutor
from experiments.launch import Job, JobEnd, Sweep, jobs_of, launch
from experiments.output import Output
from experiments.overview import SHOWN_RUNS, plan_data, print_plan, print_status, status_data
from experiments.plan import Plan, build_plan
from experiments.recording import Recording
from robuq.stages import PlainRuns, Stage, StageStore, stages_of

ROWS, SEEDS = 4, 75


@pytest.fixture(scope="module")
def plan() -> Plan:
    grid = {"variant": ["minmax", "robuq"], "act_bits": [4, 2]}
    return build_plan({"name": "many", "preset": "nano", "grid": grid, "seeds": list(range(SEEDS))})


@pytest.fixture(scope="module")
def jobs(plan: Plan) -> list[Job]:
    return jobs_of(plan.runs)


def write(stage: Stage, root: Path, device: str) -> Mapping[str, Any]:
    """A stage that only says it is done."""
    store = StageStore(root)
    store.open_work(stage)
    result = {"seconds": 3 * rough_seconds(stage.kind, stage.config), "metrics": {"held_out_loss": 0.5}}
    store.commit(stage, result)
    return result


def text_of(show: Any, data: dict[str, Any]) -> list[str]:
    console = Console(file=io.StringIO(), width=200)
    show(data, console)
    assert isinstance(console.file, io.StringIO)
    return console.file.getvalue().splitlines()


def test_shared_parts_change_no_run_and_no_stage(plan: Plan, jobs: list[Job]) -> None:
    shared = PlainRuns()
    for job in jobs[:: len(jobs) // 40]:
        run = type(job.run).parse(json.loads(job.run.to_json()))  # with nothing shared
        assert run == job.run
        assert run.key() == job.run.key() == run.updated(variant="").digest()[:16]
        assert shared.of(job.run) == run.model_dump(mode="json")
        alone = stages_of(run, job.data)
        assert alone == job.stages == stages_of(job.run, job.data, shared.of(job.run))
    assert len({job.run.key() for job in jobs}) == len(jobs) == ROWS * SEEDS


def test_other_seeds_are_those_of_a_run_made_anew(plan: Plan) -> None:
    run = plan.runs[0]
    run.key()
    other = run.with_seeds(7, 3)
    assert other == run.updated(seed=7, pretrain_seed=3)
    assert other.key() == run.updated(seed=7, pretrain_seed=3).key() != run.key()


def test_a_long_plan_shows_its_beginning_and_says_so(plan: Plan, jobs: list[Job], tmp_path: Path) -> None:
    data = plan_data(plan, jobs, Output(tmp_path), 2)
    assert len(data["runs"]) == len(jobs)
    assert data["stages"]["qat"] == {"distinct": len(jobs), "of": len(jobs), "missing": len(jobs)}
    assert data["stages"]["full_precision"] == {"distinct": SEEDS, "of": len(jobs), "missing": SEEDS}
    lines = text_of(print_plan, data)
    assert f"and {len(jobs) - SHOWN_RUNS} more runs; --json lists all" in lines
    assert sum(line.split()[0] in {run["key"][:8] for run in data["runs"]} for line in lines if line) == SHOWN_RUNS


def test_the_status_of_a_long_plan_shows_what_needs_a_look_first(plan: Plan, jobs: list[Job], tmp_path: Path) -> None:
    output = Output(tmp_path)
    done, begun, bad = jobs[0], jobs[-2], jobs[-1]
    for stage in done.stages:
        write(stage, output.store.root, "cpu")
    output.store.open_work(begun.stages[-2])
    output.store.open_work(bad.stages[-2])
    output.store.fail(bad.stages[-2], "diverged", "at step 3")
    data = status_data(plan, jobs, output)
    assert [run["state"] for run in data["runs"][-2:]] == ["started", "failed"]
    assert data["counts"]["finished"] == 1
    lines = text_of(print_status, data)
    assert [line.split()[0] for line in lines[1:3]] == [bad.run.key()[:8], begun.run.key()[:8]]
    assert f"and {len(jobs) - SHOWN_RUNS} more runs; --json lists all" in lines
    assert len([line for line in lines if "waiting " in line]) == SHOWN_RUNS - 2


def test_estimates_learn_from_some_of_many_stages(jobs: list[Job], tmp_path: Path) -> None:
    stages = {stage.id: stage for job in jobs for stage in job.stages if stage.kind == "qat"}
    for stage in stages.values():
        write(stage, tmp_path, "cpu")
    assert len(stages) > LEARNT_FROM
    stage = next(iter(stages.values()))
    assert Estimator(StageStore(tmp_path)).seconds(stage) == pytest.approx(3 * rough_seconds("qat", stage.config))


class CountingRecorder:
    """A server that only remembers."""

    def __init__(self) -> None:
        self.keys: list[str] = []

    def record(self, record: Any) -> None:
        self.keys.append(record.key)

    def record_search(self, record: Any) -> None:
        raise AssertionError("no search is recorded here")


def test_a_sweep_that_is_continued_sends_only_what_has_changed(jobs: list[Job], tmp_path: Path) -> None:
    """Every stage is done by the first launch; afterwards one record is damaged, one changed, and one not marked."""
    output, some = Output(tmp_path), jobs[: 2 * ROWS * 10]

    def launched() -> list[str]:
        recording, server = Recording("many", output, "http://server"), CountingRecorder()
        recording._recorder = server
        ends = launch(
            Sweep(some, output.store, lambda stage: 1.0), LocalExecutor(output.store.root, function=write), recording
        )
        assert [end.failure for end in ends] == [None] * len(some)
        assert recording.send_waiting() == 0
        return server.keys

    assert sorted(launched()) == sorted(job.run.key() for job in some)
    assert launched() == []
    changed, unmarked, other = (job.run.key() for job in some[3:6])
    file = tmp_path / "runs" / "many" / f"{changed}.json"
    file.write_text(json.dumps(json.loads(file.read_text()) | {"started": 7.0}))
    (tmp_path / "runs" / "many" / f"{unmarked}.sent").unlink()
    file = tmp_path / "runs" / "many" / f"{other}.json"
    file.write_text(json.dumps(json.loads(file.read_text()), indent=4))  # says the same in other words
    assert sorted(launched()) == sorted([changed, unmarked])
    assert launched() == []


def test_a_record_of_other_stages_is_made_anew(jobs: list[Job], tmp_path: Path) -> None:
    output, job = Output(tmp_path), jobs[0]
    recording, server = Recording("many", output, "http://server"), CountingRecorder()
    recording._recorder = server
    for stage in job.stages:
        write(stage, output.store.root, "cpu")
    recording(JobEnd(job, None))
    other = Job(job.run, jobs[1].stages[:-1] + job.stages[-1:], job.data)
    recording(JobEnd(other, None))
    record = output.record("many", job.run.key())
    assert record is not None
    assert record.stages == {stage.kind: stage.key for stage in other.stages}
    assert server.keys == [job.run.key()] * 2
