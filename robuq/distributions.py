"""What enters every block linear at every noise level, before and after its rotation, and what its weights became.

One compact file a network: summary numbers and histograms rather than tokens. Axes below: L block linears in the order
of blocks and roles, B equal bins of the timesteps (least noise first), S = 2 states (raw, rotated).
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn

from robuq.batches import known_labels
from robuq.data.load import ImageData
from robuq.diffusion.evaluation_mode import evaluation_mode
from robuq.diffusion.loss import TIMESTEP_BINS
from robuq.diffusion.schedule import NoiseSchedule
from robuq.models import DiT
from robuq.quant.linear import QuantizedLinear
from robuq.quant.weight_quantizer import mean_abs, rows, weight_codes
from robuq.seeding import derived_generator
from robuq.telemetry import BINS as KL_BINS
from robuq.telemetry import (
    TERNARY,
    block_layers,
    kl_to_normal,
    levels_in_sigmas,
    rotated_tokens,
    standardised,
)

IMAGES = 16  # the same ones in every bin of timesteps
VALUES, LEAST_TOKENS = 32_768, 64  # of a layer in one bin: as many tokens as make VALUES, but at least LEAST_TOKENS
BINS, REACH = 128, 5.0  # equal in asinh(z): .08 wide around 0, wider outwards, to sinh(5) = 74 standard deviations
MAX_LEVELS = 16  # of a grid that is kept: more are no picture
WEIGHT_BINS, WEIGHT_REACH = 192, 12.0  # in thresholds: a normal weight's standard deviation is 2.5 of them
TOKEN_QUANTILES = (0.1, 0.5, 0.9)
Arrays = dict[str, NDArray[Any]]


def distributions(model: DiT, data: ImageData, schedule: NoiseSchedule) -> Arrays:
    """`layer`, `role`, `block`, `width` (L,); `timestep_edges` (B + 1,); those of `token_shapes` (L, B, ...) with the
    `edges` of their histograms, and those of `weight_shapes` (L, ...) with `weight_edges`.

    Same held-out images and noise for every network. One bin of timesteps goes through the network at a time, and
    each layer's tokens are measured as they come: what is kept does not grow with the number of layers' tokens.
    """
    layers = block_layers(model)
    measured = list(_by_timestep(model, data, schedule, list(layers)))
    return {
        "layer": np.array(list(layers)),
        "role": np.array(list(layers.values())),
        "block": np.array([int(name.split(".")[1]) for name in layers]),
        "timestep_edges": np.linspace(0, schedule.num_timesteps, TIMESTEP_BINS + 1),
        "edges": np.sinh(np.linspace(-REACH, REACH, BINS + 1)),
        "weight_edges": np.linspace(-WEIGHT_REACH, WEIGHT_REACH, WEIGHT_BINS + 1),
        **stacked([stacked([bin_[name] for bin_ in measured]) for name in layers]),
        **stacked([weight_shapes(model.get_submodule(name)) for name in layers]),
    }


def _by_timestep(
    model: DiT, data: ImageData, schedule: NoiseSchedule, layers: Sequence[str]
) -> Iterator[dict[str, Arrays]]:
    """{layer: token_shapes} of each bin."""
    generator = derived_generator(0, "distributions by timestep")
    chosen = torch.randperm(len(data.held_out_images), generator=generator)[:IMAGES]
    images, labels = data.held_out_images[chosen], known_labels(data.held_out_labels[chosen], model.null_label)
    device = next(model.parameters()).device
    for index, timesteps in enumerate(binned_timesteps(len(images), schedule.num_timesteps)):
        noised = schedule.add_noise(images, torch.randn(images.shape, generator=generator), timesteps)
        with evaluation_mode(model), measured_inputs(model, layers, index) as shapes:
            model(noised.to(device), timesteps.to(device), labels.to(device))
        yield shapes


def binned_timesteps(count: int, num_timesteps: int) -> Tensor:
    """(B, count) int64: row b lies in the b-th of `TIMESTEP_BINS` equal parts of [0, num_timesteps), evenly."""
    places = 2 * torch.arange(TIMESTEP_BINS * count) + 1
    return (places * num_timesteps // (2 * len(places))).view(TIMESTEP_BINS, count)


@contextmanager
def measured_inputs(model: nn.Module, layers: Sequence[str], seed: int) -> Iterator[dict[str, Arrays]]:
    """While open, a forward puts the `token_shapes` of each named layer's input into the dictionary."""
    shapes: dict[str, Arrays] = {}
    handles = [model.get_submodule(name).register_forward_pre_hook(_measure(shapes, name, seed)) for name in layers]
    try:
        yield shapes
    finally:
        for handle in handles:
            handle.remove()


def _measure(shapes: dict[str, Arrays], name: str, seed: int) -> Callable[[nn.Module, tuple[Tensor, ...]], None]:
    def hook(layer: nn.Module, inputs: tuple[Tensor, ...]) -> None:
        shapes[name] = token_shapes(layer, some_tokens(inputs[0].detach(), seed))

    return hook


def some_tokens(x: Tensor, seed: int) -> Tensor:
    """(..., D) -> (T, D) float32: tokens drawn without regard to their place in the image or the batch."""
    tokens = x.flatten(0, -2)
    count = max(LEAST_TOKENS, VALUES // tokens.shape[-1])
    order = torch.randperm(len(tokens), generator=torch.Generator().manual_seed(seed))
    return tokens[order[:count].to(tokens.device)].float()


def token_shapes(layer: nn.Module, raw: Tensor) -> Arrays:
    """(T, D) raw tokens -> what is kept of them; a token is measured in units of its own standard deviation.

    `width` (); `num_tokens` (S,) without constant ones; `kurtosis` and `kl` (S,) as in telemetry.py, `kl_floor` (S,)
    what as many normal values would show; `token_kurtosis` (S, 3): quantiles over tokens of each token's own;
    `histogram` (S, BINS) counts; `expected_kurtosis` (): of the rotated tokens, before the signs are drawn; `levels`
    (MAX_LEVELS,): the quantizer's, as in `levels_in_sigmas`, NaN for none.
    """
    rotated = rotated_tokens(layer, raw)
    states = stacked([_shape(raw), _shape(rotated)])
    own = {"width": np.array(raw.shape[-1]), "expected_kurtosis": _number(expected_kurtosis(raw))}
    return states | own | {"levels": _levels(layer, rotated)}


def _shape(tokens: Tensor) -> Arrays:
    z = standardised(tokens)
    own = z.pow(4).mean(-1) - 3  # of each token; their mean is telemetry.excess_kurtosis
    quantiles = own.quantile(own.new_tensor(TOKEN_QUANTILES)) if len(z) else own.new_full((3,), torch.nan)
    counts = torch.histc(z.float().asinh().clamp(-REACH, REACH), BINS, -REACH, REACH)
    return {
        "num_tokens": np.array(len(z)),
        "kurtosis": _number(float(own.mean())),
        "kl": _number(kl_to_normal(z) if len(z) else np.nan),
        "kl_floor": _number((KL_BINS - 1) / (2 * z.numel()) if len(z) else np.nan),
        "token_kurtosis": quantiles.float().cpu().numpy(),
        "histogram": counts.cpu().numpy().astype(np.uint32),
    }


def expected_kurtosis(tokens: Tensor) -> float:
    """(T, D) -> the mean over tokens of the excess kurtosis, around 0, that x diag(signs) H / sqrt(D) has on average
    over random signs: -2 sum x^4 / (sum x^2)^2.

    Each rotated value is y = sum_i +-x_i / sqrt(D), and E (sum_i +-x_i)^4 = 3 (sum x^2)^2 - 2 sum x^4; the token's
    sum y^2 = sum x^2 does not depend on the signs. So a token with kurtosis k + 3 around 0 becomes normal as
    -2 (k + 3) / D, from below. Zero tokens are left out.
    """
    square = tokens.double().square()
    energy = square.sum(-1)
    kept = energy > 0
    return float(-2 * (square.square().sum(-1)[kept] / energy[kept].square()).mean())


def _levels(layer: nn.Module, rotated: Tensor) -> NDArray[np.float32]:
    padded = np.full(MAX_LEVELS, np.nan, np.float32)
    if isinstance(layer, QuantizedLinear) and layer.act_quantizer is not None:
        levels = levels_in_sigmas(layer.act_quantizer, rotated)
        if len(levels) <= MAX_LEVELS:
            padded[: len(levels)] = levels.float().cpu().numpy()
    return padded


@torch.no_grad()
def weight_shapes(layer: nn.Module) -> Arrays:
    """What a ternary quantizer makes of the latent weights behind the low-rank branch, in units of its threshold.

    `num_weights` () without rows of zeros, `weight_histogram` (WEIGHT_BINS,) counts, `weight_codes` (3,): the shares
    of -1, 0 and 1; `weight_rms` (); `weight_level` (): the mean over rows of level / threshold; `branch_share` (): of
    the latent weight's energy, that of the branch. Zeros and NaN for a layer whose weights are not ternary.
    """
    if not isinstance(layer, QuantizedLinear) or not _has_threshold(layer):
        unknown = dict.fromkeys(("weight_rms", "weight_level", "branch_share"), _number(np.nan))
        none = {"num_weights": np.array(0), "weight_histogram": np.zeros(WEIGHT_BINS, np.uint32)}
        return none | unknown | {"weight_codes": np.full(3, np.nan, np.float32)}
    spec, (weight, share) = layer.spec.weight, _behind_the_branch(layer)
    assert spec is not None
    values = rows(weight, spec)
    tau = mean_abs(values) * (spec.threshold if spec.kind == "ternary_threshold" else 0.5)
    kept = tau.squeeze(-1) > 0
    codes, scale = weight_codes(weight, spec)
    ratios = (values[kept] / tau[kept]).float()
    counts = torch.histc(ratios, WEIGHT_BINS, -WEIGHT_REACH, WEIGHT_REACH)
    shares = [float((codes == code).double().mean()) for code in (-1, 0, 1)]
    return {
        "num_weights": np.array(ratios.numel()),
        "weight_histogram": counts.cpu().numpy().astype(np.uint32),
        "weight_codes": np.array(shares, np.float32),
        "weight_rms": _number(float(ratios.square().mean().sqrt())),
        "weight_level": _number(float((scale[kept] / tau[kept]).mean())),
        "branch_share": _number(share),
    }


def _has_threshold(layer: QuantizedLinear) -> bool:
    spec = layer.spec.weight
    return spec is not None and spec.kind in TERNARY and (spec.kind == "ternary_absmean" or spec.threshold > 0)


def _behind_the_branch(layer: QuantizedLinear) -> tuple[Tensor, float]:
    """The weight that is quantized (O, I), and the branch's share of the latent weight's energy."""
    weight: Tensor = layer.weight
    if layer.low_rank_left is None or layer.low_rank_right is None:
        return weight, 0.0
    branch = layer.low_rank_left @ layer.low_rank_right
    return weight - branch, float(branch.double().square().sum() / weight.double().square().sum())


def _number(value: float) -> NDArray[np.float32]:
    return np.array(value, np.float32)


def stacked(parts: Sequence[Arrays]) -> Arrays:
    """Arrays of equal names and shapes, along a new first axis."""
    return {name: np.stack([part[name] for part in parts]) for name in parts[0]}
