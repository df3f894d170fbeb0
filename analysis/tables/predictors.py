"""The predictors table: which cheap measure orders allocations as training does."""

from __future__ import annotations

import math
from typing import Any

import numpy as np
import pandas as pd

from analysis.evaluations import rung_steps
from analysis.render import NONE, TextTable, number
from analysis.stats import Estimate, rank_correlation, rank_correlation_difference, rank_interval
from robuq.record.search_record import Predictor, SearchRecord

JOINT = "joint_loss"
NAMES = {  # in the order of the rows
    "loss": "Loss increase, summed",
    "output_error": "Output error, summed",
    "second_order": "Second-order estimate, summed",
    JOINT: "Loss with all bits at once, untrained",
}
CAPTION = (
    "Spearman's ρ between a cheap measure and the validation loss after quantization-aware training at the search's "
    "last rung, over the n evaluations that reached it, with its 95 % interval (percentile bootstrap over "
    "evaluations). Summed: the additive prediction from the sensitivity of single layers, measured after so many "
    "warm-up steps with all other layers at the reference bits. Best in bold with all that the paired bootstrap cannot "
    "tell from it, where the predictions are recorded. *: the measure that the search itself used."
)


def predictors_data(record: SearchRecord, seed: int) -> pd.DataFrame:
    """One row a predictor, numbers only. `seed` of the resamples, anew for each: see `rung_correlations`.

    Columns: measure, reference (bits; NaN: none), warm_up_steps, spearman, spearman_low, spearman_high, spearman_n,
    interval (`bootstrap`, or `Bonett-Wright` where no predictions are recorded), searched, mark.
    """
    scores, rows = _scores(record), []
    last = _last(record)
    for predictor in record.predictors:
        known = scores.get(_id(predictor))
        if known is None:
            found = rank_interval(math.nan if predictor.spearman is None else predictor.spearman, predictor.n)
        else:
            found = rank_correlation(known, last, np.random.default_rng(seed))
        own = {"reference": float(predictor.reference), "warm_up_steps": float(predictor.warm_up_steps)}
        rows.append(_row(predictor.measure, own, found, known is not None, predictor.searched))
    if JOINT in scores:
        warm = record.sensitivity.get("warm_up_steps", math.nan)
        own = {"reference": math.nan, "warm_up_steps": float(warm)}
        rows.append(_row(JOINT, own, rank_correlation(scores[JOINT], last, np.random.default_rng(seed)), True, False))
    data = pd.DataFrame(rows, columns=list(_row("", {"reference": 0.0, "warm_up_steps": 0.0}, _NO, True, False)))
    ids = [*(_id(predictor) for predictor in record.predictors), *([JOINT] if JOINT in scores else [])]
    return data.assign(mark=_marks(ids, scores, last, seed))


def predictors_table(data: pd.DataFrame) -> TextTable:
    """The data as text, from the best to the worst."""
    order = data.sort_values("spearman", ascending=False, kind="stable")
    cells = pd.DataFrame([_text(row) for _, row in order.iterrows()])
    marks = pd.DataFrame("", index=cells.index, columns=cells.columns)
    marks["ρ"] = order["mark"].to_numpy()
    return TextTable(cells, marks, words=("Measure", "95 % interval"), caption=CAPTION)


_NO = Estimate(math.nan, math.nan, math.nan, 0)


def _row(measure: str, own: dict[str, float], found: Estimate, drawn: bool, searched: bool) -> dict[str, Any]:
    bounds = {"spearman": found.mean, "spearman_low": found.low, "spearman_high": found.high, "spearman_n": found.n}
    return {
        "measure": measure,
        **own,
        **bounds,
        "interval": "bootstrap" if drawn else "Bonett-Wright",
        "searched": searched,
    }


def _id(predictor: Predictor) -> str:
    return f"{predictor.measure} {predictor.reference} {predictor.warm_up_steps}"


def _last(record: SearchRecord) -> pd.Series[float]:
    """{evaluation number: value at the last rung}"""
    last = str(rung_steps(record)[-1])
    return pd.Series(
        {one.number: one.values[last] for one in record.evaluations if last in one.values}, dtype="float64"
    )


def _scores(record: SearchRecord) -> dict[str, pd.Series[float]]:
    """{predictor: its value for every evaluation that reached the last rung, NaN where it has none}."""
    index = _last(record).index
    scores = {
        _id(predictor): pd.Series({int(n): value for n, value in predictor.predicted.items()}).reindex(index)
        for predictor in record.predictors
        if predictor.predicted
    }
    if rung_steps(record)[0] == 0 and len(rung_steps(record)) > 1:
        joint = {one.number: one.values["0"] for one in record.evaluations if "0" in one.values}
        scores[JOINT] = pd.Series(joint, dtype="float64").reindex(index)
    return scores


def _marks(ids: list[str], scores: dict[str, pd.Series[float]], last: pd.Series[float], seed: int) -> list[str]:
    """`best`: the highest coefficient, and what the paired bootstrap of the difference cannot tell from it. Nobody is
    marked where a predictor has no values, or pairs are too few for an interval."""
    if len(ids) < 2 or any(name not in scores for name in ids):
        return [""] * len(ids)
    rho = {name: rank_correlation(scores[name], last, np.random.default_rng(seed), resamples=1).mean for name in ids}
    known = [name for name in ids if not math.isnan(rho[name])]
    if not known:
        return [""] * len(ids)
    best = max(known, key=lambda name: rho[name])
    lags = {
        name: rank_correlation_difference(scores[name], scores[best], last, np.random.default_rng(seed))
        for name in known
        if name != best
    }
    if any(math.isnan(lag.low) for lag in lags.values()):
        return [""] * len(ids)
    shared = {best, *(name for name, lag in lags.items() if not lag.excludes_zero)}
    return ["best" if name in shared else "" for name in ids]


def _text(row: pd.Series[Any]) -> dict[str, str]:
    bounds = f"[{number(row['spearman_low'], 2)}, {number(row['spearman_high'], 2)}]"
    return {
        "Measure": NAMES.get(row["measure"], row["measure"]) + (" *" if row["searched"] else ""),
        "Reference (bits)": number(row["reference"], 0),
        "Warm-up (steps)": number(row["warm_up_steps"], 0),
        "ρ": number(row["spearman"], 2),
        "95 % interval": NONE if math.isnan(row["spearman_low"]) else bounds,
        "n": number(row["spearman_n"], 0),
    }
