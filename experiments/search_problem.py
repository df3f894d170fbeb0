"""What a search is to solve: the bit-allocation problem of its run, and the jobs that measure and evaluate."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence

import numpy as np

from experiments.launch import Job
from experiments.search_file import Search
from robuq.ampn.allocate import allocate
from robuq.ampn.problem import Bits, Problem, budget_cost, make_problem
from robuq.ampn.table import SensitivityTable
from robuq.config import BLOCK_ROLES, AmpnConfig, BitAllocation, Budget, ConfigError, RunConfig, decision_name
from robuq.cost import average_bits, layer_costs
from robuq.stages import Stage, StageStore, probe_stages, sensitivity_stages, warmed_probe_stages

SENSITIVITY_FILE = "sensitivity.json"  # in the folder of a sensitivity stage
OWN_KINDS = ("qat", "probe")  # stages of an evaluation that it shares with no other


def ampn_of(run: RunConfig) -> AmpnConfig:
    """Raises ValueError: the run's bits are not chosen by AMPN."""
    if run.ampn is None:
        raise ValueError(f"run {run.variant} has no ampn")
    return run.ampn


def check_budget(run: RunConfig, *limits: float) -> None:
    """Raises ConfigError: the run's budget, or one of its kind with another limit, cannot be reached."""
    ampn = ampn_of(run)
    decisions = tuple(decision_name(block, role) for block in range(run.model.num_layers) for role in BLOCK_ROLES)
    candidates = ampn.sensitivity.candidates
    cost = budget_cost(layer_costs(run.model, run.precision), decisions, candidates, ampn.budget)
    for limit in limits or (ampn.budget.limit,):
        Problem(decisions, candidates, np.zeros_like(cost), cost, limit, ampn.budget)


def check_search(search: Search) -> None:
    """What only the network's layers can tell. Raises ConfigError, one line."""
    check_budget(search.run, ampn_of(search.run).budget.limit, *(search.config.budget_range or ()))
    candidates = ampn_of(search.run).sensitivity.candidates
    for other in search.predictors:
        if ampn_of(other).sensitivity.candidates != candidates:
            raise ConfigError(f"predictors cannot change the candidates, which are {list(candidates)}")


# --- sensitivity ----------------------------------------------------------------------------------------------


def sensitivity_job(run: RunConfig, data: str) -> Job:
    return Job(run, sensitivity_stages(run, data), data)


def read_table(job: Job, store: StageStore) -> SensitivityTable:
    """Of a sensitivity job that has finished."""
    return SensitivityTable.load(store.folder(job.stages[-1].id) / SENSITIVITY_FILE)


def problem_of(run: RunConfig, table: SensitivityTable, limit: float | None = None) -> Problem:
    """The run's; `limit` in place of its budget's."""
    ampn = ampn_of(run)
    problem = make_problem(table, run.model, run.precision, ampn.budget, ampn.measure)
    return problem if limit is None else problem.with_limit(limit)


def problems_of(search: Search, table: SensitivityTable) -> Problem | Callable[[float], Problem]:
    """As the search takes it: the problem, or with two objectives that of each limit."""
    problem = problem_of(search.run, table)
    return problem if len(search.config.objectives) == 1 else problem.with_limit


def known_allocations(search: Search, problem: Problem) -> dict[str, Bits]:
    return {name: allocate(problem, name).bits for name in search.config.enqueue}


# --- evaluations ----------------------------------------------------------------------------------------------


def evaluation_job(search: Search, number: int, source: str, bits: Mapping[str, int], steps: int, data: str) -> Job:
    """One rung of one evaluation; without steps, the warmed-up network at these bits."""
    title = f"evaluation {number} ({source})"
    if not steps:
        stages = warmed_probe_stages(search.run, BitAllocation(bits=dict(bits)), data)
        return Job(search.run_with(bits, title), stages, data)
    run = search.run_with(bits, title, train=search.steps(steps))
    return Job(run, probe_stages(run, data), data)


def own_stages(job: Job) -> Sequence[Stage]:
    return [stage for stage in job.stages if stage.kind in OWN_KINDS]


def value_of(job: Job, store: StageStore) -> float:
    """The validation loss that the job's probe measured."""
    return float(store.result(job.stages[-1].id)["metrics"]["validation_loss"])


class Prices:
    """What allocations of a run cost, in every unit."""

    def __init__(self, run: RunConfig, problem: Problem) -> None:
        self._run, self._problem = run, problem
        count_fixed = problem.budget.count_fixed
        budget = Budget(limit=1.0, weights="bops", count_fixed=count_fixed)
        costs = layer_costs(run.model, run.precision)
        self._bops = budget_cost(costs, problem.decisions, problem.candidates, budget)

    def bops(self, bits: Bits) -> float:
        """10^9, of what the budget counts."""
        return float(self._bops[np.arange(len(bits)), self._problem.choice_of(bits)].sum())

    def average_bits(self, bits: Bits) -> dict[str, float]:
        allocation = BitAllocation(bits=dict(zip(self._problem.decisions, bits, strict=True)))
        costs = layer_costs(self._run.model, self._run.precision, allocation)
        means = {weights: average_bits(costs, weights) for weights in ("layers", "macs", "elements")}
        return {weights: mean for weights, mean in means.items() if mean is not None}

    def objectives(self, names: Sequence[str], loss: float, bits: Bits) -> list[float]:
        """Values of the search's objectives. The mean bits are weighted as the budget is, by MACs where it is BOPs."""
        weights = self._problem.budget.weights
        weighting = "macs" if weights == "bops" else weights
        prices: dict[str, Callable[[], float]] = {
            "loss": lambda: loss,
            "average_bits": lambda: self.average_bits(bits)[weighting],
            "bops": lambda: self.bops(bits),
        }
        return [prices[name]() for name in names]
