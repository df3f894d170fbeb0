"""QuantizedAttention against its definition and against torch's own attention."""

import pytest
import torch
import torch.nn.functional as F
from torch import nn

from robuq.config import ActQuant, QuantSpec
from robuq.quant.attention import QuantizedAttention


def attention(bits: int | None, heads: int = 3, head_dim: int = 5) -> QuantizedAttention:
    generator = torch.Generator().manual_seed(0)
    width = heads * head_dim
    to_qkv, to_out = nn.Linear(width, 3 * width).double(), nn.Linear(width, width).double()
    for parameter in (*to_qkv.parameters(), *to_out.parameters()):
        parameter.data = torch.randn(parameter.shape, generator=generator, dtype=torch.float64) / width**0.5
    spec = None if bits is None else QuantSpec(act=ActQuant(bits=bits, scale="absmax", grid="mid_tread"))
    return QuantizedAttention(to_qkv, to_out, heads, head_dim, spec)


def hidden(n: int = 2, t: int = 7) -> torch.Tensor:
    return torch.randn(n, t, 15, generator=torch.Generator().manual_seed(1), dtype=torch.float64)


def test_without_quantization_it_is_multi_head_attention() -> None:
    module = attention(None)
    reference = nn.MultiheadAttention(15, 3, batch_first=True).double()
    reference.in_proj_weight.data = module.to_qkv.weight.data
    reference.in_proj_bias.data = module.to_qkv.bias.data
    reference.out_proj.weight.data = module.to_out.weight.data
    reference.out_proj.bias.data = module.to_out.bias.data
    x = hidden()
    torch.testing.assert_close(module(x), reference(x, x, x, need_weights=False)[0], rtol=1e-10, atol=1e-10)


@pytest.mark.parametrize("bits", [2, 4, 8])
def test_one_node_form_equals_the_definition_in_value_and_gradient(bits: int) -> None:
    module = attention(bits)
    qkv = torch.randn(3, 2, 3, 7, 5, generator=torch.Generator().manual_seed(2), dtype=torch.float64)
    from robuq.quant.attention import StraightThroughAttention

    results = []
    for forward in (
        lambda x: StraightThroughAttention.apply(x, module.act_quantizer),
        lambda x: module.composed(x, module.act_quantizer),
    ):
        x = qkv.clone().requires_grad_()
        y = forward(x)
        (y * torch.linspace(-1, 1, y.numel(), dtype=y.dtype).view_as(y)).sum().backward()
        results.append((y.detach(), x.grad))
    torch.testing.assert_close(results[0], results[1], rtol=1e-10, atol=1e-12)


def test_eight_bits_are_within_the_propagated_rounding_error() -> None:
    quantized, exact = attention(8), attention(None)
    x = hidden()
    # Each operand errs by at most half a step, absmax / 254: 0.4 % of its largest entry. Three roundings (q k, P, v)
    # through products of at most 7 terms stay below 5 % of the output's norm.
    error = (quantized(x) - exact(x)).norm() / exact(x).norm()
    assert 0 < error < 0.05


def test_more_bits_err_less() -> None:
    x, exact = hidden(), attention(None)(hidden())
    errors = [(attention(bits)(x) - exact).norm().item() for bits in (2, 4, 6, 8)]
    assert errors == sorted(errors, reverse=True)


def test_one_token_attends_to_itself() -> None:
    module = attention(None)
    x = hidden(1, 1)
    v = F.linear(x, module.to_qkv.weight[30:], module.to_qkv.bias[30:])
    torch.testing.assert_close(module(x), module.to_out(v))
    assert torch.isfinite(attention(8)(torch.zeros(1, 1, 15, dtype=torch.float64))).all()
