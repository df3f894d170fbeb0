"""How a search is laid out in a tracking server and in files: one run for the search, one under it for each
evaluation. Free of mlflow."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

from robuq.ampn.table import split_decision
from robuq.config import BLOCK_ROLES
from robuq.record.search_record import Evaluation, SearchRecord

SEARCH = "robuq.search"  # tag of the search's run: its name
EVALUATION = "robuq.evaluation"  # tag of an evaluation's run: its number
RECORD_FILE, BITS_FILE, SENSITIVITY_FILE, SUMMARY_FILE = "search.json", "bits.json", "sensitivity.json", "summary.md"
EVALUATION_STATUS = {"finished": "FINISHED", "pruned": "KILLED", "failed": "FAILED"}
BEST = "best_validation_loss"  # of the evaluations so far, by number
TOP = 10  # evaluations in the summary


def search_params(record: SearchRecord) -> dict[str, str]:
    """What was searched and how: strings, as MLflow keeps them. All of it is in search.json."""
    search, ampn = record.search, record.config.get("ampn") or {}
    steps = [str(rung["steps"]) for rung in search.get("rungs", ())]
    return {
        "dataset": record.dataset,
        "variant": record.variant,
        "seed": str(record.seed),
        "budget": json.dumps(record.budget, sort_keys=True),
        "measure": str(ampn.get("measure")),
        "space": str(search.get("space")),
        "sampler": str(search.get("sampler")),
        "objectives": ", ".join(search.get("objectives", ())),
        "rungs": ", ".join(steps),
    }


def search_tags(record: SearchRecord) -> dict[str, str]:
    tags = {
        "robuq.sampler_settings": json.dumps(record.sampler_settings, sort_keys=True),
        "robuq.versions": json.dumps(record.versions, sort_keys=True),
        "mlflow.note.content": search_note(record),
        "mlflow.source.git.commit": record.git.get("commit", ""),
        "mlflow.source.git.dirty": record.git.get("dirty", ""),
    }
    return {name: value for name, value in tags.items() if value}


def search_note(record: SearchRecord) -> str:
    """The description of the search's run, Markdown."""
    confirmed = f" Rows of the confirmation: {', '.join(record.confirmed)}." if record.confirmed else ""
    return f"{_headline(record)} {_winner_line(record)}{confirmed} Evaluations are the runs under this one."


def best_so_far(record: SearchRecord) -> list[tuple[int, float]]:
    """(number, least value so far) at the last rung, one for each evaluation that reached it, in order of asking."""
    rows: list[tuple[int, float]] = []
    for evaluation in record.evaluations:
        value = last_value(record, evaluation)
        if value is not None:
            rows.append((evaluation.number, min(value, rows[-1][1]) if rows else value))
    return rows


def last_value(record: SearchRecord, evaluation: Evaluation) -> float | None:
    """The value at the last rung; None where the evaluation did not reach it."""
    rungs = record.search.get("rungs", ())
    return evaluation.values.get(str(rungs[-1]["steps"])) if rungs else None


def evaluation_name(evaluation: Evaluation) -> str:
    return f"{evaluation.number:04d} {evaluation.source}"


def evaluation_params(evaluation: Evaluation) -> dict[str, str]:
    """The source, the bits of each role with blocks ascending, and the space's parameters."""
    params = {"number": str(evaluation.number), "source": evaluation.source}
    by_place = {split_decision(decision): bits for decision, bits in evaluation.bits.items()}
    for role in BLOCK_ROLES:
        params[f"bits.{role}"] = " ".join(str(by_place[place]) for place in sorted(by_place) if place[1] == role)
    return params | {f"space.{name}": repr(value) for name, value in evaluation.params.items()}


def evaluation_metrics(evaluation: Evaluation) -> dict[str, float]:
    metrics = {f"validation_loss/{steps}_steps": value for steps, value in evaluation.values.items()}
    metrics |= {f"average_bits/{weights}": value for weights, value in evaluation.average_bits.items()}
    other = {"cost": evaluation.cost, "bops": evaluation.bops, "predicted": evaluation.predicted}
    return metrics | other | {"seconds": evaluation.seconds}


# --- files ----------------------------------------------------------------------------------------------------


def write_search_files(record: SearchRecord, folder: Path) -> list[str]:
    """search.json (the record), sensitivity.json, bits.json of the winner, and summary.md; their names, sorted."""
    files = {
        RECORD_FILE: _json(record.model_dump(mode="json")),
        SENSITIVITY_FILE: _json(record.sensitivity),
        SUMMARY_FILE: summary(record),
    }
    winner = winner_of(record)
    if winner is not None:
        files[BITS_FILE] = _json(bits_data(record, winner))
    for name, text in files.items():
        (folder / name).write_text(text, encoding="utf-8")
    return sorted(files)


def winner_of(record: SearchRecord) -> Evaluation | None:
    return next((e for e in record.evaluations if e.number == record.winner), None)


def bits_data(record: SearchRecord, evaluation: Evaluation) -> dict[str, Any]:
    """As the file that a run takes its bits from, with where they come from."""
    return {
        "bits": evaluation.bits,
        "average_bits": evaluation.average_bits,
        "budget": record.budget,
        "cost": evaluation.cost,
        "search": record.name,
        "number": evaluation.number,
        "source": evaluation.source,
        "values": evaluation.values,
    }


def summary(record: SearchRecord) -> str:
    """Markdown: the winner, the best evaluations and what the rungs and the predictors are worth."""
    lines = [f"# {record.name}", "", record.description, "", *summary_lines(record), ""]
    lines += ["| number | source | cost | predicted | last value | state |", "|---|---|---|---|---|---|"]
    reached = [e for e in record.evaluations if last_value(record, e) is not None]
    for evaluation in sorted(reached, key=lambda e: last_value(record, e) or 0.0)[:TOP]:
        cells = (evaluation.cost, evaluation.predicted, last_value(record, evaluation) or 0.0)
        numbers = " | ".join(f"{cell:.6g}" for cell in cells)
        lines.append(f"| {evaluation.number} | {evaluation.source} | {numbers} | {evaluation.state} |")
    lines += ["", *(_rank_line(f"{c.low} against {c.high} steps", c.spearman, c.n) for c in record.rank_correlations)]
    for p in record.predictors:
        what = f"predicted by {p.measure} (warm-up {p.warm_up_steps}, reference {p.reference} bits)"
        lines.append(_rank_line(what, p.spearman, p.n))
    return "\n".join(lines) + "\n"


def summary_lines(record: SearchRecord) -> list[str]:
    """How many evaluations, and the best."""
    return [_headline(record), _winner_line(record)]


def _headline(record: SearchRecord) -> str:
    states = [evaluation.state for evaluation in record.evaluations]
    counts = ", ".join(f"{states.count(state)} {state}" for state in EVALUATION_STATUS if state in states)
    how = f"`{record.search.get('space')}` by `{record.search.get('sampler')}`"
    told = f" ({counts})" if counts else ""
    return f"Search of {how} on {record.dataset}: {len(states)} evaluations{told}."


def _winner_line(record: SearchRecord) -> str:
    winner = winner_of(record)
    if winner is None:
        return "No evaluation reached the last rung within the budget."
    value = last_value(record, winner)
    found = f"Best: number {winner.number} ({winner.source}), validation loss {value:.6g}."
    if record.equal_to:
        return f"{found} It is the allocation of {' and '.join(record.equal_to)}: nothing better was found."
    return found


def _rank_line(what: str, spearman: float | None, n: int) -> str:
    return f"- rank correlation, {what}: {'none' if spearman is None else f'{spearman:.3f}'} (n = {n})"


def _json(value: Any) -> str:
    return json.dumps(value, indent=1, sort_keys=True, allow_nan=False) + "\n"
