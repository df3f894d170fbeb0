"""Torture: real commands, killed by SIGKILL at seeded moments, and started again until they are through; with Ray, its
workers and nodes are killed, too.

After each round the folder must be that of a command that nobody disturbed: every run once and bit for bit equal, in
MLflow too; no trial of a study left over or repeated; no temporary file; nothing for `robuq doctor` to say.

    python tests/torture/torture.py --rounds 100 --seed 0
    python tests/torture/torture.py --rounds 100 --seed 0 --executor ray
"""

from __future__ import annotations

import argparse
import json
import random
import shutil
import signal
import sys
import tempfile
import threading
import time
from contextlib import ExitStack, closing
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from folder_contents import contents, problems_of
from kills import ANY_MOMENT, COMMAND, FAULTS, NODE, OF_STAGES, WORKER, Kill, Tally
from torture_commands import Commands, spawned
from tortured_ray import Gate, TorturedCluster, is_worker, parent_of, seconds_until_gone, workers_under

from experiments.signals import kill

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
VERBS = ("sweep", "search")
MAX_STARTS = 40
FAULT_FILE = "fault.json"  # read by workers when they start
LOCAL, RAY, CLUSTER = "local", "Ray, started by the command", "Ray, a given cluster"
TARGETS = {LOCAL: [COMMAND], RAY: [COMMAND, WORKER], CLUSTER: [COMMAND, WORKER, NODE]}
# Two workers ask the study in another order than one, and the order decides what it proposes.
WORKERS = {"sweep": "2", "search": "1"}


@dataclass
class Torture:
    """Rounds of one seed in one folder."""

    folder: Path
    seed: int
    commands: Commands
    cluster: TorturedCluster | None = None
    tally: Tally = field(default_factory=Tally)
    undisturbed: dict[str, dict[str, Any]] = field(default_factory=dict)  # verb -> contents
    seconds: dict[tuple[str, str], float] = field(default_factory=dict)  # executor, verb -> of the undisturbed command

    def __post_init__(self) -> None:
        for verb, text in zip(VERBS, (PLAN, SEARCH), strict=True):
            (self.folder / f"{verb}.yaml").write_text(text)

    def words(self, executor: str, verb: str, output: Path) -> list[str]:
        words = [verb, str(self.folder / f"{verb}.yaml"), "--output", str(output)]
        if executor == LOCAL:
            return [*words, "--executor", "local"]
        assert self.cluster is not None or executor == RAY
        address = ["--address", self.cluster.address] if self.cluster and executor == CLUSTER else []
        return [*words, "--executor", "ray", "--workers", WORKERS[verb], *address]

    def reference(self, executor: str, verb: str) -> dict[str, Any]:
        """What an undisturbed command leaves: on Ray the same as in one process."""
        wanted = self.undisturbed_locally(verb)
        if (executor, verb) not in self.seconds:
            problems = problems_of(self._undisturbed(executor, verb), wanted)
            if problems:
                raise RuntimeError(f"{verb}, {executor}, undisturbed: {problems}")
        return wanted

    def undisturbed_locally(self, verb: str) -> dict[str, Any]:
        if verb not in self.undisturbed:
            self.undisturbed[verb] = contents(self._undisturbed(LOCAL, verb))
        return self.undisturbed[verb]

    def _undisturbed(self, executor: str, verb: str) -> Path:
        output, begun = self.folder / f"undisturbed-{len(self.seconds)}", time.monotonic()
        code = self.commands(*self.words(executor, verb, output))
        if code:
            raise RuntimeError(f"{verb}, {executor}, undisturbed, ended with {code}: see the log in {self.folder}")
        self.seconds[executor, verb] = time.monotonic() - begun
        return output

    def round(self, number: int, executor: str, verb: str, kills: int) -> list[str]:
        """Problems; none where all kills were survived."""
        wanted, dice = self.reference(executor, verb), random.Random(f"{self.seed}/{number}/{verb}")
        seconds = self.seconds[executor, verb]
        starts = Kill.drawn_round(dice, TARGETS[executor], verb, seconds, kills)
        return self.survive(f"round-{number}-{verb}", executor, verb, starts, wanted, dice.random() < 0.5)

    def survive(
        self, name: str, executor: str, verb: str, starts: list[list[Kill]], wanted: dict[str, Any], fresh: bool = True
    ) -> list[str]:
        """One command, started with each of these lists of kills and until it is through. `fresh`: a killed node is
        replaced at once, not at the next start."""
        output = self.folder / name  # a name of its own: MLflow keeps what it opened by its path
        shutil.rmtree(output, ignore_errors=True)
        came: list[Kill] = []
        for number in range(MAX_STARTS):
            start = _Start(self, executor, verb, output, starts[number] if number < len(starts) else [], fresh)
            code = start()
            came += start.came
            if code == -signal.SIGKILL and start.killed:
                continue
            if code:
                problems = [f"{name}: {verb} ended with {code} after {came}"]
                break
            if number + 1 >= len(starts):
                problems = [f"{name}, after {came}: {line}" for line in self._problems(output, wanted)]
                break
        else:
            problems = [f"{name}: not through after {MAX_STARTS} starts"]
        self.tally.add(executor, verb, came, problems)
        if not problems:
            shutil.rmtree(output, ignore_errors=True)
        return problems

    def _problems(self, output: Path, wanted: dict[str, Any]) -> list[str]:
        left = sorted(path.name for path in (self.folder / "t").iterdir() if not path.name.startswith("torchinductor"))
        return problems_of(output, wanted) + [f"left in the temporary folder: {name}" for name in left]


class _Start:
    """One start of a command, with the kills that are to come."""

    def __init__(
        self, torture: Torture, executor: str, verb: str, output: Path, planned: list[Kill], fresh: bool
    ) -> None:
        self._torture, self._executor, self._planned, self._fresh = torture, executor, planned, fresh
        self._words = torture.words(executor, verb, output)
        self._command, self._begun, self._lock = 0, threading.Event(), threading.Lock()
        self._tried: set[int] = set()
        self.came: list[Kill] = []

    @property
    def killed(self) -> bool:
        """Whether the command itself was."""
        return any(each.target == COMMAND for each in self.came)

    def __call__(self) -> int:
        """The command's exit code."""
        torture = self._torture
        if torture.cluster is not None:
            torture.cluster.complete()
        if self._executor == LOCAL:
            return self._locally()
        in_command, in_workers = self._faults()
        (torture.folder / FAULT_FILE).write_text(json.dumps(in_workers))
        with closing(Gate(torture.folder / "gate", self._kill)):
            code = torture.commands(*self._words, faults=in_command, begun=self._has_begun)
        self._command = 0
        if code != -signal.SIGKILL:
            self.came = [each for each in self.came if each.target != COMMAND]
        return code

    def _locally(self) -> int:
        """The command kills itself."""
        in_command, in_workers = self._faults()
        code = self._torture.commands(*self._words, faults=[*in_command, *in_workers], begun=self._has_begun)
        self._command = 0
        self.came = self._planned[:1] if code == -signal.SIGKILL else []
        return code

    def _faults(self) -> tuple[list[dict[str, Any]], list[dict[str, Any]]]:
        """(in the command, in workers)"""
        gate = "" if self._executor == LOCAL else str(self._torture.folder / "gate")
        faults: tuple[list[dict[str, Any]], list[dict[str, Any]]] = ([], [])
        for number, planned in enumerate(self._planned):
            if planned.moment != ANY_MOMENT:
                fault = {"name": FAULTS[planned.moment][0], "nth": planned.nth, "delay": planned.delay}
                faults[planned.moment in OF_STAGES].append({**fault, "gate": gate, "kill": number})
        return faults

    def _has_begun(self, process: int) -> None:
        self._command = process
        self._begun.set()
        for number, planned in enumerate(self._planned):
            if planned.moment == ANY_MOMENT:
                timer = threading.Timer(planned.delay, self._kill, [number, 0])
                timer.daemon = True
                timer.start()

    def _kill(self, number: int, at: int) -> None:
        """`at`: the process whose moment it is; 0 where it is nobody's."""
        self._begun.wait()
        with self._lock:
            if number in self._tried or self.killed or not self._command:
                return
            self._tried.add(number)
            planned = self._planned[number]
            if self._has_killed(planned.target, at):
                self.came.append(planned)

    def _has_killed(self, target: str, at: int) -> bool:
        workers = self._workers()
        worker = at if is_worker(at) else next(iter(workers), None)
        if target == COMMAND:
            kill(self._command)
            if workers:
                threading.Thread(target=self._measure, args=[workers]).start()
        elif target == WORKER and worker is not None:
            kill(worker)
        elif target == NODE and worker is not None:
            self._kill_node(parent_of(worker))
        else:
            return False
        return True

    def _kill_node(self, node: int | None) -> None:
        cluster = self._torture.cluster
        assert cluster is not None
        cluster.kill_node(node if node in cluster.nodes else cluster.nodes[0])
        if self._fresh or not cluster.nodes:
            cluster.add_node()

    def _workers(self) -> list[int]:
        if self._executor == CLUSTER and self._torture.cluster is not None:
            return self._torture.cluster.workers()
        return workers_under(self._command)

    def _measure(self, workers: list[int]) -> None:
        self._torture.tally.outlived.append(seconds_until_gone(workers))


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--rounds", type=int, default=100)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--kills", type=int, default=4, help="of each round, at most")
    parser.add_argument("--executor", choices=["local", "ray"], default="local")
    parser.add_argument("--minutes", type=float, default=float("inf"), help="begin no round after so many")
    parser.add_argument("--table", type=Path, help="file to write the table to")
    given = parser.parse_args()
    executors = [LOCAL] if given.executor == "local" else [CLUSTER, CLUSTER, RAY, RAY]
    folder, begun = Path(tempfile.mkdtemp(prefix="t-")), time.monotonic()  # sockets have short names only
    with spawned(folder) as commands, ExitStack() as stack:
        cluster = stack.enter_context(closing(TorturedCluster(folder))) if CLUSTER in executors else None
        torture = Torture(folder, given.seed, commands, cluster)
        for number in range(given.rounds):
            if time.monotonic() - begun > 60 * given.minutes:
                break
            kills = random.Random(f"{given.seed}/{number}").randint(1, given.kills)
            executor, verb = executors[number % len(executors)], VERBS[number % 2]
            problems = torture.round(number, executor, verb, kills)
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
