"""Plans: contract over all shipped ones, and what each part of the format does."""

from __future__ import annotations

import itertools
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

from experiments.overrides import parse_settings
from experiments.plan import build_plan, find_plan, load_plan, packaged_plans, single_run
from experiments.points import expand
from robuq.config import BLOCK_ROLES, ConfigError, RunConfig, resolve_specs
from robuq.models import build_dit
from robuq.variants import variant


def plan_of(**content: Any) -> list[RunConfig]:
    return list(build_plan({"name": "x", "preset": "nano", **content}).runs)


def names(runs: list[RunConfig]) -> list[str]:
    return [f"{run.variant} {run.label}" for run in runs]


# --- every shipped plan -------------------------------------------------------------------------------------------


@pytest.fixture(params=packaged_plans())
def shipped(request: pytest.FixtureRequest) -> str:
    return str(request.param)


def test_a_shipped_plan_is_deterministic_also_in_another_process(shipped: str) -> None:
    code = (
        "import sys; from experiments.plan import load_plan;"
        "print('\\n'.join(run.key() + run.variant for run in load_plan(sys.argv[1]).runs))"
    )
    environment = {**os.environ, "PYTHONHASHSEED": "7"}
    done = subprocess.run([sys.executable, "-c", code, shipped], capture_output=True, text=True, env=environment)
    assert done.stdout.splitlines() == [run.key() + run.variant for run in load_plan(shipped).runs]


def test_a_shipped_plan_has_unique_keys_and_names(shipped: str) -> None:
    runs = load_plan(shipped).runs
    assert len({run.key() for run in runs}) == len(runs)
    assert len({(run.variant, run.label, run.seed, run.train.lr) for run in runs}) == len(runs)


def test_a_shipped_plan_survives_json(shipped: str) -> None:
    for run in load_plan(shipped).runs:
        assert RunConfig.model_validate_json(run.to_json()) == run


def test_a_shipped_plan_names_modules_that_exist(shipped: str) -> None:
    runs = load_plan(shipped).runs
    for config in {run.model for run in runs}:
        modules = dict(build_dit(config, seed=0).named_modules())
        for run in runs:
            if run.model == config:
                assert set(resolve_specs(run.precision, config.num_layers, run.allocation)) <= set(modules)


def test_a_shipped_plan_has_its_baseline(shipped: str) -> None:
    plan = load_plan(shipped)
    assert plan.report.baseline in {run.variant for run in plan.runs}


def test_all_rows_of_the_first_seed_come_first(shipped: str) -> None:
    seeds = [run.seed for run in load_plan(shipped).runs]
    assert seeds == sorted(seeds)


# --- points -------------------------------------------------------------------------------------------------------


def test_grid_is_a_product_and_zip_goes_in_lockstep() -> None:
    runs = plan_of(
        base={"variant": "baseline"},
        grid={"act_bits": [4, 2]},
        zip={"train.lr": [1e-3, 2e-3], "train.steps": [30, 20]},
    )
    found = [(run.label, run.train.lr, run.train.steps) for run in runs]
    assert found == [(f"W1.58A{bits}", lr, n) for bits in (4, 2) for lr, n in ((1e-3, 30), (2e-3, 20))]
    assert [run.variant for run in runs[:2]] == ["baseline[train.steps=30]", "baseline[train.steps=20]"]


def test_rates_to_choose_from_are_one_row_of_distinct_runs() -> None:
    rates = [1e-3, 2e-3, 4e-3]
    runs = plan_of(grid={"variant": ["minmax"], "train.lr": rates, "train.steps": [20, 30]}, seeds=[0, 1])
    assert [run.train.lr for run in runs if run.variant == "minmax[train.steps=20]"] == rates * 2
    assert {run.variant for run in runs} == {"minmax[train.steps=20]", "minmax[train.steps=30]"}
    assert len({run.key() for run in runs}) == len(runs) == 12


def test_a_name_may_have_several_rates_but_only_one_set_of_other_settings() -> None:
    named = {"name": "mine", "variant": "minmax"}
    rows = [{**named, "train.lr": 1e-3}, {**named, "train.lr": 2e-3}]
    assert names(plan_of(include=rows)) == ["mine W1.58A2", "mine W1.58A2"]
    with pytest.raises(ConfigError, match=r"^2 different runs are called 'mine W1\.58A2 seed 0 lr 0\.002'"):
        plan_of(include=[*rows, {**named, "train.lr": 2e-3, "train.steps": 5}])


def test_points_that_are_the_same_network_are_one_run() -> None:
    runs = plan_of(grid={"variant": ["full_precision", "minmax"], "act_bits": [4, 2]})
    assert names(runs) == ["full_precision W32A32", "minmax W1.58A4", "minmax W1.58A2"]


def test_include_has_its_own_grid_and_name() -> None:
    include = [
        {"variant": "full_precision"},
        {"name": "coded", "variant": "robuq_uniform", "block_linears.act.grid": "as_coded", "grid": {"act_bits": [3]}},
    ]
    runs = plan_of(grid={"variant": ["minmax"]}, include=include)
    assert names(runs) == ["minmax W1.58A2", "full_precision W32A32", "coded W1.58A3"]
    assert {getattr(runs[2].precision, role).act.grid for role in BLOCK_ROLES} == {"as_coded"}
    assert runs[2].precision.adaln == variant("robuq_uniform", 3).adaln


def test_exclude_removes_points_that_have_all_its_values() -> None:
    runs = plan_of(
        grid={"variant": ["minmax", "baseline"], "act_bits": [4, 3, 2]},
        exclude=[{"variant": "minmax", "act_bits": [4, 3]}],
    )
    assert names(runs) == ["minmax W1.58A2", "baseline W1.58A4", "baseline W1.58A3", "baseline W1.58A2"]


ROTATION = {
    "on": {"block_linears.transform": {"kind": "random_hadamard"}},
    "off": {"block_linears.transform.kind": "identity"},
}
LOW_RANK = {"on": {"block_linears.low_rank": {"rank": 16}}, "off": {"block_linears.low_rank": None}}
CENTER = {"on": {"block_linears.act.center": True}, "off": {"block_linears.act.center": False}}


def ablated(mode: str) -> dict[str, tuple[bool, bool, bool]]:
    components = {"rotation": ROTATION, "low_rank": LOW_RANK, "center": CENTER}
    runs = plan_of(base={"variant": "robuq_uniform"}, ablate={"mode": mode, "components": components})
    state = {}
    for run in runs:
        fc2 = run.precision.fc2
        assert fc2 is not None
        assert fc2.act is not None
        state[run.variant.removeprefix("robuq_uniform")] = (
            fc2.transform.kind != "identity",
            fc2.low_rank is not None,
            fc2.act.center,
        )
    return state


def test_ablate_full_has_every_combination() -> None:
    assert sorted(ablated("full").values()) == sorted(itertools.product([False, True], repeat=3))


def test_ablate_minus_one_has_all_and_each_off() -> None:
    assert ablated("minus_one") == {
        "[all]": (True, True, True),
        "[-rotation]": (False, True, True),
        "[-low_rank]": (True, False, True),
        "[-center]": (True, True, False),
    }


def test_ablate_plus_one_has_none_and_each_on() -> None:
    assert ablated("plus_one") == {
        "[none]": (False, False, False),
        "[+rotation]": (True, False, False),
        "[+low_rank]": (False, True, False),
        "[+center]": (False, False, True),
    }


def test_ablate_pairs_has_singles_and_pairs() -> None:
    found = ablated("pairs")
    assert sorted(found.values()) == sorted(c for c in itertools.product([False, True], repeat=3) if sum(c) <= 2)
    assert found["[+rotation+center]"] == (True, False, True)


def test_all_on_is_the_variant_itself() -> None:
    content = {"base": {"variant": "robuq_uniform"}, "ablate": {"mode": "full", "components": {"rotation": ROTATION}}}
    by_name = {run.variant: run.precision for run in plan_of(**content)}
    assert by_name["robuq_uniform[all]"] == variant("robuq_uniform", 2)


# --- seeds --------------------------------------------------------------------------------------------------------


def test_adding_a_seed_keeps_the_other_runs() -> None:
    content = {"base": {"variant": "baseline"}, "pretrain_seeds": [5, 6]}
    few, more = plan_of(**content, seeds=[0, 1]), plan_of(**content, seeds=[0, 1, 2])
    assert more[: len(few)] == few
    assert [(run.seed, run.pretrain_seed) for run in more] == [(0, 5), (1, 6), (2, 5)]


def test_pre_training_follows_the_seed_by_default() -> None:
    assert [run.pretrain_seed for run in plan_of(base={"variant": "baseline"}, seeds=[3, 1])] == [3, 1]


# --- overrides ----------------------------------------------------------------------------------------------------


def test_dotted_and_nested_overrides_are_the_same() -> None:
    dotted = plan_of(base={"variant": "baseline", "train.steps": 7, "train.warmup_steps": 2})
    nested = plan_of(base={"variant": "baseline", "train": {"steps": 7, "warmup_steps": 2}})
    assert dotted == nested
    assert dotted[0].train.batch_size == 16  # the preset's, kept


def test_a_whole_part_can_be_given_where_the_variant_has_none() -> None:
    (run,) = plan_of(base={"variant": "minmax", "block_linears.low_rank": {"rank": 4}})
    assert all(getattr(run.precision, role).low_rank.rank == 4 for role in BLOCK_ROLES)


def test_settings_of_the_command_line_are_typed_like_yaml() -> None:
    texts = ["train.lr=1e-3", "seeds=0,1,2", "data.path=null", "name=a", "x=[1,2]", "y={a: 1}", "z='1,2'"]
    assert parse_settings(texts) == {
        "train.lr": 1e-3,
        "seeds": [0, 1, 2],
        "data.path": None,
        "name": "a",
        "x": [1, 2],
        "y": {"a": 1},
        "z": "1,2",
    }


def test_settings_win_over_everything_in_the_plan() -> None:
    content = {"name": "x", "preset": "nano", "grid": {"variant": ["minmax"], "train.lr": [1e-3, 2e-3]}, "seeds": [0]}
    content["include"] = [{"variant": "full_precision", "train.lr": 5e-3}]
    runs = build_plan(content, {"train.lr": 3e-3, "seeds": [4, 5], "pretrain_seeds": 1}).runs
    assert {run.train.lr for run in runs} == {3e-3}
    assert [(run.variant, run.seed, run.pretrain_seed) for run in runs] == [
        (name, seed, 1) for seed in (4, 5) for name in ("minmax", "full_precision")
    ]


def test_a_list_for_a_runs_setting_is_an_axis_for_every_row() -> None:
    content = {"name": "x", "preset": "nano", "grid": {"variant": ["minmax"]}, "include": [{"variant": "baseline"}]}
    runs = build_plan(content, {"train.lr": [1e-3, 2e-3]}).runs
    assert [(run.variant, run.train.lr) for run in runs] == [
        (name, lr) for name in ("minmax", "baseline") for lr in (1e-3, 2e-3)
    ]
    runs = build_plan(content, {"train.warmup_steps": [1, 2]}).runs
    assert [run.variant for run in runs] == [
        f"{name}[train.warmup_steps={steps}]" for name in ("minmax", "baseline") for steps in (1, 2)
    ]


def test_grid_axes_can_be_set() -> None:
    assert [run.label for run in load_plan("smoke", ["grid.act_bits=4", "grid.variant=minmax", "seeds=0"]).runs] == [
        "W1.58A4"
    ]


def test_a_single_run_is_the_plans_row() -> None:
    row = next(run for run in load_plan("smoke").runs if run.variant == "robuq_uniform" and run.seed == 0)
    assert single_run("robuq_uniform", 2, "nano", 0, {}).key() == row.key()


# --- mistakes -----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("content", "message"),
    [
        ({"gird": {}}, "unknown key 'gird' - did you mean 'grid'"),
        ({"base": {"variant": "basline"}}, "unknown variant 'basline' - did you mean 'baseline'"),
        ({"base": {"variant": "baseline", "train.stepz": 1}}, "unknown key 'train.stepz' - did you mean 'steps'"),
        ({"base": {"variant": "baseline", "tarin.steps": 1}}, "'tarin' in 'tarin.steps' - did you mean 'train'"),
        ({"base": {"variant": "baseline", "train.steps.x": 1}}, "train.steps is 6 and has no parts"),
        ({"base": {"variant": "baseline", "seed": 1}}, "use 'seeds'"),
        ({"base": {"variant": "baseline", "act_bits": 0}}, "act_bits must be from 1 to 8, got 0"),
        ({"base": {"variant": "baseline", "act_bits": True}}, "act_bits must be a whole number"),
        ({"base": {"variant": "minmax", "block_linears.low_rank.rank": 4}}, "set precision.qkv.low_rank as a whole"),
        ({}, "needs a variant's name"),
        ({"preset": "digit", "base": {"variant": "minmax"}}, "unknown preset 'digit' - did you mean 'digits'"),
        ({"base": {"variant": "minmax"}, "seeds": []}, "seeds:"),
        ({"base": {"variant": "minmax"}, "seeds": [-1]}, "seeds.0:"),
        ({"grid": {"variant": []}}, "grid.variant:"),
        ({"grid": {"a": [1]}, "zip": {"a": [1]}}, "'a' is in grid and in zip"),
        ({"zip": {"a": [1], "b": [1, 2]}}, "lists in zip must be equally long"),
        ({"grid": {str(n): [1, 2, 3, 4, 5, 6, 7, 8, 9, 0] for n in range(9)}}, "1000000000 points"),
        ({"include": [{"grid": {"act_bits": 3}, "variant": "minmax"}]}, "include: grid must map"),
        ({"name": "../x"}, "name:"),
        (
            {"zip": {"name": ["a", "a"], "train.steps": [5, 6]}, "base": {"variant": "minmax"}},
            "2 different runs are called 'a W1.58A2 seed 0 lr 0.001': give each a name",
        ),
        ({"ablate": {"mode": "minus_two", "components": {}}}, "ablate.mode:"),
        ({"base": {"variant": "minmax"}, "report": {"basline": "x"}}, "did you mean 'baseline'"),
    ],
)  # fmt: skip
def test_mistakes_are_one_clear_line(content: dict[str, Any], message: str) -> None:
    with pytest.raises(ConfigError) as caught:
        plan_of(**content)
    assert message in str(caught.value)
    assert "\n" not in str(caught.value)


def test_everything_excluded_is_an_error() -> None:
    with pytest.raises(ConfigError, match="no runs"):
        plan_of(grid={"variant": ["minmax"]}, exclude=[{"variant": "minmax"}])


def test_an_error_names_the_file(tmp_path: Path) -> None:
    file = tmp_path / "mine.yaml"
    file.write_text("name: x\ngird: {}\n")
    with pytest.raises(ConfigError, match=r"^mine\.yaml: unknown key 'gird'"):
        load_plan(file)


def test_a_file_wins_over_a_packaged_plan_of_that_name(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    packaged = find_plan("smoke")
    (tmp_path / "smoke").write_text("name: mine\n")
    monkeypatch.chdir(tmp_path)
    assert find_plan("smoke") == Path("smoke") != packaged
    assert find_plan("smoke.yaml") == packaged


def test_expanding_changes_none_of_its_arguments() -> None:
    grid, include = {"variant": ["a", "b"]}, [{"variant": "c", "grid": {"act_bits": [1, 2]}}]
    assert len(expand(grid, {}, None, include, [])) == 4
    assert grid == {"variant": ["a", "b"]}
    assert include == [{"variant": "c", "grid": {"act_bits": [1, 2]}}]
