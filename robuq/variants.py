"""Named recipes, the rows of the ablation tables. One more is one function of a line or two.

Each maps the activation bits of the block linears to a PrecisionMap. Sources: RobuQ (arXiv 2509.23582) and,
for the comparison rows, the methods named in each docstring.
"""

from __future__ import annotations

from collections.abc import Callable

from robuq.config import (
    BLOCK_ROLES,
    ActQuant,
    AmpnConfig,
    Budget,
    ConfigError,
    LowRank,
    PrecisionMap,
    QuantSpec,
    SensitivityConfig,
    Transform,
    WeightQuant,
    did_you_mean,
)

Recipe = Callable[[int], PrecisionMap]
VARIANTS: dict[str, Recipe] = {}

IDENTITY = Transform(kind="identity")
ROTATION = Transform(kind="random_hadamard")
PLAIN_ROTATION = Transform(kind="hadamard")
TERNARY = WeightQuant(kind="ternary_threshold")

# The paper's fixed roles: attention products at 8/8, adaLN linears at 4/4.
ATTENTION_8 = QuantSpec(act=ActQuant(bits=8, scale="absmax", grid="mid_tread"))
ADALN_4 = QuantSpec(
    act=ActQuant(bits=4, scale="absmax", grid="mid_tread"),
    weight=WeightQuant(kind="absmax", bits=4),
)


def minmax_act(bits: int) -> ActQuant:
    return ActQuant(bits=bits, scale="minmax", grid="mid_tread")


def robust_act(bits: int) -> ActQuant:
    """RobustQuantizer: per token, mean and mean absolute deviation, MSE-optimal uniform step for a normal."""
    return ActQuant(bits=bits, scale="gaussian", grid="mid_rise", center=True)


def block_linears(spec: QuantSpec, **other: QuantSpec | None) -> PrecisionMap:
    """The same spec for qkv, proj, fc1 and fc2; the paper's fixed roles unless said otherwise."""
    roles: dict[str, QuantSpec | None] = {**dict.fromkeys(BLOCK_ROLES, spec)}
    return PrecisionMap(**{"attention": ATTENTION_8, "adaln": ADALN_4, **roles, **other})


def recipe(function: Recipe) -> Recipe:
    VARIANTS[function.__name__] = function
    return function


def variant(name: str, act_bits: int = 2) -> PrecisionMap:
    """The precision map of a named variant with `act_bits`-bit activations in its block linears.

    Raises:
        ConfigError: unknown name.
    """
    if name not in VARIANTS:
        raise ConfigError(f"unknown variant {name!r}{did_you_mean(name, sorted(VARIANTS))}")
    return VARIANTS[name](act_bits)


# --- the reference and the controls ---------------------------------------------------------------------------


@recipe
def full_precision(act_bits: int) -> PrecisionMap:
    """Nothing quantized; trained on for as many steps as the others."""
    return PrecisionMap()


@recipe
def ternary_only(act_bits: int) -> PrecisionMap:
    """Control: ternary weights, activations of the block linears in full precision."""
    return block_linears(QuantSpec(weight=TERNARY))


@recipe
def ternary_rotation(act_bits: int) -> PrecisionMap:
    """Control: ternary weights behind the rotation, activations of the block linears in full precision."""
    return block_linears(QuantSpec(weight=TERNARY, transform=ROTATION))


@recipe
def ternary_low_rank(act_bits: int) -> PrecisionMap:
    """Control: ternary weights and the low-rank branch, activations of the block linears in full precision."""
    return block_linears(QuantSpec(weight=TERNARY, low_rank=LowRank()))


@recipe
def ternary_low_rank_rotation(act_bits: int) -> PrecisionMap:
    """Control: all that RobuQ does to weights, activations of the block linears in full precision."""
    return block_linears(QuantSpec(weight=TERNARY, transform=ROTATION, low_rank=LowRank()))


# --- the components, added one after the other (paper, section 4, table 2a) -------------------------------------


@recipe
def minmax(act_bits: int) -> PrecisionMap:
    """Channel-wise ternary weights, per-token asymmetric min-max activations."""
    return block_linears(QuantSpec(act=minmax_act(act_bits), weight=TERNARY))


@recipe
def minmax_low_rank(act_bits: int) -> PrecisionMap:
    """minmax and the full-precision low-rank branch."""
    return block_linears(QuantSpec(act=minmax_act(act_bits), weight=TERNARY, low_rank=LowRank()))


@recipe
def minmax_rotation(act_bits: int) -> PrecisionMap:
    """minmax behind the rotation, without the low-rank branch."""
    return block_linears(QuantSpec(act=minmax_act(act_bits), weight=TERNARY, transform=ROTATION))


@recipe
def baseline(act_bits: int) -> PrecisionMap:
    """The paper's baseline: minmax, low-rank branch, rotation of every block linear's input."""
    return block_linears(QuantSpec(act=minmax_act(act_bits), weight=TERNARY, transform=ROTATION, low_rank=LowRank()))


@recipe
def robust_no_rotation(act_bits: int) -> PrecisionMap:
    """Control: RobustQuantizer and low-rank branch, no rotation."""
    return block_linears(QuantSpec(act=robust_act(act_bits), weight=TERNARY, low_rank=LowRank()))


@recipe
def robuq_uniform(act_bits: int) -> PrecisionMap:
    """RobuQ with one activation width everywhere (without AMPN)."""
    return block_linears(QuantSpec(act=robust_act(act_bits), weight=TERNARY, transform=ROTATION, low_rank=LowRank()))


@recipe
def robuq(act_bits: int) -> PrecisionMap:
    """RobuQ with AMPN: `act_bits` on average, weighted by MACs; each layer's own bits are found by sensitivity."""
    return robuq_uniform(act_bits)


AMPN_VARIANTS = ("robuq",)


def ampn(name: str, act_bits: int) -> AmpnConfig | None:
    """How the variant finds its bits; None: it has one width.

    A decision is measured while all others have the budget's width: of the cheap measures that was the one that
    ordered allocations best as training does (docs/results/digits_predictors).
    """
    if name not in AMPN_VARIANTS:
        return None
    return AmpnConfig(budget=Budget(limit=float(act_bits)), sensitivity=SensitivityConfig(reference=act_bits))


# --- comparison rows ------------------------------------------------------------------------------------------


@recipe
def bitnet_b158(act_bits: int) -> PrecisionMap:
    """BitNet b1.58: ternary per tensor by absmean; per-token absmax activations."""
    act = ActQuant(bits=act_bits, scale="absmax", grid="mid_tread")
    return block_linears(QuantSpec(act=act, weight=WeightQuant(kind="ternary_absmean", granularity="per_tensor")))


@recipe
def bitnet_v2(act_bits: int) -> PrecisionMap:
    """BitNet v2: Hadamard on the inputs of proj and fc2 only; absmean activations; ternary per tensor."""
    weight = WeightQuant(kind="ternary_absmean", granularity="per_tensor")
    act = ActQuant(bits=act_bits, scale="absmean", grid="mid_tread")
    plain = QuantSpec(act=act, weight=weight)
    rotated = QuantSpec(act=act, weight=weight, transform=PLAIN_ROTATION)
    return block_linears(plain, proj=rotated, fc2=rotated)


@recipe
def quest(act_bits: int) -> PrecisionMap:
    """QuEST's activations (Hadamard, RMS scale, mid-rise grid, trust gradient) on RobuQ's ternary weights."""
    act = ActQuant(bits=act_bits, scale="rms", grid="mid_rise", gradient="trust")
    return block_linears(QuantSpec(act=act, weight=TERNARY, transform=PLAIN_ROTATION))


@recipe
def lsq(act_bits: int) -> PrecisionMap:
    """LSQ: a learned step per layer, on RobuQ's ternary weights."""
    act = ActQuant(
        bits=act_bits, scale="lsq", granularity="per_tensor", mode="static", grid="mid_tread", gradient="clip"
    )
    return block_linears(QuantSpec(act=act, weight=TERNARY))


@recipe
def qdit(act_bits: int) -> PrecisionMap:
    """Q-DiT: asymmetric min-max in groups (of 128, or the whole width where it has no such group)."""
    act = ActQuant(bits=act_bits, scale="minmax", granularity="per_group", group_size=128, grid="mid_tread")
    weight = WeightQuant(kind="absmax", bits=4, granularity="per_group", group_size=128)
    return block_linears(QuantSpec(act=act, weight=weight))


@recipe
def binarydm(act_bits: int) -> PrecisionMap:
    """BinaryDM: weights alpha_1 sign(W) + alpha_2 sign(residual); LSQ activations."""
    act = ActQuant(
        bits=act_bits, scale="lsq", granularity="per_tensor", mode="static", grid="mid_tread", gradient="clip"
    )
    return block_linears(QuantSpec(act=act, weight=WeightQuant(kind="binary_residual")))


def robust_ptq(rule: str) -> Recipe:
    """The post-training description with one of its outlier-robust scale rules."""

    def with_rule(act_bits: int) -> PrecisionMap:
        """Static, channel-wise, outlier-robust activations on ternary weights (the post-training description)."""
        act = ActQuant.parse(
            {"bits": act_bits, "scale": rule, "granularity": "per_channel", "mode": "static", "center": True}
        )
        return block_linears(QuantSpec(act=act, weight=TERNARY))

    return with_rule


VARIANTS |= {f"robust_ptq_{rule}": robust_ptq(rule) for rule in ("percentile", "sigma", "mad", "iqr")}
