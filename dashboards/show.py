"""How pages show what analysis made: pictures with words and data, tables, and what to do where there is nothing."""

from __future__ import annotations

import time
from collections.abc import Callable, Mapping
from typing import Any

import pandas as pd
import streamlit as st

from analysis.pictures import Picture
from analysis.render import TextTable, render

WIDTH = 560  # pixels of a figure on a page; less where the page is narrower
AGAIN = 5  # seconds after which a page that has nothing to show looks again


def empty(what: str, *commands: str) -> None:
    """The state of a page without data: what would be here, and the command that makes it."""
    st.info(what)
    for command in commands:
        copied(command)
    try_again(time.monotonic())


@st.fragment(run_every=AGAIN)
def try_again(since: float) -> None:
    """Runs once with its page, at `since`, and then by itself: the page is made anew."""
    if time.monotonic() - since > AGAIN / 2:
        st.rerun()


def copied(command: str) -> None:
    """A command to take away; it wraps, so that all of it is in sight on a phone."""
    st.code(command, language=None, wrap_lines=True)


def picture(shown: Picture, width: int = WIDTH) -> None:
    st.image(shown.png, width=width, alt=shown.text)
    if shown.caption:
        st.caption(shown.caption)
    downloads({f"{shown.name}.csv": csv(shown.data), f"{shown.name}.png": shown.png})


def table(shown: TextTable, data: pd.DataFrame, name: str, text: str) -> None:
    """Text cells on the page; the numbers as CSV and the table as LaTeX to take away. `text`: what it is, in words."""
    st.dataframe(shown.cells, hide_index=True, height="content", placeholder="", alt=text)
    if shown.caption:
        st.caption(shown.caption)
    downloads({f"{name}.csv": csv(data), f"{name}.tex": render(shown, "latex").encode()})


def numbers(
    data: pd.DataFrame,
    name: str,
    text: str,
    columns: Mapping[str, Any] | None = None,
    latex: TextTable | None = None,
) -> None:
    """A table of plain numbers. `columns`: Streamlit's configuration of them; `latex`: the same as text, of results."""
    st.dataframe(data, hide_index=True, column_config=columns, placeholder="", alt=text)
    downloads({f"{name}.csv": csv(data)} | ({f"{name}.tex": render(latex, "latex").encode()} if latex else {}))


def csv(data: pd.DataFrame) -> bytes:
    return data.to_csv(index=False, lineterminator="\n").encode()


def downloads(files: Mapping[str, bytes | Callable[[], bytes]]) -> None:
    """One button a file, side by side. What is not made yet is made when its button is pressed."""
    with st.container(horizontal=True):
        for name, content in files.items():
            st.download_button(name, content, file_name=name, key=f"download {name}", on_click="ignore")
