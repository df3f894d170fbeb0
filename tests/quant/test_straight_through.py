"""The compiled loops give what the reference gives, on every rule they claim and on awkward rows."""

import itertools

import pytest
import torch

from robuq.config import ActQuant, WeightQuant
from robuq.quant import kernels
from robuq.quant.fake_quantizer import ActFakeQuantizer
from robuq.quant.straight_through import (
    branch_gradients,
    branch_input,
    has_loop,
    quantize_rows,
    quantize_tokens,
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


@pytest.mark.parametrize("rank", [1, 3, 9])
def test_the_low_rank_branch_equals_its_matrix_products(rank: int) -> None:
    generator = torch.Generator().manual_seed(rank)
    dy, x, inner, left, right = (
        torch.randn(size, generator=generator, dtype=torch.float64)
        for size in ((50, 7), (50, 33), (50, rank), (7, rank), (rank, 33))
    )
    torch.testing.assert_close(branch_input(x, right), x @ right.T)
    torch.testing.assert_close(branch_gradients(dy, x, inner, left), (dy.T @ inner, (dy @ left).T @ x))


@pytest.mark.parametrize("spec", WEIGHTS, ids=lambda s: f"{s.kind}-{s.threshold}-{s.bits}")
@pytest.mark.parametrize("width", [1, 7, 64])
def test_weights_equal_the_reference(spec: WeightQuant, width: int) -> None:
    w = awkward(9, width)
    torch.testing.assert_close(quantize_rows(w, spec), quantize_weight(w, spec), rtol=1e-9, atol=1e-12)


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
@pytest.mark.parametrize("width", [1, 16, 33])
def test_extremes_are_those_of_torch(dtype: torch.dtype, width: int) -> None:
    x = awkward(9, width, dtype)
    x[5] = -0.0
    x[6, 0] = float("inf")
    x[7, 0] = float("-inf")
    found = torch.from_numpy(kernels.extremes(x.numpy()))
    torch.testing.assert_close(found, torch.stack((x.amin(1), x.amax(1)), 1), rtol=0, atol=0)
    assert torch.equal(torch.from_numpy(kernels.magnitudes(x.numpy())), x.abs().amax(1))


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
