"""The paper's plans: what they share, so that together they stay short, and that every row has a name in its table."""

from __future__ import annotations

import functools

import pytest

from analysis.paper import COMPONENTS, paper_plans
from analysis.tables.main import NAMES as MAIN
from analysis.tables.quantizers import NAMES as QUANTIZERS
from analysis.tables.warm_up import NAMES as WARM_UP
from experiments.plan import load_plan
from robuq.config import RunConfig
from robuq.stages import distinct, protocol_fingerprint, stages_of

NAMES = {
    "paper_main": MAIN,
    "paper_unconditional": MAIN,
    "paper_components": COMPONENTS.names,
    "paper_quantizers": QUANTIZERS,
    "paper_warm_up": WARM_UP,
}
DATA = {"digits": "", "fashion_mnist": "_fashion"}


@functools.cache
def runs(plan: str) -> tuple[RunConfig, ...]:
    return load_plan(plan).runs


@pytest.mark.parametrize("plan", paper_plans())
def test_every_row_has_a_name_in_its_table(plan: str) -> None:
    assert {run.variant for run in runs(plan)} <= set(NAMES[plan.removesuffix("_fashion")])


@pytest.mark.parametrize("plan", paper_plans())
def test_the_baseline_of_differences_is_a_row(plan: str) -> None:
    loaded = load_plan(plan)
    assert loaded.report.baseline in {run.variant for run in loaded.runs}


@pytest.mark.parametrize(("dataset", "suffix"), DATA.items())
def test_seeds_are_five_on_digits_and_three_on_fashion(dataset: str, suffix: str) -> None:
    for plan in NAMES:
        own = runs(plan + suffix)
        assert {run.data.name for run in own} == {dataset}
        assert {run.seed for run in own} == set(range(5 if dataset == "digits" else 3))


@pytest.mark.parametrize("suffix", DATA.values())
def test_conditional_plans_share_protocol_and_pretraining(suffix: str) -> None:
    own = [run for plan in NAMES if plan != "paper_unconditional" for run in runs(plan + suffix)]
    assert len({protocol_fingerprint(run, "data") for run in own}) == 1
    pretrained = distinct(stage for run in own for stage in stages_of(run, "data") if stage.kind == "full_precision")
    assert len(pretrained) == len({run.pretrain_seed for run in own})


@pytest.mark.parametrize("suffix", DATA.values())
def test_rows_of_several_tables_are_trained_once(suffix: str) -> None:
    def keys(plan: str, variant: str) -> set[str]:
        return {run.key() for run in runs(plan + suffix) if run.variant == variant}

    for plan in ("paper_components", "paper_quantizers", "paper_warm_up"):
        assert keys(plan, "robuq_uniform") <= keys("paper_main", "robuq_uniform")
    third = "robuq_warm_50" if suffix else "robuq_warm_100"  # of the training, as in the main table
    assert keys("paper_warm_up", third) <= keys("paper_main", "robuq")


def test_digits_share_the_networks_of_the_small_default() -> None:
    """`make ablation`, done before, makes the paper's sweep shorter."""
    default = {
        stage.id for run in runs("digits_components") for stage in stages_of(run, "d") if stage.kind == "full_precision"
    }
    paper = {stage.id for run in runs("paper_main") for stage in stages_of(run, "d") if stage.kind == "full_precision"}
    assert default <= paper


def test_unconditional_networks_have_no_classes() -> None:
    assert {run.model.num_classes for suffix in DATA.values() for run in runs("paper_unconditional" + suffix)} == {0}


def test_post_training_rows_train_nothing_and_others_alike() -> None:
    for suffix in DATA.values():
        steps = {run.variant: run.train.steps for run in runs("paper_main" + suffix)}
        trained = {n for name, n in steps.items() if not name.startswith("ptq_")}
        assert {n for name, n in steps.items() if name.startswith("ptq_")} == {0}
        assert len(trained) == 1
