"""The commands of single runs: train, evaluate, sample, reproduce; and the names that a run can have."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Any

import typer

from experiments.cli_checks import check_said_once, parsed_file
from experiments.cli_launch import launched
from experiments.cli_options import (
    FAILED,
    RESULTS,
    ActBits,
    Device,
    EvaluationSettings,
    Folder,
    Json,
    Preset,
    Run,
    RunSettings,
    Seed,
    Tracking,
    make_console,
    print_json,
)
from robuq.config import ConfigError

runs_app = typer.Typer()

SAME = {  # parameters, and the settings that say the same
    "variant": "variant",
    "act_bits": "act_bits",
    "preset": "preset",
    "seed": "seeds",
    "bits": "allocation",
}


@runs_app.command()
def variants() -> None:
    """List the named recipes: the rows that a plan can have."""
    import inspect

    from robuq.variants import VARIANTS

    for name, recipe in VARIANTS.items():
        text = inspect.getdoc(recipe) or name
        print(f"{name:26} {text.splitlines()[0]}")


@runs_app.command()
def train(
    context: typer.Context,
    variant: Annotated[str, typer.Argument(help="A name from `robuq variants`.")],
    act_bits: ActBits = 2,
    preset: Preset = "digits",
    seed: Seed = 0,
    bits: Annotated[Path | None, typer.Option(help="bits.json with each layer's own activation bits.")] = None,
    output: Folder = RESULTS,
    settings: RunSettings = None,
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

    check_said_once(context, settings, SAME)
    forced = {**parse_settings(settings or []), **_allocation(bits)}
    run, folder = single_run(variant, act_bits, preset, seed, forced), Output(output)
    folder.check_plan(SINGLE)
    check_device(device)
    with folder.sweeping():
        (end,) = launched(SINGLE, jobs_of([run]), folder, LocalExecutor(folder.store.root, device), 1, tracking_uri)
    if end.failure:
        raise typer.Exit(FAILED)
    _print_metrics(folder.find(run.key()).metrics)
    print(f"run {run.key()}")


@runs_app.command()
def evaluate(
    run: Run,
    output: Folder = RESULTS,
    settings: EvaluationSettings = None,
    device: Device = "cpu",
    as_json: Json = False,
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


@runs_app.command()
def sample(
    run: Run,
    output: Folder = RESULTS,
    num_images: Annotated[int, typer.Option(min=1, help="Images, the classes in turn.")] = 40,
    columns: Annotated[int, typer.Option(min=1, help="Of the picture.")] = 10,
    seed: Annotated[int | None, typer.Option(min=0, help="Of the noise; default: the run's.")] = None,
    steps: Annotated[int | None, typer.Option(min=1, help="Sampler steps; default: the run's.")] = None,
    guidance: Annotated[float | None, typer.Option(min=1, help="1 is none; default: the run's.")] = None,
    file: Annotated[
        Path | None,
        typer.Option(parser=parsed_file, metavar="PATH", help="PNG to write; default: DIR/samples/<key>.png."),
    ] = None,
    device: Device = "cpu",
) -> None:
    """Draw images from a run's network into a PNG. Equal seeds mean equal noise for every variant.

    \b
    robuq sample robuq_uniform/0
    robuq sample baseline/0 --num-images 100 --guidance 2 --file baseline.png
    """
    from experiments.one_run import check_picture, drawn, run_of, write_png
    from experiments.output import Output

    folder = Output(output)
    record = folder.find(run)
    given = {"num_images": num_images, "seed": seed, "steps": steps, "guidance": guidance}
    config = run_of(record).evaluation.sample.updated(**{k: v for k, v in given.items() if v is not None})
    target = file or folder.folder / "samples" / f"{record.key}.png"
    check_picture(target)
    write_png(drawn(record, folder, config, device), target, columns)
    print(target)


@runs_app.command()
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
