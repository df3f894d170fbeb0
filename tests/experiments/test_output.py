"""Records on the disk: found by name, sent once to each server, kept while it is away."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
from toy_stages import toy, work

from experiments.executors import LocalExecutor
from experiments.launch import Job, JobEnd, Sweep, launch
from experiments.one_run import differences
from experiments.output import Output
from experiments.recording import Recording
from robuq.config import ConfigError, RunConfig
from robuq.record.mlflow import read_runs, sqlite_uri
from robuq.record.run_record import RunRecord


def record(key: str = "a" * 16, plan: str = "p", **changes: Any) -> RunRecord:
    values = {"variant": "minmax", "label": "W1.58A2", "act_bits": 2.0, "seed": 0, "pretrain_seed": 0}
    rest = {"status": "finished", "protocol": "x", "dataset": "digits", "config": {}, "stages": {}}
    return RunRecord(**{"plan": plan, "key": key, **values, **rest, **changes})


@pytest.fixture
def output(tmp_path: Path) -> Output:
    return Output(tmp_path / "results")


def test_a_record_comes_back_as_it_was(output: Output) -> None:
    kept = record(metrics={"loss": 0.1 + 0.2}, history=[{"step": 1, "loss": 1e-300}])
    output.save(kept)
    assert output.record("p", kept.key) == kept
    assert output.record("q", kept.key) is None
    assert output.records() == [kept]


def test_a_run_is_found_by_key_beginning_and_name(output: Output) -> None:
    for key, changes in {"abc1": {}, "abd2": {"seed": 1}, "e3": {"label": "W1.58A4", "seed": 1}}.items():
        output.save(record(key, **changes))
    assert output.find("abc1").key == "abc1"
    assert output.find("abd").key == "abd2"
    assert output.find("minmax/0").key == "abc1"
    assert output.find("minmax/W1.58A4/1").key == "e3"
    with pytest.raises(ConfigError, match=r"fits 2 runs: abd2 \(minmax/W1\.58A2/1, plan p\), e3 \(.*\): give a key$"):
        output.find("minmax/1")
    with pytest.raises(ConfigError, match="'ab' fits 2 runs"):
        output.find("ab")
    with pytest.raises(ConfigError, match=r"no run 'zz' .*: there are minmax/W1\.58A2/0, "):
        output.find("zz")


def test_runs_of_one_name_are_told_apart_by_plan_and_settings(output: Output) -> None:
    """By the settings in which runs of one name differ, and no more of them than are needed."""
    configs = {
        "a1": {"train": {"lr": 1e-3, "steps": 9}, "ampn": None},
        "a2": {"train": {"lr": 3e-3, "steps": 9}, "ampn": None},
        "a3": {"train": {"lr": 1e-3, "steps": 9}, "ampn": {"measure": "loss"}},
    }
    for key, config in configs.items():
        output.save(record(key, config=config))
    output.save(record("a2", plan="q", config=configs["a2"]))
    output.save(record("b1", seed=1, config={"train": {"lr": 5.0}}))
    with pytest.raises(ConfigError) as caught:
        output.find("minmax/0")
    assert str(caught.value) == (
        "'minmax/0' fits 3 runs: a1 (plan p, ampn=none, train.lr=0.001), "
        "a2 (plan p and 1 more, ampn=none, train.lr=0.003), a3 (plan p, ampn=set, train.lr=0.001): give a key"
    )


def test_one_run_in_two_plans_is_one_run(output: Output) -> None:
    output.save(record("abc"))
    output.save(record("abc", plan="q"))
    assert output.find("abc").key == "abc"
    assert len(output.records("q")) == 1


def test_an_empty_folder_says_so(output: Output) -> None:
    with pytest.raises(ConfigError, match="it has none yet"):
        output.find("x")


def test_a_second_driver_is_refused(output: Output) -> None:
    other = Output(output.folder)
    with output.sweeping(), pytest.raises(ConfigError, match="another robuq command"), other.sweeping():
        raise AssertionError("two drivers at once")
    with other.sweeping():
        assert (output.folder / "sweep.lock").exists()


class Server:
    def __init__(self) -> None:
        self.got: list[RunRecord] = []

    def record(self, record: RunRecord) -> None:
        self.got.append(record)


def test_each_server_gets_each_state_of_a_record_once(output: Output) -> None:
    server, failed, done = Server(), record(status="failed", failure="nan"), record()
    output.save(failed)
    output.send(failed, "http://user:secret@a", server)
    assert output.unsent("p", "http://user:secret@a") == []
    assert output.unsent("p", "http://b") == [failed]
    output.save(done)  # launched again, and now it finished
    assert output.unsent("p", "http://user:secret@a") == [done]
    assert not any("secret" in file.read_text() for file in output.folder.rglob("*.sent"))


@pytest.fixture(scope="module")
def tracking(tmp_path_factory: pytest.TempPathFactory) -> str:
    """One store for all tests here, because a new one takes seconds; each test has a plan of its own."""
    return sqlite_uri(tmp_path_factory.mktemp("tracking") / "mlflow.db")


@pytest.fixture
def plan(request: pytest.FixtureRequest) -> str:
    return str(request.node.name)


def toy_job(number: int) -> Job:
    stages = (toy("qat", number=number), toy("evaluate", number=number))
    return Job(RunConfig(variant="minmax", seed=number), stages, "data")


def launched(plan: str, output: Output, jobs: list[Job], uri: str) -> Recording:
    recording = Recording(plan, output, uri)
    recording.open()
    sweep = Sweep(jobs, output.store, lambda s: 1.0)
    output.store.root.mkdir(parents=True, exist_ok=True)
    launch(sweep, LocalExecutor(output.store.root, "cpu", work), recording)
    return recording


def test_records_wait_while_the_server_is_away_and_are_sent_by_the_next_launch(
    output: Output, tmp_path: Path, tracking: str, plan: str
) -> None:
    (tmp_path / "blocked").write_text("a file where the store's folder should be")
    away = sqlite_uri(tmp_path / "blocked" / "mlflow.db")
    jobs = [toy_job(0), toy_job(1)]
    recording = launched(plan, output, jobs, away)
    assert recording.problem is not None
    assert recording.send_waiting() == 2
    recording = launched(plan, output, jobs[:1], tracking)
    assert recording.problem is None
    assert recording.send_waiting() == 0
    assert {run.key for run in read_runs(tracking, plan)} == {job.run.key() for job in jobs}


def test_launching_again_leaves_the_records_untouched(output: Output, tracking: str, plan: str) -> None:
    launched(plan, output, [toy_job(0)], tracking)
    states = {file: file.stat().st_mtime_ns for file in output.folder.rglob("*.json")}
    launched(plan, output, [toy_job(0)], tracking)
    assert {file: file.stat().st_mtime_ns for file in output.folder.rglob("*.json")} == states
    assert len(read_runs(tracking, plan)) == 1


def test_a_run_that_failed_and_finishes_later_replaces_its_record(output: Output, tracking: str, plan: str) -> None:
    job = toy_job(0)
    recording = Recording(plan, output, tracking)
    recording.open()
    recording(JobEnd(job, "qat: nan"))
    assert [run.status for run in read_runs(tracking, plan)] == ["failed"]
    launched(plan, output, [job], tracking)
    assert [run.status for run in read_runs(tracking, plan)] == ["finished"]


def test_differences_are_bitwise() -> None:
    one = record(metrics={"a": 0.3, "b": 1.0}, history=[{"step": 1, "loss": 1.0}], stages={"qat": "x"})
    assert differences(one, one) == []
    other = one.updated(metrics={"a": 0.1 + 0.2, "c": 1.0})
    assert differences(one, other) == [
        "a: recorded 0.3, now 0.30000000000000004",
        "b: recorded 1.0, now none",
        "c: recorded none, now 1.0",
    ]
    assert "training history" in differences(one, one.updated(history=[]))[0]
    assert "stages qat have other keys" in differences(one, one.updated(stages={"qat": "y"}))[0]


def test_a_tracking_file_that_was_removed_is_filled_again(output: Output, plan: str) -> None:
    launched(plan, output, [toy_job(0)], output.tracking_uri())
    output.tracking_file.unlink()
    launched(plan, output, [toy_job(0)], output.tracking_uri())
    assert [run.key for run in read_runs(output.tracking_uri(), plan)] == [toy_job(0).run.key()]
