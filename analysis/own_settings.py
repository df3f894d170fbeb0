"""Our own values of the settings that were published, read from the configurations of the recorded runs with AMPN and,
for what belongs to the recipe, from its code on the paper's network."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator

import pandas as pd

from analysis.load import finished
from analysis.product import Feed
from analysis.tables.cost import DRAWN
from robuq.config import MODEL_PRESETS, ModelConfig, PrecisionMap, RunConfig, SensitivityConfig
from robuq.variants import variant

AMPN_ROWS = ("robuq_to_4", "robuq")  # with the paper's widths, 1 to 4, and with 1 to 8: the nearest to the paper first
COLUMNS = ("metric", "dataset", "variant", "value")


def own_settings(feeds: Iterable[Feed]) -> pd.DataFrame:
    """One row a published setting, data set (or `DRAWN`, for the code alone) and value that our rows have there.

    Columns: metric (as in the published numbers), dataset, variant (the rows with this value, separated by commas),
    value.
    """
    found: dict[tuple[str, str, float], dict[str, None]] = {}
    for metric, dataset, name, value in [*_of_the_code(), *(one for feed in feeds for one in _of_runs(feed))]:
        found.setdefault((metric, dataset, value), {})[name] = None
    rows = [(metric, dataset, ", ".join(names), value) for (metric, dataset, value), names in found.items()]
    return pd.DataFrame(rows, columns=list(COLUMNS))


def _of_the_code() -> Iterator[tuple[str, str, str, float]]:
    name = AMPN_ROWS[-1]
    for metric, read in RECIPE.items():
        if (value := read(variant(name), MODEL_PRESETS[DRAWN])) is not None:
            yield metric, DRAWN, name, float(value)


def _of_runs(feed: Feed) -> Iterator[tuple[str, str, str, float]]:
    done = finished(feed.runs)
    for name in AMPN_ROWS:
        for _, row in done[done["variant"] == name].iterrows():
            run = RunConfig.parse(feed.full_record(row["key"]).config)
            values = {metric: read(run.precision, run.model) for metric, read in RECIPE.items()}
            values |= {metric: read(run) for metric, read in TRAINING.items()}
            yield from (
                (metric, row["dataset"], name, float(value)) for metric, value in values.items() if value is not None
            )


# --- readings: None where a configuration has no such thing -------------------------------------------------------


def _rank(precision: PrecisionMap, model: ModelConfig) -> int | None:
    """As it is in a network of this width, not as it is asked for."""
    spec = precision.qkv
    return None if spec is None or spec.low_rank is None else spec.low_rank.rank_of(model.width, model.width)


def _threshold(precision: PrecisionMap, model: ModelConfig) -> float | None:
    spec = precision.qkv
    return None if spec is None or spec.weight is None else spec.weight.threshold


def _attention_bits(precision: PrecisionMap, model: ModelConfig) -> int | None:
    spec = precision.attention
    return None if spec is None or spec.act is None else spec.act.bits


def _adaln_bits(precision: PrecisionMap, model: ModelConfig) -> int | None:
    """None, too, where weights and activations differ: that is no one number."""
    spec = precision.adaln
    if spec is None or spec.act is None or spec.weight is None or spec.act.bits != spec.weight.bits:
        return None
    return spec.act.bits


def _sensitivity(read: Callable[[SensitivityConfig], int]) -> Callable[[RunConfig], int | None]:
    return lambda run: None if run.ampn is None else read(run.ampn.sensitivity)


RECIPE: dict[str, Callable[[PrecisionMap, ModelConfig], float | None]] = {
    "rank of the low-rank branch": _rank,
    "ternary threshold over the mean absolute weight": _threshold,
    "bits of attention products": _attention_bits,
    "bits of adaLN weights and activations": _adaln_bits,
}
TRAINING: dict[str, Callable[[RunConfig], float | None]] = {
    "fewest bits of AMPN": _sensitivity(lambda asked: asked.candidates[0]),
    "most bits of AMPN": _sensitivity(lambda asked: asked.candidates[-1]),
    "QAT steps before the sensitivity": _sensitivity(lambda asked: asked.warm_up_steps),
    "QAT steps": lambda run: run.train.steps,
    "images a step": lambda run: run.train.batch_size,
    "low guidance": lambda run: run.evaluation.sample.guidance,
    "high guidance": lambda run: run.evaluation.sample.guidance,
}
