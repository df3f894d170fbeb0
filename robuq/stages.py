"""Stages: content-addressed steps of a run, and the folder that keeps their results.

A stage's key is the hash of its own configuration slice, its parents' keys, the data's fingerprint and
`CODE_EPOCH`. Two runs that share a prefix share its stages. A finished stage is a folder that is never
written again; an unfinished one is a working folder that a later attempt continues. Free of torch.
"""

from __future__ import annotations

import fcntl
import hashlib
import json
import os
import shutil
import time
from collections.abc import Iterable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from robuq.config import BitAllocation, RunConfig

CODE_EPOCH = 2  # raise when a change alters numbers; CHANGELOG says so under "numbers changed"

# In dependency order. `probe` is for searches: the validation loss of a network, and nothing else.
KINDS = ("features", "full_precision", "warm_up", "sensitivity", "allocate", "qat", "probe", "evaluate")


@dataclass(frozen=True)
class Stage:
    """One cached step. `inputs` maps a role to the id of the stage that plays it."""

    kind: str
    key: str  # 16 hex digits
    config: Mapping[str, Any]  # the slice of the run's configuration that this stage depends on, plain data
    inputs: Mapping[str, str] = field(default_factory=dict)

    @property
    def id(self) -> str:
        return f"{self.kind}/{self.key}"


def make_stage(kind: str, config: Mapping[str, Any], data: str, inputs: Mapping[str, Stage]) -> Stage:
    """`data`: the data set's fingerprint."""
    parents = {name: parent.id for name, parent in inputs.items()}
    identity = {"kind": kind, "config": config, "data": data, "inputs": parents, "epoch": CODE_EPOCH}
    text = json.dumps(identity, sort_keys=True, separators=(",", ":"))
    return Stage(kind, hashlib.sha256(text.encode()).hexdigest()[:16], config, parents)


def stages_of(run: RunConfig, data: str) -> tuple[Stage, ...]:
    """The run's stages in dependency order; the last one is its evaluation.

    Without AMPN: features, full_precision, qat, evaluate. With it, its bits are found on the way: warm_up, sensitivity
    and allocate come before qat, which starts from the full-precision network all the same.
    """
    parts = _Parts(run, data)
    features = parts.stage("features", {"features": parts.of["evaluation"]["features"]})
    found = parts.allocate() if run.ampn else ()
    decided = {"allocate": found[-1]} if found else {}
    qat = parts.stage("qat", parts.quantization(), full_precision=parts.full_precision, **decided)
    judged = {**parts.network, **parts.named("precision", "allocation", "evaluation")}
    evaluate = parts.stage("evaluate", judged, qat=qat, features=features, **decided)
    return features, parts.full_precision, *found, qat, evaluate


def sensitivity_stages(run: RunConfig, data: str) -> tuple[Stage, ...]:
    """full_precision, warm_up, sensitivity. `run.ampn` must be set."""
    parts = _Parts(run, data)
    return parts.full_precision, *parts.allocate()[:2]


def probe_stages(run: RunConfig, data: str) -> tuple[Stage, ...]:
    """full_precision, qat, probe: the validation loss after `run.train`. `run.allocation` gives the bits."""
    parts = _Parts(run, data)
    qat = parts.stage("qat", parts.quantization(telemetry_every=0), full_precision=parts.full_precision)
    return parts.full_precision, qat, parts.probe(qat)


def warmed_probe_stages(run: RunConfig, allocation: BitAllocation, data: str) -> tuple[Stage, ...]:
    """full_precision, warm_up, probe: the validation loss of the network that the sensitivity of `run.ampn` is
    measured on, at other bits and without further training."""
    parts = _Parts(run, data)
    warm_up = parts.allocate()[0]
    return parts.full_precision, warm_up, parts.probe(warm_up, allocation)


class _Parts:
    """A run's configuration, cut into what each of its stages depends on."""

    def __init__(self, run: RunConfig, data: str) -> None:
        self.of = run.model_dump(mode="json")
        self._data = data
        self.network = self.named("model", "diffusion")
        pretraining = {**self.network, "train": self.of["pretrain"], "seed": run.pretrain_seed}
        self.full_precision = self.stage("full_precision", pretraining)

    def named(self, *names: str) -> dict[str, Any]:
        return {name: self.of[name] for name in names}

    def stage(self, kind: str, config: Mapping[str, Any], **inputs: Stage) -> Stage:
        return make_stage(kind, {**self.named("data"), **config}, self._data, inputs)

    def quantization(self, **training: Any) -> dict[str, Any]:
        """What quantization-aware training depends on; `training` replaces fields of the training's settings."""
        own = {**self.network, **self.named("precision", "allocation", "calibration", "seed")}
        return {**own, "train": {**self.of["train"], **training}}

    def allocate(self) -> tuple[Stage, Stage, Stage]:
        """warm_up, sensitivity, allocate"""
        ampn = dict(self.of["ampn"])
        measured = ampn.pop("sensitivity")
        steps, width = measured.pop("warm_up_steps"), {"allocation": None}
        warmed = {**self.quantization(steps=steps, telemetry_every=0), **width}
        warm_up = self.stage("warm_up", warmed, full_precision=self.full_precision)
        known = {**self.network, "sensitivity": {**measured, "warm_up_steps": steps}}
        sensitivity = self.stage("sensitivity", known, warm_up=warm_up)
        decided = {**self.named("model", "precision"), "ampn": ampn}
        return warm_up, sensitivity, self.stage("allocate", decided, sensitivity=sensitivity)

    def probe(self, network: Stage, allocation: BitAllocation | None = None) -> Stage:
        bits = None if allocation is None else allocation.model_dump(mode="json")
        judged = {**self.network, "allocation": bits, "loss": self.of["evaluation"]["loss"]}
        return self.stage("probe", judged, network=network)


def distinct(stages: Iterable[Stage]) -> list[Stage]:
    """Without repetitions, first come first kept."""
    return list({stage.id: stage for stage in stages}.values())


def protocol_fingerprint(run: RunConfig, data: str) -> str:
    """12 hex digits: runs are comparable in one table only if these agree."""
    part = run.model_dump(mode="json")
    protocol = {"data": data, "config": part["data"], "diffusion": part["diffusion"], "evaluation": part["evaluation"]}
    protocol["epoch"] = CODE_EPOCH
    return hashlib.sha256(json.dumps(protocol, sort_keys=True).encode()).hexdigest()[:12]


class StageStore:
    """Folders `root/<kind>/<key>` of finished stages and `root/<kind>/<key>.work` of unfinished ones."""

    def __init__(self, root: Path) -> None:
        self.root = root

    def folder(self, stage_id: str) -> Path:
        return self.root / stage_id

    def work_folder(self, stage: Stage) -> Path:
        return self.root / f"{stage.id}.work"

    def is_done(self, stage: Stage) -> bool:
        return (self.folder(stage.id) / "result.json").is_file()

    def result(self, stage_id: str) -> dict[str, Any]:
        """What the stage returned: plain data."""
        text = (self.folder(stage_id) / "result.json").read_text()
        result: dict[str, Any] = json.loads(text)
        return result

    def failure(self, stage: Stage) -> dict[str, Any] | None:
        """`{"reason": ..., "error": ...}` of the last attempt that failed, if the stage is not done."""
        file = self.work_folder(stage) / "failure.json"
        failure: dict[str, Any] | None = json.loads(file.read_text()) if file.is_file() else None
        return failure

    def progress(self, stage: Stage) -> dict[str, Any] | None:
        """What the attempt under way last said of itself (see `ProgressFile`)."""
        file = self.work_folder(stage) / ProgressFile.NAME
        try:
            progress: dict[str, Any] = json.loads(file.read_text())
        except FileNotFoundError:
            return None
        return progress

    @contextmanager
    def locked(self, stage: Stage) -> Iterator[None]:
        """Alone with this stage: a second process waits here. The lock goes with the process that holds it."""
        file = self.root / stage.kind / f".{stage.key}.lock"
        file.parent.mkdir(parents=True, exist_ok=True)
        with file.open("w") as stream:
            fcntl.flock(stream, fcntl.LOCK_EX)
            yield

    def fail(self, stage: Stage, reason: str, error: str) -> None:
        """Record why the attempt failed; what it left stays to continue from."""
        write_json(self.work_folder(stage) / "failure.json", {"reason": reason, "error": error})

    def open_work(self, stage: Stage) -> Path:
        """The working folder, with what an earlier attempt left to continue from."""
        folder = self.work_folder(stage)
        folder.mkdir(parents=True, exist_ok=True)
        for stale in ("failure.json", ProgressFile.NAME):
            (folder / stale).unlink(missing_ok=True)
        write_json(folder / "stage.json", {"kind": stage.kind, "inputs": stage.inputs, "config": stage.config})
        return folder

    def commit(self, stage: Stage, result: Mapping[str, Any]) -> Path:
        """Make the working folder the finished stage, in one rename; checkpoints go only after it."""
        work, final = self.work_folder(stage), self.folder(stage.id)
        write_json(work / "result.json", result)
        os.replace(work, final)
        for leftover in (*final.glob("checkpoint*"), *final.glob(ProgressFile.NAME)):
            shutil.rmtree(leftover) if leftover.is_dir() else leftover.unlink()
        return final


class ProgressFile:
    """`progress.json` of a working folder, for a live display: rewritten once a second at most."""

    NAME = "progress.json"

    def __init__(self, folder: Path, phase: str, steps: int, first: int = 0) -> None:
        self._file = folder / self.NAME
        self._fixed = {"phase": phase, "steps": steps}
        self._first, self._begun, self._written = first, time.monotonic(), float("-inf")

    def update(self, step: int, loss: float | None = None) -> None:
        now = time.monotonic()
        if now - self._written < 1.0:
            return
        self._written = now
        speed = (step - self._first) / max(now - self._begun, 1e-9)
        write_json(self._file, {**self._fixed, "step": step, "loss": loss, "steps_per_second": round(speed, 3)})


def write_json(file: Path, value: Any) -> None:
    """Whole or not at all: written beside and renamed."""
    temporary = file.with_name(f".{file.name}.{os.getpid()}")
    temporary.write_text(json.dumps(value, indent=1, sort_keys=True, allow_nan=False) + "\n")
    os.replace(temporary, file)
