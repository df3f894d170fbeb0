"""An output folder as a sweep of ten thousand runs leaves it, without recording them all, which takes a quarter of an
hour. Run: python tests/benchmarks/many_records.py DIR [RUNS]

The plan is that of bench_scale.py. The runs of its first seed are launched and recorded by MLflow's client, with stages
that only write. Those of all other seeds are put straight into MLflow's tables: the same tags, parameters and last
metrics as the recorder sends (`robuq.record.layout`), with their own keys, seeds and numbers. Their artefacts are those
of the first seed, and they have no series of metrics, which no page reads. Writes DIR/scale.yaml and DIR/results.
"""

from __future__ import annotations

import json
import sqlite3
import sys
import uuid
from collections.abc import Sequence
from contextlib import closing
from pathlib import Path

import numpy as np
from bench_scale import METRICS, PLAN, ROWS, write_stage

from experiments.executors import LocalExecutor
from experiments.launch import Job, Sweep, jobs_of, launch
from experiments.output import Output
from experiments.plan import load_plan
from experiments.recording import Recording
from robuq.record.layout import metric_rows, params_of, run_name, tags_of
from robuq.record.run_record import RunRecord
from robuq.stages import distinct

RUN = "INSERT INTO runs SELECT {} FROM runs WHERE run_uuid = ?"
FILES = "SELECT value FROM tags WHERE key = 'robuq.files' AND run_uuid = ?"
RECORDED = "SELECT value, run_uuid FROM tags WHERE key = 'robuq.key'"


def write_plan(folder: Path, runs: int) -> Path:
    folder.mkdir(parents=True, exist_ok=True)
    file = folder / "scale.yaml"
    file.write_text(PLAN.format(seeds=", ".join(map(str, range(runs // ROWS)))))
    return file


def record_first(output: Output, plan: str, jobs: Sequence[Job]) -> None:
    recording = Recording(plan, output, output.tracking_uri())
    with output.sweeping():
        recording.open()
        sweep = Sweep(jobs, output.store, lambda stage: 1.0)
        ends = launch(sweep, LocalExecutor(output.store.root, function=write_stage), recording)
    if recording.problem or any(end.failure for end in ends):
        raise RuntimeError(recording.problem or "a run failed")


def copy_others(output: Output, plan: str, jobs: Sequence[Job]) -> None:
    rows = {(record.variant, record.label, record.config["train"]["steps"]): record for record in output.records(plan)}
    rng = np.random.default_rng(0)
    with closing(sqlite3.connect(output.tracking_file)) as database, database:
        columns = [name for _, name, *_ in database.execute("PRAGMA table_info(runs)")]
        sources = dict(database.execute(RECORDED).fetchall())
        for job in jobs:
            like = rows[job.run.variant, job.run.label, job.run.train.steps]
            _insert(database, columns, sources[like.key], _copied(like, job, rng))


def _copied(like: RunRecord, job: Job, rng: np.random.Generator) -> RunRecord:
    """Unchecked: it differs from a checked one in valid values alone."""
    own = {"key": job.run.key(), "seed": job.run.seed, "pretrain_seed": job.run.pretrain_seed}
    stages = {stage.kind: stage.key for stage in job.stages}
    values = dict(zip(METRICS, rng.random(len(METRICS)).tolist(), strict=True))
    return like.model_copy(update={**own, "stages": stages, "metrics": {**like.metrics, **values}})


def _insert(database: sqlite3.Connection, columns: list[str], source: str, record: RunRecord) -> None:
    run = uuid.uuid5(uuid.NAMESPACE_OID, record.key).hex
    own = {"run_uuid": "?", "name": "?"}
    database.execute(RUN.format(", ".join(own.get(name, name) for name in columns)), (run, run_name(record), source))
    ((files,),) = database.execute(FILES, (source,))
    tags = {**tags_of(record, json.loads(files)), "robuq.key": record.key, "robuq.record": record.key}
    last = {name: (value, time, step) for name, value, time, step in metric_rows(record)}
    database.executemany(
        "INSERT INTO tags (key, value, run_uuid) VALUES (?, ?, ?)", [(*tag, run) for tag in tags.items()]
    )
    params = [(*param, run) for param in params_of(record).items()]
    database.executemany("INSERT INTO params (key, value, run_uuid) VALUES (?, ?, ?)", params)
    database.executemany(
        "INSERT INTO latest_metrics (key, value, timestamp, step, is_nan, run_uuid) VALUES (?, ?, ?, ?, 0, ?)",
        [(name, *row, run) for name, row in last.items()],
    )


def finish_stages(output: Output, jobs: Sequence[Job]) -> None:
    """Folders with a result, which is what a look at a sweep sees of them."""
    for stage in distinct(stage for job in jobs for stage in job.stages):
        folder = output.store.folder(stage.id)
        if not folder.is_dir():
            folder.mkdir(parents=True)
            (folder / "result.json").write_text('{"seconds": 1.0}')


def main() -> None:
    folder, runs = Path(sys.argv[1]), int(sys.argv[2]) if len(sys.argv) > 2 else 10_000
    output, plan = Output(folder / "results"), load_plan(write_plan(folder, runs))
    jobs = jobs_of(plan.runs)
    record_first(output, plan.name, jobs[:ROWS])
    copy_others(output, plan.name, jobs[ROWS:])
    finish_stages(output, jobs)


if __name__ == "__main__":
    main()
