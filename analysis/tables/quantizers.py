"""Which quantizer of activations, everything else RobuQ's (the paper's table 2b), and what theory says of its grids."""

from __future__ import annotations

import pandas as pd

from analysis.gaussian_grids import grid_error
from analysis.tables.comparison import Comparison, Extra, comparison_data

GRIDS = {  # variant -> grid, of the rows whose error on normal tokens has a closed form
    "robuq_uniform": "mid_rise",
    "robuq_mid_tread": "mid_tread",
    "robuq_as_coded": "as_coded",
    "robuq_lloyd_max": "lloyd_max",
}
NAMES = {
    "robuq_uniform": "Gaussian mid-rise (RobuQ)",
    "robuq_mid_tread": "Gaussian mid-tread",
    "robuq_as_coded": "Gaussian as coded",
    "robuq_lloyd_max": "Gaussian Lloyd-Max",
    "robuq_tanh": "Gaussian, tanh clip",
    "baseline": "Min-max",
    "robuq_percentile": "Percentile 99.9",
    "robuq_mad": "3 sigmas by MAD",
    "robuq_iqr": "3 sigmas by IQR",
    "robuq_lsq": "LSQ, one step a layer",
}
NORMAL_ERROR = "normal_mse"
CAPTION = (
    "Every row has RobuQ's ternary weights, low-rank branch and rotation, and one activation width everywhere; only "
    "the quantizer of activations differs. As coded: the mid-rise grid's step on the mid-tread grid. MSE: of the "
    "grid alone on N(0, 1), in closed form, not measured. Means over n runs, ± half the width of the 95 % t "
    "interval. Δ: held-out loss minus that of RobuQ's quantizer at the same width over shared seeds, ± half the "
    "width of its paired 95 % t interval. Per width, best in bold with all that a paired t-test, Holm-corrected, "
    "cannot tell from it, second underlined. FD, precision, recall and score are taken in the features of a small "
    "classifier of this data set (FD is no FID)."
)
QUANTIZERS = Comparison(NAMES, "robuq_uniform", CAPTION, delta="Δ to RobuQ", extras={NORMAL_ERROR: Extra("MSE", 1, 4)})


def quantizers_data(runs: pd.DataFrame) -> pd.DataFrame:
    """`comparison_data`, and `normal_mse`: the grid's error on normal tokens, where it has a closed form."""
    data = comparison_data(runs, QUANTIZERS)
    pairs = zip(data["variant"], data["bits"], strict=True)
    errors = [grid_error(GRIDS[name], int(bits)) if name in GRIDS else float("nan") for name, bits in pairs]
    return data.assign(**{NORMAL_ERROR: errors})
