"""What a Diffusion Transformer costs: MACs, bit operations and bytes of every layer. Free of torch.

Conventions, the same for every variant:

- MACs are per image and forward pass (one denoising step without guidance). Linear layers, the patch embedding and
  the two products of attention are counted; norms, softmax, GELU, biases and the sinusoids are not.
- BOPs = MACs x bits of one operand x bits of the other, 32 where an operand is in full precision. Attention
  multiplies activations by activations. A ternary weight has log2(3) = 1.58 bits.
- The low-rank branch is 32 x 32 bits: it sees the unquantized activation.
- The rotation of activations costs additions, not MACs: for n = b 2^k, by k butterfly steps and a dense product
  of order b, n (k + b - 1) per token. Weights are rotated once, beforehand. The signs cost nothing.
- Bytes: ternary weights are stored in 2 bits, b-bit weights in b; scales, biases, the label table and the low-rank
  factors in 32. One scale per tensor, output channel or group; residual binary has two. Rotations are made from
  their seed and steps of activations are a handful per layer: neither is counted.
- Full precision is 32 bits, with one shared timestep and label embedder.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from math import ceil
from typing import Literal

from robuq.config import (
    BLOCK_ROLES,
    EMBEDDING_MODULES,
    FINAL_MODULES,
    BitAllocation,
    ModelConfig,
    PrecisionMap,
    QuantSpec,
    Transform,
    WeightQuant,
    decision_name,
    module_names,
    resolve_specs,
)

FULL = 32  # bits of full precision
SINUSOIDS = 256  # inputs of the timestep embedder
LABEL_TABLE = "transformer_blocks.0.norm1.emb.class_embedder.embedding_table"
CLASSES = ("W x A", "A x A", "adaLN", "low rank", "other")  # precision classes of the paper's split


@dataclass(frozen=True)
class LayerCost:
    """One linear layer, or both products of one attention. Counts are per image and forward pass."""

    name: str  # block linears: `decision_name`; others: module, or transformer_blocks.3.attention
    role: str
    macs: int
    act_elements: int  # that enter; attention: q, k, v and the softmax
    weight_count: int
    weight_bits: float  # information content; attention: bits of the second operand
    stored_bits: float  # per weight
    act_bits: float
    scale_count: int = 0  # of the weights
    bias_count: int = 0
    rank: int = 0  # of the low-rank branch
    low_rank_macs: int = 0
    low_rank_count: int = 0
    rotation_ops: int = 0  # additions

    @property
    def bops(self) -> float:
        return self.macs * self.weight_bits * self.act_bits + self.low_rank_macs * FULL * FULL

    @property
    def full_precision_bops(self) -> int:
        return self.macs * FULL * FULL

    @property
    def stored_size(self) -> float:
        """bits, everything included"""
        full = self.scale_count + self.bias_count + self.low_rank_count
        return self.weight_count * self.stored_bits + full * FULL

    @property
    def precision_class(self) -> str:
        """The class of the layer's main product; its low-rank branch is in `low rank`."""
        if self.role in BLOCK_ROLES:
            return "W x A"
        return {"attention": "A x A", "adaln": "adaLN"}.get(self.role, "other")


@dataclass(frozen=True)
class CostSummary:
    """Sums over the layers; see the head of the file for the conventions."""

    macs: int  # low-rank branches included
    bops: float
    full_precision_bops: int  # of the same network unquantized
    rotation_ops: int  # additions
    parameters: int  # of the unquantized network
    weight_bytes: int  # packed
    full_precision_bytes: int
    gflops: dict[str, float]  # by precision class: 10^9 MACs x bits x bits / 32^2

    @property
    def speed_up(self) -> float:
        """Theoretical: full-precision BOPs over BOPs; no hardware is asked."""
        return self.full_precision_bops / self.bops

    @property
    def compression(self) -> float:
        """Full-precision bytes over packed bytes. RobuQ's DiT-XL/2: 9.6, where the paper has 13.2 by an unknown count.

        With log2(3) bits a ternary weight and 16 bits wherever we have 32 it would be 11.8, and 13.1 with a full-
        precision model that has a copy of the embedder in each block: near, but not the paper's number.
        """
        return self.full_precision_bytes / self.weight_bytes


def layer_costs(
    model: ModelConfig, precision: PrecisionMap, allocation: BitAllocation | None = None
) -> list[LayerCost]:
    """Every layer of a DiT, in the order of its forward pass; q, k and v are one layer D -> 3 D.

    Raises:
        ValueError: the allocation does not fit the model or the precision map.
    """
    specs = resolve_specs(precision, model.num_layers, allocation)
    costs = _embedding_costs(model, specs)
    for block in range(model.num_layers):
        costs += _block_costs(model, specs, block)
    return costs + _final_costs(model, specs)


def _block_costs(model: ModelConfig, specs: dict[str, QuantSpec], block: int) -> list[LayerCost]:
    tokens, width = model.num_tokens, model.width
    hidden = model.mlp_ratio * width
    inputs_outputs = {
        "adaln": (1, width, 6 * width),
        "qkv": (tokens, width, 3 * width),
        "attention": (tokens, 0, 0),
        "proj": (tokens, width, width),
        "fc1": (tokens, width, hidden),
        "fc2": (tokens, hidden, width),
    }
    costs = []
    for role, (rows, inputs, outputs) in inputs_outputs.items():
        name, spec = decision_name(block, role), specs.get(module_names(block, role)[0])
        cost = (
            _attention(name, model, spec) if role == "attention" else _linear(name, role, rows, inputs, outputs, spec)
        )
        costs.append(cost)
    return costs


def _embedding_costs(model: ModelConfig, specs: dict[str, QuantSpec]) -> list[LayerCost]:
    """The patch embedding, the timestep's two linears, and the table of labels with its row for no label."""
    width = model.width
    patch = model.in_channels * model.patch_size**2
    rows_inputs = ((model.num_tokens, patch), (1, SINUSOIDS), (1, width))
    linears = [
        _linear(name, "embeddings", rows, inputs, width, specs.get(name))
        for name, (rows, inputs) in zip(EMBEDDING_MODULES, rows_inputs, strict=True)
    ]
    table = LayerCost(LABEL_TABLE, "embeddings", 0, 0, (model.num_classes + 1) * width, FULL, FULL, FULL)
    return [*linears, table]


def _final_costs(model: ModelConfig, specs: dict[str, QuantSpec]) -> list[LayerCost]:
    width, patch = model.width, model.out_channels * model.patch_size**2
    modulation, projection = FINAL_MODULES
    return [
        _linear(modulation, "final", 1, width, 2 * width, specs.get(modulation)),
        _linear(projection, "final", model.num_tokens, width, patch, specs.get(projection)),
    ]


def _linear(name: str, role: str, rows: int, inputs: int, outputs: int, spec: QuantSpec | None) -> LayerCost:
    """`rows` vectors of `inputs` numbers enter, as many of `outputs` leave."""
    spec = spec or QuantSpec()
    weight, count = spec.weight, inputs * outputs
    rank = spec.low_rank.rank_of(outputs, inputs) if spec.low_rank else 0
    return LayerCost(
        name=name,
        role=role,
        macs=rows * count,
        act_elements=rows * inputs,
        weight_count=count,
        weight_bits=weight.bits_per_weight if weight else FULL,
        stored_bits=ceil(weight.bits_per_weight) if weight else FULL,
        act_bits=spec.act.bits if spec.act else FULL,
        scale_count=_scales(weight, inputs, outputs) if weight else 0,
        bias_count=outputs,
        rank=rank,
        low_rank_macs=rows * rank * (inputs + outputs),
        low_rank_count=rank * (inputs + outputs),
        rotation_ops=rows * rotation_additions(spec.transform, inputs),
    )


def _attention(name: str, model: ModelConfig, spec: QuantSpec | None) -> LayerCost:
    """q k^T and softmax(.) v: T T D MACs each."""
    tokens, width = model.num_tokens, model.width
    bits = spec.act.bits if spec and spec.act else FULL
    elements = 3 * tokens * width + model.num_heads * tokens**2
    return LayerCost(name, "attention", 2 * tokens**2 * width, elements, 0, bits, 0, bits)


def _scales(weight: WeightQuant, inputs: int, outputs: int) -> int:
    group = min(weight.group_size or inputs, inputs)
    sets = {"per_tensor": 1, "per_channel": outputs, "per_group": outputs * ceil(inputs / group)}[weight.granularity]
    return 2 * sets if weight.kind == "binary_residual" else sets


def rotation_additions(transform: Transform, width: int) -> int:
    """Additions to rotate one vector. The order is b 2^k with b = 1, or b = 4 times the order's odd part.

    Raises:
        ValueError: no Hadamard matrix of that order.
    """
    if transform.kind == "identity":
        return 0
    order = transform.block or width
    odd = order // (order & -order)
    base = 1 if odd == 1 else 4 * odd
    if order % base:
        raise ValueError(f"no Hadamard matrix of order {order}: it must be a power of two or a multiple of 4")
    steps = (order // base).bit_length() - 1
    return width * (steps + base - 1)


def summarise(costs: Iterable[LayerCost]) -> CostSummary:
    """Totals of the layers."""
    costs = list(costs)
    parameters = sum(cost.weight_count + cost.bias_count for cost in costs)
    return CostSummary(
        macs=sum(cost.macs + cost.low_rank_macs for cost in costs),
        bops=sum(cost.bops for cost in costs),
        full_precision_bops=sum(cost.full_precision_bops for cost in costs),
        rotation_ops=sum(cost.rotation_ops for cost in costs),
        parameters=parameters,
        weight_bytes=ceil(sum(cost.stored_size for cost in costs) / 8),
        full_precision_bytes=parameters * FULL // 8,
        gflops=_by_class(costs, lambda cost: cost.weight_bits * cost.act_bits / FULL**2),
    )


def _by_class(costs: Iterable[LayerCost], share: Callable[[LayerCost], float]) -> dict[str, float]:
    """10^9 MACs by precision class, each layer's times its share; the low-rank branch counts in full."""
    scaled: defaultdict[str, float] = defaultdict(float, dict.fromkeys(CLASSES, 0.0))
    for cost in costs:
        scaled[cost.precision_class] += cost.macs * share(cost) / 1e9
        scaled["low rank"] += cost.low_rank_macs / 1e9
    return dict(scaled)


def paper_gflops(costs: Iterable[LayerCost]) -> dict[str, float]:
    """GFLOPs by precision class in a convention chosen because it meets figure 2 at 4 bits; the paper's own is unknown.

    One MAC is one FLOP. Ternary W x A: MACs x activation bits / 64; A x A: MACs x bits / 32; everything else, adaLN
    and the low-rank branch included, in full. For DiT-XL/2 at 256 x 256 pixels, against what was published:

    - reproduced at one decimal: 10.5 with and 8.4 without the low-rank branch at 4 bits (10.55 and 8.43); the branch
      itself, 2.1 (2.11);
    - not reproduced: 8.4 and 6.4 at 3 and 2 bits (8.76 and 6.98), BitNet v2's 6.5 at 3 bits (6.65), the speed-up of
      17.3 at 2 bits (17.0), the split of W x A 6.92, A x A 1.01, adaLN 0.20 at 4 bits (7.13, 1.06, 0.22).

    No convention of the kind MACs x f(bits) that we tried gives the split and the figure at once: do not set
    these numbers beside the paper's in one column.

    Raises:
        ValueError: a block linear that is quantized, but not to ternary weights and quantized activations.
    """
    return _by_class(costs, _paper_share)


def _paper_share(cost: LayerCost) -> float:
    if cost.role == "attention":
        return cost.act_bits / FULL
    if cost.role not in BLOCK_ROLES or cost.weight_bits == cost.act_bits == FULL:
        return 1.0
    if cost.weight_bits != WeightQuant().bits_per_weight or cost.act_bits == FULL:
        raise ValueError(
            f"{cost.name}: W{cost.weight_bits:.3g}A{cost.act_bits:.3g} has no count in the paper: use BOPs"
        )
    return cost.act_bits / 64


def average_bits(costs: Iterable[LayerCost], weights: Literal["layers", "macs", "elements"]) -> float | None:
    """Mean activation bits of the block linears, weighted by decision, by MACs or by entering elements.

    None where no block linear quantizes its activations; one of several that does not counts as 32 bits.
    """
    block_linears = [cost for cost in costs if cost.role in BLOCK_ROLES]
    if all(cost.act_bits == FULL for cost in block_linears):
        return None
    weigh: dict[str, Callable[[LayerCost], int]] = {
        "layers": lambda cost: 1,
        "macs": lambda cost: cost.macs,
        "elements": lambda cost: cost.act_elements,
    }
    shares = [weigh[weights](cost) for cost in block_linears]
    return sum(s * cost.act_bits for s, cost in zip(shares, block_linears, strict=True)) / sum(shares)
