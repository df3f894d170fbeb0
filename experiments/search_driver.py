"""Between the study and the launch: proposals become jobs, ends of jobs become values of the study.

The study says what to evaluate next and who goes on to the next rung; the launch executes. Both can be killed at any
time: what was in flight is asked for again, and stages that are done are not done again.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Sequence
from typing import Any

from experiments.attempts import Outcome
from experiments.launch import Job, JobEnd
from experiments.search_file import Search
from experiments.search_problem import Prices, evaluation_job, own_stages, value_of
from robuq.ampn.problem import Bits
from robuq.ampn.search import BitSearch, Proposal
from robuq.stages import Stage, StageStore

JUDGED = ("diverged", "unusable")  # reasons of failures that would come again
MAX_BROKEN = 3  # evaluations that could not be done, before no more are begun


class SearchDriver:
    """Gives a launch its jobs (`more`) and, as its observer, tells the study how they ended."""

    def __init__(
        self,
        search: Search,
        study: BitSearch,
        prices: Prices,
        decisions: Sequence[str],
        data: str,
        store: StageStore,
        on_change: Callable[[], None],
    ) -> None:
        """`data`: the data set's fingerprint. `on_change` is called when an evaluation is over."""
        self._search, self._study, self._prices, self._store = search, study, prices, store
        self._decisions, self._data, self._on_change = tuple(decisions), data, on_change
        self._steps = [rung.steps for rung in search.config.rungs]
        self._under_way: dict[str, tuple[Proposal, int]] = {}  # id of the probe -> evaluation, rung
        self._promoted: list[tuple[Proposal, int]] = []  # evaluation, next rung
        self._exhausted = False
        self.states: Counter[str] = Counter(row["state"] for row in study.evaluations())
        del self.states["running"]
        self.messages: dict[str, str] = {}  # id of a probe that ended -> what came of it
        self.broken: list[JobEnd] = []  # nothing was learnt of these evaluations: the next command asks for them again

    # --- jobs out ---------------------------------------------------------------------------------------------

    def more(self, free: int) -> list[Job]:
        """Next rungs first: they wait for nobody. Then as many new evaluations as could start at once."""
        jobs = [self._job(*promoted) for promoted in self._promoted]
        self._promoted = []
        while len(jobs) < free and not self._exhausted and len(self.broken) < MAX_BROKEN:
            proposal = self._study.ask()
            if proposal is None:
                self._exhausted = True
            else:
                jobs.append(self._job(proposal, self._first_rung(proposal)))
        return jobs

    def _first_rung(self, proposal: Proposal) -> int:
        """The lowest without a value; rungs that an earlier command reported are not reported again."""
        left = [rung for rung, steps in enumerate(self._steps) if steps not in proposal.values]
        return left[0] if left else len(self._steps) - 1

    def _job(self, proposal: Proposal, rung: int) -> Job:
        bits = dict(zip(self._decisions, proposal.bits, strict=True))
        job = evaluation_job(self._search, proposal.number, proposal.source, bits, self._steps[rung], self._data)
        self._under_way[job.stages[-1].id] = (proposal, rung)
        return job

    # --- ends in ----------------------------------------------------------------------------------------------

    def stage_started(self, stage: Stage) -> None:
        """Nothing to tell the study."""

    def stage_ended(self, outcome: Outcome) -> None:
        """Nothing to tell the study."""

    def job_ended(self, end: JobEnd) -> None:
        probe = end.job.stages[-1].id
        proposal, rung = self._under_way.pop(probe)
        if end.failure is not None:
            self._fail(end, proposal, probe, end.failure)
            return
        value = value_of(end.job, self._store)
        if rung < len(self._steps) - 1:
            self._report(proposal, rung, probe, value)
        else:
            self._finish(proposal, probe, value)

    def _fail(self, end: JobEnd, proposal: Proposal, probe: str, failure: str) -> None:
        """A training that diverges says something of its allocation; a lost worker or a full disk does not."""
        reasons = [self._store.failure(stage) for stage in end.job.stages if not self._store.is_done(stage)]
        if any(reason and reason["reason"] in JUDGED for reason in reasons):
            self._study.fail(proposal.number, failure)
            self._over("failed", probe, failure)
        else:
            self.broken.append(end)
            self.messages[probe] = f"BROKEN: {failure}"

    def _report(self, proposal: Proposal, rung: int, probe: str, value: float) -> None:
        if self._study.report(proposal.number, self._steps[rung], value) == "pruned":
            self._over("pruned", probe, f"{value:.5f}, pruned")
        else:
            self._promoted.append((proposal, rung + 1))
            self.messages[probe] = f"{value:.5f}, goes on"

    def _finish(self, proposal: Proposal, probe: str, value: float) -> None:
        objectives = self._search.config.objectives
        self._study.finish(proposal.number, self._prices.objectives(objectives, value, proposal.bits))
        self._over("finished", probe, f"{value:.5f}")

    def _over(self, state: str, probe: str, message: str) -> None:
        self.states[state] += 1
        self.messages[probe] = message
        self._on_change()

    # --- what a display shows ---------------------------------------------------------------------------------

    @property
    def evaluations_left(self) -> int:
        """That were not asked for yet."""
        if self._exhausted or len(self.broken) >= MAX_BROKEN:
            return 0
        waiting = len({proposal.number for proposal, _ in (*self._under_way.values(), *self._promoted)})
        return max(0, self._search.config.evaluations - self.states.total() - waiting)

    def best(self) -> tuple[int, str, float] | None:
        """Number, source and loss of the best at the last rung."""
        number = self._study.best()
        if number is None:
            return None
        row = next(row for row in self._study.evaluations() if row["number"] == number)
        return number, str(row["source"]), float(row["values"][str(self._steps[-1])])


def evaluation_seconds(
    search: Search, row: dict[str, Any], bits: dict[str, int], data: str, store: StageStore
) -> tuple[float, int]:
    """(seconds, training steps) that the stages of an evaluation took when they ran; shared stages are not its own."""
    seconds, steps = 0.0, 0
    for text in row["values"]:
        rung = int(text)
        job = evaluation_job(search, row["number"], row["source"], bits, rung, data)
        done = [stage for stage in own_stages(job) if store.is_done(stage)]
        seconds += sum(float(store.result(stage.id).get("seconds", 0.0)) for stage in done)
        steps += rung
    return seconds, steps


def named_bits(decisions: Sequence[str], bits: Bits) -> dict[str, int]:
    return dict(zip(decisions, bits, strict=True))
