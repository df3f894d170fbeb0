"""The variants and allocations as readers meet them: their order, their names in tables and, shorter, in figures."""

from __future__ import annotations

import math
from collections.abc import Iterable

SHORT = (
    "Baseline: min-max + LR + rot.; LR: low-rank branch; rot.: rotation; Robust: RobustQuantizer; RobuQ: Robust + LR + "
    "rot.; AMPN: bits layer by layer (≤ 4: of 1 to 4 bits)"
)
METHODS: dict[str, tuple[str, str]] = {  # variant -> (name in tables, name in figures), in the order of the rows
    "full_precision": ("Full precision", "Full precision"),
    "ternary_only": ("Ternary W", "Ternary W"),
    "ternary_rotation": ("Ternary W + rotation", "Ternary W + rot."),
    "ternary_low_rank": ("Ternary W + low rank", "Ternary W + LR"),
    "ternary_low_rank_rotation": ("Ternary W + low rank + rotation", "Ternary W + LR + rot."),
    "ptq_minmax": ("PTQ min-max, 4-bit W", "PTQ min-max"),  # from here on: other methods' quantizers
    "ptq_percentile": ("PTQ percentile", "PTQ percentile"),
    "ptq_robuq": ("PTQ RobuQ", "PTQ RobuQ"),
    "robust_ptq_percentile": ("Channel-wise percentile", "Percentile"),
    "robust_ptq_sigma": ("Channel-wise 3 sigmas", "3 sigmas"),
    "robust_ptq_mad": ("Channel-wise MAD", "MAD"),
    "robust_ptq_iqr": ("Channel-wise IQR", "IQR"),
    "bitnet_b158": ("BitNet b1.58", "BitNet b1.58"),
    "bitnet_v2": ("BitNet v2", "BitNet v2"),
    "bitnet_v2_low_rank": ("BitNet v2 + low rank", "BitNet v2 + LR"),
    "binarydm": ("BinaryDM-style", "BinaryDM"),
    "qdit": ("Q-DiT-style, 4-bit W", "Q-DiT"),
    "lsq": ("LSQ-style", "LSQ"),
    "quest": ("QuEST-style", "QuEST"),
    "minmax": ("Min-max", "Min-max"),  # from here on: the paper's components
    "minmax_low_rank": ("Min-max + low rank", "Min-max + LR"),
    "minmax_rotation": ("Min-max + rotation", "Min-max + rot."),
    "baseline": ("Min-max + low rank + rotation", "Baseline"),
    "robust_no_rotation": ("Robust + low rank", "Robust + LR"),
    "robuq_uniform": ("Robust + low rank + rotation (RobuQ)", "RobuQ"),
    "robuq_to_4": ("RobuQ with AMPN, 1 to 4 bits", "RobuQ + AMPN ≤ 4"),  # the paper's widths
    "robuq": ("RobuQ with AMPN", "RobuQ + AMPN"),  # 1 to 8 bits
    "robuq_mid_tread": ("RobuQ, mid-tread grid", "Mid-tread"),  # from here on: RobuQ with one thing changed
    "robuq_as_coded": ("RobuQ, grid as coded", "As coded"),
    "robuq_lloyd_max": ("RobuQ, Lloyd-Max grid", "Lloyd-Max"),
    "robuq_tanh": ("RobuQ, tanh clip", "Tanh clip"),
    "robuq_percentile": ("RobuQ, percentile scale", "Percentile scale"),
    "robuq_mad": ("RobuQ, MAD scale", "MAD scale"),
    "robuq_iqr": ("RobuQ, IQR scale", "IQR scale"),
    "robuq_lsq": ("RobuQ, LSQ", "LSQ, one step"),
    **{f"robuq_warm_{steps}": (f"AMPN after {steps} steps", f"AMPN, {steps} steps") for steps in (0, 25, 50, 100, 200)},
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
