"""YAML that people write: YAML 1.2's scalars, one line for every mistake."""

from __future__ import annotations

import math
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from experiments.plan import PLANS, build_plan, load_plan, packaged_plans
from experiments.plan_yaml import MAX_CHARACTERS, read_yaml
from robuq.config import ConfigError


@pytest.mark.parametrize(
    ("text", "value"),
    [
        ("1e-3", 1e-3),
        ("1E3", 1e3),
        ("-.5", -0.5),
        ("5.", 5.0),
        ("0", 0),
        ("-12", -12),
        ("on", "on"),
        ("no", "no"),
        ("true", True),
        ("null", None),
        ("", None),
        ("~", None),
        ("12:30:45", "12:30:45"),  # not base 60
        ("2026-01-01", "2026-01-01"),  # not a date
        ("007", 7),  # not base 8
        (".nan", ".nan"),
        ("'1'", "1"),
        ("[1, a, 2.5]", [1, "a", 2.5]),
        ("{on: 1, off: {x: null}}", {"on": 1, "off": {"x": None}}),
    ],
)
def test_scalars_are_those_of_yaml_1_2(text: str, value: Any) -> None:
    read = read_yaml(text, "x")
    assert read == value
    assert type(read) is type(value)


BOMB = "a: &a [x,x]\nb: &b [*a,*a]\nc: [*b,*b]\n"


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("a: 1\nb: 2\na: 3", "x: line 3: key 'a' is repeated"),
        ("a: {b: 1, b: 2}", "x: line 1: key 'b' is repeated"),
        (BOMB, "x: line 1: anchors and aliases"),
        ("a: !!python/object/apply:os.system [ls]", "x: line 1: tags"),
        ("a: !!binary aGk=", "x: line 1: tags"),
        ("3: a", "x: line 1: a key must be a text"),
        ("? [a]\n: b", "x: line 1: a key must be a text"),
        ("a: [1, 2", "x: line 1:"),
        ("a: b: c", "x: line 1:"),
        ("a: 1\n---\nb: 2", "x: line 2:"),
        ("a: \x00", "x: "),
        ("[" * 100 + "]" * 100, "x: line 1: nested deeper"),
        ("1" * 5000, "x: "),
        ("a" * (MAX_CHARACTERS + 1), "x: "),
    ],
)
def test_mistakes_are_one_line(text: str, message: str) -> None:
    with pytest.raises(ConfigError) as caught:
        read_yaml(text, "x")
    assert str(caught.value).startswith(message)
    assert "\n" not in str(caught.value)
    assert len(str(caught.value)) < 400


def test_the_merge_key_is_a_key_like_any_other() -> None:
    assert read_yaml("a: {<<: {b: 1}}", "x") == {"a": {"<<": {"b": 1}}}


def data_or_one_line(read: Callable[[], Any]) -> Any:
    """What is read, or None after a ConfigError of one line; any other exception is a bug."""
    try:
        return read()
    except ConfigError as error:
        message = str(error)
    assert message
    assert "\n" not in message
    return None


@settings(deadline=None)
@given(st.text(alphabet=st.sampled_from(list("ab01.:-#{}[],&*!|>'\"%@`?~ \n\t\\é\u2028")), max_size=60))
def test_any_text_is_data_or_a_config_error(text: str) -> None:
    data_or_one_line(lambda: read_yaml(text, "x"))


def test_a_number_that_overflows_is_refused_by_the_plan() -> None:
    assert math.isinf(read_yaml("1e999", "x"))
    with pytest.raises(ConfigError, match=r"train.lr: got inf, a finite number is needed"):
        build_plan({"name": "x", "base": {"variant": "minmax", "train.lr": math.inf}})


KEYS = ["variant", "act_bits", "train.lr", "train", "steps", "block_linears.act.bits", "block_linears", "model", "on",
        "off", "mode", "components", "baseline", "seed", "a.b.c", "", ".", "precision.qkv", "grid", "name"]  # fmt: skip
plain = st.recursive(
    st.none() | st.booleans() | st.integers(-3, 10) | st.floats() | st.sampled_from(["minmax", "x", "", "train.lr"]),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.sampled_from(KEYS), inner, max_size=3),
    max_leaves=8,
)
FIELDS = ["name", "description", "preset", "base", "grid", "zip", "include", "exclude", "ablate", "seeds",
          "pretrain_seeds", "report", "sedes"]  # fmt: skip


@settings(deadline=None)
@given(st.dictionaries(st.sampled_from(FIELDS), plain, max_size=5), st.dictionaries(st.sampled_from(KEYS), plain))
def test_any_content_is_a_plan_or_a_config_error(content: dict[str, Any], forced: dict[str, Any]) -> None:
    plan = data_or_one_line(lambda: build_plan({"name": "x", "base": {"variant": "minmax"}, **content}, forced))
    assert plan is None or len({run.key() for run in plan.runs}) == len(plan.runs) > 0


@settings(deadline=None)
@given(st.data())
def test_a_shipped_plan_with_a_damaged_line_is_a_plan_or_a_config_error(data: st.DataObject) -> None:
    lines = (PLANS / "smoke.yaml").read_text().splitlines()
    place = data.draw(st.integers(0, len(lines) - 1))
    line = lines[place]
    cut = data.draw(st.integers(0, len(line)))
    lines[place] = line[:cut] + data.draw(st.sampled_from(["", ":", "[", "}", "x", " ", "- ", "9", "#"])) + line[cut:]
    content = data_or_one_line(lambda: read_yaml("\n".join(lines), "x"))
    data_or_one_line(lambda: build_plan(content if isinstance(content, dict) else {}))


@pytest.mark.parametrize("content", [b"\xff\xfe\x00", b"", b"- a", b"name"])
def test_files_that_are_no_plan(tmp_path: Path, content: bytes) -> None:
    file = tmp_path / "bad.yaml"
    file.write_bytes(content)
    with pytest.raises(ConfigError, match=r"^bad\.yaml: "):
        load_plan(file)


def test_an_unknown_plan_names_the_closest() -> None:
    with pytest.raises(ConfigError, match="no plan 'smok' - did you mean 'smoke'"):
        load_plan("smok")
    assert "smoke" in packaged_plans()
