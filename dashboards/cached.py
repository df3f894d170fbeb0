"""What pages read, kept as long as its fingerprint stays: one copy for all readers, which nobody changes in place."""

from __future__ import annotations

from collections.abc import Callable, Collection, Iterator
from contextlib import contextmanager
from contextvars import ContextVar
from typing import Any, TypeVar

import numpy as np
import pandas as pd
import streamlit as st

from analysis import leaderboard, recorded
from analysis.configurations import Configurations
from analysis.recorded import PlanRuns, Source

Made = TypeVar("Made")
PLANS, FILES = 64, 24  # kept at once; some pages look at every plan that there is
READING = "reading the records"
_MOMENT: ContextVar[dict[tuple[Any, ...], Any] | None] = ContextVar("_MOMENT", default=None)


@contextmanager
def one_moment() -> Iterator[None]:
    """All that is shown inside is of one moment: what is drawn of records is kept under their own fingerprint, and not
    under that of newer ones that came meanwhile."""
    token = _MOMENT.set({})
    try:
        yield
    finally:
        _MOMENT.reset(token)


def _once(what: tuple[Any, ...], make: Callable[[], Made]) -> Made:
    """`make()`, once a moment."""
    made = _MOMENT.get()
    if made is None:
        return make()
    if what not in made:
        made[what] = make()
    found: Made = made[what]
    return found


@st.cache_resource(max_entries=PLANS, show_spinner=READING)
def _names(source: Source, fingerprint: str) -> list[str]:
    return recorded.plan_names(source)


def plan_names(source: Source) -> list[str]:
    return _names(source, source.fingerprint()) if source.is_there else []


@st.cache_resource(max_entries=PLANS, show_spinner=False)
def _plan(source: Source, plan: str) -> PlanRuns:
    return PlanRuns(source, plan)


def _known(source: Source, plan: str) -> Any:
    """The plan's runs as they are now; those alone are read that have changed since somebody looked."""
    return _once((source, plan), lambda: _looked(_plan(source, plan)))


def _looked(runs: PlanRuns) -> Any:
    if runs.is_read:
        return runs.records()
    with st.spinner(READING):
        return runs.records()


def plan_records(source: Source, plan: str) -> list[Any]:
    return list(_known(source, plan).records.values())


@st.cache_resource(max_entries=PLANS, show_spinner=False)
def _runs(source: Source, plan: str, fingerprint: int, _of: Any) -> pd.DataFrame:
    return recorded.frame_of(_of.records.values())


def plan_runs(source: Source, plan: str) -> pd.DataFrame:
    known = _known(source, plan)
    return _runs(source, plan, known.fingerprint, known)


@st.cache_resource(max_entries=FILES, show_spinner=False)
def _whole(source: Source, key: str, fingerprint: int, _light: Any) -> Any:
    return recorded.whole_record(source, _light)


def whole_record(source: Source, plan: str, key: str) -> Any:
    """
    Raises:
        ValueError: the run was deleted since the page was begun.
    """
    known = _known(source, plan)
    if key not in known.by_key:
        raise ValueError(f"run {key} is no longer recorded: load the page again")
    return _whole(source, key, known.fingerprint_of([key]), known.by_key[key])


@st.cache_resource(max_entries=FILES, show_spinner=False)
def _arrays(source: Source, location: str, fingerprint: int) -> dict[str, Any]:
    with np.load(recorded.open_file(source, location), allow_pickle=False) as arrays:
        return {name: arrays[name] for name in arrays.files}


def arrays(source: Source, plan: str, key: str, location: str) -> dict[str, Any]:
    """`location`: of an artefact of the run with that key."""
    return _arrays(source, location, _known(source, plan).fingerprint_of([key]))


@st.cache_resource(max_entries=PLANS, show_spinner=False)
def configurations(source: Source) -> Configurations:
    """One for all plans and readers. It grows with the runs that are looked at, and asks for few of them."""

    def find(plan: str, key: str) -> Any:
        light = _known(source, plan).by_key.get(key)
        return None if light is None else recorded.config_of(source, light)

    return Configurations(find)


def cells(source: Source, plan: str) -> dict[str, pd.DataFrame]:
    """The plan's finished runs by what they share, as `analysis.leaderboard` has them."""
    found: dict[str, pd.DataFrame] = kept(
        source, [plan], ("cells",), lambda: leaderboard.cells(plan_runs(source, plan), configurations(source))
    )
    return found


@st.cache_resource(max_entries=PLANS, show_spinner=READING)
def _search_names(source: Source, fingerprint: str) -> list[str]:
    return recorded.search_names(source)


def search_names(source: Source) -> list[str]:
    """A listing of a folder, or a question to a server."""
    return recorded.search_names(source) if source.folder else _search_names(source, source.fingerprint())


@st.cache_resource(max_entries=PLANS, show_spinner=False)
def _search(source: Source, name: str, fingerprint: str) -> Any:
    return recorded.search_record(source, name)


def search_record(source: Source, name: str) -> Any:
    return _search(source, name, _search_state(source, name))


def is_search(source: Source, name: str) -> bool:
    """Whether these are the records of a search."""
    return name in search_names(source) and search_record(source, name) is not None


def _search_state(source: Source, name: str) -> str:
    return _once((source, "search", name), lambda: source.search_fingerprint(name))


@st.cache_resource(max_entries=4 * FILES, show_spinner="drawing")
def _kept(what: tuple[Any, ...], _make: Callable[[], Any]) -> Any:
    return _make()


def kept(
    source: Source, plans: Collection[str], what: tuple[Any, ...], make: Callable[[], Any], keys: Collection[str] = ()
) -> Any:
    """`make()`, made once for `what` and the records of these plans, or of their runs with these keys. `what` must tell
    all else that it depends on."""
    known = [_known(source, plan) for plan in plans]
    state = [one.fingerprint_of(keys) if keys else one.fingerprint for one in known]
    return _kept((source, *plans, *state, *keys, *what), make)


def kept_of_search(source: Source, name: str, what: tuple[Any, ...], make: Callable[[], Any]) -> Any:
    """`make()`, made once for `what` and this search's record."""
    return _kept((source, name, _search_state(source, name), *what), make)
