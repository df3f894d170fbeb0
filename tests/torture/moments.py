"""The moment of a kill: at, or shortly after, a process's n-th operation on files of a certain name.

Read by Ray workers when Python starts, and therefore built on the standard library alone.
"""

from __future__ import annotations

import os
import socket
import sys
import threading
import time
from collections.abc import Callable
from contextlib import suppress
from typing import Any

EVENTS = ("open", "os.rename", "os.symlink", "os.link", "os.remove", "os.mkdir", "sqlite3.connect")


def arm(name: str, nth: int, delay: float, act: Callable[[], None]) -> None:
    """Call `act` `delay` seconds after this process's n-th operation on a file with `name` in its path."""
    seen = 0

    def look(event: str, arguments: tuple[Any, ...]) -> None:
        nonlocal seen
        if event in EVENTS and any(
            name in os.fsdecode(a) for a in arguments[:2] if isinstance(a, (str, bytes, os.PathLike))
        ):
            seen += 1
            if seen == nth:
                act_after(delay, act)

    sys.addaudithook(look)


def act_after(delay: float, act: Callable[[], None]) -> None:
    def wait_and_act() -> None:
        time.sleep(delay)
        act()

    if delay:
        threading.Thread(target=wait_and_act, daemon=True).start()
    else:
        act()


def announce(gate: str, kill: int) -> None:
    """Say at the gate that a kill's moment has come, and stand still until it opens: by then a process is dead."""
    with suppress(OSError), socket.socket(socket.AF_UNIX) as stream:  # OSError: nobody waits any more
        stream.connect(gate)
        stream.sendall(f"{kill} {os.getpid()}".encode())
        stream.recv(1)
