"""Self-attention whose two products, q k^T and softmax(.) v, multiply quantized activations."""

from __future__ import annotations

from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.autograd.function import once_differentiable

from robuq.config import QuantSpec
from robuq.quant.fake_quantizer import ActFakeQuantizer
from robuq.quant.straight_through import is_straight_through, quantize_tokens


class QuantizedAttention(nn.Module):
    """(N, T, D) -> (N, T, D). `to_qkv` and `to_out` are linear layers of any kind, D -> 3 D and D -> D.

    With `spec` q, k, v and the softmax's output are quantized by its activation quantizer, a scale for every
    token of every head (for the softmax: for every row). Without, the products are in full precision.
    """

    def __init__(self, to_qkv: nn.Module, to_out: nn.Module, heads: int, head_dim: int, spec: QuantSpec | None) -> None:
        super().__init__()
        self.to_qkv = to_qkv
        self.to_out = to_out
        self.heads = heads
        self.head_dim = head_dim
        self.act_quantizer: ActFakeQuantizer | None = None
        if spec is not None and spec.act is not None:
            self.act_quantizer = ActFakeQuantizer(spec.act, head_dim)

    def forward(self, hidden: Tensor, *_: Any, **__: Any) -> Tensor:
        n, t, d = hidden.shape
        qkv = self.to_qkv(hidden).view(n, t, 3, self.heads, self.head_dim).permute(2, 0, 3, 1, 4)  # (3, N, h, T, d_h)
        if self.act_quantizer is None:
            mixed = F.scaled_dot_product_attention(qkv[0], qkv[1], qkv[2])
        elif self.is_straight_through() and not torch.is_autocast_enabled(hidden.device.type):
            mixed = StraightThroughAttention.apply(qkv, self.act_quantizer)  # type: ignore[no-untyped-call]
        else:
            mixed = self.composed(qkv, self.act_quantizer)
        out: Tensor = self.to_out(mixed.transpose(1, 2).reshape(n, t, d))
        return out

    def is_straight_through(self) -> bool:
        return self.act_quantizer is not None and is_straight_through(self.act_quantizer.spec)

    def composed(self, qkv: Tensor, quantizer: ActFakeQuantizer) -> Tensor:
        """The definition, term by term. (3, N, h, T, d_h) -> (N, h, T, d_h)"""
        q, k, v = quantizer(qkv).unbind(0)
        probabilities = (q @ k.transpose(-2, -1) * self.head_dim**-0.5).softmax(-1)
        mixed: Tensor = quantizer(probabilities) @ v
        return mixed


class StraightThroughAttention(torch.autograd.Function):
    """qkv (3, N, h, T, d_h) -> (N, h, T, d_h): attention's own backward, evaluated at the quantized operands.

    P = softmax(q k^T / sqrt(d)), y = Q(P) v:  dv = Q(P)^T dy,  dS = softmax'(P) (dy v^T),
    dq = dS k / sqrt(d),  dk = dS^T q / sqrt(d).
    """

    @staticmethod
    def forward(ctx: Any, qkv: Tensor, quantizer: ActFakeQuantizer) -> Tensor:
        # Quantized where they lie, as the linear layer left them: (N, T, 3, h, d_h); then brought into order.
        as_made = qkv.permute(1, 3, 0, 2, 4)
        rounded = quantize_tokens(as_made.reshape(-1, qkv.shape[-1]), quantizer).view(as_made.shape)
        quantized = rounded.permute(2, 0, 3, 1, 4).contiguous()
        q, k, v = quantized.unbind(0)
        probabilities = (q @ k.transpose(-2, -1)).mul_(q.shape[-1] ** -0.5).softmax(-1)
        weights = quantize_tokens(probabilities.view(-1, k.shape[-2]), quantizer).view(probabilities.shape)
        ctx.save_for_backward(quantized, probabilities, weights)
        return weights @ v

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, dy: Tensor) -> tuple[Tensor, None]:
        quantized, probabilities, weights = ctx.saved_tensors
        q, k, v = quantized.unbind(0)
        d_qkv = torch.empty_like(quantized)
        torch.matmul(weights.transpose(-2, -1), dy, out=d_qkv[2])
        d_scores = torch._softmax_backward_data(dy @ v.transpose(-2, -1), probabilities, -1, q.dtype)
        d_scores.mul_(q.shape[-1] ** -0.5)
        torch.matmul(d_scores, k, out=d_qkv[0])
        torch.matmul(d_scores.transpose(-2, -1), q, out=d_qkv[1])
        return d_qkv, None
