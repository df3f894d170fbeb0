from __future__ import annotations

import math
import subprocess
import sys
from collections.abc import Callable

import pandas as pd
import pytest

from analysis.load import TYPES, check_runs, load_runs, one_protocol, runs_frame
from robuq.record.run_record import RunRecord

Maker = Callable[..., RunRecord]


def test_one_typed_row_per_run(runs: pd.DataFrame) -> None:
    assert len(runs) == 8 * 3 + 1
    assert {name: str(runs[name].dtype) for name in TYPES} == TYPES
    assert runs["fd_floor"].dropna().eq(1.5).all()  # a metric beyond the usual ones has a column too


def test_values_are_those_of_the_record(runs: pd.DataFrame, make_record: Maker) -> None:
    record = make_record("minmax", 4, 1)
    row = runs.set_index("key").loc[record.key]
    assert row["held_out_loss"] == record.metrics["held_out_loss"]
    assert (row["lr"], row["steps"], row["width"], row["act_bits"]) == (1e-3, 300, 64, 4)
    assert row["seconds"] == 36.0
    assert row["history"].endswith("history.jsonl")


def test_missing_values_are_missing(runs: pd.DataFrame) -> None:
    failed = runs[runs["status"] == "failed"].iloc[0]
    assert failed["failure"] == "loss is not finite at step 120"
    assert math.isnan(failed["held_out_loss"])
    assert pd.isna(failed["samples"])
    assert runs.loc[runs["variant"] == "ternary_rotation", "act_bits"].isna().all()


def test_unknown_plan_names_the_known_ones(recorded: str) -> None:
    with pytest.raises(ValueError, match=r"no experiment 'digit'.*digits_components"):
        load_runs(recorded, "digit")


def test_a_frame_that_is_not_one_is_refused_in_one_line(runs: pd.DataFrame) -> None:
    broken = {
        r"no column 'lr'": runs.drop(columns="lr"),
        r"'seed' is float64, expected int64": runs.astype({"seed": "float64"}),
        r"comes twice": pd.concat([runs, runs.iloc[:1]]),
        r"has no held_out_loss": runs.assign(held_out_loss=math.nan),
    }
    for message, frame in broken.items():
        with pytest.raises(ValueError, match=message) as caught:
            check_runs(frame)
        assert "\n" not in str(caught.value)


def test_a_metric_may_not_hide_a_column(make_record: Maker) -> None:
    record = make_record()
    with pytest.raises(ValueError, match="'steps'"):
        runs_frame([record.updated(metrics={**record.metrics, "steps": 1.0})])


def test_two_protocols_are_named(make_record: Maker) -> None:
    mixed = runs_frame([make_record(seed=0), make_record(seed=1, protocol="bbbbbbbbbbbb")])
    with pytest.raises(ValueError, match="aaaaaaaaaaaa and bbbbbbbbbbbb"):
        one_protocol(mixed)
    with pytest.raises(ValueError, match="no finished runs"):
        one_protocol(mixed.iloc[:0])


def test_analysis_needs_neither_torch_nor_ray_and_mlflow_only_when_used() -> None:
    code = "import sys, analysis.report; print([m for m in ('torch', 'ray', 'mlflow', 'optuna') if m in sys.modules])"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "[]"
