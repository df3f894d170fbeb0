"""Whole runs through their stages, on the smallest model: shared, resumable, and failures that are data."""

import json
import math
import pickle
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from safetensors.torch import load_file

import robuq.pipeline
from robuq.ampn.allocate import exact
from robuq.ampn.bits_file import read_bits
from robuq.ampn.problem import make_problem
from robuq.ampn.table import SensitivityTable
from robuq.config import (
    BLOCK_ROLES,
    MODEL_PRESETS,
    AmpnConfig,
    BitAllocation,
    Budget,
    DataConfig,
    EvalConfig,
    FeatureConfig,
    LossConfig,
    PrecisionMap,
    RunConfig,
    SampleConfig,
    SensitivityConfig,
    TrainConfig,
    decision_name,
)
from robuq.data.fingerprint import data_fingerprint
from robuq.data.load import load_data
from robuq.diffusion.schedule import NoiseSchedule
from robuq.evaluate import probe_loss
from robuq.models import build_dit, load_dit, save_dit
from robuq.pipeline import StageFailed, run_stage
from robuq.quant.bits import decision_layers
from robuq.quant.storage import load_quantized
from robuq.record.collect import collect_run
from robuq.stages import ProgressFile, Stage, StageStore, probe_stages, stages_of, warmed_probe_stages
from robuq.train import TrainingDiverged
from robuq.variants import variant

TRAIN = TrainConfig(steps=4, batch_size=8, warmup_steps=1, log_every=2, checkpoint_every=2)
RUN = RunConfig(
    variant="tiny",
    model=MODEL_PRESETS["nano"],
    pretrain=TRAIN,
    precision=variant("robuq_uniform"),
    train=TRAIN.updated(telemetry_every=2),
    evaluation=EvalConfig(
        loss=LossConfig(repeats=1, max_images=50),
        sample=SampleConfig(steps=2, num_images=20),
        features=FeatureConfig(epochs=1, max_images=200, channels=4, width=4),
    ),
)


def stages(run: RunConfig) -> dict[str, Stage]:
    return {stage.kind: stage for stage in stages_of(run, data_fingerprint(run.data))}


def execute(run: RunConfig, root: Path) -> dict[str, dict[str, Any]]:
    store = StageStore(root)
    return {kind: run_stage(stage, store) for kind, stage in stages(run).items()}


@pytest.fixture(scope="module")
def root(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A store in which RUN is done."""
    folder: Path = tmp_path_factory.mktemp("stages")
    execute(RUN, folder)
    return folder


def files(folder: Path) -> set[str]:
    return {str(file.relative_to(folder)) for file in folder.rglob("*") if file.is_file()}


def test_every_stage_leaves_its_files_and_its_result(root: Path) -> None:
    store, of = StageStore(root), stages(RUN)
    assert all(store.is_done(stage) for stage in of.values())
    assert not list(root.glob("*/*.work"))
    trained = {"history.jsonl", "layers.jsonl", "timing.jsonl", "stage.json", "result.json"}
    dit = {"model/config.json", "model/diffusion_pytorch_model.safetensors"}
    assert files(store.folder(of["full_precision"].id)) == trained | dit
    quantized = {"model/model.safetensors", "model/quantized.json"}
    assert files(store.folder(of["qat"].id)) == trained | quantized
    known = {"classifier.safetensors", "features.safetensors", "stage.json", "result.json"}
    assert files(store.folder(of["features"].id)) == known
    judged = {"samples.npz", "tokens.npz", "distributions.npz", "stage.json", "result.json"}
    assert files(store.folder(of["evaluate"].id)) == judged
    for stage in of.values():
        result = store.result(stage.id)
        assert result.keys() == {"metrics", "seconds", "versions"}
        assert result["seconds"] > 0
        assert all(math.isfinite(value) for value in result["metrics"].values())
    metrics = store.result(of["evaluate"].id)["metrics"]
    for name in ("held_out_loss", "fd_classifier", "fd_floor", "macs", "bops", "weight_bytes", "average_bits_macs"):
        assert name in metrics
    assert 0.1 < store.result(of["features"].id)["metrics"]["classifier_accuracy"] <= 1


def test_saved_models_load(root: Path) -> None:
    of = stages(RUN)
    full = load_dit(root / of["full_precision"].id / "model")
    quantized = load_quantized(root / of["qat"].id / "model")
    assert full.null_label == quantized.null_label == 10


def test_a_finished_stage_does_nothing(root: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    before = {file: file.stat().st_mtime_ns for file in root.rglob("*") if file.is_file() and file.suffix != ".lock"}
    monkeypatch.setattr(robuq.pipeline, "WORKERS", {})
    results = execute(RUN, root)
    assert results == {kind: StageStore(root).result(stage.id) for kind, stage in stages(RUN).items()}
    after = {file: file.stat().st_mtime_ns for file in root.rglob("*") if file.is_file() and file.suffix != ".lock"}
    assert after == before


def test_runs_are_reproduced_bit_for_bit(root: Path, tmp_path: Path) -> None:
    torch.rand(7)  # whatever the global generator has done meanwhile
    again = execute(RUN, tmp_path)
    for kind, stage in stages(RUN).items():
        one, other = root / stage.id, tmp_path / stage.id
        assert again[kind]["metrics"] == StageStore(root).result(stage.id)["metrics"]
        assert files(one) == files(other)
        for name in sorted(files(one) - {"result.json", "timing.jsonl"}):
            assert same_content(one / name, other / name), name


def same_content(one: Path, other: Path) -> bool:
    """Byte by byte, but for containers, whose headers are not in one order or carry the time."""
    if one.suffix == ".safetensors":
        tensors, others = load_file(one), load_file(other)
        return tensors.keys() == others.keys() and all(torch.equal(tensors[name], others[name]) for name in tensors)
    if one.suffix == ".npz":
        with np.load(one) as arrays, np.load(other) as expected:
            return set(arrays) == set(expected) and all(
                np.array_equal(arrays[k], expected[k], equal_nan=arrays[k].dtype.kind == "f") for k in arrays
            )
    return one.read_bytes() == other.read_bytes()


@pytest.mark.parametrize("name", ["full_precision", "lsq", "robust_ptq_percentile"])
def test_other_variants_share_the_full_precision_stage(root: Path, name: str) -> None:
    run = RUN.updated(variant=name, precision=variant(name))
    assert stages(run)["full_precision"] == stages(RUN)["full_precision"]
    results = execute(run, root)
    assert results["evaluate"]["metrics"]["held_out_loss"] > 0
    assert ("average_bits_macs" in results["evaluate"]["metrics"]) == (name != "full_precision")


def test_post_training_quantization_takes_no_step(root: Path) -> None:
    run = RUN.updated(precision=variant("robust_ptq_sigma", 4), train=TRAIN.updated(steps=0))
    results = execute(run, root)
    assert results["qat"]["metrics"] == {}
    folder = root / stages(run)["qat"].id
    assert (folder / "history.jsonl").read_text() == ""
    assert load_quantized(folder / "model").null_label == 10


def test_pretrained_models_are_taken_as_they_are(tmp_path: Path) -> None:
    given = build_dit(RUN.model, seed=9)
    save_dit(given, tmp_path / "given")
    run = RUN.updated(
        model=RUN.model.updated(pretrained=str(tmp_path / "given")), pretrain=TRAIN.updated(steps=0, warmup_steps=0)
    )
    stage = stages(run)["full_precision"]
    assert run_stage(stage, StageStore(tmp_path))["metrics"] == {}
    taken = load_dit(tmp_path / stage.id / "model").state_dict()
    assert all(torch.equal(taken[name], tensor) for name, tensor in given.state_dict().items())


def test_seeds_of_pretraining_and_quantization_are_two_things(root: Path) -> None:
    other_seed, other_pretraining = stages(RUN.updated(seed=1)), stages(RUN.updated(pretrain_seed=1))
    assert other_seed["full_precision"] == stages(RUN)["full_precision"]
    assert other_pretraining["full_precision"] != stages(RUN)["full_precision"]
    qat = run_stage(other_seed["qat"], StageStore(root))
    assert qat["metrics"] != StageStore(root).result(stages(RUN)["qat"].id)["metrics"]


def test_a_killed_stage_goes_on_from_its_checkpoint(
    root: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    stage, store = stages(RUN)["full_precision"], StageStore(tmp_path)
    whole_train = robuq.pipeline.train

    def killed_train(*args: Any) -> Any:
        def kill(done: int) -> None:
            if done == 3:
                raise KeyboardInterrupt

        return whole_train(*args, on_step=kill)

    monkeypatch.setattr(robuq.pipeline, "train", killed_train)
    with pytest.raises(KeyboardInterrupt):
        run_stage(stage, store)
    assert not store.is_done(stage)
    assert store.failure(stage) is None
    progress = store.progress(stage)
    assert progress is not None
    assert progress["phase"] == "training"
    assert list(store.work_folder(stage).glob("checkpoint-*2.safetensors"))
    monkeypatch.setattr(robuq.pipeline, "train", whole_train)
    result = run_stage(stage, store)
    expected = root / stage.id
    assert result["metrics"] == StageStore(root).result(stage.id)["metrics"]
    for name in ("model/diffusion_pytorch_model.safetensors", "history.jsonl"):
        assert (store.folder(stage.id) / name).read_bytes() == (expected / name).read_bytes()


# --- AMPN -----------------------------------------------------------------------------------------------------

MEASURED = SensitivityConfig(candidates=(1, 2, 3, 4), warm_up_steps=2, num_images=8, batch_size=4)
FOUND = RUN.updated(ampn=AmpnConfig(budget=Budget(limit=2.0), sensitivity=MEASURED))


def test_ampn_trains_with_the_bits_that_it_finds(root: Path) -> None:
    results, of, store = execute(FOUND, root), stages(FOUND), StageStore(root)
    table = SensitivityTable.load(store.folder(of["sensitivity"].id) / "sensitivity.json")
    assert (len(table.decisions), table.candidates) == (4 * FOUND.model.num_layers, (1, 2, 3, 4))
    assert {"split_half_spearman", "loss_seconds"} <= results["sensitivity"]["metrics"].keys()
    bits = read_bits(store.folder(of["allocate"].id) / "bits.json")
    problem = make_problem(table, FOUND.model, FOUND.precision, Budget(limit=2.0))
    assert bits.bits == dict(zip(problem.decisions, exact(problem).bits, strict=True))
    trained = load_quantized(store.folder(of["qat"].id) / "model")
    assert {name: layer.spec.act.bits for name, layer in decision_layers(trained).items() if layer.spec.act} == (
        bits.bits
    )
    metrics = results["evaluate"]["metrics"]
    assert 1 <= metrics["average_bits_macs"] <= 2
    assert metrics["bops"] < StageStore(root).result(stages(RUN)["evaluate"].id)["metrics"]["bops"] * 1.001
    record = collect_run("p", FOUND, tuple(of.values()), "data", store)
    assert (record.allocation, record.act_bits, record.label) == (bits.bits, 2.0, "W1.58A2")
    assert set(record.artifacts) >= {"sensitivity.json", "samples.npz"}


def test_training_at_given_bits_is_training_at_bits_that_were_found(root: Path) -> None:
    execute(FOUND, root)
    store, of = StageStore(root), stages(FOUND)
    given = FOUND.updated(ampn=None, allocation=read_bits(store.folder(of["allocate"].id) / "bits.json"))
    assert execute(given, root)["evaluate"]["metrics"] == store.result(of["evaluate"].id)["metrics"]


def test_probes_are_the_validation_loss(root: Path) -> None:
    store = StageStore(root)
    for stage in probe_stages(RUN, data_fingerprint(RUN.data)):
        result = run_stage(stage, store)
    judged = store.result(stages(RUN)["evaluate"].id)["metrics"]
    assert result["metrics"] == {"validation_loss": judged["validation_loss"]}


def test_probes_judge_the_warmed_up_network_at_other_bits(root: Path) -> None:
    names = [decision_name(block, role) for block in range(FOUND.model.num_layers) for role in BLOCK_ROLES]
    losses = []
    for width in (1, 2, 8):
        bits = BitAllocation(bits=dict.fromkeys(names, width))
        for stage in warmed_probe_stages(FOUND, bits, data_fingerprint(FOUND.data)):
            result = run_stage(stage, StageStore(root))
        losses.append(result["metrics"]["validation_loss"])
    own = load_quantized(root / stages(FOUND)["warm_up"].id / "model")
    data = load_data(FOUND.data)
    assert len(set(losses)) == 3
    assert losses[1] == probe_loss(own, data, NoiseSchedule(FOUND.diffusion), FOUND.evaluation.loss)


def test_a_budget_out_of_reach_is_recorded(root: Path) -> None:
    run = FOUND.updated(ampn=AmpnConfig(budget=Budget(limit=0.5), sensitivity=MEASURED))
    with pytest.raises(StageFailed, match=r"unusable: budget 0\.5 mean bits by macs cannot be reached: from 1 to 4"):
        execute(run, root)


# --- failures -------------------------------------------------------------------------------------------------


def broken_run(folder: Path) -> RunConfig:
    """Pretrained weights that are finite, but whose output is not."""
    model = build_dit(RUN.model, seed=0)
    with torch.no_grad():
        model.proj_out_2.weight.fill_(3e38)
    save_dit(model, folder / "broken")
    return RUN.updated(model=RUN.model.updated(pretrained=str(folder / "broken")))


def test_divergence_is_recorded_and_leaves_what_there_is(tmp_path: Path) -> None:
    stage, store = stages(broken_run(tmp_path))["full_precision"], StageStore(tmp_path)
    with pytest.raises(StageFailed, match="diverged: training diverged by step 2: ") as caught:
        run_stage(stage, store)
    failure = store.failure(stage)
    assert failure == {"reason": "diverged", "error": caught.value.error}
    assert "\n" not in caught.value.error
    assert not store.is_done(stage)
    copy = pickle.loads(pickle.dumps(caught.value))  # as it travels between processes
    assert (copy.reason, copy.error, str(copy)) == (caught.value.reason, caught.value.error, str(caught.value))
    diverged = pickle.loads(pickle.dumps(TrainingDiverged(3, "loss nan")))
    assert (diverged.step, diverged.reason) == (3, "loss nan")


def test_a_network_that_cannot_be_judged_is_a_divergence(tmp_path: Path) -> None:
    run = broken_run(tmp_path).updated(
        pretrain=TRAIN.updated(steps=0), train=TRAIN.updated(steps=0), precision=PrecisionMap()
    )
    with pytest.raises(StageFailed, match="diverged: held-out loss is"):
        execute(run, tmp_path)


def test_what_cannot_be_used_is_recorded(tmp_path: Path) -> None:
    run = RUN.updated(data=DataConfig(name="image_folder", path=str(tmp_path / "nothing")))
    of = {stage.kind: stage for stage in stages_of(run, "0" * 16)}
    store = StageStore(tmp_path)
    with pytest.raises(StageFailed, match="unusable: ") as caught:
        run_stage(of["features"], store)
    assert store.failure(of["features"]) == {"reason": "unusable", "error": caught.value.error}


def test_inputs_must_be_done(tmp_path: Path) -> None:
    of, store = stages(RUN), StageStore(tmp_path)
    with pytest.raises(StageFailed, match=rf"needs {of['full_precision'].id}, which is not done: run that first"):
        run_stage(of["qat"], store)


def test_unknown_kinds_are_refused(tmp_path: Path) -> None:
    with pytest.raises(
        StageFailed, match="unknown kind of stage 'qatt': allowed are features, full_precision, warm_up"
    ):
        run_stage(Stage("qatt", "0" * 16, {}), StageStore(tmp_path))


# --- the store ------------------------------------------------------------------------------------------------


def test_a_stage_is_locked_while_it_runs(tmp_path: Path) -> None:
    import fcntl

    stage, store = stages(RUN)["features"], StageStore(tmp_path)
    with store.locked(stage.id):
        (lock,) = (tmp_path / "features").glob(".*.lock")
        with lock.open("w") as stream, pytest.raises(BlockingIOError):
            fcntl.flock(stream, fcntl.LOCK_EX | fcntl.LOCK_NB)
    with lock.open("w") as stream:
        fcntl.flock(stream, fcntl.LOCK_EX | fcntl.LOCK_NB)


def test_progress_is_written_at_most_once_a_second(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    clock = iter([100.0, 100.0, 100.5, 101.5])  # when made, then at each update
    monkeypatch.setattr("robuq.stages.time.monotonic", lambda: next(clock))
    progress = ProgressFile(tmp_path, "training", steps=50, first=10)
    written = []
    for step in (10, 15, 40):
        progress.update(step, loss=0.5)
        written.append(json.loads((tmp_path / "progress.json").read_text()))
    assert [content["step"] for content in written] == [10, 10, 40]
    assert written[-1] == {"phase": "training", "steps": 50, "step": 40, "loss": 0.5, "steps_per_second": 20.0}


def test_samples_are_the_same_noise_for_every_variant(root: Path) -> None:
    """Images of one index start from one noise: more alike than images of two indices, at equal classes."""
    runs = [RUN, RUN.updated(variant="full_precision", precision=PrecisionMap())]
    grids = []
    for run in runs:
        execute(run, root)
        with np.load(root / stages(run)["evaluate"].id / "samples.npz") as samples:
            grids.append(samples["images"].astype(float))
            assert samples["labels"].tolist() == [index % 10 for index in range(20)]
    same = np.abs(grids[0] - grids[1]).mean()
    other = np.abs(grids[0] - np.roll(grids[1], 10, axis=0)).mean()
    assert same < other
