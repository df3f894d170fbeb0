"""Really recorded runs and a search, once for all pages, and what a page is told of them."""

from __future__ import annotations

import json
from collections.abc import Callable, Sequence
from pathlib import Path

import pytest
from one_command import robuq

from experiments.cli_dashboard import VARIABLE, dashboard_data
from experiments.plan import load_plan

PLAN = """
name: tiny
description: Two seeds of two variants.
preset: nano
grid: {variant: [baseline, robuq]}
seeds: [0, 1]
pretrain_seeds: [0]
"""
FAILING = """
name: broken
description: Too little data, and a step that is too long.
preset: nano
base: {train.lr: 1.0, train.clip_norm: 1.0e+30, data.limit: 3}
grid: {variant: [minmax]}
seeds: [0]
pretrain_seeds: [0]
"""
Tell = Callable[..., None]


@pytest.fixture(scope="session")
def plans(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with tiny.yaml and broken.yaml."""
    folder = tmp_path_factory.mktemp("plans")
    (folder / "tiny.yaml").write_text(PLAN)
    (folder / "broken.yaml").write_text(FAILING)
    return folder


@pytest.fixture(scope="session")
def recorded(tmp_path_factory: pytest.TempPathFactory, plans: Path) -> Path:
    """An output folder with a finished plan, one whose run failed, and a search."""
    folder = tmp_path_factory.mktemp("recorded")
    local = ("--executor", "local", "--output", folder)
    assert robuq("sweep", plans / "tiny.yaml", *local) == 0
    assert robuq("sweep", plans / "broken.yaml", *local) == 1
    few = ("search.evaluations=3", "search.enqueue=uniform,exact", "search.confirm_seeds=[]")
    assert robuq("search", "smoke", *local, *(word for name in few for word in ("--set", name))) == 0
    return folder


@pytest.fixture
def tell(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Tell:
    """Tells the app of an output folder and of the plans that are watched."""

    def told(folder: Path, *plans: Path, settings: Sequence[str] = (), with_runs: bool = True) -> None:
        file = tmp_path / "settings.json"
        watched = [(str(plan), load_plan(plan, settings)) for plan in plans]
        file.write_text(json.dumps(dashboard_data(folder, watched, None, settings, with_runs)))
        monkeypatch.setenv(VARIABLE, str(file))

    return told
