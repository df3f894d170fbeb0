"""The forward arithmetic of quantizers whose gradient is the identity, for autograd nodes of their own.

The hot rules on a CPU (a dynamic scale per token on a uniform grid; a scale per row of the weight) run in the
compiled loops of kernels.py; everything else goes through the reference, fake_quantizer.py and weight_quantizer.py.
Both give the same values up to the rounding of the last bit.
"""

from __future__ import annotations

import numpy as np
import torch
from torch import Tensor

from robuq.config import ActQuant, WeightQuant
from robuq.quant import kernels
from robuq.quant.fake_quantizer import ActFakeQuantizer
from robuq.quant.grids import gaussian_step
from robuq.quant.scales import MEAN_ABS_TO_SIGMA
from robuq.quant.weight_quantizer import quantize_weight

MAX_LOOP_RANK = 8  # above, a matrix product is faster
GAUSSIAN_GRIDS = ("mid_rise", "mid_tread", "as_coded")


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


def quantize_tokens(x: Tensor, quantizer: ActFakeQuantizer) -> Tensor:
    """x (M, D) -> (M, D), quantized. No gradient."""
    if not (has_loop(quantizer.spec) and _is_plain(x)):
        quantized: Tensor = quantizer(x)
        return quantized
    values = x.contiguous()
    out = torch.empty_like(values)
    _loop(values.numpy(), out.numpy(), quantizer.spec)
    return out


def quantize_rows(w: Tensor, spec: WeightQuant) -> Tensor:
    """w (O, I) -> (O, I), quantized. No gradient."""
    ternary, integer = spec.kind == "ternary_threshold", spec.kind == "absmax" and spec.bits != 1
    if not (spec.granularity == "per_channel" and (ternary or integer) and _is_plain(w)):
        return quantize_weight(w, spec)
    weight = w.contiguous()
    out, values = torch.empty_like(weight), weight.numpy()
    real = values.dtype.type
    if ternary:
        kernels.ternary_rows(values, out.numpy(), real(spec.threshold))
    else:
        highest = real(2 ** ((spec.bits or 0) - 1) - 1)
        kernels.absmax_rows(values, kernels.magnitudes(values), out.numpy(), highest)
    return out


def branch_input(x: Tensor, right: Tensor) -> Tensor:
    """x (M, I), right (r, I) -> x right^T (M, r)."""
    if not _is_plain(x) or len(right) > MAX_LOOP_RANK:
        return x @ right.t()
    inner = x.new_empty(len(x), len(right))
    kernels.branch_input(x.contiguous().numpy(), right.contiguous().numpy(), inner.numpy())
    return inner


def branch_gradients(dy: Tensor, x: Tensor, inner: Tensor, left: Tensor) -> tuple[Tensor, Tensor]:
    """dy (M, O), x (M, I), inner (M, r), left (O, r) -> dy^T inner (O, r), (dy left)^T x (r, I)."""
    if not _is_plain(dy) or left.shape[1] > MAX_LOOP_RANK:
        return dy.t() @ inner, (dy @ left).t() @ x
    transposed = left.t().contiguous()
    d_left, d_right = torch.zeros_like(transposed), x.new_zeros(len(transposed), x.shape[1])
    arrays = (tensor.contiguous().numpy() for tensor in (dy, x, inner))
    kernels.branch_gradients(*arrays, transposed.numpy(), d_left.numpy(), d_right.numpy())
    return d_left.t(), d_right


def _is_plain(x: Tensor) -> bool:
    return x.device.type == "cpu" and x.dtype in (torch.float32, torch.float64)


def _loop(x: kernels.Rows, out: kernels.Rows, spec: ActQuant) -> None:
    real, half = x.dtype.type, 2 ** (spec.bits - 1)
    if spec.scale == "gaussian":
        factor = real(MEAN_ABS_TO_SIGMA * gaussian_step(spec.grid, spec.bits))
        mid = real(0.5 if spec.grid == "mid_rise" else 0)
        kernels.gaussian_rows(x, out, factor, real(-half), real(half - 1), mid, spec.center)
    elif spec.scale == "minmax":
        epsilon = np.finfo(x.dtype).eps
        kernels.minmax_rows(x, kernels.extremes(x), out, real(2**spec.bits - 1), real(epsilon))
    else:
        kernels.absmax_rows(x, kernels.magnitudes(x), out, real(half - 1))
