"""Which images a network is shown, with which noise and timesteps: functions of a seed and a step."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from robuq.config import TrainConfig
from robuq.data.load import ImageData
from robuq.diffusion.loss import drop_labels
from robuq.diffusion.schedule import NoiseSchedule
from robuq.models import DiT
from robuq.seeding import derived_generator, derived_seed


def known_labels(labels: Tensor, null_label: int) -> Tensor:
    """The labels as a model knows them: an unconditional one has label 0 alone."""
    return torch.zeros_like(labels) if null_label == 0 else labels


def noised_at_mixed_timesteps(
    images: Tensor, schedule: NoiseSchedule, generator: torch.Generator
) -> tuple[Tensor, Tensor]:
    """images (N, C, H, W) -> noised images, timesteps (N,): one from each N-th of the schedule, in image order."""
    count = len(images)
    timesteps = (2 * torch.arange(count, device=images.device) + 1) * schedule.num_timesteps // (2 * count)
    noise = torch.randn(images.shape, generator=generator, device=generator.device).to(images.device)
    return schedule.add_noise(images, noise, timesteps), timesteps


@dataclass(frozen=True)
class Batch:
    images: Tensor  # (N, C, H, W)
    labels: Tensor  # (N,), some dropped
    noise: Tensor  # (N, C, H, W)
    timesteps: Tensor  # (N,)


class Batches:
    """The batch of a step, a pure function of (seed, step): epoch after epoch, each in an order of its own.

    The data lies on the training device, and the returned tensors are reused by the next call.
    """

    def __init__(
        self, model: DiT, data: ImageData, schedule: NoiseSchedule, config: TrainConfig, seed: int, device: torch.device
    ) -> None:
        self._images = data.train_images.to(device)
        self._labels = known_labels(data.train_labels, model.null_label).to(device)
        self._size, self._seed, self._device = config.batch_size, seed, device
        self._null_label, self._dropout = model.null_label, config.label_dropout
        self._num_timesteps = schedule.num_timesteps
        self._batch_images = self._images.new_empty((self._size, *self._images.shape[1:]))
        self._noise = torch.empty_like(self._batch_images)
        self._generator = torch.Generator(device)
        self._epoch, self._order = -1, torch.empty(0, dtype=torch.int64)

    def __call__(self, step: int) -> Batch:
        indices = self.indices(step)
        generator = self._generator.manual_seed(derived_seed(self._seed, "step", step))
        torch.index_select(self._images, 0, indices, out=self._batch_images)
        self._noise.normal_(generator=generator)
        timesteps = torch.randint(self._num_timesteps, (self._size,), generator=generator, device=self._device)
        labels = drop_labels(self._labels[indices], self._null_label, self._dropout, generator)
        return Batch(self._batch_images, labels, self._noise, timesteps)

    def indices(self, step: int) -> Tensor:
        """(N,) positions in the training split."""
        count, position, parts, missing = len(self._images), step * self._size, [], self._size
        while missing:
            epoch, offset = divmod(position, count)
            part = self._permutation(epoch)[offset : offset + missing]
            parts.append(part)
            position, missing = position + len(part), missing - len(part)
        return torch.cat(parts)

    def _permutation(self, epoch: int) -> Tensor:
        if epoch != self._epoch:
            generator = derived_generator(self._seed, "epoch", epoch)
            order = torch.randperm(len(self._images), generator=generator)
            self._epoch, self._order = epoch, order.to(self._device)
        return self._order
