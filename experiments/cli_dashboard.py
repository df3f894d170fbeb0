"""The command that looks: dashboard."""

from __future__ import annotations

import importlib.util
import json
import os
import shlex
import subprocess
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from experiments.cli_options import RESULTS, Folder, Settings, Tracking
from robuq.config import ConfigError
from robuq.messages import without_secrets
from robuq.scratch import scratch_folder

if TYPE_CHECKING:
    from experiments.plan import Plan

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
    from experiments.plan import load_plan

    given = settings or []
    loaded = [(file, load_plan(file, given)) for file in plan or []]
    with scratch_folder("dashboard") as folder:  # its owner's alone: a URI may hold secrets
        file = folder / "settings.json"
        _write(file, dashboard_data(output, loaded, tracking_uri, given, with_runs=False))
        print(f"http://{HOST}:{port}", flush=True)
        with subprocess.Popen(streamlit_command(port), env={**os.environ, VARIABLE: str(file)}) as server:
            try:
                if loaded:  # the runs of a long plan take seconds, and pages can be opened before
                    _write(file, dashboard_data(output, loaded, tracking_uri, given))
                code = server.wait()
            finally:
                server.kill()  # unless it has ended
    if code:
        raise typer.Exit(code)


def _write(file: Path, data: dict[str, Any]) -> None:
    """Whole or not at all: the pages read it at any time."""
    temporary = file.with_suffix(".new")
    temporary.touch(mode=0o600)
    temporary.write_text(json.dumps(data), encoding="utf-8")
    os.replace(temporary, file)


def check_installed() -> None:
    """Raises ConfigError: the extra is not installed."""
    if importlib.util.find_spec("streamlit") is None:
        raise ConfigError("the dashboard needs Streamlit: pip install 'robuq[dashboard]'")


def dashboard_data(
    output: Path,
    plans: Sequence[tuple[str, Plan]],
    tracking_uri: str | None,
    settings: Sequence[str] = (),
    with_runs: bool = True,
) -> dict[str, Any]:
    """What `dashboards.settings.Settings` holds. Plans, each with the FILE that it was given by and changed by
    `settings`, are resolved here, because the pages know none; not `with_runs`: only their names, which is a matter of
    milliseconds.

    Raises:
        ConfigError: a data set's files are missing.
    """
    from experiments.output import Output
    from experiments.plan import SINGLE

    folder = Output(output)
    uri = tracking_uri or folder.tracking_uri()
    return {
        "uri": uri,
        "folder": str(folder.folder) if uri == folder.tracking_uri() else None,
        "options": "--tracking-uri URI" if tracking_uri else shlex.join(["--output", str(output)]),
        "plans": {
            one.name: {"description": one.description, "runs": _runs_data(one) if with_runs else None}
            for _, one in plans
        },
        "made_by": {SINGLE: "train VARIANT", **{one.name: _sweep(file, settings) for file, one in plans}},
        "baselines": {one.name: one.report.baseline for _, one in plans},
    }


def _sweep(file: str, settings: Sequence[str]) -> str:
    """The command's words without where it writes. What looks like a secret is not repeated."""
    return shlex.join(["sweep", file, *(word for one in settings for word in ("--set", without_secrets(one)))])


def _runs_data(plan: Plan) -> list[dict[str, Any]]:
    """As `robuq plan --json` has them, but for what is done by now: the pages look for themselves."""
    from experiments.launch import jobs_of

    return [
        {
            "key": job.run.key(),
            "variant": job.run.variant,
            "label": job.run.label,
            "seed": job.run.seed,
            "stages": {stage.kind: {"key": stage.key} for stage in job.stages},
        }
        for job in jobs_of(plan.runs)
    ]


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
