"""Synthetic records, sent through the real recorder into one temporary SQLite store."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pytest

from analysis.load import load_runs
from robuq.config import RunConfig, TrainConfig
from robuq.record.mlflow import MlflowRecorder, sqlite_uri
from robuq.record.run_record import RunRecord
from robuq.variants import variant

PLAN = "digits_components"
CONTROLS = ("full_precision", "ternary_only", "ternary_rotation", "ternary_low_rank_rotation")
COMPONENTS = ("minmax", "minmax_low_rank", "minmax_rotation", "baseline", "robust_no_rotation", "robuq_uniform")
LEVEL = dict(zip(CONTROLS, (0.090, 0.096, 0.093, 0.0915), strict=True)) | dict(
    zip(COMPONENTS, (0.110, 0.108, 0.102, 0.100, 0.112, 0.096), strict=True)
)
SEEDS = (0, 1, 2)
LABELS = np.arange(40) % 10

Maker = Callable[..., RunRecord]


def history(level: float, rng: np.random.Generator, steps: int = 300) -> list[dict[str, float]]:
    step = np.arange(10, steps + 1, 10)
    loss = level + 0.3 * np.exp(-step / 25) + rng.normal(0, 0.006, step.size)
    return [{"step": float(s), "loss": float(x), "lr": 1e-3, "grad_norm": 0.5} for s, x in zip(step, loss, strict=True)]


def metrics(level: float, seed: int, rng: np.random.Generator) -> dict[str, float]:
    """What a seed does to all variants (0.001 per seed) is larger than what is left between them (0.0003)."""
    return {
        "held_out_loss": level + 0.001 * seed + float(rng.normal(0, 0.0003)),
        "validation_loss": level + 0.0005 + 0.001 * seed,
        "fd_classifier": 800 * (level - 0.085) + float(rng.normal(0, 0.6)),
        "precision": 1.6 - 8 * level + float(rng.normal(0, 0.01)),
        "recall": 1.5 - 8 * level + float(rng.normal(0, 0.01)),
        "classifier_score": 17 - 80 * level + float(rng.normal(0, 0.05)),
        "label_agreement": 1.7 - 8 * level + float(rng.normal(0, 0.01)),
        "fd_floor": 1.5,
        "fd_floor_images": 1000.0,
    }


@pytest.fixture(scope="session")
def make_record() -> Maker:
    def make(name: str = "robuq_uniform", bits: int = 2, seed: int = 0, **changes: Any) -> RunRecord:
        rng = np.random.default_rng([len(name), sum(name.encode()), bits, seed])
        config = RunConfig(
            variant=name, precision=variant(name, bits), seed=seed, train=TrainConfig(lr=changes.pop("lr", 1e-3))
        )
        quantized = name not in CONTROLS
        level = LEVEL.get(name, 0.1) + (0.006 * (4 - bits) if quantized else 0.0)
        values: dict[str, Any] = {
            "plan": PLAN,
            "key": config.key(),
            "variant": name,
            "label": config.label,
            "act_bits": float(bits) if quantized else None,
            "seed": seed,
            "pretrain_seed": 0,
            "status": "finished",
            "protocol": "aaaaaaaaaaaa",
            "dataset": "digits",
            "config": config.model_dump(mode="json"),
            "stages": {"qat": "0" * 16},
            "seconds": {"qat": 30.0 + seed, "evaluate": 5.0},
            "metrics": metrics(level, seed, rng),
            "history": history(level, rng),
            "started": 1.7e9,
            "finished": 1.7e9 + 35,
        }
        return RunRecord(**(values | changes))

    return make


@pytest.fixture(scope="session")
def tokens_file(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Heavy-tailed tokens, and nearly normal ones of the same shape."""
    rng = np.random.default_rng(7)
    arrays: dict[str, Any] = {}
    for role, width, tail in (("qkv", 64, 6), ("proj", 64, 12), ("fc1", 64, 5), ("fc2", 256, 3)):
        arrays[f"{role}.raw"] = rng.standard_t(tail, (512, width)).astype(np.float32)
        arrays[f"{role}.rotated"] = rng.standard_normal((512, width)).astype(np.float32)
        arrays[f"{role}.levels"] = np.float32(0.995687) * (np.arange(4, dtype=np.float32) - 1.5)
    file = tmp_path_factory.mktemp("tokens") / "tokens.npz"
    np.savez(file, allow_pickle=False, **arrays)
    return file


@pytest.fixture(scope="session")
def make_samples(tmp_path_factory: pytest.TempPathFactory) -> Callable[[float, int], Path]:
    """The real digits' means with more noise for a worse loss, under one noise per image index."""
    from sklearn.datasets import load_digits

    digits = load_digits()
    clean = np.stack([digits.images[digits.target == c][0] for c in range(10)])[LABELS] * 255 / 16
    noise = np.random.default_rng(3).normal(0, 1, clean.shape)
    folder = tmp_path_factory.mktemp("samples")

    def make(level: float, place: int) -> Path:
        images = np.clip(clean + 4000 * (level - 0.085) * noise, 0, 255).astype(np.uint8)[..., None]
        file = folder / f"{place}.npz"
        np.savez_compressed(file, images=images, labels=LABELS)
        return file

    return make


@pytest.fixture(scope="session")
def recorded(
    make_record: Maker,
    tokens_file: Path,
    make_samples: Callable[[float, int], Path],
    tmp_path_factory: pytest.TempPathFactory,
) -> str:
    """The tracking URI of a store with the whole components plan and one failed run."""
    folder = tmp_path_factory.mktemp("store")
    recorder = MlflowRecorder(sqlite_uri(folder / "mlflow.db"), folder / "artifacts")
    names = ("full_precision", "ternary_rotation", "minmax", "baseline", "robust_no_rotation", "robuq_uniform")
    cells = [(name, 2) for name in names] + [(name, 4) for name in ("minmax", "baseline")]
    for place, (name, bits) in enumerate(cells):
        for seed in SEEDS:
            record = make_record(name, bits, seed)
            samples = make_samples(record.metrics["held_out_loss"], 10 * place + seed)
            recorder.record(record.updated(artifacts={"samples.npz": str(samples), "tokens.npz": str(tokens_file)}))
    failed = {"status": "failed", "failure": "loss is not finite at step 120", "metrics": {}, "history": []}
    recorder.record(make_record("lsq", 2, 0, **failed))
    return recorder.tracking_uri


@pytest.fixture(scope="session")
def runs(recorded: str) -> pd.DataFrame:
    return load_runs(recorded, PLAN)
