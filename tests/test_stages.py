"""Stages: what enters which key, what runs share, and folders that are whole or not there."""

from __future__ import annotations

import itertools
import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from robuq.config import (
    AmpnConfig,
    BitAllocation,
    Budget,
    CalibrationConfig,
    DataConfig,
    DiffusionConfig,
    EvalConfig,
    FeatureConfig,
    LossConfig,
    RunConfig,
    SampleConfig,
    SensitivityConfig,
    TrainConfig,
    decision_name,
    model_preset,
)
from robuq.stages import (
    KINDS,
    ProgressFile,
    Stage,
    StageStore,
    distinct,
    make_stage,
    probe_stages,
    protocol_fingerprint,
    sensitivity_stages,
    stages_of,
    warmed_probe_stages,
    write_json,
)
from robuq.variants import AMPN_VARIANTS, VARIANTS, variant

RUN = RunConfig(variant="x", precision=variant("baseline"))
FOUND = RUN.updated(ampn=AmpnConfig(budget=Budget(limit=2.0)))
DATA = "0" * 16
PLAIN = ("features", "full_precision", "qat", "evaluate")  # of a run without AMPN
TRAINED = {"full_precision", "qat", "evaluate"}
QUANTIZED = {"qat", "evaluate"}
DECIDED = {"allocate", *QUANTIZED}
MEASURED = {"sensitivity", *DECIDED}


def keys(run: RunConfig, data: str = DATA) -> dict[str, str]:
    return {stage.kind: stage.key for stage in stages_of(run, data)}


def changed(run: RunConfig, data: str = DATA) -> set[str]:
    before, after = keys(RUN), keys(run, data)
    return {kind for kind in before if before[kind] != after[kind]}


# --- keys -------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("change", "expected"),
    [
        ({"variant": "another name"}, set()),
        ({"seed": 1}, QUANTIZED),
        ({"pretrain_seed": 1}, TRAINED),
        ({"data": DataConfig(split_seed=1)}, set(PLAIN)),
        ({"data": DataConfig(validation=0.2)}, set(PLAIN)),
        ({"model": model_preset("nano")}, TRAINED),
        ({"diffusion": DiffusionConfig(num_timesteps=500)}, TRAINED),
        ({"pretrain": RUN.pretrain.updated(lr=0.5)}, TRAINED),
        ({"precision": variant("robuq_uniform")}, QUANTIZED),
        ({"precision": variant("baseline", 3)}, QUANTIZED),
        ({"calibration": CalibrationConfig(num_images=9)}, QUANTIZED),
        ({"train": TrainConfig(lr=0.5)}, QUANTIZED),
        ({"evaluation": EvalConfig(features=FeatureConfig(seed=1))}, {"features", "evaluate"}),
        ({"evaluation": EvalConfig(loss=LossConfig(seed=1))}, {"evaluate"}),
        ({"evaluation": EvalConfig(sample=SampleConfig(seed=1))}, {"evaluate"}),
    ],
)
def test_a_setting_changes_the_stages_that_depend_on_it(change: dict[str, Any], expected: set[str]) -> None:
    assert changed(RUN.updated(**change)) == expected


def test_the_data_and_the_code_change_all(monkeypatch: pytest.MonkeyPatch) -> None:
    assert changed(RUN, "1" * 16) == set(PLAIN)
    before, protocol = keys(RUN), protocol_fingerprint(RUN, DATA)
    monkeypatch.setattr("robuq.stages.CODE_EPOCH", 10**9)
    after = keys(RUN)
    assert all(before[kind] != after[kind] for kind in PLAIN)
    assert protocol_fingerprint(RUN, DATA) != protocol


def test_all_variants_start_from_one_network() -> None:
    """Three seeds of every variant: one classifier, one pre-training, and a chain of their own for each."""
    names = sorted(set(VARIANTS) - set(AMPN_VARIANTS))
    runs = [RUN.updated(precision=variant(name), seed=seed) for name, seed in itertools.product(names, range(3))]
    stages = distinct(stage for run in runs for stage in stages_of(run, DATA))
    counts = {kind: sum(stage.kind == kind for stage in stages) for kind in PLAIN}
    assert counts == {"features": 1, "full_precision": 1, "qat": len(runs), "evaluate": len(runs)}


def test_stages_come_after_their_inputs_and_name_them() -> None:
    features, full_precision, qat, evaluate = stages_of(RUN, DATA)
    assert (features.inputs, full_precision.inputs) == ({}, {})
    assert qat.inputs == {"full_precision": full_precision.id}
    assert evaluate.inputs == {"qat": qat.id, "features": features.id}
    assert [stage.kind for stage in stages_of(RUN, DATA)] == list(PLAIN)
    assert qat.id == f"qat/{qat.key}"
    assert all(len(stage.key) == 16 and int(stage.key, 16) >= 0 for stage in stages_of(RUN, DATA))


# --- AMPN -------------------------------------------------------------------------------------------------------


def test_ampn_finds_the_bits_on_the_way() -> None:
    kinds = ["features", "full_precision", "warm_up", "sensitivity", "allocate", "qat", "evaluate"]
    stages = stages_of(FOUND, DATA)
    assert [stage.kind for stage in stages] == kinds
    assert set(kinds) | {"probe"} == set(KINDS)
    of = {stage.kind: stage for stage in stages}
    assert of["warm_up"].inputs == {"full_precision": of["full_precision"].id}
    assert of["sensitivity"].inputs == {"warm_up": of["warm_up"].id}
    assert of["allocate"].inputs == {"sensitivity": of["sensitivity"].id}
    assert of["qat"].inputs == {"full_precision": of["full_precision"].id, "allocate": of["allocate"].id}
    assert of["evaluate"].inputs == {name: of[name].id for name in ("qat", "features", "allocate")}
    assert of["full_precision"] == stages_of(RUN, DATA)[1]
    assert of["qat"].key != keys(RUN)["qat"]
    assert sensitivity_stages(FOUND, DATA) == stages[1:4]


@pytest.mark.parametrize(
    ("change", "expected"),
    [
        ({"budget": Budget(limit=2.5)}, DECIDED),
        ({"budget": Budget(limit=2.0, weights="layers")}, DECIDED),
        ({"allocator": "greedy"}, DECIDED),
        ({"measure": "second_order"}, DECIDED),
        ({"sensitivity": SensitivityConfig(num_images=7)}, MEASURED),
        ({"sensitivity": SensitivityConfig(reference=2)}, MEASURED),
        ({"sensitivity": SensitivityConfig(warm_up_steps=0)}, {"warm_up", *MEASURED}),
    ],
)
def test_a_setting_of_ampn_changes_the_stages_that_depend_on_it(change: dict[str, Any], expected: set[str]) -> None:
    assert FOUND.ampn is not None
    before, after = keys(FOUND), keys(FOUND.updated(ampn=FOUND.ampn.updated(**change)))
    assert {kind for kind in before if before[kind] != after[kind]} == expected


def test_what_only_the_run_itself_needs_does_not_change_its_sensitivity() -> None:
    longer = FOUND.train.updated(telemetry_every=50)
    before, after = keys(FOUND), keys(FOUND.updated(train=longer, evaluation=EvalConfig(grid_images=3)))
    assert {kind for kind in before if before[kind] != after[kind]} == QUANTIZED
    assert keys(FOUND.updated(train=FOUND.train.updated(steps=999)))["warm_up"] == before["warm_up"]


def test_probes_share_networks_and_judge_other_bits() -> None:
    bits = [BitAllocation(bits={decision_name(0, "qkv"): width}) for width in (1, 2)]
    warmed = [warmed_probe_stages(FOUND, allocation, DATA) for allocation in bits]
    assert warmed[0][:2] == warmed[1][:2] == stages_of(FOUND, DATA)[1:3]
    assert warmed[0][2].key != warmed[1][2].key
    trained = [probe_stages(RUN.updated(allocation=allocation), DATA) for allocation in bits]
    assert trained[0][0] == trained[1][0] == warmed[0][0]
    assert len({stage.key for stages in trained for stage in stages}) == 5
    for chain in (*warmed, *trained):
        assert [chain[2].kind, chain[2].inputs] == ["probe", {"network": chain[1].id}]
    judged_otherwise = RUN.updated(allocation=bits[0], evaluation=EvalConfig(sample=SampleConfig(seed=1)))
    assert probe_stages(judged_otherwise, DATA) == trained[0]


@given(st.permutations(["a", "b", "c"]))
def test_a_key_does_not_depend_on_the_order_of_settings(order: list[str]) -> None:
    config = {name: {"x": 1, "y": [name]} for name in order}
    assert make_stage("qat", config, DATA, {}).key == make_stage("qat", dict(sorted(config.items())), DATA, {}).key


def test_stages_are_the_same_in_another_process() -> None:
    code = (
        "from robuq.config import RunConfig; from robuq.stages import stages_of; from robuq.variants import variant\n"
        "run = RunConfig(variant='y', precision=variant('baseline'))\n"
        f"print(*(stage.id for stage in stages_of(run, {DATA!r})))"
    )
    environment = {**os.environ, "PYTHONHASHSEED": "7"}
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, env=environment, check=True)
    assert done.stdout.split() == [stage.id for stage in stages_of(RUN, DATA)]


def test_distinct_keeps_the_first_of_each_in_order() -> None:
    a, b = make_stage("qat", {"n": 1}, DATA, {}), make_stage("qat", {"n": 2}, DATA, {})
    assert distinct([b, a, b, a]) == [b, a]


# --- protocols --------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("change", "same"),
    [
        ({"seed": 1, "pretrain_seed": 2, "variant": "y"}, True),
        ({"precision": variant("robuq_uniform", 4)}, True),
        ({"train": TrainConfig(lr=0.5)}, True),
        ({"model": model_preset("nano")}, True),
        ({"data": DataConfig(validation=0)}, False),
        ({"data": DataConfig(held_out=0.3)}, False),
        ({"diffusion": DiffusionConfig(beta_end=0.03)}, False),
        ({"evaluation": EvalConfig(neighbours=5)}, False),
    ],
)
def test_runs_of_one_protocol_are_asked_the_same_questions(change: dict[str, Any], same: bool) -> None:
    assert (protocol_fingerprint(RUN.updated(**change), DATA) == protocol_fingerprint(RUN, DATA)) is same
    assert protocol_fingerprint(RUN, "1" * 16) != protocol_fingerprint(RUN, DATA)


# --- the store --------------------------------------------------------------------------------------------------


@pytest.fixture
def store(tmp_path: Path) -> StageStore:
    return StageStore(tmp_path)


@pytest.fixture
def stage() -> Stage:
    return make_stage("qat", {"n": 1}, DATA, {})


def test_a_stage_appears_whole_under_its_name(store: StageStore, stage: Stage) -> None:
    work = store.open_work(stage)
    (work / "model.bin").write_bytes(b"weights")
    (work / "checkpoint-7.bin").write_bytes(b"state")
    (work / "checkpoint-8").mkdir()
    (work / "progress.json").write_text("{}")
    assert not store.is_done(stage)
    final = store.commit(stage, {"metrics": {"loss": 0.5}})
    assert final == store.folder(stage.id) == store.root / stage.id
    assert store.is_done(stage)
    assert not work.exists()
    assert sorted(file.name for file in final.iterdir()) == ["model.bin", "result.json", "stage.json"]
    assert store.result(stage.id) == {"metrics": {"loss": 0.5}}
    assert json.loads((final / "stage.json").read_text()) == {"kind": "qat", "inputs": {}, "config": {"n": 1}}


CUT_OFF = """
import os, sys
from pathlib import Path
from robuq import stages
store, stage = stages.StageStore(Path(sys.argv[1])), stages.make_stage("qat", {"n": 1}, "0" * 16, {})
replace, calls, allowed = os.replace, [], int(sys.argv[2])
def cut(*paths):
    calls.append(paths)
    if len(calls) > allowed:
        os._exit(9)
    replace(*paths)
os.replace = cut
work = store.open_work(stage)
(work / "model.bin").write_bytes(b"weights")
store.commit(stage, {"metrics": {}})
"""


@pytest.mark.parametrize("allowed", [0, 1, 2])
def test_a_process_that_dies_while_it_commits_leaves_no_finished_stage(
    store: StageStore, stage: Stage, allowed: int
) -> None:
    """It dies before stage.json, result.json or the folder itself gets its name; the next attempt ends it."""
    done = subprocess.run([sys.executable, "-c", CUT_OFF, str(store.root), str(allowed)], check=False)
    assert done.returncode == 9
    assert not store.is_done(stage)
    assert not store.folder(stage.id).exists()
    work = store.open_work(stage)
    assert (work / "model.bin").exists() == (allowed > 0)
    store.commit(stage, {"metrics": {"loss": 1.0}})
    assert store.is_done(stage)
    assert store.result(stage.id) == {"metrics": {"loss": 1.0}}


def test_work_is_continued_and_its_failure_forgotten(store: StageStore, stage: Stage) -> None:
    assert store.failure(stage) is None
    work = store.open_work(stage)
    (work / "checkpoint-1").write_text("kept")
    store.fail(stage, "diverged", "loss is nan")
    assert store.failure(stage) == {"reason": "diverged", "error": "loss is nan"}
    assert store.open_work(stage) == work
    assert store.failure(stage) is None
    assert (work / "checkpoint-1").read_text() == "kept"


def test_progress_is_that_of_the_attempt_under_way(store: StageStore, stage: Stage) -> None:
    assert store.progress(stage) is None
    ProgressFile(store.open_work(stage), "training", 10).update(3, 0.25)
    progress = store.progress(stage)
    assert progress is not None
    assert (progress["phase"], progress["step"], progress["steps"], progress["loss"]) == ("training", 3, 10, 0.25)
    store.open_work(stage)
    assert store.progress(stage) is None


def test_two_stages_do_not_meet(store: StageStore, stage: Stage) -> None:
    other = make_stage("qat", {"n": 2}, DATA, {})
    for each, value in ((stage, 1), (other, 2)):
        store.open_work(each)
        store.commit(each, {"value": value})
    assert [store.result(each.id)["value"] for each in (stage, other)] == [1, 2]


def test_json_is_written_whole_or_not_at_all(tmp_path: Path) -> None:
    file = tmp_path / "result.json"
    write_json(file, {"a": 1})
    with pytest.raises(ValueError, match="Out of range float"):
        write_json(file, {"a": float("nan")})
    assert json.loads(file.read_text()) == {"a": 1}
    assert [entry.name for entry in tmp_path.iterdir()] == ["result.json"]
