"""Optuna's samplers, made anew for every proposal, and the copy of the study that they see."""

from __future__ import annotations

import ast
import warnings
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from optuna.distributions import FloatDistribution, IntDistribution
from optuna.exceptions import ExperimentalWarning
from optuna.samplers import NSGAIISampler, RandomSampler, TPESampler
from optuna.storages import InMemoryStorage
from optuna.trial import TrialState

from robuq.ampn.policy import Parameter
from robuq.ampn.search.cmaes_sampler import PlainCmaEsSampler
from robuq.ampn.search.study import end_like, open_study

OF_STUDY = "of the study"  # system attribute of a trial: see SamplerStudy
SAMPLERS: dict[str, tuple[Any, dict[str, Any]]] = {
    "random": (RandomSampler, {}),
    "tpe": (TPESampler, {"n_startup_trials": 10, "n_ei_candidates": 96, "multivariate": True, "constant_liar": True}),
    "nsga2": (NSGAIISampler, {"population_size": 8, "crossover_prob": 0.9, "swapping_prob": 0.5}),
    "cmaes": (PlainCmaEsSampler, {"popsize": None, "consider_pruned_trials": True, "warn_independent_sampling": False}),
}


@dataclass(frozen=True)
class Draw:
    """What a sampler proposes, before it is decoded."""

    source: str
    params: dict[str, float]
    notes: dict[str, Any]  # the sampler's, for its next draws


class SamplerStudy:
    """What samplers see: a copy, in memory, of the study's trials that have parameters, in their order.

    An entry of the study's system attributes that a draw makes (the parents of a generation of NSGA-II) goes into the
    notes of that draw, so that a copy made later has it too.
    """

    def __init__(self, objectives: int) -> None:
        self._store = InMemoryStorage()
        self._study = open_study(self._store, "copy", objectives)
        self._id = self._store.get_study_id_from_name("copy")

    def update(self, originals: Sequence[Any]) -> None:
        """Add the trials that are new and end those that have ended."""
        copies = self._study.get_trials(deepcopy=False)
        for copy, original in zip(copies, originals, strict=False):
            if copy.state == TrialState.RUNNING and original.state.is_finished():
                end_like(self._store, self._study, copy, original)
        for original in originals[len(copies) :]:
            self._study.add_trial(original)
            for key, value in original.system_attrs.get(OF_STUDY, {}).items():
                self._store.set_study_system_attr(self._id, key, value)

    def draw(self, name: str, seed: int, distributions: dict[str, Any], fixed: dict[str, float] | None) -> Draw:
        """By a new sampler, as a running trial.

        Optuna draws nothing for a trial whose parameters are fixed. NSGA-II has to be asked all the same, or the trial
        has no generation and is never a parent.
        """
        before = self._store.get_study_system_attrs(self._id).keys()
        self._study.sampler = new_sampler(name, seed, distributions)
        if fixed:
            self._study.enqueue_trial(fixed)
        trial = self._study.ask(distributions)
        if fixed and name == "nsga2":
            _ = trial.relative_params
        drawn = self._study.get_trials(deepcopy=False)[-1]
        after = self._store.get_study_system_attrs(self._id)
        new = {key: value for key, value in after.items() if key not in before}
        return Draw(name, drawn.params, {**drawn.system_attrs, OF_STUDY: new} if new else drawn.system_attrs)


def distribution(parameter: Parameter) -> Any:
    if parameter.integer:
        return IntDistribution(int(parameter.low), int(parameter.high))
    return FloatDistribution(parameter.low, parameter.high, log=parameter.log)


def written_distribution(text: str) -> Any:
    """From `FloatDistribution(high=8.0, log=True, low=0.125, step=None)`.

    Raises:
        ValueError: the text is nothing of the kind.
    """
    known = {kind.__name__: kind for kind in (FloatDistribution, IntDistribution)}
    try:
        call = ast.parse(text, mode="eval").body
        if isinstance(call, ast.Call) and isinstance(call.func, ast.Name) and call.func.id in known:
            given = {word.arg: ast.literal_eval(word.value) for word in call.keywords if word.arg}
            return known[call.func.id](**given)
    except SyntaxError:
        pass
    raise ValueError(f"{text!r} is no distribution: one of {', '.join(known)} with its bounds is")


def sampler_settings(name: str, distributions: dict[str, Any]) -> dict[str, Any]:
    widths = any(isinstance(distribution, IntDistribution) for distribution in distributions.values())
    return {**SAMPLERS[name][1], "with_margin": widths} if name == "cmaes" else dict(SAMPLERS[name][1])


def new_sampler(name: str, seed: int, distributions: dict[str, Any]) -> Any:
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", ExperimentalWarning)  # of CMA-ES: with_margin, consider_pruned_trials
        return SAMPLERS[name][0](seed=seed, **sampler_settings(name, distributions))
