"""Wall time of a sweep over the pure time of its stages, with two Ray workers.

Run: python tests/benchmarks/bench_launcher.py

overhead = wall * workers / sum of the stages' own seconds. Start-up (Ray, workers' imports) and the shared
pre-training are done before the clock starts; recording in MLflow is inside it. Bound: 1.03. For comparison, bare
Ray Core actors 1.02, Ray Tune 1.4 to 4.1 (24 trials of 2.9 s, two workers).
"""

from __future__ import annotations

import argparse
import tempfile
import time
from pathlib import Path

from experiments.executors import RayExecutor
from experiments.launch import Job, Sweep, jobs_of, launch
from experiments.output import Output
from experiments.plan import build_plan
from experiments.recording import Recording

WORKERS = 2


def jobs(runs: int, steps: int) -> list[Job]:
    content = {
        "name": "bench_launcher",
        "base": {
            "variant": "robuq_uniform",
            "pretrain.steps": 30,
            "train.steps": steps,
            "evaluation.sample.num_images": 100,
            "evaluation.features.epochs": 1,
        },
        "seeds": list(range(runs)),
        "pretrain_seeds": [0],
    }
    return jobs_of(build_plan(content).runs)


def overhead(runs: int, steps: int) -> tuple[float, float, int]:
    """(wall seconds, pure seconds, stages) of what is timed."""
    with tempfile.TemporaryDirectory() as folder:
        output, all_jobs = Output(Path(folder)), jobs(runs, steps)
        recording = Recording("bench_launcher", output, output.tracking_uri())
        recording.open()
        executor = RayExecutor(output.store.root, workers=WORKERS)
        warm_up = [Job(job.run, job.stages[:2]) for job in all_jobs[:1]]
        launch(Sweep(warm_up, output.store, lambda s: 1.0), executor, lambda end: None)
        while executor.free() < WORKERS:
            executor.wait(60.0)
        begun = time.perf_counter()
        launch(Sweep(all_jobs, output.store, lambda s: 10.0 if s.kind == "qat" else 1.0), executor, recording)
        wall = time.perf_counter() - begun
        executor.close()
        timed = [stage for job in all_jobs for stage in job.stages if stage.kind in ("qat", "evaluate")]
        return wall, sum(output.store.result(stage.id)["seconds"] for stage in timed), len(timed)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--runs", type=int, default=24)
    parser.add_argument("--steps", type=int, default=30)
    given = parser.parse_args()
    wall, pure, stages = overhead(given.runs, given.steps)
    print(f"{stages} stages, {pure:.1f} s of work, {wall:.1f} s of wall time with {WORKERS} workers")
    print(f"overhead {wall * WORKERS / pure:.3f} (bound 1.03)")


if __name__ == "__main__":
    main()
