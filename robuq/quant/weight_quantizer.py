"""Fake quantizers of weights (O, I): ternary, b-bit and two-term binary, with straight-through gradient.

Every kind works on `rows`: the weights that share one scale, along the last axis; (1, O I) per_tensor, (O, I)
per_channel, (O I / g, g) per_group.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor
from torch.autograd.function import once_differentiable

from robuq.config.quant import WeightQuant

MIN_SCALE = 1e-12  # divides rows of zeros, which so stay zero


def fake_quant_weight(w: Tensor, spec: WeightQuant) -> Tensor:
    """w (O, I) -> (O, I) quantized and dequantized. Gradient: identity, clamped to [-1, 1] if `clamp_gradient`."""
    quantized: Tensor = _FakeQuantWeight.apply(w, spec)  # type: ignore[no-untyped-call]
    return quantized


class _FakeQuantWeight(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, w: Tensor, spec: WeightQuant) -> Tensor:
        ctx.clamp = spec.clamp_gradient
        return quantize_weight(w, spec)

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor, None]:
        return (grad.clamp(-1, 1) if ctx.clamp else grad), None


def quantize_weight(w: Tensor, spec: WeightQuant) -> Tensor:
    """The values of `fake_quant_weight`, without its gradient."""
    values = rows(w, spec)
    if spec.kind == "binary_residual":
        return binary_residual(values).view(w.shape)
    codes, scale = _codes(values, spec)
    return codes.mul_(scale).view(w.shape)


def weight_codes(w: Tensor, spec: WeightQuant) -> tuple[Tensor, Tensor]:
    """w (O, I) -> integer codes (O, I) int8 and scales (R, 1) of the rows; codes * scale is the quantized weight.

    Raises:
        ValueError: binary_residual, which has two scales and no integer codes.
    """
    if spec.kind == "binary_residual":
        raise ValueError("binary_residual weights have no single integer code: use a ternary kind or absmax")
    codes, scale = _codes(rows(w, spec), spec)
    return codes.to(torch.int8).view(w.shape), scale


def rows(w: Tensor, spec: WeightQuant) -> Tensor:
    """w (O, I) with the weights that share one scale along the last axis; a group larger than I is I.

    Raises:
        ValueError: the group size does not divide I.
    """
    if spec.granularity == "per_tensor":
        return w.reshape(1, -1)
    size = min(spec.group_size or w.shape[-1], w.shape[-1])
    if w.shape[-1] % size:
        raise ValueError(f"group_size={size} does not divide the input width {w.shape[-1]}: use one of its divisors")
    return w.reshape(-1, size)


def _codes(values: Tensor, spec: WeightQuant) -> tuple[Tensor, Tensor]:
    """Float codes, in a new tensor, and scale (R, 1)."""
    if spec.kind == "ternary_threshold":
        return ternary_threshold(values, spec.threshold)
    if spec.kind == "ternary_absmean":
        return ternary_absmean(values)
    return absmax(values, spec.bits or 0)


def ternary_threshold(w: Tensor, threshold: float) -> tuple[Tensor, Tensor]:
    """w (R, n) -> codes in {-1, 0, 1} (R, n), alpha (R, 1).

    tau = threshold mean|w|; code = sign(w) 1[|w| >= tau]; alpha = mean of |w| where the code is not zero.
    """
    tau = mean_abs(w).mul_(threshold).clamp_min_(MIN_SCALE)
    codes = (w / tau).trunc_().clamp_(-1, 1)  # trunc(w / tau) is 0 exactly where |w| < tau
    with torch.autocast(w.device.type, enabled=False):  # which would take these for products of a layer
        kept = torch.linalg.vecdot(codes, codes).clamp_min_(1)
        return codes, (torch.linalg.vecdot(codes, w) / kept).unsqueeze(-1)


def ternary_absmean(w: Tensor) -> tuple[Tensor, Tensor]:
    """BitNet b1.58: w (R, n) -> clip(round(w / gamma), -1, 1), gamma = mean|w| (R, 1)."""
    gamma = mean_abs(w)
    return (w / gamma.clamp_min(MIN_SCALE)).round_().clamp_(-1, 1), gamma


def absmax(w: Tensor, bits: int) -> tuple[Tensor, Tensor]:
    """w (R, n) -> codes in -q .. q, q = 2^(b-1) - 1, scale max|w| / q (R, 1); 1 bit: sign(w), mean|w|."""
    if bits == 1:
        return _sign(w), mean_abs(w)
    q = 2 ** (bits - 1) - 1
    scale = w.abs().amax(-1, keepdim=True) / q
    return (w / scale.clamp_min(MIN_SCALE)).round_().clamp_(-q, q), scale


def binary_residual(w: Tensor) -> Tensor:
    """BinaryDM: w (R, n) -> a1 sign(w) + a2 sign(w - a1 sign(w)), a1 = mean|w|, a2 = mean|w - a1 sign(w)|."""
    first = _sign(w).mul_(mean_abs(w))
    residual = w - first
    return first.add_(_sign(residual).mul_(mean_abs(residual)))


def mean_abs(w: Tensor) -> Tensor:
    """w (R, n) -> (R, 1)."""
    return w.abs().mean(-1, keepdim=True)  # four times as fast as a vector norm on CPU


def _sign(w: Tensor) -> Tensor:
    """+-1, and +1 for zero: two levels, not three."""
    return torch.where(w >= 0, 1.0, -1.0).to(w.dtype)
