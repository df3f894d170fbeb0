"""One command's workers at a time in a folder of stages.

A command can die without its workers: Ray ends them within seconds, or within two minutes where a cluster has lost its
head. The next command asks them to leave, waits until they are gone, and takes the fence: a worker that is late finds
that it is no longer its own command's, and does nothing. Locks go with the processes that hold them; on a cluster the
folder's file system has to share them between machines, as NFS does.
"""

from __future__ import annotations

import fcntl
import secrets
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from robuq.config import ConfigError

LOCK = ".workers.lock"  # in the stages' folder; holds the token of the command that works in it
LEAVE = ".workers.leave"  # is there while a command waits for others' workers
PATIENCE = 300.0  # seconds
TELL_AFTER = 3.0
LOOK_EVERY = 0.05
LOOK_AGAIN = 0.5  # seconds between a worker's looks: the folder may be on a network


class Fenced(RuntimeError):
    """The command that this worker belongs to is over, and another has begun."""


def take_fence(root: Path, patience: float = PATIENCE) -> None:
    """For a command that has just become the folder's only one: wait for the workers of the one before.

    Raises:
        ConfigError: they do not end.
    """
    root.mkdir(parents=True, exist_ok=True)
    begun, told = time.monotonic(), False
    with (root / LOCK).open("a+") as stream:
        while not _locked(stream.fileno(), fcntl.LOCK_EX):
            (root / LEAVE).touch()
            waited = time.monotonic() - begun
            if waited > patience:
                raise ConfigError(f"workers of an earlier command still write to {root}: end them, or use --output")
            if waited > TELL_AFTER and not told:
                print("robuq: waiting for the workers of an earlier command to end", file=sys.stderr, flush=True)
                told = True
            time.sleep(LOOK_EVERY)
        (root / LEAVE).unlink(missing_ok=True)
        stream.truncate(0)
        stream.write(secrets.token_hex(8))
        stream.flush()


def fence_of(root: Path) -> str:
    """The token of the command that has taken the fence; empty where none has."""
    file = root / LOCK
    return file.read_text() if file.is_file() else ""


@contextmanager
def behind_fence(root: Path, token: str) -> Iterator[None]:
    """For a worker, while it writes to the folder.

    Raises:
        Fenced: another command has taken the fence since `token` was read.
    """
    file = root / LOCK
    if not file.is_file():
        _check(token == "")
        yield
        return
    with file.open() as stream:
        fcntl.flock(stream, fcntl.LOCK_SH)  # taken by a command only for as long as it takes to write a token
        _check(stream.read() == token)
        yield


class LeaveRequest:
    """Of one attempt of a worker: call it at each boundary."""

    def __init__(self, root: Path) -> None:
        self._file, self._look_at = root / LEAVE, 0.0

    def __call__(self) -> bool:
        """Whether the next command waits for this worker."""
        now = time.monotonic()
        if now < self._look_at:
            return False
        self._look_at = now + LOOK_AGAIN
        return self._file.exists()


def _check(own: bool) -> None:
    if not own:
        raise Fenced("the command that this worker belongs to is over, and another has begun")


def _locked(descriptor: int, how: int) -> bool:
    try:
        fcntl.flock(descriptor, how | fcntl.LOCK_NB)
    except BlockingIOError:
        return False
    return True
