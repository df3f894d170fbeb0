"""The main tables, conditional and unconditional: RobuQ, its baseline and other methods."""

from __future__ import annotations

from analysis.tables.comparison import Comparison, Extra

READING = (
    "Means over n runs, ± half the width of the 95 % t interval. Δ: held-out loss minus that of the paper's baseline "
    "at the same activation width over shared seeds, ± half the width of its paired 95 % t interval. FD, precision, "
    "recall and score are taken in the features of a small classifier of this data set (FD is no FID). Among rows of "
    "equal W/A, best in bold with all that a paired t-test, Holm-corrected, cannot tell from it, second underlined; "
    "full precision is not ranked."
)
STYLES = (
    "Baseline: min-max, low-rank branch, rotation. Other methods' rows take their quantizers, as published, into this "
    "network and this training: they are no reproductions of those methods. PTQ: post-training, not trained "
    "(percentile: per channel; RobuQ: without AMPN); from one pre-trained network, PTQ without a rotation is one "
    "result for all seeds."
)
AMPN = (
    "AMPN: bits layer by layer, W/A shows their budget; the paper's widths are 1 to 4 bits, which leave no choice at 4 "
    "on average."
)
COSTS = (
    "Bits: mean activation bits of the block linears by MACs. GBOPs: billions of bit operations of one image and "
    "forward pass."
)
NAMES = {
    "full_precision": "Full precision",
    "ptq_minmax": "PTQ min-max, 4-bit W",
    "ptq_percentile": "PTQ percentile",
    "ptq_robuq": "PTQ RobuQ",
    "bitnet_v2": "BitNet v2",
    "binarydm": "BinaryDM-style",
    "qdit": "Q-DiT-style, 4-bit W",
    "lsq": "LSQ-style",
    "quest": "QuEST-style",
    "baseline": "Baseline",
    "robuq_uniform": "RobuQ without AMPN",
    "robuq_to_4": "RobuQ with AMPN, 1 to 4 bits",
    "robuq": "RobuQ with AMPN, 1 to 8 bits",
}
EXTRAS = {"average_bits_macs": Extra("Bits", 1, 2), "bops": Extra("GBOPs", 1e9, 3)}
CONDITIONAL = Comparison(NAMES, "baseline", f"{READING} {STYLES} {AMPN} {COSTS}", rank_by="label", extras=EXTRAS)
UNCONDITIONAL = Comparison(
    NAMES,
    "baseline",
    f"Networks without classes. {READING} {AMPN} {COSTS}",
    rank_by="label",
    extras=EXTRAS,
)
