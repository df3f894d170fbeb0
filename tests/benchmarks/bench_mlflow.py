"""Time of recording 72,000 metrics on SQLite, and of reading many runs. Run: python tests/benchmarks/bench_mlflow.py

Bound: 20 s for the metrics (24 runs x 300 steps x 10 metrics). Peer, in the same process and store: one `log_batch`
per step, timed on two runs and scaled to 24. Writes mlflow.md beside this file.
"""

from __future__ import annotations

import os
import platform
import sqlite3
import tempfile
import time
from collections.abc import Callable
from importlib.metadata import version
from pathlib import Path

import numpy as np

from robuq.config import RunConfig
from robuq.record.mlflow import MlflowRecorder, connect, read_runs, sqlite_uri
from robuq.record.run_record import RunRecord
from robuq.variants import variant

RUNS, STEPS, METRICS, PEER_RUNS, MANY_RUNS = 24, 300, 10, 2, 10_000
FINAL = ("held_out_loss", "fd_classifier", "precision", "recall", "classifier_score")


def make_record(plan: str, seed: int, steps: int) -> RunRecord:
    rng = np.random.default_rng(seed)
    values = rng.random((steps, METRICS))
    history = [
        {"step": float(step), **{f"metric_{i}": float(x) for i, x in enumerate(row)}}
        for step, row in enumerate(values, 1)
    ]
    config = RunConfig(variant="robuq_uniform", precision=variant("robuq_uniform", 2), seed=seed)
    return RunRecord(
        plan=plan,
        key=config.key(),
        variant=config.variant,
        label=config.label,
        act_bits=2.0,
        seed=seed,
        pretrain_seed=0,
        status="finished",
        protocol="0123456789ab",
        dataset="digits",
        config=config.model_dump(mode="json"),
        stages={"qat": "0" * 16, "evaluate": "1" * 16},
        seconds={"qat": 30.0, "evaluate": 5.0},
        metrics={name: float(x) for name, x in zip(FINAL, rng.random(len(FINAL)), strict=True)},
        history=history,
        versions={"torch": "2.13.0"},
        started=1.7e9,
        finished=1.7e9 + 60,
    )


def timed(work: Callable[[], object], scale: float = 1) -> tuple[float, float]:
    """Seconds by the clock and of the processor."""
    wall, cpu = time.perf_counter(), time.process_time()
    work()
    return scale * (time.perf_counter() - wall), scale * (time.process_time() - cpu)


def row(name: str, seconds: tuple[float, float]) -> str:
    return f"| {name} | {seconds[0]:.1f} | {seconds[1]:.1f} |"


def batch_per_step(uri: str) -> None:
    from mlflow.entities import Metric

    client = connect(uri)
    experiment = client.create_experiment("peer")
    for seed in range(PEER_RUNS):
        run_id = client.create_run(experiment).info.run_id
        for entry in make_record("peer", seed, STEPS).history:
            step = int(entry["step"])
            client.log_batch(run_id, [Metric(name, x, step, step) for name, x in entry.items() if name != "step"])


def multiply_runs(uri: str, copies: int) -> None:
    """Copy the one run of experiment `many` in the database: recording thousands is not what is timed here."""
    database = sqlite3.connect(uri.removeprefix("sqlite:///"))
    with database:
        (source,) = database.execute(
            "select run_uuid from runs join experiments using (experiment_id) where experiments.name = 'many'"
        ).fetchone()
        for table in ("runs", "params", "tags", "latest_metrics"):
            columns = [row[1] for row in database.execute(f"pragma table_info({table})")]
            others = ", ".join(name for name in columns if name != "run_uuid")
            for copy in range(copies):
                database.execute(
                    f"insert into {table} (run_uuid, {others}) select ?, {others} from {table} where run_uuid = ?",
                    (f"{copy:032x}", source),
                )
    database.close()


def main() -> None:
    with tempfile.TemporaryDirectory() as folder:
        uri = sqlite_uri(Path(folder) / "mlflow.db")
        start_up = timed(lambda: MlflowRecorder(uri))
        recorder = MlflowRecorder(uri)
        records = [make_record("bench", seed, STEPS) for seed in range(RUNS)]
        first = timed(lambda: [recorder.record(record) for record in records])
        again = timed(lambda: [recorder.record(record) for record in records])
        peer = timed(lambda: batch_per_step(uri), RUNS / PEER_RUNS)
        recorder.record(make_record("many", 0, 1))
        multiply_runs(uri, MANY_RUNS - 1)
        reading = timed(lambda: read_runs(uri, "many"))
        count = len(read_runs(uri, "many"))
    lines = [
        "# Recording in MLflow on SQLite",
        "",
        f"{platform.machine()}, {os.cpu_count()} cores, MLflow {version('mlflow')}.",
        "",
        f"{RUNS} runs x {STEPS} steps x {METRICS} metrics = {RUNS * STEPS * METRICS:,} values, in one process.",
        f"Load over the last minute: {os.getloadavg()[0]:.1f}. CPU seconds do not depend on it.",
        "",
        "| what | seconds | CPU seconds |",
        "|---|---|---|",
        row("first start on a fresh store (import and tables), once", start_up),
        row("`MlflowRecorder.record` of all runs, artefacts included (bound: 20)", first),
        row("the same records again (nothing to do)", again),
        row(f"peer: one `log_batch` per step, {PEER_RUNS} runs scaled to {RUNS}, no artefacts", peer),
        row(f"`read_runs` of {count:,} runs", reading),
        "",
    ]
    (Path(__file__).parent / "mlflow.md").write_text("\n".join(lines))
    print("\n".join(lines))


if __name__ == "__main__":
    main()
