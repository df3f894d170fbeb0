"""The compiled loops give what the reference gives, on every rule they claim and on awkward rows."""

import itertools

import pytest
import torch

from robuq.config import ActQuant, Transform, WeightQuant
from robuq.quant import kernels
from robuq.quant.fake_quantizer import ActFakeQuantizer
from robuq.quant.hadamard import Rotation
from robuq.quant.straight_through import (
    branch_gradients,
    has_loop,
    linear_forward,
    quantize_heads,
    quantize_tokens,
    rotate_back,
    weight_gradients,
)
from robuq.quant.weight_quantizer import quantize_weight

ACTS = [
    ActQuant(bits=bits, scale=scale, grid=grid, center=center)
    for bits, (scale, grid), center in itertools.product(
        (1, 2, 3, 4, 8),
        (
            ("gaussian", "mid_rise"),
            ("gaussian", "mid_tread"),
            ("gaussian", "as_coded"),
            ("absmax", "mid_tread"),
            ("minmax", "mid_tread"),
        ),
        (False, True),
    )
]
WEIGHTS = [
    WeightQuant(),
    WeightQuant(threshold=0.0),
    WeightQuant(threshold=1.2),
    WeightQuant(kind="absmax", bits=4),
    WeightQuant(kind="absmax", bits=1),
    WeightQuant(kind="ternary_absmean", granularity="per_tensor"),
]


def awkward(rows: int, width: int, dtype: torch.dtype = torch.float64) -> torch.Tensor:
    """Normal rows, and one of zeros, one constant, one with an outlier, one of negative numbers, one tiny."""
    x = torch.randn(rows, width, generator=torch.Generator().manual_seed(width), dtype=dtype)
    x[0], x[1] = 0, 3
    x[2, width // 2] = 1e4
    x[3] = -x[3].abs()
    x[4] *= 1e-6
    return x


@pytest.mark.parametrize("spec", ACTS, ids=lambda s: f"{s.scale}-{s.grid}-{s.bits}-{s.center}")
@pytest.mark.parametrize("width", [1, 7, 64, 130])
def test_tokens_equal_the_reference(spec: ActQuant, width: int) -> None:
    quantizer = ActFakeQuantizer(spec, width)
    x = awkward(9, width)
    before = x.clone()
    torch.testing.assert_close(quantize_tokens(x, quantizer), quantizer(x), rtol=1e-9, atol=1e-12)
    assert torch.equal(x, before)


def test_float32_differs_from_the_reference_by_a_level_only_where_a_value_lies_between_two() -> None:
    spec = ActQuant(bits=2, scale="gaussian", grid="mid_rise", center=True)
    quantizer = ActFakeQuantizer(spec, 64)
    x = awkward(2000, 64, torch.float32)[5:]
    wrong = (quantize_tokens(x, quantizer) - quantizer(x)).abs() > 1e-4
    # A float32 scale errs by about 1e-7 of itself; of 128,000 normal values some 1e-7 * 3 * 128,000 lie so close.
    assert wrong.sum() <= 3


def normal(*size: int, dtype: torch.dtype = torch.float64) -> torch.Tensor:
    return torch.randn(*size, generator=torch.Generator().manual_seed(sum(size)), dtype=dtype)


@pytest.mark.parametrize("rank", [1, 2, 3, 9])
@pytest.mark.parametrize("tokens", [1, 4, 50])
def test_the_low_rank_branch_equals_its_matrix_products(rank: int, tokens: int) -> None:
    dy, x, inner, left, right = (normal(*s) for s in ((tokens, 7), (tokens, 33), (tokens, rank), (7, rank), (rank, 33)))
    expected = (dy.T @ inner, (dy @ left).T @ x, dy.sum(0))
    torch.testing.assert_close(branch_gradients(dy, x, inner, left, True), expected)
    assert branch_gradients(dy, x, inner, left, False)[2] is None
    d_weight = normal(7, 33)
    torch.testing.assert_close(weight_gradients(d_weight, left, right), (d_weight @ right.T, left.T @ d_weight))


@pytest.mark.parametrize("kind", ["identity", "hadamard", "random_hadamard"])
@pytest.mark.parametrize("width", [8, 12, 64])
@pytest.mark.parametrize("rank", [None, 1, 3])
def test_the_effective_weight_is_rotated_back(kind: str, width: int, rank: int | None) -> None:
    rotation = Rotation(Transform.parse({"kind": kind}), width, 0)
    weight = normal(5, width)
    left, right = (None, None) if rank is None else (normal(5, rank), normal(rank, width))
    whole = weight if left is None or right is None else weight + left @ right
    back = rotate_back(weight, left, right, rotation)
    torch.testing.assert_close(rotation(back), whole, rtol=0, atol=1e-12)


@pytest.mark.parametrize("spec", WEIGHTS, ids=lambda s: f"{s.kind}-{s.threshold}-{s.bits}")
@pytest.mark.parametrize("width", [1, 7, 64])
def test_weights_equal_the_reference(spec: WeightQuant, width: int) -> None:
    w, x = awkward(9, width), normal(3, width)
    before = w.clone()
    plain = Rotation(Transform(kind="identity"), width, 0)
    operands = linear_forward(x, w, None, None, None, plain, None, spec)
    torch.testing.assert_close(operands.weight, quantize_weight(w, spec), rtol=1e-9, atol=1e-12)
    torch.testing.assert_close(operands.y, x @ quantize_weight(w, spec).T)
    assert operands.tokens is x
    assert torch.equal(w, before)


def test_heads_are_quantized_token_by_token_wherever_they_lie() -> None:
    quantizer = ActFakeQuantizer(ActQuant(bits=8, scale="absmax", grid="mid_tread"), 5)
    as_made = normal(2, 7, 3, 4, 5)
    for qkv in (as_made.permute(2, 0, 3, 1, 4), as_made.permute(2, 0, 3, 1, 4).contiguous()):
        out = quantize_heads(qkv, quantizer)
        assert out.is_contiguous()
        torch.testing.assert_close(out, quantizer(qkv), rtol=1e-12, atol=1e-12)
    assert quantize_heads(qkv.bfloat16(), quantizer).dtype == torch.bfloat16


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
@pytest.mark.parametrize("width", [1, 16, 33])
def test_extremes_are_those_of_torch(dtype: torch.dtype, width: int) -> None:
    x = awkward(9, width, dtype)
    x[5] = -0.0
    x[6, 0] = float("inf")
    x[7, 0] = float("-inf")
    for row in x:
        assert kernels.extremes(row.numpy()) == (row.min().item(), row.max().item())
        assert kernels.magnitude(row.numpy()) == row.abs().max().item()


@pytest.mark.parametrize("scale", ["gaussian", "absmax", "minmax"])
def test_a_value_that_is_not_a_number_stays_visible(scale: str) -> None:
    grid = "mid_rise" if scale == "gaussian" else "mid_tread"
    spec = ActQuant.parse({"bits": 2, "scale": scale, "grid": grid})
    assert has_loop(spec)
    x = awkward(9, 16)
    x[8, 3] = float("nan")
    out = quantize_tokens(x, ActFakeQuantizer(spec, 16))
    assert out[8].isnan().any()
    assert out[:8].isfinite().all()


def test_what_has_no_loop_goes_through_the_reference() -> None:
    spec = ActQuant(bits=4, scale="absmax", grid="fp4")
    assert not has_loop(spec)
    quantizer = ActFakeQuantizer(spec, 8)
    x = awkward(9, 8)
    assert torch.equal(quantize_tokens(x, quantizer), quantizer(x))
