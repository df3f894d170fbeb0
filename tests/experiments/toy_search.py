"""Stages of a search without networks: a table and losses that are made from the bits, in milliseconds."""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
from toy_stages import log

from experiments.executors import LocalExecutor, Outcome
from experiments.search_problem import SENSITIVITY_FILE
from robuq.ampn.table import SensitivityTable
from robuq.config import BLOCK_ROLES, decision_name
from robuq.stages import Stage, StageStore

WEIGHTS = (3.0, 1.0, 2.0, 8.0, 1.0, 2.0, 5.0, 1.0)  # of the nano model's 8 decisions: what a lost bit costs


def toy_table(config: Mapping[str, Any], layers: int) -> SensitivityTable:
    """Damage falls by four with each bit, as an error of rounding does."""
    measured = config["sensitivity"]
    candidates = tuple(measured["candidates"])
    rows = tuple(tuple(weight * 4.0**-bits for bits in candidates) for weight in WEIGHTS)
    noise = np.random.default_rng(measured["seed"]).uniform(0.5, 1.5, size=(len(WEIGHTS), len(candidates)))
    noisy = tuple(tuple(float(value) for value in row) for row in np.array(rows) * noise)
    return SensitivityTable(
        decisions=tuple(decision_name(block, role) for block in range(layers) for role in BLOCK_ROLES),
        candidates=candidates,
        reference=measured["reference"],
        warm_up_steps=measured["warm_up_steps"],
        num_images=measured["num_images"],
        base_loss=0.1,
        loss=rows,
        loss_se=rows,
        loss_halves=(rows, noisy),
        output_error=noisy,
        second_order=rows,
    )


def search_work(stage: Stage, root: Path, device: str) -> dict[str, Any]:
    """Every kind of stage, each attempt noted in the store's log."""
    store = StageStore(root)
    folder = store.open_work(stage)
    log(root, stage)
    metrics: dict[str, float] = {}
    if stage.kind == "sensitivity":
        toy_table(stage.config, stage.config["model"]["num_layers"]).save(folder / SENSITIVITY_FILE)
    if stage.kind == "probe":
        metrics = {"validation_loss": toy_loss(stage, store)}
    if stage.kind == "evaluate":
        metrics = {"held_out_loss": 0.5}
    result = {"metrics": metrics, "seconds": 0.25, "versions": {}}
    store.commit(stage, result)
    return result


def toy_loss(stage: Stage, store: StageStore) -> float:
    """Untrained, the table's damage; the longer the training, the more another one, in which the last block counts
    thrice."""
    allocation, steps = stage.config["allocation"], 0
    if allocation is None:
        network = json.loads((store.folder(stage.inputs["network"]) / "stage.json").read_text())["config"]
        allocation, steps = network["allocation"], network["train"]["steps"]
    bits = list(allocation["bits"].values())
    factors = [1.0] * 4 + [1.0 + steps / 2] * 4
    return 0.1 + sum(w * f * 4.0**-b for w, f, b in zip(WEIGHTS, factors, bits, strict=True))


class Interrupted(LocalExecutor):
    """Ctrl-C after so many stages; `before_report`: the last one is done, and nobody was told."""

    def __init__(self, root: Path, stages: int, before_report: bool = False) -> None:
        super().__init__(root, "cpu", search_work)
        self._left, self._before_report = stages, before_report

    def wait(self, seconds: float) -> list[Outcome]:
        if self._left <= 0 and not self._before_report:
            raise KeyboardInterrupt
        outcomes = super().wait(seconds)
        self._left -= len(outcomes)
        if self._left < 0:
            raise KeyboardInterrupt
        return outcomes
