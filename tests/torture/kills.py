"""What is killed, and when; and the tally of what was survived."""

from __future__ import annotations

import random
from collections import Counter
from dataclasses import dataclass, field

from experiments.search_run import JOURNAL

COMMAND, WORKER, NODE = "the command", "a Ray worker", "a Ray node"
ANY_MOMENT = "any moment"
# What is being done when the kill comes: the name in the path of a file, up to which operation on such files, and the
# longest delay after it.
Faults = dict[str, tuple[str, int, float]]
OF_STAGES: Faults = {
    "training": ("history.jsonl", 12, 0.05),
    "writing a checkpoint": ("checkpoint-", 40, 0.005),
    "finishing a stage folder": ("result.json", 16, 0.003),
    "renaming a stage folder": (".work", 120, 0.0),
}
OF_RECORDS: Faults = {
    "writing a record": ("/runs/", 12, 0.003),
    "writing to MLflow": ("/artifacts/", 30, 0.25),
}
OF_SEARCHES: Faults = {
    "writing the Optuna journal": (JOURNAL, 160, 0.002),
    "writing the search's record": ("search.json", 14, 0.003),
}
FAULTS: Faults = {**OF_STAGES, **OF_RECORDS, **OF_SEARCHES}


@dataclass(frozen=True)
class Kill:
    """`nth`, `delay`: of the moment's operation, or the seconds after the command's start."""

    target: str
    moment: str
    nth: int = 0
    delay: float = 0.0

    @classmethod
    def drawn(cls, dice: random.Random, targets: list[str], verb: str, seconds: float) -> Kill:
        """`seconds`: that the undisturbed command takes."""
        target = dice.choice(targets)
        faults = {**OF_STAGES, **OF_RECORDS, **(OF_SEARCHES if verb == "search" else {})}
        moment = dice.choice([ANY_MOMENT, *faults])
        if moment == ANY_MOMENT:
            return cls(target, moment, 0, dice.uniform(0, seconds))
        _, most, longest = faults[moment]
        return cls(target, moment, dice.randint(1, most), dice.choice([0.0, dice.uniform(0, longest)]))

    @classmethod
    def drawn_round(
        cls, dice: random.Random, targets: list[str], verb: str, seconds: float, count: int
    ) -> list[list[Kill]]:
        """The kills of each start. Only the last start has no kill of the command: another would find nothing to do.
        A stage may lose two workers, not more."""
        starts: list[list[Kill]] = [[]]
        for _ in range(count):
            starts[-1].append(cls.drawn(dice, targets if len(starts[-1]) < 2 else [COMMAND], verb, seconds))
            if starts[-1][-1].target == COMMAND:
                starts.append([])
        return starts

    @property
    def label(self) -> tuple[str, str]:
        return self.target, self.moment


@dataclass
class Tally:
    """Of one kind of fault: kills that came, and those after which everything was as if they had not."""

    kills: Counter[tuple[str, str, str]] = field(default_factory=Counter)  # of (executor, target, moment)
    survived: Counter[tuple[str, str, str]] = field(default_factory=Counter)
    rounds: Counter[str] = field(default_factory=Counter)  # of executor and verb
    problems: list[str] = field(default_factory=list)
    outlived: list[float] = field(default_factory=list)  # seconds that workers lived on after their command's SIGKILL
    seconds: float = 0.0

    def add(self, executor: str, verb: str, kills: list[Kill], problems: list[str]) -> None:
        came = [(executor, *kill.label) for kill in kills]
        self.rounds[f"{verb}, {executor}"] += 1
        self.kills.update(came)
        self.problems += problems
        if not problems:
            self.survived.update(came)

    def table(self) -> str:
        lines = ["| executor | killed | while | kills | survived |", "|---|---|---|---|---|"]
        lines += [f"| {' | '.join(name)} | {self.kills[name]} | {self.survived[name]} |" for name in sorted(self.kills)]
        lines.append(f"| together | | | {self.kills.total()} | {self.survived.total()} |")
        rounds = ", ".join(f"{name}: {count}" for name, count in sorted(self.rounds.items()))
        lines += ["", f"{self.rounds.total()} rounds ({rounds}) in {self.seconds:.0f} s."]
        if self.outlived:
            longest = max(self.outlived)
            lines.append(
                f"Ray workers outlived a killed command by {longest:.1f} s at most ({len(self.outlived)} cases)."
            )
        return "\n".join(lines)
