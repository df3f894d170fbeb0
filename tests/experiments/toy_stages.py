"""Small real stages for the tests of executors and launches: they read their inputs and commit a result."""

from __future__ import annotations

import os
import threading
from pathlib import Path
from typing import Any

from robuq.stages import Stage, StageStore, make_stage

LOG = "log.txt"


class ToyError(RuntimeError):
    pass


def toy(kind: str, inputs: dict[str, Stage] | None = None, **config: Any) -> Stage:
    return make_stage(kind, config, "toy", inputs or {})


def work(stage: Stage, root: Path, device: str) -> dict[str, Any]:
    """value = own number + the values of all inputs; `fail` raises, `hang` waits to be killed the first n times. One
    process at a time, as for real stages: a second one would clear away what the first is about to rename."""
    store = StageStore(root)
    with store.locked(stage.id):
        folder = store.open_work(stage)
        log(root, stage)
        if "fail" in stage.config:
            raise ToyError(stage.config["fail"])
        if attempts(root, stage) <= stage.config.get("hang", 0):
            (folder / "pid").write_text(str(os.getpid()))
            threading.Event().wait(60)
        value = stage.config["number"] + sum(store.result(parent)["value"] for parent in stage.inputs.values())
        result = {"value": value, "device": device, "seconds": 0.0, "metrics": {}}
        store.commit(stage, result)
        return result


def tell_folder(stage: Stage, root: Path, device: str) -> dict[str, Any]:
    """cwd: the folder that relative paths begin at."""
    store = StageStore(root)
    store.open_work(stage)
    result = {"cwd": os.getcwd(), "seconds": 0.0, "metrics": {}}
    store.commit(stage, result)
    return result


def log(root: Path, stage: Stage) -> None:
    descriptor = os.open(root / LOG, os.O_WRONLY | os.O_APPEND | os.O_CREAT)
    os.write(descriptor, f"{stage.id}\n".encode())
    os.close(descriptor)


def executed(root: Path) -> list[str]:
    """Ids of all attempts, in order."""
    return (root / LOG).read_text().splitlines() if (root / LOG).exists() else []


def attempts(root: Path, stage: Stage) -> int:
    return executed(root).count(stage.id)
