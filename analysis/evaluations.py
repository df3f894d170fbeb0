"""SearchRecord -> DataFrames of its evaluations, its rungs, and the allocations that have names."""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import Any

import pandas as pd

from analysis.methods import WEIGHTINGS, in_order, short_name
from analysis.tables.allocations import LONGER
from robuq.ampn.table import SensitivityTable
from robuq.config import BitAllocation, RunConfig
from robuq.cost import average_bits, layer_costs
from robuq.record.search_record import Evaluation, SearchRecord

SEARCH = "search"  # the name of what the search found
PREDICTED = -1  # the additive prediction where a rung's steps are asked for: cheaper than any rung
Bits = Mapping[str, int]


def rung_steps(record: SearchRecord) -> list[int]:
    """Training steps of the rungs, ascending."""
    return [int(rung["steps"]) for rung in record.search["rungs"]]


def weighting(record: SearchRecord) -> str:
    """How the mean bits of the record are weighted where one mean is shown: as the budget does, MACs where the budget
    has no mean."""
    weights = str(record.budget["weights"])
    return "macs" if weights == "bops" else weights


def budget_name(record: SearchRecord) -> str:
    """`2 bits on average by MACs`."""
    limit, weights = record.budget["limit"], record.budget["weights"]
    if weights == "bops":
        counted = "whole network" if record.budget.get("count_fixed") else "block linears"
        return f"{limit:g} x 10^9 bit operations per image and forward pass, {counted}"
    return f"{limit:g} bits on average by {WEIGHTINGS[weights]}"


def named_allocations(record: SearchRecord) -> dict[str, dict[str, int]]:
    """Bits by decision of the baselines, in the tables' order, and of the winner as `search`."""
    named = {name: record.baselines[name] for name in in_order(record.baselines)}
    best = winner(record)
    return named | ({SEARCH: best.bits} if best else {})


def winner(record: SearchRecord) -> Evaluation | None:
    return next((one for one in record.evaluations if one.number == record.winner), None)


def mean_bits(record: SearchRecord, bits: Bits) -> dict[str, float]:
    """Mean activation bits of the block linears by `layers`, `macs` and `elements`."""
    run = RunConfig.parse(record.config)
    costs = layer_costs(run.model, run.precision, BitAllocation(bits=dict(bits)))
    return {by: average_bits(costs, by) or math.nan for by in ("layers", "macs", "elements")}


def confirmed_means(record: SearchRecord) -> dict[str, dict[str, float]]:
    """`mean_bits` of the rows of the confirmation whose bits the record has."""
    named = named_allocations(record)
    bits = {name: named["exact" if name == LONGER else name] for name in record.confirmed if name in {*named, LONGER}}
    return {name: mean_bits(record, of) for name, of in bits.items()}


def evaluations_data(record: SearchRecord) -> pd.DataFrame:
    """One row an evaluation, in the order of asking.

    Columns: number, source, names (of the named allocations that have these bits, separated by spaces), state,
    failure, cost (in the budget's unit), bits_layers, bits_macs, bits_elements, bops (10^9), predicted, value_<steps>
    of every rung (NaN: not reached), seconds, winner, front, and one column a decision with its bits.
    """
    named = named_allocations(record)
    rows = [_row(record, one, [name for name, bits in named.items() if bits == one.bits]) for one in record.evaluations]
    return pd.DataFrame(rows).sort_values("number", ignore_index=True) if rows else pd.DataFrame(columns=["number"])


def _row(record: SearchRecord, one: Evaluation, names: list[str]) -> dict[str, Any]:
    return {
        "number": one.number,
        "source": one.source,
        "names": " ".join(names),
        "state": one.state,
        "failure": one.failure,
        "cost": one.cost,
        **{f"bits_{by}": one.average_bits.get(by, math.nan) for by in ("layers", "macs", "elements")},
        "bops": one.bops,
        "predicted": one.predicted,
        **{f"value_{steps}": one.values.get(str(steps), math.nan) for steps in rung_steps(record)},
        "seconds": one.seconds,
        "winner": one.number == record.winner,
        "front": one.number in record.front,
        **one.bits,
    }


def rung_values(record: SearchRecord) -> pd.DataFrame:
    """One row an evaluation and rung that it was asked for: number, names, steps, value (NaN: it failed there), best
    (the lowest value at this rung so far), goes_on (it was not stopped here)."""
    rungs = rung_steps(record)
    named = named_allocations(record)
    rows = []
    for one in sorted(record.evaluations, key=lambda evaluation: evaluation.number):
        names = " ".join(name for name, bits in named.items() if bits == one.bits and name != SEARCH)
        reached = [steps for steps in rungs if str(steps) in one.values]
        asked = rungs[: len(reached) + 1] if one.state == "failed" else reached
        for steps in asked:
            stopped = one.state == "pruned" and steps == reached[-1]
            value = one.values.get(str(steps), math.nan)
            rows.append({"number": one.number, "names": names, "steps": steps, "value": value, "goes_on": not stopped})
    data = pd.DataFrame(rows, columns=["number", "names", "steps", "value", "goes_on"])
    data = data.astype({"value": "float64", "goes_on": "bool"})
    data["best"] = data.groupby("steps")["value"].cummin()
    return data


def rung_pairs(record: SearchRecord) -> pd.DataFrame:
    """One row an evaluation with a value at the last rung, and a cheaper thing known of it: low (steps, `PREDICTED`:
    the additive prediction), high (steps of the last rung), number, names, x (the cheap value), y (the last)."""
    *cheap, last = rung_steps(record)
    named = named_allocations(record)
    rows = []
    for one in record.evaluations:
        if str(last) not in one.values:
            continue
        names = " ".join(name for name, bits in named.items() if bits == one.bits)
        known = {PREDICTED: one.predicted} | {s: one.values[str(s)] for s in cheap if str(s) in one.values}
        own = {"high": last, "number": one.number, "names": names, "y": one.values[str(last)]}
        rows += [{"low": steps, **own, "x": x} for steps, x in known.items()]
    return pd.DataFrame(rows, columns=["low", "high", "number", "names", "x", "y"])


def sensitivity_table(record: SearchRecord) -> SensitivityTable | None:
    return SensitivityTable.parse(record.sensitivity, "sensitivity") if record.sensitivity else None


def allocation_name(record: SearchRecord, name: str) -> str:
    """`Search (= Exact)` where the search found no allocation of its own."""
    if name == SEARCH and record.equal_to:
        return f"{short_name(name)} (= {', '.join(short_name(other) for other in record.equal_to)})"
    return short_name(name)
