"""The commands of AMPN: sensitivity, allocate, search."""

from __future__ import annotations

import sys
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from experiments.cli_checks import check_said_once, check_workers, cluster_address, parsed_file
from experiments.cli_launch import say_what_is_away
from experiments.cli_options import (
    FAILED,
    RESULTS,
    ActBits,
    Address,
    CpusPerRun,
    Device,
    ExecutorKind,
    Folder,
    GpusPerRun,
    Json,
    Preset,
    RunSettings,
    SearchFileArgument,
    SearchSettings,
    Seed,
    Tracking,
    Workers,
    command_line,
    make_console,
    make_executor,
    print_json,
)
from robuq.config import Allocator, Measure, RunConfig, Weighting

if TYPE_CHECKING:
    from experiments.search_run import SearchEnd

bits_app = typer.Typer()

SAME = {  # parameters, and the settings that say the same
    "variant": "variant",
    "act_bits": "act_bits",
    "measure": "ampn.measure",
    "budget": "ampn.budget.limit",
    "weights": "ampn.budget.weights",
    "allocator": "ampn.allocator",
}

AmpnVariant = Annotated[str, typer.Argument(metavar="[VARIANT]", help="A name from `robuq variants`.")]
MeasureOption = Annotated[Measure | None, typer.Option(help="Which measure of damage counts.")]


@bits_app.command()
def sensitivity(
    context: typer.Context,
    variant: AmpnVariant = "robuq",
    act_bits: ActBits = 2,
    preset: Preset = "digits",
    seed: Seed = 0,
    measure: MeasureOption = None,
    output: Folder = RESULTS,
    settings: RunSettings = None,
    device: Device = "cpu",
    as_json: Json = False,
) -> None:
    """Show what each bit-width of each layer does to the loss; measure it if that was not done.

    \b
    robuq sensitivity
    robuq sensitivity robuq --act-bits 3 --measure second_order
    robuq sensitivity --preset nano --set ampn.sensitivity.warm_up_steps=0 --json
    """
    from experiments.allocation import measured, print_sensitivity, sensitivity_data
    from experiments.output import Output

    check_said_once(context, settings, SAME)
    run, folder = _run(variant, act_bits, preset, seed, settings, {"measure": measure}), Output(output)
    job, table = measured(run, folder, device, make_console(stderr=True))
    data = sensitivity_data(job, table, folder.store)
    print_json(data) if as_json else print_sensitivity(data, make_console())


@bits_app.command()
def allocate(
    context: typer.Context,
    variant: AmpnVariant = "robuq",
    budget: Annotated[float | None, typer.Option(help="Mean bits, or 10^9 BOPs; default: --act-bits.")] = None,
    weights: Annotated[Weighting | None, typer.Option(help="What the budget's mean is weighted by.")] = None,
    allocator: Annotated[Allocator | None, typer.Option(help="Who chooses.")] = None,
    measure: MeasureOption = None,
    act_bits: ActBits = 2,
    preset: Preset = "digits",
    seed: Seed = 0,
    file: Annotated[
        Path | None,
        typer.Option(parser=parsed_file, metavar="PATH", help="bits.json to write, for `robuq train --bits`."),
    ] = None,
    output: Folder = RESULTS,
    settings: RunSettings = None,
    device: Device = "cpu",
    as_json: Json = False,
) -> None:
    """Choose each layer's activation bits within a budget; measure the sensitivities if that was not done.

    \b
    robuq allocate --budget 2.0 --weights macs
    robuq allocate --budget 2.5 --allocator greedy --measure output_error --file bits.json
    robuq train robuq_uniform --bits bits.json
    """
    from experiments.allocation import allocation_data, check_bits_file, measured, print_allocation, write_bits
    from experiments.output import Output

    check_said_once(context, settings, SAME)
    if file is not None:
        check_bits_file(file)
    wanted = {"budget.limit": budget, "budget.weights": weights, "allocator": allocator, "measure": measure}
    run, folder = _run(variant, act_bits, preset, seed, settings, wanted), Output(output)
    _, table = measured(run, folder, device, make_console(stderr=True))
    data = allocation_data(run, table)
    if file is not None:
        write_bits(data, file)
    print_json(data) if as_json else print_allocation(data, make_console())
    if file is not None and not as_json:
        print(file)


@bits_app.command()
def search(
    context: typer.Context,
    file: SearchFileArgument,
    output: Folder = RESULTS,
    settings: SearchSettings = None,
    executor: ExecutorKind = "ray",
    workers: Workers = 2,
    address: Address = None,
    cpus_per_run: CpusPerRun = 1,
    gpus_per_run: GpusPerRun = 0,
    device: Device = "cpu",
    tracking_uri: Tracking = None,
) -> None:
    """Search for the best bits within a budget, and train the winner beside the baselines. Run it again to continue.

    \b
    robuq search smoke
    robuq search digits_bits --workers 4 --set search.evaluations=80
    robuq search digits_bits --set ampn.budget.limit=3 --set name=digits_bits_3

    Exit code 0: there is a winner, and every run that confirms it finished; 1: not so.
    """
    from experiments.executors import OnDemandExecutor
    from experiments.output import Output
    from experiments.recording import Recording
    from experiments.search_file import is_search, load_search
    from experiments.search_run import SearchRun
    from robuq.ampn.search import check_storage

    cluster = cluster_address(context, executor, address)
    wanted, folder = load_search(file, settings or []), Output(output)
    check_storage(wanted.config.storage)
    folder.check_plan(wanted.name)
    known = folder.search(wanted.name)
    if cluster is None or known is None or not known.finished:  # no cluster for nothing
        check_workers(device, cluster)
    count = workers if executor == "ray" else 1
    pool = OnDemandExecutor(
        lambda: make_executor(executor, folder, device, workers, cluster, cpus_per_run, gpus_per_run), count
    )
    with folder.sweeping():
        recording = Recording(wanted.name, folder, tracking_uri or folder.tracking_uri())
        recording.open()
        say_what_is_away(recording.problem)
        try:
            end = SearchRun(wanted, folder, pool, count, recording, make_console())()
        finally:
            pool.close()
        waiting = recording.send_waiting()
        if end.record is not None and end.record.finished and not recording.send_search(end.record):
            waiting += 1
    _say_how_it_ended(end, waiting, recording.problem)
    print(f"study: {_dashboard(wanted, folder)}")
    if end.failures or end.record is None or end.record.winner is None:
        raise typer.Exit(FAILED)
    named = file if is_search(file) else f"searches/{file}"  # a plan has the bare name
    print(f"next: {command_line('report', named, output, settings, tracking_uri)}")


def _say_how_it_ended(end: SearchEnd, waiting: int, problem: str | None) -> None:
    from experiments.progress import run_title
    from robuq.record.search_layout import summary_lines

    for failed in end.failures:
        print(f"failed: {run_title(failed.job.run)}: {failed.failure}", file=sys.stderr)
    if end.record is not None:
        print("\n".join(summary_lines(end.record)))
    if waiting or problem:
        print(f"records wait on the disk: {problem}; the same command sends them", file=sys.stderr)


def _dashboard(search: Any, folder: Any) -> str:
    """The command that opens the study; a URL's password is not repeated."""
    from experiments.search_run import study_location
    from robuq.record.mlflow import redacted

    file = study_location(search, folder)
    return f"optuna-dashboard {redacted(search.config.storage) if file is None else file}"


def _run(
    variant: str, act_bits: int, preset: str, seed: int, settings: list[str] | None, ampn: dict[str, Any]
) -> RunConfig:
    """Options that were given win over --set."""
    from experiments.overrides import parse_settings
    from experiments.search_file import ampn_run

    given = {f"ampn.{name}": value for name, value in ampn.items() if value is not None}
    base = {"variant": variant, "act_bits": act_bits, **parse_settings(settings or []), **given}
    return ampn_run(preset, base, seed, seed, {})
