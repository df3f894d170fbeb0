"""Starts `robuq` commands from a process that has imported what they need, each with a fault that comes at its n-th
operation on a file of a certain name: the disk is filled, a folder becomes read-only, the command is killed or held.

Reads one JSON object a line. {"start": words, "log": file, "fault": {...} or null}: answers with the process id.
{"wait": process id}: answers with the exit code (negative: the signal) once it has ended. One that hangs is killed.
"""

from __future__ import annotations

import ctypes
import importlib
import json
import os
import select
import signal
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

from experiments import cli
from experiments.executors import run_stage
from experiments.launch import jobs_of
from experiments.plan import single_run

EVENTS = ("open", "os.rename", "os.symlink", "os.link", "os.remove", "os.mkdir", "shutil.rmtree")
MS_RDONLY, MS_REMOUNT, MS_BIND = 1, 32, 4096  # of mount(2)
BALLAST = "ballast"
LONGEST = 900.0  # seconds that a command may take, on a busy machine
IMPORTED = (
    "mlflow",
    "mlflow.store.tracking.sqlalchemy_store",
    "mlflow.store.artifact.local_artifact_repo",
    "mlflow.store.artifact.mlflow_artifacts_repo",
    "mlflow.store.tracking.rest_store",
    "experiments.doctor",
    "experiments.reporting",
    "experiments.search_run",
    "scipy.optimize",
    "scipy.stats",
)


def warm_up() -> None:
    """Import what commands import late, and have the quantized layers' kernels compiled."""
    for name in IMPORTED:
        importlib.import_module(name)
    run = single_run("robuq_uniform", 2, "nano", 0, {"train.steps": 1, "train.warmup_steps": 0, "pretrain.steps": 0})
    (job,) = jobs_of([run])
    with tempfile.TemporaryDirectory() as folder:
        for stage in job.stages:
            run_stage(stage, Path(folder), "cpu")


def main() -> None:
    warm_up()
    print("ready", flush=True)
    for line in sys.stdin:
        order = json.loads(line)
        if "wait" in order:
            print(exit_code_of(order["wait"]), flush=True)
            continue
        process = os.fork()
        if process == 0:
            run(order)
        print(process, flush=True)
    os._exit(0)  # what was imported takes long to be taken down


def exit_code_of(process: int) -> int:
    begun, ended, status = time.monotonic(), 0, 0
    while not ended:
        ended, status = os.waitpid(process, os.WNOHANG)
        if not ended and time.monotonic() - begun > LONGEST:
            os.killpg(process, signal.SIGKILL)
        select.select([], [], [], 0.01)
    return os.waitstatus_to_exitcode(status)


def run(order: dict[str, Any]) -> None:
    """In the new process; does not return."""
    os.setsid()
    os.environ.update(order["environment"])
    log = os.open(order["log"], os.O_WRONLY | os.O_CREAT | os.O_TRUNC)
    for stream in (1, 2):
        os.dup2(log, stream)
    os.dup2(os.open(os.devnull, os.O_RDONLY), 0)
    if order["fault"] is not None:
        arm(**order["fault"])
    sys.argv = ["robuq", *order["start"]]
    try:
        cli.main()
    except SystemExit as end:
        sys.stdout.flush()
        sys.stderr.flush()
        os._exit(end.code if isinstance(end.code, int) else 1)
    except BaseException:
        sys.excepthook(*sys.exc_info())
    os._exit(70)


def arm(name: str, nth: int, action: str, folder: str, event: str) -> None:
    """Do it at the n-th operation, of all or of one kind, on a file with `name` in its path."""
    watched = (event,) if event else EVENTS
    seen = 0

    def look(what: str, arguments: tuple[Any, ...]) -> None:
        nonlocal seen
        if what in watched and any(
            name in os.fsdecode(a) for a in arguments[:2] if isinstance(a, (str, bytes, os.PathLike))
        ):
            seen += 1
            if seen == nth:
                ACTIONS[action](Path(folder))

    sys.addaudithook(look)


def kill(folder: Path) -> None:
    os.kill(os.getpid(), signal.SIGKILL)


def fill(folder: Path) -> None:
    """Leave no byte on the disk that `folder` is the root of."""
    with (folder / BALLAST).open("ab", buffering=0) as ballast:
        for size in (1 << 20, 1 << 12, 1):
            try:
                while True:
                    ballast.write(bytes(size))
            except OSError:
                continue


def make_read_only(folder: Path) -> None:
    """Mount the folder over itself. What is open already can still be written."""
    libc, path = ctypes.CDLL(None, use_errno=True), os.fsencode(folder)
    for flags in (MS_BIND, MS_BIND | MS_REMOUNT | MS_RDONLY):
        if libc.mount(path, path, None, flags, None):
            raise OSError(ctypes.get_errno(), "mount")


def hold(folder: Path) -> None:
    """Say in `folder/held` what time it is, again and again, and wait for `folder/go`."""
    while not (folder / "go").exists():
        (folder / ".held").write_text(repr(time.time()))
        (folder / ".held").replace(folder / "held")
        select.select([], [], [], 0.01)  # a faked clock that is set breaks time.sleep


ACTIONS = {"kill": kill, "fill": fill, "make_read_only": make_read_only, "hold": hold}


if __name__ == "__main__":
    main()
