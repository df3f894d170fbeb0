"""A DiT on the disk, in the layout of diffusers' `save_pretrained`: what unmodified diffusers reads and writes."""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path
from pickle import UnpicklingError
from typing import Any

import torch
from diffusers import DiTTransformer2DModel
from diffusers.models.embeddings import PatchEmbed
from safetensors import SafetensorError
from safetensors.torch import load_file, save_file
from torch import Tensor

from robuq.config.model import MAX_NUMBERS
from robuq.models.dit import FIXED, DiT
from robuq.plain_json import read_mapping
from robuq.storage_fault import StorageFault, check_readable

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
            for file in files:
                check_readable(file)
            return {name: tensor for file in files for name, tensor in load_file(file).items()}
        # weights_only: a pickle that wants to run code is refused.
        return _checked_state(torch.load(pickled, map_location="cpu", weights_only=True), pickled)
    except DAMAGED as error:
        if isinstance(error, (FileNotFoundError, StorageFault)):
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
