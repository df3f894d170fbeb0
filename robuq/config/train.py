"""How a network is optimised: the same fields for pre-training and for quantization-aware training."""

from __future__ import annotations

from typing import Annotated, Literal, Self

from pydantic import Field, model_validator

from robuq.config.base import MAX_BATCH, MOST, Config

MAX_TIMESTEPS = 1_000_000


class TrainConfig(Config):
    """AdamW on the noise-prediction loss. `steps=0` trains nothing (post-training quantization)."""

    steps: Annotated[int, Field(ge=0, le=MOST)] = 300  # optimizer updates
    batch_size: Annotated[int, Field(ge=1, le=MAX_BATCH)] = 64
    lr: Annotated[float, Field(gt=0, le=1)] = 1e-3
    weight_decay: Annotated[float, Field(ge=0, le=1000)] = 0.0
    beta2: Annotated[float, Field(gt=0, lt=1)] = 0.999
    schedule: Literal["constant", "cosine"] = "cosine"
    warmup_steps: Annotated[int, Field(ge=0, le=MOST)] = 20
    clip_norm: Annotated[float, Field(gt=0, le=1e30)] = 1.0  # of the gradient of all parameters together
    ema_decay: Annotated[float, Field(ge=0, lt=1)] = 0.99  # 0 keeps no average
    label_dropout: Annotated[float, Field(ge=0, lt=1)] = 0.1  # for classifier-free guidance
    dtype: Literal["float32", "bfloat16"] = "float32"  # bfloat16: autocast, parameters stay float32
    checkpoint_every: Annotated[int, Field(ge=1, le=MOST)] = 100  # steps; the last is always kept
    telemetry_every: Annotated[int, Field(ge=0, le=MOST)] = 0  # steps between per-layer measurements; 0 takes none
    log_every: Annotated[int, Field(ge=1, le=MOST)] = 10  # steps

    @model_validator(mode="after")
    def _warmup_fits(self) -> Self:
        if 0 < self.steps <= self.warmup_steps:
            raise ValueError(f"warmup_steps {self.warmup_steps} must be below steps {self.steps}")
        return self


class DiffusionConfig(Config):
    """The forward process. The defaults are DiT's."""

    num_timesteps: Annotated[int, Field(ge=2, le=MAX_TIMESTEPS)] = 1000
    beta_schedule: Literal["linear", "squaredcos_cap_v2"] = "linear"
    beta_start: Annotated[float, Field(gt=0, lt=1)] = 1e-4
    beta_end: Annotated[float, Field(gt=0, lt=1)] = 2e-2


class CalibrationConfig(Config):
    """Data for static scales and learned steps, taken from the training split."""

    num_images: Annotated[int, Field(ge=1, le=MOST)] = 256
    batch_size: Annotated[int, Field(ge=1, le=MAX_BATCH)] = 64
    max_tokens: Annotated[int, Field(ge=1, le=MOST)] = 8192  # kept per layer, evenly over the images
