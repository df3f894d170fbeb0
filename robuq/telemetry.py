"""What enters the block linears, and what their quantizers do to it: cheap per-layer measurements.

A normal token is what RobustQuantizer's grid is made for, so two numbers say how far a token is from normal, both
after each token is standardised by its own mean and standard deviation:

    kurtosis  E[z^4] - 3: 0 for a normal variable (exactly -6 / (D + 1) for a standardised token of D of them)
    kl        KL(z || N(0, 1)) in nats, from a histogram of Phi(z) with `BINS` equally probable bins
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor, nn

from robuq.batches import known_labels, noised_at_mixed_timesteps
from robuq.config import BLOCK_ROLES, Transform
from robuq.data.load import ImageData
from robuq.diffusion.schedule import NoiseSchedule
from robuq.models import DiT
from robuq.quant.fake_quantizer import ActFakeQuantizer
from robuq.quant.grids import levels
from robuq.quant.hadamard import Rotation
from robuq.quant.linear import QuantizedLinear
from robuq.quant.scales import grouped
from robuq.seeding import derived_generator

BINS = 64
TERNARY = ("ternary_absmean", "ternary_threshold")
PROBE_IMAGES, PROBE_TOKENS = 32, 512
# Modules that see a block linear's input; the first that a model has is meant. A full-precision attention forms q, k
# and v itself, so that its own input is theirs.
INPUTS = {
    "qkv": ("attn1.to_qkv", "attn1"),
    "proj": ("attn1.to_out.0", "attn1.to_out"),
    "fc1": ("ff.net.0.proj",),
    "fc2": ("ff.net.2",),
}


def excess_kurtosis(tokens: Tensor) -> float:
    """tokens: (T, D), D > 1."""
    return float(standardised(tokens).pow(4).mean()) - 3.0


def kl_to_normal(tokens: Tensor) -> float:
    """tokens: (T, D), D > 1 -> nats in [0, log BINS].

    By u = Phi(z), KL(z || N(0, 1)) = KL(u || uniform): sum_i p_i log(p_i BINS). Binning loses a part (a fifth
    for a uniform variable); a sample of n adds (BINS - 1) / (2 n) (Miller and Madow), .001 for 512 tokens of 64.
    """
    uniform = torch.special.ndtr(standardised(tokens)).flatten()
    p = torch.histc(uniform.float(), BINS, 0.0, 1.0) / uniform.numel()
    return float(torch.special.xlogy(p, p * BINS).sum())


def standardised(tokens: Tensor) -> Tensor:
    """(T, D) -> (T', D) in float64: zero mean, unit variance in each token; constant tokens are left out."""
    x = tokens.double()
    x = x - x.mean(-1, keepdim=True)
    std = x.square().mean(-1, keepdim=True).sqrt()
    return (x / std)[std.squeeze(-1) > 0]


def sqnr_db(signal: Tensor, quantized: Tensor) -> float:
    """10 log10(sum x^2 / sum (x - q)^2), dB."""
    noise = (signal.double() - quantized.double()).square().sum()
    return float(10 * torch.log10(signal.double().square().sum() / noise))


def clip_rate(quantizer: ActFakeQuantizer, tokens: Tensor) -> float:
    """Fraction of (T, D) values more than half the outermost gap beyond the outermost level: rounding alone would
    not have moved them so far."""
    scale, center = quantizer.scaling(tokens)
    u = grouped(tokens, quantizer.spec)
    u = (u if center is None else u - center) / scale
    grid = levels(quantizer.spec.grid, quantizer.spec.bits).to(u)
    low, high = 1.5 * grid[0] - 0.5 * grid[1], 1.5 * grid[-1] - 0.5 * grid[-2]
    return float(((u < low) | (u > high)).double().mean())


@torch.no_grad()
def levels_in_sigmas(quantizer: ActFakeQuantizer, tokens: Tensor) -> Tensor:
    """(T, D) -> (L,) float64, ascending: where the levels lie in a token of mean 0 and standard deviation 1.

    Levels are affine in scale and center, so that their mean over tokens (and over channels or groups with scales of
    their own) needs two numbers: level E[scale / sd] + E[(center - mean) / sd]. Constant tokens are left out.
    """
    mean, sd = tokens.double().mean(-1, keepdim=True), tokens.double().std(-1, correction=0, keepdim=True)
    if quantizer.spec.granularity == "per_group":
        mean, sd = mean.unsqueeze(-1), sd.unsqueeze(-1)
    scale, center = quantizer.scaling(tokens)
    kept = sd.flatten() > 0
    slope = (scale / sd)[kept].mean()
    offset = ((-mean if center is None else center - mean) / sd)[kept].mean()
    return levels(quantizer.spec.grid, quantizer.spec.bits).to(slope) * slope + offset


@contextmanager
def captured_inputs(model: nn.Module, layers: Sequence[str], max_tokens: int) -> Iterator[dict[str, list[Tensor]]]:
    """While open, each forward adds up to `max_tokens` evenly spaced input tokens (T, D) of each named layer."""
    captured: dict[str, list[Tensor]] = {name: [] for name in layers}
    handles = [
        model.get_submodule(name).register_forward_pre_hook(_keep_tokens(captured[name], max_tokens)) for name in layers
    ]
    try:
        yield captured
    finally:
        for handle in handles:
            handle.remove()


def _keep_tokens(kept: list[Tensor], max_tokens: int) -> Any:
    def hook(_: nn.Module, inputs: tuple[Tensor, ...]) -> None:
        kept.append(evenly(inputs[0].detach().flatten(0, -2), max_tokens).float())

    return hook


def evenly(rows: Tensor, count: int) -> Tensor:
    """At most `count` evenly spaced rows: (M, D) -> (min(M, count), D), a copy."""
    if len(rows) <= count:
        return rows.clone()
    return rows[torch.arange(count, device=rows.device) * len(rows) // count]


def capture_tokens(
    model: DiT, images: Tensor, timesteps: Tensor, labels: Tensor, layers: Sequence[str], max_tokens: int
) -> dict[str, Tensor]:
    """{layer: (T, D) float32} with T <= max_tokens raw input tokens, evenly over the batch of noised images."""
    with torch.no_grad(), captured_inputs(model, layers, max_tokens) as captured:
        model(images, timesteps, labels)
    return {name: torch.cat(parts) for name, parts in captured.items()}


def rotated_tokens(layer: nn.Module, tokens: Tensor) -> Tensor:
    """(T, D) -> (T, D): by the layer's rotation; a full-precision layer has none and gets a random one to compare."""
    if isinstance(layer, QuantizedLinear):
        rotation = layer.rotation
    else:
        rotation = Rotation(Transform(kind="random_hadamard"), tokens.shape[-1], 0).to(tokens.device)
    with torch.no_grad():
        rotated: Tensor = rotation(tokens)
    return rotated


def block_layers(model: DiT) -> dict[str, str]:
    """{name of the module whose input a block linear sees: role}, in the order of blocks and roles."""
    names = {name for name, _ in model.named_modules()}
    layers: dict[str, str] = {}
    for block in range(len(model.transformer_blocks)):
        for role in BLOCK_ROLES:
            candidates = (f"transformer_blocks.{block}.{module}" for module in INPUTS[role])
            layers[next(name for name in candidates if name in names)] = role
    return layers


class LayerTelemetry:
    """Measures all block linears on the same few noised training images each time."""

    def __init__(self, model: DiT, data: ImageData, schedule: NoiseSchedule, seed: int, device: torch.device) -> None:
        generator = derived_generator(seed, "telemetry")
        chosen = torch.randperm(len(data.train_images), generator=generator)[:PROBE_IMAGES]
        images, timesteps = noised_at_mixed_timesteps(data.train_images[chosen], schedule, generator)
        labels = known_labels(data.train_labels[chosen], model.null_label)
        self._probe = (images.to(device), timesteps.to(device), labels.to(device))
        self.codes: dict[str, Tensor] = {}  # ternary codes (O, I) int8 of the last measurement

    @torch.no_grad()
    def measure(self, model: DiT, step: int) -> list[dict[str, Any]]:
        """One row a layer: step, layer, role, and what can be measured of it; the model is left as it was."""
        training, layers = model.training, block_layers(model)
        tokens = capture_tokens(model.eval(), *self._probe, list(layers), PROBE_TOKENS)
        model.train(training)
        return [
            {"step": step, "layer": name, "role": role, **self._measured(name, model.get_submodule(name), tokens[name])}
            for name, role in layers.items()
        ]

    def _measured(self, name: str, layer: nn.Module, raw: Tensor) -> dict[str, float]:
        rotated = rotated_tokens(layer, raw)
        values = {
            "kurtosis_raw": excess_kurtosis(raw),
            "kurtosis_rotated": excess_kurtosis(rotated),
            "kl_raw": kl_to_normal(raw),
            "kl_rotated": kl_to_normal(rotated),
        }
        if isinstance(layer, QuantizedLinear):
            values |= _activation_errors(layer, rotated) | self._ternary_rates(name, layer)
        return {key: value for key, value in values.items() if math.isfinite(value)}

    def _ternary_rates(self, name: str, layer: QuantizedLinear) -> dict[str, float]:
        if layer.spec.weight is None or layer.spec.weight.kind not in TERNARY:
            return {}
        codes, before = layer.quantized_weight().sign().to(torch.int8), self.codes.get(name)
        self.codes[name] = codes
        flips = {} if before is None else {"flip_rate": float((codes != before).double().mean())}
        return {"zero_rate": float((codes == 0).double().mean()), **flips}


def _activation_errors(layer: QuantizedLinear, rotated: Tensor) -> dict[str, float]:
    quantizer = layer.act_quantizer
    if quantizer is None:
        return {}
    return {"sqnr_db": sqnr_db(rotated, quantizer(rotated)), "clip_rate": clip_rate(quantizer, rotated)}
