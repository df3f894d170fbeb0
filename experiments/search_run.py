"""A whole search: sensitivities, evaluations, record, and the runs that confirm its winner. Again: it continues."""

from __future__ import annotations

import time
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path

from rich.console import Console

from experiments.estimate import Estimator
from experiments.executors import Executor
from experiments.launch import Job, JobEnd, Sweep, jobs_of, launch
from experiments.output import Output
from experiments.progress import display_of
from experiments.recording import Recording
from experiments.search_driver import SearchDriver, named_bits
from experiments.search_file import Search
from experiments.search_problem import (
    Prices,
    evaluation_job,
    known_allocations,
    own_stages,
    problem_of,
    problems_of,
    read_table,
    sensitivity_job,
)
from experiments.search_progress import SearchState, search_display
from experiments.search_results import SearchResults, with_times
from robuq.ampn.allocate import allocate, uniform
from robuq.ampn.problem import Bits, Problem
from robuq.ampn.search import BitSearch, reach_storage, study_errors
from robuq.config import Allocator, RunConfig
from robuq.data.fingerprint import data_fingerprint
from robuq.record.search_record import SearchRecord

BASELINES: tuple[Allocator, ...] = ("uniform", "greedy", "exact")
WINNER, LONGER = "search", "exact_longer"
JOURNAL = "study.journal"


@dataclass
class SearchEnd:
    """`ends`: of all jobs that failed, and of the confirmation's runs."""

    record: SearchRecord | None
    ends: list[JobEnd] = field(default_factory=list)

    @property
    def failures(self) -> list[JobEnd]:
        return [end for end in self.ends if end.failure]


class SearchRun:
    """Executes one search on one pool of workers."""

    def __init__(
        self, search: Search, output: Output, pool: Executor, workers: int, recording: Recording, console: Console
    ) -> None:
        self._search, self._output, self._store = search, output, output.store
        self._pool, self._workers, self._recording, self._console = pool, workers, recording, console
        self._data = data_fingerprint(search.run.data)
        self._estimator = Estimator(output.store)
        self._seconds: dict[str, float] = {}
        known = output.search(search.name)
        self._started = known.started if known is not None else time.time()
        self._confirmed = dict(known.confirmed) if known is not None else {}

    def __call__(self) -> SearchEnd:
        """
        Raises:
            StorageFault: the disk, or the study's database, does not take what is written.
        """
        with study_errors(self._search.config.storage):
            return self._searched()

    def _searched(self) -> SearchEnd:
        reach_storage(self._search.config.storage)
        jobs = self._sensitivity_jobs()
        ends = self._launched(jobs, lambda end: None)
        if any(end.failure for end in ends):
            return SearchEnd(None, ends)
        tables = [(job.run, read_table(job, self._store)) for job in jobs]
        self._seconds["sensitivity"] = self._spent(jobs)
        problem = problem_of(self._search.run, tables[0][1])
        study = open_study(self._search, problem, problems_of(self._search, tables[0][1]), self._output)
        results = SearchResults(self._search, study, problem, tables, self._data, self._store)
        broken = self._evaluate(study, problem, results)
        record = self._save(results)
        if broken:
            return SearchEnd(record, broken)
        ends = self._confirm(record, problem, results.training_steps())
        record = self._save(results, time.time())
        self._recording.send_search(record)
        return SearchEnd(record, ends)

    def _sensitivity_jobs(self) -> list[Job]:
        return [sensitivity_job(run, self._data) for run in (self._search.run, *self._search.predictors)]

    def _launched(self, jobs: list[Job], on_end: Callable[[JobEnd], None]) -> list[JobEnd]:
        sweep = Sweep(jobs, self._store, self._estimator.seconds)
        display = display_of(sweep, self._store, self._workers, self._console)
        with display.showing():
            return launch(sweep, self._pool, on_end, [display])

    def _spent(self, jobs: list[Job]) -> float:
        stages = {stage.id: stage for job in jobs for stage in job.stages if stage.kind in ("warm_up", "sensitivity")}
        return round(sum(float(self._store.result(name).get("seconds", 0.0)) for name in stages), 3)

    def _evaluate(self, study: BitSearch, problem: Problem, results: SearchResults) -> list[JobEnd]:
        """Evaluations that could not be done."""
        search, prices = self._search, Prices(self._search.run, problem)

        def save() -> None:
            self._save(results)

        driver = SearchDriver(search, study, prices, problem.decisions, self._data, self._store, save)
        sweep = Sweep([], self._store, self._estimator.seconds)
        expected = evaluation_cost(search, named_bits(problem.decisions, uniform(problem).bits), self._estimator)
        state = SearchState(driver, sweep, search.config.evaluations, expected, self._workers)
        display = search_display(driver, sweep, self._store, self._workers, self._console, state)
        with display.showing():
            launch(sweep, self._pool, lambda end: None, [driver, display], driver.more)
        return driver.broken

    def _confirm(self, record: SearchRecord, problem: Problem, steps: int) -> list[JobEnd]:
        """Train and judge the winner and the baselines on the seeds that the search has not seen."""
        rows = confirmation(self._search, record, problem, steps)
        self._confirmed = {name: [run.key() for run in runs] for name, runs in rows.items()}
        distinct: dict[str, RunConfig] = {}
        for run in (run for runs in rows.values() for run in runs):
            distinct.setdefault(run.key(), run)
        return self._launched(jobs_of(distinct.values()), self._recording) if distinct else []

    def _save(self, results: SearchResults, finished: float = 0.0) -> SearchRecord:
        record = results.record(self._started, self._seconds, self._confirmed)
        record = with_times(record, self._output.search(self._search.name), finished)
        self._output.save_search(record)
        return record


def open_study(
    search: Search, problem: Problem, problems: Problem | Callable[[float], Problem], output: Output
) -> BitSearch:
    """Raises ConfigError: a study of that name was begun with another problem or other settings."""
    known = known_allocations(search, problem)
    folder = output.search_folder(search.name)
    folder.mkdir(parents=True, exist_ok=True)
    return BitSearch(
        problems, search.config, storage=search.config.storage or folder / JOURNAL, study_name=search.name, known=known
    )


def study_location(search: Search, output: Output) -> Path | None:
    """Of the journal file; None where the study lies in a database."""
    return None if search.config.storage else output.search_folder(search.name) / JOURNAL


def evaluation_cost(search: Search, bits: dict[str, int], estimator: Estimator) -> float:
    """Seconds that an evaluation takes on average, estimated: later rungs see the share that is kept."""
    data, share, total = data_fingerprint(search.run.data), 1.0, 0.0
    for rung in search.config.rungs:
        job = evaluation_job(search, 0, "estimate", bits, rung.steps, data)
        total += share * sum(estimator.seconds(stage) for stage in own_stages(job))
        share *= rung.keep
    return total


def confirmation(search: Search, record: SearchRecord, problem: Problem, steps: int) -> dict[str, list[RunConfig]]:
    """{row: its runs, one a seed}: the baselines, the search's winner, and the exact allocation trained for as many
    steps more as the evaluations took together (`steps`). Equal allocations are equal runs, under the first name."""
    bits: dict[str, Bits] = {name: allocate(problem, name).bits for name in BASELINES}
    winner = next((e for e in record.evaluations if e.number == record.winner), None)
    if winner is not None:
        bits[WINNER] = tuple(winner.bits[decision] for decision in problem.decisions)
    rows = {name: _runs(search, problem, name, of, 0) for name, of in bits.items()}
    if search.confirm_longer and steps:
        rows[LONGER] = _runs(search, problem, LONGER, bits["exact"], steps)
    return {name: runs for name, runs in rows.items() if runs}


def _runs(search: Search, problem: Problem, name: str, bits: Bits, more_steps: int) -> list[RunConfig]:
    train = search.steps(search.run.train.steps + more_steps)
    named = named_bits(problem.decisions, bits)
    return [search.run_with(named, name, seed=seed, train=train) for seed in search.config.confirm_seeds]
