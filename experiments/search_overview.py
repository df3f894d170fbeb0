"""What a search would do, and what has been done of it: plain data, and the same as tables."""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Mapping, Sequence
from typing import Any

from rich.console import Console
from rich.table import Table

from experiments.estimate import Estimator, total_seconds
from experiments.launch import Job, jobs_of, missing
from experiments.output import Output
from experiments.overview import status_data
from experiments.plan import Plan, ReportSettings
from experiments.progress import duration
from experiments.search_file import Search
from experiments.search_problem import ampn_of, evaluation_job, own_stages, sensitivity_job
from experiments.search_run import BASELINES, WINNER
from robuq.config import BLOCK_ROLES, RunConfig, decision_name
from robuq.data.fingerprint import data_fingerprint
from robuq.record.search_layout import last_value, summary_lines
from robuq.record.search_record import SearchRecord


def search_plan_data(search: Search, output: Output, workers: int) -> dict[str, Any]:
    """Evaluations at each rung as far as is known beforehand, the confirmation's runs, and the estimated seconds of
    all that is not done; stages of evaluations that are over count as done."""
    data, estimator = data_fingerprint(search.run.data), Estimator(output.store)
    before = [sensitivity_job(run, data) for run in (search.run, *search.predictors)]
    left = missing(before, output.store)
    chains = [tuple(stage for stage in job.stages if stage.id in left) for job in before]
    rungs = _rung_data(search, data, estimator, output.search(search.name))
    rows = [*BASELINES, WINNER]
    after = sum(_confirmation_seconds(search, estimator)) * len(rows)
    work = sum(rung["missing"] * rung["seconds_each"] for rung in rungs) + after
    return {
        "search": search.name,
        "description": search.description,
        "output": str(output.folder),
        "dataset": search.run.data.name,
        "variant": search.run.variant,
        "budget": ampn_of(search.run).budget.model_dump(mode="json"),
        "space": search.config.space,
        "sampler": search.config.sampler,
        "evaluations": search.config.evaluations,
        "rungs": rungs,
        "sensitivities": len(before),
        "confirmation": {"rows": rows, "seeds": list(search.config.confirm_seeds), "longer": search.confirm_longer},
        "workers": workers,
        "seconds": round(total_seconds(chains, estimator, workers) + work / workers, 1),
    }


def _rung_data(search: Search, data: str, estimator: Estimator, record: SearchRecord | None) -> list[dict[str, Any]]:
    decisions = [decision_name(block, role) for block in range(search.run.model.num_layers) for role in BLOCK_ROLES]
    bits = dict.fromkeys(decisions, ampn_of(search.run).sensitivity.candidates[0])
    rows, expected = [], search.config.evaluations
    for rung in search.config.rungs:
        job = evaluation_job(search, 0, "estimate", bits, rung.steps, data)
        done = sum(str(rung.steps) in e.values for e in record.evaluations) if record else 0
        each = sum(estimator.seconds(stage) for stage in own_stages(job))
        row = {"steps": rung.steps, "keep": rung.keep, "evaluations": expected, "done": done}
        rows.append({**row, "missing": max(0, expected - done), "seconds_each": round(each, 2)})
        expected = math.ceil(expected * rung.keep)
    return rows


def _confirmation_seconds(search: Search, estimator: Estimator) -> list[float]:
    """Of one row, each seed's."""
    runs = [search.run.updated(ampn=None, seed=seed) for seed in search.config.confirm_seeds]
    kinds = ("qat", "evaluate")
    return [sum(estimator.seconds(stage) for stage in job.stages if stage.kind in kinds) for job in jobs_of(runs)]


def print_search_plan(data: Mapping[str, Any], console: Console) -> None:
    table = _table("rung", "evaluations", "done", "goes on", "each")
    for rung in data["rungs"]:
        name = f"{rung['steps']} steps" if rung["steps"] else "untrained"
        cells = (str(rung["evaluations"]), str(rung["done"]), f"{rung['keep']:.0%}", duration(rung["seconds_each"]))
        table.add_row(name, *cells)
    _say(console, f"{data['search']}: {data['description']}")
    console.print(table)
    budget, confirmation = data["budget"], data["confirmation"]
    _say(
        console, f"budget: {budget['limit']:g} by {budget['weights']}; {data['space']} space, {data['sampler']} sampler"
    )
    rows = [*confirmation["rows"], *(["exact_longer"] if confirmation["longer"] else [])]
    count = len(rows) * len(confirmation["seeds"])
    _say(console, f"confirmation: at most {count} runs ({', '.join(rows)} on {len(confirmation['seeds'])} seeds)")
    _say(console, f"what is missing takes about {duration(data['seconds'])} with {data['workers']} workers")


def search_status_data(search: Search, output: Output) -> dict[str, Any]:
    """The evaluations that are over, and the runs of the confirmation. From the disk: also while the search runs."""
    record = output.search(search.name)
    if record is None:
        return {"search": search.name, "state": "not begun", "counts": {}, "evaluations": [], "runs": []}
    evaluations = [
        {
            "number": evaluation.number,
            "source": evaluation.source,
            "state": evaluation.state,
            "cost": evaluation.cost,
            "predicted": evaluation.predicted,
            "values": evaluation.values,
            "last_value": last_value(record, evaluation),
            "failure": evaluation.failure,
            "seconds": evaluation.seconds,
        }
        for evaluation in record.evaluations
    ]
    return {
        "search": search.name,
        "state": "finished" if record.finished else "under way",
        "counts": dict(Counter(evaluation.state for evaluation in record.evaluations)),
        "of": search.config.evaluations,
        "evaluations": evaluations,
        "winner": record.winner,
        "summary": summary_lines(record),
        "runs": _confirmed_runs(search, record, output),
    }


def _confirmed_runs(search: Search, record: SearchRecord, output: Output) -> list[dict[str, Any]]:
    """As `robuq status` shows a plan's; runs of rows that share an allocation are one."""
    keys = list(dict.fromkeys(key for row in record.confirmed.values() for key in row))
    found = [run for key in keys if (run := output.record(search.name, key)) is not None]
    jobs: list[Job] = jobs_of(RunConfig.parse(run.config) for run in found)
    plan = Plan(search.name, search.description, tuple(job.run for job in jobs), ReportSettings())
    runs: list[dict[str, Any]] = status_data(plan, jobs, output)["runs"]
    waiting = set(keys) - {run.key for run in found}
    return [*runs, *({"key": key, "state": "waiting"} for key in keys if key in waiting)]


def print_search_status(data: Mapping[str, Any], console: Console) -> None:
    if not data["evaluations"]:
        _say(console, f"{data['search']}: {data['state']}, no evaluation is over")
        return
    steps = _steps(data["evaluations"])
    table = _table("evaluation", "source", "cost", "predicted", *(f"{text} steps" for text in steps), "state")
    for row in data["evaluations"]:
        values = [f"{row['values'][text]:.5f}" if text in row["values"] else "" for text in steps]
        state = f"{row['state']}: {row['failure']}" if row["failure"] else row["state"]
        numbers = (f"{row['cost']:.4g}", f"{row['predicted']:.4g}")
        table.add_row(str(row["number"]), row["source"], *numbers, *values, state)
    console.print(table)
    for line in data["summary"]:
        _say(console, line)
    states = Counter(run["state"] for run in data["runs"])
    counts = ", ".join(f"{count} {state}" for state, count in sorted(states.items()))
    confirmation = f"; confirmation: {len(data['runs'])} runs: {counts}" if data["runs"] else ""
    over = sum(data["counts"].values())
    _say(console, f"{data['search']}: {data['state']}, {over} of {data['of']} evaluations{confirmation}")


def _steps(evaluations: Sequence[Mapping[str, Any]]) -> list[str]:
    return sorted({text for row in evaluations for text in row["values"]}, key=int)


def _table(*columns: str) -> Table:
    table = Table(box=None, pad_edge=False)
    for name in columns:
        table.add_column(name, overflow="fold", no_wrap=name != "state")
    return table


def _say(console: Console, text: str) -> None:
    console.print(text, markup=False, highlight=False, soft_wrap=True)
