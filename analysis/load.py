"""Records -> one tidy DataFrame, one row per run, columns and types checked. Nothing else reads the tracking server."""

from __future__ import annotations

from collections.abc import Sequence

import pandas as pd

from robuq.record.mlflow import read_runs
from robuq.record.run_record import RunRecord

PRIMARY = "held_out_loss"  # the low-noise metric that ranks and that every finished run has
VALIDATION = "validation_loss"  # what learning rates are chosen by; missing where no images were set aside
METRICS = (PRIMARY, VALIDATION, "fd_classifier", "precision", "recall", "classifier_score", "label_agreement")
ARTIFACTS = {  # column -> file name
    "history": "history.jsonl",
    "samples": "samples.npz",
    "tokens": "tokens.npz",
    "distributions": "distributions.npz",
}

TYPES = {
    "plan": "str",
    "key": "str",
    "variant": "str",
    "label": "str",  # W1.58A2
    "act_bits": "float64",  # NaN where the activations of the block linears are not quantized
    "seed": "int64",
    "pretrain_seed": "int64",
    "status": "str",  # finished | failed
    "failure": "str",  # reason; missing for finished runs
    "protocol": "str",
    "dataset": "str",
    "lr": "float64",  # of quantization-aware training
    "steps": "float64",  # optimizer updates of quantization-aware training
    "batch_size": "float64",  # images
    "width": "float64",  # of the model
    "num_layers": "float64",
    "seconds": "float64",  # all stages together, shared ones included
    **dict.fromkeys(METRICS, "float64"),
    **dict.fromkeys(ARTIFACTS, "str"),  # locations for robuq.record.mlflow.fetch_artifact
}
OWN = [name for name in TYPES if name in RunRecord.model_fields and name not in ("seconds", "history")]


def load_runs(tracking_uri: str, plan: str) -> pd.DataFrame:
    """All runs of a plan, failed ones included.

    Raises:
        ValueError: the server knows no such plan, or a record lacks what every record has.
        TrackingUnavailable: the server does not answer.
    """
    return runs_frame(read_runs(tracking_uri, plan))


def runs_frame(records: Sequence[RunRecord]) -> pd.DataFrame:
    """One row a record with the columns of `TYPES`, and one more for each further metric; sorted, whatever the order
    of the records."""
    others = sorted({name for record in records for name in record.metrics} - set(METRICS))
    if clash := sorted(set(others) & set(TYPES)):
        raise ValueError(f"metric {clash[0]!r} has the name of another column: rename the metric")
    types = TYPES | dict.fromkeys(others, "float64")
    rows = [_row(record) for record in records]
    runs = pd.DataFrame({name: pd.Series([row.get(name) for row in rows], dtype=kind) for name, kind in types.items()})
    return check_runs(runs.sort_values(["variant", "act_bits", "seed", "pretrain_seed", "key"], ignore_index=True))


def check_runs(runs: pd.DataFrame) -> pd.DataFrame:
    """The same frame.

    Raises:
        ValueError: one line: a column is missing or of another type, a key comes twice, or a finished run has no
            primary metric.
    """
    for name, kind in TYPES.items():
        if name not in runs:
            raise ValueError(f"runs have no column {name!r}: columns are {', '.join(TYPES)}")
        if str(runs[name].dtype) != kind:
            raise ValueError(f"column {name!r} is {runs[name].dtype}, expected {kind}")
    if (again := runs["key"].duplicated()).any():
        raise ValueError(f"run {runs.loc[again, 'key'].iloc[0]} comes twice: every run has a key of its own")
    lacking = (runs["status"] == "finished") & runs[PRIMARY].isna()
    if lacking.any():
        raise ValueError(f"finished run {runs.loc[lacking, 'key'].iloc[0]} has no {PRIMARY}: evaluate it again")
    return runs


def finished(runs: pd.DataFrame) -> pd.DataFrame:
    return runs[runs["status"] == "finished"]


def one_protocol(runs: pd.DataFrame) -> str:
    """The protocol that all runs share; numbers of different protocols cannot stand in one table.

    Raises:
        ValueError: there are several, or no runs.
    """
    protocols = sorted(runs["protocol"].unique())
    if len(protocols) > 1:
        raise ValueError(
            f"protocols {' and '.join(protocols)} cannot share a table: evaluate all runs alike, or report them apart"
        )
    if not protocols:
        raise ValueError("no finished runs: there is nothing to compare yet")
    return str(protocols[0])


def _row(record: RunRecord) -> dict[str, object]:
    own = {name: getattr(record, name) for name in OWN}
    train, model = record.config.get("train", {}), record.config.get("model", {})
    settings = {name: train.get(name) for name in ("lr", "steps", "batch_size")}
    settings |= {name: model.get(name) for name in ("width", "num_layers")}
    files = {column: record.artifacts.get(file) for column, file in ARTIFACTS.items()}
    return own | settings | files | {"seconds": sum(record.seconds.values())} | record.metrics
