"""Samples: what the methods draw from the same noise, side by side, and two of them flipped in place."""

from __future__ import annotations

import base64
from collections.abc import Callable
from functools import partial
from html import escape
from typing import Any

import pandas as pd
import streamlit as st

from analysis.figures.samples import PIXELS_IN_CSV, Drawn, drawn, samples_csv, samples_figure, side_by_side
from analysis.load import finished
from analysis.pictures import draw
from analysis.recorded import open_file, opener
from analysis.sample_columns import (
    Column,
    column_of,
    column_png,
    difference_png,
    distance,
    row_png,
    sampled_runs,
    title_of,
)
from dashboards import show
from dashboards.cached import cells, kept, plan_names, plan_runs
from dashboards.controls import choice, choices, flip
from dashboards.settings import Settings

SHOWN = 8  # columns at first
Runs = dict[str, dict[str, Any]]  # by name of the cell
CAPTION = (
    "A column is a method, a row one noise and one class, the same for all columns. Not chosen by hand: of runs that "
    "differ in their seeds alone the one with the lowest seed, and of each class the first image."
)


def page(settings: Settings) -> None:
    source = settings.source
    plans = [name for name in plan_names(source) if finished(plan_runs(source, name))["samples"].notna().any()]
    if not plans:
        show.empty("No finished run has recorded images yet.", settings.command("sweep smoke"))
        return
    plan = choice("Plan", plans, "plan", settings.default_of(plans))
    runs: Runs = kept(source, [plan], ("sampled",), lambda: sampled_runs(cells(source, plan)))
    runs = _of_one_protocol(runs)
    titles = {name: title_of(name, str(run["variant"])) for name, run in runs.items()}
    names = choices("Methods", list(runs), "method", list(runs)[:SHOWN], titles.__getitem__)
    more = len(runs) - len(names)
    st.caption(CAPTION + (f" {more} more methods can be chosen." if more else ""))
    if names:
        _columns(settings, plan, {name: runs[name] for name in names}, titles)
    if len(runs) > 1:
        _flip(settings, plan, runs, titles)


def _of_one_protocol(runs: Runs) -> Runs:
    """What is drawn from the same noise for the same classes."""
    protocols = list(dict.fromkeys(str(run["protocol"]) for run in runs.values()))
    if len(protocols) == 1:
        return runs
    text = "Images of different protocols (data, evaluation, code epoch) do not start from the same noise"
    protocol = choice("Protocol", protocols, "protocol", help=text)
    return {name: run for name, run in runs.items() if run["protocol"] == protocol}


def _drawn(settings: Settings, plan: str, run: dict[str, Any]) -> Drawn:
    make = partial(drawn, run, opener(settings.source))
    found: Drawn = kept(settings.source, [plan], ("drawn",), make, keys=[run["key"]])
    return found


def _columns(settings: Settings, plan: str, runs: Runs, titles: dict[str, str]) -> None:
    parts = {name: _drawn(settings, plan, run) for name, run in runs.items()}
    data = side_by_side(list(parts.values()))
    st.html(_strip([column_of(part, titles[name]) for name, part in parts.items()]))
    named = data.assign(name=data["key"].map({part.key: titles[name] for name, part in parts.items()}))
    show.downloads({"samples.csv": show.csv(samples_csv(data)), "samples.png": partial(_figure_png, named)})
    if len(runs) == 1:
        show.downloads(_all_images(settings, *runs.values()))
    if any(pixels.size > PIXELS_IN_CSV for pixels in data["pixels"]):
        st.caption(f"The CSV has no pixels of images of more than {PIXELS_IN_CSV} values: they are in samples.npz.")


def _figure_png(named: pd.DataFrame) -> bytes:
    return draw("samples", lambda: (samples_figure(named), named, "")).png


def _all_images(settings: Settings, *runs: dict[str, Any]) -> dict[str, Callable[[], bytes]]:
    """The runs' own files, which may be large."""
    return {f"samples_{run['key'][:8]}.npz": partial(_bytes_of, settings, str(run["samples"])) for run in runs}


def _bytes_of(settings: Settings, location: str) -> bytes:
    return open_file(settings.source, location).read_bytes()


def _strip(columns: list[Column]) -> str:
    """Scrolls sideways where the page is narrow."""
    parts = [
        f'<figure style="margin:0;flex:0 0 4.6rem"><figcaption style="font-size:.75rem;line-height:1.2;'
        f"min-height:4.9rem;overflow-wrap:anywhere;"
        f'display:flex;align-items:end;padding-bottom:.3rem">{escape(column.name)}</figcaption>'
        f'<img src="{_uri(column_png(column))}" alt="{escape(column.text)}" style="width:4.5rem;'
        f'image-rendering:pixelated"></figure>'
        for column in columns
    ]
    style = "display:flex;align-items:end;gap:.5rem;overflow-x:auto;padding-bottom:.5rem"
    return f'<div style="{style}" tabindex="0" role="group" aria-label="samples by method">{"".join(parts)}</div>'


def _uri(png: bytes) -> str:
    return f"data:image/png;base64,{base64.b64encode(png).decode('ascii')}"


def _flip(settings: Settings, plan: str, runs: Runs, titles: dict[str, str]) -> None:
    st.subheader("Two in place")
    names = list(runs)
    left, right = st.columns(2)
    with left:
        a = choice("A", names, "a", names[0], titles.__getitem__)
    with right:
        b = choice("B", names, "b", names[-1], titles.__getitem__)
    which = flip("Shown", ["A", "B", "difference"], "shown")
    first, second = (column_of(_drawn(settings, plan, runs[name]), titles[name]) for name in (a, b))
    pictures: dict[str, tuple[str, Callable[[], bytes]]] = {
        "A": (f"samples_{first.key[:8]}.png", partial(row_png, first)),
        "B": (f"samples_{second.key[:8]}.png", partial(row_png, second)),
        "difference": (f"difference_{first.key[:8]}_{second.key[:8]}.png", partial(difference_png, first, second)),
    }
    texts = {"A": first.text, "B": second.text, "difference": f"|A − B| of {first.text} and {second.text}"}
    st.image(pictures[which][1](), width="stretch", alt=texts[which])
    apart = distance(first, second)
    st.caption(f"{which}: {texts[which]}. Root mean squared difference of A and B: {apart:.1f} of 255.")
    show.downloads({**dict(pictures.values()), **_all_images(settings, runs[a], runs[b])})
