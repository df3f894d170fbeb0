"""quantize_: replaces layers of a built model, in place, by fully qualified name."""

from __future__ import annotations

from collections.abc import Mapping
from typing import cast

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from robuq.config import QuantSpec, did_you_mean
from robuq.quant.attention import QuantizedAttention
from robuq.quant.linear import QuantizedLinear

QKV = ("to_q", "to_k", "to_v")


class QuantizedPatchEmbedding(nn.Module):
    """(N, C, H, W) -> (N, D, H/p, W/p): a convolution with stride = kernel = p, as a linear layer over patches."""

    def __init__(self, conv: nn.Conv2d, spec: QuantSpec, name: str, seed: int, *, factorize: bool = True) -> None:
        super().__init__()
        if conv.stride != conv.kernel_size or conv.padding != (0, 0) or conv.groups != 1:
            raise ValueError(f"{name}: only a patch embedding (stride = kernel size, no padding) can be quantized")
        self.patch = conv.kernel_size
        self.linear = QuantizedLinear(conv.weight.flatten(1), conv.bias, spec, name, seed, factorize=factorize)

    def forward(self, images: Tensor) -> Tensor:
        n, _, h, w = images.shape
        patches = F.unfold(images, self.patch, stride=self.patch).transpose(1, 2)  # (N, T, C p p)
        out: Tensor = self.linear(patches).transpose(1, 2)
        return out.reshape(n, -1, h // self.patch[0], w // self.patch[1])


def quantize_(model: nn.Module, specs: Mapping[str, QuantSpec], seed: int, *, factorize: bool = True) -> None:
    """Quantize the named linear layers, patch embeddings and attention products of `model`, in place.

    `specs`: fully qualified module name -> QuantSpec (see `robuq.config.resolve_specs`). to_q, to_k and to_v of
    one attention must have equal specs: they become one layer `to_qkv` with one rotation and one quantization of
    their common input (a per-tensor weight scale then spans all three). `seed`: of the rotations' signs.
    `factorize=False` leaves the low-rank branches at zero, for a caller that loads their values next.

    Raises:
        ValueError: a name that the model does not have, a module of a kind that cannot be quantized, or unequal
            specs of to_q, to_k, to_v.
    """
    modules = dict(model.named_modules())
    for name in specs:
        if name not in modules:
            raise ValueError(f"the model has no module {name!r}{did_you_mean(name, _quantizable(modules))}")
    rest = dict(specs)
    for name, module in modules.items():
        if _is_attention(module):
            own = {part: rest.pop(f"{name}.{part}") for part in (*QKV, "to_out.0") if f"{name}.{part}" in rest}
            products = rest.pop(name, None)
            if own or products:
                _set(model, name, _quantized_attention(module, name, own, products, seed, factorize))
    for name, spec in rest.items():
        _set(model, name, _quantized(modules[name], name, spec, seed, factorize))


def quantized_linears(model: nn.Module) -> dict[str, QuantizedLinear]:
    """{name in the model: layer}, each layer once, in the model's order."""
    return {name: module for name, module in model.named_modules() if isinstance(module, QuantizedLinear)}


def needs_calibration(model: nn.Module) -> bool:
    """Whether a static scale or a learned step has not seen data yet."""
    layers = quantized_linears(model).values()
    return any(layer.act_quantizer is not None and not layer.act_quantizer.is_calibrated for layer in layers)


def _is_attention(module: nn.Module) -> bool:
    return all(hasattr(module, part) for part in (*QKV, "to_out"))


def _quantizable(modules: Mapping[str, nn.Module]) -> list[str]:
    return [n for n, m in modules.items() if isinstance(m, (nn.Linear, nn.Conv2d)) or _is_attention(m)]


def _quantized(module: nn.Module, name: str, spec: QuantSpec, seed: int, factorize: bool) -> nn.Module:
    if isinstance(module, nn.Linear):
        return QuantizedLinear(module.weight, module.bias, spec, name, seed, factorize=factorize)
    if isinstance(module, nn.Conv2d):
        return QuantizedPatchEmbedding(module, spec, name, seed, factorize=factorize)
    raise ValueError(f"{name} is a {type(module).__name__}: only Linear, patch Conv2d and attention can be quantized")


def _quantized_attention(
    attention: nn.Module, name: str, own: dict[str, QuantSpec], products: QuantSpec | None, seed: int, factorize: bool
) -> QuantizedAttention:
    given = {own.get(part) for part in QKV}
    if len(given) != 1:
        raise ValueError(f"{name}: to_q, to_k and to_v share one input and need equal specs (or none of them any)")
    qkv: nn.Module = _fused_qkv(attention)
    if (spec := given.pop()) is not None:
        qkv = _quantized(qkv, f"{name}.to_qkv", spec, seed, factorize)
    out = attention.get_submodule("to_out.0")
    if "to_out.0" in own:
        out = _quantized(out, f"{name}.to_out", own["to_out.0"], seed, factorize)
    heads = cast(int, attention.heads)
    return QuantizedAttention(qkv, out, heads, cast(int, out.in_features) // heads, products)


def _fused_qkv(attention: nn.Module) -> nn.Linear:
    parts = [attention.get_submodule(part) for part in QKV]
    weight = torch.cat([part.get_parameter("weight") for part in parts]).detach()
    fused = nn.Linear(weight.shape[1], weight.shape[0], bias=parts[0].bias is not None, device="meta")
    fused.weight = nn.Parameter(weight)
    if parts[0].bias is not None:
        fused.bias = nn.Parameter(torch.cat([part.get_parameter("bias") for part in parts]).detach())
    return fused


def _set(model: nn.Module, name: str, module: nn.Module) -> None:
    parent, _, child = name.rpartition(".")
    setattr(model.get_submodule(parent), child, module)
