"""What the doctor finds: one disagreement each, and what can be done about it."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any

from robuq.storage_fault import StorageFault

Repair = Callable[[], object]
SAME = "the command that began it goes on with it"


@dataclass(frozen=True)
class Finding:
    """One disagreement. `repair`: what `--fix` does; None where a person has to choose, or another command repairs."""

    kind: str
    where: str
    what: str
    remedy: str
    repair: Repair | None = field(default=None, repr=False, compare=False)


def finding_data(finding: Finding) -> dict[str, Any]:
    names = ("kind", "where", "what", "remedy")
    return {**{name: getattr(finding, name) for name in names}, "repairable": finding.repair is not None}


def not_given(where: str, fault: StorageFault) -> Finding:
    """A file that the disk does not give: it may be whole, and is not set aside."""
    return Finding("unreadable file", where, str(fault), "what is removed, its command makes anew")
