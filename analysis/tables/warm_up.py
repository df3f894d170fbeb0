"""How many steps of quantization-aware training come before the sensitivity is measured (the paper's table 2c)."""

from __future__ import annotations

from analysis.tables.comparison import Comparison, Extra

STEPS = (0, 25, 50, 100, 200)
NAMES = {"robuq_uniform": "One width"} | {f"robuq_warm_{steps}": f"AMPN after {steps} steps" for steps in STEPS}
CAPTION = (
    "Bits by AMPN, from a sensitivity that was measured after so many steps of quantization-aware training; the "
    "training that counts starts from the full-precision network and is as long for every row. Means over n runs, ± "
    "half the width of the 95 % t interval. Δ: held-out loss minus that of the sensitivity before any training over "
    "shared seeds, ± half the width of its paired 95 % t interval. Best in bold with all that a paired t-test, "
    "Holm-corrected, cannot tell from it, second underlined. Bits: mean activation bits of the block linears by "
    "MACs. FD, precision, recall and score are taken in the features of a small classifier of this data set (FD is "
    "no FID)."
)
WARM_UP = Comparison(
    NAMES, "robuq_warm_0", CAPTION, delta="Δ to 0 steps", extras={"average_bits_macs": Extra("Bits", 1, 2)}
)
