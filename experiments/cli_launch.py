"""What `sweep` and `train` share: jobs are launched and recorded, and what failed or waits is said."""

from __future__ import annotations

import sys
from collections.abc import Sequence
from typing import TYPE_CHECKING

from experiments.cli_options import make_console

if TYPE_CHECKING:
    from rich.console import Console

    from experiments.executors import Executor
    from experiments.launch import Job, JobEnd
    from experiments.output import Output


def launched(
    plan_name: str, jobs: list[Job], folder: Output, pool: Executor, workers: int, tracking_uri: str | None
) -> Sequence[JobEnd]:
    """Launch, record, and say what failed and what waits."""
    from experiments.estimate import Estimator
    from experiments.launch import Sweep, launch
    from experiments.progress import display_of
    from experiments.recording import Recording

    console = make_console()
    try:
        recording = Recording(plan_name, folder, tracking_uri or folder.tracking_uri())
        recording.open()  # imports mlflow while the workers start
        say_what_is_away(recording.problem)
        state = Sweep(jobs, folder.store, Estimator(folder.store).seconds)
        display = display_of(state, folder.store, workers, console)
        with display.showing():
            ends = launch(state, pool, recording, [display])
    finally:
        pool.close()
    _say_what_waits(recording.send_waiting(), recording.problem)
    _say_what_failed(ends, console)
    return ends


def say_what_is_away(problem: str | None) -> None:
    """Before the work: it may take hours."""
    if problem:
        print(f"records will wait on the disk: {problem}", file=sys.stderr)


def _say_what_waits(waiting: int, problem: str | None) -> None:
    if waiting:
        print(f"{waiting} records wait on the disk: {problem}; the next sweep sends them", file=sys.stderr)


def _say_what_failed(ends: Sequence[JobEnd], console: Console) -> None:
    from experiments.progress import run_title

    failed = [end for end in ends if end.failure]
    for end in failed:
        print(f"failed: {run_title(end.job.run)}: {end.failure}", file=sys.stderr)
    console.print(f"{len(ends) - len(failed)} of {len(ends)} runs finished", highlight=False)
