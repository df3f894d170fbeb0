"""Quantization settings: what makes no sense is refused, what is accepted works, and who gets which."""

from __future__ import annotations

import itertools
import math
from typing import Any

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from robuq.config import (
    BLOCK_ROLES,
    EMBEDDING_MODULES,
    FINAL_MODULES,
    ROLES,
    ActQuant,
    BitAllocation,
    ConfigError,
    LowRank,
    PrecisionMap,
    QuantSpec,
    Transform,
    WeightQuant,
    decision_name,
    display_label,
    module_names,
    resolve_specs,
)
from robuq.quant.fake_quantizer import ActFakeQuantizer
from robuq.quant.weight_quantizer import fake_quant_weight

ACT_AXES = {
    "bits": st.integers(1, 8),
    "scale": st.sampled_from(
        ["absmax", "minmax", "absmean", "percentile", "sigma", "mad", "iqr", "gaussian", "rms", "lsq"]
    ),
    "granularity": st.sampled_from(["per_token", "per_channel", "per_tensor", "per_group"]),
    "mode": st.sampled_from(["dynamic", "static"]),
    "grid": st.sampled_from(["mid_rise", "mid_tread", "as_coded", "lloyd_max", "fp4"]),
    "clip": st.sampled_from(["hard", "tanh", "sigmoid"]),
    "gradient": st.sampled_from(["ste", "clip", "trust"]),
    "center": st.booleans(),
    "spread": st.sampled_from(["mean_abs", "std"]),
    "percentile": st.floats(50, 100, exclude_min=True),
    "multiple": st.floats(0.1, 10),
}
WEIGHT_AXES = {
    "kind": st.sampled_from(["ternary_absmean", "ternary_threshold", "absmax", "binary_residual"]),
    "bits": st.none() | st.integers(1, 8),
    "granularity": st.sampled_from(["per_tensor", "per_channel", "per_group"]),
    "threshold": st.floats(0, 2, exclude_max=True),
    "clamp_gradient": st.booleans(),
}


def accepted(kind: type[ActQuant] | type[WeightQuant], values: dict[str, Any]) -> Any:
    """The value, or None where it is refused."""
    group = 8 if values["granularity"] == "per_group" else None
    try:
        return kind.parse({**values, "group_size": group})
    except ConfigError:
        return None


@given(st.fixed_dictionaries(ACT_AXES))
def test_what_is_accepted_of_activations_can_be_used(values: dict[str, Any]) -> None:
    spec = accepted(ActQuant, values)
    if spec is not None:
        assert ActQuant.model_validate_json(spec.to_json()) == spec
        tokens = torch.randn(6, 16, generator=torch.Generator().manual_seed(0))
        quantizer = ActFakeQuantizer(spec, 16)
        quantizer.calibrate_(tokens)
        assert quantizer(tokens).isfinite().all()


@given(st.fixed_dictionaries(WEIGHT_AXES))
def test_what_is_accepted_of_weights_can_be_used(values: dict[str, Any]) -> None:
    spec = accepted(WeightQuant, values)
    if spec is not None:
        assert WeightQuant.model_validate_json(spec.to_json()) == spec
        weight = torch.randn(4, 16, generator=torch.Generator().manual_seed(0))
        assert fake_quant_weight(weight, spec).isfinite().all()
        assert 1 <= spec.bits_per_weight <= 8


def test_as_many_combinations_are_accepted_as_the_rules_leave() -> None:
    """Counted by hand at 4 bits: for each granularity and mode, pairs of scale and grid."""
    count = 0
    for scale, granularity, mode, grid in itertools.product(
        ("absmax", "minmax", "absmean", "percentile", "sigma", "mad", "iqr", "gaussian", "rms", "lsq"),
        ("per_token", "per_channel", "per_tensor", "per_group"),
        ("dynamic", "static"),
        ("mid_rise", "mid_tread", "as_coded", "lloyd_max", "fp4"),
    ):
        axes = {"scale": scale, "granularity": granularity, "mode": mode, "grid": grid}
        count += accepted(ActQuant, {"bits": 4, **axes}) is not None
    free = 6 * 4 + 2 + 5 + 1  # absmax .. iqr on all grids but as_coded; minmax on 2; gaussian on 5; rms on 1
    assert count == 6 * free + 2 * 4  # 4 granularities dynamic, 2 static; lsq: static per channel or tensor, 4 grids


@pytest.mark.parametrize(
    ("values", "message"),
    [
        ({"group_size": 8}, "group_size=8 with granularity='per_token': set it exactly for per_group"),
        ({"granularity": "per_group"}, "group_size=None with granularity='per_group'"),
        ({"mode": "static"}, "a static scale cannot be per_token: use per_tensor or per_channel, or dynamic"),
        ({"mode": "static", "granularity": "per_group", "group_size": 8}, "a static scale cannot be per_group"),
        ({"scale": "lsq"}, "a learned step (lsq) cannot be per_token: use per_tensor or per_channel"),
        ({"scale": "lsq", "granularity": "per_tensor"}, "initialised by calibration: set mode='static'"),
        ({"grid": "fp4"}, "grid='fp4' has 4 bits, got bits=2"),
        ({"scale": "minmax", "grid": "fp4", "bits": 4}, "needs grid mid_rise or mid_tread (zero point), got 'fp4'"),
        ({"scale": "minmax", "grid": "lloyd_max"}, "needs grid mid_rise or mid_tread (zero point), got 'lloyd_max'"),
        ({"scale": "rms", "grid": "mid_tread"}, "scale='rms' (QuEST) needs grid='mid_rise', got 'mid_tread'"),
        ({"scale": "absmax", "grid": "as_coded"}, "grid='as_coded' is the Gaussian step on the mid-tread grid"),
        ({"bits": 0}, "bits: input should be greater than or equal to 1, got 0"),
        ({"bits": 9}, "bits: input should be less than or equal to 8, got 9"),
        ({"percentile": 50}, "percentile: input should be greater than 50"),
        ({"percentile": 100.1}, "percentile: input should be less than or equal to 100"),
        ({"multiple": 0}, "multiple: input should be greater than 0"),
        ({"grid": "midrise"}, "grid: input should be 'mid_rise', 'mid_tread', 'as_coded', 'lloyd_max' or 'fp4'"),
    ],
)
def test_activations_that_make_no_sense(values: dict[str, Any], message: str) -> None:
    with pytest.raises(ConfigError) as caught:
        ActQuant.parse({"bits": 2, **values})
    assert message in str(caught.value)
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize(
    ("values", "message"),
    [
        ({"bits": 4}, "bits=4 with kind='ternary_threshold': set bits exactly for absmax"),
        ({"kind": "absmax"}, "bits=None with kind='absmax': set bits exactly for absmax"),
        ({"group_size": 8}, "group_size=8 with granularity='per_channel': set it exactly for per_group"),
        ({"granularity": "per_group"}, "group_size=None with granularity='per_group'"),
        ({"threshold": 2}, "threshold: input should be less than 2"),
        ({"kind": "absmax", "bits": 9}, "bits: input should be less than or equal to 8"),
    ],
)
def test_weights_that_make_no_sense(values: dict[str, Any], message: str) -> None:
    with pytest.raises(ConfigError) as caught:
        WeightQuant.parse(values)
    assert message in str(caught.value)


@pytest.mark.parametrize(
    ("kind", "values", "message"),
    [
        (Transform, {"block": 8}, "block=8 with kind='random_hadamard': set block exactly for block_hadamard"),
        (Transform, {"kind": "block_hadamard"}, "block=None with kind='block_hadamard'"),
        (QuantSpec, {"low_rank": {}}, "low_rank corrects a quantized weight: set weight too, or leave low_rank out"),
        (LowRank, {"rank": 0}, "rank: input should be greater than or equal to 1"),
        (BitAllocation, {"bits": {"transformer_blocks.0.fc1": 9}}, "less than or equal to 8"),
    ],
)
def test_parts_that_make_no_sense(kind: Any, values: dict[str, Any], message: str) -> None:
    with pytest.raises(ConfigError) as caught:
        kind.parse(values)
    assert message in str(caught.value)


@pytest.mark.parametrize(
    ("attention", "message"),
    [
        ({}, "attention has no weights and no transform: give it `act` alone"),
        ({"act": {"bits": 8}, "weight": {}}, "attention has no weights and no transform"),
        ({"act": {"bits": 8}, "transform": {"kind": "hadamard"}}, "attention has no weights and no transform"),
        (
            {"act": {"bits": 8, "mode": "static", "granularity": "per_tensor"}},
            "set act.mode='dynamic', granularity='per_token'",
        ),
        ({"act": {"bits": 8, "granularity": "per_tensor"}}, "attention quantizes each token as it comes"),
    ],
)
def test_attention_has_dynamic_activations_alone(attention: dict[str, Any], message: str) -> None:
    with pytest.raises(ConfigError) as caught:
        PrecisionMap.parse({"attention": attention})
    assert message in str(caught.value)


# --- small functions --------------------------------------------------------------------------------------------


def test_bits_per_weight() -> None:
    assert WeightQuant().bits_per_weight == math.log2(3)
    assert WeightQuant(kind="binary_residual").bits_per_weight == 2
    assert WeightQuant(kind="absmax", bits=5).bits_per_weight == 5


@pytest.mark.parametrize(
    ("rank", "share", "shape", "expected"),
    [(16, 1 / 16, (1152, 1152), 16), (16, 1 / 16, (256, 64), 4), (16, 1 / 16, (64, 8), 1), (3, 1, (8, 64), 3)],
)
def test_rank_in_a_layer(rank: int, share: float, shape: tuple[int, int], expected: int) -> None:
    assert LowRank(rank=rank, max_share=share).rank_of(*shape) == expected


def test_full_precision_is_nothing_at_all() -> None:
    assert PrecisionMap().is_full_precision()
    for role in ROLES:
        assert not PrecisionMap.parse({role: {"act": {"bits": 8}}}).is_full_precision()


# --- who gets which ---------------------------------------------------------------------------------------------


def spec(bits: int, **changes: Any) -> QuantSpec:
    return QuantSpec(act=ActQuant(bits=bits), weight=WeightQuant(), **changes)


def test_every_role_reaches_its_modules_in_every_block() -> None:
    roles = {role: spec(place + 1) for place, role in enumerate(ROLES) if role != "attention"}
    precision = PrecisionMap(**roles, attention=QuantSpec(act=ActQuant(bits=8)))
    specs = resolve_specs(precision, 2)
    expected: dict[str, QuantSpec | None] = {}
    for block in range(2):
        for role in (*BLOCK_ROLES, "attention", "adaln"):
            expected |= dict.fromkeys(module_names(block, role), getattr(precision, role))
    expected |= dict.fromkeys(EMBEDDING_MODULES, roles["embeddings"]) | dict.fromkeys(FINAL_MODULES, roles["final"])
    assert specs == expected
    assert len(specs) == 2 * (3 + 1 + 1 + 1 + 1 + 1) + 3 + 2
    assert resolve_specs(PrecisionMap(), 5) == {}


def test_an_allocation_changes_the_bits_of_its_decisions_alone() -> None:
    precision = PrecisionMap(qkv=spec(2), fc1=spec(2))
    specs = resolve_specs(precision, 2, BitAllocation(bits={decision_name(1, "qkv"): 4}))
    changed = {name for name, value in specs.items() if value != spec(2)}
    assert changed == set(module_names(1, "qkv"))
    assert {specs[name] for name in changed} == {spec(4)}


@pytest.mark.parametrize(
    ("decision", "message"),
    [
        ("transformer_blocks.2.qkv", r"allocation names 'transformer_blocks\.2\.qkv': decisions are .*0\.qkv \.\.\. "),
        ("transformer_blocks.0.adaln", r"allocation names 'transformer_blocks\.0\.adaln'"),
        ("transformer_blocks.0.fc1", r"gives transformer_blocks\.0\.fc1 4 bits, but .* leaves its activations alone"),
        ("transformer_blocks.0.fc2", r"gives transformer_blocks\.0\.fc2 4 bits"),
    ],
)
def test_an_allocation_without_a_decision_to_make(decision: str, message: str) -> None:
    precision = PrecisionMap(qkv=spec(2), fc2=QuantSpec(weight=WeightQuant()))
    with pytest.raises(ValueError, match=message):
        resolve_specs(precision, 2, BitAllocation(bits={decision: 4}))


def test_labels() -> None:
    absmax = QuantSpec(weight=WeightQuant(kind="absmax", bits=4))
    assert display_label(PrecisionMap()) == "W32A32"
    assert display_label(PrecisionMap(qkv=spec(2), fc1=spec(2))) == "W1.58A2"
    assert display_label(PrecisionMap(qkv=spec(2), fc1=spec(4))) == "W1.58A2-4"
    assert display_label(PrecisionMap(qkv=absmax, fc1=QuantSpec(weight=WeightQuant()))) == "W1.58-4A32"
    allocation = BitAllocation(
        bits={decision_name(0, "qkv"): 2, decision_name(1, "qkv"): 3, decision_name(2, "qkv"): 3}
    )
    assert display_label(PrecisionMap(qkv=spec(2)), allocation) == "W1.58A2.67"
