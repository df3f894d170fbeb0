"""The search by ask, report and finish."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from itertools import accumulate
from math import isfinite
from pathlib import Path
from typing import Any, Literal

import numpy as np
import optuna
from optuna.trial import TrialState, create_trial

from robuq.ampn.budgeted_space import search_space
from robuq.ampn.problem import Bits, Problem
from robuq.ampn.ranking import is_among_best, pareto_front
from robuq.ampn.search.identity import check_evaluations_grow, check_same_search, search_identity
from robuq.ampn.search.samplers import Draw, SamplerStudy, distribution, sampler_settings
from robuq.ampn.search.study import STATES, end_like, open_storage, open_study, trial_id
from robuq.config import ConfigError, SearchConfig

Verdict = Literal["go_on", "pruned"]

STALE = 20  # duplicates in a row, after which proposals are drawn at random until one is new
EXHAUSTED = 100  # duplicates in a row at random, after which the space has no more


@dataclass(frozen=True)
class Proposal:
    """One allocation to evaluate."""

    number: int  # of the evaluation, from 0
    bits: Bits
    source: str  # name of a known allocation, or of the sampler
    params: dict[str, float]  # empty for a known allocation that the space cannot express
    values: dict[int, float]  # rungs reported before the search was opened again: steps -> loss


class BitSearch:
    """A search over the allocations of one problem, or with two objectives of the problems of a range of budgets.

    Args:
        problem: with two objectives, a function from the budget's limit to the problem.
        storage: a journal file, the address of a database (text), or None to keep it in memory.
        known: allocations to evaluate first, in this order and never pruned, by name.

    Raises:
        ConfigError: the study exists and was begun with another configuration, problem or known allocations. Only
            `evaluations` may grow; where it is kept and how it is confirmed is not asked.
    """

    def __init__(
        self,
        problem: Problem | Callable[[float], Problem],
        config: SearchConfig,
        *,
        storage: Path | str | None,
        study_name: str,
        known: Mapping[str, Bits],
    ) -> None:
        optuna.logging.set_verbosity(optuna.logging.ERROR)
        self.config, self.name = config, study_name
        self.known = {name: tuple(bits) for name, bits in known.items()}
        self._space, self._problem = search_space(problem, config)
        self._distributions = {name: distribution(p) for name, p in self._space.parameters().items()}
        for bits in self.known.values():
            self._problem.choice_of(bits)
        self._in_flight: set[int] = set()
        self._store = open_storage(storage)
        self._study = open_study(self._store, study_name, len(config.objectives))
        self._sampler_study = SamplerStudy(len(config.objectives))
        self._claim()
        self._settle_left_overs()

    def ask(self) -> Proposal | None:
        """The next allocation; None when enough were asked for, or nothing new comes any more.

        First what an interrupted search left unfinished, then the known allocations, then the sampler's.
        """
        evaluations = self._evaluations()
        for number, trial in evaluations.items():
            if trial.state == TrialState.RUNNING and number not in self._in_flight:
                return self._hand_out(trial)
        if len(evaluations) >= self.config.evaluations:
            return None
        asked = {_bits(trial): number for number, trial in evaluations.items()}
        for name, bits in self.known.items():
            if bits not in asked:
                return self._hand_out(self._enter({"number": len(evaluations)}, bits, self._draw_known(name, bits)))
        return self._draw_new(asked)

    def report(self, number: int, rung_steps: int, value: float) -> Verdict:
        """The loss at a rung, and whether the evaluation goes on from it.

        It goes on if fewer than keep * n of the n losses seen at that rung so far are lower, its own and those of
        known allocations among the n. It also goes on while n < prune_after, and if it is a known allocation. A loss
        that is not finite fails the evaluation, and the verdict is "pruned" too: do not go on.

        Source: asynchronous successive halving (Li et al., 2020), but what was pruned is not promoted later.
        """
        trial = self._running(number)
        if rung_steps in trial.intermediate_values:
            return "go_on"  # decided before the search was opened again
        if not isfinite(value):
            self.fail(number, f"the loss is {value} after {rung_steps} steps")
            return "pruned"
        if not self._is_to_prune(trial, rung_steps, value):
            self._set_value(trial, rung_steps, value)
            return "go_on"
        self._set_attr(trial, "pruned_at", [rung_steps, value])
        self._prune(trial, rung_steps, value)
        return "pruned"

    def finish(self, number: int, values: float | Sequence[float]) -> None:
        """The loss at the last rung, or (loss, average bits or BOPs). What is not finite fails the evaluation.

        Raises:
            ValueError: not as many values as objectives.
        """
        trial, told = self._running(number), list(values) if isinstance(values, Sequence) else [values]
        if len(told) != len(self.config.objectives):
            raise ValueError(f"got {len(told)} value(s): the objectives are {', '.join(self.config.objectives)}")
        if not all(map(isfinite, told)):
            self.fail(number, f"{', '.join(self.config.objectives)} = {', '.join(map(str, told))}")
            return
        steps = self.config.rungs[-1].steps
        if steps not in trial.intermediate_values:
            self._set_value(trial, steps, told[0])
        self._tell(trial, TrialState.COMPLETE, told)

    def fail(self, number: int, reason: str) -> None:
        """The evaluation has no value. It counts, and is not asked for again."""
        trial = self._running(number)
        self._set_attr(trial, "reason", reason)
        self._tell(trial, TrialState.FAIL, None)

    # What came of it

    def evaluations(self) -> list[dict[str, Any]]:
        """Plain rows in the order of asking.

        number, source, bits {decision: bits}, params {name: value}, values {rung's steps as text: loss}, objectives
        (list; None unless finished), state (running, finished, pruned, failed), reason (text; None unless failed).
        """
        return [self._row(trial) for trial in self._evaluations().values()]

    def baselines(self) -> dict[str, int]:
        """{name of a known allocation: number of the evaluation of its bits}. Two names may share one."""
        numbers = {_bits(trial): number for number, trial in self._evaluations().items()}
        return {name: numbers[bits] for name, bits in self.known.items() if bits in numbers}

    def history(self) -> list[dict[str, Any]]:
        """Of each finished evaluation, in the order of asking: number, value (loss), best (least loss up to it)."""
        finished = self._finished()
        bests = accumulate((values[0] for values in finished.values()), min)
        return [
            {"number": number, "value": values[0], "best": best}
            for (number, values), best in zip(finished.items(), bests, strict=True)
        ]

    def best(self) -> int | None:
        """The finished evaluation of least loss at the last rung, at ties the first; None before any is finished."""
        finished = self._finished()
        return min(finished, key=lambda number: finished[number][0], default=None)

    def front(self) -> list[int]:
        """The finished evaluations that no other dominates, in the order of asking."""
        finished = self._finished()
        numbers = list(finished)
        return [numbers[index] for index in pareto_front(list(finished.values()))]

    def sampler_settings(self) -> dict[str, Any]:
        """Plain data: what the proposals depend on beside the problem."""
        return {
            "sampler": self.config.sampler,
            "seed": self.config.seed,
            "seed_of_proposal": "numpy SeedSequence((seed, trials before))",
            "settings": sampler_settings(self.config.sampler, self._distributions),
            "duplicates_before_random": STALE,
            "random_duplicates_before_end": EXHAUSTED,
            "parameters": {name: str(distribution) for name, distribution in self._distributions.items()},
            "optuna": optuna.__version__,
        }

    # Proposals

    def _draw_known(self, name: str, bits: Bits) -> Draw:
        params = self._space.encode(bits)
        if self._space.decode(params) != bits:
            return Draw(name, {}, {})
        return Draw(name, params, self._draw(self.config.sampler, params).notes)

    def _draw_new(self, asked: dict[Bits, int]) -> Proposal | None:
        """Draw until something new comes, at random after many duplicates."""
        for sampler in self._samplers_left():
            draw = self._draw(sampler)
            bits = self._space.decode(draw.params)
            if bits not in asked:
                return self._hand_out(self._enter({"number": len(asked)}, bits, draw))
            self._enter({"same_as": asked[bits]}, bits, draw, self._evaluations()[asked[bits]])
        return None

    def _samplers_left(self) -> list[str]:
        """Whose proposals to try before the space is given up; duplicates before a kill count."""
        trials, row = self._trials(), 0
        while row < len(trials) and "same_as" in trials[-1 - row].user_attrs:
            row += 1
        return [*[self.config.sampler] * STALE, *["random"] * EXHAUSTED][row:]

    def _draw(self, name: str, fixed: dict[str, float] | None = None) -> Draw:
        """What is drawn must be entered: the sampler's study has it already."""
        trials = self._trials()
        self._sampler_study.update([trial for trial in trials if trial.params])
        seed = int(np.random.SeedSequence((self.config.seed, len(trials))).generate_state(1)[0])
        return self._sampler_study.draw(name, seed, self._distributions, fixed)

    def _enter(self, role: dict[str, int], bits: Bits, draw: Draw, like: Any = None) -> Any:
        """A trial by one record of the storage: it runs, or is at the state and values of `like`."""
        running = like is None or like.state == TrialState.RUNNING
        ended = {} if running else {"values": like.values, "intermediate_values": like.intermediate_values}
        trial = create_trial(
            state=TrialState.RUNNING if running else like.state,
            params=draw.params,
            distributions=self._distributions if draw.params else {},
            user_attrs={**role, "bits": list(bits), "source": draw.source},
            system_attrs=draw.notes,
            **ended,
        )
        self._study.add_trial(trial)
        return self._trials()[-1]

    def _hand_out(self, trial: Any) -> Proposal:
        number, source = trial.user_attrs["number"], trial.user_attrs["source"]
        self._in_flight.add(number)
        return Proposal(number, _bits(trial), source, dict(trial.params), dict(trial.intermediate_values))

    # The study

    def _trials(self) -> list[Any]:
        return list(self._study.get_trials(deepcopy=False))

    def _evaluations(self) -> dict[int, Any]:
        """{number: trial}, ascending: evaluations are entered in the order of their numbers."""
        return {trial.user_attrs["number"]: trial for trial in self._trials() if "number" in trial.user_attrs}

    def _finished(self) -> dict[int, list[float]]:
        """{number: objectives}"""
        evaluations = self._evaluations().items()
        return {number: trial.values for number, trial in evaluations if trial.state == TrialState.COMPLETE}

    def _running(self, number: int) -> Any:
        trial = self._evaluations().get(number)
        if trial is None or trial.state != TrialState.RUNNING:
            state = "was never asked for" if trial is None else f"is {STATES[trial.state]}"
            raise ValueError(f"evaluation {number} {state}: only one that runs takes values")
        return trial

    def _row(self, trial: Any) -> dict[str, Any]:
        attrs = trial.user_attrs
        return {
            "number": attrs["number"],
            "source": attrs["source"],
            "bits": dict(zip(self._problem.decisions, _bits(trial), strict=True)),
            "params": dict(trial.params),
            "values": {str(steps): value for steps, value in sorted(trial.intermediate_values.items())},
            "objectives": trial.values if trial.state == TrialState.COMPLETE else None,
            "state": STATES[trial.state],
            "reason": attrs.get("reason") if trial.state == TrialState.FAIL else None,
        }

    def _set_value(self, trial: Any, steps: int, value: float) -> None:
        self._store.set_trial_intermediate_value(trial_id(self._store, self.name, trial), steps, value)

    def _set_attr(self, trial: Any, name: str, value: Any) -> None:
        self._store.set_trial_user_attr(trial_id(self._store, self.name, trial), name, value)

    def _tell(self, trial: Any, state: TrialState, values: list[float] | None) -> None:
        """End an evaluation and all duplicates that wait for it."""
        self._study.tell(trial.number, values, state)
        self._in_flight.discard(trial.user_attrs["number"])
        self._settle_duplicates()

    def _settle_duplicates(self) -> None:
        evaluations = self._evaluations()
        for trial in self._trials():
            evaluation = evaluations.get(trial.user_attrs.get("same_as", -1))
            if evaluation and trial.state == TrialState.RUNNING and evaluation.state.is_finished():
                end_like(self._store, self._study, trial, evaluation)

    def _is_to_prune(self, trial: Any, steps: int, value: float) -> bool:
        keep = {rung.steps: rung.keep for rung in self.config.rungs}
        if steps not in keep:
            raise ValueError(f"no rung has {steps} steps: there are {', '.join(map(str, keep))}")
        others = [t.intermediate_values[steps] for t in self._evaluations().values() if steps in t.intermediate_values]
        if _bits(trial) in self.known.values() or len(others) + 1 < self.config.prune_after:
            return False
        return not is_among_best(value, others, keep[steps])

    def _prune(self, trial: Any, steps: int, value: float) -> None:
        self._set_value(trial, steps, value)
        self._tell(trial, TrialState.PRUNED, None)

    def _settle_left_overs(self) -> None:
        """End what a kill cut short between two records: a decided pruning, duplicates of what has ended."""
        for trial in self._evaluations().values():
            if trial.state == TrialState.RUNNING and "pruned_at" in trial.user_attrs:
                self._prune(trial, *trial.user_attrs["pruned_at"])
        self._settle_duplicates()

    # Identity

    def _claim(self) -> None:
        """Note in the study whose it is.

        Raises:
            ConfigError: it is another search's.
        """
        mine, attrs = search_identity(self.config, self._problem, self.known), self._study.user_attrs
        if "identity" in attrs:
            check_same_search(self.name, attrs["identity"], mine)
            check_evaluations_grow(self.name, attrs["evaluations"], self.config.evaluations)
        elif self._trials():
            raise ConfigError(f"study {self.name!r} is not a search for bits: choose another name")
        labels = {"name": self.name, "space": self.config.space, "budget": mine["budget"]}
        digests = {"config_digest": self.config.updated(storage=None).digest(), "evaluations": self.config.evaluations}
        for key, value in {**labels, **digests, "identity": mine}.items():
            self._study.set_user_attr(key, value)


def _bits(trial: Any) -> Bits:
    return tuple(trial.user_attrs["bits"])
