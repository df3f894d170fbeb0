"""The files that accompany a record: written into one folder, then sent as they are. Free of torch and of mlflow."""

from __future__ import annotations

import json
import math
import shutil
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray
from PIL import Image

from robuq.config import BLOCK_ROLES, BitAllocation, QuantSpec, RunConfig, decision_name, module_names, resolve_specs
from robuq.cost import layer_costs
from robuq.record.run_record import RunRecord

GRID_COLUMNS = 10
GRID_PIXELS = 48  # least size of one image in the sample grid


def write_artifact_files(record: RunRecord, folder: Path) -> list[str]:
    """Write or copy all of a record's files into `folder`; their names, sorted.

    config.json (resolved), bits.json (quantization of every module), history.jsonl, layers.jsonl, the files that
    `record.artifacts` names as far as they still exist, samples.png (from samples.npz), and record.json: the whole
    record, whose `artifacts` map each name to itself because the files now lie beside it.
    """
    for name, source in record.artifacts.items():
        if Path(source).is_file():
            (folder / name).parent.mkdir(parents=True, exist_ok=True)
            shutil.copyfile(source, folder / name)
    _write_json(folder / "config.json", record.config)
    _write_json(folder / "bits.json", bits_of(record.config, record.allocation))
    _write_lines(folder / "history.jsonl", record.history)
    _write_lines(folder / "layers.jsonl", record.layers)
    if (folder / "samples.npz").is_file() and not (folder / "samples.png").exists():
        _write_sample_grid(folder / "samples.npz", folder / "samples.png")
    names = sorted(str(file.relative_to(folder)) for file in folder.rglob("*") if file.is_file())
    _write_json(folder / "record.json", record.updated(artifacts={name: name for name in names}).model_dump())
    return sorted([*names, "record.json"])


def bits_of(config: Mapping[str, Any], found: Mapping[str, int]) -> dict[str, dict[str, float | None]]:
    """{module: {"act_bits", "weight_bits", "rank"}} of every quantized module; None is full precision.

    `found`: the bits by decision that AMPN found, if it was asked.
    """
    if not config:
        return {}
    run = RunConfig.parse(config)
    allocation = BitAllocation(bits=dict(found)) if found else run.allocation
    specs, ranks = resolve_specs(run.precision, run.model.num_layers, allocation), _ranks(run)
    return {name: _bits_of_module(spec, ranks[name]) for name, spec in specs.items()}


def _ranks(run: RunConfig) -> dict[str, int]:
    """{module: rank of its low-rank branch}; a decision's rank is that of all its modules."""
    ranks = {cost.name: cost.rank for cost in layer_costs(run.model, run.precision, run.allocation)}
    for block in range(run.model.num_layers):
        for role in (*BLOCK_ROLES, "attention", "adaln"):
            ranks |= dict.fromkeys(module_names(block, role), ranks[decision_name(block, role)])
    return ranks


def _bits_of_module(spec: QuantSpec, rank: int) -> dict[str, float | None]:
    return {
        "act_bits": spec.act.bits if spec.act else None,
        "weight_bits": spec.weight.bits_per_weight if spec.weight else None,
        "rank": rank,
    }


def tile_images(images: NDArray[np.uint8], columns: int = GRID_COLUMNS) -> NDArray[np.uint8]:
    """images: (N, H, W, C) -> (rows (H + 1) + 1, columns (W + 1) + 1, C), row by row, grey lines between."""
    count, height, width, channels = images.shape
    rows = math.ceil(count / columns)
    grid = np.full((rows * (height + 1) + 1, columns * (width + 1) + 1, channels), 128, dtype=np.uint8)
    for index, image in enumerate(images):
        top, left = (index // columns) * (height + 1) + 1, (index % columns) * (width + 1) + 1
        grid[top : top + height, left : left + width] = image
    return grid


def _write_sample_grid(samples: Path, file: Path) -> None:
    with np.load(samples, allow_pickle=False) as arrays:
        images = arrays["images"]
    if not len(images):
        return
    zoom = max(1, round(GRID_PIXELS / images.shape[1]))
    grid = tile_images(images).repeat(zoom, axis=0).repeat(zoom, axis=1)
    Image.fromarray(grid[..., 0] if grid.shape[-1] == 1 else grid).save(file)


def _write_json(file: Path, value: Any) -> None:
    file.write_text(json.dumps(value, indent=1, sort_keys=True, allow_nan=False) + "\n")


def _write_lines(file: Path, rows: Iterable[Mapping[str, Any]]) -> None:
    """One JSON object a line; a file that was copied here already is kept, and nothing is written for no rows."""
    lines = [json.dumps(row, allow_nan=False) for row in rows]
    if lines and not file.exists():
        file.write_text("\n".join(lines) + "\n")


def read_lines(file: Path) -> list[dict[str, Any]]:
    """The objects of a JSONL file. A last line that a killed process left unfinished is dropped.

    Raises:
        OSError: the file cannot be read.
        ValueError: another line is no JSON.
    """
    rows: list[dict[str, Any]] = []
    lines = file.read_text().splitlines()
    for number, line in enumerate(lines, start=1):
        try:
            rows.append(json.loads(line))
        except json.JSONDecodeError:
            if number < len(lines):
                raise ValueError(f"{file}:{number}: not a line of JSON: {line[:40]!r}") from None
    return rows
