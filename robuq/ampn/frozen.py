"""A quantized DiT, frozen for measuring: each weight is quantized once, not in every forward pass."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.autograd.function import once_differentiable

from robuq.models import DiT
from robuq.quant.bits import decision_layers, with_bits
from robuq.quant.fake_quantizer import ActFakeQuantizer
from robuq.quant.linear import QuantizedLinear
from robuq.quant.straight_through import is_straight_through, linear_forward, quantize_tokens
from robuq.quant.surgery import quantized_linears


class FrozenLinear(nn.Module):
    """A `QuantizedLinear` with its weight as quantized now. (..., I) -> (..., O), differentiable in its input alone.

    `given` (N, T, O) replaces its answer, for a module around it that cannot be entered right behind it.
    """

    def __init__(self, layer: QuantizedLinear, quantizer: ActFakeQuantizer | None) -> None:
        super().__init__()
        self.rotation, self.quantizer = layer.rotation, quantizer
        self.weight = layer.quantized_weight().detach()
        self.bias, self.left, self.right = (
            None if parameter is None else parameter.detach()
            for parameter in (layer.bias, layer.low_rank_left, layer.low_rank_right)
        )
        # The layer's loop takes the branch off the weight.
        branch = None if self.left is None or self.right is None else self.left @ self.right
        self.whole = self.weight if branch is None else self.weight + branch
        self.is_straight_through = quantizer is None or is_straight_through(quantizer.spec)
        self.given: Tensor | None = None

    def forward(self, x: Tensor) -> Tensor:
        if self.given is not None:
            return self.given
        if torch.is_grad_enabled() or not self.is_straight_through:
            rotated = self.rotated(x)
            y = self.answer(rotated, self.offset(rotated), self.quantizer)
        else:
            y = self.looped(x.reshape(-1, x.shape[-1]))
        return y.view(*x.shape[:-1], len(self.weight))

    def looped(self, tokens: Tensor) -> Tensor:
        """(M, I) -> (M, O) by the training layer's loop, which is told that there is nothing to quantize."""
        parameters = (self.whole, self.bias, self.left, self.right)
        return linear_forward(tokens, *parameters, self.rotation, self.quantizer, None).y

    def rotated(self, x: Tensor) -> Tensor:
        """(..., I) -> (M, I)"""
        tokens: Tensor = self.rotation(x.reshape(-1, x.shape[-1]))
        return tokens

    def offset(self, rotated: Tensor) -> Tensor:
        """(M, I) -> (M, O), or what broadcasts to it: low-rank branch and bias, which no quantizer touches."""
        bias = self.weight.new_zeros(()) if self.bias is None else self.bias
        if self.left is None or self.right is None:
            return bias
        return torch.addmm(bias, F.linear(rotated, self.right), self.left.t())

    def answer(self, rotated: Tensor, offset: Tensor, quantizer: ActFakeQuantizer | None) -> Tensor:
        """(M, I) -> (M, O) with this quantizer of the input; without one, the input as it is."""
        tokens = rotated if quantizer is None else quantized(rotated, quantizer)
        return torch.addmm(offset, tokens, self.weight.t())

    @contextmanager
    def answering(self, y: Tensor) -> Iterator[None]:
        """While open, the answer to every input is y."""
        self.given = y
        try:
            yield
        finally:
            self.given = None


def quantized(tokens: Tensor, quantizer: ActFakeQuantizer) -> Tensor:
    """(M, D) -> (M, D), with the quantizer's own gradient."""
    if not is_straight_through(quantizer.spec):
        of_any_rule: Tensor = quantizer(tokens)
        return of_any_rule
    rounded: Tensor = _StraightThrough.apply(tokens, quantizer)  # type: ignore[no-untyped-call]
    return rounded


class _StraightThrough(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, tokens: Tensor, quantizer: ActFakeQuantizer) -> Tensor:
        return quantize_tokens(tokens, quantizer)

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor, None]:
        return grad, None


@contextmanager
def frozen(model: DiT, reference: int) -> Iterator[dict[str, FrozenLinear]]:
    """While open, `model` is in eval mode, its quantized layers are frozen, and all decisions have `reference` bits.

    Yields the layer of each decision. The model's own modules are put back afterwards, also after an error; their
    state is never touched.
    """
    layers, decisions = quantized_linears(model), decision_layers(model)
    chosen = {id(layer) for layer in decisions.values()}
    doubles = {name: _frozen_layer(layer, reference if id(layer) in chosen else None) for name, layer in layers.items()}
    by_layer = {id(layer): doubles[name] for name, layer in layers.items()}
    training = [module for module in model.modules() if module.training]
    try:
        _replace(model, doubles)
        model.eval()
        yield {name: by_layer[id(layer)] for name, layer in decisions.items()}
    finally:
        _replace(model, layers)
        for module in training:
            module.training = True


@torch.no_grad()
def _frozen_layer(layer: QuantizedLinear, bits: int | None) -> FrozenLinear:
    quantizer = layer.act_quantizer
    return FrozenLinear(layer, quantizer if quantizer is None or bits is None else with_bits(quantizer, bits))


def _replace(model: nn.Module, modules: Mapping[str, nn.Module]) -> None:
    for name, module in modules.items():
        model.set_submodule(name, module)
