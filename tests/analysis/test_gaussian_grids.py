from __future__ import annotations

import itertools

import numpy as np
import pytest
from scipy import integrate, stats

from analysis.gaussian_grids import grid_error, lloyd_max, mean_squared_error, mid_rise, mid_tread, optimal_step
from analysis.published import published
from robuq.quant.grids import gaussian_step, levels

NAMES = {"mid-rise": "mid_rise", "mid-tread": "mid_tread", "as coded": "as_coded", "Lloyd-Max": "lloyd_max"}
NUMBERS = published("quantizers")
ERRORS = NUMBERS[(NUMBERS["metric"] == "MSE") & NUMBERS["method"].isin(NAMES)]
STEPS = NUMBERS[(NUMBERS["metric"] == "step") & NUMBERS["method"].isin(NAMES)]


def cases(rows: object) -> list[tuple[str, int, float, int]]:
    return [(NAMES[r.method], int(r.act_bits), r.value, r.decimals) for r in rows.itertuples()]  # type: ignore[attr-defined]


@pytest.mark.parametrize("levels", [np.array([-0.8, 0.8]), np.array([-1.0, 0.1, 0.7, 3.0]), np.array([0.5])])
def test_the_closed_form_is_the_integral(levels: np.ndarray) -> None:
    def error(x: float) -> float:
        return float(np.min((levels - x) ** 2) * stats.norm.pdf(x))

    edges = [-12.0, *((levels[1:] + levels[:-1]) / 2), 12.0]
    parts = [integrate.quad(error, a, b, epsabs=1e-12)[0] for a, b in itertools.pairwise(edges)]
    assert mean_squared_error(levels) == pytest.approx(sum(parts), abs=1e-10)


@pytest.mark.parametrize(("grid", "bits", "value", "decimals"), cases(ERRORS))
def test_errors_are_the_tables_to_its_last_digit(grid: str, bits: int, value: float, decimals: int) -> None:
    assert grid_error(grid, bits) == pytest.approx(value, abs=0.5001 * 10.0**-decimals)


@pytest.mark.parametrize(("grid", "bits", "value", "decimals"), cases(STEPS))
def test_steps_are_the_tables_and_the_quantizers(grid: str, bits: int, value: float, decimals: int) -> None:
    """The error is flat around its minimum: a step is known to about the root of the rounding error, 1e-8, over its
    curvature, which is above 0.01 up to 8 bits; hence 1e-5, ten digits in the sixth decimal."""
    assert optimal_step(grid, bits) == pytest.approx(value, abs=1e-5)
    assert optimal_step(grid, bits) == pytest.approx(gaussian_step(grid, bits), abs=1e-5)  # type: ignore[arg-type]


@pytest.mark.parametrize("bits", [1, 2, 3, 4])
def test_lloyd_max_is_the_quantizers(bits: int) -> None:
    assert lloyd_max(2**bits) == pytest.approx(levels("lloyd_max", bits).numpy(), abs=1e-5)


def test_no_uniform_grid_beats_lloyd_max_and_mid_rise_beats_mid_tread() -> None:
    for bits in (2, 3, 4):
        assert grid_error("lloyd_max", bits) < grid_error("mid_rise", bits) < grid_error("mid_tread", bits)
        assert grid_error("mid_tread", bits) < grid_error("as_coded", bits)


def test_grids_have_two_to_the_bits_levels() -> None:
    assert mid_rise(2, 0.5).tolist() == [-0.75, -0.25, 0.25, 0.75]
    assert mid_tread(2, 0.5).tolist() == [-1.0, -0.5, 0.0, 0.5]
