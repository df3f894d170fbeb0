"""Ablation: two methods of one plan, seed by seed."""

from __future__ import annotations

from typing import Any

import pandas as pd
import streamlit as st

from analysis.ablation import (
    config_differences,
    differences_data,
    differences_table,
    losses_figure,
    pairs_data,
    pairs_figure,
    pairs_text,
    verdict,
)
from analysis.figures.curves import curves_data
from analysis.pictures import Picture, draw
from analysis.recorded import history_reader
from analysis.tables.components import METRICS
from dashboards import show
from dashboards.cached import cells, is_search, kept, plan_names, whole_record
from dashboards.controls import choice
from dashboards.settings import Settings


def page(settings: Settings) -> None:
    names = plan_names(settings.source)
    if not names:
        show.empty("No run is recorded yet.", settings.filling())
        return
    plan = choice("Plan", names, "plan", settings.default_of(names))
    rows = cells(settings.source, plan)
    if len(rows) < 2:
        _too_few(settings, plan)
        return
    a, b, metric = _picked(rows, settings.baselines.get(plan, "baseline"))
    if a == b:
        st.info("A and B are the same method: choose two.")
        return
    _differences(rows[a], rows[b], metric)
    _curves(settings, plan, rows[a], rows[b], (a, b))
    _settings_of(settings, plan, rows[a], rows[b])


def _too_few(settings: Settings, plan: str) -> None:
    needed = "Two methods with finished runs in one plan are needed."
    if plan in settings.plans and not settings.has_two_methods(plan):
        show.empty(f"{needed} This plan has one. FILE: a plan of several.", settings.command("sweep FILE"))
        return
    what, command = settings.making(plan, is_search(settings.source, plan))
    show.empty(f"{needed} {what}", command)


def _picked(rows: dict[str, pd.DataFrame], baseline: str) -> tuple[str, str, str]:
    names = list(rows)
    base = next((name for name in names if name.partition(" ")[0] == baseline), names[0])
    other = next((name for name in names if name.startswith("robuq_uniform ") and name != base), "")
    other = other or next(name for name in names if name != base)
    left, right = st.columns(2)
    with left:
        a = choice("A", names, "a", other)
        metric = choice("Metric", list(METRICS), "metric", show=lambda name: METRICS[name][0])
    with right:
        b = choice("B", names, "b", base)
    return a, b, metric


def _differences(a: pd.DataFrame, b: pd.DataFrame, metric: str) -> None:
    st.subheader("Paired differences")
    pairs = pairs_data(a, b, metric)
    st.write(verdict(pairs, metric))
    if len(pairs):
        show.picture(draw("pairs", lambda: (pairs_figure(pairs, metric), pairs, ""), pairs_text(pairs)))
    data = differences_data(a, b)
    show.table(differences_table(data), data, "differences", "Paired difference A minus B in each metric")


def _curves(settings: Settings, plan: str, a: pd.DataFrame, b: pd.DataFrame, names: tuple[str, str]) -> None:
    st.subheader("Training loss")
    runs = pd.concat([a.assign(variant=names[0]), b.assign(variant=names[1])], ignore_index=True)

    def make() -> Picture | None:
        data = curves_data(runs.assign(act_bits=float("nan")), history_reader(settings.source))
        if data.empty:
            return None
        caption = "Training loss of quantization-aware training, smoothed. Lines: means over seeds; bands: their range."
        return draw("curves", lambda: (losses_figure(data, names), data, caption))

    shown: Any = kept(settings.source, [plan], ("curves", *names), make, keys=list(runs["key"]))
    if shown is None:
        st.write("Neither has a recorded history.")
    else:
        show.picture(shown)


def _settings_of(settings: Settings, plan: str, a: pd.DataFrame, b: pd.DataFrame) -> None:
    st.subheader("Settings that differ")
    left, right = (whole_record(settings.source, plan, part["key"].iloc[0]) for part in (a, b))
    data = config_differences(left.config, right.config)
    if data.empty:
        st.write("None but the seeds.")
    else:
        show.numbers(data, "settings", "Settings in which A and B differ", {"a": "A", "b": "B"})
