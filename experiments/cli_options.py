"""Arguments and options that several commands share, and how they print."""

from __future__ import annotations

import json
import math
import shlex
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, Literal

import typer

from experiments.cli_checks import device_name, not_empty, parsed_folder
from robuq.addresses import tracking_fault
from robuq.config import ConfigError
from robuq.messages import without_secrets

if TYPE_CHECKING:
    from rich.console import Console

    from experiments.executors import Executor
    from experiments.output import Output

FAILED, USAGE, INTERRUPTED, TERMINATED = 1, 2, 130, 143  # exit codes
MAX_WORKERS, MAX_PER_RUN = 10_000, 10_000
PIPE_WIDTH = 240  # characters: tables in a pipe or a file are not folded to 80
RESULTS = Path("results")


def _a_number(value: float) -> float:
    """Bounds let nan through."""
    if math.isnan(value):
        raise typer.BadParameter("nan is not a number")
    return value


def tracking_address(value: str | None) -> str | None:
    """Looked at once, here: libraries that take a malformed address apart quote its password."""
    if value is not None and not_empty(value) and (fault := tracking_fault(value)):
        raise ConfigError(f"--tracking-uri: {fault}")
    return value


File = Annotated[str, typer.Argument(metavar="FILE", help="A plan in YAML, or a packaged plan's name.")]
PlanOrSearch = Annotated[
    str, typer.Argument(metavar="FILE", help="A plan or a search in YAML, or a packaged one's name.")
]
SearchFileArgument = Annotated[str, typer.Argument(metavar="FILE", help="A search in YAML, or a packaged one's name.")]
Run = Annotated[str, typer.Argument(metavar="RUN", help="Key, beginning of a key, VARIANT/SEED, VARIANT/LABEL/SEED.")]
Folder = Annotated[
    Path,
    typer.Option("--output", parser=parsed_folder, metavar="PATH", help="Folder for everything that is written."),
]
Given = list[str] | None
Settings = Annotated[
    Given, typer.Option("--set", metavar="NAME=VALUE", help="Override, repeatable: train.steps=2000, seeds=0,1,2.")
]
RunSettings = Annotated[
    Given, typer.Option("--set", metavar="NAME=VALUE", help="Override, repeatable, with one value: train.steps=2000.")
]
EvaluationSettings = Annotated[
    Given, typer.Option("--set", metavar="NAME=VALUE", help="Override, repeatable: evaluation.sample.steps=50.")
]
SearchSettings = Annotated[
    Given, typer.Option("--set", metavar="NAME=VALUE", help="Override, repeatable: search.evaluations=80.")
]
ActBits = Annotated[int, typer.Option(min=1, max=8, help="Activation bits of the block linears, with AMPN on average.")]
Preset = Annotated[str, typer.Option(help="Data and model to start from: nano, digits, fashion_mnist.")]
Seed = Annotated[int, typer.Option(min=0, help="Of everything but the data split.")]
Device = Annotated[str, typer.Option(callback=device_name, help="Where networks live: cpu, cuda, cuda:1.")]
Json = Annotated[bool, typer.Option("--json", help="Machine-readable output.")]
Tracking = Annotated[
    str | None,
    typer.Option(
        "--tracking-uri", metavar="URI", callback=tracking_address, help="MLflow server; default: DIR/mlflow.db."
    ),
]
Kind = Literal["ray", "local"]
ExecutorKind = Annotated[Kind, typer.Option(help="local: in this process, one after the other.")]
Workers = Annotated[int, typer.Option(min=1, max=MAX_WORKERS, help="Runs at the same time, one thread each.")]
Address = Annotated[str | None, typer.Option(envvar="RAY_ADDRESS", help="Of a running Ray cluster that sees --output.")]
CpusPerRun = Annotated[
    float, typer.Option(min=0, max=MAX_PER_RUN, callback=_a_number, help="CPUs that Ray reserves for a run.")
]
GpusPerRun = Annotated[
    float,
    typer.Option(min=0, max=MAX_PER_RUN, callback=_a_number, help="GPUs that Ray reserves; 0.5: two runs share one."),
]


def print_json(data: Any) -> None:
    print(json.dumps(data, indent=1))


def make_console(stderr: bool = False) -> Console:
    from rich.console import Console

    console = Console(stderr=stderr)
    return console if console.is_terminal else Console(stderr=stderr, width=PIPE_WIDTH)


def command_line(verb: str, file: str, output: Path, settings: list[str] | None, tracking_uri: str | None) -> str:
    """A command about the same runs. A tracking URI may hold a password, and is not repeated; nor is a setting's."""
    words = ["robuq", verb, file, "--output", str(output)]
    for setting in settings or []:
        words += ["--set", without_secrets(setting)]
    return shlex.join(words) + (" --tracking-uri URI" if tracking_uri else "")


def make_executor(
    kind: Kind, folder: Output, device: str, workers: int, address: str | None, cpus: float, gpus: float
) -> Executor:
    from experiments.executors import LocalExecutor, RayExecutor

    if kind == "local":
        return LocalExecutor(folder.store.root, device)
    return RayExecutor(folder.store.root, device, workers, address, cpus, gpus)
