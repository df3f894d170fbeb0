"""Which runs are behind a file of the paper's folder: their keys, code and settings, from the manifest beside it."""

from __future__ import annotations

import json
import os
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Any

from pydantic import BaseModel, Field

from analysis.methods import METHODS, method_name, short_name
from analysis.paper import COMPONENTS
from analysis.paper_figures import NAMES as FIGURE_NAMES
from analysis.paper_folder import MANIFEST
from analysis.tables import main, quantizers, warm_up
from robuq.plain_json import read_mapping

Config = Mapping[str, Any]
FindConfig = Callable[[str, str], Config | None]  # (plan, key) -> resolved configuration, None: not at hand
TABLE_NAMES: Mapping[str, Mapping[str, str]] = {  # artefact -> its own names of variants
    "main_conditional": main.NAMES,
    "main_unconditional": main.NAMES,
    "components": COMPONENTS.names,
    "quantizers": quantizers.NAMES,
    "warm_up": warm_up.NAMES,
}


class _Cell(BaseModel):
    row: str
    columns: list[str]
    keys: list[str]


class _Artefact(BaseModel):
    id: str
    source: Annotated[str, Field(alias="from")]
    cells: list[_Cell]


class _Run(BaseModel):
    variant: str
    label: str
    seed: int
    pretrain_seed: int
    protocol: str
    git: dict[str, str]
    versions: dict[str, str]


class _Manifest(BaseModel):
    """What is read of the manifest."""

    artefacts: dict[str, _Artefact]
    runs: dict[str, dict[str, _Run]]


@dataclass(frozen=True)
class Provenance:
    """`cells`: {row: {column: keys}}, columns empty where a figure's part has none. `runs`: the manifest's, by key."""

    file: str
    artefact: str
    source: str
    cells: list[dict[str, Any]]
    runs: dict[str, dict[str, Any]]


def provenance(file: Path, row: str = "", column: str = "") -> Provenance:
    """Of a whole file, or of the rows that are named `row` and their column `column`.

    A row is named as in the manifest (`robuq W1.58A2`), by its variant alone or as the artefact shows it (`RobuQ with
    AMPN, 1 to 4 bits`). Where no row has exactly this name, it is every row with these words in its name.

    Raises:
        ValueError: no manifest beside the file, a file that it does not name, or no such row or column.
    """
    manifest = _manifest(file)
    name = _name_of(file, manifest)
    entry = manifest["artefacts"][name]
    cells = _rows_named(row, entry)
    if column:
        cells = [cell | {"columns": [column]} for cell in cells if column in cell["columns"]]
    if entry["cells"] and not cells:
        rows, columns = ({x for cell in entry["cells"] for x in xs(cell)} for xs in (_row_of, _columns_of))
        raise ValueError(
            f"{file.name} has no cell {row or 'any'}, {column or 'any'}: rows are {', '.join(sorted(rows))}; "
            f"columns are {', '.join(sorted(columns)) or 'none'}"
        )
    keys = dict.fromkeys(key for cell in cells for key in cell["keys"])
    known = manifest["runs"].get(entry["from"], {})
    runs = {key: known[key] for key in keys if key in known}
    return Provenance(file.name, entry["id"], entry["from"], cells, runs)


def _rows_named(wanted: str, entry: Mapping[str, Any]) -> list[dict[str, Any]]:
    names = [(cell, _names(cell["row"], entry["id"])) for cell in entry["cells"]]
    exact = [cell for cell, own in names if wanted in own]
    return exact or [cell for cell, own in names if any(wanted.lower() in name.lower() for name in own)]


def _names(row: str, artefact: str) -> set[str]:
    """All that a row is known by: of `variant label` each part's names, too."""
    variant, _, label = row.partition(" ")
    if variant not in METHODS:  # a claim: it is shown as it is in the manifest
        return {row}
    if artefact in TABLE_NAMES:
        shown = {TABLE_NAMES[artefact].get(variant, method_name(variant))}
    else:
        shown = {FIGURE_NAMES.get(variant, short_name(variant)), short_name(variant)}
    return {row, variant, *shown, *(f"{name} {label}".strip() for name in shown)}


def _row_of(cell: Mapping[str, Any]) -> list[str]:
    return [cell["row"]]


def _columns_of(cell: Mapping[str, Any]) -> list[str]:
    return list(cell["columns"])


def _manifest(file: Path) -> dict[str, Any]:
    beside = file.parent / MANIFEST
    if not os.path.isfile(file):  # unlike Path's, it takes names that no file can have
        raise ValueError(f"no file {file}")
    if not beside.is_file():
        raise ValueError(f"no {MANIFEST} beside {file.name}: only files of the paper's folder have a provenance")
    try:
        manifest = read_mapping(beside)
        _Manifest.model_validate(manifest)
    except (OSError, ValueError):
        raise ValueError(f"{beside} is not of the paper's folder: robuq paper writes one that is") from None
    return manifest


def _name_of(file: Path, manifest: Mapping[str, Any]) -> str:
    if file.stem not in manifest["artefacts"]:
        names = ", ".join(manifest["artefacts"])
        hint = "published numbers have sources, not runs" if file.stem.endswith("_published") else f"it names {names}"
        raise ValueError(f"{MANIFEST} does not name {file.name}: {hint}")
    return file.stem


# --- as text ------------------------------------------------------------------------------------------------------


def provenance_lines(found: Provenance, config_of: FindConfig) -> list[str]:
    """What each row rests on; each run's seeds and code; the settings that all of them share, and what differs."""
    if not found.cells:
        return [f"{found.file}: {found.artefact}, from {found.source}: no run is behind it"]
    lines = [f"{found.file}: {found.artefact}, from {found.source}: {len(found.runs)} runs"]
    lines += [f"  {cell['row']}{_columns(cell)}: {' '.join(cell['keys'])}" for cell in found.cells]
    lines += ["runs:", *(f"  {key}  {_run_line(run)}" for key, run in found.runs.items())]
    configs = {key: config_of(found.source, key) for key in found.runs}
    known = {key: flat(config) for key, config in configs.items() if config is not None}
    if lacking := [key for key in configs if key not in known]:
        lines.append(
            f"settings of {len(lacking)} runs are not at hand: --output or --tracking-uri names where they are kept"
        )
    return lines + _settings_lines(known)


def _columns(cell: Mapping[str, Any]) -> str:
    return f" [{', '.join(cell['columns'])}]" if cell["columns"] else ""


def _run_line(run: Mapping[str, Any]) -> str:
    git = run["git"]
    dirty = " with uncommitted changes" if git.get("dirty") == "true" else ""
    code = f"commit {git['commit'][:12]}{dirty}" if git.get("commit") else "no commit recorded"
    versions = ", ".join(f"{name} {run['versions'][name]}" for name in ("python", "torch") if name in run["versions"])
    seeds = f"seed {run['seed']}, pre-training seed {run['pretrain_seed']}"
    return f"{run['variant']} {run['label']} {seeds}; protocol {run['protocol']}; {code}; {versions}"


def _settings_lines(known: Mapping[str, Mapping[str, Any]]) -> list[str]:
    if not known:
        return []
    first = next(iter(known.values()))
    shared = {
        name: value for name, value in first.items() if all(one.get(name, known) == value for one in known.values())
    }
    lines = ["settings, of every run:", *(f"  {name}: {_text(value)}" for name, value in shared.items())]
    for key, own in known.items():
        if others := {name: value for name, value in own.items() if name not in shared}:
            lines.append(
                f"settings of {key}: " + ", ".join(f"{name}: {_text(value)}" for name, value in others.items())
            )
    return lines


def flat(config: Config, prefix: str = "") -> dict[str, Any]:
    """{dotted name: value}; empty parts and lists are values."""
    values: dict[str, Any] = {}
    for name, value in config.items():
        if isinstance(value, Mapping) and value:
            values |= flat(value, f"{prefix}{name}.")
        else:
            values[f"{prefix}{name}"] = value
    return values


def _text(value: Any) -> str:
    return json.dumps(value)
