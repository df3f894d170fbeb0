"""Real commands, one at a time, from one spawner."""

from __future__ import annotations

import json
import subprocess
import sys
import threading
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from tortured_ray import environment_of

from experiments.signals import kill

SPAWNER = [sys.executable, str(Path(__file__).with_name("spawner.py"))]
LONGEST = 900  # seconds of a command, on a busy machine: one that hangs is a failure, too


class Commands:
    """Real processes; with the local executor they are forked from one that has imported all."""

    def __init__(self, folder: Path) -> None:
        self.log = folder / "commands.log"
        self._environment = environment_of(folder)
        self._spawner = subprocess.Popen(
            SPAWNER,
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=subprocess.DEVNULL,
            text=True,
            env=self._environment,
        )
        self._answer()

    def __call__(
        self, *words: str, faults: Sequence[dict[str, Any]] = (), begun: Callable[[int], None] = lambda process: None
    ) -> int:
        """The exit code; -9 where a kill came first. `begun` is called with the process id."""
        order = json.dumps({"words": words, "log": str(self.log), "faults": list(faults)})
        if "ray" in words:
            process = subprocess.Popen([*SPAWNER, order], env=self._environment)
            begun(process.pid)
            return process.wait(LONGEST)
        assert self._spawner.stdin is not None
        self._spawner.stdin.write(order + "\n")
        self._spawner.stdin.flush()
        forked = int(self._answer())
        begun(forked)
        with _at_most(LONGEST, forked, words):
            return int(self._answer())

    def close(self) -> None:
        assert self._spawner.stdin is not None
        self._spawner.stdin.close()
        self._spawner.wait(30)
        assert self._spawner.stdout is not None
        self._spawner.stdout.close()

    def _answer(self) -> str:
        assert self._spawner.stdout is not None
        line = self._spawner.stdout.readline().strip()
        if not line:
            raise RuntimeError(f"the spawner ended: see {self.log}")
        return line


@contextmanager
def _at_most(seconds: float, process: int, words: Sequence[str]) -> Iterator[None]:
    """Kills `process` after `seconds`; its time is up then, whatever its exit code says."""
    up = threading.Event()

    def end() -> None:
        up.set()
        kill(process)

    timer = threading.Timer(seconds, end)
    timer.start()
    yield
    timer.cancel()
    if up.is_set():
        raise subprocess.TimeoutExpired(words, seconds)


@contextmanager
def spawned(folder: Path) -> Iterator[Commands]:
    commands = Commands(folder)
    try:
        yield commands
    finally:
        commands.close()
