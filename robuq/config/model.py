"""Sizes of Diffusion Transformers, from the embedded tiny ones to DiT-XL/2."""

from __future__ import annotations

from typing import Annotated, Self

from pydantic import Field, model_validator

from robuq.config.base import MAX_WIDTH, Config, ConfigError, did_you_mean

MAX_IMAGE_SIZE = 8192  # pixels
MAX_NUMBERS = 2**27  # in the tokens of one image
Count = Annotated[int, Field(ge=1, le=MAX_WIDTH)]


class ModelConfig(Config):
    """A DiT. `num_classes=0` is unconditional. `pretrained` is a local folder in diffusers' layout."""

    # Of the model's input (the latent, for a latent model), pixels.
    image_size: Annotated[int, Field(ge=1, le=MAX_IMAGE_SIZE)] = 8
    in_channels: Count = 1
    learned_variance: bool = False  # the output has twice the channels; the second half is unused here
    patch_size: Count = 2
    width: Count = 64
    num_layers: Annotated[int, Field(ge=1, le=1000)] = 4
    num_heads: Count = 4
    mlp_ratio: Count = 4  # documented constant of diffusers' DiT; other values are refused
    num_classes: Annotated[int, Field(ge=0, le=1_000_000)] = 10
    pretrained: str | None = None

    @model_validator(mode="after")
    def _divides(self) -> Self:
        if self.image_size % self.patch_size:
            raise ValueError(f"image_size {self.image_size} is no multiple of patch_size {self.patch_size}")
        if self.num_tokens * self.width > MAX_NUMBERS:
            raise ValueError(
                f"{self.num_tokens} tokens of width {self.width} are more than {MAX_NUMBERS} numbers: "
                "a larger patch_size makes fewer tokens"
            )
        if self.width % self.num_heads:
            raise ValueError(f"width {self.width} is no multiple of num_heads {self.num_heads}")
        if self.mlp_ratio != 4:
            raise ValueError(f"mlp_ratio must be 4 (diffusers' DiT has no other), got {self.mlp_ratio}")
        return self

    @property
    def num_tokens(self) -> int:
        return (self.image_size // self.patch_size) ** 2

    @property
    def head_dim(self) -> int:
        return self.width // self.num_heads

    @property
    def out_channels(self) -> int:
        return self.in_channels * (2 if self.learned_variance else 1)


MODEL_PRESETS: dict[str, ModelConfig] = {
    "nano": ModelConfig(width=32, num_layers=2, num_heads=2),
    "digits": ModelConfig(),
    "fashion": ModelConfig(image_size=28, patch_size=4, width=128, num_layers=6, num_heads=8),
    "DiT-S/2": ModelConfig(
        image_size=32, in_channels=4, learned_variance=True, width=384, num_layers=12, num_heads=6, num_classes=1000
    ),
    "DiT-B/2": ModelConfig(
        image_size=32, in_channels=4, learned_variance=True, width=768, num_layers=12, num_heads=12, num_classes=1000
    ),
    "DiT-XL/2": ModelConfig(
        image_size=32, in_channels=4, learned_variance=True, width=1152, num_layers=28, num_heads=16, num_classes=1000
    ),
}


def model_preset(name: str) -> ModelConfig:
    """Raises ConfigError for an unknown name."""
    if name not in MODEL_PRESETS:
        raise ConfigError(f"unknown model preset {name!r}{did_you_mean(name, list(MODEL_PRESETS))}")
    return MODEL_PRESETS[name]
