"""Ray as the torture sees it: a cluster whose nodes and workers can be killed, and the gate where processes wait for
that. Only processes under those that were started here are ever killed."""

from __future__ import annotations

import os
import socket
import subprocess
import sys
import threading
import time
from collections.abc import Callable
from pathlib import Path

from experiments.signals import descendants, kill

NODES = 2
IN_WORKERS = Path(__file__).with_name("in_workers")
PATIENCE = 6000  # looks of 10 ms


def environment_of(folder: Path) -> dict[str, str]:
    """Of every process of the torture: temporary files in `folder`, and workers that look for their moment there."""
    temporary = folder / "t"
    temporary.mkdir(exist_ok=True)
    return {
        **os.environ,
        "OMP_NUM_THREADS": "1",
        "MLFLOW_DISABLE_TELEMETRY": "true",
        "PYTHONWARNINGS": "ignore",
        "PYTHONPATH": os.pathsep.join([str(IN_WORKERS), *filter(None, [os.environ.get("PYTHONPATH")])]),
        "ROBUQ_TORTURE_FAULT": str(folder / "fault.json"),
        "TMPDIR": str(temporary),
    }


class TorturedCluster:
    """A real cluster, in processes of its own: a head without CPUs, and nodes of one CPU each."""

    def __init__(self, folder: Path) -> None:
        environment = {**environment_of(folder), "RAY_TMPDIR": str(folder / "r")}
        self._log = (folder / "cluster.log").open("a")
        self._keeper = subprocess.Popen(
            [sys.executable, str(Path(__file__).with_name("cluster_keeper.py"))],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=self._log,
            text=True,
            env=environment,
        )
        self._lock = threading.Lock()
        self.address = self._answer()
        self.nodes: list[int] = []  # process ids
        self.complete()

    def complete(self) -> None:
        """As many nodes as at the beginning."""
        while len(self.nodes) < NODES:
            self.add_node()

    def add_node(self) -> None:
        self.nodes.append(int(self._ask("add")))

    def kill_node(self, node: int) -> None:
        """By SIGKILL to Ray's own processes of it; its workers find out by themselves."""
        self.nodes.remove(node)
        self._ask(f"kill {node}")

    def workers(self) -> list[int]:
        return workers_under(self._keeper.pid)

    def close(self) -> None:
        under = descendants(self._keeper.pid)
        assert self._keeper.stdin is not None
        assert self._keeper.stdout is not None
        self._keeper.stdin.close()
        self._keeper.wait()
        self._keeper.stdout.close()
        self._log.close()
        for process in under:  # Ray's agents, which take a minute to leave
            kill(process)

    def _ask(self, words: str) -> str:
        with self._lock:
            assert self._keeper.stdin is not None
            self._keeper.stdin.write(f"{words}\n")
            self._keeper.stdin.flush()
            return self._answer()

    def _answer(self) -> str:
        assert self._keeper.stdout is not None
        line = self._keeper.stdout.readline().strip()
        if not line:
            raise RuntimeError(f"the cluster's keeper ended: see {self._log.name}")
        return line


def workers_under(process: int) -> list[int]:
    """Ray workers that execute stages, or are about to."""
    return [each for each in descendants(process) if is_worker(each)]


def is_worker(process: int) -> bool:
    return _text(process, "cmdline").startswith("ray::_Worker")


def parent_of(process: int) -> int | None:
    fields = _text(process, "stat").rpartition(")")[2].split()
    return int(fields[1]) if fields else None


def is_alive(process: int) -> bool:
    fields = _text(process, "stat").rpartition(")")[2].split()
    return bool(fields) and fields[0] not in "ZX"


def _text(process: int, name: str) -> str:
    try:
        return Path(f"/proc/{process}/{name}").read_text(errors="replace")
    except OSError:  # it has ended
        return ""


def seconds_until_gone(processes: list[int]) -> float:
    begun = time.monotonic()
    for _ in range(PATIENCE):
        if not any(map(is_alive, processes)):
            break
        time.sleep(0.01)
    return time.monotonic() - begun


class Gate:
    """Where a process says that a kill's moment has come, and waits until `act` (called with the number of the kill and
    the process id) has done what it does."""

    def __init__(self, path: Path, act: Callable[[int, int], None]) -> None:
        path.unlink(missing_ok=True)
        self._act, self._path = act, path
        self._server = socket.socket(socket.AF_UNIX)
        self._server.bind(str(path))
        self._server.listen(16)
        self._thread = threading.Thread(target=self._serve, daemon=True)
        self._thread.start()

    def close(self) -> None:
        self._path.unlink(missing_ok=True)
        self._server.shutdown(socket.SHUT_RDWR)
        self._thread.join()
        self._server.close()

    def _serve(self) -> None:
        while True:
            try:
                stream, _ = self._server.accept()
            except OSError:  # closed
                return
            with stream:
                words = stream.recv(64).split()
                if words:
                    self._act(*map(int, words))
