"""The command and every page in a real browser: wide and light, narrow and dark, by keyboard, while the records come,
go and come back, and never with an error in the console.

With ROBUQ_SCREENSHOTS=FOLDER the pictures of docs/dashboard.md are written there; with ROBUQ_DASHBOARD="WORDS", too,
they are of what `robuq dashboard WORDS` shows. WORDS end with the plan that the page Sweep shows.
"""

from __future__ import annotations

import json
import os
import shlex
import shutil
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from browsing import CHROMIUM, LEAST, SCREENS, WAIT, Pixels, Tab, contrast_of, picture_of, served, until
from one_command import robuq

from dashboards.app import PAGES
from experiments.cli_dashboard import dashboard_data
from experiments.plan import load_plan

sync_api = pytest.importorskip("playwright.sync_api", reason="Playwright's client is not installed")
pytestmark = [
    pytest.mark.slow,
    pytest.mark.skipif(CHROMIUM is None, reason="no chromium in PATH: apt-get install chromium"),
]
OTHERS = shlex.split(os.environ.get("ROBUQ_DASHBOARD", ""))  # words of the command, for pictures of other records
FILLED_BY = dict.fromkeys(PAGES, "sweep smoke") | {"search": "search smoke"}
FILLED_BY_PLAN = ("sweep", "leaderboard", "ablation")  # by the plan that is watched


@pytest.fixture(scope="module")
def browser() -> Iterator[Any]:
    with sync_api.sync_playwright() as playwright:
        found = playwright.chromium.launch(executable_path=CHROMIUM, args=["--no-sandbox"])
        yield found
        found.close()


@pytest.fixture(scope="module")
def address(request: pytest.FixtureRequest) -> Iterator[str]:
    """Of the pages of recorded runs, served from the folder above them: what the pages say of places is short."""
    if OTHERS:
        with served(*OTHERS) as url:
            yield url
        return
    recorded, plans = (request.getfixturevalue(name) for name in ("recorded", "plans"))
    watched = [word for name in ("tiny", "broken") for word in ("--plan", plans / f"{name}.yaml")]
    with served("--output", recorded.name, *watched, folder=recorded.parent) as url:
        yield url


@pytest.mark.parametrize("screen", SCREENS)
def test_every_page(screen: str, address: str, browser: Any) -> None:
    watched = f"?plan={OTHERS[-1]}" if OTHERS else ""
    with Tab(browser, screen) as tab:
        for path, title in PAGES.items():
            tab.open(f"{address}/{path}{watched if path == 'sweep' else ''}", title)
            tab.page.locator('[data-testid="stDownloadButton"]').first.wait_for()
            tab.settle()
            tab.check(path)
            assert tab.page.title() == f"{title} · RobuQ"
            assert not OTHERS or os.getcwd() not in tab.page.locator("body").inner_text()
            tab.keep(f"{path}_{screen}")
        assert tab.errors == []
        assert {url for url in tab.asked if not url.startswith((address, "data:", "blob:"))} == set()


needs_own_records = pytest.mark.skipif(bool(OTHERS), reason="other records are shown: ROBUQ_DASHBOARD")


@needs_own_records
def test_failed_runs(address: str, browser: Any) -> None:
    with Tab(browser, "wide") as tab:
        for path in ("sweep", "leaderboard"):
            tab.open(f"{address}/{path}?plan=broken", PAGES[path])
            tab.check(path)
            assert "failed" in tab.page.locator(".stMain").inner_text()
        assert tab.errors == []


@needs_own_records
def test_the_start_is_the_sweep_and_links_keep_their_choices(address: str, browser: Any) -> None:
    with Tab(browser, "wide") as tab:
        tab.open(f"{address}/?plan=broken", "Sweep")
        assert tab.page.url == f"{address}/sweep?plan=broken"
        tab.open(f"{address}/samples?plan=tiny&shown=difference", "Samples")
        assert tab.page.get_by_role("radio", name="difference").is_checked()
        tab.page.get_by_role("link", name="Leaderboard").click()
        tab.page.get_by_role("heading", name="Leaderboard", level=1).wait_for()
        assert tab.page.url.startswith(f"{address}/leaderboard")
        assert tab.errors == []


@needs_own_records
def test_everything_is_reached_by_keyboard_and_shows_that_it_is(address: str, browser: Any) -> None:
    with Tab(browser, "wide") as tab:
        page = tab.page
        tab.open(f"{address}/leaderboard?plan=tiny", "Leaderboard")
        page.locator('[data-testid="stDownloadButton"]').first.wait_for()
        tab.settle()
        before = picture_of(page)
        reached = []
        for _ in range(40):
            page.keyboard.press("Tab")
            name = page.evaluate(
                "(e => e.getAttribute('aria-label') || e.innerText || e.tagName)(document.activeElement)"
            )
            reached.append(name.strip())
            if name != "BODY":
                until(lambda: changed_pixels(page, before) > 20, f"the focus on {name!r} is not seen")
        wanted = {*PAGES.values(), "leaderboard.csv", "leaderboard.tex"}
        assert wanted <= set(reached)
        assert all(any(label in name for name in reached) for label in ("Plan", "Data set", "Weights", "Protocol"))


def changed_pixels(page: Any, before: Pixels) -> int:
    return int((picture_of(page) != before).any(axis=-1).sum())


@needs_own_records
def test_a_choice_by_keyboard_is_in_the_address(address: str, browser: Any) -> None:
    with Tab(browser, "wide") as tab:
        tab.open(f"{address}/samples?plan=tiny", "Samples")
        tab.page.get_by_role("radio", name="A", exact=True).focus()
        tab.page.keyboard.press("ArrowRight")
        tab.page.wait_for_url("**shown=B**")
        assert tab.errors == []


@needs_own_records
@pytest.mark.parametrize("screen", SCREENS)
def test_tables_can_be_read(screen: str, address: str, browser: Any) -> None:
    with Tab(browser, screen, scale=3) as tab:
        tab.open(f"{address}/leaderboard?plan=tiny", "Leaderboard")
        table = tab.page.locator('[data-testid="stDataFrame"]').first
        table.wait_for()
        tab.settle()
        pixels = picture_of(table)
        head, body = pixels[6:96, 6:-6], pixels[120:200, 6:-6]  # at three pixels each
        assert contrast_of(head) >= LEAST
        assert contrast_of(body) >= LEAST


@needs_own_records
def test_records_come_go_and_come_back(recorded: Path, plans: Path, browser: Any, tmp_path: Path) -> None:
    out = tmp_path / "out"
    plan = plans / "tiny.yaml"
    with served("--output", "out", "--plan", plan, folder=tmp_path) as address, Tab(browser, "phone") as tab:
        for path, title in PAGES.items():
            tab.open(f"{address}/{path}", title)
            command = f"sweep {plan}" if path in FILLED_BY_PLAN else FILLED_BY[path]
            tab.page.get_by_text(f"robuq {command} --output out").first.wait_for()
            tab.check(path)
        see_a_stage_begin(tab, address, out, plan)
        tab.open(f"{address}/leaderboard", "Leaderboard")
        table = tab.page.locator('[data-testid="stDataFrame"]')
        shutil.copytree(recorded, out, dirs_exist_ok=True)
        table.wait_for()  # by itself
        store, kept = out / "mlflow.db", out / "kept.db"
        store.rename(kept)
        store.write_text("this is no database, " * 100)
        tab.page.reload()
        tab.page.get_by_text("The records cannot be read now").wait_for()
        tab.check("away")
        kept.replace(store)
        table.wait_for()
        store.rename(kept)
        tab.page.get_by_role("link", name="Ablation").dispatch_event("click")
        tab.page.get_by_text("No run is recorded yet").wait_for()
        kept.replace(store)
        table.first.wait_for()
        assert tab.page.get_by_role("heading", name="Ablation", level=1).is_visible()
        assert tab.errors == []


def see_a_stage_begin(tab: Tab, address: str, out: Path, plan: Path) -> None:
    """As a worker that trains leaves it; the page that is open finds it."""
    tab.open(f"{address}/sweep", "Sweep")
    runs = dashboard_data(out, [(str(plan), load_plan(plan))], None)["plans"]["tiny"]["runs"]
    kind, stage = next(iter(runs[0]["stages"].items()))
    work = out / "stages" / kind / f"{stage['key']}.work"
    work.mkdir(parents=True)
    (work / "progress.json").write_text(json.dumps({"step": 9, "steps": 40, "steps_per_second": 2.0, "loss": None}))
    tab.page.get_by_text("Nothing of this plan has begun").wait_for(state="detached")
    (work / "failure.json").write_text(json.dumps({"reason": "diverged", "error": "at step 9"}))
    tab.page.get_by_text("diverged: at step 9").first.wait_for()
    tab.check("failed")


@needs_own_records
def test_a_search_s_report_is_one_file_without_a_network(recorded: Path, browser: Any, tmp_path: Path) -> None:
    """Carried off to another folder, in a browser that has no network at all."""
    assert robuq("report", "searches/smoke", "--html", "--output", recorded) == 0
    file = shutil.copy(recorded / "reports" / "smoke_search" / "report.html", tmp_path)
    context = browser.new_context(viewport={"width": 390, "height": 900}, offline=True)
    page, asked, errors = context.new_page(), [], []
    page.set_default_timeout(WAIT)
    page.on("request", lambda request: asked.append(request.url))
    page.on("console", lambda said: errors.append(said.text) if said.type == "error" else None)
    page.goto(f"file://{file}")
    page.get_by_role("heading", name="smoke_search", level=1).wait_for()
    assert errors == []
    assert {url.partition(":")[0] for url in asked} == {"file"}
    pictures = page.locator("img")
    assert pictures.count() >= 3
    for place in range(pictures.count()):
        picture = pictures.nth(place)
        assert picture.evaluate("image => image.complete && image.naturalWidth > 0")
        assert len(picture.get_attribute("alt") or "") > 20
    assert page.evaluate("document.documentElement.scrollWidth") <= 390
    assert np.all(
        [link.startswith(("data:", "#")) for link in page.eval_on_selector_all("a", "a => a.map(x => x.href)")]
    )
    context.close()
