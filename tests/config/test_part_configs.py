"""Data, model, training and evaluation settings: bounds, and what they derive."""

from __future__ import annotations

from typing import Any

import pytest

from robuq.config import (
    MODEL_PRESETS,
    CalibrationConfig,
    ConfigError,
    DataConfig,
    DiffusionConfig,
    EvalConfig,
    FeatureConfig,
    LossConfig,
    ModelConfig,
    SampleConfig,
    TrainConfig,
    model_preset,
)

PARTS = (CalibrationConfig, DataConfig, DiffusionConfig, EvalConfig, FeatureConfig, LossConfig, SampleConfig)


@pytest.mark.parametrize("part", [*PARTS, ModelConfig, TrainConfig])
def test_defaults_survive_json(part: Any) -> None:
    assert part.model_validate_json(part().to_json()) == part()


@pytest.mark.parametrize(
    ("part", "values", "message"),
    [
        (DataConfig, {"held_out": 0}, "held_out: input should be greater than 0"),
        (DataConfig, {"held_out": 1}, "held_out: input should be less than 1"),
        (DataConfig, {"validation": -0.1}, "validation: input should be greater than or equal to 0"),
        (DataConfig, {"validation": 1}, "validation: input should be less than 1"),
        (DataConfig, {"limit": 0}, "limit: input should be greater than or equal to 1"),
        (DataConfig, {"name": "mnist"}, "name: input should be 'digits', 'fashion_mnist', 'image_folder' or 'latents'"),
        (DataConfig, {"name": "image_folder"}, "name='image_folder' needs a path"),
        (DataConfig, {"name": "latents", "path": ""}, "name='latents' needs a path"),
        (ModelConfig, {"image_size": 9}, "image_size 9 is no multiple of patch_size 2"),
        (ModelConfig, {"width": 66}, "width 66 is no multiple of num_heads 4"),
        (ModelConfig, {"mlp_ratio": 2}, "mlp_ratio must be 4 (diffusers' DiT has no other), got 2"),
        (ModelConfig, {"num_classes": -1}, "num_classes: input should be greater than or equal to 0"),
        (TrainConfig, {"steps": 20}, "warmup_steps 20 must be below steps 20"),
        (TrainConfig, {"steps": -1}, "steps: input should be greater than or equal to 0"),
        (TrainConfig, {"lr": 0}, "lr: input should be greater than 0"),
        (TrainConfig, {"ema_decay": 1}, "ema_decay: input should be less than 1"),
        (DiffusionConfig, {"num_timesteps": 1}, "num_timesteps: input should be greater than or equal to 2"),
        (SampleConfig, {"guidance": 0.9}, "guidance: input should be greater than or equal to 1"),
        (EvalConfig, {"neighbours": 0}, "neighbours: input should be greater than or equal to 1"),
    ],
)
def test_what_is_out_of_bounds(part: Any, values: dict[str, Any], message: str) -> None:
    with pytest.raises(ConfigError) as caught:
        part.parse(values)
    assert message in str(caught.value)
    assert "\n" not in str(caught.value)


def test_bounds_that_are_allowed() -> None:
    assert DataConfig(validation=0).validation == 0
    assert TrainConfig(steps=0).warmup_steps == 20  # trains nothing: nothing to warm up
    assert TrainConfig(steps=21).steps == 21


def test_shapes_of_a_model() -> None:
    config = ModelConfig(image_size=28, patch_size=4, in_channels=3, learned_variance=True, width=96, num_heads=8)
    assert (config.num_tokens, config.head_dim, config.out_channels) == (49, 12, 6)
    assert ModelConfig(in_channels=3).out_channels == 3


def test_presets() -> None:
    xl = model_preset("DiT-XL/2")
    assert (xl.width, xl.num_layers, xl.num_heads, xl.num_tokens, xl.head_dim) == (1152, 28, 16, 256, 72)
    assert len(set(MODEL_PRESETS.values())) == len(MODEL_PRESETS)
    with pytest.raises(ConfigError, match="unknown model preset 'DiT-XL' - did you mean 'DiT-XL/2'"):
        model_preset("DiT-XL")
