"""Starts `robuq` commands, one after the other, from a process that has imported what they need: seconds for each of
hundreds. A command can be given a fault: it is killed by SIGKILL at its n-th operation on files of a certain name.

Reads one JSON object a line: {"words": [...], "log": file, "fault": {"name", "nth", "delay"} or null}; answers with the
process id, and with the exit code (negative: the signal) once it has ended.
"""

from __future__ import annotations

import importlib
import json
import os
import signal
import sys
import tempfile
import threading
import time
from pathlib import Path
from typing import Any

from experiments import cli
from experiments.executors import run_stage
from experiments.launch import jobs_of
from experiments.plan import single_run

EVENTS = ("open", "os.rename", "os.symlink", "os.link", "os.remove", "os.mkdir", "sqlite3.connect")


def warm_up() -> None:
    """Import what commands import late, and have the quantized layers' kernels compiled."""
    for name in ("mlflow", "optuna", "scipy.stats"):
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
        process = os.fork()
        if process == 0:
            run(order)
        print(process, flush=True)
        _, status = os.waitpid(process, 0)
        print(os.waitstatus_to_exitcode(status), flush=True)


def run(order: dict[str, Any]) -> None:
    """In the new process; does not return."""
    os.setsid()
    log = os.open(order["log"], os.O_WRONLY | os.O_CREAT | os.O_APPEND)
    for stream in (1, 2):
        os.dup2(log, stream)
    os.dup2(os.open(os.devnull, os.O_RDONLY), 0)
    if order["fault"] is not None:
        arm(**order["fault"])
    sys.argv = ["robuq", *order["words"]]
    try:
        cli.main()
    except SystemExit as end:
        sys.stdout.flush()
        sys.stderr.flush()
        os._exit(end.code if isinstance(end.code, int) else 1)
    except BaseException:
        sys.excepthook(*sys.exc_info())
    os._exit(70)


def arm(name: str, nth: int, delay: float) -> None:
    """SIGKILL to this very process `delay` seconds after the n-th operation on a file with `name` in its path."""
    seen = 0

    def look(event: str, arguments: tuple[Any, ...]) -> None:
        nonlocal seen
        if event in EVENTS and any(
            name in os.fsdecode(a) for a in arguments[:2] if isinstance(a, (str, bytes, os.PathLike))
        ):
            seen += 1
            if seen == nth:
                kill_after(delay)

    sys.addaudithook(look)


def kill_after(delay: float) -> None:
    def wait_and_kill() -> None:
        time.sleep(delay)
        os.kill(os.getpid(), signal.SIGKILL)

    if delay:
        threading.Thread(target=wait_and_kill, daemon=True).start()
    else:
        os.kill(os.getpid(), signal.SIGKILL)


if __name__ == "__main__":
    main()
