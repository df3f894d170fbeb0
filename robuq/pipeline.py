"""What each kind of stage does: from `features` and `full_precision` to `evaluate`.

`run_stage` is all that an executor needs. A stage works in its own folder, continues from what an earlier attempt left
there, and appears under its final name, whole, when it is done.
"""

from __future__ import annotations

import platform
import random
import time
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import diffusers
import numpy as np
import torch
from safetensors.torch import load_file, save_file

from robuq.ampn.allocate import allocate
from robuq.ampn.bits_file import bits_data, read_bits
from robuq.ampn.problem import make_problem
from robuq.ampn.sensitivity import measure_sensitivity
from robuq.ampn.table import SensitivityTable
from robuq.calibrate import calibrate_
from robuq.config import (
    BLOCK_ROLES,
    AmpnConfig,
    BitAllocation,
    CalibrationConfig,
    DataConfig,
    DiffusionConfig,
    EvalConfig,
    FeatureConfig,
    LossConfig,
    ModelConfig,
    PrecisionMap,
    QuantSpec,
    SensitivityConfig,
    TrainConfig,
    resolve_specs,
)
from robuq.data.load import ImageData, check_model_fits, load_data
from robuq.diffusion.schedule import NoiseSchedule
from robuq.evaluate import NotFiniteError, cost_metrics, evaluate, probe_loss
from robuq.metrics.classifier import (
    accuracy,
    load_classifier,
    predict,
    reference_images,
    save_classifier,
    train_classifier,
)
from robuq.metrics.protocol import real_floor
from robuq.models import DiT, build_dit, load_dit, save_dit
from robuq.quant.bits import set_bits_
from robuq.quant.storage import load_quantized, save_quantized
from robuq.quant.surgery import needs_calibration, quantize_
from robuq.seeding import derived_seed
from robuq.stages import ProgressFile, Stage, StageStore, write_json
from robuq.stopping import stop_point
from robuq.train import TrainingDiverged, TrainResult, train

MODEL, CLASSIFIER, FEATURES = "model", "classifier.safetensors", "features.safetensors"
SENSITIVITY, BITS = "sensitivity.json", "bits.json"


class StageFailed(RuntimeError):
    """A stage that cannot be finished; failure.json in its working folder says why.

    `reason`: `diverged` (a loss, gradient, weight or image is not finite) or `unusable` (the configuration or the
    data cannot be used). `error`: one line.
    """

    def __init__(self, reason: str, error: str = "") -> None:
        super().__init__(reason, error)
        self.reason = reason
        self.error = error

    def __str__(self) -> str:
        return f"{self.reason}: {self.error}"


@dataclass(frozen=True)
class StageOutput:
    metrics: dict[str, float] = field(default_factory=dict)
    earlier_seconds: float = 0.0  # that attempts before this one spent in training


def run_stage(stage: Stage, store: StageStore, device: str = "cpu") -> dict[str, Any]:
    """Execute the stage, or return its result if it is done: {"metrics", "seconds", "versions"}.

    The stages that it takes as inputs must be done. Two processes never work on one stage: the second waits.

    Raises:
        StageFailed: after writing failure.json; checkpoints stay.
        InputDamaged: run that input again, then this stage.
        Stopped: it was asked for; a later attempt goes on.
    """
    with store.locked(stage.id):
        if store.is_done(stage):
            return store.result(stage.id)
        store.check_inputs(stage)
        work, begun = store.open_work(stage), time.perf_counter()
        seed_global_generators(int(stage.key[:8], 16))
        try:
            output = _worker(stage, store)(stage, store, work, device)
        except (TrainingDiverged, NotFiniteError) as error:
            raise _failed(stage, store, "diverged", error) from error
        except (ValueError, FileNotFoundError) as error:
            raise _failed(stage, store, "unusable", error) from error
        seconds = time.perf_counter() - begun + output.earlier_seconds
        result = {"metrics": output.metrics, "seconds": round(seconds, 3), "versions": versions()}
        store.commit(stage, result)
        return result


def seed_global_generators(seed: int) -> None:
    """For what takes no generator of its own, in libraries; our code draws nothing from them."""
    torch.manual_seed(seed)
    np.random.seed(seed)
    random.seed(seed)


def versions() -> dict[str, str]:
    return {
        "python": platform.python_version(),
        "torch": torch.__version__,
        "diffusers": diffusers.__version__,
        "numpy": np.__version__,
    }


def features(stage: Stage, store: StageStore, work: Path, device: str) -> StageOutput:
    """The classifier whose features the distances live in, and the features of real images."""
    data = load_data(DataConfig.parse(stage.config["data"], "data"))
    config = FeatureConfig.parse(stage.config["features"], "features")
    classifier = train_classifier(data, config)
    save_classifier(classifier, work / CLASSIFIER)
    reference = predict(classifier, reference_images(data, config)[0])[0]
    held_out = predict(classifier, data.held_out_images)[0]
    save_file({"reference": reference, "held_out": held_out}, work / FEATURES)
    right = accuracy(classifier, data.held_out_images, data.held_out_labels)
    return StageOutput({"classifier_accuracy": right})


def full_precision(stage: Stage, store: StageStore, work: Path, device: str) -> StageOutput:
    """Pre-training, or a pretrained model as it is (`steps=0`)."""
    setting = _Setting(stage)
    model = build_dit(setting.model, seed=setting.seed)
    result = setting.train(model, "pretrain", work, device)
    save_dit(model.cpu(), work / MODEL)
    return _trained(result)


def qat(stage: Stage, store: StageStore, work: Path, device: str) -> StageOutput:
    """Quantization-aware training from the full-precision model; as many steps more of it if nothing is quantized."""
    setting = _Setting(stage, store)
    model = load_dit(store.folder(stage.inputs["full_precision"]) / MODEL)
    if setting.specs:
        quantize_(model, setting.specs, setting.seed)
    model.to(device)
    if needs_calibration(model):
        calibration = CalibrationConfig.parse(stage.config["calibration"], "calibration")
        calibrate_(model, setting.data, setting.schedule, calibration, setting.seed)
    result = setting.train(model, "qat", work, device)
    if setting.specs:
        save_quantized(model.cpu(), setting.model, setting.specs, setting.seed, work / MODEL)
    else:
        save_dit(model.cpu(), work / MODEL)
    return _trained(result)


def sensitivity(stage: Stage, store: StageStore, work: Path, device: str) -> StageOutput:
    """What each bit-width of each decision does to the warmed-up network."""
    setting = _Setting(stage)
    config = SensitivityConfig.parse(stage.config["sensitivity"], "ampn.sensitivity")
    model = load_quantized(store.folder(stage.inputs["warm_up"]) / MODEL).to(device)
    progress = ProgressFile(work, "measuring", len(BLOCK_ROLES) * setting.model.num_layers)

    def measured(done: int, _: int) -> None:
        progress.update(done)
        stop_point()

    table = measure_sensitivity(model, setting.data, setting.schedule, config, measured)
    table.save(work / SENSITIVITY)
    return StageOutput({**table.noise(), **{f"{name}_seconds": value for name, value in table.seconds.items()}})


def allocation(stage: Stage, store: StageStore, work: Path, device: str) -> StageOutput:
    """The bits that the budget allows, by the allocator that is asked for."""
    table = SensitivityTable.load(store.folder(stage.inputs["sensitivity"]) / SENSITIVITY)
    model, ampn = ModelConfig.parse(stage.config["model"], "model"), AmpnConfig.parse(stage.config["ampn"], "ampn")
    precision = PrecisionMap.parse(stage.config["precision"], "precision")
    problem = make_problem(table, model, precision, ampn.budget, ampn.measure)
    found = allocate(problem, ampn.allocator)
    write_json(work / BITS, bits_data(problem, found, ampn, model, precision))
    return StageOutput({"damage": found.damage, "cost": found.cost})


def probe(stage: Stage, store: StageStore, work: Path, device: str) -> StageOutput:
    """The validation loss of a network, at the bits it was trained with or at others."""
    setting = _Setting(stage)
    model = load_quantized(store.folder(stage.inputs["network"]) / MODEL)
    if setting.allocation is not None:
        set_bits_(model, setting.allocation.bits)
    loss = probe_loss(model.to(device), setting.data, setting.schedule, LossConfig.parse(stage.config["loss"], "loss"))
    return StageOutput({"validation_loss": loss})


def evaluation(stage: Stage, store: StageStore, work: Path, device: str) -> StageOutput:
    """All metrics of the trained model, beside the floor that real images get."""
    setting = _Setting(stage, store)
    config = EvalConfig.parse(stage.config["evaluation"], "evaluation")
    folder, known = store.folder(stage.inputs["qat"]) / MODEL, store.folder(stage.inputs["features"])
    model = load_quantized(folder) if setting.specs else load_dit(folder)
    classifier, real = load_classifier(known / CLASSIFIER), load_file(known / FEATURES)
    metrics = evaluate(model.to(device), setting.data, classifier, real["reference"], setting.diffusion, config, work)
    if config.sample.num_images:
        floor = real_floor(real["reference"], config.sample.num_images, config.sample.seed, real["held_out"])
        metrics |= {"fd_floor": floor.mean, "fd_floor_images": float(floor.num_images)}
    metrics |= cost_metrics(setting.model, setting.precision, setting.allocation)
    return StageOutput(metrics)


Worker = Callable[[Stage, StageStore, Path, str], StageOutput]
WORKERS: dict[str, Worker] = {
    "features": features,
    "full_precision": full_precision,
    "warm_up": qat,
    "sensitivity": sensitivity,
    "allocate": allocation,
    "qat": qat,
    "probe": probe,
    "evaluate": evaluation,
}


class _Setting:
    """The parts of a stage's configuration that its worker needs, parsed and checked against the data."""

    def __init__(self, stage: Stage, store: StageStore | None = None) -> None:
        self._config = stage.config
        self.seed = int(stage.config.get("seed", 0))
        self.model = ModelConfig.parse(stage.config["model"], "model")
        self.diffusion = DiffusionConfig.parse(stage.config["diffusion"], "diffusion")
        self.schedule = NoiseSchedule(self.diffusion)
        self.data: ImageData = load_data(DataConfig.parse(stage.config["data"], "data"))
        check_model_fits(self.model, self.data)
        self.precision = PrecisionMap.parse(stage.config.get("precision", {}), "precision")
        self.allocation = _allocation_of(stage, store)
        self.specs: dict[str, QuantSpec] = {}
        if not self.precision.is_full_precision():
            self.specs = resolve_specs(self.precision, self.model.num_layers, self.allocation)

    def train(self, model: DiT, purpose: str, work: Path, device: str) -> TrainResult:
        """Pre-training and what follows it draw from different streams, also at equal seeds."""
        config = TrainConfig.parse(self._config["train"], "train")
        return train(model, self.data, self.schedule, config, derived_seed(self.seed, purpose), work, device)


def _allocation_of(stage: Stage, store: StageStore | None) -> BitAllocation | None:
    """The bits that the configuration gives, or that AMPN found."""
    if store is not None and (found := stage.inputs.get("allocate")):
        return read_bits(store.folder(found) / BITS)
    given = stage.config.get("allocation")
    return None if given is None else BitAllocation.parse(given, "allocation")


def _worker(stage: Stage, store: StageStore) -> Worker:
    if stage.kind not in WORKERS:
        raise ValueError(f"unknown kind of stage {stage.kind!r}: allowed are {', '.join(WORKERS)}")
    for parent in stage.inputs.values():
        if not (store.folder(parent) / "result.json").is_file():
            raise FileNotFoundError(f"{stage.id} needs {parent}, which is not done: run that first")
    return WORKERS[stage.kind]


def _trained(result: TrainResult) -> StageOutput:
    metrics = {} if result.loss is None else {"train_loss": result.loss}
    return StageOutput(metrics, result.earlier_seconds)


def _failed(stage: Stage, store: StageStore, reason: str, error: Exception) -> StageFailed:
    line = " ".join(str(error).split())
    store.fail(stage, reason, line)
    return StageFailed(reason, line)
