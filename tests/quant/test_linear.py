"""QuantizedLinear: the one-node form equals the definition, and the definition equals independent arithmetic."""

import itertools

import pytest
import torch
from torch import nn

from robuq.config import ActQuant, LowRank, QuantSpec, Transform, WeightQuant
from robuq.quant.linear import QuantizedLinear
from robuq.variants import VARIANTS, variant

TERNARY = WeightQuant()
ROTATION = Transform(kind="random_hadamard")
MINMAX = ActQuant(bits=2, scale="minmax", grid="mid_tread")
ROBUST = ActQuant(bits=2, scale="gaussian", grid="mid_rise", center=True)


def layer(spec: QuantSpec, width: int = 24, out: int = 10, bias: bool = True) -> QuantizedLinear:
    generator = torch.Generator().manual_seed(3)
    weight = torch.randn(out, width, generator=generator, dtype=torch.float64)
    offset = torch.randn(out, generator=generator, dtype=torch.float64) if bias else None
    return QuantizedLinear(weight, offset, spec, "some.layer", seed=1).double()


def tokens(width: int = 24) -> torch.Tensor:
    return torch.randn(2, 7, width, generator=torch.Generator().manual_seed(5), dtype=torch.float64)


SPECS = [
    QuantSpec(act=act, weight=weight, transform=transform, low_rank=low_rank)
    for act, weight, transform, low_rank in itertools.product(
        (None, MINMAX, ROBUST, ActQuant(bits=4, scale="absmax", grid="mid_tread")),
        (None, TERNARY, WeightQuant(kind="absmax", bits=4)),
        (Transform(kind="identity"), ROTATION, Transform(kind="block_hadamard", block=4)),
        (None, LowRank(rank=3, max_share=1)),
    )
    if weight is not None or low_rank is None
]


def assert_fused_is_composed(module: QuantizedLinear, tokens: torch.Tensor, tolerance: float) -> None:
    """In value and in every gradient. `tolerance`: relative, and absolute in units of the root mean square (or 1)."""
    results = []
    for forward in (module.fused, module.composed):
        module.zero_grad()
        x = tokens.detach().requires_grad_()
        y = forward(x)
        (y * torch.linspace(-1, 1, y.numel(), dtype=y.dtype).view_as(y)).sum().backward()
        grads = {name: p.grad for name, p in module.named_parameters()}
        results.append({"y": y.detach(), "x": x.grad, **grads})
    for name, value in results[0].items():
        expected = results[1][name]
        assert value is not None, name
        assert expected is not None, name
        scale = max(1.0, expected.double().square().mean().sqrt().item())
        torch.testing.assert_close(value, expected, rtol=tolerance, atol=tolerance * scale)


@pytest.mark.parametrize("spec", SPECS, ids=lambda s: s.digest()[:6])
def test_fused_and_composed_agree_in_value_and_in_every_gradient(spec: QuantSpec) -> None:
    assert_fused_is_composed(layer(spec), tokens(), 1e-10)


FULL = QuantSpec(act=ROBUST, weight=TERNARY, transform=ROTATION, low_rank=LowRank(rank=2, max_share=1))
HADAMARD = QuantSpec(act=MINMAX, weight=TERNARY, transform=Transform(kind="hadamard"), low_rank=LowRank(rank=1))
BLOCKS = QuantSpec(act=MINMAX, weight=TERNARY, transform=Transform(kind="block_hadamard", block=8))


@pytest.mark.parametrize("spec", [FULL, HADAMARD, BLOCKS], ids=["full", "hadamard", "blocks"])
@pytest.mark.parametrize("width", [8, 16, 64, 128, 24, 384])  # by butterflies, dense, by two factors
@pytest.mark.parametrize("bias", [True, False])
def test_fused_and_composed_agree_at_every_kind_of_width(spec: QuantSpec, width: int, bias: bool) -> None:
    assert_fused_is_composed(layer(spec, width, bias=bias), tokens(width), 1e-10)


@pytest.mark.parametrize("width", [64, 96])
def test_fused_and_composed_agree_in_float32(width: int) -> None:
    # Sums of at most 96 rounded terms: 1e-5. No value of these lies so close to the border of a level (1e-7) that
    # the two ways round it apart.
    assert_fused_is_composed(layer(FULL, width).float(), tokens(width).float(), 1e-5)


@pytest.mark.parametrize("width", [64, 24])
def test_fused_and_composed_agree_on_tokens_that_are_not_contiguous(width: int) -> None:
    assert_fused_is_composed(layer(FULL, width), tokens(width).transpose(0, 1), 1e-10)
    assert_fused_is_composed(layer(FULL, width), tokens(2 * width)[..., ::2], 1e-10)


@pytest.mark.parametrize("count", [1, 2, 3, 5])  # of rows that are taken four at a time
def test_fused_and_composed_agree_on_few_tokens(count: int) -> None:
    assert_fused_is_composed(layer(FULL, 64), tokens(64)[0, :count], 1e-10)


def test_no_tokens_give_no_output_and_zero_gradients() -> None:
    module = layer(FULL, 64)
    y = module.fused(tokens(64)[:0].requires_grad_())
    y.sum().backward()
    assert y.shape == (0, 7, 10)
    assert all(p.grad is not None and not p.grad.any() for p in module.parameters())


@pytest.mark.parametrize("width", [64, 24])
def test_a_token_that_is_not_a_number_stays_visible_and_alone(width: int) -> None:
    x = tokens(width)
    x[1, 3, 5] = float("nan")
    y = layer(FULL, width).fused(x)
    assert y[1, 3].isnan().all()
    y[1, 3] = 0
    assert y.isfinite().all()


def test_bfloat16_takes_the_reference_and_keeps_its_type() -> None:
    module = layer(FULL, 64).bfloat16()
    x = tokens(64).bfloat16()
    y = module.fused(x)
    assert y.dtype == torch.bfloat16
    torch.testing.assert_close(y, module.composed(x), rtol=0.02, atol=0.1)  # a few roundings by 2^-9 of |y| < 10


def test_the_same_step_twice_gives_the_same_bits() -> None:
    results = []
    for _ in range(2):
        module = layer(FULL, 128).float()
        module.fused(tokens(128).float()).square().sum().backward()
        results.append([p.grad for p in module.parameters()])
    assert all(torch.equal(a, b) for a, b in zip(*results, strict=True))


def test_nothing_quantized_is_the_original_layer_whatever_the_rotation() -> None:
    for transform in (Transform(kind="identity"), ROTATION, Transform(kind="hadamard")):
        module = layer(QuantSpec(transform=transform))
        original = nn.Linear(24, 10).double()
        original.weight.data = module.rotation.inverse(module.weight.detach())
        original.bias.data = module.bias.detach()
        torch.testing.assert_close(module(tokens()), original(tokens()), rtol=1e-12, atol=1e-12)


def test_the_definition_by_hand_with_a_ternary_weight_and_a_low_rank_branch() -> None:
    module = layer(QuantSpec(act=MINMAX, weight=TERNARY, transform=ROTATION, low_rank=LowRank(rank=2, max_share=1)))
    x = tokens()
    rotated = module.rotation(x)
    low, high = rotated.amin(-1, keepdim=True), rotated.amax(-1, keepdim=True)
    step = (high - low) / 3
    zero = torch.round(-low / step)
    quantized = (torch.clamp(torch.round(rotated / step) + zero, 0, 3) - zero) * step
    branch = module.low_rank_left @ module.low_rank_right
    residual = module.weight - branch
    keep = residual.abs() >= 0.5 * residual.abs().mean(1, keepdim=True)
    alpha = (residual.abs() * keep).sum(1, keepdim=True) / keep.sum(1, keepdim=True)
    expected = quantized @ (alpha * residual.sign() * keep).T + rotated @ branch.T + module.bias
    torch.testing.assert_close(module(x), expected, rtol=1e-10, atol=1e-10)


def test_the_low_rank_branch_starts_as_the_best_approximation_of_the_rotated_weight() -> None:
    module = layer(QuantSpec(weight=TERNARY, transform=ROTATION, low_rank=LowRank(rank=3, max_share=1)))
    branch = (module.low_rank_left @ module.low_rank_right).detach()
    singular = torch.linalg.svdvals(module.weight.detach())
    error = torch.linalg.matrix_norm(module.weight.detach() - branch)
    torch.testing.assert_close(error, singular[3:].square().sum().sqrt(), rtol=1e-6, atol=1e-6)


def test_the_rank_is_16_in_wide_layers_a_64th_of_narrow_ones_and_never_zero() -> None:
    assert [LowRank().rank_of(3 * width, width) for width in (1152, 1024, 256, 128, 64, 8)] == [16, 16, 4, 2, 1, 1]


def test_a_branch_of_full_rank_leaves_nothing_to_quantize() -> None:
    module = layer(QuantSpec(weight=TERNARY, low_rank=LowRank(rank=99, max_share=1)))
    assert module.low_rank_left.shape == (10, 10)
    torch.testing.assert_close(module.low_rank_left @ module.low_rank_right, module.weight, rtol=1e-6, atol=1e-6)


@pytest.mark.parametrize("name", sorted(VARIANTS))
def test_every_variant_trains_and_evaluates_alike_on_every_block_role(name: str) -> None:
    precision = variant(name, 2)
    for role in ("qkv", "proj", "fc1", "fc2", "adaln"):
        spec = getattr(precision, role)
        if spec is None:
            continue
        module = layer(spec, width=64)
        if module.act_quantizer is not None and not module.act_quantizer.is_calibrated:
            module.act_quantizer.calibrate_(module.rotation(tokens(64)).reshape(-1, 64))
        trained = module.train()(tokens(64))
        assert torch.isfinite(trained).all()
        assert torch.equal(trained, module.eval()(tokens(64)))


def test_zero_tokens_and_a_batch_of_one() -> None:
    module = layer(QuantSpec(act=ROBUST, weight=TERNARY, transform=ROTATION, low_rank=LowRank(rank=2, max_share=1)))
    zero = torch.zeros(1, 24, dtype=torch.float64)
    torch.testing.assert_close(module(zero), module.bias[None].detach(), rtol=0, atol=1e-6)
    torch.testing.assert_close(module(tokens()[:1, :1]), module(tokens())[:1, :1], rtol=1e-12, atol=1e-12)


def test_layers_of_different_names_have_different_signs_and_equal_names_the_same() -> None:
    weight = torch.randn(8, 64, generator=torch.Generator().manual_seed(0))
    spec = QuantSpec(transform=ROTATION)
    a, b, c = (QuantizedLinear(weight, None, spec, name, seed=0).weight for name in ("a", "a", "b"))
    assert torch.equal(a, b)
    assert not torch.equal(a, c)
