"""Bits: what each layer got, what each layer suffers, and what another budget would give."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from typing import Any

import streamlit as st

from analysis.budgets import MEANS, MEASURES, curve_data, curve_figure, reachable, recorded_bits, solved, summary_table
from analysis.figures.bits import bits_figure
from analysis.figures.sensitivity import MEASURES as UNITS
from analysis.figures.sensitivity import drawn_text, sensitivity_data, sensitivity_figure
from analysis.methods import WEIGHTINGS
from analysis.pictures import draw
from analysis.recorded import sensitivity_of_run, sensitivity_of_search
from dashboards import show
from dashboards.cached import (
    kept,
    kept_of_search,
    plan_names,
    plan_records,
    search_names,
    search_record,
    whole_record,
)
from dashboards.controls import choice, number
from dashboards.settings import Settings

BITS, BOPS = 0.05, 60  # step of the slider in bits; steps of the slider in bit operations


@dataclass(frozen=True)
class Recorded:
    """One recorded sensitivity, with the allocation that was made of it if there is one."""

    plan: str  # or search
    key: str  # of the run; empty for a search
    table: Any
    config: dict[str, Any]
    allocation: dict[str, int]


def page(settings: Settings) -> None:
    found = _sources(settings)
    if not found:
        what = "No sensitivity is recorded yet: a plan with the variant `robuq` measures one, and so does a search."
        show.empty(what, settings.command("sweep smoke"), settings.command("search smoke"))
        return
    plan = settings.default_of([name for name, _ in found.values()])
    first = next((title for title, (name, _) in found.items() if name == plan), None)
    one = _load(settings, *found[choice("Sensitivity of", list(found), "of", first)])
    if one.allocation:
        _allocation(settings, one)
    _budget(settings, one)
    _sensitivity(settings, one)


def _sources(settings: Settings) -> dict[str, tuple[str, str]]:
    """{title: (search or plan, key of the run or nothing)}"""
    found = {f"search {name}": (name, "") for name in search_names(settings.source)}
    for plan in plan_names(settings.source):
        for record in plan_records(settings.source, plan):
            if record.status == "finished" and "sensitivity.json" in record.artifacts:
                title = f"{plan}: {record.variant} {record.label} seed {record.seed}"
                name = title if title not in found else f"{title} ({record.key[:8]})"
                found[name] = (plan, record.key)
    return {name: where for name, where in found.items() if where[1] or _has_table(settings, where[0])}


def _has_table(settings: Settings, name: str) -> bool:
    record = search_record(settings.source, name)
    return record is not None and bool(record.sensitivity)


def _load(settings: Settings, name: str, key: str) -> Recorded:
    source = settings.source
    if not key:
        record = search_record(source, name)
        return Recorded(name, "", sensitivity_of_search(record), record.config, {})
    whole = whole_record(source, name, key)
    table = kept(source, [name], ("sensitivity",), lambda: sensitivity_of_run(source, whole), keys=[key])
    return Recorded(name, key, table, whole.config, whole.allocation)


def _kept(settings: Settings, one: Recorded, what: tuple[str, ...], make: Callable[[], Any]) -> Any:
    if one.key:
        return kept(settings.source, [one.plan], what, make, keys=[one.key])
    return kept_of_search(settings.source, one.plan, what, make)


def _allocation(settings: Settings, one: Recorded) -> None:
    st.subheader("The run's bits")
    data = recorded_bits(one.config, one.allocation, "allocated")
    caption = "Activation bits of each block linear that this run was trained with, by kind and depth."
    make = partial(draw, "bits", lambda: (bits_figure(data), data, caption))
    show.picture(_kept(settings, one, ("bits",), make))


def _budget(settings: Settings, one: Recorded) -> None:
    st.subheader("Another budget")
    left, right = st.columns(2)
    with left:
        weights: Any = choice("Weighted by", list(WEIGHTINGS), "weights", show=lambda name: WEIGHTINGS[name])
    with right:
        measure: Any = choice("Damage by", list(MEASURES), "measure", show=lambda name: UNITS[name][0])
    low, high = reachable(one.table, one.config, weights)
    if weights == "bops":
        limit = number("10⁹ bit operations", low, high, (high - low) / BOPS, "bops", (low + high) / 2, "%.4f")
    else:
        limit = number("Mean activation bits", low, high, BITS, "budget", min(max(2.0, low), high))
    found = solved(one.table, one.config, limit, weights, measure)
    caption = "Solved anew for this budget: the least predicted damage there is, and one width for all."
    data = found.bits
    show.picture(draw("budget", lambda: (bits_figure(data), data, caption)))
    unit = UNITS[measure][1]
    columns = {
        "damage": st.column_config.NumberColumn(f"damage ({unit})", format="%.5f"),
        "cost": st.column_config.NumberColumn("cost", format="%.4g"),
        **{f"bits_{by}": st.column_config.NumberColumn(f"bits by {WEIGHTINGS[by]}", format="%.2f") for by in MEANS},
        "proven": "proven best",
    }
    text = "Predicted damage and cost of each allocation within the budget"
    show.numbers(found.summary, "budget_summary", text, columns, summary_table(found.summary, unit))
    what = ("curve", weights, measure)
    curve = _kept(settings, one, what, lambda: curve_data(one.table, one.config, weights, measure))
    text = "Sum over layers of the measured damage of their bits; the vertical line is the budget above."
    show.picture(draw("budget_curve", lambda: (curve_figure(curve, limit, weights, unit), curve, text)))


def _sensitivity(settings: Settings, one: Recorded) -> None:
    st.subheader("Sensitivity")
    data = sensitivity_data(one.table)
    caption = (
        f"What it costs to give one layer so few bits while all others have {one.table.reference}. White: not above "
        f"zero; a dot: not above two standard errors. {drawn_text(data)} n = {one.table.num_images} images."
    )
    what = ("sensitivity figure",)
    make = partial(draw, "sensitivity", lambda: (sensitivity_figure(data), data, caption))
    show.picture(_kept(settings, one, what, make))
