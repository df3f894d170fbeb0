"""How much each parameter of a search matters."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import optuna
from optuna.importance import PedAnovaImportanceEvaluator, get_param_importances
from optuna.storages import InMemoryStorage
from optuna.trial import create_trial

from robuq.ampn.search.samplers import written_distribution
from robuq.ampn.search.study import open_study

TENTH, FEWEST = 0.1, 5  # the best of the trials, that importances set apart: this share, and at least so many


def importances(parameters: Mapping[str, str], trials: Sequence[tuple[Mapping[str, float], float]]) -> dict[str, float]:
    """{parameter: share}, summing to 1: by how much its density among the best trials differs from that among all.

    Best is the tenth of least value, and at least `FEWEST`. Source: PED-ANOVA (Watanabe et al., 2023), as Optuna's
    dashboard shows it.

    Args:
        parameters: the space, as `sampler_settings` writes it: {name: distribution as text}.
        trials: parameters and value of each; all of them have every parameter.

    Raises:
        ValueError: fewer than 2 * `FEWEST` trials, or the text of a parameter is no distribution.
    """
    if len(trials) < 2 * FEWEST:
        raise ValueError(f"got {len(trials)} trials: importances need at least {2 * FEWEST}")
    optuna.logging.set_verbosity(optuna.logging.ERROR)
    distributions = {name: written_distribution(text) for name, text in parameters.items()}
    study = open_study(InMemoryStorage(), "importances", objectives=1)
    study.add_trials(
        [create_trial(params=dict(params), distributions=distributions, value=value) for params, value in trials]
    )
    evaluator = PedAnovaImportanceEvaluator(target_quantile=max(TENTH, FEWEST / len(trials)))
    return dict(get_param_importances(study, evaluator=evaluator, params=list(distributions)))
