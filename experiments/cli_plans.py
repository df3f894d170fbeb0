"""The commands of plans: plan, sweep, status, report. All but `sweep` know searches, too."""

from __future__ import annotations

import sys
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from experiments.cli_checks import check_workers, cluster_address
from experiments.cli_launch import launched
from experiments.cli_options import (
    FAILED,
    RESULTS,
    Address,
    CpusPerRun,
    Device,
    ExecutorKind,
    File,
    Folder,
    GpusPerRun,
    Json,
    Kind,
    PlanOrSearch,
    Settings,
    Tracking,
    Workers,
    command_line,
    make_console,
    make_executor,
    print_json,
)

if TYPE_CHECKING:
    from experiments.launch import Job
    from experiments.output import Output
    from experiments.plan import Plan

plans_app = typer.Typer()


@plans_app.command("plan")
def plan_command(
    file: PlanOrSearch, output: Folder = RESULTS, settings: Settings = None, workers: Workers = 2, as_json: Json = False
) -> None:
    """Show what a sweep would do, and do nothing.

    \b
    robuq plan smoke
    robuq plan digits_components --set seeds=0,1,2,3,4
    robuq plan my_plan.yaml --json
    """
    from experiments.overview import plan_data, print_plan
    from experiments.search_file import is_search

    if is_search(file):
        _plan_search(file, output, settings, workers, as_json)
        return
    plan, jobs, folder = _loaded(file, settings, output)
    data = plan_data(plan, jobs, folder, workers)
    print_json(data) if as_json else print_plan(data, make_console())


@plans_app.command()
def sweep(
    context: typer.Context,
    file: File,
    output: Folder = RESULTS,
    settings: Settings = None,
    executor: ExecutorKind = "ray",
    workers: Workers = 2,
    address: Address = None,
    cpus_per_run: CpusPerRun = 1,
    gpus_per_run: GpusPerRun = 0,
    device: Device = "cpu",
    tracking_uri: Tracking = None,
) -> None:
    """Run a plan's missing stages and record its runs. Run it again to continue.

    \b
    robuq sweep smoke
    robuq sweep digits_components --workers 4 --set train.steps=600
    robuq sweep digits_components --set seeds=0,1,2,3        adds seed 3
    robuq sweep fashion_components --device cuda --gpus-per-run 0.5
    robuq sweep smoke --executor local --output /tmp/smoke

    Exit code 0: every run finished; 1: some failed, and are listed with their reasons.
    """
    from experiments.launch import missing

    cluster = cluster_address(context, executor, address)
    plan, jobs, folder = _loaded(file, settings, output)
    folder.check_plan(plan.name)
    if missing(jobs, folder.store):
        check_workers(device, cluster)
    with folder.sweeping():
        left = missing(jobs, folder.store)
        kind: Kind = executor if left else "local"  # no cluster for nothing
        pool = make_executor(kind, folder, device, workers, cluster, cpus_per_run, gpus_per_run)
        ends = launched(plan.name, jobs, folder, pool, workers, tracking_uri)
    if any(end.failure for end in ends):
        raise typer.Exit(FAILED)
    print(f"next: {command_line('report', file, output, settings, tracking_uri)}")


@plans_app.command()
def status(file: PlanOrSearch, output: Folder = RESULTS, settings: Settings = None, as_json: Json = False) -> None:
    """Show how far each run of a plan is; also while a sweep is under way.

    \b
    robuq status digits_components
    robuq status digits_components --json
    """
    from experiments.overview import print_status, status_data
    from experiments.search_file import is_search

    if is_search(file):
        _search_status(file, output, settings, as_json)
        return
    plan, jobs, folder = _loaded(file, settings, output)
    data = status_data(plan, jobs, folder)
    print_json(data) if as_json else print_status(data, make_console())


@plans_app.command()
def report(
    file: PlanOrSearch,
    output: Folder = RESULTS,
    settings: Settings = None,
    tracking_uri: Tracking = None,
    html: Annotated[bool, typer.Option("--html", help="Also as one self-contained file, report.html.")] = False,
) -> None:
    """Write a plan's table and figures from what was recorded; print where each file is.

    \b
    robuq report smoke
    robuq report digits_components --output results
    robuq report smoke --html

    The files are kept in the plan's MLflow experiment, too, in its run `report`.
    """
    from analysis.html_report import write_html
    from experiments.output import Output
    from experiments.plan import load_plan
    from experiments.reporting import attach_report, write_plan_report, write_search_report
    from experiments.search_file import is_search, load_search

    folder = Output(output)
    uri = tracking_uri or folder.tracking_uri()
    if is_search(file):
        search = load_search(file, settings or [])
        name, files = search.name, write_search_report(search, folder, uri)
    else:
        plan = load_plan(file, settings or [])
        name, files = plan.name, write_plan_report(plan, folder, uri)
    if html:
        files = [*files, write_html(files[0])]
    print("\n".join(map(str, files)))
    if problem := attach_report(name, files, uri):
        print(problem, file=sys.stderr)


def _plan_search(file: str, output: Path, settings: list[str] | None, workers: int, as_json: bool) -> None:
    from experiments.output import Output
    from experiments.search_file import load_search
    from experiments.search_overview import print_search_plan, search_plan_data

    data = search_plan_data(load_search(file, settings or []), Output(output), workers)
    print_json(data) if as_json else print_search_plan(data, make_console())


def _search_status(file: str, output: Path, settings: list[str] | None, as_json: bool) -> None:
    from experiments.output import Output
    from experiments.search_file import load_search
    from experiments.search_overview import print_search_status, search_status_data

    data = search_status_data(load_search(file, settings or []), Output(output))
    print_json(data) if as_json else print_search_status(data, make_console())


def _loaded(file: str, settings: list[str] | None, output: Path) -> tuple[Plan, list[Job], Output]:
    from experiments.launch import jobs_of
    from experiments.output import Output
    from experiments.plan import load_plan

    plan = load_plan(file, settings or [])
    return plan, jobs_of(plan.runs), Output(output)
