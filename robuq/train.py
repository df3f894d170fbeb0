"""Training, in full precision and quantization-aware alike: one loop that continues where it was killed.

Everything random at step s comes from a generator seeded by (seed, purpose, s), so the position in the data is the
step itself and no generator state has to be kept. What is kept, in rolling checkpoints: parameters and buffers, the
average of the parameters, AdamW's moments, and the sums of the logging window. A run that is killed at any step and
started again gives, on a CPU, bit for bit the weights and the history of one that was left alone.
"""

from __future__ import annotations

import hashlib
import json
import math
import os
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from itertools import takewhile
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from robuq.batches import Batches
from robuq.checkpoint import Checkpoint, latest_checkpoint, save_checkpoint
from robuq.config import ConfigError, TrainConfig
from robuq.data.load import ImageData
from robuq.diffusion.loss import noise_prediction_loss
from robuq.diffusion.schedule import NoiseSchedule
from robuq.models import DiT
from robuq.stages import ProgressFile
from robuq.stopping import Stopped, stop_requested
from robuq.storage_fault import reading
from robuq.telemetry import LayerTelemetry

HISTORY, LAYERS, TIMING = "history.jsonl", "layers.jsonl", "timing.jsonl"
ROWS = "rows"  # in a checkpoint: the seals of these files


@dataclass(frozen=True)
class TrainResult:
    steps: int  # optimizer updates done, earlier attempts included
    loss: float | None  # mean over the last logging window
    seconds: float  # spent in training, earlier attempts included
    earlier_seconds: float  # of these, in earlier attempts


class TrainingDiverged(ArithmeticError):
    """The loss, the gradient or a parameter is not finite; the last good checkpoint is on the disk."""

    def __init__(self, step: int, reason: str) -> None:
        super().__init__(step, reason)
        self.step = step
        self.reason = reason

    def __str__(self) -> str:
        return f"training diverged by step {self.step}: {self.reason}; lower lr or clip_norm"


def train(
    model: DiT,
    data: ImageData,
    schedule: NoiseSchedule,
    config: TrainConfig,
    seed: int,
    work: Path,
    device: torch.device | str = "cpu",
    on_step: Callable[[int], None] | None = None,
) -> TrainResult:
    """Train `model` in place; afterwards it holds the averaged weights and is in eval mode.

    `work` receives `history.jsonl` (step, loss, lr, grad_norm: means over the logging window, lr of the last step),
    `timing.jsonl` (step, ms_per_step), `layers.jsonl` (telemetry), `progress.json` and the checkpoints; where it
    holds a checkpoint, training continues from it. `on_step` is called with the number of updates done after each.

    Raises:
        TrainingDiverged: a non-finite loss, gradient or parameter, found at the next logged or kept step.
        ConfigError: the checkpoint in `work` belongs to another configuration, seed or model.
        Stopped: it was asked for; a checkpoint of the last step is in `work`.
    """
    run = _Run(model.to(device).train(), data, schedule, config, seed, work, torch.device(device))
    start = run.resume()
    progress = ProgressFile(work, "training", config.steps, first=start)
    run.measure_layers(start)
    for step in range(start, config.steps):
        run.update(step)
        stopping = step + 1 < config.steps and stop_requested()
        run.record(step + 1, stopping)
        progress.update(step + 1, run.loss)
        if on_step is not None:
            on_step(step + 1)
        if stopping:
            raise Stopped
    run.average.copy_to(run.parameters)
    model.eval()
    return TrainResult(config.steps, run.loss, run.seconds(), run.earlier_seconds)


def learning_rate(config: TrainConfig, step: int) -> float:
    """Rate of update `step` (from 0): linear warm-up to `lr`, then constant or half a cosine to zero."""
    if step < config.warmup_steps:
        return config.lr * (step + 1) / config.warmup_steps
    if config.schedule == "constant":
        return config.lr
    done = (step - config.warmup_steps) / (config.steps - config.warmup_steps)
    return config.lr * 0.5 * (1 + math.cos(math.pi * done))


def parameter_groups(model: nn.Module, weight_decay: float) -> list[dict[str, Any]]:
    """Decay for matrices and kernels; none for biases, gains and the learned steps of activation quantizers."""
    decayed: list[nn.Parameter] = []
    free: list[nn.Parameter] = []
    for name, parameter in model.named_parameters():
        if parameter.requires_grad:
            decays = parameter.ndim >= 2 and "act_quantizer" not in name
            (decayed if decays else free).append(parameter)
    groups = ({"params": decayed, "weight_decay": weight_decay}, {"params": free, "weight_decay": 0.0})
    return [group for group in groups if group["params"]]


class ParameterAverage:
    """Exponential moving average of the parameters, learned quantizer steps included.

    The decay of update t (from 0) is min(decay, (1 + t) / (10 + t)): a short run is not dominated by its start.
    Buffers do not change in training and are not averaged.
    """

    def __init__(self, parameters: list[Tensor], decay: float) -> None:
        self.decay = decay
        self.tensors = [parameter.detach().clone() for parameter in parameters] if decay else []

    def decay_at(self, step: int) -> float:
        return min(self.decay, (1 + step) / (10 + step))

    @torch.no_grad()
    def update(self, parameters: list[Tensor], step: int) -> None:
        if self.tensors:
            torch._foreach_lerp_(self.tensors, parameters, 1 - self.decay_at(step))

    @torch.no_grad()
    def copy_to(self, parameters: list[Tensor]) -> None:
        for parameter, average in zip(parameters, self.tensors, strict=False):  # no averages without decay
            parameter.copy_(average)


class RowFile:
    """One JSON object a line, in order of step."""

    def __init__(self, file: Path) -> None:
        self.file = file

    def append(self, *rows: Mapping[str, Any]) -> None:
        lines = [json.dumps(row, allow_nan=False) + "\n" for row in rows]
        with self.file.open("a") as stream:
            stream.write("".join(lines))

    def rows(self) -> list[dict[str, Any]]:
        """Up to the first line that is not one: the last where it was cut off, or one that is damaged."""
        lines = self._content().splitlines(keepends=True)
        return list(takewhile(bool, (_row(line) for line in lines)))

    def keep_until(self, step: int) -> None:
        """Drop what was written after the checkpoint of `step`; it is about to be written again."""
        rows = [row for row in self.rows() if row["step"] <= step]
        self._replace("".join(json.dumps(row) + "\n" for row in rows).encode())

    def seal(self) -> tuple[int, str]:
        """(bytes, SHA-256) of all rows, once they are on the disk."""
        if self.file.is_file():
            with self.file.open("rb") as stream:
                os.fsync(stream.fileno())
        content = self._content()
        return len(content), hashlib.sha256(content).hexdigest()

    def has(self, seal: Sequence[Any]) -> bool:
        """Whether the rows that were sealed are still there, as they were."""
        size, digest = int(seal[0]), str(seal[1])
        return hashlib.sha256(self._content()[:size]).hexdigest() == digest

    def cut(self, seal: Sequence[Any]) -> None:
        """Drop what was written after the seal."""
        self._replace(self._content()[: seal[0]])

    def _content(self) -> bytes:
        with reading(self.file):
            return self.file.read_bytes() if self.file.is_file() else b""

    def _replace(self, content: bytes) -> None:
        temporary = self.file.with_name(f".{self.file.name}")
        temporary.write_bytes(content)
        os.replace(temporary, self.file)


def _row(line: bytes) -> dict[str, Any]:
    """Empty where the line is no whole row."""
    try:
        row = json.loads(line) if line.endswith(b"\n") else {}
    except ValueError:
        return {}
    return row if isinstance(row, dict) and isinstance(row.get("step"), int) else {}


class _Run:
    """The state of one training run, and what is done with it at each step."""

    def __init__(
        self,
        model: DiT,
        data: ImageData,
        schedule: NoiseSchedule,
        config: TrainConfig,
        seed: int,
        work: Path,
        device: torch.device,
    ) -> None:
        self.model, self.schedule, self.config, self.work, self.device = model, schedule, config, work, device
        self.identity = hashlib.sha256(f"{config.to_json()}/{seed}/{_shapes(model)}".encode()).hexdigest()
        self.parameters: list[Tensor] = [p for p in model.parameters() if p.requires_grad]
        groups = parameter_groups(model, config.weight_decay)
        self.optimizer = torch.optim.AdamW(groups, lr=config.lr, betas=(0.9, config.beta2), fused=True)
        self.average = ParameterAverage(self.parameters, config.ema_decay)
        self.batches = Batches(model, data, schedule, config, seed, device)
        self.telemetry = LayerTelemetry(model, data, schedule, seed, device) if config.telemetry_every else None
        self.window = torch.zeros(2, device=device)  # sums of loss and gradient norm since the last logged step
        self.loss: float | None = None
        self.history, self.layers, self.timing = (RowFile(work / name) for name in (HISTORY, LAYERS, TIMING))
        self._row_files = (self.history, self.layers, self.timing)
        self.logged = 0  # step of the last logged row
        self.earlier_seconds, self._begun = 0.0, time.perf_counter()
        self._window_begun, self._window_first = self._begun, 0

    def update(self, step: int) -> None:
        """One optimizer update. Nothing here waits for the device."""
        batch = self.batches(step)
        with torch.autocast(self.device.type, torch.bfloat16, enabled=self.config.dtype == "bfloat16"):
            losses = noise_prediction_loss(
                self.model, self.schedule, batch.images, batch.labels, batch.noise, batch.timesteps
            )
        loss = losses.float().mean()
        self.optimizer.zero_grad(set_to_none=True)
        loss.backward()  # type: ignore[no-untyped-call]
        norm = nn.utils.clip_grad_norm_(self.parameters, self.config.clip_norm)
        for group in self.optimizer.param_groups:
            group["lr"] = learning_rate(self.config, step)
        self.optimizer.step()
        self.average.update(self.parameters, step)
        self.window += torch.stack((loss.detach(), norm))

    def record(self, done: int, stopping: bool) -> None:
        """History, telemetry and checkpoint, where they are due after `done` updates."""
        config, last = self.config, done == self.config.steps
        keeps = last or stopping or done % config.checkpoint_every == 0
        logs = last or done % config.log_every == 0
        if keeps or logs:
            loss, norm = self._checked_means(done)
        if logs:
            self._log(done, loss, norm)
        if config.telemetry_every and done % config.telemetry_every == 0:
            self.measure_layers(done)
        if keeps:
            self._keep(done)

    def measure_layers(self, done: int) -> None:
        """Telemetry after `done` updates; a resumed run has the rows of its checkpoint's step already."""
        if self.telemetry is not None and (done == 0 or done % self.config.telemetry_every == 0):
            rows = self.layers.rows()
            if not rows or rows[-1]["step"] < done:
                self.layers.append(*self.telemetry.measure(self.model, done))

    def resume(self) -> int:
        """Take up the newest intact checkpoint whose rows are intact, too; returns the number of updates done."""
        checkpoint = latest_checkpoint(self.work, self._has_rows_of)
        step = -1 if checkpoint is None else checkpoint.step
        seals = {} if checkpoint is None else checkpoint.values.get(ROWS, {})
        for rows in self._row_files:
            rows.cut(seals[rows.file.name]) if seals else rows.keep_until(step)
        if checkpoint is not None:
            self._restore(checkpoint)
        return max(step, 0)

    def _has_rows_of(self, checkpoint: Checkpoint) -> bool:
        """Checkpoints from before rows were sealed are taken as they are."""
        seals = checkpoint.values.get(ROWS, {})
        return all(rows.has(seals[rows.file.name]) for rows in self._row_files if seals)

    def seconds(self) -> float:
        return self.earlier_seconds + time.perf_counter() - self._begun

    def _checked_means(self, done: int) -> tuple[float, float]:
        """Means over the window so far. A sum stays non-finite once one of its terms was."""
        loss, norm = (total / (done - self.logged) for total in self.window.tolist())
        if not (math.isfinite(loss) and math.isfinite(norm)):
            steps = f"in steps {self.logged + 1} to {done}"
            raise TrainingDiverged(done, f"mean loss {loss}, mean gradient norm {norm} {steps}")
        return loss, norm

    def _log(self, done: int, loss: float, norm: float) -> None:
        now = time.perf_counter()
        lr = learning_rate(self.config, done - 1)
        self.history.append({"step": done, "loss": loss, "lr": lr, "grad_norm": norm})
        per_step = 1000 * (now - self._window_begun) / (done - self._window_first)
        self.timing.append({"step": done, "ms_per_step": round(per_step, 4)})
        self.loss, self.logged = loss, done
        self.window.zero_()
        self._window_begun, self._window_first = now, done

    def _keep(self, done: int) -> None:
        if not all(bool(norm.isfinite()) for norm in torch._foreach_norm(self.parameters)):
            raise TrainingDiverged(done, "a parameter is not finite")
        values = {"identity": self.identity, "logged": self.logged, "loss": self.loss, "seconds": self.seconds()}
        values[ROWS] = {rows.file.name: rows.seal() for rows in self._row_files}
        save_checkpoint(self.work, Checkpoint(done, self._tensors(), values))

    def _tensors(self) -> dict[str, Tensor]:
        """All state, by name; the optimizer's comes after its first update."""
        tensors = {f"model.{name}": tensor for name, tensor in _state(self.model).items()}
        tensors |= {f"average.{i}": tensor for i, tensor in enumerate(self.average.tensors)}
        for i, state in self.optimizer.state_dict()["state"].items():
            tensors |= {f"optimizer.{i}.{name}": value for name, value in state.items()}
        if self.telemetry is not None:
            tensors |= {f"telemetry.{name}": codes for name, codes in self.telemetry.codes.items()}
        return {**tensors, "window": self.window}

    @torch.no_grad()
    def _restore(self, checkpoint: Checkpoint) -> None:
        values, tensors = checkpoint.values, checkpoint.tensors
        if values["identity"] != self.identity:
            raise ConfigError(
                f"the checkpoint in {self.work} is of another configuration, seed or model: "
                "delete the folder, or train elsewhere"
            )
        for name, tensor in _state(self.model).items():
            tensor.copy_(tensors[f"model.{name}"])
        for i, average in enumerate(self.average.tensors):
            average.copy_(tensors[f"average.{i}"])
        self.window.copy_(tensors["window"])
        self.optimizer.load_state_dict({**self.optimizer.state_dict(), "state": _nested(tensors, "optimizer.")})
        if self.telemetry is not None:
            self.telemetry.codes = {
                name.removeprefix("telemetry."): codes.to(self.device)
                for name, codes in tensors.items()
                if name.startswith("telemetry.")
            }
        self.loss, self.logged, self.earlier_seconds = values["loss"], values["logged"], values["seconds"]
        self._window_first = checkpoint.step


def _state(model: nn.Module) -> dict[str, Tensor]:
    """Parameters and buffers, each once even where modules are shared."""
    return {**dict(model.named_parameters()), **dict(model.named_buffers())}


def _shapes(model: nn.Module) -> str:
    return ",".join(f"{name}{tuple(tensor.shape)}" for name, tensor in _state(model).items())


def _nested(tensors: Mapping[str, Tensor], prefix: str) -> dict[int, dict[str, Tensor]]:
    """{`optimizer.3.exp_avg`: x} -> {3: {`exp_avg`: x}}; cloned, since the optimizer changes them in place."""
    state: dict[int, dict[str, Tensor]] = {}
    for name, tensor in tensors.items():
        if name.startswith(prefix):
            index, field = name.removeprefix(prefix).split(".")
            state.setdefault(int(index), {})[field] = tensor.clone()
    return state
