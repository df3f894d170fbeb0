"""Sensitivities and allocations by themselves: measured if they are missing, as plain data, and as tables."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from rich.console import Console
from rich.table import Table

from experiments.estimate import Estimator
from experiments.executors import LocalExecutor, check_device
from experiments.launch import Job, Sweep, launch
from experiments.output import Output
from experiments.progress import display_of, duration
from experiments.search_problem import SENSITIVITY_FILE, Prices, ampn_of, check_budget, problem_of, read_table
from experiments.target_file import check_target, not_written
from robuq.ampn.allocate import allocate, uniform
from robuq.ampn.bits_file import bits_data, read_bits
from robuq.ampn.problem import unit
from robuq.ampn.table import SensitivityTable, split_decision
from robuq.config import BLOCK_ROLES, ConfigError, RunConfig
from robuq.data.fingerprint import data_fingerprint
from robuq.stages import StageStore, sensitivity_stages, stages_of, write_json


def measured(run: RunConfig, output: Output, device: str, console: Console) -> tuple[Job, SensitivityTable]:
    """The sensitivity of the run's layers; stages that are missing are executed in this process.

    Raises:
        ConfigError: the budget cannot be reached, a stage failed, or another command holds the folder.
    """
    check_budget(run)
    data = data_fingerprint(run.data)
    job = Job(run, sensitivity_stages(run, data), data)
    if not output.store.is_done(job.stages[-1]):
        check_device(device)
        with output.sweeping():
            _execute(job, output, device, console)
    return job, read_table(job, output.store)


def _execute(job: Job, output: Output, device: str, console: Console) -> None:
    sweep = Sweep([job], output.store, Estimator(output.store).seconds)
    display = display_of(sweep, output.store, 1, console)
    with display.showing():
        (end,) = launch(sweep, LocalExecutor(output.store.root, device), lambda end: None, [display])
    if end.failure:
        raise ConfigError(f"{job.run.variant}: {end.failure}")


# --- sensitivity ----------------------------------------------------------------------------------------------


def sensitivity_data(job: Job, table: SensitivityTable, store: StageStore) -> dict[str, Any]:
    """The table, its noise, what it took, and its share of the quantization-aware training that it serves."""
    sensitivity = job.stages[-1]
    seconds = float(store.result(sensitivity.id).get("seconds", 0.0))
    training, estimated = _training_seconds(job, store)
    return {
        "variant": job.run.variant,
        "label": job.run.label,
        "measure": ampn_of(job.run).measure,
        "file": str(store.folder(sensitivity.id) / SENSITIVITY_FILE),
        "reference": table.reference,
        "warm_up_steps": table.warm_up_steps,
        "num_images": table.num_images,
        "base_loss": table.base_loss,
        "candidates": list(table.candidates),
        "rows": table.rows(),
        "noise": table.noise(),
        "seconds": seconds,
        "seconds_by_measure": table.seconds,
        "training_seconds": round(training, 3),
        "training_is_estimated": estimated,
        "share_of_training": seconds / training if training > 0 else None,
    }


def _training_seconds(job: Job, store: StageStore) -> tuple[float, bool]:
    """Of the quantization-aware training with the bits that AMPN finds; and whether it is an estimate."""
    (qat,) = (stage for stage in stages_of(job.run, job.data) if stage.kind == "qat")
    if store.is_done(qat):
        return float(store.result(qat.id).get("seconds", 0.0)), False
    return Estimator(store).seconds(qat), True


def print_sensitivity(data: Mapping[str, Any], console: Console) -> None:
    measure = data["measure"]
    table = Table(box=None, pad_edge=False)
    table.add_column("decision", no_wrap=True)
    for bits in data["candidates"]:
        table.add_column(f"{bits} bit{'s' if bits > 1 else ''}", justify="right", no_wrap=True)
    by_decision: dict[str, list[str]] = {}
    for row in data["rows"]:
        by_decision.setdefault(f"{row['block']}.{row['role']}", []).append(f"{row[measure]:.3g}")
    for name, cells in by_decision.items():
        table.add_row(name, *cells)
    _say(console, f"{measure}, with all other layers at {data['reference']} bits; loss there {data['base_loss']:.5g}")
    console.print(table)
    for name, value in data["noise"].items():
        _say(console, f"{name}: {value:.3g}")
    _say(console, f"took {duration(data['seconds'])}{_share(data)}")
    _say(console, data["file"])


def _share(data: Mapping[str, Any]) -> str:
    if data["share_of_training"] is None:
        return ""
    how = "about " if data["training_is_estimated"] else ""
    return f": {how}{100 * data['share_of_training']:.1f} % of the training that it serves"


# --- allocation -----------------------------------------------------------------------------------------------


def allocation_data(run: RunConfig, table: SensitivityTable) -> dict[str, Any]:
    """What bits.json says, and beside it BOPs, and the largest uniform width that fits.

    Raises:
        ConfigError: the budget cannot be reached.
    """
    ampn, problem = ampn_of(run), problem_of(run, table)
    found, even = allocate(problem, ampn.allocator), uniform(problem)
    return {
        **bits_data(problem, found, ampn, run.model, run.precision),
        "bops": Prices(run, problem).bops(found.bits),
        "unit": unit(problem.budget),
        "uniform": {"bits": even.bits[0], "damage": even.damage, "cost": even.cost},
    }


def check_bits_file(file: Path) -> None:
    """Raises ConfigError: the file cannot be written, or is there and holds something else."""
    check_target(file, "a file of bits", _holds_bits)


def _holds_bits(file: Path) -> bool:
    try:
        read_bits(file)
    except ConfigError:
        return False
    return True


def write_bits(data: Mapping[str, Any], file: Path) -> None:
    """Raises ConfigError: the file cannot be written."""
    try:
        file.parent.mkdir(parents=True, exist_ok=True)
        write_json(file, data)
    except OSError as error:
        raise not_written(file, error) from None


def print_allocation(data: Mapping[str, Any], console: Console) -> None:
    console.print(bits_grid(data["bits"]))
    means = ", ".join(f"{mean:.4g} by {weights}" for weights, mean in data["average_bits"].items())
    _say(console, f"mean bits: {means}")
    _say(console, f"{data['bops']:.5g} x 10^9 BOPs; {data['cost']:.5g} of {data['limit']:.5g} {data['unit']}")
    even = data["uniform"]
    _say(console, f"predicted damage by {data['measure']}: {data['damage']:.5g}; {even['bits']} bits everywhere: "
         f"{even['damage']:.5g}")  # fmt: skip
    proven = "proven optimal for these sensitivities" if data["optimal"] else "not proven optimal"
    _say(console, f"{data['allocator']}: {proven}")


def bits_grid(bits: Mapping[str, int]) -> Table:
    """Kinds by blocks."""
    by_place = {split_decision(decision): value for decision, value in bits.items()}
    blocks = sorted({block for block, _ in by_place})
    table = Table(box=None, pad_edge=False)
    table.add_column("block", no_wrap=True)
    for block in blocks:
        table.add_column(str(block), justify="right", no_wrap=True)
    for role in BLOCK_ROLES:
        cells = [str(by_place.get((block, role), "")) for block in blocks]
        table.add_row(role, *cells)
    return table


def _say(console: Console, text: str) -> None:
    console.print(text, markup=False, highlight=False, soft_wrap=True)
