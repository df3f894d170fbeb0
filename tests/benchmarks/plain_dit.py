"""A compact Diffusion Transformer in plain torch, in the style of the original code: a peer for benchmarks.

Fused q, k, v, scaled_dot_product_attention, adaLN-Zero; the same layers and sizes as ours, and nothing else.
"""

from __future__ import annotations

import math

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from robuq.config import ModelConfig


def modulate(x: Tensor, shift: Tensor, scale: Tensor) -> Tensor:
    return x * (1 + scale.unsqueeze(1)) + shift.unsqueeze(1)


class TimestepEmbedder(nn.Module):
    def __init__(self, width: int, frequencies: int = 256) -> None:
        super().__init__()
        self.mlp = nn.Sequential(nn.Linear(frequencies, width), nn.SiLU(), nn.Linear(width, width))
        self.frequencies = frequencies

    def forward(self, timesteps: Tensor) -> Tensor:  # (N,) -> (N, D)
        half = self.frequencies // 2
        rates = torch.exp(-math.log(10000) * torch.arange(half, dtype=torch.float32) / half)
        angles = timesteps[:, None].float() * rates[None]
        return self.mlp(torch.cat([torch.cos(angles), torch.sin(angles)], dim=-1))


class Attention(nn.Module):
    def __init__(self, width: int, heads: int) -> None:
        super().__init__()
        self.heads = heads
        self.qkv = nn.Linear(width, 3 * width)
        self.proj = nn.Linear(width, width)

    def forward(self, x: Tensor) -> Tensor:  # (N, T, D) -> (N, T, D)
        n, t, d = x.shape
        q, k, v = self.qkv(x).reshape(n, t, 3, self.heads, d // self.heads).permute(2, 0, 3, 1, 4).unbind(0)
        return self.proj(F.scaled_dot_product_attention(q, k, v).transpose(1, 2).reshape(n, t, d))


class Block(nn.Module):
    def __init__(self, width: int, heads: int) -> None:
        super().__init__()
        self.norm1 = nn.LayerNorm(width, elementwise_affine=False, eps=1e-6)
        self.attn = Attention(width, heads)
        self.norm2 = nn.LayerNorm(width, elementwise_affine=False, eps=1e-6)
        self.mlp = nn.Sequential(nn.Linear(width, 4 * width), nn.GELU(approximate="tanh"), nn.Linear(4 * width, width))
        self.adaln = nn.Sequential(nn.SiLU(), nn.Linear(width, 6 * width))

    def forward(self, x: Tensor, c: Tensor) -> Tensor:  # (N, T, D), (N, D) -> (N, T, D)
        shift, scale, gate, shift_mlp, scale_mlp, gate_mlp = self.adaln(c).chunk(6, dim=1)
        x = x + gate.unsqueeze(1) * self.attn(modulate(self.norm1(x), shift, scale))
        return x + gate_mlp.unsqueeze(1) * self.mlp(modulate(self.norm2(x), shift_mlp, scale_mlp))


class PlainDiT(nn.Module):
    def __init__(self, config: ModelConfig, position: Tensor) -> None:
        """`position`: the fixed position embedding (1, T, D)."""
        super().__init__()
        width, patch = config.width, config.patch_size
        self.patch, self.side, self.out_channels = patch, config.image_size // patch, config.out_channels
        self.embed = nn.Conv2d(config.in_channels, width, patch, patch)
        self.register_buffer("position", position, persistent=False)
        self.timestep_embedder = TimestepEmbedder(width)
        self.label_embedder = nn.Embedding(config.num_classes + 1, width)
        self.blocks = nn.ModuleList([Block(width, config.num_heads) for _ in range(config.num_layers)])
        self.norm_final = nn.LayerNorm(width, elementwise_affine=False, eps=1e-6)
        self.adaln_final = nn.Sequential(nn.SiLU(), nn.Linear(width, 2 * width))
        self.linear_final = nn.Linear(width, patch * patch * config.out_channels)

    def forward(self, images: Tensor, timesteps: Tensor, labels: Tensor) -> Tensor:
        x = self.embed(images).flatten(2).transpose(1, 2) + self.position
        c = self.timestep_embedder(timesteps) + self.label_embedder(labels)
        for block in self.blocks:
            x = block(x, c)
        shift, scale = self.adaln_final(c).chunk(2, dim=1)
        x = self.linear_final(modulate(self.norm_final(x), shift, scale))
        x = x.reshape(len(x), self.side, self.side, self.patch, self.patch, self.out_channels)
        return torch.einsum("nhwpqc->nchpwq", x).reshape(len(x), self.out_channels, *images.shape[2:])
