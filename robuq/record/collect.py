"""From the folders of a run's stages to its RunRecord."""

from __future__ import annotations

import functools
import platform
import subprocess
from collections.abc import Sequence
from importlib import metadata
from pathlib import Path
from typing import Any

from robuq.ampn.bits_file import read_bits
from robuq.config import BLOCK_ROLES, RunConfig, module_names, resolve_specs
from robuq.record.artifact_files import read_lines
from robuq.record.run_record import RunRecord
from robuq.stages import Stage, StageStore, protocol_fingerprint

PACKAGES = ("robuq", "torch", "diffusers", "numpy", "scipy", "ray", "mlflow")
ARTIFACTS = {
    "evaluate": ("samples.npz", "tokens.npz", "distributions.npz"),
    "qat": ("timing.jsonl",),
    "sensitivity": ("sensitivity.json",),
}


def collect_run(
    plan: str, run: RunConfig, stages: Sequence[Stage], data: str, store: StageStore, failure: str | None = None
) -> RunRecord:
    """Everything that is kept of one run. `data`: the data set's fingerprint; `failure`: why it could not finish.

    The evaluation's metrics keep their names, those of other stages are prefixed with the stage's kind (`qat.loss`).
    The history of a run that failed while it trained is that of its working folder.
    """
    results = {stage.kind: store.result(stage.id) for stage in stages if store.is_done(stage)}
    folders = {stage.kind: _folder(stage, store) for stage in stages}
    started, finished = _times(folders)
    return RunRecord(
        plan=plan,
        key=run.key(),
        variant=run.variant,
        label=run.label,
        act_bits=mean_act_bits(run),
        seed=run.seed,
        pretrain_seed=run.pretrain_seed,
        status="failed" if failure else "finished",
        failure=failure,
        protocol=protocol_fingerprint(run, data),
        dataset=run.data.name,
        config=run.model_dump(mode="json"),
        stages={stage.kind: stage.key for stage in stages},
        allocation=_found_bits(folders.get("allocate")),
        seconds={kind: float(result.get("seconds", 0.0)) for kind, result in results.items()},
        metrics=_metrics(results),
        history=_rows(folders.get("qat"), "history.jsonl"),
        layers=_rows(folders.get("qat"), "layers.jsonl"),
        artifacts=_artifacts(folders),
        git=git_state(),
        versions=versions(),
        started=started,
        finished=finished,
    )


def mean_act_bits(run: RunConfig) -> float | None:
    """Mean over the block linears' decisions whose activations are quantized, None if there are none: the mean that
    AMPN's budget keeps to, else the plain one."""
    if run.average_bits is not None:
        return run.average_bits
    specs = resolve_specs(run.precision, run.model.num_layers, run.allocation)
    decisions = [module_names(block, role)[0] for block in range(run.model.num_layers) for role in BLOCK_ROLES]
    acts = [spec.act for name in decisions if (spec := specs.get(name)) is not None and spec.act is not None]
    return sum(act.bits for act in acts) / len(acts) if acts else None


def _folder(stage: Stage, store: StageStore) -> Path:
    return store.folder(stage.id) if store.is_done(stage) else store.work_folder(stage)


def _metrics(results: dict[str, dict[str, Any]]) -> dict[str, float]:
    return {
        name if kind == "evaluate" else f"{kind}.{name}": float(value)
        for kind, result in results.items()
        for name, value in result.get("metrics", {}).items()
        if value is not None
    }


def _rows(folder: Path | None, name: str) -> list[dict[str, Any]]:
    return read_lines(folder / name) if folder is not None and (folder / name).is_file() else []


def _found_bits(folder: Path | None) -> dict[str, int]:
    return read_bits(file).bits if folder is not None and (file := folder / "bits.json").is_file() else {}


def _artifacts(folders: dict[str, Path]) -> dict[str, str]:
    files = {name: folders[kind] / name for kind, names in ARTIFACTS.items() if kind in folders for name in names}
    return {name: str(file.resolve()) for name, file in files.items() if file.is_file()}


def _times(folders: dict[str, Path]) -> tuple[float, float]:
    """UNIX seconds: when the run's own stages began, and when the last of them wrote its result or its failure. No run
    ends before it began, whatever was done to the clock in between."""
    own = [folder for kind, folder in folders.items() if kind in ("qat", "evaluate")] or list(folders.values())
    begun = [file.stat().st_mtime for folder in own if (file := folder / "stage.json").is_file()]
    ends = ("result.json", "failure.json")
    ended = [file.stat().st_mtime for folder in folders.values() for n in ends if (file := folder / n).is_file()]
    started = min(begun, default=0.0)
    return started, max([started, *ended])


@functools.cache
def git_state() -> dict[str, str]:
    """`commit` and `dirty` (true, false) of the checkout this code lies in; nothing outside a checkout."""
    commit = _git("rev-parse", "HEAD")
    if commit is None:
        return {}
    return {"commit": commit, "dirty": "true" if _git("status", "--porcelain", "--untracked-files=no") else "false"}


def _git(*words: str) -> str | None:
    command = ["git", "-C", str(Path(__file__).parent), *words]
    try:
        done = subprocess.run(command, capture_output=True, text=True, timeout=10, check=True)
    except (OSError, subprocess.SubprocessError):
        return None
    return done.stdout.strip()


@functools.cache
def versions() -> dict[str, str]:
    """Of Python and of the packages that numbers depend on."""
    found = {"python": platform.python_version()}
    for package in PACKAGES:
        try:
            found[package] = metadata.version(package)
        except metadata.PackageNotFoundError:
            continue
    return found
