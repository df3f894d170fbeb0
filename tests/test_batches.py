"""Batches are functions of seed and step, and show every image once an epoch."""

import math

import pytest
import torch
from torch import Tensor

from robuq.batches import Batches, known_labels, noised_at_mixed_timesteps
from robuq.config import MODEL_PRESETS, DataConfig, DiffusionConfig, TrainConfig
from robuq.data.load import ImageData, load_data
from robuq.diffusion.schedule import NoiseSchedule
from robuq.models import build_dit

NANO = MODEL_PRESETS["nano"]


@pytest.fixture(scope="module")
def data() -> ImageData:
    return load_data(DataConfig())


@pytest.fixture(scope="module")
def schedule() -> NoiseSchedule:
    return NoiseSchedule(DiffusionConfig())


def batches(
    data: ImageData, schedule: NoiseSchedule, seed: int = 0, num_classes: int = 10, **changes: object
) -> Batches:
    return Batches(
        build_dit(NANO.updated(num_classes=num_classes), seed=0),
        data,
        schedule,
        TrainConfig(batch_size=8).updated(**changes),
        seed,
        torch.device("cpu"),
    )


def as_tuple(source: Batches, step: int) -> tuple[Tensor, ...]:
    batch = source(step)
    return tuple(part.clone() for part in (batch.images, batch.labels, batch.noise, batch.timesteps))


def test_a_batch_depends_on_seed_and_step_alone(data: ImageData, schedule: NoiseSchedule) -> None:
    one, other = batches(data, schedule), batches(data, schedule)
    forward = [as_tuple(one, step) for step in range(400, 404)]
    backward = [as_tuple(other, step) for step in reversed(range(400, 404))][::-1]
    for a, b in zip(forward, backward, strict=True):
        assert all(torch.equal(x, y) for x, y in zip(a, b, strict=True))
    assert not torch.equal(forward[0][2], forward[1][2])
    assert not torch.equal(forward[0][2], as_tuple(batches(data, schedule, seed=1), 400)[2])


@pytest.mark.parametrize("batch_size", [7, 64, 3000])
def test_each_epoch_shows_each_image_once_in_another_order(
    data: ImageData, schedule: NoiseSchedule, batch_size: int
) -> None:
    source, count = batches(data, schedule, batch_size=batch_size), len(data.train_images)
    steps = -(-2 * count // batch_size)
    stream = torch.cat([source.indices(step) for step in range(steps)])
    first, second = stream[:count], stream[count : 2 * count]
    assert torch.equal(first.sort().values, torch.arange(count))
    assert torch.equal(second.sort().values, torch.arange(count))
    assert not torch.equal(first, second)


def test_images_keep_their_labels_and_some_labels_are_dropped(data: ImageData, schedule: NoiseSchedule) -> None:
    source = batches(data, schedule, batch_size=1000, label_dropout=0.3)
    batch, indices = source(1), source.indices(1)
    assert torch.equal(batch.images, data.train_images[indices])
    dropped = batch.labels == 10
    assert torch.equal(batch.labels[~dropped], data.train_labels[indices][~dropped])
    assert abs(dropped.double().mean() - 0.3) < 5 * math.sqrt(0.3 * 0.7 / 1000)
    assert int(batch.timesteps.min()) >= 0
    assert 900 < int(batch.timesteps.max()) < 1000


def test_unconditional_batches_have_one_label(data: ImageData, schedule: NoiseSchedule) -> None:
    assert torch.equal(batches(data, schedule, num_classes=0)(0).labels, torch.zeros(8, dtype=torch.int64))


def test_timesteps_cover_the_schedule(schedule: NoiseSchedule) -> None:
    _, timesteps = noised_at_mixed_timesteps(torch.zeros(4, 1, 2, 2), schedule, torch.Generator().manual_seed(0))
    assert timesteps.tolist() == [125, 375, 625, 875]
    _, one = noised_at_mixed_timesteps(torch.zeros(1, 1, 2, 2), schedule, torch.Generator().manual_seed(0))
    assert one.tolist() == [500]


def test_known_labels() -> None:
    labels = torch.tensor([3, 1, 2])
    assert torch.equal(known_labels(labels, 10), labels)
    assert torch.equal(known_labels(labels, 0), torch.zeros(3, dtype=torch.int64))
