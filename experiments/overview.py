"""What a plan would do, and what has been done of it: plain data, and the same as tables."""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping, Sequence
from typing import Any

from rich.console import Console
from rich.table import Table

from experiments.estimate import Estimator, total_seconds
from experiments.launch import Job, missing
from experiments.output import Output
from experiments.plan import Plan
from experiments.progress import duration
from robuq.stages import KINDS, Stage, StageStore, distinct

SHOWN_RUNS = 200  # rows of a table on the terminal
URGENCY = ("failed", "started", "waiting", "finished")  # in which order the rows of a long plan are shown


def plan_data(plan: Plan, jobs: list[Job], output: Output, workers: int) -> dict[str, Any]:
    """Runs with their stages, how many stages are shared and missing, and the estimated seconds."""
    stages = distinct(stage for job in jobs for stage in job.stages)
    left = missing(jobs, output.store)
    chains = [tuple(stage for stage in job.stages if stage.id in left) for job in jobs]
    counts = Counter(stage.kind for stage in stages)
    uses = Counter(stage.kind for job in jobs for stage in job.stages)
    lacking = Counter(stage.kind for stage in left.values())
    return {
        "plan": plan.name,
        "description": plan.description,
        "output": str(output.folder),
        "runs": [_run_data(job, left) for job in jobs],
        "stages": {
            kind: {"distinct": counts[kind], "of": uses[kind], "missing": lacking[kind]}
            for kind in KINDS
            if counts[kind]
        },
        "workers": workers,
        "seconds": round(total_seconds(chains, Estimator(output.store), workers), 1),
    }


def _run_data(job: Job, left: Mapping[str, Stage]) -> dict[str, Any]:
    run = job.run
    return {
        "key": run.key(),
        "variant": run.variant,
        "label": run.label,
        "seed": run.seed,
        "pretrain_seed": run.pretrain_seed,
        "stages": {stage.kind: {"key": stage.key, "done": stage.id not in left} for stage in job.stages},
    }


def _stage_state(stage: dict[str, Any] | None) -> str:
    """Empty for a kind that the run has no stage of."""
    if stage is None:
        return ""
    return "done" if stage["done"] else str(stage["key"][:8])


def print_plan(data: dict[str, Any], console: Console) -> None:
    kinds = list(data["stages"])
    table = _table("run", "variant", "label", "seed", "from", *kinds)
    for run in data["runs"][:SHOWN_RUNS]:
        states = [_stage_state(run["stages"].get(kind)) for kind in kinds]
        table.add_row(
            run["key"][:8], run["variant"], run["label"], str(run["seed"]), f"seed {run['pretrain_seed']}", *states
        )
    console.print(f"{data['plan']}: {data['description']}", markup=False, highlight=False, soft_wrap=True)
    console.print(table)
    _say_what_is_left_out(data["runs"], console)
    for kind, counts in data["stages"].items():
        text = f"{kind}: {counts['distinct']} stages for {counts['of']} uses, {counts['missing']} missing"
        console.print(text, highlight=False)
    total = f"{len(data['runs'])} runs; what is missing takes about {duration(data['seconds'])}"
    console.print(f"{total} with {data['workers']} workers", highlight=False)


def status_data(plan: Plan, jobs: list[Job], output: Output) -> dict[str, Any]:
    """Each run's state: finished, failed, started or waiting; recorded or not."""
    left = missing(jobs, output.store)
    runs = [_run_status(plan, job, output, left) for job in jobs]
    return {"plan": plan.name, "counts": dict(Counter(run["state"] for run in runs)), "runs": runs}


def _run_status(plan: Plan, job: Job, output: Output, missing: Mapping[str, Stage]) -> dict[str, Any]:
    store, run = output.store, job.run
    left = [stage for stage in job.stages if stage.id in missing]
    failures = [f"{stage.kind}: {one_line_of(failure)}" for stage in left if (failure := store.failure(stage))]
    key = run.key()
    state = "failed" if failures else "finished" if not left else "started" if _started(left, store) else "waiting"
    return {
        "key": key,
        "variant": run.variant,
        "label": run.label,
        "seed": run.seed,
        "state": state,
        "stages_done": len(job.stages) - len(left),
        "stages": len(job.stages),
        "failure": failures[0] if failures else None,
        "progress": _progress(left, store),
        "recorded": not left and output.has_record(plan.name, key),
    }


def one_line_of(failure: dict[str, Any]) -> str:
    text = f"{failure.get('reason', '')}: {failure.get('error', '')}" if failure.get("error") else failure["reason"]
    return " ".join(str(text).split())[:300]


def _started(left: list[Stage], store: StageStore) -> bool:
    return any(store.work_folder(stage).is_dir() for stage in left)


def _progress(left: list[Stage], store: StageStore) -> dict[str, Any] | None:
    """Of the first stage that an attempt has begun."""
    found = [{"stage": stage.kind, **progress} for stage in left if (progress := store.progress(stage))]
    return found[0] if found else None


def print_status(data: dict[str, Any], console: Console) -> None:
    table = _table("run", "variant", "label", "seed", "state", "stages", "now")
    shown = (
        sorted(data["runs"], key=lambda run: URGENCY.index(run["state"])) if _is_long(data["runs"]) else data["runs"]
    )
    for run in shown[:SHOWN_RUNS]:
        now = run["failure"] or _now(run["progress"])
        done = f"{run['stages_done']}/{run['stages']}"
        table.add_row(run["key"][:8], run["variant"], run["label"], str(run["seed"]), run["state"], done, now)
    console.print(table)
    _say_what_is_left_out(shown, console)
    counts = ", ".join(f"{count} {state}" for state, count in sorted(data["counts"].items()))
    console.print(f"{data['plan']}: {len(data['runs'])} runs: {counts}", highlight=False)


def _now(progress: dict[str, Any] | None) -> str:
    return f"{progress['stage']} {progress['step']}/{progress['steps']}" if progress else ""


def _is_long(runs: Sequence[Any]) -> bool:
    return len(runs) > SHOWN_RUNS


def _say_what_is_left_out(runs: Sequence[Any], console: Console) -> None:
    if _is_long(runs):
        console.print(f"and {len(runs) - SHOWN_RUNS} more runs; --json lists all", highlight=False)


def _table(*columns: str) -> Table:
    table = Table(box=None, pad_edge=False)
    for name in columns:
        table.add_column(name, overflow="fold", no_wrap=name != "variant" and name != "now")
    return table
