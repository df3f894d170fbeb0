"""Compiled CPU loops of the hot path: a row is read from memory once, however often it is needed.

Written as the formulas of scales.py and weight_quantizer.py, which are the reference; PyTorch would make a pass
over memory for each operation. Rows are contiguous float32 or float64; a NaN in a row gives NaN. An array of length
zero stands for a step that is left out.
"""

from __future__ import annotations

from collections.abc import Callable
from functools import lru_cache
from typing import Any

import numba
import numpy as np
from numba import types
from numba.extending import intrinsic
from numpy.typing import NDArray

from robuq.quant.butterflies import transform_row
from robuq.quant.scales import MIN_SCALE
from robuq.quant.weight_quantizer import MIN_SCALE as MIN_THRESHOLD

Rows = NDArray[Any]
Loop = Callable[..., Any]
SUMS = {"reassoc", "contract", "nsz", "arcp"}  # sums may be reordered, as PyTorch's are; NaN and infinity stay

# Without reference counts (_nrt): they would cost more than a short row, and nothing here allocates.
loop = numba.njit(fastmath=SUMS, error_model="numpy", nogil=True, _nrt=False)
inlined = numba.njit(fastmath=SUMS, error_model="numpy", nogil=True, _nrt=False, forceinline=True)
transform = inlined(transform_row)


# --- quantizers of one row, in place ---------------------------------------------------------------------------
# row (D,), numbers: constants of the row's type. Extremes are taken of bit patterns, because LLVM makes vector
# operations of an integer's extremes but not of a float's. The pattern of a magnitude grows with it, and NaN is above
# all. Signed numbers do so once the bits below the sign of negative ones are inverted, which undoes itself when done
# again.


@intrinsic
def _pattern(_: Any, number: Any) -> Any:
    """The bits of a number as an integer."""
    integer = types.Integer.from_bitwidth(number.bitwidth, signed=True)

    def generate(context: Any, builder: Any, signature: Any, arguments: Any) -> Any:
        return builder.bitcast(arguments[0], context.get_value_type(integer))

    return integer(number), generate


@intrinsic
def _number(_: Any, pattern: Any, like: Any) -> Any:
    """The number of like's type that has these bits."""

    def generate(context: Any, builder: Any, signature: Any, arguments: Any) -> Any:
        narrow = context.get_value_type(types.Integer.from_bitwidth(like.bitwidth, signed=True))
        bits = arguments[0] if arguments[0].type == narrow else builder.trunc(arguments[0], narrow)
        return builder.bitcast(bits, context.get_value_type(like))

    return like(pattern, like), generate


@inlined
def magnitude(row: Rows) -> Any:
    """max|row|"""
    below_sign = (1 << (8 * row.itemsize - 1)) - 1
    found = _pattern(row[0]) & below_sign
    for j in range(row.shape[0]):
        found = max(found, _pattern(row[j]) & below_sign)
    return _number(found, row[0])


@inlined
def extremes(row: Rows) -> tuple[Any, Any]:
    """min row, max row"""
    below_sign, to_sign = (1 << (8 * row.itemsize - 1)) - 1, 8 * row.itemsize - 1
    first = _pattern(row[0])
    low = high = first ^ ((first >> to_sign) & below_sign)
    for j in range(row.shape[0]):
        bits = _pattern(row[j])
        ordered = bits ^ ((bits >> to_sign) & below_sign)
        low, high = min(low, ordered), max(high, ordered)
    least, most = low ^ ((low >> to_sign) & below_sign), high ^ ((high >> to_sign) & below_sign)
    return _number(least, row[0]), _number(most, row[0])


@inlined
def keep_row(row: Rows, numbers: Rows) -> None:
    """Nothing is quantized."""


@inlined
def gaussian_row(row: Rows, numbers: Rows) -> None:
    """scale = factor mean|x|; x = (clip(round(v), low, high) + mid) scale with v = x / scale - mid.

    numbers = factor, low, high, mid: mid = 0.5 is the mid-rise grid, 0 the mid-tread grid.
    """
    _around(row, row.dtype.type(0), numbers)


@inlined
def centered_gaussian_row(row: Rows, numbers: Rows) -> None:
    """As `gaussian_row`, of x - mean x."""
    total = row.dtype.type(0)
    for j in range(row.shape[0]):
        total += row[j]
    _around(row, row.dtype.type(total / row.shape[0]), numbers)


@inlined
def _around(row: Rows, center: float, numbers: Rows) -> None:
    real = row.dtype.type
    factor, low, high, mid = numbers[0], numbers[1], numbers[2], numbers[3]
    deviation = real(0)
    for j in range(row.shape[0]):
        deviation += abs(row[j] - center)
    scale = real(deviation / real(row.shape[0]) * factor)
    if scale < real(MIN_SCALE):
        scale = real(MIN_SCALE)
    inverse = real(1) / scale
    offset = center + mid * scale
    for j in range(row.shape[0]):
        v = np.rint((row[j] - center) * inverse - mid)
        v = low if v < low else v
        v = high if v > high else v
        row[j] = v * scale + offset


@inlined
def minmax_row(row: Rows, numbers: Rows) -> None:
    """scale = (max - min) / steps; lowest level z = round(min / scale); x = clip(round(x / scale), z, z + steps) scale.

    numbers = steps = 2^b - 1, machine epsilon.
    """
    real = row.dtype.type
    steps, epsilon = numbers[0], numbers[1]
    low, high = extremes(row)
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
        row[j] = v * scale


@inlined
def absmax_row(row: Rows, numbers: Rows) -> None:
    """x = round(x / scale) scale, scale = max|x| / highest, so that nothing is clipped. numbers = highest."""
    real = row.dtype.type
    scale = real(magnitude(row) / numbers[0])
    if scale < real(MIN_SCALE):
        scale = real(MIN_SCALE)
    inverse = real(1) / scale
    for j in range(row.shape[0]):
        row[j] = np.rint(row[j] * inverse) * scale


@inlined
def ternary_row(row: Rows, numbers: Rows) -> None:
    """w = alpha sign(w) where |w| >= threshold mean|w|, else 0. numbers = threshold."""
    real = row.dtype.type
    tau = real(0)
    for j in range(row.shape[0]):
        tau += abs(row[j])
    tau = real(tau / real(row.shape[0]) * numbers[0])
    if tau < real(MIN_THRESHOLD):
        tau = real(MIN_THRESHOLD)
    total, count = real(0), real(0)
    for j in range(row.shape[0]):
        kept = real(1) if abs(row[j]) >= tau else real(0)
        total += kept * abs(row[j])
        count += kept
    alpha = total / max(count, real(1))
    for j in range(row.shape[0]):
        value = alpha if row[j] > real(0) else -alpha
        row[j] = value if abs(row[j]) >= tau else real(0)


# --- rows --------------------------------------------------------------------------------------------------------


@inlined
def copy(to: Rows, row: Rows) -> None:
    for j in range(row.shape[0]):
        to[j] = row[j]


@inlined
def add(to: Rows, row: Rows, factor: float) -> None:
    for j in range(row.shape[0]):
        to[j] += factor * row[j]


@inlined
def dot(row: Rows, factor: Rows) -> Any:
    total = row.dtype.type(0)
    for j in range(row.shape[0]):
        total += row[j] * factor[j]
    return total


# --- rotation ---------------------------------------------------------------------------------------------------


@inlined
def rotate_row(row: Rows, signs: Rows, to: Rows) -> None:
    for j in range(row.shape[0]):
        to[j] = row[j] * signs[j]
    transform(to)


@loop
def rotate(x: Rows, signs: Rows, out: Rows) -> None:
    """out (M, n) = (x signs) H"""
    for i in range(x.shape[0]):
        rotate_row(x[i], signs, out[i])


# --- quantization, compiled for each quantizer when first called ------------------------------------------------


@lru_cache
def quantize(quantize_row: Loop) -> Any:
    @loop
    def rows(x: Rows, numbers: Rows, out: Rows) -> None:
        """x (M, D) -> out (M, D)"""
        for i in range(x.shape[0]):
            copy(out[i], x[i])
            quantize_row(out[i], numbers)

    return rows


@lru_cache
def quantize_heads(quantize_row: Loop) -> Any:
    @loop
    def heads(qkv: Rows, numbers: Rows, out: Rows) -> None:
        """qkv (N, T, 3, h, d) -> out (3, N, h, T, d), every token of every head quantized."""
        for n in range(qkv.shape[0]):
            for t in range(qkv.shape[1]):
                for part in range(qkv.shape[2]):
                    for head in range(qkv.shape[3]):
                        to = out[part, n, head, t]
                        copy(to, qkv[n, t, part, head])
                        quantize_row(to, numbers)

    return heads
