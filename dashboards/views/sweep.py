"""Sweep: how far each run is, read off the disk every two seconds."""

from __future__ import annotations

import math

import pandas as pd
import streamlit as st

from analysis.live import run_states, seconds_left, stages_at_work, state_counts
from analysis.recorded import counts_data
from dashboards import show
from dashboards.cached import plan_names, plan_runs
from dashboards.controls import choice
from dashboards.settings import Settings
from dashboards.settings import settings as told

EVERY = 2  # seconds
SHOWN = 10  # failures that are spelt out
QUIET = 60  # seconds after which a stage that says nothing is pointed out
FIRST = ("started", "failed", "waiting", "finished")  # the table's order: what happens now is in sight
ORDER = (
    "variant",
    "label",
    "seed",
    "state",
    "stage",
    "progress",
    "steps_per_second",
    "left",
    "silent",
    "loss",
    "failure",
    "stages_done",
    "stages",
    "key",
)


def page(settings: Settings) -> None:
    if settings.plans:
        _watched(settings)
    else:
        _unwatched(settings)


def _watched(settings: Settings) -> None:
    plan = choice("Plan", list(settings.plans), "plan")
    st.caption(" ".join(settings.plans[plan]["description"].split()))
    if settings.plans[plan]["runs"] is None:
        _wait_for_runs(plan)
    else:
        _live(settings, plan)


@st.fragment(run_every=1)
def _wait_for_runs(plan: str) -> None:
    if told().plans[plan]["runs"] is None:
        st.info("The plan's runs are being found, which takes seconds for thousands of them.")
    else:
        st.rerun()


@st.fragment(run_every=EVERY)
def _live(settings: Settings, plan: str) -> None:
    source = settings.source
    if source.folder is None:
        words = settings.made_by[plan].removeprefix("sweep ")
        show.empty("A sweep is watched through its output folder.", f"robuq dashboard --plan {words} --output DIR")
        return
    root = source.folder / "stages"
    runs = run_states(settings.plans[plan], root)
    counts = state_counts(runs)
    with st.container(horizontal=True):
        for state, count in counts.items():
            st.metric(state, count)
        done = counts["finished"] + counts["failed"] == len(runs)
        st.metric(
            "time left, about", "none" if done else _duration(seconds_left(settings.plans[plan], root)) or "unknown"
        )
    st.progress(counts["finished"] / max(len(runs), 1), f"{counts['finished']} of {len(runs)} runs finished")
    if not counts["finished"] and not counts["started"] and not counts["failed"]:
        show.empty("Nothing of this plan has begun.", settings.command(settings.made_by[plan]))
    _failures(runs[runs["state"] == "failed"])
    _quiet(runs, settings.command(settings.made_by[plan]))
    st.subheader("Runs")
    at_work_first = runs.sort_values("state", key=lambda states: states.map(FIRST.index), kind="stable")
    _table(at_work_first, f"{plan}_runs", "State of each run of the plan, with the stage it is at")


def _failures(failed: pd.DataFrame, of: str = "") -> None:
    """The first of them; the tables have all."""
    for _, run in failed[:SHOWN].iterrows():
        where = f" in {run['stage']}" if "stage" in run else ""
        st.error(f"{of}{run['variant']} {run['label']} seed {run['seed']} failed{where}: {run['failure']}")
    if len(failed) > SHOWN:
        st.error(f"{of}and {len(failed) - SHOWN} more runs failed")


def _quiet(runs: pd.DataFrame, command: str) -> None:
    quiet = runs[(runs["state"] == "started") & (runs["quiet_seconds"] > QUIET)]
    if len(quiet):
        longest = _duration(float(quiet["quiet_seconds"].max()))
        st.warning(f"{len(quiet)} started runs have said nothing for up to {longest}. If no sweep is running:")
        show.copied(command)


def _table(data: pd.DataFrame, name: str, text: str) -> None:
    shown = data.assign(left=data["seconds_left"].map(_duration), silent=data["quiet_seconds"].map(_duration))
    shown = shown.drop(columns=["step", "steps", "seconds_left", "quiet_seconds"])
    shown = shown.loc[:, (shown.notna() & (shown != "")).any()]  # columns of what is under way, while something is
    order = [column for column in ORDER if column in shown]
    columns = {
        "progress": st.column_config.ProgressColumn("progress", min_value=0.0, max_value=1.0, format="percent"),
        "steps_per_second": st.column_config.NumberColumn("steps/s", format="%.1f"),
        "loss": st.column_config.NumberColumn("loss", format="%.4f"),
        "left": "stage left",
        "silent": "silent for",
        "stages_done": "stages done",
        "stages": "of",
    }
    show.numbers(shown[order], name, text, columns)


def _duration(seconds: float) -> str:
    """`42 s`, `12 min`, `3.4 h`; empty where it is not known."""
    if math.isnan(seconds):
        return ""
    if seconds < 100:
        return f"{seconds:.0f} s"
    return f"{seconds / 60:.0f} min" if seconds < 6000 else f"{seconds / 3600:.1f} h"


def _unwatched(settings: Settings) -> None:
    """Without a plan nobody knows what is still to come: what is at work, and what is recorded."""
    st.info("With a plan, this page shows every run of it, also those to come:")
    show.copied(settings.command("dashboard --plan FILE"))
    _at_work(settings)
    source = settings.source
    names = plan_names(source)
    st.subheader("Recorded")
    if not names:
        show.empty("No run is recorded yet.", settings.command("sweep smoke"))
        return
    runs = {name: plan_runs(source, name) for name in names}
    for name, own in runs.items():
        _failures(own[own["status"] == "failed"], f"{name}: ")
    show.numbers(counts_data(runs), "recorded", "Recorded runs of each plan")


@st.fragment(run_every=EVERY)
def _at_work(settings: Settings) -> None:
    st.subheader("Stages that are begun")
    if settings.source.folder is None:
        show.empty("They are seen through the output folder.", "robuq dashboard --output DIR")
        return
    data = stages_at_work(settings.source.folder / "stages")
    if data.empty:
        st.write("None: no sweep is under way here.")
        return
    _table(data, "stages_at_work", "Stages that are begun and not done, with their progress")
