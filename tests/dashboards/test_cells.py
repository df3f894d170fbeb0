"""Runs of one name whose configurations differ in what no record's column tells: rows, columns and names of their own,
and never a mean over them."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

pytest.importorskip("streamlit", reason="the extra `dashboard` is not installed")

import streamlit as st
from one_command import robuq
from test_pages import opened

from analysis.load import load_runs
from robuq.record.mlflow import sqlite_uri

OTHER = "block_linears.act.grid=as_coded"


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Four runs of `robuq train`, each of another seed; the third has another grid."""
    folder = tmp_path_factory.mktemp("single")
    for seed, more in enumerate([(), (), ("--set", OTHER), ()]):
        assert robuq("train", "robuq_uniform", "--preset", "nano", "--output", folder, "--seed", seed, *more) == 0
    return folder


@pytest.fixture(autouse=True)
def _fresh() -> Iterator[None]:
    yield
    st.cache_resource.clear()


def keys(folder: Path) -> dict[int, str]:
    runs = load_runs(sqlite_uri(folder / "mlflow.db"), "single")
    return {int(run["seed"]): str(run["key"]) for _, run in runs.iterrows()}


def test_another_setting_is_another_row(folder: Path, tell: Any) -> None:
    tell(folder)
    table = opened("leaderboard", plan="single").dataframe[0].value
    own = keys(folder)
    assert dict(zip(table["run"], table["n"], strict=True)) == {own[0][:8]: "3", own[2][:8]: "1"}


def test_another_setting_is_another_column(folder: Path, tell: Any) -> None:
    """Of the lowest seed that has it."""
    tell(folder)
    app, own = opened("samples", plan="single"), keys(folder)
    assert set(app.multiselect[0].value) == {f"robuq_uniform W1.58A2 run {own[seed][:8]}" for seed in (0, 2)}
    assert len(app.get("download_button")) == 7


def test_two_grids_are_compared(folder: Path, tell: Any) -> None:
    tell(folder)
    app = opened("ablation", plan="single")
    assert not app.exception
    assert any("act.grid" in name for name in app.dataframe[1].value["setting"])
