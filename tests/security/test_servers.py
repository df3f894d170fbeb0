"""Whatever listens while a command works listens on the loopback interface."""

from __future__ import annotations

import os
import socket
import subprocess
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest

from experiments.cli_dashboard import HOST, streamlit_command

PATIENCE = 120.0  # seconds, for a server to listen
CLUSTER = """
import sys
from pathlib import Path
from experiments.executors import RayExecutor
pool = RayExecutor(Path(sys.argv[1]), workers=1)
while not pool.free():
    pool.wait(1.0)
print("ready", flush=True)
sys.stdin.read()
pool.close()
"""


def listening(root: int) -> set[str]:
    """Addresses, in hexadecimal, on which the process and those below it listen."""
    inodes = {inode for process in _family(root) for inode in _sockets(process)}
    found = set()
    for table in ("tcp", "tcp6"):
        for line in Path(f"/proc/net/{table}").read_text().splitlines()[1:]:
            fields = line.split()
            if fields[3] == "0A" and fields[9] in inodes:
                found.add(fields[1].partition(":")[0])
    return found


def _family(root: int) -> set[int]:
    parents = {}
    for folder in Path("/proc").glob("[0-9]*"):
        try:
            parents[int(folder.name)] = int((folder / "stat").read_text().rpartition(")")[2].split()[1])
        except OSError:  # it has ended
            continue
    family, more = {root}, {root}
    while more:
        more = {process for process, parent in parents.items() if parent in more} - family
        family |= more
    return family


def _sockets(process: int) -> Iterator[str]:
    for handle in Path(f"/proc/{process}/fd").glob("*"):
        try:
            target = os.readlink(handle)
        except OSError:  # closed meanwhile
            continue
        if target.startswith("socket:["):
            yield target.removeprefix("socket:[").removesuffix("]")


def is_loopback(address: str) -> bool:
    """The kernel writes 32-bit words in its own order."""
    return address == "0100007F" or address in ("0" * 24 + "01000000", "0" * 16 + "FFFF00000100007F")


@contextmanager
def started(words: list[str], folder: Path) -> Iterator[subprocess.Popen[str]]:
    pipe = subprocess.PIPE
    process = subprocess.Popen(words, cwd=folder, stdin=pipe, stdout=pipe, stderr=subprocess.DEVNULL, text=True)
    try:
        yield process
    finally:
        process.terminate()
        process.communicate(timeout=60)


def test_the_probe_tells_interfaces_apart() -> None:
    with socket.create_server(("127.0.0.1", 0)):
        assert all(map(is_loopback, listening(os.getpid())))
        with socket.create_server(("0.0.0.0", 0)):
            assert not all(map(is_loopback, listening(os.getpid())))


@pytest.mark.slow
def test_a_cluster_of_ones_own(tmp_path: Path) -> None:
    with started([sys.executable, "-c", CLUSTER, str(tmp_path)], tmp_path) as process:
        assert process.stdout is not None
        assert process.stdout.readline() == "ready\n"
        found = listening(process.pid)
    assert len(found) > 0
    assert all(map(is_loopback, found)), found


@pytest.mark.slow
def test_the_dashboard(tmp_path: Path) -> None:
    with socket.create_server((HOST, 0)) as probe:
        port = probe.getsockname()[1]
    words = [sys.executable, "-m", "experiments.cli", "dashboard", "--output", str(tmp_path), "--port", str(port)]
    with started(words, tmp_path) as process:
        end = time.monotonic() + PATIENCE
        while not (found := listening(process.pid)) and process.poll() is None and time.monotonic() < end:
            time.sleep(0.2)  # polled: there is nothing to wait for but the kernel's table
    assert found
    assert all(map(is_loopback, found)), found


def test_what_is_asked_of_streamlit() -> None:
    assert f"--server.address={HOST}" in streamlit_command(8501)
    assert HOST == "127.0.0.1"
