"""The noise-prediction loss, in training and on held-out images."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from robuq.config import LossConfig
from robuq.diffusion.evaluation_mode import evaluation_mode
from robuq.diffusion.schedule import NoiseSchedule
from robuq.models import DiT

TIMESTEP_BINS = 10


def noise_prediction_loss(
    model: DiT, schedule: NoiseSchedule, images: Tensor, labels: Tensor, noise: Tensor, timesteps: Tensor
) -> Tensor:
    """(N, C, H, W), (N,), (N, C, H, W), (N,) -> (N,): each image's mean of (predicted noise - noise)^2.

    The model's first C output channels predict the noise; those of a learned variance are not used.
    Source: Ho et al., Denoising Diffusion Probabilistic Models, eq. 14.
    """
    output: Tensor = model(schedule.add_noise(images, noise, timesteps), timesteps, labels)
    return (output[:, : images.shape[1]].to(noise.dtype) - noise).square().flatten(1).mean(1)


def drop_labels(labels: Tensor, null_label: int, p: float, generator: torch.Generator) -> Tensor:
    """(N,) -> (N,): each label becomes `null_label` with probability p, for classifier-free guidance."""
    draws = torch.rand(labels.shape, generator=generator, device=generator.device)
    return labels.masked_fill((draws < p).to(labels.device), null_label)


@dataclass(frozen=True)
class HeldOutLoss:
    """Means over held-out images, noise draws and timesteps."""

    mean: float
    per_timestep: tuple[float | None, ...]  # ten equal bins of the timesteps, least noise first; None: no draw in it
    num_images: int


def held_out_loss(
    model: DiT, schedule: NoiseSchedule, images: Tensor, labels: Tensor, config: LossConfig
) -> HeldOutLoss:
    """The loss at noise and timesteps that `config.seed` fixes: equal seeds compare models on equal questions.

    The batch size enters only through the rounding of the model's own products. Images beyond
    `config.max_images` are left out evenly.

    Raises:
        ValueError: no images.
    """
    if not len(images):
        raise ValueError("held-out loss of 0 images: give at least one")
    kept = torch.arange(min(len(images), config.max_images)) * len(images) // min(len(images), config.max_images)
    images, labels = images[kept], labels[kept]
    generator = torch.Generator().manual_seed(config.seed)
    losses, timesteps = [], []
    with evaluation_mode(model):
        for _ in range(config.repeats):
            noise = torch.randn(images.shape, generator=generator).to(images)
            timesteps.append(stratified_timesteps(len(images), schedule.num_timesteps, generator))
            questions = (images, labels, noise, timesteps[-1])
            for start in range(0, len(images), config.batch_size):
                batch = (part[start : start + config.batch_size] for part in questions)
                losses.append(_batch_loss(model, schedule, *batch))
    return _summary(torch.cat(losses), torch.cat(timesteps), schedule.num_timesteps, len(images))


def stratified_timesteps(n: int, num_timesteps: int, generator: torch.Generator) -> Tensor:
    """(n,) int64 in random order, one uniform draw from each n-th part of [0, num_timesteps)."""
    strata = torch.randperm(n, generator=generator).double()
    draws = torch.rand(n, generator=generator, dtype=torch.float64)
    return ((strata + draws) * (num_timesteps / n)).long().clamp_(max=num_timesteps - 1)


def _batch_loss(
    model: DiT, schedule: NoiseSchedule, images: Tensor, labels: Tensor, noise: Tensor, timesteps: Tensor
) -> Tensor:
    device = next(model.parameters()).device
    parts = [part.to(device) for part in (images, labels, noise, timesteps)]
    return noise_prediction_loss(model, schedule, *parts).double().cpu()


def _summary(losses: Tensor, timesteps: Tensor, num_timesteps: int, num_images: int) -> HeldOutLoss:
    bins = timesteps * TIMESTEP_BINS // num_timesteps
    parts = [losses[bins == index] for index in range(TIMESTEP_BINS)]
    means = tuple(part.mean().item() if len(part) else None for part in parts)
    return HeldOutLoss(losses.mean().item(), means, num_images)
