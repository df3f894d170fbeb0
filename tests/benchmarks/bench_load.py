"""Time of loading and tabulating many recorded runs. Run: python tests/benchmarks/bench_load.py [RUNS [COPIES]]

The records are written by `MlflowRecorder.record`, artefacts included, into one experiment on SQLite: rows x seeds of
the paper's main plan, with made-up metrics. Then, in a new process: `load_runs`, and the main table's numbers and text
from them; and `load_runs` once more with Python's garbage collector never paused. Writes load.md beside this file.

RUNS is 10,000 unless it is given: writing them is what takes long. With COPIES (1 unless it is given) each recorded
run stands in the database that many times, under other keys and seeds: rows copied by SQL, which takes seconds.
"""

from __future__ import annotations

import json
import os
import platform
import sqlite3
import subprocess
import sys
import tempfile
import time
from importlib.metadata import version
from pathlib import Path
from typing import Any

import numpy as np

from experiments.plan import load_plan
from robuq.config import RunConfig
from robuq.record.collect import mean_act_bits
from robuq.record.mlflow import MlflowRecorder, sqlite_uri
from robuq.record.run_record import RunRecord

RUNS, STEPS, PLAN = 10_000, 30, "paper_main"
METRICS = (
    *("held_out_loss", "validation_loss", "fd_classifier", "kd_classifier", "precision", "recall", "classifier_score"),
    *("label_agreement", "bops", "macs", "weight_bytes", "average_bits_macs", "average_bits_layers"),
    *(f"held_out_loss_bin_{i}" for i in range(10)),
)
READ = """
import gc, json, sys, time
from analysis.load import load_runs
from analysis.render import render
from analysis.tables.comparison import comparison_data, comparison_table
from analysis.tables.main import CONDITIONAL
from robuq.record.mlflow import connect
connect(sys.argv[1])
if sys.argv[3] == "on":
    gc.disable = lambda: None
clocks = [(time.perf_counter(), time.process_time())]
runs = load_runs(sys.argv[1], sys.argv[2])
clocks.append((time.perf_counter(), time.process_time()))
data = comparison_data(runs, CONDITIONAL)
table = comparison_table(data, CONDITIONAL)
for form in ("markdown", "latex", "html"):
    render(table, form)
clocks.append((time.perf_counter(), time.process_time()))
print(json.dumps({"runs": len(runs), "rows": len(data), "clocks": clocks}))
"""


def make_record(run: RunConfig) -> RunRecord:
    rng = np.random.default_rng([run.seed, sum(run.variant.encode())])
    values = rng.random(len(METRICS))
    history = [{"step": float(step), "loss": float(x)} for step, x in enumerate(rng.random(STEPS), 1)]
    return RunRecord(
        plan=PLAN,
        key=run.key(),
        variant=run.variant,
        label=run.label,
        act_bits=mean_act_bits(run),
        seed=run.seed,
        pretrain_seed=run.pretrain_seed,
        status="finished",
        protocol="0123456789ab",
        dataset=run.data.name,
        config=run.model_dump(mode="json"),
        stages={"qat": "0" * 16, "evaluate": "1" * 16},
        seconds={"qat": 30.0, "evaluate": 5.0},
        metrics={name: float(x) for name, x in zip(METRICS, values, strict=True)},
        history=history,
        versions={"torch": "2.13.0"},
        started=1.7e9,
        finished=1.7e9 + 60,
    )


def write(uri: str, count: int) -> float:
    """Seconds. The plan's rows with as many seeds as it takes."""
    rows = load_plan(PLAN, ["seeds=0"]).runs
    recorder = MlflowRecorder(uri)
    begun = time.perf_counter()
    for place in range(count):
        seed = place // len(rows)
        recorder.record(make_record(rows[place % len(rows)].updated(seed=seed, pretrain_seed=seed)))
    return time.perf_counter() - begun


def copy_runs(file: Path, copies: int) -> None:
    """Copy all that a search of runs reads `copies` - 1 times; histories of metrics, which it does not, stay single."""
    with sqlite3.connect(file) as database:
        runs = [row for (row,) in database.execute("SELECT run_uuid FROM runs")]
        seeds = len(runs)  # no fewer than there are
        for table in ("runs", "params", "tags", "latest_metrics"):
            names = [row[1] for row in database.execute(f"PRAGMA table_info({table})")]
            rows = database.execute(f"SELECT {', '.join(names)} FROM {table}").fetchall()
            marks = ", ".join("?" * len(names))
            for copy in range(1, copies):
                new = [_copied(dict(zip(names, row, strict=True)), copy, copy * seeds) for row in rows]
                database.executemany(f"INSERT INTO {table} VALUES ({marks})", [list(row.values()) for row in new])


def _copied(row: dict[str, Any], copy: int, seed: int) -> dict[str, Any]:
    """Another run's id, and another key and seed where the row tells them."""
    changed = row | {"run_uuid": f"{copy:04x}{row['run_uuid'][4:]}"}
    if row.get("key") == "robuq.identity":
        identity = json.loads(row["value"])
        identity |= {"key": f"{copy:04x}{identity['key'][4:]}", "seed": identity["seed"] + seed}
        changed["value"] = json.dumps(identity)
    return changed


def read(uri: str, collector: str) -> dict[str, list[float] | int]:
    words = [sys.executable, "-c", READ, uri, PLAN, collector]
    done = subprocess.run(words, capture_output=True, text=True, check=True)
    found: dict[str, list[float] | int] = json.loads(done.stdout)
    return found


def main() -> None:
    count, copies = (int(sys.argv[i]) if len(sys.argv) > i else default for i, default in ((1, RUNS), (2, 1)))
    with tempfile.TemporaryDirectory() as folder:
        file = Path(folder) / "mlflow.db"
        writing = write(sqlite_uri(file), count)
        copy_runs(file, copies)
        found, before = (read(sqlite_uri(file), collector) for collector in ("paused", "on"))
    loading, tabulating = np.diff(np.array(found["clocks"]), axis=0)
    unpaused = np.diff(np.array(before["clocks"]), axis=0)[0]
    copied = f" Each stands there {copies} times, by copies of its rows (histories not copied)." if copies > 1 else ""
    lines = [
        "# Loading and tabulating recorded runs",
        "",
        f"{platform.machine()}, {os.cpu_count()} cores, MLflow {version('mlflow')}, pandas {version('pandas')}.",
        f"Load over the last minute: {os.getloadavg()[0]:.1f}. CPU seconds do not depend on it.",
        "",
        f"`python tests/benchmarks/bench_load.py {count} {copies}`: {count:,} runs of `{PLAN}` with {len(METRICS)} "
        f"final metrics and {STEPS} logged steps each, written through `MlflowRecorder.record` with their artefacts "
        f"into SQLite.{copied} Loaded: {found['runs']:,} runs; {found['rows']} rows of the table.",
        "",
        "| what | seconds | CPU seconds |",
        "|---|---|---|",
        f"| writing the runs, in one process ({1000 * writing / count:.0f} ms a run) | {writing:.1f} | |",
        f"| `load_runs`: all runs into one frame | {loading[0]:.1f} | {loading[1]:.1f} |",
        f"| the same with the garbage collector never paused | {unpaused[0]:.1f} | {unpaused[1]:.1f} |",
        f"| main table: statistics, marks, three forms of text | {tabulating[0]:.1f} | {tabulating[1]:.1f} |",
        "",
    ]
    (Path(__file__).parent / "load.md").write_text("\n".join(lines))
    print("\n".join(lines))


if __name__ == "__main__":
    main()
