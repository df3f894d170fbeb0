"""One run: its parts must fit together, and its key is its identity."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from robuq.config import (
    AmpnConfig,
    BitAllocation,
    Budget,
    ConfigError,
    DataConfig,
    DiffusionConfig,
    EvalConfig,
    LossConfig,
    ModelConfig,
    RunConfig,
    SampleConfig,
    TrainConfig,
    decision_name,
    model_preset,
)
from robuq.diffusion.sampler import sample_images
from robuq.models import build_dit
from robuq.stages import stages_of
from robuq.variants import variant

GOLDEN = Path(__file__).parent.parent / "golden" / "run_config.json"
RUN = RunConfig(
    variant="golden",
    model=model_preset("nano"),
    precision=variant("robuq_uniform", 2),
    allocation=BitAllocation(bits={decision_name(0, "fc2"): 3}),
    train=TrainConfig(steps=100, lr=5e-4),
    seed=1,
    pretrain_seed=2,
)


AMPN = {"budget": {"limit": 2.0}}


def content(run: RunConfig) -> dict[str, Any]:
    keys = {stage.kind: stage.key for stage in stages_of(run, "0" * 16)}
    return {"key": run.key(), "stages": keys, "config": run.model_dump(mode="json")}


def test_the_golden_run_has_its_key() -> None:
    """A key that moves throws away every finished stage.

    Where that is meant: `python tests/config/test_run_config.py`.
    """
    golden = json.loads(GOLDEN.read_text())
    assert content(RUN) == golden
    assert RunConfig.parse(golden["config"]) == RUN
    assert len(RUN.key()) == 16


@pytest.mark.parametrize(
    "change",
    [
        {"data": DataConfig(validation=0.2)},
        {"model": model_preset("digits")},
        {"diffusion": DiffusionConfig(num_timesteps=500)},
        {"pretrain": TrainConfig()},
        {"precision": variant("robuq_uniform", 3)},
        {"allocation": None},
        {"train": RUN.train.updated(weight_decay=0.1)},
        {"evaluation": EvalConfig(loss=LossConfig(seed=1))},
        {"seed": 2},
        {"pretrain_seed": 1},
    ],
)
def test_every_part_is_in_the_key(change: dict[str, Any]) -> None:
    assert RUN.updated(**change).key() != RUN.key()


@given(st.text(st.characters(exclude_categories=["C", "Zl", "Zp"]), max_size=20))
def test_the_display_name_is_not_in_the_key(name: str) -> None:
    assert RUN.updated(variant=name).key() == RUN.key()


def test_the_label_is_that_of_the_allocation() -> None:
    assert RUN.label == "W1.58A3"
    assert RUN.updated(allocation=None).label == "W1.58A2"


def test_the_label_of_bits_still_to_be_found_is_that_of_their_budget() -> None:
    found = RUN.updated(allocation=None, ampn=AmpnConfig(budget=Budget(limit=2.5)))
    assert (found.label, found.average_bits) == ("W1.58A2.5", 2.5)
    in_bops = found.updated(ampn=AmpnConfig(budget=Budget(limit=2.5, weights="bops")))
    assert (in_bops.label, in_bops.average_bits) == ("W1.58A2", None)  # of the map that it starts from


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"data": {"image_size": 4}}, "data.image_size 4 differs from model.image_size 8"),
        (
            {"allocation": {"bits": {"transformer_blocks.2.fc1": 3}}},
            "allocation names 'transformer_blocks.2.fc1': decisions are transformer_blocks.0.qkv ... ",
        ),
        ({"precision": {}}, "the precision map leaves its activations alone"),
        ({"ampn": AMPN}, "allocation and ampn both choose the bits: set one of them"),
        ({"ampn": AMPN, "allocation": None, "precision": {}}, "ampn chooses activation bits, but the precision map"),
        (
            {"ampn": {**AMPN, "sensitivity": {"warm_up_steps": 20}}, "allocation": None},
            "ampn.sensitivity.warm_up_steps 20 must be 0 or above train.warmup_steps 20",
        ),
        ({"ampn": {"budget": {"limit": 2.0, "weights": "mac"}}, "allocation": None}, "ampn.budget.weights: input"),
        ({"ampn": {"budget": {"limit": 2.0, "count_fixed": True}}, "allocation": None}, "count_fixed with weights"),
        ({"ampn": {**AMPN, "sensitivity": {"candidates": [2, 1]}}, "allocation": None}, "candidates must ascend"),
        ({"evaluation": {"sample": {"steps": 30}}}, "evaluation.sample.steps=30: need a divisor of num_timesteps=1000"),
        (
            {"evaluation": {"sample": {"sampler": "ddpm", "spacing": "leading", "steps": 600}}},
            "evaluation.sample.steps=600: need a divisor of num_timesteps=1000",
        ),
        ({"diffusion": {"num_timesteps": 10}}, "evaluation.sample.steps=20: at most num_timesteps=10"),
        (
            {"evaluation": {"sample": {"guidance_channels": 2}}},
            "evaluation.sample.guidance_channels=2: the images have 1",
        ),
    ],
)
def test_parts_that_do_not_fit_are_refused_in_one_line(change: dict[str, Any], message: str) -> None:
    with pytest.raises(ConfigError) as caught:
        RunConfig.parse({**RUN.model_dump(mode="json"), **change})
    assert message in str(caught.value)
    assert "\n" not in str(caught.value)


CASES = st.builds(
    SampleConfig,
    sampler=st.sampled_from(["ddim", "ddpm"]),
    spacing=st.sampled_from(["trailing", "leading"]),
    steps=st.integers(1, 9),
    guidance=st.sampled_from([1.0, 2.0]),
    guidance_channels=st.none() | st.integers(1, 3),
)
MODEL = ModelConfig(image_size=4, width=8, num_layers=1, num_heads=1, in_channels=2)


@given(sample=CASES, num_timesteps=st.integers(2, 8))
def test_a_run_is_refused_exactly_where_its_sampler_would_be(sample: SampleConfig, num_timesteps: int) -> None:
    diffusion = DiffusionConfig(num_timesteps=num_timesteps)
    parts = {"data": DataConfig(image_size=4), "model": MODEL, "diffusion": diffusion}
    refused = sampled = None
    try:
        RunConfig(variant="x", evaluation=EvalConfig(sample=sample), **parts)
    except ValueError as error:
        refused = str(error)
    try:
        sample_images(build_dit(MODEL, seed=0), torch.zeros(1, dtype=torch.int64), diffusion, sample)
    except ValueError as error:
        sampled = str(error)
    assert (refused is None) == (sampled is None)
    assert sampled is None or sampled in str(refused)


if __name__ == "__main__":
    GOLDEN.write_text(json.dumps(content(RUN), indent=1, sort_keys=True) + "\n")
