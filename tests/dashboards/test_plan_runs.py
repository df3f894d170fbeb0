"""What a page shows after the store has changed: runs that are deleted, restored, sent again or new. Nothing is read or
drawn again that has not changed."""

from __future__ import annotations

import os
import shutil
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pandas as pd
import pytest

pytest.importorskip("streamlit", reason="the extra `dashboard` is not installed")

import streamlit as st
from test_pages import opened

from analysis.load import load_runs
from analysis.recorded import PlanRuns, Source, frame_of
from dashboards import cached
from robuq.record.mlflow import MlflowRecorder, connect, read_record, read_runs, sqlite_uri
from robuq.record.run_record import RunRecord


@pytest.fixture
def folder(recorded: Path, tmp_path: Path) -> Iterator[Path]:
    """A copy of the recorded runs, to be changed."""
    yield Path(shutil.copytree(recorded, tmp_path / "copy"))
    st.cache_resource.clear()


@pytest.fixture
def uri(folder: Path) -> str:
    return sqlite_uri(folder / "mlflow.db")


def sent(uri: str, record: RunRecord, **changes: Any) -> None:
    """As a sweep sends it."""
    MlflowRecorder(uri).record(read_record(uri, record).updated(**changes, artifacts={}))


def run_id(uri: str, key: str) -> str:
    """MLflow's, of the plan's run."""
    client = connect(uri)
    plan = client.get_experiment_by_name("tiny").experiment_id
    (found,) = client.search_runs([plan], f"tags.`robuq.key` = '{key}'")
    return str(found.info.run_id)


def test_each_change_gives_what_a_full_read_gives(folder: Path, uri: str) -> None:
    runs, first = PlanRuns(Source(uri, folder), "tiny"), read_runs(uri, "tiny")
    one, other = first[0], first[-1]
    gone = run_id(uri, one.key)
    changes: list[Callable[[], Any]] = [
        lambda: sent(uri, other, key="0" * 16, seed=7),
        lambda: sent(uri, other, metrics={**other.metrics, "held_out_loss": 0.5}),
        lambda: sent(uri, one, plan="another"),
        lambda: connect(uri).delete_run(gone),
        lambda: connect(uri).restore_run(gone),
        lambda: connect(uri).log_metric(gone, "by_hand", 0.25),
    ]
    for change in changes:
        known = runs.records()
        change()
        assert not runs.is_read
        now = runs.records()
        assert runs.is_read
        assert list(now.records.values()) == read_runs(uri, "tiny")
        pd.testing.assert_frame_equal(frame_of(now.records.values()), load_runs(uri, "tiny"))
        assert sum(record is not known.records.get(run) for run, record in now.records.items()) <= 1
    assert now.by_key[other.key].metrics["held_out_loss"] == 0.5
    assert {record.seed for record in now.records.values()} == {0, 1, 7}


def test_an_open_page_shows_it(folder: Path, uri: str, tell: Any) -> None:
    tell(folder)
    app = opened("leaderboard", plan="tiny")
    assert app.dataframe[0].value["n"].to_list() == ["2", "2"]
    robuq = [record for record in read_runs(uri, "tiny") if record.variant == "robuq"]
    connect(uri).delete_run(run_id(uri, robuq[0].key))
    assert sorted(app.run().dataframe[0].value["n"]) == ["1", "2"]
    sent(uri, robuq[1], metrics={**robuq[1].metrics, "held_out_loss": 123.0})
    table = app.run().dataframe[0].value
    assert table["Held-out loss ↓"].to_list()[-1].startswith("123.0")


def test_what_is_drawn_is_drawn_again_when_its_own_runs_change(folder: Path, uri: str) -> None:
    source, drawn = Source(uri, folder), []
    one, other = read_runs(uri, "tiny")[:2]

    def draw() -> int:
        drawn.append(1)
        return len(drawn)

    def shown() -> tuple[int, int]:
        """What is drawn of the first run, and of the plan."""
        of_one = cached.kept(source, ["tiny"], ("figure",), draw, keys=[one.key])
        return of_one, cached.kept(source, ["tiny"], ("figure",), draw)

    assert shown() == shown() == (1, 2)
    sent(uri, one, plan="another")
    assert shown() == (1, 2)
    sent(uri, other, metrics={**other.metrics, "held_out_loss": 0.5})
    assert shown() == (1, 3)
    connect(uri).set_tag(run_id(uri, read_runs(uri, "tiny")[0].key), "note", "looked at")
    assert shown() == (4, 5)


def test_what_comes_while_a_page_is_made_is_drawn_the_next_time(folder: Path, uri: str) -> None:
    """And not kept as the picture of records that it does not show."""
    source = Source(uri, folder)

    def drawn(meanwhile: Callable[[], None]) -> float:
        with cached.one_moment():
            runs = cached.plan_runs(source, "tiny")
            meanwhile()
            shown: float = cached.kept(source, ["tiny"], ("sum",), lambda: float(runs["held_out_loss"].sum()))
            return shown

    other = read_runs(uri, "tiny")[1]
    first = drawn(lambda: sent(uri, other, metrics={**other.metrics, "held_out_loss": 50.0}))
    assert drawn(lambda: None) == pytest.approx(first - other.metrics["held_out_loss"] + 50.0)


def test_a_run_that_is_deleted_while_it_is_looked_at_is_named(folder: Path, uri: str) -> None:
    source, key = Source(uri, folder), read_runs(uri, "tiny")[0].key
    assert cached.whole_record(source, "tiny", key).key == key
    connect(uri).delete_run(run_id(uri, key))
    with pytest.raises(ValueError, match=f"run {key} is no longer recorded"):
        cached.whole_record(source, "tiny", key)


def test_two_changes_at_one_time_of_the_clock_are_two(folder: Path, uri: str) -> None:
    """The file's time and size are set back to what they were."""
    file, source = folder / "mlflow.db", Source(uri, folder)
    state, before = file.stat(), source.fingerprint()
    connect(uri).set_tag(run_id(uri, read_runs(uri, "tiny")[0].key), "note", "x")
    assert file.stat().st_size == state.st_size
    os.utime(file, ns=(state.st_atime_ns, state.st_mtime_ns))
    assert source.fingerprint() != before
