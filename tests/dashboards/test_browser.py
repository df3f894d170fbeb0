"""The command and every page in a real browser: wide and light, narrow and dark, without an error in the console.

With ROBUQ_SCREENSHOTS=FOLDER the pictures of docs/dashboard.md are written there.
"""

from __future__ import annotations

import os
import shutil
import socket
import subprocess
import sys
import time
import urllib.error
import urllib.request
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from dashboards.app import PAGES

sync_api = pytest.importorskip("playwright.sync_api", reason="Playwright's client is not installed")
CHROMIUM = shutil.which("chromium") or shutil.which("chromium-browser")
pytestmark = pytest.mark.skipif(CHROMIUM is None, reason="no chromium in PATH: apt-get install chromium")

WAIT = 90_000  # milliseconds, for a busy machine
SCREENS = {"wide": (1280, "light"), "phone": (390, "dark")}
PROBES = ("/_stcore/health", "/_stcore/host-config")  # where Streamlit looks for the app's root from a page's address


@pytest.fixture(scope="module")
def address(recorded: Path, plans: Path) -> Iterator[str]:
    """Of the pages, as `robuq dashboard` serves them."""
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    words = ["dashboard", "--output", str(recorded), "--plan", str(plans / "tiny.yaml"), "--port", str(port)]
    process = subprocess.Popen([sys.executable, "-m", "experiments.cli", *words], stdout=subprocess.PIPE, text=True)
    try:
        assert process.stdout is not None
        url = process.stdout.readline().strip()
        assert url == f"http://127.0.0.1:{port}"
        wait_for(f"{url}/_stcore/health", process)
        yield url
    finally:
        process.terminate()
        process.communicate(timeout=30)


def wait_for(url: str, process: subprocess.Popen[str]) -> None:
    end = time.monotonic() + WAIT / 1000
    while time.monotonic() < end and process.poll() is None:
        try:
            with urllib.request.urlopen(url, timeout=5):
                return
        except urllib.error.URLError:
            time.sleep(0.2)
    pytest.fail(f"{url} does not answer")


@pytest.fixture(scope="module")
def browser() -> Iterator[Any]:
    with sync_api.sync_playwright() as playwright:
        found = playwright.chromium.launch(executable_path=CHROMIUM, args=["--no-sandbox"])
        yield found
        found.close()


@pytest.mark.slow
@pytest.mark.parametrize("screen", SCREENS)
def test_every_page_in_a_browser(screen: str, address: str, browser: Any) -> None:
    width, scheme = SCREENS[screen]
    context = browser.new_context(viewport={"width": width, "height": 900}, color_scheme=scheme)
    page, errors = context.new_page(), []
    refused: list[str] = []
    page.set_default_timeout(WAIT)
    page.on("console", lambda said: errors.append(said.text) if said.type == "error" else None)
    page.on("pageerror", lambda error: errors.append(str(error)))
    page.on("response", lambda answer: refused.append(answer.url) if answer.status >= 400 else None)
    first = next(iter(PAGES))
    for path, title in PAGES.items():
        page.goto(f"{address}/{'' if path == first else path}?plan=tiny")
        page.get_by_role("heading", name=title, level=1).wait_for()
        page.locator('[data-testid="stDownloadButton"]').first.wait_for()
        page.locator('[data-testid="stStatusWidget"]').wait_for(state="detached")
        check(page, path, width, scheme)
        keep(page, f"{path}_{screen}", width)
    assert [url for url in refused if not url.endswith(PROBES)] == []
    assert [text for text in errors if not ("404" in text and refused)] == []
    context.close()


def check(page: Any, path: str, width: int, scheme: str) -> None:
    """Nothing wider than the screen, every picture with words, the page in the colours that were asked for."""
    assert page.locator('[data-testid="stException"]').count() == 0, path
    assert page.evaluate("document.documentElement.scrollWidth") <= width, path
    pictures = page.locator("main img, section img")
    assert all((pictures.nth(n).get_attribute("alt") or "").strip() for n in range(pictures.count())), path
    colour = page.evaluate("getComputedStyle(document.querySelector('.stApp')).backgroundColor")
    bright = sum(int(part) for part in colour.strip("rgba()").split(",")[:3]) / 3 > 128
    assert bright == (scheme == "light"), (path, colour)


def keep(page: Any, name: str, width: int) -> None:
    """A picture of the whole page, not of what fits the window alone."""
    folder = os.environ.get("ROBUQ_SCREENSHOTS")
    if not folder:
        return
    inner = (
        "Math.max(900, ...[...document.querySelectorAll('*')]"
        ".filter(e => /auto|scroll/.test(getComputedStyle(e).overflowY)).map(e => e.scrollHeight))"
    )
    page.set_viewport_size({"width": width, "height": min(int(page.evaluate(inner)), 3000)})
    page.screenshot(path=f"{folder}/{name}.png")
    page.set_viewport_size({"width": width, "height": 900})
