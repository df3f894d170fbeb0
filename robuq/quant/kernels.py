"""Compiled CPU loops of the hot quantizers: a row is read from the first-level cache, however often it is needed.

Written as the formulas of scales.py and weight_quantizer.py, which are the reference; PyTorch would make a pass
over memory for each operation. Rows are contiguous float32 or float64; a NaN in a row gives NaN.
"""

from __future__ import annotations

from typing import Any

import numba
import numpy as np
from numpy.typing import NDArray

from robuq.quant.scales import MIN_SCALE
from robuq.quant.weight_quantizer import MIN_SCALE as MIN_THRESHOLD

Rows = NDArray[Any]
SUMS = {"reassoc", "contract", "nsz", "arcp"}  # sums may be reordered, as PyTorch's are; NaN and infinity stay

loop = numba.njit(fastmath=SUMS, error_model="numpy", nogil=True)


# --- extremes of rows -----------------------------------------------------------------------------------------
# They are taken of the numbers' bit patterns, because LLVM makes vector operations of an integer's extremes but not
# of a float's. The pattern of a magnitude grows with it, and NaN is above all. Signed numbers do so once the bits
# below the sign of negative ones are inverted, which undoes itself when done again.


def magnitudes(x: Rows) -> Rows:
    """x (M, D) -> (M,) max|x| of each row."""
    bits, below_sign, _ = _patterns(x)
    largest = np.empty(len(x), bits.dtype)
    _largest_magnitude(bits, below_sign, largest)
    return largest.view(x.dtype)


def extremes(x: Rows) -> Rows:
    """x (M, D) -> (M, 2) min and max of each row."""
    bits, below_sign, to_sign = _patterns(x)
    found = np.empty((len(x), 2), bits.dtype)
    _extremes(bits, below_sign, to_sign, found)
    return found.view(x.dtype)


def _patterns(x: Rows) -> tuple[Rows, Any, Any]:
    """Bit patterns as integers, the mask of all bits below the sign, and the distance of the sign from the right."""
    integer = np.dtype(f"int{8 * x.itemsize}")
    return x.view(integer), integer.type(np.iinfo(integer).max), integer.type(8 * x.itemsize - 1)


@loop
def _largest_magnitude(bits: Rows, below_sign: int, largest: Rows) -> None:
    for i in range(bits.shape[0]):
        row = bits[i]
        found = row[0] & below_sign
        for j in range(row.shape[0]):
            found = max(found, row[j] & below_sign)
        largest[i] = found


@loop
def _extremes(bits: Rows, below_sign: int, to_sign: int, found: Rows) -> None:
    for i in range(bits.shape[0]):
        row = bits[i]
        low = high = row[0] ^ ((row[0] >> to_sign) & below_sign)
        for j in range(row.shape[0]):
            ordered = row[j] ^ ((row[j] >> to_sign) & below_sign)
            low, high = min(low, ordered), max(high, ordered)
        found[i, 0] = low ^ ((low >> to_sign) & below_sign)
        found[i, 1] = high ^ ((high >> to_sign) & below_sign)


# --- quantizers -----------------------------------------------------------------------------------------------


@loop
def gaussian_rows(x: Rows, out: Rows, factor: float, low: float, high: float, mid: float, centered: bool) -> None:
    """x (M, D) -> out (M, D). All numbers are of x's type.

    scale = factor mean|x - mu|; out = (clip(round(v), low, high) + mid) scale + mu with v = (x - mu) / scale - mid:
    mid = 0.5 is the mid-rise grid, 0 the mid-tread grid.
    """
    real = x.dtype.type
    width = x.shape[1]
    mean = real(1) / real(width)
    for i in range(x.shape[0]):
        row, to = x[i], out[i]
        mu = real(0)
        if centered:
            for j in range(width):
                mu += row[j]
            mu *= mean
        deviation = real(0)
        for j in range(width):
            deviation += abs(row[j] - mu)
        scale = real(deviation * mean * factor)
        if scale < real(MIN_SCALE):
            scale = real(MIN_SCALE)
        inverse = real(1) / scale
        offset = mu + mid * scale
        for j in range(width):
            v = np.rint((row[j] - mu) * inverse - mid)
            v = low if v < low else v
            v = high if v > high else v
            to[j] = v * scale + offset


@loop
def minmax_rows(x: Rows, bounds: Rows, out: Rows, steps: float, epsilon: float) -> None:
    """x (M, D), its extremes (M, 2) -> out (M, D). steps = 2^b - 1, of x's type.

    scale = (max - min) / steps; lowest level z = round(min / scale); out = clip(round(x / scale), z, z + steps) scale.
    """
    real = x.dtype.type
    for i in range(x.shape[0]):
        row, to = x[i], out[i]
        low, high = bounds[i, 0], bounds[i, 1]
        scale = max(real((high - low) / steps), real(epsilon * max(abs(low), abs(high))))
        if scale < real(MIN_SCALE):
            scale = real(MIN_SCALE)
        inverse = real(1) / scale
        lowest = np.rint(low * inverse)
        highest = lowest + steps
        for j in range(row.shape[0]):
            v = np.rint(row[j] * inverse)
            v = lowest if v < lowest else v
            v = highest if v > highest else v
            to[j] = v * scale


@loop
def absmax_rows(x: Rows, largest: Rows, out: Rows, highest: float) -> None:
    """x (M, D), its magnitudes (M,) -> out (M, D).

    out = round(x / scale) scale, scale = max|x| / highest, so that nothing is clipped.
    """
    real = x.dtype.type
    for i in range(x.shape[0]):
        row, to = x[i], out[i]
        scale = real(largest[i] / highest)
        if scale < real(MIN_SCALE):
            scale = real(MIN_SCALE)
        inverse = real(1) / scale
        for j in range(row.shape[0]):
            to[j] = np.rint(row[j] * inverse) * scale


@loop
def ternary_rows(w: Rows, out: Rows, threshold: float) -> None:
    """w (O, I) -> out (O, I): alpha sign(w) where |w| >= threshold mean|w|."""
    real = w.dtype.type
    width = w.shape[1]
    mean = real(1) / real(width)
    for i in range(w.shape[0]):
        row, to = w[i], out[i]
        tau = real(0)
        for j in range(width):
            tau += abs(row[j])
        tau = real(tau * mean * threshold)
        if tau < real(MIN_THRESHOLD):
            tau = real(MIN_THRESHOLD)
        total, count = real(0), real(0)
        for j in range(width):
            kept = real(1) if abs(row[j]) >= tau else real(0)
            total += kept * abs(row[j])
            count += kept
        alpha = total / max(count, real(1))
        for j in range(width):
            value = alpha if row[j] > real(0) else -alpha
            to[j] = value if abs(row[j]) >= tau else real(0)


# --- low-rank branch ------------------------------------------------------------------------------------------
# A matrix product with a handful of columns costs a library several times what its arithmetic does.


@loop
def branch_input(x: Rows, right: Rows, inner: Rows) -> None:
    """inner (M, r) = x (M, I) right^T, right (r, I)."""
    for i in range(x.shape[0]):
        row = x[i]
        for k in range(right.shape[0]):
            factor = right[k]
            total = x.dtype.type(0)
            for j in range(row.shape[0]):
                total += row[j] * factor[j]
            inner[i, k] = total


@loop
def branch_gradients(dy: Rows, x: Rows, inner: Rows, left: Rows, d_left: Rows, d_right: Rows) -> None:
    """Adds to d_left (r, O) += inner^T dy and to d_right (r, I) += (dy left^T)^T x, in one pass over the rows.

    dy (M, O), x (M, I), inner (M, r), left (r, O): the left factor and its gradient are transposed.
    """
    for i in range(dy.shape[0]):
        gradient, row = dy[i], x[i]
        for k in range(left.shape[0]):
            factor, to_left, to_right = left[k], d_left[k], d_right[k]
            share = inner[i, k]
            total = dy.dtype.type(0)
            for j in range(gradient.shape[0]):
                total += gradient[j] * factor[j]
            for j in range(gradient.shape[0]):
                to_left[j] += share * gradient[j]
            for j in range(row.shape[0]):
                to_right[j] += total * row[j]
