"""Per-layer measurements against closed forms and scipy."""

import math
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import scipy.special
import scipy.stats
import torch

from robuq.batches import noised_at_mixed_timesteps
from robuq.config import (
    BLOCK_ROLES,
    MODEL_PRESETS,
    ActQuant,
    DataConfig,
    DiffusionConfig,
    PrecisionMap,
    QuantSpec,
    Transform,
    resolve_specs,
)
from robuq.config.quant import Granularity
from robuq.data.load import ImageData, load_data
from robuq.diffusion.schedule import NoiseSchedule
from robuq.models import DiT, build_dit
from robuq.quant.fake_quantizer import ActFakeQuantizer
from robuq.quant.grids import gaussian_step, levels
from robuq.quant.hadamard import Rotation
from robuq.quant.surgery import quantize_
from robuq.telemetry import (
    BINS,
    LayerTelemetry,
    block_layers,
    capture_tokens,
    clip_rate,
    evenly,
    excess_kurtosis,
    kl_to_normal,
    levels_in_sigmas,
    rotated_tokens,
    sqnr_db,
)
from robuq.variants import variant

NANO = MODEL_PRESETS["nano"]


@pytest.fixture(scope="module")
def data() -> ImageData:
    return load_data(DataConfig())


@pytest.fixture(scope="module")
def schedule() -> NoiseSchedule:
    return NoiseSchedule(DiffusionConfig())


def model_with(precision: PrecisionMap | None) -> DiT:
    model = build_dit(NANO, seed=3)
    generator = torch.Generator().manual_seed(4)
    with torch.no_grad():  # a fresh DiT's gates are zero
        for parameter in model.parameters():
            parameter.add_(torch.randn(parameter.shape, generator=generator), alpha=0.05)
    if precision is not None:
        quantize_(model, resolve_specs(precision, NANO.num_layers), seed=0)
    return model


def normal(*shape: int, seed: int = 0) -> torch.Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


# --- normality ------------------------------------------------------------------------------------------------


def test_kurtosis_is_scipys_of_standardised_tokens() -> None:
    tokens = normal(50, 33).exp() * 3 + 1
    z = scipy.stats.zscore(tokens.numpy(), axis=1).ravel()
    assert excess_kurtosis(tokens) == pytest.approx(float(np.mean(z**4) - 3), rel=1e-12)


@pytest.mark.parametrize("width", [16, 64, 256])
def test_kurtosis_of_normal_tokens_is_minus_six_over_width_plus_one(width: int) -> None:
    tokens = normal(400_000 // width, width)
    # Each z^4 has variance 96 at most; tokens are independent, the values of one token nearly so.
    assert abs(excess_kurtosis(tokens) + 6 / (width + 1)) < 4 * math.sqrt(96 / tokens.numel())


def test_measures_ignore_each_tokens_own_location_and_scale() -> None:
    tokens = normal(40, 64).exp()
    moved = tokens * normal(40, 1, seed=1).exp() + 10 * normal(40, 1, seed=2)
    assert excess_kurtosis(moved) == pytest.approx(excess_kurtosis(tokens), rel=1e-9)
    assert kl_to_normal(moved) == pytest.approx(kl_to_normal(tokens), abs=1e-4)  # a value may cross a bin's edge


def test_kl_of_normal_tokens_is_the_histograms_bias() -> None:
    tokens = normal(512, 1024)
    bias = (BINS - 1) / (2 * tokens.numel())
    assert 0 <= kl_to_normal(tokens) < 5 * bias + 1e-4  # and the finite width's own 1e-6


@pytest.mark.parametrize("distribution", [scipy.stats.uniform(), scipy.stats.laplace(), scipy.stats.expon()])
def test_kl_of_other_tokens_is_that_of_their_binned_density(distribution: Any) -> None:
    """Bin i holds F(Phi^-1((i + 1) / BINS)) - F(Phi^-1(i / BINS)) of a variable that is standardised exactly."""
    edges = scipy.stats.norm.ppf(np.linspace(0, 1, BINS + 1))
    p = np.diff(distribution.cdf(distribution.mean() + distribution.std() * edges))
    binned = float(scipy.special.xlogy(p, p * BINS).sum())
    tokens = torch.from_numpy(distribution.rvs((16, 65536), random_state=np.random.default_rng(0)))
    # A token's own mean and deviation are off by 1 / sqrt(65536) = .4 %, which smears sharp edges over bins.
    assert kl_to_normal(tokens) == pytest.approx(binned, rel=0.01)


def test_kl_of_two_points_is_nearly_its_largest() -> None:
    tokens = torch.tensor([[-1.0, 1.0] * 8])
    assert kl_to_normal(tokens) == pytest.approx(math.log(BINS / 2), rel=1e-6)


def test_constant_tokens_are_left_out() -> None:
    tokens = normal(30, 16)
    with_constants = torch.cat([tokens, torch.zeros(5, 16, dtype=torch.float64), torch.ones(5, 16)])
    assert excess_kurtosis(with_constants) == excess_kurtosis(tokens)
    assert math.isnan(excess_kurtosis(torch.zeros(3, 16)))


# --- errors ---------------------------------------------------------------------------------------------------


def test_sqnr_of_a_known_error() -> None:
    x = normal(10, 10)
    assert sqnr_db(x, 0.9 * x) == pytest.approx(20.0, rel=1e-9)
    assert sqnr_db(x, x) == math.inf


@pytest.mark.parametrize("bits", [1, 2, 4])
def test_clip_rate_of_normal_tokens_is_the_tails_mass(bits: int) -> None:
    """Mid-rise levels at +-(2^b - 1) / 2 steps: beyond +-2^(b-1) steps a value is clipped."""
    tokens = normal(2000, 512).float()
    quantizer = ActFakeQuantizer(ActQuant(bits=bits, scale="gaussian", grid="mid_rise", spread="std"), 512)
    step = quantizer.scaling(tokens)[0].double().mean().item()
    expected = 2 * scipy.stats.norm.sf(2 ** (bits - 1) * step)
    spread = 5 * math.sqrt(expected / tokens.numel())
    assert clip_rate(quantizer, tokens) == pytest.approx(expected, abs=spread + 0.01 * expected)


def test_absmax_and_minmax_do_not_clip() -> None:
    tokens = normal(100, 64).float()
    for spec in (ActQuant(bits=3, scale="absmax", grid="mid_rise"), ActQuant(bits=3, scale="minmax", grid="mid_rise")):
        assert clip_rate(ActFakeQuantizer(spec, 64), tokens) == 0.0


def test_clip_rate_of_groups_and_centers() -> None:
    """One value of 8 is 100 where the others' mean distance is about 1: of 4 levels it is beyond the last."""
    tokens = torch.zeros(4, 16)
    tokens[:, ::2], tokens[:, 1::2] = 1.0, -1.0
    tokens[:, 0] = 100.0
    spec = ActQuant(bits=2, scale="gaussian", granularity="per_group", group_size=8, center=True)
    assert clip_rate(ActFakeQuantizer(spec, 16), tokens) == pytest.approx(1 / 16)


def test_levels_of_centred_gaussian_quantizers_by_hand() -> None:
    """Tokens 5 +- a have deviation a and mean deviation a: sigma is a sqrt(pi / 2), whatever a and the token's mean."""
    signs = torch.tensor([1.0, -1.0]).repeat(8)
    tokens = 5 + torch.tensor([[1.0], [3.0], [0.1]]) * signs
    for spread, sigma in (("mean_abs", math.sqrt(math.pi / 2)), ("std", 1.0)):
        quantizer = ActFakeQuantizer(ActQuant(bits=2, center=True, spread=spread), 16)
        expected = [k * gaussian_step("mid_rise", 2) * sigma for k in (-1.5, -0.5, 0.5, 1.5)]
        assert levels_in_sigmas(quantizer, tokens).tolist() == pytest.approx(expected, rel=1e-5)


def test_levels_of_normal_tokens_are_the_optimal_ones() -> None:
    """sqrt(pi / 2) E|z| / sd is 1 but for its variance of (pi / 2 - 3 / 2) / D a token, and a bias below 1 / D."""
    tokens = 2 + 3 * normal(500, 256)
    quantizer = ActFakeQuantizer(ActQuant(bits=3, center=True), 256)
    expected = levels("mid_rise", 3) * gaussian_step("mid_rise", 3)
    tolerance = 4 * math.sqrt((math.pi / 2 - 1.5) / tokens.numel()) + 1 / 256
    torch.testing.assert_close(levels_in_sigmas(quantizer, tokens), expected, rtol=tolerance, atol=1e-6)


def test_levels_without_center_and_with_a_zero_point() -> None:
    """Token 0 1 2 3: mean 1.5, variance 1.25; minmax at 2 bits has these very levels, as has absmax with step 3."""
    tokens, sd = torch.tensor([[0.0, 1.0, 2.0, 3.0]]), math.sqrt(1.25)
    for scale, values in (("minmax", [0, 1, 2, 3]), ("absmax", [-6, -3, 0, 3])):
        quantizer = ActFakeQuantizer(ActQuant(bits=2, scale=scale, grid="mid_tread"), 4)
        expected = [(value - 1.5) / sd for value in values]
        assert levels_in_sigmas(quantizer, tokens).tolist() == pytest.approx(expected, abs=1e-6)


@pytest.mark.parametrize("granularity", ["per_tensor", "per_channel"])
def test_static_levels_are_the_mean_over_tokens(granularity: Granularity) -> None:
    """Tokens with deviations 1 and 2 under one scale s: in units of each they lie at k s and k s / 2."""
    spec = ActQuant(bits=2, scale="absmax", granularity=granularity, mode="static", grid="mid_tread")
    quantizer = ActFakeQuantizer(spec, 2)
    quantizer.calibrate_(torch.tensor([[2.0, -2.0], [1.0, -1.0]]))  # scale 2: the highest level of 2 bits is 1
    tokens = torch.tensor([[1.0, -1.0], [2.0, -2.0], [7.0, 7.0]])  # the constant one has no unit
    assert levels_in_sigmas(quantizer, tokens).tolist() == pytest.approx([k * 2 * 0.75 for k in (-2, -1, 0, 1)])


def test_levels_of_groups_and_learned_steps() -> None:
    """Groups of a token, deviation 3 and 1 by hand: the token's variance is their mean square, 5."""
    tokens = torch.tensor([[3.0, -3.0, 1.0, -1.0]])
    spec = ActQuant(bits=2, scale="absmax", granularity="per_group", group_size=2, grid="mid_tread")
    found = levels_in_sigmas(ActFakeQuantizer(spec, 4), tokens)
    assert found.tolist() == pytest.approx([k * 2 / math.sqrt(5) for k in (-2, -1, 0, 1)])
    learned = ActFakeQuantizer(ActQuant(bits=2, scale="lsq", granularity="per_tensor", mode="static"), 4)
    learned.calibrate_(tokens)
    step = 2 * 2 / math.sqrt(1.5)  # LSQ's start, 2 E|x| / sqrt(q)
    expected = [k * step / math.sqrt(5) for k in (-1.5, -0.5, 0.5, 1.5)]
    assert levels_in_sigmas(learned, tokens).tolist() == pytest.approx(expected)
    assert not levels_in_sigmas(learned, tokens).requires_grad


# --- capturing ------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(("count", "rows"), [(3, [0, 3, 6]), (10, list(range(10))), (99, list(range(10)))])
def test_evenly(count: int, rows: list[int]) -> None:
    tokens = torch.arange(10.0)[:, None]
    assert evenly(tokens, count).flatten().tolist() == [float(row) for row in rows]


@pytest.mark.parametrize("precision", [None, variant("robuq_uniform"), variant("bitnet_v2")])
def test_each_block_linear_is_seen_once_by_its_role(precision: PrecisionMap | None) -> None:
    layers = block_layers(model_with(precision))
    assert list(layers.values()) == list(BLOCK_ROLES) * NANO.num_layers
    assert all(name.startswith(f"transformer_blocks.{i // 4}.") for i, name in enumerate(layers))


def test_mixed_precision_maps_keep_their_roles() -> None:
    spec = QuantSpec(act=ActQuant(bits=4))
    for role in BLOCK_ROLES:
        layers = block_layers(model_with(PrecisionMap.parse({role: spec.model_dump(mode="json")})))
        assert list(layers.values()) == list(BLOCK_ROLES) * NANO.num_layers


def test_captured_tokens_are_the_inputs(data: ImageData, schedule: NoiseSchedule) -> None:
    """Linear layers are linear: what they make of the captured tokens is what they gave out."""
    model = model_with(None).eval()
    outputs: dict[str, torch.Tensor] = {}
    name = "transformer_blocks.1.ff.net.2"
    handle = model.get_submodule(name).register_forward_hook(lambda _m, _i, out: outputs.update({name: out}))
    images, timesteps = noised_at_mixed_timesteps(data.train_images[:6], schedule, torch.Generator().manual_seed(0))
    tokens = capture_tokens(model, images, timesteps, data.train_labels[:6], [name], 10_000)[name]
    handle.remove()
    assert tokens.shape == (6 * NANO.num_tokens, 4 * NANO.width)
    assert torch.equal(model.get_submodule(name)(tokens), outputs[name].detach().flatten(0, 1))
    assert not any(module._forward_pre_hooks for module in model.modules())


def test_full_precision_attention_input_is_that_of_the_quantized_one(data: ImageData, schedule: NoiseSchedule) -> None:
    """Rotations alone change nothing: both models' raw tokens agree, and rotated ones are their rotation."""
    rotated = QuantSpec(transform=Transform(kind="random_hadamard"))
    plain, turned = model_with(None), model_with(PrecisionMap(qkv=rotated, proj=rotated, fc1=rotated, fc2=rotated))
    images, timesteps = noised_at_mixed_timesteps(data.train_images[:4], schedule, torch.Generator().manual_seed(0))
    inputs = (images, timesteps, data.train_labels[:4])
    first = capture_tokens(plain.eval(), *inputs, list(block_layers(plain)), 20)
    second = capture_tokens(turned.eval(), *inputs, list(block_layers(turned)), 20)
    for a, (name, b) in zip(first.values(), second.items(), strict=True):
        torch.testing.assert_close(a, b, rtol=0, atol=1e-4 * float(a.abs().max()))
        layer = turned.get_submodule(name)
        assert torch.equal(rotated_tokens(layer, b), layer.rotation(b).detach())


def test_full_precision_layers_are_shown_behind_a_random_rotation() -> None:
    tokens = torch.zeros(3, 64)
    tokens[:, 5] = 8.0
    rotated = rotated_tokens(torch.nn.Linear(64, 2), tokens)
    torch.testing.assert_close(rotated.abs(), torch.ones(3, 64))
    assert torch.equal(rotated, Rotation(Transform(kind="random_hadamard"), 64, 0)(tokens))


# --- rows -----------------------------------------------------------------------------------------------------


def telemetry(model: DiT, data: ImageData, schedule: NoiseSchedule) -> LayerTelemetry:
    return LayerTelemetry(model, data, schedule, 0, torch.device("cpu"))


def test_rows_of_a_full_precision_model(data: ImageData, schedule: NoiseSchedule) -> None:
    model = model_with(None).train()
    rows = telemetry(model, data, schedule).measure(model, 7)
    assert len(rows) == 4 * NANO.num_layers
    keys = {"step", "layer", "role", "kurtosis_raw", "kurtosis_rotated", "kl_raw", "kl_rotated"}
    assert all(row.keys() == keys and row["step"] == 7 for row in rows)
    assert model.training


def test_rows_of_a_quantized_model_count_zeros_and_flips(data: ImageData, schedule: NoiseSchedule) -> None:
    model = model_with(variant("robuq_uniform"))
    measured = telemetry(model, data, schedule)
    first = measured.measure(model, 0)
    rows = {row["layer"]: row for row in first}
    qkv = model.get_submodule("transformer_blocks.0.attn1.to_qkv")
    zero = (qkv.quantized_weight() == 0).double().mean().item()
    assert rows["transformer_blocks.0.attn1.to_qkv"]["zero_rate"] == zero
    assert 0.1 < zero < 0.9
    assert all("flip_rate" not in row and 5 < row["sqnr_db"] < 15 and 0 < row["clip_rate"] < 0.1 for row in first)
    with torch.no_grad():  # with the branch negated too, each code that is not zero changes its sign
        qkv.weight.neg_()
        qkv.low_rank_left.neg_()
    second = {row["layer"]: row for row in measured.measure(model, 5)}
    assert second["transformer_blocks.0.attn1.to_qkv"]["flip_rate"] == pytest.approx(1 - zero, abs=1e-12)
    assert second["transformer_blocks.1.ff.net.2"]["flip_rate"] == 0.0


def test_measures_that_make_no_sense_are_left_out(data: ImageData, schedule: NoiseSchedule) -> None:
    weights_in_eight_bits = variant("qdit", 8)
    model = model_with(weights_in_eight_bits)
    rows = telemetry(model, data, schedule).measure(model, 0)
    assert all("zero_rate" not in row and "sqnr_db" in row for row in rows)
    assert all(math.isfinite(value) for row in rows for value in row.values() if isinstance(value, float))


def test_measuring_twice_gives_the_same(tmp_path: Path, data: ImageData, schedule: NoiseSchedule) -> None:
    model = model_with(variant("minmax"))
    assert telemetry(model, data, schedule).measure(model, 0) == telemetry(model, data, schedule).measure(model, 0)
