"""What of the paper holds here: each claim as differences between rows of one plan, paired over seeds."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import pandas as pd

from analysis.load import PRIMARY
from analysis.product import Cells
from analysis.render import NONE, TextTable, with_half_width
from analysis.stats import PairedDifference, estimate_columns, estimate_of, holm, paired_difference
from analysis.tables.allocations import p_text
from analysis.tables.components import METRICS, cells_of

SHOWN = (PRIMARY, "fd_classifier")  # the first decides the last column
FULL = math.nan  # bits of activations that are not quantized
Terms = Mapping[tuple[str, float], int]  # (variant, bits) -> how often its result is added
CAPTION = (
    "Δ: the sum of the named rows' results over shared seeds, those behind a minus subtracted, ± half the width of its "
    "paired 95 % t interval; p: of the paired t-test after Holm's correction over the table's differences in that "
    "metric. Lower is better in both metrics. Held-out loss decides the last column: lower or higher if p < 0.05; in "
    "brackets if only the interval, before the correction, excludes zero. FD is taken in the features of a small "
    "classifier of this data set (it is no FID)."
)


@dataclass(frozen=True)
class Contrast:
    """One difference: `name` says what is compared under the question `claim`."""

    claim: str
    name: str
    terms: Terms


def minus(claim: str, name: str, row: str, other: str, bits: Sequence[float]) -> list[Contrast]:
    """`row` minus `other`, at each width."""
    return [Contrast(claim, f"{name}{_at(b)}", {(row, b): 1, (other, b): -1}) for b in bits]


def change(contrast: Contrast, other: Contrast, name: str) -> Contrast:
    """How much larger `contrast` is than `other`: an interaction."""
    terms = dict(contrast.terms)
    for cell, count in other.terms.items():
        terms[cell] = terms.get(cell, 0) - count
    return Contrast(contrast.claim, name, {cell: count for cell, count in terms.items() if count})


def _at(bits: float) -> str:
    return "" if math.isnan(bits) else f", {bits:g} bits"


# --- the claims, by the plan that answers them ----------------------------------------------------------------------

BEATEN = "RobuQ beats its baseline"
ROTATION = "Rotation helps more, the fewer the bits"
NEEDED = "RobustQuantizer helps with the rotation"
WEIGHTS = "Part of the rotation's gain is the weights'"
BRANCH = "The low-rank branch helps"
AMPN = "Bits layer by layer (AMPN) help"
WARM_UP = "Measure the sensitivity after a warm-up"


def components_claims() -> list[Contrast]:
    rotation = minus(ROTATION, "rotation, under min-max with low rank", "baseline", "minmax_low_rank", (4, 3, 2))
    robust = minus(NEEDED, "instead of min-max, with rotation", "robuq_uniform", "baseline", (4, 3, 2))
    without = minus(NEEDED, "instead of min-max, without rotation", "robust_no_rotation", "minmax_low_rank", (2,))
    plain = minus(WEIGHTS, "rotation, activations not quantized", "ternary_rotation", "ternary_only", (FULL,))
    both = minus(WEIGHTS, "rotation, under min-max", "minmax_rotation", "minmax", (2,))
    both_branched = minus(WEIGHTS, "", "baseline", "minmax_low_rank", (2,))  # listed as a rotation's already
    branched = minus(
        WEIGHTS,
        "rotation, activations not quantized, with low rank",
        "ternary_low_rank_rotation",
        "ternary_low_rank",
        (FULL,),
    )
    return [
        *rotation,
        change(rotation[2], rotation[0], "at 2 bits more than at 4"),
        *robust,
        *without,
        change(robust[2], without[0], "with rotation more than without, 2 bits"),
        *plain,
        *both,
        change(both[0], plain[0], "what is left for activations, 2 bits"),
        *branched,
        change(both_branched[0], branched[0], "what is left for activations with low rank, 2 bits"),
        *minus(BRANCH, "under min-max", "minmax_low_rank", "minmax", (4, 3, 2)),
        *minus(BRANCH, "under min-max with rotation", "baseline", "minmax_rotation", (2,)),
        *minus(BRANCH, "in BitNet v2", "bitnet_v2_low_rank", "bitnet_v2", (4, 3, 2)),
        *minus(BRANCH, "activations not quantized", "ternary_low_rank", "ternary_only", (FULL,)),
        *minus(
            BRANCH, "activations not quantized, with rotation", "ternary_low_rank_rotation", "ternary_rotation", (FULL,)
        ),
    ]


def quantizers_claims() -> list[Contrast]:
    rows = {
        "robuq_lloyd_max": ("The uniform grid is as good as Lloyd-Max", "Lloyd-Max instead of uniform"),
        "robuq_mid_tread": ("The grid: mid-rise", "mid-tread instead of mid-rise"),
        "robuq_as_coded": ("The grid: mid-rise", "as coded instead of mid-rise"),
        "robuq_tanh": ("A smooth clip", "tanh instead of the hard clip"),
        "robuq_percentile": ("The scale: Gaussian", "99.9th percentile instead"),
        "robuq_mad": ("The scale: Gaussian", "3 sigmas by MAD instead"),
        "robuq_iqr": ("The scale: Gaussian", "3 sigmas by IQR instead"),
        "robuq_lsq": ("The scale: Gaussian", "LSQ, one step a layer, instead"),
        "baseline": ("The scale: Gaussian", "min-max instead"),
    }
    return [one for row, (claim, name) in rows.items() for one in minus(claim, name, row, "robuq_uniform", (4, 2))]


def main_claims() -> list[Contrast]:
    return [
        *minus(BEATEN, "without AMPN", "robuq_uniform", "baseline", (4, 3, 2)),
        *minus(BEATEN, "with AMPN, 1 to 4 bits", "robuq_to_4", "baseline", (3, 2)),
        *minus(AMPN, "1 to 4 bits instead of one width", "robuq_to_4", "robuq_uniform", (3, 2)),
        *minus(AMPN, "1 to 8 bits instead of one width", "robuq", "robuq_uniform", (4, 3)),  # at 2 bits: the same bits
    ]


def warm_up_claims() -> list[Contrast]:
    after = [f"robuq_warm_{steps}" for steps in (25, 50, 100, 200)]
    return [
        *(
            one
            for row in after
            for one in minus(WARM_UP, f"{row.split('_')[-1]} steps instead of none", row, "robuq_warm_0", (2,))
        ),
        *minus(AMPN, "before a warm-up, instead of one width", "robuq_warm_0", "robuq_uniform", (2,)),
        *minus(AMPN, "after 100 steps, instead of one width", "robuq_warm_100", "robuq_uniform", (2,)),
    ]


# --- data and table ---------------------------------------------------------------------------------------------


def claims_data(runs: pd.DataFrame, claims: Sequence[Contrast]) -> pd.DataFrame:
    """One row per contrast that the runs answer: claim, contrast, keys, verdict, and for each metric `m` of `SHOWN` the
    mean `m` with `_low`, `_high`, `_n`, `_p`, `_p_holm` and `_effect` (standardised).

    Raises:
        ValueError: what `components_data` names.
    """
    cells = {_cell(name, bits): runs for (bits, name), runs in cells_of(runs).items()}
    told = [one for one in claims if all(_cell(*cell) in cells for cell in one.terms)]
    data = pd.DataFrame([_row(one, cells) for one in told])
    for metric in SHOWN if len(data) else ():
        data[f"{metric}_p_holm"] = holm(data[f"{metric}_p"])
    return data.assign(verdict=[_verdict(row) for _, row in data.iterrows()]) if len(data) else data


def _cell(name: str, bits: float) -> tuple[str, float]:
    return name, 0.0 if math.isnan(bits) else float(bits)  # NaN is not equal to itself


def _row(one: Contrast, cells: Mapping[tuple[str, float], pd.DataFrame]) -> dict[str, Any]:
    parts = [(count, cells[_cell(*cell)]) for cell, count in one.terms.items()]
    row: dict[str, Any] = {"claim": one.claim, "contrast": one.name}
    for metric in SHOWN:
        found = _difference([(count, part[metric]) for count, part in parts])
        row |= estimate_columns(metric, found) | {f"{metric}_p": found.p, f"{metric}_effect": found.effect}
    return row | {"keys": " ".join(key for _, part in parts for key in part["key"])}


def _difference(parts: Sequence[tuple[int, pd.Series[float]]]) -> PairedDifference:
    """Only of seeds that every part has."""
    sums = [
        pd.concat([count * series for count, series in parts if count * sign > 0], axis=1).sum(axis=1, skipna=False)
        for sign in (1, -1)
    ]
    return paired_difference(sums[0].rename("added"), -sums[1])


def _verdict(row: pd.Series[Any]) -> str:
    found = estimate_of(row, PRIMARY)
    word = "lower" if found.mean < 0 else "higher"
    if row[f"{PRIMARY}_p_holm"] < 0.05:
        return word
    return f"({word})" if found.excludes_zero else NONE


def claims_table(data: pd.DataFrame) -> TextTable:
    """The data as text, a rule between claims, whose words stand in the first of their rows."""
    cells = pd.DataFrame([_text(row) for _, row in data.iterrows()])
    again = data["claim"].eq(data["claim"].shift()).to_numpy()
    cells["Claim"] = cells["Claim"].mask(again, "")
    rules = tuple(place for place in range(1, len(data)) if not again[place])
    marks = pd.DataFrame("", index=cells.index, columns=cells.columns)
    return TextTable(cells, marks, rules, words=("Claim", "Difference", "Loss is"), caption=CAPTION)


def _text(row: pd.Series[Any]) -> dict[str, str]:
    text = {"Claim": row["claim"], "Difference": row["contrast"]}
    for metric, header in zip(SHOWN, ("loss", "FD"), strict=True):
        text[f"Δ {header}"] = with_half_width(estimate_of(row, metric), METRICS[metric][1])
        text[f"p ({header})"] = p_text(row[f"{metric}_p_holm"])
    return text | {"n": str(int(row[f"{PRIMARY}_n"])), "Loss is": row["verdict"]}


def claims_cells(data: pd.DataFrame) -> Cells:
    """Which runs are behind each row."""
    columns = list(SHOWN)
    return [
        {"row": f"{row['claim']}: {row['contrast']}", "columns": columns, "keys": sorted(set(row["keys"].split()))}
        for _, row in data.iterrows()
    ]
