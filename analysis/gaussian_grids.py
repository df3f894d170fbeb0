"""Mean squared error of quantization grids on N(0, 1), from closed forms: what theory says of table 2b's rows.

Independent of the quantizers: the grids' own constants are derived again here.
"""

from __future__ import annotations

import functools

import numpy as np
from numpy.typing import NDArray
from scipy import optimize, stats

Levels = NDArray[np.float64]
NORMAL = stats.norm
LLOYD_ROUNDS = 2000


def mean_squared_error(levels: Levels) -> float:
    """E (x - Q(x))^2 for x ~ N(0, 1), with Q the nearest of the ascending levels (L,)."""
    edges = np.concatenate([[-np.inf], (levels[1:] + levels[:-1]) / 2, [np.inf]])
    return _error_between(levels, edges)


def _error_between(levels: Levels, edges: NDArray[np.float64]) -> float:
    """Integral over (a, b) of (x - c)^2 phi = (1 + c^2) (Phi_b - Phi_a) - (b phi_b - a phi_a) + 2 c (phi_b - phi_a)."""
    mass, density = np.diff(NORMAL.cdf(edges)), NORMAL.pdf(edges)
    finite = np.where(np.isinf(edges), 0.0, edges)
    parts = (1 + levels**2) * mass - np.diff(finite * density) + 2 * levels * np.diff(density)
    return float(parts.sum())


def mid_rise(bits: int, step: float = 1.0) -> Levels:
    """(k + 1/2) step: no zero level."""
    half = 2 ** (bits - 1)
    return step * (np.arange(-half, half) + 0.5)


def mid_tread(bits: int, step: float = 1.0) -> Levels:
    """k step, two's complement."""
    half = 2 ** (bits - 1)
    return step * np.arange(-half, half, dtype=np.float64)


@functools.cache
def optimal_step(grid: str, bits: int) -> float:
    """The step of least mean squared error; grid: mid_rise or mid_tread."""
    units = {"mid_rise": mid_rise, "mid_tread": mid_tread}[grid](bits)
    found = optimize.minimize_scalar(
        lambda step: mean_squared_error(step * units), bounds=(1e-3, 2.5), method="bounded", options={"xatol": 1e-10}
    )
    return float(found.x)


def lloyd_max(count: int) -> Levels:
    """`count` levels, the fixed point of: each is its cell's mean, each edge the middle of two (Lloyd 1982)."""
    levels: Levels = np.linspace(-2.0, 2.0, count)
    for _ in range(LLOYD_ROUNDS):
        edges = np.concatenate([[-np.inf], (levels[1:] + levels[:-1]) / 2, [np.inf]])
        levels = -np.diff(NORMAL.pdf(edges)) / np.diff(NORMAL.cdf(edges))
    return levels


@functools.cache
def grid_error(grid: str, bits: int) -> float:
    """Least error of mid_rise, mid_tread and lloyd_max; as_coded has mid_rise's step on mid_tread's grid."""
    if grid == "lloyd_max":
        return mean_squared_error(lloyd_max(2**bits))
    if grid == "as_coded":
        return mean_squared_error(mid_tread(bits, optimal_step("mid_rise", bits)))
    return mean_squared_error({"mid_rise": mid_rise, "mid_tread": mid_tread}[grid](bits, optimal_step(grid, bits)))
