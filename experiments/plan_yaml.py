"""Reading YAML that people write: plain data only, and one clear line for whatever is wrong with it.

YAML 1.2's core rules: `1e-3` is a number, `on` and `off` are words. Anchors, aliases and tags are refused (no
plan needs them, and nested aliases grow without bound), and so are repeated keys.
"""

from __future__ import annotations

import re
from pathlib import Path
from typing import Any

import yaml

from robuq.config import ConfigError

MAX_CHARACTERS = 200_000
MAX_DEPTH = 30
MAX_DIGITS = 400


class _Loader(yaml.SafeLoader):
    """SafeLoader with YAML 1.2's scalars; texts as keys, each once."""

    yaml_implicit_resolvers: dict[str, Any] = {}

    def construct_mapping(self, node: yaml.MappingNode, deep: bool = False) -> dict[Any, Any]:
        seen: set[str] = set()
        for key, _ in node.value:
            if key.tag != "tag:yaml.org,2002:str":
                raise yaml.constructor.ConstructorError(None, None, "a key must be a text", key.start_mark)
            if key.value in seen:
                raise yaml.constructor.ConstructorError(None, None, f"key {key.value!r} is repeated", key.start_mark)
            seen.add(key.value)
        return super().construct_mapping(node, deep=deep)

    def construct_int(self, node: yaml.ScalarNode) -> int:
        if len(node.value) > MAX_DIGITS:
            problem = f"a number of {len(node.value)} digits, at most {MAX_DIGITS} are read"
            raise yaml.constructor.ConstructorError(None, None, problem, node.start_mark)
        return int(node.value)

    def construct_float(self, node: yaml.ScalarNode) -> float:
        return float(node.value)

    def flatten_mapping(self, node: yaml.MappingNode) -> None:
        """`<<` is a key like any other."""


def _resolve(kind: str, pattern: str, first: str) -> None:
    _Loader.add_implicit_resolver(f"tag:yaml.org,2002:{kind}", re.compile(rf"^(?:{pattern})$"), list(first))


_resolve("bool", "true|True|TRUE|false|False|FALSE", "tTfF")
_resolve("null", "~|null|Null|NULL|", "~nN")
_Loader.add_implicit_resolver("tag:yaml.org,2002:null", re.compile(r"^$"), [""])
_resolve("int", r"[-+]?[0-9]+", "-+0123456789")
_resolve("float", r"[-+]?(?:\.[0-9]+|[0-9]+(?:\.[0-9]*)?)(?:[eE][-+]?[0-9]+)?", "-+.0123456789")
_Loader.add_constructor("tag:yaml.org,2002:int", _Loader.construct_int)
_Loader.add_constructor("tag:yaml.org,2002:float", _Loader.construct_float)


def read_mapping(path: Path, what: str) -> dict[str, Any]:
    """Of a file. Raises ConfigError: not readable, not YAML, or no mapping. `what`: "a plan"."""
    try:
        with path.open(encoding="utf-8") as stream:
            text = stream.read(MAX_CHARACTERS + 1)
    except (OSError, UnicodeDecodeError) as error:
        raise ConfigError(f"{path.name}: cannot be read: {error}") from None
    content = read_yaml(text, path.name)
    if not isinstance(content, dict):
        raise ConfigError(f"{path.name}: {what} is a mapping with at least a name, got {type(content).__name__}")
    return content


def read_yaml(text: str, where: str) -> Any:
    """The plain data in `text`.

    Raises:
        ConfigError: one line with `where` and the line number.
    """
    if len(text) > MAX_CHARACTERS:
        raise ConfigError(f"{where}: more than {MAX_CHARACTERS} characters, which is the most that is read")
    try:
        _refuse_the_unneeded(text)
        return yaml.load(text, Loader=_Loader)
    except yaml.MarkedYAMLError as error:
        line = f" line {error.problem_mark.line + 1}:" if error.problem_mark else ""
        raise ConfigError(f"{where}:{line} {_flat(error.problem or str(error))}") from None
    except (yaml.YAMLError, ValueError) as error:
        raise ConfigError(f"{where}: {_flat(str(error))}") from None


def _refuse_the_unneeded(text: str) -> None:
    """Raises ValueError without `where`."""
    depth = 0
    for event in yaml.parse(text, Loader=_Loader):
        line = event.start_mark.line + 1 if event.start_mark else 0
        if getattr(event, "anchor", None):
            raise ValueError(f"line {line}: anchors and aliases are not used in plans; write the value out")
        if tag := getattr(event, "tag", None):
            raise ValueError(f"line {line}: tags ({_flat(str(tag))}) are not used in plans")
        depth += isinstance(event, yaml.CollectionStartEvent) - isinstance(event, yaml.CollectionEndEvent)
        if depth > MAX_DEPTH:
            raise ValueError(f"line {line}: nested deeper than {MAX_DEPTH} levels")


def _flat(text: str) -> str:
    return " ".join(text.split())[:200]
