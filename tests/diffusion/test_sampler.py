"""Samplers against distributions whose optimal predictor, and whose samples, are known in closed form."""

import numpy as np
import pytest
import torch
from diffusers import DDIMScheduler
from torch import nn

from robuq.config import DiffusionConfig, SampleConfig, model_preset
from robuq.diffusion import sample_images
from robuq.diffusion.sampler import guided_noise, image_generator, make_scheduler
from robuq.models import build_dit

DIFFUSION = DiffusionConfig()
ALPHA_BAR = np.cumprod(1 - np.linspace(DIFFUSION.beta_start, DIFFUSION.beta_end, DIFFUSION.num_timesteps))


class Gaussian(nn.Module):
    """The exact noise predictor for pixels N(mean, std^2): E[noise | x_t].

    With a = sqrt(alpha_bar) and s = sqrt(1 - alpha_bar): s (x - a mean) / (a^2 std^2 + s^2).
    """

    null_label, image_shape = 10, (2, 3, 3)

    def __init__(self, mean, std):
        super().__init__()
        self.mean, self.std = nn.Parameter(torch.tensor(mean)), std
        self.calls = []

    def forward(self, x, timesteps, labels):
        self.calls.append((self.training, len(x), timesteps, labels))
        alpha_bar = torch.tensor(ALPHA_BAR)[timesteps].view(-1, 1, 1, 1)
        noise = (1 - alpha_bar).sqrt() * (x.double() - alpha_bar.sqrt() * self.mean)
        noise = noise / (alpha_bar * self.std**2 + 1 - alpha_bar)
        return torch.cat([noise.float(), torch.full_like(x, float("nan"))], dim=1)  # a learned variance, unused


def config(**changes):
    return SampleConfig(**{"steps": 20, "clip_sample": False, "batch_size": 4, **changes})


def initial_noise(n, seed=0):
    return torch.stack([torch.randn(2, 3, 3, generator=image_generator(seed, index)) for index in range(n)])


@pytest.mark.parametrize("sampler", ["ddim", "ddpm"])
@pytest.mark.parametrize("spacing", ["trailing", "leading"])
@pytest.mark.parametrize("steps", [1, 10, 1000])
def test_a_point_mass_is_hit(sampler, spacing, steps):
    images = sample_images(
        Gaussian(0.25, 0.0),
        torch.zeros(3, dtype=torch.int64),
        DIFFUSION,
        config(sampler=sampler, spacing=spacing, steps=steps),
    )
    # x_0 = (x - s noise) / a magnifies float32 rounding of x, of size 1, by 1 / a: 158 at the last timestep; later
    # steps forget it. One step keeps it: 158 * 4 roundings of 2^-24, times |x| < 5.
    torch.testing.assert_close(images, torch.full((3, 2, 3, 3), 0.25), rtol=0, atol=5e-4 if steps == 1 else 1e-4)


def ddim_gain(std, timesteps):
    """DDIM is affine for a Gaussian: x_0 = mean + gain * (x_T - a_T mean), in float64."""
    gain = 1.0
    for now, after in zip(timesteps, [*timesteps[1:], None], strict=True):
        a2, b2 = ALPHA_BAR[now], 1.0 if after is None else ALPHA_BAR[after]
        variance = a2 * std**2 + 1 - a2
        noise = (1 - a2) ** 0.5 / variance  # of the deviation from a mean
        clean = a2**0.5 * std**2 / variance
        gain *= b2**0.5 * clean + (1 - b2) ** 0.5 * noise
    return gain


@pytest.mark.parametrize(
    ("spacing", "steps", "timesteps"),
    [
        ("trailing", 20, list(range(999, 0, -50))),
        ("leading", 20, list(range(950, -1, -50))),
        ("trailing", 1000, list(range(999, -1, -1))),
    ],
)
def test_ddim_of_a_gaussian_is_affine_in_its_noise(spacing, steps, timesteps):
    mean, std = 0.3, 0.5
    labels = torch.zeros(5, dtype=torch.int64)
    images = sample_images(Gaussian(mean, std), labels, DIFFUSION, config(spacing=spacing, steps=steps))
    start = ALPHA_BAR[timesteps[0]] ** 0.5
    expected = mean + ddim_gain(std, timesteps) * (initial_noise(5).double() - start * mean)
    # The scheduler's float32 table of alpha_bar is off by up to 1.2e-4 (see the schedule's test).
    torch.testing.assert_close(images.double(), expected, rtol=1e-3, atol=1e-3)


def test_many_ddim_steps_approach_the_probability_flow():
    """The flow carries N(0, 1) at T onto the data: x_0 = mean + std x_T in the limit."""
    images = sample_images(Gaussian(0.3, 0.5), torch.zeros(4, dtype=torch.int64), DIFFUSION, config(steps=1000))
    torch.testing.assert_close(images, 0.3 + 0.5 * initial_noise(4), rtol=0, atol=0.02)


@pytest.mark.parametrize("steps", [250, 300])
def test_ddpm_draws_the_gaussian(steps):
    n = 400
    labels = torch.zeros(n, dtype=torch.int64)
    images = sample_images(Gaussian(0.3, 0.5), labels, DIFFUSION, config(sampler="ddpm", steps=steps, batch_size=n))
    count = images.numel()
    # Five standard errors, and 2 % for some 250 steps in place of infinitely many.
    assert images.mean().item() == pytest.approx(0.3, abs=5 * 0.5 / count**0.5)
    assert images.std().item() == pytest.approx(0.5, rel=5 / (2 * count) ** 0.5 + 0.02)


def test_guidance_is_linear_and_limited_to_its_channels():
    class ByLabel(nn.Module):
        null_label = 7

        def forward(self, x, timesteps, labels):
            assert (timesteps == 40).all()
            return x * 0 + labels.view(-1, 1, 1, 1).to(x.dtype)

    x, labels = torch.zeros(2, 4, 3, 3), torch.tensor([1, 3])
    for guidance in (1.0, 1.5, 4.0):
        guided = 7 + guidance * (labels - 7)
        for channels, expected in ((None, [guided] * 4), (3, [guided] * 3 + [labels]), (1, [guided] + [labels] * 3)):
            noise = guided_noise(ByLabel(), x, 40, labels, config(guidance=guidance, guidance_channels=channels))
            wanted = torch.stack([value.float() for value in expected], dim=1)[:, :, None, None].expand(2, 4, 3, 3)
            torch.testing.assert_close(noise, wanted)


def test_no_guidance_needs_no_second_half():
    for guidance, size in ((1.0, 3), (2.0, 6)):
        model = Gaussian(0.0, 1.0)
        sample_images(model, torch.tensor([1, 2, 3]), DIFFUSION, config(guidance=guidance, steps=2))
        assert [call[1] for call in model.calls] == [size, size]
        assert model.calls[0][3].tolist() == [1, 2, 3, 10, 10, 10][:size]


@pytest.fixture(scope="module")
def random_dit():
    model = build_dit(model_preset("nano"), seed=0)
    generator = torch.Generator().manual_seed(1)
    for parameter in model.parameters():
        nn.init.normal_(parameter, std=0.1, generator=generator)
    return model


@pytest.mark.parametrize("sampler", ["ddim", "ddpm"])
@pytest.mark.parametrize("guidance", [1.0, 2.0])
def test_batches_and_workers_change_nothing(random_dit, sampler, guidance):
    labels = torch.arange(7) % 10
    images = []
    for batch_size in (1, 3, 7):
        torch.manual_seed(batch_size)
        settings = SampleConfig(sampler=sampler, guidance=guidance, batch_size=batch_size, steps=20)
        images.append(sample_images(random_dit, labels, DIFFUSION, settings))
    settings = SampleConfig(sampler=sampler, guidance=guidance, batch_size=3, steps=20)
    parts = [sample_images(random_dit, labels[a:b], DIFFUSION, settings, first_index=a) for a, b in ((0, 3), (3, 7))]
    # Matrix products of another height may sum in another order: each of 20 steps adds some ten roundings of 2^-24
    # to values of size 1, guidance doubles them, and x / a magnifies those of clipped early steps no further.
    for other in (images[1], images[2], torch.cat(parts)):
        torch.testing.assert_close(other, images[0], rtol=0, atol=20 * 10 * 2**-24 * 4)
    # The same batches give the same bits.
    assert torch.equal(torch.cat(parts)[:6], images[1][:6])
    assert not torch.allclose(images[0][0], images[0][1], atol=0.1)


def test_image_index_and_seed_decide_the_noise():
    first, second = image_generator(0, 1), image_generator(1, 0)
    draws = {tuple(torch.randn(4, generator=g).tolist()) for g in (first, second, image_generator(0, 0))}
    assert len(draws) == 3
    model, labels = Gaussian(0.0, 1.0), torch.zeros(2, dtype=torch.int64)
    base = sample_images(model, labels, DIFFUSION, config(steps=4))
    assert torch.equal(base[1:], sample_images(model, labels[:1], DIFFUSION, config(steps=4), first_index=1))
    assert not torch.equal(base, sample_images(model, labels, DIFFUSION, config(steps=4, seed=1)))


def test_clipped_samples_agree_with_diffusers(random_dit):
    """The bare scheduler loop, written out, with the noise re-derived from the clipped image."""
    labels = torch.tensor([3, 5])
    images = sample_images(random_dit, labels, DIFFUSION, SampleConfig(steps=10, batch_size=2))
    scheduler = DDIMScheduler(timestep_spacing="trailing")
    scheduler.set_timesteps(10)
    x = torch.stack([torch.randn(1, 8, 8, generator=image_generator(0, index)) for index in range(2)])
    with torch.no_grad():
        for timestep in scheduler.timesteps:
            noise = random_dit(x, timestep.repeat(2), labels)
            x = scheduler.step(noise, timestep, x, use_clipped_model_output=True).prev_sample
    torch.testing.assert_close(images, x, rtol=0, atol=1e-5)
    assert images.abs().max() <= 1
    assert (images.abs() == 1).any()  # clipping had something to do


def test_modes_come_back_and_results_are_ordinary_tensors(random_dit):
    random_dit.train()
    random_dit.transformer_blocks[1].eval()
    before = [module.training for module in random_dit.modules()]
    state = torch.get_rng_state()
    images = sample_images(random_dit, torch.tensor([1]), DIFFUSION, SampleConfig(steps=2))
    assert [module.training for module in random_dit.modules()] == before
    assert torch.equal(state, torch.get_rng_state())
    assert not images.is_inference()
    assert not images.requires_grad
    model = Gaussian(0.0, 1.0).train()
    sample_images(model, torch.tensor([1]), DIFFUSION, config(steps=2))
    assert [call[0] for call in model.calls] == [False, False]
    with pytest.raises(IndexError):
        sample_images(random_dit, torch.tensor([99]), DIFFUSION, SampleConfig(steps=2))
    assert [module.training for module in random_dit.modules()] == before


def test_progress_and_no_images():
    done = []
    labels = torch.zeros(10, dtype=torch.int64)
    sample_images(Gaussian(0.0, 1.0), labels, DIFFUSION, config(steps=1), on_batch=done.append)
    assert done == [4, 8, 10]
    assert sample_images(Gaussian(0.0, 1.0), labels[:0], DIFFUSION, config()).shape == (0, 2, 3, 3)


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"guidance_channels": 3}, "guidance_channels=3: the images have 2"),
        ({"steps": 1001}, "at most num_timesteps=1000"),
        ({"steps": 30}, "steps=30: need a divisor of num_timesteps=1000"),
        ({"steps": 600, "sampler": "ddpm", "spacing": "leading"}, "need a divisor"),
    ],
)
def test_settings_that_do_not_fit(changes, message):
    with pytest.raises(ValueError, match=message):
        sample_images(Gaussian(0.0, 1.0), torch.zeros(1, dtype=torch.int64), DIFFUSION, config(**changes))


def test_trailing_starts_at_pure_noise_and_leading_ends_at_zero():
    assert make_scheduler(DIFFUSION, config()).timesteps.tolist() == list(range(999, 0, -50))
    timesteps = make_scheduler(DIFFUSION, config(spacing="leading")).timesteps
    assert timesteps.tolist() == list(range(950, -1, -50))
