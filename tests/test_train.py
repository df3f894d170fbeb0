"""Training: what an update is, where its randomness comes from, and that a killed run goes on as if it had not been."""

import json
import math
import os
import signal
import subprocess
import sys
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from torch import Tensor, nn

from robuq.batches import Batches
from robuq.checkpoint import latest_checkpoint
from robuq.config import (
    MODEL_PRESETS,
    ActQuant,
    ConfigError,
    DataConfig,
    DiffusionConfig,
    TrainConfig,
    resolve_specs,
)
from robuq.data.load import ImageData, load_data
from robuq.diffusion.loss import noise_prediction_loss
from robuq.diffusion.schedule import NoiseSchedule
from robuq.models import DiT, build_dit
from robuq.quant.fake_quantizer import ActFakeQuantizer
from robuq.quant.surgery import quantize_
from robuq.stopping import Stopped, forget_request, request_stop
from robuq.train import (
    ParameterAverage,
    RowFile,
    TrainingDiverged,
    learning_rate,
    parameter_groups,
    train,
)
from robuq.variants import variant

NANO = MODEL_PRESETS["nano"]
SHORT = TrainConfig(steps=12, batch_size=8, warmup_steps=3, log_every=4, checkpoint_every=5, telemetry_every=3)
GOLDEN = Path(__file__).parent / "golden" / "smoke_loss.json"


@pytest.fixture(scope="module")
def data() -> ImageData:
    return load_data(DataConfig())


@pytest.fixture(scope="module")
def schedule() -> NoiseSchedule:
    return NoiseSchedule(DiffusionConfig())


def full_precision_model() -> DiT:
    return build_dit(NANO, seed=3)


def quantized_model() -> DiT:
    """The gates of a fresh DiT are zero: without noise on all weights the blocks would not matter."""
    model = full_precision_model()
    generator = torch.Generator().manual_seed(4)
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.add_(torch.randn(parameter.shape, generator=generator), alpha=0.05)
    quantize_(model, resolve_specs(variant("robuq_uniform"), NANO.num_layers), seed=0)
    return model


class Halted(Exception):
    pass


def stop_at(step: int) -> Callable[[int], None]:
    def on_step(done: int) -> None:
        if done == step:
            raise Halted

    return on_step


def outcome(model: DiT, work: Path) -> dict[str, object]:
    files = {name: (work / name).read_text() for name in ("history.jsonl", "layers.jsonl")}
    return {**{name: tensor.clone() for name, tensor in model.state_dict().items()}, **files}


def assert_same(got: dict[str, object], expected: dict[str, object]) -> None:
    assert got.keys() == expected.keys()
    for name, value in expected.items():
        same = torch.equal(got[name], value) if isinstance(value, Tensor) else got[name] == value
        assert same, name


# --- schedules and groups -------------------------------------------------------------------------------------


def test_learning_rate_is_that_of_torchs_schedulers() -> None:
    config = TrainConfig(steps=50, lr=0.02, warmup_steps=8)
    optimizer = torch.optim.SGD([nn.Parameter(torch.zeros(1))], lr=config.lr)
    warmup = torch.optim.lr_scheduler.LinearLR(optimizer, start_factor=1 / 8, total_iters=7)
    cosine = torch.optim.lr_scheduler.CosineAnnealingLR(optimizer, T_max=42)
    both = torch.optim.lr_scheduler.SequentialLR(optimizer, [warmup, cosine], milestones=[8])
    for step in range(config.steps):
        assert math.isclose(learning_rate(config, step), optimizer.param_groups[0]["lr"], rel_tol=1e-9)
        optimizer.step()
        both.step()


def test_constant_learning_rate_without_warmup() -> None:
    config = TrainConfig(steps=5, lr=0.3, schedule="constant", warmup_steps=0)
    assert [learning_rate(config, step) for step in range(5)] == [0.3] * 5


def test_decay_spares_vectors_and_learned_steps() -> None:
    model = full_precision_model()
    lsq = ActQuant(bits=2, scale="lsq", granularity="per_channel", mode="static", grid="mid_tread")
    quantizer = ActFakeQuantizer(lsq, 32)
    quantizer.calibrate_(torch.randn(64, 32, generator=torch.Generator().manual_seed(0)))
    model.add_module("act_quantizer", quantizer)
    decayed, free = parameter_groups(model, 0.1)
    assert (decayed["weight_decay"], free["weight_decay"]) == (0.1, 0.0)
    ids = [id(parameter) for parameter in decayed["params"] + free["params"]]
    assert sorted(ids) == sorted(id(parameter) for parameter in model.parameters())
    assert {id(p) for p in quantizer.parameters()} <= {id(p) for p in free["params"]}
    assert any(True for _ in quantizer.parameters())
    assert all(p.ndim >= 2 for p in decayed["params"])
    assert id(model.transformer_blocks[0].ff.net[2].weight) in {id(p) for p in decayed["params"]}


# --- averages -------------------------------------------------------------------------------------------------


def test_average_is_the_recursion_in_float64() -> None:
    generator = torch.Generator().manual_seed(0)
    series = [torch.randn(3, 2, generator=generator) for _ in range(40)]
    average, expected = ParameterAverage([series[0]], 0.7), series[0].double()
    for step, value in enumerate(series):
        average.update([value], step)
        decay = min(0.7, (1 + step) / (10 + step))
        expected = decay * expected + (1 - decay) * value.double()
    torch.testing.assert_close(average.tensors[0].double(), expected, rtol=0, atol=40 * 4 * 2**-24)


def test_no_decay_keeps_no_average() -> None:
    average, parameter = ParameterAverage([torch.ones(2)], 0.0), torch.full((2,), 5.0)
    average.update([parameter], 0)
    average.copy_to([parameter])
    assert average.tensors == []
    assert torch.equal(parameter, torch.full((2,), 5.0))


# --- updates --------------------------------------------------------------------------------------------------


def test_updates_are_those_of_a_plain_loop(tmp_path: Path, data: ImageData, schedule: NoiseSchedule) -> None:
    config = SHORT.updated(steps=4, warmup_steps=2, ema_decay=0.0, weight_decay=0.1, clip_norm=0.05, log_every=1)
    model, plain = full_precision_model(), full_precision_model().train()
    train(model, data, schedule, config, 0, tmp_path)
    source = Batches(plain, data, schedule, config, 0, torch.device("cpu"))
    optimizer = torch.optim.AdamW(parameter_groups(plain, 0.1), betas=(0.9, 0.999), foreach=False)
    history = []
    for step in range(4):
        batch = source(step)
        loss = noise_prediction_loss(plain, schedule, batch.images, batch.labels, batch.noise, batch.timesteps).mean()
        optimizer.zero_grad()
        loss.backward()
        norm = torch.stack([p.grad.double().square().sum() for p in plain.parameters()]).sum().sqrt()
        for parameter in plain.parameters():
            parameter.grad *= min(1.0, 0.05 / (float(norm) + 1e-6))
        for group in optimizer.param_groups:
            group["lr"] = learning_rate(config, step)
        optimizer.step()
        history.append((step + 1, loss.item(), float(norm), learning_rate(config, step)))
    rows = RowFile(tmp_path / "history.jsonl").rows()
    assert [row["step"] for row in rows] == [1, 2, 3, 4]
    for row, (_, loss_value, norm_value, lr) in zip(rows, history, strict=True):
        assert row["loss"] == pytest.approx(loss_value, rel=1e-4)
        assert row["grad_norm"] == pytest.approx(norm_value, rel=1e-3)
        assert row["lr"] == lr
    # Adam divides by sqrt(v): where a gradient is rounding noise its sign is too, so entries may differ by a step's
    # length; on average they do not.
    steps = sum(row["lr"] for row in rows)
    for (name, got), expected in zip(model.named_parameters(), plain.parameters(), strict=True):
        assert float((got - expected).detach().abs().mean()) < 0.01 * steps, name


def test_logged_loss_is_the_mean_over_its_window(tmp_path: Path, data: ImageData, schedule: NoiseSchedule) -> None:
    rows = {}
    for every in (1, 4):
        (work := tmp_path / str(every)).mkdir()
        train(full_precision_model(), data, schedule, SHORT.updated(steps=10, log_every=every), 0, work)
        rows[every] = RowFile(work / "history.jsonl").rows()
    assert [row["step"] for row in rows[4]] == [4, 8, 10]
    for row, (first, last) in zip(rows[4], [(0, 4), (4, 8), (8, 10)], strict=True):
        window = [single["loss"] for single in rows[1][first:last]]
        assert row["loss"] == pytest.approx(sum(window) / len(window), rel=1e-6)
        assert row["lr"] == rows[1][last - 1]["lr"]


def test_training_learns_and_leaves_the_averaged_weights(
    tmp_path: Path, data: ImageData, schedule: NoiseSchedule
) -> None:
    model = full_precision_model()
    config = SHORT.updated(steps=60, batch_size=32, lr=5e-3, telemetry_every=0, checkpoint_every=60)
    result = train(model, data, schedule, config, 0, tmp_path)
    rows = RowFile(tmp_path / "history.jsonl").rows()
    assert rows[0]["loss"] > 0.9  # the output of a fresh DiT is zero, and the noise has variance 1
    assert result.loss == rows[-1]["loss"] < 0.6
    assert not model.training
    checkpoint = latest_checkpoint(tmp_path)
    assert checkpoint is not None
    for i, parameter in enumerate(model.parameters()):
        assert torch.equal(parameter, checkpoint.tensors[f"average.{i}"])


def test_no_steps_change_nothing(tmp_path: Path, data: ImageData, schedule: NoiseSchedule) -> None:
    model, before = full_precision_model(), full_precision_model().state_dict()
    result = train(model, data, schedule, SHORT.updated(steps=0, telemetry_every=0), 0, tmp_path)
    assert (result.steps, result.loss) == (0, None)
    assert all(torch.equal(tensor, before[name]) for name, tensor in model.state_dict().items())
    assert (tmp_path / "history.jsonl").read_text() == (tmp_path / "layers.jsonl").read_text() == ""


def test_global_generator_is_left_alone(tmp_path: Path, data: ImageData, schedule: NoiseSchedule) -> None:
    state = torch.get_rng_state()
    train(quantized_model(), data, schedule, SHORT.updated(steps=4), 0, tmp_path)
    assert torch.equal(torch.get_rng_state(), state)


def test_telemetry_changes_no_number(tmp_path: Path, data: ImageData, schedule: NoiseSchedule) -> None:
    weights = []
    for every in (0, 2):
        (work := tmp_path / str(every)).mkdir()
        model = quantized_model()
        train(model, data, schedule, SHORT.updated(telemetry_every=every), 0, work)
        weights.append(list(model.parameters()))
    assert all(torch.equal(a, b) for a, b in zip(*weights, strict=True))
    steps = [row["step"] for row in RowFile(tmp_path / "2" / "layers.jsonl").rows()]
    assert steps == [step for step in range(0, 13, 2) for _ in range(4 * NANO.num_layers)]


def test_bfloat16_keeps_float32_parameters(tmp_path: Path, data: ImageData, schedule: NoiseSchedule) -> None:
    model = quantized_model()
    result = train(model, data, schedule, SHORT.updated(steps=6, dtype="bfloat16"), 0, tmp_path)
    assert result.loss is not None
    assert math.isfinite(result.loss)
    assert {parameter.dtype for parameter in model.parameters()} == {torch.float32}


def test_unconditional(tmp_path: Path, data: ImageData, schedule: NoiseSchedule) -> None:
    assert train(build_dit(NANO.updated(num_classes=0), seed=0), data, schedule, SHORT, 0, tmp_path).steps == 12


def test_progress_file(tmp_path: Path, data: ImageData, schedule: NoiseSchedule) -> None:
    train(full_precision_model(), data, schedule, SHORT, 0, tmp_path)
    progress = json.loads((tmp_path / "progress.json").read_text())
    assert progress.keys() == {"step", "steps", "loss", "steps_per_second", "phase"}
    assert (progress["phase"], progress["steps"]) == ("training", 12)


# --- continuing -----------------------------------------------------------------------------------------------


@pytest.mark.parametrize("build", [full_precision_model, quantized_model])
def test_stopped_anywhere_and_continued_is_bit_identical(
    tmp_path: Path, data: ImageData, schedule: NoiseSchedule, build: Callable[[], DiT]
) -> None:
    (whole := tmp_path / "whole").mkdir()
    model = build()
    train(model, data, schedule, SHORT, 0, whole)
    expected = outcome(model, whole)
    for stops in [(1,), (5,), (7,), (12,), (6, 9)]:
        (work := tmp_path / str(stops)).mkdir()
        for stop in stops:
            with pytest.raises(Halted):
                train(build(), data, schedule, SHORT, 0, work, on_step=stop_at(stop))
        model = build()
        train(model, data, schedule, SHORT, 0, work)
        assert_same(outcome(model, work), expected)


def test_a_requested_stop_leaves_a_checkpoint_of_its_step(
    tmp_path: Path, data: ImageData, schedule: NoiseSchedule
) -> None:
    (whole := tmp_path / "whole").mkdir()
    model = full_precision_model()
    train(model, data, schedule, SHORT, 0, whole)
    (work := tmp_path / "stopped").mkdir()
    with pytest.raises(Stopped):
        train(full_precision_model(), data, schedule, SHORT, 0, work, on_step=lambda done: done == 7 and request_stop())
    forget_request()
    kept = latest_checkpoint(work)
    assert kept is not None
    assert kept.step == 8
    again, started = full_precision_model(), []
    train(again, data, schedule, SHORT, 0, work, on_step=started.append)
    assert started == [9, 10, 11, 12]
    assert_same(outcome(again, work), outcome(model, whole))


@pytest.mark.parametrize("damaged", [1, 2])
def test_damaged_checkpoints_are_not_used(
    tmp_path: Path, data: ImageData, schedule: NoiseSchedule, damaged: int
) -> None:
    (whole := tmp_path / "whole").mkdir()
    model = full_precision_model()
    train(model, data, schedule, SHORT, 0, whole)
    (work := tmp_path / "stopped").mkdir()
    with pytest.raises(Halted):
        train(full_precision_model(), data, schedule, SHORT, 0, work, on_step=stop_at(11))
    for file in sorted(work.glob("checkpoint-*.safetensors"), reverse=True)[:damaged]:
        file.write_bytes(file.read_bytes()[:-100])
    again, started = full_precision_model(), []
    train(again, data, schedule, SHORT, 0, work, on_step=started.append)
    assert started[0] == {1: 6, 2: 1}[damaged]
    assert_same(outcome(again, work), outcome(model, whole))


KILLED = """
import os, signal, sys
from pathlib import Path
import torch
torch.set_num_threads(1)
sys.path.insert(0, sys.argv[2])
import test_train as t
data, schedule = t.load_data(t.DataConfig()), t.NoiseSchedule(t.DiffusionConfig())
kill = lambda done: os.kill(os.getpid(), signal.SIGKILL) if done == 8 else None
t.train(t.quantized_model(), data, schedule, t.SHORT, 0, Path(sys.argv[1]), on_step=kill)
"""


@pytest.mark.slow
def test_a_killed_process_is_continued_bit_identically(
    tmp_path: Path, data: ImageData, schedule: NoiseSchedule
) -> None:
    (whole := tmp_path / "whole").mkdir()
    model = quantized_model()
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    train(model, data, schedule, SHORT, 0, whole)
    (work := tmp_path / "killed").mkdir()
    command = [sys.executable, "-c", KILLED, str(work), str(Path(__file__).parent)]
    killed = subprocess.run(command, env={**os.environ, "OMP_NUM_THREADS": "1"}, capture_output=True, check=False)
    assert killed.returncode == -signal.SIGKILL, killed.stderr.decode()
    assert sorted(file.name for file in work.glob("checkpoint-*.json")) == ["checkpoint-00000005.json"]
    again = quantized_model()
    train(again, data, schedule, SHORT, 0, work)
    torch.set_num_threads(threads)
    assert_same(outcome(again, work), outcome(model, whole))


def test_a_checkpoint_of_another_run_is_refused(tmp_path: Path, data: ImageData, schedule: NoiseSchedule) -> None:
    train(full_precision_model(), data, schedule, SHORT, 0, tmp_path)
    with pytest.raises(ConfigError, match="another configuration, seed or model: delete the folder"):
        train(full_precision_model(), data, schedule, SHORT, 1, tmp_path)
    with pytest.raises(ConfigError, match="another configuration"):
        train(full_precision_model(), data, schedule, SHORT.updated(lr=0.5), 0, tmp_path)
    with pytest.raises(ConfigError, match="another configuration"):
        train(quantized_model(), data, schedule, SHORT, 0, tmp_path)


def test_rows_cut_off_in_writing_are_dropped(tmp_path: Path) -> None:
    rows = RowFile(tmp_path / "rows.jsonl")
    rows.append({"step": 1, "x": 0.1}, {"step": 2, "x": 1 / 3}, {"step": 3, "x": 2.0})
    whole = rows.file.read_text()
    rows.file.write_text(whole + '{"step": 4, "x": 0.')
    rows.keep_until(9)
    assert rows.file.read_text() == whole
    rows.keep_until(2)
    assert rows.rows() == [{"step": 1, "x": 0.1}, {"step": 2, "x": 1 / 3}]


# --- divergence -----------------------------------------------------------------------------------------------


def poisoned(data: ImageData, schedule: NoiseSchedule, step: int, value: float) -> ImageData:
    """One image of the batch of update `step` (from 0) is not finite."""
    images = data.train_images.clone()
    images[Batches(full_precision_model(), data, schedule, SHORT, 0, torch.device("cpu")).indices(step)[0]] = value
    return replace(data, train_images=images)


@pytest.mark.parametrize("value", [math.nan, math.inf])
def test_divergence_stops_and_keeps_the_last_good_checkpoint(
    tmp_path: Path, data: ImageData, schedule: NoiseSchedule, value: float
) -> None:
    bad = poisoned(data, schedule, 8, value)  # steps 1..8 are good, checkpoints are due after 5 and 10
    config = SHORT.updated(log_every=100, telemetry_every=0)
    for _ in range(2):  # the second attempt continues from the checkpoint, and meets the same
        with pytest.raises(TrainingDiverged, match=r"diverged by step 10: .*nan.* in steps 1 to 10") as caught:
            train(full_precision_model(), bad, schedule, config, 0, tmp_path)
        assert caught.value.step == 10
        checkpoint = latest_checkpoint(tmp_path)
        assert checkpoint is not None
        assert checkpoint.step == 5
        assert all(bool(tensor.isfinite().all()) for tensor in checkpoint.tensors.values())


def test_divergence_is_found_at_the_next_logged_step(tmp_path: Path, data: ImageData, schedule: NoiseSchedule) -> None:
    with pytest.raises(TrainingDiverged, match="by step 12"):
        train(full_precision_model(), poisoned(data, schedule, 10, math.nan), schedule, SHORT, 0, tmp_path)
    assert [row["step"] for row in RowFile(tmp_path / "history.jsonl").rows()] == [4, 8]


# --- golden ---------------------------------------------------------------------------------------------------


def test_smoke_loss_curve(tmp_path: Path, data: ImageData, schedule: NoiseSchedule) -> None:
    """Ten updates of nano robuq_uniform. Regenerate only with a raised CODE_EPOCH: `python tests/test_train.py`.

    Another CPU rounds otherwise, and a rounding error can move a value to the next level: weights perturbed by
    1e-7 to 1e-6 of themselves moved single losses by up to 1.5e-4.
    """
    train(quantized_model(), data, schedule, SHORT.updated(steps=10, log_every=1, telemetry_every=0), 0, tmp_path)
    losses = [row["loss"] for row in RowFile(tmp_path / "history.jsonl").rows()]
    assert losses == pytest.approx(json.loads(GOLDEN.read_text())["loss"], rel=1e-3)


def write_golden() -> None:
    import tempfile

    with tempfile.TemporaryDirectory() as folder:
        config = SHORT.updated(steps=10, log_every=1, telemetry_every=0)
        train(quantized_model(), load_data(DataConfig()), NoiseSchedule(DiffusionConfig()), config, 0, Path(folder))
        losses = [row["loss"] for row in RowFile(Path(folder) / "history.jsonl").rows()]
    GOLDEN.parent.mkdir(exist_ok=True)
    GOLDEN.write_text(json.dumps({"loss": losses}, indent=1) + "\n")


if __name__ == "__main__":
    write_golden()
