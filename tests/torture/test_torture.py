"""The short form of the torture: a few kills, seeded. `make torture N=...` does hundreds."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest
from torture import FAULTS, OF_SEARCHES, Commands, Torture, spawned


@pytest.fixture(scope="module")
def torture(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Torture]:
    folder = tmp_path_factory.mktemp("torture")
    with spawned(folder / "commands.log") as commands:
        yield Torture(folder, 0, commands)


@pytest.mark.slow
@pytest.mark.parametrize(("verb", "kills"), [("sweep", 2), ("search", 2)])
def test_killed_commands_end_as_undisturbed_ones(torture: Torture, verb: str, kills: int) -> None:
    assert torture.round(0, verb, kills) == []


@pytest.mark.slow
def test_a_fault_is_a_real_kill(torture: Torture, tmp_path: Path) -> None:
    commands: Commands = torture.commands
    fault = {"name": "result.json", "nth": 1, "delay": 0.0}
    assert commands(*torture.words("sweep", tmp_path), fault=fault) == -9
    assert not list(tmp_path.glob("stages/*/*/result.json"))


def test_every_fault_names_a_file_that_commands_write() -> None:
    assert all(most > 0 and delay >= 0 and name for name, most, delay in (*FAULTS.values(), *OF_SEARCHES.values()))
