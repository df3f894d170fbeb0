"""A search's file: YAML in, one run and what to look for out.

    name: example                    # also the tracking experiment
    description: What the search shows.
    preset: digits                   # data, model and training to start from
    base: {variant: robuq, act_bits: 2, train.steps: 300}    # overrides, dotted or nested
    seed: 0                          # of quantization-aware training
    pretrain_seed: 0                 # default: the same as `seed`
    ampn: {budget: {limit: 2, weights: macs}, measure: loss, sensitivity: {warm_up_steps: 100}}
    search: {space: policy, sampler: tpe, evaluations: 40, rungs: [{steps: 0, keep: 0.5}, {steps: 60}]}
    predictors: [{warm_up_steps: 0}, {reference: 8}]         # further sensitivities, to see what they predict
    confirm_longer: true             # also train the exact allocation for as long as the search took

`base` and `ampn` have the names of RunConfig, `search` those of SearchConfig.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from os.path import isfile  # unlike Path's, it takes names that no file can have
from pathlib import Path
from typing import Annotated, Any

from pydantic import Field

from experiments.overrides import apply_override, parse_settings
from experiments.plan import DEFAULT_ACT_BITS, SINGLE, Description, build_plan, find_plan
from experiments.plan_yaml import read_mapping
from experiments.presets import SENSITIVITY
from robuq.config import AmpnConfig, BitAllocation, Budget, Config, ConfigError, RunConfig, SearchConfig, did_you_mean
from robuq.config.base import Seed
from robuq.config.run import MAX_NAME

SEARCHES = Path(__file__).parent / "searches"
DEFAULT_VARIANT = "robuq"
AMPN = "ampn"
LISTS = ("confirm_seeds", "enqueue", "rungs", "objectives")  # a single value given for these is a list of one


class SearchFile(Config):
    """The file's content."""

    name: Annotated[str, Field(pattern=r"^[A-Za-z0-9][A-Za-z0-9_-]{0,63}$")]
    description: Description = ""
    preset: str = "digits"
    base: dict[str, Any] = {}
    seed: Seed = 0
    pretrain_seed: Seed | None = None
    ampn: dict[str, Any] = {}
    search: SearchConfig
    predictors: Annotated[list[dict[str, Any]], Field(max_length=100)] = []
    confirm_longer: bool = False


@dataclass(frozen=True)
class Search:
    """`run` has `ampn`; `predictors` are the same run with other sensitivities."""

    name: str
    description: str
    run: RunConfig
    config: SearchConfig
    predictors: tuple[RunConfig, ...]
    confirm_longer: bool

    def run_with(self, bits: Mapping[str, int], variant: str, **changes: Any) -> RunConfig:
        """The run with these bits in place of AMPN's; `changes` replace its fields."""
        return self.run.updated(variant=variant, ampn=None, allocation=BitAllocation(bits=dict(bits)), **changes)

    def steps(self, steps: int) -> Any:
        """The run's training settings at another length."""
        return self.run.train.updated(steps=steps)


def packaged_searches() -> list[str]:
    return sorted(file.stem for file in SEARCHES.glob("*.yaml"))


def find_search(file: str | Path) -> Path:
    """A path, or the bare name of a packaged search, also as `searches/NAME`.

    Raises:
        ConfigError: there is no such file.
    """
    path = Path(file)
    if isfile(path):
        return path
    packaged = SEARCHES / f"{path.stem}.yaml"
    if path.suffix in ("", ".yaml") and path.parts[:-1] in ((), (SEARCHES.name,)) and isfile(packaged):
        return packaged
    raise ConfigError(f"no search {str(file)!r:.200}{did_you_mean(path.stem[:MAX_NAME], packaged_searches())}")


def is_search(file: str | Path) -> bool:
    """Is this a search, for commands that take plans too? A bare name is a plan's, if there is such a plan."""
    try:
        path = find_plan(file)
    except ConfigError:
        path = SEARCHES / f"{Path(file).stem}.yaml"
        return Path(file).parts[:-1] in ((), (SEARCHES.name,)) and isfile(path)
    return "search" in read_mapping(path, "a plan")


def load_search(file: str | Path, overrides: Sequence[str] = ()) -> Search:
    """Read and validate a search. `overrides`: `["search.evaluations=8", "train.steps=60"]`.

    Raises:
        ConfigError: one line with the file's name.
    """
    path = find_search(file)
    forced = parse_settings(list(overrides))
    content = read_mapping(path, "a search")
    try:
        return build_search(content, forced)
    except ConfigError as error:
        text = str(error)
        raise ConfigError(text if text.startswith(path.name) else f"{path.name}: {text}") from None


def build_search(content: Mapping[str, Any], forced: Mapping[str, Any] | None = None) -> Search:
    """The search in plain data; `forced` are overrides that win over everything in it.

    Raises:
        ConfigError: one line.
    """
    changed, run_overrides = _with_forced(content, forced or {})
    file = SearchFile.parse(changed)
    pretrain_seed = file.seed if file.pretrain_seed is None else file.pretrain_seed
    base = {"variant": DEFAULT_VARIANT, **file.base, **run_overrides}
    run = ampn_run(file.preset, base, file.seed, pretrain_seed, file.ampn)
    predictors = tuple(_with_ampn(run, {f"{AMPN}.sensitivity": other}) for other in file.predictors)
    search = Search(file.name, file.description, run, file.search, predictors, file.confirm_longer)
    _check_rungs(search)
    _check_network(search)
    return search


def ampn_run(
    preset_name: str, base: Mapping[str, Any], seed: int, pretrain_seed: int, ampn: Mapping[str, Any]
) -> RunConfig:
    """One run with AMPN: the variant's own, else the defaults within `act_bits` on average.

    `base`: `variant`, `act_bits` and overrides by dotted name; `ampn`: overrides inside it, over which those of `base`
    win.

    Raises:
        ConfigError: one line.
    """
    inside = {name: value for name, value in base.items() if name.partition(".")[0] == AMPN}
    outside = {name: value for name, value in base.items() if name not in inside}
    plan = {"name": SINGLE, "preset": preset_name, "base": outside, "seeds": [seed], "pretrain_seeds": [pretrain_seed]}
    (run,) = build_plan(plan).runs
    if run.ampn is None:
        start = AmpnConfig(budget=Budget(limit=float(base.get("act_bits", DEFAULT_ACT_BITS))))
        measured = start.sensitivity.updated(**SENSITIVITY.get(preset_name, {}))
        run = run.updated(ampn=start.updated(sensitivity=measured))
    return _with_ampn(run, {**{f"{AMPN}.{name}": value for name, value in ampn.items()}, **inside})


def _with_ampn(run: RunConfig, overrides: Mapping[str, Any]) -> RunConfig:
    values = run.model_dump(mode="json")
    for name, value in overrides.items():
        apply_override(values, name, value)
    return RunConfig.parse(values)


def _with_forced(content: Mapping[str, Any], forced: Mapping[str, Any]) -> tuple[dict[str, Any], dict[str, Any]]:
    """(the file's content with command-line settings in it, settings of the run)."""
    changed = {name: dict(value) if isinstance(value, dict) else value for name, value in content.items()}
    run_overrides: dict[str, Any] = {}
    for name, value in forced.items():
        first, _, rest = name.partition(".")
        if first not in SearchFile.model_fields or first == AMPN:
            run_overrides[name] = value
        elif not rest:
            changed[first] = value
        else:
            changed.setdefault(first, {})
            apply_override(changed, name, [value] if rest in LISTS and not isinstance(value, list) else value)
    return changed, run_overrides


def _check_rungs(search: Search) -> None:
    """Raises ConfigError where a rung's training settings contradict each other."""
    for rung in search.config.rungs:
        if rung.steps:
            search.run.updated(train=search.steps(rung.steps))


def _check_network(search: Search) -> None:
    """Raises ConfigError where the budget cannot be reached. Imported late: it takes a second, and not all that ask
    whether a file is a search go on to it."""
    from experiments.search_problem import check_search

    check_search(search)
