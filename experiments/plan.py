"""A plan: YAML in, a deterministic list of runs out.

    name: example                      # also the tracking experiment
    description: What the table shows.
    preset: digits                     # data, model and training to start from
    base: {train.steps: 300}           # overrides for every run, dotted or nested
    grid: {variant: [minmax, baseline], act_bits: [4, 2]}    # product
    zip: {train.lr: [1e-3, 2e-3], train.steps: [600, 300]}   # in lockstep; product with grid
    include: [{variant: full_precision}]                     # extra rows; may have a `grid` and a `name`
    exclude: [{variant: minmax, act_bits: 4}]
    ablate: {mode: minus_one, components: {rotation: {on: {...}, off: {...}}}}
    seeds: [0, 1, 2]
    pretrain_seeds: [0, 1]             # seed s starts from pretrain_seeds[s % 2]; default: from seed s
    report: {baseline: baseline}

`variant` and `act_bits` choose the precision map (robuq.variants) and, for variants with AMPN, the budget; overrides
apply after it.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from os.path import isfile  # unlike Path's, it takes names that no file can have
from pathlib import Path
from typing import Annotated, Any

from pydantic import AfterValidator, Field

from experiments.overrides import apply_override, parse_settings
from experiments.plan_yaml import read_mapping
from experiments.points import MACROS, MAX_POINTS, Ablation, Axes, Point, expand
from experiments.presets import SENSITIVITY, preset
from robuq.config import Config, ConfigError, RunConfig, did_you_mean
from robuq.config.base import Seed
from robuq.config.run import MAX_NAME
from robuq.messages import lines_shown_as_written
from robuq.variants import ampn, variant

PLANS = Path(__file__).parent / "plans"
DEFAULT_ACT_BITS = 2
MAX_ENTRIES = 1000  # of include, and of exclude
SINGLE = "single"  # the plan of runs that no plan asked for
LISTS = ("seeds", "pretrain_seeds", "grid", "zip")  # a single value given for these is a list of one

Description = Annotated[str, Field(max_length=20_000), AfterValidator(lines_shown_as_written)]
Seeds = Annotated[list[Seed], Field(min_length=1, max_length=MAX_POINTS)]
Entries = Annotated[list[dict[str, Any]], Field(max_length=MAX_ENTRIES)]


class ReportSettings(Config):
    """What the report compares with: a variant's display name."""

    baseline: str = "baseline"


class PlanFile(Config):
    """The file's content, before it is expanded."""

    name: Annotated[str, Field(pattern=r"^[A-Za-z0-9][A-Za-z0-9_-]{0,63}$")]
    description: Description = ""
    preset: str = "digits"
    base: dict[str, Any] = {}
    grid: Axes = {}
    zip: Axes = {}
    include: Entries = []
    exclude: Entries = []
    ablate: Ablation | None = None
    seeds: Seeds = [0]
    pretrain_seeds: Seeds | None = None
    report: ReportSettings = ReportSettings()


@dataclass(frozen=True)
class Plan:
    """`runs` have unique keys; all rows with the first seed come first, so that a part of them is a table too."""

    name: str
    description: str
    runs: tuple[RunConfig, ...]
    report: ReportSettings


def packaged_plans() -> list[str]:
    return sorted(file.stem for file in PLANS.glob("*.yaml"))


def find_plan(file: str | Path) -> Path:
    """A path, or the bare name of a packaged plan.

    Raises:
        ConfigError: there is no such file.
    """
    path = Path(file)
    if isfile(path):
        return path
    packaged = PLANS / f"{path.stem}.yaml"
    if path.suffix in ("", ".yaml") and len(path.parts) == 1 and isfile(packaged):
        return packaged
    raise ConfigError(f"no plan {str(file)!r:.200}{did_you_mean(path.stem[:MAX_NAME], packaged_plans())}")


def load_plan(file: str | Path, overrides: Sequence[str] | Mapping[str, Any] = ()) -> Plan:
    """Read, validate and expand a plan. `overrides`: `["train.steps=2000"]` or `{"train.steps": 2000}`.

    Raises:
        ConfigError: one line with the file's name.
    """
    path = find_plan(file)
    forced = dict(overrides) if isinstance(overrides, Mapping) else parse_settings(list(overrides))
    content = read_mapping(path, "a plan")
    try:
        return build_plan(content, forced)
    except ConfigError as error:
        text = str(error)
        raise ConfigError(text if text.startswith(path.name) else f"{path.name}: {text}") from None


def build_plan(content: Mapping[str, Any], forced: Mapping[str, Any] | None = None) -> Plan:
    """The plan in plain data; `forced` are overrides that win over everything in it.

    Raises:
        ConfigError: one line.
    """
    changed, run_overrides = _with_forced(content, forced or {})
    plan = PlanFile.parse(changed)
    points = expand(plan.grid, plan.zip, plan.ablate, plan.include, plan.exclude)
    if len(points) * len(plan.seeds) > MAX_POINTS:
        raise ConfigError(f"{len(points)} points x {len(plan.seeds)} seeds are more than {MAX_POINTS} runs")
    rows = [_row(plan, point, run_overrides) for point in points]
    runs = [row.with_seeds(seed, _pretrain_seed(plan, seed)) for seed in plan.seeds for row in rows]
    found = _distinct(runs)
    if _names_a_baseline(plan, forced or {}):
        _check_baseline(plan.report.baseline, found)
    return Plan(plan.name, plan.description, found, plan.report)


def single_run(name: str, act_bits: int, preset_name: str, seed: int, forced: Mapping[str, Any]) -> RunConfig:
    """One run of a variant, as a plan of one row would make it.

    Raises:
        ConfigError: one line.
    """
    content = {
        "name": SINGLE,
        "preset": preset_name,
        "base": {"variant": name, "act_bits": act_bits},
        "seeds": [seed],
    }
    runs = build_plan(content, forced).runs
    if len(runs) > 1:
        raise ConfigError(f"these settings make {len(runs)} runs, not one: give one value each, or write a plan")
    return runs[0]


def _names_a_baseline(plan: PlanFile, forced: Mapping[str, Any]) -> bool:
    """Of the rows that the plan has now: forced settings may leave the file's baseline out, or give it another name."""
    own = [name for name in forced if name.partition(".")[0] == "report"]
    return "baseline" in plan.report.model_fields_set and bool(own or not forced)


def _check_baseline(baseline: str, runs: Sequence[RunConfig]) -> None:
    rows = sorted({run.variant for run in runs})
    if baseline not in rows:
        raise ConfigError(f"report.baseline: no row {baseline!r:.200}{did_you_mean(baseline[:MAX_NAME], rows)}")


def _with_forced(content: Mapping[str, Any], forced: Mapping[str, Any]) -> tuple[dict[str, Any], dict[str, Any]]:
    """(the plan's content with command-line settings in it, settings that apply to each run last)."""
    changed = dict(content)
    run_overrides: dict[str, Any] = {}
    for name, value in forced.items():
        first, _, rest = name.partition(".")
        if first in PlanFile.model_fields:
            value = [value] if first in LISTS and not isinstance(value, list) else value
            changed[first] = {**_mapping(changed, first), rest: value} if rest else value
        elif isinstance(value, list):
            changed = _with_axis(changed, name, value)
        else:
            changed = _with_constant(changed, name, value)
            run_overrides[name] = value
    return changed, run_overrides


def _mapping(content: Mapping[str, Any], name: str) -> dict[str, Any]:
    value = content.get(name) or {}
    if not isinstance(value, dict):
        raise ConfigError(f"{name}: a mapping is needed, got {value!r:.60}")
    return value


def _with_axis(content: dict[str, Any], name: str, values: list[Any]) -> dict[str, Any]:
    """Several values for one setting: the grid's axis if it has that one, else a new axis for every row."""
    grid, zipped = _mapping(content, "grid"), _mapping(content, "zip")
    changed = {**content, "grid": {**grid, name: values}, "zip": {k: v for k, v in zipped.items() if k != name}}
    include = content.get("include") or []
    if name not in grid and isinstance(include, list):
        changed["include"] = [_entry_with_axis(entry, name, values) for entry in include]
    return changed


def _entry_with_axis(entry: Any, name: str, values: list[Any]) -> Any:
    if not isinstance(entry, dict) or name in entry or name in _mapping(entry, "grid"):
        return entry
    return {**entry, "grid": {**_mapping(entry, "grid"), name: values}}


def _with_constant(content: dict[str, Any], name: str, value: Any) -> dict[str, Any]:
    """An axis of that name keeps its place in the rows' names, with one value."""
    grid, zipped = _mapping(content, "grid"), _mapping(content, "zip")
    changed = {**content}
    if name in grid:
        changed["grid"] = {**grid, name: [value]}
    if isinstance(zipped.get(name), list):
        changed["zip"] = {**zipped, name: [value] * len(zipped[name])}
    return changed


def _row(plan: PlanFile, point: Point, forced: Mapping[str, Any]) -> RunConfig:
    """The configuration of one point, before its seeds."""
    layers = (plan.base, point.settings, point.ablation, forced)
    macros = {name: layer[name] for layer in layers for name in MACROS if name in layer}
    name, act_bits = _checked(macros)
    display = point.display_name(name)
    try:
        values = _start(plan.preset, display, name, act_bits)
        for layer in layers:
            for key, value in layer.items():
                if key not in MACROS:
                    apply_override(values, key, value)
        return RunConfig.parse(values)
    except ConfigError as error:
        raise ConfigError(f"{display}: {error}") from None


def _start(preset_name: str, display: str, name: str, act_bits: int) -> dict[str, Any]:
    values = {"variant": display, **preset(preset_name)}
    start: dict[str, Any] = RunConfig.parse(values).model_dump(mode="json")
    start["precision"] = _precision(name, act_bits)
    start["ampn"] = _ampn(preset_name, name, act_bits)
    return start


def _ampn(preset_name: str, name: str, act_bits: int) -> dict[str, Any] | None:
    config = ampn(name, act_bits)
    if config is None:
        return None
    measured = config.sensitivity.updated(**SENSITIVITY.get(preset_name, {}))
    data: dict[str, Any] = config.updated(sensitivity=measured).model_dump(mode="json")
    return data


def _precision(name: str, act_bits: int) -> dict[str, Any]:
    try:
        data: dict[str, Any] = variant(name, act_bits).model_dump(mode="json")
    except ConfigError:
        raise
    except ValueError:
        raise ConfigError(f"act_bits must be from 1 to 8, got {act_bits}") from None
    return data


def _checked(macros: Mapping[str, Any]) -> tuple[str, int]:
    name, act_bits = macros.get("variant"), macros.get("act_bits", DEFAULT_ACT_BITS)
    if not isinstance(name, str):
        raise ConfigError(f"each row needs a variant's name (in grid, zip, include or base), got {name!r:.60}")
    if isinstance(act_bits, bool) or not isinstance(act_bits, int):
        raise ConfigError(f"act_bits must be a whole number from 1 to 8, got {act_bits!r:.60}")
    return name, act_bits


def _pretrain_seed(plan: PlanFile, seed: int) -> int:
    return plan.pretrain_seeds[seed % len(plan.pretrain_seeds)] if plan.pretrain_seeds else seed


def _distinct(runs: list[RunConfig]) -> tuple[RunConfig, ...]:
    """Points that differ in their name alone are one run; two runs never share name, label, seed and learning rate."""
    if not runs:
        raise ConfigError("the plan has no runs: exclude leaves none")
    by_key: dict[str, RunConfig] = {}
    for run in runs:
        by_key.setdefault(run.key(), run)
    names = Counter(f"{run.variant} {run.label} seed {run.seed} lr {run.train.lr:g}" for run in by_key.values())
    name, count = names.most_common(1)[0]
    if count > 1:
        raise ConfigError(f"{count} different runs are called {name!r}: give each a name of its own")
    return tuple(by_key.values())
