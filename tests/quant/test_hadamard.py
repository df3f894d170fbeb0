"""Hadamard matrices against scipy and their defining property; the transform against the dense product."""

import pytest
import scipy.linalg
import torch

from robuq.config.quant import Transform
from robuq.quant.hadamard import Rotation, factors, hadamard_matrix, hadamard_transform, random_signs

ORDERS = (1, 2, 8, 12, 16, 20, 24, 28, 32, 36, 40, 44, 60, 64, 72, 128, 144, 192, 256, 384, 768, 1152, 4608)
SMALL_AND_FAST = (8, 12, 36, 64, 128, 144, 384, 1152)  # dense and by two factors, symmetric and not
KINDS = [
    Transform(kind="identity"),
    Transform(kind="hadamard"),
    Transform(kind="random_hadamard"),
    Transform(kind="block_hadamard", block=12),
]


def rows(*shape: int, seed: int = 0) -> torch.Tensor:
    return torch.randn(*shape, dtype=torch.float64, generator=torch.Generator().manual_seed(seed))


@pytest.mark.parametrize("n", [n for n in ORDERS if n < 4608])  # 4608: its factors are, and it is their product
def test_entries_are_signs_and_rows_are_orthogonal(n):
    matrix = hadamard_matrix(n).float()  # products of +-1 are exact in float32 up to 2^24
    assert torch.equal(matrix.abs(), torch.ones(n, n))
    assert torch.equal(matrix @ matrix.T, n * torch.eye(n))


@pytest.mark.parametrize("n", [1, 2, 4, 64, 512])
def test_powers_of_two_match_scipy(n):
    assert torch.equal(hadamard_matrix(n), torch.from_numpy(scipy.linalg.hadamard(n)).double())


@pytest.mark.parametrize("n", [-4, 0, 3, 6, 52, 92, 100])
def test_other_orders_are_refused_with_the_orders_that_exist(n):
    with pytest.raises(
        ValueError, match=rf"no Hadamard matrix of order {n}: need n = b \* 2\*\*k with b in \(1, 12, 20"
    ):
        hadamard_matrix(n)
    with pytest.raises(ValueError, match="no Hadamard matrix"):
        Rotation(Transform(kind="hadamard"), n, 0)


@pytest.mark.parametrize("n", [384, 768, 1024, 1152, 4608])
def test_two_factors_are_the_matrix(n):
    a, b = factors(n)
    assert torch.equal(torch.kron(hadamard_matrix(a), hadamard_matrix(b)), hadamard_matrix(n))


@pytest.mark.parametrize("transpose", [False, True])
@pytest.mark.parametrize("n", ORDERS)
def test_transform_is_the_dense_product(n, transpose):
    matrix = hadamard_matrix(n)
    x = rows(2, 3, n)
    dense = x @ (matrix.T if transpose else matrix) / n**0.5
    torch.testing.assert_close(hadamard_transform(x, transpose), dense, rtol=0, atol=1e-13 * n**0.5)


@pytest.mark.parametrize("n", [8, 16, 32, 64, 128, 1024])
def test_butterflies_are_scipys_matrix_in_float32(n):
    x = rows(3, n).float()
    exact = x.double() @ torch.from_numpy(scipy.linalg.hadamard(n)).double() / n**0.5
    # log2(n) stages, each rounding by half an epsilon of what is about the row's root mean square
    torch.testing.assert_close(hadamard_transform(x).double(), exact, rtol=0, atol=4e-7 * n.bit_length())
    assert torch.equal(hadamard_transform(x), hadamard_transform(x, transpose=True))


def test_a_value_that_is_not_a_number_spreads_over_its_row_alone():
    x = rows(3, 64)
    x[1, 5] = float("nan")
    assert torch.equal(hadamard_transform(x).isnan().all(1), torch.tensor([False, True, False]))
    assert hadamard_transform(x)[[0, 2]].isfinite().all()
    assert hadamard_transform(x[:0]).shape == (0, 64)


@pytest.mark.parametrize("n", [1152, 1024])
def test_transform_of_many_rows_is_that_of_each(n):
    x = rows(600, n)  # more than are transformed at a time
    some = [0, 1, 226, 227, 228, 255, 256, 599]
    torch.testing.assert_close(hadamard_transform(x)[some], hadamard_transform(x[some]), rtol=0, atol=1e-12)
    strided = rows(n, 40).T
    torch.testing.assert_close(hadamard_transform(strided), hadamard_transform(strided.contiguous()))


@pytest.mark.parametrize("n", [12, 64, 192])
def test_transform_is_twice_differentiable(n):
    x = rows(2, n).requires_grad_()
    assert torch.autograd.gradcheck(hadamard_transform, (x,))
    assert torch.autograd.gradgradcheck(hadamard_transform, (x,))


@pytest.mark.parametrize("n", SMALL_AND_FAST)
def test_backward_multiplies_by_the_transpose(n):
    x, grad = rows(3, n).requires_grad_(), rows(3, n, seed=1)
    hadamard_transform(x).backward(grad)
    torch.testing.assert_close(x.grad, grad @ hadamard_matrix(n).T / n**0.5)


def test_transform_made_in_inference_mode_serves_training_later():
    with torch.inference_mode():
        hadamard_transform(torch.randn(2, 28, dtype=torch.float32))
    x = torch.randn(2, 28, requires_grad=True)
    (hadamard_transform(x) ** 2).sum().backward()
    torch.testing.assert_close(x.grad, 2 * x.detach(), rtol=0, atol=1e-5)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize("n", [64, 1152])
def test_types_are_kept(n, dtype):
    x = rows(4, n)
    y = hadamard_transform(x.to(dtype))
    assert y.dtype == dtype
    # two products, and the factors 1 / sqrt(a), 1 / sqrt(b) rounded to the type: relative to the row's norm
    error = (y.double() - hadamard_transform(x.to(dtype).double())).norm(dim=-1) / x.norm(dim=-1)
    assert torch.all(error < 8 * torch.finfo(dtype).eps)


@pytest.mark.parametrize("n", [24, 144, 384, 1152])
@pytest.mark.parametrize("transform", KINDS, ids=lambda t: t.kind)
def test_rotation_keeps_the_linear_map_and_inverts(transform, n):
    rotation = Rotation(transform, n, seed=3)
    x, w = rows(2, 5, n), rows(7, n, seed=1)
    # error of a sum of n products of rounded terms, in float64
    torch.testing.assert_close(rotation(x) @ rotation.weight(w).T, x @ w.T, rtol=0, atol=1e-14 * n)
    torch.testing.assert_close(rotation.inverse(rotation(x)), x, rtol=0, atol=1e-13)
    torch.testing.assert_close(rotation(rotation.inverse(x)), x, rtol=0, atol=1e-13)


@pytest.mark.parametrize("n", [24, 384])
@pytest.mark.parametrize("transform", KINDS, ids=lambda t: t.kind)
def test_rotation_is_its_formula_and_differentiable(transform, n):
    rotation = Rotation(transform, n, seed=3)
    matrix = {
        "identity": lambda: torch.eye(n, dtype=torch.float64),
        "hadamard": lambda: hadamard_matrix(n) / n**0.5,
        "random_hadamard": lambda: torch.diag(rotation.signs.double()) @ hadamard_matrix(n) / n**0.5,
        "block_hadamard": lambda: torch.block_diag(*[hadamard_matrix(12) / 12**0.5] * (n // 12)),
    }[transform.kind]()
    x, grad = rows(3, n).requires_grad_(), rows(3, n, seed=1)
    torch.testing.assert_close(rotation(x), x @ matrix, rtol=0, atol=1e-13 * n**0.5)
    rotation(x).backward(grad)
    torch.testing.assert_close(x.grad, grad @ matrix.T, rtol=0, atol=1e-13 * n**0.5)


def test_signs_are_a_function_of_both_seeds_and_travel_with_the_state():
    def signs(transform_seed: int, seed: int) -> torch.Tensor:
        return Rotation(Transform(seed=transform_seed), 256, seed).signs

    before = torch.random.get_rng_state()
    assert torch.equal(signs(1, 2), signs(1, 2))
    assert torch.equal(torch.random.get_rng_state(), before)
    assert len({tuple(signs(a, b).tolist()) for a, b in ((0, 0), (0, 1), (1, 0), (1, 2), (2, 1))}) == 5
    assert set(signs(0, 0).tolist()) == {-1.0, 1.0}

    source, target = (Rotation(Transform(seed=seed), 64, 0) for seed in (5, 6))
    target.load_state_dict(source.state_dict())
    x = torch.randn(2, 64)
    assert torch.equal(target(x), source(x))


def test_signs_are_balanced():
    # a fair coin: the sum of n signs has standard deviation sqrt(n)
    assert abs(random_signs(1 << 16, 0, 0).sum().item()) < 5 * (1 << 8)


def test_a_block_must_divide_the_width_and_be_an_order():
    with pytest.raises(ValueError, match="block=16 does not divide the width 24"):
        Rotation(Transform(kind="block_hadamard", block=16), 24, 0)
    with pytest.raises(ValueError, match="no Hadamard matrix of order 6"):
        Rotation(Transform(kind="block_hadamard", block=6), 24, 0)


def test_random_signs_spread_a_constant_that_a_plain_rotation_gathers():
    x = torch.ones(1, 64)
    assert hadamard_transform(x).abs().max().item() == pytest.approx(8.0)  # all of the norm in one coefficient
    assert Rotation(Transform(kind="random_hadamard"), 64, 0)(x).abs().max().item() < 4.0
