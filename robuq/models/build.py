"""A network by its configuration: freshly initialised, or one that was trained before."""

from __future__ import annotations

from collections.abc import Mapping
from math import sqrt

import torch
from torch import nn

from robuq.config import ConfigError, ModelConfig
from robuq.models.dit import DiT
from robuq.models.dit_files import load_dit


def diffusers_sizes(config: ModelConfig) -> dict[str, int]:
    """The arguments of `DiTTransformer2DModel` that make this model."""
    return {
        "sample_size": config.image_size,
        "in_channels": config.in_channels,
        "out_channels": config.out_channels,
        "patch_size": config.patch_size,
        "num_attention_heads": config.num_heads,
        "attention_head_dim": config.head_dim,
        "num_layers": config.num_layers,
        "num_embeds_ada_norm": config.num_classes,
    }


def build_dit(config: ModelConfig, seed: int) -> DiT:
    """A freshly initialised DiT, or `config.pretrained` if that is set.

    The seed alone decides the weights; the global random state is left as it was.

    Raises:
        ConfigError: the pretrained folder holds a model of other sizes, or no model.
    """
    if config.pretrained is not None:
        return _load_checked(config.pretrained, diffusers_sizes(config))
    with torch.random.fork_rng(devices=[]):
        model = DiT(**diffusers_sizes(config))
    initialise_(model, torch.Generator().manual_seed(seed))
    return model


def initialise_(model: DiT, generator: torch.Generator) -> None:
    """In-place initialisation of the original DiT: Xavier, and zero for all modulations and the output.

    Source: Peebles and Xie, Scalable Diffusion Models with Transformers, `initialize_weights` of the code.
    """
    for module in model.modules():
        if isinstance(module, nn.Linear):
            nn.init.xavier_uniform_(module.weight, generator=generator)
            nn.init.zeros_(module.bias)
    patch = model.pos_embed.proj
    nn.init.xavier_uniform_(patch.weight.flatten(1), generator=generator)
    nn.init.zeros_(patch.bias)
    embedder = model.embedder
    for weight in (
        embedder.class_embedder.embedding_table.weight,
        embedder.timestep_embedder.linear_1.weight,
        embedder.timestep_embedder.linear_2.weight,
    ):
        nn.init.normal_(weight, std=0.02, generator=generator)
    for block in model.transformer_blocks:
        for linear in (block.attn1.to_q, block.attn1.to_k, block.attn1.to_v):
            # The original has q, k and v in one linear, whose fan-out is three widths: its bound is this one.
            nn.init.xavier_uniform_(linear.weight, gain=sqrt(0.5), generator=generator)
        nn.init.zeros_(block.norm1.linear.weight)
    nn.init.zeros_(model.proj_out_1.weight)
    nn.init.zeros_(model.proj_out_2.weight)


def _load_checked(folder: str, sizes: Mapping[str, int]) -> DiT:
    try:
        model = load_dit(folder)
    except (OSError, ValueError) as error:
        raise ConfigError(f"model.pretrained: {error}") from error
    for name, wanted in sizes.items():
        if model.config[name] != wanted:
            raise ConfigError(
                f"model.pretrained {folder} has {name} {model.config[name]}, the configuration says {wanted}:"
                " make the model's sizes equal"
            )
    return model
