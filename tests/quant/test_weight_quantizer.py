"""Weight quantizers against their formulas written out row by row in numpy."""

import numpy as np
import pytest
import torch

from robuq.config.quant import WeightQuant
from robuq.quant.weight_quantizer import fake_quant_weight, rows, weight_codes

KINDS = [
    {"kind": "ternary_absmean"},
    {"kind": "ternary_threshold"},
    {"kind": "ternary_threshold", "threshold": 0.9},
    {"kind": "ternary_threshold", "threshold": 0.0},
    *({"kind": "absmax", "bits": bits} for bits in (1, 2, 4, 8)),
    {"kind": "binary_residual"},
]
PLACES = [{"granularity": "per_tensor"}, {"granularity": "per_channel"}, {"granularity": "per_group", "group_size": 7}]
SPECS = [WeightQuant(**kind, **place) for kind in KINDS for place in PLACES]
every_spec = pytest.mark.parametrize("spec", SPECS, ids=lambda s: f"{s.kind}-{s.bits}-{s.threshold}-{s.granularity}")


def weights(o: int = 5, i: int = 21, dtype: torch.dtype = torch.float64) -> torch.Tensor:
    return torch.randn(o, i, generator=torch.Generator().manual_seed(0), dtype=dtype)


def reference(w: np.ndarray, spec: WeightQuant) -> np.ndarray:
    """The quantized values of weights (n,) that share a scale."""
    mean = np.mean(np.abs(w))
    if spec.kind == "ternary_absmean":
        return mean * np.clip(np.round(w / mean), -1, 1)
    if spec.kind == "ternary_threshold":
        kept = np.abs(w) >= spec.threshold * mean
        return np.mean(np.abs(w)[kept]) * np.sign(w) * kept
    if spec.kind == "binary_residual":
        first = mean * np.sign(w)
        return first + np.mean(np.abs(w - first)) * np.sign(w - first)
    if spec.bits == 1:
        return mean * np.sign(w)
    q = 2 ** (spec.bits - 1) - 1
    scale = np.max(np.abs(w)) / q
    return scale * np.clip(np.round(w / scale), -q, q)


@every_spec
def test_values_are_those_of_the_formula(spec):
    w = weights()
    expected = np.stack([reference(part, spec) for part in rows(w, spec).numpy()]).reshape(w.shape)
    np.testing.assert_allclose(fake_quant_weight(w, spec).numpy(), expected, rtol=1e-12, atol=1e-15)


@every_spec
def test_levels_fit_the_kind(spec):
    count = {"absmax": 2 ** (spec.bits or 0), "binary_residual": 4}.get(spec.kind, 3)
    for w in (weights(), weights().round()):  # rounded: many weights are exactly zero
        for part in rows(fake_quant_weight(w, spec), spec):
            assert len(part.unique()) <= count


@every_spec
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_type_and_shape_are_kept_and_the_input_is_not_changed(spec, dtype):
    w = weights(dtype=dtype)
    before = w.clone()
    quantized = fake_quant_weight(w, spec)
    assert quantized.dtype == dtype
    assert quantized.shape == w.shape
    assert torch.equal(w, before)
    strided = weights(21, 5, dtype).t()
    # sums may be taken in another order
    torch.testing.assert_close(fake_quant_weight(strided, spec), fake_quant_weight(strided.contiguous(), spec))


@every_spec
def test_autocast_changes_nothing(spec):
    w = weights(dtype=torch.float32)
    expected = fake_quant_weight(w, spec)
    with torch.autocast("cpu", torch.bfloat16):
        assert torch.equal(fake_quant_weight(w, spec), expected)


@every_spec
@pytest.mark.parametrize("clamp", [False, True])
def test_gradient_is_the_identity_or_clamped(spec, clamp):
    w = weights().requires_grad_()
    grad = 2 * weights(21, 5).t()
    fake_quant_weight(w, spec.updated(clamp_gradient=clamp)).backward(grad)
    assert torch.equal(w.grad, grad.clamp(-1, 1) if clamp else grad)


@every_spec
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64, torch.bfloat16])
def test_a_row_of_zeros_stays_zero(spec, dtype):
    w = weights(dtype=dtype)
    w[2] = 0
    quantized = fake_quant_weight(w, spec)
    assert quantized.isfinite().all()
    if spec.granularity != "per_tensor":
        assert torch.equal(quantized[2], torch.zeros_like(quantized[2]))
    zeros = torch.zeros_like(w)
    assert torch.equal(fake_quant_weight(zeros, spec), zeros)


@pytest.mark.parametrize("spec", [s for s in SPECS if s.kind != "binary_residual"], ids=str)
def test_codes_times_scales_are_the_quantized_weights(spec):
    w = weights(dtype=torch.float32)
    codes, scale = weight_codes(w, spec)
    assert codes.dtype == torch.int8
    assert codes.shape == w.shape
    assert torch.equal((rows(codes, spec) * scale).reshape(w.shape), fake_quant_weight(w, spec))


def test_binary_residual_has_no_codes():
    with pytest.raises(ValueError, match="no single integer code"):
        weight_codes(weights(), WeightQuant(kind="binary_residual"))


@pytest.mark.parametrize("kind", ["absmax", "ternary_absmean"])
def test_error_is_at_most_half_a_step(kind):
    bits = 4 if kind == "absmax" else None
    w = weights() if kind == "absmax" else weights().clamp(-0.5, 0.5)
    codes, scale = weight_codes(w, WeightQuant(kind=kind, bits=bits))
    inside = w.abs() <= scale * (7 if kind == "absmax" else 1.5)
    assert inside.all()
    assert torch.all((codes * scale - w).abs() <= scale / 2 * (1 + 1e-12))


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_the_threshold_itself_is_kept_and_the_value_below_is_not(dtype):
    w = torch.tensor([[1.0, 3.0, -2.0, 2.0]], dtype=dtype)  # mean 2, tau = 1
    codes, scale = weight_codes(w, WeightQuant(threshold=0.5))
    assert codes.tolist() == [[1, 1, -1, 1]]
    assert scale.item() == 2.0
    below = torch.nextafter(w[0, 0], torch.zeros((), dtype=dtype))
    w[0, :2] = torch.stack([below, 4 - below])  # the mean stays 2
    codes, scale = weight_codes(w, WeightQuant(threshold=0.5))
    assert codes.tolist() == [[0, 1, -1, 1]]
    assert scale.item() == pytest.approx(7 / 3)


def test_quantizing_ternary_weights_again_changes_nothing():
    for spec in (WeightQuant(), WeightQuant(kind="absmax", bits=4)):
        once = fake_quant_weight(weights(), spec)
        torch.testing.assert_close(fake_quant_weight(once, spec), once, rtol=1e-14, atol=0)


def test_one_bit_has_no_third_level_for_zero():
    w = torch.tensor([[0.0, 2.0, -1.0, 1.0]])
    assert fake_quant_weight(w, WeightQuant(kind="absmax", bits=1)).tolist() == [[1.0, 1.0, -1.0, 1.0]]


def test_a_group_must_divide_the_width_and_may_exceed_it():
    spec = WeightQuant(kind="absmax", bits=4, granularity="per_group", group_size=8)
    with pytest.raises(ValueError, match="group_size=8 does not divide the input width 21"):
        fake_quant_weight(weights(), spec)
    whole = spec.updated(group_size=128)
    per_channel = WeightQuant(kind="absmax", bits=4)
    assert torch.equal(fake_quant_weight(weights(), whole), fake_quant_weight(weights(), per_channel))
