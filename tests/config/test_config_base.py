"""What every configuration value does: strict, frozen, equal by content, and one line for each mistake."""

from __future__ import annotations

import json
import math
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st
from pydantic import ValidationError

from robuq.config import ConfigError, RunConfig, TrainConfig, did_you_mean
from robuq.config.base import Config


class Leaf(Config):
    size: int = 1
    rate: float = 0.5
    name: str | None = None


class Tree(Config):
    leaf: Leaf = Leaf()
    other: Leaf | None = None
    leaves: list[Leaf] = []


leaves = st.builds(
    Leaf,
    size=st.integers(-(2**53), 2**53),
    rate=st.floats(allow_nan=False, allow_infinity=False),
    name=st.none() | st.text(),
)
trees = st.builds(Tree, leaf=leaves, other=st.none() | leaves, leaves=st.lists(leaves, max_size=3))


@given(trees)
def test_json_round_trip_is_exact(tree: Tree) -> None:
    again = Tree.parse(json.loads(tree.to_json()))
    assert again == tree
    assert again.to_json() == tree.to_json()
    assert again.digest() == tree.digest()


@given(trees, trees)
def test_digests_are_equal_exactly_for_equal_values(one: Tree, other: Tree) -> None:
    assert (one.digest() == other.digest()) == (one.to_json() == other.to_json())


def test_canonical_json_has_sorted_keys_and_no_space() -> None:
    assert Leaf().to_json() == '{"name":null,"rate":0.5,"size":1}'
    assert len(Leaf().digest()) == 64


def test_values_are_frozen_and_usable_as_keys() -> None:
    leaf = Leaf()
    with pytest.raises(ValidationError, match="frozen"):
        leaf.size = 2  # type: ignore[misc]
    assert {leaf: 1}[Leaf()] == 1


def test_updated_is_validated_and_leaves_the_original() -> None:
    tree = Tree(other=Leaf(size=3))
    assert tree.updated(leaf=Leaf(size=7)) == Tree(leaf=Leaf(size=7), other=Leaf(size=3))
    assert tree.updated(other=None) == Tree()
    assert tree == Tree(other=Leaf(size=3))
    with pytest.raises(ConfigError, match="unknown key 'leef' - did you mean 'leaf'"):
        tree.updated(leef=Leaf())
    with pytest.raises(ConfigError, match="size: input should be a valid integer"):
        Leaf().updated(size="2")


@pytest.mark.parametrize(
    ("values", "message"),
    [
        ({"leef": {}}, "unknown key 'leef' - did you mean 'leaf'?"),
        ({"leaf": {"sise": 1}}, "unknown key 'leaf.sise' - did you mean 'size'?"),
        ({"other": {"nam": "x"}}, "unknown key 'other.nam' - did you mean 'name'?"),
        ({"leaf": {"zzz": 1}}, "unknown key 'leaf.zzz' - allowed: name, rate, size"),
        ({"leaf": {"size": 1.5}}, "leaf.size: input should be a valid integer, got 1.5"),
        ({"leaf": {"size": "1"}}, "leaf.size: input should be a valid integer, got '1'"),
        ({"leaf": {"size": True}}, "leaf.size: input should be a valid integer, got True"),
        ({"leaf": {"size": "x" * 90}}, f"got '{'x' * 56}..."),
        ({"leaves": [{}, {"rate": None}]}, "leaves.1.rate: input should be a valid number, got None"),
        ({"leaf": {"size": "a", "rate": "b"}}, "(and 1 more)"),
        ({"leaf": 3}, "leaf: input should be an object, got 3"),
        ({"leaf": {"rate": math.nan}}, "leaf.rate: got nan, a finite number is needed"),
        ({"leaf": {1, 2}}, "leaf: got a set, plain data is needed"),
    ],
)
def test_mistakes_are_one_line(values: dict[str, Any], message: str) -> None:
    with pytest.raises(ConfigError) as caught:
        Tree.parse(values)
    assert message in str(caught.value)
    assert "\n" not in str(caught.value)


def test_where_comes_first() -> None:
    with pytest.raises(ConfigError, match=r"^file\.yaml\.leaf\.size: "):
        Tree.parse({"leaf": {"size": "1"}}, "file.yaml")
    with pytest.raises(ConfigError, match=r"^unknown key 'train\.stepz' - did you mean 'steps'"):
        TrainConfig.parse({"stepz": 1}, "train")


def test_unknown_keys_deep_in_a_run_are_found() -> None:
    with pytest.raises(ConfigError, match=r"unknown key 'precision\.qkv\.act\.bitz' - did you mean 'bits'"):
        RunConfig.parse({"variant": "x", "precision": {"qkv": {"act": {"bits": 2, "bitz": 3}}}})


def test_suggestions() -> None:
    assert did_you_mean("baselin", ["minmax", "baseline"]) == " - did you mean 'baseline'?"
    assert did_you_mean("zzz", ["minmax", "baseline"]) == " - allowed: minmax, baseline"
