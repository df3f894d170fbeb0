"""A command for the test of the fence: it says when it has begun, and its one Ray worker writes its process id into the
stage's working folder, again and again, deaf to everything. Its word: the output folder. It waits for a line first, so
that it can begin in the moment in which another command is killed."""

from __future__ import annotations

import os
import sys
import time
from pathlib import Path
from typing import Any

from toy_stages import toy

from experiments.executors import RayExecutor
from experiments.output import Output
from robuq.stages import Stage, StageStore

LOG = "written.txt"


def write(folder: Path, kind: str) -> None:
    descriptor = os.open(folder / LOG, os.O_WRONLY | os.O_APPEND | os.O_CREAT)
    os.write(descriptor, f"{kind} {os.getpid()}\n".encode())
    os.close(descriptor)


def lines_of(folder: Path) -> list[tuple[str, str]]:
    """(what, process id) in the order of writing."""
    text = (folder / LOG).read_text() if (folder / LOG).exists() else ""
    return [(kind, process) for kind, _, process in (line.partition(" ") for line in text.splitlines())]


def deaf(stage: Stage, root: Path, device: str) -> dict[str, Any]:
    StageStore(root).open_work(stage)
    while True:
        write(root.parent, "worker")
        time.sleep(0.005)


def main(folder: Path) -> None:
    output = Output(folder)
    print("ready", flush=True)
    sys.stdin.readline()
    with output.sweeping():
        write(folder, "begun")
        pool = RayExecutor(output.store.root, "cpu", 1, function=deaf)
        while not pool.free():
            pool.wait(1.0)
        pool.submit(toy("qat"))
        while True:
            pool.wait(60.0)


if __name__ == "__main__":
    main(Path(sys.argv[1]))
