"""Starts `robuq` commands, one after the other, from a process that has imported what they need: seconds for each of
hundreds. A command can be given faults: at its n-th operation on files of a certain name it is killed by SIGKILL, or
stands still at a gate until somebody has killed what they wanted.

Reads one JSON object a line: {"words": [...], "log": file, "faults": [{"name", "nth", "delay", "gate", "kill"}]};
answers with the process id, and with the exit code (negative: the signal) once it has ended. Given such an object as
its word, it is that command itself, in a process that nothing was imported in before: Ray reads its settings then.
"""

from __future__ import annotations

import importlib
import json
import os
import signal
import sys
import tempfile
from functools import partial
from pathlib import Path
from typing import Any

from moments import announce, arm

from experiments import cli
from experiments.executors import run_stage
from experiments.launch import jobs_of
from experiments.plan import single_run


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
    os._exit(0)  # what was imported takes long to be taken down


def run(order: dict[str, Any]) -> None:
    """In the new process; does not return."""
    os.setsid()
    log = os.open(order["log"], os.O_WRONLY | os.O_CREAT | os.O_APPEND)
    for stream in (1, 2):
        os.dup2(log, stream)
    os.dup2(os.open(os.devnull, os.O_RDONLY), 0)
    for fault in order["faults"]:
        act = partial(announce, fault["gate"], fault["kill"]) if fault["gate"] else kill_this_process
        arm(fault["name"], fault["nth"], fault["delay"], act)
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


def kill_this_process() -> None:
    os.kill(os.getpid(), signal.SIGKILL)


if __name__ == "__main__":
    if len(sys.argv) > 1:
        run(json.loads(sys.argv[1]))
    main()
