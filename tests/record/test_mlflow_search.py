"""A search in the tracking server: one run for it, one under it for each evaluation, and nothing twice."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from robuq.record.mlflow import MlflowRecorder, connect, fetch_artifact, read_runs, read_search, sqlite_uri
from robuq.record.search_record import Evaluation, SearchRecord


@pytest.fixture(scope="module")
def uri(tmp_path_factory: pytest.TempPathFactory) -> str:
    return sqlite_uri(tmp_path_factory.mktemp("store") / "mlflow.db")


@pytest.fixture(scope="module")
def recorder(uri: str) -> MlflowRecorder:
    return MlflowRecorder(uri)


def evaluation(number: int, value: float | None, **changes: Any) -> Evaluation:
    values: dict[str, Any] = {
        "number": number,
        "source": "tpe",
        "bits": {
            "transformer_blocks.0.qkv": 1,
            "transformer_blocks.0.fc1": 2,
            "transformer_blocks.10.qkv": 3,
            "transformer_blocks.2.qkv": 4,
        },
        "cost": 2.0,
        "average_bits": {"layers": 2.0, "macs": 1.75, "elements": 2.25},
        "bops": 0.5,
        "predicted": 1 / 3,
        "values": {"0": 0.3} | ({} if value is None else {"60": value}),
        "state": "pruned" if value is None else "finished",
        "seconds": 2.5,
        "params": {"weight.fc1": 1.5},
    }
    return Evaluation.parse(values | changes)


def search(name: str, evaluations: list[Evaluation], **changes: Any) -> SearchRecord:
    values: dict[str, Any] = {
        "name": name,
        "dataset": "digits",
        "variant": "robuq",
        "seed": 0,
        "config": {"ampn": {"measure": "loss"}},
        "search": {
            "space": "policy",
            "sampler": "tpe",
            "rungs": [{"steps": 0, "keep": 0.5}, {"steps": 60, "keep": 1.0}],
            "objectives": ["loss"],
            "storage": None,
        },
        "budget": {"limit": 2.0, "weights": "macs", "count_fixed": False},
        "evaluations": [one.model_dump(mode="json") for one in evaluations],
        "winner": 1,
        "sensitivity": {"candidates": [1, 2]},
        "git": {"commit": "c" * 40, "dirty": "false"},
        "started": 1_700_000_000.0,
        "finished": 1_700_000_100.0,
    }
    return SearchRecord.parse(values | changes)


SOME = [evaluation(0, 0.25), evaluation(1, 0.125), evaluation(2, None), evaluation(3, 0.5)]


def runs_of(uri: str, name: str, deleted: bool = False) -> dict[str, Any]:
    """{run name: run}"""
    client = connect(uri)
    found = client.search_runs([client.get_experiment_by_name(name).experiment_id], run_view_type=3 if deleted else 1)
    return {run.info.run_name: run for run in found}


def test_a_search_comes_back_whole(uri: str, recorder: MlflowRecorder) -> None:
    record = search("whole", SOME)
    recorder.record_search(record)
    assert read_search(uri, "whole") == record


def test_one_run_with_the_evaluations_under_it(uri: str, recorder: MlflowRecorder) -> None:
    parent = recorder.record_search(search("nested", SOME))
    runs = runs_of(uri, "nested")
    assert set(runs) == {"search", "0000 tpe", "0001 tpe", "0002 tpe", "0003 tpe"}
    assert runs["search"].info.run_id == parent
    assert runs["search"].data.tags["robuq.search"] == "nested"
    assert runs["search"].data.params["rungs"] == "0, 60"
    assert [runs[name].info.status for name in ("search", "0001 tpe", "0002 tpe")] == ["FINISHED", "FINISHED", "KILLED"]
    history = connect(uri).get_metric_history(parent, "best_validation_loss")
    assert [(point.step, point.value) for point in history] == [(0, 0.25), (1, 0.125), (3, 0.125)]
    child = runs["0001 tpe"]
    assert child.data.tags["mlflow.parentRunId"] == parent
    assert (child.data.params["source"], child.data.params["bits.qkv"]) == ("tpe", "1 4 3")
    assert child.data.params["space.weight.fc1"] == "1.5"
    assert child.data.metrics["validation_loss/60_steps"] == 0.125
    assert child.data.metrics["average_bits/macs"] == 1.75


def test_artefacts(uri: str, recorder: MlflowRecorder) -> None:
    recorder.record_search(search("files", SOME))
    root = runs_of(uri, "files")["search"].info.artifact_uri
    names = {file.path for file in connect(uri).list_artifacts(runs_of(uri, "files")["search"].info.run_id)}
    assert names == {"search.json", "bits.json", "sensitivity.json", "summary.md"}
    summary = fetch_artifact(uri, f"{root}/summary.md").read_text()
    assert "4 evaluations (3 finished, 1 pruned)" in summary
    assert "Best: number 1 (tpe), validation loss 0.125." in summary
    assert '"transformer_blocks.0.fc1": 2' in fetch_artifact(uri, f"{root}/bits.json").read_text()


def test_sending_again_changes_nothing(uri: str, recorder: MlflowRecorder) -> None:
    record = search("again", SOME)
    recorder.record_search(record)
    before = {name: run.to_dictionary() for name, run in runs_of(uri, "again", deleted=True).items()}
    MlflowRecorder(uri).record_search(record)
    assert {name: run.to_dictionary() for name, run in runs_of(uri, "again", deleted=True).items()} == before


def test_a_search_that_went_on_adds_only_what_is_new(uri: str, recorder: MlflowRecorder) -> None:
    first = recorder.record_search(search("more", SOME, finished=0.0))
    before = runs_of(uri, "more")
    assert before["search"].info.status == "RUNNING"
    assert recorder.record_search(search("more", [*SOME, evaluation(4, 0.0625)], winner=4)) == first
    after = runs_of(uri, "more", deleted=True)
    assert set(after) == {*before, "0004 tpe"}
    assert after["0001 tpe"].to_dictionary() == before["0001 tpe"].to_dictionary()
    assert after["search"].info.status == "FINISHED"
    history = connect(uri).get_metric_history(first, "best_validation_loss")
    assert [(point.step, point.value) for point in history] == [(0, 0.25), (1, 0.125), (3, 0.125), (4, 0.0625)]


def test_what_it_contradicts_is_made_anew(uri: str, recorder: MlflowRecorder) -> None:
    """Under another budget all is new; the evaluations that say the same are hung under the new run."""
    first = recorder.record_search(search("other", SOME))
    changed = [*SOME[:3], evaluation(3, 0.0625)]
    second = recorder.record_search(search("other", changed, budget={"limit": 3.0}, winner=3))
    runs = runs_of(uri, "other")
    assert first != second
    assert len(runs) == 5
    assert {runs[name].data.tags["mlflow.parentRunId"] for name in runs if name != "search"} == {second}
    assert runs["0003 tpe"].data.metrics["validation_loss/60_steps"] == 0.0625
    assert read_search(uri, "other").winner == 3


def test_evaluations_that_are_gone_are_taken_away(uri: str, recorder: MlflowRecorder) -> None:
    recorder.record_search(search("fewer", SOME))
    recorder.record_search(search("fewer", SOME[:2]))
    assert set(runs_of(uri, "fewer")) == {"search", "0000 tpe", "0001 tpe"}


def test_tables_of_runs_do_not_see_them(uri: str, recorder: MlflowRecorder) -> None:
    recorder.record_search(search("hidden", SOME))
    assert read_runs(uri, "hidden") == []


def test_an_experiment_without_a_search(uri: str, recorder: MlflowRecorder, tmp_path: Path) -> None:
    (file := tmp_path / "report.md").write_text("#")
    recorder.attach_report("plain", [file])
    with pytest.raises(ValueError, match=r"experiment 'plain' on .* holds no search"):
        read_search(uri, "plain")
    with pytest.raises(ValueError, match="no experiment 'nothing'"):
        read_search(uri, "nothing")
