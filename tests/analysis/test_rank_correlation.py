from __future__ import annotations

import math

import numpy as np
import pytest
from scipy import stats

from analysis.stats import rank_correlation, rank_correlation_difference, rank_interval


def pairs(n: int, noise: float, seed: int = 0) -> tuple[np.ndarray, np.ndarray]:
    rng = np.random.default_rng(seed)
    x = rng.normal(size=n)
    return x, x + noise * rng.normal(size=n)


def test_the_coefficient_is_scipys_also_with_ties() -> None:
    x, y = pairs(30, 1.0)
    for left, right in ((x, y), (np.round(x), np.round(y)), (x, -y)):
        found = rank_correlation(left, right, np.random.default_rng(0))
        assert found.mean == pytest.approx(stats.spearmanr(left, right).statistic, abs=1e-12)
        assert found.low < found.mean < found.high
        assert found.n == 30


def test_the_interval_is_scipys_percentile_bootstrap() -> None:
    """Both ends are quantiles of 2000 and 9999 resamples: their errors are a few hundredths at most."""
    x, y = pairs(40, 1.0)
    ours = rank_correlation(x, y, np.random.default_rng(0))
    theirs = stats.bootstrap(
        (x, y),
        lambda a, b: stats.spearmanr(a, b).statistic,
        paired=True,
        vectorized=False,
        n_resamples=1999,
        method="percentile",
        rng=np.random.default_rng(1),
    ).confidence_interval
    assert ours.low == pytest.approx(theirs.low, abs=0.05)
    assert ours.high == pytest.approx(theirs.high, abs=0.05)


def test_equal_generators_give_equal_intervals() -> None:
    x, y = pairs(20, 1.0)
    assert rank_correlation(x, y, np.random.default_rng(3)) == rank_correlation(x, y, np.random.default_rng(3))


def test_few_pairs_have_no_interval_and_two_have_no_coefficient() -> None:
    x, y = pairs(4, 1.0)
    four = rank_correlation(x, y, np.random.default_rng(0))
    assert not math.isnan(four.mean)
    assert math.isnan(four.low)
    assert math.isnan(rank_correlation(x[:2], y[:2], np.random.default_rng(0)).mean)
    assert rank_correlation([], [], np.random.default_rng(0)).n == 0


def test_a_constant_side_orders_nothing() -> None:
    found = rank_correlation(np.ones(9), np.arange(9), np.random.default_rng(0))
    assert math.isnan(found.mean)
    assert math.isnan(found.high)


def test_pairs_without_both_values_do_not_count() -> None:
    found = rank_correlation([1, 2, math.nan, 4, 5, 6], [1, 2, 3, math.nan, 5, 6], np.random.default_rng(0))
    assert found.n == 4
    assert found.mean == 1


def test_a_better_predictor_is_told_from_a_worse_one_and_not_from_itself() -> None:
    x, y = pairs(60, 0.3)
    worse = x + 3 * np.random.default_rng(9).normal(size=60)
    apart = rank_correlation_difference(x, worse, y, np.random.default_rng(0))
    expected = stats.spearmanr(x, y).statistic - stats.spearmanr(worse, y).statistic
    assert apart.mean == pytest.approx(expected, abs=1e-12)
    assert apart.low > 0
    same = rank_correlation_difference(x, x, y, np.random.default_rng(0))
    assert (same.mean, same.low, same.high) == (0, 0, 0)
    assert math.isnan(rank_correlation_difference(x[:4], worse[:4], y[:4], np.random.default_rng(0)).mean)


def test_the_interval_from_rho_and_n_covers_about_as_often_as_it_says() -> None:
    """Of normal pairs with rho .6, n = 45, 400 times: the share covered is within four standard errors (.011) of .95,
    and a little more for a formula that is approximate."""
    rng = np.random.default_rng(0)
    pearson = 2 * math.sin(math.pi / 6 * 0.6)  # of a bivariate normal with Spearman's coefficient 0.6
    covered = 0
    for _ in range(400):
        x, z = rng.normal(size=(2, 45))
        y = pearson * x + math.sqrt(1 - pearson**2) * z
        found = rank_interval(float(stats.spearmanr(x, y).statistic), 45)
        covered += found.low <= 0.6 <= found.high
    assert covered / 400 == pytest.approx(0.95, abs=0.05)


def test_the_interval_from_rho_and_n_has_its_edges() -> None:
    assert rank_interval(1.0, 30).low == 1.0
    assert math.isnan(rank_interval(0.5, 4).low)
    assert math.isnan(rank_interval(math.nan, 40).high)
