from __future__ import annotations

import gc
import json
import math
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image

from robuq.config import LowRank, RunConfig, TrainConfig
from robuq.record.layout import metric_name, metric_rows, recorded_name
from robuq.record.mlflow import (
    MlflowRecorder,
    TrackingRefused,
    TrackingUnavailable,
    connect,
    fetch_artifact,
    read_history,
    read_record,
    read_runs,
    reader,
    redacted,
    sqlite_uri,
)
from robuq.record.mlflow import client as mlflow_client
from robuq.record.run_record import RunRecord
from robuq.variants import variant

Plan = Callable[..., RunRecord]


@pytest.fixture(scope="module")
def uri(tmp_path_factory: pytest.TempPathFactory) -> str:
    return sqlite_uri(tmp_path_factory.mktemp("store") / "mlflow.db")


@pytest.fixture(scope="module")
def recorder(uri: str) -> MlflowRecorder:
    return MlflowRecorder(uri)


@pytest.fixture
def make(request: pytest.FixtureRequest) -> Plan:
    """Records of a plan of the test's own, so that tests share a store."""

    def make(seed: int = 0, steps: int = 5, **changes: Any) -> RunRecord:
        config = RunConfig(
            variant="robuq_uniform", precision=variant("robuq_uniform", 2), seed=seed, train=TrainConfig(lr=1 / 3)
        )
        history = [{"step": float(i), "loss": 1 / i, "lr": 1e-3 / 3} for i in range(1, steps + 1)]
        values: dict[str, Any] = {
            "plan": request.node.name.replace("/", "_"),  # parameters are in it, addresses too
            "key": config.key(),
            "variant": config.variant,
            "label": config.label,
            "act_bits": 2.0,
            "seed": seed,
            "pretrain_seed": 0,
            "status": "finished",
            "protocol": "aaaaaaaaaaaa",
            "dataset": "digits",
            "config": config.model_dump(mode="json"),
            "stages": {"qat": "0" * 16, "evaluate": "1" * 16},
            "seconds": {"qat": 1 / 3},
            "metrics": {"held_out_loss": 0.1 + 0.2, "qat.train_loss": 0.25},
            "history": history,
            "layers": [{"step": 5, "layer": "transformer_blocks.0.qkv", "sqnr_db": 9.25}],
            "git": {"commit": "c" * 40, "dirty": "false"},
            "versions": {"torch": "2.13.0"},
            "started": 1_700_000_000.25,
            "finished": 1_700_000_060.5,
        }
        return RunRecord(**(values | changes))

    return make


def runs_of(uri: str, plan: str) -> list[Any]:
    client = connect(uri)
    return list(client.search_runs([client.get_experiment_by_name(plan).experiment_id]))


def points_of(uri: str, run_id: str, name: str) -> list[tuple[int, float]]:
    return [(point.step, point.value) for point in connect(uri).get_metric_history(run_id, name)]


def test_a_record_comes_back_whole(uri: str, recorder: MlflowRecorder, make: Plan) -> None:
    record = make()
    recorder.record(record)
    (light,) = read_runs(uri, record.plan)
    assert read_record(uri, light).updated(artifacts={}) == record


def test_the_light_record_agrees_with_the_whole_one(uri: str, recorder: MlflowRecorder, make: Plan) -> None:
    record = make(act_bits=None)
    recorder.record(record)
    (light,) = read_runs(uri, record.plan)
    left_out = {"config", "history", "layers", "artifacts"}
    assert light.model_dump(exclude=left_out) == record.model_dump(exclude=left_out)
    assert light.config["train"] == {"steps": 300, "lr": 1 / 3, "batch_size": 64}  # floats survive exactly


def test_what_the_user_interface_shows(uri: str, recorder: MlflowRecorder, make: Plan) -> None:
    run_id = recorder.record(make(seed=3))
    run = connect(uri).get_run(run_id)
    assert run.info.run_name == "robuq_uniform/W1.58A2/3"
    assert run.info.status == "FINISHED"
    assert (run.info.start_time, run.info.end_time) == (1_700_000_000_250, 1_700_000_060_500)
    assert len(run.data.params) <= 15
    assert run.data.params["label"] == "W1.58A2"
    assert run.data.tags["mlflow.source.git.commit"] == "c" * 40
    assert "W1.58A2 on digits" in run.data.tags["mlflow.note.content"]
    assert f"robuq reproduce {make(seed=3).key}" in run.data.tags["mlflow.note.content"]
    assert all(run.data.tags.values())  # no empty ones
    assert "train/loss" in run.data.metrics
    assert points_of(uri, run_id, "train/loss") == [(i, 1 / i) for i in range(1, 6)]
    assert points_of(uri, run_id, "evaluate/held_out_loss") == [(0, 0.1 + 0.2)]
    experiment = connect(uri).get_experiment(run.info.experiment_id)
    assert f"plan `{make().plan}`" in experiment.tags["mlflow.note.content"]


@pytest.mark.parametrize(
    ("name", "shown"),
    [
        ("held_out_loss", "evaluate/held_out_loss"),
        ("held_out_loss_bin_3", "timesteps/held_out_loss_bin_3"),
        ("average_bits_macs", "model_cost/average_bits_macs"),
        ("bops", "model_cost/bops"),
        ("qat.train_loss", "qat/train_loss"),
        ("qat.of.two.parts", "qat/of.two.parts"),
    ],
)
def test_metrics_are_shown_in_groups_and_read_back_under_their_own_names(name: str, shown: str) -> None:
    assert metric_name(name) == shown
    assert recorded_name(shown) == name


def test_a_metric_added_by_hand_keeps_its_name() -> None:
    assert recorded_name("votes") == "votes"


def test_the_same_record_twice_changes_nothing(uri: str, recorder: MlflowRecorder, make: Plan) -> None:
    first = recorder.record(make())
    before = connect(uri).get_run(first).to_dictionary()
    assert MlflowRecorder(uri).record(make()) == first
    assert connect(uri).get_run(first).to_dictionary() == before
    assert len(runs_of(uri, make().plan)) == 1


def test_a_failed_run_that_finishes_later_is_continued(uri: str, recorder: MlflowRecorder, make: Plan) -> None:
    failed = make(steps=3, status="failed", failure="worker lost", metrics={}, finished=1_700_000_030.0)
    run_id = recorder.record(failed)
    assert connect(uri).get_run(run_id).info.status == "FAILED"
    assert read_runs(uri, failed.plan)[0].failure == "worker lost"
    assert recorder.record(make()) == run_id
    run = connect(uri).get_run(run_id)
    assert run.info.status == "FINISHED"
    assert run.data.metrics["evaluate/held_out_loss"] == 0.1 + 0.2
    assert points_of(uri, run_id, "train/loss") == [(i, 1 / i) for i in range(1, 6)]
    assert read_runs(uri, failed.plan)[0].failure is None
    assert "robuq.failure" not in run.data.tags


def test_a_record_that_was_cut_off_is_completed(
    uri: str, recorder: MlflowRecorder, make: Plan, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The connection breaks after the first batch of metrics."""
    record = make(steps=700)
    sent: list[int] = []
    real = recorder._client.log_batch

    def break_off(run_id: str, **data: Any) -> None:
        if sent:
            raise ConnectionError("gone")
        sent.append(1)
        real(run_id, **data)

    with monkeypatch.context() as patch:
        patch.setattr(recorder._client, "log_batch", break_off)
        with pytest.raises(TrackingUnavailable):
            recorder.record(record)
    run_id = recorder.record(record)
    assert len(runs_of(uri, record.plan)) == 1
    assert points_of(uri, run_id, "train/loss") == [(i, 1 / i) for i in range(1, 701)]
    assert connect(uri).get_run(run_id).info.status == "FINISHED"


@pytest.mark.parametrize("change", [{"metrics": {"held_out_loss": 0.5}}, {"variant": "renamed"}])
def test_a_contradicting_record_replaces_the_run(
    uri: str, recorder: MlflowRecorder, make: Plan, change: dict[str, Any]
) -> None:
    old = recorder.record(make())
    new = recorder.record(make(**change))
    assert new != old
    (light,) = read_runs(uri, make().plan)
    assert {name: getattr(light, name) for name in change} == change
    assert connect(uri).get_run(old).info.lifecycle_stage == "deleted"


def test_batches_keep_mlflows_limit_and_every_value(uri: str, recorder: MlflowRecorder, make: Plan) -> None:
    record = make(steps=1201)
    run_id = recorder.record(record)
    for name in ("train/loss", "train/lr"):
        assert len(points_of(uri, run_id, name)) == 1201


def test_timestamps_run_from_start_to_end(make: Plan) -> None:
    times = [time for name, _, time, _ in metric_rows(make()) if name == "train/loss"]
    assert times == sorted(times)
    assert (times[0] > 1_700_000_000_250, times[-1]) == (True, 1_700_000_060_500)
    assert metric_rows(make(history=[], started=0.0, finished=0.0))[0][2:] == (0, 0)


def test_artefacts(uri: str, recorder: MlflowRecorder, make: Plan, tmp_path: Path) -> None:
    images = np.arange(12 * 8 * 8, dtype=np.uint8).reshape(12, 8, 8, 1)
    np.savez(tmp_path / "samples.npz", images=images, labels=np.arange(12))
    record = make(artifacts={"samples.npz": str(tmp_path / "samples.npz"), "tokens.npz": str(tmp_path / "gone.npz")})
    recorder.record(record)
    (light,) = read_runs(uri, record.plan)
    files = {name: fetch_artifact(uri, location) for name, location in light.artifacts.items()}
    assert set(files) == {
        "config.json", "bits.json", "history.jsonl", "layers.jsonl", "record.json", "samples.npz", "samples.png",
    }  # fmt: skip
    assert RunConfig.parse(json.loads(files["config.json"].read_text())).key() == record.key
    bits = json.loads(files["bits.json"].read_text())
    rank = LowRank().rank_of(64, 256)  # of fc2 at width 64
    assert bits["transformer_blocks.0.ff.net.2"] == {"act_bits": 2, "rank": rank, "weight_bits": math.log2(3)}
    assert bits["transformer_blocks.3.attn1"] == {"act_bits": 8, "rank": 0, "weight_bits": None}
    assert read_history(uri, light.artifacts["history.jsonl"]) == record.history
    assert read_history(uri, light.artifacts["layers.jsonl"]) == record.layers
    with Image.open(files["samples.png"]) as grid:
        assert grid.size == (6 * (10 * 9 + 1), 6 * (2 * 9 + 1))  # two rows of ten, six-fold
    assert all(file.is_relative_to(Path(recorder.artifact_root or "")) for file in files.values())


def test_an_artefact_that_is_gone_says_so(uri: str, tmp_path: Path) -> None:
    with pytest.raises(FileNotFoundError, match=r"^artefact .* is gone: restore it, or send"):
        fetch_artifact(uri, (tmp_path / "samples.npz").as_uri())


def test_runs_and_plans_deleted_by_hand_come_back(uri: str, recorder: MlflowRecorder, make: Plan) -> None:
    client = connect(uri)
    client.delete_run(recorder.record(make()))
    client.delete_experiment(client.get_experiment_by_name(make().plan).experiment_id)
    MlflowRecorder(uri).record(make())
    assert [run.key for run in read_runs(uri, make().plan)] == [make().key]


def test_foreign_runs_are_passed_over(uri: str, recorder: MlflowRecorder, make: Plan) -> None:
    recorder.record(make())
    client = connect(uri)
    client.create_run(client.get_experiment_by_name(make().plan).experiment_id)
    assert len(read_runs(uri, make().plan)) == 1


def test_many_pages(uri: str, recorder: MlflowRecorder, make: Plan, monkeypatch: pytest.MonkeyPatch) -> None:
    for seed in range(5):
        recorder.record(make(seed=seed, started=1_700_000_000.0 - seed))
    monkeypatch.setattr(mlflow_client, "PAGE", 2)
    monkeypatch.setattr(reader, "look_in_file", lambda uri, experiment, known: None)  # as of a server
    assert [run.seed for run in read_runs(uri, make().plan)] == [4, 3, 2, 1, 0]  # oldest first


# --- the report ---------------------------------------------------------------------------------------------------


@pytest.fixture
def report(tmp_path: Path) -> Callable[..., list[Path]]:
    """Files of a report, in a new folder, each with the same text."""

    def write(text: str, *names: str) -> list[Path]:
        (folder := tmp_path / text).mkdir()
        files = [folder / name for name in names]
        for file in files:
            file.write_text(text)
        return files

    return write


def report_texts(uri: str, run_id: str) -> dict[str, str]:
    client = connect(uri)
    paths = [file.path for file in client.list_artifacts(run_id, "report")]
    root = client.get_run(run_id).info.artifact_uri
    return {path: fetch_artifact(uri, f"{root}/{path}").read_text() for path in paths}


def test_a_report_is_one_run_that_is_kept_up_to_date(
    uri: str, recorder: MlflowRecorder, make: Plan, report: Callable[..., list[Path]]
) -> None:
    plan = make().plan
    recorder.record(make())
    run_id = recorder.attach_report(plan, report("old", "report.md"))
    assert MlflowRecorder(uri).attach_report(plan, report("new", "report.md", "curves.png")) == run_id
    assert report_texts(uri, run_id) == {"report/report.md": "new", "report/curves.png": "new"}
    (run,) = (run for run in runs_of(uri, plan) if run.data.tags.get("robuq.report") == plan)
    assert (run.info.run_id, run.info.run_name, run.info.status) == (run_id, "report", "FINISHED")
    page = f"[report.md](#/experiments/{run.info.experiment_id}/runs/{run_id}/artifacts/report/report.md)"
    assert page in run.data.tags["mlflow.note.content"]


def test_a_report_leaves_no_file_of_the_one_before(
    uri: str, recorder: MlflowRecorder, make: Plan, report: Callable[..., list[Path]]
) -> None:
    plan = make().plan
    old = recorder.attach_report(plan, report("old", "report.md", "curves.png"))
    new = recorder.attach_report(plan, report("new", "report.md"))
    assert report_texts(uri, new) == {"report/report.md": "new"}
    assert [run.info.run_id for run in runs_of(uri, plan)] == [new]
    assert connect(uri).get_run(old).info.lifecycle_stage == "deleted"


def test_a_report_is_no_record(
    uri: str, recorder: MlflowRecorder, make: Plan, report: Callable[..., list[Path]]
) -> None:
    recorder.record(make())
    recorder.attach_report(make().plan, report("text", "report.md"))
    assert len(runs_of(uri, make().plan)) == 2
    assert [run.key for run in read_runs(uri, make().plan)] == [make().key]
    recorder.record(make(seed=1))
    assert {run.seed for run in read_runs(uri, make().plan)} == {0, 1}


def test_a_report_that_was_cut_off_is_not_finished_and_is_completed(
    uri: str,
    recorder: MlflowRecorder,
    make: Plan,
    report: Callable[..., list[Path]],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    plan, files = make().plan, report("text", "report.md", "curves.png")
    run_id = recorder.attach_report(plan, files)

    def break_off(*given: object) -> None:
        raise ConnectionError("gone")

    with monkeypatch.context() as patch:
        patch.setattr(recorder._client, "log_artifact", break_off)
        with pytest.raises(TrackingUnavailable):
            recorder.attach_report(plan, files)
    assert connect(uri).get_run(run_id).info.status == "RUNNING"
    assert recorder.attach_report(plan, files) == run_id
    assert connect(uri).get_run(run_id).info.status == "FINISHED"


# --- servers that are away --------------------------------------------------------------------------------------

SECRET = "hunter2"


@pytest.mark.parametrize(
    "away",
    [f"http://user:{SECRET}@127.0.0.1:9/?token={SECRET}", f"http://user:{SECRET}@nowhere.invalid:5000"],
)
def test_a_server_that_is_away_is_one_typed_error_without_secrets(make: Plan, away: str) -> None:
    for attempt in (lambda: MlflowRecorder(away).record(make()), lambda: read_runs(away, "plan")):
        with pytest.raises(TrackingUnavailable) as caught:
            attempt()
        assert "***@" in str(caught.value)
        assert SECRET not in "".join(map(str, (caught.value, caught.value.__cause__)))
        assert caught.value.__suppress_context__
        assert "\n" not in str(caught.value)


def test_a_store_that_cannot_be_made_is_away_too(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    with pytest.raises(TrackingUnavailable):
        MlflowRecorder(sqlite_uri(tmp_path / "file" / "mlflow.db"))


@pytest.mark.parametrize(
    ("uri", "message"),
    [
        (f"foo://user:{SECRET}@host/x", r"foo://\*\*\*@host/x refused the request: INVALID_PARAMETER_VALUE"),
        (f"mysql://user:{SECRET}@host/x", r"mysql://\*\*\*@host/x needs the package MySQLdb: install it"),
    ],
)
def test_what_no_later_attempt_would_cure_is_refused_in_one_line(uri: str, message: str) -> None:
    for attempt in (lambda: MlflowRecorder(uri), lambda: read_runs(uri, "plan")):
        with pytest.raises(TrackingRefused, match=f"^{message}$") as caught:
            attempt()
        assert SECRET not in "".join(map(str, (caught.value, caught.value.__cause__)))


def test_a_record_that_the_server_refuses(recorder: MlflowRecorder, make: Plan) -> None:
    """MLflow takes no experiment with a name of more than 500 characters."""
    with pytest.raises(TrackingRefused, match="refused the request: INVALID_PARAMETER_VALUE"):
        recorder.record(make(plan="x" * 1000))


def test_secrets_reach_no_tag(recorder: MlflowRecorder, make: Plan) -> None:
    """No tag or parameter is made from the tracking URI."""
    uri = recorder.tracking_uri
    run = connect(uri).get_run(recorder.record(make()))
    assert not [value for value in (*run.data.tags.values(), *run.data.params.values()) if uri in value]


@pytest.mark.parametrize(
    ("uri", "shown"),
    [
        ("postgresql://u:p@db.example:5432/runs?sslmode=on&password=p", "postgresql://***@db.example:5432/runs"),
        ("https://mlflow.example/base?token=p#p", "https://mlflow.example/base"),
        ("sqlite:////data/mlflow.db", "sqlite:////data/mlflow.db"),
        ("http://u:p@q@host", "http://***@host"),
    ],
)
def test_redaction(uri: str, shown: str) -> None:
    assert redacted(uri) == shown


def test_importing_the_recorder_does_not_import_mlflow() -> None:
    code = "import sys, robuq.record.mlflow; print([m for m in ('mlflow', 'torch', 'sqlalchemy') if m in sys.modules])"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "[]"


# --- the garbage collector ----------------------------------------------------------------------------------------


def test_the_collector_rests_while_runs_are_read(
    recorder: MlflowRecorder, uri: str, make: Plan, monkeypatch: pytest.MonkeyPatch
) -> None:
    recorder.record(make())
    seen, read = [], reader._light_record

    def watched(run: Any) -> RunRecord:
        seen.append(gc.isenabled())
        return read(run)

    monkeypatch.setattr(reader, "_light_record", watched)
    assert len(read_runs(uri, make().plan)) == 1
    assert (seen, gc.isenabled()) == ([False], True)


def test_the_collector_is_on_again_after_an_error(recorder: MlflowRecorder, uri: str, make: Plan) -> None:
    client = connect(uri)
    run_id = recorder.record(make())
    client.set_tag(run_id, "robuq.stages", "{")
    with pytest.raises(json.JSONDecodeError):
        read_runs(uri, make().plan)
    assert gc.isenabled()


def test_a_collector_that_was_off_stays_off(recorder: MlflowRecorder, uri: str, make: Plan) -> None:
    recorder.record(make())
    gc.disable()
    try:
        read_runs(uri, make().plan)
        assert not gc.isenabled()
    finally:
        gc.enable()
