"""Synthetic records, sent through the real recorder into one temporary SQLite store."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pytest

from analysis.load import load_runs, runs_frame
from robuq.config import BLOCK_ROLES, Budget, ModelConfig, RunConfig, SearchConfig, TrainConfig, decision_name
from robuq.config.search import Rung
from robuq.record.mlflow import MlflowRecorder, sqlite_uri
from robuq.record.run_record import RunRecord
from robuq.record.search_record import Evaluation, Predictor, SearchRecord
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


# --- searches -----------------------------------------------------------------------------------------------------


def sensitivity(blocks: int, rng: np.random.Generator) -> dict[str, Any]:
    """A table for 1 ... 4 bits around 4: fc1 and early blocks matter most; damage falls fourfold with every bit."""
    decisions = [decision_name(block, role) for block in range(blocks) for role in BLOCK_ROLES]
    weight = np.array([w / (1 + 0.1 * b) for b in range(blocks) for w in (1.0, 0.5, 3.0, 2.0)])[:, None]
    loss = 4e-3 / blocks * weight * np.array([1, 1 / 4, 1 / 16, 0]) * rng.lognormal(0, 0.3, (4 * blocks, 4))
    noise = 1e-4 / blocks * np.array([1, 1, 1, 0])
    halves = [loss + noise * rng.normal(0, 2**0.5, loss.shape) for _ in range(2)]
    error = np.array([0.36, 0.12, 0.04, 0.012]) * rng.lognormal(0, 0.2, loss.shape)
    return {
        "decisions": decisions,
        "candidates": [1, 2, 3, 4],
        "reference": 4,
        "warm_up_steps": 100,
        "num_images": 96,
        "base_loss": 0.1,
        "loss": ((halves[0] + halves[1]) / 2).tolist(),
        "loss_se": np.broadcast_to(noise, loss.shape).tolist(),
        "loss_halves": [half.tolist() for half in halves],
        "output_error": error.tolist(),
        "second_order": (0.7 * loss * rng.lognormal(0, 0.5, loss.shape)).tolist(),
        "seconds": {"loss": 4.0, "output_error": 0.5, "second_order": 1.5},
    }


def baselines(decisions: list[str]) -> dict[str, dict[str, int]]:
    """Of two bits on the plain mean, whatever the weighting."""
    by_role = {
        "uniform": dict.fromkeys(BLOCK_ROLES, 2),
        "greedy": {"qkv": 2, "proj": 1, "fc1": 3, "fc2": 2},
        "exact": {"qkv": 1, "proj": 1, "fc1": 3, "fc2": 3},
        "paper": {"qkv": 2, "proj": 3, "fc1": 2, "fc2": 1},
    }
    return {name: {d: bits[d.rpartition(".")[2]] for d in decisions} for name, bits in by_role.items()}


SearchMaker = Callable[..., SearchRecord]


@pytest.fixture(scope="session")
def make_search() -> SearchMaker:
    """A search whose rungs' values follow the additive damage, closer the longer the training."""

    def make(
        blocks: int = 4,
        evaluations: int = 24,
        rungs: tuple[int, ...] = (0, 60, 300),
        objectives: tuple[str, ...] = ("loss",),
        state: str | None = None,
        **changes: Any,
    ) -> SearchRecord:
        rng = np.random.default_rng([blocks, evaluations, len(rungs)])
        table = sensitivity(blocks, rng)
        decisions, loss = table["decisions"], np.array(table["loss"])
        named = baselines(decisions)
        asked = [*named.items()] + [("tpe", _random_bits(decisions, rng)) for _ in range(evaluations - len(named))]
        found = []
        for number, (source, bits) in enumerate(asked):
            widths = np.array(list(bits.values()))
            predicted = float(loss[np.arange(len(widths)), widths - 1].sum())
            true = 0.09 + 0.6 * predicted
            values = {str(r): true + 0.03 / (1 + r / 30) + float(rng.normal(0, 0.004 / (1 + r / 30))) for r in rungs}
            stopped = number >= len(named) and number % 3 != 0 and len(rungs) > 1
            kept = list(values)[: 1 + number % (len(rungs) - 1) if stopped else len(rungs)]
            reached = state or ("finished" if len(kept) == len(rungs) else "pruned")
            mean = float(widths.mean())
            found.append(
                Evaluation(
                    number=number,
                    source=source,
                    bits=bits,
                    cost=mean,
                    average_bits={"layers": mean, "macs": mean, "elements": mean},
                    bops=0.1 * mean,
                    predicted=predicted,
                    values={} if state == "failed" else {r: values[r] for r in kept},
                    state=reached,
                    failure="loss is not finite at step 3" if reached == "failed" else None,
                    seconds=0.1 * sum(rungs[: len(kept)]),
                    params={},
                )
            )
        last = {one.number: one.values[str(rungs[-1])] for one in found if one.state == "finished"}
        predictors = [
            Predictor(
                warm_up_steps=warm,
                reference=4,
                measure=measure,
                spearman=0.5 if last else None,
                n=len(last),
                searched=measure == "loss" and warm == 100,
                predicted={str(n): found[n].predicted + (0.002 + 0.00004 * warm) * float(rng.normal()) for n in last},
            )
            for warm in (100, 0)
            for measure in ("loss", "output_error", "second_order")
        ]
        settings = SearchConfig(evaluations=evaluations, rungs=tuple(Rung(steps=r) for r in rungs))
        run = RunConfig(
            variant="robuq", model=ModelConfig(num_layers=blocks), precision=variant("robuq_uniform", 2), seed=0
        )
        values = {
            "name": "digits_search",
            "dataset": "digits",
            "variant": "robuq",
            "seed": 0,
            "config": run.model_dump(mode="json"),
            "search": settings.model_dump(mode="json") | {"objectives": list(objectives)},
            "budget": Budget(limit=2.0).model_dump(mode="json"),
            "sampler_settings": {
                "sampler": "tpe",
                "seed": 0,
                "settings": {"n_startup_trials": 10, "multivariate": True},
            },
            "evaluations": [one.model_dump(mode="json") for one in found],
            "winner": min(last, key=lambda number: last[number]) if last else None,
            "sensitivity": table,
            "predictors": [one.model_dump(mode="json") for one in predictors],
            "baselines": named,
            "seconds": {"sensitivity": 6.0, "evaluations": 200.0, "training": 180.0, "confirmation": 600.0},
        }
        return SearchRecord.parse(values | changes)

    return make


@pytest.fixture(scope="session")
def confirm(make_record: Maker) -> Callable[..., tuple[SearchRecord, pd.DataFrame]]:
    """The record with runs that confirm it: search is better than exact, exact than uniform; what a seed does to all
    of them is larger."""

    def made(record: SearchRecord, seeds: tuple[int, ...] = SEEDS, **changes: Any) -> tuple[SearchRecord, pd.DataFrame]:
        gains = {"uniform": 0.0, "greedy": 0.001, "exact": 0.002, "search": 0.003, "exact_longer": 0.004}
        records, rng = [], np.random.default_rng(5)
        for place, (name, gain) in enumerate(gains.items()):
            for seed in seeds:
                key, drawn = f"{place:08x}{seed:08x}", metrics(LEVEL["robuq_uniform"] - gain, seed, rng)
                records.append(make_record("robuq_uniform", 2, seed, variant=name, key=key, metrics=drawn, **changes))
        confirmed = {name: [run.key for run in records if run.variant == name] for name in gains}
        return record.updated(confirmed=confirmed), runs_frame(records)

    return made


def _random_bits(decisions: list[str], rng: np.random.Generator) -> dict[str, int]:
    return {decision: int(width) for decision, width in zip(decisions, rng.integers(1, 5, len(decisions)), strict=True)}
