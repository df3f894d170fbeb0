"""The forward process: how noise is mixed into images."""

from __future__ import annotations

from typing import Any

from diffusers import DDPMScheduler
from torch import Tensor

from robuq.config import DiffusionConfig


class NoiseSchedule:
    """q(x_t | x_0) = N(sqrt(alpha_bar_t) x_0, (1 - alpha_bar_t) I), alpha_bar_t = prod_{s <= t} (1 - beta_s)."""

    def __init__(self, config: DiffusionConfig) -> None:
        self.num_timesteps = config.num_timesteps
        self._scheduler = DDPMScheduler(**scheduler_settings(config))

    @property
    def alphas_cumprod(self) -> Tensor:
        """alpha_bar, (num_timesteps,)."""
        alphas_cumprod: Tensor = self._scheduler.alphas_cumprod
        return alphas_cumprod

    def add_noise(self, images: Tensor, noise: Tensor, timesteps: Tensor) -> Tensor:
        """(N, C, H, W), (N, C, H, W), (N,) int64 -> (N, C, H, W), a draw of q(x_t | x_0)."""
        noisy: Tensor = self._scheduler.add_noise(images, noise, timesteps)
        return noisy


def scheduler_settings(config: DiffusionConfig) -> dict[str, Any]:
    """The arguments that all of diffusers' schedulers share."""
    return {
        "num_train_timesteps": config.num_timesteps,
        "beta_schedule": config.beta_schedule,
        "beta_start": config.beta_start,
        "beta_end": config.beta_end,
        "prediction_type": "epsilon",
    }
