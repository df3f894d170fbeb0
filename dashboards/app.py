"""The app that `robuq dashboard` runs: one page a question, all of them over what analysis computes."""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from importlib import import_module

import streamlit as st

from analysis.recorded import StoreAway
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


def view(path: str) -> Callable[[Settings], None]:
    """Imported when it is first looked at: what one page does not need, it does not wait for."""
    page: Callable[[Settings], None] = import_module(f"dashboards.views.{path}").page
    return page


def run_page(path: str) -> None:
    """A store that goes away is a message and a way on, never a traceback; so is what analysis refuses to compare."""
    own = settings()
    try:
        view(path)(own)
    except StoreAway as error:
        st.error(f"The records cannot be read now: {error}")
        st.write("The page tries again when it is loaded again. If the records were removed, make them anew:")
        st.code(own.command("sweep smoke"), language="bash")
    except ValueError as error:
        st.warning(str(error))


def main() -> None:
    st.set_page_config(page_title="RobuQ", layout="wide")
    pages = [
        st.Page(partial(run_page, path), title=title, url_path=path, default=path == next(iter(PAGES)))
        for path, title in PAGES.items()
    ]
    shown = st.navigation(pages)
    with st.sidebar:
        st.caption(f"records: {settings().source.name}")
    shown.run()


if __name__ == "__main__":
    main()
