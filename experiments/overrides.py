"""Overrides of a run's configuration by dotted name: `train.steps`, `precision.fc2.act.bits`.

The prefix `block_linears.` stands for the four roles precision.qkv, .proj, .fc1 and .fc2. A mapping is merged
into what is there, anything else replaces it.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from experiments.plan_yaml import read_yaml
from robuq.config import BLOCK_ROLES, ConfigError, did_you_mean

BLOCK_LINEARS = "block_linears"
OTHER_HOMES = {"seed": "seeds", "pretrain_seed": "pretrain_seeds"}  # set for the whole plan instead


def apply_override(values: dict[str, Any], name: str, value: Any) -> None:
    """Change plain data of a RunConfig in place.

    Raises:
        ConfigError: the name leads nowhere.
    """
    first, *rest = name.split(".")
    if first in OTHER_HOMES:
        raise ConfigError(f"{name!r} is set for the whole plan: use {OTHER_HOMES[first]!r}")
    if first == BLOCK_LINEARS:
        for role in BLOCK_ROLES:
            _assign(values, ["precision", role, *rest], value, name)
    else:
        _assign(values, [first, *rest], value, name)


def _assign(values: dict[str, Any], path: list[str], value: Any, name: str) -> None:
    part: Any = values
    for depth, step in enumerate(path[:-1]):
        if step not in part:
            raise ConfigError(f"unknown key {step!r} in {name!r}{did_you_mean(step, sorted(part))}")
        part = part[step]
        if not isinstance(part, dict):
            raise ConfigError(_no_such_part(part, ".".join(path[: depth + 1]), name, value))
    last, there = path[-1], part.get(path[-1])
    if isinstance(value, Mapping) and isinstance(there, dict):
        for key, inner in value.items():
            _assign(there, [key], inner, f"{name}.{key}")
    else:
        part[last] = _copied(value)


def _no_such_part(part: Any, where: str, name: str, value: Any) -> str:
    if part is not None:
        return f"{name!r}: {where} is {part!r} and has no parts"
    return (
        f"{name!r}={value!r}: this variant has no {where}; set {where} as a whole, "
        "or keep the variant out of the grid (exclude, include)"
    )


def _copied(value: Any) -> Any:
    """Plain data is never shared between runs."""
    return {key: _copied(inner) for key, inner in value.items()} if isinstance(value, Mapping) else value


def parse_settings(texts: list[str]) -> dict[str, Any]:
    """`["train.steps=2000", "seeds=0,1,2"]` -> `{"train.steps": 2000, "seeds": [0, 1, 2]}`, typed as in YAML.

    Raises:
        ConfigError: a text without `=`, or a value that is no YAML.
    """
    settings: dict[str, Any] = {}
    for text in texts:
        name, equals, value = text.partition("=")
        if not (equals and name.strip()):
            raise ConfigError(f"--set {text!r}: write NAME=VALUE, such as train.steps=2000")
        settings[name.strip()] = _typed(value.strip(), f"--set {name.strip()}")
    return settings


def _typed(value: str, where: str) -> Any:
    is_list = "," in value and value[:1] not in "[{'\""
    return read_yaml(f"[{value}]" if is_list else value, where)
