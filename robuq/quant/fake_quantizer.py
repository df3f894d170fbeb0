"""The fake quantizer of activations: clip, round to a grid, dequantize; float in, float out.

    u = (x - center) / scale;   v = soft_clip(u);   fake_quant(x) = level(v) * scale + center

This is the reference: every combination of axes, one path. A fused form of a hot combination must equal it.
"""

from __future__ import annotations

import math
from typing import Any

import torch
from torch import Tensor, nn
from torch.autograd.function import once_differentiable

from robuq.config.quant import ActQuant
from robuq.quant.grids import levels, max_level, round_to_grid
from robuq.quant.scales import MIN_SCALE, Scaling, group_width, grouped, lsq_max_level, scale_and_center

# Smooth clips are v = R tanh(gain u / R). tanh: slope 1 at the center. sigmoid: R (2 sigmoid(g u / R) - 1) with
# g = 1.702 sqrt(pi/2), the logistic approximation (1.702) of the normal distribution function with slope 1 at the
# center, R (2 Phi(sqrt(pi/2) u / R) - 1). Not g = 2, which would be tanh again: 2 sigmoid(2 t) - 1 = tanh(t).
SOFT_CLIP_GAIN = {"tanh": 1.0, "sigmoid": 1.702 * math.sqrt(math.pi / 2) / 2}


def fake_quant(x: Tensor, scale: Tensor, center: Tensor | None, spec: ActQuant) -> Tensor:
    """x (..., D) -> (..., D), every value a level of the grid times its scale, plus its center.

    `scale` and `center` as from `scale_and_center`. Computed in float32 or wider, returned in x's type. Gradient: to
    x by `spec.gradient` (through the slope of a smooth clip); to `scale` only for lsq; to `center` never.
    """
    wide = x.to(torch.promote_types(x.dtype, torch.float32))
    if spec.scale != "lsq":
        scale = scale.detach()
    quantized: Tensor = _FakeQuant.apply(  # type: ignore[no-untyped-call]
        grouped(wide, spec), scale, center, spec
    )
    return quantized.reshape(x.shape).to(x.dtype)


class _FakeQuant(torch.autograd.Function):
    """A function of its own, for `x + (q - x).detach()` does not return q exactly, and keeps more for backward."""

    @staticmethod
    def forward(ctx: Any, x: Tensor, scale: Tensor, center: Tensor | None, spec: ActQuant) -> Tensor:
        u = (x if center is None else x - center) / scale
        v, slope = soft_clip(u, spec) if spec.clip != "hard" else (u, None)
        level = round_to_grid(v, spec.grid, spec.bits)
        ctx.scale_shape, ctx.factor = scale.shape, 1 / math.sqrt(x.numel() / scale.numel() * lsq_max_level(spec))
        by_x = _slope_by_x(u, slope, spec) if ctx.needs_input_grad[0] else None
        by_scale = _slope_by_scale(u, slope, level, spec) if ctx.needs_input_grad[1] else None
        ctx.save_for_backward(by_x, by_scale)
        quantized = level * scale
        return quantized if center is None else quantized.add_(center)

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor | None, Tensor | None, None, None]:
        by_x, by_scale = ctx.saved_tensors
        grad_x = grad_scale = None
        if ctx.needs_input_grad[0]:
            grad_x = grad if by_x is None else grad * by_x
        if ctx.needs_input_grad[1]:
            grad_scale = (grad * by_scale).sum_to_size(ctx.scale_shape).mul_(ctx.factor)
        return grad_x, grad_scale, None, None


def soft_clip(u: Tensor, spec: ActQuant) -> tuple[Tensor, Tensor]:
    """u (...) in units of the scale -> v = m + R tanh(gain (u - m) / R), and its slope dv / du.

    [m - R, m + R] is the range that the scale rule maps to the grid: m = 0 and R the highest level, but for minmax,
    whose range is the whole grid.
    """
    middle, half = 0.0, max_level(spec.grid, spec.bits)
    if spec.scale == "minmax":
        low, high = grid_range(spec)
        middle, half = (low + high) / 2, (high - low) / 2
    gain = SOFT_CLIP_GAIN[spec.clip]
    t = ((u - middle) * (gain / half)).tanh_()
    return t * half + middle, gain * (1 - t.square())


def grid_range(spec: ActQuant) -> tuple[float, float]:
    """Lowest and highest level, in units of the scale."""
    grid = levels(spec.grid, spec.bits)
    return float(grid[0]), float(grid[-1])


def gradient_range(spec: ActQuant) -> tuple[float, float] | None:
    """Where a hard clip lets the gradient pass, in units of the scale; None is everywhere.

    clip: between the outermost levels. trust (QuEST): where the error is at most half a step, i.e. up to half a gap
    beyond the outermost levels.
    """
    if spec.gradient == "ste":
        return None
    grid = levels(spec.grid, spec.bits)
    beyond = float(grid[-1] - grid[-2]) / 2 if spec.gradient == "trust" else 0.0
    return float(grid[0]) - beyond, float(grid[-1]) + beyond


def _slope_by_x(u: Tensor, slope: Tensor | None, spec: ActQuant) -> Tensor | None:
    """d fake_quant / d x, (...); None is 1. What a smooth clip lets through lies within every range."""
    passed = gradient_range(spec)
    if slope is not None or passed is None:
        return slope
    return (u >= passed[0]).logical_and_(u <= passed[1])


def _slope_by_scale(u: Tensor, slope: Tensor | None, level: Tensor, spec: ActQuant) -> Tensor:
    """d fake_quant / d scale (LSQ): level - u inside the grid, level outside; with a smooth clip level - u dv/du."""
    if slope is None:
        low, high = grid_range(spec)
        slope = ((u >= low) & (u <= high)).to(u.dtype)
    return level - u * slope


class ActFakeQuantizer(nn.Module):
    """Fake quantizer of inputs (..., D). Dynamic: scales from each call. Static: from `calibrate_`, kept as buffers.

    lsq keeps its step as the parameter `step`, and trains it with LSQ's gradient: scaled by 1 / sqrt(n q), n the
    values that share the step, q the highest level.

    Raises:
        ValueError: the group size does not divide the width.
    """

    scale: Tensor
    center: Tensor | None
    calibrated: Tensor

    def __init__(self, spec: ActQuant, width: int) -> None:
        super().__init__()
        group_width(spec, width)
        self.spec, self.width = spec, width
        self._ready = spec.mode == "dynamic"
        if spec.mode == "static":
            self._add_state((width,) if spec.granularity == "per_channel" else (1,))

    def _add_state(self, shape: tuple[int, ...]) -> None:
        if self.spec.scale == "lsq":
            self.step = nn.Parameter(torch.ones(shape))
        else:
            self.register_buffer("scale", torch.ones(shape))
        has_center = self.spec.center or self.spec.scale == "minmax"
        self.register_buffer("center", torch.zeros(shape) if has_center else None)
        self.register_buffer("calibrated", torch.zeros((), dtype=torch.bool))

    @property
    def is_calibrated(self) -> bool:
        return self.spec.mode == "dynamic" or bool(self.calibrated)

    @torch.no_grad()
    def calibrate_(self, samples: Tensor) -> None:
        """Take scale and center (lsq: the initial step) from inputs (..., D); nothing to do when dynamic."""
        if self.spec.mode == "dynamic":
            return
        scale, center = scale_and_center(samples, self.spec)
        (self.step if self.spec.scale == "lsq" else self.scale).copy_(scale)
        if self.center is not None and center is not None:
            self.center.copy_(center)
        self.calibrated.fill_(True)

    def scaling(self, x: Tensor) -> Scaling:
        """Scale and center for x (..., D).

        Raises:
            RuntimeError: static and not calibrated.
        """
        if self.spec.mode == "dynamic":
            return scale_and_center(x, self.spec)
        if not self._ready:  # asked once: the flag lives on the device, and reading it waits for the device
            self._ready = self.is_calibrated
        if not self._ready:
            raise RuntimeError("static quantizer without a scale: call calibrate_(samples) or load a state first")
        if self.spec.scale == "lsq":
            return self.step.abs().clamp_min(MIN_SCALE), self.center
        return self.scale, self.center

    def forward(self, x: Tensor) -> Tensor:
        """(..., D) -> (..., D); the same in training and evaluation."""
        scale, center = self.scaling(x)
        return fake_quant(x, scale, center, self.spec)

    def extra_repr(self) -> str:
        spec = self.spec
        return f"{self.width}, {spec.bits} bits, {spec.scale} {spec.granularity} {spec.mode}, {spec.grid}, {spec.clip}"
