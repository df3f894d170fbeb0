"""The server of the pages: Streamlit's own, whose first answer also says where the app's root is.

Streamlit's client takes `/leaderboard` for a page of an app at `/`, or for an app at `/leaderboard`, and finds out by
asking there first: two answers "404" in the console for every link that is opened. It does not ask where it is told.
"""

from __future__ import annotations

from pathlib import Path

import streamlit
from starlette.requests import Request
from starlette.responses import HTMLResponse
from starlette.routing import Route
from streamlit.starlette import App

from dashboards.app import PAGES

INDEX = Path(streamlit.__file__).parent / "static" / "index.html"
ROOT = "<script>window.__streamlit = {BACKEND_BASE_URL: window.location.origin}</script>"


def index_page(text: str) -> str:
    """Streamlit's page with the root and the app's name in its head, before any script.

    Raises:
        ValueError: the page has no head: this is another Streamlit.
    """
    if "<head>" not in text:
        raise ValueError(f"{INDEX} has no <head>: the dashboard needs Streamlit 1.67 or later")
    return text.replace("<head>", f"<head>{ROOT}", 1).replace("<title>Streamlit</title>", "<title>RobuQ</title>", 1)


async def index(request: Request) -> HTMLResponse:
    return HTMLResponse(index_page(INDEX.read_text(encoding="utf-8")), headers={"Cache-Control": "no-cache"})


app = App("app.py", routes=[Route("/", index), *(Route(f"/{path}", index) for path in PAGES)])
