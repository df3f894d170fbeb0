"""The variants and allocations as readers meet them: their order, their names in tables and, shorter, in figures."""

from __future__ import annotations

import math
from collections.abc import Iterable

SHORT = (
    "LR: low-rank branch; rot.: rotation; Robust: RobustQuantizer; RobuQ: Robust + LR + rot.; AMPN: bits layer by layer"
)
METHODS: dict[str, tuple[str, str]] = {  # variant -> (name in tables, name in figures), in the order of the rows
    "full_precision": ("Full precision", "Full precision"),
    "ternary_only": ("Ternary W", "Ternary W"),
    "ternary_rotation": ("Ternary W + rotation", "Ternary W + rot."),
    "ternary_low_rank_rotation": ("Ternary W + low rank + rotation", "Ternary W + LR + rot."),
    "minmax": ("Min-max", "Min-max"),
    "minmax_low_rank": ("Min-max + low rank", "Min-max + LR"),
    "minmax_rotation": ("Min-max + rotation", "Min-max + rot."),
    "baseline": ("Min-max + low rank + rotation", "Min-max + LR + rot."),
    "robust_no_rotation": ("Robust + low rank", "Robust + LR"),
    "robuq_uniform": ("Robust + low rank + rotation (RobuQ)", "RobuQ"),
    "robuq": ("RobuQ with AMPN", "RobuQ + AMPN"),
    "uniform": ("Uniform", "Uniform"),  # from here on: where RobuQ's bits come from
    "greedy": ("Greedy", "Greedy"),
    "exact": ("Exact", "Exact"),
    "paper": ("Published mean bits", "Paper"),
    "search": ("Search", "Search"),
    "exact_longer": ("Exact trained longer", "Exact, longer"),  # by all that the search took
}
WEIGHTINGS = {"macs": "MACs", "layers": "layers", "elements": "activation elements", "bops": "BOPs"}
SAMPLERS = {"tpe": "TPE", "nsga2": "NSGA-II", "cmaes": "CMA-ES", "random": "random"}


def method_name(variant: str) -> str:
    return METHODS[variant][0] if variant in METHODS else variant.replace("_", " ")


def short_name(variant: str) -> str:
    """For figures. `SHORT` spells them out."""
    return METHODS[variant][1] if variant in METHODS else variant.replace("_", " ")


def in_order(variants: Iterable[str]) -> list[str]:
    """Distinct variants, the known ones in the tables' order, then the others by name."""
    known = list(METHODS)
    return sorted(set(variants), key=lambda name: (known.index(name) if name in METHODS else len(known), name))


def bits_group(act_bits: float) -> float:
    """The width under which a row is compared: the nearest integer, since a mixed allocation of budget 2 has a plain
    mean like 2.15. NaN (activations in full precision) stays NaN."""
    return math.nan if math.isnan(act_bits) else float(round(act_bits))


def bits_name(bits: float) -> str:
    return "full-precision A" if math.isnan(bits) else f"A{bits:g}"
