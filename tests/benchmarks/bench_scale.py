"""Ten thousand runs: plan, status, sweep, resume and loading. Run: python tests/benchmarks/bench_scale.py

A plan of 10,000 runs is made by a grid in YAML. Its sweep is a real launch with the local executor and MLflow on
SQLite, but its stages only write what real ones leave, through `robuq.stages`: folders, seals, histories, made-up
metrics. Then the commands are run as users run them, and the records are read in a new process. Writes scale.md beside
this file.

The sweep is what takes long (most of it MLflow's); with --folder DIR it is kept, and continued where it was stopped.
"""

from __future__ import annotations

import argparse
import json
import os
import platform
import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import Mapping
from dataclasses import dataclass, field
from importlib.metadata import version
from pathlib import Path
from typing import Any

import numpy as np

from experiments.executors import LocalExecutor
from experiments.launch import JobEnd, Sweep, jobs_of, launch
from experiments.output import Output
from experiments.plan import load_plan
from experiments.recording import Recording
from robuq.stages import Stage, StageStore

PLAN = """\
name: scale
description: Ten thousand runs of the smallest model.
preset: nano
grid:
  variant: [minmax, baseline, robuq_uniform, robuq, bitnet_v2]
  act_bits: [4, 3, 2, 1]
  train.steps: [5, 6, 7, 8, 9]
seeds: [{seeds}]
pretrain_seeds: [0, 1, 2, 3, 4, 5, 6, 7, 8, 9]
"""
ROWS = 5 * 4 * 5
LOGGED = 10  # steps of a run's history
METRICS = (
    *("held_out_loss", "validation_loss", "fd_classifier", "kd_classifier", "precision", "recall", "classifier_score"),
    *("label_agreement", "bops", "macs", "weight_bytes", "average_bits_macs", "average_bits_layers"),
    *(f"held_out_loss_bin_{i}" for i in range(10)),
)
READ = """
import json, sys, time
from analysis.configurations import Configurations
from analysis.leaderboard import leaderboard_data, leaderboard_table
from analysis.load import load_runs, runs_frame
from analysis.recorded import Source, config_of
from analysis.render import render
from robuq.record.mlflow import connect, read_runs, reader
clocks, clock = [], lambda: clocks.append((time.perf_counter(), time.process_time()))
clock()
runs = load_runs(sys.argv[1], "scale")
clock()
known = {record.key: record for record in read_runs(sys.argv[1], "scale")}
configurations = Configurations(lambda plan, key: config_of(Source(sys.argv[1]), known[key]))
clock()
data = leaderboard_data(runs, configurations)
for form in ("markdown", "latex", "html"):
    render(leaderboard_table(data), form)
clock()
connect(sys.argv[1])
reader.look_in_file = lambda uri, experiment, known: None
clock()
assert runs_frame(reader.read_runs(sys.argv[1], "scale")).equals(runs)
clock()
print(json.dumps({"runs": len(runs), "rows": len(data), "clocks": clocks}))
"""


@dataclass
class Used:
    """What a process and those under it used; `rss`: MiB over its life, a few times a second."""

    wall: float
    cpu: float
    rss: list[float] = field(default_factory=list)


# --- the sweep ------------------------------------------------------------------------------------------------


def write_stage(stage: Stage, root: Path, device: str) -> Mapping[str, Any]:
    """What a real stage of this kind leaves, as far as a record is made of it."""
    store, rng = StageStore(root), np.random.default_rng(int(stage.key, 16))
    folder = store.open_work(stage)
    if stage.kind == "qat":
        losses = enumerate(rng.random(LOGGED).tolist(), 1)
        rows = [{"step": step, "loss": loss, "grad_norm": loss} for step, loss in losses]
        (folder / "history.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    values = dict(zip(METRICS, rng.random(len(METRICS)).tolist(), strict=True)) if stage.kind == "evaluate" else {}
    result = {"seconds": 1.0, "metrics": values}
    store.commit(stage, result)
    return result


def sweep(plan: Path, folder: Path) -> None:
    """In a process of its own: launch what is missing, record it, and print the driver's memory along the way."""
    output, loaded = Output(folder), load_plan(plan)
    jobs = jobs_of(loaded.runs)
    watched: list[float] = []
    recording = Recording(loaded.name, output, output.tracking_uri())

    def record(end: JobEnd) -> None:
        old = output.has_record(loaded.name, end.job.run.key())
        recording(end)
        if not (old and missing):  # what an earlier call did counts where there is nothing else
            watched.append(resident(os.getpid()))

    with output.sweeping():
        recording.open()
        missing = sum(not output.has_record(loaded.name, job.run.key()) for job in jobs)
        begun = time.perf_counter(), time.process_time()
        state = Sweep(jobs, output.store, lambda stage: 1.0)
        ends = launch(state, LocalExecutor(output.store.root, function=write_stage), record)
        used = [now - then for now, then in zip((time.perf_counter(), time.process_time()), begun, strict=True)]
    if recording.problem or any(end.failure for end in ends):
        raise RuntimeError(recording.problem or "a run failed")
    print(json.dumps({"runs": len(ends), "missing": missing, "used": used, "rss": watched}))


def resident(process: int) -> float:
    """MiB."""
    pages = int(Path(f"/proc/{process}/statm").read_text().split()[1])
    return pages * os.sysconf("SC_PAGE_SIZE") / 2**20


def quarters(rss: list[float]) -> tuple[float, float, float]:
    """Mean of the first quarter, mean of the last, most."""
    size = max(1, len(rss) // 4)
    return float(np.mean(rss[:size])), float(np.mean(rss[-size:])), max(rss)


# --- commands -------------------------------------------------------------------------------------------------


def run(*words: str) -> tuple[Used, str]:
    """A command to its end, and what it printed."""
    begun = time.perf_counter()
    with subprocess.Popen(words, stdout=subprocess.PIPE, stderr=subprocess.DEVNULL, text=True) as process:
        watch = threading.Event()
        rss: list[float] = []

        def look() -> None:
            while not watch.wait(0.2):
                try:
                    rss.append(resident(process.pid))
                except (FileNotFoundError, ProcessLookupError):
                    return

        thread = threading.Thread(target=look, daemon=True)
        thread.start()
        assert process.stdout is not None
        text = process.stdout.read()
        _, status, usage = os.wait4(process.pid, 0)
        process.returncode = os.waitstatus_to_exitcode(status)
        watch.set()
        thread.join()
    if process.returncode:
        raise RuntimeError(f"{' '.join(words)}: exit code {process.returncode}: {text[-500:]}")
    return Used(time.perf_counter() - begun, usage.ru_utime + usage.ru_stime, rss), text


def robuq(*words: str) -> Used:
    return run(sys.executable, "-m", "experiments.cli", *words)[0]


def row(what: str, used: Used) -> str:
    memory = f"{max(used.rss):.0f}" if used.rss else ""
    return f"| {what} | {used.cpu:.1f} | {used.wall:.1f} | {memory} |"


# --- the report -----------------------------------------------------------------------------------------------


def memory_row(what: str, told: Mapping[str, Any]) -> str:
    first, last, most = quarters(told["rss"])
    wall, cpu = told["used"]
    runs = told["missing"] or told["runs"]
    each = 1000 * cpu / runs
    return f"| {what} | {runs:,} | {cpu:.0f} | {wall:.0f} | {each:.1f} | {first:.0f} | {last:.0f} | {most:.0f} |"


def measured(folder: Path, count: int) -> list[str]:
    plan = folder / "scale.yaml"
    plan.write_text(PLAN.format(seeds=", ".join(map(str, range(count // ROWS)))))
    where = ("--output", str(folder / "results"))
    cold = robuq("plan", str(plan), "--output", str(folder / "nothing"))
    swept, resumed = (
        json.loads(run(sys.executable, __file__, "--sweep", str(plan), "--folder", str(folder / "results"))[1])
        for _ in range(2)
    )
    commands = [
        row("`robuq plan`, nothing done yet", cold),
        row("`robuq plan`, all done", robuq("plan", str(plan), *where)),
        row("`robuq status`, all done", robuq("status", str(plan), *where)),
        row("`robuq sweep`, all done and recorded", robuq("sweep", str(plan), *where)),
    ]
    told = json.loads(run(sys.executable, "-c", READ, Output(folder / "results").tracking_uri())[1])
    loading, _, tabulating, _, asking = np.diff(np.array(told["clocks"]), axis=0)
    kept = swept["runs"] - swept["missing"]
    note = f" {kept:,} of them had been done by an earlier call." if kept else ""
    return [
        f"A grid in YAML of {count:,} runs; {swept['missing']:,} of them were run here, each of 4 or 7 stages that "
        f"only write, with {len(METRICS)} final metrics and {LOGGED} logged steps, recorded in MLflow on SQLite.{note}",
        "",
        "## Commands",
        "",
        "| what | CPU s | wall s | most memory, MiB |",
        "|-|-|-|-|",
        *commands,
        "",
        "## The driver's memory",
        "",
        "Resident memory in MiB, after each run's record: means over the first and the last quarter of the runs.",
        "",
        "| what | runs | CPU s | wall s | CPU ms a run | first quarter | last quarter | most |",
        "|-|-|-|-|-|-|-|-|",
        memory_row("a sweep of runs that only write", swept),
        memory_row("the same again: all done and recorded", resumed),
        "",
        "## Loading and tabulating",
        "",
        f"{told['runs']:,} runs into one frame, and {told['rows']} rows of means with intervals from it.",
        "",
        "| what | CPU s | wall s |",
        "|-|-|-|",
        f"| `load_runs`, from the tables of the SQLite file | {loading[1]:.1f} | {loading[0]:.1f} |",
        f"| the same by MLflow's client, as of a server | {asking[1]:.1f} | {asking[0]:.1f} |",
        f"| leaderboard: statistics and three forms of text | {tabulating[1]:.1f} | {tabulating[0]:.1f} |",
        "",
    ]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--runs", type=int, default=10_000, help=f"a multiple of {ROWS}")
    parser.add_argument("--folder", type=Path, help="to keep the sweep in; default: a temporary one")
    parser.add_argument("--sweep", type=Path, metavar="PLAN", help="only that, into the folder")
    parser.add_argument("--out", type=Path, default=Path(__file__).with_name("scale.md"))
    given = parser.parse_args()
    if given.sweep:
        sweep(given.sweep, given.folder)
        return
    load = os.getloadavg()[0]
    with tempfile.TemporaryDirectory() as temporary:
        folder = given.folder or Path(temporary)
        folder.mkdir(parents=True, exist_ok=True)
        lines = measured(folder, given.runs)
    head = [
        "# Ten thousand runs",
        "",
        f"{platform.machine()}, {os.cpu_count()} cores, MLflow {version('mlflow')}, pandas {version('pandas')}. "
        f"Load over the last minute: {load:.1f} before and {os.getloadavg()[0]:.1f} after.",
        "All that is timed runs in one thread. Expect wall times near the CPU seconds on a machine that does nothing "
        "else (not measured); the sweep also waits for the disk. Other work on the same cores stretches CPU seconds, "
        "too, but less.",
        f"`python tests/benchmarks/bench_scale.py --runs {given.runs}` writes this file.",
        "",
    ]
    given.out.write_text("\n".join([*head, *lines]))
    print(given.out.read_text())


if __name__ == "__main__":
    main()
