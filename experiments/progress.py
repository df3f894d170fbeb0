"""What a person sees while a sweep runs: a live table on a terminal, plain lines in a pipe."""

from __future__ import annotations

import time
from collections import Counter
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any, Protocol

from rich.console import Console, Group, RenderableType
from rich.live import Live
from rich.progress_bar import ProgressBar
from rich.table import Table
from rich.text import Text

from experiments.attempts import Outcome
from experiments.launch import JobEnd, Observer, Sweep
from robuq.config import RunConfig
from robuq.stages import Stage, StageStore

SHOWN_FAILURES = 3


class Display(Observer, Protocol):
    """An observer that is shown while `showing` lasts."""

    def showing(self) -> Any: ...


def display_of(sweep: Sweep, store: StageStore, workers: int, console: Console) -> Display:
    return (LiveDisplay if console.is_terminal else PlainDisplay)(sweep, store, workers, console)


def run_title(run: RunConfig) -> str:
    """`robuq_uniform W1.58A2 seed 0`."""
    return f"{run.variant} {run.label} seed {run.seed}"


def stage_titles(sweep: Sweep) -> dict[str, str]:
    """{stage id: the run it belongs to, or how many share it}."""
    users: Counter[str] = Counter()
    first: dict[str, str] = {}
    for job in list(sweep.jobs):
        title = run_title(job.run)
        for stage in job.stages:
            users[stage.id] += 1
            first.setdefault(stage.id, title)
    return {name: first[name] if count == 1 else f"shared by {count} runs" for name, count in users.items()}


class StageTitles:
    """`stage_titles`, also of jobs that come in later."""

    def __init__(self, sweep: Sweep) -> None:
        self._sweep, self._jobs = sweep, len(sweep.jobs)
        self._titles = stage_titles(sweep)

    def __getitem__(self, stage_id: str) -> str:
        if len(self._sweep.jobs) != self._jobs:
            self._jobs, self._titles = len(self._sweep.jobs), stage_titles(self._sweep)
        return self._titles[stage_id]


def duration(seconds: float) -> str:
    """`42 s`, `12 min`, `3.4 h`."""
    if seconds < 100:
        return f"{seconds:.0f} s"
    return f"{seconds / 60:.0f} min" if seconds < 6000 else f"{seconds / 3600:.1f} h"


class PlainDisplay:
    """One line an event."""

    def __init__(self, sweep: Sweep, store: StageStore, workers: int, console: Console) -> None:
        self._sweep, self._workers, self._console = sweep, workers, console
        self._titles = StageTitles(sweep)
        self._ended = 0

    @contextmanager
    def showing(self) -> Iterator[None]:
        yield

    def stage_started(self, stage: Stage) -> None:
        """The end is news enough."""

    def stage_ended(self, outcome: Outcome) -> None:
        stage, sweep = outcome.stage, self._sweep
        word = {
            "done": "done",
            "failed": f"FAILED ({outcome.reason})",
            "lost": "lost its worker, is tried again",
            "damaged": f"is tried again ({outcome.reason})",
            "stopped": "stopped, can be continued",
            "halted": "halted, can be continued",
        }
        left = duration(sweep.seconds_left(self._workers))
        took = duration(sweep.took[stage.id])
        title = f"{stage.kind} {self._titles[stage.id]}"
        done = sweep.counts["done"]
        self._line(f"[{done}/{len(sweep.stages)} stages] {title}: {word[outcome.status]} in {took}, about {left} left")

    def job_ended(self, end: JobEnd) -> None:
        self._ended += 1
        how = f"FAILED: {end.failure}" if end.failure else "finished"
        self._line(f"[{self._ended}/{len(self._sweep.jobs)} runs] {run_title(end.job.run)}: {how}")

    def _line(self, text: str) -> None:
        self._console.out(text, highlight=False)


class LiveDisplay:
    """Running stages with step, speed, loss and time left; below, the sweep as a whole."""

    def __init__(self, sweep: Sweep, store: StageStore, workers: int, console: Console) -> None:
        self._sweep, self._store, self._workers, self._console = sweep, store, workers, console
        self._titles = StageTitles(sweep)
        self._failures: list[str] = []
        self._ended = 0
        self._begun = time.monotonic()

    @contextmanager
    def showing(self) -> Iterator[None]:
        with Live(console=self._console, refresh_per_second=2, get_renderable=self.render):
            yield

    def stage_started(self, stage: Stage) -> None:
        """The table shows it at its next refresh."""

    def stage_ended(self, outcome: Outcome) -> None:
        if outcome.status != "done":
            title = f"{outcome.stage.kind} {self._titles[outcome.stage.id]}"
            self._failures.append(f"{title}: {outcome.status}: {outcome.reason}")

    def job_ended(self, end: JobEnd) -> None:
        self._ended += 1

    def render(self) -> RenderableType:
        table = Table(expand=True, box=None, pad_edge=False)
        for name, align in (("stage", "left"), ("run", "left"), ("progress", "left"), ("step", "right")):
            table.add_column(name, justify="right" if align == "right" else "left", no_wrap=name != "run")
        for name in ("steps/s", "loss", "left"):
            table.add_column(name, justify="right", no_wrap=True)
        for name in list(self._sweep.started):
            table.add_row(*self._row(self._sweep.stages[name]))
        return Group(table, *(Text(line, style="red") for line in self._failures[-SHOWN_FAILURES:]), self._summary())

    def _row(self, stage: Stage) -> list[RenderableType]:
        progress = self._store.progress(stage)
        title = self._titles[stage.id]
        if not progress:
            return [stage.kind, title, "", "", "", "", ""]
        step, steps, speed = progress["step"], progress["steps"], progress.get("steps_per_second") or 0.0
        left = duration((steps - step) / speed) if speed > 0 else ""
        loss = progress.get("loss")
        cells = [f"{step}/{steps}", f"{speed:.1f}", "" if loss is None else f"{loss:.4f}", left]
        return [stage.kind, title, ProgressBar(total=max(steps, 1), completed=step, width=20), *cells]

    def _summary(self) -> Text:
        sweep = self._sweep
        counts = sweep.counts
        failed = f", {counts['failed']} failed" if counts["failed"] else ""
        return Text(
            f"stages {counts['done']}/{len(sweep.stages)} done{failed}; runs {self._ended}/{len(sweep.jobs)}; "
            f"{duration(time.monotonic() - self._begun)} gone, about {duration(sweep.seconds_left(self._workers))} left"
        )
