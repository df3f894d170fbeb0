"""A driver for the tests of signals: one stage that works until it is stopped. Words: local or ray, folder, listening
or deaf (work that has no boundaries)."""

from __future__ import annotations

import time
from pathlib import Path
from typing import Any

import typer
from toy_stages import toy

from experiments import cli
from experiments.executors import Executor, LocalExecutor, RayExecutor
from experiments.launch import Job, Sweep, launch
from robuq.config import RunConfig
from robuq.stages import Stage, StageStore
from robuq.stopping import Stopped, stop_requested


def endless(stage: Stage, root: Path, device: str) -> dict[str, Any]:
    (root / "begun").touch()
    while stage.config["deaf"] or not stop_requested():
        time.sleep(0.01)
    (root / "kept").touch()
    raise Stopped


def drive(kind: str, folder: Path, hearing: str) -> None:
    job = Job(RunConfig(variant="a"), (toy("qat", deaf=hearing == "deaf"),))
    pool: Executor = LocalExecutor(folder, "cpu", endless)
    if kind == "ray":
        pool = RayExecutor(folder, "cpu", 1, function=endless)
    try:
        launch(Sweep([job], StageStore(folder), lambda stage: 1.0), pool, lambda end: None)
    finally:
        pool.close()


if __name__ == "__main__":
    app = typer.Typer()
    app.command()(drive)
    cli.app = app
    cli.main()
