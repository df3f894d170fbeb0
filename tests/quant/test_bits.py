"""Changing the bits of a decision: as if the layer had been made, and calibrated, with them."""

import copy

import pytest
import torch

from robuq.config import (
    BLOCK_ROLES,
    MODEL_PRESETS,
    ActQuant,
    BitAllocation,
    PrecisionMap,
    QuantSpec,
    decision_name,
    resolve_specs,
)
from robuq.models import DiT, build_dit
from robuq.quant.bits import decision_layers, set_bits_, with_bits
from robuq.quant.fake_quantizer import ActFakeQuantizer
from robuq.quant.grids import levels
from robuq.quant.surgery import quantize_
from robuq.variants import block_linears, variant

NANO = MODEL_PRESETS["nano"]
NAMES = [decision_name(block, role) for block in range(2) for role in BLOCK_ROLES]
MIXED = BitAllocation(bits={NAMES[0]: 1, NAMES[3]: 8, NAMES[6]: 3})


def quantized_model(precision: PrecisionMap, allocation: BitAllocation | None = None) -> DiT:
    model = build_dit(NANO, seed=3)
    generator = torch.Generator().manual_seed(4)
    with torch.no_grad():  # a fresh DiT's gates are zero
        for parameter in model.parameters():
            parameter.add_(torch.randn(parameter.shape, generator=generator), alpha=0.05)
    quantize_(model, resolve_specs(precision, NANO.num_layers, allocation), seed=0)
    return model


def answer(model: DiT) -> torch.Tensor:
    images = torch.randn(3, 1, 8, 8, generator=torch.Generator().manual_seed(5))
    with torch.no_grad():
        out: torch.Tensor = model(images, torch.tensor([1, 500, 999]), torch.tensor([0, 5, 10]))
    return out


def samples(width: int = 12) -> torch.Tensor:
    generator = torch.Generator().manual_seed(6)
    return torch.randn(500, width, generator=generator) * torch.linspace(0.2, 3, width) + torch.linspace(-2, 1, width)


def calibrated(spec: ActQuant, width: int = 12) -> ActFakeQuantizer:
    quantizer = ActFakeQuantizer(spec, width)
    quantizer.calibrate_(samples(width))
    return quantizer


def test_decisions_are_the_block_linears_in_order() -> None:
    model = quantized_model(variant("robuq_uniform"))
    layers = decision_layers(model)
    assert list(layers) == NAMES
    block = model.transformer_blocks[1]
    expected = [block.attn1.to_qkv, block.attn1.to_out, block.ff.net[0].proj, block.ff.net[2]]
    assert all(layers[name] is layer for name, layer in zip(NAMES[4:], expected, strict=True))


@pytest.mark.parametrize("name", ["robuq_uniform", "minmax", "qdit", "quest"])
def test_bits_set_afterwards_are_bits_set_at_the_surgery(name: str) -> None:
    model = quantized_model(variant(name))
    before = answer(model)
    set_bits_(model, MIXED.bits)
    made = quantized_model(variant(name), MIXED)
    assert torch.equal(answer(model), answer(made))
    assert not torch.equal(answer(model), before)
    assert {n: layer.spec for n, layer in decision_layers(model).items()} == {
        n: layer.spec for n, layer in decision_layers(made).items()
    }
    set_bits_(model, dict.fromkeys(MIXED.bits, 2))
    assert torch.equal(answer(model), before)


STATIC = [
    ActQuant(bits=8, scale=rule, granularity=granularity, mode="static", grid=grid, center=center)
    for rule in ("absmax", "absmean", "percentile", "sigma", "mad", "iqr", "gaussian", "rms", "lsq")
    for granularity in ("per_channel", "per_tensor")
    for grid in ("mid_rise", "mid_tread", "lloyd_max")
    for center in (False, True)
    if rule != "rms" or grid == "mid_rise"
]


@pytest.mark.parametrize("spec", STATIC, ids=lambda s: f"{s.scale}-{s.granularity}-{s.grid}-{s.center}")
def test_a_static_scale_becomes_what_calibration_at_the_new_bits_gives(spec: ActQuant) -> None:
    for bits in (1, 3, 7, 8):
        changed, anew = with_bits(calibrated(spec), bits), calibrated(spec.updated(bits=bits))
        assert changed.spec == anew.spec
        # Both round a handful of float32 operations: to some eps each.
        torch.testing.assert_close(changed.state_dict(), anew.state_dict(), rtol=1e-6, atol=1e-7)


@pytest.mark.parametrize("granularity", ["per_channel", "per_tensor"])
@pytest.mark.parametrize("bits", [1, 2, 5, 8])
def test_minmax_keeps_its_range(granularity: str, bits: int) -> None:
    for grid, slack in (("mid_rise", 0.0), ("mid_tread", 0.5)):  # in steps: a zero point is an integer
        spec = ActQuant(bits=6, scale="minmax", granularity=granularity, mode="static", grid=grid)
        before, after = calibrated(spec), with_bits(calibrated(spec), bits)
        for index in (0, -1):
            ends = [q.center + q.scale * levels(grid, q.spec.bits)[index] for q in (before, after)]
            assert ((ends[0] - ends[1]).abs() <= slack * after.scale + 1e-5).all()
    low, high = (after.center + after.scale * levels(grid, bits)[index] for index in (0, -1))
    within = ((low <= 0) & (high >= 0)).expand(12)
    assert within.any()
    assert after(torch.zeros(1, 12))[0, within].abs().max() < 1e-6  # mid_tread: zero stays a level


def test_a_trained_step_is_rescaled_whatever_its_sign() -> None:
    spec = ActQuant(bits=8, scale="lsq", granularity="per_tensor", mode="static", grid="mid_tread", gradient="clip")
    quantizer = calibrated(spec)
    with torch.no_grad():
        quantizer.step.mul_(-1.7)
    changed = with_bits(quantizer, 2)
    # LSQ's initial step is proportional to 1 / sqrt(q): q = 127 at 8 bits and 1 at 2 bits
    torch.testing.assert_close(changed.step, quantizer.step * 127**0.5, rtol=1e-6, atol=0)
    assert isinstance(changed.step, torch.nn.Parameter)
    assert changed.step.data_ptr() != quantizer.step.data_ptr()


def test_an_uncalibrated_quantizer_stays_one() -> None:
    spec = ActQuant(bits=8, scale="sigma", granularity="per_channel", mode="static")
    changed = with_bits(ActFakeQuantizer(spec, 12), 3)
    assert not changed.is_calibrated
    changed.calibrate_(samples())
    assert torch.equal(changed.scale, calibrated(spec.updated(bits=3)).scale)


def test_type_and_mode_are_kept() -> None:
    spec = ActQuant(bits=8, scale="minmax", granularity="per_channel", mode="static")
    quantizer = calibrated(spec).double().eval()
    changed = with_bits(quantizer, 3)
    assert changed.scale.dtype == changed.center.dtype == torch.float64
    assert changed.calibrated.dtype == torch.bool
    assert not changed.training


@pytest.mark.parametrize(
    ("precision", "bits", "message"),
    [
        (variant("robuq_uniform"), {"transformer_blocks.1.fc3": 2}, "no decision 'transformer_blocks.1.fc3' - did you"),
        (variant("robuq_uniform"), {NAMES[0]: 4, NAMES[1]: 9}, "less than or equal to 8"),
        (variant("robuq_uniform"), {NAMES[0]: 4, NAMES[1]: 0}, "greater than or equal to 1"),
        (block_linears(QuantSpec(act=ActQuant(bits=4, grid="fp4"))), {NAMES[0]: 4, NAMES[1]: 3}, "fp4' has 4 bits"),
        (variant("ternary_only"), {NAMES[0]: 4}, f"activations of {NAMES[0]} are not quantized"),
        (variant("full_precision"), {NAMES[0]: 4}, f"activations of {NAMES[0]} are not quantized"),
    ],
)
def test_what_cannot_be_is_refused_and_changes_nothing(precision: PrecisionMap, bits: dict, message: str) -> None:
    model = quantized_model(precision)
    before = {name: copy.copy(module) for name, module in model.named_modules()}
    with pytest.raises(ValueError, match=message):
        set_bits_(model, bits)
    for name, module in model.named_modules():
        assert getattr(module, "spec", None) is getattr(before[name], "spec", None)
