"""How one layer is quantized, and which layer gets which quantization. Free of torch.

The axes compose: transform x scale x granularity x grid x clip x gradient. A choice that makes no sense
(a static scale per token, FP4 with 3 bits) is refused here, so that nothing below has to check again.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Annotated, Literal, Self

from pydantic import Field, model_validator

from robuq.config.base import MAX_WIDTH, Config, Seed

Bits = Annotated[int, Field(ge=1, le=8)]

TransformKind = Literal["identity", "hadamard", "random_hadamard", "block_hadamard"]
ScaleRule = Literal["absmax", "minmax", "absmean", "percentile", "sigma", "mad", "iqr", "gaussian", "rms", "lsq"]
Granularity = Literal["per_token", "per_channel", "per_tensor", "per_group"]
Grid = Literal["mid_rise", "mid_tread", "as_coded", "lloyd_max", "fp4"]
Clip = Literal["hard", "tanh", "sigmoid"]
Gradient = Literal["ste", "clip", "trust"]
WeightKind = Literal["ternary_absmean", "ternary_threshold", "absmax", "binary_residual"]

BLOCK_ROLES = ("qkv", "proj", "fc1", "fc2")
ROLES = (*BLOCK_ROLES, "attention", "adaln", "embeddings", "final")

# QuEST's clip in units of the RMS, bits 1..8, as published: the mid-rise grid's outermost level at the step that
# is MSE-optimal for N(0, 1). From 6 bits on they lie below the optimum, by 1 % at 8 bits.
QUEST_CLIP = (0.79788, 1.49353, 2.05107, 2.51393, 2.91609, 3.27660, 3.60105, 3.88494)


class Transform(Config):
    """An orthogonal change of basis of a layer's input: x -> (x * d) H / sqrt(n)."""

    kind: TransformKind = "random_hadamard"
    block: Annotated[int, Field(ge=2, le=MAX_WIDTH)] | None = None  # size of the blocks of block_hadamard
    seed: Seed = 0  # of the random signs; each layer mixes in its own name

    @model_validator(mode="after")
    def _block_goes_with_blocks(self) -> Self:
        if (self.block is not None) != (self.kind == "block_hadamard"):
            raise ValueError(f"block={self.block} with kind={self.kind!r}: set block exactly for block_hadamard")
        return self


class ActQuant(Config):
    """A fake quantizer of activations (`fake_quant`: float in, float out)."""

    bits: Bits
    scale: ScaleRule = "gaussian"
    granularity: Granularity = "per_token"
    group_size: Annotated[int, Field(ge=1, le=4 * MAX_WIDTH)] | None = None
    mode: Literal["dynamic", "static"] = "dynamic"
    grid: Grid = "mid_rise"
    clip: Clip = "hard"
    gradient: Gradient = "ste"
    center: bool = False  # subtract the group's mean (median for mad and iqr) before scaling
    spread: Literal["mean_abs", "std"] = "mean_abs"  # how `gaussian` estimates sigma
    percentile: Annotated[float, Field(gt=50, le=100)] = 99.9  # of |x|, for `percentile`
    multiple: Annotated[float, Field(gt=0, le=1e6)] = 3.0  # clip at this many sigmas, for sigma, mad and iqr

    @model_validator(mode="after")
    def _is_meaningful(self) -> Self:
        if (self.group_size is not None) != (self.granularity == "per_group"):
            raise ValueError(
                f"group_size={self.group_size} with granularity={self.granularity!r}: set it exactly for per_group"
            )
        if self.mode == "static" and self.granularity in ("per_token", "per_group"):
            raise ValueError(f"a static scale cannot be {self.granularity}: use per_tensor or per_channel, or dynamic")
        if self.scale == "lsq" and self.granularity not in ("per_tensor", "per_channel"):
            raise ValueError(f"a learned step (lsq) cannot be {self.granularity}: use per_tensor or per_channel")
        if self.scale == "lsq" and self.mode != "static":
            raise ValueError("a learned step (lsq) is initialised by calibration: set mode='static'")
        if self.grid == "fp4" and self.bits != 4:
            raise ValueError(f"grid='fp4' has 4 bits, got bits={self.bits}")
        if self.scale == "minmax" and self.grid not in ("mid_rise", "mid_tread"):
            raise ValueError(f"scale='minmax' needs grid mid_rise or mid_tread (zero point), got {self.grid!r}")
        if self.scale == "rms" and self.grid != "mid_rise":
            raise ValueError(f"scale='rms' (QuEST) needs grid='mid_rise', got {self.grid!r}")
        if self.grid == "as_coded" and self.scale != "gaussian":
            raise ValueError("grid='as_coded' is the Gaussian step on the mid-tread grid: use scale='gaussian'")
        return self


class WeightQuant(Config):
    """A fake quantizer of weights (O, I), per output channel unless said otherwise."""

    kind: WeightKind = "ternary_threshold"
    bits: Bits | None = None  # for absmax only
    granularity: Literal["per_tensor", "per_channel", "per_group"] = "per_channel"
    group_size: Annotated[int, Field(ge=1, le=4 * MAX_WIDTH)] | None = None
    threshold: Annotated[float, Field(ge=0, lt=2)] = 0.5  # ternary_threshold: tau = threshold * mean|W|
    clamp_gradient: bool = False  # clamp each weight's gradient to [-1, 1]

    @model_validator(mode="after")
    def _is_meaningful(self) -> Self:
        if (self.bits is not None) != (self.kind == "absmax"):
            raise ValueError(f"bits={self.bits} with kind={self.kind!r}: set bits exactly for absmax")
        if (self.group_size is not None) != (self.granularity == "per_group"):
            raise ValueError(
                f"group_size={self.group_size} with granularity={self.granularity!r}: set it exactly for per_group"
            )
        return self

    @property
    def bits_per_weight(self) -> float:
        """Information content of one weight: log2(3) for ternary, scales not counted."""
        if self.kind == "absmax":
            return float(self.bits or 0)
        return 2.0 if self.kind == "binary_residual" else 1.584962500721156


class LowRank(Config):
    """A full-precision branch A B beside the quantized weight, from the SVD of the rotated weight.

    Paper: r = 16 at width 1152, a share of 1/72. We: r = 16, and at most `max_share` of the weight's shorter side,
    because 16 of a small network's 64 dimensions would leave a quarter of the layer in full precision.
    """

    rank: Annotated[int, Field(ge=1, le=MAX_WIDTH)] = 16
    max_share: Annotated[float, Field(gt=0, le=1)] = 1 / 64

    def rank_of(self, out_features: int, in_features: int) -> int:
        """The rank in a layer with weight (O, I), at least 1."""
        return max(1, min(self.rank, int(self.max_share * min(out_features, in_features))))


class QuantSpec(Config):
    """Everything about one layer. `None` leaves that part in full precision."""

    act: ActQuant | None = None
    weight: WeightQuant | None = None
    transform: Transform = Transform(kind="identity")
    low_rank: LowRank | None = None

    @model_validator(mode="after")
    def _low_rank_needs_a_quantized_weight(self) -> Self:
        if self.low_rank is not None and self.weight is None:
            raise ValueError("low_rank corrects a quantized weight: set weight too, or leave low_rank out")
        return self


class PrecisionMap(Config):
    """Which role of the network gets which quantization; `None` is full precision.

    Roles: qkv, proj, fc1, fc2 (the block linears), attention (the products q k^T and softmax(.) v),
    adaln (the modulation linears), embeddings (patch and timestep), final (the two output linears).
    """

    qkv: QuantSpec | None = None
    proj: QuantSpec | None = None
    fc1: QuantSpec | None = None
    fc2: QuantSpec | None = None
    attention: QuantSpec | None = None
    adaln: QuantSpec | None = None
    embeddings: QuantSpec | None = None
    final: QuantSpec | None = None

    @model_validator(mode="after")
    def _attention_has_activations_only(self) -> Self:
        spec = self.attention
        if spec is None:
            return self
        if spec.act is None or spec.weight is not None or spec.transform.kind != "identity":
            raise ValueError("attention has no weights and no transform: give it `act` alone")
        if spec.act.mode != "dynamic" or spec.act.granularity != "per_token":
            raise ValueError(
                "attention quantizes each token as it comes: set act.mode='dynamic', granularity='per_token'"
            )
        return self

    def is_full_precision(self) -> bool:
        return all(getattr(self, role) is None for role in ROLES)


class BitAllocation(Config):
    """Activation bits of single decisions, over the precision map. Keys are `decision_name(...)`."""

    bits: Annotated[dict[str, Bits], Field(min_length=1)]


def decision_name(block: int, role: str) -> str:
    """The name of one bit decision: `transformer_blocks.3.fc1`."""
    return f"transformer_blocks.{block}.{role}"


def module_names(block: int, role: str) -> tuple[str, ...]:
    """Fully qualified names in diffusers' DiT of the modules that one role of one block covers."""
    inside = {
        "qkv": ("attn1.to_q", "attn1.to_k", "attn1.to_v"),
        "proj": ("attn1.to_out.0",),
        "fc1": ("ff.net.0.proj",),
        "fc2": ("ff.net.2",),
        "attention": ("attn1",),
        "adaln": ("norm1.linear",),
    }
    return tuple(f"transformer_blocks.{block}.{name}" for name in inside[role])


EMBEDDING_MODULES = (
    "pos_embed.proj",
    "transformer_blocks.0.norm1.emb.timestep_embedder.linear_1",
    "transformer_blocks.0.norm1.emb.timestep_embedder.linear_2",
)
FINAL_MODULES = ("proj_out_1", "proj_out_2")


def resolve_specs(
    precision: PrecisionMap, num_layers: int, allocation: BitAllocation | None = None
) -> dict[str, QuantSpec]:
    """{fully qualified module name: QuantSpec} for a DiT of `num_layers` blocks.

    Raises:
        ValueError: the allocation names a decision that the model or the precision map does not have.
    """
    specs: dict[str, QuantSpec] = {}
    wanted: Mapping[str, int] = allocation.bits if allocation else {}
    known = [decision_name(block, role) for block in range(num_layers) for role in BLOCK_ROLES]
    if unknown := sorted(set(wanted) - set(known)):
        raise ValueError(f"allocation names {unknown[0]!r}: decisions are {known[0]} ... {known[-1]}")
    for block in range(num_layers):
        for role in (*BLOCK_ROLES, "attention", "adaln"):
            spec: QuantSpec | None = getattr(precision, role)
            bits = wanted.get(decision_name(block, role))
            if bits is not None:
                spec = _with_bits(spec, bits, decision_name(block, role))
            if spec is not None:
                specs.update(dict.fromkeys(module_names(block, role), spec))
    if precision.embeddings is not None:
        specs.update(dict.fromkeys(EMBEDDING_MODULES, precision.embeddings))
    if precision.final is not None:
        specs.update(dict.fromkeys(FINAL_MODULES, precision.final))
    return specs


def _with_bits(spec: QuantSpec | None, bits: int, name: str) -> QuantSpec:
    if spec is None or spec.act is None:
        raise ValueError(f"allocation gives {name} {bits} bits, but the precision map leaves its activations alone")
    return spec.updated(act=spec.act.updated(bits=bits))


def display_label(
    precision: PrecisionMap, allocation: BitAllocation | None = None, average_bits: float | None = None
) -> str:
    """`W1.58A2`: for people to read, never parsed. A mixed allocation shows its plain mean over decisions, one that is
    still to be found the `average_bits` of its budget."""
    specs = [spec for role in BLOCK_ROLES if (spec := getattr(precision, role)) is not None]
    weights = {spec.weight.bits_per_weight if spec.weight else 32.0 for spec in specs} or {32.0}
    acts = {float(spec.act.bits) if spec.act else 32.0 for spec in specs} or {32.0}
    if allocation:
        acts = {sum(allocation.bits.values()) / len(allocation.bits)}
    if average_bits is not None:
        acts = {average_bits}
    return f"W{_range(weights)}A{_range(acts)}"


def _range(values: set[float]) -> str:
    low, high = min(values), max(values)
    return _number(low) if low == high else f"{_number(low)}-{_number(high)}"


def _number(value: float) -> str:
    return f"{value:.2f}".rstrip("0").rstrip(".")
