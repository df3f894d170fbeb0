"""How long a stage will take: from stages of its kind that ran before, else from a rough constant."""

from __future__ import annotations

import os
import statistics
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from robuq.config import BLOCK_ROLES
from robuq.plain_json import read_mapping
from robuq.stages import KINDS, Stage, StageStore, distinct
from robuq.storage_fault import StorageFault

# Rough seconds on one of two busy CPU threads of about 2020, from 39 ms a full-precision step of the digits model
# (2.0e8 multiply-accumulates a forward pass) and 210 ms of Fashion-MNIST's (1.9e9): a training step costs 1e-10 s per
# multiply-accumulate of its forward pass, and 20 ms; so does drawing or judging an image, without the 20 ms.
SECONDS_PER_MAC, SECONDS_PER_STEP = 1e-10, 0.02
QUANTIZED = 1.4  # a quantized training step over a full-precision one
PROBE_IMAGES = 1000  # a guess at how many validation images there are
CLASSIFIER_SECONDS_PER_IMAGE = 1.5e-4
LEARNT_FROM = 100  # stages of a kind: more would tell the same


class Estimator:
    """Looks once, when it is made, at what is done in the store: at no more than `LEARNT_FROM` stages of a kind."""

    def __init__(self, store: StageStore) -> None:
        self._ratio: dict[str, float] = {}  # kind -> what its stages took over the rough estimate, the median
        for kind in KINDS:
            ratios = [ratio for folder in _some_done(store.root / kind) if (ratio := _ratio(folder)) is not None]
            if ratios:
                self._ratio[kind] = statistics.median(ratios)

    def seconds(self, stage: Stage) -> float:
        return rough_seconds(stage.kind, stage.config) * self._ratio.get(stage.kind, 1.0)


def _some_done(folder: Path) -> list[Path]:
    """Finished stages of one kind, evenly taken from their keys in order, which is by chance."""
    names = sorted(name for name in os.listdir(folder) if "." not in name) if folder.is_dir() else []
    step = max(1, len(names) // LEARNT_FROM)
    return [folder / name for name in names[::step]]


def _ratio(folder: Path) -> float | None:
    """None of a damaged stage, which teaches nothing; whoever needs it says so."""
    try:
        stage = read_mapping(folder / "stage.json")
        seconds = float(read_mapping(folder / "result.json").get("seconds", 0.0))
        rough = rough_seconds(stage["kind"], stage["config"])
    except (OSError, ValueError, LookupError, TypeError, ArithmeticError, StorageFault):
        return None
    return seconds / rough if seconds > 0 and rough > 0 else None


def rough_seconds(kind: str, config: Mapping[str, Any]) -> float:
    if kind == "features":
        features = config["features"]
        return 1.0 + float(features["epochs"] * features["max_images"] * CLASSIFIER_SECONDS_PER_IMAGE)
    if kind == "evaluate":
        return 1.0 + _evaluation_macs(config) * SECONDS_PER_MAC
    if kind in ("full_precision", "warm_up", "qat"):
        train = config["train"]
        step = SECONDS_PER_STEP + train["batch_size"] * _macs(config["model"]) * SECONDS_PER_MAC
        return 1.0 + float(train["steps"] * step * (QUANTIZED if kind != "full_precision" else 1.0))
    if kind == "sensitivity":
        return 1.0 + _sensitivity_macs(config) * SECONDS_PER_MAC * QUANTIZED
    if kind == "probe":
        loss = config["loss"]
        forwards = float(loss["repeats"] * min(loss["max_images"], PROBE_IMAGES))
        return 0.5 + forwards * _macs(config["model"]) * SECONDS_PER_MAC * QUANTIZED
    return 1.0


def _sensitivity_macs(config: Mapping[str, Any]) -> float:
    """A forward pass for each decision and bit-width; a backward pass is little beside them."""
    measured, model = config["sensitivity"], config["model"]
    changes = len(BLOCK_ROLES) * model["num_layers"] * len(measured["candidates"])
    return float(measured["num_images"] * measured["repeats"] * changes) * _macs(model)


def _evaluation_macs(config: Mapping[str, Any]) -> float:
    sample, loss = config["evaluation"]["sample"], config["evaluation"]["loss"]
    passes = 2 if sample["guidance"] > 1 else 1
    forwards = sample["num_images"] * sample["steps"] * passes + loss["repeats"] * loss["max_images"]
    return float(forwards) * _macs(config["model"])


def _macs(model: Mapping[str, Any]) -> float:
    """Multiply-accumulates of the block linears for one image: tokens x layers x 12 width^2."""
    tokens = (model["image_size"] // model["patch_size"]) ** 2
    return float(tokens * model["num_layers"] * 12 * model["width"] ** 2)


def total_seconds(chains: Sequence[Sequence[Stage]], estimator: Estimator, workers: int) -> float:
    """Of the given stages, one chain a run: their sum over the workers, but no less than the longest chain."""
    work = sum(estimator.seconds(stage) for stage in distinct(stage for chain in chains for stage in chain))
    longest = max((sum(estimator.seconds(stage) for stage in chain) for chain in chains), default=0.0)
    return max(work / workers, longest)
