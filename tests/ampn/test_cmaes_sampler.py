"""CMA-ES with a state of numbers: it draws what Optuna's own does, and takes nothing else than such a state."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from optuna.samplers import CmaEsSampler
from test_search import open_search, proposals

from robuq.ampn.search import BitSearch, Proposal, samplers
from robuq.config import ConfigError

STATE = "cmawm:optimizer:"
Record = dict[str, Any]


def asked(space: str) -> list[Proposal]:
    return list(proposals(open_search(sampler="cmaes", space=space, evaluations=70)))


@pytest.mark.parametrize("space", ["policy", "layer"])  # without whole numbers, and of nothing else
def test_it_draws_what_optunas_own_draws(space: str, monkeypatch: pytest.MonkeyPatch) -> None:
    ours = asked(space)
    monkeypatch.setitem(samplers.SAMPLERS, "cmaes", (CmaEsSampler, samplers.SAMPLERS["cmaes"][1]))
    assert asked(space) == ours


# --- studies that no search wrote -----------------------------------------------------------------------------------


def state(change: Callable[[Record], object]) -> Callable[[Record], None]:
    """A change of every state."""

    def changed(attributes: Record) -> None:
        names = sorted(name for name in attributes if name.startswith(STATE))
        if names:
            content = json.loads("".join(attributes.pop(name) for name in names))
            change(content)
            attributes[f"{STATE}0"] = json.dumps(content)

    return changed


def attribute(name: str, value: object) -> Callable[[Record], None]:
    def changed(attributes: Record) -> None:
        if name in attributes:
            attributes[name] = value

    return changed


CHANGES: dict[str, tuple[Callable[[Record], None], str]] = {
    "another type": (attribute(f"{STATE}0", 7), "study's state of CMA-ES is not as"),
    "no JSON": (attribute(f"{STATE}0", "80049526"), "study's state of CMA-ES is not as a search writes it"),
    "a part less": (lambda attributes: attributes.pop(f"{STATE}0", None), "study's state of CMA-ES"),
    "a field less": (state(lambda content: content.pop("mean")), r"mean: field required"),
    "a field more": (state(lambda content: content.update(rng=1)), r"unknown key 'rng'"),
    "no number": (state(lambda content: content.update(step_size="1")), "step_size"),
    "not finite": (state(lambda content: content.update(step_size=float("nan"))), "finite number"),
    "of fewer parameters": (state(lambda content: content["mean"].pop()), "it is not of 12 parameters"),
    "of another space": (state(lambda content: content.update(stretch=None)), "it is of another space"),
    "a point of text": (attribute("x_for_tell", ["a"] * 12), r"trials do not fit CMA-ES \(\w+\)"),
    "a point far away": (attribute("x_for_tell", [1e300] * 12), r"trials do not fit CMA-ES \(AssertionError\)"),
    "a point that is none": (attribute("x_for_tell", [[1.0], [1.0, 2.0]]), r"trials do not fit CMA-ES \(ValueError\)"),
}


@pytest.mark.parametrize("name", CHANGES)
def test_a_study_that_somebody_changed_is_refused_in_one_line(name: str, tmp_path: Path) -> None:
    change, message = CHANGES[name]
    records = [json.loads(line) for line in written(tmp_path / "whole").splitlines()]
    for record in records:
        change(record.get("system_attrs") or {})
    (journal := tmp_path / "changed").write_text("".join(json.dumps(record) + "\n" for record in records))
    search = opened(journal)
    with pytest.raises(ConfigError, match=message) as caught:
        list(proposals(search))
    assert str(caught.value).endswith(": restore the study, or search anew under another name")
    assert "\n" not in str(caught.value)


def opened(journal: Path, evaluations: int = 100) -> BitSearch:
    return open_search(journal, sampler="cmaes", space="layer", evaluations=evaluations)


def written(journal: Path) -> str:
    """A study with some generations, of which each state needs several parts."""
    list(proposals(opened(journal, 40)))
    text = journal.read_text()
    assert f"{STATE}1" in text
    return text
