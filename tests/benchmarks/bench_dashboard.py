"""Time until the pages of ten thousand runs are painted. Run: python tests/benchmarks/bench_dashboard.py DIR PLAN.yaml

DIR is an output folder and PLAN.yaml the plan that was swept there, such as bench_scale.py leaves with --folder, or
many_records.py. The command `robuq dashboard` is started, and Debian's chromium opens its pages by Playwright's client:
the sweep while the command still finds the plan's runs, then each at first (the server has read nothing for it yet) and
one once more. A filter is chosen, and another after one run of the store has changed. Writes dashboard.md beside this
file.
"""

from __future__ import annotations

import os
import platform
import shutil
import socket
import sqlite3
import subprocess
import sys
import time
import urllib.request
from collections.abc import Callable
from contextlib import closing
from functools import partial
from importlib.metadata import version
from pathlib import Path
from typing import Any

from playwright.sync_api import sync_playwright

from robuq.record.mlflow import read_runs, sqlite_uri

PAGES = ("sweep", "leaderboard", "ablation", "leaderboard")
TITLE, WHOLE = "a title", "the whole page"
WAIT = 90_000  # milliseconds
TICK = os.sysconf("SC_CLK_TCK")


def cpu_seconds(process: int) -> tuple[float, float]:
    """Of a process, and of all under it, as far as they live."""
    own, *others = (_seconds(each) for each in [process, *children(process)])
    return own, sum(others)


def _seconds(process: int) -> float:
    fields = Path(f"/proc/{process}/stat").read_text().rpartition(")")[2].split()
    return (int(fields[11]) + int(fields[12])) / TICK


def children(process: int) -> list[int]:
    own = [int(each) for each in Path(f"/proc/{process}/task/{process}/children").read_text().split()]
    return [*own, *(below for each in own for below in children(each))]


def started(words: list[str], port: int) -> tuple[subprocess.Popen[bytes], float]:
    """The server, and the seconds until it answers."""
    begun = time.perf_counter()
    process = subprocess.Popen(words, stdout=subprocess.DEVNULL)
    while process.poll() is None:
        try:
            urllib.request.urlopen(f"http://127.0.0.1:{port}/_stcore/health", timeout=5).close()
        except OSError:  # nobody listens yet, or nobody answers in time
            time.sleep(0.05)
        else:
            return process, time.perf_counter() - begun
    raise RuntimeError("the server has ended")


def painted(page: Any, title: str) -> dict[str, float]:
    """Seconds until there is a title, and until everything is there and nothing runs."""
    begun = time.perf_counter()
    page.get_by_role("heading", name=title, level=1).wait_for()
    seconds = {TITLE: time.perf_counter() - begun}
    page.locator('[data-testid="stDownloadButton"]').first.wait_for()
    page.locator('[data-testid="stApp"][data-test-script-state="notRunning"]').wait_for()
    return {**seconds, WHOLE: time.perf_counter() - begun}


def timed(what: str, process: int, act: Callable[[], dict[str, float]]) -> str:
    before, begun = cpu_seconds(process), time.perf_counter()
    act_begun = act()
    wall = time.perf_counter() - begun
    first = wall - act_begun[WHOLE] + act_begun[TITLE]
    command, pages = (now - then for now, then in zip(cpu_seconds(process), before, strict=True))
    return f"| {what} | {command:.1f} | {pages:.1f} | {first:.1f} | {wall:.1f} |"


def touch(folder: Path) -> None:
    """One run of the store gets another tag, and its record's folder another time, as when it is recorded again."""
    with closing(sqlite3.connect(folder / "mlflow.db")) as database, database:
        database.execute(
            "UPDATE tags SET value = ? WHERE key = 'mlflow.note.content' AND run_uuid ="
            " (SELECT min(run_uuid) FROM tags WHERE key = 'robuq.key')",
            (f"looked at {time.time()}",),
        )
    os.utime(folder / "runs" / "scale")


def visits(page: Any, address: str, process: int, folder: Path) -> list[str]:
    rows = []

    def visit(path: str) -> dict[str, float]:
        page.goto(f"{address}/{path}?plan=scale", wait_until="commit")
        return painted(page, path.capitalize())

    for number, path in enumerate(PAGES):
        how = "again" if path in PAGES[:number] else "at first"
        rows.append(timed(f"{path}, {how}", process, partial(visit, path)))

    def click(option: int) -> dict[str, float]:
        """Until the address has the filter, which its picker writes there, and all below it is there."""
        begun, before = time.perf_counter(), page.url
        page.get_by_role("combobox", name="Weights / activations").click()
        page.get_by_role("option").nth(option).click()
        page.wait_for_url(lambda url: url != before)
        seconds = time.perf_counter() - begun
        return {TITLE: seconds, WHOLE: seconds + painted(page, PAGES[-1].capitalize())[WHOLE]}

    rows.append(timed("a click: another filter of the leaderboard", process, partial(click, 1)))
    touch(folder)
    return [*rows, timed("another click, after one run has changed", process, partial(click, 2))]


def main() -> None:
    folder, plan = Path(sys.argv[1]), sys.argv[2]
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    words = [sys.executable, "-m", "experiments.cli", "dashboard", "--output", str(folder)]
    process, seconds = started([*words, "--plan", plan, "--port", str(port)], port)
    try:
        command, pages = cpu_seconds(process.pid)
        start = f"| `robuq dashboard --plan`, until it answers | {command:.1f} | {pages:.1f} | | {seconds:.1f} |"
        with sync_playwright() as playwright:
            browser = playwright.chromium.launch(executable_path=shutil.which("chromium"), args=["--no-sandbox"])
            page = browser.new_page(viewport={"width": 1280, "height": 900})
            page.set_default_timeout(WAIT)
            rows = visits(page, f"http://127.0.0.1:{port}", process.pid, folder)
            if len(sys.argv) > 3:
                page.screenshot(path=sys.argv[3])
            browser.close()
    finally:
        process.terminate()
        process.wait(30)
    count = len(read_runs(sqlite_uri(folder / "mlflow.db"), "scale"))
    lines = [
        "# The dashboard with ten thousand runs",
        "",
        f"{platform.machine()}, {os.cpu_count()} cores, Streamlit {version('streamlit')}, {count:,} recorded runs. "
        f"Load over the last minute: {os.getloadavg()[0]:.1f}. The CPU seconds are the server's, "
        "without the browser's. The command finds the plan's runs while its pages are served already, by a process of "
        "their own: their two columns run at the same time. Wall seconds are those of a busy machine where the load is "
        "above the number of cores.",
        "`python tests/benchmarks/many_records.py DIR` makes the runs, and "
        "`python tests/benchmarks/bench_dashboard.py DIR/results DIR/scale.yaml` writes this file.",
        "",
        "| what | command's CPU s | pages' CPU s | wall s until its title | wall s until all of it |",
        "|-|-|-|-|-|",
        start,
        *rows,
        "",
    ]
    Path(__file__).with_name("dashboard.md").write_text("\n".join(lines))
    print("\n".join(lines))


if __name__ == "__main__":
    main()
