"""How a network is judged. Everything here enters the protocol fingerprint."""

from __future__ import annotations

from typing import Annotated, Literal

from pydantic import Field

from robuq.config.base import MAX_BATCH, MAX_WIDTH, MOST, Config, Seed
from robuq.config.train import MAX_TIMESTEPS


class SampleConfig(Config):
    """How images are drawn. One generator per image index: batch size and workers change nothing."""

    sampler: Literal["ddim", "ddpm"] = "ddim"
    steps: Annotated[int, Field(ge=1, le=MAX_TIMESTEPS)] = 20
    # Which timesteps: trailing starts at the last one, where an image is nothing but noise; leading, diffusers'
    # default, ends at timestep 0. `steps` divides num_timesteps (ddpm with trailing takes any number).
    spacing: Literal["trailing", "leading"] = "trailing"
    guidance: Annotated[float, Field(ge=1, le=1000)] = 1.0  # 1 = none
    guidance_channels: Annotated[int, Field(ge=1, le=MAX_WIDTH)] | None = None  # None: all of them
    num_images: Annotated[int, Field(ge=0, le=1_000_000)] = 1000
    batch_size: Annotated[int, Field(ge=1, le=MAX_BATCH)] = 250
    seed: Seed = 0
    clip_sample: bool = True  # clamp the predicted image to [-1, 1] (pixel models)

    def check_fits(self, num_timesteps: int, channels: int) -> None:
        """Raise ValueError where images of `channels` cannot be drawn like this from a schedule of `num_timesteps`."""
        if self.guidance_channels is not None and self.guidance_channels > channels:
            raise ValueError(f"guidance_channels={self.guidance_channels}: the images have {channels}")
        if self.steps > num_timesteps:
            raise ValueError(f"steps={self.steps}: at most num_timesteps={num_timesteps}")
        # diffusers' DDIM always goes down by num_timesteps // steps, whichever timestep comes next; leading spacing
        # of, say, 600 steps would start at timestep 599.
        if num_timesteps % self.steps and (self.sampler == "ddim" or self.spacing == "leading"):
            raise ValueError(
                f"steps={self.steps}: need a divisor of num_timesteps={num_timesteps}"
                " (only sampler='ddpm' with spacing='trailing' takes any number)"
            )


class LossConfig(Config):
    """Held-out diffusion loss at fixed noise and timesteps."""

    repeats: Annotated[int, Field(ge=1, le=10_000)] = 4  # noise draws per held-out image
    max_images: Annotated[int, Field(ge=1, le=MOST)] = 2000
    batch_size: Annotated[int, Field(ge=1, le=MAX_BATCH)] = 256
    seed: Seed = 0


class FeatureConfig(Config):
    """The small classifier, trained on the data set, whose features the distances live in."""

    width: Annotated[int, Field(ge=4, le=MAX_WIDTH)] = 32  # of the feature vector
    channels: Annotated[int, Field(ge=4, le=MAX_WIDTH)] = 16
    epochs: Annotated[int, Field(ge=1, le=1_000_000)] = 15
    lr: Annotated[float, Field(gt=0, le=1)] = 3e-3
    batch_size: Annotated[int, Field(ge=1, le=MAX_BATCH)] = 64
    # Training images used, and the most kept as real reference.
    max_images: Annotated[int, Field(ge=1, le=MOST)] = 10_000
    seed: Seed = 0


class EvalConfig(Config):
    loss: LossConfig = LossConfig()
    sample: SampleConfig = SampleConfig()
    features: FeatureConfig = FeatureConfig()
    neighbours: Annotated[int, Field(ge=1, le=10_000)] = 3  # k of precision and recall
    grid_images: Annotated[int, Field(ge=0, le=10_000)] = 40  # first sampled images kept for the sample grid
    distributions: bool = True  # keep a sample of the tokens that enter the middle block's linears
