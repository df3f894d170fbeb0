"""Compiled CPU loops of a linear layer: all but its three large products.

A matrix product with the few columns of the low-rank branch costs a library several times what its arithmetic does,
and a pass over the tokens costs more than what is done to a row while it is in the first-level cache. Rows are
contiguous float32 or float64; an array of length zero stands for a step that is left out.
"""

from __future__ import annotations

from functools import lru_cache
from typing import Any

from robuq.quant.kernels import Loop, Rows, add, copy, dot, inlined, loop, rotate_row, transform


@lru_cache
def linear_inputs(quantize_token: Loop, quantize_weight: Loop) -> Any:
    @loop
    def inputs(
        x: Rows,
        signs: Rows,
        weight: Rows,
        left: Rows,
        right: Rows,
        bias: Rows,
        token_numbers: Rows,
        weight_numbers: Rows,
        tokens: Rows,
        inner: Rows,
        quantized: Rows,
        spare: Rows,
        y: Rows,
    ) -> None:
        """The operands of y += tokens quantized^T.

        x (M, I), signs (I,) or (0,) if x is rotated already, weight (O, I), left (O, r), right (r, I), bias (O,)
        -> tokens (M, I) = Q_a(x R), or (0, 0) if they are x; inner (M, r) = x R right^T;
        quantized (O, I) = Q_w(weight - left right); y (M, O) = bias + inner left^T, or (0, 0) without a branch.
        spare (r, O): room for left^T.
        """
        for i in range(weight.shape[0]):
            row = quantized[i]
            copy(row, weight[i])
            for k in range(right.shape[0]):
                add(row, right[k], -left[i, k])
                spare[k, i] = left[i, k]
            quantize_weight(row, weight_numbers)
        for i in range(x.shape[0]):
            row = x[i]
            if tokens.shape[0]:
                row = tokens[i]
                if signs.shape[0]:
                    rotate_row(x[i], signs, row)
                else:
                    copy(row, x[i])
            for k in range(right.shape[0]):
                inner[i, k] = dot(row, right[k])
            if tokens.shape[0]:
                quantize_token(row, token_numbers)
            if y.shape[0]:
                _branch_row(inner[i], spare, bias, y[i])

    return inputs


@inlined
def _branch_row(inner: Rows, left: Rows, bias: Rows, to: Rows) -> None:
    """to (O,) = bias + inner (r,) left (r, O), r at least 1; the first two terms in one pass."""
    rank = left.shape[0]
    first, second = left[0], left[min(1, rank - 1)]
    by_first = inner[0]
    by_second = inner[1] if rank > 1 else by_first * to.dtype.type(0)
    for j in range(to.shape[0]):
        to[j] = bias[j] + by_first * first[j] + by_second * second[j]
    for k in range(2, rank):
        add(to, left[k], inner[k])


@loop
def rotate_back(weight: Rows, signs: Rows, left: Rows, right: Rows, out: Rows) -> None:
    """weight (O, I), left (O, r), right (r, I) -> out (O, I) = ((weight + left right) H) signs"""
    for i in range(weight.shape[0]):
        to = out[i]
        copy(to, weight[i])
        for k in range(right.shape[0]):
            add(to, right[k], left[i, k])
        transform(to)
        for j in range(to.shape[0]):
            to[j] *= signs[j]


@loop
def branch_gradients(
    dy: Rows, x: Rows, inner: Rows, left: Rows, spare: Rows, dots: Rows, d_left: Rows, d_right: Rows, d_bias: Rows
) -> None:
    """dy (M, O), x (M, I), inner (M, r), left (O, r) -> d_left (r, O) = inner^T dy, d_right (r, I) = (dy left)^T x,
    d_bias (O,) = sum of dy, or (0,). spare (r, O), dots (M, r): room for left^T and dy left.
    """
    for k in range(spare.shape[0]):
        for i in range(spare.shape[1]):
            spare[k, i] = left[i, k]
    _sums(dy, inner, d_left, d_bias, spare, dots)
    _sums(x, dots, d_right, d_bias[:0], spare[:0], dots)


@loop
def weight_gradients(d_weight: Rows, left: Rows, right: Rows, dots: Rows, sums: Rows) -> None:
    """d_weight (O, I), left (O, r), right (r, I) -> dots (O, r) = d_weight right^T, sums (r, I) = left^T d_weight"""
    _sums(d_weight, left, sums, right[0, :0], right, dots)


@inlined
def _sums(rows: Rows, shares: Rows, sums: Rows, total: Rows, factors: Rows, dots: Rows) -> None:
    """sums (s, D) = shares^T rows, total (D,) = sum of rows, or (0,), dots (M, r) = rows factors^T.

    rows (M, D), shares (M, s), factors (r, D).
    Four rows at a time, so that the sums are read and written a fourth as often.
    """
    for k in range(sums.shape[0]):
        for j in range(sums.shape[1]):
            sums[k, j] = 0
    for j in range(total.shape[0]):
        total[j] = 0
    whole = rows.shape[0] // 4 * 4
    for i in range(0, whole, 4):
        a, b, c, d = rows[i], rows[i + 1], rows[i + 2], rows[i + 3]
        _dots(rows, i, i + 4, factors, dots)
        for k in range(sums.shape[0]):
            to, e, f, g, h = sums[k], shares[i, k], shares[i + 1, k], shares[i + 2, k], shares[i + 3, k]
            for j in range(to.shape[0]):
                to[j] += e * a[j] + f * b[j] + g * c[j] + h * d[j]
        for j in range(total.shape[0]):
            total[j] += (a[j] + b[j]) + (c[j] + d[j])
    _dots(rows, whole, rows.shape[0], factors, dots)
    for i in range(whole, rows.shape[0]):
        for k in range(sums.shape[0]):
            add(sums[k], rows[i], shares[i, k])
        for j in range(total.shape[0]):
            total[j] += rows[i, j]


@inlined
def _dots(rows: Rows, first: int, end: int, factors: Rows, dots: Rows) -> None:
    for i in range(first, end):
        for k in range(factors.shape[0]):
            dots[i, k] = dot(rows[i], factors[k])
