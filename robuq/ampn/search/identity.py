"""What makes two searches the same search, so that a study is not continued by another. Free of torch."""

from __future__ import annotations

import hashlib
from collections.abc import Mapping
from typing import Any

from robuq.ampn.problem import Bits, Problem
from robuq.config import ConfigError, SearchConfig

MAY_CHANGE = {"evaluations", "storage", "confirm_seeds"}  # from one opening of a study to the next


def search_identity(config: SearchConfig, problem: Problem, known: Mapping[str, Bits]) -> dict[str, Any]:
    """Plain data, as JSON gives it back: the configuration, the problem and the known allocations."""
    matrices = hashlib.sha256(problem.damage.tobytes() + problem.cost.tobytes())
    return {
        **config.model_dump(mode="json", exclude=MAY_CHANGE),
        "budget": problem.budget.model_dump(mode="json"),
        "decisions": list(problem.decisions),
        "candidates": list(problem.candidates),
        "damage and cost": matrices.hexdigest()[:16],
        "known": {name: list(bits) for name, bits in known.items()},
    }


def check_same_search(study: str, theirs: Mapping[str, Any], mine: Mapping[str, Any]) -> None:
    """
    Raises:
        ConfigError: they differ; it names the first difference.
    """
    for key in [*mine, *(key for key in theirs if key not in mine)]:
        if theirs.get(key) != mine.get(key):
            was, now = _short(theirs.get(key)), _short(mine.get(key))
            raise ConfigError(f"study {study!r} was begun with {key} {was}, now it is {now}: choose another name")


def check_evaluations_grow(study: str, theirs: int, mine: int) -> None:
    """
    Raises:
        ConfigError: fewer than before.
    """
    if mine < theirs:
        raise ConfigError(
            f"study {study!r} was begun with {theirs} evaluations, now it is {mine}: only more continue it, "
            "choose another name for fewer"
        )


def _short(value: Any) -> str:
    text = str(value)
    return text if len(text) <= 40 else text[:37] + "..."
