"""The Diffusion Transformer: diffusers' DiT with one shared embedder and a lean forward.

Parameter names are those of diffusers' `DiTTransformer2DModel`, so that its checkpoints load and ours load there.
Nothing here knows about quantization: every linear layer is called as a module and may be replaced from outside.
"""

from __future__ import annotations

from typing import Any

import torch
import torch.nn.functional as F
from diffusers import DiTTransformer2DModel
from torch import Tensor, nn

# What diffusers' DiT can be but ours is not. `norm_eps` is that of the norm before the feed-forward.
FIXED = {
    "dropout": 0.0,
    "attention_bias": True,
    "activation_fn": "gelu-approximate",
    "upcast_attention": False,
    "norm_type": "ada_norm_zero",
    "norm_elementwise_affine": False,
    # Original DiT: 1e-6 in all norms. We: 1e-5 in this one, because diffusers and its checkpoints have it so.
    "norm_eps": 1e-5,
}


class SelfAttention(nn.Module):
    """Multi-head self-attention over the linears of diffusers' `Attention`, with q, k and v as one product.

    The three linears are not called themselves: a hook that wants their common input belongs on this module.
    """

    def __init__(self, attention: Any, heads: int) -> None:
        super().__init__()
        self.heads = heads
        self.to_q, self.to_k, self.to_v = attention.to_q, attention.to_k, attention.to_v
        self.to_out = attention.to_out

    def forward(self, x: Tensor) -> Tensor:
        """(N, T, D) -> (N, T, D)"""
        linears = (self.to_q, self.to_k, self.to_v)
        weight = torch.cat([linear.weight for linear in linears])
        bias = torch.cat([linear.bias for linear in linears])
        qkv = F.linear(x, weight, bias).view(*x.shape[:2], 3, self.heads, -1)  # (N, T, 3, heads, head_dim)
        q, k, v = qkv.permute(2, 0, 3, 1, 4).unbind(0)  # each (N, heads, T, head_dim)
        mixed = F.scaled_dot_product_attention(q, k, v).transpose(1, 2).flatten(2)
        out: Tensor = self.to_out[0](mixed)
        return out


class DiT(DiTTransformer2DModel):  # type: ignore[misc]  # diffusers has no types
    """diffusers' DiT whose blocks share one timestep and label embedder.

    diffusers gives each block its own copy of the embedder (749.8M parameters for XL/2 in place of 674.8M) and,
    in train mode, lets each copy drop other labels. Here block 0 holds the only one, it runs once per forward,
    and it drops no labels: whoever trains replaces dropped labels by `null_label`.
    """

    def __init__(self, **sizes: Any) -> None:
        """Args: those of `DiTTransformer2DModel`.

        Raises:
            ValueError: an architecture that differs from DiT's.
        """
        super().__init__(**sizes)
        for name, value in FIXED.items():
            if self.config[name] != value:
                raise ValueError(f"DiT with {name}={self.config[name]!r}: only {value!r} is supported")
        for index, block in enumerate(self.transformer_blocks):
            block.attn1 = SelfAttention(block.attn1, self.config.num_attention_heads)
            if index:
                block.norm1.emb = None
        self.embedder.class_embedder.dropout_prob = 0.0

    @property
    def embedder(self) -> Any:
        """The shared embedder, a module: (timesteps (N,), labels (N,)) -> (N, D)."""
        return self.transformer_blocks[0].norm1.emb

    @property
    def null_label(self) -> int:
        """The label of a dropped class; the only label of an unconditional model."""
        return int(self.config.num_embeds_ada_norm)

    @property
    def image_shape(self) -> tuple[int, int, int]:
        """(C, H, W) of an input image."""
        return self.config.in_channels, self.config.sample_size, self.config.sample_size

    def forward(self, images: Tensor, timesteps: Tensor, labels: Tensor) -> Tensor:
        """(N, C, H, W), (N,) int64, (N,) int64 -> (N, C_out, H, W)"""
        x, condition = self.embed(images, timesteps, labels)
        for block in self.transformer_blocks:
            if self.gradient_checkpointing and torch.is_grad_enabled():
                x = self._gradient_checkpointing_func(block_forward, block, x, condition)
            else:
                x = block_forward(block, x, condition)
        return self.head(x, condition)

    def embed(self, images: Tensor, timesteps: Tensor, labels: Tensor) -> tuple[Tensor, Tensor]:
        """Arguments of `forward` -> the first block's tokens (N, T, D), the condition of all blocks (N, D)."""
        x = self.pos_embed(images)
        return x, F.silu(self.embedder(timesteps, labels, hidden_dtype=x.dtype))

    def head(self, x: Tensor, condition: Tensor) -> Tensor:
        """The last block's tokens (N, T, D), condition (N, D) -> (N, C_out, H, W)"""
        shift, scale = self.proj_out_1(condition).unsqueeze(1).chunk(2, dim=2)  # each (N, 1, D)
        return self.unpatchify(self.proj_out_2(modulate(self.norm_out(x), shift, scale + 1)))

    def unpatchify(self, x: Tensor) -> Tensor:
        """(N, T, P * P * C_out) -> (N, C_out, H, W)"""
        side, patch = self.config.sample_size // self.patch_size, self.patch_size
        x = x.view(len(x), side, side, patch, patch, self.out_channels).permute(0, 5, 1, 3, 2, 4)
        return x.reshape(len(x), self.out_channels, side * patch, side * patch)


def modulate(x: Tensor, shift: Tensor, factor: Tensor) -> Tensor:
    """(N, T, D), (N, 1, D), (N, 1, D) -> (N, T, D), x * factor + shift."""
    return torch.addcmul(shift, x, factor)


def block_forward(block: Any, x: Tensor, condition: Tensor) -> Tensor:
    """One block with adaLN-Zero: (N, T, D), SiLU of the embedding (N, D) -> (N, T, D)."""
    return modulated_block(block, x, modulations(block, condition))


def modulations(block: Any, condition: Tensor) -> tuple[Tensor, ...]:
    """(N, D) -> shift, factor (1 + scale) and gate of attention, then those of the feed-forward, each (N, 1, D)."""
    shift, scale, gate, shift_ff, scale_ff, gate_ff = block.norm1.linear(condition).unsqueeze(1).chunk(6, dim=2)
    return shift, scale + 1, gate, shift_ff, scale_ff + 1, gate_ff


def modulated_block(block: Any, x: Tensor, modulation: tuple[Tensor, ...], *, overwrite: bool = False) -> Tensor:
    """(N, T, D), the block's `modulations` -> (N, T, D). `overwrite`: see `activation`."""
    shift, factor, gate, *of_feed_forward = modulation
    x = torch.addcmul(x, gate, block.attn1(modulate(block.norm1.norm(x), shift, factor)))
    return feed_forward(block, x, *of_feed_forward, overwrite=overwrite)


def feed_forward(
    block: Any, x: Tensor, shift: Tensor, factor: Tensor, gate: Tensor, *, overwrite: bool = False
) -> Tensor:
    """The block's second half, (N, T, D) -> (N, T, D)."""
    hidden = block.ff.net[0].proj(modulate(block.norm3(x), shift, factor))
    return torch.addcmul(x, gate, block.ff.net[2](activation(hidden, overwrite=overwrite)))


def activation(hidden: Tensor, *, overwrite: bool = False) -> Tensor:
    """(N, T, 4 D) -> (N, T, 4 D), between the two linears of the feed-forward.

    `overwrite` reuses the memory of `hidden`, the largest tensor of a block: for those who need neither its gradient
    nor what the first linear returned.
    """
    if overwrite:
        reused: Tensor = torch.ops.aten.gelu_(hidden, approximate="tanh")
        return reused
    return F.gelu(hidden, approximate="tanh")
