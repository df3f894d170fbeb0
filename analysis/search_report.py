"""The report of one search: which bits it found, how, what they are worth after training, and what predicts that."""

from __future__ import annotations

import math
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd

from analysis.evaluations import (
    SEARCH,
    allocation_name,
    budget_name,
    confirmed_means,
    evaluations_data,
    mean_bits,
    rung_steps,
    winner,
)
from analysis.figures.search import rung_correlations, rung_name, rungs_data
from analysis.load import finished, one_protocol
from analysis.methods import SAMPLERS, WEIGHTINGS, method_name
from analysis.render import number, render, with_half_width
from analysis.report_files import (
    dataset_name,
    figure_section,
    listed,
    table_links,
    write_csv,
    write_figure,
    write_json,
    write_table,
    write_text,
)
from analysis.search_figures import TITLES, search_figures
from analysis.stats import estimate_of
from analysis.tables.allocations import CAPTION as ALLOCATIONS_CAPTION
from analysis.tables.allocations import LONGER, METRICS, allocations_data, allocations_table, p_text
from analysis.tables.predictors import CAPTION as PREDICTORS_CAPTION
from analysis.tables.predictors import predictors_data, predictors_table
from robuq.record.search_record import SearchRecord

SEED = 0  # of the bootstrap
SIGNIFICANT = 0.05
PREDICTORS_TITLE = "Which cheap measure predicts the result after training"
READING = """\
- A search compares allocations by their **validation loss**, on images that are set aside for choosing. What it found
  is worth what the confirmation says: fresh seeds, full training, and **held-out loss**, the noise-prediction error
  (mean squared error per pixel) on images that neither training nor the search ever saw.
- The best of many noisy values is better by luck, too. So the winner's value in the history is no estimate of what it
  is worth; the table of confirmed runs is.
- **Δ** pairs runs that share their seeds, so that what a seed does to both cancels. An interval that contains zero
  shows no difference; it does not show that there is none. Intervals hold for other seeds of the same kind, not for
  other data sets, sizes or lengths of training.
- Mean bits depend on their **weighting**. Allocations are compared within one budget, that is, one weighting.
- A **rank correlation** over evaluations that a search chose, and of which a cheap rung kept the best, is not the one
  over random allocations: the choice narrows the range, and so most often lowers it.
"""
LIMITS = """\
What is shown is what this search did on one data set, one small model and one training length. It does not show the
paper's numbers, nor that another space, sampler or number of evaluations would find the same bits.
"""


def write_search_report(record: SearchRecord, runs: pd.DataFrame, folder: Path) -> list[Path]:
    """Write the report of a search into `folder`; the files, report.md first.

    `runs`: from `analysis.load.load_runs`, of which those that confirm the search are used; there may be none. Equal
    records and runs give equal bytes.

    Raises:
        ValueError: the confirmed runs have several protocols, or two of them are one allocation with one seed.
    """
    folder.mkdir(parents=True, exist_ok=True)
    confirmed = _confirmed(record, runs)
    pairs = rungs_data(record)
    correlations = rung_correlations(pairs, SEED)
    figures = search_figures(record, pairs, correlations)
    files: list[Path] = []
    for name, built in figures.items():
        files += write_figure(built, folder, name, **_headed(record, TITLES[name], name))
    files.append(write_csv(evaluations_data(record), folder / "evaluations.csv"))
    if len(correlations):
        files.append(write_csv(correlations, folder / "correlations.csv"))
    predictors = predictors_data(record, SEED)
    if len(predictors):
        headed = _headed(record, PREDICTORS_TITLE, "predictors")
        files += write_table(predictors_table(predictors), predictors, folder, "predictors", **headed)
    if len(confirmed):
        names = {SEARCH: allocation_name(record, SEARCH)}
        headed = _headed(record, "Confirmed runs", "allocations")
        files += write_table(allocations_table(confirmed, names), confirmed, folder, "allocations", **headed)
    files.append(write_json(_manifest(record, runs, confirmed), folder / "manifest.json"))
    captions = {name: built[2] for name, built in figures.items()}
    page = _page(record, runs, confirmed, predictors, captions)
    return [write_text(folder / "report.md", page), *files]


def _headed(record: SearchRecord, title: str, name: str) -> dict[str, str]:
    """What a caption begins with, and a label that no other report has."""
    return {"title": f"{title}, {dataset_name(record.dataset)}", "label": f"{name}_{record.name}"}


def _confirmed(record: SearchRecord, runs: pd.DataFrame) -> pd.DataFrame:
    """`allocations_data` of the confirmed runs; empty where none is finished."""
    own = finished(_own(record, runs))
    if own.empty:
        return pd.DataFrame()
    return allocations_data(own.reset_index(drop=True), record.confirmed, confirmed_means(record))


def _own(record: SearchRecord, runs: pd.DataFrame) -> pd.DataFrame:
    return runs[runs["key"].isin({key for keys in record.confirmed.values() for key in keys})]


# --- the page -----------------------------------------------------------------------------------------------------


def _page(
    record: SearchRecord,
    runs: pd.DataFrame,
    confirmed: pd.DataFrame,
    predictors: pd.DataFrame,
    captions: Mapping[str, str],
) -> str:
    parts = [f"# {record.name}", record.description.strip(), "## What was run", _what(record, runs)]
    parts += ["## What came out", _outcome(record, confirmed)]
    if failures := _failures(record, runs):
        parts += ["## Failures", failures]
    parts += ["## Confirmed runs", *_confirmed_section(record, runs, confirmed)]
    for name, caption in captions.items():
        parts += figure_section(name, caption, TITLES[name])
        if name == "rungs" and len(predictors):
            parts += _predictors_section(predictors)
    if "rungs" not in captions and len(predictors):
        parts += _predictors_section(predictors)
    if missing := _missing(record, captions):
        parts.append(missing)
    parts += ["## How to read this", READING.strip(), "## What it shows and what it cannot show", LIMITS.strip()]
    parts.append(
        "Every evaluation with its bits is in [evaluations.csv](evaluations.csv); the keys of the confirmed runs, the "
        "settings and the versions are in [manifest.json](manifest.json)."
    )
    return "\n\n".join(part for part in parts if part) + "\n"


def _what(record: SearchRecord, runs: pd.DataFrame) -> str:
    search, config = record.search, record.config
    model, train = config.get("model", {}), config.get("train", {})
    states = pd.Series([one.state for one in record.evaluations], dtype="str").value_counts()
    counts = ", ".join(f"{states[state]} {state}" for state in ("finished", "pruned", "failed") if state in states)
    ampn = config.get("ampn") or {}
    lines = [
        f"data: {record.dataset}; model width {model.get('width')}, depth {model.get('num_layers')}; "
        f"`{record.variant}`, seed {record.seed}; quantization-aware training in full: {train.get('steps')} steps",
        f"budget: {budget_name(record)}",
        f"space `{search['space']}`; sampler {SAMPLERS[search['sampler']]}, seed {search['seed']} "
        f"({_settings(record)})",
        f"objective{'s' if len(search['objectives']) > 1 else ''}: {', '.join(search['objectives'])}"
        + (f", limits from {_range(search['budget_range'])}" if search.get("budget_range") else ""),
        f"rungs: {_rungs_text(record)}",
        f"asked first: {', '.join(search['enqueue']) or 'nothing'}",
        f"{len(record.evaluations)} of {search['evaluations']} evaluations" + (f": {counts}" if counts else ""),
        f"time: {_times(record)}",
    ]
    if measure := ampn.get("measure"):
        lines.insert(2, f"predicted damage by: {measure}")
    if share := _share(record):
        lines.append(share)
    own = _own(record, runs)
    if len(own):
        lines.append(
            f"confirmed by {len(finished(own))} runs, seeds {listed(own['seed'])}, pre-training seeds "
            f"{listed(own['pretrain_seed'])}, {listed(own['steps'])} steps"
        )
    return "\n".join(f"- {line}" for line in lines)


def _settings(record: SearchRecord) -> str:
    """The sampler's own numbers; the manifest has all of it."""
    known = {**record.sampler_settings, **record.sampler_settings.get("settings", {})}
    shown = [f"{name} {value}" for name, value in known.items() if isinstance(value, int | float) and name != "seed"]
    return ", ".join(shown) or "no settings recorded"


def _range(values: list[float]) -> str:
    return f"{values[0]:g} to {values[1]:g}"


def _rungs_text(record: SearchRecord) -> str:
    rungs = record.search["rungs"]
    texts = [
        rung_name(int(rung["steps"])) + (f" ({rung['keep']:.0%} go on)" if rung["keep"] < 1 else "") for rung in rungs
    ]
    return "; ".join(texts)


def _times(record: SearchRecord) -> str:
    return ", ".join(f"{name} {_seconds(value)}" for name, value in record.seconds.items()) or "not recorded"


def _seconds(value: float) -> str:
    return f"{value:.3g} s" if value < 100 else f"{value:.0f} s"


def _share(record: SearchRecord) -> str:
    """What measuring the sensitivity costs of the training that it serves."""
    measured = record.sensitivity.get("seconds", {})
    done = [one.seconds for one in record.evaluations if one.state == "finished" and one.seconds > 0]
    if not measured or not done or rung_steps(record)[-1] == 0:
        return ""
    total, training = sum(measured.values()), float(np.mean(done))
    parts = ", ".join(f"{name} {_seconds(value)}" for name, value in measured.items())
    return (
        f"measuring the sensitivity took {_seconds(total)} ({parts}): {100 * total / training:.1f} % of taking one "
        f"allocation through all rungs to {rung_steps(record)[-1]} steps ({_seconds(training)}, mean of {len(done)})"
    )


def _outcome(record: SearchRecord, confirmed: pd.DataFrame) -> str:
    lines = [_winner_line(record)]
    for metric in METRICS if len(confirmed) else ():
        rows = {row["allocation"]: row for _, row in confirmed[confirmed["metric"] == metric].iterrows()}
        lines += [
            _difference_line(metric, name, base, rows[name])
            for name, base in ((SEARCH, "exact"), (SEARCH, "uniform"), (SEARCH, LONGER), ("exact", "uniform"))
            if name in rows and rows[name][f"to_{base}_n"] and not (name == SEARCH and base in record.equal_to)
        ]
    return "\n".join(f"- {line}" for line in lines)


def _winner_line(record: SearchRecord) -> str:
    best, last = winner(record), rung_steps(record)[-1]
    if best is None:
        return "no evaluation finished within the budget: there is no winner"
    where = "without training" if last == 0 else f"after {last} steps"
    same = (
        f"; its bits are those of {', '.join(method_name(name) for name in record.equal_to)}" if record.equal_to else ""
    )
    means = ", ".join(f"{number(value, 2)} by {WEIGHTINGS[by]}" for by, value in mean_bits(record, best.bits).items())
    return (
        f"best at the last rung: evaluation {best.number} ({_source(best.source)}), validation loss "
        f"{number(best.values[str(last)], 4)} {where}; mean bits {means}{same}"
    )


def _source(source: str) -> str:
    """The sampler, or the allocation that was asked first."""
    return SAMPLERS.get(source) or method_name(source).lower()


def _difference_line(metric: str, name: str, base: str, row: pd.Series[Any]) -> str:
    difference, (header, digits) = estimate_of(row, f"to_{base}"), METRICS[metric]
    names = f"{method_name(name)} minus {method_name(base).lower()}"
    text = f"{header.rstrip(' ↓')}, {names}: {with_half_width(difference, digits)} (n = {difference.n}"
    if math.isnan(difference.half_width):
        return f"{text}): one pair of runs gives no interval"
    p = row[f"to_{base}_p_holm"]
    text += ")" if math.isnan(p) else f", p {'' if p < 0.001 else '= '}{p_text(p)} after Holm)"
    if not difference.excludes_zero:
        return f"{text}: no difference is shown"
    verdict = "better" if difference.mean < 0 else "worse"
    return f"{text}: {verdict}" + ("" if p < SIGNIFICANT else " by its own interval, not after the correction")


def _failures(record: SearchRecord, runs: pd.DataFrame) -> str:
    lines = [
        f"- evaluation {one.number} ({_source(one.source)}): {one.failure or 'no reason recorded'}"
        for one in record.evaluations
        if one.state == "failed"
    ]
    own = _own(record, runs)
    failed = own[own["status"] == "failed"].sort_values(["variant", "seed", "key"])
    lines += [
        f"- {run['variant']} seed {run['seed']} (`{run['key']}`): {run['failure']}" for _, run in failed.iterrows()
    ]
    return "\n".join(lines)


def _confirmed_section(record: SearchRecord, runs: pd.DataFrame, confirmed: pd.DataFrame) -> list[str]:
    if confirmed.empty:
        why = "No run confirms this search yet." if record.confirmed else "No run was asked to confirm this search."
        return [f"{why} Until then nothing is said of what its winner is worth: see how to read this."]
    names = {SEARCH: allocation_name(record, SEARCH)}
    protocol = f"Protocol `{one_protocol(finished(_own(record, runs)))}` (data, evaluation and code epoch)."
    longer = (
        f" {method_name(LONGER)}: exact's bits, trained for as many steps more as all evaluations took together."
        if LONGER in set(confirmed["allocation"])
        else ""
    )
    table = render(allocations_table(confirmed, names), "markdown").strip()
    return [table, f"{ALLOCATIONS_CAPTION}{longer} {protocol}", table_links("allocations")]


def _predictors_section(predictors: pd.DataFrame) -> list[str]:
    table = render(predictors_table(predictors), "markdown").strip()
    return [f"## {PREDICTORS_TITLE}", table, PREDICTORS_CAPTION, table_links("predictors")]


def _missing(record: SearchRecord, captions: Mapping[str, str]) -> str:
    two = len(record.search["objectives"]) > 1
    wanted = [name for name in TITLES if name != ("history" if two else "pareto")]
    missing = [TITLES[name].lower() for name in wanted if name not in captions]
    return f"The record has nothing to draw for: {', '.join(missing)}." if missing else ""


def _manifest(record: SearchRecord, runs: pd.DataFrame, confirmed: pd.DataFrame) -> dict[str, Any]:
    own = _own(record, runs)
    done = set(finished(own)["key"])
    return {
        "search": record.name,
        "budget": record.budget,
        "settings": record.search,
        "sampler_settings": record.sampler_settings,
        "winner": record.winner,
        "equal_to": record.equal_to,
        "front": record.front,
        "protocol": one_protocol(finished(own)) if len(confirmed) else None,
        "runs": {name: [key for key in keys if key in done] for name, keys in record.confirmed.items()},
        "not_finished": sorted({key for keys in record.confirmed.values() for key in keys} - done),
        "bootstrap_seed": SEED,
        "git": record.git,
        "versions": record.versions,
    }
