"""The noise-prediction loss against predictors whose error is known."""

import pytest
import torch
from torch import nn

from robuq.config import DiffusionConfig, LossConfig, model_preset
from robuq.diffusion import NoiseSchedule, drop_labels, held_out_loss, noise_prediction_loss
from robuq.diffusion.loss import stratified_timesteps
from robuq.models import build_dit

SCHEDULE = NoiseSchedule(DiffusionConfig())


class PointMass(nn.Module):
    """The exact noise predictor for data that are one image, plus a given error; a second half is a variance."""

    null_label, image_shape = 0, (1, 4, 4)

    def __init__(self, image, error=0.0, by_timestep=False):
        super().__init__()
        self.image, self.error, self.by_timestep = nn.Parameter(image), error, by_timestep
        self.seen = []

    def forward(self, x, timesteps, labels):
        self.seen.append((self.training, timesteps, x.clone()))
        alpha_bar = SCHEDULE.alphas_cumprod.to(x.dtype)[timesteps].view(-1, 1, 1, 1)
        noise = (x - alpha_bar.sqrt() * self.image) / (1 - alpha_bar).sqrt()
        error = timesteps.view(-1, 1, 1, 1) / 1000 if self.by_timestep else self.error
        return torch.cat([noise + error, torch.full_like(noise, 1e6)], dim=1)


def image(dtype=torch.float64):
    return torch.linspace(-1, 1, 16, dtype=dtype).view(1, 1, 4, 4)


@pytest.mark.parametrize("error", [0.0, 0.5])
def test_loss_is_the_squared_error_of_the_first_channels(error):
    generator = torch.Generator().manual_seed(0)
    noise = torch.randn(5, 1, 4, 4, generator=generator, dtype=torch.float64)
    timesteps = torch.tensor([0, 1, 500, 998, 999])
    model = PointMass(image(), error)
    losses = noise_prediction_loss(model, SCHEDULE, image().expand(5, -1, -1, -1), timesteps, noise, timesteps)
    assert losses.shape == (5,)
    torch.testing.assert_close(losses, torch.full((5,), error**2, dtype=torch.float64), rtol=1e-9, atol=1e-18)


def test_an_untrained_dit_predicts_zero_so_its_loss_is_that_of_the_noise():
    model = build_dit(model_preset("nano"), seed=0)
    generator = torch.Generator().manual_seed(0)
    images, noise = torch.randn(2, 3, 1, 8, 8, generator=generator).unbind()
    labels = torch.tensor([0, 9, 10])
    losses = noise_prediction_loss(model, SCHEDULE, images, labels, noise, torch.tensor([0, 400, 999]))
    torch.testing.assert_close(losses, noise.square().mean((1, 2, 3)))


def test_drop_labels():
    labels = torch.arange(20_000) % 10
    dropped = drop_labels(labels, 10, 0.1, torch.Generator().manual_seed(0))
    assert torch.equal(dropped, drop_labels(labels, 10, 0.1, torch.Generator().manual_seed(0)))
    assert torch.equal(dropped[dropped != 10], labels[dropped != 10])
    # Five standard deviations of a binomial share.
    assert (dropped == 10).double().mean().item() == pytest.approx(0.1, abs=5 * (0.09 / 20_000) ** 0.5)
    assert torch.equal(drop_labels(labels, 10, 0.0, torch.Generator()), labels)
    assert (drop_labels(labels, 10, 1.0, torch.Generator()) == 10).all()
    assert drop_labels(labels[:0], 10, 0.5, torch.Generator()).shape == (0,)


@pytest.mark.parametrize(("n", "num_timesteps"), [(1, 2), (7, 1000), (1000, 1000), (4000, 1000), (50, 3)])
def test_timesteps_are_stratified(n, num_timesteps):
    timesteps = stratified_timesteps(n, num_timesteps, torch.Generator().manual_seed(0))
    ordered = timesteps.sort().values.double()
    strata = torch.arange(n).double() * num_timesteps / n
    assert timesteps.dtype == torch.int64
    assert (ordered >= strata.floor()).all()
    assert (ordered <= strata + num_timesteps / n).all()
    assert ordered.max() < num_timesteps


def test_held_out_loss_of_a_known_error():
    """Error t / 1000: the loss in bin b is the mean of t^2 over it, E[t^2] = (3 b^2 + 3 b + 1) / 300."""
    model = PointMass(image(torch.float32), by_timestep=True)
    n = 2000
    result = held_out_loss(model, SCHEDULE, image(torch.float32).expand(n, -1, -1, -1), torch.zeros(n), LossConfig())
    assert result.num_images == n
    # 4 n stratified draws: one in each half step of t, so that a mean is off by less than one step, 2 t / 1000.
    assert result.mean == pytest.approx(1 / 3, abs=2e-3)
    for b, value in enumerate(result.per_timestep):
        assert value == pytest.approx((3 * b * b + 3 * b + 1) / 300, abs=2e-3)


@pytest.fixture(scope="module")
def random_dit():
    model = build_dit(model_preset("nano"), seed=0)
    generator = torch.Generator().manual_seed(1)
    for parameter in model.parameters():
        nn.init.normal_(parameter, std=0.1, generator=generator)
    return model


def digits(n):
    generator = torch.Generator().manual_seed(3)
    return torch.randn(n, 1, 8, 8, generator=generator), torch.arange(n) % 10


def test_held_out_loss_does_not_depend_on_the_batch_size_or_the_global_state(random_dit):
    results = []
    for batch_size in (1, 7, 23, 100):
        torch.manual_seed(batch_size)
        before = torch.get_rng_state()
        results.append(held_out_loss(random_dit, SCHEDULE, *digits(23), LossConfig(repeats=2, batch_size=batch_size)))
        assert torch.equal(before, torch.get_rng_state())
    for result in results[1:]:
        # The same float32 products in another order: some 100 roundings of 2^-24 in each output.
        assert result.mean == pytest.approx(results[0].mean, rel=1e-5)
        assert result.per_timestep == pytest.approx(results[0].per_timestep, rel=1e-5)
    other = held_out_loss(random_dit, SCHEDULE, *digits(23), LossConfig(repeats=2, seed=1))
    assert abs(other.mean - results[0].mean) > 1e-4


def test_held_out_loss_asks_every_model_the_same():
    seen = []
    for error in (0.0, 0.3):
        model = PointMass(image(torch.float32), error).train()
        held_out_loss(model, SCHEDULE, image(torch.float32).expand(9, -1, -1, -1), torch.zeros(9), LossConfig())
        assert model.training
        assert not any(training for training, *_ in model.seen)
        seen.append(model.seen)
    for (_, t1, x1), (_, t2, x2) in zip(*seen, strict=True):
        assert torch.equal(t1, t2)
        assert torch.equal(x1, x2)


def test_too_many_images_are_thinned_evenly():
    model = PointMass(image(torch.float32))
    images = torch.arange(10.0).view(10, 1, 1, 1).expand(10, 1, 4, 4) * 1e6  # far above any noise
    result = held_out_loss(
        model,
        NoiseSchedule(DiffusionConfig(num_timesteps=2)),
        images,
        torch.zeros(10),
        LossConfig(max_images=4, repeats=1),
    )
    assert result.num_images == 4
    assert model.seen[0][2][:, 0, 0, 0].div(1e6).round().tolist() == [0, 2, 5, 7]
    # Two timesteps fall into the first and the sixth of ten bins.
    assert [index for index, value in enumerate(result.per_timestep) if value is not None] == [0, 5]


def test_no_images_is_an_error(random_dit):
    with pytest.raises(ValueError, match="0 images"):
        held_out_loss(random_dit, SCHEDULE, *digits(0), LossConfig())
