"""What pages read, kept as long as its fingerprint stays: one copy for all readers, which nobody changes in place."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np
import pandas as pd
import streamlit as st

from analysis import recorded
from analysis.recorded import Source

PLANS, FILES = 16, 24  # kept at once


@st.cache_resource(max_entries=PLANS, show_spinner="reading the records")
def _names(source: Source, fingerprint: str) -> list[str]:
    return recorded.plan_names(source)


def plan_names(source: Source) -> list[str]:
    return _names(source, source.fingerprint()) if source.is_there else []


@st.cache_resource(max_entries=PLANS, show_spinner="reading the records")
def _records(source: Source, plan: str, fingerprint: str) -> list[Any]:
    return recorded.plan_records(source, plan)


def plan_records(source: Source, plan: str) -> list[Any]:
    return _records(source, plan, source.fingerprint(plan))


@st.cache_resource(max_entries=PLANS, show_spinner=False)
def _runs(source: Source, plan: str, fingerprint: str) -> pd.DataFrame:
    return recorded.frame_of(_records(source, plan, fingerprint))


def plan_runs(source: Source, plan: str) -> pd.DataFrame:
    return _runs(source, plan, source.fingerprint(plan))


@st.cache_resource(max_entries=FILES, show_spinner=False)
def _whole(source: Source, plan: str, key: str, fingerprint: str) -> Any:
    light = next(record for record in _records(source, plan, fingerprint) if record.key == key)
    return recorded.whole_record(source, light)


def whole_record(source: Source, plan: str, key: str) -> Any:
    return _whole(source, plan, key, source.fingerprint(plan))


@st.cache_resource(max_entries=FILES, show_spinner=False)
def _arrays(source: Source, location: str, fingerprint: str) -> dict[str, Any]:
    with np.load(recorded.open_file(source, location), allow_pickle=False) as arrays:
        return {name: arrays[name] for name in arrays.files}


def arrays(source: Source, plan: str, location: str) -> dict[str, Any]:
    return _arrays(source, location, source.fingerprint(plan))


@st.cache_resource(max_entries=PLANS, show_spinner="reading the records")
def _search_names(source: Source, fingerprint: str) -> list[str]:
    return recorded.search_names(source)


def search_names(source: Source) -> list[str]:
    """A listing of a folder, or a question to a server."""
    return recorded.search_names(source) if source.folder else _search_names(source, source.fingerprint())


@st.cache_resource(max_entries=PLANS, show_spinner=False)
def _search(source: Source, name: str, fingerprint: str) -> Any:
    return recorded.search_record(source, name)


def search_record(source: Source, name: str) -> Any:
    return _search(source, name, source.fingerprint(name))


@st.cache_resource(max_entries=4 * FILES, show_spinner="drawing")
def _kept(what: tuple[Any, ...], _make: Callable[[], Any]) -> Any:
    return _make()


def kept(source: Source, plan: str, what: tuple[Any, ...], make: Callable[[], Any]) -> Any:
    """`make()`, made once for this plan's records and `what`, which must tell all that it depends on."""
    return _kept((source, plan, source.fingerprint(plan), *what), make)
