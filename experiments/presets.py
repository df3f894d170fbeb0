"""Where a plan starts from: data, model and training that fit together."""

from __future__ import annotations

from typing import Any

from robuq.config import ConfigError, did_you_mean, model_preset

PRESETS: dict[str, dict[str, Any]] = {
    # A few seconds a run: does everything work?
    "nano": {
        "data": {"name": "digits", "limit": 256},
        "model": model_preset("nano").model_dump(mode="json"),
        "pretrain": {"steps": 12, "batch_size": 16, "warmup_steps": 2, "lr": 2e-3, "checkpoint_every": 6},
        "train": {"steps": 6, "batch_size": 16, "warmup_steps": 1, "checkpoint_every": 3, "log_every": 1},
        "calibration": {"num_images": 32, "batch_size": 16, "max_tokens": 256},
        "evaluation": {
            "loss": {"repeats": 1, "max_images": 64},
            "sample": {"steps": 2, "num_images": 48, "batch_size": 24},
            "features": {"epochs": 1, "width": 8, "channels": 4, "max_images": 256},
            "grid_images": 20,
        },
    },
    # scikit-learn's digits, the embedded default.
    "digits": {
        "data": {"name": "digits"},
        "model": model_preset("digits").model_dump(mode="json"),
        "pretrain": {"steps": 2000, "lr": 2e-3, "checkpoint_every": 500},
    },
    # Fashion-MNIST at 28x28.
    "fashion_mnist": {
        "data": {"name": "fashion_mnist", "image_size": 28},
        "model": model_preset("fashion").model_dump(mode="json"),
        "pretrain": {"steps": 8000, "lr": 1e-3, "checkpoint_every": 500},
        "train": {"steps": 1000, "checkpoint_every": 250},
    },
}

# How the sensitivity is measured where AMPN is asked for; what is not here is SensitivityConfig's default.
SENSITIVITY: dict[str, dict[str, Any]] = {
    "nano": {"warm_up_steps": 2, "num_images": 16, "batch_size": 8, "candidates": [1, 2, 3, 4]},
    "fashion_mnist": {"warm_up_steps": 200},
}


def preset(name: str) -> dict[str, Any]:
    """Plain data for `RunConfig`.

    Raises:
        ConfigError: unknown name.
    """
    if name not in PRESETS:
        raise ConfigError(f"unknown preset {name!r}{did_you_mean(name, list(PRESETS))}")
    return PRESETS[name]
