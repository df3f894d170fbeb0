"""Search: its history, its front, and what its cheap rungs are worth; also while it is under way."""

from __future__ import annotations

from typing import Any

import numpy as np
import streamlit as st

from analysis.evaluations import budget_name, evaluations_data
from analysis.figures.search import rung_correlations, rungs_data
from analysis.pictures import Picture, draw
from analysis.recorded import summary_of, tracking_page
from analysis.search_figures import TITLES, search_figures
from analysis.search_report import SEED
from dashboards import show
from dashboards.cached import kept, search_names, search_record
from dashboards.controls import choice
from dashboards.settings import Settings


def page(settings: Settings) -> None:
    st.title("Search")
    found = {name: record for name in search_names(settings.source) if (record := search_record(settings.source, name))}
    if not found:
        show.empty("No search is recorded yet.", settings.command("search smoke"))
        return
    name = choice("Search", list(found), "search")
    record = found[name]
    st.caption(" ".join(record.description.split()))
    state = "finished" if record.finished else "under way"
    st.write(f"{state}; {len(record.evaluations)} of {record.search['evaluations']} evaluations; {budget_name(record)}")
    for line in summary_of(record):
        st.write(line)
    if not record.evaluations:
        show.empty("No evaluation is over yet.", settings.command(f"search {name}"))
        return
    pictures: dict[str, Picture] = kept(settings.source, name, ("search", name), lambda: _drawn(record))
    for title, shown in pictures.items():
        st.subheader(TITLES[title])
        show.picture(shown)
    st.subheader("Evaluations")
    show.numbers(evaluations_data(record), "evaluations", "Every evaluation of the search with its bits")
    _elsewhere(settings, name)


def _drawn(record: Any) -> dict[str, Picture]:
    pairs = rungs_data(record)
    built = search_figures(record, pairs, rung_correlations(pairs, np.random.default_rng(SEED)))
    return {name: draw(name, lambda one=one: one) for name, one in built.items()}  # type: ignore[misc]


def _elsewhere(settings: Settings, name: str) -> None:
    st.subheader("Elsewhere")
    if settings.source.folder is not None:
        st.write("Optuna's own dashboard, with the importance of each parameter:")
        st.code(f"optuna-dashboard {settings.source.folder}/searches/{name}/study.journal", language="bash")
    if address := tracking_page(settings.source):
        st.link_button("The tracking server", address)
    else:
        st.code(f"mlflow ui --backend-store-uri {settings.source.name}", language="bash")
