"""Samples: what the methods draw from the same noise, side by side, and two of them flipped in place."""

from __future__ import annotations

import base64
from html import escape
from typing import Any

import streamlit as st

from analysis.figures.samples import samples_csv, samples_data
from analysis.recorded import opener
from analysis.sample_columns import Column, column_png, columns_of, difference_png, distance, row_png
from dashboards import show
from dashboards.cached import kept, plan_names, plan_runs
from dashboards.controls import choice, choices, flip
from dashboards.settings import Settings

SHOWN = 8  # columns at first


def page(settings: Settings) -> None:
    plans = [name for name in plan_names(settings.source) if plan_runs(settings.source, name)["samples"].notna().any()]
    if not plans:
        show.empty("No finished run has recorded images yet.", settings.command("sweep smoke"))
        return
    plan = choice("Plan", plans, "plan", settings.default_of(plans))
    source, runs = settings.source, plan_runs(settings.source, plan)
    data: Any = kept(source, [plan], ("samples",), lambda: samples_data(runs, opener(source)))
    columns = columns_of(data)
    names = choices("Methods", list(columns), "method", list(columns)[:SHOWN])
    st.caption("A column is a method, a row one noise and one class, the same for all columns. Not chosen by hand.")
    st.html(_strip([columns[name] for name in names]))
    show.downloads({"samples.csv": show.csv(samples_csv(data))})
    if len(columns) > 1:
        _flip(columns)


def _strip(columns: list[Column]) -> str:
    """Scrolls sideways where the page is narrow."""
    parts = [
        f'<figure style="margin:0;flex:0 0 4.6rem"><figcaption style="font-size:.75rem;line-height:1.2;height:4.9rem;'
        f'display:flex;align-items:end;padding-bottom:.3rem">{escape(column.name)}</figcaption>'
        f'<img src="{_uri(column_png(column))}" alt="{escape(column.text)}" style="width:4.5rem;'
        f'image-rendering:pixelated"></figure>'
        for column in columns
    ]
    style = "display:flex;gap:.5rem;overflow-x:auto;padding-bottom:.5rem"
    return f'<div style="{style}" tabindex="0" role="group" aria-label="samples by method">{"".join(parts)}</div>'


def _uri(png: bytes) -> str:
    return f"data:image/png;base64,{base64.b64encode(png).decode('ascii')}"


def _flip(columns: dict[str, Column]) -> None:
    st.subheader("Two in place")
    names = list(columns)
    left, right = st.columns(2)
    with left:
        a = choice("A", names, "a", names[0])
    with right:
        b = choice("B", names, "b", names[-1])
    which = flip("Shown", ["A", "B", "difference"], "shown")
    first, second = columns[a], columns[b]
    png = difference_png(first, second) if which == "difference" else row_png(second if which == "B" else first)
    text = (
        f"|A − B| of {first.text} and {second.text}"
        if which == "difference"
        else (second if which == "B" else first).text
    )
    st.image(png, width="stretch", alt=text)
    apart = distance(first, second)
    st.caption(f"{which}: {text}. Root mean squared difference of A and B: {apart:.1f} of 255.")
