"""The Diffusion Transformer: diffusers' DiT with one shared embedder and a lean forward.

Parameter names are those of diffusers' `DiTTransformer2DModel`, so that its checkpoints load and ours load there.
Nothing here knows about quantization: every linear layer is called as a module and may be replaced from outside.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from math import sqrt
from pathlib import Path
from pickle import UnpicklingError
from typing import Any

import torch
import torch.nn.functional as F
from diffusers import DiTTransformer2DModel
from diffusers.models.embeddings import PatchEmbed
from safetensors import SafetensorError
from safetensors.torch import load_file, save_file
from torch import Tensor, nn

from robuq.config import ConfigError, ModelConfig
from robuq.config.model import MAX_NUMBERS
from robuq.plain_json import read_mapping

WEIGHTS = "diffusion_pytorch_model"
MAX_JSON = 1 << 26  # bytes
MAX_SIZE, MAX_LAYERS = 10**6, 1000
# What reading a damaged or foreign file of weights raises: torch alone has half a dozen.
DAMAGED = (SafetensorError, UnpicklingError, RuntimeError, OSError, EOFError, LookupError, TypeError, AttributeError)
SIZES = (
    "sample_size",
    "in_channels",
    "out_channels",
    "patch_size",
    "num_attention_heads",
    "attention_head_dim",
    "num_layers",
    "num_embeds_ada_norm",
)
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


def load_dit(folder: str | Path) -> DiT:
    """A DiT in float32 and eval mode, from a local folder that diffusers' `save_pretrained` wrote.

    The folder holds config.json beside the weights, or is a pipeline's with both in `transformer/`.

    Raises:
        FileNotFoundError: no config.json or no weights there.
        ValueError: not a DiT, or blocks whose embedders differ, so that one cannot stand for all.
    """
    folder = _model_folder(Path(folder))
    sizes = _read_sizes(folder / "config.json")
    state = _in_float(_read_weights(folder), folder)
    with torch.device("meta"):  # no time and no random numbers for weights that are replaced at once
        model = DiT(**sizes)
    state = _without_copies(state)
    _check_fits(state, model, folder)
    model.load_state_dict(state, assign=True)
    model.pos_embed.pos_embed = _position_table(model)
    model.eval()
    return model


def save_dit(model: DiT, folder: str | Path) -> None:
    """Write a folder that unmodified diffusers loads: each block gets its copy of the embedder.

    Raises:
        ValueError: the model has layers that diffusers' DiT does not have.
    """
    folder = Path(folder)
    state = diffusers_state(model)
    with torch.device("meta"):
        expected = DiTTransformer2DModel(**model.config).state_dict().keys()
    if different := sorted(expected ^ state.keys()):
        raise ValueError(f"not a plain DiT ({different[0]} differs): save a quantized model with its own format")
    folder.mkdir(parents=True, exist_ok=True)
    config = {"_class_name": "DiTTransformer2DModel", **{name: model.config[name] for name in (*SIZES, *FIXED)}}
    (folder / "config.json").write_text(json.dumps(config, indent=2, sort_keys=True) + "\n")
    save_file(state, folder / f"{WEIGHTS}.safetensors", metadata={"format": "pt"})


def diffusers_state(model: DiT) -> dict[str, Tensor]:
    """The state of the unmodified diffusers model: the shared embedder once per block, no two tensors shared."""
    state = {name: tensor.detach().clone().contiguous() for name, tensor in model.state_dict().items()}
    first = "transformer_blocks.0.norm1.emb."
    for name in [name for name in state if name.startswith(first)]:
        for index in range(1, len(model.transformer_blocks)):
            state[name.replace("_blocks.0.", f"_blocks.{index}.", 1)] = state[name].clone()
    return state


def _without_copies(state: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """Drop the embedders of all blocks but the first, after a check that they are copies of it."""
    kept = {}
    for name, tensor in state.items():
        block, mark, rest = name.partition(".norm1.emb.")
        if not mark or block == "transformer_blocks.0":
            kept[name] = tensor
            continue
        first = state.get(f"transformer_blocks.0.norm1.emb.{rest}")
        if first is None or not torch.equal(first, tensor):
            raise ValueError(f"{name} differs from block 0's: a DiT's blocks must share one embedder")
    return kept


def _check_fits(state: Mapping[str, Tensor], model: DiT, folder: Path) -> None:
    wanted = {name: tuple(tensor.shape) for name, tensor in model.state_dict().items()}
    for name in sorted(wanted.keys() | state.keys()):
        got = tuple(state[name].shape) if name in state else None
        if got != wanted.get(name):
            raise ValueError(f"weights in {folder}: {name} is {got}, its config.json makes it {wanted.get(name)}")


def _in_float(state: Mapping[str, Tensor], folder: Path) -> dict[str, Tensor]:
    """In float32. Numbers of another kind are somebody's packed weights, or damage."""
    for name, tensor in state.items():
        if not tensor.is_floating_point():
            raise ValueError(f"weights in {folder}: {name} is {tensor.dtype}, floating-point numbers are needed")
    return {name: tensor.float() for name, tensor in state.items()}


def _position_table(model: DiT) -> Tensor:
    """The fixed position embedding, (1, T, D): not among the saved weights."""
    side, patch = model.config.sample_size, model.patch_size
    with torch.random.fork_rng(devices=[]):
        table: Tensor = PatchEmbed(side, side, patch, model.config.in_channels, model.inner_dim).pos_embed
    return table


def _model_folder(folder: Path) -> Path:
    for candidate in (folder / "transformer", folder):
        if (candidate / "config.json").is_file():
            return candidate
    raise FileNotFoundError(f"no config.json in {folder} or {folder / 'transformer'}: give a folder of save_pretrained")


def _read_sizes(file: Path) -> dict[str, Any]:
    """The arguments of `DiTTransformer2DModel`; checkpoints also list those of diffusers' older classes."""
    try:
        config = read_mapping(file, MAX_JSON)
    except ValueError as error:
        raise ValueError(f"{file} is no configuration of a DiT: {error}") from None
    if missing := [name for name in SIZES if config.get(name) is None]:
        raise ValueError(f"{file} has no {missing[0]}: not the configuration of a DiT")
    for name in SIZES:
        least = 0 if name == "num_embeds_ada_norm" else 1
        if type(value := config[name]) is not int or not least <= value <= MAX_SIZE:
            raise ValueError(f"{file} has {name} {value!r:.60}: a whole number from {least} to {MAX_SIZE} is needed")
    for name, wanted in FIXED.items():
        if name in config and config[name] != wanted:
            raise ValueError(f"{file}: a DiT with {name} {config[name]!r:.60}, only {wanted!r} is supported")
    _check_sizes(config, file)
    return {name: config[name] for name in (*SIZES, *FIXED) if name in config}


def _check_sizes(config: Mapping[str, Any], file: Path) -> None:
    """What diffusers would build, or fail to build, without a word that helps."""
    side, patch, layers = config["sample_size"], config["patch_size"], config["num_layers"]
    width = config["num_attention_heads"] * config["attention_head_dim"]
    if side % patch or layers > MAX_LAYERS or width % 2 or (side // patch) ** 2 * width > MAX_NUMBERS:
        raise ValueError(
            f"{file}: sample_size {side}, patch_size {patch}, num_layers {layers}, width {width}: patches must fit, "
            f"at most {MAX_LAYERS} layers, an even width, at most {MAX_NUMBERS} numbers in an image's tokens"
        )


def _read_weights(folder: Path) -> dict[str, Tensor]:
    """All tensors of the folder, from safetensors (one file, or shards with their index), else from a .bin file."""
    index = folder / f"{WEIGHTS}.safetensors.index.json"
    shards = _shards(index) if index.is_file() else []
    files = [folder / name for name in shards or [f"{WEIGHTS}.safetensors"]]
    pickled = folder / f"{WEIGHTS}.bin"
    if not (shards or files[0].is_file() or pickled.is_file()):
        raise FileNotFoundError(f"no {WEIGHTS}.safetensors and no {WEIGHTS}.bin in {folder}")
    try:
        if shards or files[0].is_file():
            return {name: tensor for file in files for name, tensor in load_file(file).items()}
        # weights_only: a pickle that wants to run code is refused.
        return _checked_state(torch.load(pickled, map_location="cpu", weights_only=True), pickled)
    except DAMAGED as error:
        if isinstance(error, FileNotFoundError):
            raise
        reason = (str(error).splitlines() or [type(error).__name__])[0]
        raise ValueError(f"weights in {folder} cannot be read: {reason}") from error


def _shards(index: Path) -> list[str]:
    """Names of files beside the index, and of nothing else."""
    try:
        names = sorted(set(read_mapping(index, MAX_JSON)["weight_map"].values()))
        outside = [name for name in names if Path(name).name != name or not name.endswith(".safetensors")]
    except (ValueError, KeyError, TypeError, AttributeError) as error:
        raise ValueError(f"{index} is no index of weights: it needs a weight_map of file names") from error
    if outside or not names:
        raise ValueError(f"{index} names {outside[0] if outside else 'nothing'!r:.200}: only .safetensors beside it")
    return names


def _checked_state(state: Any, file: Path) -> dict[str, Tensor]:
    """Raises ValueError: something other than tensors by name was in the file."""
    if not isinstance(state, dict) or not all(isinstance(n, str) and isinstance(t, Tensor) for n, t in state.items()):
        raise ValueError(f"{file.name} holds something other than tensors by name")
    return state
