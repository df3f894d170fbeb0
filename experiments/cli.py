"""The one command, `robuq`. What takes long to import is imported by the command that needs it."""

from __future__ import annotations

import logging
import sys
import traceback
from collections.abc import Sequence
from pathlib import Path
from types import TracebackType
from typing import TYPE_CHECKING, Annotated, Any

import typer

from experiments.cli_bits import bits_app
from experiments.cli_dashboard import dashboard_app
from experiments.cli_doctor import doctor_app
from experiments.cli_options import (
    FAILED,
    INTERRUPTED,
    RESULTS,
    TERMINATED,
    USAGE,
    ActBits,
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
    Preset,
    Run,
    Seed,
    Settings,
    Tracking,
    Workers,
    command_line,
    make_console,
    make_executor,
    print_json,
)
from experiments.cli_paper import paper_app
from experiments.signals import exit_code, handled_signals
from robuq.config import ConfigError
from robuq.messages import one_line, without_secrets
from robuq.stopping import Stopped
from robuq.storage_fault import StorageFault, storage_fault

if TYPE_CHECKING:
    from rich.console import Console

    from experiments.executors import Executor
    from experiments.launch import Job, JobEnd
    from experiments.output import Output
    from experiments.plan import Plan

app = typer.Typer(
    add_completion=False,
    pretty_exceptions_enable=False,
    rich_markup_mode=None,
    help="""RobuQ: quantized Diffusion Transformers, trained, compared and recorded.

    \b
    Start here:
      robuq plan smoke               what would run, and for how long
      robuq sweep smoke              run it; the same again continues, or adds what is new
      robuq report smoke             tables and figures of what was recorded
      robuq train robuq_uniform      a single run
      robuq allocate --budget 2      each layer's own bits
      robuq search smoke             search for better ones
      robuq paper                    the paper's tables and figures
      robuq dashboard                all of it on pages in a browser
      robuq variants                 the named recipes

    FILE is a plan (or a search) in YAML, or the name of a packaged one. RUN is a run's key, the beginning of one,
    VARIANT/SEED or VARIANT/LABEL/SEED. Everything is written to --output (results/).
    """,
)

app.add_typer(bits_app)
app.add_typer(paper_app)
app.add_typer(dashboard_app)
app.add_typer(doctor_app)


def main() -> None:
    """Mistakes of the user end in one line and exit code 2, disks that take no more in one line and exit code 1; other
    exceptions are bugs and keep their traceback."""
    sys.excepthook = _show_bug
    try:
        _quieten_libraries()
        with handled_signals():
            code = app(sys.argv[1:] or ["--help"], standalone_mode=False, prog_name="robuq")
    except ConfigError as error:
        code = _complain(str(error))
    except typer.TyperException as error:
        code = _complain(error.format_message())
    except StorageFault as fault:
        code = _complain(f"{fault}; the same command continues where it was", FAILED)
    except OSError as error:
        code = _complain_of_storage(error)
    except Stopped:
        code = exit_code()
    except (typer.Abort, KeyboardInterrupt):
        code = INTERRUPTED
    if code in (INTERRUPTED, TERMINATED):  # Typer turns Ctrl-C into the first
        print("robuq: interrupted; the same command continues where it was", file=sys.stderr)
    sys.exit(code or 0)


def _complain(message: str, code: int = USAGE) -> int:
    print(f"robuq: {one_line(message)}", file=sys.stderr)
    return code


def _show_bug(kind: type[BaseException], error: BaseException, trace: TracebackType | None) -> None:
    """The traceback, whose lines may quote an address with a password."""
    print(without_secrets("".join(traceback.format_exception(kind, error, trace))), end="", file=sys.stderr)


def _complain_of_storage(error: OSError) -> int:
    """Of commands that write next to nothing; other errors of the system are bugs."""
    fault = storage_fault(error, Path("the output folder"))
    if fault is None:
        raise error
    return _complain(str(fault), FAILED)


def _quieten_libraries() -> None:
    """diffusers imports torchao if it is there, and both then say at length what of it they cannot use."""
    for name in ("torchao", "torch.utils._pytree", "diffusers.quantizers.torchao.torchao_quantizer"):
        logging.getLogger(name).setLevel(logging.ERROR)


# --- plans ----------------------------------------------------------------------------------------------------


@app.command("plan")
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


@app.command()
def sweep(
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
    from experiments.executors import check_device
    from experiments.launch import missing

    plan, jobs, folder = _loaded(file, settings, output)
    with folder.sweeping():
        left = missing(jobs, folder.store)
        if left and address is None:
            check_device(device)
        kind: Kind = executor if left else "local"  # no cluster for nothing
        pool = make_executor(kind, folder, device, workers, address, cpus_per_run, gpus_per_run)
        ends = _launched(plan.name, jobs, folder, pool, workers, tracking_uri)
    if any(end.failure for end in ends):
        raise typer.Exit(FAILED)
    print(f"next: {command_line('report', file, output, settings, tracking_uri)}")


@app.command()
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


@app.command()
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


@app.command()
def variants() -> None:
    """List the named recipes: the rows that a plan can have."""
    import inspect

    from robuq.variants import VARIANTS

    for name, recipe in VARIANTS.items():
        text = inspect.getdoc(recipe) or name
        print(f"{name:26} {text.splitlines()[0]}")


# --- single runs ----------------------------------------------------------------------------------------------


@app.command()
def train(
    variant: Annotated[str, typer.Argument(help="A name from `robuq variants`.")],
    act_bits: ActBits = 2,
    preset: Preset = "digits",
    seed: Seed = 0,
    bits: Annotated[Path | None, typer.Option(help="bits.json with each layer's own activation bits.")] = None,
    output: Folder = RESULTS,
    settings: Settings = None,
    device: Device = "cpu",
    tracking_uri: Tracking = None,
) -> None:
    """Train and judge one variant; print its metrics and its key.

    \b
    robuq train robuq_uniform --act-bits 2
    robuq train baseline --preset nano --set train.steps=20
    robuq train robuq_uniform --set block_linears.act.grid=as_coded
    robuq train robuq_uniform --bits bits.json                        from `robuq allocate --file`, or of a search
    """
    from experiments.executors import LocalExecutor, check_device
    from experiments.launch import jobs_of
    from experiments.output import Output
    from experiments.overrides import parse_settings
    from experiments.plan import SINGLE, single_run

    forced = {**parse_settings(settings or []), **_allocation(bits)}
    run, folder = single_run(variant, act_bits, preset, seed, forced), Output(output)
    check_device(device)
    with folder.sweeping():
        (end,) = _launched(SINGLE, jobs_of([run]), folder, LocalExecutor(folder.store.root, device), 1, tracking_uri)
    if end.failure:
        raise typer.Exit(FAILED)
    _print_metrics(folder.find(run.key()).metrics)
    print(f"run {run.key()}")


@app.command()
def evaluate(
    run: Run, output: Folder = RESULTS, settings: Settings = None, device: Device = "cpu", as_json: Json = False
) -> None:
    """Print a run's metrics, or judge it anew under another protocol, without training it again.

    \b
    robuq evaluate robuq_uniform/0
    robuq evaluate 3f2a --set evaluation.sample.guidance=1.5 --set evaluation.sample.steps=50
    """
    from experiments.one_run import evaluated
    from experiments.output import Output
    from experiments.overrides import parse_settings

    folder = Output(output)
    record, overrides = folder.find(run), parse_settings(settings or [])
    _refuse_training(overrides)
    metrics = evaluated(record, overrides, folder, device, make_console(stderr=True))
    print_json(metrics) if as_json else _print_metrics(metrics)


@app.command()
def sample(
    run: Run,
    output: Folder = RESULTS,
    num_images: Annotated[int, typer.Option(min=1, help="Images, the classes in turn.")] = 40,
    columns: Annotated[int, typer.Option(min=1, help="Of the picture.")] = 10,
    seed: Annotated[int | None, typer.Option(min=0, help="Of the noise; default: the run's.")] = None,
    steps: Annotated[int | None, typer.Option(min=1, help="Sampler steps; default: the run's.")] = None,
    guidance: Annotated[float | None, typer.Option(min=1, help="1 is none; default: the run's.")] = None,
    file: Annotated[Path | None, typer.Option(help="PNG to write; default: DIR/samples/<key>.png.")] = None,
    device: Device = "cpu",
) -> None:
    """Draw images from a run's network into a PNG. Equal seeds mean equal noise for every variant.

    \b
    robuq sample robuq_uniform/0
    robuq sample baseline/0 --num-images 100 --guidance 2 --file baseline.png
    """
    from experiments.one_run import drawn, run_of, write_png
    from experiments.output import Output

    folder = Output(output)
    record = folder.find(run)
    given = {"num_images": num_images, "seed": seed, "steps": steps, "guidance": guidance}
    config = run_of(record).evaluation.sample.updated(**{k: v for k, v in given.items() if v is not None})
    target = file or folder.folder / "samples" / f"{record.key}.png"
    write_png(drawn(record, folder, config, device), target, columns)
    print(target)


@app.command()
def reproduce(run: Run, output: Folder = RESULTS, device: Device = "cpu") -> None:
    """Do a recorded run once more, every stage from nothing, outside the sweep, and compare bit for bit.

    \b
    robuq reproduce robuq_uniform/0

    Exit code 0: every metric and the training history are equal; 1: they are not, and the differences are listed.
    """
    from experiments.one_run import differences, reproduced
    from experiments.output import Output

    folder = Output(output)
    record = folder.find(run)
    if record.status != "finished":
        raise ConfigError(f"run {record.key} failed ({record.failure}): only finished runs can be reproduced")
    lines = differences(record, reproduced(record, folder, device, make_console(stderr=True)))
    print("\n".join(lines) if lines else f"{record.key}: {len(record.metrics)} metrics and the history are equal")
    if lines:
        raise typer.Exit(FAILED)


# --- searches among the plans' commands ------------------------------------------------------------------------


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


# --- what they share ------------------------------------------------------------------------------------------


def _loaded(file: str, settings: list[str] | None, output: Path) -> tuple[Plan, list[Job], Output]:
    from experiments.launch import jobs_of
    from experiments.output import Output
    from experiments.plan import load_plan

    plan = load_plan(file, settings or [])
    return plan, jobs_of(plan.runs), Output(output)


def _launched(
    plan_name: str, jobs: list[Job], folder: Output, pool: Executor, workers: int, tracking_uri: str | None
) -> Sequence[JobEnd]:
    """Launch, record, and say what failed and what waits."""
    from experiments.estimate import Estimator
    from experiments.launch import Sweep, launch
    from experiments.progress import display_of
    from experiments.recording import Recording

    console = make_console()
    try:
        recording = Recording(plan_name, folder, tracking_uri or folder.tracking_uri())
        recording.open()  # imports mlflow while the workers start
        state = Sweep(jobs, folder.store, Estimator(folder.store).seconds)
        display = display_of(state, folder.store, workers, console)
        with display.showing():
            ends = launch(state, pool, recording, [display])
    finally:
        pool.close()
    _say_what_waits(recording.send_waiting(), recording.problem)
    _say_what_failed(ends, console)
    return ends


def _say_what_waits(waiting: int, problem: str | None) -> None:
    if waiting:
        print(f"{waiting} records wait on the disk: {problem}; the next sweep sends them", file=sys.stderr)


def _say_what_failed(ends: Sequence[JobEnd], console: Console) -> None:
    from experiments.progress import run_title

    failed = [end for end in ends if end.failure]
    for end in failed:
        print(f"failed: {run_title(end.job.run)}: {end.failure}", file=sys.stderr)
    console.print(f"{len(ends) - len(failed)} of {len(ends)} runs finished", highlight=False)


def _allocation(file: Path | None) -> dict[str, Any]:
    """The override that gives a run these bits, in place of those that AMPN would find."""
    if file is None:
        return {}
    from robuq.ampn.bits_file import read_bits

    return {"ampn": None, "allocation": read_bits(file).model_dump(mode="json")}


def _refuse_training(overrides: dict[str, Any]) -> None:
    for name in overrides:
        if name.split(".")[0] != "evaluation":
            raise ConfigError(f"--set {name}: evaluate changes evaluation.* only; use train for another network")


def _print_metrics(metrics: dict[str, float]) -> None:
    for name, value in sorted(metrics.items()):
        print(f"{name:32} {value:.6g}")


if __name__ == "__main__":
    main()
