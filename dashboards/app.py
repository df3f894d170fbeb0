"""The app that `robuq dashboard` runs: one page a question, all of them over what analysis computes."""

from __future__ import annotations

import time
from collections.abc import Callable
from functools import partial
from importlib import import_module

import streamlit as st

from analysis.recorded import StoreAway
from dashboards import show
from dashboards.cached import one_moment
from dashboards.settings import Settings, settings

PAGES = {  # path, which is also the module -> title; the first is the start
    "sweep": "Sweep",
    "leaderboard": "Leaderboard",
    "ablation": "Ablation",
    "bits": "Bits",
    "distributions": "Distributions",
    "samples": "Samples",
    "search": "Search",
}
LOOK = """<style>
.stMainBlockContainer {padding-top: 4rem}  /* of 6: the first numbers are in sight sooner */
.stMultiSelect [data-tag] {background: rgb(128 128 128 / .22)}  /* white on the dark theme's blue is hard to read */
.stMultiSelect [data-tag], .stMultiSelect [data-tag] * {color: inherit}
.stElementToolbar:focus-within {opacity: 1}  /* a table's buttons: a mouse shows them, and so must the keyboard */
</style>"""


def view(path: str) -> Callable[[Settings], None]:
    """Imported when it is first looked at: what one page does not need, it does not wait for."""
    page: Callable[[Settings], None] = import_module(f"dashboards.views.{path}").page
    return page


def run_page(path: str) -> None:
    """The title is in sight before anything is imported or read. A store that goes away is a message and a way on,
    never a traceback; so is what analysis refuses to compare."""
    st.title(PAGES[path])
    own = settings()
    try:
        with one_moment():
            view(path)(own)
    except StoreAway as error:
        st.error(f"The records cannot be read now: {error}")
        st.write(f"The page tries again every {show.AGAIN} seconds. If the records were removed, make them anew:")
        show.copied(own.filling() if own.plans else own.command("sweep FILE"))
        show.try_again(time.monotonic())
    except ValueError as error:
        st.warning(str(error))


def main() -> None:
    pages = [st.Page(partial(run_page, path), title=title, url_path=path) for path, title in PAGES.items()]
    start = st.Page(
        lambda: st.switch_page(pages[0], query_params=dict(st.query_params)),
        default=True,
        visibility="hidden",
        title="RobuQ",
    )
    shown = st.navigation([start, *pages])
    st.set_page_config(page_title=f"{shown.title} · RobuQ", layout="wide")
    st.html(LOOK)
    with st.sidebar:
        st.caption(f"records: {settings().place}", help=settings().source.name)
    shown.run()


if __name__ == "__main__":
    main()
