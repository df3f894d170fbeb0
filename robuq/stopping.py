"""Asking the work of this process to stop at its next boundary: a training step, a batch of images, a layer.

Whoever works looks here; whoever is told to stop (a signal's handler, an executor's worker) says so here. What
stopped left a checkpoint and is continued by a later attempt to the same bits.
"""

from __future__ import annotations

from collections.abc import Callable

Check = Callable[[], bool]


class Stopped(BaseException):
    """The work was asked to stop, and has. No failure: nothing that handles those should catch it."""


class _Request:
    """Of this process. `check` is asked, too: a worker learns of a driver's wish that way."""

    made = False
    check: Check | None = None


def request_stop() -> None:
    _Request.made = True


def forget_request() -> None:
    _Request.made = False


def ask_also(check: Check | None) -> None:
    """`check`: is called at each boundary, and should take microseconds; None for no other."""
    _Request.check = check


def stop_requested() -> bool:
    return _Request.made or (_Request.check is not None and _Request.check())


def stop_point() -> None:
    """A boundary at which nothing is lost. Raises Stopped if that was asked for."""
    if stop_requested():
        raise Stopped
