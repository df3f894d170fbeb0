"""In-place forward arithmetic of quantizers whose gradient is the identity.

Autograd nodes of their own (`StraightThroughLinear`, `StraightThroughAttention`) call these with tensors that they
own. The result is that of the reference in fake_quantizer.py up to the rounding of the last bit; the hot rules
(a dynamic scale per token on a uniform grid) are written out with as few passes over the tokens as they need,
everything else goes through the reference.
"""

from __future__ import annotations

import torch
from torch import Tensor

from robuq.config import ActQuant
from robuq.quant.fake_quantizer import ActFakeQuantizer
from robuq.quant.grids import gaussian_step
from robuq.quant.scales import MEAN_ABS_TO_SIGMA, MIN_SCALE


def is_straight_through(spec: ActQuant) -> bool:
    """Whether the gradient ignores the quantizer."""
    return spec.gradient == "ste" and spec.clip == "hard" and spec.scale != "lsq"


def quantize_tokens_(x: Tensor, quantizer: ActFakeQuantizer) -> Tensor:
    """x (..., D), contiguous -> its quantized values; x itself may be overwritten. No gradient."""
    spec = quantizer.spec
    if spec.granularity == "per_token" and spec.mode == "dynamic" and x.dtype in (torch.float32, torch.float64):
        if (
            spec.scale == "gaussian"
            and spec.spread == "mean_abs"
            and spec.grid in ("mid_rise", "mid_tread", "as_coded")
        ):
            return _gaussian_(x, spec)
        if spec.scale == "absmax" and spec.grid == "mid_tread" and not spec.center and spec.bits > 1:
            return _absmax_(x, spec)
        if spec.scale == "minmax" and spec.grid == "mid_tread":
            return _minmax_(x, spec)
    quantized: Tensor = quantizer(x)
    return quantized


def _gaussian_(x: Tensor, spec: ActQuant) -> Tensor:
    """sigma = mean|x - mu| sqrt(pi/2); level(x - mu, sigma step) + mu."""
    center = None
    if spec.center:
        center = x.mean(-1, keepdim=True)
        x.sub_(center)
    scale = x.abs().mean(-1, keepdim=True)
    scale.mul_(MEAN_ABS_TO_SIGMA * gaussian_step(spec.grid, spec.bits)).clamp_min_(MIN_SCALE)
    x.div_(scale)
    half = 2 ** (spec.bits - 1)
    if spec.grid == "mid_rise":
        x.floor_().clamp_(-half, half - 1)
        offset = scale * 0.5 if center is None else torch.add(center, scale, alpha=0.5)
        return torch.addcmul(offset, x, scale, out=x)
    x.round_().clamp_(-half, half - 1)
    return x.mul_(scale) if center is None else torch.addcmul(center, x, scale, out=x)


def _absmax_(x: Tensor, spec: ActQuant) -> Tensor:
    """The largest magnitude is the highest level, so that nothing is clipped."""
    scale = x.abs().amax(-1, keepdim=True).div_(2 ** (spec.bits - 1) - 1).clamp_min_(MIN_SCALE)
    return x.div_(scale).round_().mul_(scale)


def _minmax_(x: Tensor, spec: ActQuant) -> Tensor:
    """Integer zero point z = round(-min / s): levels -z .. 2^b - 1 - z times s = (max - min) / (2^b - 1)."""
    low, high = x.amin(-1, keepdim=True), x.amax(-1, keepdim=True)
    floor = torch.maximum(low.abs(), high.abs()).mul_(torch.finfo(x.dtype).eps)
    scale = torch.maximum((high - low).div_(2**spec.bits - 1), floor).clamp_min_(MIN_SCALE)
    lowest = (low / scale).round_()
    x.div_(scale).round_()
    torch.clamp(x, lowest, lowest + (2**spec.bits - 1), out=x)
    return x.mul_(scale)
