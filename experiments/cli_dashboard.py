"""The command that looks: dashboard."""

from __future__ import annotations

import importlib.util
import json
import os
import shlex
import subprocess
import sys
from pathlib import Path
from typing import Annotated, Any

import typer

from experiments.cli_options import RESULTS, Folder, Settings, Tracking
from robuq.config import ConfigError
from robuq.scratch import scratch_folder

dashboard_app = typer.Typer()

HOST = "127.0.0.1"  # nobody else reaches the pages: they have no password
VARIABLE = "ROBUQ_DASHBOARD"  # names the file with what the app must know (dashboards/settings.py)
Plans = Annotated[
    list[str] | None, typer.Option("--plan", metavar="FILE", help="A plan to watch run by run; repeatable.")
]
Port = Annotated[int, typer.Option(min=1, max=65535, help="Of the pages.")]


@dashboard_app.command()
def dashboard(
    output: Folder = RESULTS,
    plan: Plans = None,
    settings: Settings = None,
    port: Port = 8501,
    tracking_uri: Tracking = None,
) -> None:
    """Show what is recorded and what is under way on pages in a browser, on this machine alone. Ctrl-C ends it.

    \b
    robuq dashboard --plan digits_components
    robuq dashboard --tracking-uri http://tracking:5000
    """
    check_installed()
    with scratch_folder("dashboard") as folder:  # its owner's alone: a URI may hold secrets
        file = folder / "settings.json"
        file.touch(mode=0o600)
        file.write_text(json.dumps(dashboard_data(output, plan or [], settings or [], tracking_uri)), encoding="utf-8")
        print(f"http://{HOST}:{port}", flush=True)
        environment = {**os.environ, VARIABLE: str(file)}
        code = subprocess.run(streamlit_command(port), env=environment, check=False).returncode
    if code:
        raise typer.Exit(code)


def check_installed() -> None:
    """Raises ConfigError: the extra is not installed."""
    if importlib.util.find_spec("streamlit") is None:
        raise ConfigError("the dashboard needs Streamlit: pip install 'robuq[dashboard]'")


def dashboard_data(output: Path, plans: list[str], settings: list[str], tracking_uri: str | None) -> dict[str, Any]:
    """What `dashboards.settings.Settings` holds. Plans are resolved here, because the pages know none."""
    from experiments.launch import jobs_of
    from experiments.output import Output
    from experiments.overview import plan_data
    from experiments.plan import load_plan

    folder = Output(output)
    uri = tracking_uri or folder.tracking_uri()
    loaded = [load_plan(name, settings) for name in plans]
    return {
        "uri": uri,
        "folder": str(folder.folder) if uri == folder.tracking_uri() else None,
        "options": "--tracking-uri URI" if tracking_uri else shlex.join(["--output", str(output)]),
        "plans": {one.name: plan_data(one, jobs_of(one.runs), folder, workers=1) for one in loaded},
        "baselines": {one.name: one.report.baseline for one in loaded},
    }


def streamlit_command(port: int) -> list[str]:
    """Loopback only, no usage statistics, no browser opened, no file watched."""
    app = Path(__file__).parents[1] / "dashboards" / "server.py"
    options = {
        "server.address": HOST,
        "server.port": port,
        "server.headless": "true",
        "server.fileWatcherType": "none",
        "browser.gatherUsageStats": "false",
        "client.toolbarMode": "minimal",
        "client.showErrorDetails": "type",  # of a bug: its text could quote an address with a password
        "theme.light.textColor": "#0e1014",  # captions are 60 % of it: still 4.5 : 1
        "theme.light.primaryColor": "#1668b8",  # of each theme: one for both would take the dark one away
        "theme.dark.primaryColor": "#5aa2ef",
    }
    return [
        sys.executable, "-m", "streamlit", "run", str(app), *(f"--{name}={value}" for name, value in options.items())
    ]  # fmt: skip
