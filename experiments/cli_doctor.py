"""The command that looks for disagreements: doctor."""

from __future__ import annotations

import sys
from typing import TYPE_CHECKING, Annotated

import typer

from experiments.cli_checks import none_empty
from experiments.cli_options import FAILED, RESULTS, Folder, Json, Tracking, print_json

if TYPE_CHECKING:
    from pathlib import Path

    from experiments.doctor_findings import Finding

doctor_app = typer.Typer()


@doctor_app.command()
def doctor(
    output: Folder = RESULTS,
    fix: Annotated[bool, typer.Option("--fix", help="Repair what can be repaired safely.")] = False,
    tracking_uri: Tracking = None,
    storage: Annotated[
        list[str] | None,
        typer.Option(
            metavar="URI",
            callback=none_empty,
            help="Database with a study, if its address has a user or password; repeatable.",
        ),
    ] = None,
    as_json: Json = False,
) -> None:
    """Compare stages, records, tracking store and studies; list what disagrees. Changes nothing without --fix.

    \b
    robuq doctor
    robuq doctor --output /data/results --json
    robuq doctor --fix
    robuq doctor --storage postgresql://USER:PASSWORD@HOST/NAME

    Exit code 0: all agree, with --fix possibly after repairs; 1: something does not, and is listed.
    """
    from experiments.doctor import Doctor
    from experiments.doctor_findings import finding_data
    from experiments.output import Output
    from robuq.record.mlflow import TrackingRefused, TrackingUnavailable
    from robuq.scratch import remove_abandoned

    folder = Output(output)
    examiner = Doctor(folder, tracking_uri, storage or ())
    findings: list[Finding] = examiner.examine()
    repaired: list[Finding] = []
    scratch: list[Path] = []  # of killed commands, whatever folder they worked in
    if fix:
        scratch = remove_abandoned()
        try:
            with folder.sweeping():
                examiner.repair(findings, repaired.append)
        except (TrackingUnavailable, TrackingRefused) as error:
            print(f"robuq: nothing more was repaired: {error}", file=sys.stderr)
        findings = examiner.examine()
    if as_json:
        healthy, busy = not findings, folder.has_driver()
        lists = {"findings": [*map(finding_data, findings)], "repaired": [*map(finding_data, repaired)]}
        print_json(
            {"output": str(folder.folder), "healthy": healthy, "busy": busy, **lists, "removed": [*map(str, scratch)]}
        )
    else:
        for path in scratch:
            print(f"removed: {path}: left by a killed command")
        _print(findings, repaired, folder.has_driver())
    if findings:
        raise typer.Exit(FAILED)


def _print(findings: list[Finding], repaired: list[Finding], busy: bool) -> None:
    for finding in repaired:
        print(f"repaired: {finding.kind}: {finding.where}: {finding.what}: {finding.remedy}")
    for finding in findings:
        how = f"--fix: {finding.remedy}" if finding.repair is not None else finding.remedy
        print(f"{finding.kind}: {finding.where}: {finding.what} ({how})")
    if busy:
        print("a command is writing to the folder: only what is finished was looked at")
    print(
        f"{len(findings)} disagreements" if findings else "healthy: stages, records, tracking store and studies agree"
    )
