"""bits.json: an allocation on the disk, with where it came from. Free of torch."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Any

from robuq.config import AmpnConfig, BitAllocation, ConfigError, ModelConfig, PrecisionMap
from robuq.cost import average_bits, layer_costs
from robuq.plain_json import read_json

MOST_BYTES = 1 << 24

if TYPE_CHECKING:  # scipy takes a while, and readers need none of it
    from robuq.ampn.allocate import Allocation
    from robuq.ampn.problem import Problem


def bits_data(
    problem: Problem, found: Allocation, ampn: AmpnConfig, model: ModelConfig, precision: PrecisionMap
) -> dict[str, Any]:
    """Plain data: `bits` by decision, `average_bits` by weighting, and how they were found."""
    bits = BitAllocation(bits=dict(zip(problem.decisions, found.bits, strict=True)))
    costs = layer_costs(model, precision, bits)
    return {
        **bits.model_dump(mode="json"),
        "average_bits": {by: average_bits(costs, by) for by in ("layers", "macs", "elements")},
        "allocator": ampn.allocator,
        "measure": ampn.measure,
        "budget": ampn.budget.model_dump(mode="json"),
        "damage": found.damage,
        "cost": found.cost,
        "limit": problem.limit,
        "optimal": found.optimal,
    }


def read_bits(file: Path) -> BitAllocation:
    """The allocation of a bits.json, or of any JSON file `{"bits": {decision: bits}}`.

    Raises:
        ConfigError: the file cannot be read or holds no bits.
    """
    try:
        content = read_json(file, MOST_BYTES)
    except (OSError, ValueError) as error:
        raise ConfigError(f"{file} cannot be read as JSON: {error}") from None
    if not isinstance(content, dict) or "bits" not in content:
        raise ConfigError(f'{file} holds no bits: it needs {{"bits": {{"transformer_blocks.0.qkv": 2, ...}}}}')
    return BitAllocation.parse({"bits": content["bits"]}, file.name)
