"""What can be done with one recorded run: judge it under another protocol, draw from it, reproduce it."""

from __future__ import annotations

import math
import tempfile
from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

from experiments.executors import Executor, LocalExecutor, check_device
from experiments.launch import Job, Sweep, jobs_of, launch
from experiments.output import Output
from experiments.overrides import apply_override
from experiments.progress import display_of
from experiments.target_file import check_target, not_written
from robuq.config import ConfigError, RunConfig, SampleConfig
from robuq.record.collect import collect_run
from robuq.record.run_record import RunRecord
from robuq.stages import StageStore

if TYPE_CHECKING:
    from rich.console import Console
    from torch import Tensor

PNG = b"\x89PNG\r\n\x1a\n"  # what each begins with


def run_of(record: RunRecord, overrides: Mapping[str, Any] | None = None) -> RunConfig:
    """The recorded configuration, changed by dotted overrides.

    Raises:
        ConfigError: an override leads nowhere.
    """
    values = RunConfig.parse(record.config).model_dump(mode="json")
    for name, value in (overrides or {}).items():
        apply_override(values, name, value)
    return RunConfig.parse(values)


def finish(run: RunConfig, store: StageStore, executor: Executor, console: Console) -> Job:
    """Execute what is missing of one run.

    Raises:
        ConfigError: a stage failed; the line says why.
    """
    (job,) = jobs_of([run])
    sweep = Sweep([job], store, lambda stage: 1.0)
    display = display_of(sweep, store, 1, console)
    with display.showing():
        (end,) = launch(sweep, executor, lambda end: None, [display])
    if end.failure:
        raise ConfigError(f"{run.variant} seed {run.seed} failed: {end.failure}")
    return job


def evaluated(record: RunRecord, overrides: Mapping[str, Any], output: Output, device: str, console: Console) -> Any:
    """{metric: value} of the run, possibly under another protocol; training is not repeated."""
    run = run_of(record, overrides)
    check_device(device)
    output.ensure_writable()
    job = finish(run, output.store, LocalExecutor(output.store.root, device), console)
    return collect_run(record.plan, run, job.stages, job.data, output.store).metrics


def reproduced(record: RunRecord, output: Output, device: str, console: Console) -> RunRecord:
    """The run once more, every stage from nothing, in a folder of its own that is deleted afterwards."""
    run = run_of(record)
    check_device(device)
    output.ensure_writable()
    with tempfile.TemporaryDirectory(prefix="reproduce-", dir=output.folder) as folder:
        store = StageStore(Path(folder))
        job = finish(run, store, LocalExecutor(store.root, device), console)
        return collect_run(record.plan, run, job.stages, job.data, store)


def differences(recorded: RunRecord, again: RunRecord) -> list[str]:
    """One line for each metric, and for the training history, that is not the same bit for bit."""
    lines = [
        f"{name}: recorded {_shown(recorded.metrics.get(name))}, now {_shown(again.metrics.get(name))}"
        for name in sorted({*recorded.metrics, *again.metrics})
        if not _equal(recorded.metrics.get(name), again.metrics.get(name))
    ]
    if recorded.history != again.history:
        lines.append(f"training history: {len(recorded.history)} rows recorded, {len(again.history)} now, not equal")
    if recorded.stages != again.stages:
        changed = sorted(kind for kind in again.stages if recorded.stages.get(kind) != again.stages[kind])
        lines.append(f"stages {', '.join(changed)} have other keys: the code, the data or their settings changed")
    return lines


def _equal(one: float | None, other: float | None) -> bool:
    return one == other or (one is not None and other is not None and math.isnan(one) and math.isnan(other))


def _shown(value: float | None) -> str:
    return "none" if value is None else repr(value)


def drawn(record: RunRecord, output: Output, config: SampleConfig, device: str) -> Tensor:
    """Images (N, C, H, W) in [-1, 1] from the run's trained network, classes in turn.

    Raises:
        ConfigError: the network is not in this output folder, or images cannot be drawn like this.
    """
    from robuq.evaluate import balanced_labels
    from robuq.models import load_dit
    from robuq.pipeline import MODEL
    from robuq.quant.storage import load_quantized

    run = run_of(record)
    check_device(device)
    try:
        config.check_fits(run.diffusion.num_timesteps, run.model.in_channels)
    except ValueError as error:
        raise ConfigError(str(error)) from None
    folder = output.store.folder(f"qat/{record.stages.get('qat', 'unknown')}") / MODEL
    if not folder.is_dir():
        raise ConfigError(f"the trained network of run {record.key} is not in {output.folder}: sweep or train again")
    model = load_dit(folder) if run.precision.is_full_precision() else load_quantized(folder)
    return _sampled(model.to(device), balanced_labels(config.num_images, max(run.model.num_classes, 1)), run, config)


def _sampled(model: Any, labels: Tensor, run: RunConfig, config: SampleConfig) -> Tensor:
    from robuq.batches import known_labels
    from robuq.diffusion.sampler import sample_images

    return sample_images(model, known_labels(labels, model.null_label), run.diffusion, config)


def check_picture(file: Path) -> None:
    """Raises ConfigError: the file cannot be written, or is there and no PNG."""
    check_target(file, "a PNG", _is_png)


def _is_png(file: Path) -> bool:
    with file.open("rb") as stream:
        return stream.read(len(PNG)) == PNG


def write_png(images: Tensor, file: Path, columns: int) -> None:
    """A grid of images, row by row.

    Raises:
        ConfigError: these are no pictures, or the file cannot be written.
    """
    from PIL import Image

    from robuq.evaluate import to_uint8
    from robuq.record.artifact_files import GRID_PIXELS, tile_images

    if images.shape[1] not in (1, 3):
        raise ConfigError(f"images with {images.shape[1]} channels are latents, not pictures: decode them first")
    zoom = max(1, round(GRID_PIXELS / images.shape[2]))
    grid = tile_images(to_uint8(images), max(1, min(columns, len(images)))).repeat(zoom, axis=0).repeat(zoom, axis=1)
    try:
        file.parent.mkdir(parents=True, exist_ok=True)
        Image.fromarray(grid[..., 0] if grid.shape[-1] == 1 else grid).save(file, format="PNG")
    except OSError as error:
        raise not_written(file, error) from None
