"""Runs that one name fits, told apart: key, plans, and the settings in which they differ."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Iterator, Mapping, Sequence
from typing import Any

from robuq.record.run_record import RunRecord

SHOWN_RUNS, SHOWN_SETTINGS = 4, 3
NAMED = ("variant", "seed")  # said by a run's name

Settings = Mapping[str, str]


def run_names(record: RunRecord) -> tuple[str, str]:
    return f"{record.variant}/{record.seed}", f"{record.variant}/{record.label}/{record.seed}"


def told_apart(records: Sequence[RunRecord]) -> str:
    """`KEY (plan p, train.lr=0.001), KEY (plan q, train.lr=0.003)`, of the first few runs.

    A run that is in several plans is one run. Names are said where they differ, settings of runs that share theirs.
    """
    plans: defaultdict[str, list[str]] = defaultdict(list)
    for record in records:
        plans[record.key].append(record.plan)
    runs = {record.key: record for record in records}
    names = {key: run_names(record)[-1] for key, record in runs.items()}
    settings = {key: dict(_leaves(record.config)) for key, record in runs.items()}
    said = []
    for key in list(runs)[:SHOWN_RUNS]:
        telling = _telling([settings[other] for other in runs if names[other] == names[key]])
        own = [f"{name}={_value(settings[key], name)}" for name in telling]
        name = [names[key]] if len(set(names.values())) > 1 else []
        said.append(f"{key} ({', '.join([*name, _in_words(plans[key]), *own])})")
    return ", ".join(said) + (", ..." if len(runs) > SHOWN_RUNS else "")


def _in_words(plans: Sequence[str]) -> str:
    return f"plan {plans[0]}" + (f" and {len(plans) - 1} more" if len(plans) > 1 else "")


def _leaves(values: Mapping[str, Any], before: str = "") -> Iterator[tuple[str, str]]:
    """(dotted name, value); lists are values."""
    for name, value in values.items():
        if isinstance(value, Mapping) and value:
            yield from _leaves(value, f"{before}{name}.")
        elif before or name not in NAMED:
            yield before + name, "none" if value is None else str(value)


def _value(settings: Settings, name: str) -> str:
    """In short; `set` is a part that others lack, `none` what is lacking."""
    is_part = any(other.startswith(f"{name}.") for other in settings)
    return settings.get(name, "set" if is_part else "none")[:60]


def _telling(alike: Sequence[Settings]) -> list[str]:
    """Few settings whose values tell these apart: each time the one after which most of them are."""
    chosen: list[str] = []
    told, names = 1, list(dict.fromkeys(name for settings in alike for name in settings))
    while names and told < len(alike) and len(chosen) < SHOWN_SETTINGS:
        best = max(names, key=lambda name: _kinds(alike, [*chosen, name]))
        if _kinds(alike, [*chosen, best]) == told:
            break
        chosen.append(best)
        told = _kinds(alike, chosen)
    return chosen


def _kinds(alike: Sequence[Settings], names: Sequence[str]) -> int:
    return len({tuple(settings.get(name) for name in names) for settings in alike})
