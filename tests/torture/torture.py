"""Torture: real commands, killed by SIGKILL at seeded moments, and started again until they are through.

After each round the folder must be that of a command that nobody disturbed: every run once and bit for bit equal, in
MLflow too; no trial of a study left over or repeated; no temporary file; nothing for `robuq doctor` to say.

    python tests/torture/torture.py --rounds 100 --seed 0
"""

from __future__ import annotations

import argparse
import json
import os
import random
import shutil
import signal
import subprocess
import sys
import tempfile
import threading
import time
from collections import Counter
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from experiments.doctor import Doctor
from experiments.output import Output
from experiments.search_run import JOURNAL
from experiments.signals import kill
from robuq.ampn.search import journal_states
from robuq.record.audit import tracked_runs
from robuq.record.mlflow import connect, sqlite_uri

PLAN = """
name: tortured
preset: nano
base: {train.steps: 4, pretrain.steps: 6, pretrain.checkpoint_every: 2, train.checkpoint_every: 1}
grid: {variant: [full_precision, robuq_uniform]}
seeds: [0]
pretrain_seeds: [0]
"""
SEARCH = """
name: tortured_search
preset: nano
base: {act_bits: 2, train.steps: 3, pretrain.steps: 4, pretrain.checkpoint_every: 2, train.checkpoint_every: 1}
ampn: {budget: {limit: 2.5, weights: layers}}
search:
  space: block
  evaluations: 5
  rungs: [{steps: 0, keep: 0.5}, {steps: 2}]
  confirm_seeds: [1]
"""
MAX_STARTS = 40
# What is being done when the kill comes: the name in the path of a file, up to which operation on such files, and the
# longest delay after it.
FAULTS: dict[str, tuple[str, int, float]] = {
    "training": ("history.jsonl", 12, 0.05),
    "writing a checkpoint": ("checkpoint-", 40, 0.005),
    "finishing a stage folder": ("result.json", 16, 0.003),
    "renaming a stage folder": (".work", 120, 0.0),
    "writing a record": ("/runs/", 12, 0.003),
    "writing to MLflow": ("/artifacts/", 30, 0.25),
}
OF_SEARCHES: dict[str, tuple[str, int, float]] = {
    "writing the Optuna journal": (JOURNAL, 160, 0.002),
    "writing the search's record": ("search.json", 14, 0.003),
}
ANY_MOMENT = "any moment"


@dataclass
class Tally:
    """Of one kind of fault: kills that came, and those after which everything was as if they had not."""

    kills: Counter[str] = field(default_factory=Counter)
    survived: Counter[str] = field(default_factory=Counter)
    rounds: int = 0
    problems: list[str] = field(default_factory=list)
    seconds: float = 0.0

    def add(self, kills: list[str], problems: list[str]) -> None:
        self.rounds += 1
        self.kills.update(kills)
        self.problems += problems
        if not problems:
            self.survived.update(kills)

    def table(self) -> str:
        lines = ["| killed while | kills | survived |", "|---|---|---|"]
        lines += [f"| {name} | {self.kills[name]} | {self.survived[name]} |" for name in sorted(self.kills)]
        total = f"| together | {self.kills.total()} | {self.survived.total()} |"
        return "\n".join([*lines, total, "", f"{self.rounds} rounds in {self.seconds:.0f} s."])


class Commands:
    """Real processes from one spawner."""

    def __init__(self, log: Path) -> None:
        self._log = log
        environment = {
            **os.environ,
            "OMP_NUM_THREADS": "1",
            "MLFLOW_DISABLE_TELEMETRY": "true",
            "PYTHONWARNINGS": "ignore",
        }
        self._spawner = subprocess.Popen(
            [sys.executable, str(Path(__file__).with_name("spawner.py"))],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            text=True,
            env=environment,
        )
        self._answer()

    def __call__(self, *words: str, fault: dict[str, Any] | None = None, kill_after: float | None = None) -> int:
        """The exit code; -9 where the kill came first."""
        assert self._spawner.stdin is not None
        self._spawner.stdin.write(json.dumps({"words": words, "log": str(self._log), "fault": fault}) + "\n")
        self._spawner.stdin.flush()
        process = int(self._answer())
        timer = threading.Timer(kill_after or 0.0, kill, [process])
        if kill_after is not None:
            timer.start()
        code = int(self._answer())
        timer.cancel()
        return code

    def close(self) -> None:
        assert self._spawner.stdin is not None
        self._spawner.stdin.close()
        self._spawner.wait(30)
        assert self._spawner.stdout is not None
        self._spawner.stdout.close()

    def _answer(self) -> str:
        assert self._spawner.stdout is not None
        line = self._spawner.stdout.readline().strip()
        if not line:
            raise RuntimeError(f"the spawner ended: see {self._log}")
        return line


@contextmanager
def spawned(log: Path) -> Iterator[Commands]:
    commands = Commands(log)
    try:
        yield commands
    finally:
        commands.close()


# --- what a folder holds --------------------------------------------------------------------------------------


def contents(output: Path) -> dict[str, Any]:
    """All that must not depend on kills, as plain data."""
    folder = Output(output)
    return {
        "stages": sorted(str(f.relative_to(output)) for f in (output / "stages").glob("*/[!.]*")),
        "runs": {f"{r.plan}/{r.key}": _run(r.model_dump(mode="json")) for r in folder.records()},
        "searches": {f.parent.name: _search(json.loads(f.read_text())) for f in output.glob("searches/*/search.json")},
        "trials": {f.parent.name: journal_states(f) for f in output.glob(f"searches/*/{JOURNAL}")},
        "mlflow": _tracked(sqlite_uri(folder.tracking_file)),
    }


def _run(record: dict[str, Any]) -> dict[str, Any]:
    kept = {
        name: record[name] for name in ("status", "failure", "stages", "allocation", "history", "layers", "protocol")
    }
    return {**kept, "metrics": {k: v for k, v in record["metrics"].items() if not k.endswith("_seconds")}}


def _search(record: dict[str, Any]) -> dict[str, Any]:
    names = ("winner", "equal_to", "front", "rank_correlations", "predictors", "baselines", "confirmed")
    of_each = ("number", "source", "bits", "values", "state", "failure", "params", "cost", "predicted")
    evaluations = [{name: evaluation[name] for name in of_each} for evaluation in record["evaluations"]]
    return {**{name: record[name] for name in names}, "evaluations": evaluations, "over": record["finished"] > 0}


def _tracked(uri: str) -> list[Any]:
    """(experiment, identity, status, points of each metric) of each run: a point that was sent twice is there twice."""
    client, rows = connect(uri), []
    for run in tracked_runs(uri):
        names = sorted(client.get_run(run.run_id).data.metrics)
        points = {name: [[p.step, p.value] for p in client.get_metric_history(run.run_id, name)] for name in names}
        told = {name: len(of) if "seconds" in name else of for name, of in points.items()}
        rows.append([run.experiment, list(run.identity or ()), run.status, told])
    return sorted(rows, key=lambda row: json.dumps(row[:2]))


def problems_of(output: Path, wanted: dict[str, Any]) -> list[str]:
    """One line for each difference from the undisturbed folder, and for all that the doctor says."""
    found = contents(output)
    lines = [
        f"{name} differ: {_difference(found[name], wanted[name])}" for name in wanted if found[name] != wanted[name]
    ]
    return lines + [f"doctor: {finding}" for finding in Doctor(Output(output)).examine()]


def _difference(found: Any, wanted: Any) -> str:
    if isinstance(found, dict) and isinstance(wanted, dict):
        for name in sorted({*found, *wanted}):
            if found.get(name) != wanted.get(name):
                return f"{name}: {_difference(found.get(name), wanted.get(name))}"
    return f"{str(found)[:300]} instead of {str(wanted)[:300]}"


# --- rounds ---------------------------------------------------------------------------------------------------


@dataclass
class Torture:
    """Rounds of one seed in one folder."""

    folder: Path
    seed: int
    commands: Commands
    tally: Tally = field(default_factory=Tally)
    undisturbed: dict[str, dict[str, Any]] = field(default_factory=dict)  # verb -> contents
    seconds: dict[str, float] = field(default_factory=dict)  # verb -> of the undisturbed command

    def __post_init__(self) -> None:
        self.folder.mkdir(parents=True, exist_ok=True)
        for verb, text in (("sweep", PLAN), ("search", SEARCH)):
            (self.folder / f"{verb}.yaml").write_text(text)

    def words(self, verb: str, output: Path) -> list[str]:
        return [verb, str(self.folder / f"{verb}.yaml"), "--output", str(output), "--executor", "local"]

    def reference(self, verb: str) -> dict[str, Any]:
        if verb not in self.undisturbed:
            output, begun = self.folder / f"undisturbed-{verb}", time.monotonic()
            code = self.commands(*self.words(verb, output))
            if code:
                raise RuntimeError(f"the undisturbed {verb} ended with {code}: see the log in {self.folder}")
            self.seconds[verb] = time.monotonic() - begun
            self.undisturbed[verb] = contents(output)
        return self.undisturbed[verb]

    def round(self, number: int, verb: str, kills: int) -> list[str]:
        """Problems; none where all kills were survived."""
        wanted, dice = self.reference(verb), random.Random(f"{self.seed}/{number}/{verb}")
        output, came = (
            self.folder / f"round-{number}-{verb}",
            [],
        )  # a name of its own: MLflow keeps what it opened by its path
        shutil.rmtree(output, ignore_errors=True)
        for start in range(MAX_STARTS):
            kind = self._kind(verb, dice) if start < kills else None
            code = self._start(verb, output, kind, dice)
            if code == -signal.SIGKILL and kind is not None:
                came.append(kind)
            elif code:
                problems = [f"round {number}: {verb} ended with {code} after {came}"]
                break
            elif start >= kills or kind is None:
                problems = [f"round {number}, after {came}: {line}" for line in problems_of(output, wanted)]
                break
        else:
            problems = [f"round {number}: not through after {MAX_STARTS} starts"]
        return self._ended(output, came, problems)

    def _kind(self, verb: str, dice: random.Random) -> str:
        return dice.choice([ANY_MOMENT, *FAULTS, *(OF_SEARCHES if verb == "search" else {})])

    def _start(self, verb: str, output: Path, kind: str | None, dice: random.Random) -> int:
        words = self.words(verb, output)
        if kind is None:
            return self.commands(*words)
        if kind == ANY_MOMENT:
            return self.commands(*words, kill_after=dice.uniform(0, self.seconds[verb]))
        name, most, delay = {**FAULTS, **OF_SEARCHES}[kind]
        fault = {"name": name, "nth": dice.randint(1, most), "delay": dice.choice([0.0, dice.uniform(0, delay)])}
        return self.commands(*words, fault=fault)

    def _ended(self, output: Path, came: list[str], problems: list[str]) -> list[str]:
        self.tally.add(came, problems)
        if not problems:
            shutil.rmtree(output, ignore_errors=True)
        return problems


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--rounds", type=int, default=100)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--kills", type=int, default=4, help="of each round, at most")
    parser.add_argument("--table", type=Path, help="file to write the table to")
    given = parser.parse_args()
    folder, begun = Path(tempfile.mkdtemp(prefix="torture-")), time.monotonic()
    with spawned(folder / "commands.log") as commands:
        torture = Torture(folder, given.seed, commands)
        for number in range(given.rounds):
            kills = random.Random(f"{given.seed}/{number}").randint(1, given.kills)
            problems = torture.round(number, ("sweep", "search")[number % 2], kills)
            torture.tally.seconds = time.monotonic() - begun
            print(*problems, sep="\n", end="\n" if problems else "", flush=True)
            if given.table:
                given.table.write_text(torture.tally.table() + "\n")
    print(torture.tally.table())
    if not torture.tally.problems:
        shutil.rmtree(folder, ignore_errors=True)
        return 0
    print(f"the folders of rounds with problems are in {folder}")
    return 1


if __name__ == "__main__":
    sys.exit(main())
