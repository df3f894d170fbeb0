"""The base of every configuration value: frozen, strict, and with errors of one line."""

from __future__ import annotations

import difflib
import hashlib
import json
import math
from collections.abc import Iterable, Mapping
from typing import Annotated, Any, Self

from pydantic import BaseModel, ConfigDict, Field, ValidationError
from pydantic_core import ErrorDetails

from robuq.messages import without_secrets

# Bounds are far above what is of use, and below what no machine can hold or count.
Seed = Annotated[int, Field(ge=0, lt=2**63)]  # what generators take and columns of tables hold
MOST = 10**9  # of what is counted: steps, images
MAX_BATCH = 2**20
MAX_WIDTH = 2**16
MAX_DEPTH = 50  # of plain data inside plain data
MAX_DIGITS = 400


class ConfigError(ValueError):
    """A configuration that cannot be used; the message is one line that says what to change."""


def canonical_json(values: Any) -> str:
    """Of plain data: sorted keys, no white space; equal values give equal text."""
    return json.dumps(values, sort_keys=True, separators=(",", ":"))


def did_you_mean(got: str, allowed: list[str]) -> str:
    """` - did you mean 'x'?` for the closest allowed word, else ` - allowed: ...`."""
    close = difflib.get_close_matches(got, allowed, n=1)
    return f" - did you mean {close[0]!r}?" if close else f" - allowed: {', '.join(allowed)}"


class Config(BaseModel):
    """A frozen value that compares and hashes by content and survives a JSON round trip unchanged."""

    model_config = ConfigDict(frozen=True, extra="forbid", strict=True, allow_inf_nan=False, validate_default=True)

    @classmethod
    def parse(cls, values: Mapping[str, Any], where: str = "") -> Self:
        """Validate plain data (as read from YAML or JSON).

        Raises:
            ConfigError: one line naming the field, what was got and what is allowed.
        """
        try:
            text = json.dumps(values, allow_nan=False)
        except (TypeError, ValueError, RecursionError):
            problem = _not_plain(values, where) or f"{where or cls.__name__}: this is no plain data"
            raise ConfigError(problem) from None
        try:
            return cls.model_validate_json(text)
        except ValidationError as error:
            odd = _not_plain(values, where) if error.errors()[0]["type"] == "json_invalid" else None
            raise ConfigError(odd or _one_line(cls, error, where)) from None

    def to_json(self) -> str:
        """Canonical JSON: sorted keys, no white space; equal values give equal text."""
        return canonical_json(self.model_dump(mode="json"))

    def digest(self) -> str:
        """SHA-256 of the canonical JSON, 64 hex digits."""
        return hashlib.sha256(self.to_json().encode()).hexdigest()

    def updated(self, **changes: Any) -> Self:
        """A validated copy with top-level fields replaced."""
        data = self.model_dump(mode="json")
        for name, value in changes.items():
            data[name] = value.model_dump(mode="json") if isinstance(value, BaseModel) else value
        return self.parse(data)


def _not_plain(values: Any, where: str, depth: int = 0) -> str | None:
    """What of `values` JSON cannot hold, in one line; None where it can hold all."""
    if problem := _no_leaf(values, depth):
        return f"{where or 'this'}: {problem}"
    parts: Iterable[tuple[Any, Any]] = ()
    if isinstance(values, Mapping):
        parts = (*((key, key) for key in values), *values.items())
    elif isinstance(values, list | tuple):
        parts = enumerate(values)
    inner = ((f"{where}.{key}" if where else str(key), part) for key, part in parts)
    return next((problem for name, part in inner if (problem := _not_plain(part, name, depth + 1))), None)


def _no_leaf(value: Any, depth: int) -> str | None:
    if depth > MAX_DEPTH:
        return f"nested deeper than {MAX_DEPTH} levels"
    if isinstance(value, float) and not math.isfinite(value):
        return f"got {value}, a finite number is needed"
    if isinstance(value, int) and abs(value) >= 10**MAX_DIGITS:
        return f"got a number of more than {MAX_DIGITS} digits"
    if isinstance(value, str) and any("\ud800" <= char <= "\udfff" for char in value):
        return f"got {value!r:.60}, which is no text: half a character is in it"
    if value is not None and not isinstance(value, str | int | float | Mapping | list | tuple):
        return f"got a {type(value).__name__}, plain data is needed: numbers, texts, lists and mappings"
    return None


def _one_line(cls: type[BaseModel], error: ValidationError, where: str) -> str:
    first = error.errors()[0]
    path = ".".join(str(part) for part in first["loc"])
    name = ".".join(part for part in (where, path) if part) or cls.__name__
    if first["type"] == "extra_forbidden":
        fields = _fields_at(cls, first["loc"][:-1])
        return f"unknown key {name!r}{did_you_mean(str(first['loc'][-1]), sorted(fields))}"
    message = str(first["ctx"]["error"]) if "error" in first.get("ctx", {}) else first["msg"]
    got = "" if first["type"] in ("missing", "value_error") else f", got {_short(first)}"
    more = f" (and {error.error_count() - 1} more)" if error.error_count() > 1 else ""
    return f"{name}: {message[:1].lower() + message[1:]}{got}{more}"


def _short(error: ErrorDetails) -> str:
    text = without_secrets(repr(error["input"]))
    return text if len(text) <= 60 else text[:57] + "..."


def _fields_at(cls: type[BaseModel], path: tuple[int | str, ...]) -> list[str]:
    """Field names of the model that a location path leads to."""
    model: Any = cls
    for part in path:
        field = getattr(model, "model_fields", {}).get(part)
        if field is None:
            break
        model = _model_in(field.annotation)
    return list(getattr(model, "model_fields", {}))


def _model_in(annotation: Any) -> Any:
    """The configuration class inside `X`, `X | None`, and the like."""
    options = getattr(annotation, "__args__", (annotation,))
    return next((o for o in options if isinstance(o, type) and issubclass(o, BaseModel)), None)
