"""The contract that every combination of axes keeps, and parity with torchao and closed forms."""

import itertools
import math

import pytest
import torch
from gaussian_error import gaussian_mse
from torchao.quantization.quant_primitives import (
    MappingType,
    choose_qparams_affine,
    dequantize_affine,
    quantize_affine,
)

from robuq.config.quant import ActQuant
from robuq.quant.fake_quantizer import ActFakeQuantizer, fake_quant
from robuq.quant.grids import gaussian_step, levels
from robuq.quant.scales import grouped, rows, scale_and_center

RULES = ("absmax", "minmax", "absmean", "percentile", "sigma", "mad", "iqr", "gaussian", "rms", "lsq")
GRIDS = ("mid_rise", "mid_tread", "as_coded", "lloyd_max", "fp4")
PLACES = [
    ("per_token", None, "dynamic"),
    ("per_group", 7, "dynamic"),
    ("per_channel", None, "dynamic"),
    ("per_tensor", None, "dynamic"),
    ("per_channel", None, "static"),
    ("per_tensor", None, "static"),
]
WIDTH = 21
EPS = torch.finfo(torch.float32).eps


def valid_specs(rule: str, place: tuple, **fixed: str | tuple) -> list[ActQuant]:
    """Every valid combination of the other axes, at 1, 2 and 4 bits unless said otherwise."""
    granularity, group_size, mode = place
    axes = {
        "bits": (1, 2, 4),
        "grid": GRIDS,
        "center": (False, True),
        "spread": ("mean_abs", "std") if rule == "gaussian" else ("mean_abs",),
        "clip": ("hard", "tanh", "sigmoid"),
        "gradient": ("ste", "clip", "trust"),
    }
    axes.update({name: value if isinstance(value, tuple) else (value,) for name, value in fixed.items()})
    specs = []
    for values in itertools.product(*axes.values()):
        fields = dict(zip(axes, values, strict=True))
        try:
            specs.append(ActQuant(scale=rule, granularity=granularity, group_size=group_size, mode=mode, **fields))
        except ValueError:
            continue  # a combination that the configuration refuses
    return specs


CASES = [(rule, place) for rule in RULES for place in PLACES if valid_specs(rule, place, clip="hard", gradient="ste")]
every_case = pytest.mark.parametrize(
    ("rule", "place"), CASES, ids=lambda v: v if isinstance(v, str) else f"{v[0]}-{v[2]}"
)


def tokens(*shape: int, seed: int = 0, dtype: torch.dtype = torch.float32) -> torch.Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed), dtype=dtype) + 0.2


def calibrated(spec: ActQuant, width: int = WIDTH) -> ActFakeQuantizer:
    quantizer = ActFakeQuantizer(spec, width)
    quantizer.calibrate_(tokens(200, width, seed=1))
    return quantizer


def in_units(x: torch.Tensor, quantizer: ActFakeQuantizer) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    """u = (x - center) / scale, with scale and center as tensors."""
    scale, center = quantizer.scaling(x)
    center = torch.zeros_like(scale) if center is None else center
    return (grouped(x, quantizer.spec) - center) / scale, scale, center


def test_the_cases_cover_every_rule_and_place():
    assert {rule for rule, _ in CASES} == set(RULES)
    assert len(CASES) == 9 * len(PLACES) + 2  # lsq is static
    assert sum(len(valid_specs(rule, place)) for rule, place in CASES) > 8_000


@every_case
def test_output_is_exactly_a_level_times_scale_plus_center(rule, place):
    x = tokens(3, 2, WIDTH)
    for spec in valid_specs(rule, place, gradient="ste"):
        quantizer = calibrated(spec)
        _, scale, center = in_units(x, quantizer)
        allowed = levels(spec.grid, spec.bits).float() * scale.unsqueeze(-1) + center.unsqueeze(-1)
        got = grouped(quantizer(x), spec).unsqueeze(-1)
        assert torch.all((got == allowed).any(-1)), spec


@every_case
def test_at_most_two_to_the_bits_levels_per_group(rule, place):
    x = tokens(1, 700) if place[0] != "per_channel" else tokens(700, 1)
    for spec in valid_specs(rule, place, gradient="ste", clip="hard"):
        quantized = calibrated(spec, x.shape[-1])(x)
        groups = rows(quantized, spec).flatten(0, -2)[:3]
        assert max(len(group.unique()) for group in groups) <= 2**spec.bits, spec


@every_case
def test_error_is_at_most_half_a_gap_inside_the_clip_range(rule, place):
    x = tokens(3, 2, WIDTH)
    for spec in valid_specs(rule, place, gradient="ste", clip="hard", bits=(1, 2, 4, 8)):
        quantizer = calibrated(spec)
        u, scale, center = in_units(x, quantizer)
        grid = levels(spec.grid, spec.bits).float()
        inside = (u >= grid[0]) & (u <= grid[-1])
        cell = torch.searchsorted(grid, u.clamp(grid[0], grid[-1]).contiguous()).clamp(1, len(grid) - 1)
        bound = (grid[cell] - grid[cell - 1]) / 2 * scale
        rounding = 8 * EPS * ((u.abs() + 1) * scale + center.abs())
        error = (grouped(quantizer(x), spec) - grouped(x, spec)).abs()
        assert torch.all((error <= bound + rounding) | ~inside), spec


@every_case
def test_quantizing_again_at_a_fixed_scale_changes_nothing(rule, place):
    x = tokens(3, 2, WIDTH)
    for spec in valid_specs(rule, place, gradient="ste", clip="hard", bits=(1, 2, 4, 8)):
        quantizer = calibrated(spec)
        scale, center = quantizer.scaling(x)
        once = fake_quant(x, scale, center, spec)
        assert torch.equal(fake_quant(once, scale, center, spec), once), spec


@pytest.mark.parametrize("place", [place for place in PLACES if place[2] == "dynamic"], ids=lambda p: p[0])
@pytest.mark.parametrize("rule", ["absmax", "minmax"])
def test_dynamic_range_rules_are_idempotent(rule, place):
    """The extremes are levels, so that the output has the input's range. No other rule keeps its statistic."""
    x = tokens(6, WIDTH)
    for spec in valid_specs(rule, place, gradient="ste", clip="hard"):
        if spec.scale == "absmax" and spec.center:
            continue  # rounding moves the mean
        once = ActFakeQuantizer(spec, WIDTH)(x)
        again = ActFakeQuantizer(spec, WIDTH)(once)
        torch.testing.assert_close(again, once, rtol=0, atol=16 * EPS * x.abs().max().item(), msg=str(spec))


@every_case
def test_gradient_follows_its_rule(rule, place):
    x, grad = tokens(3, 2, WIDTH), tokens(3, 2, WIDTH, seed=2)
    for spec in valid_specs(rule, place, clip="hard"):
        quantizer = calibrated(spec)
        leaf = x.clone().requires_grad_()
        quantized = quantizer(leaf)
        quantized.backward(grad)
        u, _, _ = in_units(x, quantizer)
        grid = levels(spec.grid, spec.bits)
        if spec.gradient == "ste":
            passed = torch.ones_like(u, dtype=torch.bool)
        elif spec.gradient == "clip":
            passed = (u >= grid[0]) & (u <= grid[-1])
        else:  # QuEST's words: the error is at most half a step; a step is the outermost gap
            nearest = (u.double().unsqueeze(-1) - grid).abs().min(-1).values
            inside = (u >= grid[0]) & (u <= grid[-1])
            passed = inside | (nearest <= (grid[-1] - grid[-2]) / 2 * (1 + 1e-7))
        assert torch.equal(leaf.grad, grad * passed.reshape(grad.shape)), spec


@pytest.mark.parametrize(("clip", "gradient"), [("tanh", "ste"), ("sigmoid", "trust")])
@every_case
def test_smooth_clips_have_their_formula_and_its_gradient(rule, place, clip, gradient):
    x, grad = tokens(3, 2, WIDTH, dtype=torch.float64), tokens(3, 2, WIDTH, seed=2, dtype=torch.float64)
    for spec in valid_specs(rule, place, clip=clip, gradient=gradient):
        quantizer = calibrated(spec)
        u, scale, center = (t.detach() for t in in_units(x, quantizer))
        leaf = u.clone().requires_grad_()
        grid = levels(spec.grid, spec.bits)
        middle, half = 0.0, grid[-1].item() or 1.0
        if spec.scale == "minmax":  # its range is the whole grid
            middle, half = (grid[0] + grid[-1]).item() / 2, (grid[-1] - grid[0]).item() / 2
        t = (leaf - middle) / half
        smooth = t.tanh() if clip == "tanh" else 2 * torch.sigmoid(1.702 * math.sqrt(math.pi / 2) * t) - 1
        clipped = middle + half * smooth
        clipped.backward(grouped(grad, spec))
        through = x.clone().requires_grad_()
        quantized = quantizer(through)
        quantized.backward(grad)
        torch.testing.assert_close(through.grad, leaf.grad.reshape(x.shape), rtol=1e-6, atol=1e-9, msg=str(spec))
        target = clipped.detach() * scale + center
        hard = fake_quant(target.reshape(x.shape), *quantizer.scaling(x), spec.updated(clip="hard"))
        away_from_ties = (quantized - hard).abs() < 1e-9
        assert away_from_ties.double().mean() > 0.99, spec


def test_sigmoid_clip_is_near_the_gaussian_one_and_not_tanh():
    t = torch.linspace(-4, 4, 801, dtype=torch.float64)
    gaussian = 2 * torch.special.ndtr(math.sqrt(math.pi / 2) * t) - 1
    sigmoid = 2 * torch.sigmoid(1.702 * math.sqrt(math.pi / 2) * t) - 1
    assert (sigmoid - gaussian).abs().max() < 2 * 0.0096  # the logistic approximation's known error, twice
    assert (2 * torch.sigmoid(2 * t) - 1 - t.tanh()).abs().max() < 1e-15


@every_case
def test_training_and_evaluation_quantize_alike(rule, place):
    x = tokens(3, 2, WIDTH)
    for spec in valid_specs(rule, place, gradient="ste", bits=(1, 4)):
        quantizer = calibrated(spec)
        assert torch.equal(quantizer.train()(x), quantizer.eval()(x)), spec


@every_case
def test_zero_and_outlier_tokens_and_single_tokens_are_finite(rule, place):
    zero, outlier = torch.zeros(1, WIDTH), tokens(1, WIDTH)
    outlier[0, 3] = -1e6
    for spec in valid_specs(rule, place, gradient="ste", bits=(1, 4)):
        quantizer = calibrated(spec)
        for x in (zero, torch.cat([zero, outlier]), torch.full((1, WIDTH), 7.0)):
            leaf = x.clone().requires_grad_()
            quantized = quantizer(leaf)
            quantized.sum().backward()
            assert torch.all(quantized.isfinite() & leaf.grad.isfinite()), spec
        if spec.mode == "dynamic":
            assert quantizer(zero).abs().max() <= 1e-6, spec


@every_case
def test_layout_and_type_of_the_input_do_not_matter(rule, place):
    x = tokens(2, WIDTH, 5).transpose(1, 2)
    assert not x.is_contiguous()
    for spec in valid_specs(rule, place, gradient="ste", clip="hard"):
        quantizer = calibrated(spec)
        torch.testing.assert_close(quantizer(x), quantizer(x.contiguous()), msg=str(spec))
        for dtype in (torch.bfloat16, torch.float64):
            narrow = x.to(dtype)
            assert quantizer(narrow).dtype == dtype
            wide = narrow if dtype == torch.float64 else narrow.float()
            assert torch.equal(quantizer(narrow), quantizer(wide).to(dtype)), spec
        expected = quantizer(x)
        with torch.autocast("cpu", torch.bfloat16):
            assert torch.equal(quantizer(x), expected), spec


# --- closed forms and peers --------------------------------------------------------------------------------------


@pytest.mark.parametrize("spread", ["mean_abs", "std"])
@pytest.mark.parametrize("center", [False, True])
@pytest.mark.parametrize(("grid", "bits"), [(g, b) for g in GRIDS[:4] for b in (1, 2, 3, 4, 6)] + [("fp4", 4)], ids=str)
def test_gaussian_rule_has_the_closed_form_error_on_normal_samples(grid, bits, center, spread):
    n, sigma = 1 << 18, 2.5
    offset = 1.5 if center else 0.0
    generator = torch.Generator().manual_seed(bits)
    x = (sigma * torch.randn(1, n, generator=generator, dtype=torch.float64)) + offset
    spec = ActQuant(bits=bits, grid=grid, center=center, spread=spread, granularity="per_tensor")
    squares = ((ActFakeQuantizer(spec, n)(x) - x) / sigma).square()
    step, codebook = gaussian_step(grid, bits), levels(grid, bits)
    expected = gaussian_mse(step * codebook)
    # sampling error of the mean, and of sigma (mean_abs: relative variance (pi/2 - 1) / n, std: 1 / (2 n)) to
    # first order; that of the center enters a symmetric grid to second order only, another to first: half a step
    spread_error = 5 * math.sqrt((math.pi / 2 - 1) / n)
    bounds = [abs(gaussian_mse((1 + e) * step * codebook) - expected) for e in (spread_error, -spread_error)]
    center_error = step * 5 / math.sqrt(n) if center else 0.0
    tolerance = 5 * squares.std().item() / math.sqrt(n) + max(bounds) + center_error
    assert squares.mean().item() == pytest.approx(expected, abs=tolerance)


def torchao_fake_quant(x: torch.Tensor, mapping: MappingType, low: int, high: int) -> tuple[torch.Tensor, torch.Tensor]:
    """Quantize and dequantize per token; also the scale (M, 1)."""
    block = (1, x.shape[-1])
    scale, zero_point = choose_qparams_affine(x, mapping, block, torch.int8, low, high, eps=1e-8)
    codes = quantize_affine(x, block, scale, zero_point, torch.int8, low, high)
    dequantized = dequantize_affine(codes, block, scale, zero_point, torch.int8, low, high, output_dtype=x.dtype)
    return dequantized, scale.reshape(-1, 1)


@pytest.mark.parametrize("bits", [2, 3, 4, 8])
@pytest.mark.parametrize("rule", ["absmax", "minmax"])
def test_parity_with_torchao_per_token(rule, bits):
    x = tokens(257, 96)
    top = 2 ** (bits - 1) - 1
    mapping, low = (MappingType.SYMMETRIC, -top) if rule == "absmax" else (MappingType.ASYMMETRIC, -top - 1)
    expected, scale = torchao_fake_quant(x, mapping, low, top)
    spec = ActQuant(bits=bits, scale=rule, grid="mid_tread")
    torch.testing.assert_close(scale_and_center(x, spec)[0], scale, rtol=2 * EPS, atol=0)
    error = (ActFakeQuantizer(spec, 96)(x) - expected).abs() / scale
    # torchao multiplies by 1 / scale: a value within rounding of a tie may fall to the other side, one step away
    tie = ((x / scale - 0.5) - (x / scale - 0.5).round()).abs() < 2**bits * 8 * EPS
    assert torch.all((error < 2**bits * 8 * EPS) | (tie & (error < 1.001)))
    assert tie.float().mean() < 0.01


@pytest.mark.parametrize("bits", [1, 2, 3, 8])
def test_minmax_is_the_integer_formula(bits):
    """X_q = clip(round(X / s) + z, 0, 2^b - 1), z = round(-min / s), back by (X_q - z) s."""
    x = tokens(50, 33, dtype=torch.float64)
    low, high = x.aminmax(dim=-1, keepdim=True)
    s = (high - low) / (2**bits - 1)
    z = torch.round(-low / s)
    expected = ((torch.round(x / s) + z).clamp(0, 2**bits - 1) - z) * s
    torch.testing.assert_close(ActFakeQuantizer(ActQuant(bits=bits, scale="minmax", grid="mid_tread"), 33)(x), expected)


# --- learned steps -----------------------------------------------------------------------------------------------


@pytest.mark.parametrize("granularity", ["per_tensor", "per_channel"])
@pytest.mark.parametrize("bits", [2, 4])
def test_lsq_gradients_are_those_of_its_graph(bits, granularity):
    """s clip(round_ste(x / s)), by automatic differentiation, with LSQ's factor 1 / sqrt(n q) on the step."""
    spec = ActQuant(bits=bits, scale="lsq", granularity=granularity, mode="static", grid="mid_tread", gradient="clip")
    quantizer = ActFakeQuantizer(spec, WIDTH).double()
    x, grad = 2 * tokens(4, 3, WIDTH, dtype=torch.float64), tokens(4, 3, WIDTH, seed=2, dtype=torch.float64)
    quantizer.calibrate_(x / 2)  # so that some values lie outside
    q = 2 ** (bits - 1) - 1

    leaf, step = x.clone().requires_grad_(), quantizer.step.detach().clone().requires_grad_()
    clipped = (leaf / step).clamp(-q - 1, q)
    rounded = clipped + (clipped.round() - clipped).detach()
    (rounded * step).backward(grad)

    through = x.clone().requires_grad_()
    quantizer(through).backward(grad)
    torch.testing.assert_close(through.grad, leaf.grad)
    shared = x.numel() / step.numel()
    torch.testing.assert_close(quantizer.step.grad, step.grad / math.sqrt(shared * q))


@pytest.mark.parametrize(("bits", "q"), [(1, 1), (2, 1), (4, 7)])
def test_lsq_starts_at_its_published_step(bits, q):
    spec = ActQuant(bits=bits, scale="lsq", granularity="per_tensor", mode="static", grid="mid_tread")
    x = tokens(100, WIDTH)
    quantizer = ActFakeQuantizer(spec, WIDTH)
    quantizer.calibrate_(x)
    assert quantizer.step.item() == pytest.approx(2 * x.abs().mean().item() / math.sqrt(q), rel=1e-6)


def test_lsq_step_stays_positive_when_its_parameter_does_not():
    spec = ActQuant(bits=4, scale="lsq", granularity="per_tensor", mode="static", grid="mid_tread")
    quantizer = calibrated(spec)
    with torch.no_grad():
        quantizer.step.neg_()
    x = tokens(4, WIDTH)
    assert torch.equal(quantizer(x), calibrated(spec)(x))


# --- the module's state ------------------------------------------------------------------------------------------


@pytest.mark.parametrize("rule", ["gaussian", "minmax", "lsq"])
def test_static_quantizers_need_calibration_and_keep_it_in_their_state(rule):
    grid = "mid_tread" if rule != "gaussian" else "mid_rise"
    spec = ActQuant(bits=3, scale=rule, granularity="per_channel", mode="static", grid=grid, center=True)
    quantizer, x = ActFakeQuantizer(spec, WIDTH), tokens(4, WIDTH)
    assert not quantizer.is_calibrated
    with pytest.raises(RuntimeError, match="call calibrate_"):
        quantizer(x)
    source = calibrated(spec)
    assert source.is_calibrated
    quantizer.load_state_dict(source.state_dict())
    assert quantizer.is_calibrated
    assert torch.equal(quantizer(x), source(x))


def test_static_scale_is_that_of_the_calibration_and_dynamic_ones_have_no_state():
    static = calibrated(ActQuant(bits=3, granularity="per_tensor", mode="static"))
    expected, _ = scale_and_center(tokens(200, WIDTH, seed=1), static.spec)
    assert torch.equal(static.scale, expected)
    dynamic = ActFakeQuantizer(ActQuant(bits=3), WIDTH)
    before = dynamic(tokens(2, WIDTH))
    dynamic.calibrate_(100 * tokens(2, WIDTH))
    assert dynamic.is_calibrated
    assert not dynamic.state_dict()
    assert torch.equal(dynamic(tokens(2, WIDTH)), before)


def test_a_group_must_divide_the_width():
    spec = ActQuant(bits=4, scale="minmax", granularity="per_group", group_size=8, grid="mid_tread")
    with pytest.raises(ValueError, match="group_size=8 does not divide the width 21"):
        ActFakeQuantizer(spec, WIDTH)
    assert ActFakeQuantizer(spec.updated(group_size=128), WIDTH)(tokens(2, WIDTH)).shape == (2, WIDTH)
