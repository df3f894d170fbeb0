"""What a person sees while a search evaluates: the sweep's display with the search's own summary."""

from __future__ import annotations

from collections.abc import Mapping

from rich.console import Console
from rich.text import Text

from experiments.attempts import Outcome
from experiments.launch import JobEnd, Sweep
from experiments.progress import Display, LiveDisplay, PlainDisplay, duration
from experiments.search_driver import SearchDriver
from experiments.search_problem import OWN_KINDS
from robuq.stages import StageStore


class SearchState:
    """`12/40 evaluations: 5 finished, 7 pruned; best 0.10231 (12 policy); about 4 min left`."""

    def __init__(self, driver: SearchDriver, sweep: Sweep, evaluations: int, expected: float, workers: int) -> None:
        """`expected`: seconds that an evaluation takes, estimated."""
        self._driver, self._sweep, self._workers = driver, sweep, max(workers, 1)
        self._evaluations, self._expected = evaluations, expected
        self._best = ""
        self.refresh()

    def refresh(self) -> None:
        """Read the study, in the driver's thread: the display has another."""
        best = self._driver.best()
        self._best = f"; best {best[2]:.5f} ({best[0]} {best[1]})" if best else ""

    def line(self) -> str:
        states: Mapping[str, int] = self._driver.states
        counts = ", ".join(f"{states[state]} {state}" for state in ("finished", "pruned", "failed") if states[state])
        left = self._sweep.seconds_left(self._workers) + self._driver.evaluations_left * self._cost() / self._workers
        over = sum(states.values())
        return (
            f"{over}/{self._evaluations} evaluations: {counts or 'none yet'}{self._best}; about {duration(left)} left"
        )

    def _cost(self) -> float:
        """Seconds an evaluation: as estimated, corrected by how long the stages of this launch took; the estimate
        itself counts as one evaluation, because the first stages of a process take longer."""
        took = dict(self._sweep.took)
        expected = sum(self._sweep.seconds[name] for name in took)
        return self._expected * (sum(took.values()) + self._expected) / (expected + self._expected)


class PlainSearchDisplay(PlainDisplay):
    """One line a rung of an evaluation."""

    def __init__(
        self, sweep: Sweep, store: StageStore, workers: int, console: Console, state: SearchState, driver: SearchDriver
    ) -> None:
        super().__init__(sweep, store, workers, console)
        self._state, self._driver = state, driver

    def stage_ended(self, outcome: Outcome) -> None:
        if outcome.status == "lost" or (outcome.status == "done" and outcome.stage.kind not in OWN_KINDS):
            super().stage_ended(outcome)

    def job_ended(self, end: JobEnd) -> None:
        self._state.refresh()
        message = self._driver.messages.get(end.job.stages[-1].id, "")
        self._line(f"[{self._state.line()}] {end.job.run.variant}, {rung_title(end)}: {message}")


class LiveSearchDisplay(LiveDisplay):
    """The stages that run, and the search's summary."""

    def __init__(
        self, sweep: Sweep, store: StageStore, workers: int, console: Console, state: SearchState, driver: SearchDriver
    ) -> None:
        super().__init__(sweep, store, workers, console)
        self._state = state

    def job_ended(self, end: JobEnd) -> None:
        super().job_ended(end)
        self._state.refresh()

    def _summary(self) -> Text:
        return Text(self._state.line())


def rung_title(end: JobEnd) -> str:
    """`60 steps` or `untrained`."""
    kinds = {stage.kind for stage in end.job.stages}
    return f"{end.job.run.train.steps} steps" if "qat" in kinds else "untrained"


def search_display(
    driver: SearchDriver, sweep: Sweep, store: StageStore, workers: int, console: Console, state: SearchState
) -> Display:
    kind = LiveSearchDisplay if console.is_terminal else PlainSearchDisplay
    return kind(sweep, store, workers, console, state, driver)
