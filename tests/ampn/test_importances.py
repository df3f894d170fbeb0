"""Which parameters of a space decide: what is known of made-up losses, and what cannot be asked."""

from __future__ import annotations

import numpy as np
import optuna
import pytest
from optuna.distributions import FloatDistribution, IntDistribution

from robuq.ampn.search import FEWEST, importances

SPACE = {
    "a": str(FloatDistribution(0.125, 8.0, log=True)),
    "b": str(FloatDistribution(0.0, 1.0)),
    "c": str(IntDistribution(1, 8)),
}


def trials(count: int) -> list[tuple[dict[str, float], float]]:
    """The loss is `b`'s alone."""
    rng = np.random.default_rng(0)
    drawn = [
        {"a": float(2 ** rng.uniform(-3, 3)), "b": rng.random(), "c": float(rng.integers(1, 9))} for _ in range(count)
    ]
    return [(params, (params["b"] - 0.3) ** 2) for params in drawn]


def test_the_parameter_that_alone_decides_has_the_largest_share() -> None:
    shares = importances(SPACE, trials(100))
    assert set(shares) == set(SPACE)
    assert sum(shares.values()) == pytest.approx(1)
    assert shares["b"] > 0.8


def test_shares_do_not_depend_on_the_unit_of_the_loss() -> None:
    own = importances(SPACE, trials(60))
    assert importances(SPACE, [(params, 1e-4 * value + 3) for params, value in trials(60)]) == own


def test_shares_are_those_of_optuna_s_dashboard_where_a_tenth_is_enough() -> None:
    """Its evaluator with its defaults, on a study of its own."""
    study = optuna.create_study()
    for params, value in trials(100):
        study.add_trial(
            optuna.trial.create_trial(
                params={**params, "c": int(params["c"])},
                distributions={
                    "a": FloatDistribution(0.125, 8.0, log=True),
                    "b": FloatDistribution(0.0, 1.0),
                    "c": IntDistribution(1, 8),
                },
                value=value,
            )
        )
    evaluator = optuna.importance.PedAnovaImportanceEvaluator()
    theirs = optuna.importance.get_param_importances(study, evaluator=evaluator)
    assert importances(SPACE, trials(100)) == pytest.approx(theirs)


def test_too_few_trials_are_named() -> None:
    with pytest.raises(ValueError, match=f"got {2 * FEWEST - 1} trials"):
        importances(SPACE, trials(2 * FEWEST - 1))


@pytest.mark.parametrize("text", ["", "__import__('os')", "Float(high=1)", "FloatDistribution", "1 +"])
def test_a_parameter_without_a_distribution_is_named(text: str) -> None:
    with pytest.raises(ValueError, match="is no distribution"):
        importances({**SPACE, "a": text}, trials(20))
