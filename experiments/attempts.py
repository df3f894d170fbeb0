"""One attempt at a stage, wherever it is made: what comes of it is never lost."""

from __future__ import annotations

import traceback
from collections.abc import Callable, Mapping
from contextlib import AbstractContextManager
from dataclasses import dataclass
from pathlib import Path
from types import TracebackType
from typing import Any, Literal

from robuq.stages import InputDamaged, Stage, StageStore
from robuq.stopping import Stopped
from robuq.storage_fault import storage_fault

StageFunction = Callable[[Stage, Path, str], Mapping[str, Any]]  # (stage, store's root, device) -> result


@dataclass(frozen=True)
class Outcome:
    """How a stage ended.

    `lost`: its worker died, nothing is known, try again. `damaged`: one of its inputs was, and has been set aside:
    make that anew, then try again. `stopped`: by request; a later launch goes on. `halted`: the disk does not take what
    is written; nothing can go on before it does.
    """

    stage: Stage
    status: Literal["done", "failed", "lost", "damaged", "stopped", "halted"]
    reason: str = ""  # one line


def run_stage(stage: Stage, root: Path, device: str) -> Mapping[str, Any]:
    """The stage function of real runs: one thread, numpy's included, so that every executor gives the same bits."""
    import torch
    from threadpoolctl import threadpool_limits

    from robuq import pipeline

    torch.set_num_threads(1)
    with threadpool_limits(limits=1):
        result: Mapping[str, Any] = pipeline.run_stage(stage, StageStore(root), device)
    return result


class _Caught(AbstractContextManager["_Caught"]):
    """Keeps the exception of its block: on a worker a failure is data. Interrupts and exits pass."""

    error: Exception | Stopped | None = None

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> bool:
        self.error = error if isinstance(error, (Exception, Stopped)) else None
        return self.error is not None


def attempt(function: StageFunction, stage: Stage, root: Path, device: str) -> Outcome:
    """Run a stage; the outcome is never lost. A failure that was not foreseen leaves its traceback in failure.json."""
    with _Caught() as caught:
        function(stage, root, device)
    if caught.error is None:
        return Outcome(stage, "done")
    if isinstance(caught.error, Stopped):
        return Outcome(stage, "stopped")
    if isinstance(caught.error, InputDamaged):
        return Outcome(stage, "damaged", str(caught.error))
    if fault := storage_fault(caught.error, root):
        return Outcome(stage, "halted", str(fault))
    return _failed(stage, root, caught.error)


def _failed(stage: Stage, root: Path, error: Exception) -> Outcome:
    store, reason = StageStore(root), one_line(error)
    if store.work_folder(stage).is_dir() and store.failure(stage) is None:
        try:
            store.fail(stage, reason, "".join(traceback.format_exception(error)))
        except FileNotFoundError:  # another attempt has begun, and cleared the folder: it leaves its own
            return Outcome(stage, "failed", reason)
        except OSError as refusal:
            return Outcome(stage, "halted", str(storage_fault(refusal, root) or refusal))
    return Outcome(stage, "failed", reason)


def one_line(error: BaseException) -> str:
    """`ValueError: what it says`; our own failures speak for themselves."""
    text = " ".join("".join(traceback.format_exception_only(error)).split())
    return text.removeprefix("robuq.pipeline.StageFailed: ")
