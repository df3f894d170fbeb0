"""How a record is laid out in a tracking server: names, descriptions, parameters, tags and metrics, and the way back.

What a table needs lies in the run's tags, parameters and final metrics. Free of mlflow.
"""

from __future__ import annotations

import functools
import json
from collections.abc import Mapping
from typing import Any

from robuq.record.run_record import RunRecord

HISTORY = "train/"  # prefix of metrics with a value at every logged training step
SECONDS = "seconds/"  # prefix of the time that each stage took
EVALUATE = "evaluate"  # group of the evaluation's metrics: the user interface has a section of charts for each group
GROUPS = {
    "model_cost": ("average_bits", "bops", "macs", "rotation_ops", "weight_bytes"),
    "timesteps": ("held_out_loss_bin",),
}
FAILURE = "robuq.failure"  # tag of failed runs
REPORT = "report"  # name of the run that holds a plan's report, and of the folder of its artefacts
TEXT_LIMIT = 1000  # characters of a failure's reason
SHOWN = {  # settings that become parameters
    "train": ("steps", "lr", "batch_size"),
    "model": ("width", "num_layers", "patch_size"),
}


def run_name(record: RunRecord) -> str:
    """`robuq_uniform/W1.58A2/0`: what the command line takes for RUN, and short enough for the list's column."""
    return f"{record.variant}/{record.label}/{record.seed}"


def params_of(record: RunRecord) -> dict[str, str]:
    """The few settings worth a column: strings, as MLflow keeps them. All of them are in config.json."""
    params = {
        "variant": record.variant,
        "label": record.label,
        "act_bits": "full" if record.act_bits is None else f"{record.act_bits:g}",
        "seed": str(record.seed),
        "pretrain_seed": str(record.pretrain_seed),
        "dataset": record.dataset,
    }
    for section, names in SHOWN.items():
        values: Mapping[str, Any] = record.config.get(section, {})
        params |= {f"{section}.{name}": json.dumps(values[name]) for name in names if name in values}
    return params


def tags_of(record: RunRecord, files: list[str]) -> dict[str, str]:
    """Identity and provenance; also what a reader needs to rebuild the record without opening an artefact."""
    identity = record.model_dump(
        include={"plan", "key", "variant", "label", "act_bits", "seed", "pretrain_seed", "protocol", "dataset"}
    )
    tags = {
        "robuq.identity": json.dumps(identity, sort_keys=True),
        "robuq.variant": record.variant,
        "robuq.label": record.label,
        "robuq.protocol": record.protocol,
        "robuq.status": record.status,
        "robuq.stages": json.dumps(record.stages, sort_keys=True),
        "robuq.versions": json.dumps(record.versions, sort_keys=True),
        "robuq.files": json.dumps(files),
        "mlflow.note.content": note(record),
    }
    optional = {
        FAILURE: (record.failure or "")[:TEXT_LIMIT],
        "mlflow.source.git.commit": record.git.get("commit"),
        "mlflow.source.git.dirty": record.git.get("dirty"),
    }
    return tags | {name: value for name, value in optional.items() if value}


def plan_note(plan: str) -> str:
    """The experiment's description, Markdown."""
    return (
        f"One run for each variant and seed of the plan `{plan}`. Rank them by `{EVALUATE}/held_out_loss`, lower is "
        f"better, and compare runs of one `robuq.protocol` only. Tables and figures: the run `{REPORT}`, made "
        "by `robuq report` and the plan's file."
    )


def report_note(plan: str, experiment: str, run_id: str) -> str:
    """The description of the report's run, Markdown; the link is of the user interface's own pages."""
    page = f"#/experiments/{experiment}/runs/{run_id}/artifacts/{REPORT}/report.md"
    return f"Table and figures of the plan `{plan}`: [report.md]({page}). Made again by `robuq report`."


def note(record: RunRecord) -> str:
    """The run's description, Markdown."""
    rate = record.config.get("train", {}).get("lr")
    settings = f"seed {record.seed}, pre-training seed {record.pretrain_seed}, learning rate {rate}"
    what = f"**{record.variant}** {record.label} on {record.dataset}, {settings}. Protocol `{record.protocol}`."
    if record.failure:
        return f"{what}\n\nFailed: {record.failure[:TEXT_LIMIT]}"
    return f"{what}\n\nThe same again: `robuq reproduce {record.key}`"


def metric_name(name: str) -> str:
    """A final metric's: `held_out_loss` -> `evaluate/held_out_loss`, `qat.train_loss` -> `qat/train_loss`."""
    stage, dot, rest = name.partition(".")
    if dot:
        return f"{stage}/{rest}"
    group = next((group for group, beginnings in GROUPS.items() if name.startswith(beginnings)), EVALUATE)
    return f"{group}/{name}"


@functools.cache  # a handful of names, asked for with every metric of every run
def recorded_name(name: str) -> str:
    """The inverse of `metric_name`; what somebody added by hand without a group keeps its name."""
    group, _, rest = name.partition("/")
    return rest if group == EVALUATE or group in GROUPS else name.replace("/", ".", 1)


def metric_rows(record: RunRecord) -> list[tuple[str, float, int, int]]:
    """(name, value, timestamp in ms, step): the history, then times and final metrics.

    Those have step 0, because the user interface draws such metrics as bars, one a run, and all others over steps.
    Timestamps run evenly from start to end, so that equal records give equal rows.
    """
    last = max((int(entry["step"]) for entry in record.history), default=0)
    start, end = (milliseconds(time) or 0 for time in (record.started, record.finished))
    rows = [
        (
            f"{HISTORY}{name}",
            float(value),
            start + (end - start) * int(entry["step"]) // max(last, 1),
            int(entry["step"]),
        )
        for entry in record.history
        for name, value in entry.items()
        if name != "step"
    ]
    final = {metric_name(name): value for name, value in record.metrics.items()}
    final |= {f"{SECONDS}{stage}": seconds for stage, seconds in record.seconds.items()}
    return rows + [(name, float(value), end, 0) for name, value in final.items()]


# --- the way back ---------------------------------------------------------------------------------------------


def config_of(params: Mapping[str, str]) -> dict[str, Any]:
    """The settings that are parameters, as parts of a configuration."""
    config: dict[str, Any] = {}
    for section, names in SHOWN.items():
        texts = {name: params.get(f"{section}.{name}") for name in names}
        config[section] = {name: json.loads(text) for name, text in texts.items() if text is not None}
    return config


def seconds_of(metrics: Mapping[str, float]) -> dict[str, float]:
    return {name.removeprefix(SECONDS): value for name, value in metrics.items() if name.startswith(SECONDS)}


def metrics_of(metrics: Mapping[str, float]) -> dict[str, float]:
    """The record's final metrics."""
    final = {name: value for name, value in metrics.items() if not name.startswith((SECONDS, HISTORY))}
    return {recorded_name(name): value for name, value in final.items()}


def milliseconds(seconds: float) -> int | None:
    """None, for MLflow to take the present, where a record has no time."""
    return round(1000 * seconds) if seconds else None
