"""From stage folders to a record."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np

from robuq.config import BitAllocation, RunConfig, decision_name
from robuq.record.collect import collect_run, git_state, mean_act_bits, versions
from robuq.stages import StageStore, protocol_fingerprint, stages_of
from robuq.variants import variant

RUN = RunConfig(variant="baseline", precision=variant("baseline", 3), seed=2, pretrain_seed=1)
METRICS = {
    "features": {"classifier_accuracy": 0.9},
    "full_precision": {"train_loss": 0.5},
    "qat": {"train_loss": 0.4},
    "evaluate": {"held_out_loss": 0.1},
}


def finished_stages(store: StageStore) -> None:
    for stage in stages_of(RUN, "data"):
        work = store.open_work(stage)
        if stage.kind == "qat":
            (work / "history.jsonl").write_text('{"step": 10, "loss": 0.5}\n{"step": 20, "loss": 0.4}\n')
            (work / "layers.jsonl").write_text('{"step": 20, "layer": "a", "sqnr_db": 9.5}\n')
        if stage.kind == "evaluate":
            np.savez(work / "samples.npz", images=np.zeros((2, 8, 8, 1), np.uint8), labels=np.arange(2))
        store.commit(stage, {"metrics": METRICS[stage.kind], "seconds": 1.5})


def test_a_finished_run(tmp_path: Path) -> None:
    store, stages = StageStore(tmp_path), stages_of(RUN, "data")
    finished_stages(store)
    record = collect_run("p", RUN, stages, "data", store)
    assert record.status == "finished"
    assert record.failure is None
    assert (record.key, record.label, record.act_bits, record.seed, record.pretrain_seed) == (
        RUN.key(),
        "W1.58A3",
        3.0,
        2,
        1,
    )
    assert record.metrics == {
        "features.classifier_accuracy": 0.9,
        "full_precision.train_loss": 0.5,
        "qat.train_loss": 0.4,
        "held_out_loss": 0.1,
    }
    assert [row["step"] for row in record.history] == [10, 20]
    assert record.layers == [{"step": 20, "layer": "a", "sqnr_db": 9.5}]
    assert record.seconds == dict.fromkeys(METRICS, 1.5)
    assert record.stages == {stage.kind: stage.key for stage in stages}
    assert record.protocol == protocol_fingerprint(RUN, "data")
    assert list(record.artifacts) == ["samples.npz"]
    assert Path(record.artifacts["samples.npz"]).is_file()
    assert RunConfig.parse(record.config) == RUN
    assert 0 < record.started <= record.finished


def test_collecting_twice_gives_the_same(tmp_path: Path) -> None:
    finished_stages(StageStore(tmp_path))
    records = [collect_run("p", RUN, stages_of(RUN, "data"), "data", StageStore(tmp_path)) for _ in range(2)]
    assert records[0].to_json() == records[1].to_json()


def test_a_run_that_diverged_keeps_what_it_has(tmp_path: Path) -> None:
    store = StageStore(tmp_path)
    features, full_precision, qat, _ = stages = stages_of(RUN, "data")
    for stage in (features, full_precision):
        store.open_work(stage)
        store.commit(stage, {"metrics": METRICS[stage.kind], "seconds": 2.0})
    (store.open_work(qat) / "history.jsonl").write_text('{"step": 10, "loss": 9.0}\n{"step": 20, "lo')
    store.fail(qat, "diverged", "loss is nan")
    record = collect_run("p", RUN, stages, "data", store, failure="qat: diverged")
    assert record.status == "failed"
    assert record.failure == "qat: diverged"
    assert record.history == [{"step": 10, "loss": 9.0}]  # the line that was being written is left out
    assert "held_out_loss" not in record.metrics
    assert set(record.seconds) == {"features", "full_precision"}
    assert record.finished >= record.started > 0


def test_mean_act_bits_counts_decisions() -> None:
    assert mean_act_bits(RUN) == 3.0
    assert mean_act_bits(RunConfig(variant="a")) is None
    assert mean_act_bits(RunConfig(variant="a", precision=variant("ternary_rotation", 2))) is None
    # one of 4 blocks x 4 roles goes from 3 to 1 bit: 3 - 2/16
    allocation = BitAllocation(bits={decision_name(0, "fc1"): 1})
    assert mean_act_bits(RUN.updated(allocation=allocation)) == 2.875


def test_provenance_is_plain_text() -> None:
    assert versions()["python"].startswith("3.")
    assert {"torch", "robuq"} <= set(versions())
    state = git_state()
    assert state == {} or (len(state["commit"]) == 40 and state["dirty"] in ("true", "false"))
    assert json.loads(json.dumps(state)) == state
