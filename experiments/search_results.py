"""From a study to its SearchRecord."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from itertools import combinations
from typing import Any

from scipy.stats import spearmanr

from experiments.search_driver import evaluation_seconds, named_bits
from experiments.search_file import Search
from experiments.search_problem import Prices, ampn_of, problem_of
from robuq.ampn.allocate import ALLOCATORS, allocate
from robuq.ampn.problem import Bits, Problem
from robuq.ampn.search import BitSearch
from robuq.ampn.table import SensitivityTable
from robuq.config import Measure, RunConfig
from robuq.record.collect import git_state, versions
from robuq.record.mlflow import redacted
from robuq.record.search_record import Evaluation, Predictor, RankCorrelation, SearchRecord
from robuq.stages import StageStore

MEASURES: tuple[Measure, ...] = ("loss", "output_error", "second_order")
ENDED = ("finished", "pruned", "failed")
Tables = Sequence[tuple[RunConfig, SensitivityTable]]  # the search's own first


class SearchResults:
    """Builds the record of a search as it stands."""

    def __init__(
        self, search: Search, study: BitSearch, problem: Problem, tables: Tables, data: str, store: StageStore
    ) -> None:
        """`tables`: the search's own sensitivity first, then those of its predictors."""
        self._search, self._study, self._problem, self._tables = search, study, problem, tables
        self._data, self._store = data, store
        self._prices = Prices(search.run, problem)
        self._over: dict[int, Evaluation] = {}  # an evaluation that is over does not change
        self._baselines: dict[str, dict[str, int]] = {
            name: self._named(allocate(problem, name).bits) for name in ALLOCATORS
        }

    def record(self, started: float, seconds: Mapping[str, float], confirmed: Mapping[str, list[str]]) -> SearchRecord:
        """Of all evaluations that are over. `confirmed`: keys of the runs by row."""
        evaluations = self._evaluations()
        winner = self._winner(evaluations)
        baselines = self._baselines
        search, run = self._search, self._search.run
        return SearchRecord(
            name=search.name,
            description=search.description,
            dataset=run.data.name,
            variant=run.variant,
            seed=run.seed,
            config=run.model_dump(mode="json"),
            search=self._settings(),
            budget=ampn_of(run).budget.model_dump(mode="json"),
            sampler_settings=self._study.sampler_settings(),
            evaluations=evaluations,
            winner=winner.number if winner else None,
            equal_to=[name for name, bits in baselines.items() if winner and winner.bits == bits],
            front=self._study.front() if len(search.config.objectives) > 1 else [],
            rank_correlations=self._rank_correlations(evaluations),
            sensitivity=self._tables[0][1].model_dump(mode="json"),
            predictors=self._predictors(evaluations),
            baselines=baselines,
            confirmed=dict(confirmed),
            seconds={**seconds, "evaluations": round(sum(e.seconds for e in evaluations), 3)},
            git=git_state(),
            versions=versions(),
            started=started,
        )

    def training_steps(self) -> int:
        """That all evaluations took together."""
        return sum(self._cost(row)[1] for row in self._study.evaluations())

    def _cost(self, row: Mapping[str, Any]) -> tuple[float, int]:
        return evaluation_seconds(self._search, dict(row), dict(row["bits"]), self._data, self._store)

    def _settings(self) -> dict[str, Any]:
        """A storage's URL may hold a password."""
        settings = self._search.config.model_dump(mode="json")
        storage = settings["storage"]
        return {**settings, "storage": redacted(storage) if storage else None}

    def _evaluations(self) -> list[Evaluation]:
        for row in self._study.evaluations():
            if row["state"] in ENDED and row["number"] not in self._over:
                self._over[row["number"]] = self._evaluation(row)
        return [self._over[number] for number in sorted(self._over)]

    def _evaluation(self, row: Mapping[str, Any]) -> Evaluation:
        bits = tuple(row["bits"][decision] for decision in self._problem.decisions)
        return Evaluation(
            number=row["number"],
            source=row["source"],
            bits=self._named(bits),
            cost=self._problem.cost_of(bits),
            average_bits=self._prices.average_bits(bits),
            bops=self._prices.bops(bits),
            predicted=self._problem.damage_of(bits),
            values=row["values"],
            state=row["state"],
            failure=row["reason"],
            seconds=round(self._cost(row)[0], 3),
            params={name: float(value) for name, value in row["params"].items()},
        )

    def _named(self, bits: Bits) -> dict[str, int]:
        return named_bits(self._problem.decisions, bits)

    def _winner(self, evaluations: Sequence[Evaluation]) -> Evaluation | None:
        """The least loss at the last rung among those within the budget, at ties the first."""
        last = self._last_rung()
        within = [
            evaluation
            for evaluation in evaluations
            if evaluation.state == "finished" and last in evaluation.values and self._fits(evaluation)
        ]
        return min(within, key=lambda evaluation: (evaluation.values[last], evaluation.number), default=None)

    def _fits(self, evaluation: Evaluation) -> bool:
        return self._problem.is_feasible(self._bits(evaluation))

    def _bits(self, evaluation: Evaluation) -> Bits:
        return tuple(evaluation.bits[decision] for decision in self._problem.decisions)

    def _last_rung(self) -> str:
        return str(self._search.config.rungs[-1].steps)

    def _rank_correlations(self, evaluations: Sequence[Evaluation]) -> list[RankCorrelation]:
        steps = [rung.steps for rung in self._search.config.rungs]
        rows = []
        for low, high in combinations(steps, 2):
            both = [e.values for e in evaluations if str(low) in e.values and str(high) in e.values]
            spearman = rank_correlation([v[str(low)] for v in both], [v[str(high)] for v in both])
            rows.append(RankCorrelation(low=low, high=high, spearman=spearman, n=len(both)))
        return rows

    def _predictors(self, evaluations: Sequence[Evaluation]) -> list[Predictor]:
        last = self._last_rung()
        reached = [evaluation for evaluation in evaluations if last in evaluation.values]
        values = [evaluation.values[last] for evaluation in reached]
        rows = []
        for index, (run, table) in enumerate(self._tables):
            problem, used = problem_of(run, table), ampn_of(run).measure
            for measure in MEASURES:
                predicting = problem.with_damage(table.matrix(measure))
                predicted = [predicting.damage_of(self._bits(evaluation)) for evaluation in reached]
                row = Predictor(
                    warm_up_steps=table.warm_up_steps,
                    reference=table.reference,
                    measure=measure,
                    spearman=rank_correlation(predicted, values),
                    n=len(reached),
                    searched=index == 0 and measure == used,
                    predicted={str(one.number): damage for one, damage in zip(reached, predicted, strict=True)},
                )
                rows.append(row)
        return rows


def rank_correlation(first: Sequence[float], second: Sequence[float]) -> float | None:
    """Spearman's coefficient; None below three pairs, or where one side is constant."""
    if len(first) < 3 or len(set(first)) == 1 or len(set(second)) == 1:
        return None
    return float(spearmanr(first, second).statistic)


def with_times(record: SearchRecord, known: SearchRecord | None, finished: float) -> SearchRecord:
    """The record with its time of finishing, or the known one where it says the same: a search that is run again after
    its end changes nothing. A clock that was set back in between makes no search end before it began."""
    timeless = {"git", "versions", "started", "finished", "seconds"}
    if known is not None and known.finished and _plain(record, timeless) == _plain(known, timeless):
        return known
    return record.updated(finished=max(finished, record.started) if finished else finished)


def _plain(record: SearchRecord, without: set[str]) -> dict[str, Any]:
    return record.model_dump(mode="json", exclude=without)
