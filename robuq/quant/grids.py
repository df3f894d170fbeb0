"""Grids: the levels that a quantized value may take, in units of the scale, and how well they fit a normal variable.

mid_rise   (k + 1/2)          k in [-2^(b-1), 2^(b-1) - 1]; no zero level
mid_tread  k                  two's complement integers
as_coded   k                  the mid-tread levels, with the mid-rise grid's Gaussian step
lloyd_max  quantiles' means   the MSE-optimal codebook of N(0, 1)
fp4        E2M1               0, 1/2, 1, 3/2, 2, 3, 4, 6 and their negatives
"""

from __future__ import annotations

from functools import cache

import numpy as np
import torch
from numpy.typing import NDArray
from scipy.linalg import solve_banded
from scipy.special import ndtr
from torch import Tensor

from robuq.config.quant import Grid

# MSE-optimal steps for N(0, 1), bits 1..8: argmin over s of E (Q(x) - x)^2, Q the nearest of s * levels.
MID_RISE_STEPS = (
    1.59576912161, 0.995686685944, 0.586019441443, 0.335200612200,
    0.188138790280, 0.104063009442, 0.0568676723824, 0.0307623875823,
)  # fmt: skip
MID_TREAD_STEPS = (
    1.22400636192, 1.04838526249, 0.601824226685, 0.338607935715,
    0.188792222902, 0.104179447014, 0.0568873445734, 0.0307655785428,
)  # fmt: skip
FP4_STEP = 0.487079178562

Array = NDArray[np.float64]

FP4_MAGNITUDES = (0.5, 1.0, 1.5, 2.0, 3.0, 4.0, 6.0)


def levels(grid: Grid, bits: int) -> Tensor:
    """The grid's dequantization levels in units of the scale: float64, ascending, (2^bits,); 15 for fp4."""
    return torch.tensor(_levels(grid, bits), dtype=torch.float64)


@cache
def _levels(grid: Grid, bits: int) -> tuple[float, ...]:
    half = 2 ** (bits - 1)
    if grid == "lloyd_max":
        return _lloyd_max(bits)
    if grid == "fp4":
        return (*(-m for m in reversed(FP4_MAGNITUDES)), 0.0, *FP4_MAGNITUDES)
    offset = 0.5 if grid == "mid_rise" else 0.0
    return tuple(k + offset for k in range(-half, half))


@cache
def _lloyd_max(bits: int) -> tuple[float, ...]:
    """Every level is the mean of its cell, every edge the middle between two levels.

    Start: the cells of the codebook of one bit less, split at their levels (Linde, Buzo and Gray); then Newton's
    method, which needs 7 steps where plain Lloyd iteration needs some 10^5 at 8 bits.
    """
    coarse = np.array(_lloyd_max(bits - 1)) if bits > 1 else np.zeros(1)
    probability, moment = _cells(np.sort(np.concatenate([coarse, _edges(coarse)])))
    level = moment / probability
    for _ in range(8):
        level = level - _lloyd_newton_step(level)
    level = (level - level[::-1]) / 2  # exactly symmetric
    return tuple(float(value) for value in level)


def _lloyd_newton_step(level: Array) -> Array:
    """J^-1 r with r = l P - M, half the MSE's gradient; J is tridiagonal: neighbours meet in their common edge."""
    edge = _edges(level)
    probability, moment = _cells(edge)
    coupling = -np.diff(level) * _density(edge) / 4
    diagonal = probability + np.append(coupling, 0.0) + np.append(0.0, coupling)
    bands = np.stack([np.append(0.0, coupling), diagonal, np.append(coupling, 0.0)])
    step: Array = solve_banded((1, 1), bands, level * probability - moment)
    return step


def _edges(level: Array) -> Array:
    return (level[1:] + level[:-1]) / 2


def _cells(edge: Array) -> tuple[Array, Array]:
    """Inner edges (L - 1,) -> probability and first moment of a variable N(0, 1) in the cells (L,)."""
    return np.diff(ndtr(edge), prepend=0.0, append=1.0), -np.diff(_density(edge), prepend=0.0, append=0.0)


def _density(x: Array) -> Array:
    density: Array = np.exp(-(x**2) / 2) / np.sqrt(2 * np.pi)
    return density


def gaussian_step(grid: Grid, bits: int) -> float:
    """The scale of `levels(grid, bits)` for a variable N(0, 1): the MSE-optimal one, but for as_coded."""
    if grid == "mid_tread":
        return MID_TREAD_STEPS[bits - 1]
    if grid == "lloyd_max":
        return 1.0
    if grid == "fp4":
        return FP4_STEP
    # as_coded: Paper: the step that is optimal for a uniform grid. We: offer it on the two's complement grid too,
    # because public code pairs them so; it costs 27 % more MSE at 2 bits than mid_rise.
    return MID_RISE_STEPS[bits - 1]


def max_level(grid: Grid, bits: int) -> float:
    """The level that a clip range is mapped to: the highest one, and 1 for 1-bit mid-tread, whose levels are -1, 0."""
    return _levels(grid, bits)[-1] or 1.0


def round_to_grid(u: Tensor, grid: Grid, bits: int) -> Tensor:
    """u (...) in units of the scale -> the nearest level, saturating; a new tensor.

    At ties mid_tread rounds half to even, the others up.
    """
    codebook = _levels(grid, bits)
    if grid in ("lloyd_max", "fp4"):
        table = u.new_tensor(codebook)
        return table[torch.bucketize(u.contiguous(), (table[1:] + table[:-1]) / 2, right=True)]
    rounded = u.floor().add_(0.5) if grid == "mid_rise" else u.round()
    return rounded.clamp_(codebook[0], codebook[-1])
