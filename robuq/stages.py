"""Stages: content-addressed steps of a run, and the folder that keeps their results.

A stage's key is the hash of its own configuration slice, its parents' keys, the data's fingerprint and
`CODE_EPOCH`. Two runs that share a prefix share its stages. A finished stage is a folder that is never
written again; an unfinished one is a working folder that a later attempt continues. Free of torch.

`result.json` of a finished stage is its seal: the SHA-256 of each of its files, and of itself. Stages that take it as
an input check all of that first; what is damaged is set aside under `quarantine/` and made anew. A file that the disk
does not give (`StorageFault`) may be whole: it stays where it is, and nothing goes on that needs it.
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
from fnmatch import fnmatchcase
from pathlib import Path
from typing import Any

from robuq.config import BitAllocation, RunConfig
from robuq.plain_json import read_mapping
from robuq.storage_fault import StorageFault, reading

CODE_EPOCH = 2  # raise when a change alters numbers; CHANGELOG says so under "numbers changed"

# In dependency order. `probe` is for searches: the validation loss of a network, and nothing else.
KINDS = ("features", "full_precision", "warm_up", "sensitivity", "allocate", "qat", "probe", "evaluate")


FILES, SEAL = "files", "seal"  # in result.json: {file: [bytes, SHA-256]}, and the SHA-256 of the rest of it
QUARANTINE = "quarantine"
LEFTOVERS = ("checkpoint*", "progress.json", ".*", "*.partial")  # in a finished stage's folder: of a kill at its end


class InputDamaged(RuntimeError):
    """Files of an input were not as they were written. It was set aside; once it is made anew, the stage can be run."""


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


class PlainRuns:
    """Runs as plain data, which those that share their parts share, too: the rows of a plan over its seeds."""

    PARTS = tuple(name for name in RunConfig.model_fields if name not in ("variant", "seed", "pretrain_seed"))

    def __init__(self) -> None:
        self._known: dict[tuple[int, ...], tuple[RunConfig, dict[str, Any]]] = {}

    def of(self, run: RunConfig) -> dict[str, Any]:
        parts = tuple(id(getattr(run, name)) for name in self.PARTS)
        if parts not in self._known:
            self._known[parts] = run, run.model_dump(mode="json")  # the run keeps its parts from being replaced
        own = {"variant": run.variant, "seed": run.seed, "pretrain_seed": run.pretrain_seed}
        return {**self._known[parts][1], **own}


def stages_of(run: RunConfig, data: str, plain: Mapping[str, Any] | None = None) -> tuple[Stage, ...]:
    """The run's stages in dependency order; the last one is its evaluation. `plain`: the run as `PlainRuns` has it.

    Without AMPN: features, full_precision, qat, evaluate. With it, its bits are found on the way: warm_up, sensitivity
    and allocate come before qat, which starts from the full-precision network all the same.
    """
    parts = _Parts(run, data, plain)
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

    def __init__(self, run: RunConfig, data: str, plain: Mapping[str, Any] | None = None) -> None:
        self.of = run.model_dump(mode="json") if plain is None else plain
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
        measured = dict(ampn.pop("sensitivity"))
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

    def lock_file(self, stage_id: str) -> Path:
        kind, _, key = stage_id.partition("/")
        return self.root / kind / f".{key}.lock"

    def is_done(self, stage: Stage) -> bool:
        return (self.folder(stage.id) / "result.json").is_file()

    def result(self, stage_id: str) -> dict[str, Any]:
        """What the stage returned: plain data."""
        result = read_mapping(self.folder(stage_id) / "result.json")
        return {name: value for name, value in result.items() if name not in (FILES, SEAL)}

    def damage(self, stage_id: str, thorough: bool = True) -> str | None:
        """What is wrong with a finished stage, one line; None where it is as it was committed.

        Not `thorough`: result.json and the sizes of the files, which costs next to nothing.

        Raises:
            StorageFault: the disk does not give a file.
        """
        folder = self.folder(stage_id)
        files = _sealed_files(folder / "result.json")
        if isinstance(files, str):
            return files
        return next(
            (problem for name, seal in files.items() if (problem := _problem(folder / name, seal, thorough))), None
        )

    def set_aside(self, stage_id: str) -> Path | None:
        """Move a damaged stage into quarantine, so that it is made anew; None where it is not damaged (any more)."""
        with self.locked(stage_id):
            if not self.folder(stage_id).is_dir() or self.damage(stage_id) is None:
                return None
            target = self.root / QUARANTINE / stage_id
            target.parent.mkdir(parents=True, exist_ok=True)
            while target.exists():
                target = target.with_name(f"{target.name}+")
            os.replace(self.folder(stage_id), target)
            return target

    def check_inputs(self, stage: Stage) -> None:
        """Set damaged ones aside. Raises InputDamaged: there was one. StorageFault: the disk does not give one."""
        for parent in stage.inputs.values():
            problem = self.damage(parent) if self.folder(parent).is_dir() else None
            if problem is not None:
                self.set_aside(parent)
                raise InputDamaged(f"{parent}: {problem}; it was set aside and is made anew")

    def settle(self, stage: Stage) -> str | None:
        """Clean up what a kill at the very end of a stage left; set the stage aside if a cheap look finds it damaged,
        and say why, in one line."""
        if not self.folder(stage.id).is_dir():
            return None
        _remove_leftovers(self.folder(stage.id))
        problem = self.damage(stage.id, thorough=False)
        return problem if problem and self.set_aside(stage.id) else None

    def failure(self, stage: Stage) -> dict[str, Any] | None:
        """`{"reason": ..., "error": ...}` of the last attempt that failed, if the stage is not done."""
        return _readable(self.work_folder(stage) / "failure.json")

    def progress(self, stage: Stage) -> dict[str, Any] | None:
        """What the attempt under way last said of itself (see `ProgressFile`)."""
        return _readable(self.work_folder(stage) / ProgressFile.NAME)

    @contextmanager
    def locked(self, stage_id: str) -> Iterator[None]:
        """Alone with this stage: a second process waits here. The lock goes with the process that holds it."""
        file = self.lock_file(stage_id)
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
        for stale in ("failure.json", "result.json", ProgressFile.NAME):
            (folder / stale).unlink(missing_ok=True)
        remove_temporaries(folder)
        write_json(folder / "stage.json", {"kind": stage.kind, "inputs": stage.inputs, "config": stage.config})
        return folder

    def commit(self, stage: Stage, result: Mapping[str, Any]) -> Path:
        """Make the working folder the finished stage, in one rename; checkpoints go only after it."""
        work, final = self.work_folder(stage), self.folder(stage.id)
        write_json(work / "result.json", _sealed(result, work))
        os.replace(work, final)
        _remove_leftovers(final)
        return final


def _readable(file: Path) -> dict[str, Any] | None:
    """A JSON file of a working folder; None where it is not there, or damaged. It can be missed."""
    try:
        return read_mapping(file)
    except (FileNotFoundError, ValueError, StorageFault):
        return None


def _sealed(result: Mapping[str, Any], work: Path) -> dict[str, Any]:
    """The result with the seals of all files that stay."""
    going = {file for pattern in LEFTOVERS for file in work.glob(pattern)} | {work / "result.json"}
    files = sorted(file for file in work.rglob("*") if file.is_file() and not going & {file, *file.parents})
    seals = {str(file.relative_to(work)): [file.stat().st_size, sha256(file)] for file in files}
    sealed = {**result, FILES: seals}
    return {**sealed, SEAL: _digest(sealed)}


def _sealed_files(file: Path) -> dict[str, list[Any]] | str:
    """{file: [bytes, SHA-256]} of a result.json, or what is wrong with it."""
    try:
        content = read_mapping(file)
    except (FileNotFoundError, NotADirectoryError, IsADirectoryError, ValueError):
        return "result.json cannot be read"
    if not {FILES, SEAL} & content.keys():
        return {}  # of a version that knew no seals: nothing can be said against it
    if content.pop(SEAL, None) != _digest(content):
        return "result.json does not have its checksum"
    files: dict[str, list[Any]] = content[FILES]
    return files


def _digest(content: Mapping[str, Any]) -> str:
    return hashlib.sha256(json.dumps(content, sort_keys=True).encode()).hexdigest()


def _problem(file: Path, seal: list[Any], thorough: bool) -> str | None:
    size, digest = seal
    with reading(file):
        if not file.is_file():
            return f"{file.name} is missing"
        if file.stat().st_size != size:
            return f"{file.name} has {file.stat().st_size} bytes, not {size}"
    return f"{file.name} does not have its checksum" if thorough and sha256(file) != digest else None


def sha256(file: Path) -> str:
    """Raises StorageFault: the disk does not give it."""
    with reading(file), file.open("rb") as stream:
        return hashlib.file_digest(stream, "sha256").hexdigest()


def remove_temporaries(folder: Path) -> None:
    """What killed writers left: `write_json` and checkpoints name their half-written files like this."""
    for file in (*folder.glob(".*"), *folder.glob("*.partial")):
        file.unlink(missing_ok=True)


def _remove_leftovers(final: Path) -> None:
    names = [name for name in os.listdir(final) if any(fnmatchcase(name, pattern) for pattern in LEFTOVERS)]
    for leftover in (final / name for name in names):
        shutil.rmtree(leftover, ignore_errors=True) if leftover.is_dir() else leftover.unlink(missing_ok=True)


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
        shown = {**self._fixed, "step": step, "loss": loss, "steps_per_second": round(speed, 3)}
        write_json(self._file, shown, durable=False)


def write_json(file: Path, value: Any, durable: bool = True) -> None:
    """Whole or not at all: written beside and renamed; `durable`: also if the machine loses its power."""
    text = json.dumps(value, indent=1, sort_keys=True, allow_nan=False) + "\n"
    temporary = file.with_name(f".{file.name}.{os.getpid()}")
    with temporary.open("w") as stream:
        stream.write(text)
        if durable:
            stream.flush()
            os.fsync(stream.fileno())
    os.replace(temporary, file)
