"""The command: pages are served before the runs of long plans are found, and not where a plan cannot be used."""

from __future__ import annotations

import json
import subprocess
from pathlib import Path
from typing import Any, Self

import pytest

pytest.importorskip("streamlit", reason="the extra `dashboard` is not installed")

from experiments import cli_dashboard
from experiments.plan import load_plan
from robuq.config import ConfigError


class Server:
    """Serves nothing, and looks at what the pages are told when it starts and while it runs."""

    told: list[dict[str, Any]]
    killed: int

    def __init__(self, words: list[str], env: dict[str, str]) -> None:
        Server.told, Server.killed = [], 0
        self._file = Path(env[cli_dashboard.VARIABLE])
        self._look()

    def _look(self) -> None:
        Server.told.append(json.loads(self._file.read_text()))
        assert [file.name for file in self._file.parent.iterdir()] == ["settings.json"]

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        """It has ended."""

    def wait(self) -> int:
        self._look()
        return 0

    def kill(self) -> None:
        Server.killed += 1


@pytest.fixture(autouse=True)
def server(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(subprocess, "Popen", Server)


def test_pages_are_served_before_the_runs_are_found(plans: Path, tmp_path: Path) -> None:
    file = plans / "tiny.yaml"
    cli_dashboard.dashboard(output=tmp_path, plan=[str(file)], settings=["seeds=5"], port=8501, tracking_uri=None)
    first, last = Server.told
    assert first["plans"]["tiny"] == {"description": "Two seeds of two variants.", "runs": None}
    assert {**first, "plans": {}} == {**last, "plans": {}}
    assert first["made_by"]["tiny"] == f"sweep {file} --set seeds=5"
    runs = load_plan(file, ["seeds=5"]).runs
    assert [run["key"] for run in last["plans"]["tiny"]["runs"]] == [run.key() for run in runs]


def test_runs_are_those_of_the_command_plan(plans: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    from one_command import robuq

    assert robuq("plan", plans / "tiny.yaml", "--output", tmp_path, "--json") == 0
    printed = json.loads(capsys.readouterr().out)["runs"]
    told = cli_dashboard.dashboard_data(tmp_path, [("tiny.yaml", load_plan(plans / "tiny.yaml"))], None)["plans"][
        "tiny"
    ]["runs"]
    for run, own in zip(printed, told, strict=True):
        stages = {kind: {"key": stage["key"]} for kind, stage in run["stages"].items()}
        assert own == {**{name: run[name] for name in ("key", "variant", "label", "seed")}, "stages": stages}


def test_a_plan_that_cannot_be_used_ends_the_command(plans: Path, tmp_path: Path) -> None:
    """One that is wrong, before anything is served; one whose data are missing, with the server."""
    Server.told = []
    with pytest.raises(ConfigError, match="no plan 'nothing'"):
        cli_dashboard.dashboard(output=tmp_path, plan=["nothing"], settings=None, port=8501, tracking_uri=None)
    assert Server.told == []
    missing = [f"data.path={tmp_path / 'nowhere'}", "data.name=image_folder"]
    with pytest.raises(ConfigError):
        cli_dashboard.dashboard(
            output=tmp_path, plan=[str(plans / "tiny.yaml")], settings=missing, port=8501, tracking_uri=None
        )
    assert len(Server.told) == Server.killed == 1
