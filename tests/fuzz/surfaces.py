"""A surface: one way in for what people give, how to make bad input for it, and how its contract is checked."""

from __future__ import annotations

import os
import tempfile
from collections import Counter
from collections.abc import Callable
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from hypothesis import strategies as st

Check = Callable[[Any, Path], str]  # (case, an empty folder of its own) -> "refused" or "accepted"


@dataclass(frozen=True)
class Surface:
    """`check` raises AssertionError where the contract is broken."""

    name: str
    cases: st.SearchStrategy[Any]
    check: Check
    share: float = 1.0  # of the cases that are asked for: some surfaces are slow

    def run(self, case: Any) -> str:
        """In a working directory of the case's own, so that a path that escapes is seen."""
        with tempfile.TemporaryDirectory(prefix="robuq-fuzz-") as folder, working_in(Path(folder)):
            return self.check(case, Path(folder))


@dataclass
class Tally:
    """What came of a surface's cases."""

    ends: Counter[str] = field(default_factory=Counter)
    failures: list[str] = field(default_factory=list)


@contextmanager
def working_in(folder: Path) -> Any:
    before = Path.cwd()
    os.chdir(folder)
    try:
        yield
    finally:
        os.chdir(before)
