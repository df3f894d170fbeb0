"""A linear layer with a rotated, quantized input, a quantized latent weight and a low-rank branch.

    y = Q_a(x R) Q_w(W - L R_)^T + (x R) (L R_)^T + bias        W is the latent weight in the rotated basis

(paper, section 4; L and R_ are the factors of the branch). There are two implementations of the same function:
`composed` writes it down with autograd; `StraightThroughLinear` is one autograd node for the common case that
every gradient is straight-through, and saves a third of the time of a training step.
"""

from __future__ import annotations

from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.autograd.function import once_differentiable

from robuq.config import QuantSpec, WeightQuant
from robuq.quant.fake_quantizer import ActFakeQuantizer
from robuq.quant.hadamard import Rotation
from robuq.quant.low_rank import low_rank_factors, zero_factors
from robuq.quant.straight_through import (
    branch_gradients,
    is_straight_through,
    linear_forward,
    rotate_back,
    weight_gradients,
)
from robuq.quant.weight_quantizer import fake_quant_weight
from robuq.seeding import derived_seed


class QuantizedLinear(nn.Module):
    """(..., I) -> (..., O). `weight` (O, I) is the latent weight in the rotated basis, in full precision."""

    def __init__(
        self, weight: Tensor, bias: Tensor | None, spec: QuantSpec, name: str, seed: int, *, factorize: bool = True
    ) -> None:
        """`weight`: (O, I), unrotated. `seed` and the layer's `name` give the signs of its rotation.

        `factorize=False` leaves the low-rank branch at zero, for a caller that loads its values next.
        """
        super().__init__()
        self.spec = spec
        self.name = name
        self.out_features, self.in_features = weight.shape
        self.rotation = Rotation(spec.transform, self.in_features, derived_seed(seed, name)).to(weight.device)
        rotated = self.rotation.weight(weight.detach())
        self.weight = nn.Parameter(rotated.clone(memory_format=torch.contiguous_format))
        self.bias = None if bias is None else nn.Parameter(bias.detach().clone())
        self.low_rank_left: nn.Parameter | None = None
        self.low_rank_right: nn.Parameter | None = None
        if spec.low_rank is not None:
            rank = spec.low_rank.rank_of(self.out_features, self.in_features)
            left, right = (low_rank_factors if factorize else zero_factors)(rotated, rank)
            self.low_rank_left, self.low_rank_right = nn.Parameter(left), nn.Parameter(right)
        self.act_quantizer = None if spec.act is None else ActFakeQuantizer(spec.act, self.in_features)

    def quantized_weight(self) -> Tensor:
        """(O, I): what multiplies the quantized input, dequantized; the branch is not in it."""
        weight: Tensor = self.weight
        if self.low_rank_left is not None and self.low_rank_right is not None:
            weight = torch.addmm(weight, self.low_rank_left, self.low_rank_right, alpha=-1)
        return weight if self.spec.weight is None else fake_quant_weight(weight, self.spec.weight)

    def forward(self, x: Tensor) -> Tensor:
        if self.is_straight_through() and not torch.is_autocast_enabled(x.device.type):
            return self.fused(x)
        return self.composed(x)

    def is_straight_through(self) -> bool:
        """Whether no gradient depends on the quantizers, so that one autograd node can do it all."""
        act, weight = self.spec.act, self.spec.weight
        return (act is None or is_straight_through(act)) and not (weight is not None and weight.clamp_gradient)

    def composed(self, x: Tensor) -> Tensor:
        """The definition, term by term."""
        rotated = self.rotation(x)
        quantized = rotated if self.act_quantizer is None else self.act_quantizer(rotated)
        y = F.linear(quantized, self.quantized_weight(), self.bias)
        if self.low_rank_left is not None and self.low_rank_right is not None:
            y = y + F.linear(F.linear(rotated, self.low_rank_right), self.low_rank_left)
        return y

    def fused(self, x: Tensor) -> Tensor:
        """The same as one autograd node."""
        tokens = x.reshape(-1, self.in_features)
        y: Tensor = StraightThroughLinear.apply(  # type: ignore[no-untyped-call]
            tokens,
            self.weight,
            self.bias,
            self.low_rank_left,
            self.low_rank_right,
            self.rotation,
            self.act_quantizer,
            self.spec.weight,
        )
        return y.view(*x.shape[:-1], self.out_features)

    def extra_repr(self) -> str:
        return f"{self.in_features}, {self.out_features}, name={self.name!r}"


class StraightThroughLinear(torch.autograd.Function):
    """(M, I) -> (M, O) with identity backward rules for both quantizers.

    With the effective weight E = Q_w(W - L R_) + L R_, tokens q = Q_a(x R) and branch u = x R R_^T:
        dx = dy (E R^T)          the rotation is undone on the weight, which is smaller than the tokens
        dW = dy^T q,  dL = dy^T u - dW R_^T,  dR_ = (dy L)^T (x R) - L^T dW
    """

    @staticmethod
    def forward(
        ctx: Any,
        x: Tensor,
        weight: Tensor,
        bias: Tensor | None,
        left: Tensor | None,
        right: Tensor | None,
        rotation: Rotation,
        act_quantizer: ActFakeQuantizer | None,
        weight_spec: WeightQuant | None,
    ) -> Tensor:
        tokens, quantized, inner, y = linear_forward(x, weight, bias, left, right, rotation, act_quantizer, weight_spec)
        ctx.save_for_backward(None if inner is None else x, tokens, quantized, left, right, inner)
        ctx.rotation = rotation
        return y

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, dy: Tensor) -> tuple[Tensor | None, ...]:
        x, tokens, weight, left, right, inner = ctx.saved_tensors
        rotation: Rotation = ctx.rotation
        dy = dy.contiguous()
        d_weight = dy.t() @ tokens
        d_left = d_right = d_bias = None
        if left is not None:
            d_left, d_right, d_bias = branch_gradients(dy, x, inner, left, ctx.needs_input_grad[2])
            of_left, of_right = weight_gradients(d_weight, left, right)
            d_left = torch.sub(d_left, of_left, out=of_left)
            d_right = rotation(d_right).sub_(of_right)  # (dy L)^T (x R), rotated when it has rank rows only
        elif ctx.needs_input_grad[2]:
            d_bias = dy.sum(0)
        dx = dy @ rotate_back(weight, left, right, rotation) if ctx.needs_input_grad[0] else None
        return dx, d_weight, d_bias, d_left, d_right, None, None, None
