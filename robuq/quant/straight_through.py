"""The forward and backward arithmetic of layers whose quantizers' gradient is the identity, for autograd nodes.

The hot rules on a CPU (a dynamic scale per token on a uniform grid; a scale per row of the weight) run in the
compiled loops of kernels.py; everything else goes through the reference, fake_quantizer.py and weight_quantizer.py.
Both give the same values up to the rounding of the last bit.
"""

from __future__ import annotations

from functools import lru_cache
from typing import Any, NamedTuple

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from robuq.config import ActQuant, WeightQuant
from robuq.quant import kernels, linear_kernels
from robuq.quant.fake_quantizer import ActFakeQuantizer
from robuq.quant.grids import gaussian_step
from robuq.quant.hadamard import Rotation, is_plain
from robuq.quant.scales import MEAN_ABS_TO_SIGMA
from robuq.quant.weight_quantizer import quantize_weight

GAUSSIAN_GRIDS = ("mid_rise", "mid_tread", "as_coded")
Array = NDArray[Any]
Rule = tuple[kernels.Loop, Array]  # the loop over a row, and its constants


def is_straight_through(spec: ActQuant) -> bool:
    """Whether the gradient ignores the quantizer."""
    return spec.gradient == "ste" and spec.clip == "hard" and spec.scale != "lsq"


def has_loop(spec: ActQuant) -> bool:
    """Whether kernels.py computes this activation quantizer."""
    if spec.granularity != "per_token" or spec.mode != "dynamic":
        return False
    if spec.scale == "gaussian":
        return spec.spread == "mean_abs" and spec.grid in GAUSSIAN_GRIDS
    if spec.scale == "absmax":
        return spec.grid == "mid_tread" and not spec.center and spec.bits > 1
    return spec.scale == "minmax" and spec.grid == "mid_tread"


class Operands(NamedTuple):
    """y (M, O) is tokens (M, I) weight (O, I)^T, plus the branch; inner (M, r) = x R right^T."""

    tokens: Tensor
    weight: Tensor
    inner: Tensor | None
    y: Tensor


# --- a linear layer ---------------------------------------------------------------------------------------------


def linear_forward(
    x: Tensor,
    weight: Tensor,
    bias: Tensor | None,
    left: Tensor | None,
    right: Tensor | None,
    rotation: Rotation,
    quantizer: ActFakeQuantizer | None,
    spec: WeightQuant | None,
) -> Operands:
    """x (M, I), weight (O, I), bias (O,), left (O, r), right (r, I) -> the operands and the result. No gradient.

    y = Q_a(x R) Q_w(weight - left right)^T + (x R) right^T left^T + bias
    """
    act = None if quantizer is None else quantizer.spec
    rules = _rules(act, spec, x.dtype) if is_plain(x) else None
    if rules is None:
        return _reference_forward(x, weight, bias, left, right, rotation, quantizer, spec)
    signs = rotation.scaled_signs(x)
    if signs is None:
        x = rotation(x)
    tokens = x if quantizer is None and signs is None else torch.empty_like(x, memory_format=torch.contiguous_format)
    quantized = torch.empty_like(weight, memory_format=torch.contiguous_format)
    inner = None if right is None else x.new_empty(len(x), len(right))
    y = None if right is None else x.new_empty(len(x), len(weight))
    loop, act_numbers, weight_numbers, none, no_rows = rules
    loop(
        x.contiguous().numpy(),
        none if signs is None else signs,
        weight.contiguous().numpy(),
        no_rows if left is None else left.contiguous().numpy(),
        no_rows if right is None else right.contiguous().numpy(),
        np.zeros(len(weight), none.dtype) if bias is None else bias.contiguous().numpy(),
        act_numbers,
        weight_numbers,
        no_rows if tokens is x else tokens.numpy(),
        no_rows if inner is None else inner.numpy(),
        quantized.numpy(),
        no_rows if right is None else np.empty((len(right), len(weight)), none.dtype),
        no_rows if y is None else y.numpy(),
    )
    if y is None:
        y = linear(tokens, quantized, bias, None, None)
    else:  # adding the product to what is there costs no pass over memory
        y.addmm_(tokens, quantized.t())
    return Operands(tokens, quantized, inner, y)


def _reference_forward(
    x: Tensor,
    weight: Tensor,
    bias: Tensor | None,
    left: Tensor | None,
    right: Tensor | None,
    rotation: Rotation,
    quantizer: ActFakeQuantizer | None,
    spec: WeightQuant | None,
) -> Operands:
    rotated = rotation(x)
    tokens = rotated if quantizer is None else quantize_tokens(rotated, quantizer)
    inner = None
    if left is not None and right is not None:
        inner = rotated @ right.t()
        weight = torch.addmm(weight, left, right, alpha=-1)
    if spec is not None:
        weight = quantize_weight(weight, spec)
    return Operands(tokens, weight, inner, linear(tokens, weight, bias, inner, left))


def linear(tokens: Tensor, weight: Tensor, bias: Tensor | None, inner: Tensor | None, left: Tensor | None) -> Tensor:
    """tokens (M, I), weight (O, I), inner (M, r), left (O, r) -> tokens weight^T + inner left^T + bias (M, O)."""
    y = tokens @ weight.t() if bias is None else torch.addmm(bias, tokens, weight.t())
    return y if inner is None or left is None else y.addmm_(inner, left.t())


def rotate_back(weight: Tensor, left: Tensor | None, right: Tensor | None, rotation: Rotation) -> Tensor:
    """weight (O, I), left (O, r), right (r, I) -> (weight + left right) R^T (O, I)."""
    signs = rotation.scaled_signs(weight)
    if signs is None:
        whole = weight if left is None or right is None else torch.addmm(weight, left, right)
        back: Tensor = rotation.inverse(whole)
        return back
    out = torch.empty_like(weight)
    given = [np.empty((0, 0), signs.dtype)] * 2
    if left is not None and right is not None:
        given = [left.contiguous().numpy(), right.contiguous().numpy()]
    linear_kernels.rotate_back(weight.numpy(), signs, *given, out.numpy())
    return out


def branch_gradients(
    dy: Tensor, x: Tensor, inner: Tensor, left: Tensor, with_bias: bool
) -> tuple[Tensor, Tensor, Tensor | None]:
    """dy (M, O), x (M, I), inner (M, r), left (O, r) -> dy^T inner (O, r), (dy left)^T x (r, I), sum of dy (O,)."""
    if not is_plain(dy):
        return dy.t() @ inner, (dy @ left).t() @ x, dy.sum(0) if with_bias else None
    (out, rank), width = left.shape, x.shape[1]
    d_left, d_right, d_bias = dy.new_empty(rank, out), dy.new_empty(rank, width), dy.new_empty(out if with_bias else 0)
    given = [tensor.contiguous().numpy() for tensor in (dy, x, inner, left)]
    real = given[0].dtype
    spare, dots = np.empty((rank, out), real), np.empty((len(dy), rank), real)
    linear_kernels.branch_gradients(*given, spare, dots, d_left.numpy(), d_right.numpy(), d_bias.numpy())
    return d_left.t(), d_right, d_bias if with_bias else None


def weight_gradients(d_weight: Tensor, left: Tensor, right: Tensor) -> tuple[Tensor, Tensor]:
    """d_weight (O, I), left (O, r), right (r, I) -> d_weight right^T (O, r), left^T d_weight (r, I)."""
    if not is_plain(d_weight):
        return d_weight @ right.t(), left.t() @ d_weight
    given = [tensor.contiguous().numpy() for tensor in (d_weight, left, right)]
    dots, sums = torch.empty_like(left), torch.empty_like(right)
    linear_kernels.weight_gradients(*given, dots.numpy(), sums.numpy())
    return dots, sums


# --- activations alone ------------------------------------------------------------------------------------------


def quantize_tokens(x: Tensor, quantizer: ActFakeQuantizer) -> Tensor:
    """x (M, D) -> (M, D), quantized. No gradient."""
    if not (has_loop(quantizer.spec) and is_plain(x)):
        quantized: Tensor = quantizer(x)
        return quantized
    out = torch.empty_like(x, memory_format=torch.contiguous_format)
    quantize_row, numbers = _token_rule(quantizer.spec, x.dtype)
    kernels.quantize(quantize_row)(x.contiguous().numpy(), numbers, out.numpy())
    return out


def quantize_heads(qkv: Tensor, quantizer: ActFakeQuantizer) -> Tensor:
    """qkv (3, N, h, T, d) -> the same, contiguous, with every token of every head quantized. No gradient."""
    as_made = qkv.permute(1, 3, 0, 2, 4)  # (N, T, 3, h, d), as the linear layer left them
    if not (has_loop(quantizer.spec) and is_plain(qkv)):
        rounded = quantize_tokens(as_made.reshape(-1, qkv.shape[-1]), quantizer).view(as_made.shape)
        return rounded.permute(2, 0, 3, 1, 4).contiguous()
    out = torch.empty_like(qkv, memory_format=torch.contiguous_format)
    quantize_row, numbers = _token_rule(quantizer.spec, qkv.dtype)
    kernels.quantize_heads(quantize_row)(as_made.contiguous().numpy(), numbers, out.numpy())
    return out


# --- which loops ------------------------------------------------------------------------------------------------


@lru_cache
def _rules(
    act: ActQuant | None, weight: WeightQuant | None, dtype: torch.dtype
) -> tuple[kernels.Loop, Array, Array, Array, Array] | None:
    """The loop over a layer, the constants of both quantizers, and arrays (0,) and (0, 0); None without a loop."""
    if act is not None and not has_loop(act):
        return None
    of_weight = _weight_rule(weight, dtype)
    if of_weight is None:
        return None
    of_tokens = _token_rule(act, dtype)
    real = _real(dtype)
    loop = linear_kernels.linear_inputs(of_tokens[0], of_weight[0])
    return loop, of_tokens[1], of_weight[1], np.empty(0, real), np.empty((0, 0), real)


@lru_cache
def _token_rule(spec: ActQuant | None, dtype: torch.dtype) -> Rule:
    """Of a rule that `has_loop`, or of none, which keeps the values."""
    real = _real(dtype)
    if spec is None:
        return kernels.keep_row, np.empty(0, real)
    half = 2 ** (spec.bits - 1)
    if spec.scale == "minmax":
        return kernels.minmax_row, np.array([2**spec.bits - 1, np.finfo(real).eps], real)
    if spec.scale == "absmax":
        return kernels.absmax_row, np.array([half - 1], real)
    factor = MEAN_ABS_TO_SIGMA * gaussian_step(spec.grid, spec.bits)
    row = kernels.centered_gaussian_row if spec.center else kernels.gaussian_row
    return row, np.array([factor, -half, half - 1, 0.5 if spec.grid == "mid_rise" else 0], real)


def _weight_rule(spec: WeightQuant | None, dtype: torch.dtype) -> Rule | None:
    """None without a loop."""
    real = _real(dtype)
    if spec is None:
        return kernels.keep_row, np.empty(0, real)
    if spec.granularity != "per_channel":
        return None
    if spec.kind == "ternary_threshold":
        return kernels.ternary_row, np.array([spec.threshold], real)
    if spec.kind == "absmax" and spec.bits is not None and spec.bits > 1:
        return kernels.absmax_row, np.array([2 ** (spec.bits - 1) - 1], real)
    return None


def _real(dtype: torch.dtype) -> type[np.floating]:
    return np.float64 if dtype == torch.float64 else np.float32
