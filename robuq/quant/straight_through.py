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


def quantize_tokens(x: Tensor, quantizer: ActFakeQuantizer, more: int = 0) -> Tensor:
    """x (M, D) -> (M, D + more): its quantized values, and columns that the caller fills. No gradient."""
    out = x.new_empty(x.shape[0], x.shape[1] + more)
    if has_loop(quantizer.spec) and _is_plain(x):
        _loop(x.contiguous().numpy(), out.numpy(), quantizer.spec)
    else:
        out[:, : x.shape[1]] = quantizer(x)
    return out


def quantize_rows(w: Tensor, spec: WeightQuant | None, more: int = 0) -> Tensor:
    """w (O, I) -> (O, I + more): its quantized values, and columns that the caller fills. No gradient."""
    out = w.new_empty(w.shape[0], w.shape[1] + more)
    per_row = spec is not None and spec.granularity == "per_channel" and _is_plain(w)
    if spec is not None and per_row and spec.kind == "ternary_threshold":
        values = w.contiguous().numpy()
        kernels.ternary_rows(values, out.numpy(), values.dtype.type(spec.threshold))
    elif spec is not None and per_row and spec.kind == "absmax" and spec.bits != 1:
        values = w.contiguous().numpy()
        highest = values.dtype.type(2 ** ((spec.bits or 0) - 1) - 1)
        kernels.absmax_rows(values, kernels.magnitudes(values), out.numpy(), highest)
    else:
        out[:, : w.shape[1]] = w if spec is None else quantize_weight(w, spec)
    return out


def _is_plain(x: Tensor) -> bool:
    return x.device.type == "cpu" and x.dtype in (torch.float32, torch.float64) and x.shape[-1] > 0


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
