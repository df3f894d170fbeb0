"""What distributions.npz holds of a network, against scipy, closed forms and an enumeration of all signs."""

import io
import itertools
import math
from typing import Any

import numpy as np
import pytest
import scipy.linalg
import scipy.stats
import torch
from torch import nn

from robuq.config import (
    BLOCK_ROLES,
    MODEL_PRESETS,
    ActQuant,
    DataConfig,
    DiffusionConfig,
    LowRank,
    PrecisionMap,
    QuantSpec,
    Transform,
    WeightQuant,
    resolve_specs,
)
from robuq.data.load import ImageData, load_data
from robuq.diffusion.schedule import NoiseSchedule
from robuq.distributions import (
    BINS,
    IMAGES,
    LEAST_TOKENS,
    REACH,
    VALUES,
    WEIGHT_BINS,
    Arrays,
    binned_timesteps,
    distributions,
    expected_kurtosis,
    some_tokens,
    token_shapes,
    weight_shapes,
)
from robuq.models import DiT, build_dit
from robuq.quant.linear import QuantizedLinear
from robuq.quant.surgery import quantize_
from robuq.telemetry import block_layers, excess_kurtosis, kl_to_normal
from robuq.variants import variant

NANO = MODEL_PRESETS["nano"]
EDGES = np.sinh(np.linspace(-REACH, REACH, BINS + 1))


def normal(*shape: int, seed: int = 0) -> torch.Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


def layer(spec: QuantSpec, weight: torch.Tensor) -> QuantizedLinear:
    return QuantizedLinear(weight, None, spec, "layer", 0)


def identity(act: ActQuant | None = None, **parts: Any) -> QuantSpec:
    return QuantSpec(act=act, **parts)


# --- which tokens -------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(("count", "steps"), [(16, 1000), (1, 1000), (3, 10), (5, 2)])
def test_timesteps_lie_in_their_bins(count: int, steps: int) -> None:
    timesteps = binned_timesteps(count, steps)
    assert timesteps.shape == (10, count)
    assert 0 <= int(timesteps.min()) <= int(timesteps.max()) < steps
    if steps >= 10:
        assert torch.equal(timesteps * 10 // steps, torch.arange(10)[:, None].expand(10, count))
    assert (timesteps.flatten().diff() >= 0).all()


def test_few_tokens_are_all_kept_and_many_are_drawn_once() -> None:
    few = torch.arange(6.0).view(2, 3, 1)
    assert some_tokens(few, 0).flatten().sort().values.tolist() == [0, 1, 2, 3, 4, 5]
    many = torch.arange(3.0 * VALUES).view(3, VALUES, 1)
    kept = some_tokens(many, 0).flatten()
    assert len(kept) == len(kept.unique()) == VALUES
    assert torch.equal(kept, some_tokens(many, 0).flatten())
    assert not torch.equal(kept, some_tokens(many, 1).flatten())
    assert some_tokens(torch.zeros(1000, 2 * VALUES // LEAST_TOKENS), 0).shape[0] == LEAST_TOKENS


# --- shapes of tokens ---------------------------------------------------------------------------------------------


def test_numbers_are_those_of_the_telemetry_and_of_scipy() -> None:
    raw = (normal(80, 64).exp() * 3 + 1).float()
    shapes = token_shapes(nn.Identity(), raw)
    own = scipy.stats.kurtosis(raw.double().numpy(), axis=1)
    # stored as float32
    assert shapes["kurtosis"][0] == pytest.approx(own.mean(), rel=1e-6)
    assert shapes["kurtosis"][0] == pytest.approx(excess_kurtosis(raw), rel=1e-6)
    assert shapes["kl"][0] == pytest.approx(kl_to_normal(raw), rel=1e-6)
    assert shapes["token_kurtosis"][0] == pytest.approx(np.quantile(own, [0.1, 0.5, 0.9]), rel=1e-6)
    assert shapes["kl_floor"].tolist() == pytest.approx([63 / (2 * 80 * 64)] * 2)
    assert shapes["num_tokens"].tolist() == [80, 80]
    assert shapes["width"] == 64


def test_histogram_is_numpys() -> None:
    raw = normal(50, 32).exp()
    z = scipy.stats.zscore(raw.numpy(), axis=1)
    counts = token_shapes(nn.Identity(), raw)["histogram"][0]
    expected = np.histogram(z, EDGES)[0]
    assert counts.sum() == z.size
    assert np.abs(counts.astype(int) - expected).sum() <= 4  # float32 may move a value over an edge


def test_a_value_beyond_the_last_bin_is_counted_in_it() -> None:
    width = 8192  # a standardised token's largest value is sqrt(8191) = 90.5, beyond sinh(5) = 74.2
    raw = torch.zeros(1, width)
    raw[0, 3] = 1.0
    assert token_shapes(nn.Identity(), raw)["histogram"][0, [0, -1]].tolist() == [0, 1]


def test_the_second_state_is_behind_the_layers_own_rotation() -> None:
    spec = identity(transform=Transform(kind="random_hadamard"))
    quantized, raw = layer(spec, normal(4, 32).float()), normal(60, 32).exp().float()
    shapes = token_shapes(quantized, raw)
    turned = quantized.rotation(raw).double().numpy()
    assert shapes["kurtosis"][1] == pytest.approx(scipy.stats.kurtosis(turned, axis=1).mean(), rel=1e-5)
    still = token_shapes(layer(identity(), normal(4, 32).float()), raw)
    assert np.array_equal(still["histogram"][0], still["histogram"][1])


def test_constant_tokens_are_left_out() -> None:
    tokens = torch.cat([normal(20, 16), torch.full((5, 16), 2.0)])
    shapes = token_shapes(layer(identity(), normal(4, 16).float()), tokens.float())
    assert shapes["num_tokens"].tolist() == [20, 20]
    assert shapes["kurtosis"][0] == pytest.approx(excess_kurtosis(tokens[:20].float()), rel=1e-6)


@pytest.mark.parametrize("tokens", [torch.zeros(4, 16), torch.ones(3, 1), torch.zeros(1, 1)])
def test_nothing_but_constant_tokens_is_known_to_be_nothing(tokens: torch.Tensor) -> None:
    shapes = token_shapes(nn.Identity(), tokens)
    assert shapes["num_tokens"][0] == shapes["histogram"][0].sum() == 0
    assert all(np.isnan(shapes[name][0]).all() for name in ("kurtosis", "kl", "kl_floor", "token_kurtosis"))


def test_a_single_token() -> None:
    raw = normal(1, 64).float()
    shapes = token_shapes(nn.Identity(), raw)
    own = scipy.stats.kurtosis(raw[0].double().numpy())
    assert shapes["token_kurtosis"][0] == pytest.approx([own] * 3, rel=1e-5)


@pytest.mark.parametrize(("bits", "known"), [(1, 2), (2, 4), (4, 16), (8, 0)])
def test_levels_are_kept_as_far_as_they_can_be_drawn(bits: int, known: int) -> None:
    quantized = layer(identity(ActQuant(bits=bits, center=True)), normal(4, 64).float())
    levels = token_shapes(quantized, normal(50, 64).float())["levels"]
    assert levels.shape == (16,)
    assert (~np.isnan(levels)).sum() == known
    np.testing.assert_allclose(levels[:known], -levels[:known][::-1], atol=1e-6)


# --- the rate of the central limit theorem ------------------------------------------------------------------------


@pytest.mark.parametrize("n", [2, 4, 8])
def test_expected_kurtosis_is_the_mean_over_all_signs(n: int) -> None:
    """Every one of the 2^n draws of signs, with scipy's Hadamard matrix."""
    tokens = normal(6, n).exp().numpy()
    signs = np.array(list(itertools.product([-1, 1], repeat=n)))
    y = (tokens[:, None] * signs) @ scipy.linalg.hadamard(n) / math.sqrt(n)
    kurtosis = (y**4).mean(-1) / (y**2).mean(-1) ** 2 - 3
    assert expected_kurtosis(torch.from_numpy(tokens)) == pytest.approx(kurtosis.mean(), rel=1e-12)


def test_expected_kurtosis_by_hand() -> None:
    one_hot, even = torch.eye(7)[:2], torch.ones(3, 10)
    assert expected_kurtosis(one_hot * 5) == -2.0  # +-1 in every channel
    assert expected_kurtosis(even) == pytest.approx(-2 / 10)  # a sum of ten signs
    assert expected_kurtosis(torch.cat([one_hot, torch.zeros(4, 7)])) == -2.0
    assert math.isnan(expected_kurtosis(torch.zeros(2, 4)))


def test_expected_kurtosis_of_normal_tokens_is_minus_six_over_width() -> None:
    """K = n sum x^4 / (sum x^2)^2 of n normal values has mean 3 n / (n + 2), and variance below 24 / n."""
    n, tokens = 64, 4000
    tolerance = 4 * 2 / n * math.sqrt(24 / n / tokens)
    assert expected_kurtosis(normal(tokens, n)) == pytest.approx(-6 / (n + 2), abs=tolerance)


# --- shapes of weights --------------------------------------------------------------------------------------------


def test_normal_weights_under_the_threshold_rule() -> None:
    """tau = E|w| / 2 = .3989 deviations: all that follows is the normal's."""
    tau = math.sqrt(2 / math.pi) / 2
    kept = 2 * scipy.stats.norm.sf(tau)
    level = 2 * scipy.stats.norm.pdf(tau) / kept / tau
    shapes = weight_shapes(layer(identity(weight=WeightQuant()), normal(256, 1024).float()))
    error = 4 / math.sqrt(256 * 1024)
    assert shapes["weight_codes"].tolist() == pytest.approx([kept / 2, 1 - kept, kept / 2], abs=error / 2)
    assert shapes["weight_level"] == pytest.approx(level, abs=level * error)
    assert shapes["weight_rms"] == pytest.approx(1 / tau, abs=error / tau)
    assert shapes["num_weights"] == 256 * 1024
    assert shapes["branch_share"] == 0.0


def test_weight_histogram_is_numpys() -> None:
    weight = normal(12, 50).exp().float()
    shapes = weight_shapes(layer(identity(weight=WeightQuant(threshold=0.7)), weight))
    w = weight.double().numpy()
    ratios = w / (0.7 * np.abs(w).mean(1, keepdims=True))
    expected = np.histogram(ratios, np.linspace(-12, 12, WEIGHT_BINS + 1))[0]
    assert np.abs(shapes["weight_histogram"].astype(int) - expected).sum() <= 2
    assert shapes["weight_codes"].tolist() == pytest.approx([0, (ratios < 1).mean(), (ratios >= 1).mean()])


def test_absmean_levels_are_two_thresholds() -> None:
    shapes = weight_shapes(layer(identity(weight=WeightQuant(kind="ternary_absmean")), normal(8, 64).float()))
    assert shapes["weight_level"] == pytest.approx(2.0)


def test_the_branch_is_taken_off_before() -> None:
    """A weight of rank one but for a little noise: the branch has nearly all of its energy."""
    weight = (normal(64, 1) @ normal(1, 64, seed=1) + 0.01 * normal(64, 64, seed=2)).float()
    quantized = layer(identity(weight=WeightQuant(), low_rank=LowRank(rank=1)), weight)
    shapes = weight_shapes(quantized)
    left, right = quantized.low_rank_left, quantized.low_rank_right
    assert left is not None
    assert right is not None
    branch = (left @ right).detach()
    assert shapes["branch_share"] == pytest.approx(float(branch.square().sum() / weight.square().sum()))
    assert shapes["branch_share"] > 0.99
    alone = weight_shapes(layer(identity(weight=WeightQuant()), weight - branch))
    assert shapes["weight_codes"] == pytest.approx(alone["weight_codes"], abs=2 / 64**2)
    assert shapes["weight_codes"][1] == pytest.approx(float((quantized.quantized_weight() == 0).double().mean()))


def test_rows_of_zeros_have_no_unit() -> None:
    weight = normal(4, 32).float()
    weight[1] = 0.0
    shapes = weight_shapes(layer(identity(weight=WeightQuant()), weight))
    assert shapes["num_weights"] == shapes["weight_histogram"].sum() == 3 * 32
    assert np.isfinite(shapes["weight_rms"])
    nothing = weight_shapes(layer(identity(weight=WeightQuant()), torch.zeros(4, 32)))
    assert nothing["num_weights"] == 0


@pytest.mark.parametrize(
    "module",
    [
        nn.Linear(8, 4),
        QuantizedLinear(torch.ones(4, 8), None, QuantSpec(), "layer", 0),
        QuantizedLinear(torch.ones(4, 8), None, QuantSpec(weight=WeightQuant(kind="absmax", bits=4)), "layer", 0),
        QuantizedLinear(torch.ones(4, 8), None, QuantSpec(weight=WeightQuant(threshold=0.0)), "layer", 0),
    ],
)
def test_weights_without_a_threshold_are_left_out(module: nn.Module) -> None:
    shapes = weight_shapes(module)
    assert shapes["num_weights"] == shapes["weight_histogram"].sum() == 0
    assert all(np.isnan(shapes[name]).all() for name in ("weight_codes", "weight_level", "weight_rms", "branch_share"))


# --- a whole network ----------------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def data() -> ImageData:
    return load_data(DataConfig())


def network(precision: PrecisionMap) -> DiT:
    model = build_dit(NANO, seed=3)
    generator = torch.Generator().manual_seed(4)
    with torch.no_grad():  # a fresh DiT's gates are zero
        for parameter in model.parameters():
            parameter.add_(torch.randn(parameter.shape, generator=generator), alpha=0.05)
    if not precision.is_full_precision():
        quantize_(model, resolve_specs(precision, NANO.num_layers), seed=0)
    return model


def measured(model: DiT, data: ImageData) -> Arrays:
    return distributions(model, data, NoiseSchedule(DiffusionConfig()))


def test_every_layer_and_bin_has_its_row(data: ImageData) -> None:
    model = network(variant("robuq_uniform"))
    arrays = measured(model, data)
    count = 4 * NANO.num_layers
    assert arrays["layer"].tolist() == list(block_layers(model))
    assert arrays["role"].tolist() == list(BLOCK_ROLES) * NANO.num_layers
    assert arrays["block"].tolist() == [i // 4 for i in range(count)]
    assert arrays["kurtosis"].shape == arrays["kl"].shape == arrays["num_tokens"].shape == (count, 10, 2)
    assert arrays["histogram"].shape == (count, 10, 2, BINS)
    tokens = min(IMAGES * NANO.num_tokens, VALUES // NANO.width)
    assert set(arrays["num_tokens"][arrays["role"] == "qkv"].ravel()) == {tokens}
    assert np.array_equal(arrays["histogram"].sum(-1), arrays["num_tokens"] * arrays["width"][..., None])
    assert arrays["timestep_edges"].tolist() == list(range(0, 1001, 100))
    assert np.isfinite(arrays["levels"][..., :4]).all()
    assert np.isnan(arrays["levels"][..., 4:]).all()
    assert (arrays["num_weights"] > 0).all()


def test_the_file_is_compact_and_needs_no_pickle(data: ImageData) -> None:
    arrays, file = measured(network(variant("full_precision")), data), io.BytesIO()
    np.savez_compressed(file, allow_pickle=False, **arrays)
    assert file.tell() < 100_000
    file.seek(0)
    with np.load(file, allow_pickle=False) as loaded:
        assert set(loaded.files) == set(arrays)
    assert (arrays["num_weights"] == 0).all()


def test_a_measurement_changes_nothing_and_can_be_repeated(data: ImageData) -> None:
    model, state = network(variant("robuq_uniform")).train(), torch.get_rng_state()
    first, second = measured(model, data), measured(model, data)
    for name, array in first.items():
        np.testing.assert_array_equal(array, second[name])
    assert model.training
    assert torch.equal(torch.get_rng_state(), state)
    assert not any(module._forward_pre_hooks for module in model.modules())


def test_rotations_alone_leave_the_raw_tokens_as_they_are(data: ImageData) -> None:
    """So every network is shown the same images, noise and timesteps."""
    rotated = QuantSpec(transform=Transform(kind="random_hadamard"))
    plain = measured(network(PrecisionMap()), data)
    turned = measured(network(PrecisionMap(qkv=rotated, proj=rotated, fc1=rotated, fc2=rotated)), data)
    # float32 rounding through the blocks, about 1e-4 of a token's size, enters the fourth power four times
    np.testing.assert_allclose(plain["kurtosis"][..., 0], turned["kurtosis"][..., 0], rtol=5e-3, atol=5e-3)
    assert np.abs(plain["kurtosis"][:, 0] - plain["kurtosis"][:, -1]).max() > 0.01  # noise levels differ
