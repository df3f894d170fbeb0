"""Points of a plan: which variant, bits and overrides each row of the table has.

points = (grid x zip x ablate) without exclude, then include
"""

from __future__ import annotations

import itertools
import json
import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Annotated, Any, Literal

from pydantic import Field

from robuq.config import Config, ConfigError

MAX_POINTS = 10_000
MACROS = ("variant", "act_bits", "name")  # the rest are overrides
TUNED = "train.lr"  # points that differ in it alone are one row, whose rate the validation loss chooses

Axes = dict[str, Annotated[list[Any], Field(min_length=1)]]


class Component(Config):
    """Overrides that switch a component of the method on and off."""

    on: dict[str, Any] = {}
    off: dict[str, Any] = {}


class Ablation(Config):
    """Which combinations of components are tried.

    full: all 2^n. minus_one: all on, and each off alone. plus_one: all off, and each on alone. pairs: all off,
    each on alone, and every two together (what two-way interactions need).
    """

    mode: Literal["full", "minus_one", "plus_one", "pairs"]
    components: Annotated[dict[str, Component], Field(min_length=1, max_length=12)]


@dataclass(frozen=True)
class Point:
    """One row: `settings` are variant, act_bits, name and dotted overrides; `ablation` those of one combination.

    `covered`: the settings that a given name speaks for, so that the display name does not repeat them.
    """

    settings: Mapping[str, Any]
    covered: frozenset[str] = frozenset()
    ablation: Mapping[str, Any] = field(default_factory=dict)
    ablation_name: str = ""

    def display_name(self, variant: str) -> str:
        """`robuq_uniform[block_linears.act.grid=as_coded]`, or the name given for it; learning rates do not show."""
        hidden = {*MACROS, TUNED, *(self.covered if "name" in self.settings else ())}
        extras = [f"{key}={_short(value)}" for key, value in self.settings.items() if key not in hidden]
        extras += [self.ablation_name] if self.ablation_name else []
        name = str(self.settings.get("name", variant))
        return f"{name}[{','.join(extras)}]" if extras else name


def _short(value: Any) -> str:
    return value if isinstance(value, str) else json.dumps(value, separators=(",", ":"), sort_keys=True)


def expand(
    grid: Axes,
    zipped: Axes,
    ablate: Ablation | None,
    include: Sequence[Mapping[str, Any]],
    exclude: Sequence[Mapping[str, Any]],
) -> list[Point]:
    """All points in a fixed order.

    Raises:
        ConfigError: lists of different lengths, an axis given twice, far too many points.
    """
    main: list[Point] = []
    if grid or zipped or ablate or not include:
        rows, switches = _product(grid, _lockstep(zipped, grid)), _ablations(ablate)
        _check_count(len(rows) * len(switches))
        covered = frozenset(zipped)
        main = [Point(row, covered, *switch) for row in rows for switch in switches]
        main = [point for point in main if not any(_matches(point.settings, rule) for rule in exclude)]
    for entry in include:
        main += _included(entry)
        _check_count(len(main))
    return main


def _check_count(count: int) -> None:
    if count > MAX_POINTS:
        raise ConfigError(f"the plan has {count} points or more, at most {MAX_POINTS} are allowed")


def _lockstep(zipped: Axes, grid: Axes) -> list[dict[str, Any]]:
    if twice := sorted(set(zipped) & set(grid)):
        raise ConfigError(f"{twice[0]!r} is in grid and in zip: keep one")
    lengths = {name: len(values) for name, values in zipped.items()}
    if len(set(lengths.values())) > 1:
        raise ConfigError(f"lists in zip must be equally long, got {lengths}")
    rows = [dict(zip(zipped, values, strict=True)) for values in zip(*zipped.values(), strict=True)]
    return rows or [{}]


def _product(grid: Axes, rows: list[dict[str, Any]]) -> list[dict[str, Any]]:
    count = len(rows) * math.prod(len(values) for values in grid.values())
    if count > MAX_POINTS:
        raise ConfigError(f"the grid has {count} points, at most {MAX_POINTS} are allowed")
    combinations = [dict(zip(grid, values, strict=True)) for values in itertools.product(*grid.values())]
    return [{**combination, **row} for combination in combinations for row in rows]


def _ablations(ablate: Ablation | None) -> list[tuple[dict[str, Any], str]]:
    """(overrides, name) of every combination of components."""
    if ablate is None:
        return [({}, "")]
    names = list(ablate.components)
    chosen = [set(names) - off for off in _subsets(names, 1)] if ablate.mode == "minus_one" else []
    sizes = {"full": len(names), "plus_one": 1, "pairs": 2, "minus_one": -1}[ablate.mode]
    chosen += list(_subsets(names, sizes))
    return [(_switched(ablate, on), _combination_name(names, on, ablate.mode)) for on in chosen]


def _subsets(names: list[str], largest: int) -> list[set[str]]:
    sizes = range(min(largest, len(names)) + 1)
    return [set(subset) for size in sizes for subset in itertools.combinations(names, size)]


def _switched(ablate: Ablation, on: set[str]) -> dict[str, Any]:
    overrides: dict[str, Any] = {}
    for name, component in ablate.components.items():
        overrides.update(component.on if name in on else component.off)
    return overrides


def _combination_name(names: list[str], on: set[str], mode: str) -> str:
    if len(on) == len(names):
        return "all"
    if mode == "minus_one":
        return "".join(f"-{name}" for name in names if name not in on)
    return "".join(f"+{name}" for name in names if name in on) or "none"


def _matches(settings: Mapping[str, Any], rule: Mapping[str, Any]) -> bool:
    """All of the rule's values are the point's; a list in a rule means any of its values."""
    return bool(rule) and all(
        name in settings and settings[name] in (value if isinstance(value, list) else [value])
        for name, value in rule.items()
    )


def _included(entry: Mapping[str, Any]) -> list[Point]:
    grid = entry.get("grid", {})
    if not (isinstance(grid, dict) and all(isinstance(values, list) and values for values in grid.values())):
        raise ConfigError(f"include: grid must map names to lists of values, got {grid!r:.60}")
    single = {name: value for name, value in entry.items() if name != "grid"}
    return [Point(settings, frozenset(single)) for settings in _product(grid, [single])]
