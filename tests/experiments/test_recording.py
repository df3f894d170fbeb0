"""Requests that the tracking server refuses: a record waits, a URI that names nothing is a mistake."""

from __future__ import annotations

import shutil
import sys
from pathlib import Path
from typing import Any

import pytest
from command_in_process import finished_record
from toy_stages import toy

from experiments import cli
from experiments.executors import LocalExecutor
from experiments.launch import Job, Sweep, launch
from experiments.output import Output
from experiments.plan import build_plan
from experiments.recording import Recording
from experiments.reporting import write_plan_report
from robuq.config import ConfigError, RunConfig
from robuq.record.mlflow import MlflowRecorder, read_runs
from robuq.stages import Stage, StageStore

UNUSABLE = "foo://user:hunter2@host/x"
TINY = "name: tiny\npreset: nano\ngrid: {variant: [minmax]}\n"


@pytest.fixture
def output(tmp_path: Path) -> Output:
    return Output(tmp_path / "results")


def toy_job(seed: int, metric: str) -> Job:
    return Job(RunConfig(variant="minmax", seed=seed), (toy("evaluate", number=seed, metric=metric),), "data")


def work(stage: Stage, root: Path, device: str) -> dict[str, Any]:
    result = {"metrics": {stage.config["metric"]: 1.0}, "seconds": 0.0}
    store = StageStore(root)
    store.open_work(stage)
    store.commit(stage, result)
    return result


def test_a_refused_record_waits_and_the_others_are_sent(output: Output) -> None:
    """MLflow takes no metric with a question mark in its name."""
    jobs = [toy_job(0, "loss"), toy_job(1, "loss?"), toy_job(2, "loss")]
    output.store.root.mkdir(parents=True)
    recording = Recording("p", output, output.tracking_uri())
    recording.open()
    sweep = Sweep(jobs, output.store, lambda s: 1.0)
    ends = launch(sweep, LocalExecutor(output.store.root, "cpu", work), recording)
    assert [end.failure for end in ends] == [None] * 3
    assert recording.send_waiting() == 1
    refused = jobs[1].run.key()
    assert recording.problem is not None
    assert recording.problem.startswith(f"run {refused}: ")
    assert "refused the request: INVALID_PARAMETER_VALUE" in recording.problem
    assert "\n" not in recording.problem
    finished = [run.key for run in read_runs(output.tracking_uri(), "p") if run.status == "finished"]
    assert {jobs[0].run.key(), jobs[2].run.key()} <= set(finished)
    assert output.record("p", refused) is not None


def test_a_uri_that_names_nothing_is_a_mistake_of_the_user(output: Output) -> None:
    with pytest.raises(ConfigError, match=r"--tracking-uri foo://\*\*\*@host/x refused the request.*; use http://"):
        Recording("p", output, UNUSABLE).open()


@pytest.mark.parametrize(
    "words",
    [
        ["sweep", "{plan}", "--executor", "local", "--tracking-uri", UNUSABLE],
        ["report", "{plan}", "--tracking-uri", UNUSABLE],
        ["train", "minmax", "--preset", "nano", "--tracking-uri", UNUSABLE],
    ],
)
def test_commands_refuse_it_in_one_line_before_anything_runs(
    words: list[str], tmp_path: Path, capfd: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    (plan := tmp_path / "tiny.yaml").write_text(TINY)
    given = [word.format(plan=plan) for word in words]
    monkeypatch.setattr(sys, "argv", ["robuq", *given, "--output", str(tmp_path / "results")])
    capfd.readouterr()
    with pytest.raises(SystemExit) as ended:
        cli.main()
    error = capfd.readouterr().err
    assert ended.value.code == 2
    assert "--tracking-uri: foo://***@host/x: foo is none of http, https, sqlite, postgresql, mysql, mssql" in error
    assert len(error.splitlines()) == 1
    assert not list(tmp_path.rglob("*.work"))


def recorded_plan(output: Output, tokens: Path) -> Any:
    plan = build_plan({"name": "tiny", "preset": "nano", "grid": {"variant": ["minmax"]}})
    (run,) = plan.runs
    metrics, files = {"held_out_loss": 0.1}, {"tokens.npz": str(tokens)}
    record = finished_record(run, "tiny", metrics=metrics, artifacts=files)
    MlflowRecorder(output.tracking_uri(), output.folder / "artifacts").record(record)
    return plan


def test_a_report_whose_artefact_is_gone_says_which(output: Output, tmp_path: Path) -> None:
    (tmp_path / "tokens.npz").write_bytes(b"not read")
    plan = recorded_plan(output, tmp_path / "tokens.npz")
    shutil.rmtree(output.folder / "artifacts")
    with pytest.raises(ConfigError, match=r"^tiny: artefact .*tokens\.npz is gone: restore it, or send") as caught:
        write_plan_report(plan, output, output.tracking_uri())
    assert "\n" not in str(caught.value)


def test_a_report_of_an_unknown_store_is_one_line(output: Output) -> None:
    plan = build_plan({"name": "tiny", "preset": "nano", "grid": {"variant": ["minmax"]}})
    with pytest.raises(ConfigError, match=r"^tiny: foo://\*\*\*@host/x refused the request"):
        write_plan_report(plan, output, UNUSABLE)
