"""The fast Walsh-Hadamard transform of a row, in place and in vector registers, as a piece of compiled CPU loops.

Written with explicit vectors of LLVM: the compiler makes no vector operations of plain loops over butterflies,
because it cannot prove that their two halves do not overlap.
"""

from __future__ import annotations

from typing import Any

from llvmlite import ir
from numba import types
from numba.extending import intrinsic

LANES = 8  # values of a vector: in float32 as wide as those that LLVM makes of loops, which pass values on quickest


def has_butterflies(n: int) -> bool:
    """Whether `transform_row` takes rows of n values: powers of two that fill a vector."""
    return n >= LANES and n & (n - 1) == 0


def transform_row(row: Any) -> None:
    """row (n,) becomes row H, H of order n after Sylvester, without a factor. For use within compiled loops."""
    n = row.shape[0]
    for i in range(0, n, LANES):
        _within_vector(row, i)
    half = LANES
    while 2 * half < n:  # two stages at a time, which halves the traffic
        for first in range(0, n, 4 * half):
            for i in range(first, first + half, LANES):
                _across_four(row, i, half)
        half *= 4
    if half < n:
        for i in range(0, half, LANES):
            _across_two(row, i, half)


@intrinsic
def _within_vector(_: Any, row: Any, i: Any) -> Any:
    """row[i : i + LANES] becomes its transform of order LANES."""

    def generate(context: Any, builder: Any, signature: Any, arguments: Any) -> Any:
        vectors = _Vectors(context, builder, signature, arguments)
        value = vectors.load(0)
        for half in (1, 2, 4):
            partner = ir.Constant(ir.VectorType(ir.IntType(32), LANES), [lane ^ half for lane in range(LANES)])
            signs = ir.Constant(vectors.kind, [-1.0 if lane & half else 1.0 for lane in range(LANES)])
            signed = builder.fmul(value, signs, flags=("contract",))
            value = builder.fadd(builder.shuffle_vector(value, value, partner), signed, flags=("contract",))
        vectors.store(0, value)
        return context.get_dummy_value()

    return types.void(row, types.intp), generate


@intrinsic
def _across_two(_: Any, row: Any, i: Any, half: Any) -> Any:
    """a, b = a + b, a - b for the vectors of row at i and i + half."""

    def generate(context: Any, builder: Any, signature: Any, arguments: Any) -> Any:
        vectors = _Vectors(context, builder, signature, arguments)
        a, b = vectors.load(0), vectors.load(1)
        vectors.store(0, builder.fadd(a, b))
        vectors.store(1, builder.fsub(a, b))
        return context.get_dummy_value()

    return types.void(row, types.intp, types.intp), generate


@intrinsic
def _across_four(_: Any, row: Any, i: Any, half: Any) -> Any:
    """The transform of order 4 across the vectors of row at i, i + half, i + 2 half, i + 3 half."""

    def generate(context: Any, builder: Any, signature: Any, arguments: Any) -> Any:
        vectors = _Vectors(context, builder, signature, arguments)
        a, b, c, d = (vectors.load(k) for k in range(4))
        even, odd = builder.fadd(a, c), builder.fadd(b, d)
        even_rest, odd_rest = builder.fsub(a, c), builder.fsub(b, d)
        vectors.store(0, builder.fadd(even, odd))
        vectors.store(1, builder.fsub(even, odd))
        vectors.store(2, builder.fadd(even_rest, odd_rest))
        vectors.store(3, builder.fsub(even_rest, odd_rest))
        return context.get_dummy_value()

    return types.void(row, types.intp, types.intp), generate


class _Vectors:
    """The vectors of a contiguous row at i, i + half, i + 2 half, ..., from an intrinsic's (row, i[, half])."""

    def __init__(self, context: Any, builder: Any, signature: Any, arguments: Any) -> None:
        row, self.builder = signature.args[0], builder
        self.kind = ir.VectorType(context.get_value_type(row.dtype), LANES)
        self.align = row.dtype.bitwidth // 8  # rows lie anywhere
        self.place = builder.gep(context.make_array(row)(context, builder, arguments[0]).data, [arguments[1]])
        self.half = arguments[2] if len(arguments) > 2 else None

    def _pointer(self, k: int) -> Any:
        place = self.place
        for _ in range(k):
            place = self.builder.gep(place, [self.half])
        return self.builder.bitcast(place, self.kind.as_pointer())

    def load(self, k: int) -> Any:
        return self.builder.load(self._pointer(k), align=self.align)

    def store(self, k: int, value: Any) -> None:
        self.builder.store(value, self._pointer(k), align=self.align)
