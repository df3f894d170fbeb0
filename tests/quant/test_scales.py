"""Every scale rule against numpy and scipy; granularities against loops."""

import math
import warnings

import numpy as np
import pytest
import torch
from gaussian_error import gaussian_mse
from scipy import stats

from robuq.config.quant import QUEST_CLIP, ActQuant
from robuq.quant.grids import gaussian_step, levels, max_level
from robuq.quant.scales import (
    IQR_TO_SIGMA,
    MAD_TO_SIGMA,
    MEAN_ABS_TO_SIGMA,
    MIN_SCALE,
    grouped,
    quantile,
    scale_and_center,
)

RULES = ["absmax", "minmax", "absmean", "percentile", "sigma", "mad", "iqr", "gaussian", "rms"]


def reference(v: np.ndarray, spec: ActQuant) -> float:
    """The scale of one group of deviations v (n,), in float64, by numpy and scipy."""
    top = max_level(spec.grid, spec.bits)
    sigma = math.sqrt(np.mean(v**2)) if spec.spread == "std" else np.mean(np.abs(v)) * math.sqrt(math.pi / 2)
    rules = {
        "absmax": lambda: np.max(np.abs(v)) / top,
        "absmean": lambda: np.mean(np.abs(v)) / math.sqrt(max(2 ** (spec.bits - 1) - 1, 1)),
        "percentile": lambda: np.percentile(np.abs(v), spec.percentile) / top,
        "sigma": lambda: spec.multiple * math.sqrt(np.mean(v**2)) / top,
        "mad": lambda: spec.multiple * stats.median_abs_deviation(v, center=lambda a, axis: 0.0, scale="normal") / top,
        "iqr": lambda: spec.multiple * stats.iqr(v, scale="normal") / top,
        "gaussian": lambda: sigma * gaussian_step(spec.grid, spec.bits),
        "rms": lambda: 2 * QUEST_CLIP[spec.bits - 1] * math.sqrt(np.mean(v**2)) / (2**spec.bits - 1),
    }
    return float(rules[spec.scale]())


@pytest.mark.parametrize("spread", ["mean_abs", "std"])
@pytest.mark.parametrize("center", [False, True])
@pytest.mark.parametrize("bits", [1, 2, 4])
@pytest.mark.parametrize("rule", [rule for rule in RULES if rule != "minmax"])
def test_rule_matches_numpy_and_scipy(rule, bits, center, spread):
    spec = ActQuant(bits=bits, scale=rule, center=center, spread=spread, percentile=90.0)
    x = torch.randn(5, 31, dtype=torch.float64, generator=torch.Generator().manual_seed(bits)) + 0.7
    scale, offset = scale_and_center(x, spec)
    assert scale.shape == (5, 1)
    middle = np.median if rule in ("mad", "iqr") else np.mean
    for i, row in enumerate(x.numpy()):
        mu = middle(row) if center else 0.0
        assert (0.0 if offset is None else offset[i].item()) == pytest.approx(mu, rel=1e-12)
        # 1.4826 and 1.349, as the methods have them, are scipy's constants to 2e-5
        assert scale[i].item() == pytest.approx(
            reference(row - mu, spec), rel=2e-5 if rule in ("mad", "iqr") else 1e-12
        )


@pytest.mark.parametrize("grid", ["mid_rise", "mid_tread", "lloyd_max", "fp4"])
@pytest.mark.parametrize("rule", ["absmax", "percentile", "sigma"])
def test_a_clip_range_is_mapped_to_the_largest_level(rule, grid):
    x = torch.randn(4, 16, dtype=torch.float64, generator=torch.Generator().manual_seed(0))
    spec = ActQuant(bits=4, scale=rule, grid=grid)
    expected = [reference(row, spec) for row in x.numpy()]
    torch.testing.assert_close(scale_and_center(x, spec)[0].flatten(), torch.tensor(expected, dtype=torch.float64))


def test_absmean_at_four_bits_is_the_published_one():
    x = torch.tensor([[1.0, -2.0, 4.0, 7.0]])
    scale, _ = scale_and_center(x, ActQuant(bits=4, scale="absmean", grid="mid_tread"))
    assert scale.item() == pytest.approx(3.5 / math.sqrt(7))


def test_constants_are_those_of_the_normal_distribution():
    quartile = stats.norm.ppf(0.75)
    assert pytest.approx(1 / quartile, rel=2e-5) == MAD_TO_SIGMA  # 5 digits published
    assert pytest.approx(1 / (2 * quartile), rel=5e-5) == IQR_TO_SIGMA  # 4 digits published
    assert pytest.approx(1 / stats.foldnorm.mean(0), rel=1e-12) == MEAN_ABS_TO_SIGMA


@pytest.mark.parametrize("bits", range(1, 9))
def test_quest_clips_are_near_the_mse_optimal_ones(bits):
    codebook, span = levels("mid_rise", bits), (2**bits - 1) / 2
    optimal = gaussian_step("mid_rise", bits) * span
    assert QUEST_CLIP[bits - 1] == pytest.approx(optimal, rel=1e-4 if bits <= 5 else 0.01)
    assert gaussian_mse(QUEST_CLIP[bits - 1] / span * codebook) <= 1.002 * gaussian_mse(optimal / span * codebook)


@pytest.mark.parametrize("bits", [1, 2, 3, 8])
def test_minmax_mid_rise_has_the_extremes_as_outermost_levels(bits):
    x = torch.randn(6, 33, dtype=torch.float64, generator=torch.Generator().manual_seed(0)) + 3
    scale, center = scale_and_center(x, ActQuant(bits=bits, scale="minmax", grid="mid_rise"))
    ends = levels("mid_rise", bits)[[0, -1]] * scale + center
    torch.testing.assert_close(ends, torch.stack(x.aminmax(dim=-1), dim=-1))


@pytest.mark.parametrize("bits", [1, 2, 3, 8])
def test_minmax_mid_tread_has_an_integer_zero_point_and_a_level_at_zero(bits):
    x = torch.randn(6, 33, dtype=torch.float64, generator=torch.Generator().manual_seed(0)) + 0.3
    scale, center = scale_and_center(x, ActQuant(bits=bits, scale="minmax", grid="mid_tread"))
    low, high = x.aminmax(dim=-1, keepdim=True)
    torch.testing.assert_close(scale, (high - low) / (2**bits - 1))
    zero_point = 2 ** (bits - 1) - center / scale
    torch.testing.assert_close(zero_point, torch.round(-low / scale))
    assert torch.all((levels("mid_tread", bits) * scale + center).abs().min(-1).values <= 1e-12)


@pytest.mark.parametrize("rule", RULES)
@pytest.mark.parametrize("granularity", ["per_token", "per_channel", "per_tensor", "per_group"])
def test_granularity_is_the_rule_on_each_group_alone(rule, granularity):
    size = 4 if granularity == "per_group" else None
    spec = ActQuant(bits=3, scale=rule, granularity=granularity, group_size=size, center=True)
    alone = ActQuant(bits=3, scale=rule, center=True)
    x = torch.randn(2, 3, 12, dtype=torch.float64, generator=torch.Generator().manual_seed(1))
    pieces, shape = {
        "per_token": (x.reshape(6, 12), (2, 3, 1)),
        "per_channel": (x.reshape(6, 12).T, (12,)),
        "per_tensor": (x.reshape(1, 72), (1,)),
        "per_group": (x.reshape(18, 4), (2, 3, 3, 1)),
    }[granularity]
    each = [scale_and_center(piece, alone) for piece in pieces]
    for got, parts in zip(scale_and_center(x, spec), zip(*each, strict=True), strict=True):
        assert got.shape == shape
        torch.testing.assert_close(got.flatten(), torch.cat(parts))


def test_a_group_larger_than_the_width_is_one_group_and_others_must_divide_it():
    x = torch.randn(5, 12)
    whole = ActQuant(bits=4, scale="minmax", granularity="per_group", group_size=128, grid="mid_tread")
    assert grouped(x, whole).shape == (5, 1, 12)
    with pytest.raises(ValueError, match="group_size=5 does not divide the width 12"):
        grouped(x, whole.updated(group_size=5))


@pytest.mark.parametrize("q", [0.0, 0.25, 0.5, 0.9, 0.99, 0.999, 1.0])
@pytest.mark.parametrize("n", [1, 2, 3, 64, 65, 1001])
def test_quantile_matches_torch(q, n):
    values = torch.randn(3, n, dtype=torch.float64, generator=torch.Generator().manual_seed(n))
    torch.testing.assert_close(quantile(values, q), values.quantile(q, dim=-1, keepdim=True))


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_statistics_of_narrow_types_are_taken_in_float32(dtype):
    x = torch.full((1, 4096), 0.1, dtype=dtype)  # a bfloat16 sum of 4096 terms would stall
    scale, _ = scale_and_center(x, ActQuant(bits=2))
    assert scale.dtype == torch.float32
    assert scale.item() == pytest.approx(x[0, 0].item() * MEAN_ABS_TO_SIGMA * gaussian_step("mid_rise", 2), rel=1e-5)


@pytest.mark.parametrize("rule", RULES)
@pytest.mark.parametrize("center", [False, True])
def test_zero_and_constant_tokens_have_a_positive_scale(rule, center):
    x = torch.tensor([0.0, 5.0, -5.0, 1e6])[:, None].expand(4, 16)
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        scale, _ = scale_and_center(x, ActQuant(bits=2, scale=rule, center=center))
    assert torch.all(scale.isfinite() & (scale >= MIN_SCALE))


def test_no_gradient_reaches_the_scale():
    x = torch.randn(3, 8, requires_grad=True)
    scale, center = scale_and_center(x, ActQuant(bits=2, center=True))
    assert center is not None
    assert not scale.requires_grad
    assert not center.requires_grad
