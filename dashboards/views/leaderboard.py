"""Leaderboard: every method's mean and interval over seeds, filtered, to take away as CSV and LaTeX."""

from __future__ import annotations

import pandas as pd
import streamlit as st

from analysis.leaderboard import filtered, leaderboard_data, leaderboard_table
from dashboards import show
from dashboards.cached import configurations, is_search, kept, plan_names, plan_runs
from dashboards.controls import choice
from dashboards.settings import Settings

ALL = "all"


def page(settings: Settings) -> None:
    names = plan_names(settings.source)
    if not names:
        show.empty("No run is recorded yet.", settings.filling())
        return
    left, right = st.columns(2)
    with left:
        plan = choice("Plan", [*names, ALL], "plan", settings.default_of(names))
    shown = names if plan == ALL else [plan]
    runs = pd.concat([plan_runs(settings.source, name) for name in shown], ignore_index=True)
    done = filtered(runs)
    if done.empty:
        _nothing(settings, plan)
        _failures(runs)
        return
    with right:
        dataset = choice("Data set", sorted(done["dataset"].unique()), "dataset")
    done = filtered(done, dataset)
    with left:
        label = choice("Weights / activations", [ALL, *sorted(done["label"].unique())], "label")
    done = filtered(done, label="" if label == ALL else label)
    protocols = list(done["protocol"].value_counts().index)  # that of most runs is shown first
    text = "Numbers of different protocols (data, evaluation, code epoch) cannot be compared"
    with right:
        protocol = choice("Protocol", protocols, "protocol", help=text)
    done = filtered(done, protocol=protocol)
    what = ("leaderboard", dataset, label, protocol)
    data = kept(settings.source, shown, what, lambda: leaderboard_data(done, configurations(settings.source)))
    show.table(leaderboard_table(data), data, "leaderboard", "Methods ordered by held-out loss")
    _failures(runs)


def _nothing(settings: Settings, plan: str) -> None:
    if plan == ALL:
        show.empty("No run is finished and recorded.", settings.filling())
        return
    what, command = settings.making(plan, is_search(settings.source, plan))
    show.empty(f"No run of this plan is finished and recorded. {what}", command)


def _failures(runs: pd.DataFrame) -> None:
    failed = runs[runs["status"] == "failed"]
    if len(failed):
        with st.expander(f"{len(failed)} failed runs, which are in no row"):
            show.numbers(failed[["plan", "variant", "label", "seed", "failure", "key"]], "failed", "Failed runs")
