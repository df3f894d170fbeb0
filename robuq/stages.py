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

from robuq.config import RunConfig

CODE_EPOCH = 1  # raise when a change alters numbers; CHANGELOG says so under "numbers changed"

KINDS = ("features", "full_precision", "qat", "evaluate")  # in dependency order


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
    """The run's stages in dependency order; the last one is its evaluation."""
    part = run.model_dump(mode="json")
    evaluation = part["evaluation"]
    features = make_stage("features", {"data": part["data"], "features": evaluation["features"]}, data, {})
    common = {name: part[name] for name in ("data", "model", "diffusion")}
    full_precision = make_stage(
        "full_precision", {**common, "train": part["pretrain"], "seed": run.pretrain_seed}, data, {}
    )
    quantized = {name: part[name] for name in ("precision", "allocation", "calibration", "train", "seed")}
    qat = make_stage("qat", {**common, **quantized}, data, {"full_precision": full_precision})
    judged = {**common, **{name: part[name] for name in ("precision", "allocation")}, "evaluation": evaluation}
    evaluate = make_stage("evaluate", judged, data, {"qat": qat, "features": features})
    return features, full_precision, qat, evaluate


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
