"""How far a plan is, read off the folders of its stages: while a sweep runs, and without asking it.

`plan` is what `robuq plan --json` prints, of which `runs` with the keys of their stages are enough. A stage is done
when its folder is there, and begun when its working folder is (`robuq.stages`), so that one listing a kind tells all.
"""

from __future__ import annotations

import json
import math
import os
import time
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

import pandas as pd

from robuq.stages import KINDS, ProgressFile

Plan = Mapping[str, Any]
TIMED = 20  # finished stages of one kind whose time is averaged
STATES = ("finished", "failed", "started", "waiting")
PROGRESS = ("step", "steps", "progress", "steps_per_second", "loss", "seconds_left", "quiet_seconds")
RUN_COLUMNS = ("key", "variant", "label", "seed", "state", "stages_done", "stages", "stage", *PROGRESS, "failure")
WORK_COLUMNS = ("stage", "key", "state", *PROGRESS, "failure")


def run_states(plan: Plan, stages: Path) -> pd.DataFrame:
    """One row a run of the plan, in its order: `RUN_COLUMNS`.

    The states are those of `robuq status`: finished, failed (with the reason), started, waiting. `quiet_seconds`: since
    a started stage last said how far it is; many of them mean that nobody works on it any more.
    """
    begun = {kind: _listing(stages / kind) for kind in KINDS}
    known: dict[str, dict[str, Any]] = {}
    return pd.DataFrame([_run_row(run, stages, begun, known) for run in plan["runs"]], columns=list(RUN_COLUMNS))


def state_counts(runs: pd.DataFrame) -> dict[str, int]:
    """{state: runs}, zeros included."""
    counts = runs["state"].value_counts()
    return {state: int(counts.get(state, 0)) for state in STATES}


def seconds_left(plan: Plan, stages: Path) -> float:
    """Of the whole plan, at as many stages at once as are at work now (at least one): each missing stage takes the
    mean time of those of its kind that are done, or what the speed of those at work says. Failed stages are not tried
    again by the sweep that failed them. NaN: not known yet."""
    begun = {kind: _listing(stages / kind) for kind in KINDS}
    totals, working = 0.0, 0
    for kind, keys in _distinct(plan).items():
        done = [key for key in keys if key in begun[kind]]
        works = [_work_row(kind, stages / kind / f"{key}.work") for key in keys if f"{key}.work" in begun[kind]]
        at_work = [row for row in works if row["state"] == "started"]
        missing = len(keys) - len(done) - (len(works) - len(at_work))
        typical = _typical_seconds([stages / kind / key for key in done[-TIMED:]], at_work)
        if missing and math.isnan(typical):
            return math.nan
        known = [row["seconds_left"] for row in at_work if not math.isnan(row["seconds_left"])]
        totals += sum(known) + typical * (missing - len(known)) if missing else 0.0
        working += len(at_work)
    return totals / max(working, 1)


def stages_at_work(stages: Path) -> pd.DataFrame:
    """Every working folder, whatever plan it is of: `WORK_COLUMNS`, those that spoke last first."""
    rows = []
    for kind in KINDS:
        for name in sorted(_listing(stages / kind)):
            if name.endswith(".work"):
                row = _work_row(kind, stages / kind / name)
                rows.append({**row, "key": name.removesuffix(".work")})
    data = pd.DataFrame(rows, columns=list(WORK_COLUMNS))
    return data.sort_values("quiet_seconds", ignore_index=True, na_position="last")


def _listing(folder: Path) -> set[str]:
    try:
        return set(os.listdir(folder))
    except (FileNotFoundError, NotADirectoryError):
        return set()


def _distinct(plan: Plan) -> dict[str, list[str]]:
    """{kind: keys}, first come first."""
    found: dict[str, dict[str, None]] = {}
    for run in plan["runs"]:
        for kind, stage in run["stages"].items():
            found.setdefault(kind, {})[stage["key"]] = None
    return {kind: list(keys) for kind, keys in found.items()}


def _run_row(
    run: Mapping[str, Any], root: Path, begun: Mapping[str, set[str]], known: dict[str, dict[str, Any]]
) -> dict[str, Any]:
    """`known`: rows of working folders that were read already, since runs share stages."""
    left = [(kind, stage["key"]) for kind, stage in run["stages"].items() if stage["key"] not in begun[kind]]
    rows = []
    for kind, key in left:
        if f"{key}.work" in begun[kind]:
            name = f"{kind}/{key}.work"
            known[name] = known.get(name) or _work_row(kind, root / name)
            rows.append(known[name])
    own = {name: run[name] for name in ("key", "variant", "label", "seed")}
    counts = {"stages_done": len(run["stages"]) - len(left), "stages": len(run["stages"])}
    if not left:
        return {**own, "state": "finished", **counts}
    failed = [row for row in rows if row["state"] == "failed"]
    return {**own, "state": "waiting", **counts, **(failed or rows or [{}])[0]}


def _work_row(kind: str, work: Path) -> dict[str, Any]:
    failure = _json(work / "failure.json")
    state = {"state": "failed" if failure else "started", "failure": _reason(failure) if failure else None}
    return {"stage": kind, **state, **_progress(work)}


def _reason(failure: Mapping[str, Any]) -> str:
    text = ": ".join(str(failure[name]) for name in ("reason", "error") if failure.get(name))
    return " ".join(text.split())[:300]


def _progress(work: Path) -> dict[str, float]:
    """Columns `PROGRESS`; NaN where the stage has said nothing."""
    file = work / ProgressFile.NAME
    said = _json(file)
    if not said:
        return dict.fromkeys(PROGRESS, math.nan)
    step, steps, speed = said["step"], said["steps"], said.get("steps_per_second") or math.nan
    loss = said.get("loss")
    return {
        "step": step,
        "steps": steps,
        "progress": step / steps if steps else math.nan,
        "steps_per_second": speed,
        "loss": math.nan if loss is None else loss,
        "seconds_left": (steps - step) / speed,
        "quiet_seconds": _age(file),
    }


def _age(file: Path) -> float:
    try:
        return max(0.0, time.time() - file.stat().st_mtime)
    except FileNotFoundError:
        return math.nan


def _typical_seconds(done: Iterable[Path], at_work: Sequence[Mapping[str, float]]) -> float:
    took = [float(result["seconds"]) for folder in done if "seconds" in (result := _json(folder / "result.json"))]
    projected = [row["steps"] / row["steps_per_second"] for row in at_work if row["steps_per_second"] > 0]
    values = took or projected
    return sum(values) / len(values) if values else math.nan


def _json(file: Path) -> dict[str, Any]:
    """Empty where there is none: a stage may end, and its folder move, at any time."""
    try:
        content: dict[str, Any] = json.loads(file.read_text())
    except (FileNotFoundError, NotADirectoryError):
        return {}
    return content
