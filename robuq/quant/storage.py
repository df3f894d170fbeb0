"""A quantized model on disk: safetensors for the numbers, JSON for what they mean. Nothing is pickled."""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path

import torch
from pydantic import TypeAdapter, ValidationError
from safetensors import SafetensorError
from safetensors.torch import load_file, save_file
from torch import Tensor

from robuq.config import ConfigError, ModelConfig, QuantSpec
from robuq.config.base import Seed
from robuq.models import DiT, build_dit
from robuq.plain_json import read_mapping
from robuq.quant.surgery import quantize_
from robuq.storage_fault import check_readable

WEIGHTS, META = "model.safetensors", "quantized.json"


def save_quantized(model: DiT, config: ModelConfig, specs: Mapping[str, QuantSpec], seed: int, folder: Path) -> None:
    """Write `model.safetensors` and `quantized.json` into `folder`."""
    folder.mkdir(parents=True, exist_ok=True)
    save_file(distinct_tensors(model), folder / WEIGHTS)
    meta = {
        "model": config.model_dump(mode="json"),
        "specs": {name: spec.model_dump(mode="json") for name, spec in specs.items()},
        "seed": seed,
    }
    (folder / META).write_text(json.dumps(meta, indent=1, sort_keys=True) + "\n")


def load_quantized(folder: Path) -> DiT:
    """The model that `save_quantized` wrote, bit for bit, in eval mode.

    Raises:
        ConfigError: the folder does not hold a model, or its files do not belong together.
    """
    config, specs, seed = read_meta(folder)
    _check_size(config, folder)
    # The weights come from the file: nothing is fetched again from `pretrained`, and no factorization is made.
    model = build_dit(config.updated(pretrained=None), seed=0)
    try:
        quantize_(model, specs, seed, factorize=False)
    except ValueError as error:
        raise ConfigError(f"{folder / META} does not fit its own model: {error}") from None
    try:
        check_readable(folder / WEIGHTS)
        tensors = load_file(folder / WEIGHTS)
    except (OSError, SafetensorError) as error:
        raise ConfigError(f"{folder / WEIGHTS} cannot be read: {error}") from None
    load_tensors(model, tensors)
    model.eval()
    return model


def _check_size(config: ModelConfig, folder: Path) -> None:
    """Raises ConfigError before memory is taken for a network that the weights' file cannot be of."""
    try:
        size = (folder / WEIGHTS).stat().st_size
    except OSError as error:
        raise ConfigError(f"{folder / WEIGHTS} cannot be read: {error.strerror}") from None
    least = 4 * 18 * config.width**2 * config.num_layers  # bytes of the blocks' linears in float32
    if size < least:
        raise ConfigError(f"{folder / WEIGHTS} cannot be read: {size} bytes, the model of {META} has {least} or more")


def read_meta(folder: Path) -> tuple[ModelConfig, dict[str, QuantSpec], int]:
    """The architecture, the specs and the rotation seed of a saved model.

    Raises:
        ConfigError: the file is not there, or is no description of a model.
    """
    try:
        meta = read_mapping(folder / META)
        specs = {name: QuantSpec.parse(spec, name) for name, spec in meta["specs"].items()}
        seed = TypeAdapter(Seed).validate_python(meta["seed"], strict=True)
        return ModelConfig.parse(meta["model"], "model"), specs, seed
    except (OSError, ValueError, KeyError, TypeError, AttributeError) as error:
        raise ConfigError(f"{folder / META} is no description of a quantized model: {_said(error)}") from None


def _said(error: Exception) -> str:
    return f"{error.errors()[0]['msg']} for seed" if isinstance(error, ValidationError) else str(error) or repr(error)


def distinct_tensors(model: torch.nn.Module) -> dict[str, Tensor]:
    """Parameters and persistent buffers, each shared one once, contiguous, under its first name."""
    seen: set[int] = set()
    tensors: dict[str, Tensor] = {}
    for name, tensor in model.state_dict(keep_vars=True).items():
        if id(tensor) not in seen:
            seen.add(id(tensor))
            tensors[name] = tensor.detach().contiguous()
    return tensors


def load_tensors(model: torch.nn.Module, tensors: Mapping[str, Tensor]) -> None:
    """The inverse of `distinct_tensors`, in place.

    Raises:
        ConfigError: a tensor is missing, left over, or of another shape or type.
    """
    wanted = distinct_tensors(model)
    if set(wanted) != set(tensors):
        name = sorted(set(wanted) ^ set(tensors))[0]
        raise ConfigError(
            f"the weights do not fit the model: {name!r} is only in {'the model' if name in wanted else 'the file'}"
        )
    with torch.no_grad():
        for name, tensor in wanted.items():
            if tensor.shape != tensors[name].shape:
                raise ConfigError(
                    f"{name}: the model has shape {tuple(tensor.shape)}, the file {tuple(tensors[name].shape)}"
                )
            if tensor.dtype != tensors[name].dtype:
                raise ConfigError(f"{name}: the model has {tensor.dtype}, the file {tensors[name].dtype}")
            tensor.copy_(tensors[name])
