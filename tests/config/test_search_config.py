"""The configuration of a search: what it refuses, and in which words."""

from __future__ import annotations

from typing import Any

import pytest

from robuq.config import ConfigError, Rung, SearchConfig


def test_the_default_is_a_policy_search_of_one_rung_after_four_known_allocations() -> None:
    config = SearchConfig()
    assert (config.space, config.sampler, config.objectives) == ("policy", "tpe", ("loss",))
    assert config.rungs == (Rung(steps=0, keep=1.0),)
    assert config.enqueue == ("uniform", "greedy", "exact", "paper")


def test_plain_data_makes_the_same_value() -> None:
    config = SearchConfig(
        sampler="nsga2", objectives=("loss", "bops"), budget_range=(1.5, 3.0), confirm_seeds=(7, 8), evaluations=12
    )
    assert SearchConfig.parse(config.model_dump(mode="json")) == config


@pytest.mark.parametrize(
    ("values", "message"),
    [
        ({"rungs": [{"steps": 60}, {"steps": 60}]}, "rungs must ascend in steps without repetition, got [60, 60]"),
        ({"rungs": [{"steps": 60}, {"steps": 0}]}, "rungs must ascend in steps without repetition, got [60, 0]"),
        ({"rungs": [{"steps": 0, "keep": 0.5}]}, "nothing comes after the last rung: its keep must be 1, got 0.5"),
        ({"rungs": []}, "rungs"),
        ({"rungs": [{"steps": 0, "keep": 0.0}, {"steps": 1}]}, "rungs.0.keep"),
        ({"evaluations": 0}, "evaluations"),
        ({"enqueue": ["exact", "exact"]}, "enqueue repeats a value: ['exact', 'exact']"),
        ({"confirm_seeds": [3, 3]}, "confirm_seeds repeats a value: [3, 3]"),
        ({"objectives": ["loss", "bops"]}, "budget_range=None with 2 objective(s): two need it"),
        ({"budget_range": [1.0, 2.0]}, "budget_range=(1.0, 2.0) with 1 objective(s): two need it"),
        ({"objectives": ["loss", "bops"], "budget_range": [3.0, 2.0]}, "0 < low < high, got [3.0, 2.0]"),
        ({"objectives": ["bops", "loss"], "budget_range": [1.0, 2.0]}, "objectives"),
        (
            {"objectives": ["loss", "bops"], "budget_range": [1.0, 2.0], "rungs": [{"steps": 0}, {"steps": 1}]},
            "two objectives cannot be pruned: set one rung, got 2",
        ),
        (
            {"objectives": ["loss", "average_bits"], "budget_range": [1.0, 2.0], "sampler": "cmaes"},
            "sampler='cmaes' has one objective: use tpe, nsga2 or random for two",
        ),
        ({"storage": "study.db"}, "storage: this is no address of a database: use sqlite:////FOLDER/FILE.db or"),
        ({"storage": "../../study"}, "storage: this is no address of a database"),
        ({"storage": "sqlite:///study.db"}, "storage: sqlite:///study.db: a relative file would be another"),
        ({"storage": "sqlite://"}, "storage: sqlite://: a study in memory goes with the command"),
        ({"storage": "postgresql://user:hunter2/x"}, "storage: postgresql://***: this is not [USER:PASSWORD@]HOST"),
        ({"sampler": "grid"}, "'tpe', 'nsga2', 'cmaes' or 'random', got 'grid'"),
        ({"evalutions": 3}, "did you mean 'evaluations'?"),
    ],
)
def test_what_makes_no_sense_is_refused_in_one_line(values: dict[str, Any], message: str) -> None:
    with pytest.raises(ConfigError) as error:
        SearchConfig.parse(values)
    assert message in str(error.value)
    assert "\n" not in str(error.value)
