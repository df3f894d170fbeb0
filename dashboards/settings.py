"""What the command told the app: a JSON file that an environment variable names."""

from __future__ import annotations

import json
import os
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

from analysis.recorded import Source

VARIABLE = "ROBUQ_DASHBOARD"


@dataclass(frozen=True)
class Settings:
    """`uri` and `folder` as of `Source`; `options`: what commands need to write there, as text; `plans`: what
    `robuq plan --json` prints of each plan that is watched, by name; `baseline`: by name of the plan."""

    uri: str
    folder: str | None
    options: str
    plans: dict[str, dict[str, Any]]
    baselines: dict[str, str]

    @cached_property
    def source(self) -> Source:
        return Source(self.uri, Path(self.folder) if self.folder else None)

    def command(self, words: str) -> str:
        return f"robuq {words} {self.options}".strip()


def settings() -> Settings:
    return Settings(**json.loads(Path(os.environ[VARIABLE]).read_text(encoding="utf-8")))
