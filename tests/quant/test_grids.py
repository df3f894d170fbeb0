"""Levels, Gaussian-optimal steps and closed-form errors against scipy."""

import numpy as np
import pytest
import torch
from gaussian_error import gaussian_mse
from scipy.integrate import quad
from scipy.optimize import brentq, minimize_scalar
from scipy.stats import norm, truncnorm

from robuq.quant.grids import gaussian_step, levels, max_level, round_to_grid

BITS = range(1, 9)
ALL_GRIDS = [(grid, bits) for grid in ("mid_rise", "mid_tread", "as_coded", "lloyd_max") for bits in BITS] + [
    ("fp4", 4)
]

# MSE on N(0, 1) at the Gaussian step, bits 1..8.
KNOWN_MSE = {
    "mid_rise": (0.36338, 0.118846, 0.037440, 0.011543, 0.003495, 0.001040, 0.000304, 0.000088),
    "mid_tread": (0.59509, 0.149431, 0.040638, 0.011864, 0.003526, 0.001043, 0.000305, 0.000088),
    "as_coded": (0.61492, 0.150346, 0.040775, 0.011873, 0.003526, 0.001043, 0.000305, 0.000088),
    "lloyd_max": (0.36338, 0.11748, 0.03455, 0.00950),
}
DIGITS = {"mid_rise": 6, "mid_tread": 6, "as_coded": 6, "lloyd_max": 5}


def half_mse_slope(step: float, codebook: np.ndarray) -> float:
    """d/ds E (x - s l(x))^2 / 2 = sum over cells of l (s l P - M)."""
    edges = step * np.concatenate([[-np.inf], (codebook[1:] + codebook[:-1]) / 2, [np.inf]])
    probability, moment = np.diff(norm.cdf(edges)), -np.diff(norm.pdf(edges))
    return float(np.sum(codebook * (step * codebook * probability - moment)))


@pytest.mark.parametrize(("grid", "bits"), [(g, b) for g in ("mid_rise", "mid_tread") for b in BITS] + [("fp4", 4)])
def test_every_gaussian_step_is_the_mse_optimal_one(grid, bits):
    codebook = levels(grid, bits)
    coarse = np.geomspace(0.01, 2.5, 400)
    best = coarse[np.argmin([gaussian_mse(step * codebook) for step in coarse])]
    bracket = (best * 0.98, best * 1.02)
    step = brentq(half_mse_slope, *bracket, args=(codebook.numpy(),), xtol=1e-15, rtol=1e-14)
    assert gaussian_step(grid, bits) == pytest.approx(step, rel=1e-10)
    # the root is the minimum; a minimiser that sees values alone finds it to sqrt(eps)
    by_value = minimize_scalar(lambda s: gaussian_mse(s * codebook), bounds=bracket, method="bounded").x
    assert by_value == pytest.approx(step, rel=1e-4)


def test_as_coded_is_the_mid_rise_step_on_the_mid_tread_levels():
    for bits in BITS:
        assert gaussian_step("as_coded", bits) == gaussian_step("mid_rise", bits)
        assert torch.equal(levels("as_coded", bits), levels("mid_tread", bits))
    two_bits = gaussian_mse(gaussian_step("as_coded", 2) * levels("as_coded", 2))
    assert two_bits / gaussian_mse(gaussian_step("mid_rise", 2) * levels("mid_rise", 2)) == pytest.approx(
        1.27, abs=0.005
    )


@pytest.mark.parametrize("grid", KNOWN_MSE)
def test_mse_matches_the_known_table(grid):
    for bits, known in enumerate(KNOWN_MSE[grid], start=1):
        mse = gaussian_mse(gaussian_step(grid, bits) * levels(grid, bits))
        assert abs(mse - known) <= 0.51 * 10.0 ** -DIGITS[grid] + (5e-6 if bits == 1 else 0), (grid, bits)


def test_symmetric_three_levels():
    ternary = torch.tensor([-1.0, 0.0, 1.0], dtype=torch.float64)
    assert gaussian_mse(1.224006 * ternary) == pytest.approx(0.19017, abs=5e-6)


@pytest.mark.parametrize(("grid", "bits"), [("mid_rise", 2), ("mid_tread", 3), ("lloyd_max", 3), ("fp4", 4)])
def test_closed_form_mse_is_the_integral(grid, bits):
    codebook = levels(grid, bits).numpy() * gaussian_step(grid, bits)
    edges = np.concatenate([[-12.0], (codebook[1:] + codebook[:-1]) / 2, [12.0]])
    cells = zip(edges[:-1], edges[1:], codebook, strict=True)
    integral = sum(quad(lambda x, level=level: (x - level) ** 2 * norm.pdf(x), a, b)[0] for a, b, level in cells)
    assert gaussian_mse(torch.from_numpy(codebook)) == pytest.approx(integral, rel=1e-7)


@pytest.mark.parametrize("bits", BITS)
def test_lloyd_max_levels_are_the_means_of_their_cells(bits):
    codebook = levels("lloyd_max", bits).numpy()
    edges = np.concatenate([[-np.inf], (codebook[1:] + codebook[:-1]) / 2, [np.inf]])
    means = truncnorm.mean(edges[:-1], edges[1:])
    np.testing.assert_allclose(codebook, means, atol=1e-9, rtol=0)
    np.testing.assert_array_equal(codebook, -codebook[::-1])


def test_lloyd_max_levels_of_max_1960():
    np.testing.assert_allclose(levels("lloyd_max", 2).numpy()[2:], [0.4528, 1.510], atol=5e-4)
    np.testing.assert_allclose(levels("lloyd_max", 3).numpy()[4:], [0.2451, 0.7560, 1.344, 2.152], atol=5e-4)


def test_a_better_grid_has_a_smaller_error():
    for bits in BITS:
        lloyd, rise, tread = (
            gaussian_mse(gaussian_step(g, bits) * levels(g, bits)) for g in ("lloyd_max", "mid_rise", "mid_tread")
        )
        assert lloyd <= rise * (1 + 1e-12) < tread


def test_fp4_levels_are_those_of_e2m1():
    codes = range(8)  # exponent (2 bits, bias 1), mantissa (1 bit); exponent 0 is subnormal
    values = [m * 0.5 if e == 0 else (1 + m / 2) * 2.0 ** (e - 1) for e, m in ((c >> 1, c & 1) for c in codes)]
    assert levels("fp4", 4).tolist() == sorted({-v for v in values} | set(values))
    assert max_level("fp4", 4) == 6


@pytest.mark.parametrize(("grid", "bits"), ALL_GRIDS)
def test_levels_ascend_and_fit_the_bits(grid, bits):
    codebook = levels(grid, bits)
    assert codebook.dtype == torch.float64
    assert len(codebook) <= 2**bits
    assert bool((codebook.diff() > 0).all())
    assert max_level(grid, bits) > 0


@pytest.mark.parametrize(("grid", "bits"), ALL_GRIDS)
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_round_to_grid_finds_the_nearest_level(grid, bits, dtype):
    codebook = levels(grid, bits)
    u = torch.linspace(-1.5, 1.5, 3001, dtype=dtype) * max(codebook.abs().max().item(), 1.0)
    before = u.clone()
    rounded = round_to_grid(u, grid, bits)
    assert torch.equal(u, before)
    assert rounded.dtype == dtype
    error = (rounded - u).abs().double()
    least = (u.double()[:, None] - codebook).abs().min(-1).values
    # equal up to the rounding of a level and of the difference, and at ties either side is nearest
    assert torch.all(error <= least + 4 * torch.finfo(dtype).eps * u.abs().max().item())
    assert torch.isin(rounded, codebook.to(dtype)).all()
