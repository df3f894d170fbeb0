"""Pickers whose choice is in the page's address, so that the address is a permanent link to what is shown."""

from __future__ import annotations

from collections.abc import Callable, Sequence

import streamlit as st


def choice(
    label: str,
    options: Sequence[str],
    name: str,
    default: str | None = None,
    show: Callable[[str], str] = str,
    help: str | None = None,
) -> str:
    """One of `options`, which are not empty; `name` is the query parameter. What was chosen under the same name on
    another page is kept, if it is to be had here."""
    wanted = [st.query_params.get(name), st.session_state.get(f"last {name}"), default]
    index = next((options.index(value) for value in wanted if value in options), 0)
    value = str(st.selectbox(label, options, index=index, key=name, format_func=show, help=help) or options[index])
    _remember(name, value)
    return value


def flip(label: str, options: Sequence[str], name: str) -> str:
    """One of a few, all in sight, so that one key or click goes from one to the next."""
    given = st.query_params.get(name)
    index = options.index(given) if given in options else 0
    value = str(st.radio(label, options, index=index, key=name, horizontal=True))
    st.query_params[name] = value
    return value


def choices(
    label: str, options: Sequence[str], name: str, default: Sequence[str], show: Callable[[str], str] = str
) -> list[str]:
    """Some of `options`, in their order."""
    given = st.query_params.get_all(name)
    known = [value for value in given if value in options] or [value for value in default if value in options]
    picked = st.multiselect(label, options, default=known, key=name, format_func=show)
    st.query_params[name] = picked
    return [value for value in options if value in picked]


def number(label: str, low: float, high: float, step: float, name: str, default: float, form: str = "%.2f") -> float:
    """On a slider; a value of the address that is out of reach is not taken."""
    try:
        wanted = float(st.query_params.get(name, default))
    except ValueError:
        wanted = default
    wanted = wanted if low <= wanted <= high else default
    value = float(st.slider(label, low, high, wanted, step, format=form, key=f"{name} {low:g} {high:g}"))
    st.query_params[name] = f"{value:g}"
    return value


def _remember(name: str, value: str) -> None:
    st.query_params[name] = value
    st.session_state[f"last {name}"] = value
