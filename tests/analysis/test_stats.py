from __future__ import annotations

import itertools
import math

import numpy as np
import pandas as pd
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy import stats as reference

from analysis.stats import (
    bootstrap_interval,
    hedges_correction,
    holm,
    mean_interval,
    paired_difference,
    rank_marks,
)

RNG = np.random.default_rng(0)


def series(*values: float) -> pd.Series:
    return pd.Series(values, index=range(len(values)), dtype="float64")


@pytest.mark.parametrize("n", [2, 3, 10])
def test_mean_interval_is_scipys(n: int) -> None:
    x = RNG.normal(size=n)
    ours, theirs = mean_interval(x, 0.9), reference.ttest_1samp(x, 0).confidence_interval(0.9)
    assert (ours.low, ours.high) == pytest.approx((theirs.low, theirs.high), rel=1e-12)
    assert ours.n == n


def test_three_seeds_cost_a_factor_of_4_30() -> None:
    """Student's distribution with two degrees of freedom has the quantile (2p - 1) / sqrt(2p(1 - p))."""
    quantile = 0.95 / math.sqrt(2 * 0.975 * 0.025)
    assert mean_interval([-1, 0, 1]).half_width == pytest.approx(quantile / math.sqrt(3), rel=1e-9)


def test_few_values() -> None:
    assert (mean_interval([]).n, mean_interval([2.0]).mean) == (0, 2.0)
    assert math.isnan(mean_interval([2.0]).half_width)
    assert mean_interval([1, math.nan, 3]).n == 2


def test_intervals_cover_the_mean_as_often_as_they_say() -> None:
    data = RNG.normal(size=(4000, 3))
    hits = np.mean([abs(i.mean) <= i.half_width for i in map(mean_interval, data)])
    assert abs(hits - 0.95) < 4 * math.sqrt(0.95 * 0.05 / 4000)


def test_bootstrap_follows_its_generator_and_the_normal_limit() -> None:
    x = RNG.normal(size=400)
    first = bootstrap_interval(x, np.random.default_rng(5), resamples=2000)
    assert first == bootstrap_interval(x, np.random.default_rng(5), resamples=2000)
    assert first != bootstrap_interval(x, np.random.default_rng(6), resamples=2000)
    # n = 400: bootstrap and t agree up to the Monte Carlo error of a 2.5 % quantile of 2000, about 3 % of a half-width
    assert first.half_width == pytest.approx(mean_interval(x).half_width, rel=0.12)
    with pytest.raises(ValueError, match="at least 2 values, got 1"):
        bootstrap_interval([1.0], RNG)


def test_paired_difference_is_scipys_on_shared_seeds() -> None:
    a, b = pd.Series(RNG.normal(size=6), index=range(6)), pd.Series(RNG.normal(size=6), index=range(2, 8))
    ours, theirs = paired_difference(a, b), reference.ttest_rel(a[2:], b[:4])
    bounds = theirs.confidence_interval(0.95)
    assert ours.n == 4
    assert (ours.p, ours.low, ours.high) == pytest.approx((theirs.pvalue, bounds.low, bounds.high), rel=1e-9)


def test_pairing_removes_what_a_seed_does_to_both() -> None:
    seed = np.array([0.0, 10.0, -7.0])
    a, b = series(*np.add(seed, (1.0, 1.1, 0.9))), series(*seed)
    assert paired_difference(a, b).excludes_zero
    assert reference.ttest_ind(a, b).pvalue > 0.5


def test_degenerate_pairs() -> None:
    equal = paired_difference(series(1, 2, 3), series(0, 1, 2))
    assert (equal.mean, equal.half_width, equal.excludes_zero) == (1.0, 0.0, True)
    assert math.isnan(equal.p)
    assert paired_difference(series(1.0), series(0.0)).n == 1
    assert paired_difference(series(1, 2), series().astype("float64")).n == 0
    twice = pd.Series([1.0, 2.0], index=[0, 0])
    with pytest.raises(ValueError, match="seed 0 comes twice"):
        paired_difference(twice, series(1.0))


def closed_testing(p: list[float]) -> list[float]:
    """Holm as it is derived: H_i falls where each intersection hypothesis that contains it falls by Bonferroni."""
    everything = range(len(p))
    subsets = [s for size in range(1, len(p) + 1) for s in itertools.combinations(everything, size)]
    return [max(min(1.0, len(s) * min(p[j] for j in s)) for s in subsets if i in s) for i in everything]


@settings(max_examples=60, deadline=None)
@given(st.lists(st.floats(0, 1), min_size=1, max_size=6))
def test_holm_is_the_closure_of_bonferroni(p: list[float]) -> None:
    assert holm(p) == pytest.approx(closed_testing(p), rel=1e-12)


def test_holm_counts_only_known_values() -> None:
    assert holm([0.01, math.nan, 0.04, 0.03]) == pytest.approx([0.03, math.nan, 0.06, 0.06], nan_ok=True)


def test_hedges_correction_removes_the_bias() -> None:
    assert hedges_correction(60) == pytest.approx(1 - 3 / (4 * 60 - 1), abs=1e-4)  # Hedges' own approximation
    assert math.isnan(hedges_correction(1))
    rng = np.random.default_rng(1)
    nothing = series(0, 0, 0, 0, 0)
    sizes = np.array([paired_difference(series(*a), nothing).effect for a in 1 + rng.normal(size=(4000, 5))])
    assert abs(sizes.mean() - 1.0) < 4 * sizes.std() / math.sqrt(len(sizes))


def test_marks_share_bold_where_the_paired_interval_cannot_tell() -> None:
    rows = {
        "best": series(1.00, 2.00, 3.00),
        "tied": series(1.01, 1.99, 3.02),
        "next": series(2.00, 3.01, 4.00),
        "last": series(9.00, 9.01, 9.02),
    }
    assert rank_marks(rows, lower_is_better=True) == {"best": "best", "tied": "best", "next": "second", "last": ""}
    upside_down = {name: -values for name, values in rows.items()}
    assert rank_marks(upside_down, lower_is_better=False) == rank_marks(rows, lower_is_better=True)


def test_marks_are_by_holms_p() -> None:
    """Two rows that their own t-tests tell from the best at p = 0.03, which is 0.06 for both of them."""
    noise = np.array([-1.0, 0.0, 1.0])
    best, row = series(0, 0, 0), series(*(noise + 3.27))
    assert reference.ttest_1samp(row, 0).pvalue == pytest.approx(0.03, abs=0.001)
    assert rank_marks({"best": best, "one": row}, True) == {"best": "best", "one": "second"}
    assert set(rank_marks({"best": best, "one": row, "other": row + 0.001}, True).values()) == {"best"}


def test_one_seed_marks_nobody() -> None:
    assert set(rank_marks({"a": series(1.0), "b": series(2.0)}, True).values()) == {""}
    assert rank_marks({"alone": series(1.0, 2.0)}, True) == {"alone": ""}
