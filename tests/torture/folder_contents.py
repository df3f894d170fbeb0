"""What an output folder holds, as far as it must not depend on kills, and what is wrong with it."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

from experiments.doctor import Doctor
from experiments.output import Output
from experiments.search_run import JOURNAL
from robuq.ampn.search import journal_states
from robuq.record.audit import tracked_runs
from robuq.record.mlflow import connect, sqlite_uri


def contents(output: Path) -> dict[str, Any]:
    """All that must not depend on kills, as plain data."""
    folder = Output(output)
    return {
        "stages": sorted(str(f.relative_to(output)) for f in (output / "stages").glob("*/[!.]*")),
        "runs": {f"{r.plan}/{r.key}": _run(r.model_dump(mode="json")) for r in folder.records()},
        "searches": {f.parent.name: _search(json.loads(f.read_text())) for f in output.glob("searches/*/search.json")},
        "trials": {f.parent.name: journal_states(f) for f in output.glob(f"searches/*/{JOURNAL}")},
        "mlflow": _tracked(sqlite_uri(folder.tracking_file)),
    }


def _run(record: dict[str, Any]) -> dict[str, Any]:
    kept = {
        name: record[name] for name in ("status", "failure", "stages", "allocation", "history", "layers", "protocol")
    }
    return {**kept, "metrics": {k: v for k, v in record["metrics"].items() if not k.endswith("_seconds")}}


def _search(record: dict[str, Any]) -> dict[str, Any]:
    names = ("winner", "equal_to", "front", "rank_correlations", "predictors", "baselines", "confirmed")
    of_each = ("number", "source", "bits", "values", "state", "failure", "params", "cost", "predicted")
    evaluations = [{name: evaluation[name] for name in of_each} for evaluation in record["evaluations"]]
    return {**{name: record[name] for name in names}, "evaluations": evaluations, "over": record["finished"] > 0}


def _tracked(uri: str) -> list[Any]:
    """(experiment, identity, status, points of each metric) of each run: a point that was sent twice is there twice."""
    client, rows = connect(uri), []
    for run in tracked_runs(uri):
        names = sorted(client.get_run(run.run_id).data.metrics)
        points = {name: [[p.step, p.value] for p in client.get_metric_history(run.run_id, name)] for name in names}
        told = {name: len(of) if "seconds" in name else of for name, of in points.items()}
        rows.append([run.experiment, list(run.identity or ()), run.status, told])
    return sorted(rows, key=lambda row: json.dumps(row[:2]))


def problems_of(output: Path, wanted: dict[str, Any]) -> list[str]:
    """One line for each difference from the undisturbed folder, and for all that the doctor says."""
    found = contents(output)
    lines = [
        f"{name} differ: {_difference(found[name], wanted[name])}" for name in wanted if found[name] != wanted[name]
    ]
    return lines + [f"doctor: {finding}" for finding in Doctor(Output(output)).examine()]


def _difference(found: Any, wanted: Any) -> str:
    if isinstance(found, dict) and isinstance(wanted, dict):
        for name in sorted({*found, *wanted}):
            if found.get(name) != wanted.get(name):
                return f"{name}: {_difference(found.get(name), wanted.get(name))}"
    return f"{str(found)[:300]} instead of {str(wanted)[:300]}"
