"""The commands of the paper's artefacts: paper, table, figure, provenance."""

from __future__ import annotations

import sys
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from experiments.cli_options import RESULTS, Folder, Settings, Tracking
from robuq.config import ConfigError

if TYPE_CHECKING:
    from analysis.paper_folder import Built

paper_app = typer.Typer()

Artefact = Annotated[str | None, typer.Argument(metavar="[ID]", help="Of an artefact; without one, they are listed.")]


@paper_app.command()
def paper(
    output: Folder = RESULTS,
    check: Annotated[bool, typer.Option("--check", help="Ours beside the published numbers, too.")] = False,
    settings: Settings = None,
    tracking_uri: Tracking = None,
) -> None:
    """Build every table and figure of the paper from what was recorded; say what is missing and which command makes it.

    \b
    robuq paper
    robuq paper --check
    """
    from experiments.output import Output
    from experiments.paper import FOLDER, check_paper, write_paper

    folder = Output(output)
    built = write_paper(folder, tracking_uri or folder.tracking_uri(), (), settings or ())
    _print_built(built)
    if check:
        text, files = check_paper(built, folder.folder / FOLDER)
        print(text)
        print("\n".join(map(str, files)))


@paper_app.command()
def table(
    artefact: Artefact = None, output: Folder = RESULTS, settings: Settings = None, tracking_uri: Tracking = None
) -> None:
    """Build one table of the paper, in a folder of its own.

    \b
    robuq table components
    """
    _one("table", artefact, output, settings, tracking_uri)


@paper_app.command()
def figure(
    artefact: Artefact = None, output: Folder = RESULTS, settings: Settings = None, tracking_uri: Tracking = None
) -> None:
    """Build one figure of the paper, in a folder of its own.

    \b
    robuq figure figure2
    """
    _one("figure", artefact, output, settings, tracking_uri)


@paper_app.command()
def provenance(
    file: Annotated[Path, typer.Argument(metavar="FILE", help="A file that `robuq paper`, `table` or `figure` wrote.")],
    row: Annotated[str, typer.Option(help="A row's name, or words of it.")] = "",
    column: Annotated[str, typer.Option(help="One column of a table.")] = "",
    output: Folder = RESULTS,
) -> None:
    """Print the runs behind a file, a row or a cell: keys, settings and the state of the code.

    \b
    robuq provenance results/paper/components_digits.csv --row robuq_uniform
    """
    from experiments.output import Output
    from experiments.paper import provenance_of

    print("\n".join(provenance_of(file, Output(output), row, column)))


def _one(kind: str, artefact: str | None, output: Path, settings: list[str] | None, tracking_uri: str | None) -> None:
    from analysis.paper import ARTEFACTS
    from experiments.output import Output
    from experiments.paper import FOLDER, artefact_lines, write_paper

    if artefact is None:
        print("\n".join(line for line in artefact_lines() if line.split()[1] == kind))
        return
    if artefact in ARTEFACTS and ARTEFACTS[artefact].kind != kind:
        raise ConfigError(f"{artefact} is a {ARTEFACTS[artefact].kind}: robuq {ARTEFACTS[artefact].kind} {artefact}")
    folder = Output(output)
    place = folder.folder / FOLDER / artefact if artefact in ARTEFACTS else None
    _print_built(write_paper(folder, tracking_uri or folder.tracking_uri(), [artefact], settings or (), place))


def _print_built(built: Built) -> None:
    from experiments.paper import missing_lines

    print("\n".join(map(str, built.files)))
    for line in missing_lines(built):
        print(line, file=sys.stderr)
