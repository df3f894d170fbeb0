"""SIGINT and SIGTERM: the first asks, the second ends.

While stages are executed, the first signal asks the workers to keep what they have and to stop at their next boundary,
which takes seconds; elsewhere it ends the command like any interruption. A second one, or `PATIENCE` seconds, ends the
command and all processes under it at once. What was under way is continued by the same command in every case.
"""

from __future__ import annotations

import os
import signal
import sys
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from types import FrameType

from robuq.stopping import Stopped, forget_request, request_stop

HANDLED = (signal.SIGINT, signal.SIGTERM)
PATIENCE = 20.0  # seconds; workers are given fewer, and records under way have time to be sent
ASKED = b"robuq: stopping at the next step, with a checkpoint; once more stops at once\n"
AT_ONCE = b"robuq: stopped at once; the same command continues where it was\n"
SHOW_CURSOR = b"\x1b[?25h"  # a live display hides it


class _State:
    """Of this process, which has one pair of handlers."""

    received: int | None = None  # the first signal
    deferring = False


def exit_code() -> int:
    """130 after SIGINT, 143 after SIGTERM."""
    return 128 + (_State.received or signal.SIGINT)


@contextmanager
def handled_signals() -> Iterator[None]:
    """For a whole command. Raises Stopped where a signal ended it."""
    if threading.current_thread() is not threading.main_thread():
        yield
        return
    handlers = {**dict.fromkeys(HANDLED, _on_signal), signal.SIGALRM: _on_alarm}
    before = {number: signal.signal(number, handler) for number, handler in handlers.items()}
    _State.received = None
    try:
        yield
    finally:
        signal.setitimer(signal.ITIMER_REAL, 0)
        forget_request()
        for number, handler in before.items():
            signal.signal(number, handler)


@contextmanager
def stopping_at_boundaries() -> Iterator[None]:
    """Inside, a first signal asks, and the work looks for it; see `stop_requested`."""
    before, _State.deferring = _State.deferring, True
    try:
        yield
    finally:
        _State.deferring = before


def _on_signal(number: int, frame: FrameType | None) -> None:
    if _State.received is not None:
        leave_at_once()
    _State.received = number
    request_stop()
    signal.setitimer(signal.ITIMER_REAL, PATIENCE)
    if not _State.deferring:
        raise Stopped
    os.write(2, ASKED)


def _on_alarm(number: int, frame: FrameType | None) -> None:
    leave_at_once()


def leave_at_once() -> None:
    """End this process and all under it. Every file is whole or not there, so that nothing has to be finished."""
    for process in descendants(os.getpid()):
        kill(process)
    if sys.stderr.isatty():
        os.write(2, SHOW_CURSOR)
    os.write(2, AT_ONCE)
    os._exit(exit_code())


def kill(process: int) -> None:
    try:
        os.kill(process, signal.SIGKILL)
    except ProcessLookupError:
        return


def descendants(process: int) -> list[int]:
    """Process ids, parents first; none where the system has no /proc."""
    children: dict[int, list[int]] = {}
    for status in Path("/proc").glob("[0-9]*/stat"):
        try:
            parent = int(status.read_text().rpartition(")")[2].split()[1])
        except OSError:  # it has ended
            continue
        children.setdefault(parent, []).append(int(status.parent.name))
    found = [process]
    for each in found:
        found += children.get(each, [])
    return found[1:]
