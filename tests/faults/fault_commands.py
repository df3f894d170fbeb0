"""Real `robuq` commands with faults, the disks they write to, and what an output folder must hold in the end."""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import sys
from collections import Counter
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from fault_spawner import BALLAST

from experiments.doctor import Doctor
from experiments.output import Output
from robuq.record.audit import tracked_runs
from robuq.record.mlflow import MlflowRecorder, connect, sqlite_uri

PLAN = """
name: faulty
preset: nano
base: {train.steps: 4, pretrain.steps: 4, pretrain.checkpoint_every: 2, train.checkpoint_every: 1, train.log_every: 1}
grid: {variant: [robuq_uniform]}
seeds: [0, 1]
pretrain_seeds: [0]
"""
SEARCH = """
name: faulty_search
preset: nano
base: {act_bits: 2, train.steps: 3, pretrain.steps: 4, pretrain.checkpoint_every: 2, train.checkpoint_every: 1}
ampn: {budget: {limit: 2.5, weights: layers}}
search:
  space: block
  evaluations: 4
  rungs: [{steps: 0, keep: 0.5}, {steps: 2}]
  confirm_seeds: [1]
"""
FILES = {"sweep": PLAN, "search": SEARCH}
DISK = "24m"
PATIENCE = 6000  # looks of 10 ms, for a busy machine


@dataclass(frozen=True)
class Fault:
    """At the n-th operation, of all or of one kind, on a file with `name` in its path; `action`: one of the spawner's,
    on `folder`."""

    name: str
    nth: int
    action: str
    folder: Path
    event: str = ""  # Python's name of it, as for audit hooks


@dataclass(frozen=True)
class Ended:
    """A command that is over."""

    code: int
    text: str  # all that it said

    def problems(self, code: int, *parts: str) -> list[str]:
        """One line for each difference: another exit code, a traceback, a part that it did not say."""
        lines = [] if self.code == code else [f"exit code {self.code}, not {code}: {self.last_line}"]
        lines += ["a traceback"] if "Traceback" in self.text else []
        return lines + [f"does not say {part!r}: {self.last_line}" for part in parts if part not in self.text]

    @property
    def last_line(self) -> str:
        return (self.text.strip().splitlines() or [""])[-1]


@dataclass
class Tally:
    """Of each kind of fault: how often it came, and how often everything was as it must be afterwards."""

    cases: Counter[str] = field(default_factory=Counter)
    survived: Counter[str] = field(default_factory=Counter)

    def __call__(self, fault: str, problems: list[str]) -> list[str]:
        """The problems of one case, counted."""
        self.cases[fault] += 1
        self.survived[fault] += not problems
        return [f"{fault}: {problem}" for problem in problems]

    def table(self) -> str:
        rows = [f"| {name} | {self.cases[name]} | {self.survived[name]} |" for name in self.cases]
        total = f"| together | {self.cases.total()} | {self.survived.total()} |"
        return "\n".join(["| fault | cases | survived |", "|---|---|---|", *rows, total, ""])


class FaultCommands:
    """Commands from one spawner, in one scratch folder."""

    def __init__(self, folder: Path, environment: Mapping[str, str] | None = None) -> None:
        self.folder, self._count = folder, 0
        self._logs: dict[int, Path] = {}
        for verb, text in FILES.items():
            (folder / f"{verb}.yaml").write_text(text)
        quiet = {"OMP_NUM_THREADS": "1", "MLFLOW_DISABLE_TELEMETRY": "true", "PYTHONWARNINGS": "ignore"}
        self._spawner = subprocess.Popen(
            [sys.executable, str(Path(__file__).with_name("fault_spawner.py"))],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            text=True,
            env={**os.environ, **quiet, **(environment or {})},
        )
        self._ready = False

    def start(self, *words: object, fault: Fault | None = None, environment: Mapping[str, str] | None = None) -> int:
        """The process id."""
        if not self._ready:
            self._answer()
            self._ready = True
        self._count += 1
        log = self.folder / f"{self._count}.log"
        planted = None if fault is None else {**vars(fault), "folder": str(fault.folder)}
        order = {"start": [*map(str, words)], "log": str(log), "fault": planted, "environment": environment or {}}
        process = int(self._ask(order))
        self._logs[process] = log
        return process

    def wait(self, process: int) -> Ended:
        code = int(self._ask({"wait": process}))
        return Ended(code, self._logs.pop(process).read_text(errors="replace"))

    def __call__(
        self, *words: object, fault: Fault | None = None, environment: Mapping[str, str] | None = None
    ) -> Ended:
        return self.wait(self.start(*words, fault=fault, environment=environment))

    def words(self, verb: str, output: Path, *more: object) -> list[object]:
        return [verb, self.folder / f"{verb}.yaml", "--output", output, "--executor", "local", *more]

    def close(self) -> None:
        assert self._spawner.stdin is not None
        assert self._spawner.stdout is not None
        self._spawner.stdin.close()
        self._spawner.wait(60)
        self._spawner.stdout.close()

    def _ask(self, order: dict[str, Any]) -> str:
        assert self._spawner.stdin is not None
        self._spawner.stdin.write(json.dumps(order) + "\n")
        self._spawner.stdin.flush()
        return self._answer()

    def _answer(self) -> str:
        assert self._spawner.stdout is not None
        line = self._spawner.stdout.readline().strip()
        if not line:
            raise RuntimeError("the spawner ended")
        return line


# --- what a folder holds --------------------------------------------------------------------------------------


@dataclass
class Undisturbed:
    """An empty tracking store to start from, and what undisturbed commands leave, each made once."""

    commands: FaultCommands
    made: dict[str, dict[str, Any]] = field(default_factory=dict)

    def output(self, folder: Path) -> Path:
        """A new output folder, whose tracking store is made already: that takes seconds."""
        template = self.commands.folder / "template"
        if not template.exists():
            template.mkdir()
            MlflowRecorder(sqlite_uri(template / "mlflow.db"))
        folder.mkdir(parents=True, exist_ok=True)
        shutil.copyfile(template / "mlflow.db", folder / "mlflow.db")
        return folder

    def contents(self, verb: str) -> dict[str, Any]:
        if verb not in self.made:
            output = self.output(self.commands.folder / f"undisturbed-{verb}")
            ended = self.commands(*self.commands.words(verb, output))
            if ended.code:
                raise RuntimeError(f"the undisturbed {verb} ended with {ended.code}: {ended.text}")
            self.made[verb] = contents(output)
        return self.made[verb]

    def differences(
        self, verb: str, output: Path, uri: str | None = None, only: str | None = None, study: str | None = None
    ) -> list[str]:
        """One line for each difference from the undisturbed folder, and for all that the doctor says. `only`: the
        experiment to look at, where `uri` names a tracking server with several; `study`: the database that has it."""
        found, wanted = contents(output, uri), self.contents(verb)
        if only is not None:
            found["mlflow"] = [row for row in found["mlflow"] if row[0] == only]
        lines = [f"{name} differ: {_difference(found[name], wanted[name])}" for name in wanted]
        lines = [line for line in lines if not line.endswith(SAME)]
        return lines + [
            f"doctor: {finding}" for finding in Doctor(Output(output), uri, [study] if study else ()).examine()
        ]


SAME = "not at all"


def _difference(found: Any, wanted: Any) -> str:
    """The first place where they differ."""
    if isinstance(found, dict) and isinstance(wanted, dict):
        names = sorted(name for name in {*found, *wanted} if found.get(name) != wanted.get(name))
        return f"{names[0]}: {_difference(found.get(names[0]), wanted.get(names[0]))}" if names else SAME
    return SAME if found == wanted else f"{str(found)[:300]} instead of {str(wanted)[:300]}"


def contents(output: Path, uri: str | None = None) -> dict[str, Any]:
    """All that must not depend on faults, as plain data. `uri`: of the tracking store, if it is not in the folder."""
    folder = Output(output)
    stages = [file for file in (output / "stages").glob("*/[!.]*") if file.parent.name != "quarantine"]
    return {
        "stages": sorted(str(file.relative_to(output)) for file in stages),
        "runs": {record.key: _run(record.model_dump(mode="json")) for record in folder.records()},
        "searches": {f.parent.name: _search(json.loads(f.read_text())) for f in output.glob("searches/*/search.json")},
        "mlflow": _tracked(uri or folder.tracking_uri()),
    }


def _run(record: dict[str, Any]) -> dict[str, Any]:
    names = ("plan", "status", "failure", "stages", "allocation", "history", "layers", "protocol")
    metrics = {name: value for name, value in record["metrics"].items() if not name.endswith("_seconds")}
    return {**{name: record[name] for name in names}, "metrics": metrics}


def _search(record: dict[str, Any]) -> dict[str, Any]:
    names = ("winner", "equal_to", "baselines", "confirmed")
    of_each = ("number", "source", "bits", "values", "state", "failure")
    evaluations = [{name: evaluation[name] for name in of_each} for evaluation in record["evaluations"]]
    return {**{name: record[name] for name in names}, "evaluations": evaluations, "over": record["finished"] > 0}


def _tracked(uri: str) -> list[Any]:
    """(experiment, identity, status, points of each metric) of each run: what was sent twice is there twice."""
    client, rows = connect(uri), []
    for run in tracked_runs(uri):
        names = sorted(client.get_run(run.run_id).data.metrics)
        points = {name: [[p.step, p.value] for p in client.get_metric_history(run.run_id, name)] for name in names}
        told = {name: len(of) if "seconds" in name else of for name, of in points.items()}
        rows.append([run.experiment, list(run.identity or ()), run.status, told])
    return sorted(rows, key=lambda row: json.dumps(row[:2]))


# --- disks ----------------------------------------------------------------------------------------------------


def why_no_mounts(folder: Path) -> str | None:
    """Why disks of a few megabytes cannot be mounted here; None where they can."""
    if os.geteuid():
        return "mounting a small disk needs root"
    try:
        with mounted(folder):
            return None
    except (OSError, subprocess.CalledProcessError):
        return "this root may not mount"


@contextmanager
def mounted(folder: Path) -> Iterator[Path]:
    """A disk of a few megabytes."""
    folder.mkdir(parents=True, exist_ok=True)
    subprocess.run(
        ["mount", "-t", "tmpfs", "-o", f"size={DISK}", "robuq-faults", folder], check=True, capture_output=True
    )
    try:
        yield folder
    finally:
        subprocess.run(["umount", "--recursive", "--lazy", folder], check=True, capture_output=True)


def make_room(disk: Path) -> None:
    (disk / BALLAST).unlink(missing_ok=True)


@contextmanager
def mounted_read_only(folder: Path) -> Iterator[None]:
    """A folder over itself."""
    subprocess.run(["mount", "--bind", folder, folder], check=True, capture_output=True)
    try:
        subprocess.run(["mount", "-o", "remount,bind,ro", folder], check=True, capture_output=True)
        yield
    finally:
        unmount(folder)


def unmount(folder: Path) -> None:
    subprocess.run(["umount", "--lazy", folder], check=True, capture_output=True)
