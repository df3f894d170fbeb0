"""What the command told the app: a JSON file that an environment variable names."""

from __future__ import annotations

import json
import os
from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property, lru_cache
from pathlib import Path
from typing import Any

from analysis.recorded import Source

VARIABLE = "ROBUQ_DASHBOARD"


@dataclass(frozen=True)
class Settings:
    """`uri` and `folder` as of `Source`; `options`: what commands need to write there, as text; `plans`: of each plan
    that is watched, by name, its description and its runs with their stages as `robuq plan --json` has them (None
    until the command has found them); `made_by`: by name of the plan, the words of the command that makes its runs, as
    far as that is known; `baselines`: by name of the plan."""

    uri: str
    folder: str | None
    options: str
    plans: dict[str, dict[str, Any]]
    made_by: dict[str, str]
    baselines: dict[str, str]

    @cached_property
    def source(self) -> Source:
        return Source(self.uri, Path(self.folder) if self.folder else None)

    @property
    def place(self) -> str:
        """What the records are called on the pages: the name of their folder or file, or their server."""
        name = self.source.name
        return Path(self.folder or name).name if self.folder or name.startswith("sqlite:") else name

    def path(self, *parts: str) -> str:
        """Of what lies in the output folder, for commands: from the working directory where that is above it."""
        whole = Path(self.folder or "", *parts)
        return str(whole.relative_to(Path.cwd())) if whole.is_relative_to(Path.cwd()) else str(whole)

    def default_of(self, names: Sequence[str]) -> str | None:
        """Which plan is shown first: one that is watched, if it is among `names`."""
        return next((name for name in self.plans if name in names), None)

    def command(self, words: str) -> str:
        return f"robuq {words} {self.options}".strip()

    def filling(self) -> str:
        """What gives results where nothing is recorded: the first plan that is watched, or a packaged one."""
        return self.command(self.made_by[next(iter(self.plans))] if self.plans else "sweep smoke")

    def making(self, plan: str, is_search: bool) -> tuple[str, str]:
        """What to put in, in words, and the command that makes the runs of a plan or a search. Records do not tell the
        file that they are made by, nor the settings that it was changed by."""
        if plan in self.made_by:
            return "VARIANT: one of `robuq variants`." if plan not in self.plans else "", self.command(
                self.made_by[plan]
            )
        if is_search:
            what = f"`{plan}` is a search: only runs that confirm it are shown here. FILE: its file, with its settings."
            return what, self.command("search FILE --set search.confirm_seeds=0,1,2")
        return f"FILE: that of the plan `{plan}`, with its settings.", self.command("sweep FILE")

    def has_two_methods(self, plan: str) -> bool:
        """Whether a plan that is watched has more runs than seeds; True until that is known."""
        runs = self.plans[plan]["runs"]
        return runs is None or len(runs) > len({run["seed"] for run in runs})


def settings() -> Settings:
    file = Path(os.environ[VARIABLE])
    state = file.stat()
    return _read(file, state.st_mtime_ns, state.st_size)


@lru_cache(maxsize=1)  # a plan of ten thousand runs is megabytes, and every click asks
def _read(file: Path, changed: int, size: int) -> Settings:
    return Settings(**json.loads(file.read_text(encoding="utf-8")))
