"""Search: its history, its front, its parameters, and what its cheap rungs are worth; also while it is under way."""

from __future__ import annotations

from typing import Any

import streamlit as st

from analysis.evaluations import budget_name, evaluations_data
from analysis.figures.search import rung_correlations, rungs_data
from analysis.pictures import Picture, draw
from analysis.recorded import summary_of, tracking_page
from analysis.search_figures import TITLES, search_figures
from analysis.search_report import SEED
from analysis.study_page import study_page
from dashboards import show
from dashboards.cached import kept_of_search, search_names, search_record
from dashboards.controls import choice
from dashboards.settings import Settings


def page(settings: Settings) -> None:
    found = {name: record for name in search_names(settings.source) if (record := search_record(settings.source, name))}
    if not found:
        show.empty("No search is recorded yet.", settings.command("search smoke"))
        return
    name = choice("Search", list(found), "search")
    record = found[name]
    st.caption(" ".join(record.description.split()))
    state = "finished" if record.finished else "under way"
    st.write(f"{state}; {len(record.evaluations)} of {record.search['evaluations']} evaluations; {budget_name(record)}")
    if not record.evaluations:
        show.empty(
            "No evaluation is over yet. FILE: this search's, with its settings.", settings.command("search FILE")
        )
        return
    for line in summary_of(record):
        st.write(line)
    pictures: dict[str, Picture] = kept_of_search(settings.source, name, ("search",), lambda: _drawn(record))
    for title, shown in pictures.items():
        st.subheader(TITLES[title])
        show.picture(shown)
    st.subheader("Evaluations")
    show.numbers(evaluations_data(record), "evaluations", "Every evaluation of the search with its bits")
    _elsewhere(settings, record)


def _drawn(record: Any) -> dict[str, Picture]:
    pairs = rungs_data(record)
    built = search_figures(record, pairs, rung_correlations(pairs, SEED))
    return {name: draw(name, lambda one=one: one) for name, one in built.items()}  # type: ignore[misc]


def _elsewhere(settings: Settings, record: Any) -> None:
    """Optuna's and MLflow's own pages: a command that opens them, and a link where one is open."""
    st.subheader("Elsewhere")
    st.write("Optuna's own dashboard, with every trial of the study:")
    if address := study_page(record.name):
        st.link_button("Open the study in Optuna's dashboard", address)
    show.copied(f"optuna-dashboard {_storage(settings, record)}")
    st.write("MLflow's own pages, with every run and file:")
    if address := tracking_page(settings.source):
        st.link_button("Open the tracking server", address)
    elif settings.folder is not None:
        show.copied(f"mlflow ui --backend-store-uri sqlite:///{settings.path('mlflow.db')}")
    else:
        show.copied("mlflow ui --backend-store-uri URI")


def _storage(settings: Settings, record: Any) -> str:
    """Of the study: a database where the search names one, a file beside its record where it does not."""
    if record.search.get("storage"):
        return str(record.search["storage"])
    if settings.folder is None:
        return f"DIR/searches/{record.name}/study.journal"
    return settings.path("searches", record.name, "study.journal")
