"""The forward process against its closed form in float64."""

import numpy as np
import pytest
import torch

from robuq.config import DiffusionConfig
from robuq.diffusion import NoiseSchedule


def closed_form(config: DiffusionConfig) -> np.ndarray:
    """alpha_bar in float64 from the papers' definitions."""
    if config.beta_schedule == "linear":
        return np.cumprod(1 - np.linspace(config.beta_start, config.beta_end, config.num_timesteps))
    # Nichol and Dhariwal, eq. 17, betas limited to 0.999
    grid = np.arange(config.num_timesteps + 1) / config.num_timesteps
    f = np.cos((grid + 0.008) / 1.008 * np.pi / 2) ** 2
    return np.cumprod(1 - np.minimum(1 - f[1:] / f[:-1], 0.999))


CONFIGS = [
    DiffusionConfig(),
    DiffusionConfig(num_timesteps=50, beta_start=1e-3, beta_end=0.3),
    DiffusionConfig(beta_schedule="squaredcos_cap_v2"),
    DiffusionConfig(num_timesteps=2),
]


@pytest.mark.parametrize("config", CONFIGS)
def test_alphas_cumprod(config):
    schedule = NoiseSchedule(config)
    assert schedule.num_timesteps == config.num_timesteps == len(schedule.alphas_cumprod)
    # A float32 product of n factors, each rounded twice: relative error of at most 2 n 2^-24 (1.2e-4 at n = 1000);
    # the cosine's smallest factor, 1 - 0.999, loses three more digits to cancellation.
    rtol = 2 * config.num_timesteps * 2**-24 + (1e-4 if config.beta_schedule != "linear" else 0)
    np.testing.assert_allclose(schedule.alphas_cumprod.numpy(), closed_form(config), rtol=rtol)


@pytest.mark.parametrize("timestep", [0, 300, 999])
def test_moments_of_the_noisy_images(timestep):
    schedule, alpha_bar = NoiseSchedule(DiffusionConfig()), closed_form(DiffusionConfig())[timestep]
    generator = torch.Generator().manual_seed(timestep)
    n = 40_000
    noise = torch.randn(n, 1, 1, 2, generator=generator, dtype=torch.float64)
    images = torch.tensor([0.7, -1.0], dtype=torch.float64).expand(n, 1, 1, 2)
    noisy = schedule.add_noise(images, noise, torch.full((n,), timestep))
    sigma = (1 - alpha_bar) ** 0.5
    for index, pixel in enumerate((0.7, -1.0)):
        draws = noisy[:, 0, 0, index].numpy()
        # Five standard errors of a mean and of a standard deviation, beside the table's own rounding.
        assert draws.mean() == pytest.approx(alpha_bar**0.5 * pixel, abs=5 * sigma / n**0.5 + 1e-4)
        assert draws.std() == pytest.approx(sigma, rel=5 / (2 * n) ** 0.5 + 1e-3)


def test_each_image_has_its_own_timestep():
    schedule = NoiseSchedule(DiffusionConfig())
    generator = torch.Generator().manual_seed(0)
    images, noise = torch.randn(2, 3, 2, 4, 4, generator=generator).unbind()
    timesteps = torch.tensor([0, 10, 999])
    noisy = schedule.add_noise(images, noise, timesteps)
    assert noisy.shape == (3, 2, 4, 4)
    for index, timestep in enumerate(timesteps):
        alpha_bar = closed_form(DiffusionConfig())[timestep]
        expected = alpha_bar**0.5 * images[index] + (1 - alpha_bar) ** 0.5 * noise[index]
        torch.testing.assert_close(noisy[index], expected.float(), rtol=0, atol=1e-3 * noise.abs().max().item())
