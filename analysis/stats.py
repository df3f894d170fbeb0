"""Means, intervals and differences over few seeds. Every result carries its n; every random choice is an argument."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Any

import numpy as np
import pandas as pd
from numpy.typing import ArrayLike, NDArray
from scipy import special, stats

CONFIDENCE = 0.95
PAIRS_FOR_INTERVAL = 5  # of a rank correlation: with fewer, many resamples repeat one pair and have no ranks


@dataclass(frozen=True)
class Estimate:
    """A mean with its confidence interval; `low` and `high` are NaN where n < 2 gives none."""

    mean: float
    low: float
    high: float
    n: int

    @property
    def half_width(self) -> float:
        return (self.high - self.low) / 2

    @property
    def excludes_zero(self) -> bool:
        """False where there is no interval."""
        return self.low > 0 or self.high < 0


@dataclass(frozen=True)
class PairedDifference(Estimate):
    """mean(a - b) over shared seeds; `p` of the two-sided paired t-test, `effect` in standard deviations."""

    p: float
    effect: float


def estimate_columns(name: str, estimate: Estimate) -> dict[str, float]:
    """An estimate as four columns of a data row: `name`, `name_low`, `name_high`, `name_n`."""
    return {name: estimate.mean, f"{name}_low": estimate.low, f"{name}_high": estimate.high, f"{name}_n": estimate.n}


def estimate_of(row: pd.Series[Any], name: str) -> Estimate:
    """What `estimate_columns` wrote."""
    return Estimate(row[name], row[f"{name}_low"], row[f"{name}_high"], int(row[f"{name}_n"]))


def mean_interval(values: ArrayLike, confidence: float = CONFIDENCE) -> Estimate:
    """Mean with Student's t interval; NaN values (runs without this metric) are left out and not counted.

    values: (n,). mean -+ t_{n-1, (1 + confidence) / 2} s / sqrt(n).
    """
    x = np.asarray(values, dtype=np.float64)
    x = x[~np.isnan(x)]
    n = x.size
    if n < 2:
        return Estimate(float(x.mean()) if n else math.nan, math.nan, math.nan, n)
    half = float(stats.t.ppf((1 + confidence) / 2, n - 1) * x.std(ddof=1) / math.sqrt(n))
    mean = float(x.mean())
    return Estimate(mean, mean - half, mean + half, n)


def bootstrap_interval(
    values: ArrayLike, rng: np.random.Generator, confidence: float = CONFIDENCE, resamples: int = 9999
) -> Estimate:
    """Mean with the percentile bootstrap interval. With the few seeds usual here it is too narrow: see `mean_interval`.

    values: (n,), n >= 2.
    """
    x = np.asarray(values, dtype=np.float64)
    if x.size < 2:
        raise ValueError(f"bootstrap needs at least 2 values, got {x.size}: run more seeds")
    result = stats.bootstrap(
        (x,), np.mean, rng=rng, confidence_level=confidence, n_resamples=resamples, method="percentile"
    )
    interval = result.confidence_interval
    return Estimate(float(x.mean()), float(interval.low), float(interval.high), x.size)


def paired_difference(a: pd.Series[float], b: pd.Series[float], confidence: float = CONFIDENCE) -> PairedDifference:
    """a - b over the index entries (seeds) that both have, with the paired t interval.

    Raises:
        ValueError: an index entry comes twice.
    """
    for series in (a, b):
        if not series.index.is_unique:
            raise ValueError(f"{series.name}: seed {series.index[series.index.duplicated()][0]} comes twice")
    difference = (a - b.reindex(a.index)).dropna().to_numpy(dtype=np.float64)
    estimate = mean_interval(difference, confidence)
    spread = float(difference.std(ddof=1)) if estimate.n > 1 else math.nan
    if not spread > 0:  # one pair, or all differences equal: t is undefined
        return PairedDifference(estimate.mean, estimate.low, estimate.high, estimate.n, p=math.nan, effect=math.nan)
    t = estimate.mean / (spread / math.sqrt(estimate.n))
    p = float(2 * stats.t.sf(abs(t), estimate.n - 1))
    effect = estimate.mean / spread * hedges_correction(estimate.n - 1)
    return PairedDifference(estimate.mean, estimate.low, estimate.high, estimate.n, p=p, effect=effect)


def hedges_correction(degrees: int) -> float:
    """Factor that removes the small-sample bias of a standardised mean difference (Hedges 1981, exact form).

    Gamma(m / 2) / (sqrt(m / 2) Gamma((m - 1) / 2)) for m degrees of freedom; NaN at one, where there is none.
    """
    if degrees < 2:
        return math.nan
    return math.exp(special.gammaln(degrees / 2) - special.gammaln((degrees - 1) / 2)) / math.sqrt(degrees / 2)


def holm(p_values: ArrayLike) -> NDArray[np.float64]:
    """Holm's step-down adjusted p-values (n,), in the given order; NaN stays NaN and is not counted.

    For sorted p_(1) <= ... <= p_(n): max over j <= i of min(1, (n - j + 1) p_(j)) (Holm 1979).
    """
    p = np.asarray(p_values, dtype=np.float64)
    adjusted = np.full(p.shape, np.nan)
    known = np.flatnonzero(~np.isnan(p))
    order = known[np.argsort(p[known], kind="stable")]
    factors = np.arange(order.size, 0, -1)
    adjusted[order] = np.minimum(1.0, np.maximum.accumulate(factors * p[order]))
    return adjusted


def rank_correlation(
    x: ArrayLike, y: ArrayLike, rng: np.random.Generator, confidence: float = CONFIDENCE, resamples: int = 2000
) -> Estimate:
    """Spearman's coefficient of pairs with its percentile bootstrap interval, which resamples pairs.

    x, y: (n,). NaN below three pairs or where one side is constant; no interval below `PAIRS_FOR_INTERVAL` pairs.
    """
    pairs = _pairs(x, y)
    n = pairs.shape[1]
    rho = float(_spearman(pairs)[0]) if n >= 3 else math.nan
    if n < PAIRS_FOR_INTERVAL or math.isnan(rho):
        return Estimate(rho, math.nan, math.nan, n)
    low, high = _percentiles(_spearman(pairs[:, rng.integers(n, size=(resamples, n))]), confidence)
    return Estimate(rho, low, high, n)


def rank_correlation_difference(
    x: ArrayLike,
    other: ArrayLike,
    y: ArrayLike,
    rng: np.random.Generator,
    confidence: float = CONFIDENCE,
    resamples: int = 2000,
) -> Estimate:
    """How much better x orders y than `other` does: the difference of both Spearman coefficients over the same
    evaluations, with its percentile bootstrap interval. All (n,)."""
    values = _pairs(x, y, other)
    n = values.shape[1]
    if n < PAIRS_FOR_INTERVAL:
        return Estimate(math.nan, math.nan, math.nan, n)
    difference = float(_spearman(values[[0, 1]])[0] - _spearman(values[[2, 1]])[0])
    drawn = values[:, rng.integers(n, size=(resamples, n))]
    low, high = _percentiles(_spearman(drawn[[0, 1]]) - _spearman(drawn[[2, 1]]), confidence)
    return Estimate(difference, low, high, n)


def rank_interval(rho: float, n: int, confidence: float = CONFIDENCE) -> Estimate:
    """The interval of a Spearman coefficient of which only its value and n are known.

    tanh(atanh(rho) -+ z sqrt((1 + rho^2 / 2) / (n - 3))) (Bonett and Wright 2000).
    """
    if math.isnan(rho) or n < PAIRS_FOR_INTERVAL:
        return Estimate(rho, math.nan, math.nan, n)
    if abs(rho) == 1:
        return Estimate(rho, rho, rho, n)
    reach = float(stats.norm.ppf((1 + confidence) / 2)) * math.sqrt((1 + rho**2 / 2) / (n - 3))
    return Estimate(rho, math.tanh(math.atanh(rho) - reach), math.tanh(math.atanh(rho) + reach), n)


def _pairs(*series: ArrayLike) -> NDArray[np.float64]:
    """(k, n): the columns without NaN."""
    values = np.stack([np.asarray(one, dtype=np.float64) for one in series])
    return values[:, ~np.isnan(values).any(axis=0)]


def _spearman(pairs: NDArray[np.float64]) -> NDArray[np.float64]:
    """(2, ..., n) -> (...,), at least one; NaN where one side is constant."""
    ranks = stats.rankdata(pairs.reshape(2, -1, pairs.shape[-1]), axis=-1)
    ranks -= ranks.mean(axis=-1, keepdims=True)
    sizes = (ranks**2).sum(axis=-1).prod(axis=0) ** 0.5
    products = ranks.prod(axis=0).sum(axis=-1)
    rho: NDArray[np.float64] = np.divide(products, sizes, out=np.full(sizes.shape, np.nan), where=sizes > 0)
    return rho.reshape(pairs.shape[1:-1] or (1,))


def _percentiles(values: NDArray[np.float64], confidence: float) -> tuple[float, float]:
    """Of the resamples that have a coefficient."""
    known = values[~np.isnan(values)]
    if not known.size:
        return math.nan, math.nan
    low, high = np.quantile(known, [(1 - confidence) / 2, (1 + confidence) / 2])
    return float(low), float(high)


def rank_marks(series: dict[str, pd.Series[float]], lower_is_better: bool) -> dict[str, str]:
    """{name: "best" | "second" | ""} of rows with one value per seed each.

    "best": the best mean, and whatever the paired t-test cannot tell from it, after Holm's correction over the rows
    that are compared with it. "second": the best mean among the rest. Without two shared seeds nothing can be told from
    the best: then nobody is marked.
    """
    sign = 1.0 if lower_is_better else -1.0
    means = {name: sign * float(values.mean()) for name, values in series.items() if values.notna().any()}
    order = sorted(means, key=lambda name: means[name])
    marks = dict.fromkeys(series, "")
    if len(order) < 2:
        return marks
    best = order[0]
    differences = {name: paired_difference(series[name], series[best]) for name in order[1:]}
    if any(math.isnan(difference.half_width) for difference in differences.values()):
        return marks
    corrected = dict(zip(differences, holm([difference.p for difference in differences.values()]), strict=True))
    shared = [name for name, difference in differences.items() if not _is_told(difference, corrected[name])]
    marks |= dict.fromkeys([best, *shared], "best")
    rest = [name for name in order[1:] if name not in shared]
    return marks | dict.fromkeys(rest[:1], "second")


def _is_told(difference: PairedDifference, p: float) -> bool:
    """`p`: after the correction. Where all seeds differ by the same there is no t: then the difference decides."""
    return difference.excludes_zero if math.isnan(p) else p < 1 - CONFIDENCE
