"""Searches in YAML: what they become, and one line for every mistake."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from experiments.plan import packaged_plans
from experiments.search_file import build_search, find_search, is_search, load_search, packaged_searches
from robuq.config import ConfigError

FILE: dict[str, Any] = {"name": "s", "preset": "nano", "search": {}}


@pytest.mark.parametrize("name", packaged_searches())
def test_packaged_searches_are_valid_and_have_names_of_their_own(name: str) -> None:
    search = load_search(name)
    assert search.name not in packaged_plans()  # it is an experiment's name, too
    assert search.run.ampn is not None
    assert search.run.key() == load_search(name).run.key()
    assert search.description


def test_ampn_and_base_are_overrides_of_the_variant() -> None:
    ampn = {"budget": {"limit": 2.5}, "measure": "output_error", "sensitivity": {"num_images": 8}}
    search = build_search({**FILE, "base": {"act_bits": 3, "train.steps": 9}, "ampn": ampn, "seed": 4})
    config = search.run.ampn
    assert config is not None
    assert (config.budget.limit, config.budget.weights) == (2.5, "macs")
    assert (config.measure, config.sensitivity.num_images) == ("output_error", 8)
    assert config.sensitivity.warm_up_steps == 2  # the preset's
    assert (search.run.train.steps, search.run.seed, search.run.pretrain_seed) == (9, 4, 4)
    assert search.run.precision.fc1 is not None
    assert search.run.precision.fc1.act is not None
    assert search.run.precision.fc1.act.bits == 3


def test_a_variant_without_ampn_gets_it() -> None:
    search = build_search({**FILE, "base": {"variant": "minmax", "act_bits": 3}, "pretrain_seed": 1})
    assert search.run.variant == "minmax"
    assert search.run.ampn is not None
    assert search.run.ampn.budget.limit == 3
    assert (search.run.seed, search.run.pretrain_seed) == (0, 1)


def test_settings_of_the_command_line_win() -> None:
    settings = {"ampn.budget.limit": 3, "search.evaluations": 5, "train.steps": 8, "search.confirm_seeds": 7, "seed": 2}
    search = build_search({**FILE, "base": {"train.steps": 9}, "ampn": {"budget": {"limit": 2}}}, settings)
    assert search.run.ampn is not None
    assert search.run.ampn.budget.limit == 3
    assert (search.config.evaluations, search.config.confirm_seeds) == (5, (7,))
    assert (search.run.train.steps, search.run.seed) == (8, 2)


def test_predictors_are_the_run_with_another_sensitivity() -> None:
    search = build_search({**FILE, "predictors": [{"warm_up_steps": 0}]})
    (other,) = search.predictors
    assert other.ampn is not None
    assert search.run.ampn is not None
    assert other.ampn.sensitivity.warm_up_steps == 0
    changed = search.run.ampn.sensitivity.updated(warm_up_steps=0)
    assert other == search.run.updated(ampn=search.run.ampn.updated(sensitivity=changed))


def test_plans_and_searches_are_told_apart(tmp_path: Path) -> None:
    assert not is_search("smoke")  # the plan
    assert is_search("searches/smoke")
    assert is_search("digits_bits")
    assert not is_search("no_such_thing")
    (file := tmp_path / "mine.yaml").write_text("name: mine\nsearch: {}\n")
    assert is_search(file)
    assert find_search("smoke") == find_search("searches/smoke.yaml")


TWO = {"objectives": ["loss", "bops"], "budget_range": [1, 2], "rungs": [{"steps": 0}, {"steps": 4}]}


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"serch": {}}, "unknown key 'serch' - did you mean 'search'?"),
        ({"search": {"evalutions": 3}}, "unknown key 'search.evalutions' - did you mean 'evaluations'?"),
        (
            {"search": {"sampler": "grid"}},
            "search.sampler: input should be 'tpe', 'nsga2', 'cmaes' or 'random', got 'grid'",
        ),
        ({"search": TWO}, "search: two objectives cannot be pruned: set one rung, got 2"),
        ({"search": {"rungs": [{"steps": 1}]}}, "warmup_steps 1 must be below steps 1"),
        ({"ampn": {"budgt": {}}}, "unknown key 'ampn.budgt' - did you mean 'budget'?"),
        ({"ampn": {"budget": {"limit": 0.5}}}, "budget 0.5 mean bits by macs cannot be reached: from 1 to 4 can"),
        ({"ampn": {"measure": "magic"}}, "ampn.measure: input should be 'loss', 'output_error' or 'second_order'"),
        ({"predictors": [{"warmup": 0}]}, "unknown key 'ampn.sensitivity.warmup' - did you mean 'warm_up_steps'?"),
        ({"predictors": [{"candidates": [1, 2]}]}, "predictors cannot change the candidates, which are [1, 2, 3, 4]"),
        (
            {"base": {"variant": "full_precision"}},
            "ampn chooses activation bits, but the precision map leaves those of",
        ),
        ({"base": {"train.stepz": 3}}, "unknown key 'train.stepz' - did you mean 'steps'?"),
        ({"base": {"allocation": {"bits": {"a": 2}}}}, "allocation"),
        ({"preset": "nanoo"}, "unknown preset 'nanoo' - did you mean 'nano'?"),
        ({"seed": -1}, "seed"),
        ({"name": "a b"}, "name"),
    ],
)
def test_mistakes_are_one_line(changes: dict[str, Any], message: str) -> None:
    with pytest.raises(ConfigError) as caught:
        build_search({**FILE, **changes})
    assert message in str(caught.value)
    assert "\n" not in str(caught.value)


def test_a_file_that_is_no_search(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match="no search 'smok' - did you mean 'smoke'"):
        load_search("smok")
    (file := tmp_path / "list.yaml").write_text("- 1\n")
    with pytest.raises(ConfigError, match=r"list\.yaml: a search is a mapping"):
        load_search(file)
    file.write_text("name: a\n")
    with pytest.raises(ConfigError, match=r"list\.yaml: search: field required"):
        load_search(file)
