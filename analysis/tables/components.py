"""The components table: what each part of RobuQ does, per activation width (the paper's table 2a, on our metrics)."""

from __future__ import annotations

import math
from typing import Any

import pandas as pd

from analysis.load import PRIMARY, VALIDATION, check_runs, finished, one_protocol
from analysis.methods import bits_group, in_order, method_name
from analysis.render import NONE, Format, TextTable, number, render, with_half_width
from analysis.stats import estimate_columns, estimate_of, holm, mean_interval, paired_difference, rank_marks

METRICS = {  # column -> (header, digits, lower is better)
    PRIMARY: ("Held-out loss ↓", 4, True),
    "fd_classifier": ("FD ↓", 2, True),
    "precision": ("Precision ↑", 3, False),
    "recall": ("Recall ↑", 3, False),
    "classifier_score": ("Score ↑", 2, False),
}
PAIRS = ["seed", "pretrain_seed"]  # what makes two runs of different variants a pair
CAPTION = (
    "Means over n runs, ± half the width of the 95 % t interval. Δ: held-out loss minus that of the baseline of the "
    "same activation width over shared seeds, ± half the width of its paired 95 % t interval. FD, precision, recall "
    "and score are taken in the features of a small classifier of this data set (FD is no FID). Per width, best in "
    "bold with all that a paired t-test, Holm-corrected, cannot tell from it, second underlined; rows with "
    "full-precision activations are not ranked. Robust: RobustQuantizer."
)


def components_data(runs: pd.DataFrame, baseline: str = "baseline") -> pd.DataFrame:
    """One row per (activation width, variant), numbers only; failed runs are left out.

    Columns: bits (NaN: not quantized), variant, label, lr (the best by validation, where several were tried), n, for
    each metric `m` its mean `m`, bounds `m_low` and `m_high`, `m_n` and `m_mark`; `difference` to the baseline in the
    primary metric with `_low`, `_high`, `_n`, `_p`, `_p_holm` (over all rows) and `_effect`; `keys` of the runs,
    separated by spaces.

    Raises:
        ValueError: several protocols, two runs for one cell and seed, or several learning rates without a validation
            loss to choose by; each in one line.
    """
    cells = cells_of(runs)
    rows = [_row(bits, name, part, cells.get((bits, baseline))) for (bits, name), part in cells.items()]
    data = pd.DataFrame(rows)
    data["difference_p_holm"] = holm(data["difference_p"])
    marks = {metric: _marks(cells, metric, lower) for metric, (_, _, lower) in METRICS.items()}
    for metric, by_cell in marks.items():
        data[f"{metric}_mark"] = [by_cell[cell] for cell in cells]
    return data


def cells_of(runs: pd.DataFrame) -> dict[tuple[float, str], pd.DataFrame]:
    """{(bits, variant): its finished runs of the best learning rate by validation, indexed by `PAIRS`}: those with
    full-precision activations first (bits NaN), then from many bits to few.

    Raises:
        ValueError: what `components_data` names.
    """
    runs = finished(check_runs(runs))
    one_protocol(runs)
    runs = runs.assign(bits=lambda rows: rows["act_bits"].map(bits_group))
    return {cell: _best_lr(part) for cell, part in _cells(runs).items()}


def components_table(data: pd.DataFrame) -> TextTable:
    """The data as text: the rows' order is the data's, a rule between widths."""
    rows = [row for _, row in data.iterrows()]
    cells = pd.DataFrame([_text(row) for row in rows])
    marks = pd.DataFrame("", index=cells.index, columns=cells.columns)
    for metric, (header, _, _) in METRICS.items():
        marks[header] = data[f"{metric}_mark"].to_numpy()
    bits = data["bits"].fillna(0).to_list()
    rules = tuple(i for i in range(1, len(bits)) if bits[i] != bits[i - 1])
    return TextTable(cells, marks, rules, words=("Method", "W/A"), caption=CAPTION)


def render_components(data: pd.DataFrame, form: Format) -> str:
    return render(components_table(data), form)


def _cells(runs: pd.DataFrame) -> dict[tuple[float, str], pd.DataFrame]:
    """{(bits, variant): runs}: full-precision activations first, then from many bits to few."""
    widths = sorted(runs["bits"].dropna().unique(), reverse=True)
    parts = [(math.nan, runs[runs["bits"].isna()]), *((float(w), runs[runs["bits"] == w]) for w in widths)]
    return {(bits, name): part[part["variant"] == name] for bits, part in parts for name in in_order(part["variant"])}


def _best_lr(cell: pd.DataFrame) -> pd.DataFrame:
    """The runs of the learning rate with the lowest mean validation loss, indexed by seed.

    Never by the primary metric, whose images are for reporting. A rate under which fewer seeds finished than under
    another is not chosen: the mean of those that survived would flatter it.

    Raises:
        ValueError: two runs with one learning rate and seed: they differ in what the table does not show; or several
            learning rates, but no validation loss.
    """
    again = cell.duplicated([*PAIRS, "lr"], keep=False)
    if again.any():
        first, second = (run for _, run in cell[again].sort_values([*PAIRS, "lr"]).iloc[:2].iterrows())
        raise ValueError(
            f"runs {first['key']} and {second['key']} are both {first['variant']} with seed {first['seed']}: "
            "they differ in a setting that the table does not show; report them as two variants or two plans"
        )
    if cell["lr"].nunique() > 1:
        if (unknown := cell[VALIDATION].isna()).any():
            raise ValueError(
                f"{cell['variant'].iloc[0]} has several learning rates, but run {cell.loc[unknown, 'key'].iloc[0]} has "
                f"no {VALIDATION} to choose by: set data.validation above 0, or keep one learning rate"
            )
        means = cell.groupby("lr")[VALIDATION].agg(["size", "mean"])
        cell = cell[cell["lr"] == means.loc[means["size"] == means["size"].max(), "mean"].idxmin()]
    return cell.set_index(PAIRS).sort_index()


def _row(bits: float, name: str, cell: pd.DataFrame, base: pd.DataFrame | None) -> dict[str, Any]:
    labels = ", ".join(sorted(cell["label"].unique()))
    row: dict[str, Any] = {"bits": bits, "variant": name, "label": labels, "lr": cell["lr"].iloc[0], "n": len(cell)}
    for metric in METRICS:
        row |= estimate_columns(metric, mean_interval(cell[metric]))
    reference = cell[PRIMARY].iloc[:0] if base is None or base is cell else base[PRIMARY]
    difference = paired_difference(cell[PRIMARY], reference)
    row |= estimate_columns("difference", difference)
    row |= {"difference_p": difference.p, "difference_effect": difference.effect}
    return row | {"keys": " ".join(cell["key"])}


def _marks(
    cells: dict[tuple[float, str], pd.DataFrame], metric: str, lower_is_better: bool
) -> dict[tuple[float, str], str]:
    marks = dict.fromkeys(cells, "")
    for width in {bits for bits, _ in cells if not math.isnan(bits)}:
        series = {name: cell[metric] for (bits, name), cell in cells.items() if bits == width}
        marks |= {(width, name): mark for name, mark in rank_marks(series, lower_is_better).items()}
    return marks


def _text(row: pd.Series[Any]) -> dict[str, str]:
    text = {"Method": method_name(row["variant"]), "W/A": row["label"]}
    for metric, (header, digits, _) in METRICS.items():
        text[header] = with_half_width(estimate_of(row, metric), digits)
        if metric == PRIMARY:
            difference = estimate_of(row, "difference")
            text["Δ to baseline"] = with_half_width(difference, digits) if difference.n else NONE
    return text | {"n": number(row["n"], 0)}
