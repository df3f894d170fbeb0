"""Drawing images: our own loop over diffusers' schedulers."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np
import torch
from diffusers import DDIMScheduler, DDPMScheduler
from diffusers.utils.torch_utils import randn_tensor
from torch import Tensor

from robuq.config import DiffusionConfig, SampleConfig
from robuq.diffusion.evaluation_mode import evaluation_mode
from robuq.diffusion.schedule import scheduler_settings
from robuq.models import DiT


def sample_images(
    model: DiT,
    labels: Tensor,
    diffusion: DiffusionConfig,
    config: SampleConfig,
    first_index: int = 0,
    on_batch: Callable[[int], None] | None = None,
) -> Tensor:
    """One image per label: (N,) int64 -> (N, C, H, W) float32 on the CPU, in [-1, 1] if `config.clip_sample`.

    Image i draws all its noise from its own generator, seeded by `config.seed` and `first_index + i`: how images
    are split into batches or over workers changes nothing but the rounding of the model's products.
    `on_batch` is told how many images are done.

    Raises:
        ValueError: more guidance channels than the images have, or steps that do not fit the timesteps.
    """
    config.check_fits(diffusion.num_timesteps, model.image_shape[0])
    done = []
    for start in range(0, len(labels), config.batch_size):
        batch = labels[start : start + config.batch_size]
        generators = [image_generator(config.seed, first_index + start + i) for i in range(len(batch))]
        done.append(_sample_batch(model, batch, diffusion, config, generators))
        if on_batch is not None:
            on_batch(start + len(batch))
    # The concatenation also makes ordinary tensors of those of inference mode.
    return torch.cat(done) if done else torch.empty(0, *model.image_shape)


def image_generator(seed: int, index: int) -> torch.Generator:
    """The source of all noise of one image."""
    word = np.random.SeedSequence((seed, index)).generate_state(1, np.uint64)[0]
    return torch.Generator().manual_seed(int(word >> np.uint64(1)))  # torch takes 63 bits


def make_scheduler(diffusion: DiffusionConfig, config: SampleConfig) -> Any:
    """diffusers' DDIM (eta 0) or DDPM (posterior variance: `fixed_small`) over `config.steps` timesteps."""
    kind = DDIMScheduler if config.sampler == "ddim" else DDPMScheduler
    settings = {**scheduler_settings(diffusion), "clip_sample": config.clip_sample, "timestep_spacing": config.spacing}
    scheduler = kind(**settings)
    scheduler.set_timesteps(config.steps)
    return scheduler


def guided_noise(model: DiT, x: Tensor, timestep: int, labels: Tensor, config: SampleConfig) -> Tensor:
    """The noise predicted in x (N, C, H, W) at one timestep, under classifier-free guidance -> (N, C, H, W).

    null + guidance * (conditional - null) on the first `guidance_channels` channels (None: all); the other
    channels are the conditional prediction, as in the original DiT, which guides three of four latent channels.
    """
    if config.guidance == 1:
        return _predicted_noise(model, x, timestep, labels)
    both = torch.cat([labels, torch.full_like(labels, model.null_label)])
    conditional, null = _predicted_noise(model, torch.cat([x, x]), timestep, both).chunk(2)
    guided = config.guidance_channels or x.shape[1]
    mixed = torch.lerp(null[:, :guided], conditional[:, :guided], config.guidance)
    return torch.cat([mixed, conditional[:, guided:]], dim=1)


def _predicted_noise(model: DiT, x: Tensor, timestep: int, labels: Tensor) -> Tensor:
    output: Tensor = model(x, torch.full_like(labels, timestep), labels)
    noise: Tensor = output[:, : x.shape[1]].to(x.dtype)
    return noise


def _sample_batch(
    model: DiT, labels: Tensor, diffusion: DiffusionConfig, config: SampleConfig, generators: list[torch.Generator]
) -> Tensor:
    device = next(model.parameters()).device
    scheduler = make_scheduler(diffusion, config)
    labels = labels.to(device)
    # The re-derived noise agrees with the clipped image, as in the original DiT; diffusers' default is not to.
    extra = {"use_clipped_model_output": True} if config.sampler == "ddim" else {}
    with evaluation_mode(model):
        x = randn_tensor((len(labels), *model.image_shape), generator=generators, device=device)
        for timestep in scheduler.timesteps:
            noise = guided_noise(model, x, int(timestep), labels, config)
            x = scheduler.step(noise, timestep, x, generator=generators, **extra, return_dict=False)[0]
        x = x.clamp(-1, 1) if config.clip_sample else x
    images: Tensor = x.cpu()
    return images
