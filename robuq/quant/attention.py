"""Self-attention whose two products, q k^T and softmax(.) v, multiply quantized activations."""

from __future__ import annotations

from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.autograd.function import once_differentiable

from robuq.config import QuantSpec
from robuq.quant.fake_quantizer import ActFakeQuantizer
from robuq.quant.straight_through import is_straight_through, quantize_heads, quantize_tokens


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
        *heads, t, d = qkv.shape[1:]
        quantized = quantize_heads(qkv, quantizer)
        q, k, v = quantized.view(3, -1, t, d).unbind(0)
        scores = q.new_empty(len(q), t, t)
        torch.baddbmm(scores, q, k.transpose(1, 2), beta=0, alpha=d**-0.5, out=scores)
        probabilities = scores.softmax(-1)
        weights = quantize_tokens(probabilities.view(-1, t), quantizer).view(probabilities.shape)
        ctx.save_for_backward(quantized, probabilities, weights)
        return torch.bmm(weights, v).view(*heads, t, d)

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, dy: Tensor) -> tuple[Tensor, None]:
        quantized, probabilities, weights = ctx.saved_tensors
        t, d = dy.shape[-2:]
        d_qkv = torch.empty_like(quantized)
        q, k, v = quantized.view(3, -1, t, d).unbind(0)
        d_q, d_k, d_v = d_qkv.view(3, -1, t, d).unbind(0)
        dy = dy.reshape(-1, t, d)
        torch.bmm(weights.transpose(1, 2), dy, out=d_v)
        d_scores = torch._softmax_backward_data(torch.bmm(dy, v.transpose(1, 2)), probabilities, -1, q.dtype)
        torch.baddbmm(d_q, d_scores, k, beta=0, alpha=d**-0.5, out=d_q)
        torch.baddbmm(d_k, d_scores.transpose(1, 2), q, beta=0, alpha=d**-0.5, out=d_k)
        return d_qkv, None
