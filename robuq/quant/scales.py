"""Scale rules: how large a quantizer's step is, and around which value its grid lies.

Every rule reduces the last axis of `rows(x, spec)`, so that one rule serves every granularity. Deviations are
measured from the center that is subtracted: the mean (the median for mad and iqr) when `spec.center`, else zero.
Statistics are taken in float32 or wider, without gradient.
"""

from __future__ import annotations

import math
from collections.abc import Callable

import torch
from torch import Tensor

from robuq.config.quant import QUEST_CLIP, ActQuant, ScaleRule
from robuq.quant.grids import gaussian_step, max_level

# A token of zeros has this scale, so that its quantized values are finite: 0, or half a step on mid-rise grids.
MIN_SCALE = 1e-8

MAD_TO_SIGMA = 1.4826  # 1 / Phi^-1(3/4): a normal variable's sigma over its median absolute deviation
IQR_TO_SIGMA = 1 / 1.349  # 1 / (2 Phi^-1(3/4)): ... over its interquartile range
MEAN_ABS_TO_SIGMA = math.sqrt(math.pi / 2)  # ... over its mean absolute deviation

Scaling = tuple[Tensor, Tensor | None]  # scale and center; no center is a center of zero


def group_width(spec: ActQuant, width: int) -> int:
    """Values in a group of a per_group quantizer of `width` channels; a group larger than the width is the width.

    Raises:
        ValueError: the width is no multiple of the group size.
    """
    size = min(spec.group_size or width, width)
    if width % size:
        raise ValueError(f"group_size={size} does not divide the width {width}: use a divisor of the width")
    return size


def grouped(x: Tensor, spec: ActQuant) -> Tensor:
    """x (..., D) in the shape that scale and center broadcast to: (..., G, D / G) for per_group, else unchanged."""
    if spec.granularity != "per_group":
        return x
    size = group_width(spec, x.shape[-1])
    return x.reshape(*x.shape[:-1], x.shape[-1] // size, size)


def rows(x: Tensor, spec: ActQuant) -> Tensor:
    """x (..., D) with the values that share one scale along the last axis.

    per_token (..., D); per_group (..., G, D / G); per_channel (D, M); per_tensor (1, M D).
    """
    if spec.granularity == "per_tensor":
        return x.reshape(1, -1)
    if spec.granularity == "per_channel":
        return x.reshape(-1, x.shape[-1]).t()
    return grouped(x, spec)


@torch.no_grad()
def scale_and_center(x: Tensor, spec: ActQuant) -> Scaling:
    """x (..., D) -> scale and center, which broadcast to `grouped(x, spec)`; center is None where it is zero.

    per_token (..., 1); per_group (..., G, 1); per_channel (D,); per_tensor (1,). For lsq: the initial step.
    """
    values = rows(x.to(torch.promote_types(x.dtype, torch.float32)), spec)
    scale, center = _minmax(values, spec) if spec.scale == "minmax" else _around_center(values, spec)
    if spec.granularity in ("per_channel", "per_tensor"):
        scale, center = scale.flatten(), None if center is None else center.flatten()
    return scale, center


def _around_center(values: Tensor, spec: ActQuant) -> Scaling:
    center = None
    if spec.center:
        center = _median(values) if spec.scale in ("mad", "iqr") else values.mean(-1, keepdim=True)
        values = values - center
    return RULES[spec.scale](values, spec).clamp_min_(MIN_SCALE), center


def _minmax(values: Tensor, spec: ActQuant) -> Scaling:
    """Asymmetric: s = (max - min) / (2^b - 1).

    mid_tread: integer zero point z = round(-min / s), X_q = clip(round(X / s) + z, 0, 2^b - 1), written as levels
    k = X_q - 2^(b-1) around the center s (2^(b-1) - z); a zero stays exactly zero. mid_rise: around (min + max) / 2,
    so that min and max are levels.
    """
    low, high = (bound.unsqueeze(-1) for bound in values.aminmax(dim=-1))
    # relative to the values too: a constant token far from zero would need a zero point beyond float's integers
    floor = torch.finfo(values.dtype).eps * torch.maximum(low.abs(), high.abs())
    scale = torch.maximum((high - low) / (2**spec.bits - 1), floor).clamp_min_(MIN_SCALE)
    if spec.grid == "mid_rise":
        return scale, (low + high) / 2
    zero_point = (-low / scale).round_()
    return scale, scale * (2 ** (spec.bits - 1) - zero_point)


# --- rules: deviations (..., n) -> scale (..., 1), not yet floored -----------------------------------------------


def _from_range(clip_range: Tensor, spec: ActQuant) -> Tensor:
    return clip_range / max_level(spec.grid, spec.bits)


def _absmax(values: Tensor, spec: ActQuant) -> Tensor:
    return _from_range(values.abs().amax(-1, keepdim=True), spec)


def _absmean(values: Tensor, spec: ActQuant) -> Tensor:
    """BitNet v2: step = mean|x| / sqrt(q), q = max(2^(b-1) - 1, 1); at 4 bits sqrt(7), as published."""
    return _mean_abs(values) / math.sqrt(max(2 ** (spec.bits - 1) - 1, 1))


def _percentile(values: Tensor, spec: ActQuant) -> Tensor:
    return _from_range(quantile(values.abs(), spec.percentile / 100), spec)


def _sigma(values: Tensor, spec: ActQuant) -> Tensor:
    return _from_range(spec.multiple * _rms_of(values), spec)


def _mad(values: Tensor, spec: ActQuant) -> Tensor:
    return _from_range(spec.multiple * MAD_TO_SIGMA * _median(values.abs()), spec)


def _iqr(values: Tensor, spec: ActQuant) -> Tensor:
    ordered = values.sort(dim=-1).values
    spread = _interpolate(ordered, 0.75) - _interpolate(ordered, 0.25)
    return _from_range(spec.multiple * IQR_TO_SIGMA * spread, spec)


def _gaussian(values: Tensor, spec: ActQuant) -> Tensor:
    """RobustQuantizer: sigma (from mean|x - mu| sqrt(pi/2), or the standard deviation) times the optimal step."""
    sigma = _rms_of(values) if spec.spread == "std" else MEAN_ABS_TO_SIGMA * _mean_abs(values)
    return sigma * gaussian_step(spec.grid, spec.bits)


def _rms(values: Tensor, spec: ActQuant) -> Tensor:
    """QuEST: clip at c_b RMS, step 2 c_b RMS / (2^b - 1)."""
    return _rms_of(values) * (2 * QUEST_CLIP[spec.bits - 1] / ((1 << spec.bits) - 1))


def _lsq(values: Tensor, spec: ActQuant) -> Tensor:
    """LSQ's initial step, 2 mean|x| / sqrt(q), q the highest level, at least 1."""
    return 2 * _mean_abs(values) / math.sqrt(lsq_max_level(spec))


RULES: dict[ScaleRule, Callable[[Tensor, ActQuant], Tensor]] = {
    "absmax": _absmax,
    "absmean": _absmean,
    "percentile": _percentile,
    "sigma": _sigma,
    "mad": _mad,
    "iqr": _iqr,
    "gaussian": _gaussian,
    "rms": _rms,
    "lsq": _lsq,
}


def lsq_max_level(spec: ActQuant) -> float:
    return max(max_level(spec.grid, spec.bits), 1.0)


# --- statistics along the last axis -----------------------------------------------------------------------------


def quantile(values: Tensor, q: float) -> Tensor:
    """values (..., n) -> (..., 1), as `torch.quantile` (linear interpolation), which refuses 2^24 values and more.

    Only the values above the quantile are sorted: for the 99.9th percentile that is a small part.
    """
    n = values.shape[-1]
    above = n - math.floor(q * (n - 1))  # the quantile lies between the two smallest of these
    if above > n // 4:
        return _interpolate(values.sort(dim=-1).values, q)
    top = values.topk(above, dim=-1).values
    weight = q * (n - 1) - math.floor(q * (n - 1))
    return torch.lerp(top[..., -1:], top[..., max(above - 2, 0)].unsqueeze(-1), weight)


def _interpolate(ordered: Tensor, q: float) -> Tensor:
    position = q * (ordered.shape[-1] - 1)
    below, above = math.floor(position), math.ceil(position)
    return torch.lerp(ordered[..., below : below + 1], ordered[..., above : above + 1], position - below)


def _median(values: Tensor) -> Tensor:
    return _interpolate(values.sort(dim=-1).values, 0.5)


def _mean_abs(values: Tensor) -> Tensor:
    return values.abs().mean(-1, keepdim=True)


def _rms_of(values: Tensor) -> Tensor:
    return values.square().mean(-1, keepdim=True).sqrt_()
