"""Bit decisions of a quantized DiT: which layer each one is about, and changing its activation bits in place."""

from __future__ import annotations

from collections.abc import Mapping

import torch
from torch import Tensor, nn

from robuq.config import BLOCK_ROLES, ActQuant, decision_name, did_you_mean
from robuq.quant.fake_quantizer import ActFakeQuantizer, grid_range
from robuq.quant.linear import QuantizedLinear
from robuq.quant.scales import scale_and_center

# Where surgery leaves the linear layer of each role, within a block.
LAYERS = {"qkv": "attn1.to_qkv", "proj": "attn1.to_out", "fc1": "ff.net.0.proj", "fc2": "ff.net.2"}


def decision_layers(model: nn.Module) -> dict[str, QuantizedLinear]:
    """{decision: its layer}: blocks ascending, within a block qkv, proj, fc1, fc2.

    Raises:
        ValueError: a block linear whose activations are not quantized.
    """
    modules = dict(model.named_modules())
    layers: dict[str, QuantizedLinear] = {}
    for block in range(_num_blocks(model)):
        for role in BLOCK_ROLES:
            layer = modules.get(f"transformer_blocks.{block}.{LAYERS[role]}")
            if not isinstance(layer, QuantizedLinear) or layer.act_quantizer is None:
                raise ValueError(
                    f"the activations of {decision_name(block, role)} are not quantized: there are no bits to choose;"
                    " quantize those of all block linears"
                )
            layers[decision_name(block, role)] = layer
    return layers


def _num_blocks(model: nn.Module) -> int:
    return sum(1 for _ in model.get_submodule("transformer_blocks").children())


def set_bits_(model: nn.Module, bits: Mapping[str, int]) -> None:
    """Give the activations of the named decisions these bits, in place; the others keep theirs.

    Weights stay. Static scales and learned steps are rescaled, see `with_bits`; parameters of quantizers are new ones,
    so that an optimizer has to be made afterwards.

    Raises:
        ValueError: an unknown decision, or bits that its quantizer cannot have; then nothing is changed.
    """
    layers = decision_layers(model)
    if unknown := sorted(set(bits) - set(layers)):
        raise ValueError(f"the model has no decision {unknown[0]!r}{did_you_mean(unknown[0], list(layers))}")
    quantizers = {name: with_bits(_act_quantizer(layers[name]), count) for name, count in bits.items()}
    for name, quantizer in quantizers.items():
        layers[name].act_quantizer = quantizer
        layers[name].spec = layers[name].spec.updated(act=quantizer.spec)


@torch.no_grad()
def with_bits(quantizer: ActFakeQuantizer, bits: int) -> ActFakeQuantizer:
    """A quantizer like this one, on the same device, with other bits.

    A static scale (a learned step) becomes what its rule would have made of the statistic that it stands for: every
    rule's scale is a statistic of the data times a function of the bits. minmax keeps the range of its levels.

    Raises:
        ValueError: the grid does not have so many bits (fp4 has 4, nothing has more than 8).
    """
    spec = quantizer.spec.updated(bits=bits)
    new = ActFakeQuantizer(spec, quantizer.width).train(quantizer.training)
    if spec.mode == "dynamic":
        return new
    kept = _scale(quantizer)
    new.to(kept.device, kept.dtype)
    new.load_state_dict(quantizer.state_dict())
    if quantizer.is_calibrated:
        _rescale_(new, quantizer.spec)
    return new


def _rescale_(quantizer: ActFakeQuantizer, before: ActQuant) -> None:
    """Scale and center of a quantizer that was calibrated as `before`, for its own spec."""
    scale, center = _scale(quantizer), quantizer.center
    if before.scale == "minmax" and center is not None:
        ends = torch.stack([center + scale * bound for bound in grid_range(before)])  # (2, D), or (2, 1) per tensor
        new_scale, new_center = scale_and_center(ends, quantizer.spec)
        scale.copy_(new_scale)
        center.copy_(center if new_center is None else new_center)
    else:
        scale.mul_(_scale_of_one(quantizer.spec) / _scale_of_one(before))


def _scale_of_one(spec: ActQuant) -> float:
    """What the rule makes of fixed values: with other bits, their ratio is that of all scales."""
    values = torch.linspace(-1, 1, 9, dtype=torch.float64).unsqueeze(-1)
    return float(scale_and_center(values, spec)[0])


def _scale(quantizer: ActFakeQuantizer) -> Tensor:
    return quantizer.step if quantizer.spec.scale == "lsq" else quantizer.scale


def _act_quantizer(layer: QuantizedLinear) -> ActFakeQuantizer:
    assert layer.act_quantizer is not None  # decision_layers saw to it
    return layer.act_quantizer
